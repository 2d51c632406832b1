"""Tables of files and labels, and lists of class names: read as people write them, and checked."""

from pathlib import Path

import numpy as np
import pandas as pd

from fomo.config import UserError, some
from fomo.data.folders import HOW

HIDDEN = -1  # the label of a test image whose label is not given
SEPARATORS = ",;\t|"


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


def read_split(folder: Path, split: str) -> pd.DataFrame:
    """A split of the archive layout: file, label (the number in the table, or `HIDDEN`), maybe group."""
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
    result = pd.DataFrame({"file": f"images_{split}/" + table["image_file_name"], "label": labels})
    check_files(path, folder, result["file"])
    return result.assign(group=groups_of(table["group"], result["file"])) if "group" in table else result


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


def check_files(table: Path, folder: Path, files: pd.Series) -> None:
    """Raises `UserError` where a table names a file twice, for it could come to lie on both sides of a split, and where
    none of the files that it names is in the folder."""
    twice = files[files.duplicated()]
    if len(twice):
        raise UserError(f"{table} names {some(list(twice))} more than once; take the further lines out")
    if not any((folder / file).exists() for file in files):
        place = (folder / files.iloc[0]).parent
        there = some(sorted(entry.name for entry in place.iterdir())) if place.is_dir() else "no such folder"
        raise UserError(
            f"none of the {len(files)} files that {table} names is there: the first would be {folder / files.iloc[0]}. "
            f"In {place} there is {there or 'nothing'}. Suffix, folder or slashes may be others than the table says"
        )
