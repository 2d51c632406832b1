"""What the tests share: folders of their own, the toy data set, and one finished run on it."""

import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
import toys

from fomo.artifacts import Run
from fomo.networks.backbones import load_backbone
from fomo.stages.evaluation import Evaluation

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Nothing is written into the project."""
    monkeypatch.setenv("FOMO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FOMO_FIGURES", str(tmp_path / "figures"))
    monkeypatch.delenv("FOMO_FRESH", raising=False)
    yield
    plt.close("all")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """The folder of the toy data set; tests that change it write one of their own."""
    return toys.write_dataset(tmp_path_factory.mktemp("data") / "toy")


@dataclass(frozen=True)
class Finished:
    """A run that went from end to end, where its results lie, and the table of its evaluation."""

    run: Run
    root: Path
    evaluation: Evaluation


@pytest.fixture(scope="session")
def finished(dataset, tmp_path_factory) -> Finished:
    """The toy run, finished; for reading only."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOMO_RUNS", str(root))
        patch.setenv("FOMO_FIGURES", str(root / "figures"))
        run = toys.tiny_run(dataset)
        return Finished(run, root, toys.fomo.evaluate(run))


@pytest.fixture
def copied(finished, dataset, tmp_path) -> Run:
    """A copy of the finished run, of the test's own."""
    shutil.copytree(finished.root, tmp_path / "runs")
    return toys.tiny_run(dataset)


@pytest.fixture(scope="session")
def processes() -> partial:
    """Makes a pool of two processes, forked from one that has imported fomo: so they begin at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fomo.study.study", "pytest"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(os.getpid).result()
    return partial(ProcessPoolExecutor, 2, mp_context=context)


@pytest.fixture(scope="session")
def lite0():
    """The default network with its ImageNet weights."""
    return load_backbone("tf_efficientnet_lite0", "imagenet", 64)
