import ast
import ctypes
import importlib
import os
from dataclasses import fields
from types import SimpleNamespace

import pytest
import toys

import fomo
from fomo.config import CHOICES, DATASETS, PRESETS, ROOT, Config, UserError, make_config
from fomo.stages.common import open_stage


def test_preset_makes_a_config():
    for preset, settings in PRESETS.items():
        config = make_config("fashion_sample", preset)
        assert {name: getattr(config, name) for name in settings} == settings


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
        ({"preset": "quik"}, "unknown preset 'quik'; choose from auto, quick, report"),
        ({"backbone": "resnet43"}, "unknown backbone 'resnet43'; choose from resnet34, tf_efficientnet_lite0"),
        ({"epoch": 3}, "unknown setting 'epoch'; choose from .*epochs"),
        ({"epochs": "three"}, "setting 'epochs' is 'three'; it must be of type int"),
        ({"weights": "no_such_file.pth"}, "weights 'no_such_file.pth' is not a file"),
        ({"seed": -1}, "seed"),
        ({"seed": 10**19}, "setting 'seed' is 10000000000000000000; it must be at most 1000000000"),
        (
            {"backbone": "test_vit", "trial_size": 32},
            "backbone 'test_vit' sees images of one size only: trial_size must be 0",
        ),
        ({"on_bad": "skpi"}, "setting 'on_bad' is 'skpi'; choose from raise, skip"),
        ({"on_leak": True}, "setting 'on_leak' is True; it must be of type str"),
        ({"selection": "halving"}, "setting 'selection' is 'halving'; choose from alpha, alone$"),
        ({"head_batch": 0}, "setting 'head_batch' is 0; it must be at least 1"),
        ({"schedule": "linear"}, "setting 'schedule' is 'linear'; choose from constant, cosine"),
        ({"crop": 1.2}, "setting 'crop' is 1.2; it must be at most 1"),
        ({"crop": 0.0}, "setting 'crop' is 0.0; it must be at least 1e-12"),
        ({"label_smoothing": -0.1}, "setting 'label_smoothing' is -0.1; it must be at least 0"),
        ({"averaging": 99.0}, "setting 'averaging' is 99.0; it must be at most 1"),
        ({"trial_share": 50.0}, "setting 'trial_share' is 50.0; it must be at most 1"),
    ],
)
def test_wrong_name_or_value_is_refused_with_what_is_allowed(given, message):
    with pytest.raises(UserError, match=message):
        make_config(**{"dataset": "fashion_sample"} | given)


def test_network_of_one_size_sees_images_of_that_size_in_trials_too():
    assert make_config("fashion_sample", "quick").trial_size > 0
    assert make_config("fashion_sample", "quick", backbone="test_vit", image_size=160).trial_size == 0


def test_every_switch_and_every_choice_is_taken():
    values = CHOICES | {field.name: (True, False) for field in fields(Config) if field.type is bool}
    for setting, value in [(name, value) for name in values for value in values[name]]:
        assert getattr(make_config("fashion_sample", **{setting: value}), setting) == value


def test_every_preset_and_the_defaults_choose_what_is_allowed():
    for preset in PRESETS:
        config = make_config("fashion_sample", preset)
        assert all(getattr(config, name) in allowed for name, allowed in CHOICES.items())
    assert set(CHOICES) < {field.name for field in fields(Config)}


def test_data_set_names_are_those_of_the_report_and_the_sample():
    assert set(DATASETS) == {"emotions", "fashion", "fashion_sample", "flowers", "skin_cancer"}


def test_every_setting_binds_the_final_result(dataset):
    """All but the minutes, whose plan is settings that do."""
    bound = open_stage(toys.tiny_run(dataset), "12_evaluation").config
    assert set(bound) >= {field.name for field in fields(Config)} - {"dataset", "minutes"}


def test_every_setting_is_read_by_a_run():
    """As an attribute of a config; evidence does not count."""
    paths = [path for path in (ROOT / "fomo").rglob("*.py") if path.parent.name != "evidence"]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    read = [node for node in nodes if isinstance(node, ast.Attribute)]
    read = {node.attr for node in read if ast.unparse(node.value).split(".")[-1] == "config"}
    assert {field.name for field in fields(Config)} - read == set()


def test_public_names_are_documented():
    assert [name for name in fomo.__all__ if not getattr(fomo, name).__doc__] == []
    assert set(fomo.__all__) <= set(dir(fomo))


# ---- what the import of fomo changes


def test_importing_torch_first_warns_that_its_threads_spin(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    with pytest.warns(UserWarning, match="torch was imported before fomo"):
        importlib.reload(fomo)
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"]) == ("PASSIVE", "1000")


def test_wait_policy_that_is_set_stays(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    importlib.reload(fomo)
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize(("keep", "calls"), [("0", [(-4, 0), (-1, -1), (-8, 1)]), ("1", [])])
def test_allocator_is_told_to_keep_memory_unless_it_is_to_be_left_alone(monkeypatch, keep, calls):
    made = []
    library = SimpleNamespace(mallopt=lambda *call: made.append(call))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    monkeypatch.setenv("FOMO_KEEP_MALLOC", keep)
    importlib.reload(fomo)
    assert made == calls
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())  # another C library than glibc
    importlib.reload(fomo)
    assert made == calls
