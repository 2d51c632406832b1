"""What this machine does with a network: images a second, the bytes that a training keeps."""

import time
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import torch
from timm.models import get_pretrained_cfg

from fomo.artifacts import Run
from fomo.config import UserError, sees_one_size
from fomo.data.batches import ImageBatches, loader
from fomo.networks.backbones import load_backbone
from fomo.networks.bank import HeadBank
from fomo.networks.classifier import Classifier
from fomo.networks.heads import HEADS, LINEAR
from fomo.training.loop import cross_entropy, make_optimizer

TIMED_SIDES = (64, 160)  # pixels; between and beyond them, time grows with the number of pixels
TIMED_IMAGES = {"cpu": 16, "cuda": 32}  # a step
TIMED_STEPS = 3
WARM_UP = {"cpu": 1, "cuda": 5}  # steps before these, which are slow
TIMING = 0.02  # of the minutes: once the timing has taken so much, no further network is timed


def time_networks(run: Run, names: Iterable[str], classes: int) -> pd.DataFrame:
    """`Facts.speeds` of networks: of the first, and of as many more as there is time for."""
    begun, rows = time.perf_counter(), []
    for name in names:
        if not rows or time.perf_counter() - begun < TIMING * 60 * run.config.minutes:
            rows += time_network(run, name, classes)
    return pd.DataFrame(rows)


def time_network(run: Run, name: str, classes: int) -> list[dict]:
    """The rows of a backbone in `Facts.speeds`: at `TIMED_SIDES`, or, where it sees images of one size only, or none so
    small, at its own side. Raises `UserError` where it sees neither."""
    own = get_pretrained_cfg(name).input_size[-1]
    sides = [own] if sees_one_size(name) else TIMED_SIDES
    sides = [run.config.image_size] if "image_size" in run.asked else sides
    try:
        return _rows(run, name, classes, sides)
    except (RuntimeError, ValueError, AssertionError) as error:
        if own in sides:
            raise UserError(f"backbone '{name}' cannot be timed at {own} pixels ({error}); choose another") from error
        return _rows(run, name, classes, [own])


def _rows(run: Run, name: str, classes: int, sides: Iterable[int]) -> list[dict]:
    rows, works, count = [], {}, TIMED_IMAGES.get(run.device.type, 16)
    for side in sides:
        backbone = load_backbone(name, "random", side)
        classifier = Classifier(backbone, LINEAR.build(backbone.num_features, classes)).to(run.device)
        kept, works["train", side], works["forward", side] = _prepare(run, classifier, side, count)
        rows.append({"backbone": name, "side": side, "kept": kept, "by_batch": backbone.normalises_by_batch})
    works["bank"] = _prepare_bank(run, backbone.num_features, classes)
    seconds = _fastest(run, works)
    for row in rows:
        row |= {what: count / seconds[what, row["side"]] for what in ("train", "forward")} | {"bank": seconds["bank"]}
    return rows


def _prepare_bank(run: Run, features: int, classes: int) -> Callable[[], None]:
    """A training step of the bank of all heads."""
    bank = HeadBank(HEADS, features, classes).to(run.device)
    optimizer = make_optimizer(bank, "adam", 1e-3, 0.0)
    inputs = torch.rand(32, features, device=run.device)
    labels = torch.zeros(32, dtype=torch.long, device=run.device)

    def train() -> None:
        optimizer.zero_grad()
        cross_entropy(bank(inputs), labels).sum().backward()
        optimizer.step()

    return train


def _prepare(run: Run, classifier: Classifier, side: int, count: int) -> tuple[float, Callable, Callable]:
    """The bytes that a training step of a network keeps of each image for its way back; such a step with so many images
    (augmentation included), and their pass forward."""
    pixels = np.random.default_rng(0).integers(0, 255, (count, 3, side, side), dtype=np.uint8)
    labels, generator = np.zeros(count, dtype=int), torch.Generator().manual_seed(0)
    options = {"rotation": 10.0, "zoom": 0.3, "generator": generator, "device": run.device}
    part = (pixels, range(count), labels, classifier.backbone.mean, classifier.backbone.std)
    batches, plain = loader(ImageBatches(*part, **options), count, generator), loader(ImageBatches(*part), 64)
    optimizer = make_optimizer(classifier, "adamw", 1e-3, 0.01)

    sizes = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    def train() -> None:
        classifier.train()
        for inputs, truth in batches:
            loss = cross_entropy(classifier(inputs.to(run.device)), truth.to(run.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def forward() -> None:
        classifier.eval()
        with torch.inference_mode():
            for inputs, _ in plain:
                classifier(inputs.to(run.device))

    inputs, _ = next(iter(plain))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        classifier.train()(inputs.to(run.device))
    return sum(sizes) / count, train, forward


def _fastest(run: Run, works: dict) -> dict:
    """The seconds that each of `works` takes once it is warm, at best. They take turns: others may disturb some."""
    seconds, warm_up = {key: [] for key in works}, WARM_UP.get(run.device.type, 5)
    for _ in range(warm_up + TIMED_STEPS):
        for key, work in works.items():
            begun = time.perf_counter()
            work()
            if run.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[key].append(time.perf_counter() - begun)
    return {key: min(values[warm_up:]) for key, values in seconds.items()}
