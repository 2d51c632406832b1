"""The memory that preparing, extracting and training take, for few and for many images, in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from fomo.artifacts import Run
from fomo.networks.inference import store_features
from fomo.stages.finetuning import FINETUNING_FIRST, fit_images, untrained
from fomo.stages.preprocessing import image_loader, preprocess

STATUS = Path("/proc/self/status")  # of Linux; elsewhere there is no telling
KINDS = {"RssAnon": "private", "VmRSS": "resident"}


def memory(images: int = 1000, factor: int = 10, side: int = 96) -> pd.DataFrame:
    """Peak memory of a process that preprocesses, extracts features and trains for an epoch, at so many `images` and at
    `more`, `factor` times as many: a row for private and one for resident memory, in MB, and the ratio.

    *Private* is what the process itself holds (RssAnon: its heap, all tensors). *Resident* (VmRSS, whose peak is
    ru_maxrss) has also the pages of files that are mapped into it, such as the stored pixels, which the system could
    take back at any time. The images are drawn for it, `side` pixels wide, and the network is a tiny one with random
    weights, so that what grows is not hidden behind what does not.
    """
    more = factor * images
    peaks = pd.DataFrame({"MB": _in_process(images, side), "MB at more": _in_process(more, side)})
    peaks = peaks.assign(images=images, more=more, ratio=peaks["MB at more"] / peaks["MB"])
    return peaks.rename_axis("memory").reset_index()


def peak(work: Callable, *arguments) -> dict[str, float]:
    """The most memory, private and resident, in MB, that this process has before, while (every 5 ms) and after `work`
    runs."""
    highest, done = dict.fromkeys(KINDS.values(), 0.0), threading.Event()

    def look() -> None:
        for line in STATUS.read_text().splitlines():
            name, _, amount = line.partition(":")
            if name in KINDS:
                highest[KINDS[name]] = max(highest[KINDS[name]], int(amount.split()[0]) / 1e3)

    def watch() -> None:
        while not done.wait(0.005):
            look()

    look()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work(*arguments)
    finally:
        done.set()
        thread.join()
    look()
    return highest


def prepare_and_train(folder: str, side: int) -> None:
    """Preprocessing, feature extraction and an epoch of training on the images in `folder`."""
    run = Run(folder, "quick", backbone="test_efficientnet", weights="random", image_size=side, name="memory")
    data = preprocess(run)
    classifier = untrained(run, data)
    for name in ("train", "validation"):
        batches = image_loader(run, data.part(name), classifier.backbone)
        store_features(classifier.backbone, batches, run.folder / f"{name}.npy", run.device, name)
    fit_images(run, data, classifier, FINETUNING_FIRST | {"layer": 2}, 1)


def write_images(folder: Path, count: int, side: int) -> None:
    """Writes `count` colour images of two classes in folders train and test (ten of each class there)."""
    random = np.random.default_rng(0)
    for part, number in {"train": count, "test": 20}.items():
        for image in range(number):
            path = folder / part / ("even", "odd")[image % 2] / f"{image:06}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            colours = random.integers(256, size=(4, 4, 3), dtype=np.uint8)
            Image.fromarray(colours).resize((side, side), Image.Resampling.NEAREST).save(path, compress_level=1)


def _in_process(count: int, side: int) -> dict[str, float]:
    """The `peak` of `prepare_and_train` with `count` images, in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "images", count, side)
        environment = os.environ | {"FOMO_RUNS": f"{folder}/runs", "FOMO_FRESH": "0", "TQDM_DISABLE": "1"}
        command = [
            sys.executable,
            "-m",
            "fomo.evidence.bench_memory",
            f"{folder}/images",
            str(side),
            str(torch.get_num_threads()),
        ]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    print(json.dumps(peak(prepare_and_train, sys.argv[1], int(sys.argv[2]))))
