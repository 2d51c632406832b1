"""`make bench`: one table of what fomo's ways save beside doing without them, and where the time of kept runs goes."""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from fomo.artifacts import Run
from fomo.config import RESULTS
from fomo.evidence import bench
from fomo.evidence.bench import row
from fomo.evidence.bench_memory import STATUS, memory
from fomo.evidence.bench_pipeline import SAMPLE, pipeline
from fomo.figures.drawing import BLUE, GREY, ORANGE, new_axes
from fomo.results import SEARCH, TRAINING, machine, measured_on
from fomo.storage import atomic, read_json, read_table, write_json, write_table

# In the table's order. What the trials on stored views took was measured when there were such; they were no faster.
PARTS = ("images", "trials", "heads", "memory", "search", "pipeline")
STAGES = {  # in a reader's words
    "5_best_finetuning": "final training",
    "4_bayesian_optimization": "study of the finetuning",
    "race": "race of its best",
    "2_probe": "probe",
    "7_darts": "head search",
    "8_head_tuning": "study of the head",
    "3_finetuning": "first finetuning",
    "12_evaluation": "evaluation",
    "1_preprocessing": "preprocessing",
    "6_features": "feature extraction",
    "9_head": "final head",
    "10_ensemble": "further networks",
    "11_final": "final model",
}


def gather(dataset: str = SAMPLE, image_size: int = 128) -> str:
    """The table as text, and below it minutes by stage of the runs in data/results, which go to figures/bench.png too.

    What takes minutes is measured anew. The whole pipeline, which takes the longest, is not measured again where
    data/results/bench.csv has it, unless FOMO_FRESH=1; killed, it goes on from its last stage. Of another data set
    than the embedded sample only loading and feature extraction are measured, and nothing is stored.
    """
    run = Run(dataset, "quick", image_size=image_size, name=f"bench-{image_size}")
    if dataset != SAMPLE:
        return show(pd.DataFrame(of_images(run)))
    store("images", of_images(run))
    store("heads", of_heads(bench.heads()))
    if STATUS.exists():
        store("memory", of_memory(memory()))
    spent = costs()
    store("search", of_search(spent))
    if "pipeline" not in stored().get("part", pd.Series()).values or os.environ.get("FOMO_FRESH") == "1":
        store("pipeline", pipeline())
    write_json(RESULTS / "bench_machine.json", machine())
    draw(run.figures.parent, spent)
    minutes = spent.drop(columns="on").set_index("data set").T.round(1).to_string()
    return f"{show(stored())}\n\nminutes, as kept in data/results; also in figures/bench.png\n{minutes}"


def of_images(run: Run) -> list[dict]:
    """Rows on loading and on feature extraction, in images/s."""
    loaded, extracted = bench.loading(run).set_index("what"), bench.extraction(run).set_index("what")
    rates = {**loaded["images/s"], **extracted["images/s"]}
    pairs = {
        ("store, augmented", "files, augmented"): "augmented images from the store, against files decoded anew",
        ("store, augmented", "training, bare"): "... against training on them",
        ("feature extraction", "forward passes, bare"): "feature extraction, against bare forward passes",
    }
    size, note = f"{run.config.image_size} px", "times the rate"
    return [
        row(f"{what}, {size}", rates[a], rates[b], "images/s", rates[a] / rates[b], note)
        for (a, b), what in pairs.items()
    ]


def of_heads(table: pd.DataFrame) -> list[dict]:
    """Rows on training heads in a bank, from the table of `bench.heads`."""
    rows = []
    for one in table.to_dict("records"):
        share = f"times as fast, at {one['share of product rate']:.0%} of the rate of a large product"
        what, seconds = f"{one['what']} in a bank, against one after another", one["bank, s"]
        rows.append(row(what, seconds, one["one by one, s"], "s an epoch", one["ratio"], share))
        slow, ratio = one["one by one, one thread, s"], one["ratio, one thread"]
        rows.append(row("... with one thread", seconds, slow, "s an epoch", ratio, "times as fast"))
    return rows


def of_memory(table: pd.DataFrame) -> list[dict]:
    """Rows on peak memory, from the table of `bench_memory.memory`."""
    rows = []
    for one in table.to_dict("records"):
        what = f"peak {one['memory']} memory, {one['more']} images against {one['images']}"
        rows.append(row(what, one["MB at more"], one["MB"], "MB", one["ratio"], "times the memory"))
    return rows


def of_search(spent: pd.DataFrame) -> list[dict]:
    """Rows on all of search against the final training, from the table of `costs`."""
    names, note = ["all of search", "all of training", "search / training"], "times the training's"
    return [
        row(f"all of search, against the final training: {name}", search, training, "min", ratio, note)
        | {"measured_on": machine}
        for name, machine, search, training, ratio in spent[["data set", "on", *names]].itertuples(index=False)
    ]


def costs() -> pd.DataFrame:
    """Minutes of each stage of the runs in data/results, a row a data set, and what it ran on; then of all, of all of
    search (both studies, the race and the head search), of the training of all networks of the final model, and the
    ratio of the two."""
    rows = []
    for path in sorted(RESULTS.glob("*/costs.csv")):
        minutes = read_table(path).set_index("stage")["seconds"] / 60
        gpu = read_json(path.with_name("machine.json")).get("gpu")
        row = {"data set": path.parent.name + (f", {gpu}" if gpu else ""), "on": measured_on(path.parent)}
        row |= {word: minutes.get(stage, 0.0) for stage, word in STAGES.items()}  # runs of before have no probe
        row |= {"all": minutes.sum(), "all of search": minutes.reindex(SEARCH).sum()}
        row |= {"all of training": minutes[list(TRAINING)].sum()}
        rows.append(row | {"search / training": row["all of search"] / row["all of training"]})
    return pd.DataFrame(rows)


def stored() -> pd.DataFrame:
    """The table as data/results/bench.csv has it; empty if it is not there."""
    path = RESULTS / "bench.csv"
    return read_table(path) if path.exists() else pd.DataFrame(columns=["part"])


def store(part: str, rows: list[dict]) -> None:
    """Puts the rows of a part into data/results/bench.csv, in place of what was there, and what they ran on, which is
    this machine if they do not say `measured_on`."""
    facts = machine()
    where = f"{facts['processor']}, {facts['cores']} cores, threads: {torch.get_num_threads()}"
    where += f", {facts['gpu']}" if "gpu" in facts else ""
    new = pd.DataFrame([one | {"measured_on": one.get("measured_on", where)} for one in rows])
    new.insert(0, "part", part)
    kept = stored()
    table = pd.concat([kept[kept["part"] != part], new], ignore_index=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_table(
        RESULTS / "bench.csv", table.sort_values("part", key=lambda names: names.map(PARTS.index), kind="stable")
    )


def show(table: pd.DataFrame) -> str:
    """The table as text, three digits a number."""
    numbers = ("ours", "other", "ratio")
    shown = table.drop(columns=["part", "measured_on"], errors="ignore")
    return shown.to_string(index=False, formatters=dict.fromkeys(numbers, "{:.3g}".format), na_rep="")


def draw(folder: Path, spent: pd.DataFrame) -> None:
    """Draws where the time goes: bench.png in the `folder` of all figures."""
    ax = time_spent(spent)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bench.png"
    with atomic(path) as temporary:
        ax.figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    plt.close(ax.figure)


def time_spent(costs: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """Where the time goes: a bar a data set, its final training first, then all of search in blue, the rest in grey.

    `costs`: data set, minutes of each stage (as `STAGES` names them), search / training.
    """
    ax = new_axes(ax, 9.5, 0.5 * len(costs) + 1.5)
    parts = {  # what takes seconds goes with its neighbour
        "final training": (["final training", "further networks"], ORANGE),
        "study of the finetuning": (["study of the finetuning"], "#27496d"),
        "race of its best": (["race of its best"], BLUE),
        "head: search and study": (["head search", "study of the head"], "#9dbfe0"),
        "first finetuning": (["first finetuning"], "#75797e"),
        "evaluation": (["evaluation"], GREY),
        "all else": (["preprocessing", "probe", "feature extraction", "final head", "final model"], "#d3d6d9"),
    }
    ends, places = np.zeros(len(costs)), np.arange(len(costs))
    total = costs[[stage for stages, _ in parts.values() for stage in stages]].sum(axis=1)
    for name, (stages, colour) in parts.items():
        minutes = costs[stages].sum(axis=1).to_numpy()
        ax.barh(places, minutes, left=ends, color=colour, label=name, height=0.7, edgecolor="white", lw=0.5)
        for place in places[minutes > 0.03 * total.max()]:
            white = colour in ("#27496d", BLUE, "#75797e")
            style = {"ha": "center", "va": "center", "fontsize": 9, "color": "white" if white else "black"}
            ax.text(ends[place] + minutes[place] / 2, place, f"{minutes[place]:.0f}", **style)
        ends += minutes
    for place, share in enumerate(costs["search / training"]):
        style = {"va": "center", "fontsize": 9, "bbox": {"fc": "white", "ec": "none", "pad": 1}}
        ax.text(ends[place] + 0.015 * total.max(), place, f"search: {share:.2f} of training", **style)
    ax.set_yticks(places, costs["data set"].str.replace("_", " "))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="minutes", xlim=(0, 1.4 * total.max()), title="Where the time goes")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax
