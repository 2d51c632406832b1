"""The data sets: found by name or by path, in any of the layouts that people have, and their tables checked.

data/README.md describes the layouts. Whatever the layout, a `Dataset` is two tables (file, label) and class names.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from fomo.config import DATASETS, ROOT, UserError, some
from fomo.data.archives import obtain, unpack
from fomo.data.division import divide
from fomo.data.sources import Folder, IdxFiles
from fomo.data.tables import HIDDEN, check_files, groups_of, read_classes, read_csv, read_split

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TEST_SHARE = 0.2  # of a data set without a test split; cut with seed 0 whatever the run's, so that runs compare
FASHION_FILES = (  # where Debian's package and torchvision put the original files
    Path("/usr/share/datasets/fashion-mnist"),
    ROOT / "data" / "FashionMNIST" / "raw",
)
FASHION_CLASSES = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]


@dataclass(frozen=True)
class Dataset:
    """A data set: its class names, its train table (file, label, and group where images belong together), and `notes`,
    what there is to say about how it was read."""

    name: str
    source: Folder | IdxFiles
    classes: list[str]
    train: pd.DataFrame
    read_test: Callable[[], pd.DataFrame]
    notes: tuple[str, ...] = ()

    def test(self) -> pd.DataFrame:
        """The test table (file, label, maybe group); labels are -1 where they are hidden. Read in the evaluation, and
        where leaks are looked for."""
        return self.read_test()

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


def load_dataset(name: str) -> Dataset:
    """The data set called `name`, or the one at the path `name`: a folder, or a table (csv) of paths and labels.

    Raises `UserError` where it is missing, or where a table holds what cannot be.
    """
    if name == "fashion" and not (ROOT / "data" / "fashion").exists():
        for folder in FASHION_FILES:
            if (folder / "train-images-idx3-ubyte.gz").exists():
                source = IdxFiles(folder)
                return Dataset(name, source, FASHION_CLASSES, source.table("train"), partial(source.table, "test"))
    if name in DATASETS:
        path = ROOT / "data" / name
        if not path.exists():
            unpack(obtain(name, path.parent), path)
    else:
        path = Path(name).expanduser().resolve()
    if not path.exists():
        raise UserError(f"unknown data set '{name}'; choose from {', '.join(DATASETS)}, or give a folder or a table")
    if path.is_file():
        return _checked(_from_table(path))
    if any((path / entry).exists() for entry in ("train.csv", "test.csv", "images_train")):
        return _checked(_from_archive_layout(name, path))
    return _checked(_from_class_folders(path))


def _checked(dataset: Dataset) -> Dataset:
    check_classes(dataset.name, dataset.classes, dataset.train["label"])
    return dataset


def check_classes(name: str, classes: list[str], labels: pd.Series) -> None:
    """Raises `UserError` unless every class has images to train on and to validate on."""
    if len(classes) < 2:
        raise UserError(f"{name} has the one class '{classes[0]}'; a classifier needs at least 2")
    for label, count in enumerate(np.bincount(labels, minlength=len(classes))):
        if count < 2:
            raise UserError(
                f"class {label} ('{classes[label]}') has {count} train images in {name}; every class needs at least 2, "
                "one to train on and one to validate on: add images or take the class out"
            )


def _from_archive_layout(name: str, folder: Path) -> Dataset:
    """train.csv, test.csv (image_file_name, label), images_train/, images_test/, maybe classes.txt."""
    classes = read_classes(folder / "classes.txt")
    train = read_split(folder, "train", classes)
    classes = classes or [str(label) for label in range(train["label"].max() + 1)]
    return Dataset(name, Folder(folder), classes, train, lambda: read_split(folder, "test", classes))


def _from_table(path: Path) -> Dataset:
    """A csv with the columns path (relative to it) and label (any text), maybe split (train, test) and group."""
    table = read_csv(path, {"path", "label"}).rename(columns={"path": "file"})
    empty = table["label"] == ""
    if empty.any():
        raise UserError(f"{path} has no label in line {table.index[empty][0] + 2}; give it one, or take the line out")
    check_files(str(path), table["file"])
    if "group" in table:
        table["group"] = groups_of(table["group"], table["file"])
    return _with_splits(str(path), path.parent, table, [])


def _from_class_folders(folder: Path) -> Dataset:
    """folder/class/*, or folder/train/class/* and folder/test/class/* (or folder/test/*, whose labels are hidden)."""
    splits = {entry.name.lower(): entry for entry in _folders(folder)}
    parts = {name: splits[name] for name in ("train", "test") if name in splits} or {"": folder}
    if set(parts) == {"test"}:
        raise UserError(f"{folder} has test/ but no train/; data/README.md describes the layouts")
    rows, other = [], [] if "" in parts else [f"{name}/" for name in splits if name not in parts]
    for split, part in parts.items():
        loose = [file.relative_to(folder).as_posix() for file in _images(part) if not file.is_dir()]
        if split == "test" and not any(_images(label) for label in _folders(part)):
            rows += [{"file": name, "label": "", "split": split} for name in loose]  # their labels are hidden
        else:
            other += loose
        for label in _folders(part):
            if not any(label.iterdir()):
                other.append(f"{label.relative_to(folder).as_posix()}/ (empty)")
            images = set(_images(label))
            for file in sorted(_shown(label)):
                name = file.relative_to(folder).as_posix()
                if file in images:
                    rows.append({"file": name, "label": label.name, "split": split})
                else:
                    other.append(name)
    if not rows:
        raise UserError(
            f"{folder} has neither train.csv nor sub-folders with images ({', '.join(SUFFIXES)}), one for each class; "
            "data/README.md describes the layouts"
        )
    table = pd.DataFrame(rows)
    if "" in parts:
        table = table.drop(columns="split")
    notes = [f"left alone, for these are no images by their names or places: {some(other)}"] if other else []
    return _with_splits(str(folder), folder, table, notes)


def _images(folder: Path) -> list[Path]:
    """What is an image in `folder`, by its name."""
    return sorted(entry for entry in _shown(folder) if entry.suffix.lower() in SUFFIXES)


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in _shown(folder) if entry.is_dir())


def _shown(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _with_splits(name: str, folder: Path, table: pd.DataFrame, notes: list[str]) -> Dataset:
    """A `Dataset` from a table of file, label (text), maybe split and group; a test split is cut if there is none."""
    if "split" not in table or (table["split"] == "train").all():
        parts = divide(table, TEST_SHARE, seed=0)
        table = table.assign(split=parts.map({True: "test", False: "train"}))
        notes = [*notes, f"there is no test split; one image in {1 / TEST_SHARE:.0f} was cut off as one, stratified"]
    unknown = set(table["split"]) - {"train", "test"}
    if unknown:
        raise UserError(f"{name} has the split {some(sorted(map(repr, unknown)))}; splits are train and test")
    parts = {split: rows.drop(columns="split") for split, rows in table.groupby("split")}
    if len(parts) < 2:
        raise UserError(f"{name} has a split {next(iter(parts))} but not the other; give both, or none")
    classes = sorted(set(parts["train"]["label"]))
    hidden = {"": HIDDEN} if (parts["test"]["label"] == "").all() else {}
    foreign = sorted(set(parts["test"]["label"]) - set(classes) - set(hidden))
    if foreign:
        raise UserError(f"{name} has test images of {some(foreign)}, but no train images of it")
    numbers = {label: number for number, label in enumerate(classes)} | hidden
    columns = [column for column in ("file", "label", "group") if column in table]
    train, test = (
        part.assign(label=part["label"].map(numbers).astype(np.int64))[columns].reset_index(drop=True)
        for part in (parts["train"], parts["test"])
    )
    return Dataset(name, Folder(folder), classes, train, lambda: test, tuple(notes))
