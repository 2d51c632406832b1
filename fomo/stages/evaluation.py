"""Stage 12: the test split, read once, for the final model and for everything that it has to be better than."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from fomo.artifacts import Run, Stage
from fomo.config import UserError
from fomo.data.tables import HIDDEN
from fomo.networks.backbones import Backbone
from fomo.networks.classifier import Network, average
from fomo.networks.inference import predict
from fomo.stages import metrics
from fomo.stages.common import open_stage, step
from fomo.stages.final import compose
from fomo.stages.finetuning import finetune
from fomo.stages.head_search import train_head
from fomo.stages.preprocessing import image_loader, preprocess, read_pixels
from fomo.stages.probing import probe
from fomo.stages.racing import finetune_best
from fomo.storage import new_array
from fomo.training import calibration

MODEL = "model.safetensors"  # the best model of a run, in its folder


@dataclass(frozen=True)
class Evaluation:
    """Results on the test split, or, where its labels are hidden, on validation (`split` says which): `metrics` of the
    final model and its baselines with intervals, `per_class`, `confusion` (rows: true class), `predictions` (a row an
    image; `row` is its place in `pixels`), `validation` (the final model's metrics there), `calibration` (what its
    probabilities are worth, as they come and calibrated), and `model_path`. On validation images the final model is its
    first network alone: further ones were trained on them."""

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
        left_out = read_pixels(run, data.dataset, test["file"], stage.path("test.npy"))
        rows = np.flatnonzero(~test["file"].isin(left_out["file"]))
        if not len(rows):
            stage.path("test.npy").unlink()  # or repaired ones would be refused as another data set
            raise UserError(f"none of the {len(test)} test images of {data.dataset.name} can be read; repair them")
        stage.save_table("left_out", left_out)
        stage.save_table("files", data.dataset.listed("test"))
        shown, images = (stage.array("test"), rows, test["label"].to_numpy()[rows]), test.iloc[rows]
        model, validation = compose(run).model, data.part("validation")
        networks, temperatures = model.classifier.networks, model.classifier.temperatures
        decide = model.classifier.decide
        first, others = _judge_first(run, networks[0], shown)
        validated, others_validated = _judge_first(run, networks[0], validation)  # further ones have learned from these
        outputs = [first, *(_judge(run, network, shown) for network in networks[1:])]
        logits = average(outputs, temperatures)
        _store_predictions(stage, test, rows, decide(logits), classes)
        on_validation = average([validated], temperatures[:1])
        if split == "validation":
            shown, images, outputs = validation, data.images[data.images["split"] == "validation"], [validated]
            logits, others = on_validation, others_validated
        predictions = {"majority class": metrics.predict_majority(data.part("train")[2], len(shown[1]))}
        predictions |= {name: one.argmax(1).numpy() for name, one in others.items()}
        if len(outputs) > 1:
            predictions |= {"one network": decide(average(outputs[:1], temperatures[:1]))[0]}
        if any(model.classifier.handicaps):
            predictions |= {"most probable class": logits.argmax(1).numpy()}
        predictions["final"], confidence = decide(logits)
        options = {"classes": len(classes), "resamples": config.bootstrap, "seed": config.seed}
        stage.save_table("metrics", metrics.measure(shown[2], predictions, **options))
        stage.save_table("validation", metrics.measure(validation[2], {"final": decide(on_validation)[0]}, **options))
        as_they_come = average(outputs, [1.0] * len(outputs)).numpy()
        sure = {"as they come": as_they_come, "calibrated": logits.numpy()}
        stage.save_table("calibration", _calibration(shown[2], sure))
        columns = images[["file", "label"]].assign(row=shown[1], **predictions)
        stage.save_table("scored", columns.assign(confidence=confidence))
        model.save(run.folder / MODEL)
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


def _judge(run: Run, network: nn.Module, part: tuple) -> torch.Tensor:
    """What a network with a backbone computes of the images of a part: logits (..., images, classes)."""
    return predict(network, image_loader(run, part, network.backbone), run.device)[0]


def _judge_first(run: Run, network: Network, part: tuple) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The logits of the final model's first `network` for the images of a part, and those of what it has to be better
    than, step by step: the probe, the finetuned network, with the searched head."""
    tested, searched, first = probe(run), train_head(run), finetune(run)
    finetuned = finetune_best(run).model
    heads = {"finetuned": finetuned.head} | ({"with searched head": searched.model} if searched else {})
    if compose(run).chosen["heads"] == "probe":
        final, of_probe = _judge(run, Steps(network, [tested.head]), part)
        _, *of_heads = _judge(run, Steps(Network(finetuned.backbone, [finetuned.head]), list(heads.values())), part)
    else:
        final, *of_heads = _judge(run, Steps(network, list(heads.values())), part)
        of_probe = _judge(run, tested.model, part)
    others = {"probe": of_probe} | ({"finetuned, first point": _judge(run, first.model, part)} if first else {})
    return final, others | dict(zip(heads, of_heads, strict=True))


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
    """predictions.csv (file, prediction, class, confidence) of the images in `rows` of the test table, and
    predictions.npy: a number for each of its lines, -1 where the image cannot be read."""
    prediction, confidence = decided
    names = [classes[number] for number in prediction]
    table = pd.DataFrame({"file": test["file"].to_numpy()[rows], "prediction": prediction, "class": names})
    stage.save_table("predictions", table.assign(confidence=confidence))
    with new_array(stage.path("predictions.npy"), (len(test),), np.int64) as store:
        store[:] = -1
        store[rows] = prediction
