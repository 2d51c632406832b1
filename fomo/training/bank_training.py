"""The heads of a bank trained by the training loop, in parts side by side: one for each core."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from fomo.data.batches import loader
from fomo.networks.bank import HeadBank
from fomo.training.bank_optimizer import BankOptimizer
from fomo.training.loop import DivergedError, fit, make_optimizer


def fit_bank(
    bank: HeadBank,
    configurations: Sequence[dict],
    train: DataLoader,
    validation: DataLoader,
    epochs: int,
    *,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    description: str = "training",
) -> pd.DataFrame:
    """Trains the heads of `bank` in place as `loop.fit` does, each with its configuration (those of
    `BankOptimizer`), and returns their learning curves, `model` being a head's place.

    On the CPU the heads, which do not touch each other, are dealt out to as many threads as torch has, and each thread
    trains its part as a bank of its own. The products are too small to be shared by threads that meet after each of
    them: that takes as long as one thread alone. Raises `DivergedError` when no head has a finite loss any more.
    """
    threads = torch.get_num_threads()
    dealt = deal(bank, threads if device.type == "cpu" else 1)
    parts = [bank.select(places) for places in dealt]

    def fit_part(number: int) -> pd.DataFrame:
        if device.type == "cpu":
            torch.set_num_threads(1)  # of this thread's own products
        chosen = [configurations[place] for place in dealt[number]]
        equal = all(one == chosen[0] for one in chosen)
        optimizer = make_optimizer(parts[number], **chosen[0]) if equal else BankOptimizer(parts[number], chosen)
        size = train.sampler.batch_size
        loaders = loader(train.dataset, size, torch.Generator()), loader(validation.dataset, size)
        options = {"seed": seed, "device": device, "description": description}
        if checkpoint:
            options["checkpoint"] = checkpoint.with_stem(f"{checkpoint.stem}_{number + 1}_of_{len(dealt)}")
        return fit(parts[number], optimizer, *loaders, epochs, **options)

    try:
        with torch.random.fork_rng(), ThreadPoolExecutor(len(dealt)) as pool:
            fitted = list(pool.map(fit_part, range(len(dealt))))
    finally:
        torch.set_num_threads(threads)
    for places, part in zip(dealt, parts, strict=True):
        bank.take(places, part)
    curves = [one.assign(model=np.array(places)[one["model"]]) for places, one in zip(dealt, fitted, strict=True)]
    curves = pd.concat(curves).sort_values(["epoch", "model"], ignore_index=True)
    curves.attrs["seconds"] = max(one.attrs["seconds"] for one in fitted)
    last = curves[curves["epoch"] == epochs]
    if not np.isfinite(last["train_loss"] + last["validation_loss"]).any():
        raise DivergedError("no head has a finite loss; a smaller learning rate may help")
    return curves


def deal(bank: HeadBank, parts: int) -> list[list[int]]:
    """The places of the heads of `bank` in so many parts of about equal work, or fewer where there are fewer heads."""
    costs = [head.multiply_adds(bank.features, bank.classes) for head in bank.heads]
    dealt, totals = [[] for _ in range(min(parts, len(costs)))], [0] * min(parts, len(costs))
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        least = totals.index(min(totals))
        dealt[least].append(place)
        totals[least] += costs[place]
    return [sorted(places) for places in dealt]
