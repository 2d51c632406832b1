"""A study on Dask: a real cluster of two worker processes, one of which is killed in a trial."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster

from fomo.study import Choice, Float, Space, Study

SPACE = Space(x=Float(-1.0, 1.0), kind=Choice(("plain", "other")))
FIRST = {"x": 0.5, "kind": "plain"}


def objective(died: Path, configuration: dict, report) -> dict:
    """A parabola. The worker that computes the first trial for the first time is killed in it."""
    if configuration == FIRST and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)  # long enough for the other worker to take a trial, too
    return {"objective": configuration["x"] ** 2, "process": os.getpid()}


@pytest.fixture(scope="module")
def client():
    """Two processes of one thread each, without a dashboard."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_study_on_dask_survives_a_killed_worker_and_is_resumed(client, tmp_path):
    path, workers = tmp_path / "trials.csv", partial(client.get_executor, pure=False)
    for trials in (6, 8):  # the second study finds six trials there
        study = Study(SPACE, path, seed=0, first=FIRST, initial=4)
        study.run(partial(objective, tmp_path / "died"), trials, executor=workers, workers=2)
        assert len(study.trials) == trials
        client.wait_for_workers(2)  # until the killed one is replaced
    assert (tmp_path / "died").exists()
    assert (study.trials["status"] == "complete").all()
    assert sorted(study.trials["trial"]) == list(range(8))
    processes = set(study.trials["process"])
    assert len(processes) > 1
    assert os.getpid() not in processes
