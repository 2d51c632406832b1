"""The data sets: found by name or by path, in any of the layouts that people have, and their tables checked.

data/README.md describes the layouts. Whatever the layout, a `Dataset` is two tables (file, label) and class names.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from fomo.config import DATASETS, ROOT, UserError, some
from fomo.data.archives import KINDS, REFUSED, obtain, unpack
from fomo.data.columns import list_tables
from fomo.data.division import divide
from fomo.data.folders import HOW, Listing, NoClassesError, list_class_folders, split_of, tables
from fomo.data.names import ordered, tidy
from fomo.data.sources import Folder, IdxFiles
from fomo.data.tables import HIDDEN, first_line, read_classes, read_split
from fomo.data.tree import Tree
from fomo.paths import runs_folder

TEST_SHARE = 0.2  # of a data set without a test split; cut with seed 0 whatever the run's, so that runs compare
FEWEST = 2  # train images of a class: one to train on and one to validate on
FASHION_FILES = (  # where Debian's package and torchvision put the original files
    Path("/usr/share/datasets/fashion-mnist"),
    ROOT / "data" / "FashionMNIST" / "raw",
)
FASHION_CLASSES = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]


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


def load_dataset(name: str, columns: str = "", on_rare: str = "refuse") -> Dataset:
    """The data set called `name`, or the one at the path `name`: a folder, an archive of one, or a table of paths and
    labels, whose `columns` (file:label) are found by looking unless they are given. Classes of fewer than `FEWEST`
    train images are refused, or, with `on_rare` drop, left out.

    Raises `UserError` where it is missing, where a table holds what cannot be, and where it is not clear what is meant.
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
    if path.is_file() and path.suffix.lower() in REFUSED:
        raise UserError(f"{path} is packed in a way that is not read; unpack it and give the folder, or a .zip")
    given = str(path)
    if path.is_file() and path.name.lower().endswith(KINDS):
        path = _unpacked(path, runs_folder(name) / "unpacked")
    if path.is_dir() and _is_archive_layout(path):
        dataset = _from_archive_layout(name, path)
    else:
        tree = Tree(path if path.is_dir() else path.parent)
        listing = _list(tree, columns) if path.is_dir() else list_tables(tree, [path.name], columns)
        dataset = _with_splits(given, Folder(tree.folder), listing)
    return _without_rare(dataset, on_rare)


def _unpacked(archive: Path, folder: Path) -> Path:
    """The folder that an archive is unpacked to, once for each of its versions."""
    stat = archive.stat()
    version = folder / hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:6]
    if not version.exists():
        try:
            unpack(archive, version)
        except UserError:
            with suppress(OSError):  # which says that something else lies there
                folder.rmdir()
                folder.parent.rmdir()
            raise
    return version


def _is_archive_layout(folder: Path) -> bool:
    """Whether a folder has the layout of the report's data sets, or a part of it."""
    beside = [folder / name for name in ("train.csv", "test.csv", "classes.txt") if (folder / name).exists()]
    known = beside and (folder / "images_train").is_dir()
    return bool(known or any("image_file_name" in first_line(path) for path in beside))


def _list(tree: Tree, columns: str) -> Listing:
    """The images of a folder: by its folders, or by the tables in it where those name no classes, or where `columns`
    say that they are to be used."""
    found = tables(tree)
    named = [name for name in found if split_of(name)] or found
    if columns and named:
        return list_tables(tree, named, columns)
    try:
        return list_class_folders(tree)
    except NoClassesError as error:
        named = named or tables(tree, inside=True)
        if not named or (len(named) > 1 and not split_of(named[0])):
            raise
        try:
            return list_tables(tree, named, columns)
        except UserError as other:
            raise UserError(f"{error}; {other}") from other


def _from_archive_layout(name: str, folder: Path) -> Dataset:
    """train.csv, test.csv (image_file_name, label), images_train/, images_test/, maybe classes.txt."""
    classes = read_classes(folder / "classes.txt")
    train = read_split(folder, "train", classes)
    if not classes:  # the labels are the names
        numbers = sorted(set(train["label"]))
        train = train.assign(label=train["label"].map({label: place for place, label in enumerate(numbers)}))
        classes = [str(label) for label in numbers]
    return Dataset(name, Folder(folder), classes, train, lambda: read_split(folder, "test", classes))


def _with_splits(name: str, source: Folder, listing: Listing) -> Dataset:
    """A `Dataset` from a listing; a test split is cut if there is none."""
    table, notes = listing.table.assign(label=tidy(listing.table["label"])), list(listing.notes)
    given = set(table["split"])
    if "" in given and len(given) > 1:
        raise UserError(f"{name} names the split of some images only: give it for all, or for none")
    if "test" not in given and "validation" in given:
        table["split"] = table["split"].replace("validation", "test")
        notes.append("there is no test split; the validation images are taken for it")
    elif "test" not in given:
        parts = divide(table, TEST_SHARE, seed=0)
        table["split"] = parts.map({True: "test", False: "train"})
        notes.append(f"there is no test split; one image in {1 / TEST_SHARE:.0f} was cut off as one, stratified")
    if "train" not in set(table["split"]):
        raise UserError(f"{name} has a test split, but no train split; give both, or none; {HOW}")
    learned, test = table[table["split"] != "test"], table[table["split"] == "test"]
    classes = ordered(name, learned["label"])
    hidden = {"": HIDDEN} if (test["label"] == "").all() else {}
    foreign = sorted(set(test["label"]) - set(classes) - set(hidden))
    if foreign:
        raise UserError(
            f"{name} has test images of {some([label or 'no class' for label in foreign])}, but no train images of it"
        )
    numbers = {label: number for number, label in enumerate(classes)} | hidden
    columns = [column for column in ("file", "label", "group") if column in table]
    train = learned[columns].assign(label=learned["label"].map(numbers).astype(np.int64))
    if (learned["split"] == "validation").any():
        train["validation"] = learned["split"] == "validation"
    test = test[columns].assign(label=test["label"].map(numbers).astype(np.int64)).reset_index(drop=True)
    return Dataset(name, source, classes, train.reset_index(drop=True), lambda: test, tuple(notes), listing.left_out)


def _without_rare(dataset: Dataset, on_rare: str) -> Dataset:
    """The data set, if every class has enough train images; otherwise without those that have not, where `on_rare` is
    drop."""
    rare = rare_classes(dataset.classes, dataset.train["label"])
    if len(rare) and on_rare == "drop":
        dataset = without(dataset, [dataset.classes.index(name) for name in rare])
    check_classes(dataset, dataset.train["label"])
    return dataset


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
        raise UserError(f"{dataset.name} has the one class '{classes[0]}'; a classifier needs at least 2")
    rare = rare_classes(classes, labels)
    if rare:
        listed = pd.concat([dataset.train["label"], dataset.test()["label"]]).map(dict(enumerate(classes)))
        named = [f"'{one}' ({count}, of {(listed == one).sum()} in all)" for one, count in rare.items()]
        raise UserError(
            f"{dataset.name} has fewer than {FEWEST} train images of {some(named, 20)}; every class needs one to train "
            "on and one to validate on: add images, take it out, or leave such classes out by ON_RARE=drop "
            "(on_rare='drop')"
        )
