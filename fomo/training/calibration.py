"""How likely a model calls what is true, and the temperature at which it is as sure as it is right."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax


def losses(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The negative log-likelihood of each label (images) under softmax(logits), logits (images, classes)."""
    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]


def log_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """The mean negative log-likelihood of the labels (images) under softmax(logits), logits (images, classes)."""
    return float(losses(labels, logits).mean())


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """The number that logits (images, classes) are divided by to be least surprised by the labels: temperature scaling
    (Guo et al., arXiv:1706.04599). Above 1: the model was too sure. It changes no prediction."""
    loss = lambda log_t: log_loss(labels, logits / np.exp(log_t))  # noqa: E731
    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))
