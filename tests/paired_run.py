"""Computes a toy run in two processes at once: as it comes, with the second one later, anew, with minutes.

python paired_run.py DATASET prints the exit statuses of each pair. The runs of a pair lie in a folder of its own.
"""

import os
import shutil
import sys
import time
from pathlib import Path

import toys

import fomo

MINUTES = {"trials": 2, "initial_trials": 1, "darts_epochs": 0, "epochs": 2, "bootstrap": 50}
PAIRS = {"together": 0.0, "later": 0.5, "anew": 0.0, "minutes": 0.0}  # seconds between the beginnings


def compute(name: str, second: bool) -> None:
    time.sleep(PAIRS[name] * second)
    if name == "minutes":
        settings = {"backbone": "test_efficientnet", "weights": "random", "image_size": 32, "batch_size": 4}
        fomo.evaluate(fomo.Run(sys.argv[1], minutes=2, **settings | MINUTES))
    else:
        fomo.evaluate(toys.tiny_run(Path(sys.argv[1]), **toys.SHORT))


root = Path(os.environ["FOMO_RUNS"])
for name in PAIRS:
    os.environ["FOMO_RUNS"] = str(root / name)
    if name == "anew":
        shutil.copytree(root / "later", root / name)
        os.environ["FOMO_FRESH"] = "1"
    children = []
    for second in (False, True):
        if (child := os.fork()) == 0:
            compute(name, second)
            sys.exit()
        children.append(child)
    print(name, *(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)
