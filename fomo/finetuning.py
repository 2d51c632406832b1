"""Stages 2 to 4: the backbone finetuned at the report's first point, the study of how to finetune, its best trial."""

import torch

from fomo.artifacts import Run, Stage
from fomo.backbones import load_backbone
from fomo.classifier import Classifier
from fomo.heads import LINEAR
from fomo.preprocessing import Preprocessed, image_loader, preprocess
from fomo.stages import Trained, load_trained, new_study, open_stage, outcome, seeded, store_trained
from fomo.training import fit, make_optimizer
from fomo.tuning import Choice, Float, Study

# The report's search space. Momentum acts under sgd only.
FINETUNING_SPACE = {
    "lr": Float(1e-6, 1e-1, log=True),
    "momentum": Float(0.1, 0.9, when=("optimizer", "sgd")),
    "weight_decay": Float(0.0, 1e-2),
    "optimizer": Choice(("adam", "sgd", "rmsprop")),
    "layer": Choice((2, 3, 4)),  # weights are fixed until this stage of the backbone
}
FINETUNING_FIRST = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.0, "optimizer": "sgd", "layer": 4}


def finetune(run: Run) -> Trained:
    """The backbone finetuned at the report's first point: what the search that follows has to beat."""
    return _finetune(run, open_stage(run, "2_finetuning"), FINETUNING_FIRST, "finetuning")


def optimize_finetuning(run: Run) -> Study:
    """The study of how to finetune: a trial trains for `trial_epochs` and is judged by its validation loss."""
    stage, config = open_stage(run, "3_bayesian_optimization"), run.config
    study = new_study(run, stage, FINETUNING_SPACE, FINETUNING_FIRST)
    if not stage.done:
        data = preprocess(run)

        def objective(configuration: dict) -> dict:
            classifier = untrained(run, data)
            return outcome(_fit_images(run, data, classifier, configuration, config.trial_epochs, description="trial"))

        study.run(objective, config.trials, "Bayesian optimisation 1")
        stage.finish()
    return study


def finetune_best(run: Run) -> Trained:
    """The backbone finetuned in full with the configuration of the study's best trial."""
    study = optimize_finetuning(run)
    best = study.configuration(study.best["trial"])
    return _finetune(run, open_stage(run, "4_best_finetuning"), best, "finetuning, best trial")


def untrained(run: Run, data: Preprocessed) -> Classifier:
    """The backbone with its given weights and a new linear layer, the same for the same seed."""

    def build() -> Classifier:
        backbone = load_backbone(run.config.backbone, run.config.weights, run.config.image_size)
        return Classifier(backbone, LINEAR.build(backbone.num_features, len(data.dataset.classes)))

    return seeded(run.config.seed, build).to(run.device)


def _fit_images(run: Run, data: Preprocessed, classifier: Classifier, configuration: dict, epochs: int, **options):
    """Finetunes `classifier` with `configuration`, in place; returns its learning curves."""
    settings = dict(configuration)
    classifier.backbone.fix_until(settings.pop("layer"))
    train = image_loader(run, data.part("train"), classifier.backbone, torch.Generator())
    validation = image_loader(run, data.part("validation"), classifier.backbone)
    optimizer = make_optimizer(classifier, **settings)
    options |= {"seed": run.config.seed, "device": run.device}
    return fit(classifier, optimizer, train, validation, epochs, **options)


def _finetune(run: Run, stage: Stage, configuration: dict, description: str) -> Trained:
    """The backbone finetuned in full with `configuration`."""
    data = preprocess(run)
    classifier = untrained(run, data)
    if not stage.done:
        options = {"checkpoint": stage.path("checkpoint.pt"), "description": description}
        store_trained(
            stage, classifier, _fit_images(run, data, classifier, configuration, run.config.epochs, **options)
        )
    classifier.backbone.fix_until(configuration["layer"])
    return load_trained(run, stage, classifier, configuration)
