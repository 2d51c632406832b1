"""What a plan is made of: facts of the data, and what this machine does with a network, timed for some seconds."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import psutil
import torch
from timm.models import get_pretrained_cfg

from fomo.artifacts import Run
from fomo.config import UserError, sees_one_size
from fomo.data.batches import ImageBatches, loader
from fomo.data.datasets import Dataset
from fomo.data.images import for_each, to_pixels
from fomo.data.survey import survey
from fomo.networks.backbones import load_backbone
from fomo.networks.bank import HeadBank
from fomo.networks.classifier import Classifier
from fomo.networks.heads import HEADS, LINEAR
from fomo.training.logistic import fit_linear
from fomo.training.loop import cross_entropy, make_optimizer

LOOKED_AT = 64  # images that are opened and timed
TIMED_SIDES = (64, 160)  # pixels; between and beyond them, time grows with the number of pixels
TIMED_IMAGES = {"cpu": 16, "cuda": 32}  # a step
TIMED_STEPS = 3
SOLVED = 200  # images of the logistic regression that is timed
WARM_UP = {"cpu": 1, "cuda": 5}  # steps before these, which are slow
TIMING = 0.02  # of the minutes: once the timing has taken so much, no further network is timed


@dataclass(frozen=True)
class Facts:
    """What is known of a data set before it is read, and of the machine.

    Numbers of images (`train`, `test`), of `classes`, and of images in the `smallest` class; whether images have
    groups (`grouped`); the `side` (shorter, in pixels) and the `aspect` (longer over shorter side) of an image in the
    median, whether all are `grey`, and the `ranges` of their numbers (`survey.Survey`); images that are decoded a
    second (`decoded`); how much longer a logistic regression takes than it did where it was measured (`solver`); bytes
    of memory that are `free` where networks are trained; and `speeds`: backbone, side, forward and train (images a
    second), the bytes that a training keeps of an image (`kept`), and the seconds of a step of the bank of all heads on
    its features (`bank`).
    """

    train: int
    test: int
    classes: int
    smallest: int
    grouped: bool
    side: int
    aspect: float
    grey: bool
    ranges: dict[str, tuple[float, float]]
    decoded: float
    solver: float
    free: float
    speeds: pd.DataFrame

    def pace(self, backbone: str, side: int, what: str) -> float:
        """Images a second of "forward" or "train" at a side: a straight line in the number of pixels through what was
        timed."""
        of = self.speeds[self.speeds["backbone"] == backbone].sort_values("side")
        pixels, seconds = of["side"].to_numpy(float) ** 2, 1 / of[what].to_numpy()
        slope = seconds[-1] / pixels[-1]
        if len(of) > 1:  # a GPU may take as long for small images
            slope = max((seconds[-1] - seconds[0]) / (pixels[-1] - pixels[0]), 0.0)
        return float(1 / max(seconds[-1] + slope * (side**2 - pixels[-1]), seconds[0] / 10))

    def kept(self, backbone: str, side: int) -> float:
        """The bytes that a training keeps of an image of a side: they grow with its pixels."""
        row = self._largest(backbone)
        return float(row["kept"] * (side / row["side"]) ** 2)

    def fitted(self, images: int) -> float:
        """The seconds of a logistic regression on so many images."""
        return self.solver * _usual_fit(images, self.classes)

    def bank(self, backbone: str) -> float:
        """The seconds of a training step of the bank of all heads."""
        return float(self._largest(backbone)["bank"])

    def _largest(self, backbone: str) -> pd.Series:
        """What was timed of a backbone at its largest side."""
        return self.speeds[self.speeds["backbone"] == backbone].sort_values("side").iloc[-1]

    def summary(self) -> pd.DataFrame:
        """The facts of the data, a row each."""
        rows = {"train images": self.train, "test images": self.test, "classes": self.classes}
        rows |= {"images of the smallest class": self.smallest, "grouped": self.grouped}
        rows |= {"shorter side (median, pixels)": self.side, "aspect": round(self.aspect, 2), "grey": self.grey}
        return pd.DataFrame({"fact": rows.keys(), "value": [str(value) for value in rows.values()]})


def look(run: Run, dataset: Dataset, backbones: Iterable[str]) -> Facts:
    """The facts of a data set, and what this machine does with each of `backbones`."""
    train, test, found = dataset.train, dataset.test(), survey(dataset)
    rng = np.random.default_rng(run.config.seed)
    files = train["file"].to_numpy()[np.sort(rng.permutation(len(train))[:LOOKED_AT])]
    begun = time.perf_counter()
    seen = for_each(lambda file: _look(dataset, file, found.ranges), list(files), "looking at images")
    sizes = np.array([size for size in seen if size] or [(64, 64)])
    seconds = time.perf_counter() - begun
    counts = train["label"].value_counts()
    return Facts(
        train=len(train),
        test=len(test),
        classes=len(dataset.classes),
        smallest=int(counts.min()),
        grouped="group" in train,
        side=int(np.median(sizes.min(axis=1))),
        aspect=float(np.median(sizes.max(axis=1) / sizes.min(axis=1))),
        grey=found.grey,
        ranges=found.ranges,
        decoded=len(files) / seconds,
        solver=_time_solver(len(dataset.classes)),
        free=_free(run),
        speeds=time_networks(run, backbones, len(dataset.classes)),
    )


def _usual_fit(images: int, classes: int) -> float:
    """The seconds of a logistic regression on 1280 features of so many images, on a core of an AMD EPYC."""
    return 2e-3 * classes + 2e-6 * (100 + classes) * images


def _time_solver(classes: int) -> float:
    """How many times as long as there a logistic regression takes here."""
    rng = np.random.default_rng(0)
    labels = np.arange(SOLVED) % classes
    features = rng.normal(size=(classes, 1280))[labels] + rng.normal(scale=2.0, size=(SOLVED, 1280))
    begun = time.perf_counter()
    fit_linear(features.astype(np.float32), labels, classes, 0.1)
    return (time.perf_counter() - begun) / _usual_fit(SOLVED, classes)


def _free(run: Run) -> float:
    """Bytes of memory that are free on the run's device."""
    if run.device.type == "cuda":
        return float(torch.cuda.mem_get_info(run.device)[0])
    return float(psutil.virtual_memory().available)


def _look(dataset: Dataset, file: str, ranges: dict) -> tuple[int, int] | None:
    """An image's size, decoded and resized as all will be; None if it cannot be read."""
    try:
        with dataset.source.open(file) as image:
            size = image.size
            to_pixels(image, 160, 3, ranges=ranges)
        return size
    except Exception:  # what is wrong with it is said when it is decoded
        return None


def time_networks(run: Run, names: Iterable[str], classes: int) -> pd.DataFrame:
    """`Facts.speeds` of networks: of the first, and of as many more as there is time for."""
    begun, rows = time.perf_counter(), []
    for name in names:
        if not rows or time.perf_counter() - begun < TIMING * 60 * run.config.minutes:
            rows += time_network(run, name, classes)
    return pd.DataFrame(rows)


def time_network(run: Run, name: str, classes: int) -> list[dict]:
    """The rows of a backbone in `Facts.speeds`: at `TIMED_SIDES`, or, where it sees images of one size only, or none so
    small, at its own side. Raises `UserError` where it sees neither."""
    own = get_pretrained_cfg(name).input_size[-1]
    sides = [own] if sees_one_size(name) else TIMED_SIDES
    sides = [run.config.image_size] if "image_size" in run.asked else sides
    try:
        return [_row(run, name, classes, side) for side in sides]
    except (RuntimeError, ValueError, AssertionError) as error:
        if own in sides:
            raise UserError(f"backbone '{name}' cannot be timed at {own} pixels ({error}); choose another") from error
        return [_row(run, name, classes, own)]


def _row(run: Run, name: str, classes: int, side: int) -> dict:
    backbone = load_backbone(name, "random", side)
    classifier = Classifier(backbone, LINEAR.build(backbone.num_features, classes)).to(run.device)
    bank = {"bank": _time_bank(run, backbone.num_features, classes)}
    return {"backbone": name, "side": side} | _time(run, classifier, side) | bank


def _time_bank(run: Run, features: int, classes: int) -> float:
    """The seconds of a training step of the bank of all heads."""
    bank = HeadBank(HEADS, features, classes).to(run.device)
    optimizer = make_optimizer(bank, "adam", 1e-3, 0.0)
    inputs = torch.rand(32, features, device=run.device)
    labels = torch.zeros(32, dtype=torch.long, device=run.device)

    def train() -> None:
        optimizer.zero_grad()
        cross_entropy(bank(inputs), labels).sum().backward()
        optimizer.step()

    return _fastest(run, train)


def _time(run: Run, classifier: Classifier, side: int) -> dict:
    """Images a second of a network, forward and in training (augmentation included), and the bytes that a training step
    keeps of each image for its way back."""
    count = TIMED_IMAGES.get(run.device.type, 16)
    pixels = np.random.default_rng(0).integers(0, 255, (count, 3, side, side), dtype=np.uint8)
    labels, generator = np.zeros(count, dtype=int), torch.Generator().manual_seed(0)
    options = {"rotation": 10.0, "zoom": 0.3, "generator": generator, "device": run.device}
    part = (pixels, range(count), labels, classifier.backbone.mean, classifier.backbone.std)
    batches, plain = loader(ImageBatches(*part, **options), count, generator), loader(ImageBatches(*part), 64)
    optimizer = make_optimizer(classifier, "adamw", 1e-3, 0.01)

    sizes = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    def train() -> None:
        classifier.train()
        for inputs, truth in batches:
            loss = cross_entropy(classifier(inputs.to(run.device)), truth.to(run.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def forward() -> None:
        classifier.eval()
        with torch.inference_mode():
            for inputs, _ in plain:
                classifier(inputs.to(run.device))

    inputs, _ = next(iter(plain))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        classifier.train()(inputs.to(run.device))
    kept = {"kept": sum(sizes) / count}
    return kept | {"train": count / _fastest(run, train), "forward": count / _fastest(run, forward)}


def _fastest(run: Run, work) -> float:
    """The seconds that `work` takes once it is warm, at best: others may disturb it."""
    seconds, warm_up = [], WARM_UP.get(run.device.type, 5)
    for _ in range(warm_up + TIMED_STEPS):
        begun = time.perf_counter()
        work()
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return min(seconds[warm_up:])
