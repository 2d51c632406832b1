"""The plan: what minutes are spent on, by facts and a contest that are made up."""

import re
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest

from fomo.config import PRESETS, Config, UserError
from fomo.stages.contest import Contest
from fomo.stages.facts import Facts
from fomo.stages.rules import SEARCH, forecast, make_plan, networks, sides, validation_share

SMALL, LARGE = "tf_efficientnet_lite0", "resnet34"
SPEEDS = pd.DataFrame(
    {
        "backbone": [SMALL, SMALL, LARGE, LARGE],
        "side": [64, 128, 64, 128],
        "forward": [900.0, 300.0, 400.0, 120.0],
        "train": [220.0, 70.0, 110.0, 32.0],
        "kept": [3e6, 12e6, 6e6, 24e6],
        "bank": [0.01] * 4,
        "by_batch": [True] * 4,
    }
)
FOUND = pd.DataFrame(
    [(SMALL, 64, 0.70), (SMALL, 96, 0.76), (SMALL, 128, 0.80), (LARGE, 96, 0.78)],
    columns=["backbone", "side", "accuracy"],
).assign(
    fit="crop", macro_f1=lambda table: table["accuracy"], log_loss=lambda table: -np.log(table["accuracy"]), seconds=1.0
)
FACTS = {"test": 500, "classes": 10, "smallest": 60, "grouped": False, "side": 100, "aspect": 1.0, "grey": False}
FACTS |= {"decoded": 400.0, "ranges": {}, "free": 8e9, "solver": 1.0, "speeds": SPEEDS}
CONTEST = Contest(FOUND, "crop", pd.DataFrame(), "horizontal", cuts=False)
CONFIG = Config("photos", **PRESETS["auto"])
SIZES = (300, 3000, 30_000)
SEARCHES = ("optimize_finetuning", "race", "search_head", "tune_head", "train_head")
TRAINED = ("finetune_best", "train_members")


def facts(train=3000, **changes):
    return Facts(**FACTS | {"train": train} | changes)


def planned(minutes, train=3000, asked=None, config=CONFIG, contest=CONTEST):
    """The plan, and the whole settings of a run by it."""
    config = replace(config, minutes=float(minutes))
    plan = make_plan(facts(train), contest, config, 60 * minutes, asked)
    return plan, replace(config, **plan.settings)


@pytest.mark.parametrize("train", [300, 3000])
@pytest.mark.parametrize("minutes", [3, 15, 60])
def test_plan_takes_no_more_than_the_minutes_given(minutes, train):
    plan, settings = planned(minutes, train)
    seconds = forecast(facts(train), settings)
    assert sum(seconds.values()) <= 60 * minutes
    assert plan.steps["minutes"].sum() == pytest.approx(sum(seconds.values()) / 60, abs=0.1)


@pytest.mark.parametrize("train", [300, 3000, 30_000])
@pytest.mark.parametrize("minutes", [3, 8, 15, 30, 60])
def test_searches_take_at_most_a_quarter_of_the_final_training(minutes, train):
    seconds = forecast(facts(train), planned(minutes, train)[1])
    searches, final = (sum(seconds[name] for name in names) for names in (SEARCHES, TRAINED))
    assert searches <= 1.1 * SEARCH * final


def test_steps_are_those_that_take_time():
    plan, settings = planned(15)
    seconds = forecast(facts(), settings)
    assert plan.steps["step"].tolist() == [name for name, value in seconds.items() if value]


def test_no_time_is_kept_for_pages_where_there_are_no_test_images():
    assert forecast(facts(), CONFIG)["pages"] > 0 == forecast(facts(test=0), CONFIG)["pages"]


def test_many_minutes_are_searched_in():
    settings = planned(60)[1]
    assert settings.trials > 0 < settings.darts_epochs


@pytest.mark.parametrize(("minutes", "flip"), [(4, "horizontal"), (60, "both")])
def test_images_are_turned_only_where_each_is_seen_often(minutes, flip):
    assert planned(minutes, 10_000, contest=replace(CONTEST, flip="both"))[1].flip == flip


def test_many_test_images_are_seen_in_fewer_views():
    found = replace(CONTEST, flip="both")
    for test, views in ((10_000, 4), (20_000, 2), (100_000, 1)):
        plan = make_plan(facts(test=test), found, CONFIG, 1800)
        assert replace(CONFIG, **plan.settings).views == views


@pytest.mark.parametrize(("free", "batch"), [(8e9, 32), (6e8, 16), (1.0, 4)])
def test_batches_fit_into_the_memory(free, batch):
    better = FOUND.assign(log_loss=[2.0, 2.0, 0.1, 2.0])  # at 128 px
    plan = make_plan(facts(free=free), replace(CONTEST, table=better), CONFIG, 1800)
    assert replace(CONFIG, **plan.settings).batch_size == batch


EVEN = replace(CONTEST, table=FOUND.assign(log_loss=[0.23, 0.225, 0.22, 2.0]))  # larger sides are little better


def test_few_steps_favour_the_side_of_the_best_probe():
    """A finetuning of few steps does not pass the probe, so that decides; small images are trained on more often, which
    brings ever less."""
    assert planned(2.6, 20_000, contest=EVEN)[1].image_size > 64
    assert planned(4, 10_000, contest=EVEN)[1].image_size == 64
    assert planned(10, 10_000, contest=EVEN)[1].image_size == 128


@pytest.mark.parametrize(("minutes", "train"), [(2, 10_000), (3.3, 20_000)])  # at 128 px the probe takes nearly all
def test_side_that_leaves_no_time_for_training_promises_none(minutes, train):
    settings = planned(minutes, train, contest=EVEN)[1]
    assert settings.image_size == 64
    assert settings.epoch_images > train / 3


def test_sides_between_those_that_were_tried_are_taken_too():
    ends = replace(EVEN, table=EVEN.table[EVEN.table["side"] != 96])
    taken = [planned(minutes, 10_000, contest=ends)[1].image_size for minutes in (4, 6, 10)]
    assert taken == [planned(minutes, 10_000, contest=EVEN)[1].image_size for minutes in (4, 6, 10)] == [64, 96, 128]


def test_few_seconds_are_not_searched_in():
    settings = planned(2)[1]
    assert (settings.trials, settings.darts_epochs, settings.head_trials, settings.members) == (0, 0, 0, 1)


def test_less_time_than_an_epoch_takes_gives_a_part_of_one():
    settings = planned(6, 30_000)[1]
    assert settings.epochs == 1
    assert 0 < settings.epoch_images < 30_000


@pytest.mark.parametrize("train", SIZES)
def test_too_few_minutes_are_refused_and_those_that_suffice_are_named(train):
    with pytest.raises(UserError, match="even the probe does not fit into") as raised:
        planned(0.1, train)
    needed = float(re.search(r"at least (\S+) \(MINUTES\)", str(raised.value))[1])
    assert planned(needed, train)[1].epochs >= 1


@pytest.mark.parametrize("train", SIZES)
def test_more_minutes_are_never_fewer_epochs_in_sum(train):
    settings = [planned(minutes, train)[1] for minutes in (10, 15, 30, 60, 120)]
    trained = [one.epochs * one.members * (one.epoch_images or train) * one.image_size**2 for one in settings]
    assert trained == sorted(trained)


@pytest.mark.parametrize("minutes", [3, 15, 60])
def test_settings_asked_for_stay(minutes):
    asked = {"flip": "none", "epochs": 3, "members": 2, "batch_size": 16}
    settings = planned(minutes, asked=asked, config=replace(CONFIG, **asked))[1]
    assert {name: getattr(settings, name) for name in asked} == asked


def test_contest_decides_how_images_are_seen():
    found = replace(CONTEST, table=FOUND.assign(fit="pad"), fit="pad", flip="both")
    settings = planned(15, contest=found)[1]
    assert (settings.fit, settings.flip) == ("pad", "both")


@pytest.mark.parametrize(
    ("minutes", "train", "fixed"),
    [(15, 300, True), (60, 900, True), (60, 1500, False), (5, 3000, False), (15, 30_000, False), (1, 3000, True)],
)
def test_statistics_are_fixed_in_many_epochs_of_few_images_and_in_few_steps(minutes, train, fixed):
    _, settings = planned(minutes, train)
    epochs = settings.epochs * (settings.epoch_images / train if settings.epoch_images else 1)
    assert fixed == ((train <= 1000 and epochs >= 5) or epochs * train / settings.batch_size < 200)
    assert settings.fix_statistics == fixed
    assert planned(minutes, train, {"fix_statistics": not fixed})[1].fix_statistics != fixed


@pytest.mark.parametrize(
    ("train", "change", "rate"),
    [
        (30_000, {}, 2e-3),  # batches have their own statistics
        (300, {}, 1e-3),
        (30_000, {"weights": "random"}, 1e-3),
        (30_000, {"fix_statistics": True}, 1e-3),
        (30_000, {"backbone": LARGE}, 1e-3),  # not among those that it was learned with
    ],
)
def test_learning_rate_is_larger_where_batches_have_their_own_statistics(train, change, rate):
    found = replace(CONTEST, table=FOUND.assign(backbone=change.get("backbone", SMALL)))
    assert planned(15, train, config=replace(CONFIG, **change), contest=found)[1].plain_lr == rate
    assert planned(15, train, {"plain_lr": 5e-3}, replace(CONFIG, plain_lr=5e-3))[1].plain_lr == 5e-3


def test_no_statistics_are_fixed_where_a_network_has_none():
    assert planned(15, 300)[1].fix_statistics
    assert not planned(15, 300, config=replace(CONFIG, weights="random"))[1].fix_statistics
    without = facts(300, speeds=SPEEDS.assign(by_batch=False))
    assert "fix_statistics" not in make_plan(without, CONTEST, replace(CONFIG, minutes=15.0), 900).settings


def test_validation_images_that_are_given_are_the_share():
    config = replace(CONFIG, minutes=15.0)
    assert make_plan(facts(validated=0.17), CONTEST, config, 900).settings["validation_share"] == 0.17
    assert make_plan(facts(), CONTEST, config, 900).settings["validation_share"] == 0.1


@pytest.mark.parametrize(
    ("train", "share"), [(70, 0.2), (499, 0.2), (700, 0.14), (1020, 0.1), (3000, 0.1), (5156, 0.08), (30_000, 0.05)]
)
def test_validation_takes_a_tenth_and_of_few_images_more(train, share):
    assert validation_share(facts(train=train)) == share


def test_network_of_a_better_contest_is_taken():
    better = FOUND.assign(log_loss=[0.7, 0.7, 0.7, 0.1])
    assert planned(60, contest=replace(CONTEST, table=better))[1].backbone == LARGE
    assert planned(60)[1].backbone == SMALL


def test_networks_that_a_short_contest_cannot_see_are_not_tried():
    assert networks(facts(), [64, 128], 60) == [SMALL, LARGE]
    assert networks(facts(), [64, 128], 8) == [SMALL]
    assert networks(facts(), [64, 128], 0.1) == [SMALL]


def test_name_of_the_data_set_does_not_matter():
    first, second = (planned(15, config=replace(CONFIG, dataset=name))[0] for name in ("flowers", "emotions"))
    assert first.settings == second.settings
    pd.testing.assert_frame_equal(first.steps, second.steps)
    assert {field.name for kind in (Facts, Contest) for field in fields(kind)}.isdisjoint({"dataset", "name", "folder"})


def test_sides_are_those_there_is_time_for():
    assert sides(facts(side=28), CONFIG, 3600, 216) == [64, 128, 192, 256]
    assert sides(facts(), CONFIG, 40, 60) == [64, 96, 128, 160]
    assert sides(facts(), CONFIG, 20, 60) == [64, 96]
    assert sides(facts(), CONFIG, 1, 60) == [64]
    assert sides(facts(speeds=SPEEDS.assign(side=224)), CONFIG, 3600, 1) == [224]


def test_sides_that_a_short_contest_cannot_see_are_not_tried():
    assert sides(facts(), CONFIG, 3600, 5) == [64, 96, 128]
    assert sides(facts(), CONFIG, 3600, 0.1) == [64]


@pytest.mark.parametrize(("minutes", "cuts", "zoom"), [(60, True, 0.37), (60, False, 0), (25, True, 0), (4, True, 0)])
def test_cut_outs_are_for_many_epochs(minutes, cuts, zoom):
    assert planned(minutes, 10_000, contest=replace(CONTEST, cuts=cuts))[1].zoom == zoom


def test_pace_between_and_beyond_the_sides_that_were_timed():
    line = facts()
    assert line.pace(SMALL, 64, "forward") == pytest.approx(900)
    assert 1 / line.pace(SMALL, 256, "forward") == pytest.approx(1 / 300 + 4 * (1 / 300 - 1 / 900))
    gpu = facts(speeds=SPEEDS.assign(train=[500.0, 600.0, 500.0, 600.0]))  # it is not busy with small images
    assert {gpu.pace(SMALL, side, "train") for side in (64, 96, 128)} == {600.0}
