"""Tables of files and labels, and lists of class names: read as people write them, and checked."""

from pathlib import Path

import numpy as np
import pandas as pd

from fomo.config import UserError, some

OPTIONAL = {"split", "group"}  # columns of a table
HIDDEN = -1  # the label of a test image whose label is not given


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
    path = folder / f"{split}.csv"
    table = read_csv(path, {"image_file_name", "label"})
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
    return result.assign(group=groups_of(table["group"], result["file"])) if "group" in table else result


def groups_of(groups: pd.Series, files: pd.Series) -> pd.Series:
    """`groups`, where an image of no group is one of its own."""
    return groups.where(groups != "", files)


def read_csv(path: Path, columns: set[str]) -> pd.DataFrame:
    """The table at `path` as text. Raises `UserError` if it is missing or empty, or lacks one of `columns`."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no {path.name}; data/README.md describes the layouts") from error
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path} cannot be read as a table ({error})") from error
    missing = columns - set(table.columns)
    if missing:
        raise UserError(f"{path} lacks the column {', '.join(sorted(missing))}; it has {', '.join(table.columns)}")
    if table.empty:
        raise UserError(f"{path} names no image")
    return table[[column for column in table if column in columns | OPTIONAL]]


def check_files(table: str, files: pd.Series) -> None:
    """Raises `UserError` where a table names a file twice: it could come to lie on both sides of a split."""
    twice = files[files.duplicated()]
    if len(twice):
        raise UserError(f"{table} names {some(list(twice))} more than once; take the further lines out")
