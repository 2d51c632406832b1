"""Stages 5 to 8: the feature data set, DARTS over the candidate heads, the study of the chosen one, the final head."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from fomo import darts
from fomo.artifacts import Run
from fomo.data import FeatureBatches, loader
from fomo.features import store_features
from fomo.finetuning import finetune_best
from fomo.heads import HEADS, Head, HeadBank
from fomo.preprocessing import image_loader, preprocess
from fomo.stages import Trained, load_trained, new_study, open_stage, outcome, seeded, store_trained
from fomo.training import fit, make_optimizer
from fomo.tuning import Choice, Float, Study

# The report's search space. Momentum acts under sgd only.
HEAD_SPACE = {
    "lr": Float(1e-6, 1e-2, log=True),
    "momentum": Float(0.1, 0.9, when=("optimizer", "sgd")),
    "weight_decay": Float(1e-6, 1e-2, log=True),
    "optimizer": Choice(("adam", "sgd", "rmsprop")),
}
HEAD_FIRST = {"lr": 1e-3, "momentum": None, "weight_decay": 1e-4, "optimizer": "adam"}  # ours: the report names none


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


def extract_features(run: Run) -> Features:
    """The feature data set: what the finetuned backbone computes of each image, not augmented."""
    stage, data = open_stage(run, "5_features"), preprocess(run)
    if not stage.done:
        backbone = finetune_best(run).model.backbone
        for part in ("train", "validation"):
            batches = image_loader(run, data.part(part), backbone)
            store_features(backbone, batches, stage.path(f"{part}.npy"), run.device, f"features, {part}")
        stage.finish()
    labels = [data.part(part)[2] for part in ("train", "validation")]
    return Features(stage.array("train"), labels[0], stage.array("validation"), labels[1], data.dataset.classes)


def search_head(run: Run) -> HeadSearch:
    """DARTS over the 37 operations, and, to judge it, each of them trained alone with several seeds."""
    stage, config = open_stage(run, "6_darts"), run.config
    if not stage.done:
        features = extract_features(run)
        train, validation = feature_loaders(run, features)

        def new_bank(seed: int) -> HeadBank:
            build = lambda: HeadBank(features.train.shape[1], len(features.classes))  # noqa: E731
            return seeded(seed, build).to(run.device)

        history = darts.search(
            darts.MixedOperation(new_bank(config.seed)).to(run.device),
            train,
            loader(validation.dataset, config.batch_size, torch.Generator()),
            config.darts_epochs,
            weight_lr=config.weight_lr,
            alpha_lr=config.alpha_lr,
            seed=config.seed,
            device=run.device,
            checkpoint=stage.path("supernet.pt"),
        )
        alone = []
        for seed in range(config.seed, config.seed + config.alone_seeds):
            bank = new_bank(seed)
            optimizer = make_optimizer(bank, "adam", config.alone_lr, weight_decay=0.0)
            options = {"checkpoint": stage.path(f"alone_{seed}.pt"), "description": f"all 37 alone, seed {seed}"}
            curves = fit(
                bank, optimizer, train, validation, config.alone_epochs, seed=seed, device=run.device, **options
            )
            alone.append(darts.best_epochs(curves).assign(seed=seed))
        stage.save_table("history", history)
        stage.save_table("ranking", darts.rank(history, pd.concat(alone)))
        stage.finish()
        for checkpoint in stage.folder.glob("*.pt"):
            checkpoint.unlink()
    ranking = stage.table("ranking")
    return HeadSearch(stage.table("history"), ranking, HEADS[int(ranking["alpha"].idxmax())])


def tune_head(run: Run) -> Study:
    """The study of how to train the chosen head on the feature data set, judged by its validation loss."""
    stage = open_stage(run, "7_head_tuning")
    study = new_study(run, stage, HEAD_SPACE, HEAD_FIRST)
    if not stage.done:
        features, head = extract_features(run), search_head(run).head

        def objective(configuration: dict) -> dict:
            return outcome(_fit_head(run, features, head, configuration, description="trial")[1])

        study.run(objective, run.config.head_trials, "Bayesian optimisation 2")
        stage.finish()
    return study


def train_head(run: Run) -> Trained:
    """The chosen head, trained on the feature data set with the configuration of its study's best trial."""
    stage, study = open_stage(run, "8_head"), tune_head(run)
    features, head = extract_features(run), search_head(run).head
    best = study.configuration(study.best["trial"])
    if not stage.done:
        options = {"checkpoint": stage.path("checkpoint.pt"), "description": "final head"}
        store_trained(stage, *_fit_head(run, features, head, best, **options))
    network = head.build(features.train.shape[1], len(features.classes)).to(run.device)
    return load_trained(run, stage, network, best)


def feature_loaders(run: Run, features: Features) -> tuple[DataLoader, DataLoader]:
    """Batches of train features, shuffled, and of validation features."""
    train = FeatureBatches(features.train, features.train_labels)
    validation = FeatureBatches(features.validation, features.validation_labels)
    return loader(train, run.config.batch_size, torch.Generator()), loader(validation, run.config.batch_size)


def _fit_head(
    run: Run, features: Features, head: Head, configuration: dict, **options
) -> tuple[nn.Module, pd.DataFrame]:
    """The `head` trained with `configuration`, and its learning curves."""
    network = seeded(run.config.seed, lambda: head.build(features.train.shape[1], len(features.classes))).to(run.device)
    optimizer = make_optimizer(network, **configuration)
    options |= {"seed": run.config.seed, "device": run.device}
    return network, fit(network, optimizer, *feature_loaders(run, features), run.config.head_epochs, **options)
