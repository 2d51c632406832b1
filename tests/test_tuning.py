import math

import numpy as np
import pandas as pd
import pytest

from fomo.artifacts import read_table, write_table
from fomo.config import UserError
from fomo.tuning import Choice, Float, Study, describe

SPACE = {
    "lr": Float(1e-6, 1e-1, log=True),
    "momentum": Float(0.1, 0.9, when=("optimizer", "sgd")),
    "weight_decay": Float(0.0, 1e-2),
    "optimizer": Choice(("adam", "sgd", "rmsprop")),
    "layer": Choice((2, 3, 4)),
}
FIRST = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.0, "optimizer": "sgd", "layer": 4}
PLANE = {"x": Float(0.0, 1.0), "y": Float(0.0, 1.0)}


def loss(configuration):
    """A made-up validation loss: best at a learning rate of 1e-3, adam and layer 2."""
    value = abs(math.log10(configuration["lr"]) + 3) + {"adam": 0, "sgd": 0.5, "rmsprop": 1}[configuration["optimizer"]]
    return {
        "objective": value + 0.1 * configuration["layer"] + (configuration["momentum"] or 0),
        "train_loss": value / 3,
    }


def bowl(configuration):
    return {"objective": 3 * (configuration["x"] - 0.7) ** 2 + (configuration["y"] - 0.2) ** 2}


def new_study(path, seed=0, space=SPACE, first=FIRST, initial=4):
    return Study(space, path, seed=seed, first=first, initial=initial)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    study = new_study(tmp_path_factory.mktemp("study") / "trials.csv")
    study.run(loss, 8)
    return study


def failing(trial, outcome):
    """`loss`, but for one trial whose outcome is another: a number, or an exception to raise."""
    count = iter(range(100))

    def objective(configuration):
        if next(count) != trial:
            return loss(configuration)
        if isinstance(outcome, float):
            return {"objective": outcome}
        raise outcome

    return objective


# ---- the search space


@pytest.mark.parametrize("parameter", [Float(1e-6, 1e-1, log=True), Float(0.0, 1e-2), Float(-3.0, 5.0)])
def test_number_is_encoded_to_its_place_and_back(parameter):
    assert parameter.decode(0) == pytest.approx(parameter.low)
    assert parameter.decode(1) == pytest.approx(parameter.high)
    for place in np.linspace(0, 1, 11):
        assert parameter.encode(parameter.decode(place)) == pytest.approx(place, abs=1e-12)


def test_log_scale_halves_the_orders_of_magnitude():
    assert Float(1e-6, 1e-2, log=True).decode(0.5) == pytest.approx(1e-4)
    assert Float(0.0, 1e-2).decode(0.5) == pytest.approx(5e-3)


def test_inactive_number_lies_in_the_middle():
    assert SPACE["momentum"].encode(None) == 0.5


def test_each_choice_has_an_equal_share_of_the_unit_interval():
    places = (np.arange(300) + 0.5) / 300
    assert pd.Series([SPACE["layer"].decode(place) for place in places]).value_counts().to_dict() == {
        2: 100,
        3: 100,
        4: 100,
    }
    assert SPACE["layer"].decode(1.0) == 4


def test_space_is_described_as_a_table():
    table = describe(SPACE).set_index("parameter")
    assert table.loc["lr"].tolist() == ["1e-06 to 0.1", "log", "always"]
    assert table.loc["momentum"].tolist() == ["0.1 to 0.9", "linear", "with optimizer sgd"]
    assert table.loc["layer", "range"] == "2, 3, 4"


# ---- trials


def test_first_trial_is_the_given_one(finished):
    assert finished.configuration(0) == FIRST


def test_there_are_as_many_trials_as_asked_for(finished):
    assert finished.trials["trial"].tolist() == list(range(8))
    assert (finished.trials["status"] == "complete").all()


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay"])
def test_numbers_stay_within_bounds(finished, name):
    assert finished.trials[name].dropna().between(SPACE[name].low, SPACE[name].high).all()


@pytest.mark.parametrize("name", ["optimizer", "layer"])
def test_choices_are_of_the_space(finished, name):
    assert set(finished.trials[name]) <= set(SPACE[name].choices)


def test_momentum_acts_under_sgd_only(finished):
    assert finished.trials["momentum"].notna().equals(finished.trials["optimizer"] == "sgd")
    assert finished.trials["optimizer"].nunique() > 1


def test_configuration_has_plain_values_as_the_space_names_them(finished):
    for trial in finished.trials["trial"]:
        configuration = finished.configuration(trial)
        assert list(configuration) == list(SPACE)
        assert {type(value) for value in configuration.values()} <= {float, int, str, type(None)}
        assert loss(configuration)["objective"] == finished.trials.loc[trial, "objective"]


def test_initial_design_covers_the_space(tmp_path):
    study = new_study(tmp_path / "trials.csv", space=PLANE, first={"x": 0.5, "y": 0.5}, initial=17)
    study.run(bowl, 17)
    quarters = (study.trials[["x", "y"]][1:] > 0.5).value_counts()
    assert quarters.tolist() == [4, 4, 4, 4]


def test_best_top_and_incumbent_agree(finished):
    objective = finished.trials["objective"]
    assert finished.best["objective"] == objective.min()
    assert finished.top(3)["objective"].tolist() == sorted(objective)[:3]
    assert finished.incumbent().tolist() == [min(objective[: n + 1]) for n in range(8)]


def test_table_on_disk_is_that_in_memory_bit_by_bit(finished, tmp_path):
    stored = read_table(finished.path)
    pd.testing.assert_frame_equal(stored, finished.trials, check_exact=True)
    write_table(tmp_path / "again.csv", stored)
    assert (tmp_path / "again.csv").read_bytes() == finished.path.read_bytes()


# ---- interruptions


@pytest.mark.parametrize("trial", [0, 2, 4, 7])
def test_killed_study_goes_on_as_if_it_had_not_been(finished, tmp_path, trial):
    with pytest.raises(KeyboardInterrupt):
        new_study(tmp_path / "trials.csv").run(failing(trial, KeyboardInterrupt()), 8)
    resumed = new_study(tmp_path / "trials.csv")
    assert len(resumed.trials) == trial
    resumed.run(loss, 8)
    pd.testing.assert_frame_equal(
        resumed.trials.drop(columns="seconds"), finished.trials.drop(columns="seconds"), check_exact=True
    )


def test_finished_study_runs_no_trial(finished):
    new_study(finished.path).run(failing(0, AssertionError("no trial was due")), 8)


def test_longer_study_begins_as_the_shorter(finished, tmp_path):
    study = new_study(tmp_path / "trials.csv")
    study.run(loss, 6)
    pd.testing.assert_series_equal(study.trials["lr"], finished.trials["lr"][:6], check_exact=True)


@pytest.mark.parametrize("seed", [1, 20261123])
def test_another_seed_makes_other_trials(finished, tmp_path, seed):
    study = new_study(tmp_path / "trials.csv", seed=seed)
    study.run(loss, 5)
    assert (study.trials["lr"][1:] != finished.trials["lr"][1:5]).all()


@pytest.mark.parametrize("trial", [0, 1, 5])
@pytest.mark.parametrize("outcome", [math.nan, math.inf, -math.inf, ArithmeticError()])
def test_trial_that_diverges_is_marked_and_the_study_goes_on(tmp_path, trial, outcome):
    study = new_study(tmp_path / "trials.csv")
    study.run(failing(trial, outcome), 7)
    assert (study.trials["status"] == "diverged").tolist() == [number == trial for number in range(7)]
    assert math.isfinite(study.best["objective"])
    assert np.isfinite(study.clipped()).all()


@pytest.mark.parametrize("trials", [2, 6])
def test_study_whose_trials_all_diverge_says_so(tmp_path, trials):
    def objective(_):
        raise ArithmeticError

    with pytest.raises(UserError, match=f"all {trials} trials in .* diverged; lower the learning rates"):
        new_study(tmp_path / "trials.csv").run(objective, trials)


def test_error_of_the_objective_is_not_swallowed(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"):
        new_study(tmp_path / "trials.csv").run(failing(1, RuntimeError("a bug")), 3)


# ---- the surrogate


def test_study_beats_random_search(tmp_path):
    found, random = [], []
    for seed in range(5):
        study = new_study(tmp_path / f"{seed}.csv", seed, PLANE, {"x": 0.0, "y": 1.0}, initial=5)
        study.run(bowl, 12)
        found.append(study.best["objective"])
        points = np.random.default_rng(seed).random((200, 12, 2))
        random.append(np.mean([min(bowl({"x": x, "y": y})["objective"] for x, y in draw) for draw in points]))
    assert np.mean(found) < 0.5 * np.mean(random)


def test_huge_losses_are_cut_off_and_the_order_of_the_others_is_kept(tmp_path):
    losses = iter([1.0, 1.2, 0.8, 1e6, 1.1, math.inf])
    study = new_study(tmp_path / "trials.csv", initial=6)
    study.run(lambda _: {"objective": next(losses)}, 6)
    clipped = study.clipped()
    assert clipped[[0, 1, 2, 4]].tolist() == [1.0, 1.2, 0.8, 1.1]
    assert clipped[3] == clipped[5] < 3


def test_slices_show_every_parameter_with_its_uncertainty(finished):
    table = finished.slices(count=5)
    assert table.groupby("parameter").size().to_dict() == {
        "lr": 5,
        "momentum": 5,
        "weight_decay": 5,
        "optimizer": 3,
        "layer": 3,
    }
    assert np.isfinite(table[["mean", "std"]].to_numpy(dtype=float)).all()
    assert (table["std"] > 0).all()


def test_slices_tell_what_matters(tmp_path):
    study = new_study(tmp_path / "trials.csv", space=PLANE, first={"x": 0.0, "y": 0.0}, initial=12)
    study.run(lambda point: {"objective": 5 * point["x"]}, 12)
    spread = study.slices(count=5).groupby("parameter")["mean"].agg(np.ptp)
    assert spread["x"] == pytest.approx(5, abs=0.5)
    assert spread["y"] < 0.5
