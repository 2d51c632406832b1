"""The candidate heads: the report's 36 MLPs and one plain linear layer, by index."""

from dataclasses import dataclass
from itertools import pairwise, product

from torch import nn

ACTIVATIONS = {"ReLU": nn.ReLU, "Tanh": nn.Tanh, "Sigmoid": nn.Sigmoid}
HIDDEN_SIZES = (32, 64, 128, 256)
LAYER_NUMBERS = (2, 3, 4)  # of Linear layers


@dataclass(frozen=True)
class Head:
    """One candidate: an MLP of `layers` Linear layers, `hidden` wide, with `activation` between them; of 1: linear."""

    hidden: int = 0
    activation: str = "linear"
    layers: int = 1

    @property
    def name(self) -> str:
        """A short name for tables and axes, such as 128 Tanh x4 (4 Linear layers), or linear."""
        return f"{self.hidden} {self.activation} x{self.layers}" if self.layers > 1 else "linear"

    def sizes(self, features: int, classes: int) -> list[int]:
        """What goes into and comes out of its Linear layers, from `features` to `classes`."""
        return [features, *[self.hidden] * (self.layers - 1), classes]

    def build(self, features: int, classes: int) -> nn.Sequential:
        """The network: features (batch, `features`) -> logits (batch, `classes`)."""
        modules = []
        for inputs, outputs in pairwise(self.sizes(features, classes)):
            modules += [ACTIVATIONS[self.activation]()] if modules else []
            modules.append(nn.Linear(inputs, outputs))
        return nn.Sequential(*modules)

    def multiply_adds(self, features: int, classes: int) -> int:
        """Multiplications of its matrix products for one image: what its training costs, up to a factor."""
        return sum(inputs * outputs for inputs, outputs in pairwise(self.sizes(features, classes)))

    def describe(self, features: int, classes: int) -> str:
        """The architecture in the report's form, such as Linear(512, 32), ReLU, Linear(32, 7)."""
        linears = [f"Linear({inputs}, {outputs})" for inputs, outputs in pairwise(self.sizes(features, classes))]
        return f", {self.activation}, ".join(linears)


LINEAR = Head()

# The report's 37: hidden size outermost, then activation, then layer number; the plain linear layer is last.
HEADS = [*(Head(*choice) for choice in product(HIDDEN_SIZES, ACTIVATIONS, LAYER_NUMBERS)), LINEAR]
