"""DARTS over candidate heads: mixed operation, bilevel search, discretisation.

Liu, Simonyan, Yang, DARTS: Differentiable Architecture Search, arXiv:1806.09055.
"""

import time
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from fomo.networks.bank import HeadBank
from fomo.networks.inference import predict
from fomo.progress import Bar
from fomo.storage import load_state, save_state
from fomo.training.loop import evaluate


class MixedOperation(nn.Module):
    """The supernet: features (batch, features) -> softmax(alpha)-weighted sum of all candidates' logits (eq. 2)."""

    def __init__(self, bank: HeadBank):
        super().__init__()
        self.bank = bank
        self.alpha = nn.Parameter(torch.zeros(len(bank.heads)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.einsum("h,hbc->bc", self.shares(), self.candidates(features))

    def candidates(self, features: torch.Tensor) -> torch.Tensor:
        """The logits of all candidates, (heads, batch, classes)."""
        return self.bank(features)

    def shares(self) -> torch.Tensor:
        """What each candidate has in the mixture, (heads)."""
        return self.alpha.softmax(0)


def first_order(supernet: nn.Module, x_train, y_train, x_val, y_val) -> torch.Tensor:
    """The validation loss, of which the alphas follow the gradient: first-order DARTS, eq. 5 with xi = 0."""
    return F.cross_entropy(supernet(x_val), y_val)


def search(
    supernet: nn.Module,
    train: DataLoader,
    validation: DataLoader,
    epochs: int,
    *,
    weight_lr: float,
    alpha_lr: float,
    alpha_loss: Callable[..., torch.Tensor] = first_order,
    seed: int,
    device: torch.device,
    checkpoint: Path,
) -> pd.DataFrame:
    """Searches in place; returns alphas and supernet after each epoch (0: at the start).

    Bilevel: in turn, a step of the alphas on a validation batch, by the gradient of `alpha_loss`, and a step of the
    weights on a train batch, both by Adam. Columns: epoch, validation_loss and validation_accuracy of the supernet,
    alpha_0, alpha_1 ...; its `attrs` have the seconds that it took. Goes on after the last whole epoch in
    `checkpoint`, to the same alphas.
    """
    weights = [weight for name, weight in supernet.named_parameters() if name != "alpha"]
    weight_optimizer = torch.optim.Adam(weights, weight_lr, fused=True)
    alpha_optimizer = torch.optim.Adam([supernet.alpha], alpha_lr)
    parts = {"supernet": supernet, "weights": weight_optimizer, "alphas": alpha_optimizer}
    start = time.perf_counter()
    history, seconds = _load(checkpoint, parts, device)
    start -= seconds
    history = history or [_record(0, supernet, validation, device)]
    bar = Bar(total=epochs, initial=len(history) - 1, desc="DARTS", unit="epoch", leave=False)
    for epoch in range(len(history), epochs + 1):
        for number, batches in enumerate((train, validation)):
            batches.generator.manual_seed(1000 * seed + 2 * epoch + number)
        supernet.train()
        for (x_train, y_train), (x_val, y_val) in zip(train, chain.from_iterable(repeat(validation)), strict=False):
            x_train, y_train, x_val, y_val = (part.to(device) for part in (x_train, y_train, x_val, y_val))
            alpha_optimizer.zero_grad()
            alpha_loss(supernet, x_train, y_train, x_val, y_val).backward(inputs=[supernet.alpha])
            alpha_optimizer.step()

            weight_optimizer.zero_grad()
            F.cross_entropy(supernet(x_train), y_train).backward(inputs=weights)
            weight_optimizer.step()
        history.append(_record(epoch, supernet, validation, device))
        state = {name: part.state_dict() for name, part in parts.items()}
        save_state(checkpoint, state | {"history": history, "seconds": time.perf_counter() - start})
        bar.update()
    bar.close()
    curves = pd.DataFrame(history)
    curves.attrs["seconds"] = time.perf_counter() - start
    return curves


def _record(epoch: int, supernet: nn.Module, validation: DataLoader, device: torch.device) -> dict:
    loss, accuracy = evaluate(supernet, validation, device)
    alphas = {f"alpha_{index}": value for index, value in enumerate(supernet.alpha.tolist())}
    return {"epoch": epoch, "validation_loss": float(loss), "validation_accuracy": float(accuracy)} | alphas


def _load(checkpoint: Path, parts: dict, device: torch.device) -> tuple[list[dict], float]:
    """History and seconds in `checkpoint`, its states put into `parts`; nothing and 0 if there is none."""
    if not checkpoint.exists():
        return [], 0.0
    stored = load_state(checkpoint, device)
    for name, part in parts.items():
        part.load_state_dict(stored[name])
    return stored["history"], stored["seconds"]


def perturbation(supernet: MixedOperation, validation: DataLoader, device: torch.device) -> np.ndarray:
    """How much the supernet's validation loss rises when an operation is left out of the mixture, (heads).

    DARTS-PT (Wang et al., ICLR 2021, arXiv:2108.04392, algorithm 1) chooses the operation of the largest such rise
    instead of the largest alpha. There is one edge here, so nothing is left to tune after the choice.
    """
    logits, labels = predict(supernet.bank, validation, device)
    alpha = supernet.alpha.detach().cpu()
    left = alpha.repeat(len(alpha), 1).fill_diagonal_(-torch.inf)  # a row for each operation: the mixture without it
    losses = [
        F.cross_entropy(torch.einsum("h,hbc->bc", shares, logits), labels)
        for shares in torch.cat([alpha[None], left]).softmax(1)
    ]
    return torch.stack(losses[1:]).sub(losses[0]).double().numpy()
