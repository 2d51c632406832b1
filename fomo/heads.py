"""The candidate operations: 36 MLPs and one plain linear layer by index, and all of them computed at once."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

ACTIVATIONS = {"ReLU": nn.ReLU, "Tanh": nn.Tanh, "Sigmoid": nn.Sigmoid}
HIDDEN_SIZES = (32, 64, 128, 256)
LAYER_NUMBERS = (2, 3, 4)  # of Linear layers


@dataclass(frozen=True)
class Head:
    """One candidate: an MLP of `layers` Linear layers, `hidden` wide, with `activation` between; 1 layer is linear."""

    hidden: int = 0
    activation: str = ""
    layers: int = 1

    @property
    def name(self) -> str:
        """A short name for tables and axes."""
        return "linear" if self.layers == 1 else f"{self.hidden} {self.activation} x{self.layers}"

    def build(self, features: int, classes: int) -> nn.Sequential:
        """The network: features (batch, `features`) -> logits (batch, `classes`)."""
        sizes = [features, *[self.hidden] * (self.layers - 1), classes]
        modules = []
        for number, (inputs, outputs) in enumerate(pairwise(sizes)):
            modules += [ACTIVATIONS[self.activation]()] if number else []
            modules.append(nn.Linear(inputs, outputs))
        return nn.Sequential(*modules)

    def describe(self, features: int, classes: int) -> str:
        """The architecture in the report's form, such as Linear(512, 32), ReLU, Linear(32, 7)."""
        return ", ".join(
            f"Linear({module.in_features}, {module.out_features})" if isinstance(module, nn.Linear) else self.activation
            for module in self.build(features, classes)
        )


LINEAR = Head()

# The report's 37: hidden size outermost, then activation, then layer number; the plain linear layer is last.
HEADS = [
    *(Head(hidden, name, layers) for hidden in HIDDEN_SIZES for name in ACTIVATIONS for layers in LAYER_NUMBERS),
    LINEAR,
]


class HeadBank(nn.Module):
    """All 37 heads at once: features (batch, features) -> logits (37, batch, classes), in the order of `HEADS`.

    The first layers of all heads see the same input, so they are one matrix product; deeper layers are batched
    products over the heads of one width. The initial weights are those of 37 separate modules built in order.
    """

    def __init__(self, features: int, classes: int):
        super().__init__()
        linears = [
            [module for module in head.build(features, classes) if isinstance(module, nn.Linear)] for head in HEADS
        ]
        first = [layers[0] for layers in linears]
        self.first_weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in first]))  # (4320 + classes, in)
        self.first_bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in first]))
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        for hidden in HIDDEN_SIZES:
            for depth in (2, 3, 4):  # the layer that is the depth-th of its head, counted from 1
                middle = [n for n, head in enumerate(HEADS) if head.hidden == hidden and head.layers > depth]
                if middle:
                    self._stack(f"{hidden}_{depth}", [linears[n][depth - 1] for n in middle])
            last = [n for n, head in enumerate(HEADS) if head.hidden == hidden]
            self._stack(f"{hidden}_last", [linears[n][-1] for n in last])

    def _stack(self, key: str, layers: list[nn.Linear]) -> None:
        """Stores layers of one shape as weight (layers, in, out) and bias (layers, 1, out)."""
        self.weights[key] = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]).contiguous())
        self.biases[key] = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in layers]))

    def _linear(self, key: str, inputs: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.biases[key], inputs, self.weights[key])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        first = nn.functional.linear(features, self.first_weight, self.first_bias)
        sizes = [9 * hidden for hidden in HIDDEN_SIZES]
        *blocks, linear = first.split([*sizes, first.shape[1] - sum(sizes)], dim=1)
        logits = []
        for hidden, block in zip(HIDDEN_SIZES, blocks, strict=True):
            states = block.view(len(features), 9, hidden).transpose(0, 1)  # (heads of this width, batch, hidden)
            logits.append(self._linear(f"{hidden}_last", self._deepen(hidden, states)))
        return torch.cat([*logits, linear[None]])

    def _deepen(self, hidden: int, states: torch.Tensor) -> torch.Tensor:
        """The last hidden states (9, batch, hidden) of the heads of one width, from their first pre-activations.

        A head's place among the nine is 3 x activation + layer number - 2.
        """
        states = states.unflatten(0, (3, 3))  # (activation, layer number, batch, hidden)
        ended = []
        for depth in (2, 3, 4):
            states = torch.stack([build()(part) for build, part in zip(ACTIVATIONS.values(), states, strict=True)])
            ended.append(states[:, 0])  # the heads whose next layer is their last
            if depth < 4:
                deeper = self._linear(f"{hidden}_{depth}", states[:, 1:].flatten(0, 1))
                states = deeper.unflatten(0, (3, 4 - depth))
        return torch.stack(ended, dim=1).flatten(0, 1)
