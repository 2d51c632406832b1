"""fomo: finetune, optimise, search. From a folder of labelled images to the best classifier that can be found.

The stages, in order, are the functions below; each takes a `Run`, and loads its result if it is already stored.
"""

import ctypes
import os
import sys
import warnings

# torch's OpenMP threads spin while they wait; beside one other busy process that makes training 5 to 10 times slower.
# The OpenMP runtime reads the variable once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if "torch" in sys.modules:
        warnings.warn(
            "torch was imported before fomo, so its threads spin while they wait, which is slow on shared cores; "
            "import fomo first, or set OMP_WAIT_POLICY=PASSIVE before Python starts",
            stacklevel=2,
        )

# glibc hands large blocks back to the system as soon as they are freed, and every step of a training fetches them anew,
# page by page: at 128 pixels a quarter of its time. So what is freed is kept for the next step (see mallopt(3)).
if hasattr(ctypes.CDLL(None), "mallopt"):
    ctypes.CDLL(None).mallopt(-4, 0)  # M_MMAP_MAX
    ctypes.CDLL(None).mallopt(-1, -1)  # M_TRIM_THRESHOLD
    ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX

# A package that timm brings asks for notebook widgets. fomo's progress bars are text.
warnings.filterwarnings("ignore", message="IProgress not found")

from fomo import figures, metrics, results
from fomo.artifacts import Run
from fomo.classifier import load_model
from fomo.ensemble import train_members
from fomo.evaluation import evaluate
from fomo.final import compose
from fomo.finetuning import finetune, finetune_best, optimize_finetuning, race
from fomo.head_search import extract_features, search_head, train_head, tune_head
from fomo.inspection import inspect
from fomo.preprocessing import preprocess

__all__ = [
    "Run",
    "compose",
    "evaluate",
    "extract_features",
    "figures",
    "finetune",
    "finetune_best",
    "inspect",
    "load_model",
    "metrics",
    "optimize_finetuning",
    "preprocess",
    "race",
    "results",
    "search_head",
    "train_head",
    "train_members",
    "tune_head",
]
