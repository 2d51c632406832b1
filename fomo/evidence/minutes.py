"""What fomo makes of some minutes, beside what a careful person would write (`peers`), on tasks of many kinds, whose
names its plans do not know."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from fomo.artifacts import Run
from fomo.config import RESULTS, ROOT, runs_folder
from fomo.data.datasets import load_dataset
from fomo.evidence.peers import plain, probe
from fomo.stages.evaluation import evaluate
from fomo.stages.metrics import measure
from fomo.storage import read_json, write_json, write_table

FOLDER = runs_folder("fashion_sample").parent / "minutes"
SIDES = {"probe": (96, 160, 224), "plain": (96, 160)}  # pixels; of each peer the side that is best on test counts
LATE = 1.05  # times its minutes: so long a method may take
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
    "fashion, 100 of each class": Task("fashion", each=100),
    "emotions, 3 classes, 100 of each": Task("emotions", (0, 3, 4), 100),
    "skin_cancer, 1 in 50": Task("skin_cancer", (4, 5), (20, 1000)),
}


@dataclass(frozen=True)
class Job:
    """A method on a task: its minutes and side, 0 where there is no such thing."""

    task: str
    method: str
    minutes: float = 0.0
    side: int = 0

    @property
    def path(self) -> Path:
        """Where the classes that it names are stored; the seconds that it took are in a file beside it."""
        return FOLDER / f"{self.task} {self.method} {self.minutes:g} {self.side}.npy".replace(" ", "_")

    @property
    def named(self) -> np.ndarray:
        """The class of each test image."""
        return np.load(self.path)

    @property
    def seconds(self) -> float:
        return read_json(self.path.with_suffix(".json"))["seconds"]


def jobs(tasks: Iterable[str], minutes: Iterable[float]) -> list[Job]:
    """All that is compared on these tasks with so many minutes, the longest last."""
    found = []
    for each in sorted(minutes):
        for task in tasks:
            found += [Job(task, "fomo", each)] + [Job(task, "plain", each, side) for side in SIDES["plain"]]
            found += [Job(task, "probe", 0, side) for side in SIDES["probe"]] if each == min(minutes) else []
    return found


def compare(todo: list[Job]) -> pd.DataFrame:
    """The jobs, those that are done aside, on processes of one thread each, and the `table` of all that is done, stored
    as data/results/minutes.csv."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for task in dict.fromkeys(job.task for job in todo):
        prepare(task)
    os.environ["OMP_NUM_THREADS"] = "1"  # so minutes are those of one core, and two jobs do not slow each other down
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = [pool.submit(do, job) for job in todo if not job.path.exists()]
        for future in tqdm(as_completed(futures), total=len(futures), desc="minutes", unit="job"):
            future.result()
    found = table(done())
    write_table(RESULTS / "minutes.csv", found)
    return found


def do(job: Job) -> None:
    """Does a job: stores the class of each test image, and what it took."""
    begun = time.perf_counter()
    if job.method == "fomo":
        named = _fomo(job)
    else:
        dataset = load_dataset(prepare(job.task))
        named = probe(dataset, job.side) if job.method == "probe" else plain(dataset, job.side, job.minutes)
    write_json(job.path.with_suffix(".json"), {"job": vars(job), "seconds": time.perf_counter() - begun})
    np.save(job.path, named)


def _fomo(job: Job) -> np.ndarray:
    """`make report`, pages included."""
    dataset = prepare(job.task)
    command = [sys.executable, "-m", "fomo", "report", "--dataset", dataset, "--minutes", f"{job.minutes:g}"]
    with job.path.with_suffix(".log").open("w") as log:
        subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=log)
    return evaluate(Run(dataset, minutes=job.minutes)).predictions["final"].to_numpy()


def prepare(name: str) -> str:
    """The data set of a task: its name, where the task is all of it, or a table of images that are written if they are
    not there."""
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
    """The images of a split that belong to a task, drawn at random."""
    drawn = table.iloc[rng.permutation(len(table))]
    classes = task.classes or tuple(sorted(table["label"].unique()))
    if split == "test":
        return drawn[drawn["label"].isin(classes)][: task.test]
    counts = task.each if isinstance(task.each, tuple) else [task.each] * len(classes)
    parts = [drawn[drawn["label"] == label][:count] for label, count in zip(classes, counts, strict=True)]
    return pd.concat(parts)


def done() -> list[Job]:
    """The jobs whose results are stored."""
    return [
        Job(**read_json(path)["job"]) for path in sorted(FOLDER.glob("*.json")) if path.with_suffix(".npy").exists()
    ]


def table(jobs: list[Job]) -> pd.DataFrame:
    """A row for each task, minutes, method and metric: side, seconds, value, 95% interval, and by how much fomo is
    better (gain, gain_low, gain_high, paired). Of a peer it is its best side on test, if that ends in time."""
    rows = []
    for first in (job for job in jobs if job.method == "fomo"):
        labels = load_dataset(prepare(first.task)).test()["label"].to_numpy()
        found = {"fomo": first}
        for method in SIDES:
            of = [job for job in jobs if (job.task, job.method) == (first.task, method)]
            of = [job for job in of if job.minutes in (0, first.minutes) and job.seconds <= LATE * 60 * first.minutes]
            if of:
                found = {method: max(of, key=lambda job: (job.named == labels).mean())} | found
        named = {method: job.named for method, job in found.items()}
        measured = measure(labels, named, int(labels.max()) + 1, resamples=1000, seed=0)
        for row in measured[measured["metric"].isin(SHOWN)].to_dict("records"):
            job = found[row["model"]]
            key = {"task": first.task, "minutes": first.minutes, "method": row.pop("model"), "side": job.side}
            rows.append(key | {"seconds": job.seconds} | row)
    return pd.DataFrame(rows)
