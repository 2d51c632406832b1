"""What is taken of the options that a final model may be made of, by validation images."""

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from fomo.config import Config
from fomo.stages import metrics


def choose(judged: list[dict], config: Config) -> dict:
    """The heads and views to take, of what `judge_options` says of each network: of each heads the views of least loss.
    Of these the first, unless a later one is `better` than it. Few validation images cannot show what finetuning gains,
    nor what the probe adds to it: so the finetuned network, and then its mean with the probe, is taken where its loss
    is less, or hardly more and the metric that is wanted speaks for it, unless the simpler one is `better`. Where the
    finetuned network is not taken, the mean is, if its loss is less or hardly more and the probe is not `better`: few
    judges may prefer either of the two, and the mean errs less than both on nearly all images."""
    if config.final == "searched":
        return {"heads": "searched", "views": 1}
    together = {}
    for option in judged[0]:
        parts = [worth[option] for worth in judged if option in worth]
        together[option] = tuple(np.concatenate(values) for values in zip(*parts, strict=True))
    best = None
    for name in dict.fromkeys(heads for heads, _ in together):
        option = min((one for one in together if one[0] == name), key=lambda one: together[one][2].mean())
        if best is None or better(together[option], together[best], config.metric):
            best = option
        elif (best[0], name) in (("probe", "finetuned"), ("finetuned", "with probe")):
            simple, other = together[best], together[option]
            if _speaks_for(other, simple, config.metric) and not better(simple, other, config.metric):
                best = option
        elif (best[0], name) == ("probe", "with probe"):
            other = together[option]
            if _hardly_worse(other, together[best]) and not better(together[best], other, config.metric):
                best = option
    return {"heads": best[0], "views": best[1]}


def _paired(one: tuple, other: tuple) -> tuple[np.ndarray, ...]:
    """Labels, the classes that two options name, and the differences of their losses, on the images that both judged:
    the first ones."""
    size = min(len(one[0]), len(other[0]))
    return one[0][:size], one[1][:size], other[1][:size], one[2][:size] - other[2][:size]


def _speaks_for(one: tuple, other: tuple, metric: str) -> bool:
    """Whether the loss of an option is less than another's, or more by less than a standard error while the metric that
    is wanted is higher; on the same images, as `better` has them."""
    labels, named, others, differences = _paired(one, other)
    if metric == "log_loss" or differences.mean() < 0:
        return bool(differences.mean() < 0)
    gain, _ = metrics.paired_gain(labels, named, others, metric)
    return bool(gain > 0 and _hardly_worse(one, other))


def _hardly_worse(one: tuple, other: tuple) -> bool:
    """Whether the loss of an option is less than another's, or more by less than a standard error."""
    *_, differences = _paired(one, other)
    return bool(differences.mean() < differences.std() / np.sqrt(len(differences)))


def better(one: tuple, other: tuple, metric: str) -> bool:
    """Whether an option is better than another on the same images, given (labels, classes named, losses) of each, in
    paired tests with p < 0.05: by the metric that is wanted where that tells them apart, else by the loss, which tells
    options apart with fewer images. An option that was judged on fewer images is compared on those."""
    labels, named, others, differences = _paired(one, other)
    if metric != "log_loss":
        gain, p = metrics.paired_gain(labels, named, others, metric)
        if p < 0.05:
            return gain > 0
    if not differences.any():
        return False
    return bool(differences.mean() < 0 and ttest_1samp(differences, 0.0).pvalue < 0.05)


def limit(temperatures: list[float]) -> list[float]:
    """The temperatures of the networks in their mean, from those that calibrate each of them alone: the same for one
    network, at most 1 for several.

    The mean of several is less sure of itself than each is. If each were made less sure as well, the mean would be too
    unsure (Rahaman and Thiery, arXiv:2007.08792); and no images are new to all of them, to calibrate it by.
    """
    return temperatures if len(temperatures) == 1 else [min(temperature, 1.0) for temperature in temperatures]


def choose_adjustment(decisions: pd.DataFrame) -> float:
    """The adjustment of best macro F1, of which the accuracy is taken off that it costs; the first row has none."""
    accuracy = decisions["validation_accuracy"]
    worth = decisions["macro F1"] - (accuracy.iloc[0] - accuracy).clip(lower=0)
    return float(decisions.loc[worth.round(9).idxmax(), "adjustment"])  # means of several networks differ by rounding
