"""What is stored: json, tables, arrays, weights; each whole or not at all."""

import io
import json
import mmap
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd


@contextmanager
def atomic(path: Path):
    """Yields a temporary path beside `path` that takes its place when the block ends well, and vanishes otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Stores `content` in `path`, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: dict) -> None:
    """Stores plain values as json, whole or not at all."""
    write_bytes(path, json.dumps(value, indent=1).encode())


def read_json(path: Path) -> dict:
    """What `write_json` stored."""
    return json.loads(path.read_text())


def save_state(path: Path, state: dict) -> None:
    """Stores tensors and plain values for `load_state`. A full disk is an OSError, which torch.save alone hides."""
    import torch  # here, so that what stores no tensors does not wait for it

    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getbuffer())


def load_state(path: Path, device: "torch.device") -> dict:  # noqa: F821
    """What `save_state` stored; nothing in the file is executed."""
    import torch

    return torch.load(path, map_location=device, weights_only=True)


@contextmanager
def new_array(path: Path, shape: tuple[int, ...], dtype: type):
    """Yields a memory map to fill, which becomes the array in `path` (.npy) when the block ends well.

    Its space is taken at once: a disk that fills up under a memory map would kill the process without a word.
    """
    with atomic(path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        with temporary.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        yield array
        array.flush()


def release(array: np.ndarray) -> None:
    """Takes the pages of a memory map's file out of this process, which would else grow by all that it ever touched.

    Nothing is lost or written: the system keeps the pages at hand as long as there is room. Other arrays are left as
    they are.
    """
    if isinstance(getattr(array, "base", None), mmap.mmap):
        array.base.madvise(mmap.MADV_DONTNEED)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Stores `table` as csv, whole or not at all; floats keep every digit."""
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, errors="surrogateescape")


def read_table(path: Path) -> pd.DataFrame:
    """The table that `write_table` stored, with the same floats to the last bit."""
    # These are words, also where they look like numbers.
    words = dict.fromkeys(("file", "group", "phash", "digest", "reason", "mode", "class", "status", "error"), str)
    # Only an empty field is missing: a choice or a class may be called NA.
    return pd.read_csv(path, dtype=words, encoding_errors="surrogateescape", keep_default_na=False, na_values=[""])
