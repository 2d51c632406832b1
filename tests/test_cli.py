import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import timm
import toys
from PIL import Image

import fomo
from fomo import results
from fomo.__main__ import main
from fomo.config import PRESETS, ROOT, UserError
from fomo.networks.weights import ONLINE
from fomo.pages import check_parameters
from fomo.paths import runs_folder
from fomo.report import NOTEBOOKS, STAGES
from fomo.stages.finetuning import FINETUNING_FIRST
from fomo.storage import read_json, write_json

VARIABLES = (
    *("DATASET", "PRESET", "MINUTES", "METRIC", "PLAN", "SEED", "BACKBONE"),
    *("WEIGHTS", "IMAGE_SIZE", "ON_BAD", "ON_LEAK", "ON_RARE", "COLUMNS"),
)
DEFAULTS = {"DATASET": "fashion_sample", "PRESET": "quick", "SEED": 0, "MINUTES": None, "SETTINGS": {}}
QUICK = ["--preset", "quick"]
SMALL = [*QUICK, "--image-size", str(toys.SETTINGS["image_size"])]
PARAMETERS = "\n".join(f"{name} = {value!r}" for name, value in (DEFAULTS | {"SEED": 7}).items())


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """`make report` with one tiny notebook in place of the five, and with `quick` as small as the toy run, whose images
    are `SMALL`."""
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    shown = nbformat.v4.new_code_cell("print(PRESET, SEED, DATASET, SETTINGS)")
    path = tmp_path / "notebooks" / "01_toy.ipynb"
    path.parent.mkdir()
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters, shown], metadata=kernel), path)
    monkeypatch.setattr("fomo.report.NOTEBOOKS", [path])
    settings = {name: value for name, value in toys.SETTINGS.items() if name != "image_size"}
    monkeypatch.setitem(PRESETS, "quick", PRESETS["quick"] | settings)
    return [path]


@pytest.fixture
def asked(monkeypatch):
    """What the command line asks of `report`: the run and the notebooks' parameters, filled in as it is called."""
    asked = {}
    monkeypatch.setattr("fomo.report.report", lambda run, parameters: asked.update(run=run, parameters=parameters))
    return asked


@pytest.fixture
def asked_to_fail(monkeypatch):
    """Makes the command end with an error."""

    def fail(error: Exception) -> None:
        def report(*_):
            raise error

        monkeypatch.setattr("fomo.report.report", report)

    return fail


@pytest.fixture
def own_dataset(tmp_path):
    return toys.write_dataset(tmp_path / "own", train=5, test=2)


def refusal(capsys, *arguments) -> str:
    """The message that the command ends with, in one line and with status 2."""
    assert main(["report", *arguments]) == 2
    bars, _, message = capsys.readouterr().err.partition("fomo: ")
    assert "Traceback" not in bars
    assert len(message.split("\n")[:-1]) == 1
    return message


def test_networks_are_fetched_and_named(monkeypatch, capsys):
    monkeypatch.setattr("fomo.networks.weights.imagenet_weights", lambda name: f"cache/{name}")
    assert main(["networks"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: cache/{name}" for name in ONLINE]


@pytest.mark.parametrize("name", ONLINE)
def test_networks_that_are_fetched_are_known_to_timm_and_free(name):
    assert timm.models.get_pretrained_cfg(name).license == "apache-2.0"


def make(*arguments) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "flwers"], "unknown data set"),
        (["--preset", "quik"], "unknown preset 'quik'; choose from auto, quick, report"),
        (["--backbone", "resnet43"], "unknown backbone 'resnet43'"),
        (["--weights", "none.pth"], "none.pth' is not a file"),
        (["--minutes", "soon"], "minutes 'soon' are no number; give such as 20"),
        (["--minutes", "20", "--preset", "quick"], "give minutes with preset auto only"),
        (["--metric", "f1"], "setting 'metric' is 'f1'; choose from macro_f1, accuracy, log_loss"),
        (["--plan", "no_such_plan.json"], "no_such_plan.json cannot be read"),
        (["--seed", "-1"], "seed '-1' is not a whole number from 0"),
        (["--seed", "1.5"], "seed '1.5' is not a whole number from 0"),
        (["--seed", "one"], "seed 'one' is not a whole number from 0"),
        (["--seed", ""], "seed '' is not a whole number from 0"),
        (["--image-size", "64px"], "image size '64px' is not a whole number of pixels"),
        (["--image-size", "0"], "setting 'image_size' is 0; it must be at least 1"),
        (["--on-bad", "ignore"], "setting 'on_bad' is 'ignore'; choose from raise, skip"),
        (["--on-leak", "keep"], "setting 'on_leak' is 'keep'; choose from warn, drop"),
    ],
)
def test_wrong_parameter_is_refused_in_one_line(asked, capsys, arguments, message):
    assert message in refusal(capsys, *arguments)


@pytest.mark.parametrize("arguments", [[], ["reprot"], ["report", "--datset", "flowers"]])
def test_mistyped_command_is_refused(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: python -m fomo" in capsys.readouterr().err


def missing_table(folder):
    (folder / "train.csv").unlink()


def missing_file(folder):
    (folder / "images_train" / "003.png").unlink()


def wrong_label(folder):
    toys.write_csv(folder, "train", ["000.png", "001.png"], ["0", "cat"])


def rare_class(folder):
    toys.write_csv(folder, "train", [f"00{n}.png" for n in range(5)], [0, 0, 1, 1, 2])


def damaged_image(folder):
    (folder / "images_train" / "003.png").write_bytes(b"not an image")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_table, "has no train.csv"),
        (missing_file, "images_train/003.png (no such file or directory)"),
        (wrong_label, "'cat'"),
        (rare_class, "fewer than 2 train images of 'bottom' (1,"),
        (damaged_image, "cannot read images_train/003.png"),
    ],
)
def test_bad_data_set_is_refused_in_one_line(notebooks, own_dataset, capsys, damage, message):
    damage(own_dataset)
    assert message in refusal(capsys, *QUICK, "--dataset", str(own_dataset))


def test_folder_that_cannot_be_written_is_an_error_in_one_line(notebooks, dataset, capsys, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FOMO_RUNS", str(tmp_path / "file" / "runs"))
    assert "FOMO_RUNS" in refusal(capsys, *QUICK, "--dataset", str(dataset))


def test_full_disk_is_an_error_in_one_line(notebooks, dataset, capsys, monkeypatch):
    def fill_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fill_disk)
    assert "No space left on device" in refusal(capsys, *QUICK, "--dataset", str(dataset))


@pytest.mark.parametrize(("number", "name"), [
    (errno.EIO, None), (errno.ECONNRESET, None), (errno.EMFILE, "elsewhere"), (errno.EACCES, "elsewhere"),
])  # fmt: skip
def test_error_of_the_system_gets_no_advice_that_does_not_fit(asked_to_fail, capsys, number, name):
    asked_to_fail(OSError(number, os.strerror(number), name))
    message = refusal(capsys)
    assert message.strip().endswith(f"{os.strerror(number)}{f': {name!r}' if name else ''}; what is computed is kept")


def test_file_that_a_stored_result_lacks_is_named_with_what_to_do(asked_to_fail, capsys):
    missing = runs_folder("fashion_sample") / "quick" / "2_probe" / "head.pt"
    asked_to_fail(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(missing)))
    message = refusal(capsys)
    assert str(missing) in message
    assert "compute the run anew with FOMO_FRESH=1" in message
    asked_to_fail(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "elsewhere"))
    assert "FOMO_FRESH" not in refusal(capsys)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_want_of_space_is_said_to_be_one(asked_to_fail, capsys, number):
    asked_to_fail(OSError(number, os.strerror(number)))
    assert "free some space; results go to data/runs and figures" in refusal(capsys)


@pytest.mark.parametrize(
    ("path", "lacking", "right", "message"),
    [
        ("images/a.png", "images/a.png", os.R_OK, "read {}, which its owner gives by chmod u+r"),
        ("images/a.png", "images", os.X_OK, "enter {}, which its owner gives by chmod u+x"),
        ("runs/toy/stage.json", "runs", os.W_OK, "write into {}, which its owner gives by chmod u+w; results go to"),
    ],
)
def test_right_that_is_missing_is_named_with_its_place(
    asked_to_fail, capsys, monkeypatch, tmp_path, path, lacking, right, message
):
    for folder in ("images", "runs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "a.png").touch()
    monkeypatch.setattr(os, "access", lambda place, asked: (Path(place), asked) != (tmp_path / lacking, right))
    asked_to_fail(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / path)))
    assert f"you lack the right to {message.format(tmp_path / lacking)}" in refusal(capsys)


@pytest.mark.parametrize(
    "error", [UserError("x" * 5000 + "; do this"), OSError(5, "x" * 5000), FloatingPointError("x" * 5000)]
)
def test_message_is_short_whatever_it_quotes_and_ends_with_what_to_do(asked_to_fail, capsys, error):
    asked_to_fail(error)
    message = refusal(capsys)
    assert len(message) < 2000
    assert message.startswith("xxx") or message.startswith("[Errno 5]")
    assert isinstance(error, ArithmeticError) or message.rstrip().endswith(("do this", "what is computed is kept"))


def test_mistyped_command_is_quoted_in_short(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["report", "x" * 5000])
    assert len(capsys.readouterr().err) < 3000


def test_finetuning_that_diverges_is_an_error_in_one_line(notebooks, own_dataset, capsys, monkeypatch):
    monkeypatch.setitem(FINETUNING_FIRST, "lr", 1e38)
    assert "learning rate" in refusal(capsys, *QUICK, "--dataset", str(own_dataset))


def test_other_settings_are_an_error_in_one_line(notebooks, copied, dataset, capsys, monkeypatch):
    monkeypatch.setitem(PRESETS, "quick", PRESETS["quick"] | {"epochs": 5})
    assert "epochs: stored 3, asked 5" in refusal(capsys, "--dataset", str(dataset), *SMALL)


def test_notebook_without_a_parameter_is_refused_before_anything_runs(notebooks, dataset, capsys, tmp_path):
    notebooks[0].write_text(notebooks[0].read_text().replace("SEED = 7", "SED = 7"))
    assert "01_toy.ipynb has no parameter SEED" in refusal(capsys, *QUICK, "--dataset", str(dataset))
    assert not (tmp_path / "runs").exists()


def test_interrupt_says_that_the_same_command_goes_on(capsys, dataset, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fomo.report.report", interrupt)
    assert main(["report", "--dataset", str(dataset)]) == 130
    assert "goes on from here" in capsys.readouterr().err


# ---- what a report leaves


def test_report_leaves_an_executed_copy_and_a_page_of_each_notebook_and_ends_with_one_line_of_metrics(
    notebooks, copied, finished, dataset, capsys
):
    assert main(["report", "--dataset", str(dataset), *SMALL]) == 0
    read, *progress, line = capsys.readouterr().out.strip().splitlines()
    assert read == f"{dataset}: 60 train and 24 test images of 3 classes"
    value = finished.evaluation.metrics.set_index(["model", "metric"]).loc[("final", "macro F1"), "value"]
    assert f"macro F1 {value:.3f} [" in line
    assert str(copied.folder / "model.safetensors") in line
    assert line.endswith(f"page: {copied.folder / 'index.html'}")
    assert 'href="notebooks/01_toy.html"' in (copied.folder / "index.html").read_text()
    steps = fomo.plan(copied).steps
    assert progress[: 1 + len(steps)] == steps.to_string(index=False).splitlines()
    assert len(progress) == 1 + len(steps) + len(toys.STAGES) + len(notebooks)
    pages = copied.folder / "notebooks"
    cells = nbformat.read(pages / "01_toy.ipynb", as_version=4).cells
    assert cells[-1].outputs[0].text.split() == ["quick", "0", str(dataset), "{'image_size':", "32}"]
    assert "<html" in (pages / "01_toy.html").read_text()


def test_report_that_is_interrupted_ends_with_a_page_of_the_best_model_so_far(
    notebooks, own_dataset, capsys, monkeypatch, tmp_path
):
    def interrupt(run):
        raise KeyboardInterrupt

    monkeypatch.setitem(STAGES, "finetune", interrupt)
    assert main(["report", *QUICK, "--dataset", str(own_dataset)]) == 0
    (page,) = (tmp_path / "runs").glob("own-*/*/index.html")
    assert capsys.readouterr().out.endswith(f" | page: {page} | the same command goes on from here\n")
    assert "Interrupted" in page.read_text()


def test_results_are_kept_and_shown_with_the_spread_of_several_seeds(
    notebooks, copied, dataset, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "kept")
    asked = ["results", "--dataset", str(dataset), *SMALL]
    assert main(asked) == 0
    shown, (folder,) = capsys.readouterr().out, (tmp_path / "kept").iterdir()
    assert f"kept in {folder}" in shown
    assert "search / training" in shown
    assert "±" not in shown
    other = folder.with_name(f"{folder.name}-seed1")
    shutil.copytree(folder, other)
    write_json(other / "config.json", read_json(other / "config.json") | {"seed": 1})
    assert main(asked) == 0
    assert "± 0.000" in capsys.readouterr().out


def test_fresh_deletes_nothing_where_results_are_kept(notebooks, copied, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "kept")
    monkeypatch.setenv("FOMO_FRESH", "1")
    assert main(["results", "--dataset", str(dataset), *SMALL]) == 0
    assert (copied.folder / "12_evaluation" / "stage.json").exists()


def test_notebook_that_fails_is_an_error_in_one_line(notebooks, copied, dataset, capsys):
    notebook = nbformat.read(notebooks[0], as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("assert 1 > 2, 'what is wrong'"))
    nbformat.write(notebook, notebooks[0])
    message = refusal(capsys, "--dataset", str(dataset), *SMALL)
    assert f"01_toy.ipynb fails with AssertionError: what is wrong; {copied.folder}" in message


def test_notebooks_open_the_run_of_the_command_wherever_they_stand(own_dataset, tmp_path, monkeypatch, asked):
    toys.save_weights(tmp_path / "mine.safetensors", "test_vit", 96)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOMO_RUNS", "runs")
    options = ["--backbone", "test_vit", "--weights", "mine.safetensors", "--image-size", "96"]
    main(["report", "--dataset", "own", "--seed", "3", *QUICK, *options])
    monkeypatch.chdir(ROOT / "notebooks")
    dataset, preset, seed, minutes, settings = asked["parameters"].values()
    run = fomo.Run(dataset, preset, seed=seed, minutes=minutes, **settings)
    assert list(settings) == ["backbone", "weights", "image_size"]  # only what was asked for
    assert run.folder == asked["run"].folder
    assert run.config.weights == asked["run"].config.weights
    assert fomo.preprocess(run).pixels.shape == (15, 3, 96, 96)


def test_command_without_arguments_is_the_quick_run_of_the_sample(asked):
    main(["report"])
    assert (asked["run"].config.dataset, asked["run"].preset) == ("fashion_sample", "quick")
    assert asked["parameters"] == DEFAULTS


def test_committed_notebooks_have_the_parameters_of_the_report():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]
    for notebook in NOTEBOOKS:
        check_parameters(notebook, DEFAULTS)


# ---- make


@pytest.mark.parametrize("target", ["report", "test", "lab"])
def test_make_refuses_a_variable_that_it_does_not_know(target):
    result = make("-n", target, "DATSET=flowers")
    assert result.returncode == 2
    assert "unknown variable DATSET; choose from DATASET PRESET MINUTES METRIC PLAN SEED" in result.stderr


AWKWARD = """'s "own"; touch ran & $(touch ran) `touch ran` ${HOME} $HOME \\ # *"""


@pytest.fixture
def make_shown(tmp_path):
    """Calls make where Python only shows what it is given; returns that."""
    for name in ("requirements.txt", "pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    python.chmod(0o755)
    (tmp_path / ".venv" / "installed").touch()

    def call(*arguments: str, **variables: str) -> list[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | variables
        result = subprocess.run(["make", *arguments], cwd=tmp_path, env=clean, capture_output=True, text=True)
        return json.loads(result.stdout)

    return call


@pytest.mark.parametrize("target", ["report", "results", "inspect", "predict", "bench"])
@pytest.mark.parametrize("command_line", [True, False])
def test_make_hands_on_what_its_variables_hold_and_the_shell_runs_nothing_of_it(
    make_shown, tmp_path, target, command_line
):
    values = {name: f"-{name}{AWKWARD}" for name in (*VARIABLES, "MODEL", "IMAGES")}
    if command_line:  # where make has a meaning of its own for $
        given = make_shown(target, *(f"{name}={value.replace('$', '$$')}" for name, value in values.items()))
    else:
        given = make_shown(target, **values)
    named = {name.lower().replace("_", "-"): values[name] for name in VARIABLES}
    expected = [f"--{name}={value}" for name, value in named.items()]
    of_inspect = [f"--columns={values['COLUMNS']}", f"--on-rare={values['ON_RARE']}", "--", values["DATASET"]]
    of_predict = ["--", values["MODEL"], *values["IMAGES"].split()]
    expected = {"inspect": of_inspect, "predict": of_predict, "bench": expected[:1]}.get(target, expected)
    assert given == ["-m", "fomo", target, *expected]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("arguments", [["report", "--dataset=-no such folder"], ["inspect", "--", "-no such folder"]])
def test_name_that_begins_like_an_option_is_none(capsys, arguments):
    assert main(arguments) == 2
    assert "unknown data set" in capsys.readouterr().err


def test_make_alone_lists_its_targets():
    listed = make().stdout
    assert all(f"make {target}" in listed for target in ("report", "test", "bench", "lab", "clean"))


def test_explanations_are_images_called_as_their_files_each_beside_itself_under_its_map(finished, dataset, tmp_path):
    for name in ("a/boot.png", "b/boot.png", "c/boot-2.png"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(dataset / "images_test" / "000.png", tmp_path / name)
    (tmp_path / "a" / "bad.png").write_text("no image")
    given = [str(tmp_path / name) for name in "abc"]
    to, seen = str(tmp_path / "table.csv"), str(tmp_path / "new" / "seen")
    model = str(finished.evaluation.model_path)
    assert main(["predict", model, *given, "--to", to, "--explain", seen]) == 1  # one cannot be read
    names = ["boot-2-2.png", "boot-2.png", "boot.png"]
    assert sorted(path.name for path in (tmp_path / "new" / "seen").iterdir()) == names
    with Image.open(tmp_path / "new" / "seen" / "boot.png") as image:
        assert (image.size, image.mode) == ((512, 256), "RGB")
