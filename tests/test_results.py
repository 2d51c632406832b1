import shutil

import numpy as np
import pandas as pd
import pytest
import toys

import fomo
from fomo import results
from fomo.artifacts import Run
from fomo.config import UserError
from fomo.stages import finetuning
from fomo.storage import read_json, read_table, write_json


@pytest.fixture
def kept(finished, tmp_path, monkeypatch):
    """The folder of the toy run's results."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return results.collect(finished.run)


def test_what_is_kept_tells_what_was_found(kept, finished):
    table = read_table(kept / "predictions.csv")
    metrics = read_table(kept / "metrics.csv").set_index(["model", "metric"])["value"]
    assert (table["label"] == table["prediction"]).mean() == pytest.approx(metrics["final", "accuracy"])
    assert len(read_table(kept / "trials.csv")) == len(read_table(kept / "head_trials.csv")) == 3
    assert len(read_table(kept / "ranking.csv")) == 37
    config = read_json(kept / "config.json")
    assert config["found"]["finetuning"] == fomo.finetune_best(finished.run).configuration
    assert config["found"]["head"] == fomo.search_head(finished.run).head.name
    assert config["image_size"] == 32
    assert read_json(kept / "machine.json")["cores"] >= 1


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, ""),
        ({"seed": 2}, "-seed2"),
        ({"on_leak": "drop", "image_size": 48}, "-drop-48px"),
        ({"preset": "report", "backbone": "test_vit"}, "-report-test_vit"),
        ({"preset": "auto", "minutes": 5.0}, "-auto-5min"),
        ({"dataset": "flowers"}, "-quick"),
        ({"dataset": "flowers", "preset": "auto", "seed": 1}, "-seed1"),
        ({"dataset": "flowers", "preset": "auto", "metric": "accuracy"}, "-accuracy"),
    ],
)
def test_results_of_another_variant_have_a_folder_of_their_own(changes, name):
    assert Run(**{"dataset": "fashion_sample", "preset": "quick"} | changes).variant == name


def test_costs_are_those_of_all_stages(kept, finished):
    costs = read_table(kept / "costs.csv").set_index("stage")
    assert set(costs.index) == {*results.STAGES, "race"}
    assert 0 < costs.loc["race", "seconds"] < costs.loc["5_best_finetuning", "seconds"] + 10  # the loser's training
    stored = read_json(finished.run.folder / "7_darts" / "stage.json")
    assert costs.loc["7_darts", "seconds"] == pytest.approx(stored["seconds"], abs=0.06)
    assert (costs["peak_memory_mb"] > 50).all()


def training_takes(seconds: float, run: Run, monkeypatch) -> None:
    """Each training of the race, which is yet to come, says that it took so long."""
    shutil.rmtree(run.folder / "5_best_finetuning")
    fit = finetuning.fit

    def timed(*arguments, **options):
        history = fit(*arguments, **options)
        history.attrs["seconds"] = seconds
        return history

    monkeypatch.setattr(finetuning, "fit", timed)


@pytest.mark.parametrize("race_epochs", [0, 2])
def test_race_is_told_apart_from_the_training_of_its_winner(race_epochs, copied, monkeypatch):
    """The winner's own training is not the race's."""
    training_takes(1.0, copied, monkeypatch)
    run = toys.tiny_run(copied.config.dataset, race_epochs=race_epochs)
    assert len(fomo.race(run)) == 2
    costs = results.costs(copied).set_index("stage")["seconds"]
    assert costs["race"] == (2 if race_epochs else 1)
    whole = read_json(run.folder / "5_best_finetuning" / "stage.json")["seconds"]
    assert costs["race"] + costs["5_best_finetuning"] == pytest.approx(whole, abs=0.11)


def test_run_of_other_settings_does_not_replace_what_is_kept(kept, dataset, finished):
    before = read_table(kept / "metrics.csv")
    stored = read_json(kept / "config.json")
    for other, told in (
        ({"epochs": 16}, "epochs: stored 16, asked 3"),
        ({"head_space": "large"}, "head_space: stored large, no setting any more"),
    ):
        write_json(kept / "config.json", stored | other)
        with pytest.raises(UserError, match=f"{kept} holds a run of other settings .{told}.; move or"):
            results.collect(finished.run)
    pd.testing.assert_frame_equal(read_table(kept / "metrics.csv"), before)


@pytest.mark.parametrize(
    "changes",
    [
        {"first_epochs": 0},
        {"trials": 0},
        {"head_trials": 0},
        {"darts_epochs": 0},
        {"members": 1, "final": "validation"},
    ],
)
def test_run_that_leaves_a_step_out_is_kept_as_well(changes, tmp_path, monkeypatch):
    folder = toys.write_dataset(tmp_path / "own", train=5, test=2)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "kept")
    run = toys.tiny_run(folder, **toys.SHORT | {"final": "validation"} | changes)
    fomo.evaluate(run)
    fomo.suspects(run)
    kept = results.collect(run)
    assert (kept / "ranking.csv").exists() == (kept / "rules.csv").exists() == (run.config.darts_epochs > 0)
    assert (kept / "trials.csv").exists() == (kept / "race.csv").exists() == (run.config.trials > 0)
    assert (kept / "head_trials.csv").exists() == (run.config.darts_epochs > 0 and run.config.head_trials > 0)
    assert (read_json(kept / "config.json")["found"]["head"] is None) == (not run.config.darts_epochs)
    costs = read_table(kept / "costs.csv").assign(seconds=60.0)
    costs.to_csv(kept / "costs.csv", index=False)
    searches = sum(name in results.SEARCH for name in costs["stage"])
    assert results.measured()["minutes"].tolist() == [len(costs)]
    assert results.measured()["search / training"].tolist() == [searches / 2]


def test_race_that_was_killed_has_taken_what_it_took_before_as_well(copied, monkeypatch):
    """Of each training's minute this process has seen next to nothing."""
    training_takes(60.0, copied, monkeypatch)
    fomo.race(toys.tiny_run(copied.config.dataset, race_epochs=2))
    seconds = results.costs(copied).set_index("stage")["seconds"]
    assert (seconds["race"], seconds["5_best_finetuning"]) == (120, 60)


def test_run_that_is_not_finished_is_not_kept(dataset, copied):
    (copied.folder / "12_evaluation" / "stage.json").unlink()
    with pytest.raises(UserError, match="not finished 12_evaluation; make report"):
        results.collect(copied)


def test_spread_is_that_of_the_seeds_of_each_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    scores = {"flowers": 0.9, "flowers-seed1": 0.8, "flowers-seed12": 1.0, "flowers-drop-seed1": 0.5, "emotions": 0.6}
    for name, value in scores.items():
        (tmp_path / name).mkdir()
        rows = [(model, metric, value) for model in ("other", "final") for metric in ("macro F1", "accuracy")]
        table = pd.DataFrame(rows, columns=["model", "metric", "value"])
        table.loc[table["model"] == "other", "value"] = 0.0
        table.to_csv(tmp_path / name / "metrics.csv")
        write_json(tmp_path / name / "config.json", {"seed": int(name.partition("-seed")[2] or 0)})
    expected = {"data set": "flowers", "seeds": 3, "macro F1": "0.900 ± 0.100", "accuracy": "0.900 ± 0.100"}
    assert results.spread().to_dict("records") == [expected]


def test_images_that_are_in_train_too_are_counted_by_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    leaks = {"clean": [False] * 4, "leaky": [True, True, False, False], "all": [True] * 4}
    for name, in_train in leaks.items():
        (tmp_path / name).mkdir()
        table = pd.DataFrame({"label": [0, 1, 0, 1], "prediction": [0, 1, 0, 0], "in_train": in_train})
        table.to_csv(tmp_path / name / "predictions.csv")
    table = results.leaked().set_index("data set")
    assert table.loc["leaky"].tolist() == [2, 1, 2, 0.5]
    assert table.loc["all"].tolist()[:3] == [4, 0.75, 0]
    assert set(table.index) == {"leaky", "all"}


def test_predictions_tell_which_images_are_in_train_too(tmp_path, monkeypatch):
    folder = toys.write_dataset(tmp_path / "leaky", train=5, test=2)
    shutil.copy(folder / "images_train" / "004.png", folder / "images_test" / "001.png")
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    run = toys.tiny_run(folder, **toys.SHORT)
    fomo.evaluate(run)
    fomo.suspects(run)
    table = read_table(results.collect(run) / "predictions.csv")
    assert table.loc[table["in_train"], "file"].tolist() == ["images_test/001.png"]
    assert results.leaked()["in train too"].tolist() == [1]


def test_measured_shows_ours_beside_the_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    for name in ("emotions", "skin_cancer-drop", "own"):
        (tmp_path / name).mkdir()
        rows = [("final", metric, 0.7, 0.6, 0.8) for metric in ("macro F1", "accuracy")]
        columns = ["model", "metric", "value", "low", "high"]
        pd.DataFrame([("other", "accuracy", 0.1, 0, 1), *rows], columns=columns).to_csv(tmp_path / name / "metrics.csv")
        stages = [*results.STAGES, "race"]
        seconds = [350.0 if stage == "5_best_finetuning" else 50.0 for stage in stages]
        pd.DataFrame({"stage": stages, "seconds": seconds}).to_csv(tmp_path / name / "costs.csv")
        found = {"split": "validation" if name == "own" else "test"}
        write_json(tmp_path / name / "config.json", {"dataset": name.removesuffix("-drop"), "found": found})
        gpu = {"gpu": "fast one"} if name == "own" else {}
        write_json(tmp_path / name / "machine.json", {"processor": "slow one"} | gpu)
    table = results.measured().set_index("data set")
    assert table["accuracy, ours"].tolist() == ["0.700 [0.600, 0.800]"] * 3
    assert table.loc["emotions", "macro F1, report"] == 0.63
    assert table.loc["skin_cancer-drop", "accuracy, report"] == 0.87
    assert np.isnan(table.loc["own (validation)", "accuracy, report"])
    assert table["search / training"].tolist() == [0.5] * 3
    assert table["minutes"].tolist() == [18] * 3
    assert table["on"].to_dict() == {
        "emotions": "slow one",
        "skin_cancer-drop": "slow one",
        "own (validation)": "fast one",
    }


def test_run_with_minutes_has_the_stages_of_its_plan(tmp_path, monkeypatch):
    folder = toys.write_dataset(tmp_path / "own", train=8, test=2)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "kept")
    asked = {"minutes": 2, "backbone": "test_efficientnet", "weights": "random", "image_size": 32, "bootstrap": 50}
    with pytest.raises(UserError, match="has not finished 0_plan"):
        results.collect(fomo.Run(folder, **asked))
    run = fomo.Run(folder, **asked)
    fomo.evaluate(run)
    fomo.suspects(run)
    assert fomo.Run(folder, **asked).config.trials > run.config.trials == 0  # before there is a plan, and by it
    assert not (results.collect(fomo.Run(folder, **asked)) / "trials.csv").exists()
