"""Trials under way on an executor: awaited, given up when they hang, cancelled. Any `concurrent.futures` executor."""

import math
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from dataclasses import dataclass

from fomo.config import UserError
from fomo.study.trials import describe

GRACE = 60.0  # seconds after its time limit that a worker has to say so itself; a new one imports torch first


@dataclass
class Pending:
    """A trial under way."""

    number: int
    configuration: dict
    again: bool = False  # its worker died once before
    started: float = 0.0


def await_trials(pending: dict[Future, Pending], time_limit: float | None) -> tuple[list[tuple[Future, dict]], bool]:
    """The trials that have ended, each with its row, and whether a worker hangs.

    A trial that is silent long after its time limit is given up, whatever its worker is doing.
    """
    limit = None if time_limit is None else time_limit + GRACE
    oldest = min(trial.started for trial in pending.values())
    if not any(future.done() for future in pending):  # `wait` overlooks those that are cancelled
        wait(pending, None if limit is None else oldest + limit - time.monotonic(), FIRST_COMPLETED)
    ended, hangs = [], False
    for future, trial in sorted(pending.items(), key=lambda item: item[1].number):
        if future.done():
            error = CancelledError() if future.cancelled() else future.exception()
            if isinstance(error, UserError) or not isinstance(error, Exception | None):
                raise error
            died = {"status": "died", "objective": math.inf, "error": describe(error), "seconds": math.nan}
            ended.append((future, died if error else future.result()))
        elif limit is not None and time.monotonic() - trial.started >= limit:
            hangs = True
            ended.append((future, {"status": "timed out", "objective": math.inf, "seconds": limit}))
    return ended, hangs


def abandon(pool: Executor, pending: Iterable[Future]) -> None:
    """Gives up a pool of which a worker hangs. Processes are killed, or Python could not exit; threads cannot be."""
    processes = list((getattr(pool, "_processes", None) or {}).values())
    for process in processes:
        process.kill()  # all of their trials have died then
    cancel(pool, [] if processes else pending)


def cancel(pool: Executor, pending: Iterable[Future]) -> None:
    """Shuts a pool down without waiting; trials that have not begun are cancelled. (Not every executor's own `shutdown`
    does that: Dask's takes no `cancel_futures`.)"""
    for future in pending:
        future.cancel()
    pool.shutdown(wait=False)
