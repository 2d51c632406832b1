"""The probe's head: a logistic regression on the features of a network as it comes, as a linear layer."""

import warnings

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from threadpoolctl import threadpool_limits
from torch import nn

from fomo.training.calibration import fit_temperature

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C, on scaled features: less of it, smaller weights
MOST = 20_000  # images of a fit: with more of them a linear layer gains nothing, and the fit takes minutes
MOST_TO_CHOOSE = 5_000  # images of each fit that only helps to choose C


def fit_linear(features: np.ndarray, labels: np.ndarray, classes: int, strength: float, *, seed: int = 0) -> nn.Linear:
    """The linear layer features (batch, features) -> logits (batch, classes) of a logistic regression of that C.

    For the fit the features are centred and divided by one number, their spread. (Each feature by its own would give
    those that hardly vary large weights, which finetuning then cannot bear.) The layer takes them as they are. A class
    without images is never named. Deterministic; of more than `MOST` images some are drawn by `seed`.
    """
    rows = _some(len(labels), MOST, seed)
    scaled, mean, spread = _scale(features[rows])
    model = _fit(LogisticRegression(C=strength, max_iter=200), scaled, labels[rows])
    return _layer(model, mean, spread, classes)


def choose_strength(
    train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray], classes: int, *, seed: int = 0
) -> pd.DataFrame:
    """A row for each of `STRENGTHS`, that of least loss on validation first: C, temperature, macro_f1, accuracy,
    log_loss. `train` and `validation` are (features (images, features), labels (images)).

    The loss is that of the logits divided by the temperature. It tells strengths apart by fewer images than what is
    right and wrong, and not only by how sure of themselves they are.
    """
    features, labels = train
    rows = _some(len(labels), MOST_TO_CHOOSE, seed)
    model, (scaled, *scale), table = LogisticRegression(max_iter=100, warm_start=True), _scale(features[rows]), []
    for strength in STRENGTHS:  # each fit begins where the one before it ended
        layer = _layer(_fit(model.set_params(C=strength), scaled, labels[rows]), *scale, classes)
        with torch.inference_mode():
            logits = layer(torch.from_numpy(np.array(validation[0]))).double().numpy()
        temperature = fit_temperature(np.array(validation[1]), logits)
        table.append({"C": strength, "temperature": temperature} | score(temper(layer, temperature), *validation))
    return pd.DataFrame(table).sort_values("log_loss", kind="stable", ignore_index=True)


def temper(layer: nn.Linear, temperature: float) -> nn.Linear:
    """The layer, in place, with its logits divided by the temperature."""
    with torch.no_grad():
        layer.weight /= temperature
        layer.bias /= temperature
    return layer


@torch.inference_mode()
def score(layer: nn.Module, features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What a head is worth on features (images, features): macro_f1, accuracy, log_loss."""
    logits, truth = layer(torch.from_numpy(np.array(features))), torch.from_numpy(np.array(labels))
    named = logits.argmax(1)
    return {
        "macro_f1": float(f1_score(labels, named.numpy(), average="macro", labels=np.unique(labels), zero_division=0)),
        "accuracy": float((named == truth).double().mean()),
        "log_loss": float(nn.functional.cross_entropy(logits.double(), truth)),
    }


def _some(count: int, most: int, seed: int) -> np.ndarray | slice:
    """The rows of a fit, in order: all, or `most` of them drawn by `seed`."""
    return slice(None) if count <= most else np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def _scale(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The features centred and divided by their spread, the mean of each, and the spread of all."""
    mean = features.mean(axis=0)
    centred = features - mean
    spread = float(centred.std()) or 1.0
    return centred / spread, mean, spread


def _fit(model: LogisticRegression, features: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    # After so many steps it is near enough. On two threads, which wait for each other, it takes four times as long.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes")  # one image of each is a data set, too
        return model.fit(features, labels)


def _layer(model: LogisticRegression, mean: np.ndarray, spread: float, classes: int) -> nn.Linear:
    weights, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps the difference of two classes only
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    weights = weights / spread
    layer = nn.Linear(weights.shape[1], classes)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(-1e4)  # of classes that have no image
        layer.weight[model.classes_] = torch.tensor(weights, dtype=torch.float32)
        layer.bias[model.classes_] = torch.tensor(bias - weights @ mean, dtype=torch.float32)
    return layer
