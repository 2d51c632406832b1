"""DARTS searched in other ways, none of which helps here: a temperature, candidates of one scale, the second order."""

import tempfile
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau, spearmanr
from torch import nn
from torch.func import functional_call

from fomo.artifacts import Run
from fomo.config import RESULTS, Config
from fomo.networks.bank import HeadBank
from fomo.stages.common import open_stage
from fomo.stages.head_search import search_alphas, search_head
from fomo.storage import read_table, write_table
from fomo.training.darts import MixedOperation


class Tempered(MixedOperation):
    """A supernet of softmax(alpha / temperature): below 1, small alphas make a larger difference."""

    def __init__(self, bank: HeadBank, temperature: float):
        super().__init__(bank)
        self.temperature = temperature

    def shares(self) -> torch.Tensor:
        return (self.alpha / self.temperature).softmax(0)


class Normalized(MixedOperation):
    """A supernet that brings each candidate's logits to one scale in every batch, by a batch normalisation without
    affine parameters, as DARTS does to the operations of its cells (appendix A.1.1), so that none is chosen for its
    scale; one scale of all is learned."""

    def __init__(self, bank: HeadBank):
        super().__init__(bank)
        self.scale = nn.Parameter(torch.ones(()))

    def candidates(self, features: torch.Tensor) -> torch.Tensor:
        logits = super().candidates(features)
        mean, std = logits.mean(dim=(1, 2), keepdim=True), logits.std(dim=(1, 2), keepdim=True)
        return self.scale * (logits - mean) / (std + 1e-5)


def unrolled(supernet: nn.Module, x_train, y_train, x_val, y_val, *, xi: float) -> torch.Tensor:
    """The validation loss after one step of gradient descent of the weights, as a function of the alphas (eq. 6).

    Its gradient is the second-order one of eq. 7, exactly: autograd goes through the step, where the paper takes a
    finite difference (eq. 8).
    """
    weights = {name: weight for name, weight in supernet.named_parameters() if name != "alpha"}
    loss = F.cross_entropy(supernet(x_train), y_train)
    gradients = torch.autograd.grad(loss, weights.values(), create_graph=True, allow_unused=True)
    stepped = {
        name: weight if gradient is None else weight - xi * gradient
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
    return F.cross_entropy(functional_call(supernet, stepped, (x_val,)), y_val)


VARIANTS = {
    "as published": {},
    "alpha learning rate 3e-3": {"alpha_lr": 3e-3},
    "temperature 0.1": {"operation": partial(Tempered, temperature=0.1)},
    "normalized logits": {"operation": Normalized},
    "second order": {"alpha_loss": partial(unrolled, xi=Config.weight_lr)},
}


def variants(run: Run) -> pd.DataFrame:
    """What DARTS's choice is worth when it is searched in other ways: regret of the largest alpha, Spearman and Kendall
    between alpha and the accuracy trained alone, means and standard deviations over the run's seeds, and seconds.

    Stored as data/results/darts_variants.csv, row by row.
    """
    path = RESULTS / "darts_variants.csv"
    table = read_table(path) if path.exists() else pd.DataFrame(columns=["search"])
    search_head(run)
    accuracy = open_stage(run, "7_darts").table("scores").groupby("operation")["alone"].mean().to_numpy()
    seeds = range(run.config.seed, run.config.seed + run.config.head_seeds)
    for name, options in VARIANTS.items():
        if name in set(table["search"]):
            continue
        rows = []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                supernet, history = search_alphas(run, seed, Path(folder) / "supernet.pt", **options)
            alpha = supernet.alpha.detach().cpu().numpy()
            row = {"regret": accuracy.max() - accuracy[alpha.argmax()], "spread of alpha": alpha.max() - alpha.min()}
            row |= {"spearman": spearmanr(alpha, accuracy).statistic, "kendall": kendalltau(alpha, accuracy).statistic}
            rows.append(row | {"seconds": history.attrs["seconds"]})
        means, stds = pd.DataFrame(rows).mean(), pd.DataFrame(rows)[["regret", "spearman", "kendall"]].std()
        row = pd.DataFrame([{"search": name, **means, **stds.add_suffix("_std")}])
        table = pd.concat([table, row], ignore_index=True)
        write_table(path, table)
    return table
