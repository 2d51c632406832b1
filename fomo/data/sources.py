"""Where images lie: files in a folder, or MNIST's packed files. Each opens an image by its name."""

import errno
import gzip
import stat
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image


class Folder:
    """Images that are files, named by their path relative to a folder."""

    def __init__(self, path: Path):
        self.path = path

    def open(self, file: str) -> Image.Image:
        return Image.open(self._path(file))

    def content(self, file: str) -> bytes:
        return self._path(file).read_bytes()

    def stamp(self, file: str) -> str:
        """What changes when the file does: its size and its time; nothing if it is missing."""
        try:
            facts = (self.path / file).stat()
        except OSError:
            return ""
        return f"{facts.st_size} {facts.st_mtime_ns}"

    def _path(self, file: str) -> Path:
        path = self.path / file
        mode = path.stat().st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode):  # reading one would never end
            raise OSError(errno.EINVAL, "not a file", str(path))
        return path


class IdxFiles:
    """Images in MNIST's gzipped IDX files, named train/0, train/1, ..., test/0, ..."""

    def __init__(self, path: Path):
        self.path = path

    def table(self, split: str) -> pd.DataFrame:
        labels = _idx(self.path / f"{self._prefix(split)}-labels-idx1-ubyte.gz", 8)
        return pd.DataFrame({"file": [f"{split}/{n}" for n in range(len(labels))], "label": labels.astype(np.int64)})

    def open(self, file: str) -> Image.Image:
        return Image.fromarray(self._pixels(file))

    def content(self, file: str) -> bytes:
        return self._pixels(file).tobytes()

    def stamp(self, file: str) -> str:
        stat = self._images(file.split("/")[0]).stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def _images(self, split: str) -> Path:
        return self.path / f"{self._prefix(split)}-images-idx3-ubyte.gz"

    def _pixels(self, file: str) -> np.ndarray:
        split, number = file.split("/")
        return _idx(self._images(split), 16).reshape(-1, 28, 28)[int(number)]

    @staticmethod
    def _prefix(split: str) -> str:
        return "t10k" if split == "test" else "train"


@lru_cache(maxsize=4)
def _idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)
