"""Test metrics with intervals, the baselines, and the published report's numbers to stand beside them."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.dummy import DummyClassifier
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

PERMUTATIONS = 500
METRICS = ("macro F1", "macro precision", "macro recall", "accuracy")

# The report's table: its F1 and precision are macro averages. Recall is not in it.
REPORT = {
    "emotions": {"macro F1": 0.63, "macro precision": 0.64, "accuracy": 0.66},
    "fashion": {"macro F1": 0.93, "macro precision": 0.93, "accuracy": 0.93},
    "flowers": {"macro F1": 0.93, "macro precision": 0.94, "accuracy": 0.94},
    "skin_cancer": {"macro F1": 0.77, "macro precision": 0.79, "accuracy": 0.87},
}


def scores(confusion: np.ndarray) -> np.ndarray:
    """`METRICS` (..., 4) of confusion matrices (..., classes, classes), rows = true class.

    Macro averages run over the classes that occur among the true labels; the precision of a class that is never
    predicted is 0, as in scikit-learn.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, predicted = confusion.sum(-1), confusion.sum(-2)
    present = support > 0

    def macro(numerator, denominator):
        ratio = numerator / np.maximum(denominator, 1)
        return (ratio * present).sum(-1) / present.sum(-1)

    f1, precision, recall = macro(2 * hits, support + predicted), macro(hits, predicted), macro(hits, support)
    return np.stack([f1, precision, recall, hits.sum(-1) / support.sum(-1)], axis=-1)


def measure(
    labels: np.ndarray, predictions: Mapping[str, np.ndarray], classes: int, *, resamples: int, seed: int
) -> pd.DataFrame:
    """One row for each of the models in `predictions` and each metric: value and 95% interval (low, high).

    The interval is the percentile bootstrap over images. `gain`, `gain_low`, `gain_high`: by how much the last of the
    models is better than the row's, on the same resamples (paired).
    """
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=resamples)  # weight of each image
    values, samples = {}, {}
    for model, predicted in predictions.items():
        cells = labels * classes + predicted
        values[model] = scores(confusion_matrix(labels, predicted, labels=range(classes)))
        counts = [np.bincount(cells, weights=draw, minlength=classes**2) for draw in draws]
        samples[model] = scores(np.reshape(counts, (resamples, classes, classes)))
    last = list(predictions)[-1]
    rows = []
    for model in predictions:
        low, high = np.percentile(samples[model], [2.5, 97.5], axis=0)
        gain_low, gain_high = np.percentile(samples[last] - samples[model], [2.5, 97.5], axis=0)
        for number, metric in enumerate(METRICS):
            row = {"model": model, "metric": metric, "value": values[model][number]}
            row |= {"low": low[number], "high": high[number], "gain": values[last][number] - values[model][number]}
            rows.append(row | {"gain_low": gain_low[number], "gain_high": gain_high[number]})
    return pd.DataFrame(rows)


def per_class(labels: np.ndarray, predicted: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Precision, recall, F1 and number of images of each class."""
    values = precision_recall_fscore_support(labels, predicted, labels=range(len(classes)), zero_division=0)
    return pd.DataFrame(dict(zip(("precision", "recall", "F1", "images"), values, strict=True)) | {"class": classes})[
        ["class", "precision", "recall", "F1", "images"]
    ]


def surest(predictions: pd.DataFrame, per_class: pd.DataFrame, classes: int = 6) -> pd.DataFrame:
    """The rows of `predictions` (label, final, confidence) of which the model is most certain: of each of the `classes`
    of least F1 one where it is right, and after all of these one where it is wrong. A class may lack either."""
    weakest = per_class[per_class["images"] > 0].nsmallest(classes, "F1").index  # a class's number
    rows = predictions[predictions["label"].isin(weakest)].sort_values("confidence", ascending=False)
    rows = rows.assign(wrong=rows["label"] != rows["final"], place=rows["label"].map(weakest.get_loc))
    return rows.drop_duplicates(["wrong", "label"]).sort_values(["wrong", "place"]).drop(columns=["wrong", "place"])


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Numbers of images by true class (rows) and predicted class (columns)."""
    return pd.DataFrame(confusion_matrix(labels, predicted, labels=range(len(classes))), index=classes, columns=classes)


def predict_majority(labels: np.ndarray, count: int) -> np.ndarray:
    """The most frequent of the training `labels`, `count` times."""
    return (
        DummyClassifier(strategy="most_frequent").fit(np.zeros((len(labels), 1)), labels).predict(np.zeros((count, 1)))
    )


def paired_gain(labels: np.ndarray, named: np.ndarray, others: np.ndarray, metric: str) -> tuple[float, float]:
    """By how much naming the classes `named` (images) is better than naming the `others`, in macro_f1 or accuracy, and
    the probability of a difference of this size or more between two equally good ones: a permutation test that swaps
    the two image by image."""
    place = {"macro_f1": 0, "accuracy": 3}[metric]
    classes = int(max(labels.max(), named.max(), others.max())) + 1
    differ = np.flatnonzero(named != others)
    same = np.bincount(np.delete(labels * classes + named, differ), minlength=classes**2)

    def gain(first: np.ndarray, second: np.ndarray) -> float:
        cells = [labels[differ] * classes + one for one in (first, second)]
        counts = [(same + np.bincount(cell, minlength=classes**2)).reshape(classes, classes) for cell in cells]
        return float(np.subtract(*(scores(count)[place] for count in counts)))

    first, second = named[differ], others[differ]
    found, rng = gain(first, second), np.random.default_rng(0)
    swaps = rng.random((PERMUTATIONS, len(differ))) < 0.5
    reached = [
        abs(gain(np.where(swap, second, first), np.where(swap, first, second))) >= abs(found) - 1e-12 for swap in swaps
    ]
    return found, (sum(reached) + 1) / (PERMUTATIONS + 1)


def calibration_error(labels: np.ndarray, logits: np.ndarray) -> float:
    """The expected calibration error of softmax(logits): by how much, in the mean over images, confidence and accuracy
    differ within 15 bins of equal width of confidence (Guo et al., arXiv:1706.04599, eq. 3)."""
    bins, probabilities = 15, softmax(logits, axis=1)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    differences = np.bincount(places, weights=correct - confidence, minlength=bins)
    return float(np.abs(differences).sum() / len(labels))


def gap(metrics: pd.DataFrame, validation: pd.DataFrame) -> pd.DataFrame:
    """The last model's metrics on validation and on test, and their difference: what looking has cost."""
    test = metrics[metrics["model"] == metrics["model"].iloc[-1]].set_index("metric")["value"]
    table = pd.DataFrame({"validation": validation.set_index("metric")["value"], "test": test})
    return table.loc[list(METRICS)].assign(**{"validation minus test": table["validation"] - table["test"]})


def interval(row: Mapping) -> str:
    """A metric with its 95% interval, as text. `row`: value, low, high."""
    return "{value:.3f} [{low:.3f}, {high:.3f}]".format(**row)


def gained(row: Mapping) -> str:
    """A gain with its 95% interval, as text. `row`: gain, gain_low, gain_high."""
    return "{gain:+.3f} [{gain_low:+.3f}, {gain_high:+.3f}]".format(**row)


def told(metrics: pd.DataFrame) -> str:
    """The final model's metrics with their intervals, as text."""
    final = metrics[metrics["model"] == "final"].set_index("metric")
    return ", ".join(f"{name} {interval(final.loc[name])}" for name in ("macro F1", "macro precision", "accuracy"))


def beside_report(metrics: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """The table "report | ours | low | high" of the last model in `metrics`; NaN where the report has no number."""
    ours = metrics[metrics["model"] == metrics["model"].iloc[-1]].set_index("metric")
    table = ours[["value", "low", "high"]].rename(columns={"value": "ours"})
    table.insert(0, "report", pd.Series(REPORT.get(dataset, {}), dtype=float).reindex(table.index))
    return table
