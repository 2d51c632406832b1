"""The figures: each a function of stored numbers that draws on an axes and returns it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator, PercentFormatter

BLUE, ORANGE, GREY = "#3b6ea5", "#d9822b", "#9aa0a6"
ACTIVATION_COLOURS = {"ReLU": BLUE, "Tanh": "#4f9d69", "Sigmoid": ORANGE, "linear": "#333333"}

sns.set_theme(style="whitegrid", rc={"axes.spines.right": False, "axes.spines.top": False, "figure.dpi": 80})


def _axes(ax: plt.Axes | None, width: float = 6.4, height: float = 4.0) -> plt.Axes:
    return ax or plt.subplots(figsize=(width, height), layout="constrained")[1]


def class_balance(images: pd.DataFrame, classes: list[str], *, ax: plt.Axes | None = None) -> plt.Axes:
    """Images of each class, in train and in validation. `images`: label, split."""
    ax = _axes(ax, height=max(2.5, 0.28 * len(classes) + 1))
    counts = images.groupby(["label", "split"]).size().unstack().reindex(range(len(classes)))[["train", "validation"]]
    counts.set_axis(classes).plot.barh(stacked=True, ax=ax, color=[BLUE, ORANGE], width=0.8)
    ax.invert_yaxis()
    ax.set(xlabel="images", ylabel="", title="Images of each class")
    ax.grid(axis="y", visible=False)
    ax.legend(title="", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


def image_grid(pixels: np.ndarray, titles: list[str], *, columns: int = 8, title: str = "") -> np.ndarray:
    """Images (n, channels, side, side), uint8 or 0 to 1, in rows of `columns`, each under its title."""
    rows = max(1, -(-len(pixels) // columns))
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.25 * columns, 1.55 * rows), squeeze=False, layout="constrained"
    )
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, text in zip(axes.flat, pixels, titles, strict=False):
        image = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
        ax.imshow(image if image.dtype == np.uint8 else image.clip(0, 1))
        ax.set_title(text, fontsize=9)
    figure.suptitle(title)
    return axes


def learning_curves(history: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """Train and validation loss by epoch; a ring marks the epoch that is kept."""
    ax = _axes(ax)
    for column, colour in (("train_loss", BLUE), ("validation_loss", ORANGE)):
        ax.plot(history["epoch"], history[column], marker="o", color=colour, label=column.replace("_", " "))
    best = history.loc[history["validation_loss"].idxmin()]
    ax.plot(best["epoch"], best["validation_loss"], "o", ms=14, mfc="none", mec="black", label="kept")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel="cross-entropy", ylim=(0, None), title="Learning curves")
    ax.legend(frameon=False)
    return ax


def losses(trials: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """Figure 1 of the report: validation against training loss, a dot for each trial, coloured by its number."""
    ax = _axes(ax, 6.0, 4.6)
    shown = trials[np.isfinite(trials["objective"])]
    dots = ax.scatter(shown["train_loss"], shown["validation_loss"], c=shown["trial"], cmap="viridis", s=60, zorder=3)
    ends = [shown[["train_loss", "validation_loss"]].min().max(), shown[["train_loss", "validation_loss"]].max().min()]
    ax.axline((ends[0], ends[0]), slope=1, color=GREY, lw=1, ls="--")
    ax.figure.colorbar(dots, ax=ax, label="trial", ticks=MaxNLocator(integer=True))
    title = f"Figure 1: the {len(shown)} trials"
    if len(shown) < len(trials):
        title += f" ({len(trials) - len(shown)} diverged)"
    ax.set(xlabel="training loss", ylabel="validation loss", title=title)
    return ax


def incumbent(trials: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """The objective of each trial, and the incumbent: the lowest so far."""
    ax = _axes(ax)
    ax.plot(trials["trial"], trials["objective"], "o", color=GREY, label="trial")
    ax.step(trials["trial"], trials["objective"].cummin(), where="post", color=BLUE, lw=2, label="incumbent")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="trial", ylabel="validation loss", title="Trials and incumbent")
    ax.legend(frameon=False)
    return ax


def slices(table: pd.DataFrame) -> np.ndarray:
    """A panel for each parameter: the surrogate's mean and 95% band of the objective through the incumbent."""
    parameters = table["parameter"].unique()
    figure, axes = plt.subplots(
        1, len(parameters), figsize=(2.7 * len(parameters), 3.0), sharey=True, layout="constrained"
    )
    for ax, parameter in zip(axes, parameters, strict=True):
        rows = table[table["parameter"] == parameter]
        if all(isinstance(value, float) for value in rows["value"]):
            values = rows["value"].astype(float)
            ax.plot(values, rows["mean"], color=BLUE)
            ax.fill_between(
                values, rows["mean"] - 1.96 * rows["std"], rows["mean"] + 1.96 * rows["std"], color=BLUE, alpha=0.2
            )
            if values.iloc[0] > 0 and values.iloc[-1] / values.iloc[0] > 100:
                ax.set_xscale("log")
            else:
                ax.xaxis.set_major_locator(MaxNLocator(3))
        else:
            ax.errorbar(rows["value"].astype(str), rows["mean"], 1.96 * rows["std"], fmt="o", color=BLUE, capsize=4)
            ax.margins(x=0.2)
        ax.set_xlabel(parameter.replace("_", " "))
    axes[0].set_ylabel("validation loss")
    figure.suptitle("What the surrogate believes: mean and 95% band, the other parameters at the incumbent's")
    return axes


def alpha_trajectories(history: pd.DataFrame, ranking: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """The alpha of each operation after each epoch; the three that end highest are named."""
    ax = _axes(ax, 7.5, 4.2)
    alphas = history.filter(like="alpha_")
    for operation, activation in ranking["activation"].items():
        ax.plot(history["epoch"], alphas.iloc[:, operation], color=ACTIVATION_COLOURS[activation], lw=1, alpha=0.7)
    names = [f"{row['name']} ({row['alpha']:.3f})" for _, row in ranking.nlargest(3, "alpha").iterrows()]
    ax.text(1.02, 0.98, "highest alphas\n" + "\n".join(names), transform=ax.transAxes, va="top", fontsize=10)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel="alpha", title="Alphas during the search")
    _activation_legend(ax, loc="lower left", bbox_to_anchor=(1.01, 0))
    return ax


def alphas(ranking: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """Figure 2 of the report: the alpha of each operation after the search."""
    ax = _axes(ax, 9.5, 3.6)
    ax.bar(ranking["operation"], ranking["alpha"], color=ranking["activation"].map(ACTIVATION_COLOURS))
    _operation_axis(ax, ranking)
    ax.set(ylabel="alpha", title="Figure 2: alpha of each operation")
    return ax


def accuracies(ranking: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """Figure 3 of the report: the accuracy of each operation trained alone; whiskers: std over seeds."""
    ax = _axes(ax, 9.5, 3.6)
    colours = ranking["activation"].map(ACTIVATION_COLOURS)
    ax.bar(ranking["operation"], ranking["accuracy"], yerr=ranking["std"], color=colours, ecolor="black", capsize=2)
    _operation_axis(ax, ranking)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(ylabel="validation accuracy", ylim=(0, 1), title="Figure 3: accuracy of each operation trained alone")
    return ax


def alpha_against_accuracy(ranking: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """Does alpha know? The accuracy of each operation trained alone (std over seeds) against its alpha."""
    ax = _axes(ax, 7.0, 4.2)
    for activation, rows in ranking.groupby("activation"):
        colour = ACTIVATION_COLOURS[activation]
        ax.errorbar(rows["alpha"], rows["accuracy"], rows["std"], fmt="o", color=colour, elinewidth=1)
    chosen, best = ranking.loc[ranking["alpha"].idxmax()], ranking.loc[ranking["accuracy"].idxmax()]
    ax.plot(chosen["alpha"], chosen["accuracy"], "o", ms=15, mfc="none", mec="black", label=f"chosen: {chosen['name']}")
    ax.plot(best["alpha"], best["accuracy"], "D", ms=13, mfc="none", mec="black", label=f"best alone: {best['name']}")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(xlabel="alpha", ylabel="validation accuracy alone", title="Alpha against accuracy")
    ax.add_artist(ax.legend(loc="lower right", frameon=False))
    _activation_legend(ax, loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


def confusion(table: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """Share of each true class (row) that is predicted as each class (column); numbers where there is room for them."""
    side = max(4.5, 0.5 * len(table) + 1.5) if len(table) <= 20 else 9.0
    ax = _axes(ax, side + 1, side)
    shares = table.div(table.sum(axis=1).clip(lower=1), axis=0)
    few = len(table) <= 20
    sns.heatmap(shares, annot=table if few else False, fmt="d", cmap="Blues", vmin=0, vmax=1, square=True, ax=ax)
    ax.set(xlabel="predicted", ylabel="true", title="Confusion matrix (images; colour: share of the true class)")
    return ax


def comparison(
    metrics: pd.DataFrame, metric: str = "macro F1", *, split: str = "test", ax: plt.Axes | None = None
) -> plt.Axes:
    """What each step brought: the metric of each model on `split` with its 95% interval."""
    rows = metrics[metrics["metric"] == metric]
    ax = _axes(ax, 7.5, 0.5 * len(rows) + 1.2)
    places = np.arange(len(rows))[::-1]
    shown = rows[rows["high"] > 0.5 * rows["value"].max()]  # what lies far below would press the others together
    margin = 0.15 * (shown["high"].max() - shown["low"].min())
    left, right = shown["low"].min() - margin, shown["high"].max() + margin
    bars = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
    ax.errorbar(rows["value"], places, xerr=bars, fmt="o", color=BLUE, capsize=4)
    for place, value in zip(places, rows["value"], strict=True):
        text, at = (f"{value:.3f}", value) if value > left else (f"◂ {value:.3f}", left + margin / 2)
        ax.annotate(text, (at, place), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=9)
    ax.set_yticks(places, rows["model"])
    ax.set(xlabel=f"{metric} on {split}, 95% interval", xlim=(left, right), ylim=(-0.5, len(rows) - 0.3))
    ax.set_title("What each step brought")
    return ax


def overview(trials: pd.DataFrame, ranking: pd.DataFrame, metrics: pd.DataFrame) -> np.ndarray:
    """A run on one page: the report's three figures, and what each step brought."""
    _, axes = plt.subplots(2, 2, figsize=(16, 8), layout="constrained", width_ratios=[2, 3])
    losses(trials, ax=axes[0, 0])
    alphas(ranking, ax=axes[0, 1])
    comparison(metrics, ax=axes[1, 0])
    accuracies(ranking, ax=axes[1, 1])
    return axes


def _operation_axis(ax: plt.Axes, ranking: pd.DataFrame) -> None:
    ax.set_xticks(ranking["operation"], ranking["operation"], fontsize=8)
    ax.grid(axis="x", visible=False)
    ax.set_xlabel("operation: hidden size 32, 64, 128, 256 (outermost), activation, layers 2, 3, 4; 36 is linear")
    ax.margins(x=0.01)
    _activation_legend(ax, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _activation_legend(ax: plt.Axes, **place) -> None:
    handles = [plt.Line2D([], [], marker="s", ls="", color=colour) for colour in ACTIVATION_COLOURS.values()]
    ax.legend(handles, ACTIVATION_COLOURS, frameon=False, **place)
