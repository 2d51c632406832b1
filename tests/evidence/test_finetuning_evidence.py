"""Whether the evidence's summaries say what the tables hold; the gathering itself takes hours."""

import numpy as np
import pandas as pd
import pytest

from fomo.config import PRESETS, make_config
from fomo.evidence import finetuning as evidence


def test_recipes_are_compared_with_the_plain_one_seed_by_seed():
    gains = dict.fromkeys(evidence.RECIPES, 0) | {"cosine": 0.01, "mixup": -0.01, "all": 0.02}
    rows = [
        {
            "recipe": recipe,
            "seed": seed,
            "validation_loss": 0.5 - gain,
            "validation_accuracy": 0.8 + (0.1 + gain) * seed,
        }
        for recipe, gain in gains.items()
        for seed in range(3)
    ]
    table = evidence.recipe_summary(pd.DataFrame(rows).sample(frac=1, random_state=0), "plain")
    assert table["gain"].to_dict() == pytest.approx(gains)
    assert table.loc["all", "gain_std"] == pytest.approx(0.02)
    assert table["loss"].is_monotonic_increasing
    assert table.index[[0, -1]].tolist() == ["all", "mixup"]
    assert table.loc["plain", ["loss", "accuracy"]].tolist() == pytest.approx([0.5, 0.9])


def test_full_trials_see_all_images_in_full_whatever_the_preset_does():
    config = evidence.fidelity_run("full").config
    assert (config.trial_share, config.trial_size, config.head_images) == (1.0, 0, 0)
    assert evidence.fidelity_run("both").config.trial_size == 32


def test_recipe_called_all_is_the_changes_above_it_at_once():
    above = list(evidence.RECIPES.values())[1 : list(evidence.RECIPES).index("all")]
    assert all(len(settings) == 1 for settings in above)
    assert evidence.RECIPES["all"] == {name: value for settings in above for name, value in settings.items()}
    assert evidence.RECIPES["best"].items() <= PRESETS["auto"].items()
    for settings in [*evidence.RECIPES.values(), *evidence.FIDELITIES.values()]:
        make_config("fashion_sample", "quick", **evidence.MEASURED | settings)


def test_tables_are_prepared_for_what_is_missing_only(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pd.DataFrame([{"place": 0, "value": 7.0}]).to_csv(tmp_path / "table.csv", index=False)
    prepared = []
    evidence._in_turn("table", dict, [{"place": 0}], lambda place: prepared.append(place))
    assert prepared == []
    table = evidence._in_turn("table", dict, [{"place": 0}, {"place": 1}], lambda place: prepared.append(place))
    assert prepared == [1]
    assert sorted(table["place"]) == [0, 1]


def test_cheap_trials_are_compared_by_rank_and_by_their_best():
    losses = {"full": range(24), "a quarter of the images": range(24), "half the side": range(23, -1, -1)}
    losses["both"] = [5, 6, *range(2, 5), 0, 1, *range(7, 24)]
    rows = [
        {"fidelity": fidelity, "place": place, "validation_loss": float(loss), "seconds": 1.0 + (place == 0)}
        for fidelity, values in losses.items()
        for place, loss in enumerate(values)
    ]
    table = evidence.fidelity_summary(pd.DataFrame(rows))
    assert table["spearman"].iloc[:3].tolist() == pytest.approx([1, 1, -1])
    assert table["of the five best"].tolist() == [5, 5, 0, 3]
    assert (table["seconds"] == 1).all()


@pytest.mark.parametrize(("slow_start", "lost"), [(False, 0), (True, 1)])
def test_pruning_is_judged_by_what_it_spends_and_loses(slow_start, lost):
    """Losses fall steadily, in the same order at all points; or the best trial is the worst until its end."""
    losses = np.arange(1.0, 13.0)
    early = np.concatenate([[20.0], losses[1:]]) if slow_start else losses
    columns = {"objective": losses} | {f"after_{at}": early + 1 - at for at in (0.25, 0.5, 0.75)}
    worth = evidence.pruning(pd.DataFrame(columns), trials=12, orders=40)
    assert 0.2 < worth["ended"] < 0.5
    assert 1 - 0.75 * worth["ended"] <= worth["spent"] < 1 - 0.25 * worth["ended"]  # ended at one of the quarters
    assert (worth["best lost"] > 0.3) == (worth["loss"] > 0) == bool(lost)


def test_rows_that_are_stored_are_not_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    keys = [{"place": place} for place in range(3)]
    pd.DataFrame([{"place": 0, "value": 7.0}, {"place": 2, "value": 9.0}]).to_csv(tmp_path / "table.csv", index=False)
    table = evidence._in_turn("table", dict, keys[::2], dict)
    assert table["value"].tolist() == [7, 9]
