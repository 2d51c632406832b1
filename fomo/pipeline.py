"""The stages in order. Each loads its result if it is stored; else it computes the stages before it, then its own."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from fomo import darts, evaluation
from fomo.artifacts import Run, Stage
from fomo.backbones import Backbone, load_backbone
from fomo.classifier import Classifier, Model, describe
from fomo.data import FeatureBatches, ImageBatches, load_dataset, loader, split, store_pixels
from fomo.features import store_features
from fomo.heads import HEADS, LINEAR, Head, HeadBank
from fomo.stages import (
    Evaluation,
    Features,
    HeadSearch,
    Preprocessed,
    Trained,
    load_trained,
    open_stage,
    store_trained,
)
from fomo.training import fit, make_optimizer, predict
from fomo.tuning import Choice, Float, Study

# The report's search spaces. Momentum acts under sgd only.
FINETUNING_SPACE = {
    "lr": Float(1e-6, 1e-1, log=True),
    "momentum": Float(0.1, 0.9, when=("optimizer", "sgd")),
    "weight_decay": Float(0.0, 1e-2),
    "optimizer": Choice(("adam", "sgd", "rmsprop")),
    "layer": Choice((2, 3, 4)),  # weights are fixed until this stage of the backbone
}
FINETUNING_FIRST = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.0, "optimizer": "sgd", "layer": 4}
HEAD_SPACE = {
    "lr": Float(1e-6, 1e-2, log=True),
    "momentum": Float(0.1, 0.9, when=("optimizer", "sgd")),
    "weight_decay": Float(1e-6, 1e-2, log=True),
    "optimizer": Choice(("adam", "sgd", "rmsprop")),
}
HEAD_FIRST = {"lr": 1e-3, "momentum": None, "weight_decay": 1e-4, "optimizer": "adam"}  # ours: the report names none


def preprocess(run: Run) -> Preprocessed:
    """The images of the train split, resized and cropped, and divided into train and validation."""
    dataset = load_dataset(run.config.dataset)
    stage = open_stage(run, "1_preprocessing")
    if not stage.done:
        images = split(dataset.train, run.config.validation_share, run.config.seed)
        images = images.sort_values(["split", "file"], ignore_index=True)
        store_pixels(dataset, images["file"], stage.path("pixels.npy"), run.config.image_size, "reading images")
        stage.save_table("images", images)
        stage.finish()
    return Preprocessed(dataset, stage.table("images"), stage.array("pixels"))


def finetune(run: Run) -> Trained:
    """The backbone finetuned at the report's first point: what the search that follows has to beat."""
    return _finetune(run, open_stage(run, "2_finetuning"), FINETUNING_FIRST, "finetuning")


def optimize_finetuning(run: Run) -> Study:
    """The study of how to finetune: a trial trains for `trial_epochs` and is judged by its validation loss."""
    stage, config = open_stage(run, "3_bayesian_optimization"), run.config
    study = _study(run, stage, FINETUNING_SPACE, FINETUNING_FIRST)
    if not stage.done:
        data = preprocess(run)

        def objective(configuration: dict) -> dict:
            classifier = _untrained(run, data)
            return _outcome(_fit_images(run, data, classifier, configuration, config.trial_epochs, description="trial"))

        study.run(objective, config.trials, "Bayesian optimisation 1")
        stage.finish()
    return study


def finetune_best(run: Run) -> Trained:
    """The backbone finetuned in full with the configuration of the study's best trial."""
    study = optimize_finetuning(run)
    best = study.configuration(study.best["trial"])
    return _finetune(run, open_stage(run, "4_best_finetuning"), best, "finetuning, best trial")


def extract_features(run: Run) -> Features:
    """The feature data set: what the finetuned backbone computes of each image, not augmented."""
    stage, data = open_stage(run, "5_features"), preprocess(run)
    if not stage.done:
        backbone = finetune_best(run).model.backbone
        for part in ("train", "validation"):
            batches = _image_loader(run, data.part(part), backbone)
            store_features(backbone, batches, stage.path(f"{part}.npy"), run.device, f"features, {part}")
        stage.finish()
    labels = [data.part(part)[1] for part in ("train", "validation")]
    return Features(stage.array("train"), labels[0], stage.array("validation"), labels[1], data.dataset.classes)


def search_head(run: Run) -> HeadSearch:
    """DARTS over the 37 operations, and, to judge it, each of them trained alone with several seeds."""
    stage, config = open_stage(run, "6_darts"), run.config
    if not stage.done:
        features = extract_features(run)
        train, validation = _feature_loaders(run, features)

        def new_bank(seed: int) -> HeadBank:
            build = lambda: HeadBank(features.train.shape[1], len(features.classes))  # noqa: E731
            return _seeded(seed, build).to(run.device)

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
    study = _study(run, stage, HEAD_SPACE, HEAD_FIRST)
    if not stage.done:
        features, head = extract_features(run), search_head(run).head

        def objective(configuration: dict) -> dict:
            return _outcome(_fit_head(run, features, head, configuration, description="trial")[1])

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


def evaluate(run: Run) -> Evaluation:
    """Everything that the test split tells, read once: the final model, and beside it what each step had reached."""
    config, data = run.config, preprocess(run)
    test, classes = data.dataset.test(), data.dataset.classes
    stage = open_stage(run, "9_evaluation", test=data.dataset.fingerprint("test"))
    if not stage.done:
        store_pixels(data.dataset, test["file"], stage.path("test.npy"), config.image_size, "reading test images")
        part = stage.array("test"), test["label"].to_numpy()
        first, best, head = finetune(run).model, finetune_best(run).model, train_head(run).model
        final = Classifier(best.backbone, head)
        logits = {
            name: predict(model, _image_loader(run, part, model.backbone), run.device)[0]
            for name, model in {"finetuned, first point": first, "finetuned, best trial": best, "final": final}.items()
        }
        predictions = {
            "majority class": evaluation.predict_majority(data.part("train")[1], len(test)),
            "logistic regression, not finetuned": _predict_untuned(run, stage, data, part),
            **{name: values.argmax(1).numpy() for name, values in logits.items()},
        }
        features = extract_features(run)
        validated = predict(head, _feature_loaders(run, features)[1], run.device)[0].argmax(1).numpy()
        options = {"classes": len(classes), "resamples": config.bootstrap, "seed": config.seed}
        stage.save_table("metrics", evaluation.measure(part[1], predictions, **options))
        stage.save_table("validation", evaluation.measure(features.validation_labels, {"final": validated}, **options))
        confidence = logits["final"].softmax(1).max(1).values.numpy()
        stage.save_table("predictions", test.assign(**predictions, confidence=confidence))
        description = describe(config.backbone, search_head(run).head, classes, config.image_size, part[0].shape[1])
        Model(final.cpu(), description).save(stage.path("model.safetensors"))
        stage.finish()
    predictions = stage.table("predictions")
    labels, predicted = predictions["label"].to_numpy(), predictions["final"].to_numpy()
    return Evaluation(
        stage.table("metrics"),
        evaluation.per_class(labels, predicted, classes),
        evaluation.confusion(labels, predicted, classes),
        predictions,
        stage.array("test"),
        stage.table("validation"),
        stage.path("model.safetensors"),
    )


def _seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` makes, with initial weights drawn from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def _image_loader(run: Run, part: tuple, backbone: Backbone, generator: torch.Generator | None = None) -> DataLoader:
    """Batches of (pixels, labels); with a `generator`, shuffled and augmented."""
    batches = ImageBatches(*part, backbone.mean, backbone.std, rotation=run.config.rotation, generator=generator)
    return loader(batches, run.config.batch_size, generator)


def _feature_loaders(run: Run, features: Features) -> tuple[DataLoader, DataLoader]:
    """Batches of train features, shuffled, and of validation features."""
    train = FeatureBatches(features.train, features.train_labels)
    validation = FeatureBatches(features.validation, features.validation_labels)
    return loader(train, run.config.batch_size, torch.Generator()), loader(validation, run.config.batch_size)


def _untrained(run: Run, data: Preprocessed) -> Classifier:
    """The backbone with its given weights and a new linear layer, the same for the same seed."""

    def build() -> Classifier:
        backbone = load_backbone(run.config.backbone, run.config.weights, run.config.image_size)
        return Classifier(backbone, LINEAR.build(backbone.num_features, len(data.dataset.classes)))

    return _seeded(run.config.seed, build).to(run.device)


def _fit_images(run: Run, data: Preprocessed, classifier: Classifier, configuration: dict, epochs: int, **options):
    """Finetunes `classifier` with `configuration`, in place; returns its learning curves."""
    settings = dict(configuration)
    classifier.backbone.fix_until(settings.pop("layer"))
    train = _image_loader(run, data.part("train"), classifier.backbone, torch.Generator())
    validation = _image_loader(run, data.part("validation"), classifier.backbone)
    optimizer = make_optimizer(classifier, **settings)
    options |= {"seed": run.config.seed, "device": run.device}
    return fit(classifier, optimizer, train, validation, epochs, **options)


def _finetune(run: Run, stage: Stage, configuration: dict, description: str) -> Trained:
    """The backbone finetuned in full with `configuration`."""
    data = preprocess(run)
    classifier = _untrained(run, data)
    if not stage.done:
        options = {"checkpoint": stage.path("checkpoint.pt"), "description": description}
        store_trained(
            stage, classifier, _fit_images(run, data, classifier, configuration, run.config.epochs, **options)
        )
    classifier.backbone.fix_until(configuration["layer"])
    return load_trained(run, stage, classifier, configuration)


def _fit_head(
    run: Run, features: Features, head: Head, configuration: dict, **options
) -> tuple[nn.Module, pd.DataFrame]:
    """The `head` trained with `configuration`, and its learning curves."""
    network = _seeded(run.config.seed, lambda: head.build(features.train.shape[1], len(features.classes))).to(
        run.device
    )
    optimizer = make_optimizer(network, **configuration)
    options |= {"seed": run.config.seed, "device": run.device}
    return network, fit(network, optimizer, *_feature_loaders(run, features), run.config.head_epochs, **options)


def _study(run: Run, stage: Stage, space: dict, first: dict) -> Study:
    config = run.config
    return Study(space, stage.path("trials.csv"), seed=config.seed, first=first, initial=config.initial_trials)


def _outcome(history: pd.DataFrame) -> dict:
    """A trial's row in the table: its losses and accuracy at the epoch of lowest validation loss."""
    best = history.loc[history["validation_loss"].idxmin()]
    names = ("train_loss", "validation_loss", "validation_accuracy")
    return {"objective": float(best["validation_loss"])} | {name: float(best[name]) for name in names}


def _predict_untuned(run: Run, stage: Stage, data: Preprocessed, test: tuple) -> np.ndarray:
    """Test predictions of a logistic regression on the features of the backbone as it comes."""
    backbone = _untrained(run, data).backbone
    for name, part in {"train": data.part("train"), "test": test}.items():
        path = stage.path(f"untuned_{name}.npy")
        if not path.exists():
            batches = _image_loader(run, part, backbone)
            store_features(backbone, batches, path, run.device, f"features not finetuned, {name}")
    labels = data.part("train")[1]
    return evaluation.predict_logistic(stage.array("untuned_train"), labels, stage.array("untuned_test"))
