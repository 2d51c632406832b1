"""Computes the toy run in processes that are killed in the middle of a write, each at a later one, until one ends.

python killed_run.py DATASET prints how many were killed.
"""

import os
import signal
import sys
from pathlib import Path

import toys

import fomo


def evaluate(writes: int) -> None:
    """Goes on with the run; SIGKILL comes after so many whole writes, when the next file is there but has no name."""
    replace, left = os.replace, iter(range(writes))

    def replace_or_die(*paths) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)

    os.replace = replace_or_die
    run = toys.tiny_run(Path(sys.argv[1]))
    fomo.evaluate(run)
    fomo.suspects(run)


killed = 0
while (child := os.fork()) != 0:
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        print(killed)
        sys.exit(os.waitstatus_to_exitcode(status))
    killed += 1
evaluate(5 * killed + 1)
