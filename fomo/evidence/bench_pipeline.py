"""The whole pipeline with few, cheap trials, beside the report's own: minutes, and the F1 that comes of it."""

import shutil
import tempfile
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from fomo.artifacts import Run
from fomo.data.batches import loader
from fomo.evidence.bench import row
from fomo.networks.heads import HEADS
from fomo.results import costs
from fomo.stages.common import STAGES, seeded
from fomo.stages.evaluation import evaluate
from fomo.stages.features import extract_features, feature_loaders
from fomo.storage import read_json, write_json
from fomo.training.darts import MixedOperation, search
from fomo.training.loop import fit, make_optimizer

SAMPLE = "fashion_sample"
BACKBONE = "tf_efficientnet_lite0"
SIDES = (64, 128)  # of the images, in pixels; the smaller, the larger the part of the time that does not depend on it
REPORTS = {"head_seeds": 1}  # the report searches once; more seeds are ours
# The recipe of preset `quick` for 3600 train images of 28 x 28 pixels, upright clothes that fill them.
OURS = {
    "validation_share": 0.1,
    "batch_size": 64,
    "rotation": 10.0,
    "label_smoothing": 0.0,
    "probe_start": False,
    "plain": False,
    "keep_first": False,
    "epochs": 3,
    "trials": 8,
    "initial_trials": 5,
    "trial_size": 32,  # more than the images have
    "trial_share": 0.25,  # with trial_size a seventh of a full trial (finetuning_fidelities.csv)
    "finalists": 1,
    "race_epochs": 0,  # a race of three would cost as much as the final training
    "head_images": 500,
    "head_trials": 30,
    "darts_epochs": 4,  # shown, but the head is chosen by the trainings alone
    "head_seeds": 1,
    "members": 1,
}


def pipeline() -> list[dict]:
    """Rows of the table of `make bench`, two for each of `SIDES`: minutes of all stages, and macro F1 on the test
    images.

    *The report's procedure* is its preset at this image size and with our backbone: 30 trials of a full epoch on all
    images, one after another; the winner trained for 8 epochs; DARTS; 30 trainings of the head of 8 epochs, one after
    another. *Ours* is the preset `quick` with `OURS`. Both are runs under data/runs: what is finished is not computed
    again, and a stage that was cut off is computed anew, for its seconds would be too few.
    """
    return [row for side in SIDES for row in compare(*(finish(run) for run in contestants(side)))]


def contestants(image_size: int) -> tuple[Run, Run]:
    """The two runs of `pipeline` at an image size: ours, and the report's procedure."""
    size = {"backbone": BACKBONE, "image_size": image_size}
    return (
        Run(SAMPLE, "quick", name=f"bench-ours-{image_size}", **OURS | size),
        Run(SAMPLE, "report", name=f"bench-report-{image_size}", **REPORTS | size),
    )


def finish(run: Run) -> Run:
    """The `run`, all its stages finished, each of them in one go."""
    from fomo.report import STAGES as FUNCTIONS  # what executes notebooks takes seconds to import

    for name in STAGES:
        record = run.folder / name / "stage.json"
        if record.exists() and not read_json(record)["done"]:
            shutil.rmtree(record.parent)
    for stage in FUNCTIONS.values():
        stage(run)
    return run


def compare(ours: Run, reports: Run) -> list[dict]:
    """The rows of `pipeline`, of two finished runs."""
    minutes = [seconds.sum() / 60 for seconds in (stage_seconds(ours), one_by_one(reports))]
    scores = [
        evaluate(run).metrics.set_index(["model", "metric"]).loc[("final", "macro F1")] for run in (ours, reports)
    ]
    f1 = [score["value"] for score in scores]
    intervals = " and ".join(f"[{score['low']:.3f}, {score['high']:.3f}]" for score in scores)
    what = f"whole pipeline, against the report's procedure, {ours.config.image_size} px"
    return [
        row(what, *minutes, "min", minutes[1] / minutes[0], "times as fast"),
        row("... macro F1 on the test images", *f1, "", f1[0] / f1[1], intervals),
    ]


def stage_seconds(run: Run) -> pd.Series:
    """Seconds of each stage of a finished run, the race by itself."""
    return costs(run).set_index("stage")["seconds"]


def one_by_one(run: Run) -> pd.Series:
    """As `stage_seconds`, but the head search is `search_one_by_one`: the stage itself has all 37 in one bank, and
    tries rules that the report did not."""
    seconds = stage_seconds(run)
    seconds["7_darts"] = sum(search_one_by_one(run).values())
    return seconds


class OneByOne(nn.Module):
    """The candidate heads as the report computed them: features (batch, features) -> logits (heads, batch, classes)."""

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.heads = HEADS
        self.networks = nn.ModuleList(head.build(features, classes) for head in HEADS)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.stack([network(features) for network in self.networks])


def search_one_by_one(run: Run) -> dict[str, float]:
    """Seconds of DARTS, and of training each of the 37 heads alone, without a bank, with the settings of `run`: what
    its stage 6 would have taken. Kept with the run."""
    path = run.folder / "one_by_one.json"
    if path.exists():
        return read_json(path)
    config, features = run.config, extract_features(run)
    train, validation = feature_loaders(run, features)
    sizes, options = (features.train.shape[1], len(features.classes)), {"seed": config.seed, "device": run.device}
    supernet = seeded(config.seed, lambda: MixedOperation(OneByOne(*sizes))).to(run.device)
    shuffled = loader(validation.dataset, config.batch_size, torch.Generator())
    rates = {"weight_lr": config.weight_lr, "alpha_lr": config.alpha_lr}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "supernet.pt"
        history = search(supernet, train, shuffled, config.darts_epochs, checkpoint=checkpoint, **rates, **options)
    seconds = {"DARTS": history.attrs["seconds"], "alone": 0.0}
    for head in tqdm(HEADS, desc="heads one by one", leave=False):
        network = seeded(config.seed, lambda head=head: head.build(*sizes)).to(run.device)
        optimizer = make_optimizer(network, "adam", config.alone_lr, weight_decay=0.0)
        curves = fit(network, optimizer, train, validation, config.alone_epochs, description=head.name, **options)
        seconds["alone"] += curves.attrs["seconds"]
    write_json(path, seconds)
    return seconds
