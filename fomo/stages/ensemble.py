"""Stage 10: further networks for the final model, each trained like the first, on another division of the images."""

from copy import copy
from dataclasses import dataclass, replace
from itertools import count

from torch import nn

from fomo.artifacts import Run, Stage
from fomo.networks.classifier import Classifier
from fomo.networks.inference import store_features
from fomo.stages.common import open_stage, step
from fomo.stages.features import Features
from fomo.stages.finetuning import fit_images, new_classifier
from fomo.stages.head_search import fit_head, search_head, train_head
from fomo.stages.planning import another, last_pace
from fomo.stages.preprocessing import Preprocessed, image_loader, preprocess
from fomo.stages.probing import probe
from fomo.stages.racing import finetune_best
from fomo.storage import load_state, save_state

SEEDS = 1000  # from one member's seed to the next one's, so that they are not those of other runs


@dataclass(frozen=True)
class Member:
    """A finetuned `network` with its own linear layer, the searched `head` trained on its features (None: there was no
    search), and its division of the images (`data`), on whose validation images it was not trained."""

    network: Classifier
    head: nn.Module | None
    data: Preprocessed


@step("10_ensemble")
def train_members(run: Run) -> list[Member]:
    """The networks of the final model: the one that all choices were made on, and `members` - 1 more, or as many as the
    minutes allow, finetuned and given a head as was chosen there, each with a seed and a division into train and
    validation of its own.

    Together they are trained on nearly all images, their mean errs less often than one of them (L. Breiman, Bagging
    predictors, 1996), and each has images left that are new to it, to judge and calibrate it by. None depends on how
    many there are: a run that is finished can be given further ones.
    """
    if (run.folder / "11_final").exists():
        open_stage(run, "11_final")  # if it is of another number of networks, that is said before they are trained
    stage, searched = open_stage(run, "10_ensemble"), train_head(run)
    members = [Member(finetune_best(run).model, searched.model if searched else None, preprocess(run))]
    bar = probe(run).strengths["accuracy"].iloc[0]
    pays = bool(finetune_best(run).kept["validation_accuracy"] >= bar)
    for number in count(2):
        if not another(run, number, pays=pays):
            break
        own, weights = copy(run), stage.path(f"weights_{number}.pt")
        own.config = replace(run.config, seed=run.config.seed + SEEDS * (number - 1))
        data = preprocess(run).divided(own.config.validation_share, own.config.seed)
        if not weights.exists():
            if not run.lock.mine:  # the stage was done, so nobody was kept out
                with run.lock.held():
                    return train_members(run)
            if stage.done:
                stage.reopen()
            _train(run, own, data, stage, number)
        network, state, head = new_classifier(own, data), load_state(weights, run.device), None
        network.load_state_dict(state["network"])
        if searched:
            head = search_head(run).head.build(network.backbone.num_features, len(data.dataset.classes)).to(run.device)
            head.load_state_dict(state["head"])
        members.append(Member(network.eval(), head.eval() if head else None, data))
    if not stage.done:
        stage.finish()
        for leftover in [*stage.folder.glob("checkpoint_*.pt"), *stage.folder.glob("features_*.npy")]:
            leftover.unlink()
    return members


def _train(run: Run, own: Run, data: Preprocessed, stage: Stage, number: int) -> None:
    """Trains a member by the settings of `own`, which differ from those of `run` in the seed, and stores it."""
    name, network = f"network {number}", new_classifier(own, data)
    if run.config.probe_start:
        network.head.load_state_dict(probe(run).head_for(data, "train").state_dict())
    epochs, steps = last_pace(run, "train_members", name)
    options = {"checkpoint": stage.path(f"checkpoint_{number}.pt"), "description": name, "pace": steps}
    history = fit_images(own, data, network, finetune_best(run).configuration, epochs, **options)
    state = {"network": network.state_dict()}
    if searched := train_head(run):
        parts = {}
        for part in ("train", "validation"):
            batches, path = image_loader(run, data.part(part), network.backbone), f"features_{part}_{number}"
            store_features(network.backbone, batches, stage.path(f"{path}.npy"), run.device, f"{name}, features")
            parts |= {part: stage.array(path), f"{part}_labels": data.part(part)[2]}
        features = Features(**parts, classes=data.dataset.classes)
        head, _ = fit_head(own, features, search_head(run).head, searched.configuration, description=f"{name}, head")
        state |= {"head": head.state_dict()}
    stage.save_table(f"history_{number}", history)
    save_state(stage.path(f"weights_{number}.pt"), state)
