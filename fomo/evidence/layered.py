"""A head space too large to enumerate: one mixed operation a layer, shared weights, and what else can search it."""

import tempfile
import time
from collections.abc import Iterable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from fomo.artifacts import Run
from fomo.data.batches import loader
from fomo.evidence.blocks import ACTIVATIONS, NORMS, Block, BlockHead
from fomo.networks.heads import HEADS, LINEAR
from fomo.stages import selection
from fomo.stages.common import seeded
from fomo.stages.features import feature_loaders, sample_features
from fomo.stages.head_search import search_head
from fomo.training.darts import search
from fomo.training.halving import halve, rungs
from fomo.training.loop import DivergedError, fit, make_optimizer

WIDTHS = (32, 64, 128, 256, 512, 1024)
HIDDEN_LAYERS = (0, 1, 2, 3)
DROPOUTS = (0.0, 0.2)
# What a hidden layer can be; the first has nothing to add its input to, for its width is another.
FIRST_BLOCKS = [Block(*choice) for choice in product(ACTIVATIONS, NORMS, DROPOUTS)]
BLOCKS = [Block(*choice) for choice in product(ACTIVATIONS, NORMS, DROPOUTS, (False, True))]
SIZE = 1 + len(WIDTHS) * sum(len(FIRST_BLOCKS) * len(BLOCKS) ** (layers - 1) for layers in HIDDEN_LAYERS[1:])


def random_head(rng: np.random.Generator) -> BlockHead:
    """A head of the space: number of layers, width and each block drawn uniformly."""
    layers, width = rng.choice(HIDDEN_LAYERS), int(rng.choice(WIDTHS))
    if layers == 0:
        return BlockHead()
    first = FIRST_BLOCKS[rng.integers(len(FIRST_BLOCKS))]
    return BlockHead(width, (first, *(BLOCKS[rng.integers(len(BLOCKS))] for _ in range(layers - 1))))


class LayeredSupernet(nn.Module):
    """The supernet of the space: features (batch, features) -> logits (batch, classes).

    Every layer has one matrix of the largest width, which all its candidates share. A layer's mixed operation is the
    softmax(alpha)-weighted sum of all its blocks; a narrower head is a mask that leaves its first units (Wan et al.,
    FBNetV2, arXiv:2004.05565); the number of layers is a mixture of the logits after each. A normalised layer is
    normalised over all units, so its narrow heads are only approximated.
    """

    def __init__(self, features: int, classes: int):
        super().__init__()
        width = max(WIDTHS)
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
        ends = self.alpha_layers.softmax(0)
        mask = self.alpha_width.softmax(0) @ self.masks
        states, logits = features, ends[0] * self.ends[0](features)
        for layer in range(len(self.linears)):
            states = self._mixed(layer, states) * mask
            logits = logits + ends[layer + 1] * self.ends[layer + 1](states)
        return logits

    def _mixed(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        """The mixed operation of one hidden layer; blocks that differ in dropout or residual share their activation."""
        shares = self.alpha_blocks[layer].softmax(0)
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

    def derive(self) -> BlockHead:
        """The head of the largest alphas: discretisation."""
        layers = HIDDEN_LAYERS[self.alpha_layers.argmax()]
        if layers == 0:
            return BlockHead()
        spaces = (FIRST_BLOCKS, BLOCKS, BLOCKS)[:layers]
        blocks = [space[alpha.argmax()] for space, alpha in zip(spaces, self.alpha_blocks, strict=False)]
        return BlockHead(WIDTHS[self.alpha_width.argmax()], tuple(blocks))

    def multiply_adds(self) -> int:
        """Multiplications of its matrix products for one image."""
        return sum(linear.weight.numel() for linear in (*self.linears, *self.ends))


def train_each(
    networks: list[nn.Module],
    train: DataLoader,
    validation: DataLoader,
    places: Iterable[int],
    epochs: int,
    seed: int,
    *,
    lr: float,
    device: torch.device,
) -> np.ndarray:
    """Trains the heads at these places in place, one after another: the validation accuracy of each at its epoch of
    lowest validation loss; 0 where it diverges."""
    scores = []
    for place in places:
        optimizer = make_optimizer(networks[place], "adam", lr, 0.0)
        options = {"seed": seed, "device": device, "description": f"head {place + 1} of {len(networks)}"}
        try:
            curves = fit(networks[place], optimizer, train, validation, epochs, **options)
            scores.append(curves.loc[curves["validation_loss"].idxmin(), "validation_accuracy"])
        except DivergedError:
            scores.append(0.0)
    return np.array(scores)


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
    epochs: int,
    lr: float,
) -> pd.DataFrame:
    """What DARTS, random search and successive halving find in the space at equal cost, a row each.

    Equal cost: as many multiplications in matrix products as the supernet's search takes. Random search trains as many
    random heads as that allows, for `epochs`, and takes the one of highest validation accuracy; halving begins with
    more. Columns: method, seed, head, tried (heads), seconds (measured, all in all).
    """
    rng, options = np.random.default_rng(seed), {"seed": seed, "device": device}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        supernet = LayeredSupernet(features, classes).to(device)
        budget = 2 * darts_epochs * supernet.multiply_adds()  # a step of the alphas and one of the weights
        rates = {"weight_lr": weight_lr, "alpha_lr": alpha_lr, "checkpoint": checkpoint}
        shuffled = loader(validation.dataset, train.sampler.batch_size, torch.Generator())
        history = search(supernet, train, shuffled, darts_epochs, **rates, **options)
        rows = [{"method": "DARTS", "head": supernet.derive(), "tried": 1, "seconds": history.attrs["seconds"]}]
        halved = sum(length / 2**number for number, length in enumerate(rungs(epochs)))
        for method, shares in (("random search", epochs), ("successive halving", halved)):
            heads, start = [], time.perf_counter()
            while not heads or shares * sum(head.multiply_adds(features, classes) for head in heads) < budget:
                heads.append(random_head(rng))
            networks = [head.build(features, classes).to(device) for head in heads]
            train_on = partial(train_each, networks, train, validation, lr=lr, device=device)
            if method == "random search":
                scores = train_on(range(len(heads)), epochs, seed)
            else:
                scores = halve(len(heads), train_on, epochs, seed)
            seconds = time.perf_counter() - start
            rows.append({"method": method, "head": heads[scores.argmax()], "tried": len(heads), "seconds": seconds})
    return pd.DataFrame(rows).assign(seed=seed)


def search_layered(run: Run) -> pd.DataFrame:
    """The space searched in three ways with each of the run's seeds, and all that they found trained alone, beside the
    head that the run chose of the 37 and the linear one: a row each, with method, seed, name, tried, seconds, accuracy
    and std over seeds."""
    config, features = run.config, sample_features(run)
    seeds = range(config.seed, config.seed + config.head_seeds)
    loaders, sizes = feature_loaders(run, features), (features.train.shape[1], len(features.classes))
    epochs, alone = config.alone_epochs, {"lr": config.alone_lr, "device": run.device}
    rates = {"weight_lr": config.weight_lr, "alpha_lr": config.alpha_lr, "darts_epochs": config.darts_epochs}
    found = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            options = {"seed": seed, "epochs": epochs, "checkpoint": Path(folder) / "layered.pt"}
            found.append(contest(*loaders, *sizes, **alone, **rates, **options))
    table = pd.concat(found, ignore_index=True)
    chosen = next(head for head in HEADS if head.name == search_head(run).choice["chosen"])
    heads = [*table.pop("head"), chosen, LINEAR]
    table = pd.concat([table, pd.DataFrame({"method": ["one of the 37", "linear"]})], ignore_index=True)
    build = lambda: [head.build(*sizes).to(run.device) for head in heads]  # noqa: E731
    places = range(len(heads))
    accuracy = [train_each(seeded(seed, build), *loaders, places, epochs, seed, **alone) for seed in seeds]
    accuracy = pd.DataFrame(accuracy)
    means = accuracy.mean().round(selection.ROUNDED)
    return table.assign(name=[head.name for head in heads], accuracy=means, std=accuracy.std())
