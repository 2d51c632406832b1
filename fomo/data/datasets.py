"""The data sets: found by name or by path, in any of the layouts that people have, and their tables checked.

data/README.md describes the layouts. Whatever the layout, a `Dataset` is two tables (file, label) and class names.
"""

import hashlib
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from fomo.config import DATASETS, ROOT, UserError, some
from fomo.data.archives import KINDS, REFUSED, obtain, unpack
from fomo.data.columns import list_tables
from fomo.data.dataset import Dataset, check_classes, rare_classes, without
from fomo.data.division import divide, together
from fomo.data.folders import HOW, Listing, NoClassesError, list_class_folders, split_of, tables
from fomo.data.names import ordered, tidy
from fomo.data.sources import Folder, IdxFiles
from fomo.data.tables import HIDDEN, first_line, read_classes, read_split
from fomo.data.tree import Tree
from fomo.data.twins import twins
from fomo.paths import runs_folder

RECORD = "dataset.json"  # in the folder of a run: what `load_dataset` is to be given
TEST_SHARE = 0.2  # of a data set without a test split; cut with seed 0 whatever the run's, so that runs compare
FASHION_FILES = (  # where Debian's package and torchvision put the original files
    Path("/usr/share/datasets/fashion-mnist"),
    ROOT / "data" / "FashionMNIST" / "raw",
)
FASHION_CLASSES = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]


def load_dataset(name: str, columns: str = "", on_rare: str = "refuse") -> Dataset:
    """The data set called `name`, or the one at the path `name`: a folder, an archive of one, or a table of paths and
    labels, whose `columns` (file:label) are found by looking unless they are given. Classes of fewer than two train
    images are refused, or, with `on_rare` drop, left out.

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
    return without_rare(dataset, on_rare)


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
    """train.csv, test.csv (image_file_name, label), images_train/, images_test/, maybe classes.txt, whose
    names are those of the labels from 0 on, or from 1 on; without it the labels are the names."""
    classes, train = read_classes(folder / "classes.txt"), read_split(folder, "train")
    found = sorted(set(train["label"]))
    first = int(found[0] > 0 and found[-1] == len(classes))
    given = range(first, first + len(classes)) if classes else found
    numbers = {label: place for place, label in enumerate(given)} | {HIDDEN: HIDDEN}

    def numbered(split: str, table: pd.DataFrame) -> pd.DataFrame:
        foreign = table["label"][~table["label"].isin(numbers)]
        if len(foreign):
            known = f"{len(given)}: {given[0]} to {given[-1]}"
            raise UserError(f"{folder / split}.csv has label {foreign.iloc[0]}, but the classes are {known}")
        return table.assign(label=table["label"].map(numbers).astype(np.int64))

    names = classes or [str(label) for label in found]
    own = numbered("train", train)
    return Dataset(name, Folder(folder), names, own, lambda: numbered("test", read_split(folder, "test")))


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
        groups = together(table, twins(source.path, table["file"]), TEST_SHARE, seed=0)
        parts = divide(table.assign(group=groups), TEST_SHARE, seed=0)
        table["split"] = parts.map({True: "test", False: "train"})
        notes.append(f"there is no test split; one image in {1 / TEST_SHARE:.0f} was set aside as one, stratified")
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


def without_rare(dataset: Dataset, on_rare: str) -> Dataset:
    """The data set, if every class has enough train images; otherwise without those that have not, where `on_rare` is
    drop."""
    rare = rare_classes(dataset.classes, dataset.train["label"])
    if len(rare) and on_rare == "drop":
        dataset = without(dataset, [dataset.classes.index(name) for name in rare])
    check_classes(dataset, dataset.train["label"])
    return dataset
