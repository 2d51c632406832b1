"""`make evidence`: what the searches are worth, with many seeds: trials recorded, studies compared, heads chosen."""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, spearmanr
from tqdm import tqdm

from fomo.artifacts import Run, read_table, write_table
from fomo.finetuning import FINETUNING_FIRST, FINETUNING_SPACE, finetuning_trial, fit_images, untrained
from fomo.head_search import search_alphas, search_head
from fomo.preprocessing import preprocess
from fomo.problems import CONTESTANTS, EVALUATIONS, PROBLEMS, RESULTS, problem
from fomo.stages import open_stage, outcome
from fomo.trials import run_trial
from fomo.tuning import Study

SEEDS = range(100, 116)  # the study's constants were chosen with seeds 0 to 23


def stored(name: str) -> pd.DataFrame:
    """The table `name` of data/results, as `make evidence` last made it."""
    return read_table(RESULTS / f"{name}.csv")


def gather() -> str:
    """All evidence, on the embedded sample; goes on after what is stored. Returns it as text."""
    RESULTS.mkdir(exist_ok=True)
    record(Run("fashion_sample", "quick", name="evidence"))
    table = contest()
    rules_run = Run("fashion_sample", "quick", name="evidence", head_space="large", head_seeds=5)
    rules, layered = heads(rules_run)
    text = [f"median simple regret after {EVALUATIONS} evaluations [quartiles], {len(SEEDS)} seeds", summary(table)]
    text += ["rules that choose among the 37 heads", rules.set_index("rule").round(4)]
    text += ["DARTS in other ways", variants(rules_run).set_index("search").round(4)]
    text += ["heads found in the large space, trained alone", layered.drop(columns="seconds").round(4)]
    text += ["finetuning in other ways, validation", recipe_summary(recipes()).round(4)]
    text += ["cheaper trials", fidelity_summary(fidelities()).round(3)]
    return "\n\n".join(part if isinstance(part, str) else part.to_string() for part in text)


def record(run: Run, trials: int = 201) -> pd.DataFrame:
    """The report's first point and 200 quasi-random configurations of its search space, each trained for an epoch.

    Stored as data/results/finetuning_trials.csv; goes on after the last one that is stored there.
    """
    path = RESULTS / "finetuning_trials.csv"
    study = Study(FINETUNING_SPACE, path, seed=run.config.seed, first=FINETUNING_FIRST, initial=trials)
    study.run(partial(finetuning_trial, run), trials, "recording")
    return study.trials


def regrets(name: str, contestant: str, seed: int) -> list[float]:
    """The simple regret after each evaluation: the true loss of what looked best so far, minus the lowest there is."""
    task = problem(name)
    noise = np.random.default_rng(seed).normal(scale=task.noise or 1e-300, size=EVALUATIONS)
    true, seen = [], []

    def objective(configuration: dict) -> float:
        true.append(task.loss(configuration))
        seen.append(true[-1] + noise[len(seen)])
        return seen[-1]

    CONTESTANTS[contestant](task, objective, seed)
    return [true[int(np.argmin(seen[: end + 1]))] - task.lowest for end in range(EVALUATIONS)]


def contest() -> pd.DataFrame:
    """All contestants on all problems with all seeds: a row each, with the regret after 1 to 30 evaluations.

    Stored as data/results/search_evidence.csv, row by row; what is there already is not run again.
    """
    path = RESULTS / "search_evidence.csv"
    table = read_table(path) if path.exists() else pd.DataFrame(columns=["problem", "contestant", "seed"])
    done = set(table[["problem", "contestant", "seed"]].itertuples(index=False, name=None))
    todo = [key for key in product(PROBLEMS, CONTESTANTS, SEEDS) if key not in done]
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        futures = {pool.submit(regrets, *key): key for key in todo}
        for future in tqdm(as_completed(futures), total=len(todo), desc="contest", unit="run", leave=False):
            values = {str(number): float(f"{regret:.4g}") for number, regret in enumerate(future.result(), start=1)}
            row = dict(zip(("problem", "contestant", "seed"), futures[future], strict=True)) | values
            table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
            write_table(path, table.sort_values(["problem", "contestant", "seed"]))
    return table


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The median simple regret over seeds after all evaluations, with quartiles: contestants by problems."""
    last = table.groupby(["contestant", "problem"])[str(EVALUATIONS)]
    text = last.quantile([0.25, 0.5, 0.75]).unstack().map("{:.3g}".format)
    text = text[0.5] + " [" + text[0.25] + ", " + text[0.75] + "]"
    return text.unstack()[list(PROBLEMS)].loc[list(CONTESTANTS)]


def heads(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What each rule that chooses a head is worth, and what the large head space gave, with the run's seeds.

    Stored as data/results/head_rules.csv and head_layered.csv.
    """
    search = search_head(run)
    write_table(RESULTS / "head_rules.csv", search.rules)
    write_table(RESULTS / "head_layered.csv", search.layered)
    return search.rules, search.layered


RECIPES = {  # each a change to the first, and all of them at once
    "plain": {},
    "whole image": {"crop": 1.0},
    "cosine": {"schedule": "cosine"},
    "label smoothing": {"label_smoothing": 0.1},
    "averaging": {"averaging": 0.99},
}
RECIPES["all"] = {name: value for settings in RECIPES.values() for name, value in settings.items()}
RECIPE_EPOCHS = 4


def recipes() -> pd.DataFrame:
    """Each recipe of finetuning with three seeds, by the best configuration of the recorded trials: a row each, with
    the losses and accuracy on validation at the epoch kept. Stored as data/results/finetuning_recipes.csv, row by row.
    """
    keys = [{"recipe": recipe, "seed": seed} for seed in range(3) for recipe in RECIPES]
    for key in keys:
        preprocess(recipe_run(**key))  # here, or two processes would write the same files
    return _in_turn("finetuning_recipes", train_recipe, keys)


def train_recipe(recipe: str, seed: int) -> dict:
    """What a training by the recipe came to (`stages.outcome`), and its seconds."""
    run = recipe_run(recipe, seed)
    data = preprocess(run)
    history = fit_images(run, data, untrained(run, data), _recorded(1)[0], RECIPE_EPOCHS)
    return outcome(history) | {"seconds": history.attrs["seconds"]}


def recipe_run(recipe: str, seed: int) -> Run:
    """A run on the sample whose images are prepared as the recipe says."""
    settings = RECIPES[recipe]
    crop = "whole" if "crop" in settings else "cropped"
    return Run("fashion_sample", "quick", seed=seed, name=f"recipes-{crop}-{seed}", **settings)


def recipe_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Validation loss and accuracy of each recipe, means over seeds, and what it brings beside the plain one: mean and
    standard deviation of the difference with the same seed."""
    loss = table.pivot(index="seed", columns="recipe", values="validation_loss")
    accuracy = table.pivot(index="seed", columns="recipe", values="validation_accuracy")
    gain = accuracy.sub(accuracy["plain"], axis=0)
    columns = {"loss": loss.mean(), "accuracy": accuracy.mean(), "gain": gain.mean(), "gain_std": gain.std()}
    return pd.DataFrame(columns).loc[list(RECIPES)]


FIDELITIES = {
    "full": {},
    "a quarter of the images": {"trial_share": 0.25},
    "half the side": {"trial_size": 32},
    "both": {"trial_share": 0.25, "trial_size": 32},
}


def fidelities() -> pd.DataFrame:
    """24 of the recorded configurations, spread evenly over their ranks, tried in full and in cheaper ways: a row each,
    with its validation loss and seconds. Stored as data/results/finetuning_fidelities.csv, row by row."""
    keys = [{"fidelity": fidelity, "place": place} for fidelity in FIDELITIES for place in range(24)]
    preprocess(fidelity_run("full"))
    return _in_turn("finetuning_fidelities", try_cheaply, keys)


def try_cheaply(fidelity: str, place: int) -> dict:
    """A recorded configuration tried anew: its validation loss, infinite where it diverges, and its seconds."""
    row = run_trial(partial(finetuning_trial, fidelity_run(fidelity)), _recorded(24)[place], {}, None)
    return {"validation_loss": row["objective"], "seconds": row["seconds"]}


def fidelity_run(fidelity: str) -> Run:
    """A run on the sample whose trials are as cheap as `fidelity` says."""
    return Run("fashion_sample", "quick", seed=1, name="fidelities", **FIDELITIES[fidelity])


def fidelity_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Seconds of a trial (median), Spearman with the losses in full, and how many of the five best in full are among
    its own five best."""
    loss = table.pivot(index="place", columns="fidelity", values="validation_loss")
    best = {name: set(loss[name].nsmallest(5).index) for name in FIDELITIES}
    rows = {
        name: {
            "seconds": table.loc[table["fidelity"] == name, "seconds"].median(),
            "spearman": spearmanr(loss[name], loss["full"]).statistic,
            "of the five best": len(best[name] & best["full"]),
        }
        for name in FIDELITIES
    }
    return pd.DataFrame(rows).T


def _recorded(count: int) -> list[dict]:
    """So many of the recorded configurations that were completed, from the best to the worst, evenly by rank."""
    study = Study(FINETUNING_SPACE, RESULTS / "finetuning_trials.csv", seed=0, first=FINETUNING_FIRST, initial=1)
    ranked = study.complete.sort_values("objective")["trial"].to_numpy()
    return [study.configuration(trial) for trial in ranked[np.linspace(0, len(ranked) - 1, count).astype(int)]]


def _in_turn(name: str, function: Callable[..., dict], keys: list[dict]) -> pd.DataFrame:
    """A row for each of `keys` with what `function` makes of it, on processes of one thread each; rows that are in the
    table `name` of data/results are not computed again."""
    path = RESULTS / f"{name}.csv"
    table = stored(name) if path.exists() else pd.DataFrame(columns=list(keys[0]))
    done = table[list(keys[0])].to_dict("records")
    os.environ["OMP_NUM_THREADS"] = "1"  # two processes of one thread do more than one of two
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(function, **key): key for key in keys if key not in done}
        for future in tqdm(as_completed(futures), total=len(futures), desc=name, leave=False):
            table = pd.concat([table, pd.DataFrame([futures[future] | future.result()])], ignore_index=True)
            write_table(path, table.sort_values(list(keys[0])))
    return table


VARIANTS = {
    "as published": {},
    "alpha learning rate 3e-3": {"alpha_lr": 3e-3},
    "temperature 0.1": {"temperature": 0.1},
    "normalized logits": {"normalize": True},
    "second order": {"unrolled": True},
}


def variants(run: Run) -> pd.DataFrame:
    """What DARTS's choice is worth when it is searched in other ways: regret of the largest alpha, Spearman and Kendall
    between alpha and the accuracy trained alone, means and standard deviations over the run's seeds, and seconds.

    Stored as data/results/darts_variants.csv, row by row.
    """
    path = RESULTS / "darts_variants.csv"
    table = read_table(path) if path.exists() else pd.DataFrame(columns=["search"])
    search_head(run)
    accuracy = open_stage(run, "6_darts").table("scores").groupby("operation")["alone"].mean().to_numpy()
    seeds = range(run.config.seed, run.config.seed + run.config.head_seeds)
    for name, settings in VARIANTS.items():
        if name in set(table["search"]):
            continue
        variant = copy(run)
        variant.config = replace(run.config, **settings)
        rows = []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                supernet, history = search_alphas(variant, seed, Path(folder) / "supernet.pt")
            alpha = supernet.alpha.detach().cpu().numpy()
            row = {"regret": accuracy.max() - accuracy[alpha.argmax()], "spread of alpha": alpha.max() - alpha.min()}
            row |= {"spearman": spearmanr(alpha, accuracy).statistic, "kendall": kendalltau(alpha, accuracy).statistic}
            rows.append(row | {"seconds": history.attrs["seconds"]})
        means, stds = pd.DataFrame(rows).mean(), pd.DataFrame(rows)[["regret", "spearman", "kendall"]].std()
        row = pd.DataFrame([{"search": name, **means, **stds.add_suffix("_std")}])
        table = pd.concat([table, row], ignore_index=True)
        write_table(path, table)
    return table
