"""Trainings of so many steps: small images that are told apart with ease."""

import itertools
from types import SimpleNamespace

import pandas as pd
import pytest

from fomo.evidence import minutes, steps
from fomo.stages import timing


@pytest.fixture
def task(dataset, tmp_path, monkeypatch):
    """The toy data set as a task, a small network, and a folder for the table."""
    monkeypatch.setitem(minutes.TASKS, "toy", minutes.Task(str(dataset)))
    monkeypatch.setattr(steps, "RESULTS", tmp_path)
    small = {"image_size": 32, "backbone": "test_efficientnet", "weights": "random", "batch_size": 4}
    monkeypatch.setattr(steps, "SETTINGS", steps.SETTINGS | small)
    monkeypatch.setattr(steps, "BATCH", 4)
    monkeypatch.setattr(timing, "TIMED_SIDES", (32, 48))
    return "toy"


def test_training_makes_so_many_steps_and_is_tested(task, monkeypatch):
    table = steps.trainings([task], [1, 7])
    assert table["steps"].tolist() == [0, *[1] * len(steps.RECIPES), *[7] * len(steps.RECIPES)]
    assert table["recipe"].tolist() == ["plain", *steps.RECIPES, *steps.RECIPES]
    assert table["accuracy"].between(0, 1).all()
    assert table["epochs"].tolist() == pytest.approx((table["steps"] * 4 / table["train images"]).tolist())
    fifth = table["recipe"].str.endswith("a fifth for validation")
    assert table["train images"][fifth].max() < table["train images"][~fifth].min()
    monkeypatch.setattr(steps, "_of_steps", None)  # what is stored is not done again
    assert len(steps.trainings([task], [1, 7])) == len(table)


def test_training_takes_so_many_seconds_at_each_side(task, monkeypatch):
    """The clock shows a second more at each look, so a training of seven seconds has seven steps."""
    asked, fit = [], steps.fit_images

    def fit_images(*args, pace):
        return fit(*args, pace=lambda done, planned: (asked.append(done), pace(done, planned))[1])

    monkeypatch.setattr(steps, "fit_images", fit_images)
    monkeypatch.setattr(steps, "time", SimpleNamespace(process_time=itertools.count().__next__))
    table = steps.sides([task], [32, 48], "plain", 7)
    assert asked == [*range(7), *range(7)]
    assert table[["side", "seconds"]].to_numpy().tolist() == [[32, 7], [48, 7]]
    assert table["accuracy"].between(0, 1).all()
    assert (table["log loss"] > 0).all()
    monkeypatch.setattr(steps, "_of_seconds", None)  # what is stored is not done again
    assert len(steps.sides([task], [32, 48], "plain", 7)) == 2


def test_summary_has_the_probe_beside_each_training():
    rows = [("a", 0, "plain", 0.5), ("a", 40, "plain", 0.6), ("a", 40, "cut-outs", 0.7)]
    table = pd.DataFrame(rows, columns=["task", "steps", "recipe", "accuracy"])
    shown = steps.summary(table.assign(**{"train images": 10, "cut-outs taken": True}))
    assert shown["probe"].tolist() == [0.5, 0.5]
    assert shown[40].tolist() == [0.6, 0.7]
