"""Any heads computed and trained at once: the corresponding layers of all heads of a width are one batched product."""

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import nn

from fomo.heads import ACTIVATIONS, Block, Head


class Stack(nn.Module):
    """The corresponding layers of several heads, row by row; `heads` says whose: their places in the bank.

    Linear layers have weight (heads, inputs, outputs) and bias (heads, 1, outputs); norms have (heads, 1, width).
    """

    def __init__(self, layers: list[nn.Module], heads: list[int]):
        super().__init__()
        self.heads = heads
        states = [layer.state_dict() for layer in layers]
        for name, value in layers[0].state_dict().items():
            if value.dim():  # not the number of batches that a batch norm has seen: nothing reads it
                rows = torch.stack([state[name].T if value.dim() == 2 else state[name][None] for state in states])
                if name in ("weight", "bias"):
                    self.register_parameter(name, nn.Parameter(rows.contiguous()))
                else:
                    self.register_buffer(name, rows)

    def copy_to(self, layer: nn.Module, head: int) -> None:
        """Gives `layer` the state that the bank has for this head."""
        row = self.heads.index(head)
        for name, value in layer.state_dict().items():
            if value.dim():
                stored = getattr(self, name)[row]
                value.copy_(stored.T if value.dim() == 2 else stored[0])
            else:  # the number of batches, which a layer made without values does not have either
                value.zero_()


class Linears(Stack):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.bias, states, self.weight)


class LayerNorms(Stack):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(states, states.shape[-1:]) * self.weight + self.bias


class BatchNorms(Stack):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        flat = states.transpose(0, 1).flatten(1)  # (batch, heads x width): every unit of every head is a channel
        state = (self.running_mean.view(-1), self.running_var.view(-1), self.weight.flatten(), self.bias.flatten())
        return F.batch_norm(flat, *state, training=self.training).unflatten(1, states[:, 0].shape).transpose(0, 1)


class Section(nn.Module):
    """What follows the Linear layers of consecutive heads that have the same block here.

    `ends`: (whether the heads end here, their number), for one part of the run after the other.
    """

    def __init__(self, block: Block, norms: Stack | None, ends: list[tuple[bool, int]]):
        super().__init__()
        self.block, self.norms = block, norms
        self.activation = ACTIVATIONS[block.activation]()
        self.ended, self.sizes = zip(*ends, strict=True)

    def forward(self, states: torch.Tensor, inputs: torch.Tensor) -> list[tuple[bool, torch.Tensor]]:
        states = self.activation(states if self.norms is None else self.norms(states))
        if self.block.dropout:
            states = F.dropout(states, self.block.dropout, self.training)
        if self.block.residual:
            states = states + inputs
        return list(zip(self.ended, _split(states, self.sizes), strict=True))


class Level(nn.Module):
    """One block of every head that is at least so deep: states (heads, batch, inputs) -> states after it, in parts."""

    def __init__(self, linears: Linears, runs: list[Section]):
        super().__init__()
        self.linears, self.runs = linears, nn.ModuleList(runs)
        self.sizes = [sum(run.sizes) for run in runs]
        self.residual = any(run.block.residual for run in runs)

    def forward(self, states: torch.Tensor) -> list[tuple[bool, torch.Tensor]]:
        inputs = _split(states, self.sizes) if self.residual else [states] * len(self.runs)
        parts = zip(self.runs, _split(self.linears(states), self.sizes), inputs, strict=True)
        return [part for run, after, before in parts for part in run(after, before)]


class Width(nn.Module):
    """All heads of one width: features (batch, features) -> logits (heads, batch, classes), as `last.heads` says.

    `heads` are their places in the bank's list, equal blocks side by side; `layers` iterates over the layers of each.
    """

    def __init__(self, heads: list[int], blocks: dict, layers: dict):
        super().__init__()
        take = lambda heads: [next(layers[head]) for head in heads]  # noqa: E731
        levels, alive, ended = [], [head for head in heads if blocks[head]], []
        while alive:
            depth = len(levels)
            linears, runs = Linears(take(alive), alive), []
            for block, run in groupby(alive, key=lambda head: blocks[head][depth]):
                run = list(run)
                kind = {"none": None, "batch": BatchNorms, "layer": LayerNorms}[block.norm]
                ends = groupby(run, key=lambda head: len(blocks[head]) == depth + 1)
                runs.append(
                    Section(block, kind and kind(take(run), run), [(end, len(list(part))) for end, part in ends])
                )
            levels.append(Level(linears, runs))
            ended += [head for head in alive if len(blocks[head]) == depth + 1]
            alive = [head for head in alive if len(blocks[head]) > depth + 1]
        self.levels = nn.ModuleList(levels)
        self.last = Linears(take(ended or heads), ended or heads)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        states = features.expand(len(self.last.heads), *features.shape)
        ended = [] if len(self.levels) else [states]
        for level in self.levels:
            parts = level(states)
            ended += [part for end, part in parts if end]
            states = _join([part for end, part in parts if not end])
        return self.last(_join(ended))


def _split(states: torch.Tensor, sizes: Sequence[int]) -> Sequence[torch.Tensor]:
    return states.split_with_sizes(sizes) if len(sizes) > 1 else [states]


def _join(parts: list[torch.Tensor]) -> torch.Tensor | None:
    return torch.cat(parts) if len(parts) > 1 else next(iter(parts), None)


class HeadBank(nn.Module):
    """The heads in one: features (batch, features) -> logits (heads, batch, classes), in the order given.

    The initial weights are those of separate modules built in this order. A head may be there many times. Weights come
    from `modules`, one a head, where these are given.
    """

    def __init__(
        self,
        heads: Sequence[Head],
        features: int,
        classes: int,
        *,
        modules: Sequence[nn.Module] | None = None,
    ):
        super().__init__()
        self.heads, self.features, self.classes = list(heads), features, classes
        modules = modules or [head.build(features, classes) for head in self.heads]
        layers = {place: iter(_layers(module)) for place, module in enumerate(modules)}
        blocks = {place: head.blocks for place, head in enumerate(self.heads)}
        number: dict = {}  # blocks by first appearance; the heads with a common beginning are neighbours
        keys = {place: [number.setdefault(block, len(number)) for block in blocks[place]] for place in blocks}
        widths: dict[int, list[int]] = {}
        for place in sorted(blocks, key=keys.get):
            widths.setdefault(self.heads[place].hidden, []).append(place)
        self.widths = nn.ModuleList(Width(places, blocks, layers) for places in widths.values())
        order = torch.tensor([place for width in self.widths for place in width.last.heads])
        self.register_buffer("order", order.argsort(), persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([width(features) for width in self.widths])[self.order]

    def stacks(self) -> list[Stack]:
        """All layers that have weights, from the first to the last of each width."""
        return [module for module in self.modules() if isinstance(module, Stack)]

    def rows(self, place: int) -> list[tuple[int, nn.Parameter]]:
        """Where the weights of the head at this place are: rows of parameters."""
        of = [(stack.heads.index(place), stack) for stack in self._layers_of(place)]
        return [(row, parameter) for row, stack in of for parameter in stack.parameters()]

    def merge(self, kept: dict[str, torch.Tensor], better: Sequence[bool]) -> dict[str, torch.Tensor]:
        """The state dict `kept`, in which the heads that are `better` now have their present state."""
        for prefix, stack in self.named_modules():
            if isinstance(stack, Stack):
                rows = torch.tensor([bool(better[head]) for head in stack.heads])
                for name, value in stack.state_dict().items():
                    kept[f"{prefix}.{name}"][rows] = value[rows]
        return kept

    def select(self, places: Sequence[int]) -> "HeadBank":
        """A bank of the heads at these places, as they are now."""
        heads, modules = [self.heads[place] for place in places], [self.module(place) for place in places]
        bank = HeadBank(heads, self.features, self.classes, modules=modules)
        return bank.to(self.widths[0].last.weight.device)

    @torch.no_grad()
    def take(self, places: Sequence[int], bank: "HeadBank") -> None:
        """Gives the heads at these places the state that those of `bank` have, which are the same heads in turn."""
        for theirs, mine in enumerate(places):
            for stack, other in zip(self._layers_of(mine), bank._layers_of(theirs), strict=True):
                rows = stack.heads.index(mine), other.heads.index(theirs)
                for name, value in stack.state_dict().items():
                    value[rows[0]] = getattr(other, name)[rows[1]]

    def module(self, place: int) -> nn.Module:
        """The head at this place, alone: features (batch, features) -> logits (batch, classes)."""
        weight = self.widths[0].last.weight
        with torch.device("meta"):  # no weights are drawn: all of them are copied
            module = self.heads[place].build(self.features, self.classes)
        module.to(weight.dtype).to_empty(device=weight.device).train(self.training)
        for stack, layer in zip(self._layers_of(place), _layers(module), strict=True):
            stack.copy_to(layer, place)
        return module

    def _layers_of(self, place: int) -> list[Stack]:
        """The layers of the head at this place, in order."""
        return [stack for stack in self.stacks() if place in stack.heads]


def _layers(head: nn.Module) -> list[nn.Module]:
    """The layers of a head that have weights, in order."""
    return [module for module in head.modules() if next(module.parameters(recurse=False), None) is not None]
