"""What recipes of finetuning bring on the embedded sample, and what cheaper trials are worth; kept in tables."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from tqdm import tqdm

from fomo.artifacts import Run
from fomo.config import RESULTS
from fomo.stages.common import outcome
from fomo.stages.finetuning import (
    FINETUNING_FIRST,
    FINETUNING_SPACE,
    finetuning_trial,
    fit_images,
    untrained,
)
from fomo.stages.preprocessing import preprocess
from fomo.storage import read_table, write_table
from fomo.study.study import Study, medians
from fomo.study.trials import run_trial

MEASURED = {  # what all runs on the sample have in common, on top of preset `quick`
    **{"crop": 0.875, "rotation": 30.0, "batch_size": 64, "schedule": "constant", "label_smoothing": 0.0},
    **{"averaging": 0.0, "keep": "loss", "probe_start": False, "plain_lr": 0.0, "trial_share": 1.0, "trial_size": 0},
    **{"fix_statistics": False, "head_images": 0},
}
RECIPES = {  # each a change to the first; "all" is those above it at once, "best" what `auto` took of them
    "plain": {},
    "whole image": {"crop": 1.0},
    "cosine": {"schedule": "cosine"},
    "label smoothing": {"label_smoothing": 0.1},
    "averaging": {"averaging": 0.99},
}
RECIPES["all"] = {name: value for settings in RECIPES.values() for name, value in settings.items()}
RECIPES |= {
    "cut-outs": {"zoom": 0.3},
    "less rotation": {"rotation": 10.0},
    "mixup": {"mixup": 0.2},
    "best": {"crop": 1.0, "schedule": "cosine", "averaging": 0.99},
}
RECIPES["best and mixup"] = RECIPES["best"] | RECIPES["mixup"]
RECIPE_EPOCHS = 4


def recipes() -> pd.DataFrame:
    """Each recipe of finetuning with three seeds, by the best configuration of the recorded trials: a row each, with
    the losses and accuracy on validation at the epoch kept. Stored as data/results/finetuning_recipes.csv, row by row.
    """
    keys = [{"recipe": recipe, "seed": seed} for seed in range(3) for recipe in RECIPES]
    return _in_turn("finetuning_recipes", train_recipe, keys, lambda **key: preprocess(recipe_run(**key)))


def train_recipe(recipe: str, seed: int) -> dict:
    """What a training by the recipe came to (`common.outcome`), and its seconds."""
    run = recipe_run(recipe, seed)
    data = preprocess(run)
    history = fit_images(run, data, untrained(run, data), _recorded(1)[0], RECIPE_EPOCHS)
    return outcome(history) | {"seconds": history.attrs["seconds"]}


def recipe_run(recipe: str, seed: int) -> Run:
    """A run on the sample whose images are prepared as the recipe says."""
    settings = RECIPES[recipe]
    crop = "whole" if "crop" in settings else "cropped"
    return Run("fashion_sample", "quick", seed=seed, name=f"recipes-{crop}-{seed}", **MEASURED | settings)


def recipe_summary(table: pd.DataFrame, first: str) -> pd.DataFrame:
    """Validation loss and accuracy of each recipe, means over seeds, and what it brings beside the `first` one: mean
    and standard deviation of the difference with the same seed. Lowest loss first."""
    loss = table.pivot(index="seed", columns="recipe", values="validation_loss")
    accuracy = table.pivot(index="seed", columns="recipe", values="validation_accuracy")
    gain = accuracy.sub(accuracy[first], axis=0)
    columns = {"loss": loss.mean(), "accuracy": accuracy.mean(), "gain": gain.mean(), "gain_std": gain.std()}
    return pd.DataFrame(columns).sort_values("loss")


FIDELITIES = {
    "full": {},
    "a quarter of the images": {"trial_share": 0.25},
    "half the side": {"trial_size": 32},
    "both": {"trial_share": 0.25, "trial_size": 32},
    "half the images, half the side": {"trial_share": 0.5, "trial_size": 32},
}


def fidelities() -> pd.DataFrame:
    """24 of the recorded configurations, spread evenly over their ranks, tried in full and in cheaper ways: a row each,
    with its validation loss and seconds. Stored as data/results/finetuning_fidelities.csv, row by row."""
    keys = [{"fidelity": fidelity, "place": place} for fidelity in FIDELITIES for place in range(24)]
    prepare = lambda fidelity, place: preprocess(fidelity_run(fidelity))  # noqa: E731
    return _in_turn("finetuning_fidelities", try_cheaply, keys, prepare)


def try_cheaply(fidelity: str, place: int) -> dict:
    """A recorded configuration tried anew: its validation loss, infinite where it diverges, and its seconds."""
    row = run_trial(partial(finetuning_trial, fidelity_run(fidelity)), _recorded(24)[place], {}, None)
    return {"validation_loss": row["objective"], "seconds": row["seconds"]}


def fidelity_run(fidelity: str) -> Run:
    """A run on the sample whose trials are as cheap as `fidelity` says."""
    return Run("fashion_sample", "quick", seed=1, name="fidelities", **MEASURED | FIDELITIES[fidelity])


def fidelity_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Seconds of a trial (median), Spearman with the losses in full, and how many of the five best in full are among
    its own five best."""
    loss = table.pivot(index="place", columns="fidelity", values="validation_loss")
    best = {name: set(loss[name].nsmallest(5).index) for name in table["fidelity"].unique()}
    rows = {
        name: {
            "seconds": table.loc[table["fidelity"] == name, "seconds"].median(),
            "spearman": spearmanr(loss[name], loss["full"]).statistic,
            "of the five best": len(best[name] & best["full"]),
        }
        for name in best
    }
    return pd.DataFrame(rows).T


def pruning(table: pd.DataFrame, trials: int = 30, orders: int = 1000) -> pd.Series:
    """What ending hopeless trials early saves and costs: so many of the recorded trials (`table`), drawn at random, as
    often as `orders` says, each time told in that order what the median rule would have let them report.

    Returns the means over orders: `ended` early, of the trials; `spent`, of the training steps; `best lost`, how often
    the trial of least loss was ended; `loss`, by how much the least loss rose.
    """
    rng, rows = np.random.default_rng(0), []
    for _ in range(orders):
        drawn, seen = table.iloc[rng.permutation(len(table))[:trials]], []
        for row in drawn.to_dict("records"):
            seen.append(run_trial(partial(_replay, row), {}, medians(pd.DataFrame(seen)), None))
        told, full = pd.DataFrame(seen), drawn["objective"].to_numpy()
        ended = (told["status"] == "pruned").to_numpy()
        least = told.loc[~ended, "objective"].min()
        spent = np.where(ended, told.filter(like="after_").count(axis=1) / 4, 1)
        lost = {"best lost": ended[full.argmin()], "loss": least - full.min()}
        rows.append({"ended": ended.mean(), "spent": spent.mean()} | lost)
    return pd.DataFrame(rows).mean()


def _replay(row: dict, _, report: Callable[[float, float], None]) -> dict:
    """A recorded trial as if it ran again: it reports what it had reported, and ends as it had ended."""
    for at in (0.25, 0.5, 0.75):
        report(at, row[f"after_{at}"])
    return {"objective": row["objective"]}


def _recorded(count: int) -> list[dict]:
    """So many of the recorded configurations that were completed, from the best to the worst, evenly by rank."""
    study = Study(FINETUNING_SPACE, RESULTS / "finetuning_trials.csv", seed=0, first=FINETUNING_FIRST, initial=1)
    ranked = study.complete.sort_values("objective")["trial"].to_numpy()
    return [study.configuration(trial) for trial in ranked[np.linspace(0, len(ranked) - 1, count).astype(int)]]


def _in_turn(
    name: str, function: Callable[..., dict], keys: list[dict], prepare: Callable[..., object]
) -> pd.DataFrame:
    """A row for each of `keys` with what `function` makes of it, on processes of one thread each; rows that are in the
    table `name` of data/results are not computed again. `prepare` is called before, with each key in turn, to write
    what several processes would write at once."""
    path = RESULTS / f"{name}.csv"
    table = read_table(path) if path.exists() else pd.DataFrame(columns=list(keys[0]))
    done = table[list(keys[0])].to_dict("records")
    todo = [key for key in keys if key not in done]
    for key in todo:
        prepare(**key)
    os.environ["OMP_NUM_THREADS"] = "1"  # two processes of one thread do more than one of two
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(function, **key): key for key in todo}
        for future in tqdm(as_completed(futures), total=len(futures), desc=name, leave=False):
            table = pd.concat([table, pd.DataFrame([futures[future] | future.result()])], ignore_index=True)
            write_table(path, table.sort_values(list(keys[0])))
    return table
