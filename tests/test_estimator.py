import pickle
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import toys
from PIL import Image
from sklearn.base import clone
from sklearn.metrics import accuracy_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import check_array
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted

from fomo import ImageClassifier, estimator
from fomo.config import UserError

SETTINGS = {"weights": "random", "image_size": 32, "batch_size": 8, "epochs": 2}
SETTINGS |= {"first_epochs": 0, "trials": 0, "darts_epochs": 0}


def tiny(**changes) -> ImageClassifier:
    return ImageClassifier(**{"preset": "quick", "backbone": "test_efficientnet", "settings": SETTINGS} | changes)


def paths_and_labels(folder: Path) -> tuple[list[Path], list[str]]:
    paths = sorted(folder.glob("*/*.png"))
    return paths, [path.parent.name for path in paths]


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """24 images as paths and labels."""
    return paths_and_labels(toys.write_class_folders(tmp_path_factory.mktemp("data") / "images", count=8))


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    """9 other images."""
    return paths_and_labels(toys.write_class_folders(tmp_path_factory.mktemp("data") / "unseen", count=3, seed=50))


@pytest.fixture(scope="module")
def fitted(lists, tmp_path_factory):
    """An estimator fitted on the 24 images; for reading only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOMO_RUNS", str(tmp_path_factory.mktemp("runs")))
        return tiny().fit(*lists)


@pytest.fixture
def own(tmp_path):
    """15 images of the test's own, as paths and labels."""
    return paths_and_labels(toys.write_class_folders(tmp_path / "own", count=5))


# ---- fit and predict


def test_classes_are_sorted_and_probabilities_come_in_their_order(fitted, unseen):
    assert fitted.classes_.tolist() == sorted(toys.CLASSES)
    probabilities = fitted.predict_proba(unseen[0])
    assert probabilities.shape == (9, 3)
    assert np.allclose(probabilities.sum(1), 1)
    table = fitted.model_.predict(unseen[0])
    assert np.array_equal(probabilities, table[["bottom", "middle", "top"]])
    assert fitted.predict(unseen[0]).tolist() == table["class"].tolist()


def test_score_is_the_accuracy_on_images_that_were_held_out(fitted, unseen):
    assert fitted.score(*unseen) == accuracy_score(unseen[1], fitted.predict(unseen[0])) > 0.8


def test_labels_come_back_in_their_own_type_and_paths_may_be_text_in_any_sequence(own, unseen):
    numbers = {"top": 30, "middle": -1, "bottom": 4}
    labels = pd.Series([numbers[label] for label in own[1]], index=range(100, 115), dtype="int16")
    found = tiny().fit(pd.Series(map(str, own[0]), index=range(7, 22)), labels)
    assert found.classes_.tolist() == [-1, 4, 30]
    predicted = found.predict(np.array(list(map(str, unseen[0]))))
    assert predicted.dtype == np.int16
    assert set(predicted) <= {-1, 4, 30}


def test_images_may_be_held_instead_of_files(own):
    arrays = np.stack([np.asarray(Image.open(path)) for path in own[0]])
    mixed = [Image.fromarray(arrays[0]), own[0][1].read_bytes(), own[0][2], *arrays[3:]]
    found = tiny().fit(mixed, own[1])
    assert np.array_equal(found.predict_proba(mixed), found.predict_proba(own[0]))


def test_fit_is_repeatable_and_leaves_nothing_behind(fitted, lists, unseen, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    again = tiny().fit(*lists)
    assert np.array_equal(again.predict_proba(unseen[0]), fitted.predict_proba(unseen[0]))
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_run_that_is_kept_is_loaded_by_the_same_fit_only(own, unseen, tmp_path):
    first = tiny(folder=tmp_path / "kept").fit(*own)
    (kept,) = (tmp_path / "kept").iterdir()
    written = {path: path.stat().st_mtime_ns for path in kept.glob("*/*")}
    again = tiny(folder=str(tmp_path / "kept")).fit(*own)
    assert {path: path.stat().st_mtime_ns for path in kept.glob("*/*")} == written
    assert np.array_equal(again.predict_proba(unseen[0]), first.predict_proba(unseen[0]))
    other = {"top": "bottom", "middle": "middle", "bottom": "top"}
    again.fit(own[0], [other[label] for label in own[1]])
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert again.predict(unseen[0]).tolist() == [other[label] for label in first.predict(unseen[0])]


def test_interrupted_fit_takes_the_best_model_so_far(own, monkeypatch):
    def interrupt(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(estimator, "compose", interrupt)
    with pytest.warns(UserWarning, match="interrupted: the best model so far"):
        assert tiny().fit(*own).predict_proba(own[0]).shape == (15, 3)
    monkeypatch.setattr(estimator, "probe", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tiny().fit(*own)


# ---- what is refused


def test_unreadable_images_are_named(fitted, own, tmp_path):
    own[0][3].write_bytes(own[0][3].read_bytes()[:60])
    refused = tiny(folder=tmp_path / "kept")
    for ask in (lambda: refused.fit(*own), lambda: fitted.predict(own[0]), lambda: fitted.predict_proba(own[0])):
        with pytest.raises(UserError, match=r"cannot read 1 of the images in X: .+003.png \(.+\); repair them"):
            ask()
    held = [*own[0][:3], Image.open(own[0][3]), *own[0][4:]]
    with pytest.raises(UserError, match=r"cannot read 1 of the images in X: 3 \(OSError: image file is truncated"):
        tiny().fit(held, own[1])
    found = tiny(settings=SETTINGS | {"on_bad": "skip"}).fit(*own)
    assert len(found.predict(own[0][:3])) == 3


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda paths, labels: (paths[:-1], labels), "inconsistent numbers of samples"),
        (lambda paths, labels: (paths, ["top"] * len(paths)), "X has the one class 'top'"),
        (lambda paths, labels: ([], []), "X has no class; a classifier needs at least 2"),
        (lambda paths, labels: (paths, [None, *labels[1:]]), "labels in y are of several types .*NoneType"),
        (lambda paths, labels: (paths, ["rare", *labels[1:]]), "fewer than 2 train images of 'rare'"),
        (lambda paths, labels: (paths, ["", "", *labels[2:]]), "y has a label without text"),
        (lambda paths, labels: ([paths[1], *paths[1:]], labels), r"X names .*001\.png more than once"),
        (lambda paths, labels: ([paths[0].parent, *paths[1:]], labels), "X has 1 paths that lead to no file"),
        (lambda paths, labels: ([paths[0].parent / "*.png", *paths[1:]], labels), "1 paths that lead to no file"),
        (lambda paths, labels: ([1, *paths[1:]], labels), "item 0 is of type int"),
        (lambda paths, labels: ([np.zeros((9, 9)), *paths[1:]], labels), "array 0 holds float32"),
        (lambda paths, labels: (str(paths[0]), labels), "X is of type str; give a list"),
        (lambda paths, labels: (pd.DataFrame({"file": paths}), labels), r"X is of type DataFrame\(15, 1\); give a"),
        (lambda paths, labels: (paths, np.linspace(0, 1, len(paths))), "Unknown label type: continuous"),
    ],
)
def test_images_and_labels_that_make_no_data_set_are_refused(own, change, fault):
    with pytest.raises(ValueError, match=fault):
        tiny().fit(*change(*own))


@pytest.mark.parametrize(
    "parameters", [{"preset": "quik"}, {"backbone": "resnet"}, {"metric": "f1"}, {"minutes": "5", "preset": None}]
)
def test_parameters_are_checked_in_fit(own, parameters):
    asked = tiny(**parameters)
    with pytest.raises(UserError, match=str(next(iter(parameters.values())))):
        asked.fit(*own)


def test_settings_replace_what_the_parameters_say(own):
    with pytest.raises(UserError, match="setting 'seed' is -1"):
        tiny(settings=SETTINGS | {"seed": -1}).fit(*own)


# ---- scikit-learn's tools


def test_fitted_estimator_is_pickled_with_its_model(fitted, unseen):
    loaded = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(loaded.predict_proba(unseen[0]), fitted.predict_proba(unseen[0]))
    assert loaded.classes_.tolist() == fitted.classes_.tolist()


def test_clone_has_the_parameters_but_no_model(fitted):
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not hasattr(copy, "model_")


def test_folds_are_runs_of_their_own(lists, tmp_path):
    paths, labels = map(np.array, lists)
    asked = make_pipeline(tiny(folder=tmp_path / "kept", settings=SETTINGS | {"epochs": 1}))
    scores = cross_val_score(asked, paths, labels, cv=2, scoring="neg_log_loss")
    assert np.isfinite(scores).all()
    tables = [estimator.read_table(path) for path in (tmp_path / "kept").glob("*/1_preprocessing/images.csv")]
    used = [set(table["file"]) for table in tables]
    assert [len(files) for files in used] == [12, 12]
    assert not used[0] & used[1]


class Sums:
    """In place of a model: what it says of an image depends on the sum of its pixels alone."""

    def __init__(self, classes: list[str]):
        self.classes = classes

    @property
    def columns(self) -> list[str]:
        return self.classes

    def predict(self, images: list) -> pd.DataFrame:
        sums = np.array([image.sum() for image in images], float)
        logits = np.sin(sums[:, None] * np.arange(1, 1 + len(self.classes)))
        table = pd.DataFrame(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), columns=self.classes)
        return table.assign(**{"class": [self.classes[number] for number in logits.argmax(1)]}, reason=None)


class Rows(ImageClassifier):
    """Draws the rows of a matrix, which is all that scikit-learn's checks have, as images; its run finds `Sums`."""

    def fit(self, X, y):  # noqa: N803
        return super().fit(self._drawn(X), y)

    def _run(self, folder, data):
        return data.classes

    def _predicted(self, X):  # noqa: N803
        check_is_fitted(self)
        return super()._predicted(self._drawn(X))

    def _drawn(self, X) -> list[np.ndarray]:  # noqa: N803
        return list(np.clip(20 * check_array(X) + 128, 0, 255).astype(np.uint8)[:, None])

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = tags.classifier_tags.poor_score = True
        return tags


CANNOT_APPLY = {
    "check_n_features_in": "images have no features that could be counted",
    "check_n_features_in_after_fitting": "images have no features that could be counted",
    "check_classifiers_train": "at its end it wants other numbers of features to be refused; images may have any size",
}


@pytest.mark.filterwarnings("ignore")
def test_estimator_passes_the_checks_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(estimator, "load_model", Sums)
    results = check_estimator(Rows(), expected_failed_checks=CANNOT_APPLY, on_skip=None)
    assert len([one for one in results if one["status"] == "passed"]) > 40
    assert {one["check_name"] for one in results if one["status"] == "xfail"} == set(CANNOT_APPLY)
    check_estimator(ImageClassifier(), on_skip=None)  # as it is
