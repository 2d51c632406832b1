"""The folder of one run: a stage's result is stored once, with the settings that made it, and read ever after."""

import hashlib
import json
import os
import resource
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fomo.clock import Clock
from fomo.config import NAMED, WEIGHTS, UserError, make_config, usual_preset
from fomo.paths import absolute, figures_folder, named, runs_folder
from fomo.storage import Lock, atomic, discard, read_json, read_table, sweep, write_json, write_table


def differing(stored: dict, asked: dict, tell: Callable[[str], str] = lambda name: "") -> str:
    """The settings that were stored with another value than the one asked for, or that there are no more, as text.
    `tell` may know better what has changed than the two values of a setting do."""
    gone = [f"{name}: stored {value}, no setting any more" for name, value in stored.items() if name not in asked]
    names = sorted(name for name, value in asked.items() if stored.get(name) != value)
    other = [tell(name) or f"{name}: stored {stored.get(name)}, asked {asked[name]}" for name in names]
    return "; ".join([*other, *gone])


class Stage:
    """The folder of one stage's result, bound to the settings that it is computed with.

    `config` holds the stage's own settings and those of all stages before it. Raises `UserError`, naming the fields
    that differ (as `differing` does), if the folder holds a result of other settings.
    """

    spent = 0.0  # seconds that all stages finished by this process took

    def __init__(self, folder: Path, config: dict, tell: Callable[[str], str] = lambda name: ""):
        self.folder = folder
        self.config = json.loads(json.dumps(config))
        self._record = folder / "stage.json"
        self._opened, self._resumed = time.perf_counter() - Stage.spent, self._record.exists()
        if not self._record.exists():
            folder.mkdir(parents=True, exist_ok=True)
            self._write(done=False)
        stored = read_json(self._record)["config"]
        empty = all(path == self._record or path.suffix == ".tmp" for path in folder.iterdir())
        if stored != self.config and not self.done and empty:  # nothing is lost
            self._write(done=False)
        elif stored != self.config:
            other = differing(stored, self.config, tell)
            raise UserError(
                f"{folder} was computed with other settings ({other}). Ask for the stored settings, give the new run "
                "a name of its own (Run(..., name=...)), delete this folder and those of the stages after it, or "
                "compute all stages anew by make report with FOMO_FRESH=1"
            )

    @property
    def done(self) -> bool:
        """Whether the result is complete."""
        return read_json(self._record)["done"]

    def reopen(self) -> None:
        """Says that a complete result is to get more, the cost of which `finish` adds to its own."""
        facts = read_json(self._record)
        self._resumed = facts["resumed"]
        self._write(**facts | {"done": False})

    def finish(self, **costs: float) -> None:
        """Says that the result is complete and what it cost (`costs`: of parts of it, in seconds), and removes what
        killed runs have left. Stages before it that were finished meanwhile have their own cost."""
        before = read_json(self._record)
        memory = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, before.get("peak_memory_mb", 0))
        seconds = time.perf_counter() - Stage.spent - self._opened
        Stage.spent += seconds
        seconds = max(seconds, sum(costs.values()))  # which tell of what came before a kill, too
        cost = {"seconds": seconds + before.get("seconds", 0), "peak_memory_mb": memory, "resumed": self._resumed}
        self._write(done=True, **cost, threads=torch.get_num_threads(), **costs)
        sweep(self.folder)

    def path(self, name: str) -> Path:
        return self.folder / name

    def table(self, name: str) -> pd.DataFrame:
        return read_table(self.folder / f"{name}.csv")

    def save_table(self, name: str, table: pd.DataFrame) -> None:
        write_table(self.folder / f"{name}.csv", table)

    def array(self, name: str) -> np.ndarray:
        """The array `name`.npy as a read-only memory map: only what is used of it takes up memory."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    def _write(self, **facts: bool | float) -> None:
        write_json(self._record, facts | {"config": self.config})


class Run:
    """One run of the pipeline: its settings (`config`), its `folder`, its `clock`, its figures, its device.

    >>> run = Run("path/to/folder", minutes=20)
    >>> run = Run("fashion_sample", "quick", seed=0)
    >>> run = Run("path/to/folder", "report", backbone="resnet50", trials=10)   # single settings replaced

    Preset `auto`, the usual one, makes its settings by a plan for the `minutes` (`stages.planning`); those `asked` for
    stay. `plan` is the plan.json of another run: its settings, and all that its clock decided, are taken from there.

    Results lie under data/runs (FOMO_RUNS), figures under figures (FOMO_FIGURES), in folders whose names tell the data
    set and what is not as usual (`variant`): the preset, network, weights, seed and the settings in `NAMED`. With
    FOMO_FRESH=1 in the environment the run's stored results are deleted first. One process at a time computes a run
    (`alone`). Raises `UserError` for an unknown name or setting.
    """

    def __init__(
        self,
        dataset: str,
        preset: str | None = None,
        *,
        seed: int = 0,
        name: str | None = None,
        device: str | None = None,
        plan: str | Path | None = None,
        **settings,
    ):
        dataset = named(str(dataset))
        usual = usual_preset(dataset, settings.get("minutes"))
        self.preset = preset = preset or ("auto" if plan is not None else usual)
        self.asked = {field: value for field, value in settings.items() if value is not None}
        if isinstance(self.asked.get("weights"), str):
            self.asked["weights"] = absolute(self.asked["weights"], WEIGHTS)
        if plan is not None:
            decided = _read_plan(plan)
            self.asked = decided["settings"] | self.asked | {"minutes": 0.0}
        self.config = make_config(dataset, preset, seed=seed, **self.asked)
        self.before = self.config  # the plan
        self.settled = False  # whether the settings of a plan are in it
        self.inputs: dict[str, str] = {}  # fingerprints of data and weights, which the settings only name
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        plain, chosen = make_config(dataset, preset), []
        if plan is not None:
            chosen.append(f"plan{hashlib.sha256(json.dumps(decided).encode()).hexdigest()[:6]}")
        if self.config.weights != "imagenet":
            chosen.append(Path(self.config.weights).stem)
        for field, text in NAMED.items():
            if plan is None and getattr(self.config, field) != getattr(plain, field):
                chosen.append(text.format(getattr(self.config, field)))
        asked = [] if preset == usual_preset(dataset) else [preset]
        asked += [] if self.config.backbone == plain.backbone else [self.config.backbone]
        seeded = [f"seed{seed}"] if seed else []
        self.variant = "".join(f"-{choice}" for choice in [*asked, *chosen, *seeded])  # of the usual run
        self.folder = runs_folder(dataset) / (name or "-".join([preset, self.config.backbone, *chosen, f"seed{seed}"]))
        self.figures = figures_folder() / (self.folder.parent.name + self.variant)
        self.lock = Lock(self.folder)
        fresh = os.environ.get("FOMO_FRESH") == "1"
        with self.lock.held() if fresh else nullcontext():
            if fresh:
                discard(self.folder)
            if plan is not None and not (self.folder / "plan.json").exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self.folder / "plan.json", decided)
        self.clock = Clock(self.config.minutes, self.folder)

    def __repr__(self) -> str:
        return (
            f"Run('{self.config.dataset}', '{self.preset}', seed={self.config.seed}, backbone='{self.config.backbone}')"
        )

    @property
    def is_default(self) -> bool:
        """Whether this is the run of `make report` as it comes, whose outputs are in the committed notebooks."""
        return self.config == make_config("fashion_sample", "quick")

    def finished(self, stage: str) -> bool:
        """Whether the stage in this folder has its result."""
        record = self.folder / stage / "stage.json"
        return record.exists() and read_json(record)["done"]

    @contextmanager
    def alone(self, stage: str):
        """No other process computes the run in the block, unless the stage in this folder has its result: then nobody
        waits. What others have computed before counts."""
        with nullcontext() if self.finished(stage) else self.lock.held():
            self.clock.read()
            yield

    def settle(self, settings: dict) -> None:
        """Puts the settings of a plan into `config`; those asked for stay."""
        self.config, self.settled = replace(self.config, **settings | self.asked), True

    def savefig(self, name: str) -> None:
        """Stores the current figure as `name`.png in `figures`."""
        import matplotlib.pyplot as plt

        self.figures.mkdir(parents=True, exist_ok=True)
        path = self.figures / f"{name}.png"
        with atomic(path) as temporary:
            plt.gcf().savefig(temporary, format="png", dpi=120, bbox_inches="tight")


def _read_plan(path: str | Path) -> dict:
    """What a run decided, from its plan.json. Raises `UserError` if the file is no such plan."""
    try:
        decided = read_json(Path(path).expanduser())
        return decided | {"settings": dict(decided["settings"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"plan {path} cannot be read ({type(error).__name__}: {error}); give the plan.json of a run of preset auto"
        ) from error
