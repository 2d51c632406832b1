"""What the README files and docstrings show is run: Python on the toy data set; commands as dry runs."""

import doctest
import importlib
import os
import re
import shlex
import shutil
import subprocess

import pytest
import toys
from PIL import Image

import fomo
from fomo.__main__ import main
from fomo.config import ROOT

PAGES = [ROOT / name for name in ("README.md", "fomo/README.md", "data/README.md", "data/results/README.md")]
TEXT = "\n".join(page.read_text() for page in PAGES)
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
COMMANDS = sorted(set(re.findall(r'\bmake [a-z-]+(?: [A-Z_]+=(?:[\w/.]+|"[^"]+"))*', TEXT)))


@pytest.fixture
def folder(finished, dataset, tmp_path, monkeypatch):
    """The current folder has what the examples name: a model, an image, a data set. Their runs are the toy run."""
    checked = fomo.Run

    def run(dataset_: str = "", preset: str = "quick", **settings) -> fomo.Run:
        checked(settings.pop("dataset", dataset_), preset, **settings)
        return checked(dataset, "quick", **toys.SETTINGS)

    def classifier(minutes: float) -> fomo.ImageClassifier:
        assert minutes > 0
        settings = toys.SETTINGS | {"trials": 0, "darts_epochs": 0, "members": 1, "final": "validation"}
        return fomo.estimator.ImageClassifier(preset="quick", settings=settings)

    shutil.copy(finished.evaluation.model_path, tmp_path / "model.safetensors")
    toys.write_class_folders(tmp_path / "path" / "to" / "folder", count=5)
    shutil.copy(finished.evaluation.model_path, tmp_path / "path" / "to")
    (tmp_path / "photos").mkdir()
    for place in (tmp_path, tmp_path / "photos"):
        Image.fromarray(toys.draw(1)).save(place / "boot.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fomo, "Run", run)
    monkeypatch.setattr(fomo, "ImageClassifier", classifier)


def test_there_are_as_many_examples_as_a_reader_finds():
    assert TEXT.count("```") == 2 * len(EXAMPLES)
    assert len(EXAMPLES) == 5


WITH_FOMO = [example for example in EXAMPLES if "fomo" in example]  # test_export.py runs the other one


@pytest.mark.parametrize("example", WITH_FOMO, ids=["predict", "scikit-learn", "study on Dask", "trials on processes"])
def test_example_runs(folder, example, capsys):
    names = {"__name__": "__main__"}
    exec(compile(example, "example", "exec"), names)
    if "ImageClassifier" in example:
        assert names["accuracy"] == names["classifier"].score(names["test"], names["test_labels"])
    if "study.top" in example:
        assert len(capsys.readouterr().out.splitlines()) == 4  # the names of the columns, three trials
    if "optimize_finetuning" in example:
        assert len(fomo.optimize_finetuning(names["run"]).complete) == toys.SETTINGS["trials"]


def test_examples_of_docstrings_run(folder):
    modules = [importlib.import_module(f"fomo.{name}") for name in ("model", "artifacts", "study.space")]
    found = [test for module in modules for test in doctest.DocTestFinder().find(module, extraglobs={"fomo": fomo})]
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in found:
        runner.run(test)
    assert runner.summarize(verbose=False) == (0, 5)


def test_no_docstring_with_an_example_is_left_out():
    sources = [path for path in (ROOT / "fomo").rglob("*.py") if ">>> " in path.read_text()]
    assert {path.stem for path in sources} == {"model", "artifacts", "space"}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_one_that_make_knows_and_fomo_accepts(command, folder, monkeypatch, capsys):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    words = shlex.split(command)
    asked = subprocess.run([*words, "--dry-run"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    given = dict(part.split("=") for part in words if "=" in part)
    values = {"DATASET": "fashion_sample", "SEED": "0"} | given
    shown = re.sub(r"\$(\w+)", lambda name: values.get(name[1], ""), asked.stdout.replace("\\\n", ""))
    lines = [shlex.split(line) for line in shown.splitlines() if "-m fomo " in line]
    if command.startswith(("make report", "make results", "make inspect DATASET", "make predict")):
        monkeypatch.setattr("fomo.report.report", lambda run, parameters: "reported")
        monkeypatch.setattr("fomo.results.collect", lambda run: "kept")
        assert main(lines[0][lines[0].index("fomo") + 1 :]) == 0, capsys.readouterr().err


def test_names_in_the_texts_exist():
    """For somebody who has imported fomo and nothing else: a package hands on what it names."""
    names = {name for name in re.findall(r"`(fomo(?:\.\w+)+)", TEXT) if not name.endswith(".py")}
    assert len(names) >= 2
    for name in names:
        place = fomo
        for part in name.split(".")[1:]:
            assert part in getattr(place, "__all__", [part]), name
            place = getattr(place, part)


def test_runs_in_the_texts_are_ones_that_can_be_asked_for():
    runs = re.findall(r"fomo\.Run\([^()]*\)", TEXT)
    assert len(runs) >= 4
    for run in runs:
        eval(run, {"fomo": fomo})


def test_links_between_the_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)
