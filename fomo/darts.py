"""DARTS over candidate heads: mixed operation, bilevel search, discretisation.

Liu, Simonyan, Yang, DARTS: Differentiable Architecture Search, arXiv:1806.09055.
"""

import time
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader
from tqdm import tqdm

from fomo.artifacts import load_state, save_state
from fomo.bank import HeadBank
from fomo.training import evaluate, predict


class MixedOperation(nn.Module):
    """The supernet: features (batch, features) -> softmax(alpha / temperature)-weighted sum of all candidates' logits
    (eq. 2).

    A temperature below 1 lets small alphas make a larger difference. With `normalize`, each candidate's logits are
    brought to one scale in every batch, by a batch normalisation without affine parameters, as DARTS does to the
    operations of its cells (appendix A.1.1), so that none is chosen for its scale; one scale of all is learned.
    """

    def __init__(self, bank: HeadBank, *, temperature: float = 1.0, normalize: bool = False):
        super().__init__()
        self.bank = bank
        self.temperature = temperature
        self.alpha = nn.Parameter(torch.zeros(len(bank.heads)))
        self.scale = nn.Parameter(torch.ones(())) if normalize else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.einsum("h,hbc->bc", self.shares(), self.candidates(features))

    def candidates(self, features: torch.Tensor) -> torch.Tensor:
        """The logits of all candidates, (heads, batch, classes)."""
        logits = self.bank(features)
        if self.scale is None:
            return logits
        mean, std = logits.mean(dim=(1, 2), keepdim=True), logits.std(dim=(1, 2), keepdim=True)
        return self.scale * (logits - mean) / (std + 1e-5)

    def shares(self) -> torch.Tensor:
        """What each candidate has in the mixture, (heads)."""
        return (self.alpha / self.temperature).softmax(0)

    @property
    def alphas(self) -> dict[str, nn.Parameter]:
        """The architecture parameters by name; all other parameters are weights."""
        return {"alpha": self.alpha}


def search(
    supernet: nn.Module,
    train: DataLoader,
    validation: DataLoader,
    epochs: int,
    *,
    weight_lr: float,
    alpha_lr: float,
    unrolled: bool = False,
    seed: int,
    device: torch.device,
    checkpoint: Path,
) -> pd.DataFrame:
    """Searches in place; returns alphas and supernet after each epoch (0: at the start).

    Bilevel: in turn, a step of the alphas on a validation batch, and a step of the weights on a train batch, both by
    Adam. First-order, or `unrolled`. Columns: epoch, validation_loss and validation_accuracy of the supernet, alpha_0,
    alpha_1 ...; its `attrs` have the seconds that it took. Goes on after the last whole epoch in
    `checkpoint`, to the same alphas.
    """
    alphas = list(supernet.alphas.values())
    weights = {name: p for name, p in supernet.named_parameters() if name not in supernet.alphas}
    weight_optimizer = torch.optim.Adam(weights.values(), weight_lr, fused=True)
    alpha_optimizer = torch.optim.Adam(alphas, alpha_lr)
    parts = {"supernet": supernet, "weights": weight_optimizer, "alphas": alpha_optimizer}
    start = time.perf_counter()
    history, seconds = _load(checkpoint, parts, device)
    start -= seconds
    history = history or [_record(0, supernet, validation, device)]
    bar = tqdm(total=epochs, initial=len(history) - 1, desc="DARTS", unit="epoch", leave=False)
    for epoch in range(len(history), epochs + 1):
        with torch.random.fork_rng():
            torch.manual_seed(1000 * seed + epoch)  # dropout
            for number, batches in enumerate((train, validation)):
                batches.generator.manual_seed(1000 * seed + 2 * epoch + number)
            supernet.train()
            for (x_train, y_train), (x_val, y_val) in zip(train, chain.from_iterable(repeat(validation)), strict=False):
                x_train, y_train, x_val, y_val = (part.to(device) for part in (x_train, y_train, x_val, y_val))
                alpha_optimizer.zero_grad()
                if unrolled:
                    loss = unrolled_loss(supernet, weights, weight_lr, x_train, y_train, x_val, y_val)
                else:
                    loss = F.cross_entropy(supernet(x_val), y_val)  # first-order DARTS, eq. 5 with xi = 0
                loss.backward(inputs=alphas)
                alpha_optimizer.step()

                weight_optimizer.zero_grad()
                loss = F.cross_entropy(supernet(x_train), y_train)
                loss.backward(inputs=list(weights.values()))
                weight_optimizer.step()
        history.append(_record(epoch, supernet, validation, device))
        state = {name: part.state_dict() for name, part in parts.items()}
        save_state(checkpoint, state | {"history": history, "seconds": time.perf_counter() - start})
        bar.update()
    bar.close()
    curves = pd.DataFrame(history)
    curves.attrs["seconds"] = time.perf_counter() - start
    return curves


def unrolled_loss(
    supernet: nn.Module, weights: dict[str, nn.Parameter], xi: float, x_train, y_train, x_val, y_val
) -> torch.Tensor:
    """The validation loss after one step of gradient descent of the weights, as a function of the alphas (eq. 6).

    Its gradient is the second-order one of eq. 7, exactly: autograd goes through the step, where the paper takes a
    finite difference (eq. 8).
    """
    loss = F.cross_entropy(supernet(x_train), y_train)
    gradients = torch.autograd.grad(loss, weights.values(), create_graph=True, allow_unused=True)
    stepped = {
        name: weight if gradient is None else weight - xi * gradient
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
    return F.cross_entropy(functional_call(supernet, stepped, (x_val,)), y_val)


def _record(epoch: int, supernet: nn.Module, validation: DataLoader, device: torch.device) -> dict:
    loss, accuracy = evaluate(supernet, validation, device)
    values = torch.cat([alpha.detach().flatten() for alpha in supernet.alphas.values()]).tolist()
    alphas = {f"alpha_{index}": value for index, value in enumerate(values)}
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
    logits, labels = predict(_Candidates(supernet), validation, device)
    alpha = (supernet.alpha / supernet.temperature).detach().cpu()
    left = alpha.repeat(len(alpha), 1).fill_diagonal_(-torch.inf)  # a row for each operation: the mixture without it
    losses = [
        F.cross_entropy(torch.einsum("h,hbc->bc", shares, logits), labels)
        for shares in torch.cat([alpha[None], left]).softmax(1)
    ]
    return torch.stack(losses[1:]).sub(losses[0]).double().numpy()


class _Candidates(nn.Module):
    """The candidates of a supernet, without the mixing."""

    def __init__(self, supernet: MixedOperation):
        super().__init__()
        self.supernet = supernet

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.supernet.candidates(features)
