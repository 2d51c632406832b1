"""What each stage of the pipeline is bound to, what it gives back, and how a trained network is stored."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from fomo import darts
from fomo.artifacts import Run, Stage, load_state, save_state
from fomo.backbones import weights_fingerprint
from fomo.data import Dataset, load_dataset
from fomo.heads import Head

# The folder of each stage: the stage that it follows, and the settings that it adds to those of all stages before it.
STAGES = {
    "1_preprocessing": (None, ("image_size", "validation_share", "seed")),
    "2_finetuning": ("1_preprocessing", ("backbone", "weights", "rotation", "batch_size", "epochs")),
    "3_bayesian_optimization": (
        "1_preprocessing",
        ("backbone", "weights", "rotation", "batch_size", "trials", "trial_epochs", "initial_trials"),
    ),
    "4_best_finetuning": ("3_bayesian_optimization", ("epochs",)),
    "5_features": ("4_best_finetuning", ()),
    "6_darts": ("5_features", ("darts_epochs", "weight_lr", "alpha_lr", "alone_seeds", "alone_epochs", "alone_lr")),
    "7_head_tuning": ("6_darts", ("head_trials", "head_epochs")),
    "8_head": ("7_head_tuning", ()),
    "9_evaluation": ("8_head", ("bootstrap",)),
}


@dataclass(frozen=True)
class Preprocessed:
    """Train and validation images: `images` (file, label, split) and `pixels`, uint8 (images, channels, side, side)."""

    dataset: Dataset
    images: pd.DataFrame
    pixels: np.ndarray

    def part(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(pixels, labels) of "train" or "validation"."""
        rows = np.flatnonzero(self.images["split"] == name)  # stored one part after the other, so a slice will do
        rows = slice(rows[0], rows[-1] + 1)
        return self.pixels[rows], self.images["label"].to_numpy()[rows]


@dataclass(frozen=True)
class Trained:
    """A trained network at its epoch of lowest validation loss, its learning curves, and its configuration."""

    model: nn.Module
    history: pd.DataFrame
    configuration: dict

    @property
    def kept(self) -> pd.Series:
        """The row of `history` whose weights were kept."""
        return self.history.loc[self.history["validation_loss"].idxmin()]


@dataclass(frozen=True)
class Features:
    """The feature data set: float32 (images, features) and labels, of train and of validation."""

    train: np.ndarray
    train_labels: np.ndarray
    validation: np.ndarray
    validation_labels: np.ndarray
    classes: list[str]


@dataclass(frozen=True)
class HeadSearch:
    """What DARTS found: `history` (supernet and alphas after each epoch), `ranking` of all operations, and `head`, the
    one with the largest alpha."""

    history: pd.DataFrame
    ranking: pd.DataFrame
    head: Head

    def judgement(self) -> pd.Series:
        """What the search was worth, by `darts.judge`."""
        return darts.judge(self.ranking, self.history["validation_accuracy"].iloc[-1])


@dataclass(frozen=True)
class Evaluation:
    """Results on the test split: `metrics` of the final model and its baselines with intervals, `per_class`,
    `confusion` (rows: true class), `predictions` (a row an image) and the images' `pixels`, `validation` (the final
    model's metrics there), and `model_path`, where the final model lies."""

    metrics: pd.DataFrame
    per_class: pd.DataFrame
    confusion: pd.DataFrame
    predictions: pd.DataFrame
    pixels: np.ndarray
    validation: pd.DataFrame
    model_path: Path


def open_stage(run: Run, name: str, **inputs: str) -> Stage:
    """The stage in folder `name`, bound to its settings and those of all stages before it, to the train data and the
    weights file that they name, and to further `inputs`."""
    if not run.inputs:
        run.inputs["data"] = load_dataset(run.config.dataset).fingerprint()
        run.inputs["weights_file"] = weights_fingerprint(run.config.weights)
    settings, before = {}, name
    while before:
        before, fields = STAGES[before]
        settings |= {field: getattr(run.config, field) for field in fields}
    return Stage(run.folder / name, settings | run.inputs | inputs)


def store_trained(stage: Stage, model: nn.Module, history: pd.DataFrame) -> None:
    """Stores a trained network and its learning curves, which completes its stage."""
    save_state(stage.path("weights.pt"), model.state_dict())
    stage.save_table("history", history)
    stage.finish()
    stage.path("checkpoint.pt").unlink(missing_ok=True)


def load_trained(run: Run, stage: Stage, model: nn.Module, configuration: dict) -> Trained:
    """What `store_trained` stored, its weights put into `model`."""
    model.load_state_dict(load_state(stage.path("weights.pt"), run.device))
    return Trained(model.eval(), stage.table("history"), configuration)
