"""The probe's head: the same as scikit-learn's, as a linear layer."""

import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fomo.training import logistic
from fomo.training.logistic import STRENGTHS, choose_strength, fit_linear, score, temper


def draw(classes, images=120, seed=0):
    """Features (images, 8) off the origin, whose first ones tell something of the labels (images)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    features = rng.normal(3.0, 1.0, (images, 8))
    features[np.arange(images), labels] += 1.5
    return features.astype(np.float32), labels


@torch.inference_mode()
def probabilities(layer, features):
    return layer(torch.from_numpy(features)).double().softmax(1).numpy()


@pytest.mark.parametrize("classes", [2, 4])
def test_layer_predicts_what_scikit_learn_does(classes):
    features, labels = draw(classes)
    scaled = features - features.mean(axis=0)
    scaled /= scaled.std()
    expected = LogisticRegression(C=0.1, max_iter=200).fit(scaled, labels).predict_proba(scaled)
    np.testing.assert_allclose(probabilities(fit_linear(features, labels, classes, 0.1), features), expected, atol=1e-4)


@pytest.mark.parametrize("named", [[1, 3], [0, 2, 3]])
def test_class_without_images_is_never_named(named):
    features, labels = draw(len(named))
    layer = fit_linear(features, np.array(named)[labels], 5, 1.0)
    found = probabilities(layer, np.concatenate([features, 100 * features, -100 * features]))
    assert set(found.argmax(1)) <= set(named)
    assert found.shape[1] == 5


def test_one_image_of_each_class_is_fitted_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = fit_linear(np.eye(6, dtype=np.float32), np.arange(6), 6, 1.0)
    assert layer(torch.eye(6)).argmax(1).tolist() == list(range(6))


def test_features_that_are_all_equal_are_no_error():
    layer = fit_linear(np.ones((6, 3), np.float32), np.arange(6) % 2, 2, 1.0)
    np.testing.assert_allclose(probabilities(layer, np.ones((1, 3), np.float32)), 0.5, atol=1e-6)


def test_fit_is_deterministic_whatever_was_drawn_before():
    features, labels = draw(3)
    first = fit_linear(features, labels, 3, 1.0)
    torch.rand(7), np.random.rand(7)
    assert torch.equal(first.weight, fit_linear(features, labels, 3, 1.0).weight)


def test_some_of_too_many_images_are_drawn_by_the_seed(monkeypatch):
    features, labels = draw(3)
    seen, fit = [], logistic._fit
    monkeypatch.setattr(
        logistic, "_fit", lambda model, rows, names: (seen.append(len(rows)), fit(model, rows, names))[1]
    )
    fit_linear(features, labels, 3, 1.0)
    monkeypatch.setattr(logistic, "MOST", 50)
    first, same, other = (fit_linear(features, labels, 3, 1.0, seed=seed) for seed in (0, 0, 1))
    assert seen == [120, 50, 50, 50]
    assert torch.equal(first.weight, same.weight)
    assert not torch.equal(first.weight, other.weight)


def test_strengths_are_sorted_by_the_loss_that_they_have_when_calibrated():
    table = choose_strength(draw(4, 60), draw(4, 200, seed=1), 4)
    assert sorted(table["C"]) == list(STRENGTHS)
    assert table["log_loss"].is_monotonic_increasing
    assert table["log_loss"].iloc[0] < table["log_loss"].iloc[-1]


def test_row_of_a_strength_is_what_its_calibrated_layer_is_worth():
    train, validation = draw(4, 60), draw(4, 200, seed=1)
    row = choose_strength(train, validation, 4).set_index("C").loc[0.1]
    plain = fit_linear(*train, 4, 0.1)
    worth = score(temper(copy.deepcopy(plain), row["temperature"]), *validation)
    assert worth["log_loss"] < score(plain, *validation)["log_loss"]
    assert row["log_loss"] == pytest.approx(worth["log_loss"], rel=1e-2)
    assert row["accuracy"] == pytest.approx(worth["accuracy"], abs=0.011)
