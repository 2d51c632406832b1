"""Where things are: the data set that is meant, the folders of runs and figures."""

import hashlib
import os
from pathlib import Path

from fomo.config import DATASETS, ROOT, UserError


def absolute(name: str, words: tuple[str, ...] = ()) -> str:
    """The path `name` as it holds wherever the process goes; one of `words`, and what is not there, as it is."""
    path = Path(name).expanduser()
    return str(path.absolute()) if name not in words and path.exists() else name


def named(dataset: str) -> str:
    """The data set that is meant: one of `DATASETS`, which a colon marks as such, or a path, made absolute. Raises
    `UserError` where a folder or file here is called like one of these."""
    name = dataset.removesuffix(":")
    if name not in DATASETS:
        return absolute(dataset)
    here, own = Path(name).resolve(), ROOT / "data" / name
    if name == dataset and here.exists() and here != own:
        raise UserError(f"'{name}' is a data set of the report, and {here} is there, too; give ./{name} or {name}:")
    return name


def runs_folder(dataset: str) -> Path:
    """Where the runs on a data set (a name or a path) are stored: in data/runs, or in FOMO_RUNS."""
    label = dataset
    if dataset not in DATASETS:  # two folders of the same name are two data sets
        path = Path(dataset).expanduser().resolve()
        label = f"{path.name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:6]}"
    return Path(os.environ.get("FOMO_RUNS") or ROOT / "data" / "runs").absolute() / label


def figures_folder() -> Path:
    """Where the figures of all runs are stored: in figures, or in FOMO_FIGURES."""
    return Path(os.environ.get("FOMO_FIGURES") or ROOT / "figures").absolute()
