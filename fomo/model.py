"""The final model in its one file: loaded, asked to predict, saved."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from PIL import Image

from fomo.config import UserError
from fomo.data.batches import ImageBatches, loader
from fomo.data.given import each, opened
from fomo.data.images import for_each, reason, to_pixels
from fomo.networks.backbones import Backbone
from fomo.networks.classifier import FinalClassifier, Network
from fomo.networks.gradcam import gradcam
from fomo.networks.heads import Head
from fomo.networks.inference import predict
from fomo.storage import write_bytes

FIXED = ("file", "class", "confidence", "reason")  # columns of a prediction besides those of the classes


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

    `description` holds backbone, heads, views (their numbers), temperatures (of each network), handicaps (of each
    class), classes, image_size, fit, crop, channels (1: trained on grey images) and ranges (of the numbers in the train
    images, `survey.Survey`).
    """

    def __init__(self, classifier: FinalClassifier, description: dict):
        self.classifier = classifier
        self.description = description
        self.classes, self.ranges = description["classes"], description["ranges"]

    def predict(self, images=(), batch_size: int = 64) -> pd.DataFrame:
        """A row for each image: file, class, confidence, the probability of each class, reason.

        `images` are a path, a folder (all images in it), a pattern such as "photos/*.png", a PIL image, an array
        (height, width) or (height, width, channels), the bytes of a file, or any iterable of these. Arrays are uint8,
        or of numbers whose range the model knows from training.

        `file` is the path, or the number of what has none. `confidence` is the probability of the class. An image that
        cannot be read has a `reason`, and nothing else. A class that is called as another column is p(its name).
        Raises `UserError` for a path that leads to no image, unless it is one of several.
        """
        files, reasons = [], []
        named, numbers = [], [np.empty((0, 1 + len(self.classes)), np.float32)]
        for batch in self._decoded(images, batch_size):
            files += [name for name, _ in batch]
            reasons += [found if isinstance(found, str) else None for _, found in batch]
            readable = [found for _, found in batch if not isinstance(found, str)]
            if readable:
                classes, confidence, probabilities = self._classify(np.stack(readable))
                named += [self.classes[number] for number in classes]
                numbers.append(np.column_stack([confidence, probabilities]))
        read = np.array([one is None for one in reasons], bool)
        table = np.full((len(files), 1 + len(self.classes)), np.nan, np.float32)
        table[read] = np.concatenate(numbers)
        found = np.full(len(files), None, object)
        found[read] = named
        table = pd.DataFrame(table, columns=["confidence", *self._columns()])
        table.insert(0, "file", pd.Series(files, dtype=object))
        table.insert(1, "class", pd.Series(found, dtype="str"))
        return table.assign(reason=pd.Series(reasons, dtype="str"))

    def explain(self, images=(), batch_size: int = 16) -> Iterator[Explanation]:
        """Where the model looks, an `Explanation` of each image that can be read; `images` are as for `predict`. A
        batch takes the memory of a training's. Raises `UserError` as `predict` does, and where the backbone is no CNN.
        """
        backbone = self.classifier.networks[0].backbone
        for batch in self._decoded(images, batch_size):
            readable = [(name, found) for name, found in batch if not isinstance(found, str)]
            if readable:
                files, pixels = zip(*readable, strict=True)
                rows = range(len(pixels))
                inputs, _ = ImageBatches(np.stack(pixels), rows, rows, backbone.mean, backbone.std)[rows]
                with torch.inference_mode():
                    classes, confidence = self.classifier.eval().decide(self.classifier(inputs))
                maps = gradcam(self.classifier, inputs, torch.from_numpy(classes)).numpy()
                named = [self.classes[number] for number in classes]
                yield from map(Explanation, files, named, confidence.tolist(), pixels, maps)

    def _decoded(self, images, batch_size: int) -> Iterator[list[tuple[str | int, np.ndarray | str]]]:
        """Batches of what is given as `images`: of each its path or number, and its pixels or why it cannot be read."""
        options, lock = [self.description[name] for name in ("image_size", "channels", "crop", "fit")], Lock()

        def decode(item: tuple) -> tuple[str | int, np.ndarray | str]:
            name, thing = item
            try:
                # two threads must not load the same image
                with lock if isinstance(thing, Image.Image) else nullcontext(), opened(thing, self.ranges) as image:
                    return name, to_pixels(image, *options, self.ranges)
            except Exception as error:  # a damaged file makes the decoders raise nearly anything
                return name, reason(error)

        decoded = for_each(decode, each(images, self.ranges))
        while batch := list(islice(decoded, batch_size)):
            yield batch

    def _classify(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(classes, confidences, probabilities (images, classes)) of images as `to_pixels` makes them."""
        backbone = self.classifier.networks[0].backbone
        batches = ImageBatches(pixels, range(len(pixels)), np.zeros(len(pixels)), backbone.mean, backbone.std)
        logits, _ = predict(self.classifier, loader(batches, len(pixels)), torch.device("cpu"))
        return *self.classifier.decide(logits), logits.softmax(1).numpy()

    def _columns(self) -> list[str]:
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
        state = {name: value.contiguous() for name, value in self.classifier.state_dict().items()}
        write_bytes(path, safetensors.torch.save(state, metadata={"fomo": json.dumps(self.description)}))


def load_model(path: str | Path) -> Model:
    """The `Model` that a run stored as model.safetensors. Raises `UserError` if the file is no such model.

    >>> fomo.load_model("model.safetensors").predict(["boot.png"])["class"].tolist()
    ['...']
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            description = json.loads((file.metadata() or {})["fomo"])
        state = safetensors.torch.load_file(path)
    except KeyError as error:
        raise UserError(f"{path} is not a model that fomo stored") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"model {path} cannot be read ({error})") from error
    try:
        networks = [_build(description) for _ in description["temperatures"]]
        classifier = FinalClassifier(networks, description["temperatures"], description["handicaps"])
        classifier.load_state_dict(state)
        return Model(classifier, description)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"model {path} does not fit its own description ({str(error)[:200]}); it is damaged, or another version of "
            "fomo stored it: train it anew, or load it with that version"
        ) from error


def _build(description: dict) -> Network:
    """A network as described, its weights yet to be loaded."""
    backbone = Backbone(description["backbone"], description["image_size"])
    heads = [Head(**one).build(backbone.num_features, len(description["classes"])) for one in description["heads"]]
    return Network(backbone, heads, tuple(description["views"]))
