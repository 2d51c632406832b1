"""Stage 2: the probe. The network as it comes, and a linear layer on its features: the first model, the first bar."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import nn

from fomo.artifacts import Run
from fomo.networks.backbones import Backbone, check_sides, load_backbone
from fomo.networks.classifier import Classifier
from fomo.networks.heads import LINEAR
from fomo.networks.inference import store_features
from fomo.stages.common import open_stage, seeded, step
from fomo.stages.preprocessing import Preprocessed, image_loader, preprocess
from fomo.storage import load_state, save_state
from fomo.training.logistic import choose_strength, fit_linear, temper


@dataclass(frozen=True)
class Probe:
    """The `backbone` as it comes, its `features` of all images (a row each, as their pixels have), the linear `head`
    that a logistic regression makes of those of train, calibrated on validation, and its `strengths`: a row for each C,
    that of least loss on validation first (C, temperature, macro_f1, accuracy, log_loss)."""

    backbone: Backbone
    head: nn.Sequential
    features: np.ndarray
    strengths: pd.DataFrame

    @property
    def model(self) -> Classifier:
        return Classifier(self.backbone, self.head).eval()

    def head_for(self, data: Preprocessed, *parts: str) -> nn.Sequential:
        """The head that these parts of a division of the images make, by the C and temperature that were chosen."""
        images, best = data.images[data.images["split"].isin(parts)], self.strengths.iloc[0]
        features, labels = self.features[images["row"]], images["label"].to_numpy()
        layer = fit_linear(features, labels, len(data.dataset.classes), best["C"])
        return nn.Sequential(temper(layer, best["temperature"]))


@step("2_probe")
def probe(run: Run) -> Probe:
    """The probe: no weight of the network is trained. It costs one pass over the images, and finetuning has to be
    better."""
    stage, data = open_stage(run, "2_probe"), preprocess(run)
    backbone = seeded(run.config.seed, lambda: as_it_comes(run)).to(run.device).eval()
    if not stage.done:
        check_sides(backbone, {run.config.image_size})
        if not stage.path("features.npy").exists():
            every = data.pixels, range(len(data.pixels)), np.zeros(len(data.pixels), dtype=int)
            batches = image_loader(run, every, backbone)
            store_features(backbone, batches, stage.path("features.npy"), run.device, "probe")
        parts, features = [data.part(name)[1:] for name in ("train", "validation")], stage.array("features")
        train, validation = ((features[rows], labels) for rows, labels in parts)
        classes, seed = len(data.dataset.classes), run.config.seed
        table = choose_strength(train, validation, classes, seed=seed)
        head = fit_linear(*train, classes, table["C"].iloc[0], seed=seed)
        head = temper(head, table["temperature"].iloc[0])
        stage.save_table("strengths", table)
        save_state(stage.path("head.pt"), nn.Sequential(head).state_dict())
        stage.finish()
    head = LINEAR.build(backbone.num_features, len(data.dataset.classes))
    head.load_state_dict(load_state(stage.path("head.pt"), "cpu"))
    return Probe(backbone, head.to(run.device), stage.array("features"), stage.table("strengths"))


def as_it_comes(run: Run) -> Backbone:
    """The run's backbone with its given weights."""
    return load_backbone(run.config.backbone, run.config.weights, run.config.image_size)
