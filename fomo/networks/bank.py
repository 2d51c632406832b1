"""Many heads computed and trained at once: the corresponding layers of all heads of a width are one batched product."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import nn

from fomo.networks.heads import ACTIVATIONS, Head


class Linears(nn.Module):
    """The corresponding Linear layers of several heads, row by row: states (heads, batch, inputs) -> (heads, batch,
    outputs). weight: (heads, inputs, outputs), bias: (heads, 1, outputs). `heads` says whose: their places in the bank.
    """

    def __init__(self, layers: list[nn.Linear], heads: list[int]):
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]).contiguous())
        self.bias = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in layers]))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.bias, states, self.weight)


class Level(nn.Module):
    """One hidden layer of every head that is at least so deep: states (heads, batch, inputs) -> states after it, in
    parts, each with whether its heads end here.

    `runs` are neighbours of one activation: its name, and (whether they end here, how many), one part after another.
    """

    def __init__(self, linears: Linears, runs: list[tuple[str, list[tuple[bool, int]]]]):
        super().__init__()
        self.linears = linears
        self.activations = nn.ModuleList(ACTIVATIONS[name]() for name, _ in runs)
        self.ends = [list(zip(*parts, strict=True)) for _, parts in runs]
        self.sizes = [sum(counts) for _, counts in self.ends]

    def forward(self, states: torch.Tensor) -> list[tuple[bool, torch.Tensor]]:
        parts, runs = [], _split(self.linears(states), self.sizes)
        for activation, run, (ended, counts) in zip(self.activations, runs, self.ends, strict=True):
            parts += zip(ended, _split(activation(run), counts), strict=True)
        return parts


class Width(nn.Module):
    """All heads of one width: features (batch, features) -> logits (heads, batch, classes), as `last.heads` says.

    `places` are theirs in the bank's list `heads`, equal activations side by side; `layers` iterates over the layers of
    each.
    """

    def __init__(self, places: list[int], heads: list[Head], layers: dict):
        super().__init__()
        take = lambda places: [next(layers[place]) for place in places]  # noqa: E731
        levels, ended, alive = [], [], [place for place in places if heads[place].layers > 1]
        while alive:
            ends = lambda place: heads[place].layers == len(levels) + 2  # noqa: E731
            runs = []
            for activation, run in groupby(alive, key=lambda place: heads[place].activation):
                runs.append((activation, [(end, len(list(part))) for end, part in groupby(run, key=ends)]))
            level = Level(Linears(take(alive), alive), runs)
            ended += filter(ends, alive)
            alive = [place for place in alive if not ends(place)]
            levels.append(level)
        self.levels = nn.ModuleList(levels)
        self.last = Linears(take(ended or places), ended or places)

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
        layers = {place: iter(_linears(module)) for place, module in enumerate(modules)}
        kinds = list(dict.fromkeys(["linear", *(head.activation for head in self.heads)]))  # by first appearance
        order = lambda place: (kinds.index(self.heads[place].activation), self.heads[place].layers)  # noqa: E731
        widths: dict[int, list[int]] = {}
        for place in sorted(range(len(self.heads)), key=order):
            widths.setdefault(self.heads[place].hidden, []).append(place)
        self.widths = nn.ModuleList(Width(places, self.heads, layers) for places in widths.values())
        order = torch.tensor([place for width in self.widths for place in width.last.heads])
        self.register_buffer("order", order.argsort(), persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([width(features) for width in self.widths])[self.order]

    def linears(self) -> list[Linears]:
        """All layers that have weights, from the first to the last of each width."""
        return [module for module in self.modules() if isinstance(module, Linears)]

    def rows(self, place: int) -> list[tuple[int, nn.Parameter]]:
        """Where the weights of the head at this place are: rows of parameters."""
        of = [(linears.heads.index(place), linears) for linears in self._linears_of(place)]
        return [(row, parameter) for row, linears in of for parameter in (linears.weight, linears.bias)]

    def merge(self, kept: dict[str, torch.Tensor], better: Sequence[bool]) -> dict[str, torch.Tensor]:
        """The state dict `kept`, in which the heads that are `better` now have their present state."""
        for prefix, linears in self.named_modules():
            if isinstance(linears, Linears):
                rows = torch.tensor([bool(better[head]) for head in linears.heads])
                for name, value in linears.state_dict().items():
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
            for (row, parameter), (other, given) in zip(self.rows(mine), bank.rows(theirs), strict=True):
                parameter[row] = given[other]

    @torch.no_grad()
    def module(self, place: int) -> nn.Module:
        """The head at this place, alone: features (batch, features) -> logits (batch, classes)."""
        weight = self.widths[0].last.weight
        with torch.device("meta"):  # no weights are drawn: all of them are copied
            module = self.heads[place].build(self.features, self.classes)
        module.to(weight.dtype).to_empty(device=weight.device).train(self.training)
        for linears, layer in zip(self._linears_of(place), _linears(module), strict=True):
            row = linears.heads.index(place)
            layer.weight.copy_(linears.weight[row].T)
            layer.bias.copy_(linears.bias[row, 0])
        return module

    def _linears_of(self, place: int) -> list[Linears]:
        """The layers of the head at this place, in order."""
        return [linears for linears in self.linears() if place in linears.heads]


def _linears(head: nn.Module) -> list[nn.Linear]:
    """The Linear layers of a head, in order."""
    return [module for module in head.modules() if isinstance(module, nn.Linear)]
