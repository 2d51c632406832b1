"""Stage 9: the test split, read once, for the final model and for everything that it has to be better than."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fomo import metrics
from fomo.artifacts import Run, Stage, new_array
from fomo.classifier import Classifier, Model, describe
from fomo.datasets import HIDDEN
from fomo.features import store_features
from fomo.finetuning import finetune, finetune_best, untrained
from fomo.head_search import extract_features, feature_loaders, search_head, train_head
from fomo.preprocessing import Preprocessed, image_loader, preprocess, read_pixels
from fomo.stages import open_stage
from fomo.training import predict


@dataclass(frozen=True)
class Evaluation:
    """Results on the test split, or, where its labels are hidden, on validation (`split` says which): `metrics` of the
    final model and its baselines with intervals, `per_class`, `confusion` (rows: true class), `predictions` (a row an
    image; `row` is its place in `pixels`), `validation` (the final model's metrics there), and `model_path`."""

    split: str

    metrics: pd.DataFrame
    per_class: pd.DataFrame
    confusion: pd.DataFrame
    predictions: pd.DataFrame
    pixels: np.ndarray
    validation: pd.DataFrame
    model_path: Path


def evaluate(run: Run) -> Evaluation:
    """Everything that the test split tells, read once: the final model, and beside it what each step had reached.

    Where the test labels are hidden, the predictions are stored all the same, and the metrics are taken on validation.
    """
    config, data = run.config, preprocess(run)
    test, classes = data.dataset.test(), data.dataset.classes
    stage = open_stage(run, "9_evaluation", test=data.dataset.fingerprint("test"))
    split = "validation" if (test["label"] == HIDDEN).all() else "test"
    if not stage.done:
        left_out = read_pixels(run, data.dataset, test["file"], stage.path("test.npy"))
        stage.save_table("left_out", left_out)
        rows = np.flatnonzero(~test["file"].isin(left_out["file"]))
        part = stage.array("test"), rows, test["label"].to_numpy()[rows]
        final = Classifier(finetune_best(run).model.backbone, train_head(run).model)
        logits = predict(final, image_loader(run, part, final.backbone), run.device)[0]
        _store_predictions(stage, test, rows, logits, classes)
        validation = data.images[data.images["split"] == "validation"]
        shown, images = (part, test.iloc[rows]) if split == "test" else (data.part("validation"), validation)
        predictions, confidence = _predict_all(run, stage, data, shown, final)
        options = {"classes": len(classes), "resamples": config.bootstrap, "seed": config.seed}
        stage.save_table("metrics", metrics.measure(shown[2], predictions, **options))
        features = extract_features(run)
        validated = predict(final.head, feature_loaders(run, features)[1], run.device)[0].argmax(1).numpy()
        stage.save_table("validation", metrics.measure(features.validation_labels, {"final": validated}, **options))
        columns = images[["file", "label"]].assign(row=shown[1], **predictions, confidence=confidence)
        stage.save_table("scored", columns)
        shape = config.image_size, config.crop, part[0].shape[1]
        description = describe(config.backbone, search_head(run).head, classes, *shape)
        Model(final.cpu(), description).save(stage.path("model.safetensors"))
        stage.finish()
    scored = stage.table("scored")
    pixels = stage.array("test") if split == "test" else data.pixels
    labels, predicted = scored["label"].to_numpy(), scored["final"].to_numpy()
    return Evaluation(
        split,
        stage.table("metrics"),
        metrics.per_class(labels, predicted, classes),
        metrics.confusion(labels, predicted, classes),
        scored,
        pixels,
        stage.table("validation"),
        stage.path("model.safetensors"),
    )


def _predict_all(
    run: Run, stage: Stage, data: Preprocessed, part: tuple, final: Classifier
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The classes that the final model and what it is compared with predict for `part`; how sure it is."""
    networks = {"finetuned, first point": finetune(run).model, "finetuned, best trial": finetune_best(run).model}
    predictions = {
        "majority class": metrics.predict_majority(data.part("train")[2], len(part[1])),
        "logistic regression, not finetuned": _predict_untuned(run, stage, data, part),
    }
    for name, network in (networks | {"final": final}).items():
        logits, _ = predict(network, image_loader(run, part, network.backbone), run.device)
        predictions[name] = logits.argmax(1).numpy()
    return predictions, logits.softmax(1).max(1).values.numpy()


def _predict_untuned(run: Run, stage: Stage, data: Preprocessed, shown: tuple) -> np.ndarray:
    """Predictions of a logistic regression on the features of the backbone as it comes."""
    backbone = untrained(run, data).backbone
    for name, part in {"train": data.part("train"), "shown": shown}.items():
        path = stage.path(f"untuned_{name}.npy")
        if not path.exists():
            batches = image_loader(run, part, backbone)
            store_features(backbone, batches, path, run.device, f"features not finetuned, {name}")
    labels = data.part("train")[2]
    return metrics.predict_logistic(stage.array("untuned_train"), labels, stage.array("untuned_shown"))


def _store_predictions(
    stage: Stage, test: pd.DataFrame, rows: np.ndarray, logits: torch.Tensor, classes: list[str]
) -> None:
    """predictions.csv (file, prediction, class, confidence) of the images in `rows` of the test table, and
    predictions.npy: a number for each of its lines, -1 where the image cannot be read."""
    confidence, prediction = logits.softmax(1).max(1)
    names = [classes[number] for number in prediction]
    table = pd.DataFrame({"file": test["file"].to_numpy()[rows], "prediction": prediction.numpy(), "class": names})
    stage.save_table("predictions", table.assign(confidence=confidence.numpy()))
    with new_array(stage.path("predictions.npy"), (len(test),), np.int64) as store:
        store[:] = -1
        store[rows] = prediction.numpy()
