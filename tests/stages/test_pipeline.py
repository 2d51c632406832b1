import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from PIL import Image

import fomo
from fomo.config import UserError
from fomo.storage import Lock

ARTEFACTS = {
    "1_preprocessing": ["images.csv", "left_out.csv", "notes.csv", "pixels.npy", "survey.json"],
    "2_probe": ["features.npy", "head.pt", "strengths.csv"],
    "3_finetuning": ["history.csv", "weights.pt"],
    "4_bayesian_optimization": ["trials.csv"],
    "5_best_finetuning": ["history.csv", "race.csv", "weights.pt"],
    "6_features": ["train.npy", "validation.npy"],
    "7_darts": ["choice.json", "history.csv", "ranking.csv", "rules.csv", "scores.csv"],
    "8_head_tuning": ["trials.csv"],
    "9_head": ["history.csv", "weights.pt"],
    "1_test_images": ["test.npy", "left_out.csv"],
    "10_ensemble": ["history_2.csv", "weights_2.pt"],
    "11_final": ["chosen.json", "options.csv", "told.npy"],
    "12_evaluation": [
        *("metrics.csv", "predictions.csv", "predictions.npy", "scored.csv", "classes.csv"),
        *("calibration.csv", "validation.csv"),
    ],
    "13_suspects": ["suspects.csv"],
}


@pytest.fixture
def own_dataset(tmp_path):
    """A data set that the test may change."""
    return toys.write_dataset(tmp_path / "own", train=5, test=2)


def files(folder: Path) -> dict:
    return {path: path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}


def when_written(folder: Path) -> dict:
    return {path: (status.st_mtime_ns, status.st_ino) for path, status in files(folder).items()}


# ---- what a finished run holds


def test_each_stage_leaves_its_artefacts(finished):
    for stage, artefacts in ARTEFACTS.items():
        folder = finished.run.folder / stage
        assert json.loads((folder / "stage.json").read_text())["done"]
        assert set(artefacts) <= {path.name for path in folder.iterdir()}


def test_finished_run_holds_no_checkpoint_and_no_half_written_file(finished):
    names = {path.name for path in files(finished.root)} - {"head.pt", "weights.pt", "weights_2.pt", "unlike.pt"}
    assert not [name for name in names if name.endswith((".tmp", ".pt"))]
    assert not {"features_train_2.npy", "features_validation_2.npy"} & names


# ---- read through


def test_second_call_computes_nothing_and_gives_equal_results(copied, finished):
    before = when_written(copied.folder)
    for stage in toys.STAGES:
        stage(copied)
    assert when_written(copied.folder) == before
    again = fomo.evaluate(copied)
    for table in ("metrics", "per_class", "confusion", "predictions", "validation", "calibration"):
        pd.testing.assert_frame_equal(getattr(again, table), getattr(finished.evaluation, table), check_exact=True)


def test_what_is_finished_or_left_out_is_read_without_waiting_for_who_computes_the_run(copied, dataset):
    with Lock(copied.folder).held():  # as if by another process
        for stage in toys.STAGES:
            stage(copied)
        assert fomo.finetune(toys.tiny_run(dataset, first_epochs=0)) is None
        assert fomo.search_head(toys.tiny_run(dataset, darts_epochs=0)) is None


@pytest.mark.parametrize(
    ("setting", "value", "stage", "message"),
    [
        ("validation_share", 0.3, fomo.preprocess, "validation_share: stored 0.2, asked 0.3"),
        ("first_epochs", 4, fomo.finetune, "first_epochs: stored 3, asked 4"),
        ("trials", 5, fomo.optimize_finetuning, "trials: stored 3, asked 5"),
        ("epochs", 4, fomo.extract_features, "epochs: stored 3, asked 4"),
        ("alpha_lr", 0.1, fomo.search_head, "alpha_lr: stored 0.0003, asked 0.1"),
        ("selection", "alpha", fomo.search_head, "selection: stored alone, asked alpha"),
        ("head_batch", 2, fomo.tune_head, "head_batch: stored 6, asked 2"),
        ("head_epochs", 9, fomo.train_head, "head_epochs: stored 4, asked 9"),
        ("members", 3, fomo.train_members, "members: stored 2, asked 3"),
        ("final", "validation", fomo.compose, "final: stored searched, asked validation"),
        ("trials", 5, fomo.evaluate, "trials: stored 3, asked 5"),
    ],
)
def test_result_of_other_settings_is_refused(copied, dataset, setting, value, stage, message):
    with pytest.raises(UserError, match=message):
        stage(toys.tiny_run(dataset, **{setting: value}))


def test_setting_of_a_later_stage_does_not_touch_an_earlier_one(copied, dataset):
    assert len(fomo.finetune(toys.tiny_run(dataset, head_epochs=9)).history) == 3


def repaint(folder):
    Image.fromarray(toys.draw(0, seed=99)).save(folder / "images_train" / "000.png")


def repaint_in_the_same_size(folder):
    path = folder / "images_train" / "000.png"
    size = path.stat().st_size
    Image.fromarray(toys.draw(0, (8, 8, 3), seed=99)).save(path)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))


@pytest.mark.parametrize("change", [repaint, repaint_in_the_same_size, toys.relabel])
def test_result_of_other_images_or_labels_is_refused(own_dataset, change):
    fomo.preprocess(toys.tiny_run(own_dataset))
    change(own_dataset)
    with pytest.raises(UserError, match=r"computed with other settings \(the images have changed: 1 other\)"):
        fomo.preprocess(toys.tiny_run(own_dataset))


def test_refusal_says_how_many_images_were_added_are_gone_and_are_others(own_dataset):
    fomo.preprocess(toys.tiny_run(own_dataset))
    images = own_dataset / "images_train"
    for number in (2, 3, 4):
        Image.fromarray(toys.draw(0, seed=99)).save(images / f"{number:03}.png")
    (images / "new.png").write_bytes((images / "005.png").read_bytes())
    table = pd.read_csv(own_dataset / "train.csv")
    added = pd.DataFrame({"image_file_name": ["new.png"], "label": [0]})
    pd.concat([table.drop(index=[0, 1]), added]).to_csv(own_dataset / "train.csv", index=False)
    for stage in (fomo.preprocess, fomo.probe):
        with pytest.raises(UserError, match=r"\(the images have changed: 1 added, 2 gone, 3 other\)"):
            stage(toys.tiny_run(own_dataset))


def test_result_of_another_weights_file_is_refused(dataset, tmp_path):
    path = tmp_path / "weights.safetensors"
    toys.save_weights(path, "test_efficientnet", 32)
    fomo.preprocess(toys.tiny_run(dataset, weights=str(path)))
    toys.save_weights(path, "test_efficientnet", 32)
    with pytest.raises(UserError, match="weights_file: stored"):
        fomo.preprocess(toys.tiny_run(dataset, weights=str(path)))


def test_fresh_run_is_computed_anew_to_the_same_result(copied, dataset, monkeypatch):
    before = when_written(copied.folder)
    monkeypatch.setenv("FOMO_FRESH", "1")
    run = toys.tiny_run(dataset)
    monkeypatch.delenv("FOMO_FRESH")
    fomo.preprocess(run)
    after = when_written(copied.folder)
    assert set(after) < set(before)
    assert not set(after.values()) & set(before.values())


def test_test_labels_are_looked_at_by_the_evaluation_only(own_dataset):
    """Before it, its images are read, and their bytes and groups compared with those of train, to find leaks."""
    run = toys.tiny_run(own_dataset, **toys.SHORT, name="before")
    fomo.evaluate(run)
    before = fomo.train_head(run).history
    toys.write_csv(own_dataset, "test", ["000.png", "001.png", "002.png"], [2, 1, 0])
    with pytest.raises(UserError, match=r"other settings \(the test images have changed: 3 gone, 2 other\)"):
        fomo.evaluate(run)
    run = toys.tiny_run(own_dataset, **toys.SHORT, name="after")
    for stage in toys.STAGES:
        if stage is not fomo.evaluate:
            stage(run)
    pd.testing.assert_frame_equal(fomo.train_head(run).history, before, check_exact=True)


# ---- interruptions


@pytest.fixture(scope="module")
def killed(dataset, tmp_path_factory):
    """The folder of the toy run after it was killed many times and came to its end; and how often it was killed."""
    root = tmp_path_factory.mktemp("killed")
    command = [sys.executable, Path(toys.__file__).with_name("killed_run.py"), dataset]
    environment = os.environ | {"FOMO_RUNS": str(root), "FOMO_FRESH": "0"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 5
    return root


@pytest.mark.parametrize("stage", ARTEFACTS)
def test_killed_run_ends_with_the_same_results(killed, finished, stage):
    for name in ARTEFACTS[stage]:
        expected = finished.run.folder / stage / name
        path = killed / expected.relative_to(finished.root)
        if name in ("rules.csv", "trials.csv"):
            tables = [pd.read_csv(table).drop(columns="seconds") for table in (path, expected)]
            pd.testing.assert_frame_equal(*tables, check_exact=True)
        elif name in ("head.pt", "weights.pt"):
            states = [torch.load(state, weights_only=True) for state in (path, expected)]
            assert all(torch.equal(value, states[1][tensor]) for tensor, value in states[0].items())
        else:
            assert path.read_bytes() == expected.read_bytes()


def test_killed_run_leaves_nothing_behind_in_the_end(killed, finished):
    names = [{str(path.relative_to(root)) for path in files(root)} for root in (killed, finished.root)]
    assert names[0] == names[1]


@pytest.fixture(scope="module")
def paired(dataset, tmp_path_factory):
    """The folder of runs that two processes computed at once, each in a folder of its own; and what they printed."""
    root = tmp_path_factory.mktemp("paired")
    command = [sys.executable, Path(toys.__file__).with_name("paired_run.py"), dataset]
    environment = os.environ | {"FOMO_RUNS": str(root), "FOMO_FRESH": "0", "TQDM_DISABLE": "1"}
    return root, subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_on_one_run_both_end_well_and_one_says_that_it_waits(paired):
    _, result = paired
    pairs = [line.split() for line in result.stdout.splitlines()]
    assert len(pairs) == 4
    assert all(statuses == ["0", "0"] for _, *statuses in pairs), result.stderr
    said = result.stderr.splitlines()
    assert said
    assert all("waiting to go on with its result" in line for line in said)


def test_two_processes_on_one_run_have_the_results_of_one(paired, dataset):
    root, _ = paired
    run = toys.tiny_run(dataset, **toys.SHORT)
    fomo.evaluate(run)
    names = {str(path.relative_to(run.folder.parent)) for path in files(run.folder)}
    for pair in ("together", "later", "anew"):
        (folder,) = (root / pair).iterdir()
        assert {str(path.relative_to(folder)) for path in files(folder)} == names
        for name in ("options.csv", "metrics.csv", "scored.csv"):
            (expected,), (found,) = run.folder.rglob(name), folder.rglob(name)
            assert found.read_bytes() == expected.read_bytes()


def fill_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("function", ["posix_fallocate", "replace"])
def test_full_disk_leaves_no_half_written_file_and_a_later_call_works(own_dataset, monkeypatch, function):
    run = toys.tiny_run(own_dataset)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, fill_disk)
        with pytest.raises(OSError, match="No space left"):
            fomo.preprocess(run)
    assert {path.name for path in files(run.folder)} <= {"stage.json"}
    assert len(fomo.preprocess(run).pixels) == 15


# ---- other data, other networks


def test_pipeline_runs_with_another_network(own_dataset):
    evaluation = fomo.evaluate(toys.tiny_run(own_dataset, backbone="test_resnet", **toys.SHORT))
    assert np.isfinite(evaluation.metrics["value"]).all()


def test_counts_of_twelve_bits_are_seen_alike_by_training_test_and_model(tmp_path):
    folder = toys.write_dataset(tmp_path / "counts", train=5, test=2, shape=(24, 24))
    for path in folder.glob("images_*/*.png"):
        with Image.open(path) as image:
            values = np.asarray(image).astype(np.uint16) * 16
        Image.fromarray(values).save(path)
    run = toys.tiny_run(folder, **toys.SHORT)
    evaluation, data = fomo.evaluate(run), fomo.preprocess(run)
    assert data.notes[0] == "uint16 images: 0 is seen as black and 4095 as white, as found in train"
    assert 20 < data.pixels.mean() < 150
    model = fomo.load_model(evaluation.model_path)
    assert model.ranges == {"uint16": [0, 4095]}
    predicted = model.predict(folder / file for file in evaluation.predictions["file"])
    assert np.allclose(predicted["confidence"], evaluation.predictions["confidence"], atol=1e-5)
    assert predicted["class"].tolist() == [toys.CLASSES[label] for label in evaluation.predictions["final"]]


def test_grey_images_are_classified_also_by_a_transformer(tmp_path):
    folder = toys.write_dataset(tmp_path / "grey", train=5, test=2, shape=(24, 24))
    evaluation = fomo.evaluate(toys.tiny_run(folder, backbone="test_vit", **toys.SHORT))
    assert np.isfinite(evaluation.metrics["value"]).all()
    assert evaluation.pixels.shape == (6, 1, 32, 32)
    assert fomo.load_model(evaluation.model_path).description["channels"] == 1
