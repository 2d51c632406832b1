"""Whether a run ends when its minutes do, pages included: runs of many sizes, two at a time, some of them beside a busy
process, some killed at a random moment and resumed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from fomo.config import RESULTS, ROOT
from fomo.evidence.minutes import FOLDER, prepare
from fomo.storage import read_table, write_table

REPORT = [sys.executable, "-m", "fomo", "report"]
RUNS = {  # minutes: what is computed
    2: (
        "fashion_sample", "skin_cancer", "flowers, 10 of each class", "fashion, 10 of each class",
        "emotions, 10 of each class", "fashion, 100 of each class", "emotions, 3 classes, 100 of each",
        "skin_cancer, 100 of each class", "skin_cancer, 1 in 50",
    ),
    3: (
        "fashion_sample", "flowers", "skin_cancer", "flowers, 10 of each class", "fashion, 100 of each class",
        "emotions, 3 classes, 100 of each", "skin_cancer, 1 in 50",
    ),
    5: ("fashion_sample", "flowers", "skin_cancer", "flowers, 10 of each class"),
}  # fmt: skip
WAYS = ("alone", "beside a busy process", "killed, resumed")
SHARE, SECONDS = 0.05, 20.0  # of its minutes, or so many: so much later a run is still in time


def measured() -> pd.DataFrame:
    """A row for each run: number, task, minutes, way, and the seconds that its processes took. Stored as
    data/results/deadlines.csv, row by row; what is there already is not run again."""
    path = RESULTS / "deadlines.csv"
    table = read_table(path) if path.exists() else pd.DataFrame(columns=["run"])
    runs = [(task, minutes) for minutes, tasks in RUNS.items() for task in tasks]
    runs = [(number, *run, way) for number, (run, way) in enumerate(zip(runs, cycle(WAYS), strict=False), start=1)]
    todo = [run for run in runs if run[0] not in set(table["run"])]
    for task in {task for _, task, _, _ in todo}:
        prepare(task)
    order = np.random.default_rng(0).permutation(len(todo))  # what is done early is of all kinds
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(do, *todo[place]) for place in order]
        for future in tqdm(as_completed(futures), total=len(futures), desc="deadlines", unit="run"):
            table = pd.concat([table, pd.DataFrame([future.result()])], ignore_index=True)
            write_table(path, table.sort_values("run"))
    return table.sort_values("run")


def do(number: int, task: str, minutes: float, way: str) -> dict:
    """Does `make report` on one core, in a folder of its own, which nothing is stored in yet; returns its row."""
    folder = FOLDER / "deadlines" / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [*REPORT, f"--dataset={prepare(task)}", f"--minutes={minutes:g}"]
    seconds = 0.0
    with busy() if way == WAYS[1] else nullcontext():
        if way == WAYS[2]:
            seconds += _process(command, folder, np.random.default_rng(number).uniform(0.1, 0.9) * 60 * minutes)
        seconds += _process(command, folder)
    shutil.rmtree(folder)
    return {"run": number, "task": task, "minutes": minutes, "way": way, "seconds": round(seconds, 1)}


def _process(command: list[str], folder: Path, limit: float | None = None) -> float:
    """The seconds that a command takes, which is killed after `limit` seconds, with all that it has begun."""
    begun = time.perf_counter()
    places = {"FOMO_RUNS": str(folder / "runs"), "FOMO_FIGURES": str(folder / "figures"), "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | places, stdout=log, stderr=log, start_new_session=True
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, command, (folder / "log.txt").read_text())
    return time.perf_counter() - begun


@contextmanager
def busy():
    """Another process computes all the time in the block."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """How many runs of each way were in time, by how many seconds the last one was late (negative: early), and the
    least share of its minutes that one used."""
    late = table["seconds"] - 60 * table["minutes"]
    told = table.assign(in_time=late <= np.maximum(SHARE * 60 * table["minutes"], SECONDS), late=late)
    told["used"] = table["seconds"] / (60 * table["minutes"])
    ways = told.groupby("way", sort=False)
    parts = {"runs": ways["run"].count(), "in time": ways["in_time"].sum(), "latest": ways["late"].max().round(1)}
    return pd.DataFrame(parts | {"least used": ways["used"].min().round(2)})
