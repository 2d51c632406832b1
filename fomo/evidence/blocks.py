"""The heads of the large space: MLPs of blocks with normalisation, dropout and residual connections."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

ACTIVATIONS = {"ReLU": nn.ReLU, "GELU": nn.GELU, "SiLU": nn.SiLU, "Tanh": nn.Tanh, "Sigmoid": nn.Sigmoid}
NORMS = {"none": None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


@dataclass(frozen=True)
class Block:
    """A hidden layer: Linear, norm (none, batch, layer), activation, dropout; plus its own input if `residual`."""

    activation: str
    norm: str = "none"
    dropout: float = 0.0
    residual: bool = False

    def __post_init__(self):
        for what, name, known in (("activation", self.activation, ACTIVATIONS), ("norm", self.norm, NORMS)):
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(known)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and less than 1")

    @property
    def name(self) -> str:
        """A short name, such as ReLU, or GELU+batch+res+drop0.2."""
        extras = [self.norm] * (self.norm != "none") + ["res"] * self.residual
        return "+".join([self.activation, *extras] + [f"drop{self.dropout:g}"] * (self.dropout > 0))

    def build(self, inputs: int, outputs: int) -> list[nn.Module]:
        """The modules: (batch, inputs) -> (batch, outputs)."""
        modules = [nn.Linear(inputs, outputs)]
        if self.norm != "none":
            modules.append(NORMS[self.norm](outputs))
        modules.append(ACTIVATIONS[self.activation]())
        if self.dropout:
            modules.append(nn.Dropout(self.dropout))
        return [Residual(*modules)] if self.residual else modules


class Residual(nn.Sequential):
    """A block plus its own input, of the same shape."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states + super().forward(states)


@dataclass(frozen=True)
class BlockHead:
    """An MLP of `blocks`, each `hidden` wide, and a Linear layer to the classes; no block: linear.

    The first block cannot be residual, for its input is of another width.
    """

    hidden: int = 0
    blocks: tuple[Block, ...] = ()

    def __post_init__(self):
        if (self.hidden > 0) != bool(self.blocks):
            raise ValueError(f"{len(self.blocks)} blocks of width {self.hidden}; give both, or neither (a linear head)")
        if self.blocks and self.blocks[0].residual:
            raise ValueError("the first block cannot be residual: features and hidden states differ in width")

    @property
    def layers(self) -> int:
        """The number of Linear layers."""
        return len(self.blocks) + 1

    @property
    def name(self) -> str:
        """A short name for tables and axes, such as 128 Tanh x4 (4 Linear layers), or 256 ReLU+layer, GELU."""
        if not self.blocks:
            return "linear"
        if len(set(self.blocks)) == 1:
            return f"{self.hidden} {self.blocks[0].name} x{self.layers}"
        return f"{self.hidden} {', '.join(block.name for block in self.blocks)}"

    def build(self, features: int, classes: int) -> nn.Sequential:
        """The network: features (batch, `features`) -> logits (batch, `classes`)."""
        modules, width = [], features
        for block in self.blocks:
            modules += block.build(width, self.hidden)
            width = self.hidden
        return nn.Sequential(*modules, nn.Linear(width, classes))

    def multiply_adds(self, features: int, classes: int) -> int:
        """Multiplications of its matrix products for one image: what its training costs, up to a factor."""
        sizes = [features, *[self.hidden] * len(self.blocks), classes]
        return sum(inputs * outputs for inputs, outputs in pairwise(sizes))
