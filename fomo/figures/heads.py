"""The figures of the head search: alphas, accuracies, whether alpha knows, and what each rule is worth."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fomo.figures.drawing import BLUE, GREEN, GREY, ORANGE, new_axes

ACTIVATION_COLOURS = {"ReLU": BLUE, "Tanh": GREEN, "Sigmoid": ORANGE, "linear": "#333333"}


def alpha_trajectories(history: pd.DataFrame, ranking: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """The alpha of each operation after each epoch; the three that end highest are named."""
    ax = new_axes(ax, 7.5, 4.2)
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
    ax = new_axes(ax, 9.5, 3.6)
    ax.bar(ranking["operation"], ranking["alpha"], color=ranking["activation"].map(ACTIVATION_COLOURS))
    _operation_axis(ax, ranking)
    ax.set(ylabel="alpha", title="Figure 2: alpha of each operation")
    return ax


def accuracies(ranking: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """Figure 3 of the report: the accuracy of each operation trained alone; whiskers: std over seeds."""
    ax = new_axes(ax, 9.5, 3.6)
    colours = ranking["activation"].map(ACTIVATION_COLOURS)
    ax.bar(ranking["operation"], ranking["accuracy"], yerr=ranking["std"], color=colours, ecolor="black", capsize=2)
    _operation_axis(ax, ranking)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(ylabel="validation accuracy", ylim=(0, 1), title="Figure 3: accuracy of each operation trained alone")
    return ax


def alpha_against_accuracy(ranking: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """Does alpha know? The accuracy of each operation trained alone (std over seeds) against its alpha."""
    ax = new_axes(ax, 7.0, 4.2)
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


def rules(table: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """What each rule's choice loses against the best operation, in points of accuracy; whiskers: std over seeds.

    `table`: rule, regret, regret_std, as `selection.judge` returns it.
    """
    table = table.dropna(subset="regret")
    ax = new_axes(ax, 7.0, 0.36 * len(table) + 1.2)
    searched = table["rule"].isin(("alpha", "perturbation"))
    colours = [ORANGE if darts else BLUE for darts in searched]
    ax.barh(table["rule"], 100 * table["regret"], xerr=100 * table["regret_std"], color=colours, capsize=3)
    ax.axvline(0.5, color=GREY, ls="--", lw=1)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="regret, points of validation accuracy", xlim=(0, None), title="What each rule's choice loses")
    handles = [plt.Line2D([], [], marker="s", ls="", color=colour) for colour in (ORANGE, BLUE)]
    ax.legend(handles, ["DARTS", "others"], frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def _operation_axis(ax: plt.Axes, ranking: pd.DataFrame) -> None:
    ax.set_xticks(ranking["operation"], ranking["operation"], fontsize=8)
    ax.grid(axis="x", visible=False)
    ax.set_xlabel("operation: hidden size 32, 64, 128, 256 (outermost), activation, layers 2, 3, 4; 36 is linear")
    ax.margins(x=0.01)
    _activation_legend(ax, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _activation_legend(ax: plt.Axes, **place) -> None:
    handles = [plt.Line2D([], [], marker="s", ls="", color=colour) for colour in ACTIVATION_COLOURS.values()]
    ax.legend(handles, ACTIVATION_COLOURS, frameon=False, **place)
