"""A toy data set, and the run on it that the tests share: the whole pipeline in seconds."""

from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from PIL import Image

import fomo
from fomo import artifacts
from fomo.networks.backbones import load_backbone

CLASSES = ["top", "middle", "bottom"]
SETTINGS = {
    "backbone": "test_efficientnet",
    "weights": "random",
    "image_size": 32,
    "crop": 0.875,
    "batch_size": 4,
    "probe_start": False,
    "plain_lr": 0.0,
    "schedule": "constant",
    "label_smoothing": 0.0,
    "averaging": 0.0,
    "rotation": 30.0,
    "keep": "loss",
    "first_epochs": 3,
    "epochs": 3,
    "trials": 3,
    "trial_share": 1.0,
    "initial_trials": 2,
    "finalists": 2,
    "race_epochs": 0,
    "race_share": 1.0,
    "keep_first": False,
    "darts_epochs": 2,
    "head_seeds": 2,
    "alone_epochs": 1,
    "head_trials": 3,
    "head_epochs": 4,
    "head_batch": 6,
    "members": 2,
    "final": "searched",  # the probe, which tells the toy classes apart as well, would be preferred
    "bootstrap": 200,
}
SHORT = {
    "first_epochs": 1,
    "epochs": 1,
    "trials": 1,
    "darts_epochs": 1,
    "head_seeds": 1,
    "head_trials": 1,
    "head_epochs": 1,
}
STAGES = (
    fomo.preprocess,
    fomo.probe,
    fomo.finetune,
    fomo.optimize_finetuning,
    fomo.finetune_best,
    fomo.extract_features,
    fomo.search_head,
    fomo.tune_head,
    fomo.train_head,
    fomo.train_members,
    fomo.compose,
    fomo.evaluate,
    fomo.suspects,
)


def draw(label: int, shape: tuple[int, ...] = (24, 24, 3), seed: int = 0) -> np.ndarray:
    """A noisy image whose bright third tells its class, whether it is flipped or not."""
    pixels = np.random.default_rng(seed).integers(0, 100, shape, dtype=np.uint8)
    third = shape[0] // 3
    pixels[label * third : (label + 1) * third] += 120
    return pixels


def write_dataset(folder: Path, *, train: int = 20, test: int = 8, shape: tuple[int, ...] = (24, 24, 3)) -> Path:
    """Writes a data set in the archive layout, with so many images a class; returns its folder."""
    for split, count in {"train": train, "test": test}.items():
        (folder / f"images_{split}").mkdir(parents=True)
        labels = [number % len(CLASSES) for number in range(count * len(CLASSES))]
        names = [f"{number:03}.png" for number in range(len(labels))]
        for number, (name, label) in enumerate(zip(names, labels, strict=True)):
            pixels = draw(label, shape, seed=number + 1000 * (split == "test"))
            Image.fromarray(pixels).save(folder / f"images_{split}" / name)
        write_csv(folder, split, names, labels)
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def write_class_folders(folder: Path, *, count: int = 10, seed: int = 0, suffix: str = ".png") -> Path:
    """Writes a data set of one sub-folder a class, with so many images each; returns its folder."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(draw(label, seed=seed + 100 * label + number)).save(folder / name / f"{number:03}{suffix}")
    return folder


def write_csv(folder: Path, split: str, names: list, labels: list) -> None:
    pd.DataFrame({"image_file_name": names, "label": labels}).to_csv(folder / f"{split}.csv", index=False)


def relabel(folder: Path) -> None:
    """Gives the first train image of a data set in the archive layout another label."""
    table = pd.read_csv(folder / "train.csv")
    table.loc[0, "label"] = 1
    table.to_csv(folder / "train.csv", index=False)


def tiny_run(dataset: Path, **changes) -> artifacts.Run:
    return fomo.Run(dataset, "quick", **SETTINGS | changes)


def save_weights(path: Path, backbone: str, image_size: int) -> dict[str, torch.Tensor]:
    """Stores new random weights of a network as .safetensors or .pth; returns them."""
    state = load_backbone(backbone, "random", image_size).network.state_dict()
    state = {name: value.contiguous() for name, value in state.items()}
    save = safetensors.torch.save_file if path.suffix == ".safetensors" else torch.save
    save(state, path)
    return state


class Interrupted:
    """`batches`, until `count` of them are drawn: then as if someone had pressed Ctrl-C."""

    def __init__(self, batches, count: int):
        self.batches = batches
        self.left = count

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, rows: list[int]):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.batches[rows]
