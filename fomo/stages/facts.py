"""What a plan is made of: facts of the data, and what this machine does with a network, timed for some seconds."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import psutil
import torch

from fomo.artifacts import Run
from fomo.data.dataset import Dataset
from fomo.data.images import for_each, to_pixels
from fomo.data.survey import survey
from fomo.stages.timing import time_networks
from fomo.training.logistic import fit_linear

LOOKED_AT = 64  # images that are opened and timed
SOLVED = 200  # images of the logistic regression that is timed


@dataclass(frozen=True)
class Facts:
    """What is known of a data set before it is read, and of the machine.

    Numbers of images (`train`, `test`), of `classes`, and of images in the `smallest` class; whether images have
    groups (`grouped`); the `side` (shorter, in pixels) and the `aspect` (longer over shorter side) of an image in the
    median, whether all are `grey`, and the `ranges` of their numbers (`survey.Survey`); images that are decoded a
    second (`decoded`); how much longer a logistic regression takes than it did where it was measured (`solver`); bytes
    of memory that are `free` where networks are trained; and `speeds`: backbone, side, forward and train (images a
    second), the bytes that a training keeps of an image (`kept`), the seconds of a step of the bank of all heads on its
    features (`bank`), and whether it has batch normalisation (`by_batch`).
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
    validated: float = 0.0  # the share of the train images that are given for validation; 0: none are

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

    def by_batch(self, backbone: str) -> bool:
        """Whether a network has batch normalisation."""
        return bool(self._largest(backbone)["by_batch"])

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
        validated=float(train["validation"].mean()) if "validation" in train else 0.0,
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
