"""What a folder means: which of its folders are splits, which are classes, and which of its files are left out."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

import pandas as pd

from fomo.config import UserError, some
from fomo.data.tree import SUFFIXES, TABLES, Tree

SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation"}
SPLITS |= {"dev": "validation", "test": "test", "testing": "test"}
PART = re.compile(r"(.*?)(?:^|[^a-z])(?:part|fold|batch|chunk|shard)[^a-z]*\d+", re.IGNORECASE)
HOW = "data/README.md describes the layouts"


class NoClassesError(UserError):
    """A folder has images, but no folders that name their classes."""


@dataclass(frozen=True)
class Listing:
    """The images of a data set: `table` (file; label, which is text, or "" where it is hidden; split, which is train,
    validation, test, or "" where none is given; maybe group), `left_out` (file, reason), `notes`."""

    table: pd.DataFrame
    left_out: pd.DataFrame
    notes: tuple[str, ...] = ()


def split_of(name: str) -> str:
    """The split that a folder or table of this name is, such as train, seg_train or train/labels.csv; "" if none, or
    several."""
    words = re.split(r"[^a-z]+", name.lower())
    found = {SPLITS[word] for word in words if word in SPLITS}
    return found.pop() if len(found) == 1 else ""


def list_class_folders(tree: Tree) -> Listing:
    """The images of a folder whose folders are classes, or splits that hold classes. Raises `UserError` where that is
    not clear, `NoClassesError` where no folder names a class."""
    if not tree.images:
        raise UserError(f"{tree.folder} has no images ({', '.join(SUFFIXES)}, or whatever Pillow opens); {HOW}")
    place = _branches(tree)
    splits = _splits(tree, place)
    found = _Found(tree, place)
    if not splits:
        found.take_classes(place, "")
    for split, name in splits.items():
        if split == "train":
            found.take_classes(_inner(tree, (*place, name)), split)
    classes = {row[1] for row in found.rows}
    for split, name in splits.items():
        if split != "train":
            found.take_judged(_inner(tree, (*place, name), classes), split, classes)
    return found.listing("it lies in no split" if splits else "it lies outside of the folders of classes")


def _branches(tree: Tree) -> tuple[str, ...]:
    """The folder where the tree branches: one that holds nothing but another folder of folders is passed."""
    place: tuple[str, ...] = ()
    while len(names := tree.inside(place)) == 1 and not split_of(names[0]):
        inner = (*place, names[0])
        if tree.loose(inner) and "train" not in map(split_of, tree.inside(inner)):
            break
        place = inner
    return place


def _inner(tree: Tree, place: tuple[str, ...], classes: Iterable[str] = ()) -> tuple[str, ...]:
    """The folder in that of a split where its classes begin: of train/train/<class> the second."""
    while len(names := tree.inside(place)) == 1 and names[0] not in classes:
        inner = (*place, names[0])
        again = names[0] == place[-1] and tree.inside(inner)
        if not again and (tree.loose(place) or tree.loose(inner)):
            break
        place = inner
    return place


def _splits(tree: Tree, place: tuple[str, ...]) -> dict[str, str]:
    """The folders in `place` by the split that they are; none where they are classes."""
    where, names = tree.folder.joinpath(*place), tree.inside(place)
    exact = {name: SPLITS[name.lower()] for name in names if name.lower() in SPLITS}
    named = {name: split_of(name) for name in names if split_of(name)}
    if not names:
        raise NoClassesError(f"{where} holds images, but no folders, one for each class; {HOW}")
    if len(names) == 1 and not named:
        raise NoClassesError(f"{where} has images of the one class '{names[0]}'; a classifier needs at least 2")
    if len(names) > 1 and len({match[1] if (match := PART.fullmatch(name)) else name for name in names}) == 1:
        raise NoClassesError(
            f"the folders of {where} are parts of one set, not classes: {some(names)}. Name the classes by folders, or "
            f"by a table{_tables(tree)}; {HOW}"
        )
    for found in (exact, named):
        trained = [name for name, split in found.items() if split == "train"]
        if not trained:
            continue
        if any(tree.inside((*place, name)) for name in trained):
            found |= {name: split for name, split in named.items() if split not in found.values()}  # train, seg_test
            twice = [name for name, split in found.items() if Counter(found.values())[split] > 1]
            if twice:
                raise UserError(f"{where} has {some(sorted(twice))}, which are one split; put their classes together")
            return {split: name for name, split in found.items()}
        if len(found) == len(names):
            raise NoClassesError(
                f"{some([f'{name}/' for name in found])} of {where} are splits by their names, and hold images, but no "
                f"folders, one for each class. Name the classes by folders, or by a table{_tables(tree)}; {HOW}"
            )
        if len(names) - len(found) < 2:
            break
        return {}  # a class that is called train, like its neighbours
    if len(exact) == len(names):
        raise UserError(f"{where} has {some([f'{name}/' for name in names])} but no train/; {HOW}")
    if exact:
        name = next(iter(exact))
        others = some([one for one in names if one != name])
        raise UserError(
            f"{where} has {name}/ beside {others}: it may be a split or a class. If it is a split, put the others into "
            "train/; if it is a class, put all of them into train/"
        )
    return {}


def _tables(tree: Tree) -> str:
    """The tables that lie beside the images, as a hint."""
    found = [str(tree.folder / name) for name in tables(tree)]
    return f"; beside them lies {some(found)}, which can be DATASET" if found else ""


def tables(tree: Tree, *, inside: bool = False) -> list[str]:
    """The tables in the folder itself, or those `inside` of its folders that are splits."""
    found = [file for file in tree.others if PurePosixPath(file[-1]).suffix.lower() in TABLES]
    if inside:
        return ["/".join(file) for file in found if len(file) == 2 and split_of(file[0])]
    return [file[0] for file in found if len(file) == 1]


class _Found:
    """What is found in a tree: `rows` (file, label, split), and what is left out of it, and why."""

    def __init__(self, tree: Tree, place: tuple[str, ...]):
        self.tree, self.place = tree, place
        self.rows: list[tuple[str, str, str]] = []
        self.reasons: dict[tuple[str, ...], str] = {}
        self.notes: list[str] = []

    def take_classes(self, place: tuple[str, ...], split: str) -> None:
        """Takes the images of each folder in `place` for those of a class."""
        tree, names = self.tree, self.tree.inside(place)
        if not names:
            raise NoClassesError(
                f"{tree.folder.joinpath(*place)} holds images, but no folders, one for each class; {HOW}"
            )
        for folder in [folder for folder in tree.folders if folder[:-1] == place and folder[-1] not in names]:
            self._unused(folder)
        deeper = set()
        for name in names:
            for image in tree.below((*place, name)):
                self._take(image, name, split)
                deeper |= {image[:-1]} if len(image) > len(place) + 2 else set()
        if deeper:
            shown = some(["/".join(folder) for folder in sorted(deeper)])
            self.notes.append(f"images lie deeper than their class, whose name is that of the outer folder: {shown}")
        for image in tree.loose(place):
            self.reasons[image] = "it lies beside the folders of classes"

    def take_judged(self, place: tuple[str, ...], split: str, classes: set[str]) -> None:
        """Takes the images in `place` for a validation or test split: of these `classes`, or, where they lie in no
        folder, or in one that is no class, with hidden labels."""
        tree = self.tree
        names = tree.inside(place)
        if len(names) > 1 or set(names) & {name.strip() for name in classes}:
            self.take_classes(place, split)
            return
        for image in tree.below(place):
            if split == "test":
                self._take(image, "", split)
            else:
                self.reasons[image] = "nothing says what class it is of"

    def _take(self, image: tuple[str, ...], label: str, split: str) -> None:
        self.rows.append(("/".join(image), label, split))

    def _unused(self, folder: tuple[str, ...]) -> None:
        """A folder beside those of classes that has no image."""
        files = [file for file in self.tree.others if file[: len(folder)] == folder]
        path = "/".join(folder)
        if files:
            shown = some(["/".join(file) for file in files])
            raise UserError(
                f"{self.tree.folder / path} lies beside folders of classes and holds nothing that Pillow opens as an "
                f"image: {shown}. If it is a class, bring its images into another format; if it is none, take it out"
            )
        self.notes.append(f"{path}/ is empty")

    def listing(self, reason: str) -> Listing:
        """All that was found; what was not come by is left out for this `reason`."""
        tree, used = self.tree, {row[0] for row in self.rows}
        beside = [image for image in tree.images if "/".join(image) not in used]
        rows = [("/".join(image), self.reasons.get(image, reason)) for image in beside]
        rows += [("/".join(file), "not an image") for file in tree.others if len(file) > len(self.place) + 1]
        left_out = pd.DataFrame(rows, columns=["file", "reason"])
        notes = [*self.notes, *(said(left_out))]
        notes += [f"the table {name} lies beside the images, and is not used" for name in tables(tree)]
        return Listing(pd.DataFrame(self.rows, columns=["file", "label", "split"]), left_out, tuple(notes))


def said(left_out: pd.DataFrame) -> list[str]:
    """What is left out (file, reason), as text: for each reason how many files of which folders."""
    notes = []
    for reason, files in left_out.groupby("reason", sort=False)["file"]:
        counts = Counter(str(PurePosixPath(file).parent) for file in files)
        folders = [f"{count} in {folder}/".replace("in ./", "beside") for folder, count in sorted(counts.items())]
        notes.append(f"left out ({reason}): {some(folders)}, {files.iloc[0]} first")
    return notes
