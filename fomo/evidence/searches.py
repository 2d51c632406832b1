"""`make evidence`: what the searches are worth, with many seeds: trials recorded, studies compared, heads chosen,
finetuning made better and cheaper."""

import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
from tqdm import tqdm

from fomo.artifacts import Run
from fomo.config import RESULTS
from fomo.evidence import deadlines, label_errors, minutes, steps
from fomo.evidence.darts_variants import variants
from fomo.evidence.finetuning import (
    MEASURED,
    fidelities,
    fidelity_summary,
    pruning,
    recipe_summary,
    recipes,
)
from fomo.evidence.problems import CONTESTANTS, EVALUATIONS, PROBLEMS, problem
from fomo.stages.finetuning import FINETUNING_FIRST, FINETUNING_SPACE, finetuning_trial
from fomo.stages.head_search import search_head
from fomo.storage import read_table, write_table
from fomo.study.study import Study

SEEDS = range(100, 116)  # the study's constants were chosen with seeds 0 to 23


def stored(name: str) -> pd.DataFrame:
    """The table `name` of data/results, as `make evidence` last made it."""
    return read_table(RESULTS / f"{name}.csv")


def gather() -> str:
    """All evidence; goes on after what is stored. Returns it as text."""
    RESULTS.mkdir(exist_ok=True)
    record(Run("fashion_sample", "quick", name="evidence", **MEASURED))
    table = contest()
    rules_run = Run("fashion_sample", "quick", name="evidence", **MEASURED | {"head_seeds": 5})
    rules = search_head(rules_run).rules
    write_table(RESULTS / "head_rules.csv", rules)
    text = [f"median simple regret after {EVALUATIONS} evaluations [quartiles], {len(SEEDS)} seeds", summary(table)]
    text += ["rules that choose among the 37 heads", rules.set_index("rule").round(4)]
    text += ["DARTS in other ways", variants(rules_run).set_index("search").round(4)]
    text += ["finetuning in other ways, validation", recipe_summary(recipes(), "plain").round(4)]
    text += ["cheaper trials", fidelity_summary(fidelities()).round(3)]
    text += ["hopeless trials ended early", pruning(stored("finetuning_trials")).round(4)]
    text += ["finetunings of so many steps, accuracy on test", steps.summary(steps.trainings())]
    text += ["finetunings of so many seconds at several sides, one view of the test images", steps.sides()]
    text += ["wrong labels that are found: precision / recall (named)", label_errors.summary(label_errors.found())]
    text += [
        "whether runs end in time: seconds late, and share of the minutes",
        deadlines.summary(deadlines.measured()),
    ]
    compared = minutes.compare()
    minutes.draw(compared, rules_run.figures.parent / "readme" / "minutes.png")
    text += ["at equal minutes, macro F1 on test", minutes.summary(compared)]
    return "\n\n".join(part if isinstance(part, str) else part.to_string() for part in text)


def record(run: Run) -> pd.DataFrame:
    """The report's first point and 200 quasi-random configurations of its search space, each trained for an epoch.

    Stored as data/results/finetuning_trials.csv; goes on after the last one that is stored there.
    """
    path, trials = RESULTS / "finetuning_trials.csv", 201
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
