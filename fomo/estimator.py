"""A run as scikit-learn's classifiers are used: `fit` on lists of images and labels, then `predict`."""

import hashlib
import os
import warnings
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from fomo.artifacts import Run
from fomo.config import LAST_SEED, UserError, some
from fomo.data.dataset import Dataset
from fomo.data.datasets import without_rare
from fomo.data.given import Held, each
from fomo.model import load_model
from fomo.stages.evaluation import MODEL
from fomo.stages.final import compose
from fomo.stages.inputs import give
from fomo.stages.probing import probe
from fomo.stages.so_far import keep_best
from fomo.storage import read_table


class ImageClassifier(ClassifierMixin, BaseEstimator):
    """The classifier that a run finds for the images given, all of which are for training and validation.

    `minutes` (15, if none are given), `preset`, `metric`, `backbone` and further `settings` (a dict) are those of a
    `Run`; `random_state` makes its seed. A fit leaves nothing behind, unless a `folder` is named where runs are kept:
    then a fit of the same images, labels and parameters goes on from there, and loads what is done. A progress bar is
    shown, unless the environment has TQDM_DISABLE=1.

    Afterwards `model_` is the `Model`, and `classes_` has the labels as they were given, sorted.
    """

    def __init__(
        self, minutes=None, *, preset=None, metric=None, backbone=None, random_state=0, folder=None, settings=None
    ):
        self.minutes = minutes
        self.preset = preset
        self.metric = metric
        self.backbone = backbone
        self.random_state = random_state
        self.folder = folder
        self.settings = settings

    def fit(self, X, y) -> "ImageClassifier":
        """The estimator itself. `X` has paths of image files, or PIL images, arrays (uint8) or bytes of files. Ctrl-C
        takes the best model so far, with a warning. Raises `UserError` for images and labels that make no data set."""
        named, given = list(each(_images(X), {})), column_or_1d(y, warn=True)
        check_consistent_length(named, given)
        try:
            labels, numbers = np.unique(given, return_inverse=True)
        except TypeError as error:  # such as text and None
            raise UserError(f"labels in y are of several types ({error}); give all as text or as numbers") from error
        check_classification_targets(given)
        table = pd.DataFrame({"file": [str(name) for name, _ in named], "label": numbers})
        twice, names = table["file"][table["file"].duplicated()], [str(label) for label in labels]
        if len(twice) or "" in names:
            fault = f"X names {some(list(twice))} more than once" if len(twice) else "y has a label without text"
            raise UserError(f"{fault}; each image is given once, with a label that names its class")
        held = Held({str(name): thing for name, thing in named if isinstance(name, int)})
        data = Dataset("X", held, names, table, lambda: table[:0])
        folder = nullcontext(Path(self.folder).expanduser()) if self.folder else TemporaryDirectory(prefix="fomo-")
        with folder as place:
            self.model_ = load_model(self._run(Path(place).absolute(), data))
        self.classes_ = labels[[names.index(name) for name in self.model_.classes]]
        return self

    def _run(self, folder: Path, data: Dataset) -> Path:
        """The model's file of a run that is kept in `folder`, by the images and settings that it is of."""
        seed = int(check_random_state(self.random_state).randint(LAST_SEED))
        asked = {"preset": self.preset, "seed": seed, "minutes": self.minutes, "metric": self.metric}
        asked |= {"backbone": self.backbone} | (self.settings or {})
        key = repr([data.fingerprint(), sorted(asked.items())])
        folder.mkdir(parents=True, exist_ok=True)
        name = folder / hashlib.sha256(key.encode()).hexdigest()[:12]
        run = Run(str(folder), name=str(name), **asked)
        give(run, without_rare(data, run.config.on_rare))
        path, unreadable = run.folder / MODEL, run.folder / "unreadable.csv"
        try:
            with run.clock.running():
                probe(run)  # the first model that Ctrl-C leaves
                compose(run).model.save(path)
        except KeyboardInterrupt:
            keep_best(run)
            if not path.exists():
                raise
            warnings.warn("interrupted: the best model so far is taken", stacklevel=3)
        except UserError as error:
            if not unreadable.exists():
                raise
            raise UserError(f"{_named(read_table(unreadable))}, or give settings={{'on_bad': 'skip'}}") from error
        return path

    def predict(self, X) -> np.ndarray:
        """The label of each image. Where macro F1 is wanted, it may be a rare class that is not the most probable one.
        Raises `UserError` for images that cannot be read."""
        named = self._predicted(X)["class"]
        return self.classes_[pd.Index(self.model_.classes).get_indexer(named)]

    def predict_proba(self, X) -> np.ndarray:
        """The probability of each class (images, classes), in the order of `classes_`. Raises as `predict` does."""
        table = self._predicted(X)
        return table[self.model_.columns].to_numpy()

    def _predicted(self, X) -> pd.DataFrame:
        check_is_fitted(self)
        table = self.model_.predict(_images(X))
        if table["reason"].notna().any():
            raise UserError(_named(table[table["reason"].notna()]))
        return table

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string = False, True
        return tags


def _images(X) -> list:
    """The images given, paths made absolute. Raises `UserError` for what is no list of them, or names no file."""
    allowed = "a list, an array or a Series of paths of image files, or of PIL images, arrays or bytes of files"
    if isinstance(X, str | bytes) or not hasattr(X, "__len__") or getattr(X, "ndim", 1) == 2:
        raise UserError(f"X is of type {type(X).__name__}{getattr(X, 'shape', '')}; give {allowed}")
    images = [os.path.abspath(os.path.expanduser(one)) if isinstance(one, str | Path) else one for one in X]
    missing = [one for one in images if isinstance(one, str) and not os.path.isfile(one)]
    if missing:
        raise UserError(f"X has {len(missing)} paths that lead to no file: {some(missing)}; give {allowed}")
    return images


def _named(damaged: pd.DataFrame) -> str:
    """What images cannot be read (file, reason), and what to do, as text."""
    named = some([f"{row.file} ({row.reason})" for row in damaged.itertuples()], 10)
    return f"cannot read {len(damaged)} of the images in X: {named}; repair them, or take them out with their labels"
