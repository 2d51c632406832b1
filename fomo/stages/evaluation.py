"""Stage 12: the test split, read once, for the final model and for everything that it has to be better than."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from fomo.artifacts import Run, Stage
from fomo.data.tables import HIDDEN
from fomo.networks.backbones import Backbone
from fomo.networks.classifier import Network, average
from fomo.networks.inference import predict
from fomo.stages import metrics
from fomo.stages.common import open_stage, step
from fomo.stages.final import compose
from fomo.stages.finetuning import finetune
from fomo.stages.head_search import train_head
from fomo.stages.preprocessing import image_loader, preprocess, test_images
from fomo.stages.probing import probe
from fomo.stages.racing import finetune_best
from fomo.storage import new_array
from fomo.training import calibration

MODEL = "model.safetensors"  # the best model of a run, in its folder
STEPS = ("probe", "finetuned, first point", "finetuned", "with searched head")  # what the final model is compared with


@dataclass(frozen=True)
class Evaluation:
    """Results on the test split, or, where its labels are hidden, on validation (`split` says which): `metrics` of the
    final model and its baselines with intervals, `per_class`, `confusion` (rows: true class), `predictions` (a row an
    image; `row` is its place in `pixels`), `validation` (the final model's metrics there), `calibration` (what its
    probabilities are worth, on test also as they come), and `model_path`. On validation images the final model is what
    has not learned from them: its first network alone, with the probe as it was before."""

    split: str

    metrics: pd.DataFrame
    per_class: pd.DataFrame
    confusion: pd.DataFrame
    predictions: pd.DataFrame
    pixels: np.ndarray
    validation: pd.DataFrame
    calibration: pd.DataFrame
    model_path: Path


@step("12_evaluation")
def evaluate(run: Run) -> Evaluation:
    """Everything that the test split tells, read once: the final model, and beside it what each step had reached.

    Where the test labels are hidden, the predictions are stored all the same, and the metrics are taken on validation.
    """
    config, data = run.config, preprocess(run)
    test, classes = data.dataset.test(), data.dataset.classes
    stage = open_stage(run, "12_evaluation", test=data.dataset.fingerprint("test"))
    split = "validation" if (test["label"] == HIDDEN).all() else "test"
    if not stage.done:
        seen = test_images(run, data.dataset, data.survey)
        rows = seen.rows
        shown, images = (seen.pixels, rows, test["label"].to_numpy()[rows]), test.iloc[rows]
        final, validation = compose(run), data.part("validation")
        classifier, decide = final.model.classifier, final.model.classifier.decide
        outputs, others = _judge(run, dict(zip(final.networks, classifier.networks, strict=True)), shown)
        logits = classifier.average(outputs)
        _store_predictions(stage, test, rows, decide(logits), classes)
        told = open_stage(run, "11_final").array("told")[: len(validation[1]), 1:]  # by the first network
        on_validation = torch.tensor(told).clamp(min=1e-300).log()
        if split == "validation":
            shown, images, logits = validation, data.images[data.images["split"] == "validation"], on_validation
            outputs, others = [], _judge(run, {}, validation)[1]
        predictions = {"majority class": metrics.predict_majority(data.part("train")[2], len(shown[1]))}
        predictions |= {name: one.argmax(1).numpy() for name, one in others.items()}
        if len(outputs) > 1:
            predictions |= {"one network": decide(average(outputs[:1], classifier.temperatures[:1], [1.0]))[0]}
        if any(classifier.handicaps):
            predictions |= {"most probable class": logits.argmax(1).numpy()}
        predictions["final"], confidence = decide(logits)
        options = {"classes": len(classes), "resamples": config.bootstrap, "seed": config.seed}
        stage.save_table("metrics", metrics.measure(shown[2], predictions, **options))
        stage.save_table("validation", metrics.measure(validation[2], {"final": decide(on_validation)[0]}, **options))
        sure = {"calibrated": logits.numpy()}
        if outputs:
            sure = {"as they come": average(outputs, [1.0] * len(outputs), classifier.weights).numpy()} | sure
        stage.save_table("calibration", _calibration(shown[2], sure))
        columns = images[["file", "label"]].assign(row=shown[1], **predictions)
        stage.save_table("scored", columns.assign(confidence=confidence))
        final.model.save(run.folder / MODEL)
        stage.finish()
    scored = stage.table("scored")
    pixels = test_images(run, data.dataset, data.survey).pixels if split == "test" else data.pixels
    labels, predicted = scored["label"].to_numpy(), scored["final"].to_numpy()
    return Evaluation(
        split,
        stage.table("metrics"),
        metrics.per_class(labels, predicted, classes),
        metrics.confusion(labels, predicted, classes),
        scored,
        pixels,
        stage.table("validation"),
        stage.table("calibration"),
        run.folder / MODEL,
    )


class Steps(nn.Module):
    """A network of the final model, and in the same pass what `heads` make of its features of the image as it is:
    images (batch, 3, side, side) -> logits (1 + heads, batch, classes)."""

    def __init__(self, network: Network, heads: list[nn.Module]):
        super().__init__()
        self.network = network
        self.heads = nn.ModuleList(heads)

    @property
    def backbone(self) -> Backbone:
        return self.network.backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        views = self.network.look(images)
        return torch.stack([self.network.judge(views), *(head(views[0]) for head in self.heads)])


def _judge(run: Run, networks: dict[str, Network], part: tuple) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The logits (images, classes) of the final model's networks for the images of a part, and those of what it has to
    be better than, step by step: the probe, the finetuned network, with the searched head. What has the backbone of one
    of the networks shares its pass."""
    tested, searched, first, finetuned = probe(run), train_head(run), finetune(run), finetune_best(run).model
    heads = {"finetuned": finetuned.head} | ({"with searched head": searched.model} if searched else {})
    steps = {"finetuned": heads, "probe": {"probe": tested.head}}
    alone = {
        "finetuned": Network(finetuned.backbone, [finetuned.head]),
        "probe": Network(tested.backbone, [tested.head]),
    }
    outputs, others = {}, {}
    for name, network in (alone | networks).items():
        of = steps.get(name, {})
        outputs[name], *rest = _logits(run, Steps(network, list(of.values())), part)
        others |= dict(zip(of, rest, strict=True))
    if first:
        others["finetuned, first point"] = _logits(run, first.model, part)
    return [outputs[name] for name in networks], {name: others[name] for name in STEPS if name in others}


def _logits(run: Run, network: nn.Module, part: tuple) -> torch.Tensor:
    """What a network with a backbone computes of the images of a part: logits (..., images, classes)."""
    return predict(network, image_loader(run, part, network.backbone), run.device)[0]


def _calibration(labels: np.ndarray, logits: dict[str, np.ndarray]) -> pd.DataFrame:
    """Loss (mean negative log-likelihood) and expected calibration error of several versions of the probabilities."""
    rows = [
        {
            "probabilities": name,
            "loss": calibration.log_loss(labels, one),
            "calibration_error": metrics.calibration_error(labels, one),
        }
        for name, one in logits.items()
    ]
    return pd.DataFrame(rows)


def _store_predictions(
    stage: Stage, test: pd.DataFrame, rows: np.ndarray, decided: tuple[np.ndarray, np.ndarray], classes: list[str]
) -> None:
    """predictions.csv (file, prediction, class, confidence) of the images in `rows` of the test table, predictions.npy,
    a number for each of its lines, -1 where the image cannot be read, and classes.csv, which names the numbers."""
    prediction, confidence = decided
    names = [classes[number] for number in prediction]
    table = pd.DataFrame({"file": test["file"].to_numpy()[rows], "prediction": prediction, "class": names})
    stage.save_table("predictions", table.assign(confidence=confidence))
    stage.save_table("classes", pd.DataFrame({"number": range(len(classes)), "class": classes}))
    with new_array(stage.path("predictions.npy"), (len(test),), np.int64) as store:
        store[:] = -1
        store[rows] = prediction
