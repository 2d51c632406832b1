"""Rules that rank suspects, on images whose labels were changed."""

import numpy as np
import pandas as pd
import pytest

from fomo.evidence import label_errors


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A small network, and a folder for the table."""
    monkeypatch.setattr(label_errors, "RESULTS", tmp_path)
    changed = {"image_size": 32, "backbone": "test_efficientnet", "weights": "random", "batch_size": 4}
    monkeypatch.setattr(label_errors, "SETTINGS", label_errors.SETTINGS | changed)


def test_each_rule_is_a_row_of_each_seed_and_what_is_stored_is_not_done_again(small, dataset, monkeypatch):
    table = label_errors.found([str(dataset)], [0])
    assert table["rule"].nunique() == len(table) == 5
    assert table[["named", "precision", "recall"]].stack().between(0, 1).all()
    monkeypatch.setattr(label_errors, "compare", lambda features, images, seed: [{"rule": "new"}])
    again = label_errors.found([str(dataset)], [0, 1])
    assert again["seed"].tolist() == [0] * 5 + [1]


def test_changed_labels_of_images_that_are_told_apart_with_ease_are_all_found():
    rng, labels = np.random.default_rng(0), np.arange(300) % 3
    features = np.eye(3)[labels] * 5 + rng.normal(0, 0.3, (300, 3))
    images = pd.DataFrame({"file": np.arange(300).astype(str), "label": labels})
    rows = pd.DataFrame(label_errors.compare(features, images, seed=0)).set_index("rule")
    assert (rows["recall"] == 1).all()
    assert (rows["precision"] == 1).all()
    assert rows.loc["self-confidence", "named"] == 1
    assert rows.loc["8 of 10 neighbours", "named"] == pytest.approx(0.05)


def test_summary_has_rules_by_data_sets():
    rows = [("a", "one", 0.5), ("a", "two", 0.75), ("b", "one", 1.0), ("b", "two", 0.0)]
    table = pd.DataFrame(rows, columns=["data set", "rule", "precision"]).assign(recall=1.0, named=0.25)
    shown = label_errors.summary(table)
    assert shown.loc["two", "a"] == "0.75 / 1.00 (0.25)"
