"""Stages 7 to 9: DARTS over the candidate heads, the study of the chosen one, the final head."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from fomo.artifacts import Run, Stage
from fomo.config import Config
from fomo.data.batches import loader
from fomo.networks.bank import HeadBank
from fomo.networks.heads import HEADS, LINEAR, Head
from fomo.networks.inference import predict
from fomo.stages import selection
from fomo.stages.common import Trained, load_trained, new_study, open_stage, outcome, seeded, step, store_trained
from fomo.stages.features import Features, extract_features, feature_loaders, sample_features
from fomo.stages.planning import budget
from fomo.storage import read_json, write_json
from fomo.study.space import Choice, Float, Space
from fomo.study.study import Study
from fomo.training import darts
from fomo.training.bank_training import fit_bank
from fomo.training.darts import MixedOperation
from fomo.training.halving import best_epochs, successive_halving
from fomo.training.loop import DivergedError, fit, make_optimizer

# The report's search space. Momentum acts under sgd only.
HEAD_SPACE = Space(
    lr=Float(1e-6, 1e-2, log=True),
    momentum=Float(0.1, 0.9, when=("optimizer", "sgd")),
    weight_decay=Float(1e-6, 1e-2, log=True),
    optimizer=Choice(("adam", "sgd", "rmsprop")),
)
HEAD_FIRST = {"lr": 1e-3, "momentum": None, "weight_decay": 1e-4, "optimizer": "adam"}  # ours: the report names none


@dataclass(frozen=True)
class HeadSearch:
    """What the search found: `history` (the first search's supernet and alphas after each epoch), `ranking` of the 37
    operations, `rules` (what each way to choose is worth), and the `head` to go on with, by the run's `selection`;
    `choice` tells how it came to it."""

    history: pd.DataFrame
    ranking: pd.DataFrame
    rules: pd.DataFrame
    head: Head
    choice: pd.Series


@step("7_darts", "darts_epochs")
def search_head(run: Run) -> HeadSearch | None:
    """DARTS over the 37 operations, each of them trained alone, and other ways to choose, all with several seeds; with
    fewer where a run with minutes is late. None where the run leaves it out."""
    stage, config = open_stage(run, "7_darts"), run.config
    if not stage.done:
        searched, late = [], budget(run, "search_head")
        seeds = run.clock.decisions.get("head seeds", config.head_seeds)
        while len(searched) < seeds and not (searched and late()):
            searched.append(_search_once(run, stage, config.seed + len(searched)))
        run.clock.decide("head seeds", lambda: len(searched))
        history, scores, costs, correct = zip(*searched, strict=True)
        scores, correct = pd.concat(scores), np.stack(correct)
        ranking = selection.rank(scores, config.seed)
        names = {"name": [head.name for head in HEADS], "activation": [head.activation for head in HEADS]}
        stage.save_table("ranking", ranking.assign(**names))
        stage.save_table("history", history[0])
        stage.save_table("scores", scores)
        stage.save_table("rules", selection.judge(scores, pd.concat(costs), correct, HEADS.index(LINEAR)))
        chosen = selection.choose(scores, config.selection, config.seed)
        write_json(stage.path("choice.json"), _take(config, chosen, correct))
        stage.finish()
        for checkpoint in stage.folder.glob("*.pt"):
            checkpoint.unlink()
    choice = read_json(stage.path("choice.json"))
    head = Head(**choice.pop("head"))
    tables = (stage.table(name) for name in ("history", "ranking", "rules"))
    return HeadSearch(*tables, head, pd.Series(choice))


def search_alphas(
    run: Run, seed: int, checkpoint: Path, operation: Callable[[HeadBank], MixedOperation] = MixedOperation, **options
) -> tuple[MixedOperation, pd.DataFrame]:
    """DARTS over the 37 operations, once: the supernet in the end, an `operation`, and its history; `options` (those of
    `darts.search`) replace the run's."""
    config, features = run.config, sample_features(run)
    train, validation = feature_loaders(run, features)
    shuffled = loader(validation.dataset, config.batch_size, torch.Generator())
    supernet = operation(new_bank(run, features, HEADS, seed)).to(run.device)
    rates = {"weight_lr": config.weight_lr, "alpha_lr": config.alpha_lr}
    options = rates | options | {"seed": seed, "device": run.device, "checkpoint": checkpoint}
    return supernet, darts.search(supernet, train, shuffled, config.darts_epochs, **options)


def _search_once(run: Run, stage: Stage, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, np.ndarray]:
    """One seed's search and trainings over the 37: history, scores of each rule, its seconds, and which validation
    images each operation, trained alone, classifies correctly (operations, images)."""
    config, features, device = run.config, sample_features(run), run.device
    train, validation = feature_loaders(run, features)
    supernet, history = search_alphas(run, seed, stage.path(f"supernet_{seed}.pt"))
    bank, checkpoint = new_bank(run, features, HEADS, seed), stage.path(f"alone_{seed}.pt")
    curves, logits, labels = train_alone(run, features, bank, seed, checkpoint=checkpoint)
    start = time.perf_counter()
    options = {"lr": config.alone_lr, "seed": seed, "device": device}
    survival = successive_halving(
        new_bank(run, features, HEADS, seed), train, validation, config.alone_epochs, **options
    )
    seconds = {"alpha": history.attrs["seconds"], "halving": time.perf_counter() - start}
    seconds |= {"perturbation": seconds["alpha"], "alone": curves.attrs["seconds"]}
    seconds["one epoch"] = seconds["alone"] / config.alone_epochs
    scores = pd.DataFrame(
        {
            "seed": seed,
            "operation": range(len(HEADS)),
            "alpha": supernet.alpha.detach().cpu().double().numpy(),  # as in the history, to the last digit
            "perturbation": darts.perturbation(supernet, validation, device),
            "one epoch": curves.loc[curves["epoch"] == 1, "validation_accuracy"].to_numpy(),
            "halving": survival,
            "alone": best_epochs(curves),
        }
    )
    costs = pd.DataFrame({"seed": seed, "rule": seconds.keys(), "seconds": seconds.values()})
    return history, scores, costs, (logits.argmax(-1) == labels).numpy()


def _take(config: Config, chosen: int, correct: np.ndarray) -> dict:
    """The choice between the operation that was chosen and the linear one, and why, by which validation images each is
    right on: `correct` (seeds, operations, images)."""
    ours, linear = correct[:, chosen], correct[:, HEADS.index(LINEAR)]
    accuracy, p = (float(ours.mean()), float(linear.mean())), selection.paired_test(ours, linear)
    beaten = accuracy[0] > accuracy[1] and p < 0.05
    head = LINEAR if config.keep_linear and not beaten else HEADS[chosen]
    row = {"rule": config.selection, "chosen": HEADS[chosen].name, "accuracy": accuracy[0], "linear": accuracy[1]}
    return row | {"p": p, "taken": head.name, "head": asdict(head)}


def new_bank(run: Run, features: Features, heads: list[Head], seed: int) -> HeadBank:
    """The heads with initial weights drawn from `seed`, in a bank."""
    build = partial(HeadBank, heads, features.train.shape[1], len(features.classes))
    return seeded(seed, build).to(run.device)


def train_alone(
    run: Run, features: Features, bank: HeadBank, seed: int, **options
) -> tuple[pd.DataFrame, torch.Tensor, torch.Tensor]:
    """Trains each head of `bank` as if alone, for `alone_epochs`: learning curves, logits of the validation images
    (heads, images, classes), and their labels (images)."""
    train, validation = feature_loaders(run, features)
    adam = [{"optimizer": "adam", "lr": run.config.alone_lr, "weight_decay": 0.0}] * len(bank.heads)
    options |= {"seed": seed, "device": run.device, "description": f"{len(bank.heads)} heads alone, seed {seed}"}
    curves = fit_bank(bank, adam, train, validation, run.config.alone_epochs, **options)
    return curves, *predict(bank, validation, run.device)


@step("8_head_tuning", "darts_epochs", "head_trials")
def tune_head(run: Run) -> Study | None:
    """The study of how to train the chosen head on the feature data set, judged by its validation loss; `head_batch`
    trials are trained at once, in a bank. None where the run leaves it out."""
    stage, config = open_stage(run, "8_head_tuning"), run.config
    study = new_study(run, stage, HEAD_SPACE, HEAD_FIRST)
    if not stage.done:
        features, head = sample_features(run), search_head(run).head

        def objective(configurations: list[dict]) -> list[dict]:
            module = seeded(config.seed, lambda: head.build(features.train.shape[1], len(features.classes)))
            heads, modules = [head] * len(configurations), [module] * len(configurations)
            bank = HeadBank(heads, features.train.shape[1], len(features.classes), modules=modules).to(run.device)
            loaders = feature_loaders(run, features)
            options = {"seed": config.seed, "device": run.device, "description": f"{len(heads)} trials"}
            try:
                curves = fit_bank(bank, configurations, *loaders, config.head_epochs, **options)
            except DivergedError:  # all of them
                return [{"objective": math.inf} for _ in heads]
            return [outcome(curves[curves["model"] == number]) for number in range(len(heads))]

        trials, enough = run.clock.decisions.get("head trials", config.head_trials), budget(run, "tune_head")
        study.run_batches(objective, trials, config.head_batch, "Bayesian optimisation 2", enough=enough)
        run.clock.decide("head trials", lambda: len(study.trials))
        stage.finish()
    return study


@step("9_head", "darts_epochs")
def train_head(run: Run) -> Trained | None:
    """The chosen head, trained on the feature data set with the configuration of its study's best trial. None where
    the run leaves it out."""
    stage, study = open_stage(run, "9_head"), tune_head(run)
    features, head = extract_features(run), search_head(run).head
    best = study.configuration(study.best["trial"]) if study else HEAD_FIRST
    if not stage.done:
        options = {"checkpoint": stage.path("checkpoint.pt"), "description": "final head"}
        store_trained(stage, *fit_head(run, features, head, best, **options))
    network = head.build(features.train.shape[1], len(features.classes)).to(run.device)
    return load_trained(run, stage, network, best)


def fit_head(
    run: Run, features: Features, head: Head, configuration: dict, **options
) -> tuple[nn.Module, pd.DataFrame]:
    """The `head` trained with `configuration`, and its learning curves."""
    network = seeded(run.config.seed, lambda: head.build(features.train.shape[1], len(features.classes))).to(run.device)
    optimizer = make_optimizer(network, **configuration)
    options |= {"seed": run.config.seed, "device": run.device}
    return network, fit(network, optimizer, *feature_loaders(run, features), run.config.head_epochs, **options)
