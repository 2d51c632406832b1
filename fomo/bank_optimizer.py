"""The optimizer of a bank of heads: each head has its own learning rate, weight decay, momentum and kind."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import nn

from fomo.bank import HeadBank


class BankOptimizer:
    """Trains every head of `bank` by a configuration of its own, as if by its own `training.make_optimizer`.

    A configuration is {optimizer: adam, sgd or rmsprop, lr, weight_decay, momentum (of sgd; may be None)}. Heads do not
    touch each other: one that diverges leaves the rest as they are.
    """

    def __init__(self, bank: HeadBank, configurations: Sequence[dict]):
        self.parts = []
        for stack in bank.stacks():
            start = 0
            for kind, run in groupby((configurations[head] for head in stack.heads), key=lambda one: one["optimizer"]):
                run = list(run)
                rows = slice(start, start := start + len(run))
                self.parts += [Part(parameter, rows, kind, run) for parameter in stack.parameters()]
        directions = {
            kind: [part.direction for part in self.parts if part.kind == kind] for kind in ("adam", "rmsprop")
        }
        # At a learning rate of 1, from 0, an optimizer's step is its direction. RMSprop is Adam without the momentum
        # and, as at step infinity, without the correction of the bias.
        self.inner = {
            kind: torch.optim.Adam(values, lr=1.0, betas=betas, fused=True)
            for (kind, values), betas in zip(directions.items(), ((0.9, 0.999), (0.0, 0.99)), strict=True)
            if values
        }
        for value in directions["rmsprop"]:
            step = torch.tensor(torch.inf, device=value.device)
            zeros = {name: torch.zeros_like(value) for name in ("exp_avg", "exp_avg_sq")}
            self.inner["rmsprop"].state[value] = {"step": step} | zeros

    def zero_grad(self) -> None:
        for part in self.parts:
            part.parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for part in self.parts:
            part.prepare()
        for optimizer in self.inner.values():
            optimizer.step()
        for part in self.parts:
            part.parameter[part.rows].addcmul_(part.direction, part.lr)

    def state_dict(self) -> dict:
        inner = {kind: optimizer.state_dict() for kind, optimizer in self.inner.items()}
        return inner | {"sgd": [part.direction for part in self.parts if part.kind == "sgd"]}

    def load_state_dict(self, state: dict) -> None:
        for kind, optimizer in self.inner.items():
            optimizer.load_state_dict(state[kind])
        for part, direction in zip([part for part in self.parts if part.kind == "sgd"], state["sgd"], strict=True):
            part.direction.copy_(direction)


class Part:
    """Consecutive rows of a parameter whose heads have the same optimizer; `direction` is its step at lr 1."""

    def __init__(self, parameter: nn.Parameter, rows: slice, kind: str, configurations: list[dict]):
        self.parameter, self.rows, self.kind = parameter, rows, kind
        self.direction = torch.zeros_like(parameter[rows])
        self.lr, self.weight_decay, self.momentum = (
            parameter.new_tensor([one.get(name) or 0.0 for one in configurations]).view(-1, 1, 1)
            for name in ("lr", "weight_decay", "momentum")
        )
        self.decays = bool(self.weight_decay.any())

    def prepare(self) -> None:
        """Adds the weight decay to the gradient; the direction of sgd follows from it, that of the others is next."""
        gradient = self.parameter.grad[self.rows]
        if self.decays:
            gradient.addcmul_(self.parameter[self.rows], self.weight_decay)
        if self.kind == "sgd":
            self.direction.mul_(self.momentum).sub_(gradient)
        else:
            self.direction.zero_()
            self.direction.grad = gradient
