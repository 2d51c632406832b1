"""Successive halving of the heads in a bank: train all a little, keep the better half, train those on."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from fomo.networks.bank import HeadBank
from fomo.training.bank_training import fit_bank


def rungs(epochs: int) -> list[int]:
    """The epochs between one halving and the next, `epochs` in all: 8 -> [1, 1, 2, 4]."""
    found = [1]
    while sum(found) < epochs:
        found.append(min(sum(found), epochs - sum(found)))
    return found


def best_epochs(curves: pd.DataFrame) -> np.ndarray:
    """The validation accuracy of each model at its own epoch of lowest validation loss; 0 where it diverged."""
    losses = curves.pivot(index="model", columns="epoch", values="validation_loss").fillna(np.inf).to_numpy()
    accuracies = curves.pivot(index="model", columns="epoch", values="validation_accuracy").to_numpy()
    best = accuracies[np.arange(len(losses)), losses.argmin(axis=1)]
    return np.where(np.isfinite(losses.min(axis=1)), best, 0.0)


def halve(count: int, train: Callable[[np.ndarray, int, int], np.ndarray], epochs: int, seed: int) -> np.ndarray:
    """A score for each of `count` heads, the winner's the highest: how many halvings it survived, plus its accuracy on
    validation when it was last trained (Jamieson and Talwalkar, AISTATS 2016, arXiv:1502.07943, figure 3).

    `train` (places, epochs, seed) trains the heads at these places on and returns their accuracies. The last to survive
    has been trained for `epochs`.
    """
    alive, scores = np.arange(count), np.zeros(count)
    for number, length in enumerate(rungs(epochs)):
        accuracy = train(alive, length, 100 * seed + number)
        scores[alive] = number + accuracy
        alive = np.sort(alive[np.argsort(-accuracy, kind="stable")[: -(-len(alive) // 2)]])
    return scores


def successive_halving(
    bank: HeadBank,
    train: DataLoader,
    validation: DataLoader,
    epochs: int,
    *,
    lr: float,
    seed: int,
    device: torch.device,
) -> np.ndarray:
    """The score of each head of `bank` (`halve`), which are trained in place."""

    def train_on(places: np.ndarray, length: int, seed: int) -> np.ndarray:
        part, adam = bank.select(places), {"optimizer": "adam", "lr": lr, "weight_decay": 0.0}
        options = {"seed": seed, "device": device, "description": f"halving, {len(places)} heads"}
        curves = fit_bank(part, [adam] * len(places), train, validation, length, **options)
        bank.take(places, part)
        return best_epochs(curves)

    return halve(len(bank.heads), train_on, epochs, seed)
