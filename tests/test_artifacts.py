import shutil
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import toys

import fomo
from fomo.artifacts import Run, Stage
from fomo.config import UserError
from fomo.storage import read_json


def test_stage_is_done_once_it_is_finished(tmp_path):
    assert not Stage(tmp_path / "stage", {"seed": 0}).done
    Stage(tmp_path / "stage", {"seed": 0}).finish()
    assert Stage(tmp_path / "stage", {"seed": 0}).done


def test_finished_stage_keeps_nothing_of_what_a_kill_has_cut(tmp_path):
    stage = Stage(tmp_path / "stage", {"seed": 0})
    for name in (".pixels.npy.123.tmp", "pixels.npy"):
        stage.path(name).write_bytes(b"x")
    stage.finish()
    assert {path.name for path in stage.folder.iterdir()} == {"pixels.npy", "stage.json"}


def test_default_run_is_the_quick_one_of_the_sample():
    assert Run("fashion_sample").is_default
    assert not Run("fashion_sample", seed=1).is_default
    assert not Run("fashion_sample", trials=5).is_default


@pytest.mark.parametrize("asked", [{"seed": 0, "epochs": 4}, {"seed": 0}, {"seed": 0, "epochs": 3, "trials": 5}])
def test_stage_of_other_settings_is_refused(tmp_path, asked):
    Stage(tmp_path / "stage", {"seed": 0, "epochs": 3}).finish()
    with pytest.raises(UserError, match="other settings"):
        Stage(tmp_path / "stage", asked)


def test_refusal_names_the_fields_that_differ_and_only_them(tmp_path):
    Stage(tmp_path / "stage", {"seed": 0, "epochs": 3, "lr": 0.1}).finish()
    with pytest.raises(UserError, match=r"\(epochs: stored 3, asked 4; lr: stored 0.1, asked 0.2\)") as refusal:
        Stage(tmp_path / "stage", {"seed": 0, "epochs": 4, "lr": 0.2})
    assert "seed" not in str(refusal.value)
    assert "FOMO_FRESH" in str(refusal.value)


def test_unfinished_stage_of_other_settings_is_refused(tmp_path):
    Stage(tmp_path / "stage", {"trials": 30}).save_table("trials", pd.DataFrame({"trial": [0]}))
    with pytest.raises(UserError, match="trials: stored 30, asked 10"):
        Stage(tmp_path / "stage", {"trials": 10})


def test_stage_that_holds_nothing_yet_takes_other_settings(tmp_path):
    Stage(tmp_path / "stage", {"trials": 30})
    assert Stage(tmp_path / "stage", {"trials": 10}).config == {"trials": 10}


def test_two_folders_of_one_name_have_runs_of_their_own(tmp_path):
    folders = [tmp_path / side / "flowers" for side in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert toys.tiny_run(folders[0]).folder != toys.tiny_run(folders[1]).folder


def test_run_by_relative_paths_goes_on_where_the_process_stands_elsewhere(tmp_path, monkeypatch):
    toys.write_dataset(tmp_path / "toy", train=5, test=2)
    toys.save_weights(tmp_path / "mine.pth", "test_efficientnet", 32)
    for name in ("FOMO_RUNS", "FOMO_FIGURES"):
        monkeypatch.setenv(name, name.lower())
    monkeypatch.chdir(tmp_path)
    run, given = toys.tiny_run("toy", weights="mine.pth"), sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    fomo.probe(run)
    run.savefig("empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*given, "elsewhere", "fomo_runs", "fomo_figures"]
    )
    assert list((tmp_path / "elsewhere").iterdir()) == []
    monkeypatch.chdir(tmp_path)
    again = toys.tiny_run(tmp_path / "toy", weights=str(tmp_path / "mine.pth"))
    assert (again.folder, again.config) == (run.folder, run.config)


def test_run_lies_where_the_environment_says(tmp_path):
    run = Run("fashion_sample")
    assert run.folder == tmp_path / "runs" / "fashion_sample" / "quick-tf_efficientnet_lite0-seed0"
    assert run.figures == tmp_path / "figures" / "fashion_sample"


@pytest.mark.parametrize("change", [{"seed": 1}, {"backbone": "test_resnet"}, {"name": "mine"}])
def test_runs_that_differ_in_name_do_not_share_a_folder(dataset, change):
    assert toys.tiny_run(dataset, **change).folder != toys.tiny_run(dataset).folder


@pytest.mark.parametrize(
    ("choices", "suffix"),
    [
        ({"on_bad": "raise"}, ""),
        ({"on_bad": "skip"}, "-skip"),
        ({"on_leak": "drop", "selection": "alpha", "head_batch": 2}, "-drop"),  # of these, only data's
        ({"weights": "random", "image_size": 32}, "-random-32px"),
        ({"image_size": 64}, ""),  # as in the preset
    ],
)
def test_choices_that_are_not_the_usual_ones_are_in_the_name_of_the_run(choices, suffix):
    run = Run("fashion_sample", **choices)
    assert run.folder.name == f"quick-tf_efficientnet_lite0{suffix}-seed0"
    assert run.figures.name == f"fashion_sample{suffix}"


def test_fresh_deletes_the_stored_results_of_this_run_only(dataset, monkeypatch):
    run, other = toys.tiny_run(dataset), toys.tiny_run(dataset, seed=1)
    for one in (run, other):
        one.folder.mkdir(parents=True)
    monkeypatch.setenv("FOMO_FRESH", "1")
    toys.tiny_run(dataset)
    assert not run.folder.exists()
    assert other.folder.exists()


def test_fresh_that_is_killed_leaves_no_stage_without_some_of_its_files(copied, dataset, monkeypatch):
    monkeypatch.setenv("FOMO_FRESH", "1")

    def die(folder, **_):
        for weights in folder.rglob("weights.pt"):
            weights.unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            toys.tiny_run(dataset)
    assert not copied.folder.exists()
    toys.tiny_run(dataset)
    assert not list(copied.folder.parent.iterdir())


def test_savefig_stores_the_current_figure_as_png(dataset):
    from matplotlib import pyplot as plt

    plt.plot([1, 2])
    run = toys.tiny_run(dataset)
    assert run.savefig("line") is None  # or the cell that ends with it would show a path
    assert (run.figures / "line.png").read_bytes().startswith(b"\x89PNG")


def test_finished_stage_tells_what_it_cost(tmp_path):
    Stage(tmp_path / "stage", {"seed": 0}).finish()
    stored = read_json(tmp_path / "stage" / "stage.json")
    assert 0 <= stored["seconds"] < 60
    assert 50 < stored["peak_memory_mb"] < 100_000
    assert stored["threads"] == torch.get_num_threads()
    assert not stored["resumed"]
    shutil.rmtree(tmp_path / "stage")
    Stage(tmp_path / "stage", {"seed": 0})  # and then killed
    Stage(tmp_path / "stage", {"seed": 0}).finish()
    assert read_json(tmp_path / "stage" / "stage.json")["resumed"]


def test_reopened_stage_has_cost_what_it_cost_before_as_well(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    stage = Stage(tmp_path, {})
    clock.now += 20
    stage.finish()
    again = Stage(tmp_path, {})
    again.reopen()
    assert not again.done
    clock.now += 3
    again.finish()
    stored = read_json(tmp_path / "stage.json")
    assert (stored["seconds"], stored["resumed"], stored["done"]) == (pytest.approx(23), False, True)
    Stage(tmp_path, {}).reopen()  # and then killed
    Stage(tmp_path, {}).finish()
    assert read_json(tmp_path / "stage.json")["resumed"]


def test_stages_finished_within_another_are_not_in_its_seconds(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)

    def stage(name, seconds, before=()):
        opened = Stage(tmp_path / name, {})
        for one in before:
            stage(*one)
        clock.now += seconds
        opened.finish()

    stage("last", 3, before=[("first", 20), ("second", 300, [("third", 4000)])])
    seconds = {
        name: read_json(tmp_path / name / "stage.json")["seconds"] for name in ("first", "second", "third", "last")
    }
    assert seconds == pytest.approx({"first": 20, "second": 300, "third": 4000, "last": 3})
