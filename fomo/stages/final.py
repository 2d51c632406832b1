"""Stage 10: what the final model is made of (heads, views of an image), its calibration, and when it names a class."""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from fomo.artifacts import Run
from fomo.model import Model
from fomo.networks.classifier import FinalClassifier, Network, view
from fomo.networks.heads import LINEAR
from fomo.networks.inference import predict
from fomo.stages import metrics
from fomo.stages.common import open_stage
from fomo.stages.ensemble import Member, train_members
from fomo.stages.head_search import search_head
from fomo.stages.preprocessing import Preprocessed, image_loader, preprocess

HEADS = ("searched", "finetuned", "both")  # the searched and tuned one; the backbone's own linear layer; their mean
VIEWS = (1, 2, 8)  # the image; also its mirror image; both also turned, if the network was trained on turned images
TURNED = 90.0  # from this `rotation` in training on, in degrees
ADJUSTMENTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the logarithm of a class's share of the train images: its handicap


@dataclass(frozen=True)
class Final:
    """The final `model`, and the `options` that it was chosen from: heads, views, temperature, and on the validation
    images loss (calibrated), accuracy, macro F1, calibration error before and after, of several networks their means,
    each on its own validation images; `chosen` is the row taken. `decisions`: what naming rare classes more often makes
    of that option: adjustment (the first row: none), accuracy, macro F1; `adjustment` is the one taken."""

    model: Model
    options: pd.DataFrame
    chosen: pd.Series
    decisions: pd.DataFrame
    adjustment: float


def compose(run: Run) -> Final:
    """The final model: of the searched head and one view, or, if `final` is validation, of what is best there.

    What is best has the least validation loss once each option is calibrated: of all measures that one tells options
    apart with the fewest images. Then that adjustment is taken which has the best macro F1, of those that do not cost
    accuracy. Of equals the first, which is the simplest.
    """
    stage, members, data = open_stage(run, "10_final"), train_members(run), preprocess(run)
    if not stage.done:
        tables = [judge_options(run, member).assign(network=number) for number, member in enumerate(members, start=1)]
        stage.save_table("options", pd.concat(tables))
        stage.finish()
    of_all, keys = stage.table("options"), ["heads", "views", "adjustment"]
    means = of_all.drop(columns="network").groupby(keys, sort=False, as_index=False).mean()
    options = means[means["adjustment"] == 0].drop(columns="adjustment").reset_index(drop=True)
    chosen = options.loc[options["validation_loss"].idxmin() if run.config.final == "validation" else 0]
    decisions = _taken(means, chosen)[["adjustment", "validation_accuracy", "macro F1"]].reset_index(drop=True)
    adjustment = choose_adjustment(decisions) if run.config.final == "validation" else 0.0
    temperatures = limit(_taken(of_all[of_all["adjustment"] == 0], chosen)["temperature"].tolist())
    heads = {"searched": [search_head(run).head], "finetuned": [LINEAR]}
    heads["both"] = heads["searched"] + heads["finetuned"]
    description = {"backbone": run.config.backbone, "heads": [asdict(head) for head in heads[chosen["heads"]]]}
    description |= {"views": int(chosen["views"]), "temperatures": temperatures}
    description |= {"handicaps": (adjustment * log_shares(data)).tolist(), "classes": data.dataset.classes}
    description |= {"image_size": run.config.image_size, "crop": run.config.crop, "channels": data.pixels.shape[1]}
    networks = [put_together(member, chosen["heads"], description["views"]) for member in members]
    classifier = FinalClassifier(networks, temperatures, description["handicaps"])
    return Final(Model(classifier.eval(), description), options, chosen, decisions, adjustment)


def _taken(table: pd.DataFrame, chosen: pd.Series) -> pd.DataFrame:
    return table[(table["heads"] == chosen["heads"]) & (table["views"] == chosen["views"])]


def limit(temperatures: list[float]) -> list[float]:
    """The temperatures of the networks in their mean, from those that calibrate each of them alone: the same for one
    network, at most 1 for several.

    The mean of several is less sure of itself than each is. If each were made less sure as well, the mean would be too
    unsure (Rahaman and Thiery, arXiv:2007.08792); and no images are new to all of them, to calibrate it by.
    """
    return temperatures if len(temperatures) == 1 else [min(temperature, 1.0) for temperature in temperatures]


def choose_adjustment(decisions: pd.DataFrame) -> float:
    """The adjustment of best macro F1, of those with at least the accuracy of the first row, which has none."""
    accuracy = decisions["validation_accuracy"]
    allowed = decisions[accuracy > accuracy.iloc[0] - 1e-9]  # equal means of several networks may differ by rounding
    return float(allowed.loc[allowed["macro F1"].idxmax(), "adjustment"])


def log_shares(data: Preprocessed) -> np.ndarray:
    """The logarithm of each class's share of the train images (classes)."""
    labels = data.part("train")[2]
    return np.log(np.bincount(labels, minlength=len(data.dataset.classes)) / len(labels))


def judge_options(run: Run, member: Member) -> pd.DataFrame:
    """What each option is worth on the validation images of a network, with each adjustment: a row each."""
    pixels, rows, labels = member.data.part("validation")
    batches = image_loader(run, (pixels, rows, labels), member.network.backbone)
    allowed = VIEWS if run.config.rotation >= TURNED else VIEWS[:2]
    seen = [predict(Seen(member.network.backbone, number), batches, run.device)[0] for number in range(1, allowed[-1])]
    views = [torch.tensor(member.features).to(run.device), *(features.to(run.device) for features in seen)]
    table, shares = [], log_shares(member.data)
    for number in allowed:
        for name in HEADS:
            network, option = put_together(member, name).eval(), {"heads": name, "views": number}
            with torch.inference_mode():
                logits = network.judge(views[:number]).double().cpu().numpy()
            worth = judge(labels, logits)
            for adjustment in ADJUSTMENTS:
                named = (logits / worth["temperature"] - adjustment * shares).argmax(1)
                table.append(option | {"adjustment": adjustment} | worth | score(labels, named, len(shares)))
    return pd.DataFrame(table)


def put_together(member: Member, heads: str, views: int = 1) -> Network:
    """A network of the final model, with the heads that are called so."""
    of = {"searched": [member.head], "finetuned": [member.network.head], "both": [member.head, member.network.head]}
    return Network(member.network.backbone, of[heads], views)


class Seen(nn.Module):
    """A backbone that sees a view of each image (`classifier.view`): (images, 3, side, side) -> (images, features)."""

    def __init__(self, backbone: nn.Module, number: int):
        super().__init__()
        self.backbone = backbone
        self.number = number

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone(view(images, self.number))


def judge(labels: np.ndarray, logits: np.ndarray) -> dict:
    """What the probabilities of an option are worth on validation, calibrated there."""
    temperature = metrics.fit_temperature(labels, logits)
    return {
        "temperature": temperature,
        "validation_loss": metrics.log_loss(labels, logits / temperature),
        "calibration_error_before": metrics.calibration_error(labels, logits),
        "calibration_error": metrics.calibration_error(labels, logits / temperature),
    }


def score(labels: np.ndarray, named: np.ndarray, classes: int) -> dict:
    """What the classes named are worth."""
    confusion = metrics.confusion(labels, named, list(range(classes)))
    values = dict(zip(metrics.METRICS, metrics.scores(confusion.to_numpy()), strict=True))
    return {"validation_accuracy": float(values["accuracy"]), "macro F1": float(values["macro F1"])}
