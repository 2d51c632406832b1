"""What lies below a folder: which of its files are images, and where."""

import os
from functools import lru_cache
from pathlib import Path

from PIL import Image

SUFFIXES = (  # of what is an image by its name; of other files Pillow is asked
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2"),
    *(".ppm", ".pgm"),
)
TABLES = (".csv", ".tsv", ".jsonl")
OTHERS = (  # of what is none, and is not opened: there may be one for each image
    *TABLES,
    *(".txt", ".json", ".xml", ".md", ".yaml", ".yml", ".html", ".py", ".ipynb", ".db", ".ini", ".log", ".npy", ".pdf"),
)


class Tree:
    """What lies below a folder: `images` and `others`, the paths of files relative to it, and `folders`. An empty one
    that is called like an image is among the others. What begins with a dot does not count, nor what macOS puts beside
    an archive's files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.others: list[tuple[str, ...]] = []
        self.folders: list[tuple[str, ...]] = []
        self._loose: dict[tuple[str, ...], list[tuple[str, ...]]] = {}  # of each folder its own images
        self._inside: dict[tuple[str, ...], list[str]] = {}  # and the folders that have some
        above: dict[str, set[str]] = {}  # of each folder what it and those around it really are
        for path, folders, files in os.walk(folder, followlinks=True, onerror=_stop):
            real, around = os.path.realpath(path), above.get(os.path.dirname(path), set())
            folders[:] = sorted(name for name in folders if _shown(name)) if real not in around else []
            if real in around:  # a link back to where it lies
                continue
            above[path] = {real, *around}
            parts = Path(path).relative_to(folder).parts
            self.folders += [(*parts, name) for name in folders]
            for name in sorted(filter(_shown, files)):
                of = self._loose.setdefault(parts, []) if is_image(Path(path, name)) else self.others
                of.append((*parts, name))
        self.others += [
            one for one in self.folders if Path(one[-1]).suffix.lower() in SUFFIXES and not self._loose.get(one)
        ]
        for place in sorted(place for place, images in self._loose.items() if images):
            for depth in range(len(place)):
                names = self._inside.setdefault(place[:depth], [])
                names += [place[depth]] if place[depth] not in names[-1:] else []

    @property
    def images(self) -> list[tuple[str, ...]]:
        return self.below(())

    def below(self, place: tuple[str, ...]) -> list[tuple[str, ...]]:
        """The images below a folder."""
        inner = [image for name in self.inside(place) for image in self.below((*place, name))]
        return self.loose(place) + inner

    def loose(self, place: tuple[str, ...]) -> list[tuple[str, ...]]:
        """The images that lie in a folder, not in one of its folders."""
        return self._loose.get(place, [])

    def inside(self, place: tuple[str, ...]) -> list[str]:
        """The folders of a folder that have images."""
        return self._inside.get(place, [])


def _stop(error: OSError) -> None:
    """A folder that cannot be read is not taken for an empty one."""
    raise error


def _shown(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def is_image(path: Path) -> bool:
    """Whether a file is an image: by its name, or, where that says nothing, because Pillow knows what it is."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or suffix in OTHERS:
        return suffix in SUFFIXES
    try:
        stat = path.stat()
        return path.is_file() and _opens(str(path), stat.st_size, stat.st_mtime_ns)
    except OSError:
        return False


@lru_cache(maxsize=200_000)
def _opens(path: str, size: int, time: int) -> bool:
    """Whether Pillow opens a file of this size and time."""
    try:
        with Image.open(path):
            return True
    except Exception:  # whatever a decoder says of what is none of its files
        return False
