"""What is stored: json, tables, arrays, weights; each whole or not at all. And locks: who may store it."""

import errno
import fcntl
import io
import json
import mmap
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from glob import escape
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd

from fomo.config import UserError

LOCKED: set[TextIO] = set()  # a forked process would keep them locked when this one is dead
os.register_at_fork(after_in_child=lambda: [file.close() for file in LOCKED])


@contextmanager
def atomic(path: Path):
    """Yields a temporary path beside `path` that takes its place when the block ends well, and vanishes otherwise. A
    link stays one. Raises `UserError` where there is something else than a file, such as a folder or a device."""
    if path.exists() and not path.is_file():  # who may do everything would put a file in the place of /dev/null
        raise UserError(f"{path} is no file that can be replaced; name one, or a new one")
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _locked(temporary):
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sweep(path.parent, escape(path.name))


def sweep(folder: Path, name: str = "*") -> None:
    """Removes from `folder` what dead processes have left of the files called so: a living one's is locked."""
    for leftover in folder.glob(f".{name}.*.tmp"):
        with suppress(OSError), leftover.open("r+") as file:  # it may be gone, locked, another user's
            if _flock(file, fcntl.LOCK_NB) and _is_at(file, leftover):
                leftover.unlink()


def discard(folder: Path) -> None:
    """Deletes a folder if it is there, all of it at once: it loses its name first, so a kill leaves no part of it."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)  # which a kill has left
    with suppress(FileNotFoundError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


class Lock:
    """Keeps other processes from what lies in `folder`. It ends with its process, however that ends.

    A run that is sent to a worker process takes the lock along, for who has sent it waits for what comes back. The
    lock's file lies beside the folder, which may be deleted by who holds it. Where the file system has no locks,
    nothing is kept from anybody.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._file = folder.with_name(f".{folder.name}.lock")
        self._depth = 0
        self._told = ""  # whom this process has said to wait for

    @property
    def mine(self) -> bool:
        """Whether this process has the lock."""
        return self._depth > 0

    @contextmanager
    def held(self):
        """No other process has the lock in the block: while one has it, this one waits, and says so. Blocks may lie in
        each other."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with nullcontext() if self.mine else _locked(self._file, self._tell) as file:
            if file:
                file.truncate(0)
                print(f"process {os.getpid()} on {os.uname().nodename}", end="", file=file, flush=True)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if file:
                    self._file.unlink(missing_ok=True)

    def _tell(self, file: TextIO) -> None:
        time.sleep(0.1)  # who has got the lock writes its name into the file only then
        file.seek(0)
        holder = file.read() or "another process"
        if holder != self._told:
            self._told = holder
            print(f"fomo: {holder} computes {self.folder}; waiting to go on with its result", file=sys.stderr)


@contextmanager
def _locked(path: Path, wait: Callable[[TextIO], None] = lambda file: None):
    """Yields the file in `path`, open, which is made if there is none, and locked in the block. `wait` is called where
    another process has the lock."""
    while True:
        with path.open("a+") as file:
            try:
                _flock(file, fcntl.LOCK_NB)
            except BlockingIOError:
                wait(file)
                _flock(file)
            if _is_at(file, path):  # who had the lock may have removed it
                LOCKED.add(file)
                try:
                    yield file
                finally:
                    LOCKED.discard(file)
                return


def _flock(file: TextIO, flags: int = 0) -> bool:
    """Locks an open file until it is closed, or its process dies; returns whether the file system can do that. Raises
    `BlockingIOError` where another process has the lock, and the flags do not let this one wait."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | flags)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return False
    return True


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether `path` is a name of the open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


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
    words = dict.fromkeys(
        ("file", "group", "phash", "digest", "reason", "mode", "class", "status", "error", "stamp"), str
    )
    # Only an empty field is missing: a choice or a class may be called NA.
    return pd.read_csv(path, dtype=words, encoding_errors="surrogateescape", keep_default_na=False, na_values=[""])
