"""Which images are the same bytes under two names."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

MIDDLE = 4096  # bytes that are looked at before all are


def digest(content: bytes) -> str:
    """A hash of the bytes of an image: the same for twins alone."""
    return hashlib.sha256(content).hexdigest()[:16]


def twins(folder: Path, files: pd.Series) -> pd.Series:
    """For each of the `files` in a folder a text that only its twins share; None for those that have none, or cannot be
    read. Few are read whole: only what no cheaper look tells apart."""
    found = pd.Series("", index=files.index)
    for look in (_size, _middle, _whole):
        alike = found.duplicated(keep=False)
        found[alike] += files[alike].map(partial(_looked, look, folder))
    return found.where(found.duplicated(keep=False), None)


def _looked(look: Callable[[Path], object], folder: Path, file: str) -> str:
    try:
        return f" {look(folder / file)}"
    except OSError:  # what is wrong with it is said when it is decoded
        return f" {file}"


def _size(path: Path) -> int | Path:
    """The bytes of a file; an empty one, or what is no file (a pipe, which nobody may read), is like no other."""
    return path.stat().st_size or path


def _middle(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(path.stat().st_size // 2)
        return digest(file.read(MIDDLE))


def _whole(path: Path) -> str:
    return digest(path.read_bytes())
