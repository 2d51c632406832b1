"""A head space too large to enumerate: one mixed operation a layer, shared weights, and what else can search it."""

import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from fomo.bank import HeadBank
from fomo.bank_training import fit_bank
from fomo.darts import search
from fomo.halving import best_epochs, rungs, successive_halving
from fomo.heads import ACTIVATIONS, LINEAR, NORMS, Block, Head

WIDTHS = (32, 64, 128, 256, 512, 1024)
HIDDEN_LAYERS = (0, 1, 2, 3)
DROPOUTS = (0.0, 0.2)
# What a hidden layer can be; the first has nothing to add its input to, for its width is another.
FIRST_BLOCKS = [Block(*choice) for choice in product(ACTIVATIONS, NORMS, DROPOUTS)]
BLOCKS = [Block(*choice) for choice in product(ACTIVATIONS, NORMS, DROPOUTS, (False, True))]
SIZE = 1 + len(WIDTHS) * sum(len(FIRST_BLOCKS) * len(BLOCKS) ** (layers - 1) for layers in HIDDEN_LAYERS[1:])


def random_head(rng: np.random.Generator) -> Head:
    """A head of the space: number of layers, width and each block drawn uniformly."""
    layers, width = rng.choice(HIDDEN_LAYERS), int(rng.choice(WIDTHS))
    if layers == 0:
        return LINEAR
    first = FIRST_BLOCKS[rng.integers(len(FIRST_BLOCKS))]
    return Head(width, (first, *(BLOCKS[rng.integers(len(BLOCKS))] for _ in range(layers - 1))))


class LayeredSupernet(nn.Module):
    """The supernet of the space: features (batch, features) -> logits (batch, classes).

    Every layer has one matrix of the largest width, which all its candidates share. A layer's mixed operation is the
    softmax(alpha)-weighted sum of all its blocks; a narrower head is a mask that leaves its first units (Wan et al.,
    FBNetV2, arXiv:2004.05565); the number of layers is a mixture of the logits after each. A normalised layer is
    normalised over all units, so its narrow heads are only approximated.
    """

    def __init__(self, features: int, classes: int, *, temperature: float = 1.0):
        super().__init__()
        width = max(WIDTHS)
        self.temperature = temperature
        self.features, self.classes = features, classes
        self.linears = nn.ModuleList(nn.Linear(inputs, width) for inputs in (features, width, width))
        self.ends = nn.ModuleList(nn.Linear(inputs, classes) for inputs in (features, width, width, width))
        self.batch_norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in self.linears)
        self.layer_norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.linears)
        self.alpha_layers = nn.Parameter(torch.zeros(len(HIDDEN_LAYERS)))
        self.alpha_width = nn.Parameter(torch.zeros(len(WIDTHS)))
        self.alpha_blocks = nn.ParameterList(
            nn.Parameter(torch.zeros(len(blocks))) for blocks in (FIRST_BLOCKS, BLOCKS, BLOCKS)
        )
        self.register_buffer("masks", (torch.arange(width) < torch.tensor(WIDTHS)[:, None]).float())

    @property
    def alphas(self) -> dict[str, nn.Parameter]:
        """The architecture parameters by name; all other parameters are weights."""
        return {name: parameter for name, parameter in self.named_parameters() if name.startswith("alpha_")}

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        ends = (self.alpha_layers / self.temperature).softmax(0)
        mask = (self.alpha_width / self.temperature).softmax(0) @ self.masks
        states, logits = features, ends[0] * self.ends[0](features)
        for layer in range(len(self.linears)):
            states = self._mixed(layer, states) * mask
            logits = logits + ends[layer + 1] * self.ends[layer + 1](states)
        return logits

    def _mixed(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        """The mixed operation of one hidden layer; blocks that differ in dropout or residual share their activation."""
        shares = (self.alpha_blocks[layer] / self.temperature).softmax(0)
        shares = shares.view(len(ACTIVATIONS), len(NORMS), len(DROPOUTS), -1)
        linear = self.linears[layer](states)
        normed = (linear, self.batch_norms[layer](linear), self.layer_norms[layer](linear))
        mixed = 0.0
        for activation, by_norm in zip(ACTIVATIONS.values(), shares.sum(3), strict=True):
            for inputs, by_dropout in zip(normed, by_norm, strict=True):
                outputs = activation()(inputs)
                dropped = [F.dropout(outputs, rate, self.training) if rate else outputs for rate in DROPOUTS]
                mixed = mixed + sum(share * part for share, part in zip(by_dropout, dropped, strict=True))
        return mixed + shares[..., 1].sum() * states if layer else mixed

    def derive(self) -> Head:
        """The head of the largest alphas: discretisation."""
        layers = HIDDEN_LAYERS[self.alpha_layers.argmax()]
        if layers == 0:
            return LINEAR
        spaces = (FIRST_BLOCKS, BLOCKS, BLOCKS)[:layers]
        blocks = [space[alpha.argmax()] for space, alpha in zip(spaces, self.alpha_blocks, strict=False)]
        return Head(WIDTHS[self.alpha_width.argmax()], tuple(blocks))

    def multiply_adds(self) -> int:
        """Multiplications of its matrix products for one image."""
        return sum(linear.weight.numel() for linear in (*self.linears, *self.ends))


def contest(
    train: DataLoader,
    validation: DataLoader,
    features: int,
    classes: int,
    *,
    seed: int,
    device: torch.device,
    checkpoint: Path,
    darts_epochs: int,
    weight_lr: float,
    alpha_lr: float,
    temperature: float,
    epochs: int,
    lr: float,
) -> pd.DataFrame:
    """What DARTS, random search and successive halving find in the space at equal cost, a row each.

    Equal cost: as many multiplications in matrix products as the supernet's search takes. Random search trains as many
    random heads as that allows, for `epochs`, all in one bank, and takes the one of highest validation accuracy;
    halving begins with more. Columns: method, seed, head, tried (heads), seconds (measured, all in all).
    """
    rng = np.random.default_rng(seed)
    options = {"seed": seed, "device": device}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        supernet = LayeredSupernet(features, classes, temperature=temperature).to(device)
        budget = 2 * darts_epochs * supernet.multiply_adds()  # a step of the alphas and one of the weights
        rates = {"weight_lr": weight_lr, "alpha_lr": alpha_lr}
        history = search(supernet, train, validation, darts_epochs, checkpoint=checkpoint, **rates, **options)
        rows = [{"method": "DARTS", "head": supernet.derive(), "tried": 1, "seconds": history.attrs["seconds"]}]
        lengths = rungs(epochs)
        halved = sum(length / 2**number for number, length in enumerate(lengths))
        for method, shares in (("random search", epochs), ("successive halving", halved)):
            heads, start = [], time.perf_counter()
            while not heads or shares * sum(head.multiply_adds(features, classes) for head in heads) < budget:
                heads.append(random_head(rng))
            bank = HeadBank(heads, features, classes).to(device)
            if method == "random search":
                adam = [{"optimizer": "adam", "lr": lr, "weight_decay": 0.0}] * len(heads)
                description = f"{len(heads)} random heads"
                curves = fit_bank(bank, adam, train, validation, epochs, description=description, **options)
                scores = best_epochs(curves)
            else:
                scores = successive_halving(bank, train, validation, epochs, lr=lr, **options)
            seconds = time.perf_counter() - start
            rows.append({"method": method, "head": heads[scores.argmax()], "tried": len(heads), "seconds": seconds})
    return pd.DataFrame(rows).assign(seed=seed)
