"""fomo: finetune, optimise, search. From a folder of labelled images to the best classifier that can be found.

The stages, in order, are the functions below; each takes a `Run`, and loads its result if it is already stored. Names
are imported when they are first used, so `import fomo` takes no time.

Importing fomo changes three things in its process. FOMO_KEEP_MALLOC=1 leaves the allocator alone; an OMP_WAIT_POLICY
that is already set stays.

- torch's threads wait for a moment and then sleep (OMP_WAIT_POLICY=PASSIVE, GOMP_SPINCOUNT=1000).
- Freed memory is kept for the next step and not handed back to the system, and all threads share one arena (mallopt).
- A warning of a notebook package, "IProgress not found", is not shown.
"""

import ctypes
import os
import sys
import warnings

import lazy_loader

# torch's OpenMP threads spin while they wait; beside one other busy process that makes training 5 to 10 times slower.
# If they sleep at once, a step on two idle cores takes a third longer than if they wait some microseconds.
# The OpenMP runtime reads the variables once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if "torch" in sys.modules:
        warnings.warn(
            "torch was imported before fomo, so its threads spin while they wait, which is slow on shared cores; "
            "import fomo first, or set OMP_WAIT_POLICY=PASSIVE before Python starts",
            stacklevel=2,
        )

# glibc hands large blocks back to the system as soon as they are freed, and every step of a training fetches them anew,
# page by page: at 128 pixels a quarter of its time. So what is freed is kept for the next step (see mallopt(3)).
if os.environ.get("FOMO_KEEP_MALLOC") != "1" and hasattr(ctypes.CDLL(None), "mallopt"):
    ctypes.CDLL(None).mallopt(-4, 0)  # M_MMAP_MAX
    ctypes.CDLL(None).mallopt(-1, -1)  # M_TRIM_THRESHOLD
    ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX

# A package that timm brings asks for notebook widgets. fomo's progress bars are text.
warnings.filterwarnings("ignore", message="IProgress not found")

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["evidence", "figures", "results"],
    submod_attrs={
        "artifacts": ["Run"],
        "data": ["augment", "inspect"],
        "estimator": ["ImageClassifier"],
        "exporting": ["export"],
        "model": ["load_model"],
        "stages": [
            *(
                "plan",
                "preprocess",
                "probe",
                "finetune",
                "optimize_finetuning",
                "race",
                "finetune_best",
                "extract_features",
            ),
            *("search_head", "tune_head", "train_head", "train_members", "compose", "evaluate", "suspects"),
            *("FINETUNING_SPACE", "HEAD_SPACE", "beside_report", "gap", "surest"),
        ],
    },
)
