"""What the tests share: folders of their own, the toy data set, and one finished run on it.

What takes seconds to import is imported by the fixtures: where several processes test, the first one runs none.
"""

import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import fomo  # before torch, whose threads it puts to sleep

os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Nothing is written into the project."""
    monkeypatch.setenv("FOMO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FOMO_FIGURES", str(tmp_path / "figures"))
    monkeypatch.delenv("FOMO_FRESH", raising=False)
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(autouse=True)
def seeded():
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """The folder of the toy data set; tests that change it write one of their own."""
    import toys

    return toys.write_dataset(tmp_path_factory.mktemp("data") / "toy")


@dataclass(frozen=True)
class Finished:
    """A run that went from end to end, where its results lie, and the table of its evaluation."""

    run: "fomo.Run"
    root: Path
    evaluation: "fomo.stages.evaluation.Evaluation"


@pytest.fixture(scope="session")
def finished(dataset, tmp_path_factory) -> Finished:
    """The toy run, finished; for reading only."""
    import toys

    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOMO_RUNS", str(root))
        patch.setenv("FOMO_FIGURES", str(root / "figures"))
        run = toys.tiny_run(dataset)
        evaluation = fomo.evaluate(run)
        fomo.suspects(run)
        return Finished(run, root, evaluation)


@pytest.fixture
def copied(finished, dataset, tmp_path) -> "fomo.Run":
    """A copy of the finished run, of the test's own."""
    import toys

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
    from fomo.networks.backbones import load_backbone

    return load_backbone("tf_efficientnet_lite0", "imagenet", 64)
