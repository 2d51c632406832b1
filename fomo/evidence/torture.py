"""`make torture`: whether a run can be trusted. Small runs are killed, computed twice at once, and left without room or
without the right to write, at random moments (`attempts`). Then they go on, and must end like one that none disturbed.
"""

import os
import shutil
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from fomo.config import RESULTS, UserError
from fomo.evidence.attempts import FOLDER, WAYS, Attempt, FaultError, Job
from fomo.storage import read_json, read_table, write_json, write_table

RUNS = {  # how many of each kind
    "stages": {"killed": 36, "two at once": 16, "full disk": 16, "read-only": 16},
    "minutes": {"killed": 4, "two at once": 2, "full disk": 2, "read-only": 2},
    "report": {"killed": 3, "two at once": 1, "full disk": 1, "read-only": 1},
}
EXACT = ("metrics.csv", "predictions.csv", "predictions.npy", "model.safetensors")
OF_THE_CLOCK = {"0_plan", "clock.json"}  # which the replay of a plan does not have


def torture() -> str:
    """Does all jobs, two at a time, and stores a row for each (run, kind, interruptions, seconds, outcome) in
    data/results/torture.csv; what is there is not done again. Returns their `summary` as text. Raises `UserError` if a
    run went wrong; its folder is kept."""
    if os.geteuid():
        raise UserError("torture mounts small disks, which only root may: do it as root")
    path = RESULTS / "torture.csv"
    table = read_table(path) if path.exists() else pd.DataFrame()
    kinds = [(work, way) for work, ways in RUNS.items() for way, number in ways.items() for _ in range(number)]
    jobs = [Job(number, *kind) for number, kind in enumerate(kinds, start=1) if number not in set(table.get("run", ()))]
    if not (FOLDER / "data").exists():
        write_images(FOLDER / "data")
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:  # forked, they need not import anything
        list(pool.map(refer, {job.work for job in jobs}))
        order = np.random.default_rng(0).permutation(len(jobs))  # what is done early is of all kinds
        futures = [pool.submit(do, jobs[place]) for place in order]
        for future in tqdm(as_completed(futures), total=len(futures), desc="torture", unit="run"):
            table = pd.concat([table, pd.DataFrame([future.result()])], ignore_index=True)
            write_table(path, table.sort_values("run"))
    wrong = table[table["outcome"] != "right"]
    if len(wrong):
        raise UserError(f"{len(wrong)} of {len(table)} runs went wrong: {path} says how, and {FOLDER} keeps them")
    return summary(table).to_string()


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The runs, interruptions and seconds of each kind, and how many ended right."""
    kinds = table.sort_values("run").assign(right=table["outcome"] == "right").groupby("kind", sort=False)
    sums = kinds[["interruptions", "seconds", "right"]].sum()
    return pd.concat([kinds["run"].count().rename("runs"), sums], axis=1)


def write_images(folder: Path) -> None:
    """Writes 36 train and 18 test images of 24 x 24 pixels: noise, a third of which is brighter."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 12), ("test", 6)):
        for third, name in enumerate(("top", "middle", "bottom")):
            (folder / split / name).mkdir(parents=True)
            for image in range(number):
                pixels = rng.integers(0, 200, (24, 24, 3), dtype=np.uint8)
                pixels[8 * third : 8 * third + 8] += 40
                Image.fromarray(pixels).save(folder / split / name / f"{image}.png")


def refer(work: str) -> None:
    """Computes the run that nobody disturbs, and stores the seconds that it took."""
    job, begun = Job(0, work), time.perf_counter()
    if not (job.folder / "seconds.json").exists():
        shutil.rmtree(job.folder, ignore_errors=True)
        job.disk.mkdir(parents=True)
        Attempt(job).end(0)
        write_json(job.folder / "seconds.json", {"seconds": time.perf_counter() - begun})


def do(job: Job) -> dict:
    """Does a job; returns its row."""
    begun, ended, outcome = time.perf_counter(), [], ""
    if job.disk.is_mount():  # a torture was killed
        subprocess.run(["umount", "--lazy", job.disk], check=True)
    shutil.rmtree(job.folder, ignore_errors=True)
    job.disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", job.disk], check=True)
    seconds = read_json(Job(0, job.work).folder / "seconds.json")["seconds"]
    try:
        ended.extend(WAYS[job.way](job, np.random.default_rng(job.number), seconds))
        Attempt(job).end(0)
        outcome = differing(job.disk, _expected(job))
    except FaultError as error:
        outcome = str(error)
    finally:
        for child in active_children():
            os.killpg(child.pid, 9)
        if outcome:
            shutil.copytree(job.disk, job.folder / "kept")
        subprocess.run(["umount", "--lazy", job.disk], check=True)
    if not outcome:
        shutil.rmtree(job.folder)
    row = {"run": job.number, "kind": f"{job.work}, {job.way}", "interruptions": sum(map(bool, ended))}
    return row | {"seconds": round(time.perf_counter() - begun, 1), "outcome": outcome or "right"}


def _expected(job: Job) -> Path:
    """Where the undisturbed run lies: the reference, or, where the clock decides, a replay of the job's plan."""
    if job.work != "minutes":
        return Job(0, job.work).disk
    (plan,) = job.disk.glob("runs/*/*/plan.json")
    replay = job.folder / "replay"
    replay.mkdir()
    Attempt(job, replay, MINUTES="", PLAN=str(plan)).end(0)
    return replay


def differing(disk: Path, expected: Path) -> str:
    """What a finished run has otherwise than the `expected` one, as text: files that are lost or left over, other
    metrics, predictions or model. A replay need not have what belongs to the clock."""
    found, wanted = _files(disk), _files(expected)
    texts = [f"lost {name}" for name in wanted if name not in found]
    texts += [f"left {name}" for name in found if name not in wanted and not OF_THE_CLOCK & set(name.split("/"))]
    for name in wanted:
        if name in found and name.endswith(EXACT) and found[name].read_bytes() != wanted[name].read_bytes():
            texts.append(f"other {name}")
    return "; ".join(texts)


def _files(disk: Path) -> dict[str, Path]:
    """The files of runs and figures by their names, in which the folder of the run is `run`: a replay has another. A
    lock's file, which no one needs when its process is dead, does not count."""
    (run,) = disk.glob("runs/*/*-seed0")
    files = [path for top in ("runs", "figures") for path in sorted((disk / top).rglob("*")) if path.is_file()]
    files = [path for path in files if path.suffix != ".lock"]
    return {str(path.relative_to(disk)).replace(run.name, "run"): path for path in files}
