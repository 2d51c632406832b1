"""Stage 5: the race between the study's best trials, and its winner, finetuned in full."""

import numpy as np
import pandas as pd

from fomo.artifacts import Run, Stage
from fomo.config import Config
from fomo.networks.classifier import Classifier
from fomo.networks.inference import predict
from fomo.stages.common import Trained, open_stage, outcome, step, store_trained
from fomo.stages.finetuning import first_point, load, optimize_finetuning, train
from fomo.stages.planning import last_pace, pace
from fomo.stages.preprocessing import image_loader, preprocess
from fomo.stages.selection import paired_test
from fomo.study.study import Study
from fomo.training.loop import DivergedError


def race(run: Run) -> pd.DataFrame:
    """The study's best trials (`finalists`), trained for `race_epochs` on `race_share` of the train images, or in full
    if `race_epochs` is 0: trial, layer, losses and accuracy at the epoch kept. The first row is the winner, which is
    in the end trained in full. Empty where there was no study.

    An epoch ranks configurations only roughly, and the best of 30 owes something to luck: so a few are trained on, and
    the best of them is taken (compare "Is One Epoch All You Need", arXiv:2307.15422). With `keep_first`, the first
    point is one of them, and stays the winner unless another is right on more validation images (paired, p < 0.05).
    """
    return _raced(run).table("race")


@step("5_best_finetuning")
def _raced(run: Run) -> Stage:
    """The stage of the winner, in which it is trained."""
    stage, config = open_stage(run, "5_best_finetuning"), run.config
    if stage.done:
        return stage
    rows, best, started, right, seconds = [], None, None, {}, {}
    study = optimize_finetuning(run) if config.trials else None
    trials = finalists(study, config) if study else []
    if len(trials) < 2 and config.race_epochs:  # nothing to compare
        rows, trials = [{"trial": trial, "layer": study.configuration(trial)["layer"]} for trial in trials], []
    for trial in trials:
        options = {"checkpoint": stage.path(f"checkpoint_{trial}.pt"), "description": f"race, trial {trial}"}
        options |= {"share": config.race_share} if config.race_epochs else {}
        options |= {"pace": pace(run, "race", f"race {trial}", len(trials))}
        try:
            racer, history = train(run, study.configuration(trial), config.race_epochs or config.epochs, **options)
        except DivergedError:
            if not rows and trial == trials[-1]:
                raise
            continue
        rows.append({"trial": trial, "layer": study.configuration(trial)["layer"]} | outcome(history, config.keep))
        seconds[trial], right[trial] = history.attrs["seconds"], _right(run, racer) if config.keep_first else None
        if all(rows[-1]["objective"] < row["objective"] for row in rows[:-1]):  # of equals the first, as below
            best = racer, history
        if trial == 0:
            started = racer, history
    columns = ["trial", "layer", "objective", "train_loss", "validation_loss", "validation_accuracy"]
    table = pd.DataFrame(rows, columns=None if rows else columns)
    table = table.sort_values("objective", kind="stable") if "objective" in table else table
    if config.keep_first and 0 in right and len(table) > 1:
        table = _first_stays(table, right)
    if config.race_epochs or not rows:
        configuration = study.configuration(table["trial"].iloc[0]) if rows else first_point(config)
        options = {"checkpoint": stage.path("checkpoint.pt"), "description": "finetuning"}
        epochs, steps = last_pace(run, "finetune_best", "finetuning")
        best = train(run, configuration, epochs, pace=steps, **options)
    else:  # the winner's part in the race is its training
        best = started if table["trial"].iloc[0] == 0 else best
        seconds[table["trial"].iloc[0]] = 0.0
    stage.save_table("race", table)
    store_trained(stage, *best, race_seconds=sum(seconds.values()))
    return stage


def _right(run: Run, classifier: Classifier) -> np.ndarray:
    """Which validation images a classifier is right on."""
    batches = image_loader(run, preprocess(run).part("validation"), classifier.backbone)
    logits, labels = predict(classifier, batches, run.device)
    return (logits.argmax(-1) == labels).numpy()


def _first_stays(table: pd.DataFrame, right: dict[int, np.ndarray]) -> pd.DataFrame:
    """The table with the first point on top, unless the winner is really better."""
    winner = table["trial"].iloc[0]
    p = paired_test(right[winner][None], right[0][None])
    if right[winner].mean() > right[0].mean() and p < 0.05:
        return table
    return pd.concat([table[table["trial"] == 0], table[table["trial"] != 0]])


def finalists(study: Study, config: Config) -> list[int]:
    """The numbers of the trials that the race is between, the best first.

    With `keep_first`, the first point is one of them, and, in a race shorter than the training that follows, the others
    train as many layers: what trains fewer is ahead in a short race, and behind in the end.
    """
    best = study.top(config.trials)["trial"].tolist()
    if config.keep_first:
        if config.race_epochs:
            depth = study.configuration(0)["layer"]
            best = [trial for trial in best if study.configuration(trial)["layer"] == depth]
        if 0 not in best[: config.finalists]:
            return [*best[: config.finalists - 1], 0]
    return best[: config.finalists]


def finetune_best(run: Run) -> Trained:
    """The winner of the race between the study's best trials, or the first point: the backbone of all that follows."""
    stage, table = _raced(run), race(run)
    first = first_point(run.config)
    configuration = optimize_finetuning(run).configuration(table["trial"].iloc[0]) if len(table) else first
    return load(run, stage, configuration)
