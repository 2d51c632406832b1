import inspect

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fomo import figures
from fomo.heads import HEADS

CLASSES = ["cat", "dog", "eel"]
IMAGES = pd.DataFrame({"label": [0, 0, 1, 1, 2, 2, 0], "split": ["train", "validation"] * 3 + ["train"]})
HISTORY = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [1.0, 0.7, 0.4], "validation_loss": [0.9, 0.6, 0.8]})
TRIALS = pd.DataFrame(
    {"trial": [0, 1, 2, 3], "train_loss": [1.0, 0.7, 2.0, np.nan], "objective": [0.9, 0.6, 1.5, np.inf]}
)
TRIALS["validation_loss"] = TRIALS["objective"]
SLICES = pd.DataFrame(
    {
        "parameter": ["lr"] * 3 + ["decay"] * 3 + ["layer"] * 3,
        "value": pd.Series([1e-6, 1e-3, 1e-1, 0.0, 0.1, 0.2, 2, 3, 4], dtype=object),
        "mean": np.linspace(1, 2, 9),
        "std": 0.1,
    }
)
RANKING = pd.DataFrame(
    {
        "operation": range(37),
        "name": [head.name for head in HEADS],
        "activation": [head.activation for head in HEADS],
        "alpha": np.linspace(-0.1, 0.1, 37),
        "accuracy": np.linspace(0.9, 0.1, 37),
        "std": 0.01,
    }
)
ALPHAS = pd.DataFrame([[0.0] * 37, RANKING["alpha"]], columns=[f"alpha_{n}" for n in range(37)]).assign(epoch=[0, 1])
CONFUSION = pd.DataFrame([[5, 1, 0], [0, 0, 0], [1, 1, 7]], index=CLASSES, columns=CLASSES)
METRICS = pd.DataFrame(
    {
        "model": ["majority class", "finetuned", "final"],
        "metric": "macro F1",
        "value": [0.1, 0.7, 0.8],
        "low": [0.05, 0.65, 0.75],
        "high": [0.15, 0.75, 0.85],
    }
)
ONE_AXES = {
    "class_balance": (IMAGES, CLASSES),
    "learning_curves": (HISTORY,),
    "losses": (TRIALS,),
    "incumbent": (TRIALS,),
    "alpha_trajectories": (ALPHAS, RANKING),
    "alphas": (RANKING,),
    "accuracies": (RANKING,),
    "alpha_against_accuracy": (RANKING,),
    "confusion": (CONFUSION,),
    "comparison": (METRICS,),
}
SEVERAL_AXES = {
    "image_grid": (np.zeros((5, 1, 8, 8), np.uint8), list("abcde")),
    "slices": (SLICES,),
    "overview": (TRIALS, RANKING, METRICS),
}


def draw(name, **options):
    return getattr(figures, name)(*{**ONE_AXES, **SEVERAL_AXES}[name], **options)


def heights(axes):
    return [bar.get_height() for bar in axes.patches]


def test_every_figure_is_tested():
    public = {name for name, function in inspect.getmembers(figures, inspect.isfunction) if name[0] != "_"}
    assert {name for name in public if getattr(figures, name).__module__ == "fomo.figures"} == {
        *ONE_AXES,
        *SEVERAL_AXES,
    }


@pytest.mark.parametrize("name", ONE_AXES)
def test_figure_names_its_axes_and_itself(name):
    axes = draw(name)
    assert axes.get_xlabel()
    assert axes.get_ylabel() or [label.get_text() for label in axes.get_yticklabels()]
    assert axes.get_title()


@pytest.mark.parametrize("name", ONE_AXES)
def test_figure_is_drawn_on_the_given_axes(name):
    given = plt.subplots()[1]
    assert draw(name, ax=given) is given
    assert given.has_data()


@pytest.mark.parametrize("name", [*ONE_AXES, *SEVERAL_AXES])
def test_figure_can_be_stored(name, tmp_path):
    draw(name)
    plt.gcf().savefig(tmp_path / "figure.png")
    assert plt.imread(tmp_path / "figure.png").std() > 0


def test_class_balance_counts_images():
    assert [bar.get_width() for bar in draw("class_balance").patches] == [2, 1, 1, 1, 1, 1]


def test_learning_curves_mark_the_epoch_that_is_kept():
    ring = {line.get_label(): line.get_xydata().tolist() for line in draw("learning_curves").lines}["kept"]
    assert ring == [[2, 0.6]]


def test_losses_show_finite_trials_and_count_the_diverged():
    axes = draw("losses")
    assert axes.collections[0].get_offsets().tolist() == [[1.0, 0.9], [0.7, 0.6], [2.0, 1.5]]
    assert "3 trials (1 diverged)" in axes.get_title()


def test_incumbent_never_rises():
    line = {line.get_label(): line for line in draw("incumbent").lines}["incumbent"]
    assert line.get_ydata().tolist() == [0.9, 0.6, 0.6, 0.6]


@pytest.mark.parametrize(("name", "column"), [("alphas", "alpha"), ("accuracies", "accuracy")])
def test_bars_are_the_37_operations_in_order(name, column):
    assert np.allclose(heights(draw(name)), RANKING[column])


def test_slices_have_a_panel_for_each_parameter_on_its_scale():
    axes = draw("slices")
    assert [ax.get_xlabel() for ax in axes] == ["lr", "decay", "layer"]
    assert [ax.get_xscale() for ax in axes] == ["log", "linear", "linear"]


def test_slices_read_back_from_a_csv_look_the_same(tmp_path):
    SLICES.to_csv(tmp_path / "slices.csv", index=False)
    axes = figures.slices(pd.read_csv(tmp_path / "slices.csv"))
    assert [ax.get_xlabel() for ax in axes] == ["lr", "decay", "layer"]


def test_image_grid_shows_each_image_under_its_title():
    axes = draw("image_grid", columns=3)
    assert axes.shape == (2, 3)
    assert [ax.get_title() for ax in axes.flat] == ["a", "b", "c", "d", "e", ""]


def test_confusion_shows_shares_and_writes_counts():
    axes = draw("confusion")
    assert axes.collections[0].get_array()[0].tolist() == pytest.approx([5 / 6, 1 / 6, 0])
    assert [text.get_text() for text in axes.texts] == ["5", "1", "0", "0", "0", "0", "1", "1", "7"]


def test_chosen_and_best_operation_are_named():
    labels = [text.get_text() for text in draw("alpha_against_accuracy").artists[0].get_texts()]
    assert labels == ["chosen: linear", "best alone: 32 ReLU x2"]


def test_comparison_writes_every_models_number():
    assert [text.get_text().split()[-1] for text in draw("comparison").texts] == ["0.100", "0.700", "0.800"]
