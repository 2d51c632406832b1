"""What a finetuning of so many steps is worth beside the probe, by the plain recipe and by others, and what so many
seconds are worth at several sides: what the rules of steps, sides and validation images (`stages/rules.py`) rest on."""

import math
import time
from collections.abc import Callable, Iterable
from itertools import product

import pandas as pd
import torch
from tqdm import tqdm

from fomo.artifacts import Run
from fomo.config import RESULTS
from fomo.evidence.minutes import prepare
from fomo.networks.classifier import Classifier
from fomo.networks.inference import predict
from fomo.stages.contest import CUT_OUTS
from fomo.stages.finetuning import first_point, fit_images, untrained
from fomo.stages.metrics import METRICS, confusion, scores
from fomo.stages.planning import plan
from fomo.stages.preprocessing import Preprocessed, image_loader, preprocess, test_images
from fomo.stages.probing import probe
from fomo.storage import read_table, write_table

SIDE, BATCH = 96, 32  # pixels, images
STEPS = (40, 160, 640)
SECONDS, SIDES = 300.0, (64, 128, 192)
WHOLE = ("flowers", "skin_cancer", "emotions", "fashion")  # data sets, all of each
EPOCHS, WARM_UP = 1000, 3  # more than there is time for; steps
TASKS = ("fashion, 100 of each class", "emotions, 3 classes, 100 of each", "flowers, 10 of each class")
TASKS += ("skin_cancer, 100 of each class", "fashion, 10 of each class", "emotions, 10 of each class")
TASKS += ("flowers", "skin_cancer")
RECIPES = {  # each a change to the first
    "plain": {},
    "twice the learning rate": {"plain_lr": 2e-3},
    "cut-outs": CUT_OUTS,
    "fixed statistics": {"fix_statistics": True},
    "twice the learning rate, a fifth for validation": {"plain_lr": 2e-3, "validation_share": 0.2},
}
SETTINGS = {"minutes": 0.0, "image_size": SIDE, "batch_size": BATCH, "validation_share": 0.1, "on_bad": "skip"}


def trainings(tasks: Iterable[str] = TASKS, steps: Iterable[int] = STEPS) -> pd.DataFrame:
    """A row for each training: task, steps (0: the probe), recipe, train images, whether a plan takes cut-outs there,
    epochs, macro F1, accuracy (one view of the test images).

    Stored as data/results/steps.csv, row by row; what is there already is not done again.
    """
    todo = [(task, *one) for task in tasks for one in [(0, "plain"), *product(steps, RECIPES)]]
    return _in_turn("steps", ["task", "steps", "recipe"], todo, _of_steps)


def sides(
    tasks: Iterable[str] = WHOLE,
    sides: Iterable[int] = SIDES,
    recipe: str = "twice the learning rate",
    seconds: float = SECONDS,
) -> pd.DataFrame:
    """A row for each training of so many seconds of a processor at a side: task, side (pixels), seconds, recipe, train
    images, macro F1, accuracy, log loss (one view of the test images).

    Stored as data/results/sides.csv, row by row; what is there already is not done again.
    """
    todo = list(product(tasks, sides, [float(seconds)], [recipe]))
    return _in_turn("sides", ["task", "side", "seconds", "recipe"], todo, _of_seconds)


def _in_turn(name: str, keys: list[str], todo: list[tuple], train: Callable[..., dict]) -> pd.DataFrame:
    """The table of what `train` makes of each of `todo`, beside what is stored already."""
    path = RESULTS / f"{name}.csv"
    table = read_table(path) if path.exists() else pd.DataFrame(columns=keys)
    done = set(table[keys].itertuples(index=False, name=None))
    for key in tqdm([key for key in todo if key not in done], desc=name, unit="training"):
        table = pd.concat([table, pd.DataFrame([dict(zip(keys, key, strict=True)) | train(*key)])], ignore_index=True)
        write_table(path, table)
    return table


def _of_steps(task: str, steps: int, recipe: str) -> dict:
    """What a finetuning of so many steps is worth; the probe, if there are none."""
    run = Run(prepare(task), "auto", name=f"steps-{recipe.replace(' ', '-')}", **SETTINGS | RECIPES[recipe])
    data = preprocess(run)
    images = len(data.part("train")[1])
    classifier = untrained(run, data) if steps else probe(run).model
    epochs = math.ceil(steps / math.ceil(images / BATCH))
    if steps:
        configuration = first_point(run.config)
        fit_images(run, data, classifier, configuration, epochs, pace=lambda done, planned: min(steps, planned))
    taken = plan(Run(prepare(task), "auto", name="steps-plan", minutes=15.0, on_bad="skip")).contest.cuts
    facts = {"train images": images, "cut-outs taken": taken, "epochs": steps * BATCH / images}
    worth = _tested(run, data, classifier)
    return facts | {name: worth[name] for name in ("macro F1", "accuracy")}


def _of_seconds(task: str, side: int, seconds: float, recipe: str) -> dict:
    """What a finetuning of so many seconds of a processor is worth; its learning rate ends at 0 with them."""
    settings = SETTINGS | {"image_size": side} | RECIPES[recipe]
    run = Run(prepare(task), "auto", name=f"sides-{side}-{recipe.replace(' ', '-')}", **settings)
    data = preprocess(run)
    classifier, begun = untrained(run, data), []

    def pace(done: int, planned: int) -> int:
        begun.append(time.process_time())
        if done <= WARM_UP:
            return planned
        each = (begun[-1] - begun[WARM_UP]) / (done - WARM_UP)
        return done + max(1, int((seconds - begun[-1] + begun[0]) / each))

    fit_images(run, data, classifier, first_point(run.config), EPOCHS, pace=pace)
    return {"train images": len(data.part("train")[1])} | _tested(run, data, classifier)


def _tested(run: Run, data: Preprocessed, classifier: Classifier) -> dict:
    """What a classifier is worth on the test images."""
    seen = test_images(run, data.dataset, data.survey)
    part = seen.pixels, seen.rows, data.dataset.test()["label"].to_numpy()[seen.rows]
    logits, labels = predict(classifier.eval(), image_loader(run, part, classifier.backbone), run.device)
    counts = confusion(labels.numpy(), logits.argmax(1).numpy(), data.dataset.classes).to_numpy()
    worth = dict(zip(METRICS, scores(counts).tolist(), strict=True))
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    return {name: worth[name] for name in ("macro F1", "accuracy")} | {"log loss": loss}


def summary(table: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """The `metric` by task (with its train images, and whether a plan takes cut-outs there), recipe and steps."""
    index = ["task", "train images", "cut-outs taken", "recipe"]
    shown = table.pivot_table(index=index, columns="steps", values=metric, sort=False)
    probes = table[table["steps"] == 0].set_index("task")[metric]
    shown[0] = shown.index.get_level_values("task").map(probes)
    return shown.rename(columns={0: "probe"}).round(3)
