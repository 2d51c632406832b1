"""The figures of a run: images, learning curves, confusion, what each step brought, where the time went."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from fomo.figures.drawing import BLUE, ORANGE, beside_map, new_axes, short
from fomo.figures.heads import accuracies, alphas
from fomo.figures.study import losses


def class_balance(images: pd.DataFrame, classes: list[str], *, ax: plt.Axes | None = None) -> plt.Axes:
    """Images of each class, in train and in validation. `images`: label, split."""
    ax = new_axes(ax, height=max(2.5, 0.28 * len(classes) + 1))
    counts = images.groupby(["label", "split"]).size().unstack().reindex(range(len(classes)))[["train", "validation"]]
    counts.set_axis([short(name) for name in classes]).plot.barh(stacked=True, ax=ax, color=[BLUE, ORANGE], width=0.8)
    ax.invert_yaxis()
    ax.set(xlabel="images", ylabel="", title="Images of each class")
    ax.grid(axis="y", visible=False)
    ax.legend(title="", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


def image_grid(pixels: np.ndarray, titles: list[str], *, columns: int = 8) -> np.ndarray:
    """Images (n, channels, height, width), uint8 or 0 to 1, in rows of `columns`, each under its title."""
    rows, shape = max(1, -(-len(pixels) // columns)), np.shape(pixels)
    width = shape[-1] / shape[-2]  # 18 letters fit over a square
    size = (1.25 * columns * width, 1.55 * rows)
    _, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, text in zip(axes.flat, pixels, titles, strict=False):
        image = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
        ax.imshow(image if image.dtype == np.uint8 else image.clip(0, 1))
        ax.set_title("\n".join(short(line, round(18 * width)) for line in text.split("\n")), fontsize=9)
    return axes


def heatmaps(pixels: np.ndarray, maps: np.ndarray, titles: list[str], *, columns: int = 6) -> np.ndarray:
    """Images (n, channels, side, side), uint8, each beside itself under its map (n, side, side) of numbers from 0 to 1,
    from blue to red, and under its title."""
    pairs = [beside_map(image, places) for image, places in zip(pixels, maps, strict=True)]
    return image_grid(pairs, titles, columns=columns)


def learning_curves(history: pd.DataFrame, kept: float | None = None, *, ax: plt.Axes | None = None) -> plt.Axes:
    """Train and validation loss by epoch; a ring marks the epoch that is `kept`, by default that of the least loss."""
    ax = new_axes(ax)
    for column, colour in (("train_loss", BLUE), ("validation_loss", ORANGE)):
        ax.plot(history["epoch"], history[column], marker="o", color=colour, label=column.replace("_", " "))
    best = history.loc[(history["validation_loss"] if kept is None else (history["epoch"] - kept).abs()).idxmin()]
    ax.plot(best["epoch"], best["validation_loss"], "o", ms=14, mfc="none", mec="black", label="kept")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel="cross-entropy", ylim=(0, None), title="Learning curves")
    ax.legend(frameon=False)
    return ax


def confusion(table: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """Share of each true class (row) that is predicted as each class (column); numbers where there is room for them."""
    side = max(4.5, 0.5 * len(table) + 1.5) if len(table) <= 20 else 9.0
    ax = new_axes(ax, side + 1, side)
    table = table.rename(index=short, columns=short)
    shares = table.div(table.sum(axis=1).clip(lower=1), axis=0)
    few = len(table) <= 20
    sns.heatmap(shares, annot=table if few else False, fmt="d", cmap="Blues", vmin=0, vmax=1, square=True, ax=ax)
    ax.set(xlabel="predicted", ylabel="true", title="Confusion matrix (images; colour: share of the true class)")
    return ax


def comparison(metrics: pd.DataFrame, *, split: str = "test", ax: plt.Axes | None = None) -> plt.Axes:
    """What each step brought: macro F1 of each model on `split` with its 95% interval."""
    rows = metrics[metrics["metric"] == "macro F1"]
    ax = new_axes(ax, 7.5, 0.5 * len(rows) + 1.2)
    places = np.arange(len(rows))[::-1]
    shown = rows[rows["high"] > 0.5 * rows["value"].max()]  # what lies far below would press the others together
    margin = 0.15 * max(shown["high"].max() - shown["low"].min(), 0.01)  # all may be perfect
    left, right = shown["low"].min() - margin, shown["high"].max() + margin
    bars = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
    ax.errorbar(rows["value"], places, xerr=bars, fmt="o", color=BLUE, capsize=4)
    for place, value in zip(places, rows["value"], strict=True):
        text, at = (f"{value:.3f}", value) if value > left else (f"◂ {value:.3f}", left + margin / 2)
        ax.annotate(text, (at, place), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=9)
    ax.set_yticks(places, rows["model"])
    ax.set(xlabel=f"macro F1 on {split}, 95% interval", xlim=(left, right), ylim=(-0.5, len(rows) - 0.3))
    ax.set_title("What each step brought")
    return ax


def overview(trials: pd.DataFrame, ranking: pd.DataFrame, metrics: pd.DataFrame, *, split: str = "test") -> np.ndarray:
    """A run on one page: the report's three figures, and what each step brought on `split`."""
    _, axes = plt.subplots(2, 2, figsize=(16, 8), layout="constrained", width_ratios=[2, 3])
    losses(trials, ax=axes[0, 0])
    alphas(ranking, ax=axes[0, 1])
    comparison(metrics, split=split, ax=axes[1, 0])
    accuracies(ranking, ax=axes[1, 1])
    return axes
