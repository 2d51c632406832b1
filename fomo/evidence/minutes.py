"""What fomo makes of some minutes, beside what a careful person would write (`peers`), on tasks of many kinds, whose
names its plans do not know."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from tqdm import tqdm

from fomo.artifacts import Run
from fomo.config import RESULTS, ROOT
from fomo.data.datasets import load_dataset
from fomo.evidence.peers import plain, probe
from fomo.paths import runs_folder
from fomo.stages.evaluation import evaluate
from fomo.stages.metrics import gained, measure
from fomo.storage import atomic, read_json, read_table, write_json, write_table

FOLDER = runs_folder("fashion_sample").parent / "minutes"
MINUTES = (2, 5, 15, 60)
# Pixels; of each peer, and of the preset `report`, the side that is best on test counts.
SIDES = {"probe": (96, 160, 224), "plain": (96, 160), "report": (64, 128)}
LATE = 1.2  # times its minutes: so long a peer may take, which cannot be held to them
BACKBONE, LEAST = "tf_efficientnet_lite0", 15  # of `report`, too; minutes: with fewer it is not tried
SHOWN = ("macro F1", "accuracy")


@dataclass(frozen=True)
class Task:
    """Images of a data set: all of its `classes` (None) or these, so many train images of each (None: all; or a number
    for each class), and at most so many test images."""

    dataset: str
    classes: tuple[int, ...] | None = None
    each: tuple[int, ...] | int | None = None
    test: int = 2000


TASKS = {
    "emotions": Task("emotions", test=10**6),
    "fashion": Task("fashion", test=10**6),
    "flowers": Task("flowers", test=10**6),
    "skin_cancer": Task("skin_cancer", test=10**6),
    "fashion_sample": Task("fashion_sample", test=10**6),
    "flowers, 10 of each class": Task("flowers", each=10),
    "fashion, 10 of each class": Task("fashion", each=10),
    "emotions, 10 of each class": Task("emotions", each=10),
    "fashion, 100 of each class": Task("fashion", each=100),
    "emotions, 3 classes, 100 of each": Task("emotions", (0, 3, 4), 100),
    "skin_cancer, 100 of each class": Task("skin_cancer", each=100),
    "skin_cancer, 1 in 50": Task("skin_cancer", (4, 5), (20, 1000)),
}


@dataclass(frozen=True)
class Job:
    """A method on a task: fomo, a peer or the preset `report`; its minutes and side, 0 where there is no such thing."""

    task: str
    method: str
    minutes: float = 0.0
    side: int = 0

    @property
    def path(self) -> Path:
        """Where the classes that it names are stored; the seconds that it took are in a file beside it."""
        return FOLDER / f"{Path(self.task).name} {self.method} {self.minutes:g} {self.side}.npy".replace(" ", "_")

    @property
    def named(self) -> np.ndarray:
        """The class of each test image."""
        return np.load(self.path)

    @property
    def seconds(self) -> float:
        return read_json(self.path.with_suffix(".json"))["seconds"]


def jobs(task: str, minutes: float) -> list[Job]:
    """All that is compared on a task with so many minutes."""
    tried = {name: sides for name, sides in SIDES.items() if name != "report" or minutes >= LEAST}
    peers = [Job(task, name, minutes * (name == "plain"), side) for name, sides in tried.items() for side in sides]
    return [Job(task, "fomo", minutes), *peers]


def compare(tasks: Iterable[str] = TASKS, minutes: Iterable[float] = MINUTES) -> pd.DataFrame:
    """The `table` of all tasks with all minutes, fewest minutes first; what data/results/minutes.csv has already is not
    done again. A job that is done is stored, so a killed comparison goes on."""
    path = RESULTS / "minutes.csv"
    found = read_table(path) if path.exists() else pd.DataFrame(columns=["task", "minutes"])
    cells = [(task, each) for each in sorted(minutes) for task in tasks]
    cells = [(task, each) for task, each in cells if not ((found["task"] == task) & (found["minutes"] == each)).any()]
    todo = dict.fromkeys(job for cell in cells for job in jobs(*cell))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for task in dict.fromkeys(task for task, _ in cells):
        prepare(task)
    os.environ["OMP_NUM_THREADS"] = "1"  # so minutes are those of one core, and two jobs do not slow each other down
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = [pool.submit(do, job) for job in todo if not job.path.exists()]
        for future in tqdm(as_completed(futures), total=len(futures), desc="minutes", unit="job"):
            future.result()
    found = pd.concat([part for part in (found, *(table(jobs(*cell)) for cell in cells)) if len(part)])
    write_table(path, found)
    return found


def do(job: Job) -> None:
    """Does a job: stores the class of each test image, and what it took."""
    begun = time.perf_counter()
    if job.method in ("fomo", "report"):
        named = _report(job)
    else:
        dataset = load_dataset(prepare(job.task))
        named = probe(dataset, job.side) if job.method == "probe" else plain(dataset, job.side, job.minutes)
    write_json(job.path.with_suffix(".json"), {"job": vars(job), "seconds": time.perf_counter() - begun})
    np.save(job.path, named)


def _report(job: Job) -> np.ndarray:
    """`make report`, pages included. Of the preset `report`, which takes as long as it takes, nothing where no minutes
    would have been enough."""
    dataset, settings, command = prepare(job.task), {"minutes": job.minutes}, [sys.executable, "-m", "fomo", "report"]
    if job.method == "report":
        settings = {"preset": "report", "backbone": BACKBONE, "image_size": job.side}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {"dataset": dataset, **settings}.items()]
    with job.path.with_suffix(".log").open("w") as log, suppress(subprocess.TimeoutExpired):
        limit = 60 * LATE * max(MINUTES) if job.method == "report" else None
        subprocess.run(command + options, cwd=ROOT, check=True, stdout=log, stderr=log, timeout=limit)
        return evaluate(Run(dataset, **settings)).predictions["final"].to_numpy()
    return np.array([])


def prepare(name: str) -> str:
    """The data set of a task: its name, where the task is all of it, or a table of images that are written if they are
    not there. What is no task is a data set: a folder of images, say."""
    if name not in TASKS:
        return name
    task, folder = TASKS[name], FOLDER / "images" / name.replace(", ", "-").replace(" ", "_")
    if not task.each:
        return task.dataset
    if not (folder / "images.csv").exists():
        dataset, rng, rows = load_dataset(task.dataset), np.random.default_rng(0), []
        for split, of_split in (("train", dataset.train), ("test", dataset.test())):
            (folder / split).mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(_draw(of_split, task, split, rng).to_dict("records")):
                path = f"{split}/{number}.png"
                with dataset.source.open(image["file"]) as pixels:
                    pixels.save(folder / path)
                group = {"group": image["group"]} if "group" in image else {}
                rows.append({"path": path, "label": dataset.classes[image["label"]], "split": split} | group)
        write_table(folder / "images.csv", pd.DataFrame(rows))
    return str(folder / "images.csv")


def _draw(table: pd.DataFrame, task: Task, split: str, rng: np.random.Generator) -> pd.DataFrame:
    """The images of a split that belong to a task, drawn at random. Classes that are not equally frequent in train are
    as frequent in test."""
    drawn = table.iloc[rng.permutation(len(table))]
    classes = task.classes or tuple(sorted(table["label"].unique()))
    if split == "test" and not isinstance(task.each, tuple):
        return drawn[drawn["label"].isin(classes)][: task.test]
    counts = task.each if isinstance(task.each, tuple) else [task.each] * len(classes)
    parts = [drawn[drawn["label"] == label] for label in classes]
    if split == "test":
        share = min(task.test / sum(counts), *(len(part) / count for part, count in zip(parts, counts, strict=True)))
        counts = [round(share * count) for count in counts]
    return pd.concat([part[:count] for part, count in zip(parts, counts, strict=True)])


def table(jobs: list[Job]) -> pd.DataFrame:
    """A row for each method and metric of the jobs of a task: side, seconds, value, 95% interval, and by how much fomo
    is better (gain, gain_low, gain_high, paired). Of a peer it is its best side on test, if that ends in time."""
    task, minutes = jobs[0].task, max(job.minutes for job in jobs)
    labels = load_dataset(prepare(task)).test()["label"].to_numpy()
    taken = {}
    for method in (*SIDES, "fomo"):
        of = [job for job in jobs if job.method == method]
        in_time = [job for job in of if method == "fomo" or (len(job.named) and job.seconds <= LATE * 60 * minutes)]
        if in_time:
            taken[method] = max(in_time, key=lambda job: (job.named == labels).mean())
    named = {method: job.named for method, job in taken.items()}
    measured = measure(labels, named, int(labels.max()) + 1, resamples=1000, seed=0)
    rows = []
    for row in measured[measured["metric"].isin(SHOWN)].to_dict("records"):
        job = taken[row["model"]]
        key = {"task": task, "minutes": minutes, "method": row.pop("model"), "side": job.side}
        rows.append(key | {"seconds": round(job.seconds, 1)} | row)
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame, metric: str = "macro F1") -> pd.DataFrame:
    """Each method's `metric` by task and minutes, and by how much fomo is better than each peer, with the interval."""
    of = table[table["metric"] == metric].set_index(["task", "minutes", "method"])
    shown = of["value"].round(3).unstack("method")
    for peer in (name for name in SIDES if name in shown):
        gain = of.xs(peer, level="method").apply(gained, axis=1)
        shown[f"fomo - {peer}"] = gain.reindex(shown.index)
    return shown.fillna("")


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draws macro F1 against minutes, a panel for each task and a line for each method, as a PNG."""
    of = table[table["metric"] == "macro F1"]
    grid = sns.relplot(
        of, x="minutes", y="value", hue="method", style="method", markers=True, dashes=False, kind="line", col="task",
        col_wrap=3, height=2.6, aspect=1.2, facet_kws={"sharey": False},
    )  # fmt: skip
    ticks = sorted(of["minutes"].unique())
    grid.set(xscale="log", xticks=ticks, xticklabels=[f"{each:g}" for each in ticks])
    grid.set_titles("{col_name}").set_ylabels("macro F1, test")
    for axes in grid.axes.flat:  # a logarithmic axis writes 3 x 10^0 and the like between them
        axes.minorticks_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        grid.figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    plt.close(grid.figure)
