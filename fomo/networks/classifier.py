"""Whole image classifiers: a backbone with a head, with several heads and views, and the mean of several of these."""

import math

import numpy as np
import torch
from torch import nn

from fomo.networks.backbones import Backbone
from fomo.networks.unlike import Unlike


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
    mean of all heads and of the `views` of each image, numbers that `view` knows; the first is 0, the image as it is.
    """

    def __init__(self, backbone: Backbone, heads: list[nn.Module], views: tuple[int, ...] = (0,)):
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self.views = views

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.judge(self.look(images))

    def look(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The features (batch, features) of each view."""
        return [self.backbone(view(images, number)) for number in self.views]

    def judge(self, views: list[torch.Tensor]) -> torch.Tensor:
        """The log-probabilities from the features of each view."""
        logits = [head(features) for features in views for head in self.heads]
        return average(logits, [1.0] * len(logits), [1 / len(logits)] * len(logits))


class FinalClassifier(nn.Module):
    """What a run ends with: images (batch, 3, side, side) -> log-probabilities (batch, classes), the mean of one or
    more `networks`, each calibrated by a temperature of its own (Guo et al., arXiv:1706.04599), and with a weight of
    its own, together 1. `handicaps` (classes) are taken off the log-probabilities before a class is named (`decide`),
    where rare classes would be named too seldom (logit adjustment; Menon et al., arXiv:2007.07314). `unlike` is of the
    first network's features."""

    def __init__(
        self,
        networks: list[Network],
        temperatures: list[float],
        weights: list[float],
        handicaps: list[float],
        unlike: Unlike,
    ):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.temperatures = temperatures
        self.weights = weights
        self.handicaps = handicaps
        self.unlike = unlike

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.judge(images)[0]

    def judge(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The log-probabilities, and how unlike the validation images each is (batch)."""
        seen = [network.look(images) for network in self.networks]
        logits = [network.judge(views) for network, views in zip(self.networks, seen, strict=True)]
        return self.average(logits), self.unlike(seen[0][0])

    def average(self, logits: list[torch.Tensor]) -> torch.Tensor:
        """The log-probabilities from the logits (batch, classes) of each network."""
        return average(logits, self.temperatures, self.weights)

    def name(self, logits: torch.Tensor) -> torch.Tensor:
        """The class to name (batch) by log-probabilities (batch, classes): the most probable but for the handicaps."""
        return (logits - torch.tensor(self.handicaps).to(logits)).argmax(1)

    def decide(self, logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The class to `name` (batch) by log-probabilities (batch, classes), and the confidence, which is its
        probability (batch)."""
        named = self.name(logits)
        return named.cpu().numpy(), logits.softmax(1).gather(1, named[:, None]).squeeze(1).cpu().numpy()


def view(images: torch.Tensor, number: int) -> torch.Tensor:
    """One of eight views of square images (batch, channels, side, side): 0 the image, 1 its mirror image, then both
    turned by a quarter (2, 3), a half (4, 5) and three quarters (6, 7)."""
    images = images.flip(-1) if number % 2 else images
    return images.rot90(number // 2, (-2, -1)) if number > 1 else images


def average(logits: list[torch.Tensor], temperatures: list[float], weights: list[float]) -> torch.Tensor:
    """The logarithm of the weighted mean of several probabilities, each from logits (batch, classes) at its
    temperature."""
    parts = zip(logits, temperatures, weights, strict=True)
    logarithms = [(one / temperature).log_softmax(-1) + math.log(weight) for one, temperature, weight in parts]
    return torch.stack(logarithms).logsumexp(0)
