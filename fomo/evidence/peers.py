"""What a careful person would write instead of fomo, in a few lines: the bar at equal minutes. Of fomo they use
the list of the images and the network with its weights."""

import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torchvision.transforms import v2

from fomo.data.dataset import Dataset
from fomo.networks.backbones import load_backbone

BACKBONE = "tf_efficientnet_lite0"
BATCH = 64
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # scikit-learn's C


def probe(dataset: Dataset, side: int) -> np.ndarray:
    """The class of each test image by a logistic regression on the features of a frozen network, C chosen on a fifth
    of the train images."""
    train, test = (read(dataset, table["file"], side) for table in (dataset.train, dataset.test()))
    network = build(side).eval()
    with torch.inference_mode():
        features, tested = (
            torch.cat([network(normal(images)) for images in part.split(BATCH)]).numpy() for part in (train, test)
        )
    labels = dataset.train["label"].to_numpy()
    held = np.random.default_rng(0).random(len(labels)) < 0.2

    def fit(strength: float, rows: np.ndarray):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.fit(features[rows], labels[rows])

    best = max(STRENGTHS, key=lambda strength: fit(strength, ~held).score(features[held], labels[held]))
    return fit(best, np.full(len(labels), True)).predict(tested)


def plain(dataset: Dataset, side: int, minutes: float) -> np.ndarray:
    """The class of each test image by a network of which all layers are finetuned for as many epochs as fit: AdamW, one
    cycle of the learning rate, cut-outs, mirrored images, and the mean of the image and its mirror image in the end."""
    begun = time.perf_counter()
    torch.manual_seed(0)
    train, test = (read(dataset, table["file"], side) for table in (dataset.train, dataset.test()))
    labels = torch.tensor(dataset.train["label"].to_numpy())
    backbone = build(side)
    network = nn.Sequential(backbone, nn.Dropout(0.2), nn.Linear(backbone.num_features, len(dataset.classes))).train()
    augment = v2.Compose([v2.RandomResizedCrop(round(0.85 * side), scale=(0.4, 1)), v2.RandomHorizontalFlip()])
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-2)
    steps = max(1, len(train) // BATCH)

    def epoch() -> list[torch.Tensor]:
        return list(torch.randperm(len(train)).split(BATCH)[:steps])

    def step(rows: torch.Tensor) -> None:
        logits = network(normal(torch.stack([augment(train[row]) for row in rows])))
        loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for number in range(12):
        if number == 4:  # the first steps are slower
            timed = time.perf_counter()
        step(torch.randperm(len(train))[:BATCH])
    each = (time.perf_counter() - timed) / 8
    left = 60 * minutes - (time.perf_counter() - begun) - len(test) * each / 160
    epochs = max(1, int(left / (each * steps)))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=epochs * steps + 1)
    for _ in range(epochs):
        for rows in epoch():
            step(rows)
            schedule.step()
    network.eval()
    with torch.inference_mode():
        seen = [network(normal(images)) + network(normal(images.flip(-1))) for images in test.split(BATCH)]
    return torch.cat(seen).argmax(1).numpy()


def read(dataset: Dataset, files, side: int) -> torch.Tensor:
    """The middle square of each image: uint8 (images, 3, side, side)."""

    def pixels(file: str) -> np.ndarray:
        with dataset.source.open(file) as image:
            square = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (side, side), Image.BILINEAR)
            return np.asarray(square).transpose(2, 0, 1)

    with ThreadPoolExecutor(2) as pool:
        return torch.from_numpy(np.stack(list(pool.map(pixels, files))))


def build(side: int) -> nn.Module:
    """The network with its ImageNet weights, without its last layer."""
    return load_backbone(BACKBONE, "imagenet", side).to(memory_format=torch.channels_last)


def normal(images: torch.Tensor) -> torch.Tensor:
    """uint8 pixels as the network wants them."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
