"""Bayesian optimisation of an objective that is passed in: search space, trials, study. Knows nothing of networks."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from bayes_opt import BayesianOptimization
from bayes_opt.acquisition import ExpectedImprovement
from scipy.stats import qmc
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from tqdm import tqdm

from fomo.artifacts import read_table, write_table
from fomo.config import UserError


@dataclass(frozen=True)
class Float:
    """A number between `low` and `high`; with `log`, its logarithm is searched. `when` = (parameter, value): only then
    does it act, and is None otherwise."""

    low: float
    high: float
    log: bool = False
    when: tuple[str, str] | None = None

    bounds = (0.0, 1.0)  # as the surrogate sees it

    def decode(self, place: float) -> float:
        """The value at `place` of the unit interval."""
        if self.log:
            return self.low * (self.high / self.low) ** place
        return self.low + (self.high - self.low) * place

    def encode(self, value: float | None) -> float:
        """The place of `value`; an inactive one lies in the middle, so that the surrogate sees no difference there."""
        if value is None:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def grid(self, count: int) -> list[float]:
        return [self.decode(place) for place in np.linspace(0, 1, count)]


@dataclass(frozen=True)
class Choice:
    """One of a few values, words or integers, none of them nearer to another."""

    choices: tuple
    when: None = None

    @property
    def bounds(self) -> tuple:
        return tuple(map(str, self.choices))

    def decode(self, place: float):
        """The value at `place` of the unit interval."""
        return self.choices[min(int(place * len(self.choices)), len(self.choices) - 1)]

    def encode(self, value) -> str:
        return str(value)

    def grid(self, count: int) -> list:
        return list(self.choices)


def describe(space: dict[str, Float | Choice]) -> pd.DataFrame:
    """A search space as a table: parameter, range, scale, and where it acts."""
    rows = []
    for name, parameter in space.items():
        if isinstance(parameter, Choice):
            row = {"range": ", ".join(map(str, parameter.choices)), "scale": "choice"}
        else:
            row = {"range": f"{parameter.low:g} to {parameter.high:g}", "scale": "log" if parameter.log else "linear"}
        row["acts"] = f"with {parameter.when[0]} {parameter.when[1]}" if parameter.when else "always"
        rows.append({"parameter": name} | row)
    return pd.DataFrame(rows)


class SampledExpectedImprovement(ExpectedImprovement):
    """Expected improvement, maximised over 10000 random points.

    The library's differential evolution over spaces with categories takes about 2 seconds for a suggestion.
    """

    def suggest(self, *args, **kwargs) -> np.ndarray:
        return super().suggest(*args, **kwargs | {"n_random": 10_000, "n_smart": 0})


class Study:
    """Trials of configurations from a search space, each chosen by what the earlier ones gave; lower is better.

    The initial design is `first`, the configuration to start with, then a scrambled Sobol sequence. After it, a
    Gaussian process (Matern 5/2, a length scale for each parameter, fitted noise) models the objective on the unit
    cube, and the next suggestion maximises expected improvement (Brochu et al., arXiv:1012.2599, eq. 4).

    The table of trials in the file `path` is the study's whole state: a suggestion depends on it and on `seed` alone,
    so a study that was killed goes on as if it had not been.
    """

    def __init__(self, space: dict[str, Float | Choice], path: Path, *, seed: int, first: dict, initial: int):
        self.space = space
        self.path = path
        self.seed = seed
        self.first = first
        self.initial = initial
        self.trials = read_table(path) if path.exists() else pd.DataFrame()

    def run(self, objective: Callable[[dict], dict], trials: int, description: str = "trials") -> None:
        """Goes on until there are `trials` trials.

        `objective` takes a configuration and returns a dict with "objective" and whatever else belongs in the table.
        Where it raises an ArithmeticError (a training that diverges), the trial is marked so, and the study goes on.
        """
        with tqdm(total=trials, initial=len(self.trials), desc=description, unit="trial", leave=False) as bar:
            while len(self.trials) < trials:
                configuration = self.suggest()
                start = time.perf_counter()
                try:
                    result = {"status": "complete"} | objective(configuration)
                    if not math.isfinite(result["objective"]):
                        result |= {"status": "diverged", "objective": math.inf}
                except ArithmeticError:
                    result = {"status": "diverged", "objective": math.inf}
                row = {"trial": len(self.trials)} | configuration | result
                row = {name: math.nan if value is None else value for name, value in row.items()}
                row["seconds"] = round(time.perf_counter() - start, 2)
                self.trials = pd.concat([self.trials, pd.DataFrame([row])], ignore_index=True)
                write_table(self.path, self.trials)
                bar.update()
        if not (self.trials["status"] == "complete").any():
            raise UserError(
                f"all {trials} trials in {self.path} diverged; lower the learning rates of the search space"
            )

    def suggest(self) -> dict:
        """The configuration to try next."""
        number = len(self.trials)
        if number == 0:
            return self.first
        if number < self.initial or not np.isfinite(self.trials["objective"]).any():
            sobol = qmc.Sobol(len(self.space), rng=np.random.default_rng(self.seed))
            point = sobol.fast_forward(number - 1).random(1)[0] if number > 1 else sobol.random(1)[0]
            return self._activate({name: p.decode(x) for (name, p), x in zip(self.space.items(), point, strict=True)})
        point = self._surrogate().suggest()
        decoded = {}
        for name, parameter in self.space.items():
            if isinstance(parameter, Float):
                decoded[name] = float(parameter.decode(point[name]))
            else:
                decoded[name] = next(choice for choice in parameter.choices if str(choice) == point[name])
        return self._activate(decoded)

    def _activate(self, configuration: dict) -> dict:
        """`configuration` with None for the parameters that do not act in it."""
        return {
            name: value if not (when := self.space[name].when) or configuration[when[0]] == when[1] else None
            for name, value in configuration.items()
        }

    def configuration(self, trial: int) -> dict:
        """The configuration of a trial."""
        row = self.trials.set_index("trial").loc[trial]
        values = {name: row[name] for name in self.space}
        return {
            name: None if pd.isna(value) else getattr(value, "item", lambda v=value: v)()
            for name, value in values.items()
        }

    def _surrogate(self) -> BayesianOptimization:
        """The library's optimizer, told all trials so far. Its targets are negative losses, for it maximises."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Non-float parameters are experimental")
            optimizer = BayesianOptimization(
                None,
                {name: parameter.bounds for name, parameter in self.space.items()},
                acquisition_function=SampledExpectedImprovement(xi=0.0),
                random_state=(1000 * self.seed + len(self.trials)) % 2**32,
                verbose=0,
                allow_duplicate_points=True,
            )
        dimensions = len(optimizer.space.bounds)
        kernel = ConstantKernel(1.0, (0.1, 10)) * Matern(np.ones(dimensions), (0.1, 10), nu=2.5)
        optimizer.set_gp_params(kernel=kernel + WhiteKernel(0.01, (1e-4, 1.0)), n_restarts_optimizer=2)
        for trial, loss in zip(self.trials["trial"], self.clipped(), strict=True):
            configuration = self.configuration(trial)
            point = {name: parameter.encode(configuration[name]) for name, parameter in self.space.items()}
            optimizer.register(point, -loss)
        return optimizer

    def clipped(self) -> np.ndarray:
        """The objectives, with the worst cut off: a few huge losses would flatten all that the surrogate is to tell."""
        losses = self.trials["objective"].to_numpy(dtype=float)
        finite = losses[np.isfinite(losses)]
        median = np.median(finite)
        ceiling = median + 2 * (median - finite.min()) if len(finite) > 1 else finite.max()
        return np.minimum(np.where(np.isfinite(losses), losses, np.inf), ceiling)

    @property
    def best(self) -> pd.Series:
        """The trial of lowest objective."""
        return self.trials.loc[self.trials["objective"].idxmin()]

    def top(self, count: int) -> pd.DataFrame:
        """The best `count` trials, best first."""
        return self.trials.sort_values("objective").head(count)

    def incumbent(self) -> pd.Series:
        """The lowest objective up to each trial."""
        return self.trials["objective"].cummin()

    def slices(self, count: int = 40) -> pd.DataFrame:
        """How the objective depends on each parameter, by the surrogate: the others stay at the incumbent's values.

        Columns: parameter, value (text for a choice), mean, std (of a new trial, its noise included).
        """
        surrogate = self._surrogate()
        incumbent = self.configuration(self.best["trial"])
        rows = []
        for name, parameter in self.space.items():
            base = incumbent | ({parameter.when[0]: parameter.when[1]} if parameter.when else {})
            values = parameter.grid(count)
            configurations = [self._activate(base | {name: value}) for value in values]
            points = [{n: p.encode(c[n]) for n, p in self.space.items()} for c in configurations]
            mean, std = surrogate.predict(points, return_std=True)
            for value, m, s in zip(values, mean, std, strict=True):
                rows.append({"parameter": name, "value": value, "mean": -m, "std": s})
        return pd.DataFrame(rows)
