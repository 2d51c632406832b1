"""What every stage is bound to besides settings: the images and the weights file; and how the images have changed."""

from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

from fomo.artifacts import Run, Stage
from fomo.data.dataset import Dataset
from fomo.data.datasets import load_dataset
from fomo.networks.weights import weights_fingerprint
from fomo.storage import read_table

LISTS = {"data": "1_preprocessing", "test": "1_test_images"}  # where the images behind a fingerprint are listed
_LISTED: WeakKeyDictionary[Run, Dataset] = WeakKeyDictionary()


def dataset_of(run: Run) -> Dataset:
    """The data set of a run, listed once: each stage asks for it, and there may be many files."""
    if run not in _LISTED:
        _LISTED[run] = _load(run)
    return _LISTED[run]


def give(run: Run, dataset: Dataset) -> None:
    """Has a run compute on a data set that lies in no folder."""
    _LISTED[run] = dataset


def forget(run: Run) -> None:
    """Lists the data set of a run anew, when it is next asked for: it may change until then."""
    _LISTED.pop(run, None)
    run.inputs.clear()


def _load(run: Run) -> Dataset:
    return load_dataset(run.config.dataset, run.config.columns, run.config.on_rare)


def bound_stage(run: Run, folder: Path, config: dict) -> Stage:
    """The stage in `folder`, bound to `config`, and to the train data and the weights file that the run's settings
    name."""
    if not run.inputs:
        run.inputs["data"] = dataset_of(run).fingerprint()
        run.inputs["weights_file"] = weights_fingerprint(run.config.weights)
    return Stage(folder, config | run.inputs, partial(changed, run))


def changed(run: Run, name: str) -> str:
    """How the images have changed since they were listed in files.csv of the stage that read them, as text; empty where
    `name` stands for no images, or nothing is listed."""
    path = run.folder / LISTS.get(name, "") / "files.csv"
    if not path.exists():
        return ""
    split = "test" if name == "test" else "train"
    tables = read_table(path).fillna(""), _load(run).listed(split)
    before, now = ({row[0]: row for row in table.itertuples(index=False, name=None)} for table in tables)
    other = sum(before[file] != now[file] for file in before.keys() & now.keys())
    counts = {"added": len(now.keys() - before), "gone": len(before.keys() - now), "other": other}
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return told and f"the {'test ' if name == 'test' else ''}images have changed: {told}"
