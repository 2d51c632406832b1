"""How likely a model calls what is true, the temperature at which it is as sure as it is right, and how unlike others
an image has to be to stand out."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp
from sklearn.model_selection import KFold
from sklearn.utils.extmath import randomized_svd

from fomo.networks.unlike import Unlike, outside

AXES = 64  # that features are compared along; a quarter of the images, or of the features, where these are few
FITTED = 2000  # images at most that they are found by


def losses(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The negative log-likelihood of each label (images) under softmax(logits), logits (images, classes)."""
    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]


def log_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """The mean negative log-likelihood of the labels (images) under softmax(logits), logits (images, classes)."""
    return float(losses(labels, logits).mean())


def fit_temperature(labels: np.ndarray, *logits: np.ndarray, weights: tuple[float, ...] = (1.0,)) -> float:
    """The number that logits (images, classes) are divided by to be least surprised by the labels: temperature scaling
    (Guo et al., arXiv:1706.04599). Above 1: the model was too sure. It changes no prediction. Of several logits, one
    temperature for all, with which their mean (`pooled`) is least surprised."""
    loss = lambda log_t: log_loss(labels, pooled(logits, weights, np.exp(log_t)))  # noqa: E731
    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


def pooled(logits: tuple[np.ndarray, ...], weights: tuple[float, ...], temperature: float) -> np.ndarray:
    """The logits (images, classes) of the weighted mean of the probabilities that several have at a temperature."""
    if len(logits) == 1:
        return logits[0] / temperature
    parts = [log_softmax(one / temperature, axis=1) + np.log(part) for one, part in zip(logits, weights, strict=True)]
    return logsumexp(parts, axis=0)


def fit_unlike(features: torch.Tensor) -> Unlike:
    """The `Unlike` of the network whose features of the validation images (images, features) these are, at least two.
    The level of each is taken by axes that it had no part in: five times of four fifths of the images."""
    images = np.random.default_rng(0).permutation(F.normalize(features.cpu()))[:FITTED]
    levels = np.empty(len(images), np.float32)
    for rest, part in KFold(min(5, len(images))).split(images):
        levels[part] = outside(torch.from_numpy(images[part]), *_axes(images[rest]))
    return Unlike(*_axes(images), torch.from_numpy(levels).sort().values)


def _axes(directions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of directions (images, features), and the axes (axes, features) along which they differ most."""
    count, mean = min(AXES, -(-min(directions.shape) // 4)), directions.mean(0)
    axes = randomized_svd(directions - mean, count, n_iter=2, random_state=0)[2]
    return torch.from_numpy(mean), torch.from_numpy(axes)
