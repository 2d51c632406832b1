"""What a person gives, one image after another: paths, folders, patterns, images, arrays, bytes."""

import glob
import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from PIL import Image

from fomo.config import UserError, some
from fomo.data.numbers import present, range_of, shown
from fomo.data.sources import Folder
from fomo.data.tree import SUFFIXES, Tree

ALLOWED = "a path, a folder, a pattern such as 'photos/*.png', a PIL image, an array, the bytes of a file, or several"
LONE = Image.Image, np.ndarray, bytes, bytearray


def each(given, ranges: dict) -> Iterator[tuple]:
    """(path or number, what `opened` opens) of each image of what is given.

    Raises `UserError` for a lone path or pattern that leads to no image, and for what by its type, its shape or its
    numbers is no image. A path in a list that leads to none comes as it is, to be named as one that cannot be read.
    """
    if isinstance(given, str | Path):
        found = _paths(given)
        if not found:
            raise UserError(_missing(str(given)))
        given = found
    elif isinstance(given, LONE):
        given = [given]
    elif not isinstance(given, Iterable):
        raise UserError(f"{type(given).__name__} is nothing to predict; give {ALLOWED}")
    for number, one in enumerate(given):
        if isinstance(one, str | Path):
            yield from ((path, path) for path in _paths(one) or [str(one)])
        elif isinstance(one, LONE):
            if isinstance(one, np.ndarray):
                _check(one, ranges, f"array {number}")
            yield number, one
        else:
            raise UserError(f"item {number} is of type {type(one).__name__}; give {ALLOWED}")


def opened(thing, ranges: dict) -> AbstractContextManager[Image.Image]:
    """The image that a thing of `each` is. Raises what its decoder raises."""
    if isinstance(thing, str):
        return Folder(Path()).open(Path(thing).expanduser())
    if isinstance(thing, np.ndarray):
        array = thing[..., 0] if thing.shape[2:] == (1,) else thing
        if array.dtype != np.uint8:
            array = shown(present(array), *range_of(_kind(array), ranges))
        return nullcontext(Image.fromarray(np.ascontiguousarray(array)))
    return nullcontext(thing) if isinstance(thing, Image.Image) else Image.open(io.BytesIO(thing))


class Held(Folder):
    """Images that somebody holds (`things`, by their numbers as text), and files by their absolute paths."""

    def __init__(self, things: dict):
        super().__init__(Path("/"))
        self.things = things

    def open(self, file: str) -> AbstractContextManager[Image.Image]:
        return opened(self.things[file], {}) if file in self.things else super().open(file)

    def content(self, file: str) -> bytes:
        return np.asarray(self.things[file]).tobytes() if file in self.things else super().content(file)

    def stamp(self, file: str) -> str:
        try:
            return hashlib.sha256(self.content(file)).hexdigest() if file in self.things else super().stamp(file)
        except OSError:  # what is wrong with it is said when it is decoded
            return ""


def _check(array: np.ndarray, ranges: dict, name: str) -> None:
    """Raises `UserError` for an array that is no image, or whose black and white are not known."""
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)) or not array.size:
        advice = "; give a list of images, not an array of them" if array.ndim == 4 else ""
        raise UserError(
            f"{name} has the shape {array.shape}; an image is (height, width), or (height, width, channels) with 1, 3 "
            f"or 4 channels{advice}"
        )
    if array.dtype != np.uint8:
        try:
            range_of(_kind(array[..., 0] if array.shape[2:] == (1,) else array), ranges)
        except UserError as error:
            raise UserError(f"{name} {error}") from error


def _kind(array: np.ndarray) -> str:
    """The kind of numbers of an array, as `numbers.kind_of` has it for an image."""
    name = "float32" if array.dtype.kind == "f" else array.dtype.name
    return f"{name} colour" if array.ndim == 3 else name


def _paths(given: str | Path) -> list[str]:
    """The files that a path leads to, sorted: itself, the images in a folder and below it, or what a pattern fits."""
    path = Path(given).expanduser()
    if given == "":  # which pathlib takes for the current folder
        return []
    if path.is_dir():
        return [str(path.joinpath(*image)) for image in sorted(Tree(path).images)]
    if path.exists():
        return [str(given)]
    if not glob.has_magic(str(path)):
        return []
    found = (file for match in sorted(glob.glob(str(path), recursive=True)) for file in _paths(match))
    return list(dict.fromkeys(found))


def _missing(given: str) -> str:
    """Why a path leads to no image, and what was perhaps meant."""
    path = Path(given).expanduser()
    if given == "":
        return f"an empty path leads to no image; give {ALLOWED}"
    if path.is_dir():
        return f"{given} is a folder in which no image lies ({', '.join(SUFFIXES)}), nor below it"
    for meant in (given.strip(" '\""), given.replace("\\", "/"), given.lstrip("/"), f"/{given}"):
        if meant != given and meant and _paths(meant):
            return f"there is no {given}; give {meant}"
    folder, name = path.parent, path.name
    while not folder.is_dir():
        folder, name = folder.parent, folder.name
    inside = sorted(entry.name for entry in folder.iterdir())
    near = [one for one in inside if Path(one).stem == Path(name).stem] or get_close_matches(name, inside)
    fault = f"no file is like {given}" if glob.has_magic(given) else f"there is no {given}"
    if name != path.name:
        fault += f", for there is no {name} in {folder}"
    return f"{fault}; {folder} has {some(near or inside) or 'nothing'}"
