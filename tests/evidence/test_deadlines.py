"""Runs against the clock: commands that note how they were called, and sleep."""

import subprocess
import sys
import time

import pandas as pd
import pytest

from fomo.evidence import deadlines
from fomo.storage import read_table, write_table

NOTE = "import os, pathlib, sys, time; pathlib.Path(os.environ['FOMO_RUNS']).parent.parent.joinpath('calls.txt')"
NOTE += ".open('a').write(' '.join(sys.argv[1:]) + chr(10)); time.sleep({})"


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Has a run sleep so many seconds; returns the file of what was called."""
    monkeypatch.setattr(deadlines, "FOLDER", tmp_path)
    monkeypatch.setattr(deadlines, "RESULTS", tmp_path)
    monkeypatch.setattr(deadlines, "prepare", str)

    def sleeping(seconds):
        monkeypatch.setattr(deadlines, "REPORT", [sys.executable, "-c", NOTE.format(seconds)])
        return tmp_path / "deadlines" / "calls.txt"

    return sleeping


def test_killed_run_is_called_again_and_both_count(calls):
    path = calls(1.5)
    begun = time.perf_counter()
    row = deadlines.do(1, "toy", 0.02, "killed, resumed")  # after 0.6 seconds
    assert path.read_text().splitlines()[-1] == "--dataset=toy --minutes=0.02"
    assert 1.5 + 0.6 <= row["seconds"] <= time.perf_counter() - begun + 0.1


def test_run_that_fails_is_no_row(calls, monkeypatch):
    calls(0)
    monkeypatch.setattr(deadlines, "REPORT", [sys.executable, "-c", "raise SystemExit('no images')"])
    with pytest.raises(subprocess.CalledProcessError) as error:
        deadlines.do(1, "toy", 1, "alone")
    assert "no images" in error.value.output


def test_other_process_is_busy_as_long_as_the_run(monkeypatch):
    begun = []

    def popen(*given, real=subprocess.Popen):
        begun.append(real(*given))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    with deadlines.busy():
        assert begun[0].poll() is None
    assert begun[0].poll() is not None


def test_what_is_stored_is_not_run_again(calls, monkeypatch, tmp_path):
    path = calls(0)
    monkeypatch.setattr(deadlines, "RUNS", {2: ("one", "two"), 3: ("three",)})
    row = {"run": 2, "task": "two", "minutes": 2, "way": "beside a busy process", "seconds": 123.0}
    write_table(tmp_path / "deadlines.csv", pd.DataFrame([row]))
    table = deadlines.measured()
    assert table["way"].tolist() == list(deadlines.WAYS)
    assert table["task"].tolist() == ["one", "two", "three"]
    assert table["seconds"].tolist()[1] == 123.0
    assert {line.split()[0] for line in path.read_text().splitlines()} <= {"--dataset=one", "--dataset=three"}
    assert read_table(tmp_path / "deadlines.csv")["run"].tolist() == [1, 2, 3]


def test_summary_counts_who_is_in_time():
    rows = [(1, 2, "alone", 139.0), (2, 2, "alone", 141.0), (3, 20, "alone", 1259.0), (4, 4, "killed, resumed", 180.0)]
    told = deadlines.summary(pd.DataFrame(rows, columns=["run", "minutes", "way", "seconds"]))
    assert told["in time"].to_dict() == {"alone": 2, "killed, resumed": 1}
    assert told["latest"].to_dict() == {"alone": 59.0, "killed, resumed": -60.0}
    assert told["least used"].to_dict() == {"alone": 1.05, "killed, resumed": 0.75}
