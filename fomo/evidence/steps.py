"""What a finetuning of so many steps is worth beside the probe, by the plain recipe and by others: what the rules of
steps, epochs and validation images (`stages/rules.py`) rest on."""

import math
from collections.abc import Iterable
from itertools import product

import pandas as pd
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
TASKS = ("fashion, 100 of each class", "emotions, 3 classes, 100 of each", "flowers, 10 of each class")
TASKS += ("skin_cancer, 100 of each class", "fashion, 10 of each class", "emotions, 10 of each class")
TASKS += ("flowers", "skin_cancer")
RECIPES = {  # each a change to the first
    "plain": {},
    "twice the learning rate": {"plain_lr": 2e-3},
    "cut-outs": CUT_OUTS,
    "fixed statistics": {"fix_statistics": True},
    "fixed statistics, a fifth for validation": {"fix_statistics": True, "validation_share": 0.2},
}
SETTINGS = {"minutes": 0.0, "image_size": SIDE, "batch_size": BATCH, "validation_share": 0.1, "on_bad": "skip"}


def trainings(tasks: Iterable[str] = TASKS, steps: Iterable[int] = STEPS) -> pd.DataFrame:
    """A row for each training: task, steps (0: the probe), recipe, train images, whether a plan takes cut-outs there,
    epochs, macro F1, accuracy (one view of the test images).

    Stored as data/results/steps.csv, row by row; what is there already is not done again.
    """
    path, keys = RESULTS / "steps.csv", ["task", "steps", "recipe"]
    table = read_table(path) if path.exists() else pd.DataFrame(columns=keys)
    done = set(table[keys].itertuples(index=False, name=None))
    todo = [(task, *one) for task in tasks for one in [(0, "plain"), *product(steps, RECIPES)]]
    for task, count, recipe in tqdm([key for key in todo if key not in done], desc="steps", unit="training"):
        row = {"task": task, "steps": count, "recipe": recipe} | train(prepare(task), count, recipe)
        table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
        write_table(path, table)
    return table


def train(dataset: str, steps: int, recipe: str) -> dict:
    """What a finetuning of so many steps is worth; the probe, if there are none."""
    run = Run(dataset, "auto", name=f"steps-{recipe.replace(' ', '-')}", **SETTINGS | RECIPES[recipe])
    data = preprocess(run)
    images = len(data.part("train")[1])
    classifier = untrained(run, data) if steps else probe(run).model
    epochs = math.ceil(steps / math.ceil(images / BATCH))
    if steps:
        configuration = first_point(run.config)
        fit_images(run, data, classifier, configuration, epochs, pace=lambda done, planned: min(steps, planned))
    taken = plan(Run(dataset, "auto", name="steps-plan", minutes=15.0, on_bad="skip")).contest.cuts
    facts = {"train images": images, "cut-outs taken": taken, "epochs": steps * BATCH / images}
    return facts | _tested(run, data, classifier)


def _tested(run: Run, data: Preprocessed, classifier: Classifier) -> dict:
    """What a classifier is worth on the test images."""
    seen = test_images(run, data.dataset, data.survey)
    part = seen.pixels, seen.rows, data.dataset.test()["label"].to_numpy()[seen.rows]
    logits, labels = predict(classifier.eval(), image_loader(run, part, classifier.backbone), run.device)
    counts = confusion(labels.numpy(), logits.argmax(1).numpy(), data.dataset.classes).to_numpy()
    worth = dict(zip(METRICS, scores(counts).tolist(), strict=True))
    return {name: worth[name] for name in ("macro F1", "accuracy")}


def summary(table: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """The `metric` by task (with its train images, and whether a plan takes cut-outs there), recipe and steps."""
    index = ["task", "train images", "cut-outs taken", "recipe"]
    shown = table.pivot_table(index=index, columns="steps", values=metric, sort=False)
    probes = table[table["steps"] == 0].set_index("task")[metric]
    shown[0] = shown.index.get_level_values("task").map(probes)
    return shown.rename(columns={0: "probe"}).round(3)
