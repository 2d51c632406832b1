"""Stages 3 and 4: the backbone finetuned at the study's first point, and the study of how to finetune."""

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

import pandas as pd
import torch

from fomo.artifacts import Run, Stage
from fomo.config import Config
from fomo.networks.backbones import check_sides
from fomo.networks.classifier import Classifier
from fomo.networks.heads import LINEAR
from fomo.stages.common import Trained, load_trained, new_study, open_stage, outcome, seeded, step, store_trained
from fomo.stages.planning import budget
from fomo.stages.preprocessing import Preprocessed, image_loader, preprocess
from fomo.stages.probing import as_it_comes, probe
from fomo.study.space import Choice, Float, Space
from fomo.study.study import Study
from fomo.study.trials import InProcess
from fomo.training.loop import fit, make_optimizer

# The report's search space. Momentum acts under sgd only.
FINETUNING_SPACE = Space(
    lr=Float(1e-6, 1e-1, log=True),
    momentum=Float(0.1, 0.9, when=("optimizer", "sgd")),
    weight_decay=Float(0.0, 1e-2),
    optimizer=Choice(("adam", "sgd", "rmsprop")),
    layer=Choice((2, 3, 4)),  # weights are fixed until this stage of the backbone
)
# Where the run's recipe is plain, the space holds it, and what is near it: all layers, AdamW.
PLAIN_SPACE = Space(
    lr=Float(1e-4, 1e-2, log=True),
    momentum=Float(0.1, 0.9, when=("optimizer", "sgd")),
    weight_decay=Float(0.0, 1e-1),
    optimizer=Choice(("adamw", "adam", "sgd", "rmsprop")),
    layer=Choice((1, 2, 3, 4)),
)
FULL_RATE = 128  # steps; with fixed statistics, a shorter training takes a part of the learning rate (steps.csv)
LEAST_JUDGES = 1000  # validation images of a trial, if there are so many: fewer tell configurations apart too badly
FINETUNING_FIRST = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.0, "optimizer": "sgd", "layer": 4}
PLAIN = {"momentum": None, "weight_decay": 0.01, "optimizer": "adamw", "layer": 1}


def first_point(config: Config) -> dict:
    """The configuration that the study begins with: the report's, or the plain recipe."""
    return {"lr": config.plain_lr} | PLAIN if config.plain_lr else FINETUNING_FIRST


@step("3_finetuning", "first_epochs")
def finetune(run: Run) -> Trained | None:
    """The backbone finetuned at the study's first point: what the search that follows has to beat. None where the run
    leaves it out."""
    stage = open_stage(run, "3_finetuning")
    if not stage.done:
        _check_sides(run)
        options = {"checkpoint": stage.path("checkpoint.pt"), "description": "finetuning"}
        store_trained(stage, *train(run, first_point(run.config), run.config.first_epochs, **options))
    return load(run, stage, first_point(run.config))


@step("4_bayesian_optimization")
def optimize_finetuning(run: Run, executor: Callable[[], Executor] = InProcess, workers: int = 1) -> Study:
    """The study of how to finetune: a trial trains for `trial_epochs` and is judged by its validation loss.

    Trials run one after another in this process, or, up to `workers` at a time, on what `executor` makes. A run with
    minutes ends the study early where it takes longer than was planned.
    """
    stage, config = open_stage(run, "4_bayesian_optimization"), run.config
    study = new_study(run, stage, PLAIN_SPACE if config.plain_lr else FINETUNING_SPACE, first_point(config))
    if not stage.done and config.trials:
        _check_sides(run)
        options = {"prune": config.prune, "time_limit": config.trial_seconds, "executor": executor, "workers": workers}
        trials, enough = run.clock.decisions.get("trials", config.trials), budget(run, "optimize_finetuning")
        study.run(partial(finetuning_trial, run), trials, "Bayesian optimisation 1", enough=enough, **options)
        run.clock.decide("trials", lambda: len(study.trials))
        stage.finish()
    return study


def _check_sides(run: Run) -> None:
    """Raises `UserError` unless the backbone can see the images of all that follows."""
    config = run.config
    sides = {config.image_size, config.trial_size or config.image_size}
    check_sides(untrained(run, preprocess(run)).backbone, sides)


def finetuning_trial(run: Run, configuration: dict, report: Callable[[float, float], None]) -> dict:
    """A trial's losses and accuracy after `trial_epochs` on `trial_share` of the images, scaled down to `trial_size`;
    `report` is told of it on the way, and may end it. It is judged by `LEAST_JUDGES` validation images or more."""
    data, config = preprocess(run), run.config
    options = {"side": config.trial_size, "description": "trial", "report": report, "keep": "loss"}
    parts = trial_samples(run, data)
    return outcome(fit_parts(run, untrained(run, data), configuration, *parts, config.trial_epochs, **options))


def trial_samples(run: Run, data: Preprocessed) -> tuple[tuple, tuple]:
    """(pixels, rows, labels) of the train images that trials see, and of the validation images that judge them."""
    share, seed = run.config.trial_share, run.config.seed
    judges = max(share, LEAST_JUDGES / len(data.part("validation")[1]))
    return data.sample("train", share, seed), data.sample("validation", judges, seed)


def train(run: Run, configuration: dict, epochs: int, **options) -> tuple[Classifier, pd.DataFrame]:
    """A classifier trained with `configuration`, and its learning curves."""
    data = preprocess(run)
    classifier = untrained(run, data)
    return classifier, fit_images(run, data, classifier, configuration, epochs, **options)


def untrained(run: Run, data: Preprocessed) -> Classifier:
    """The backbone with its given weights and a linear layer: that of the probe (`probe_start`; LP-FT, Kumar et al.,
    arXiv:2202.10054), or a new one, the same for the same seed."""
    classifier = new_classifier(run, data)
    if run.config.probe_start:
        classifier.head.load_state_dict(probe(run).head.state_dict())
    return classifier


def new_classifier(run: Run, data: Preprocessed) -> Classifier:
    """The backbone with its given weights and a new linear layer, the same for the same seed."""

    def build() -> Classifier:
        backbone = as_it_comes(run)
        return Classifier(backbone, LINEAR.build(backbone.num_features, len(data.dataset.classes)))

    return seeded(run.config.seed, build).to(run.device)


def fit_images(
    run: Run,
    data: Preprocessed,
    classifier: Classifier,
    configuration: dict,
    epochs: int,
    *,
    share: float = 1.0,
    **options,
) -> pd.DataFrame:
    """Finetunes `classifier` with `configuration`, in place, on a `share` of the train images, judged by all validation
    images; returns its learning curves."""
    parts = data.sample("train", share, run.config.seed), data.part("validation")
    return fit_parts(run, classifier, configuration, *parts, epochs, **options)


def fit_parts(
    run: Run,
    classifier: Classifier,
    configuration: dict,
    train: tuple,
    validation: tuple,
    epochs: int,
    *,
    side: int = 0,
    **options,
) -> pd.DataFrame:
    """Finetunes `classifier` with `configuration` and the run's recipe, in place, on (pixels, rows, labels) of `train`,
    judged by those of `validation`, all scaled down to `side` pixels unless that is 0; returns its learning curves."""
    settings, config = dict(configuration), run.config
    classifier.backbone.fix_until(settings.pop("layer"), statistics=config.fix_statistics)
    batches = image_loader(run, train, classifier.backbone, torch.Generator(), side=side)
    judges = image_loader(run, validation, classifier.backbone, side=side)
    if config.fix_statistics:
        settings["lr"] *= min(1.0, epochs * len(batches) / FULL_RATE)
    recipe = {"schedule": config.schedule, "label_smoothing": config.label_smoothing, "mixup": config.mixup}
    recipe |= {"averaging": config.averaging, "seed": config.seed, "device": run.device}
    optimizer = make_optimizer(classifier, **settings)
    return fit(classifier, optimizer, batches, judges, epochs, **recipe | {"keep": config.keep} | options)


def load(run: Run, stage: Stage, configuration: dict) -> Trained:
    """The classifier that was trained with `configuration` and stored."""
    classifier = untrained(run, preprocess(run))
    classifier.backbone.fix_until(configuration["layer"])
    return load_trained(run, stage, classifier, configuration, run.config.keep)
