"""fomo beside its peers: small images that are told apart with ease."""

import subprocess

import numpy as np
import pandas as pd
import pytest

from fomo.data.datasets import load_dataset
from fomo.evidence import minutes, peers
from fomo.networks.backbones import load_backbone
from fomo.storage import write_json


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(minutes, "FOLDER", tmp_path)
    return tmp_path


@pytest.fixture
def lights(dataset, monkeypatch):
    """A task: five train images of each class of the toy data set."""
    monkeypatch.setitem(minutes.TASKS, "toy", minutes.Task(str(dataset), each=5, test=4))
    return "toy"


def store(job, named, seconds):
    write_json(job.path.with_suffix(".json"), {"job": vars(job), "seconds": seconds})
    np.save(job.path, named)


def test_cut_has_so_many_images_of_each_class_and_is_drawn_once(folder, lights):
    cut = load_dataset(minutes.prepare(lights))
    assert cut.train["label"].value_counts().tolist() == [5] * len(cut.classes)
    assert len(cut.test()) == 4
    stamp = cut.fingerprint()
    assert load_dataset(minutes.prepare(lights)).fingerprint() == stamp


def test_rare_class_of_a_cut_is_as_rare_in_test(folder, dataset, monkeypatch):
    monkeypatch.setitem(minutes.TASKS, "rare", minutes.Task(str(dataset), classes=(0, 2), each=(2, 4)))
    cut = load_dataset(minutes.prepare("rare"))
    assert sorted(cut.train["label"].value_counts()) == [2, 4]
    rare, usual = sorted(cut.test()["label"].value_counts())
    assert usual == 2 * rare


def test_whole_data_set_is_read_where_it_is(folder, dataset, monkeypatch):
    monkeypatch.setitem(minutes.TASKS, "whole", minutes.Task(str(dataset)))
    assert minutes.prepare("whole") == str(dataset)
    assert not list(folder.iterdir())


def test_what_is_no_task_is_a_folder_whose_name_alone_is_stored(folder):
    assert minutes.prepare("path/to/photos") == "path/to/photos"
    assert minutes.Job("path/to/photos", "fomo", 5.0).path == folder / "photos_fomo_5_0.npy"


def test_table_takes_the_best_side_that_ends_in_time(folder, lights):
    labels = load_dataset(minutes.prepare(lights)).test()["label"].to_numpy()
    wrong, half = (labels + 1) % 2, np.where(np.arange(len(labels)) < 2, labels, (labels + 1) % 2)
    jobs = minutes.jobs(lights, 2)
    made = {"fomo": (labels, 130.0), "plain": (half, 100.0), "probe": (wrong, 20.0), "report": (np.array([]), 9.0)}
    for job in jobs:
        named, seconds = made[job.method]
        store(job, labels if job.side == 224 else named, 500.0 if job.side == 224 else seconds)
    table = minutes.table(jobs).set_index(["metric", "method"])
    accuracy = table.loc["accuracy"]
    assert accuracy["value"].to_dict() == {"probe": 0.0, "plain": 0.5, "fomo": 1.0}
    assert accuracy["gain"].to_dict() == {"probe": 1.0, "plain": 0.5, "fomo": 0.0}
    assert accuracy.loc["probe", "side"] != 224  # it is too late
    shown = minutes.summary(table.reset_index(), "accuracy")
    assert shown.loc[(lights, 2), "fomo - plain"].startswith("+0.500 [")


def test_preset_report_takes_what_it_takes_and_is_given_up_where_no_minutes_are_enough(folder, lights, monkeypatch):
    told = []

    def late(command, timeout, **_):
        told.append((command[4:], timeout))
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", late)
    assert not [job for job in minutes.jobs(lights, 5) if job.method == "report"]
    job = next(job for job in minutes.jobs(lights, 15) if job.method == "report")
    minutes.do(job)
    assert not len(job.named)
    ((options, timeout),) = told
    data = minutes.prepare(lights)
    assert options == [
        f"--dataset={data}", "--preset=report", "--backbone=tf_efficientnet_lite0", f"--image-size={job.side}"
    ]  # fmt: skip
    assert timeout == 72 * 60


def test_what_is_stored_is_not_compared_again(folder, lights, tmp_path, monkeypatch):
    monkeypatch.setattr(minutes, "RESULTS", tmp_path)
    stored = pd.DataFrame(
        {"task": [lights], "minutes": [2], "method": ["fomo"], "metric": ["macro F1"], "value": [0.5]}
    )
    stored.to_csv(tmp_path / "minutes.csv", index=False)
    monkeypatch.setattr(minutes, "do", None)
    assert minutes.compare([lights], [2])["value"].tolist() == [0.5]


@pytest.mark.parametrize("method", ["probe", "plain"])
def test_peers_learn_what_is_easy(dataset, method, monkeypatch):
    """A small network of random weights in place of theirs."""
    monkeypatch.setattr(peers, "build", lambda side: load_backbone("test_efficientnet", "random", side))
    data = load_dataset(str(dataset))
    named = peers.probe(data, 32) if method == "probe" else peers.plain(data, 32, 0.1)
    assert (named == data.test()["label"]).mean() > 0.6


def test_panels_are_drawn_for_each_task(folder):
    rows = [
        {"task": task, "minutes": each, "method": method, "metric": "macro F1", "value": 0.5}
        for task in ("one", "two") for each in (2, 5) for method in ("fomo", "plain")
    ]  # fmt: skip
    minutes.draw(pd.DataFrame(rows), folder / "minutes.png")
    assert (folder / "minutes.png").stat().st_size > 1000
