"""Which side, fit and network suit the images, and how they may be turned: by frozen features of a part of them."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fomo.artifacts import Run
from fomo.data.batches import ImageBatches, loader
from fomo.data.dataset import Dataset
from fomo.data.division import divide, sample
from fomo.data.images import store_pixels
from fomo.networks.backbones import Backbone, load_backbone
from fomo.networks.classifier import view
from fomo.stages import metrics
from fomo.stages.facts import Facts
from fomo.training import calibration
from fomo.training.logistic import fit_linear, score

STRENGTH = 0.1  # scikit-learn's C: of all fits of the contest, so that they differ in the features only
IMAGES, FEWEST = 1600, 200  # the most and the fewest of a contest
NARROW = 1.1  # aspect from which on it matters how an image becomes a square
# The share of upright and turned images of which it may be told which they are, where half is a guess: lesions have
# 0.57, flowers 0.60; icons, which lose by turning, 0.67.
TOLD = 0.62
TURNED_SIDE = 96  # pixels at which changed images are seen at most
CUT_OUTS = {"zoom": 0.37}  # as `augment` has it
CUTS = 2  # of each image
FEW_IMAGES = 2000  # of train: with more of them cut-outs bring nothing, or cost
PIXELS = 2**20  # of a batch: with larger ones a processor is slower


@dataclass(frozen=True)
class Contest:
    """What was found: `table`, a row for each candidate (backbone, side, fit, macro_f1, accuracy, log_loss, seconds);
    the `fit`; `turns`, a row for each way to change images (log_loss, difference to the images as they are, its
    standard error, told: how often it is recognised, taken); `flip`, and whether there are `cuts`, as taken."""

    table: pd.DataFrame
    fit: str
    turns: pd.DataFrame
    flip: str
    cuts: bool


class Part:
    """Some images of the train split, and what networks make of them. They are two halves, and each is judged by a fit
    on the other."""

    def __init__(self, run: Run, dataset: Dataset, count: int, side: int, folder: Path, ranges: dict):
        self.run, self.dataset, self.side, self.folder, self.pixels = run, dataset, side, folder, {}
        self.options = {"channels": 3, "ranges": ranges, "crop": run.config.crop}
        train, seed = dataset.train, run.config.seed
        half = divide(train, 0.5, seed)
        drawn = [
            table[sample(table[["file", "label"]], min(1, count / 2 / len(table)), seed)]
            for table in (train[half], train[~half])
        ]
        self.images = pd.concat(drawn, ignore_index=True)
        first = np.arange(len(self.images)) < len(drawn[0])
        self.halves = first, ~first
        self.labels, self.classes = self.images["label"].to_numpy(), len(dataset.classes)

    def features(self, backbone: Backbone, side: int, fit: str, number: int = 0, cut: int = 0) -> np.ndarray:
        """What `backbone` computes of all images at a side, as a view of them (`classifier.view`); `cut`: of a part of
        each, drawn at random by this number."""
        config = self.run.config
        if fit not in self.pixels:
            path, files = self.folder / f"{fit}.npy", self.images["file"]
            store_pixels(self.dataset, files, path, self.side, "images of the contest", fit=fit, **self.options)
            self.pixels[fit] = np.load(path, mmap_mode="r")
        part = self.pixels[fit], range(len(self.images)), self.labels
        options = {"side": side, "device": self.run.device}
        if cut:
            options |= CUT_OUTS | {"flip": "none", "generator": torch.Generator().manual_seed(cut)}
        batches = ImageBatches(*part, backbone.mean, backbone.std, **options)
        size = max(16, min(config.batch_size, PIXELS // side**2))
        with torch.inference_mode():
            seen = [backbone(view(images, number)).cpu() for images, _ in loader(batches, size)]
        return torch.cat(seen).numpy()

    def judge(self, features: list[np.ndarray]) -> tuple[dict, np.ndarray]:
        """What a logistic regression is worth that learns from all of `features` and sees the first of them: macro_f1,
        accuracy and log_loss, and the loss of each image. Images of a class that the other half lacks do not count.
        All is calibrated: or who learns from more views would seem better only because it is less sure of itself."""
        labels, losses, named = [], [], []
        for learns, judges in (self.halves, self.halves[::-1]):
            learned, known = (
                np.concatenate([one[learns] for one in features]),
                np.tile(self.labels[learns], len(features)),
            )
            layer = fit_linear(learned, known, self.classes, STRENGTH / len(features))
            judged = judges & np.isin(self.labels, known)
            with torch.inference_mode():
                logits = layer(torch.from_numpy(features[0][judged])).double().numpy()
            labels.append(self.labels[judged])
            losses.append(calibration.losses(labels[-1], logits / calibration.fit_temperature(labels[-1], logits)))
            named.append(logits.argmax(1))
        loss = np.concatenate(losses)
        confusion = metrics.confusion(np.concatenate(labels), np.concatenate(named), list(range(self.classes)))
        macro_f1, *_, accuracy = metrics.scores(confusion.to_numpy())
        return {"macro_f1": macro_f1, "accuracy": accuracy, "log_loss": float(loss.mean())}, loss

    def tell(self, upright: np.ndarray, turned: np.ndarray) -> float:
        """How often a logistic regression is right about which of two views of an image it sees."""
        learned, judged = (np.concatenate([upright[rows], turned[rows]]) for rows in self.halves)
        labels, truth = (np.repeat([0, 1], len(part) // 2) for part in (learned, judged))
        return score(fit_linear(learned, labels, 2, STRENGTH), judged, truth)["accuracy"]


def contest(
    run: Run, dataset: Dataset, facts: Facts, backbones: list[str], sides: list[int], seconds: float, folder: Path
) -> Contest:
    """Compares the candidates on as many images as about `seconds` allow, whose pixels pass through `folder`. The first
    of `backbones` is tried at each of `sides` (pixels, ascending), the others at the middle one; the fits at the middle
    one, too, where images are no squares."""
    first, middle = backbones[0], sides[len(sides) // 2]
    fits = ["crop", "squish", "pad"] if facts.aspect > NARROW and "fit" not in run.asked else [run.config.fit]
    least, more = (cost(facts, backbones, sides, len(fits), count) for count in (FEWEST, 2 * FEWEST))
    count = int(np.clip(FEWEST + FEWEST * (seconds - least) / (more - least), FEWEST, IMAGES))
    part = Part(run, dataset, count, sides[-1], folder, facts.ranges)
    rows, loss = [], {}

    def enter(network: Backbone, side: int, fit: str) -> None:
        begun, features = time.perf_counter(), part.features(network, side, fit)
        worth, loss[network.name, side, fit] = part.judge([features])
        seconds = time.perf_counter() - begun
        rows.append({"backbone": network.name, "side": side, "fit": fit} | worth | {"seconds": seconds})

    network = load_backbone(first, run.config.weights, sides[0]).to(run.device).eval()
    enter(network, middle, fits[0])
    for fit in fits[1:]:
        enter(network, middle, fit)
    fit = _simplest(fits, [loss[first, middle, fit] for fit in fits])
    for side in sides:
        if (first, side, fit) not in loss:
            enter(network, side, fit)
    for name in backbones[1:]:
        enter(load_backbone(name, run.config.weights, middle).to(run.device).eval(), middle, fit)
    side = sides[-1] if len(sides) == 1 else min(TURNED_SIDE, sides[-1])
    turns, flip, cuts = _turn(part, network, side, fit, cuts=facts.train <= FEW_IMAGES)
    for path in folder.glob("*.npy"):
        path.unlink()
    return Contest(pd.DataFrame(rows).sort_values(["backbone", "side"]), fit, turns, flip, cuts)


def cost(facts: Facts, backbones: list[str], sides: list[int], fits: int, images: int) -> float:
    """The seconds that a contest of so many images is expected to take."""
    first, middle = backbones[0], sides[len(sides) // 2]
    passes = sum(1 / facts.pace(first, side, "forward") for side in [*sides, *[middle] * (fits - 1)])
    passes += sum(1 / facts.pace(name, middle, "forward") for name in backbones[1:])
    cuts = CUTS if facts.train <= FEW_IMAGES else 0
    passes += (4 + cuts) / facts.pace(first, min(TURNED_SIDE, sides[-1]), "forward") + fits / facts.decoded
    views = [1] * (len(sides) + fits + len(backbones) - 1) + [2, 4] + [1 + cuts] * bool(cuts)
    learned = sum(2 * facts.fitted(number * images // 2) for number in views)
    return passes * images + learned


def _simplest(names: list[str], found: list[np.ndarray]) -> str:
    """The first of `names`, unless another one's losses are less by more than a standard error; then the one of least
    loss."""
    best = int(np.argmin([one.mean() for one in found]))
    difference = found[0] - found[best]
    return names[best] if difference.mean() > difference.std() / np.sqrt(len(difference)) else names[0]


def _turn(part: Part, network: Backbone, side: int, fit: str, *, cuts: bool) -> tuple[pd.DataFrame, str, bool]:
    """Which changed images may stand for the image: what a logistic regression loses that learns from them as well.

    Where left and right tell classes apart, mirrored images contradict the others, and the loss on images as they are
    rises. Photographs may be mirrored: so that is done unless the loss rises by more than a standard error. Cut-outs
    are taken where the loss falls: they harm where all of an image matters, as of clothes, and flowers and lesions gain
    by them. Few images may stand upside down: so that is done only where the loss falls, and where a linear layer
    cannot tell them from upright ones. (Of few images the loss falls nearly always, since there are more of them; a
    network that is trained on all loses by it if there is an upright.) Quarter turns and any angle are not tried: in
    trainings of 8 epochs at 96 pixels on Flowers and Skin Cancer they brought nothing, or cost up to three points.
    """
    seen = {0: part.features(network, side, fit)}
    worth, plain = part.judge([seen[0]])
    rows, flip = [{"turned": "as it is", "log_loss": worth["log_loss"], "taken": True}], "none"

    def compare(name: str, views: list[np.ndarray]) -> dict:
        worth, loss = part.judge(views)
        error = float((loss - plain).std() / np.sqrt(len(loss)))
        difference = float((loss - plain).mean())
        rows.append({"turned": name, "log_loss": worth["log_loss"], "difference": difference, "error": error})
        return rows[-1]

    for name, numbers in (("mirrored", (0, 1)), ("upside down", (0, 1, 4, 5))):
        seen |= {number: part.features(network, side, fit, number) for number in numbers if number not in seen}
        row = compare(name, [seen[number] for number in numbers])
        row["taken"] = row["difference"] <= row["error"]
        if name == "upside down":
            row["told"] = part.tell(seen[0], seen[4])
            row["taken"] = row["difference"] <= 0 and row["told"] <= TOLD
        if not row["taken"]:
            break
        flip = "horizontal" if name == "mirrored" else "both"
    if not cuts:
        return pd.DataFrame(rows), flip, False
    row = compare("cut-outs", [seen[0], *(part.features(network, side, fit, cut=cut + 1) for cut in range(CUTS))])
    row["taken"] = row["difference"] <= 0
    return pd.DataFrame(rows), flip, row["taken"]
