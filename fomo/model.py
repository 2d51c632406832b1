"""The final model in its one file: loaded, asked to predict, saved."""

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain, islice
from math import ceil
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image

from fomo.data.batches import ImageBatches
from fomo.data.given import each, opened
from fomo.data.images import batched, for_each, reason, to_pixels
from fomo.model_file import read_model, write_model
from fomo.networks.classifier import FinalClassifier
from fomo.networks.gradcam import gradcam

WAITING, HELD = 256, 32  # images in the batches of all cores: paths, and what is in memory, which may be large
FIXED = ("file", "class", "confidence", "unlike", "reason")  # columns of a prediction besides those of the classes
LOADING = Lock()  # two threads must not load the same image


class Explanation(NamedTuple):
    """Where a model looks in an image: `file` (its path or number), the class `named` and its `confidence`, `pixels`
    (channels, side, side) as the networks see them, and a `map` (side, side) of what speaks for that class, 0 to 1."""

    file: str | int
    named: str
    confidence: float
    pixels: np.ndarray
    map: np.ndarray


class Model:
    """A trained classifier with all that it takes to classify an image file: `classes` and preprocessing.

    `description` holds backbone, heads, views (their numbers), temperatures and weights (of each network), handicaps
    (of each class), classes, image_size, fit, crop, channels (1: trained on grey images) and ranges (of the numbers in
    the train images, `survey.Survey`).
    """

    def __init__(self, classifier: FinalClassifier, description: dict):
        self.classifier = classifier
        self.description = description
        self.classes, self.ranges = description["classes"], description["ranges"]

    def predict(self, images=(), batch_size: int = 64) -> pd.DataFrame:
        """A row for each image: file, class, confidence, unlike, the probability of each class, reason.

        `images` are a path, a folder (all images in it), a pattern such as "photos/*.png", a PIL image, an array
        (height, width) or (height, width, channels), the bytes of a file, or any iterable of these. Arrays are uint8,
        or of numbers whose range the model knows from training.

        `file` is the path, or the number of what has none. `confidence` is the probability of the class. `unlike` is
        the share of validation images that are less unlike those of training (`networks.unlike`). An image that cannot
        be read has a `reason`, and nothing else. A class that is called as another column is p(its name). Raises
        `UserError` for a path that leads to no image, unless it is one of several.
        """
        return pd.concat(self.tables(images, batch_size), ignore_index=True)

    def tables(self, images=(), batch_size: int = 64) -> Iterator[pd.DataFrame]:
        """What `predict` returns, in parts: a table for each batch of images, at least one. Memory does not grow with
        the number of images.

        Every core works on a batch of its own, which is faster than all of them on one; few images are shared out.
        """
        cores, found = torch.get_num_threads(), each(images, self.ranges)
        first = list(islice(found, 1))
        held = bool(first) and not isinstance(first[0][1], str)  # in memory, as paths are not
        size = min(batch_size, ceil((HELD if held else WAITING) / cores))
        first += islice(found, cores * size - 1)
        size = max(1, ceil(len(first) / cores))
        threads = max(1, cores * size // max(1, len(first)))
        batches = batched(chain(first, found), size)
        del first

        def table(batch: list[tuple]) -> pd.DataFrame:
            torch.set_num_threads(threads)  # of this thread
            return self._table([self._decoded(*one) for one in batch])

        try:
            yield from for_each(table, chain([next(batches, [])], batches), cores=cores, ahead=1)
        finally:
            torch.set_num_threads(cores)  # of threads to come

    def explain(self, images=(), batch_size: int = 16) -> Iterator[Explanation]:
        """Where the model looks, an `Explanation` of each image that can be read; `images` are as for `predict`. A
        batch takes the memory of a training's. Raises `UserError` as `predict` does, and where the backbone is no CNN.
        """
        decoded = for_each(lambda one: self._decoded(*one), each(images, self.ranges))
        for batch in batched(decoded, batch_size):
            readable = [(name, found) for name, found in batch if not isinstance(found, str)]
            if readable:
                files, pixels = zip(*readable, strict=True)
                inputs = self._inputs(np.stack(pixels))
                with torch.inference_mode():
                    classes, confidence = self.classifier.eval().decide(self.classifier(inputs))
                maps = gradcam(self.classifier, inputs, torch.from_numpy(classes)).numpy()
                named = [self.classes[number] for number in classes]
                yield from map(Explanation, files, named, confidence.tolist(), pixels, maps)

    def _decoded(self, name: str | int, thing) -> tuple[str | int, np.ndarray | str]:
        """The name of an image, and its pixels or why it cannot be read."""
        options = [self.description[key] for key in ("image_size", "channels", "crop", "fit")]
        try:
            with LOADING if isinstance(thing, Image.Image) else nullcontext(), opened(thing, self.ranges) as image:
                return name, to_pixels(image, *options, self.ranges)
        except Exception as error:  # a damaged file makes the decoders raise nearly anything
            return name, reason(error)

    def _table(self, batch: list[tuple[str | int, np.ndarray | str]]) -> pd.DataFrame:
        """The rows of images as they are decoded: of each its name, and its pixels or why it cannot be read."""
        reasons = [found if isinstance(found, str) else None for _, found in batch]
        read = np.array([one is None for one in reasons], bool)
        numbers = np.full((len(batch), 2 + len(self.classes)), np.nan, np.float32)
        found = np.full(len(batch), None, object)
        if read.any():
            pixels = np.stack([found for _, found in batch if not isinstance(found, str)])
            with torch.inference_mode():
                logits, unlike = self.classifier.eval().judge(self._inputs(pixels))
            classes, confidence = self.classifier.decide(logits)
            numbers[read] = np.column_stack([confidence, unlike, logits.softmax(1)])
            found[read] = [self.classes[number] for number in classes]
        table = pd.DataFrame(numbers, columns=["confidence", "unlike", *self.columns])
        table.insert(0, "file", pd.Series([name for name, _ in batch], dtype=object))
        table.insert(1, "class", pd.Series(found, dtype="str"))
        return table.assign(reason=pd.Series(reasons, dtype="str"))

    def _inputs(self, pixels: np.ndarray) -> torch.Tensor:
        """What the networks are shown of images as `to_pixels` makes them."""
        backbone, rows = self.classifier.networks[0].backbone, range(len(pixels))
        return ImageBatches(pixels, rows, rows, backbone.mean, backbone.std)[:][0]

    @property
    def columns(self) -> list[str]:
        """The names of the columns of the probabilities: those of the classes, unless another column has that name."""
        columns = []
        for name in self.classes:
            column = name
            while column in FIXED or (column != name and column in self.classes):
                column = f"p({column})"
            columns.append(column)
        return columns

    def save(self, path: Path) -> None:
        """Stores everything in one .safetensors file; `load_model` needs nothing else."""
        write_model(path, self.classifier, self.description)


def load_model(path: str | Path) -> Model:
    """The `Model` that a run stored as model.safetensors; nothing in the file is executed. Raises `UserError` if the
    file is no such model, or damaged.

    >>> fomo.load_model("model.safetensors").predict(["boot.png"])["class"].tolist()
    ['...']
    """
    return Model(*read_model(Path(path)))
