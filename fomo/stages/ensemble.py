"""Stage 9: further networks for the final model, each trained like the first, on another division of the images."""

from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from fomo.artifacts import Run, Stage
from fomo.networks.classifier import Classifier
from fomo.networks.inference import store_features
from fomo.stages.common import open_stage
from fomo.stages.finetuning import finetune_best, fit_images, untrained
from fomo.stages.head_search import Features, extract_features, fit_head, search_head, train_head
from fomo.stages.preprocessing import Preprocessed, image_loader, preprocess
from fomo.storage import load_state, save_state

SEEDS = 1000  # from one member's seed to the next one's, so that they are not those of other runs


@dataclass(frozen=True)
class Member:
    """A finetuned `network` with its own linear layer, the searched `head` trained on its features, its division of
    the images (`data`), and its `features` of the validation images there, which it was not trained on."""

    network: Classifier
    head: nn.Module
    data: Preprocessed
    features: np.ndarray


def train_members(run: Run) -> list[Member]:
    """The networks of the final model: the one that all choices were made on, and `members` - 1 more, finetuned and
    given a head as was chosen there, each with a seed and a division into train and validation of its own.

    Together they are trained on nearly all images, their mean errs less often than one of them (L. Breiman, Bagging
    predictors, 1996), and each has images left that are new to it, to judge and calibrate it by. None depends on how
    many there are: a run that is finished can be given further ones.
    """
    if (run.folder / "10_final").exists():
        open_stage(run, "10_final")  # if it is of another number of networks, that is said before they are trained
    stage, numbers = open_stage(run, "9_ensemble"), range(2, run.config.members + 1)
    if stage.done and not all(stage.path(f"weights_{number}.pt").exists() for number in numbers):
        stage.reopen()
    first = finetune_best(run).model, train_head(run).model, preprocess(run), extract_features(run).validation
    members = [Member(*first)]
    for number in numbers:
        own, weights = copy(run), stage.path(f"weights_{number}.pt")
        own.config = replace(run.config, seed=run.config.seed + SEEDS * (number - 1))
        data = preprocess(run).divided(own.config.validation_share, own.config.seed)
        if not weights.exists():
            _train(run, own, data, stage, number)
        network, state = untrained(own, data), load_state(weights, run.device)
        head = search_head(run).head.build(network.backbone.num_features, len(data.dataset.classes)).to(run.device)
        network.load_state_dict(state["network"])
        head.load_state_dict(state["head"])
        members.append(Member(network.eval(), head.eval(), data, stage.array(f"validation_{number}")))
    if not stage.done:
        stage.finish()
        for leftover in [*stage.folder.glob("checkpoint_*.pt"), *stage.folder.glob("train_*.npy")]:
            leftover.unlink()
    return members


def _train(run: Run, own: Run, data: Preprocessed, stage: Stage, number: int) -> None:
    """Trains a member by the settings of `own`, which differ from those of `run` in the seed, and stores it."""
    name, network = f"network {number} of {run.config.members}", untrained(own, data)
    options = {"checkpoint": stage.path(f"checkpoint_{number}.pt"), "description": name}
    history = fit_images(own, data, network, finetune_best(run).configuration, own.config.epochs, **options)
    parts = {}
    for part in ("train", "validation"):
        batches, stored = image_loader(own, data.part(part), network.backbone), f"{part}_{number}"
        store_features(network.backbone, batches, stage.path(f"{stored}.npy"), run.device, f"{name}, features")
        parts |= {part: stage.array(stored), f"{part}_labels": data.part(part)[2]}
    features = Features(**parts, classes=data.dataset.classes)
    head, _ = fit_head(own, features, search_head(run).head, train_head(run).configuration, description=f"{name}, head")
    stage.save_table(f"history_{number}", history)
    save_state(stage.path(f"weights_{number}.pt"), {"network": network.state_dict(), "head": head.state_dict()})
