"""A whole image classifier, backbone and head, and the one file that the final one is stored in."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from fomo.artifacts import write_bytes
from fomo.backbones import Backbone
from fomo.config import UserError
from fomo.data import ImageBatches, loader
from fomo.heads import read_head
from fomo.images import to_pixels
from fomo.training import predict


class Classifier(nn.Module):
    """Backbone and head: images (batch, 3, side, side) -> logits (batch, classes)."""

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))


class Network(nn.Module):
    """A backbone with one or more `heads`: images (batch, 3, side, side) -> log-probabilities (batch, classes), the
    mean of all heads and of the first `views` of each image (`view`)."""

    def __init__(self, backbone: Backbone, heads: list[nn.Module], views: int = 1):
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self.views = views

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.judge(self.look(images))

    def look(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The features (batch, features) of each view; the first one is the image as it is."""
        return [self.backbone(view(images, number)) for number in range(self.views)]

    def judge(self, views: list[torch.Tensor]) -> torch.Tensor:
        """The log-probabilities from the features of each view."""
        logits = [head(features) for features in views for head in self.heads]
        return average(logits, [1.0] * len(logits))


class FinalClassifier(nn.Module):
    """What a run ends with: images (batch, 3, side, side) -> log-probabilities (batch, classes), the mean of one or
    more `networks`, each calibrated by a temperature of its own (Guo et al., arXiv:1706.04599). `handicaps` (classes)
    are taken off the log-probabilities before a class is named (`decide`), where rare classes would be named too
    seldom (logit adjustment; Menon et al., arXiv:2007.07314)."""

    def __init__(self, networks: list[Network], temperatures: list[float], handicaps: list[float]):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.temperatures = temperatures
        self.handicaps = handicaps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return average([network(images) for network in self.networks], self.temperatures)

    def decide(self, logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The class to name (batch) by log-probabilities (batch, classes), which is the most probable one but for the
        handicaps, and the confidence, which is its probability (batch)."""
        named = (logits - torch.tensor(self.handicaps).to(logits)).argmax(1)
        return named.cpu().numpy(), logits.softmax(1).gather(1, named[:, None]).squeeze(1).cpu().numpy()


def view(images: torch.Tensor, number: int) -> torch.Tensor:
    """One of eight views of square images (batch, channels, side, side): 0 the image, 1 its mirror image, then both
    turned by a quarter (2, 3), a half (4, 5) and three quarters (6, 7)."""
    images = images.flip(-1) if number % 2 else images
    return images.rot90(number // 2, (-2, -1)) if number > 1 else images


def average(logits: list[torch.Tensor], temperatures: list[float]) -> torch.Tensor:
    """The logarithm of the mean of several probabilities, each from logits (batch, classes) at its temperature."""
    pairs = zip(logits, temperatures, strict=True)
    logarithms = torch.stack([(one / temperature).log_softmax(-1) for one, temperature in pairs])
    return logarithms.logsumexp(0) - math.log(len(logits))


class Model:
    """A trained classifier with all that it takes to classify an image file: `classes` and preprocessing.

    `description` holds backbone, heads, views, temperatures (of each network), handicaps (of each class), classes,
    image_size, crop and channels (1: trained on grey images).
    """

    def __init__(self, classifier: FinalClassifier, description: dict):
        self.classifier = classifier
        self.description = description
        self.classes = description["classes"]

    def predict(self, images: Iterable[str | Path | Image.Image], batch_size: int = 64) -> pd.DataFrame:
        """The class of each image (a path or an open PIL image), the confidence, which is its probability, and the
        probability of every class."""
        side, channels = self.description["image_size"], self.description["channels"]
        opened = (image if isinstance(image, Image.Image) else Image.open(image) for image in images)
        pixels = np.stack([to_pixels(image, side, channels, self.description["crop"]) for image in opened])
        backbone = self.classifier.networks[0].backbone
        batches = ImageBatches(pixels, range(len(pixels)), np.zeros(len(pixels)), backbone.mean, backbone.std)
        logits, _ = predict(self.classifier, loader(batches, batch_size), torch.device("cpu"))
        (named, confidence), table = self.classifier.decide(logits), logits.softmax(1).numpy()
        columns = {"class": [self.classes[number] for number in named], "confidence": confidence}
        return pd.concat([pd.DataFrame(columns), pd.DataFrame(table, columns=self.classes)], axis=1)

    def save(self, path: Path) -> None:
        """Stores everything in one .safetensors file; `load_model` needs nothing else."""
        state = {name: value.contiguous() for name, value in self.classifier.state_dict().items()}
        write_bytes(path, safetensors.torch.save(state, metadata={"fomo": json.dumps(self.description)}))


def load_model(path: str | Path) -> Model:
    """The `Model` that a run stored as model.safetensors. Raises `UserError` if the file is no such model.

    >>> fomo.load_model("model.safetensors").predict(["boot.png"])
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            description = json.loads((file.metadata() or {})["fomo"])
        state = safetensors.torch.load_file(path)
    except KeyError as error:
        raise UserError(f"{path} is not a model that fomo stored") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"model {path} cannot be read ({error})") from error
    networks = [_build(description) for _ in description["temperatures"]]
    classifier = FinalClassifier(networks, description["temperatures"], description["handicaps"])
    try:
        classifier.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"model {path} does not fit its own description ({str(error)[:200]})") from error
    return Model(classifier, description)


def _build(description: dict) -> Network:
    """A network as described, its weights yet to be loaded."""
    backbone = Backbone(description["backbone"], description["image_size"])
    heads = [read_head(one).build(backbone.num_features, len(description["classes"])) for one in description["heads"]]
    return Network(backbone, heads, description["views"])
