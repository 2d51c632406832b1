"""A data set as it was read, whatever its layout; which of its classes are too rare, and what is left without them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from fomo.config import DATASETS, ROOT, UserError, some
from fomo.data.sources import Folder, IdxFiles
from fomo.data.tables import HIDDEN

FEWEST = 2  # train images of a class: one to train on and one to validate on


@dataclass(frozen=True)
class Dataset:
    """A data set: its class names, its train table (file, label, maybe group: images that belong together, and
    validation: whether an image is for that, where it is given), `left_out` (file, reason), and `notes`, what there is
    to say about how it was read."""

    name: str
    source: Folder | IdxFiles
    classes: list[str]
    train: pd.DataFrame
    read_test: Callable[[], pd.DataFrame]
    notes: tuple[str, ...] = ()
    left_out: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"file": [], "reason": []}, dtype=str))

    def test(self) -> pd.DataFrame:
        """The test table (file, label, maybe group); labels are -1 where they are hidden. Read in the evaluation, and
        where leaks are looked for."""
        return self.read_test()

    @property
    def place(self) -> str:
        """The data set as text, with the folder that it is read from."""
        path = self.source.path
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        return f"{self.name} ({shown})" if self.name in DATASETS else self.name

    def listed(self, split: str) -> pd.DataFrame:
        """A split's files, each with its class (empty: hidden), maybe its group, and what changes with the file."""
        table = self.train if split == "train" else self.test()
        names = table["label"].map(dict(enumerate(self.classes))).fillna("")
        stamps = table["file"].map(self.source.stamp)
        return table.drop(columns="label").assign(**{"class": names}, stamp=stamps).sort_values("file")

    def fingerprint(self, split: str = "train") -> str:
        """A hash of what a split lists, and of the class names: another one means other data."""
        text = self.listed(split).to_csv(index=False)
        return hashlib.sha256("\n".join([text, *self.classes]).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def rare_classes(classes: list[str], labels: pd.Series) -> dict[str, int]:
    """The train images of each class that has fewer than `FEWEST`."""
    counts = dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True))
    return {name: count for name, count in counts.items() if count < FEWEST}


def without(dataset: Dataset, labels: list[int]) -> Dataset:
    """The data set without the classes of these labels, whose images are left out of train and test."""
    if not labels:
        return dataset
    kept = [number for number in range(len(dataset.classes)) if number not in labels]
    numbers = {label: place for place, label in enumerate(kept)} | {HIDDEN: HIDDEN}

    def rest(table: pd.DataFrame) -> pd.DataFrame:
        table = table[table["label"].isin(numbers)].reset_index(drop=True)
        return table.assign(label=table["label"].map(numbers).astype(np.int64))

    tables = pd.concat([dataset.train, dataset.test()])
    dropped = tables[~tables["label"].isin(numbers)][["file"]].assign(reason="its class has too few train images")
    names = some([f"'{dataset.classes[label]}'" for label in labels])
    note = f"left out: {len(dropped)} images of {names}, for such a class has fewer than {FEWEST} train images"
    return Dataset(
        dataset.name,
        dataset.source,
        [dataset.classes[label] for label in kept],
        rest(dataset.train),
        lambda: rest(dataset.test()),
        (*dataset.notes, note),
        pd.concat([dataset.left_out, dropped], ignore_index=True),
    )


def check_classes(dataset: Dataset, labels: pd.Series) -> None:
    """Raises `UserError` unless every class has images to train on and to validate on among the train images that are
    left, whose `labels` these are."""
    classes = dataset.classes
    if len(classes) < 2:
        found = f"the one class '{classes[0]}'" if classes else "no class"
        raise UserError(f"{dataset.name} has {found}; a classifier needs at least 2")
    rare = rare_classes(classes, labels)
    if rare:
        listed = pd.concat([dataset.train["label"], dataset.test()["label"]]).map(dict(enumerate(classes)))
        named = [f"'{one}' ({count}, of {(listed == one).sum()} in all)" for one, count in rare.items()]
        raise UserError(
            f"{dataset.name} has fewer than {FEWEST} train images of {some(named, 20)}; every class needs one to train "
            "on and one to validate on: add images, take it out, or leave such classes out by ON_RARE=drop "
            "(on_rare='drop')"
        )
