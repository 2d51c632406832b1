"""Stage 13: images whose labels are perhaps wrong, near duplicates of two classes, images unlike all others."""

from itertools import chain

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestNeighbors

from fomo.artifacts import Run
from fomo.data.inspection import NEAR, telling
from fomo.data.look import HASH_SIZE, picture_hash
from fomo.stages.common import open_stage, step
from fomo.stages.final import compose
from fomo.stages.forecast import looked_at
from fomo.stages.planning import in_time
from fomo.stages.preprocessing import Preprocessed, preprocess
from fomo.stages.probing import probe

FOLDS = 5
FEWEST = 5  # images of a class in the other folds; with fewer, its labels are believed
DIRECTIONS = 256  # that hold most of the features: a fit in them takes a tenth of a second, and is as good as in all
SHRINKAGE = 0.1  # of the covariance within classes, towards a multiple of the identity
NEIGHBOURS = 10
COLUMNS = ["kind", "rank", "file", "given", "suggested", "why", "row"]
CLOSE = 0.5  # times the usual distance of neighbours: of these pairs the pictures are compared
FAR = 1.5  # interquartile ranges above the third quartile: outside, by Tukey


@step("13_suspects")
def suspects(run: Run) -> pd.DataFrame:
    """The suspects among the images of train and validation: kind, rank (within its kind), file, given and suggested
    class, why, and the `row` of its pixels. Empty where a run with minutes has none left to look for them.

    Kinds: label (another class fits better), duplicate (nearly the picture of one of another class; of the two the one
    whose label fits less), unlike (far from all others). Of many images some are drawn (`forecast.looked_at`).
    """
    stage, data = open_stage(run, "13_suspects"), preprocess(run)
    if not stage.done:
        most = looked_at(len(data.images), run.config.minutes)
        count = run.clock.decide("suspects", lambda: most if in_time(run, "suspects") else 0)
        images = data.images.sample(count, random_state=run.config.seed).sort_index()
        stage.save_table("suspects", look_over(run, data, images.reset_index(drop=True)))
        stage.finish()
    table = stage.table("suspects")
    return table.assign(suggested=table["suggested"].astype(object).fillna(""))


def look_over(run: Run, data: Preprocessed, images: pd.DataFrame) -> pd.DataFrame:
    """The suspects among `images` (file, label, row, maybe group), as `suspects` returns them."""
    if len(images) < 2:
        return pd.DataFrame(columns=COLUMNS)
    names, labels, files = np.array(data.dataset.classes), images["label"].to_numpy(), images["file"].to_numpy()
    features = reduce(probe(run).features[images["row"]])
    groups = images["group" if "group" in images else "file"].to_numpy()
    told = cross_validated(features, labels, groups, len(names), run.config.seed)
    probabilities = _with_networks(run, images["row"], told)
    own, rows = probabilities[np.arange(len(labels)), labels], []
    for image, label in zip(*confident_learning(probabilities, labels), strict=True):
        why = f"{names[label]} {probabilities[image, label]:.0%}, {names[labels[image]]} {own[image]:.0%}"
        rows.append(("label", image, names[label], why))
    features /= np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    distances, others = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(labels) - 1)).fit(features).kneighbors()
    mean = distances.mean(axis=1)
    first, usual, third = np.quantile(mean, (0.25, 0.5, 0.75))
    one, place = np.nonzero((labels[others] != labels[:, None]) & (distances < CLOSE * usual))
    pairs = np.unique(np.sort(np.stack([one, others[one, place]], axis=1)), axis=0).tolist()
    for bits, pair in near(data.pixels, images["row"].to_numpy(), pairs):
        image, other = sorted(pair, key=lambda one: own[one])
        why = f"all but {bits} of {HASH_SIZE**2} bits as in {files[other]}"
        rows.append(("duplicate", image, names[labels[other]], why))
    for image in np.argsort(-mean, kind="stable")[: (mean > third + FAR * (third - first)).sum()]:
        rows.append(("unlike", image, "", f"{mean[image] / usual:.1f} times as far from its nearest images as usual"))
    table = pd.DataFrame(rows, columns=["kind", "image", "suggested", "why"]).astype({"image": int})
    table = table.join(images, on="image")
    table["rank"] = table.groupby("kind").cumcount() + 1
    return table.assign(given=names[table["label"].astype(int)])[COLUMNS]


def confident_learning(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images whose labels are perhaps wrong, the most suspect first, and the most probable class of each.

    There are as many as `confident` marks. Which they are, the probability of the given class says, where another one
    is more probable: that finds more of them (data/results/label_errors.csv).
    """
    own, suggested = probabilities[np.arange(len(labels)), labels], probabilities.argmax(axis=1)
    order = np.argsort(own, kind="stable")
    found = order[suggested[order] != labels[order]][: confident(probabilities, labels).sum()]
    return found, suggested[found]


def confident(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each image counts as one of a wrong label: another class is the most probable of those that pass their
    threshold, the mean probability of a class over its own images.

    `probabilities` (images, classes) are of models that have not learned from the image; `labels` (images). Confident
    learning (C. Northcutt, L. Jiang, I. Chuang, arXiv:1911.00068, eq. 1 and 2), by hand, for cleanlab is AGPL.
    """
    own, counts = probabilities[np.arange(len(labels)), labels], np.bincount(labels, minlength=probabilities.shape[1])
    thresholds = np.where(counts > 0, np.bincount(labels, own, len(counts)) / counts.clip(min=1), np.inf)
    passing = np.where(probabilities >= thresholds, probabilities, -1.0)
    return (passing.max(axis=1) >= 0) & (passing.argmax(axis=1) != labels)


def reduce(features: np.ndarray) -> np.ndarray:
    """The features (images, features) in the `DIRECTIONS` that hold most of them, not centred."""
    _, directions = np.linalg.eigh(features.T @ features)
    return features @ directions[:, -DIRECTIONS:]


def cross_validated(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int, seed: int
) -> np.ndarray:
    """The probability of each class for each image (images, classes), by a discriminant analysis of the other folds;
    images of one group are in one fold. Where these have fewer than `FEWEST` images of its class, a label is believed.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    order = np.lexsort((np.random.default_rng(seed).random(len(first)), labels[first]))
    fold = np.empty(len(first), dtype=int)
    fold[order] = np.arange(len(first)) % FOLDS  # so each has as many of a class as the others
    fold, found = fold[group], np.eye(classes)[labels]
    for number in range(FOLDS):
        known = np.bincount(labels[fold != number], minlength=classes) >= FEWEST
        judged, rest = ((side & known[labels]).nonzero()[0] for side in (fold == number, fold != number))
        if known.sum() > 1 and len(judged):
            model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE).fit(features[rest], labels[rest])
            found[np.ix_(judged, model.classes_)] = model.predict_proba(features[judged])
    return found


def _with_networks(run: Run, rows: pd.Series, told: np.ndarray) -> np.ndarray:
    """The mean of the probabilities `told` (images, classes) of the images with these `rows` of pixels, and of those of
    each network of the final model that has not learned from them."""
    if not run.finished("11_final"):
        compose(run)
    by_networks = open_stage(run, "11_final").array("told")
    places, count = pd.Index(rows).get_indexer(by_networks[:, 0]), np.ones((len(rows), 1))
    np.add.at(told, places[places >= 0], by_networks[places >= 0, 1:])
    np.add.at(count, places[places >= 0], 1)
    return told / count


def near(pixels: np.ndarray, rows: np.ndarray, pairs: list[list[int]]) -> list[tuple[int, list[int]]]:
    """(bits, pair) of those `pairs` of images that are nearly the same picture, those most alike first: in so many bits
    their perceptual hashes differ."""
    pictures = {image: Image.fromarray(pixels[rows[image]].transpose(1, 2, 0).squeeze()) for image in {*chain(*pairs)}}
    hashes = pd.Series({image: picture_hash(picture) for image, picture in pictures.items()}, dtype=object)
    known = hashes[telling(hashes)].map(lambda text: int(text, 16)).to_dict()
    bits = [((known[one] ^ known[other]).bit_count(), [one, other]) for one, other in pairs if {one, other} <= {*known}]
    return sorted(pair for pair in bits if pair[0] <= NEAR)
