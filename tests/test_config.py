import ast
import ctypes
import os
import subprocess
import sys
from dataclasses import fields

import pytest
import toys

import fomo
from fomo.config import CHOICES, DATASETS, PRESETS, ROOT, Config, UserError, make_config
from fomo.stages import open_stage

# A module imports only from those before it.
ORDER = [
    "config",
    "artifacts",
    "archives",
    "sources",
    "division",
    "datasets",
    "images",
    "inspection",
    "data",
    "weights",
    "backbones",
    "features",
    "heads",
    "bank",
    "bank_optimizer",
    "training",
    "bank_training",
    "halving",
    "selection",
    "darts",
    "layered",
    "space",
    "surrogate",
    "trials",
    "tuning",
    "metrics",
    "classifier",
    "views",
    "drawing",
    "head_figures",
    "study_figures",
    "figures",
    "stages",
    "preprocessing",
    "finetuning",
    "head_search",
    "ensemble",
    "problems",
    "final",
    "evaluation",
    "results",
    "__init__",
    "report",
    "finetuning_evidence",
    "evidence",
    "bench",
    "bench_memory",
    "bench_pipeline",
    "bench_table",
    "__main__",
]
SOURCES = {path.stem: path.read_text() for path in (ROOT / "fomo").glob("*.py")}


def imports(module: str) -> set[str]:
    """The modules of fomo that `module` imports, anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(SOURCES[module])):
        if isinstance(node, ast.ImportFrom) and node.module == "fomo":
            found |= {alias.name if alias.name in SOURCES else "__init__" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("fomo."):
            found.add(node.module.removeprefix("fomo."))
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("fomo.") for alias in node.names if alias.name.startswith("fomo.")}
    return found


def in_fresh_process(code: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_makes_a_config(preset):
    config = make_config("fashion_sample", preset)
    assert {name: getattr(config, name) for name in PRESETS[preset]} == PRESETS[preset]


def test_report_preset_is_the_report_to_the_letter():
    config = make_config("flowers", "report")
    assert (config.backbone, config.image_size, config.rotation) == ("resnet34", 224, 30)
    assert (config.trials, config.trial_epochs, config.epochs) == (30, 1, 8)
    assert (config.darts_epochs, config.weight_lr, config.alpha_lr) == (8, 3e-4, 3e-4)
    assert (config.head_trials, config.head_epochs) == (30, 8)


def test_setting_replaces_that_of_the_preset_and_none_leaves_it():
    config = make_config("fashion_sample", "quick", trials=5, epochs=None)
    assert config.trials == 5
    assert config.epochs == PRESETS["quick"]["epochs"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": "flwers"}, "unknown data set 'flwers'; choose from emotions, fashion, .*, or give a folder"),
        ({"preset": "quik"}, "unknown preset 'quik'; choose from quick, report, best"),
        ({"backbone": "resnet43"}, "unknown backbone 'resnet43'; choose from resnet34, tf_efficientnet_lite0"),
        ({"epoch": 3}, "unknown setting 'epoch'; choose from .*epochs"),
        ({"epochs": "three"}, "setting 'epochs' is 'three'; it must be of type int"),
        ({"weights": "no_such_file.pth"}, "weights 'no_such_file.pth' is not a file"),
        ({"seed": -1}, "seed"),
        ({"seed": 10**19}, "setting 'seed' is 10000000000000000000; it must be at most 1000000000"),
        ({"backbone": "test_vit", "train_scale": 0.5}, "backbone 'test_vit' sees images of one size only: train_scale"),
        ({"on_bad": "skpi"}, "setting 'on_bad' is 'skpi'; choose from raise, skip"),
        ({"on_leak": True}, "setting 'on_leak' is True; it must be of type str"),
        ({"balance": "weights"}, "setting 'balance' is 'weights'; choose from none, sampler"),
        ({"selection": "alphas"}, "setting 'selection' is 'alphas'; choose from alpha, perturbation, one epoch, halv"),
        ({"head_space": "huge"}, "setting 'head_space' is 'huge'; choose from report, large"),
        ({"head_batch": 0}, "setting 'head_batch' is 0; it must be at least 1"),
        ({"schedule": "linear"}, "setting 'schedule' is 'linear'; choose from constant, cosine"),
        ({"crop": 1.2}, "setting 'crop' is 1.2; it must be at most 1"),
        ({"crop": 0.0}, "setting 'crop' is 0.0; it must be at least 1e-12"),
        ({"label_smoothing": -0.1}, "setting 'label_smoothing' is -0.1; it must be at least 0"),
        ({"averaging": 99.0}, "setting 'averaging' is 99.0; it must be at most 1"),
        ({"trial_share": 50.0}, "setting 'trial_share' is 50.0; it must be at most 1"),
        ({"temperature": 0.0}, "setting 'temperature' is 0.0; it must be at least 1e-12"),
    ],
)
def test_wrong_name_or_value_is_refused_with_what_is_allowed(given, message):
    with pytest.raises(UserError, match=message):
        make_config(**{"dataset": "fashion_sample"} | given)


@pytest.mark.parametrize("dataset", DATASETS)
def test_network_of_one_size_sees_images_of_that_size_only(dataset):
    config = make_config(dataset, "best", backbone="test_vit", image_size=160)
    assert (config.train_scale, config.trial_size) == (1.0, 0)
    plain = make_config(dataset, "best")
    assert (plain.train_scale, plain.trial_size) != (1.0, 0)


@pytest.mark.parametrize("setting", [field.name for field in fields(Config) if field.type is bool])
@pytest.mark.parametrize("value", [True, False])
def test_switch_can_be_on_and_off(setting, value):
    assert getattr(make_config("fashion_sample", **{setting: value}), setting) is value


def test_every_preset_and_the_defaults_choose_what_is_allowed():
    for preset in PRESETS:
        config = make_config("fashion_sample", preset)
        assert all(getattr(config, name) in allowed for name, allowed in CHOICES.items())
    assert set(CHOICES) < {field.name for field in fields(Config)}


@pytest.mark.parametrize(("setting", "value"), [(name, value) for name in CHOICES for value in CHOICES[name]])
def test_every_choice_is_taken(setting, value):
    assert getattr(make_config("fashion_sample", **{setting: value}), setting) == value


def test_data_set_names_are_those_of_the_report_and_the_sample():
    assert set(DATASETS) == {"emotions", "fashion", "fashion_sample", "flowers", "skin_cancer"}


def test_every_setting_binds_the_final_result(dataset):
    bound = open_stage(toys.tiny_run(dataset), "11_evaluation").config
    assert set(bound) >= {field.name for field in fields(Config)} - {"dataset"}


def test_every_setting_is_read_somewhere():
    nodes = [node for source in SOURCES.values() for node in ast.walk(ast.parse(source))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert {field.name for field in fields(Config)} - read == set()


def test_every_module_has_its_place_in_the_list():
    assert set(SOURCES) == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_only_go_up_the_list(module):
    assert imports(module) <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", SOURCES)
def test_module_is_short(module):
    assert len(SOURCES[module].splitlines()) <= 300


@pytest.mark.parametrize("name", fomo.__all__)
def test_public_name_is_documented(name):
    assert getattr(fomo, name).__doc__


def test_import_prints_nothing_and_puts_waiting_threads_to_sleep():
    result = in_fresh_process("import fomo, os; assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_importing_torch_first_warns_that_its_threads_spin():
    result = in_fresh_process("import warnings, torch; warnings.simplefilter('error'); import fomo")
    assert "UserWarning: torch was imported before fomo" in result.stderr


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_memory_of_one_step_is_there_for_the_next():
    code = """
import fomo, resource, torch
def faults():
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first = faults()
assert faults() - first < 2000, faults()  # 16384 pages each time, were they fetched anew
"""
    result = in_fresh_process(code)
    assert result.returncode == 0, result.stderr
