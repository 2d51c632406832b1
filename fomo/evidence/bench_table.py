"""`make bench`: one table of what fomo's ways save beside doing without them."""

import pandas as pd
import torch

from fomo.artifacts import Run
from fomo.config import RESULTS
from fomo.evidence import bench
from fomo.evidence.bench import row
from fomo.evidence.bench_memory import STATUS, memory
from fomo.results import machine
from fomo.storage import write_json, write_table

SAMPLE = "fashion_sample"


def gather(dataset: str = SAMPLE, image_size: int = 128) -> str:
    """The table as text; it is measured anew, and stored as data/results/bench.csv, with what it ran on beside it. Of
    another data set than the embedded sample only loading and feature extraction are measured, and nothing is stored.
    """
    run = Run(dataset, "quick", image_size=image_size, name=f"bench-{image_size}")
    table = pd.DataFrame(of_images(run))
    if dataset == SAMPLE:
        rows = of_prediction(bench.prediction(Run(SAMPLE, "quick"))) + of_heads(bench.heads())
        rows += of_memory(memory()) if STATUS.exists() else []
        table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
        write_table(RESULTS / "bench.csv", table)
        write_json(RESULTS / "bench_machine.json", machine() | {"threads": torch.get_num_threads()})
    return table.to_string(index=False, formatters=dict.fromkeys(("ours", "other", "ratio"), "{:.3g}".format))


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


def of_prediction(table: pd.DataFrame) -> list[dict]:
    """The row on prediction, from the table of `bench.prediction`."""
    ours, bare = table["images/s"]
    what = "prediction from files, against bare forward passes"
    return [row(what, ours, bare, "images/s", ours / bare, "times the rate")]


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
