import pickle
import shutil
from copy import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import toys

import fomo
from fomo.config import UserError
from fomo.data.batches import ImageBatches
from fomo.stages import finetuning, racing
from fomo.stages.finetuning import FINETUNING_FIRST, finetuning_trial, untrained
from fomo.stages.racing import race
from fomo.training.loop import DivergedError

LOSSES = ["train_loss", "validation_loss", "validation_accuracy"]
RECIPE = {"lr": 1e-3} | finetuning.PLAIN
BATCHES = 15  # of the toy run's epoch: 48 images to train with and 12 to validate with, 4 at a time


@pytest.fixture(scope="module")
def raced(dataset, tmp_path_factory):
    """The toy run up to the race, for reading only; and where it lies."""
    root = tmp_path_factory.mktemp("raced")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOMO_RUNS", str(root))
        run = toys.tiny_run(dataset)
        race(run)
        return run, root


@pytest.fixture
def before_the_race(raced, dataset, tmp_path):
    """A copy of the run with its study done, whose race is still to come."""
    shutil.copytree(raced[1], tmp_path / "runs")
    run = toys.tiny_run(dataset)
    shutil.rmtree(run.folder / "5_best_finetuning")
    return run


@pytest.fixture
def batches(monkeypatch):
    """Counts the batches that are drawn; at the number `batches["stop"]`, as if someone had pressed Ctrl-C."""
    drawn, get = {"count": 0, "stop": None}, ImageBatches.__getitem__

    def counted(self, numbers):
        if drawn["count"] == drawn["stop"]:
            raise KeyboardInterrupt
        drawn["count"] += 1
        return get(self, numbers)

    monkeypatch.setattr(ImageBatches, "__getitem__", counted)
    return drawn


def edit_trials(run, trial, **values):
    """Writes other values into a row of the study's table."""
    path = run.folder / "4_bayesian_optimization" / "trials.csv"
    table = pd.read_csv(path).set_index("trial", drop=False)
    for name, value in values.items():
        table.loc[trial, name] = value
    table.to_csv(path, index=False)


def weights(run):
    return torch.load(run.folder / "5_best_finetuning" / "weights.pt", weights_only=True)


def assert_same_race(run, other):
    """The same winner, the same bytes in its tables, the same weights; and nothing left over."""
    folder, expected = (one.folder / "5_best_finetuning" for one in (run, other))
    assert {path.name for path in folder.iterdir()} == {path.name for path in expected.iterdir()}
    for name in ("race.csv", "history.csv"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes()
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(run).items())


# ---- the study


def test_first_finetuning_is_the_studys_first_trial(raced):
    run, _ = raced
    trial = fomo.optimize_finetuning(run).trials.iloc[0]
    trained = fomo.finetune(run)
    assert trained.history.iloc[0][LOSSES].tolist() == trial[LOSSES].tolist()
    assert trained.configuration == FINETUNING_FIRST


def test_finetuning_starts_from_the_probe_where_that_is_asked_for(raced):
    run, tested = raced[0], fomo.probe(raced[0])
    data = fomo.preprocess(run)
    own = copy(run)
    own.config = replace(run.config, probe_start=True)
    started, plain = untrained(own, data), untrained(run, data)
    for name, value in tested.head.state_dict().items():
        assert torch.equal(started.head.state_dict()[name], value)
        assert not torch.equal(plain.head.state_dict()[name], value)
    images = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(started.eval()(images), tested.model(images))


def test_plain_recipe_is_the_first_point_and_in_its_space(dataset):
    run = toys.tiny_run(dataset, **toys.SHORT | {"plain_lr": 2e-3, "trials": 2})
    study = fomo.optimize_finetuning(run)
    assert study.configuration(0) == {"lr": 2e-3} | finetuning.PLAIN == fomo.finetune(run).configuration
    assert study.space == finetuning.PLAIN_SPACE


@pytest.mark.parametrize("fixed", [True, False])
def test_statistics_that_weights_come_with_are_kept_where_that_is_asked_for(dataset, tmp_path, fixed):
    given = toys.save_weights(tmp_path / "w.pth", "test_efficientnet", 32)
    run = toys.tiny_run(dataset, weights=str(tmp_path / "w.pth"), fix_statistics=fixed)
    trained = finetuning.train(run, RECIPE, 1)[0].backbone.network.state_dict()
    same = {name: torch.equal(value.cpu(), given[name]) for name, value in trained.items() if name in given}
    kept = [equal for name, equal in same.items() if "running" in name]
    assert (all(kept), any(kept)) == (fixed, fixed)
    assert not any(equal for name, equal in same.items() if name.endswith("conv.weight"))


@pytest.mark.parametrize(("fixed", "epochs", "share"), [(True, 1, 12 / 128), (True, 11, 1.0), (False, 1, 1.0)])
def test_short_training_with_fixed_statistics_takes_a_part_of_the_rate(
    dataset, tmp_path, monkeypatch, fixed, epochs, share
):
    rates = []
    monkeypatch.setattr(finetuning, "fit", lambda model, optimizer, *_, **__: rates.append(optimizer.defaults["lr"]))
    toys.save_weights(tmp_path / "w.pth", "test_efficientnet", 32)
    run = toys.tiny_run(dataset, weights=str(tmp_path / "w.pth"), fix_statistics=fixed)
    finetuning.train(run, RECIPE, epochs)
    assert rates == pytest.approx([share * RECIPE["lr"]])
    assert RECIPE["lr"] == 1e-3


def test_trials_report_their_training_loss_at_each_quarter(raced):
    table = fomo.optimize_finetuning(raced[0]).trials
    assert table[["after_0.25", "after_0.5", "after_0.75"]].notna().all(axis=None)
    assert table["objective"].tolist() == table["validation_loss"].tolist()


def test_trials_on_worker_processes_make_the_same_table(raced, before_the_race, processes):
    expected = fomo.optimize_finetuning(raced[0]).trials
    shutil.rmtree(before_the_race.folder / "4_bayesian_optimization")
    table = fomo.optimize_finetuning(before_the_race, processes).trials
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), expected.drop(columns="seconds"), check_exact=True)


def test_objective_can_be_sent_to_a_worker(raced):
    objective = pickle.loads(pickle.dumps(partial(finetuning_trial, raced[0])))
    assert objective.args[0].config == raced[0].config
    assert objective.args[0].folder == raced[0].folder


def test_trial_that_takes_too_long_is_ended(dataset):
    run = toys.tiny_run(dataset, **toys.SHORT, trial_seconds=1e-3)
    with pytest.raises(UserError, match="1 timed out"):
        fomo.optimize_finetuning(run)


def test_finetuning_that_diverges_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(FINETUNING_FIRST, "lr", 1e38)
    folder = toys.write_dataset(tmp_path / "own", train=5, test=2)
    with pytest.raises(DivergedError, match="a smaller learning rate may help"):
        fomo.finetune(toys.tiny_run(folder))


# ---- the race


def test_race_is_between_the_best_trials_and_the_lowest_validation_loss_wins(raced):
    run, _ = raced
    study, table = fomo.optimize_finetuning(run), race(run)
    assert run.config.finalists == 2 < len(study.trials)
    assert set(table["trial"]) == set(study.top(2)["trial"])
    assert table["validation_loss"].is_monotonic_increasing
    assert table["objective"].tolist() == table["validation_loss"].tolist()
    winner = fomo.finetune_best(run)
    assert winner.configuration == study.configuration(table["trial"].iloc[0])
    assert winner.kept[LOSSES].tolist() == table.iloc[0][LOSSES].tolist()
    assert len(winner.history) == 3


@pytest.mark.parametrize(
    ("order", "count", "keep_first", "race_epochs", "expected"),
    [
        ([4, 0, 3, 1], 3, False, 0, [4, 0, 3]),
        ([4, 0, 3, 1], 3, True, 0, [4, 0, 3]),
        ([4, 1, 3, 0], 3, False, 2, [4, 1, 3]),
        ([4, 1, 3, 0], 3, True, 0, [4, 1, 0]),
        ([4, 1, 3, 0], 3, True, 2, [4, 3, 0]),  # 1 trains fewer layers than 0
        ([1, 4, 0, 3], 2, True, 2, [4, 0]),
        ([1, 0], 3, True, 2, [0]),
        ([4, 1, 3, 0], 1, True, 0, [0]),
    ],
)
def test_finalists_are_the_best_and_the_first_point_where_it_is_kept(order, count, keep_first, race_epochs, expected):
    layers = {0: 1, 1: 3, 3: 1, 4: 1}
    top = lambda count: pd.DataFrame({"trial": order[:count]})  # noqa: E731
    study = SimpleNamespace(top=top, configuration=lambda trial: {"layer": layers[trial]})
    config = SimpleNamespace(trials=9, finalists=count, keep_first=keep_first, race_epochs=race_epochs)
    assert racing.finalists(study, config) == expected


@pytest.mark.parametrize(
    ("first", "other", "winner"),
    [(900, 800, 0), (900, 900, 0), (900, 901, 0), (800, 900, 7)],
)
def test_first_point_stays_the_winner_unless_it_is_really_beaten(first, other, winner):
    """Right on so many of 1000 images, and the other one has the lower objective."""
    table = pd.DataFrame({"trial": [7, 3, 0], "objective": [0.1, 0.2, 0.3]})
    right = {0: np.arange(1000) < first, 7: np.arange(1000) < other}
    assert racing._first_stays(table, right)["trial"].tolist() == ([7, 3, 0] if winner else [0, 7, 3])


def test_first_point_races_and_wins_where_it_is_kept(before_the_race, dataset):
    """Of 12 validation images, no other can be right on more with p < 0.05 but by six."""
    edit_trials(before_the_race, 0, objective=99.0)
    run = toys.tiny_run(dataset, keep_first=True)
    assert run.folder == before_the_race.folder
    table, winner = race(run), fomo.finetune_best(run)
    assert table["trial"].iloc[0] == 0
    assert len(table) == 2
    assert winner.configuration == FINETUNING_FIRST
    assert winner.kept[LOSSES].tolist() == table.iloc[0][LOSSES].tolist()


def test_racer_begins_as_its_trial_did(raced):
    run, _ = raced
    study, winner = fomo.optimize_finetuning(run), fomo.finetune_best(run)
    trial = study.trials.set_index("trial").loc[race(run)["trial"].iloc[0]]
    assert winner.history.iloc[0][LOSSES].tolist() == trial[LOSSES].tolist()


def test_stages_before_the_winners_layer_keep_their_first_weights(raced):
    run, _ = raced
    winner = fomo.finetune_best(run)
    start = untrained(run, fomo.preprocess(run)).backbone
    fixed = winner.configuration["layer"] - 1
    for number, (stage, first) in enumerate(zip(winner.model.backbone.stages, start.stages, strict=True)):
        layers = [[w for module in modules for w in module.parameters(recurse=False)] for modules in (stage, first)]
        assert all(map(torch.equal, *layers)) == (number < fixed)


def test_the_winner_is_the_same_whichever_trial_the_study_found_better(raced, before_the_race):
    """What the trials had come to after one epoch has no say among the finalists."""
    first, second = fomo.optimize_finetuning(raced[0]).top(2)[["trial", "objective"]].itertuples(index=False)
    edit_trials(before_the_race, first.trial, objective=second.objective)
    edit_trials(before_the_race, second.trial, objective=first.objective)
    race(before_the_race)
    assert_same_race(before_the_race, raced[0])


@pytest.mark.parametrize("stop", [20, 45, 89])
def test_race_that_was_killed_comes_to_the_same_end(raced, before_the_race, batches, stop):
    batches["stop"] = stop
    with pytest.raises(KeyboardInterrupt):
        race(before_the_race)
    batches |= {"stop": None, "count": 0}
    race(before_the_race)
    assert batches["count"] == 2 * 3 * BATCHES - stop + stop % BATCHES  # only the epoch that was cut is computed again
    assert_same_race(before_the_race, raced[0])


def test_race_as_cheap_as_trials_trains_only_the_winner_in_full(before_the_race, dataset, monkeypatch):
    seen, fit = [], finetuning.fit_images

    def watched(run, data, classifier, configuration, epochs, **options):
        seen.append((configuration["lr"], epochs, options.get("share", 1), options.get("side", 0)))
        return fit(run, data, classifier, configuration, epochs, **options)

    monkeypatch.setattr(finetuning, "fit_images", watched)
    run = toys.tiny_run(dataset, race_epochs=2, keep="accuracy")
    assert run.folder == before_the_race.folder
    study, table, winner = fomo.optimize_finetuning(run), race(run), fomo.finetune_best(run)
    rates = [study.configuration(trial)["lr"] for trial in study.top(2)["trial"]]
    assert seen == [(rates[0], 2, 1.0, 0), (rates[1], 2, 1.0, 0), (winner.configuration["lr"], 3, 1, 0)]
    assert table["objective"].is_monotonic_increasing
    assert table["objective"].tolist() == (1 - table["validation_accuracy"]).tolist()
    assert winner.configuration == study.configuration(table["trial"].iloc[0])
    assert winner.kept["validation_accuracy"] == winner.history["validation_accuracy"].max()


@pytest.mark.parametrize("stop", [20, 40])
def test_cheap_race_that_was_killed_comes_to_the_same_end(before_the_race, dataset, batches, stop):
    run = toys.tiny_run(dataset, race_epochs=1)
    batches["stop"] = stop
    with pytest.raises(KeyboardInterrupt):
        race(run)
    batches |= {"stop": None, "count": 0}
    race(run)
    assert batches["count"] == (2 + 3) * BATCHES - stop + stop % BATCHES


def test_race_that_was_run_is_not_run_again(raced, batches):
    batches["stop"] = 0
    assert race(raced[0])["trial"].iloc[0] == race(raced[0])["trial"].iloc[0]
    fomo.finetune_best(raced[0])


@pytest.mark.parametrize("order", [1, -1])
def test_finalist_that_diverges_is_left_out(before_the_race, order):
    diverging, other = fomo.optimize_finetuning(before_the_race).top(2)["trial"][::order]
    edit_trials(before_the_race, diverging, lr=1e38)
    assert race(before_the_race)["trial"].tolist() == [other]
    winner = fomo.finetune_best(before_the_race)
    assert winner.configuration == fomo.optimize_finetuning(before_the_race).configuration(other)
    assert winner.kept[LOSSES].tolist() == race(before_the_race).iloc[0][LOSSES].tolist()


def test_race_whose_finalists_all_diverge_says_so(before_the_race):
    for trial in fomo.optimize_finetuning(before_the_race).top(2)["trial"]:
        edit_trials(before_the_race, trial, lr=1e38)
    with pytest.raises(DivergedError, match="a smaller learning rate may help"):
        race(before_the_race)


def test_single_finalist_is_the_best_trial_trained_in_full(before_the_race, dataset):
    run = toys.tiny_run(dataset, finalists=1)
    assert run.folder == before_the_race.folder
    study, winner = fomo.optimize_finetuning(run), fomo.finetune_best(run)
    assert race(run)["trial"].tolist() == [study.best["trial"]]
    assert winner.configuration == study.configuration(study.best["trial"])
    assert winner.history.iloc[0][LOSSES].tolist() == study.best[LOSSES].tolist()
    assert len(winner.history) == 3


def test_more_finalists_than_trials_are_all_trials_and_of_equals_the_first_wins(before_the_race, dataset, monkeypatch):
    """With made-up losses, and weights that tell whose they are."""
    losses = iter([3.0, 1.0, 1.0])

    def trained(run, data, classifier, configuration, epochs, **options):
        torch.nn.init.constant_(classifier.head[-1].bias, configuration["lr"])
        history = pd.DataFrame([{"epoch": 1, "model": 0} | dict.fromkeys(LOSSES, next(losses))])
        history.attrs["seconds"] = 1.0
        return history

    monkeypatch.setattr(finetuning, "fit_images", trained)
    run = toys.tiny_run(dataset, finalists=9)
    assert run.folder == before_the_race.folder
    best, second, third = fomo.optimize_finetuning(run).top(9)["trial"]
    assert race(run)["trial"].tolist() == [second, third, best]
    winner = fomo.finetune_best(run)
    assert winner.configuration == fomo.optimize_finetuning(run).configuration(second)
    assert winner.model.head[-1].bias.tolist() == pytest.approx([winner.configuration["lr"]] * 3)


def test_trials_are_as_cheap_as_asked_and_the_winner_is_trained_in_full(dataset, monkeypatch):
    seen, fit = [], finetuning.fit

    def watched(classifier, optimizer, train, validation, epochs, **options):
        sides = {next(iter(batches))[0].shape[-1] for batches in (train, validation)}
        seen.append((len(train.dataset), len(validation.dataset), sides, options["averaging"], options["schedule"]))
        return fit(classifier, optimizer, train, validation, epochs, **options)

    monkeypatch.setattr(finetuning, "fit", watched)
    settings = {"trial_share": 0.5, "trial_size": 16, "averaging": 0.5, "schedule": "cosine", "finalists": 1}
    run = toys.tiny_run(dataset, **settings | {"trials": 2})
    fomo.optimize_finetuning(run)
    assert seen == [(24, 12, {16}, 0.5, "cosine")] * 2  # there are fewer validation images than a trial is judged by
    fomo.finetune_best(run)
    assert seen[2:] == [(48, 12, {32}, 0.5, "cosine")]


@pytest.mark.parametrize("stage", [fomo.finetune, fomo.optimize_finetuning])
def test_image_size_that_the_backbone_is_not_made_for_is_refused_before_training(dataset, stage):
    with pytest.raises(UserError, match="'test_vit' is not made for images of 36 pixels"):
        stage(toys.tiny_run(dataset, backbone="test_vit", image_size=36))
