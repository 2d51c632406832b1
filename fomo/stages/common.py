"""What the stages share: what each is bound to, how a trained network is stored, how a study is begun and told."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps

import numpy as np
import pandas as pd
import torch
from torch import nn

from fomo.artifacts import Run, Stage
from fomo.stages.inputs import bound_stage
from fomo.stages.planning import settle
from fomo.storage import load_state, save_state
from fomo.study.study import Study

FINETUNING = (  # the settings of every finetuning
    *("backbone", "weights", "flip", "rotation", "zoom", "batch_size", "epoch_images"),
    *("schedule", "label_smoothing", "mixup", "averaging", "probe_start", "fix_statistics", "plain_lr"),
)
TRIALS = ("trials", "trial_epochs", "trial_share", "trial_size", "initial_trials", "prune", "trial_seconds")
RACE = ("keep", "epochs", "finalists", "race_epochs", "race_share", "keep_first")
HEAD_SEARCH = (
    *("head_images", "darts_epochs", "weight_lr", "alpha_lr", "head_seeds"),
    *("alone_epochs", "alone_lr", "selection", "keep_linear"),
)
DATA = ("on_bad", "on_leak", "on_rare", "columns")
# The folder of each stage: the stage that it follows, and the settings that it adds to those of all stages before it.
STAGES = {
    "1_preprocessing": (None, ("image_size", "fit", "crop", "validation_share", "seed", *DATA)),
    "1_test_images": ("1_preprocessing", ()),
    "2_probe": ("1_preprocessing", ("backbone", "weights", "metric")),
    "3_finetuning": ("2_probe", (*FINETUNING, "keep", "first_epochs")),
    "4_bayesian_optimization": ("2_probe", (*FINETUNING, *TRIALS)),
    "5_best_finetuning": ("4_bayesian_optimization", RACE),
    "6_features": ("5_best_finetuning", ()),
    "7_darts": ("6_features", HEAD_SEARCH),
    "8_head_tuning": ("7_darts", ("head_trials", "head_epochs", "head_batch")),
    "9_head": ("8_head_tuning", ()),
    "10_ensemble": ("9_head", ()),  # whose networks do not depend on how many there are
    "11_final": ("10_ensemble", ("members", "final", "views")),
    "12_evaluation": ("11_final", ("first_epochs", "bootstrap")),
    "13_suspects": ("11_final", ()),
}


@dataclass(frozen=True)
class Trained:
    """A trained network at its best epoch, its learning curves, its configuration, and `keep`: what was best there."""

    model: nn.Module
    history: pd.DataFrame
    configuration: dict
    keep: str

    @property
    def kept(self) -> pd.Series:
        """The row of `history` whose weights were kept."""
        return self.history.loc[best_epoch(self.history, self.keep)]


def open_stage(run: Run, name: str, **inputs: str) -> Stage:
    """The stage in folder `name`, bound to its settings and those of all stages before it, to the train data and the
    weights file that they name, and to further `inputs`. A run with minutes has its plan by then."""
    settle(run)
    settings, before = {}, name
    while before:
        before, fields = STAGES[before]
        settings |= {field: getattr(run.config, field) for field in fields}
    return bound_stage(run, run.folder / name, settings | inputs)


def step(folder: str, *needed: str) -> Callable:
    """Decorates the function of a stage, which a run leaves out (None) where one of the settings `needed` is 0.

    A run with minutes has its plan before. While the stage is not done, the clock counts, and no other process computes
    the run."""

    def decorate(function: Callable) -> Callable:
        @wraps(function)
        def call(run: Run, *args, **options):
            settle(run)
            if not all(getattr(run.config, name) for name in needed):
                return None
            with run.alone(folder), nullcontext() if run.finished(folder) else run.clock.running():
                return function(run, *args, **options)

        return call

    return decorate


def store_trained(stage: Stage, model: nn.Module, history: pd.DataFrame, **costs: float) -> None:
    """Stores a trained network and its learning curves, which completes its stage; `costs` (seconds) go with what it
    cost."""
    save_state(stage.path("weights.pt"), model.state_dict())
    stage.save_table("history", history)
    stage.finish(**costs, training_seconds=history.attrs["seconds"])
    for checkpoint in stage.folder.glob("checkpoint*.pt"):
        checkpoint.unlink()


def load_trained(run: Run, stage: Stage, model: nn.Module, configuration: dict, keep: str = "loss") -> Trained:
    """What `store_trained` stored, its weights put into `model`."""
    model.load_state_dict(load_state(stage.path("weights.pt"), run.device))
    return Trained(model.eval(), stage.table("history"), configuration, keep)


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` makes, with initial weights drawn from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def new_study(run: Run, stage: Stage, space: dict, first: dict) -> Study:
    config = run.config
    return Study(space, stage.path("trials.csv"), seed=config.seed, first=first, initial=config.initial_trials)


def outcome(history: pd.DataFrame, keep: str = "loss") -> dict:
    """A trial's row in the table: its losses and accuracy at the epoch that is kept, if any validation loss is finite;
    the objective is the validation loss, or, unless loss is what to `keep`, the error rate."""
    if not np.isfinite(history["validation_loss"]).any():
        return {"objective": math.inf}
    best = best_epoch(history, keep)
    row = {name: float(history[name][best]) for name in ("train_loss", "validation_loss", "validation_accuracy")}
    return {"objective": row["validation_loss"] if keep == "loss" else 1 - row["validation_accuracy"]} | row


def best_epoch(history: pd.DataFrame, keep: str) -> int:
    """The place of the epoch that is kept: of least validation loss, of highest validation accuracy, or the last."""
    if keep == "last":
        return int(history.index[-1])
    return int(history["validation_loss"].idxmin() if keep == "loss" else history["validation_accuracy"].idxmax())
