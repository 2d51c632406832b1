"""Tables of files and labels, and lists of class names: read as people write them, understood by looking, checked."""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from fomo.config import UserError, some
from fomo.data.folders import HOW, SPLITS, Listing, split_of
from fomo.data.tree import Tree

HIDDEN = -1  # the label of a test image whose label is not given
SEPARATORS = ",;\t|"
LABELS = ("label", "labels", "class", "class_name", "target", "category", "diagnosis", "y")  # what people call them
SPLIT, GROUP = "split", "group"
SHARE = 0.5  # of its values name files that exist: so many do in the column of files
REPEATED = 2  # times that a class occurs on average, at least: what occurs less often is no class


def read_classes(path: Path) -> list[str]:
    """The class names in classes.txt, a line each; none if there is no such file."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    classes = [line.strip() for line in lines if line.strip()]
    twice = [name for number, name in enumerate(classes) if name in classes[:number]]
    if twice:
        raise UserError(f"{path} has {some(twice)} more than once; each class needs a name of its own")
    return classes


def read_split(folder: Path, split: str, classes: list[str]) -> pd.DataFrame:
    """A split of the archive layout: file, label (a number), maybe group."""
    path = folder / f"{split}.csv"
    table = read_table(path)
    missing = {"image_file_name", "label"} - set(table.columns)
    if missing:
        raise UserError(f"{path} lacks the column {', '.join(sorted(missing))}; it has {', '.join(table.columns)}")
    hidden = split == "test" and (table["label"] == "").all()
    labels = pd.Series(str(HIDDEN), index=table.index) if hidden else table["label"]
    wrong = labels[~labels.str.fullmatch(r"\d{1,6}")] if not hidden else labels[:0]
    if len(wrong):
        raise UserError(
            f"{path} has {some([repr(label) for label in wrong])} as a label (line {wrong.index[0] + 2} first); "
            "labels are integers from 0, and classes.txt may name them"
        )
    labels = labels.astype(np.int64)
    if classes and labels.max() >= len(classes):
        raise UserError(f"{path} has label {labels.max()}, but the classes are {len(classes)}: 0 to {len(classes) - 1}")
    result = pd.DataFrame({"file": f"images_{split}/" + table["image_file_name"], "label": labels})
    check_files(str(path), result["file"])
    return result.assign(group=groups_of(table[GROUP], result["file"])) if GROUP in table else result


def groups_of(groups: pd.Series, files: pd.Series) -> pd.Series:
    """`groups`, where an image of no group is one of its own."""
    return groups.where(groups != "", files)


def read_table(path: Path) -> pd.DataFrame:
    """The table at `path` (csv with any of `SEPARATORS`, or jsonl), all of it text without spaces around. Raises
    `UserError` if it is missing or empty, or no table."""
    try:
        if path.suffix.lower() == ".jsonl":
            table = pd.read_json(path, lines=True, dtype=False).fillna("").astype(str)
        else:
            separator = max(SEPARATORS, key=first_line(path).count)
            table = pd.read_csv(path, dtype=str, keep_default_na=False, sep=separator, encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no {path.name}; {HOW}") from error
    except (ValueError, OSError, pd.errors.ParserError) as error:
        raise UserError(f"{path} cannot be read as a table ({error})") from error
    if table.empty:
        raise UserError(f"{path} names no image")
    table.columns = [str(column).strip() for column in table.columns]
    return table.map(str.strip)


def first_line(path: Path) -> str:
    """The first line of a text file, in which the columns of a table are named."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.readline()


def check_files(table: str, files: pd.Series) -> None:
    """Raises `UserError` where a table names a file twice: it could come to lie on both sides of a split."""
    twice = files[files.duplicated()]
    if len(twice):
        raise UserError(f"{table} names {some(list(twice))} more than once; take the further lines out")


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
    splits = {name: split_of(Path(name).stem) if len(names) > 1 else "" for name in names}
    parts, notes = [], []
    for name, split in splits.items():
        table = read_table(tree.folder / name)
        found = _columns(tree.folder / name, table, files, columns, split)
        parts.append(_listed(tree.folder / name, table, found, files, split))
        notes.append(f"{name}: images are in column {found['file']}, classes in {found['said']}")
    listed = pd.concat(parts, ignore_index=True)
    check_files(f"{tree.folder / names[0]}", listed["file"])
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
    roles = {name.lower(): name for name in others if name.lower() in (SPLIT, GROUP)}
    rest = [name for name in others if name not in roles.values()]
    ones = [] if given else _one_hot(table, others) or _one_hot(table, rest)
    roles = {role: name for role, name in roles.items() if name not in ones}  # else it is a class called so
    label = given[1] if given else ones or _label(path, table, rest, split)
    found = {"file": file, "label": label, "split": roles.get(SPLIT)}
    found["group"] = given[2] if len(given) == 3 else roles.get(GROUP)
    said = "none: they are hidden" if label is None else f"{len(label)} columns" if isinstance(label, list) else label
    return found | {"said": said}


def _one_hot(table: pd.DataFrame, names: list[str]) -> list[str]:
    """The columns of 0 and 1, if they are of one class each: a single 1 in each row; else none."""
    ones = [name for name in names if table[name].isin(["0", "1", "0.0", "1.0"]).all()]
    return ones if len(ones) > 1 and (table[ones].astype(float).sum(axis=1) == 1).all() else []


def _label(path: Path, table: pd.DataFrame, names: list[str], split: str) -> str | None:
    """The column of the labels; None in a test table without."""
    called = [name for name in names if name.lower() in LABELS]
    if len(called) == 1:
        return called[0]
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
    listed = pd.DataFrame({"file": found, "label": labels, "split": splits})
    if columns["group"]:
        listed["group"] = groups_of(table[columns["group"]], listed["file"])
    return listed


def _plain(value: str) -> str:
    """A path that names nothing here, with slashes: reading it says that it is missing."""
    return re.sub(r"\\+", "/", value)
