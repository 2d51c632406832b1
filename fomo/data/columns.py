"""Which columns of a table name the images and the classes: found by looking at what is in them."""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from fomo.config import UserError, some
from fomo.data.folders import SPLITS, Listing, split_of
from fomo.data.tables import check_files, groups_of, read_table
from fomo.data.tree import Tree

LABELS = ("label", "labels", "class", "class_name", "target", "category", "diagnosis", "y")  # what people call them
SHARE = 0.5  # of its values name files that exist: so many do in the column of files
REPEATED = 2  # times that a class occurs on average, at least: what occurs less often is no class


class Files:
    """Finds the images of a folder by the names that a table has for them: paths relative to it, or to another
    machine's folder, with slashes of either kind, with or without suffix, each letter written in either way."""

    def __init__(self, tree: Tree):
        self.folder = str(tree.folder)
        self._files = {"/".join(image) for image in tree.images}
        self._called: dict[str, list[str]] = {}  # by each end of its path
        self._bare: dict[str, list[str]] = {}  # and by each end of its path without suffix
        for image in tree.images:
            for known, last in ((self._called, image[-1]), (self._bare, os.path.splitext(image[-1])[0])):
                end = ""
                for part in (last, *reversed(image[:-1])):
                    end = f"{_alike(part)}/{end}" if end else _alike(part)
                    known.setdefault(end, []).append("/".join(image))

    def find(self, value: str, split: str = "") -> str:
        """The file that `value` names, relative to the folder; of several the one in a folder that is this `split`;
        "" if there is none, or if that does not tell."""
        slashed = value.replace("\\", "/")
        parts = [part for part in slashed.split("/") if part not in ("", ".")]
        exact = "/".join(parts)
        if ".." in parts or slashed.startswith("/"):
            exact = os.path.relpath(os.path.join(self.folder, slashed), self.folder)
        for one in (value, exact):
            if one in self._files:
                return one
        if exact.startswith("..") and os.path.isfile(os.path.join(self.folder, exact)):  # it leads out of the folder
            real = os.path.relpath(os.path.realpath(os.path.join(self.folder, exact)), self.folder)
            return real if real in self._files else exact  # and maybe back, by a link
        ends = ("/".join(map(_alike, parts[start:])) for start in range(len(parts)))
        known = (known[end] for end in ends for known in (self._called, self._bare) if end in known)
        found = next(known, [])  # by the longest end; what is above may be another machine's
        if len(found) > 1 and split:
            found = [one for one in found if split in map(split_of, one.split("/")[:-1])]
        if not found and exact and os.path.isfile(os.path.join(self.folder, exact)):  # it is not called like an image
            return exact
        return found[0] if len(found) == 1 else ""


def _alike(part: str) -> str:
    """A part of a path as tables have it: each letter written in one way (Unicode NFC), no spaces around."""
    return unicodedata.normalize("NFC", part).strip()


def list_tables(tree: Tree, names: Iterable[str], columns: str) -> Listing:
    """The images that tables in a folder name: one for all, or one for each split, by its name. Which column holds what
    is found by looking, unless `columns` (file:label, or file:label:group) says it. Raises `UserError` where that is
    not clear."""
    files, names = Files(tree), list(names)
    splits = {name: split_of(name) if len(names) > 1 else "" for name in names}
    parts, notes = [], []
    for name, split in splits.items():
        table = read_table(tree.folder / name)
        found = _columns(tree.folder / name, table, files, columns, split)
        parts.append(_listed(tree.folder / name, table, found, files, split))
        notes.append(f"{name}: images are in column {found['file']}, classes in {found['said']}")
    listed = pd.concat(parts, ignore_index=True)
    check_files(tree.folder / names[0], tree.folder, listed["file"])
    used = set(listed["file"])
    beside = [file for image in tree.images if (file := "/".join(image)) not in used]
    left_out = pd.DataFrame({"file": beside, "reason": "no table names it"}, columns=["file", "reason"])
    return Listing(listed, left_out, tuple(notes))


def _columns(path: Path, table: pd.DataFrame, files: Files, asked: str, split: str) -> dict:
    """Which columns of a table hold the `file`, the `label` (None: hidden; several: one for each class), `group`, and
    `split`; and the labels' as text (`said`)."""
    given = [name.strip() for name in asked.split(":")] if asked else []
    unknown = [name for name in given if name not in table.columns]
    if unknown or (asked and not 2 <= len(given) <= 3):
        raise UserError(
            f"COLUMNS={asked} does not say which columns of {path} name the images and the classes; it has "
            f"{', '.join(table.columns)}; give such as COLUMNS=file:label"
        )
    sample = table.iloc[:: max(1, len(table) // 200)]
    hits = {
        name: np.mean([bool(files.find(value, split)) for value in sample[name]])
        for name in table.columns
        if table[name].nunique() > len(table) / 2
    }
    file = given[0] if given else max(hits, key=hits.get, default=None)
    if not given and (not hits or hits[file] < SHARE):
        raise UserError(f"no column of {path} names images that lie beside it; {_shown(table)}")
    others = [name for name in table.columns if name != file]
    roles = {name.lower(): name for name in others if name.lower() in ("split", "group")}
    rest = [name for name in others if name not in roles.values()]
    ones = [] if given else _one_hot(table, others) or _one_hot(table, rest)
    called = [name for name in rest if name.lower() in LABELS and name not in ones]
    if len(called) == 1 or given:
        label = given[1] if given else called[0]
    else:
        roles = {role: name for role, name in roles.items() if name not in ones}  # else it is a class called so
        label = ones or _few(path, table, rest, called, split)
    found = {"file": file, "label": label, "split": roles.get("split")}
    found["group"] = given[2] if len(given) == 3 else roles.get("group")
    said = "none: they are hidden" if label is None else f"{len(label)} columns" if isinstance(label, list) else label
    return found | {"said": said}


def _one_hot(table: pd.DataFrame, names: list[str]) -> list[str]:
    """The columns of 0 and 1, if they are of one class each: a single 1 in each row; else none."""
    ones = [name for name in names if table[name].isin(["0", "1", "0.0", "1.0"]).all()]
    return ones if len(ones) > 1 and (table[ones].astype(float).sum(axis=1) == 1).all() else []


def _few(path: Path, table: pd.DataFrame, names: list[str], called: list[str], split: str) -> str | None:
    """The only column of few values, if none or several are `called` like labels; None in a test table without."""
    few = [name for name in names if 2 <= table[name].nunique() <= len(table) / REPEATED]
    if len(few) == 1 and not called:
        return few[0]
    if not called and not few and split == "test":
        return None
    raise UserError(f"it is not clear which column of {path} names the classes; {_shown(table)}")


def _shown(table: pd.DataFrame) -> str:
    """The columns and first lines of a table, and how to say what they are."""
    lines = " / ".join(", ".join(map(str, row))[:100] for row in table.head(2).to_numpy())
    return f"its columns are {', '.join(table.columns)[:300]}, its first lines {lines}; say it by COLUMNS=file:label"


def _listed(path: Path, table: pd.DataFrame, columns: dict, files: Files, split: str) -> pd.DataFrame:
    """The rows of a table as those of a `Listing`."""
    splits = pd.Series(split, index=table.index)
    if columns["split"]:
        given = table[columns["split"]].str.lower()
        unknown = given[~given.isin([*SPLITS, ""])]
        if len(unknown):
            raise UserError(
                f"{path} has the split {some(sorted(set(map(repr, unknown))))}; splits are {', '.join(SPLITS)}"
            )
        splits = given.map(SPLITS).fillna("")
    label = columns["label"]
    if label is None:
        labels = pd.Series("", index=table.index)
    elif isinstance(label, list):
        labels = table[label].astype(float).idxmax(axis=1)
    else:
        labels = table[label]
    empty = (labels == "") & (splits != "test")
    if empty.any():
        raise UserError(f"{path} has no label in line {table.index[empty][0] + 2}; give it one, or take the line out")
    named = table[columns["file"]]
    found = [files.find(value, of) or _plain(value) for value, of in zip(named, splits, strict=True)]
    folders = [split_of(file.split("/")[0]) for file in found]
    if not any(splits) and all(folders):
        splits = pd.Series(folders, index=table.index)
    listed = pd.DataFrame({"file": found, "label": labels, "split": splits})
    if columns["group"]:
        listed["group"] = groups_of(table[columns["group"]], listed["file"])
    return listed


def _plain(value: str) -> str:
    """A path that names nothing here, with slashes: reading it says that it is missing."""
    return re.sub(r"\\+", "/", value)
