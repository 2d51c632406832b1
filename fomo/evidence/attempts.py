"""Attempts at a run by processes of their own, and the ways to disturb them, at random moments (`torture`)."""

import ctypes
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial, partialmethod
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

import fomo
from fomo import report
from fomo.config import ROOT
from fomo.paths import runs_folder

FOLDER = runs_folder("fashion_sample").parent / "torture"
ASKED = {"BACKBONE": "test_efficientnet", "WEIGHTS": "random", "IMAGE_SIZE": "32"}
FEW = {"batch_size": 8, "trials": 3, "initial_trials": 2, "head_trials": 3, "bootstrap": 200}
# What is computed, by which variables and settings: all stages, in seconds; what a plan and the clock decide; and
# `make report` as it comes, with its pages.
WORKS = {
    "stages": (
        {"PRESET": "quick"},
        {"epochs": 3, "trial_share": 1.0, "darts_epochs": 2, "head_epochs": 4, "members": 2, "final": "searched"} | FEW,
    ),
    "minutes": ({"MINUTES": "1"}, {"darts_epochs": 1, "head_seeds": 1} | FEW),
    "report": ({"PRESET": "quick"}, None),
}
OVERRIDE = 1  # the capability of root to write into a read-only folder (linux/capability.h)
PATIENCE = 400.0  # seconds, after which an attempt hangs


class FaultError(Exception):
    """A run did not end as it should."""


@dataclass(frozen=True)
class Job:
    """What is computed, and in which way it is disturbed, "" if it is not. `number` is its seed."""

    number: int
    work: str
    way: str = ""

    @property
    def folder(self) -> Path:
        return FOLDER / (f"{self.number:03}" if self.way else self.work)

    @property
    def disk(self) -> Path:
        """Where its runs and figures lie."""
        return self.folder / "disk"


class Attempt:
    """A process, in a process group of its own, that computes the run of a job, or goes on with it, on its disk. What
    it says lies in the job's folder."""

    def __init__(self, job: Job, disk: Path | None = None, **variables: str):
        number = next(number for number in count(1) if not (job.folder / f"errors_{number}.txt").exists())
        self.errors = job.folder / f"errors_{number}.txt"
        self.errors.touch()
        texts = job.folder / f"output_{number}.txt", self.errors
        self._process = get_context("fork").Process(target=_go_on, args=(job, disk or job.disk, variables, texts))
        self._process.start()
        with suppress(OSError):  # it has done so itself, or is over
            os.setpgid(self._process.pid, self._process.pid)

    def wait(self, seconds: float) -> None:
        """Comes back when it ends, or after so many seconds."""
        self._process.join(seconds)

    def kill(self) -> None:
        """SIGKILL for the whole process group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self, *allowed: int) -> int:
        """Its exit status, once it has ended. Raises `FaultError` if that is not `allowed`, or is 2 and what is wrong
        was not said in one line."""
        self.wait(PATIENCE)
        status, text = self._process.exitcode, self.errors.read_text(errors="replace")
        if status is None:
            self.kill()
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("make")]
        lines = [line for line in lines if not line.endswith("; waiting to go on with its result")]
        if status not in allowed or (status == 2 and not (len(lines) == 1 and lines[0].startswith("fomo: "))):
            ends = "hangs" if status is None else f"ends with {status} and {len(lines)} lines"
            raise FaultError(f"{self.errors.stem} {ends}: {lines[-1] if lines else ''}")
        return status


def _go_on(job: Job, disk: Path, variables: dict[str, str], texts: tuple[Path, Path]) -> None:
    """Computes what a job does by `make report`, or, without what is imported and the pages, by the command line."""
    os.setpgid(0, 0)
    for number, path in enumerate(texts, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ |= {"FOMO_RUNS": str(disk / "runs"), "FOMO_FIGURES": str(disk / "figures"), "FOMO_FRESH": "0"}
    os.environ |= {"HOME": str(disk), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    _obey_modes()
    asked, settings = WORKS[job.work]
    asked = {"DATASET": str(FOLDER / "data")} | ASKED | asked | variables
    if settings is None:
        command = ["make", "report", *(f"{name}={value}" for name, value in asked.items())]
        sys.exit(subprocess.call(command, cwd=ROOT))
    fomo.Run = partial(fomo.Run, **settings)
    report.make_pages = lambda *_: None
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
    sys.argv = ["fomo", "report", *(f"--{name.lower().replace('_', '-')}={value}" for name, value in asked.items())]
    runpy.run_module("fomo", run_name="__main__", alter_sys=True)


def _obey_modes() -> None:
    """Takes from this process, and from all that it begins, the right of root to write where the folder's mode forbids
    it."""
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()
    libc.prctl(24, OVERRIDE, 0, 0, 0)  # from the bounding set, which a program of root would begin with
    libc.capget(header, sets)
    sets[:3] = [rights & ~(1 << OVERRIDE) for rights in sets[:3]]
    libc.capset(header, sets)


def _killed(job: Job, rng: np.random.Generator, seconds: float) -> Iterator[int]:
    """Killed up to five times."""
    for left in range(rng.integers(1, 6), 0, -1):
        attempt = Attempt(job)
        attempt.wait(rng.uniform(0, seconds / left))
        attempt.kill()
        yield attempt.end(-signal.SIGKILL, 0)


def _two_at_once(job: Job, rng: np.random.Generator, seconds: float) -> Iterator[int]:
    """Two processes, one a little later; in two of three runs one of them is killed."""
    attempts, victim = [Attempt(job)], rng.integers(3)
    attempts[0].wait(rng.uniform(0, seconds / 4))
    attempts.append(Attempt(job))
    attempts[0].wait(rng.uniform(0, seconds))
    for attempt in attempts[victim : victim + 1]:
        attempt.kill()
    for number, attempt in enumerate(attempts):
        yield attempt.end(*((-signal.SIGKILL, 0) if number == victim else (0,)))


def _broken(fail: Callable, job: Job, rng: np.random.Generator, seconds: float) -> Iterator[int]:
    """The disk fails up to three times, until the process has ended and another one was begun in vain."""
    for left in range(rng.integers(1, 4), 0, -1):
        attempt = Attempt(job)
        attempt.wait(rng.uniform(0, seconds / left))
        with fail(job.disk):
            yield attempt.end(2, 0)
            yield Attempt(job).end(2, 0)


@contextmanager
def _full(disk: Path):
    """There is no room on the disk in the block."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


@contextmanager
def _read_only(disk: Path):
    """Nobody may write into a folder of the disk in the block."""
    for right in (0o555, 0o755):
        for folder, _, _ in os.walk(disk):
            os.chmod(folder, right)
        if right == 0o555:
            yield


WAYS = {
    "killed": _killed,
    "two at once": _two_at_once,
    "full disk": partial(_broken, _full),
    "read-only": partial(_broken, _read_only),
}
