"""What is found of labels that are known to be wrong: rules that rank suspects, by labels changed at random."""

from collections.abc import Iterable, Iterator
from itertools import product

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

from fomo.artifacts import Run
from fomo.config import RESULTS
from fomo.stages.preprocessing import preprocess
from fomo.stages.probing import probe
from fomo.stages.suspecting import confident, confident_learning, cross_validated, reduce
from fomo.storage import read_table, write_table

SETS = ("fashion_sample", "skin_cancer", "flowers")  # the rule was chosen on the first two, and tried on the last one
SETTINGS = {"minutes": 0.0, "image_size": 96, "batch_size": 32, "validation_share": 0.2, "on_bad": "skip"}
SETTINGS |= {"backbone": "tf_efficientnet_lite0"}
SEEDS = (0, 1, 2)
SHARE = 0.05  # of the labels are changed; so many of the first suspects are looked at


def found(sets: Iterable[str] = SETS, seeds: Iterable[int] = SEEDS) -> pd.DataFrame:
    """A row for each data set, seed and rule: the share of the images that it names; and of the first `SHARE` of the
    images in its ranking, precision and recall.

    The networks are frozen, and each image is judged by models that have not seen its label. Stored as
    data/results/label_errors.csv, set by set and seed by seed; what is there already is not done again.
    """
    path, keys = RESULTS / "label_errors.csv", ["data set", "seed"]
    table = read_table(path) if path.exists() else pd.DataFrame(columns=keys)
    done = set(table[keys].itertuples(index=False, name=None))
    for name, seed in tqdm([key for key in product(sets, seeds) if key not in done], desc="label errors"):
        run = Run(name, "auto", name="labels", **SETTINGS)
        images, features = preprocess(run).images, probe(run).features
        rows = [{"data set": name, "seed": seed} | row for row in compare(features[images["row"]], images, seed)]
        table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
        write_table(path, table)
    return table


def compare(features: np.ndarray, images: pd.DataFrame, seed: int) -> Iterator[dict]:
    """What each rule finds of the labels of `images` (label, file, maybe group) that are changed by `seed`."""
    rng, labels = np.random.default_rng(seed), images["label"].to_numpy(copy=True)
    classes, count = labels.max() + 1, round(SHARE * len(labels))
    wrong = rng.choice(len(labels), count, replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, classes, count)) % classes
    for rule, order in rankings(features, labels, images["group" if "group" in images else "file"], seed):
        right = np.isin(order[:count], wrong)
        values = {"named": len(order) / len(labels), "precision": right.mean(), "recall": right.sum() / count}
        yield {"rule": rule} | {name: round(float(value), 4) for name, value in values.items()}


def rankings(
    features: np.ndarray, labels: np.ndarray, groups: pd.Series, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """The name of each rule, and the images that it names, the most suspect first."""
    nearest = NearestNeighbors(n_neighbors=10, metric="cosine").fit(features).kneighbors(return_distance=False)
    votes = np.apply_along_axis(np.bincount, 1, labels[nearest], minlength=labels.max() + 1)
    agreed = np.argsort(-votes.max(axis=1), kind="stable")
    yield "8 of 10 neighbours", agreed[((votes.max(axis=1) >= 8) & (votes.argmax(axis=1) != labels))[agreed]]
    probabilities = cross_validated(reduce(features), labels, groups.to_numpy(), labels.max() + 1, seed)
    images = np.arange(len(labels))
    own, others = probabilities[images, labels], probabilities.copy()
    others[images, labels] = 0
    by_own, by_margin = (np.argsort(one, kind="stable") for one in (own, own - others.max(axis=1)))
    marked = confident(probabilities, labels)
    yield "self-confidence", by_own
    yield "confident learning, by margin", by_margin[marked[by_margin]]
    yield "confident learning, by self-confidence", by_own[marked[by_own]]
    yield "self-confidence, as many as confident learning", confident_learning(probabilities, labels)[0]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Precision / recall of each rule (rows) on each data set, means over seeds, and the share of images named."""
    means = table.groupby(["rule", "data set"], sort=False)[["precision", "recall", "named"]].mean()
    text = means.map("{:.2f}".format)
    return (text["precision"] + " / " + text["recall"] + " (" + text["named"] + ")").unstack(sort=False)
