"""Successive halving of the heads in a bank: train all a little, keep the better half, train those on."""

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
    """A score for each head, the winner's the highest: how many halvings it survived, plus its accuracy on validation
    when it was last trained (Jamieson and Talwalkar, AISTATS 2016, arXiv:1502.07943, figure 3). The last to survive has
    been trained for `epochs`."""
    alive, scores = np.arange(len(bank.heads)), np.zeros(len(bank.heads))
    for number, length in enumerate(rungs(epochs)):
        adam = [{"optimizer": "adam", "lr": lr, "weight_decay": 0.0}] * len(alive)
        options = {"seed": 100 * seed + number, "device": device, "description": f"halving, {len(alive)} heads"}
        accuracy = best_epochs(fit_bank(bank, adam, train, validation, length, **options))
        scores[alive] = number + accuracy
        kept = np.sort(np.argsort(-accuracy, kind="stable")[: -(-len(alive) // 2)])
        bank, alive = bank.select(kept), alive[kept]
    return scores
