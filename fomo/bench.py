"""`make bench`: what loading costs, in one run, as ratios of medians."""

import time
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import pandas as pd
import torch

from fomo.artifacts import Run
from fomo.data import ImageBatches
from fomo.finetuning import FINETUNING_FIRST, untrained
from fomo.images import to_pixels
from fomo.preprocessing import image_loader, preprocess
from fomo.training import cross_entropy, make_optimizer

BATCHES = 6  # in each timing
REPEATS = 5  # timings of each, in turn, so that a slow minute hits all of them


def loading(run: Run) -> pd.DataFrame:
    """Images a second (median of `REPEATS`) that the store delivers, augmented; that decoding anew delivers; that the
    backbone takes in training (all stages from the 2nd on); and what loading from the store adds to an epoch."""
    data = preprocess(run)
    classifier = untrained(run, data)
    classifier.backbone.fix_until(2)
    settings = {name: value for name, value in FINETUNING_FIRST.items() if name != "layer"}
    optimizer = make_optimizer(classifier, **settings)
    batches = image_loader(run, data.part("train"), classifier.backbone, torch.Generator())
    files = data.images["file"].tolist()[: BATCHES * run.config.batch_size]
    batch = [part.to(run.device) for part in next(iter(batches))]
    channels = data.pixels.shape[1]

    def from_store() -> None:
        for _ in islice(batches, BATCHES):
            pass

    def decode(file: str) -> np.ndarray:
        with data.dataset.source.open(file) as image:
            return to_pixels(image, run.config.image_size, channels)

    def from_files() -> None:
        backbone, size = classifier.backbone, run.config.batch_size
        options = {"rotation": run.config.rotation, "generator": batches.generator}
        for start in range(0, len(files), size):
            pixels = np.stack([decode(file) for file in files[start : start + size]])
            anew = ImageBatches(pixels, range(len(pixels)), [0] * len(pixels), backbone.mean, backbone.std, **options)
            anew[list(range(len(pixels)))]

    def train() -> None:
        classifier.train()
        for _ in range(BATCHES):
            optimizer.zero_grad()
            cross_entropy(classifier(batch[0]), batch[1]).backward()
            optimizer.step()

    timed = {"store, augmented": from_store, "files, augmented": from_files, "training, bare": train}
    seconds = pd.DataFrame(_rounds(list(timed.values())), columns=list(timed)).median()
    count = BATCHES * run.config.batch_size
    shares = seconds / seconds["training, bare"]
    return pd.DataFrame({"images/s": count / seconds, "share of training": shares}).rename_axis("what").reset_index()


def _rounds(functions: list[Callable[[], None]]) -> Iterator[list[float]]:
    """The seconds that each function takes, in `REPEATS` rounds after one that does not count."""
    for number in range(REPEATS + 1):
        times = []
        for function in functions:
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        if number:
            yield times
