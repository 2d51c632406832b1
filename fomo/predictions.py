"""Predictions as csv, and where the model looks as pictures: what `python -m fomo predict` writes."""

import sys
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd
from PIL import Image

from fomo.config import UserError
from fomo.data.given import each
from fomo.model import Model
from fomo.progress import Bar
from fomo.storage import atomic

UNSURE = "unsure"


def find_images(model: Model, given: Sequence[str]) -> list[str]:
    """The image files that files, folders and patterns lead to."""
    return [path for path, _ in each(given[0] if len(given) == 1 else given, model.ranges)]


def write_predictions(
    model: Model, images: list[str], file: TextIO, top: int | None = None, threshold: float | None = None
) -> tuple[int, int]:
    """Writes what `Model.predict` says of image files into an open file as csv. Returns how many of them were read, and
    how many could not be.

    With `top` there are, in place of all probabilities, class_2, confidence_2 and so on to this number, of the most
    probable other classes. Below the `threshold` of confidence the class is `UNSURE`. A bar shows how far it is, where
    a person watches it and not the rows.
    """
    if top is not None and not 1 <= top <= len(model.classes):
        raise UserError(f"top is {top}; the model has {len(model.classes)} classes, so give 1 to {len(model.classes)}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"threshold is {threshold:g}; a confidence is from 0 to 1")
    if threshold is not None and UNSURE in model.classes:
        raise UserError(f"the model has a class called {UNSURE!r}, as threshold would; leave threshold out")
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


def make_folder(folder: Path, images: list[str]) -> None:
    """Makes the folder that `explain` fills. Raises `UserError` if images lie there, which it could replace."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() in {Path(image).expanduser().parent.resolve() for image in images}:
        raise UserError(f"{folder} holds images that are predicted, which pictures could replace; name another folder")


def explain(model: Model, images: list[str], folder: Path) -> None:
    """Stores where the model looks: in `folder`, for each image that can be read, a .png called as its file (a second
    boot is boot-2) with the image and beside it what speaks for its class, enlarged if they are small."""
    from fomo.figures.drawing import beside_map  # matplotlib takes a second, which most predictions do not need

    taken = set()
    for one in model.explain(images):
        stem = Path(str(one.file)).stem
        names = chain([stem], (f"{stem}-{number}" for number in count(2)))
        taken.add(name := next(name for name in names if name not in taken))
        image = Image.fromarray(beside_map(one.pixels, one.map).transpose(1, 2, 0))
        scale = max(1, 256 // image.height)
        with atomic(folder / f"{name}.png") as temporary:
            image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST).save(temporary, "png")
