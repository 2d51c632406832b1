"""Which side, fit and network suit the images, and how they may be turned: by frozen features of a part of them."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from fomo.artifacts import Run
from fomo.data.batches import ImageBatches, loader
from fomo.data.datasets import Dataset
from fomo.data.division import divide, sample
from fomo.data.images import store_pixels
from fomo.networks.backbones import Backbone, load_backbone
from fomo.networks.classifier import view
from fomo.stages import metrics
from fomo.stages.facts import Facts
from fomo.training.logistic import fit_linear, score

STRENGTH = 0.1  # scikit-learn's C: of all fits of the contest, so that they differ in the features only
LEARNERS, JUDGES, FEWEST = 1000, 600, 200  # images that are learned from, that judge, and the fewest in all
NARROW = 1.1  # aspect from which on it matters how an image becomes a square
TOLD = 0.7  # the share of upright and turned images of which it may be told which they are: half is a guess
TURNED_SIDE = 160  # pixels at which the turned images are seen at most


@dataclass(frozen=True)
class Contest:
    """What was found: `table`, a row for each candidate (backbone, side, fit, macro_f1, accuracy, log_loss on the
    images that judge, seconds); the `fit`; `turns`, a row for each way to change images (log_loss, difference to the
    images as they are, its standard error, told: how often it is recognised, taken); `flip` as taken."""

    table: pd.DataFrame
    fit: str
    turns: pd.DataFrame
    flip: str


class Part:
    """Some images of the train split, to learn from and to judge by, and what networks make of them."""

    def __init__(self, run: Run, dataset: Dataset, learners: int, judges: int, side: int, folder: Path):
        self.run, self.dataset, self.side, self.folder, self.pixels = run, dataset, side, folder, {}
        train, seed = dataset.train, run.config.seed
        judging = divide(train, run.config.validation_share, seed)
        pick = lambda table, count: table[sample(table[["file", "label"]], min(1, count / len(table)), seed)]  # noqa: E731
        self.images = pd.concat([pick(train[~judging], learners), pick(train[judging], judges)], ignore_index=True)
        self.learns = self.images.index < len(self.images) - len(pick(train[judging], judges))
        self.labels, self.classes = self.images["label"].to_numpy(), len(dataset.classes)

    def features(self, backbone: Backbone, side: int, fit: str, number: int = 0) -> np.ndarray:
        """What `backbone` computes of all images at a side, as a view of them (`classifier.view`)."""
        config = self.run.config
        if fit not in self.pixels:
            path, files = self.folder / f"{fit}.npy", self.images["file"]
            store_pixels(self.dataset, files, path, self.side, "images of the contest", config.crop, fit, channels=3)
            self.pixels[fit] = np.load(path, mmap_mode="r")
        part = self.pixels[fit], range(len(self.images)), self.labels
        options = {"side": side, "device": self.run.device}
        batches = ImageBatches(*part, backbone.mean, backbone.std, **options)
        with torch.inference_mode():
            seen = [backbone(view(images, number)).cpu() for images, _ in loader(batches, config.batch_size)]
        return torch.cat(seen).numpy()

    def fit(self, features: list[np.ndarray]) -> nn.Linear:
        """A logistic regression on the images to learn from, each as often as there are views of them."""
        learned, labels = np.concatenate([one[self.learns] for one in features]), self.labels[self.learns]
        return fit_linear(learned, np.tile(labels, len(features)), self.classes, STRENGTH / len(features))

    def tell(self, upright: np.ndarray, turned: np.ndarray) -> float:
        """How often a logistic regression is right about which of two views of an image it sees."""
        parts = self.learns, ~self.learns
        learned, judged = (np.concatenate([upright[rows], turned[rows]]) for rows in parts)
        labels, truth = (np.repeat([0, 1], len(part) // 2) for part in (learned, judged))
        return score(fit_linear(learned, labels, 2, STRENGTH), judged, truth)["accuracy"]

    def judge(self, layer: nn.Linear, features: np.ndarray) -> tuple[dict, np.ndarray]:
        """What a head is worth on the images that judge, and its loss on each, both calibrated: or who learns from more
        views would seem better only because it is less sure of itself."""
        judged, labels = features[~self.learns], self.labels[~self.learns]
        with torch.inference_mode():
            logits = layer(torch.from_numpy(judged)).double().numpy()
        loss = metrics.losses(labels, logits / metrics.fit_temperature(labels, logits))
        return score(layer, judged, labels) | {"log_loss": float(loss.mean())}, loss


def contest(
    run: Run, dataset: Dataset, facts: Facts, backbones: list[str], sides: list[int], seconds: float, folder: Path
) -> Contest:
    """Compares the candidates on as many images as about `seconds` allow, whose pixels pass through `folder`. The first
    of `backbones` is tried at each of `sides` (pixels, ascending), the others at the middle one; the fits at the middle
    one, too, where images are no squares."""
    first, middle = backbones[0], sides[len(sides) // 2]
    fits = ["crop", "squish", "pad"] if facts.aspect > NARROW and "fit" not in run.asked else [run.config.fit]
    each = sum(1 / facts.pace(first, side, "forward") for side in [*sides, *[middle] * (len(fits) - 1)])
    each += sum(1 / facts.pace(name, middle, "forward") for name in backbones[1:])
    each += len(fits) / facts.decoded + 3 / facts.pace(first, min(TURNED_SIDE, sides[-1]), "forward")
    count = max(FEWEST, min(LEARNERS + JUDGES, int(seconds / each)))
    learners = count * LEARNERS // (LEARNERS + JUDGES)
    part = Part(run, dataset, learners, count - learners, sides[-1], folder)
    rows, loss = [], {}

    def enter(network: Backbone, side: int, fit: str) -> None:
        begun, features = time.perf_counter(), part.features(network, side, fit)
        worth, loss[network.name, side, fit] = part.judge(part.fit([features]), features)
        seconds = time.perf_counter() - begun
        rows.append({"backbone": network.name, "side": side, "fit": fit} | worth | {"seconds": seconds})

    network = load_backbone(first, run.config.weights, sides[0]).to(run.device).eval()
    enter(network, middle, fits[0])
    for fit in fits[1:]:
        enter(network, middle, fit)
    fit = _simplest(fits, [loss[first, middle, fit] for fit in fits])
    for side in sides:
        if side != middle or fit != fits[0]:
            enter(network, side, fit) if (first, side, fit) not in loss else None
    for name in backbones[1:]:
        enter(load_backbone(name, run.config.weights, middle).to(run.device).eval(), middle, fit)
    best = min(
        (side for side in sides if side <= TURNED_SIDE),
        key=lambda side: loss[first, side, fit].mean(),
        default=sides[0],
    )
    turns, flip = _turn(part, network, best, fit)
    for path in folder.glob("*.npy"):
        path.unlink()
    return Contest(pd.DataFrame(rows).sort_values(["backbone", "side"]), fit, turns, flip)


def _simplest(names: list[str], found: list[np.ndarray]) -> str:
    """The first of `names`, unless another one's losses are less by more than a standard error; then the one of least
    loss."""
    best = int(np.argmin([one.mean() for one in found]))
    difference = found[0] - found[best]
    return names[best] if difference.mean() > difference.std() / np.sqrt(len(difference)) else names[0]


def _turn(part: Part, network: Backbone, side: int, fit: str) -> tuple[pd.DataFrame, str]:
    """Which changed images may stand for the image: what a logistic regression loses that learns from them as well.

    Where left and right tell classes apart, mirrored images contradict the others, and the loss on images as they are
    rises. Photographs may be mirrored: so that is done unless the loss rises by more than a standard error. Few images
    may stand upside down: so that is done only where the loss falls, and where a linear layer
    cannot tell them from upright ones. (Of few images the loss falls nearly always, since there are more of them; a
    network that is trained on all loses by it if there is an upright.) Quarter turns, any angle and cut-outs are not
    tried: in trainings of 8 epochs at 96 pixels on Flowers and Skin Cancer they brought nothing, or cost up to three
    points. (Whether they pay in longer ones, and on few images, is open.)
    """
    seen = {0: part.features(network, side, fit)}
    worth, plain = part.judge(part.fit([seen[0]]), seen[0])
    rows, flip = [{"turned": "as it is", "log_loss": worth["log_loss"], "taken": True}], "none"
    for name, numbers in (("mirrored", (0, 1)), ("upside down", (0, 1, 4, 5))):
        seen |= {number: part.features(network, side, fit, number) for number in numbers if number not in seen}
        worth, loss = part.judge(part.fit([seen[number] for number in numbers]), seen[0])
        error = float((loss - plain).std() / np.sqrt(len(loss)))
        difference = float((loss - plain).mean())
        rows.append({"turned": name, "log_loss": worth["log_loss"], "difference": difference, "error": error})
        taken = difference <= error
        if name == "upside down":
            rows[-1]["told"] = part.tell(seen[0], seen[4])
            taken = difference <= 0 and rows[-1]["told"] <= TOLD
        rows[-1]["taken"] = taken
        if not taken:
            break
        flip = "horizontal" if name == "mirrored" else "both"
    return pd.DataFrame(rows), flip
