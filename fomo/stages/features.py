"""Stage 6: the feature data set, what the finetuned backbone computes of each image."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from fomo.artifacts import Run
from fomo.data.batches import FeatureBatches, loader
from fomo.data.division import sample
from fomo.networks.inference import store_features
from fomo.stages.common import open_stage, step
from fomo.stages.preprocessing import image_loader, preprocess
from fomo.stages.racing import finetune_best


@dataclass(frozen=True)
class Features:
    """The feature data set: float32 (images, features) and labels, of train and of validation."""

    train: np.ndarray
    train_labels: np.ndarray
    validation: np.ndarray
    validation_labels: np.ndarray
    classes: list[str]


@step("6_features")
def extract_features(run: Run) -> Features:
    """The feature data set: what the finetuned backbone computes of each image, not augmented."""
    stage, data = open_stage(run, "6_features"), preprocess(run)
    if not stage.done:
        backbone = finetune_best(run).model.backbone
        for part in ("train", "validation"):
            batches = image_loader(run, data.part(part), backbone)
            store_features(backbone, batches, stage.path(f"{part}.npy"), run.device, f"features, {part}")
        stage.finish()
    labels = [data.part(part)[2] for part in ("train", "validation")]
    return Features(stage.array("train"), labels[0], stage.array("validation"), labels[1], data.dataset.classes)


def sample_features(run: Run) -> Features:
    """The feature data set as the search and the study of the head see it: at most `head_images` of each part."""
    features, config = extract_features(run), run.config
    parts = {}
    for part in ("train", "validation"):
        values, labels = getattr(features, part), getattr(features, f"{part}_labels")
        if 0 < config.head_images < len(values):
            table = pd.DataFrame({"file": range(len(values)), "label": labels})
            rows = np.flatnonzero(sample(table, config.head_images / len(table), config.seed))
            values, labels = values[rows], labels[rows]
        parts |= {part: values, f"{part}_labels": labels}
    return replace(features, **parts)


def feature_loaders(run: Run, features: Features) -> tuple[DataLoader, DataLoader]:
    """Batches of train features, shuffled, and of validation features."""
    train = FeatureBatches(features.train, features.train_labels)
    validation = FeatureBatches(features.validation, features.validation_labels)
    return loader(train, run.config.batch_size, torch.Generator()), loader(validation, run.config.batch_size)
