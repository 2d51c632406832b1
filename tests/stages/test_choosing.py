"""What is taken of the options that a final model may be made of."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fomo.stages import choosing


def told(right, wrong, loss):
    """(labels, classes named, losses) of an option that is right on the first `right` images, and wrong on the next."""
    labels = np.arange(right + wrong) % 2
    return labels, np.where(np.arange(right + wrong) < right, labels, 1 - labels), loss


NOISE = np.random.default_rng(0).normal(scale=0.01, size=100)
LESS = NOISE[::-1] - 1e-4


@pytest.mark.parametrize(
    ("one", "other", "metric", "expected"),
    [
        (told(90, 10, NOISE + 9.0), told(70, 30, NOISE), "macro_f1", True),
        (told(70, 30, NOISE), told(90, 10, NOISE + 9.0), "macro_f1", False),  # though its loss is lower
        (told(90, 10, NOISE + 9.0), told(70, 30, NOISE), "accuracy", True),
        (told(90, 10, NOISE + 9.0), told(70, 30, NOISE), "log_loss", False),  # of which the loss alone tells
        (told(90, 10, NOISE), told(89, 11, NOISE[::-1] + 1.0), "macro_f1", True),  # told apart by the loss alone
        (told(91, 9, NOISE[::-1]), told(89, 11, NOISE), "macro_f1", False),  # not told apart at all
        (told(90, 10, NOISE), told(90, 10, NOISE), "macro_f1", False),
    ],
)
def test_option_is_better_by_the_metric_or_else_by_the_loss(one, other, metric, expected):
    assert choosing.better(one, other, metric) is expected


def test_option_that_was_judged_on_fewer_images_is_compared_on_those():
    few = tuple(values[:100] for values in told(95, 5, NOISE))
    many = tuple(np.concatenate(pair) for pair in zip(told(70, 30, NOISE), told(100, 0, NOISE), strict=True))
    assert choosing.better(few, many, "accuracy")
    assert not choosing.better(many, few, "accuracy")


def test_simplest_option_is_chosen_unless_a_later_one_is_better_on_all_networks_together():
    config = SimpleNamespace(final="validation", metric="accuracy")
    weak, strong = told(70, 30, NOISE), told(90, 10, NOISE)
    options = {("probe", 1): weak, ("finetuned", 1): weak, ("searched", 2): strong, ("both", 8): strong}
    assert choosing.choose([options], config) == {"heads": "searched", "views": 2}
    likely = (*strong[:2], NOISE - 1.0)  # of the views of a head those of least loss
    assert choosing.choose([options | {("searched", 8): likely}], config) == {"heads": "searched", "views": 8}
    others = {option: weak for option in options if option[0] != "probe"}
    assert choosing.choose([dict.fromkeys(options, weak), others], config) == {"heads": "probe", "views": 1}
    assert choosing.choose([options], SimpleNamespace(final="searched")) == {"heads": "searched", "views": 1}


def test_finetuned_network_of_less_loss_is_chosen_though_no_test_shows_it():
    config = SimpleNamespace(final="validation", metric="accuracy")
    weak, less, wrong = (told(right, 100 - right, loss) for right, loss in ((70, NOISE), (70, LESS), (50, LESS)))
    assert not choosing.better(less, weak, "accuracy")
    assert choosing.choose([{("probe", 1): weak, ("finetuned", 1): less}], config)["heads"] == "finetuned"
    assert choosing.choose([{("probe", 1): less, ("finetuned", 1): weak}], config)["heads"] == "probe"
    assert choosing.choose([{("probe", 1): weak, ("finetuned", 1): wrong}], config)["heads"] == "probe"


@pytest.mark.parametrize(
    ("right", "more", "metric", "taken"),
    [
        (72, 0.0, "macro_f1", "finetuned"),
        (72, 0.0, "accuracy", "finetuned"),
        (72, 0.0, "log_loss", "probe"),
        (70, 0.0, "macro_f1", "probe"),  # the metric does not speak for it
        (72, 0.1, "macro_f1", "probe"),  # far more loss
    ],
)
def test_finetuned_network_of_hardly_more_loss_is_chosen_where_the_metric_speaks_for_it(right, more, metric, taken):
    options = {("probe", 1): told(70, 30, LESS), ("finetuned", 1): told(right, 100 - right, NOISE + more)}
    assert not choosing.better(options["finetuned", 1], options["probe", 1], metric)
    assert choosing.choose([options], SimpleNamespace(final="validation", metric=metric))["heads"] == taken


@pytest.mark.parametrize(
    ("right", "more", "taken"),
    [
        (90, -1e-4, "with probe"),  # no test shows it
        (92, 0.0, "with probe"),
        (90, 0.1, "finetuned"),
        (92, 0.1, "finetuned"),
    ],
)
def test_mean_with_the_probe_is_chosen_where_its_loss_is_less_or_hardly_more(right, more, taken):
    weak, strong = told(70, 30, NOISE + 1.0), told(90, 10, NOISE[::-1])
    options = {("probe", 1): weak, ("finetuned", 1): strong, ("with probe", 1): told(right, 100 - right, NOISE + more)}
    config = SimpleNamespace(final="validation", metric="accuracy")
    assert choosing.choose([options], config)["heads"] == taken
    assert choosing.choose([options | {("finetuned", 1): weak}], config)["heads"] == "with probe"


@pytest.mark.parametrize(
    ("loss", "taken"), [(LESS - 1e-5, "with probe"), (NOISE, "with probe"), (NOISE + 0.1, "probe")]
)
def test_mean_is_chosen_where_the_finetuned_network_is_not_unless_the_probe_is_better(loss, taken):
    options = {("probe", 1): told(70, 30, LESS), ("finetuned", 1): told(70, 30, NOISE + 0.2)}
    options |= {("with probe", 1): told(69, 31, loss)}
    assert choosing.choose([options], SimpleNamespace(final="validation", metric="macro_f1"))["heads"] == taken


def test_several_networks_are_made_surer_but_not_less_sure():
    assert choosing.limit([1.5]) == [1.5]
    assert choosing.limit([1.5, 0.8, 1.0]) == [1.0, 0.8, 1.0]


@pytest.mark.parametrize(
    ("accuracy", "f1", "taken"),
    [
        ((0.8, 0.8, 0.8), (0.6, 0.6, 0.6), 0.0),  # of equals the first
        ((0.8, 0.81, 0.8), (0.6, 0.61, 0.62), 0.5),
        ((0.8, 0.81, 0.7), (0.6, 0.61, 0.69), 0.25),  # the last one costs more accuracy than it gains
        ((0.98, 0.97, 0.96), (0.49, 0.6, 0.65), 0.5),
        ((0.9661458333333334, 0.9661458333333333, 0.96), (0.6, 0.6, 0.6), 0.0),  # equal but for the rounding
    ],
)
def test_adjustment_is_taken_that_gains_more_f1_than_it_costs_accuracy(accuracy, f1, taken):
    columns = {"adjustment": [0.0, 0.25, 0.5], "validation_accuracy": accuracy, "macro F1": f1}
    assert choosing.choose_adjustment(pd.DataFrame(columns)) == taken
