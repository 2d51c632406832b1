"""Bayesian optimisation of an objective that is passed in: a study of trials. Knows nothing of networks."""

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import qmc

from fomo.config import UserError
from fomo.progress import Bar
from fomo.storage import read_table, write_table
from fomo.study.pool import Pending, abandon, await_trials, cancel
from fomo.study.space import Choice, Space
from fomo.study.surrogate import Surrogate
from fomo.study.trials import InProcess, run_trial

PRUNE_FROM = 5  # trials that must have come to a point before another is measured by their median


class Study:
    """Trials of configurations from a search space, each chosen by what the earlier ones gave; lower is better.

    The initial design is `first`, the configuration to start with, then a scrambled Sobol sequence. After it, a
    Gaussian process models the objective, and the next suggestion maximises (the logarithm of) expected improvement
    (Brochu et al., arXiv:1012.2599, eq. 4).

    The table of trials in the file `path` is the study's whole state, stored after each trial: a suggestion depends on
    it and on `seed` alone, so a study that was killed goes on as if it had not been. `trial` counts the suggestions;
    rows are in the order in which trials ended. `status` is complete, pruned (its objective is what it had come to),
    diverged, timed out, or failed (with the `error`).
    """

    def __init__(self, space: Space, path: Path, *, seed: int, first: dict, initial: int):
        self.space = space
        self.path = path
        self.seed = seed
        self.first = first
        self.initial = initial
        self.trials = _recovered(path) if path.exists() else pd.DataFrame()

    def run(
        self,
        objective: Callable[[dict, Callable[[float, float], None]], dict],
        trials: int,
        description: str = "trials",
        *,
        prune: bool = False,
        time_limit: float | None = None,
        executor: Callable[[], Executor] = InProcess,
        workers: int = 1,
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """Goes on until there are `trials` trials, or, once one is complete, until `enough` says that time is over.

        `objective` takes a configuration and a function report(at, loss), which it may call on the way, and returns a
        dict with "objective" and whatever else belongs in the table. An ArithmeticError means that it diverged; any
        other error fails the trial, and the study goes on, unless all of the initial design comes to nothing.

        With `prune`, a trial whose reported loss is above the median of the others' at the same point is ended. A trial
        is ended after `time_limit` seconds, too. Trials run in this process, or, up to `workers` at a time, on what
        `executor` makes, such as `partial(ProcessPoolExecutor, 2, mp_context=get_context("spawn"))` (forked processes
        hang where torch has computed before) or Dask's `partial(client.get_executor, pure=False)`; their objective must
        then be picklable. A trial whose worker dies is run once more, by itself; then it has failed. (Dask has run it
        again before, as often as its `allowed-failures` says.)
        """
        pool, pending, retries = executor(), {}, deque()
        with Bar(total=trials, initial=len(self.trials), desc=description, unit="trial", leave=False) as bar:
            try:
                while len(self.trials) < trials and not (enough() and self._any_complete):
                    alone = retries or any(trial.again for trial in pending.values())
                    room = min(1 if alone else workers, trials - len(self.trials))
                    while len(pending) < room:
                        trial = retries.popleft() if retries else self._next(pending.values())
                        limits = medians(self.trials) if prune else {}
                        task = (run_trial, objective, trial.configuration, limits, time_limit)
                        trial.started = time.monotonic()
                        try:
                            future = pool.submit(*task)
                        except BrokenExecutor:  # a worker died; whose trial it was, the futures say
                            pool = executor()
                            future = pool.submit(*task)
                        pending[future] = trial
                    ended, hangs = await_trials(pending, time_limit)
                    for future, row in ended:
                        trial = pending.pop(future)
                        if row["status"] == "died" and not trial.again:
                            retries.append(Pending(trial.number, trial.configuration, again=True))
                            continue
                        self._add([trial], [row | {"status": "failed"} if row["status"] == "died" else row])
                        bar.update()
                    if hangs:
                        abandon(pool, pending)
                        pool = executor()
            finally:
                cancel(pool, pending)
        self._check_any_complete()

    def run_batches(
        self,
        objective: Callable[[list[dict]], list[dict]],
        trials: int,
        size: int,
        description: str = "trials",
        *,
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """As `run`, with `size` trials at a time, which `objective` computes together.

        It takes their configurations and returns, for each, what the objective of `run` does; a loss that is not finite
        means that the trial diverged.
        """
        with Bar(total=trials, initial=len(self.trials), desc=description, unit="trial", leave=False) as bar:
            while len(self.trials) < trials and not (enough() and self._any_complete):
                batch, start = [], time.perf_counter()
                while len(batch) < min(size, trials - len(self.trials)):
                    batch.append(self._next(batch))
                rows = objective([trial.configuration for trial in batch])
                seconds = round((time.perf_counter() - start) / len(batch), 3)
                for row in rows:
                    finite = math.isfinite(row["objective"])
                    row |= {"status": "complete"} if finite else {"status": "diverged", "objective": math.inf}
                self._add(batch, [{"status": row.pop("status")} | row | {"seconds": seconds} for row in rows])
                bar.update(len(batch))
        self._check_any_complete()

    def _next(self, pending) -> Pending:
        """The next trial, numbered by the lowest number that is free."""
        taken = {*self.trials.get("trial", ()), *(trial.number for trial in pending)}
        number = next(number for number in count() if number not in taken)
        return Pending(number, self._suggest(number, [trial.configuration for trial in pending]))

    def suggest(self) -> dict:
        """The configuration to try next."""
        return self._next(()).configuration

    def _suggest(self, number: int, pending: list[dict]) -> dict:
        if number == 0:
            return self.first
        if number < self.initial or not self._any_complete:
            sobol = qmc.Sobol(len(self.space), rng=np.random.default_rng(self.seed))
            return self.space.decode(sobol.random(2 ** math.ceil(math.log2(number + 1)))[number - 1])
        return self._surrogate((1000 * self.seed + number) % 2**32, pending).suggest()

    def _surrogate(self, seed: int = 0, pending=()) -> Surrogate:
        """The surrogate of all trials so far. One that was pruned would have ended in the worse half, at least."""
        losses, complete = self.trials["objective"].copy(), self.trials["status"] == "complete"
        pruned = self.trials["status"] == "pruned"
        losses[pruned] = losses[pruned].clip(lower=losses[complete].median())
        configurations = [self.configuration(trial) for trial in self.trials["trial"]]
        return Surrogate(self.space, configurations, losses, seed=seed, pending=pending)

    def _add(self, trials: list[Pending], rows: list[dict]) -> None:
        table = []
        for trial, row in zip(trials, rows, strict=True):
            values = {"trial": trial.number} | trial.configuration | row
            values["seconds"] = values.pop("seconds")  # the last column
            table.append({name: math.nan if value is None else value for name, value in values.items()})
        self.trials = pd.concat([self.trials, pd.DataFrame(table)], ignore_index=True)
        write_table(self.path, self.trials)
        if len(self.trials) >= self.initial:
            self._check_any_complete()

    @property
    def _any_complete(self) -> bool:
        return bool((self.trials.get("status", pd.Series(dtype=str)) == "complete").any())

    def _check_any_complete(self) -> None:
        if not self._any_complete:
            ends = self.trials["status"].value_counts()
            errors = self.trials.get("error", pd.Series(dtype=str)).dropna()
            reason = f" ({errors.iloc[-1]})" if len(errors) else ""
            raise UserError(
                f"none of the {len(self.trials)} trials in {self.path} was completed: "
                f"{', '.join(f'{number} {status}' for status, number in ends.items())}{reason}; "
                "where they diverge, lower the learning rates of the search space; then delete the file to start anew"
            )

    def configuration(self, trial: int) -> dict:
        """The configuration of a trial."""
        row = self.trials.set_index("trial").loc[trial]
        return {name: None if pd.isna(row[name]) else p.restore(row[name]) for name, p in self.space.items()}

    @property
    def complete(self) -> pd.DataFrame:
        """The trials that were completed."""
        return self.trials[self.trials["status"] == "complete"]

    @property
    def best(self) -> pd.Series:
        """The complete trial of lowest objective."""
        return self.complete.loc[self.complete["objective"].idxmin()]

    def top(self, count: int) -> pd.DataFrame:
        """The best `count` complete trials, best first."""
        return self.complete.sort_values("objective", kind="stable").head(count)

    def slices(self, count: int = 40) -> pd.DataFrame:
        """How the objective depends on each parameter, by the surrogate: the others stay at the incumbent's values.

        Columns: parameter, value (text for a choice), and of a new trial there: median, and the ends low and high of
        the band that it lies in with a probability of 95%.
        """
        surrogate = self._surrogate()
        incumbent = self.configuration(self.best["trial"])
        rows = []
        for name, parameter in self.space.items():
            base = incumbent | ({parameter.when[0]: parameter.when[1]} if parameter.when else {})
            values = parameter.grid(count)
            filled = {n: p.decode(0.5) if base[n] is None else base[n] for n, p in self.space.items()}
            predicted = surrogate.predict([self.space.activate(filled | {name: value}) for value in values])
            for value, median, low, high in zip(values, *predicted, strict=True):
                value = str(value) if isinstance(parameter, Choice) else value
                rows.append({"parameter": name, "value": value, "median": median, "low": low, "high": high})
        return pd.DataFrame(rows)

    def importance(self) -> pd.DataFrame:
        """The share of the objective's variance (on the surrogate's scale) that each parameter is involved in; the
        largest first. Columns: parameter, importance."""
        table = pd.DataFrame({"parameter": list(self.space), "importance": self._surrogate().importance()})
        return table.sort_values("importance", ascending=False, ignore_index=True)


def medians(trials: pd.DataFrame) -> dict[float, float]:
    """What `trials` had reported at each point, in the median, where at least `PRUNE_FROM` of them have come to it."""
    columns = trials.filter(like="after_")
    return {float(name[6:]): loss.median() for name, loss in columns.items() if loss.count() >= PRUNE_FROM}


def _recovered(path: Path) -> pd.DataFrame:
    """The table in `path`; a last line that was cut is left out, with its trial."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    return read_table(path) if whole.count(b"\n") > 1 else pd.DataFrame()
