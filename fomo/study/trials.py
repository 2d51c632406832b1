"""One trial, where it runs: in this process, or in a worker's. What it reports, and when it is cut short."""

import errno
import math
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from fomo.config import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)  # no configuration's fault


class OverdueError(Exception):
    """The trial has used up its time."""


class PrunedError(Exception):
    """The trial is worse than the median of the others at the same point; it is not worth its time."""


@dataclass
class Report:
    """Called by an objective with (at, loss) on the way; raises to end a hopeless trial.

    The median rule (Golovin et al., Google Vizier, KDD 2017, section 3.2.2): `medians` tells what the other trials had
    at the same points.
    """

    medians: dict[float, float]
    losses: dict[float, float] = field(default_factory=dict)

    def __call__(self, at: float, loss: float) -> None:
        at, loss = float(f"{at:g}"), float(loss)  # as in the table's columns, where the medians come from
        self.losses[at] = loss
        if not math.isfinite(loss):
            raise ArithmeticError(f"the loss is not finite at {at:g}")
        if loss > self.medians.get(at, math.inf):
            raise PrunedError


def run_trial(objective: Callable, configuration: dict, medians: dict[float, float], time_limit: float | None) -> dict:
    """The trial's row in the table: status, objective, all else that `objective` returned, what it reported, seconds.

    Whatever the objective raises is the trial's own misfortune and ends up as its status; but an error that the caller
    can mend (`UserError`, a full disk) or Ctrl-C is raised.
    """
    report = Report(medians)
    start = time.perf_counter()
    try:
        with alarm(time_limit):
            row = {"status": "complete"} | objective(configuration, report)
        row["objective"] = float(row["objective"])
        if not math.isfinite(row["objective"]):
            row |= {"status": "diverged", "objective": math.inf}
    except PrunedError:
        row = {"status": "pruned", "objective": list(report.losses.values())[-1]}
    except OverdueError:
        row = {"status": "timed out", "objective": math.inf}
    except ArithmeticError:
        row = {"status": "diverged", "objective": math.inf}
    except Exception as error:
        if isinstance(error, UserError) or getattr(error, "errno", None) in FULL:
            raise
        row = {"status": "failed", "objective": math.inf, "error": describe(error)}
    seen = {f"after_{at:g}": loss for at, loss in report.losses.items() if math.isfinite(loss)}
    return row | seen | {"seconds": round(time.perf_counter() - start, 2)}


def describe(error: BaseException) -> str:
    """An error's type and the first line of its text."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextmanager
def alarm(seconds: float | None):
    """Raises OverdueError in the block after `seconds`. Works in a process's main thread; elsewhere it does nothing."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_) -> None:
        raise OverdueError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class InProcess(Executor):
    """An executor that computes at once, here."""

    def submit(self, function: Callable, /, *args, **kwargs) -> Future:
        future = Future()
        future.set_result(function(*args, **kwargs))
        return future
