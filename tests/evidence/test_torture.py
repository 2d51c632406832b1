"""The harness of `make torture`: what it takes for right, and what it notices."""

import os
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from fomo.config import UserError
from fomo.evidence import attempts, torture
from fomo.evidence.attempts import Attempt, FaultError, Job

FILES = ("plan.json", "3_finetuning/weights.pt", "12_evaluation/stage.json", "12_evaluation/metrics.csv")


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "FOLDER", tmp_path)
    job = Job(1, "stages", "killed")
    job.disk.mkdir(parents=True)
    return job


def write_run(disk: Path, name: str = "run-seed0", **contents: str) -> Path:
    """A finished run; returns its folder."""
    for file in FILES:
        path = disk / "runs" / "data-0" / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents.get(path.stem, ""))
    return disk / "runs" / "data-0" / name


def test_run_like_the_expected_one_is_right_whatever_its_costs_and_its_name(tmp_path):
    write_run(tmp_path / "one", stage="1.2 seconds")
    write_run(tmp_path / "other", "other-seed0", stage="3.4 seconds")
    assert torture.differing(tmp_path / "one", tmp_path / "other") == ""


def test_other_metrics_lost_files_and_files_left_over_are_noticed(tmp_path):
    run = write_run(tmp_path / "one", metrics="accuracy,0.5")
    write_run(tmp_path / "other", metrics="accuracy,0.6")
    (run / "3_finetuning" / "weights.pt").unlink()
    (run / "3_finetuning" / ".weights.pt.17.tmp").touch()
    folder = "runs/data-0/run"
    assert torture.differing(tmp_path / "one", tmp_path / "other").split("; ") == [
        f"lost {folder}/3_finetuning/weights.pt",
        f"left {folder}/3_finetuning/.weights.pt.17.tmp",
        f"other {folder}/12_evaluation/metrics.csv",
    ]


def test_replay_need_not_have_what_the_clock_has(tmp_path):
    run = write_run(tmp_path / "one")
    (run / "0_plan").mkdir()
    (run / "0_plan" / "steps.csv").touch()
    (run / "clock.json").touch()
    write_run(tmp_path / "replay", "run-plan-seed0")
    assert torture.differing(tmp_path / "one", tmp_path / "replay") == ""
    assert torture.differing(tmp_path / "replay", tmp_path / "one").startswith("lost")


@pytest.mark.parametrize(
    ("said", "status", "wrong"),
    [
        ("fomo: no space; free some", 2, ""),
        ("fomo: process 1 on x computes y; waiting to go on with its result\nfomo: no space", 2, ""),
        ("fomo: no space\nmake: *** [report] Error 2", 2, ""),
        ("Traceback\nOSError: no space", 2, "errors_1 ends with 2 and 2 lines: OSError: no space"),
        ("", 2, "errors_1 ends with 2 and 0 lines: "),
        ("OSError: no space", 1, "errors_1 ends with 1 and 1 lines: OSError: no space"),
    ],
)
def test_refusal_is_one_line_and_no_other_end_is_right(job, monkeypatch, said, status, wrong):
    def say(job, disk, variables, texts):
        texts[1].write_text(said)
        sys.exit(status)

    monkeypatch.setattr(attempts, "_go_on", say)
    attempt = Attempt(job)
    if wrong:
        with pytest.raises(FaultError) as caught:
            attempt.end(0, 2)
        assert str(caught.value) == wrong
    else:
        assert attempt.end(0, 2) == status


def test_process_that_goes_on_for_ever_hangs_and_is_killed(job, monkeypatch):
    monkeypatch.setattr(attempts, "_go_on", lambda *_: time.sleep(60))
    monkeypatch.setattr(attempts, "PATIENCE", 0.1)
    attempt = Attempt(job)
    with pytest.raises(FaultError, match="errors_1 hangs"):
        attempt.end(0)
    assert attempt.end(-9) == -9


@pytest.mark.parametrize("outcome", ["right", "lost runs/data/run/model.safetensors"])
def test_what_is_stored_is_not_done_again_and_a_run_that_went_wrong_is_told(tmp_path, monkeypatch, outcome):
    monkeypatch.setattr(torture, "RESULTS", tmp_path)
    monkeypatch.setattr(torture, "FOLDER", tmp_path)
    monkeypatch.setattr(torture, "RUNS", {"stages": {"killed": 2}})
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    rows = [(1, "stages, killed", 3, 9.0, "right"), (2, "stages, killed", 1, 8.0, outcome)]
    columns = ["run", "kind", "interruptions", "seconds", "outcome"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "torture.csv", index=False)
    if outcome == "right":
        assert torture.torture().splitlines()[-1].split() == ["stages,", "killed", "2", "4", "17.0", "2"]
    else:
        with pytest.raises(UserError, match="1 of 2 runs went wrong"):
            torture.torture()


def test_root_is_needed(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match="only root may"):
        torture.torture()
