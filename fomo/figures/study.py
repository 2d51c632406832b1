"""The figures of a study: trials, incumbent, what the surrogate believes, and studies beside each other."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fomo.figures.drawing import BLUE, GREY, new_axes


def losses(trials: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """Figure 1 of the report: validation against training loss, a dot for each trial, coloured by its number."""
    ax = new_axes(ax, 6.0, 4.6)
    shown = trials[trials["status"] == "complete"]
    dots = ax.scatter(shown["train_loss"], shown["validation_loss"], c=shown["trial"], cmap="viridis", s=60, zorder=3)
    ends = [shown[["train_loss", "validation_loss"]].min().max(), shown[["train_loss", "validation_loss"]].max().min()]
    ax.axline((ends[0], ends[0]), slope=1, color=GREY, lw=1, ls="--")
    ax.figure.colorbar(dots, ax=ax, label="trial", ticks=MaxNLocator(integer=True))
    others = [f"{count} {status}" for status, count in trials["status"].value_counts().drop("complete").items()]
    title = f"Figure 1: {len(shown)} trials" + (f" ({', '.join(others)})" if others else "")
    ax.set(xlabel="training loss", ylabel="validation loss", title=title)
    return ax


def incumbent(trials: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """The objective of each trial, and the incumbent: the lowest so far. A cross is a trial that was ended early."""
    ax = new_axes(ax)
    trials = trials.sort_values("trial")
    complete = trials["status"] == "complete"
    ended = trials[~complete & np.isfinite(trials["objective"])]
    best = trials["objective"].where(complete).cummin().ffill()
    ax.plot(trials["trial"][complete], trials["objective"][complete], "o", color=GREY, label="trial")
    ax.plot(ended["trial"], ended["objective"], "x", color=GREY, label="ended early (training loss)")
    ax.step(trials["trial"], best, where="post", color=BLUE, lw=2, label="incumbent")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="trial", ylabel="validation loss", title="Trials and incumbent")
    ax.legend(frameon=False)
    return ax


def slices(table: pd.DataFrame) -> np.ndarray:
    """A panel for each parameter: what the surrogate expects, through the incumbent: median, and band of 95%."""
    parameters = table["parameter"].unique()
    figure, axes = plt.subplots(
        1, len(parameters), figsize=(2.7 * len(parameters), 3.0), sharey=True, squeeze=False, layout="constrained"
    )
    axes = axes[0]
    for ax, parameter in zip(axes, parameters, strict=True):
        rows = table[table["parameter"] == parameter]
        if all(isinstance(value, float) for value in rows["value"]):
            values = rows["value"].astype(float)
            ax.plot(values, rows["median"], color=BLUE)
            ax.fill_between(values, rows["low"], rows["high"], color=BLUE, alpha=0.2)
            if values.iloc[0] > 0 and values.iloc[-1] / values.iloc[0] > 100:
                ax.set_xscale("log")
            else:
                ax.xaxis.set_major_locator(MaxNLocator(3))
        else:
            bars = [rows["median"] - rows["low"], rows["high"] - rows["median"]]
            ax.errorbar(rows["value"].astype(str), rows["median"], bars, fmt="o", color=BLUE, capsize=4)
            ax.margins(x=0.2)
        ax.set_xlabel(parameter.replace("_", " "))
    axes[0].set_ylabel("validation loss")
    axes[0].set_ylim(top=min(table["high"].max(), 3 * table["median"].max()))
    figure.suptitle("What the surrogate believes: median and 95% band, the other parameters at the incumbent's")
    return axes


def importance(table: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """The share of the loss's variance that each parameter is involved in. `table`: parameter, importance."""
    ax = new_axes(ax, height=0.4 * len(table) + 1.2)
    ax.barh(table["parameter"].str.replace("_", " "), table["importance"], color=BLUE)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.set(xlabel="share of the variance, alone or with others", title="Importance of each parameter")
    return ax


def parallel_coordinates(trials: pd.DataFrame, space: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """A line for each complete trial through its parameters, dark for a low loss; no dot where one does not act.

    `space` is the search space's table: parameter, range, scale.
    """
    ax = new_axes(ax, 8.0, 4.2)
    shown = trials[trials["status"] == "complete"].sort_values("objective", ascending=False)
    heights, ticks = {}, {}
    for row in space.itertuples():
        values = shown[row.parameter]
        if row.scale == "choice":
            names = row.range.split(", ")
            places = {name: number / max(len(names) - 1, 1) for number, name in enumerate(names)}
            words = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]  # 32 beside a gap
            heights[row.parameter] = pd.Series(words, values.index).map(places)
            ticks[row.parameter] = list(zip(np.linspace(0, 1, len(names)), names, strict=True))
        else:
            low, high = (float(end) for end in row.range.split(" to "))
            change = np.log10 if "log" in row.scale else np.asarray
            heights[row.parameter] = (change(values) - change(low)) / (change(high) - change(low))
            ticks[row.parameter] = [(0, f"{low:g}"), (1, f"{high:g}")]
    rank = shown["objective"].rank(pct=True)
    lines = pd.DataFrame(heights)
    for number, line in lines.iterrows():
        style = {"color": plt.cm.viridis(rank[number]), "alpha": 0.8}
        ax.plot(range(len(line)), line.interpolate(limit_area="inside"), lw=1.5, **style)
        ax.plot(range(len(line)), line, ls="", marker="o", ms=4, **style)
    for number, name in enumerate(lines.columns):
        ax.axvline(number, color=GREY, lw=1, zorder=0)
        for place, text in ticks[name]:
            ax.annotate(text, (number, place), textcoords="offset points", xytext=(6, -3), fontsize=9)
    scale = plt.cm.ScalarMappable(plt.Normalize(1, len(shown)), "viridis")
    ax.figure.colorbar(scale, ax=ax, label="rank of the trial (1: best)", ticks=MaxNLocator(integer=True), pad=0.1)
    ax.set_xticks(range(len(lines.columns)), [name.replace("_", " ") for name in lines.columns])
    ax.set(xlabel="parameter", ylabel="from low to high", yticks=[], title="The trials' configurations")
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    return ax


def contest(table: pd.DataFrame) -> np.ndarray:
    """A panel for each problem: the median simple regret of each contestant after each evaluation, with quartiles.

    `table`: problem, contestant, seed, and the regret after 1, 2, ... evaluations.
    """
    problems, contestants = table["problem"].unique(), sorted(table["contestant"].unique())
    size = (4 * len(problems), 3.6)
    figure, axes = plt.subplots(1, len(problems), figsize=size, squeeze=False, layout="constrained")
    axes = axes[0]
    for ax, problem in zip(axes, problems, strict=True):
        for contestant, colour in zip(contestants, sns.color_palette("colorblind"), strict=False):
            rows = table[(table["problem"] == problem) & (table["contestant"] == contestant)]
            regret = rows.drop(columns=["problem", "contestant", "seed"]).clip(lower=1e-5)
            low, middle, high = (regret.quantile(share) for share in (0.25, 0.5, 0.75))
            evaluations = regret.columns.astype(int)
            ax.plot(evaluations, middle, color=colour, label=contestant)
            ax.fill_between(evaluations, low, high, color=colour, alpha=0.12, lw=0)
        ax.set(yscale="log", xlabel="evaluations", title=problem)
    axes[0].set_ylabel("simple regret")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return axes
