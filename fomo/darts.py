"""DARTS over the candidate heads: mixed operation, bilevel search, discretisation, and what the choice was worth.

Liu, Simonyan, Yang, DARTS: Differentiable Architecture Search, arXiv:1806.09055.
"""

from itertools import chain, combinations, repeat
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau, spearmanr
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from fomo.artifacts import load_state, save_state
from fomo.heads import HEADS, HeadBank
from fomo.training import evaluate


class MixedOperation(nn.Module):
    """The supernet: features (batch, features) -> softmax(alpha)-weighted sum of all candidates' logits (eq. 2)."""

    def __init__(self, bank: HeadBank):
        super().__init__()
        self.bank = bank
        self.alpha = nn.Parameter(torch.zeros(len(HEADS)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.einsum("h,hbc->bc", self.alpha.softmax(0), self.bank(features))


def search(
    supernet: MixedOperation,
    train: DataLoader,
    validation: DataLoader,
    epochs: int,
    *,
    weight_lr: float,
    alpha_lr: float,
    seed: int,
    device: torch.device,
    checkpoint: Path,
) -> pd.DataFrame:
    """Searches in place; returns alphas and supernet after each epoch (0: at the start).

    Bilevel and first-order: in turn, a step of alpha on a validation batch, and a step of the weights on a train batch,
    both by Adam. Columns: epoch, validation_loss and validation_accuracy of the supernet, alpha_0 ... alpha_36. Goes on
    after the last whole epoch in `checkpoint`, to the same alphas.
    """
    weight_optimizer = torch.optim.Adam(supernet.bank.parameters(), weight_lr, fused=True)
    alpha_optimizer = torch.optim.Adam([supernet.alpha], alpha_lr)
    parts = {"supernet": supernet, "weights": weight_optimizer, "alphas": alpha_optimizer}
    history = _load(checkpoint, parts, device) or [_record(0, supernet, validation, device)]
    bar = tqdm(total=epochs, initial=len(history) - 1, desc="DARTS", unit="epoch", leave=False)
    for epoch in range(len(history), epochs + 1):
        for number, batches in enumerate((train, validation)):
            batches.generator.manual_seed(1000 * seed + 2 * epoch + number)
        supernet.train()
        for (x_train, y_train), (x_val, y_val) in zip(train, chain.from_iterable(repeat(validation)), strict=False):
            x_train, y_train, x_val, y_val = (part.to(device) for part in (x_train, y_train, x_val, y_val))
            alpha_optimizer.zero_grad()
            loss = F.cross_entropy(supernet(x_val), y_val)  # first-order DARTS, eq. 5 with xi = 0
            loss.backward(inputs=[supernet.alpha])
            alpha_optimizer.step()

            weight_optimizer.zero_grad()
            loss = F.cross_entropy(supernet(x_train), y_train)
            loss.backward(inputs=list(supernet.bank.parameters()))
            weight_optimizer.step()
        history.append(_record(epoch, supernet, validation, device))
        save_state(checkpoint, {name: part.state_dict() for name, part in parts.items()} | {"history": history})
        bar.update()
    bar.close()
    return pd.DataFrame(history)


def _record(epoch: int, supernet: MixedOperation, validation: DataLoader, device: torch.device) -> dict:
    loss, accuracy = evaluate(supernet, validation, device)
    alphas = {f"alpha_{index}": value for index, value in enumerate(supernet.alpha.tolist())}
    return {"epoch": epoch, "validation_loss": float(loss), "validation_accuracy": float(accuracy)} | alphas


def _load(checkpoint: Path, parts: dict, device: torch.device) -> list[dict]:
    """The history in `checkpoint`, its states put into `parts`; an empty list if there is none."""
    if not checkpoint.exists():
        return []
    stored = load_state(checkpoint, device)
    for name, part in parts.items():
        part.load_state_dict(stored[name])
    return stored["history"]


def best_epochs(curves: pd.DataFrame) -> pd.DataFrame:
    """(operation, accuracy on validation) of each operation at its own epoch of lowest validation loss."""
    best = curves.loc[curves.groupby("model")["validation_loss"].idxmin()]
    return best[["model", "validation_accuracy"]].set_axis(["operation", "accuracy"], axis=1)


def rank(history: pd.DataFrame, alone: pd.DataFrame) -> pd.DataFrame:
    """One row an operation: index, name, activation, alpha, and its accuracy trained alone: mean, std, and by seed.

    `alone` has the columns seed, operation, accuracy.
    """
    by_seed = alone.pivot(index="operation", columns="seed", values="accuracy").add_prefix("seed_")
    names = {"name": [head.name for head in HEADS], "activation": [head.activation or head.name for head in HEADS]}
    table = pd.DataFrame({"operation": range(len(HEADS))} | names)
    table["alpha"] = history.filter(like="alpha_").iloc[-1].to_numpy()
    table["accuracy"] = by_seed.mean(axis=1).to_numpy()
    table["std"] = by_seed.std(axis=1).to_numpy()
    return table.join(by_seed.reset_index(drop=True))


def judge(ranking: pd.DataFrame, supernet_accuracy: float) -> pd.Series:
    """What the search is worth: how alpha ranks the operations, and what its choice lost.

    Rank correlations of alpha with the accuracy alone, over all operations and over the ten best; their ceiling, the
    mean rank correlation of two seeds' accuracies; regret = accuracy of the best operation minus that of the choice,
    beside the regret of a random choice; discretisation gap = accuracy of the supernet minus that of the choice.
    """
    best10 = ranking.nlargest(10, "accuracy")
    seeds = ranking.filter(like="seed_")
    ceiling = [spearmanr(seeds[a], seeds[b]).statistic for a, b in combinations(seeds, 2)]
    chosen = ranking.loc[ranking["alpha"].idxmax(), "accuracy"]
    return pd.Series(
        {
            "Spearman, all": spearmanr(ranking["alpha"], ranking["accuracy"]).statistic,
            "Spearman, 10 best": spearmanr(best10["alpha"], best10["accuracy"]).statistic,
            "Kendall, all": kendalltau(ranking["alpha"], ranking["accuracy"]).statistic,
            "Spearman, seed with seed": np.mean(ceiling) if ceiling else np.nan,
            "regret of the choice": ranking["accuracy"].max() - chosen,
            "regret of a random choice": ranking["accuracy"].max() - ranking["accuracy"].mean(),
            "discretisation gap": supernet_accuracy - chosen,
        }
    )
