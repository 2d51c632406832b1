"""A run with minutes from end to end, and the same run again by its stored plan."""

import filecmp
import functools
import itertools
import time
from types import SimpleNamespace

import pytest
import torch
import toys

import fomo
from fomo.config import UserError
from fomo.networks.weights import OFFLINE, ONLINE
from fomo.stages import rules, timing
from fomo.stages.common import STAGES
from fomo.stages.forecast import PAGES
from fomo.stages.planning import another, looked_at, reserve

TINY = {"backbone": "test_efficientnet", "weights": "random", "image_size": 32, "batch_size": 4, "epochs": 2}
TINY |= {"trials": 2, "initial_trials": 1, "trial_share": 1.0, "darts_epochs": 1, "head_seeds": 1, "head_trials": 2}
TINY |= {"bootstrap": 50, "race_share": 1.0, "alone_epochs": 1, "head_epochs": 1}


@pytest.fixture(scope="module")
def limited(dataset, tmp_path_factory):
    """A run of the toy data set with two minutes, finished."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOMO_RUNS", str(tmp_path_factory.mktemp("limited")))
        patch.setattr("fomo.stages.rules.MOST_MEMBERS", 2)
        run = fomo.Run(dataset, minutes=2, **TINY)
        fomo.evaluate(run)
        fomo.suspects(run)
        return run


def test_run_with_minutes_is_planned_and_ends_in_time(limited):
    assert limited.preset == "auto"
    assert limited.clock.used < 60
    steps = fomo.plan(limited).steps
    assert steps["step"].tolist()[:2] == ["preprocess", "probe"]
    assert (steps["minutes"] >= 0).all()


def test_settings_asked_for_are_kept_by_the_plan(limited):
    fomo.plan(limited)
    assert {name: getattr(limited.config, name) for name in TINY} == TINY


def test_time_that_is_left_makes_a_further_network_if_the_first_is_as_good_as_the_probe(limited):
    pays = fomo.finetune_best(limited).kept["validation_accuracy"] >= fomo.probe(limited).strengths["accuracy"].iloc[0]
    assert limited.clock.decisions["network 2"] == pays
    assert another(limited, 4, pays=True)
    assert not another(limited, 5, pays=False)
    assert not another(limited, rules.MOST_MEMBERS + 1, pays=True)


def test_more_time_is_kept_for_the_pages_beside_other_programs(limited, monkeypatch):
    usual = reserve(limited, "evaluate")
    monkeypatch.setattr(limited.clock, "crowding", 2.0)
    assert reserve(limited, "evaluate") == pytest.approx(usual + PAGES)
    monkeypatch.setattr(limited, "device", torch.device("cuda"))
    assert reserve(limited, "evaluate") == usual


def test_finished_run_with_minutes_is_read_and_not_planned_anew(limited, monkeypatch):
    monkeypatch.setattr("fomo.stages.planning.look", None)
    again = fomo.Run(limited.config.dataset, minutes=2, name=limited.folder.name, **TINY)
    again.folder = limited.folder
    again.clock = type(limited.clock)(2, limited.folder)
    fomo.evaluate(again)


def test_plan_of_other_images_is_refused_with_what_has_changed(limited, monkeypatch, tmp_path):
    monkeypatch.setenv("FOMO_RUNS", str(tmp_path))
    other = toys.write_dataset(tmp_path / "other", train=25, test=8)
    again = fomo.Run(other, minutes=2, **TINY)
    again.folder, again.clock = limited.folder, type(limited.clock)(2, limited.folder)
    with pytest.raises(UserError, match=r"0_plan was .*\(the images have changed: 15 added, 60 other\)"):
        fomo.plan(again)


def test_run_by_a_stored_plan_ends_with_the_same_metrics(limited):
    again = fomo.Run(limited.config.dataset, plan=limited.folder / "plan.json")
    fomo.evaluate(again)
    fomo.suspects(again)
    assert again.folder != limited.folder
    for name in STAGES:
        tables = [path.name for path in (limited.folder / name).glob("*.csv")]
        timed = {"trials.csv", "rules.csv"}  # they hold seconds
        _, different, missing = filecmp.cmpfiles(
            limited.folder / name, again.folder / name, set(tables) - timed, shallow=False
        )
        assert not different + missing, name


@pytest.mark.parametrize(("minutes", "asked", "names"), [
    (60, {}, [*OFFLINE, ONLINE[1]]), (5, {}, [OFFLINE[0]]), (60, {"backbone": "test_vit"}, ["test_vit"]),
])  # fmt: skip
def test_all_networks_whose_weights_are_at_hand_are_looked_at(dataset, monkeypatch, minutes, asked, names):
    monkeypatch.setattr("fomo.stages.planning.available", lambda name: name in (*OFFLINE, ONLINE[1]))
    assert looked_at(fomo.Run(dataset, minutes=minutes, **asked)) == names


@pytest.mark.parametrize(("minutes", "timed"), [(60, ["a", "b"]), (0.001, ["a"])])
def test_no_further_network_is_timed_once_that_has_taken_its_time(dataset, monkeypatch, minutes, timed):
    def time_network(run, name, classes):
        time.sleep(0.005)
        return [{"backbone": name}]

    monkeypatch.setattr(timing, "time_network", time_network)
    table = timing.time_networks(fomo.Run(dataset, minutes=minutes), ["a", "b"], 2)
    assert table["backbone"].tolist() == timed


def test_what_is_timed_takes_turns_so_that_a_disturbance_hits_each_once(dataset, monkeypatch):
    """Otherwise a side seems slow where another program works for half a second. The first turn does not count."""
    done, took = [], [0, 0, 1, 2, 7, 6, 3, 4]
    clock = itertools.accumulate(step for seconds in took for step in (1, seconds))  # between two, and what each takes
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    works = {name: functools.partial(done.append, name) for name in ("train", "forward")}
    seconds = timing._fastest(fomo.Run(dataset, minutes=5), works)
    assert done == ["train", "forward"] * 4
    assert seconds == {"train": 1, "forward": 2}


def test_minutes_go_with_a_plan_only(dataset):
    with pytest.raises(UserError, match="preset 'report' has settings of its own, and no minutes"):
        fomo.Run(dataset, "report", minutes=5)


def test_file_that_is_no_plan_is_refused(dataset, tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UserError, match=r"plan .* cannot be read .*; give the plan.json of a run of preset auto"):
        fomo.Run(dataset, plan=tmp_path / "plan.json")


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext", "test_resnet"])
def test_network_of_any_kind_is_planned_and_run(dataset, backbone, tmp_path, monkeypatch):
    """One that sees images of one size only, and two that see any."""
    monkeypatch.setenv("FOMO_RUNS", str(tmp_path))
    monkeypatch.setattr("fomo.stages.rules.MOST_MEMBERS", 1)
    monkeypatch.setattr("fomo.stages.rules.enough_epochs", lambda facts, config: 1)
    searches = {"trials": 2, "initial_trials": 1, "trial_share": 1.0, "darts_epochs": 0}
    run = fomo.Run(dataset, minutes=2, backbone=backbone, weights="random", bootstrap=50, **searches)
    assert "final" in fomo.evaluate(run).predictions
    assert run.clock.left > 0
    sides = set(fomo.plan(run).contest.table["side"])
    assert sides == {160} if backbone == "test_vit" else len(sides) > 1  # which ones, is for the machine's pace to say
