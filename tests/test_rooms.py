"""The rooms of the package: who may import whom, what is loaded when, and what holds in a process of its own."""

import ast
import ctypes
import json
import os
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter

import numpy as np
import pandas as pd
import pytest
import toys

from fomo.config import ROOT

LOWEST = {"storage", "config", "progress", "paths"}
PARTS = {"artifacts", "study", "networks", "data"}  # none of which knows another
ALLOWED = {  # what each room may import besides itself, from the bottom
    "config": set(),
    "progress": set(),
    "paths": {"config"},
    "storage": {"config"},
    "figures": set(),
    **dict.fromkeys(PARTS, LOWEST),
    "clock": LOWEST,
    "artifacts": {"clock"} | LOWEST,
    "training": {"networks", "data"} | LOWEST,
    "model_file": {"networks"} | LOWEST,
    "model": {"model_file", "networks", "data"} | LOWEST,
    "predictions": {"model", "data", "figures"} | LOWEST,
}
ALLOWED["exporting"] = ALLOWED["model"] | {"model"}
ALLOWED["stages"] = set(ALLOWED) - {"figures", "predictions", "exporting"}
ALLOWED["pages"] = LOWEST
ALLOWED["estimator"] = ALLOWED["stages"] | {"stages"}
ALLOWED["results"] = ALLOWED["stages"] | {"stages"}
ALLOWED["page"] = ALLOWED["results"] | {"results", "pages"}
ALLOWED["report"] = ALLOWED["page"] | {"page"}
ALLOWED["evidence"] = {*ALLOWED, ""}  # "": the public names, which come from any room
ALLOWED["__main__"] = {*ALLOWED, "evidence", ""}
PACKAGE = ROOT / "fomo"
SOURCES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def imports(source: str) -> set[str]:
    """The modules of fomo that a source imports, anywhere in its code, such as data.batches; "" for a public name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports do not say where they lead"
            known = [f"{node.module}.{alias.name}".removeprefix("fomo.") for alias in node.names]
            found |= {f"fomo.{name}" if is_module(name) else node.module for name in known}
    return {name.removeprefix("fomo").removeprefix(".") for name in found if name.split(".")[0] == "fomo"}


def is_module(name: str) -> bool:
    return name in SOURCES or f"{name}.__init__" in SOURCES


def wrong_imports(module: str, source: str) -> set[str]:
    """What the source of `module` imports though its room may not."""
    own = module.split(".")[0]
    return {name for name in imports(source) if name.split(".")[0] not in ALLOWED[own] | {own}}


# ---- who may import whom


def test_every_module_has_a_room():
    assert {module.split(".")[0] for module in SOURCES} == {*ALLOWED, "__init__"}


def test_no_module_imports_from_a_room_above_its_own():
    wrong = {name: wrong_imports(name, path.read_text()) for name, path in SOURCES.items() if name != "__init__"}
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("networks.heads", "from fomo.data.batches import loader", {"data.batches"}),
        ("networks.heads", "from fomo.data import loader", {"data"}),
        ("networks.heads", "def late():\n    import fomo.data.batches", {"data.batches"}),
        ("study.study", "from fomo.artifacts import Run", {"artifacts"}),
        ("stages.final", "from fomo import figures", {"figures"}),
        ("stages.final", "from fomo import Run", {""}),
        ("data.batches", "import fomo", {""}),
        ("results", "from fomo.evidence import bench", {"evidence.bench"}),
        ("evidence.bench", "from fomo.__main__ import main", {"__main__"}),
        ("evidence.bench", "import fomo\nfrom fomo import Run, figures\nfrom fomo.stages import selection", set()),
        (
            "training.loop",
            "from fomo.networks import HeadBank\nfrom fomo.training import darts",
            set(),
        ),
    ],
)
def test_import_from_above_is_found_wherever_it_stands(module, line, found):
    assert wrong_imports(module, line) == found


def test_relative_import_is_refused():
    with pytest.raises(AssertionError, match="relative"):
        imports("from ..stages import final")


def test_modules_do_not_import_each_other_in_a_circle():
    graph = {name: imports(path.read_text()) - {name, ""} for name, path in SOURCES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(SOURCES)


def test_every_module_is_short():
    assert {name for name, path in SOURCES.items() if len(path.read_text().splitlines()) > 250} == set()


# ---- what is loaded when

# One process, for the start of each costs seconds. What follows may have loaded what came before it.
CODE = """
import contextlib, io, json, os, resource, runpy, sys, warnings
warnings.simplefilter("error")
facts = {}

def loaded(*names):
    return [name for name in names if name in sys.modules]

def rooms(*names):
    return [name for name in sys.modules if name.startswith(tuple(f"fomo.{room}" for room in names))]

def command(*arguments):
    sys.argv, said = ["fomo", *arguments], io.TextIOWrapper(io.BytesIO())
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_module("fomo", run_name="__main__")
        except SystemExit as end:
            return end.code

import fomo
facts["fomo"] = loaded("torch", "pandas")
facts["policy"] = os.environ["OMP_WAIT_POLICY"]
facts["exits"] = [command("--help"), command("report", "--sed", "3"), command("report", "--dataset", "flwers")]
facts["command"] = loaded("torch", "pandas", "timm")
read, write = os.pipe()
if os.fork() == 0:  # what the study loads is not to be found below
    import fomo.study.study
    os.write(write, json.dumps(loaded("torch")).encode())
    os._exit(0)
os.wait()
os.close(write)
facts["study"] = json.loads(os.read(read, 1000))
fomo.inspect
facts["inspect"] = loaded("timm") + rooms("networks", "training", "study", "stages", "evidence", "figures")
fomo.load_model
facts["load_model"] = loaded("bayes_opt", "seaborn") + rooms("training", "study", "stages", "evidence", "figures")
warnings.simplefilter("default")
fomo.load_model("model.safetensors").predict(sys.argv_of_the_test).to_csv("predictions.csv", index=False)

import torch
def faults():
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first = faults()
facts["faults"] = faults() - first
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def fresh(finished, dataset, tmp_path_factory):
    """What a new process has found of itself, in a folder with a copy of the finished run's model; and what it printed
    besides."""
    folder = tmp_path_factory.mktemp("fresh")
    shutil.copy(finished.evaluation.model_path, folder / "model.safetensors")
    images = sorted(map(str, (dataset / "images_test").iterdir()))
    code = CODE.replace("sys.argv_of_the_test", repr(images))
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    *printed, facts = result.stdout.splitlines()
    return json.loads(facts) | {"printed": [*printed, *result.stderr.splitlines()], "folder": folder}


def test_import_prints_nothing_loads_next_to_nothing_and_puts_waiting_threads_to_sleep(fresh):
    assert fresh["fomo"] == fresh["printed"] == []
    assert fresh["policy"] == "PASSIVE"


def test_help_and_refusals_load_no_torch(fresh):
    assert fresh["exits"] == [0, 2, 2]
    assert fresh["command"] == []


def test_study_loads_no_torch(fresh):
    assert fresh["study"] == []


def test_public_name_loads_only_the_rooms_that_it_knows(fresh):
    assert fresh["inspect"] == fresh["load_model"] == []


def test_saved_model_predicts_the_same_in_a_fresh_process_without_its_run(fresh, finished):
    table = finished.evaluation.predictions
    predicted = pd.read_csv(fresh["folder"] / "predictions.csv")
    assert predicted["class"].tolist() == [toys.CLASSES[label] for label in table["final"]]
    assert np.allclose(predicted["confidence"], table["confidence"], atol=1e-5)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_memory_of_one_step_is_there_for_the_next(fresh):
    assert fresh["faults"] < 2000  # 16384 pages each time, were they fetched anew
