"""Stages 2 to 4: the backbone finetuned at the report's first point, the study of how to finetune, the race."""

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

import pandas as pd
import torch

from fomo.artifacts import Run, Stage
from fomo.config import Config
from fomo.networks.backbones import check_sides, load_backbone
from fomo.networks.classifier import Classifier
from fomo.networks.heads import LINEAR
from fomo.stages.common import Trained, load_trained, new_study, open_stage, outcome, seeded, store_trained
from fomo.stages.preprocessing import Preprocessed, image_loader, preprocess
from fomo.study.space import Choice, Float, Space
from fomo.study.study import Study
from fomo.study.trials import InProcess
from fomo.training.loop import DivergedError, fit, make_optimizer

# The report's search space. Momentum acts under sgd only.
FINETUNING_SPACE = Space(
    lr=Float(1e-6, 1e-1, log=True),
    momentum=Float(0.1, 0.9, when=("optimizer", "sgd")),
    weight_decay=Float(0.0, 1e-2),
    optimizer=Choice(("adam", "sgd", "rmsprop")),
    layer=Choice((2, 3, 4)),  # weights are fixed until this stage of the backbone
)
LEAST_JUDGES = 1000  # validation images of a trial, if there are so many: fewer tell configurations apart too badly
FINETUNING_FIRST = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.0, "optimizer": "sgd", "layer": 4}


def finetune(run: Run) -> Trained:
    """The backbone finetuned at the report's first point: what the search that follows has to beat."""
    stage = open_stage(run, "2_finetuning")
    if not stage.done:
        _check_sides(run)
        options = {"checkpoint": stage.path("checkpoint.pt"), "description": "finetuning"}
        store_trained(stage, *_train(run, FINETUNING_FIRST, run.config.first_epochs, **options))
    return _load(run, stage, FINETUNING_FIRST)


def optimize_finetuning(run: Run, executor: Callable[[], Executor] = InProcess, workers: int = 1) -> Study:
    """The study of how to finetune: a trial trains for `trial_epochs` and is judged by its validation loss.

    Trials run one after another in this process, or, up to `workers` at a time, on what `executor` makes.
    """
    stage, config = open_stage(run, "3_bayesian_optimization"), run.config
    study = new_study(run, stage, FINETUNING_SPACE, FINETUNING_FIRST)
    if not stage.done:
        _check_sides(run)
        options = {"prune": config.prune, "time_limit": config.trial_seconds, "executor": executor, "workers": workers}
        study.run(partial(finetuning_trial, run), config.trials, "Bayesian optimisation 1", **options)
        stage.finish()
    return study


def _check_sides(run: Run) -> None:
    """Raises `UserError` unless the backbone can see the images of all that follows."""
    config = run.config
    sides = {config.image_size, config.trial_size or config.image_size}
    sides |= {round(config.train_scale * side) for side in sides}
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


def race(run: Run) -> pd.DataFrame:
    """The study's best trials (`finalists`), trained for `race_epochs` on `race_share` of the train images, or in full
    if `race_epochs` is 0: trial, layer, losses and accuracy at the epoch kept. The first row is the winner, which is
    in the end trained in full.

    An epoch ranks configurations only roughly, and the best of 30 owes something to luck: so a few are trained on, and
    the best of them is taken (compare "Is One Epoch All You Need", arXiv:2307.15422).
    """
    study, stage, config = optimize_finetuning(run), open_stage(run, "4_best_finetuning"), run.config
    if not stage.done:
        rows, best, seconds = [], None, {}
        trials = finalists(study, config)
        for trial in trials:
            options = {"checkpoint": stage.path(f"checkpoint_{trial}.pt"), "description": f"race, trial {trial}"}
            options |= {"share": config.race_share} if config.race_epochs else {}
            try:
                racer, history = _train(run, study.configuration(trial), config.race_epochs or config.epochs, **options)
            except DivergedError:
                if not rows and trial == trials[-1]:
                    raise
                continue
            rows.append({"trial": trial, "layer": study.configuration(trial)["layer"]} | outcome(history, config.keep))
            seconds[trial] = history.attrs["seconds"]
            if all(rows[-1]["objective"] < row["objective"] for row in rows[:-1]):  # of equals the first, as below
                best = racer, history
        table = pd.DataFrame(rows).sort_values("objective", kind="stable")
        if config.race_epochs:
            options = {"checkpoint": stage.path("checkpoint.pt"), "description": "the winner in full"}
            best = _train(run, study.configuration(table["trial"].iloc[0]), config.epochs, **options)
        else:  # the winner's part in the race is its training
            seconds[table["trial"].iloc[0]] = 0.0
        stage.save_table("race", table)
        store_trained(stage, *best, race_seconds=sum(seconds.values()))
    return stage.table("race")


def finalists(study: Study, config: Config) -> list[int]:
    """The numbers of the trials that the race is between, the best first: as many of each `layer`, or of all."""
    ranked = study.top(config.trials)
    if config.finalists_per_layer:
        ranked = ranked.groupby([study.configuration(trial)["layer"] for trial in ranked["trial"]])
    return ranked.head(config.finalists)["trial"].tolist()


def finetune_best(run: Run) -> Trained:
    """The winner of the race between the study's best trials: the backbone of all that follows."""
    trial = race(run)["trial"].iloc[0]
    configuration = optimize_finetuning(run).configuration(trial)
    return _load(run, open_stage(run, "4_best_finetuning"), configuration)


def _train(run: Run, configuration: dict, epochs: int, **options) -> tuple[Classifier, pd.DataFrame]:
    """A classifier trained with `configuration`, and its learning curves."""
    data = preprocess(run)
    classifier = untrained(run, data)
    return classifier, fit_images(run, data, classifier, configuration, epochs, **options)


def untrained(run: Run, data: Preprocessed) -> Classifier:
    """The backbone with its given weights and a new linear layer, the same for the same seed."""

    def build() -> Classifier:
        backbone = load_backbone(run.config.backbone, run.config.weights, run.config.image_size)
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
    classifier.backbone.fix_until(settings.pop("layer"))
    batches = image_loader(run, train, classifier.backbone, torch.Generator(), side=side)
    judges = image_loader(run, validation, classifier.backbone, side=side)
    recipe = {"schedule": config.schedule, "label_smoothing": config.label_smoothing, "mixup": config.mixup}
    recipe |= {"averaging": config.averaging, "seed": config.seed, "device": run.device}
    optimizer = make_optimizer(classifier, **settings)
    return fit(classifier, optimizer, batches, judges, epochs, **recipe | {"keep": config.keep} | options)


def _load(run: Run, stage: Stage, configuration: dict) -> Trained:
    """The classifier that was trained with `configuration` and stored."""
    classifier = untrained(run, preprocess(run))
    classifier.backbone.fix_until(configuration["layer"])
    return load_trained(run, stage, classifier, configuration, run.config.keep)
