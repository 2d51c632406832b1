"""The best model so far, of runs that are not finished."""

import pandas as pd
import pytest
import toys

import fomo
from fomo.config import UserError
from fomo.stages.so_far import evaluate_so_far, keep_best


@pytest.fixture
def probed(dataset):
    """A run that has its probe, and no more."""
    run = toys.tiny_run(dataset)
    fomo.probe(run)
    return run


def test_model_so_far_can_be_loaded_after_the_probe(probed, dataset):
    keep_best(probed)
    model = fomo.load_model(probed.folder / "model.safetensors")
    named = model.predict(sorted((dataset / "images_test").glob("*.png"))[:3])
    assert model.classes == toys.CLASSES
    assert named[toys.CLASSES].sum(axis=1).tolist() == pytest.approx([1.0] * 3)
    assert "accuracy" in probed.clock.best


def test_model_so_far_is_evaluated_on_the_test_images(probed):
    text = evaluate_so_far(probed)
    table = pd.read_csv(probed.folder / "so_far.csv").set_index("metric")
    accuracy = table.loc["accuracy"]
    assert f"accuracy {accuracy['value']:.3f}" in text
    assert "on 24 test images" in text
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert not (probed.folder / "so_far.npy").exists()


def test_run_without_a_model_says_how_it_goes_on(dataset):
    run = toys.tiny_run(dataset)
    keep_best(run)
    with pytest.raises(UserError, match="no model is there yet; the same command goes on"):
        evaluate_so_far(run)


def test_model_of_a_finished_run_stays(copied):
    path = copied.folder / "model.safetensors"
    before = path.read_bytes()
    keep_best(copied)
    assert path.read_bytes() == before
