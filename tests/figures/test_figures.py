import importlib
import inspect

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fomo import figures
from fomo.networks.heads import HEADS
from fomo.study.space import Choice, Float, Space

CLASSES = ["cat", "dog", "eel"]
IMAGES = pd.DataFrame({"label": [0, 0, 1, 1, 2, 2, 0], "split": ["train", "validation"] * 3 + ["train"]})
HISTORY = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [1.0, 0.7, 0.4], "validation_loss": [0.9, 0.6, 0.8]})
SPACE = Space(
    lr=Float(1e-6, 1e-2, log=True),
    momentum=Float(0.1, 0.9, when=("optimizer", "sgd")),
    decay=Float(0.0, 0.2),
    optimizer=Choice(("adam", "sgd", "rmsprop")),
    layer=Choice((2, 3, 4), when=("optimizer", "adam")),
)
TRIALS = pd.DataFrame(
    {
        "trial": [0, 1, 3, 2, 4, 5],
        "lr": [1e-6, 1e-4, 1e-3, 1e-2, 1e-2, 1e-5],
        "momentum": [np.nan, 0.5, np.nan, 0.9, np.nan, 0.1],
        "decay": [0.0, 0.1, 0.2, 0.1, 0.0, 0.05],
        "optimizer": ["adam", "sgd", "rmsprop", "sgd", "adam", "sgd"],
        "layer": [2, np.nan, np.nan, np.nan, 4, np.nan],
        "status": ["complete", "complete", "pruned", "complete", "diverged", "complete"],
        "objective": [0.9, 0.6, 0.3, 1.5, np.inf, 0.7],
        "train_loss": [1.0, 0.7, np.nan, 2.0, np.nan, 0.8],
    }
)
TRIALS["validation_loss"] = TRIALS["objective"].where(TRIALS["status"] == "complete")
SLICES = pd.DataFrame(
    {
        "parameter": ["lr"] * 3 + ["decay"] * 3 + ["layer"] * 3,
        "value": pd.Series([1e-6, 1e-3, 1e-1, 0.0, 0.1, 0.2, "2", "3", "4"], dtype=object),
        "median": np.linspace(1, 2, 9),
        "low": np.linspace(0.8, 1.8, 9),
        "high": np.linspace(1.3, 2.3, 9),
    }
)
IMPORTANCE = pd.DataFrame({"parameter": ["lr", "weight_decay"], "importance": [0.8, 0.3]})
RULES = pd.DataFrame(
    {
        "rule": ["alpha", "perturbation", "alone", "linear", "one seed by another"],
        "regret": [0.02, 0.01, 0.001, 0.005, np.nan],
        "regret_std": [0.01, 0.0, 0.001, 0.0, np.nan],
    }
)
CONTEST = pd.DataFrame(
    [
        {"problem": problem, "contestant": contestant, "seed": seed, "1": 1.0 + seed, "2": 0.5 * seed, "3": 0.0}
        for problem in ("Branin", "conditional")
        for contestant in ("fomo", "random search")
        for seed in range(3)
    ]
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
    "importance": (IMPORTANCE,),
    "parallel_coordinates": (TRIALS, SPACE.describe()),
    "rules": (RULES,),
}
SEVERAL_AXES = {
    "contest": (CONTEST,),
    "heatmaps": (np.zeros((3, 1, 8, 8), np.uint8), np.full((3, 8, 8), 0.5), list("abc")),
    "image_grid": (np.zeros((5, 1, 8, 8), np.uint8), list("abcde")),
    "slices": (SLICES,),
    "overview": (TRIALS, RANKING, METRICS),
}


def draw(name, **options):
    return getattr(figures, name)(*{**ONE_AXES, **SEVERAL_AXES}[name], **options)


def heights(axes):
    return [bar.get_height() for bar in axes.patches]


def line_of(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


def test_every_figure_is_tested():
    assert set(figures.__all__) == {*ONE_AXES, *SEVERAL_AXES}
    assert all(inspect.isfunction(getattr(figures, name)) for name in figures.__all__)


def test_no_figure_of_the_modules_is_left_out():
    modules = [importlib.import_module(f"fomo.figures.{name}") for name in ("run", "study", "heads")]
    names = {name for module in modules for name, value in vars(module).items() if inspect.isfunction(value)}
    assert {name for name in names if name[0] != "_"} - {"new_axes", "beside_map", "short"} == set(figures.__all__)


@pytest.mark.parametrize("name", ONE_AXES)
def test_figure_is_drawn_on_the_given_axes_names_them_and_itself_and_can_be_stored(name, tmp_path):
    given = plt.subplots()[1]
    axes = draw(name, ax=given)
    assert axes is given
    assert axes.has_data()
    plt.gcf().savefig(tmp_path / "figure.png")
    assert axes.get_xlabel()
    assert axes.get_ylabel() or [label.get_text() for label in axes.get_yticklabels()]
    assert axes.get_title()


# What is left where there is as little as can be: one class, one epoch, one trial, one operation.
LEAST = {
    "class_balance": (IMAGES.assign(label=0), ["cat"]),
    "learning_curves": (HISTORY[:1],),
    "losses": (TRIALS[:1],),
    "incumbent": (TRIALS[:1],),
    "parallel_coordinates": (TRIALS[:1], SPACE.describe()),
    "importance": (IMPORTANCE[:1],),
    "alphas": (RANKING[:1].assign(std=np.nan),),
    "accuracies": (RANKING[:1].assign(std=np.nan),),
    "alpha_against_accuracy": (RANKING[:1].assign(std=np.nan),),
    "alpha_trajectories": (ALPHAS[["epoch", "alpha_0"]][:1], RANKING[:1]),
    "confusion": (CONFUSION.iloc[:1, :1],),
    "comparison": (METRICS[1:].assign(value=1.0, low=1.0, high=1.0),),
    "rules": (RULES[:1].assign(regret=0.0, regret_std=np.nan),),
    "slices": (SLICES[:3],),
    "contest": (CONTEST[:1],),
    "heatmaps": (np.zeros((1, 1, 8, 8), np.uint8), np.zeros((1, 8, 8)), ["a"]),
    "image_grid": (np.zeros((1, 1, 8, 8), np.uint8), ["a"]),
    "overview": (TRIALS[:1], RANKING[:1].assign(std=np.nan), METRICS[:1]),
}


@pytest.mark.parametrize("name", figures.__all__)
def test_figure_of_as_little_as_can_be_is_drawn(name, tmp_path):
    getattr(figures, name)(*LEAST[name])
    plt.gcf().savefig(tmp_path / "figure.png")
    assert plt.imread(tmp_path / "figure.png").std() > 0


@pytest.mark.parametrize("name", SEVERAL_AXES)
def test_figure_of_several_axes_can_be_stored(name, tmp_path):
    draw(name)
    plt.gcf().savefig(tmp_path / "figure.png")
    assert plt.imread(tmp_path / "figure.png").std() > 0


def test_class_balance_counts_images():
    assert [bar.get_width() for bar in draw("class_balance").patches] == [2, 1, 1, 1, 1, 1]


def test_learning_curves_mark_the_epoch_that_is_kept():
    ring = {line.get_label(): line.get_xydata().tolist() for line in draw("learning_curves").lines}["kept"]
    assert ring == [[2, 0.6]]


def test_losses_show_complete_trials_and_count_the_others():
    axes = draw("losses")
    assert axes.collections[0].get_offsets().tolist() == [[1.0, 0.9], [0.7, 0.6], [2.0, 1.5], [0.8, 0.7]]
    assert "4 trials (1 pruned, 1 diverged)" in axes.get_title()


def test_incumbent_is_the_best_complete_trial_so_far_without_a_gap():
    line = line_of(draw("incumbent"), "incumbent")
    assert line.get_xdata().tolist() == [0, 1, 2, 3, 4, 5]
    assert line.get_ydata().tolist() == [0.9, 0.6, 0.6, 0.6, 0.6, 0.6]


def test_incumbent_begins_with_the_first_complete_trial():
    trials = TRIALS.assign(status=["pruned", *TRIALS["status"][1:]])
    values = line_of(figures.incumbent(trials), "incumbent").get_ydata()
    assert np.isnan(values[0])
    assert values[1:].tolist() == [0.6] * 5


def test_trial_that_was_ended_early_is_a_cross_and_one_that_diverged_is_not_shown():
    axes = draw("incumbent")
    assert line_of(axes, "trial").get_xdata().tolist() == [0, 1, 2, 5]
    assert line_of(axes, "ended early (training loss)").get_xydata().tolist() == [[3, 0.3]]


def parallel(trials=TRIALS):
    """Of each complete trial, the worst first: its line, and the axes at which it has a dot."""
    axes = figures.parallel_coordinates(trials, SPACE.describe())
    lines = [line.get_ydata() for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 5]
    dots = [line.get_ydata() for line in axes.lines if line.get_marker() == "o"]
    return axes, lines, [np.flatnonzero(~np.isnan(values)).tolist() for values in dots]


def test_parallel_coordinates_go_through_every_parameter_on_its_scale():
    axes, lines, _ = parallel()
    assert len(lines) == 4
    assert lines[0][:4].tolist() == pytest.approx([1, 1, 0.5, 0.5])  # lr 1e-2, momentum 0.9, decay 0.1, sgd
    assert [label.get_text() for label in axes.get_xticklabels()] == list(SPACE)
    assert {"1e-06", "0.01", "0.1", "0.9", "adam", "rmsprop", "2", "4"} <= {text.get_text() for text in axes.texts}


def test_parallel_coordinates_pass_by_a_parameter_that_does_not_act():
    """The trial with adam goes straight from lr to decay, and has no dot at momentum."""
    _, lines, dots = parallel()
    assert lines[1].tolist() == pytest.approx([0, 0, 0, 0, 0])
    assert dots[1] == [0, 2, 3, 4]
    assert dots[0] == [0, 1, 2, 3]  # sgd: momentum acts, and layer does not
    middle = parallel(TRIALS.assign(decay=[0.2, *TRIALS["decay"][1:]]))[1][1]
    assert middle[:3].tolist() == pytest.approx([0, 0.5, 1])


def test_slices_of_words_are_points_and_those_of_numbers_lines_with_a_band():
    axes = draw("slices")
    assert axes[0].lines[0].get_ydata().tolist() == SLICES["median"][:3].tolist()
    assert [len(ax.collections) for ax in axes[:2]] == [1, 1]
    assert [label.get_text() for label in axes[2].get_xticklabels()] == ["2", "3", "4"]


def test_contest_shows_median_and_quartiles_over_seeds():
    axes = draw("contest")
    assert [ax.get_title() for ax in axes] == ["Branin", "conditional"]
    assert axes[0].lines[0].get_xdata().tolist() == [1, 2, 3]
    assert axes[0].lines[0].get_ydata().tolist() == pytest.approx([2, 0.5, 1e-5])  # a log scale has no zero
    assert len(axes[0].lines) == len(axes[0].collections) == 2


def test_rules_are_bars_in_points_of_accuracy_without_those_that_choose_nothing():
    axes = draw("rules")
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([2, 1, 0.1, 0.5])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["alpha", "perturbation", "alone", "linear"]


def test_importance_names_every_parameter():
    assert [label.get_text() for label in draw("importance").get_yticklabels()] == ["lr", "weight decay"]


@pytest.mark.parametrize(("name", "column"), [("alphas", "alpha"), ("accuracies", "accuracy")])
def test_bars_are_the_37_operations_in_order(name, column):
    assert np.allclose(heights(draw(name)), RANKING[column])


def test_slices_have_a_panel_for_each_parameter_on_its_scale():
    axes = draw("slices")
    assert [ax.get_xlabel() for ax in axes] == ["lr", "decay", "layer"]
    assert [ax.get_xscale() for ax in axes] == ["log", "linear", "linear"]


def test_image_grid_shows_each_image_under_its_title():
    axes = draw("image_grid", columns=3)
    assert axes.shape == (2, 3)
    assert [ax.get_title() for ax in axes.flat] == ["a", "b", "c", "d", "e", ""]


def test_long_names_leave_room_for_the_images():
    names = [f"a name {'that is long' * 9} {end}" for end in ("one", "two")]
    axes = figures.image_grid(np.zeros((1, 1, 8, 8), np.uint8), [f"cat\n{names[0]}"])
    assert axes[0, 0].get_title() == "cat\na name th…long one"
    axes = figures.confusion(pd.DataFrame([[1, 2], [3, 4]], names, names))
    assert {len(label.get_text()) for label in axes.get_xticklabels()} == {32}
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3", "4"]


def test_heatmap_leaves_the_image_as_it_is_beside_it_and_where_the_map_is_zero():
    grey, places = np.full((1, 1, 8, 8), 200, np.uint8), np.zeros((1, 8, 8))
    places[0, 2, 3] = 1
    shown = figures.heatmaps(grey, places, ["a"], columns=1)[0, 0].images[0].get_array()
    assert shown.shape == (8, 16, 3)
    assert np.argwhere((shown != 200).any(axis=2)).tolist() == [[2, 8 + 3]]
    red, green, blue = shown[2, 8 + 3].astype(int)
    assert red > max(green, blue) + 20


def test_confusion_shows_shares_and_writes_counts():
    axes = draw("confusion")
    assert axes.collections[0].get_array()[0].tolist() == pytest.approx([5 / 6, 1 / 6, 0])
    assert [text.get_text() for text in axes.texts] == ["5", "1", "0", "0", "0", "0", "1", "1", "7"]


def test_chosen_and_best_operation_are_named():
    labels = [text.get_text() for text in draw("alpha_against_accuracy").artists[0].get_texts()]
    assert labels == ["chosen: linear", "best alone: 32 ReLU x2"]


def test_comparison_writes_every_models_number():
    assert [text.get_text().split()[-1] for text in draw("comparison").texts] == ["0.100", "0.700", "0.800"]
