"""What searches are compared on, and the searches: functions to minimise, and contestants that minimise them."""

import math
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from fomo.config import RESULTS
from fomo.stages.finetuning import FINETUNING_FIRST, FINETUNING_SPACE
from fomo.storage import read_table
from fomo.study.space import Choice, Float, Space
from fomo.study.study import Study

EVALUATIONS = 30


@dataclass(frozen=True)
class Problem:
    """A function to minimise: its search space, true loss, noise (standard deviation), and lowest true loss."""

    space: Space
    loss: Callable[[dict], float]
    lowest: float
    noise: float = 0.0
    first: dict | None = None


def branin(at: dict) -> float:
    """Branin's function; three minima. Dixon and Szego 1978."""
    x, y = at["x1"], at["x2"]
    valley = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return valley**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def hartmann6(at: dict) -> float:
    """Hartmann's function of six variables; six minima. Dixon and Szego 1978."""
    a = [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
    p = [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
    x = np.array([at[f"x{number}"] for number in range(6)])
    return -float(np.array([1, 1.2, 3, 3.2]) @ np.exp(-(np.array(a) * (x - 1e-4 * np.array(p)) ** 2).sum(axis=1)))


def conditional(at: dict) -> float:
    """A made-up validation loss over the report's space: each optimizer has a best learning rate, which under sgd moves
    with the momentum; far above it, training breaks down."""
    momentum = at["momentum"] or 0.0
    best = {"adam": -3.3, "sgd": -1.7 - 1.25 * (momentum - 0.1), "rmsprop": -3.8}[at["optimizer"]]
    offset = {"adam": 0.0, "sgd": 0.02 + 0.05 * abs(momentum - 0.8), "rmsprop": 0.06}[at["optimizer"]]
    away = math.log10(at["lr"]) - best
    slope = 0.12 * away**2 + 0.35 * max(away, 0) ** 2
    loss = 0.55 + offset + slope + {2: 0.0, 3: 0.03, 4: 0.1}[at["layer"]] + 2 * at["weight_decay"]
    return min(loss, 2.6) + max(0.0, 3 * (away - 1.5))


@cache
def recorded() -> Problem:
    """The recorded trials as a function: a random forest of their log losses (Eggensperger et al., AAAI 2015)."""
    table = read_table(RESULTS / "finetuning_trials.csv")
    columns = list(FINETUNING_SPACE)
    configurations = table[columns].astype(object).where(table[columns].notna(), None).to_dict("records")
    losses = table["objective"].replace(math.inf, table["objective"][np.isfinite(table["objective"])].max())
    seen = FINETUNING_SPACE.columns(np.array([FINETUNING_SPACE.encode(c) for c in configurations]))
    forest = RandomForestRegressor(200, random_state=0).fit(seen, np.log(losses))

    def loss(at: dict) -> float:
        return math.exp(forest.predict(FINETUNING_SPACE.columns(FINETUNING_SPACE.encode(at)[None]))[0])

    places = np.random.default_rng(0).random((100_000, len(FINETUNING_SPACE)))
    lowest = math.exp(min(forest.predict(np.vstack([FINETUNING_SPACE.columns(places), seen]))))
    return Problem(FINETUNING_SPACE, loss, lowest, first=FINETUNING_FIRST)


def problem(name: str) -> Problem:
    """One of `PROBLEMS`."""
    if name == "Branin":
        return Problem(Space(x1=Float(-5, 10), x2=Float(0, 15)), branin, 0.397887)
    if name == "Hartmann-6":
        return Problem(Space(**{f"x{number}": Float(0, 1) for number in range(6)}), hartmann6, -3.32237)
    if name == "conditional":
        return Problem(FINETUNING_SPACE, conditional, 0.55, noise=0.01, first=FINETUNING_FIRST)
    return recorded()


PROBLEMS = ("Branin", "Hartmann-6", "conditional", "recorded trials")


def by_study(problem: Problem, objective: Callable[[dict], float], seed: int) -> None:
    """This project's study. Its initial design has 4 configurations more than the surrogate has inputs: every choice is
    to be seen a few times before the surrogate leads (with half as many, it stays too long where it starts)."""
    space = problem.space
    first = problem.first or space.decode([0.5] * len(space))
    initial = space.columns(np.full((1, len(space)), 0.5)).shape[1] + 4
    with tempfile.TemporaryDirectory() as folder:
        study = Study(space, Path(folder) / "trials.csv", seed=seed, first=first, initial=initial)
        study.run(lambda configuration, _: {"objective": objective(configuration)}, EVALUATIONS)


def by_random_search(problem: Problem, objective: Callable[[dict], float], seed: int) -> None:
    """Uniformly random configurations, after the first point where there is one."""
    rng = np.random.default_rng(seed)
    for number in range(EVALUATIONS):
        random = problem.space.decode(rng.random(len(problem.space)))
        objective(problem.first if problem.first and not number else random)


def by_library(problem: Problem, objective: Callable[[dict], float], seed: int) -> None:
    """bayesian-optimization as it comes, given exponents where the scale is logarithmic."""
    from bayes_opt import BayesianOptimization

    space = problem.space

    def value(**point) -> float:
        values = {}
        for name, parameter in space.items():
            if isinstance(parameter, Choice):
                values[name] = next(choice for choice in parameter.choices if str(choice) == point[name])
            else:
                values[name] = float(10 ** point[name] if parameter.log else point[name])
        return -objective(space.activate(values))

    def bounds(parameter: Float | Choice) -> tuple:
        if isinstance(parameter, Choice):
            return tuple(map(str, parameter.choices))
        ends = (parameter.low, parameter.high)
        return tuple(map(math.log10, ends)) if parameter.log else ends

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limits = {name: bounds(parameter) for name, parameter in space.items()}
        optimizer = BayesianOptimization(value, limits, random_state=seed, verbose=0, allow_duplicate_points=True)
        if problem.first:
            first = dict(problem.first)
            for name, parameter in space.items():
                if isinstance(parameter, Choice):
                    first[name] = str(first[name])
                elif parameter.log:
                    first[name] = math.log10(first[name])
            optimizer.probe(first, lazy=True)
        given = 1 if problem.first else 0
        optimizer.maximize(init_points=5, n_iter=EVALUATIONS - 5 - given)


def by_optuna(problem: Problem, objective: Callable[[dict], float], seed: int, sampler: str) -> None:
    """Optuna with one of its samplers."""
    import optuna
    import torch

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def value(trial: optuna.Trial) -> float:
        values = {}
        for name, parameter in sorted(problem.space.items(), key=lambda item: item[1].when is not None):
            if parameter.when and values[parameter.when[0]] != parameter.when[1]:
                values[name] = None
            elif isinstance(parameter, Choice):
                values[name] = trial.suggest_categorical(name, parameter.choices)
            else:
                values[name] = trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log)
        return objective(values)

    study = optuna.create_study(sampler=getattr(optuna.samplers, sampler)(seed=seed))
    if problem.first:
        study.enqueue_trial({name: value for name, value in problem.first.items() if value is not None})
    study.optimize(value, n_trials=EVALUATIONS)


CONTESTANTS = {
    "fomo's study": by_study,
    "random search": by_random_search,
    "bayesian-optimization as it comes": by_library,
    "Optuna, TPE": lambda *args: by_optuna(*args, "TPESampler"),
    "Optuna, GP": lambda *args: by_optuna(*args, "GPSampler"),
}
