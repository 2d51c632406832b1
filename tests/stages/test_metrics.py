import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
)

from fomo.stages import metrics
from fomo.stages.metrics import (
    METRICS,
    REPORT,
    beside_report,
    gap,
    measure,
    per_class,
    predict_majority,
)
from fomo.training import calibration

CLASSES = ["a", "b", "c", "d"]


def guesses(count, right, seed, never=None):
    """(labels, predictions), of which the share `right` is right; the class `never` is not predicted."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 4)
    predicted = np.where(rng.random(count) < right, labels, rng.integers(0, 4, count))
    return labels, np.where(predicted == never, 0, predicted)


def measured(count=200, right=0.7, models=("weak", "strong"), **options):
    labels, strong = guesses(count, right, seed=0)
    predictions = {"weak": guesses(count, 0.2, seed=1)[1], "strong": strong}
    options = {"classes": 4, "resamples": 300, "seed": 0} | options
    table = measure(labels, {model: predictions[model] for model in models}, **options)
    return table.set_index(["model", "metric"])


@pytest.mark.parametrize("never", [None, 2])
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_scikit_learn(seed, never):
    labels, predicted = guesses(60, 0.5, seed, never)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    expected = [f1, precision, recall, accuracy_score(labels, predicted)]
    assert metrics.scores(confusion_matrix(labels, predicted)) == pytest.approx(expected)


def test_class_without_images_does_not_count():
    labels, predicted = guesses(60, 0.5, seed=0)
    kept = labels != 3
    matrix = confusion_matrix(labels[kept], predicted[kept], labels=range(4))
    report = precision_recall_fscore_support(labels[kept], predicted[kept], labels=[0, 1, 2], average="macro")
    assert metrics.scores(matrix)[:3] == pytest.approx([report[2], report[0], report[1]])


def test_scores_of_many_matrices_are_those_of_each():
    matrices = np.random.default_rng(0).integers(0, 9, (5, 4, 4))
    assert np.allclose(metrics.scores(matrices), [metrics.scores(matrix) for matrix in matrices])


def test_interval_covers_the_value():
    table = measured()
    assert (table["low"] < table["value"]).all()
    assert (table["value"] < table["high"]).all()


def test_interval_is_the_same_for_the_same_seed():
    pd.testing.assert_frame_equal(measured(), measured(), check_exact=True)
    assert (measured(seed=1)["low"] != measured()["low"]).any()


def test_interval_shrinks_with_the_root_of_the_number_of_images():
    widths = [table["high"] - table["low"] for table in (measured(count=100), measured(count=1600))]
    assert (widths[0] / widths[1]).between(2.5, 6).all()


def test_interval_of_the_accuracy_is_the_binomial_one():
    row = measured(count=400, resamples=2000).loc[("strong", "accuracy")]
    error = 1.96 * (row["value"] * (1 - row["value"]) / 400) ** 0.5
    assert [row["low"], row["high"]] == pytest.approx([row["value"] - error, row["value"] + error], abs=0.01)


def test_last_model_gains_nothing_over_itself():
    assert (measured().loc["strong"][["gain", "gain_low", "gain_high"]] == 0).all(axis=None)


def test_gain_is_the_difference_of_the_values_with_a_paired_interval():
    table = measured()
    weak, strong = table.loc["weak"], table.loc["strong"]
    assert np.allclose(weak["gain"], strong["value"] - weak["value"])
    assert (weak["gain_low"] > 0).all()
    assert weak["gain"].between(weak["gain_low"], weak["gain_high"]).all()


def test_model_has_the_same_numbers_whoever_stands_beside_it():
    together, alone = measured().loc["strong"], measured(models=["strong"]).loc["strong"]
    pd.testing.assert_frame_equal(together, alone)


def test_table_has_a_row_for_each_model_and_metric():
    assert list(measured().index) == [(model, metric) for model in ("weak", "strong") for metric in METRICS]


@pytest.mark.parametrize("never", [None, 2])
def test_per_class_table_is_that_of_scikit_learn(never):
    labels, predicted = guesses(60, 0.5, 0, never)
    report = classification_report(labels, predicted, target_names=CLASSES, output_dict=True, zero_division=0)
    table = per_class(labels, predicted, CLASSES).set_index("class")
    for name in CLASSES:
        assert table.loc[name].tolist() == pytest.approx(list(report[name].values()))


def test_confusion_counts_images_by_true_row_and_predicted_column():
    table = metrics.confusion(np.array([0, 0, 0, 1]), np.array([0, 2, 2, 1]), CLASSES)
    assert table.loc["a"].tolist() == [1, 0, 2, 0]
    assert table.loc["b"].tolist() == [0, 1, 0, 0]
    assert table.to_numpy().sum() == 4


def test_majority_baseline_predicts_the_most_frequent_class():
    assert predict_majority(np.array([2, 1, 2, 0, 2]), 4).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy"])
def test_paired_gain_is_the_difference_of_the_metric_and_says_whether_it_is_luck(metric):
    labels, weak = guesses(200, 0.2, seed=1)
    strong = np.where(np.random.default_rng(2).random(200) < 0.6, labels, weak)
    value = lambda named: metrics.scores(confusion_matrix(labels, named))[{"macro_f1": 0, "accuracy": 3}[metric]]  # noqa: E731
    gain, p = metrics.paired_gain(labels, strong, weak, metric)
    assert gain == pytest.approx(value(strong) - value(weak))
    assert p == pytest.approx(1 / 501)
    assert metrics.paired_gain(labels, weak, weak, metric) == (0, 1)
    opposite = metrics.paired_gain(labels[:4], labels[:4], (labels[:4] + 1) % 4, metric)  # no image in common
    assert opposite[0] == 1


def test_gap_is_validation_minus_test_of_the_last_model():
    metrics = measured().reset_index()
    validation = metrics[metrics["model"] == "strong"].assign(value=lambda table: table["value"] + 0.05)
    table = gap(metrics, validation)
    assert list(table.index) == list(METRICS)
    assert np.allclose(table["validation minus test"], 0.05)
    assert np.allclose(table["test"], measured().loc["strong", "value"])


def test_ours_stands_beside_the_report():
    table = beside_report(measured().reset_index(), "skin_cancer")
    assert table.loc["macro F1", "report"] == REPORT["skin_cancer"]["macro F1"] == 0.77
    assert np.isnan(table.loc["macro recall", "report"])
    assert np.allclose(table["ours"], measured().loc["strong", "value"])


def test_own_data_set_has_no_number_in_the_report():
    assert beside_report(measured().reset_index(), "path/to/folder")["report"].isna().all()


# ---- calibration


def sure_of_itself(count, temperature, seed=0):
    """(labels, logits) of a model that is right as often as softmax(logits / `temperature`) says."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(count, 4))
    labels = np.array([rng.choice(4, p=row) for row in softmax(logits, axis=1)])
    return labels, logits * temperature


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_found_again_and_calibrates(temperature):
    labels, logits = sure_of_itself(20_000, temperature)
    found = calibration.fit_temperature(labels, logits)
    assert found == pytest.approx(temperature, rel=0.05)
    assert metrics.calibration_error(labels, logits / found) < 0.015
    assert temperature == 1.0 or metrics.calibration_error(labels, logits) > 0.05


def test_temperature_of_several_is_that_of_their_mean():
    labels, logits = sure_of_itself(20_000, 2.0)
    assert calibration.fit_temperature(labels, logits, logits, weights=(0.75, 0.25)) == pytest.approx(2.0, rel=0.05)
    known_nothing = np.zeros_like(logits)
    weights = (0.75, 0.25)
    found = calibration.fit_temperature(labels, logits, known_nothing, weights=weights)
    mean = 0.75 * softmax(logits / found, axis=1) + 0.25 * softmax(known_nothing, axis=1)
    pooled = calibration.pooled((logits, known_nothing), weights, found)
    assert np.exp(pooled) == pytest.approx(mean)
    worse = [calibration.pooled((logits, known_nothing), weights, found * part) for part in (0.8, 1.25)]
    assert calibration.log_loss(labels, pooled) < min(calibration.log_loss(labels, one) for one in worse)


def test_log_loss_is_that_of_scikit_learn():
    labels, logits = sure_of_itself(200, 1.0)
    assert calibration.log_loss(labels, logits) == pytest.approx(log_loss(labels, softmax(logits, axis=1)))


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    """Four images at confidence 0.75, three of them right: no gap; with one right, half."""
    logits = np.log(np.tile([0.75, 0.25], (4, 1)))
    assert metrics.calibration_error(np.array([0, 0, 0, 1]), logits) == pytest.approx(0)
    assert metrics.calibration_error(np.array([0, 1, 1, 1]), logits) == pytest.approx(0.5)
    certain = np.array([[0.0, -1e9]] * 2)
    assert metrics.calibration_error(np.array([0, 1]), certain) == pytest.approx(0.5)


def test_surest_are_a_right_and_a_wrong_image_of_each_of_the_weakest_classes():
    labels, named = [0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 0, 1, 1, 1, 0, 0, 2, 2]
    table = pd.DataFrame({"label": labels, "final": named, "confidence": [0.7, 0.9, 0.6, 0.5, 0.8, 0.6, 0.9, 0.5, 0.7]})
    per_class = pd.DataFrame({"F1": [0.5, 0.8, 0.6, 0.0], "images": [3, 2, 4, 0]})
    found = metrics.surest(table, per_class, classes=3)
    assert list(found.columns) == ["label", "final", "confidence"]
    assert found.index.tolist() == [1, 8, 4, 2, 6]  # right ones of classes 0, 2, 1, then wrong ones of 0, 2; 1 has none
    assert metrics.surest(table, per_class, classes=1).index.tolist() == [1, 2]
