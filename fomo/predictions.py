"""Predictions as csv, written as they are computed: what `python -m fomo predict` does."""

import sys
from collections.abc import Sequence
from typing import TextIO

import numpy as np
import pandas as pd

from fomo.config import UserError
from fomo.data.given import each
from fomo.model import Model
from fomo.progress import Bar

UNSURE = "unsure"


def write_predictions(
    model: Model, given: Sequence[str], file: TextIO, top: int | None = None, threshold: float | None = None
) -> tuple[int, int]:
    """Writes what `Model.predict` says of the files, folders and patterns given into an open file as csv. Returns how
    many images were read, and how many could not be.

    With `top` there are, in place of all probabilities, class_2, confidence_2 and so on to this number, of the most
    probable other classes. Below the `threshold` of confidence the class is `UNSURE`. A bar shows how far it is, where
    a person watches it and not the rows.
    """
    if top is not None and not 1 <= top <= len(model.classes):
        raise UserError(f"top is {top}; the model has {len(model.classes)} classes, so give 1 to {len(model.classes)}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"threshold is {threshold:g}; a confidence is from 0 to 1")
    images = [path for path, _ in each(given[0] if len(given) == 1 else given, model.ranges)]
    read, header = 0, True
    quiet = True if file is sys.stdout and file.isatty() else None  # None: where stderr is no terminal
    with Bar(total=len(images), desc="images", unit="image", leave=False, disable=quiet) as bar:
        for table in model.tables(images):
            shown = table if top is None else best(table, model, top)
            if threshold is not None:
                shown.loc[shown["confidence"] < threshold, "class"] = UNSURE
            shown.to_csv(file, index=False, header=header, lineterminator="\n")
            read, header = read + int(table["reason"].isna().sum()), False
            bar.update(len(table))
    return read, len(images) - read


def best(table: pd.DataFrame, model: Model, top: int) -> pd.DataFrame:
    """The table with the `top` classes of each image, the one that is named first, in place of all probabilities."""
    values = table[model.columns].to_numpy()
    named = table["class"].to_numpy()[:, None] == np.array(model.classes, object)
    order = np.where(named, np.inf, values).argsort(axis=1)[:, ::-1]
    shown, read = table.drop(columns=[*model.columns, "reason"]), table["reason"].isna()
    for rank in range(1, top):
        names = pd.Series(np.array(model.classes, object)[order[:, rank]], dtype="str", index=table.index)
        shown[f"class_{rank + 1}"] = names.where(read)
        shown[f"confidence_{rank + 1}"] = values[np.arange(len(values)), order[:, rank]]
    return shown.assign(reason=table["reason"])
