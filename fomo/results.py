"""`make results`: the small artefacts of a finished run, kept under data/results; and the table beside the report's."""

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fomo.artifacts import Run, differing
from fomo.config import RESULTS, UserError
from fomo.data.inspection import digests, leaks
from fomo.stages.common import STAGES
from fomo.stages.evaluation import evaluate
from fomo.stages.final import compose
from fomo.stages.finetuning import optimize_finetuning
from fomo.stages.head_search import search_head, train_head, tune_head
from fomo.stages.metrics import REPORT, interval
from fomo.stages.planning import settle
from fomo.stages.preprocessing import preprocess
from fomo.stages.racing import finetune_best, race
from fomo.storage import read_json, read_table, write_json, write_table

PACKAGES = ("torch", "torchvision", "timm", "bayesian-optimization", "scikit-learn", "numpy")
SEARCH = ("4_bayesian_optimization", "race", "7_darts", "8_head_tuning")
TRAINING = ("5_best_finetuning", "10_ensemble")  # of what the final model consists of


def collect(run: Run) -> Path:
    """Copies what the finished `run` found, what it cost and what it ran on to data/results/<data set>; returns that
    folder, whose name also tells what is not as usual, such as flowers-seed1 or skin_cancer-drop. It holds
    config, machine (json); history, metrics, per_class, predictions, costs, options, decisions, calibration, and where
    the run searches trials, race, ranking, rules, head_trials (csv).

    Raises `UserError` if a stage is not finished, or if that folder holds a run of other settings.
    """
    planned = not run.clock.limited or run.finished("0_plan")
    if planned:
        settle(run)  # which stages it has, the plan says
    missing = [name for name in _stages(run) if not run.finished(name)] if planned else ["0_plan"]
    if missing:
        todo = "make report with the same variables goes on with it"
        raise UserError(f"{run} has not finished {', '.join(missing)}; {todo}")
    folder = RESULTS / (run.folder.parent.name + run.variant)
    _check_settings(run, folder)
    folder.mkdir(parents=True, exist_ok=True)
    search, tuned, head, result = search_head(run), tune_head(run), train_head(run), evaluate(run)
    predictions = result.predictions[["file", "label", "final", "confidence"]].round({"confidence": 4})
    leaked = leaks(digests(preprocess(run).dataset), into="train")
    predictions["in_train"] = predictions["file"].isin(leaked["file"])
    tables = {"history": finetune_best(run).history}
    tables |= {"trials": optimize_finetuning(run).trials, "race": race(run)} if run.config.trials else {}
    tables |= {"ranking": search.ranking, "rules": search.rules} if search else {}
    tables |= {"head_trials": tuned.trials} if tuned else {}
    tables |= {"metrics": result.metrics, "per_class": result.per_class}
    tables |= {"predictions": predictions.rename(columns={"final": "prediction"}), "costs": costs(run)}
    tables |= {"options": compose(run).options, "decisions": compose(run).decisions}
    tables |= {"calibration": result.calibration}
    for name, table in tables.items():
        write_table(folder / f"{name}.csv", table)
    found = {"finetuning": finetune_best(run).configuration, "head": search.head.name if search else None}
    found |= {
        "head_training": head.configuration if head else None,
        "final": _chosen(run),
        "split": result.split,
    }
    write_json(folder / "config.json", asdict(run.config) | {"found": found})
    write_json(folder / "machine.json", machine())
    return folder


def _check_settings(run: Run, folder: Path) -> None:
    """Raises `UserError` if `folder` holds a run of other settings, which would be lost."""
    if (folder / "config.json").exists():
        stored = read_json(folder / "config.json")
        del stored["found"]
        if fields := differing(stored, asdict(run.config)):
            raise UserError(f"{folder} holds a run of other settings ({fields}); move or delete it, to keep this one")


def costs(run: Run) -> pd.DataFrame:
    """Seconds and peak memory (MB, of the process so far) of each stage, and on how many threads; a stage that was
    resumed after a kill took longer than its seconds, unless it is one training, or a race and a training.

    The race is told apart from the training of its winner; where the finalists were trained in full, that is one of
    their trainings.
    """
    facts = {name: read_json(run.folder / name / "stage.json") for name in _stages(run)}
    table = pd.DataFrame(facts).T[["seconds", "peak_memory_mb", "resumed", "threads"]].rename_axis("stage")
    table.loc["race"] = table.loc["5_best_finetuning"]
    table.loc["race", "seconds"] = facts["5_best_finetuning"]["race_seconds"]
    table.loc["5_best_finetuning", "seconds"] -= table.loc["race", "seconds"]
    table["seconds"] = table["seconds"].astype(float).round(1)
    table["peak_memory_mb"] = table["peak_memory_mb"].astype(float).round()
    order = _stages(run)
    order.insert(order.index("5_best_finetuning"), "race")
    return table.loc[order].reset_index()


def machine() -> dict:
    """Processor, cores, memory in GB, the GPU if there is one, Python and the packages that results depend on."""
    model = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    facts = {"processor": (model or [platform.machine()])[0], "cores": os.cpu_count(), "memory_gb": round(memory)}
    facts |= {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return facts | {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def measured() -> pd.DataFrame:
    """The report's table and ours, from data/results: a row a data set; F1 and accuracy with 95% intervals, minutes of
    all, what they were measured on, and what all searches took as a share of the final training."""
    rows = []
    for path in sorted(RESULTS.glob("*/metrics.csv")):
        metrics, costs = read_table(path), read_table(path.with_name("costs.csv")).set_index("stage")["seconds"]
        final = metrics[metrics["model"] == "final"].set_index("metric")
        config = read_json(path.with_name("config.json"))
        theirs = REPORT.get(config["dataset"], {})
        row = {"data set": path.parent.name + (" (validation)" if config["found"].get("split") == "validation" else "")}
        for name in ("macro F1", "accuracy"):
            row |= {f"{name}, report": theirs.get(name), f"{name}, ours": interval(final.loc[name])}
        share = costs.reindex(SEARCH).sum() / costs[list(TRAINING)].sum()
        row |= {"minutes": round(costs.sum() / 60), "on": measured_on(path.parent)}
        rows.append(row | {"search / training": round(share, 2)})
    return pd.DataFrame(rows)


def measured_on(folder: Path) -> str:
    """The GPU, or else the processor, that a folder of data/results was measured on."""
    facts = read_json(folder / "machine.json")
    return facts.get("gpu", facts["processor"])


def leaked() -> pd.DataFrame:
    """What data/results holds with leaks: a row a data set, with the number of its test images that show what an image
    of the train split shows (the same bytes, or the same group), of those that are new, and the accuracy on either."""
    rows = []
    for path in sorted(RESULTS.glob("*/predictions.csv")):
        table = read_table(path)
        right = table["label"] == table["prediction"]
        row = {"data set": path.parent.name}
        for name, chosen in (("in train too", table["in_train"]), ("new", ~table["in_train"])):
            row |= {name: chosen.sum(), f"{name}, accuracy": round(right[chosen].mean(), 3)}
        rows += [row] if row["in train too"] else []
    return pd.DataFrame(rows)


def spread() -> pd.DataFrame:
    """What data/results holds with several seeds: a row a data set, with the number of its seeds, and mean ± standard
    deviation over them of F1 and accuracy. Each seed is a whole run with its own division of the images and search."""
    seeds = {}
    for path in sorted(RESULTS.glob("*/metrics.csv")):
        seed = read_json(path.with_name("config.json"))["seed"]
        metrics = read_table(path)
        values = metrics[metrics["model"] == "final"].set_index("metric")["value"]
        seeds.setdefault(path.parent.name.replace(f"-seed{seed}", ""), []).append(values)
    rows = [
        {"data set": name, "seeds": len(values)}
        | {metric: f"{np.mean(of):.3f} ± {np.std(of, ddof=1):.3f}" for metric, of in pd.DataFrame(values).items()}
        for name, values in seeds.items()
        if len(values) > 1
    ]
    return pd.DataFrame(rows, columns=["data set", "seeds", "macro F1", "accuracy"])


def _chosen(run: Run) -> dict:
    final = compose(run)
    return {"heads": final.chosen["heads"], "views": int(final.chosen["views"]), "adjustment": final.adjustment}


def _stages(run: Run) -> list[str]:
    """The folders of the stages that a run has by its settings."""
    config, left_out = run.config, []
    left_out += [] if config.first_epochs else ["3_finetuning"]
    left_out += [] if config.trials else ["4_bayesian_optimization"]
    left_out += [] if config.darts_epochs and config.head_trials else ["8_head_tuning"]
    left_out += [] if config.darts_epochs else ["6_features", "7_darts", "9_head"]
    return [name for name in STAGES if name not in left_out]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
