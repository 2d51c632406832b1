"""The optimizer of a bank of heads: each head has its own learning rate, weight decay, momentum and kind."""

from collections.abc import Sequence

import torch

from fomo.networks.bank import HeadBank


class BankOptimizer:
    """Trains every head of `bank` by a configuration of its own, as if by its own `loop.make_optimizer`.

    A configuration is {optimizer: adam, sgd or rmsprop, lr, weight_decay, momentum (of sgd; may be None)}. Heads do not
    touch each other: one that diverges leaves the rest as they are.
    """

    def __init__(self, bank: HeadBank, configurations: Sequence[dict]):
        self.parameters = list(bank.parameters())
        number = {parameter: place for place, parameter in enumerate(self.parameters)}
        self.heads = [
            HeadOptimizer(
                [(number[parameter], row, parameter.detach()[row]) for row, parameter in bank.rows(head)], **one
            )
            for head, one in enumerate(configurations)
        ]

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        gradients = [parameter.grad.unbind() for parameter in self.parameters]
        for head in self.heads:
            head.step(gradients)

    def state_dict(self) -> dict:
        return {"heads": [head.state for head in self.heads]}

    def load_state_dict(self, state: dict) -> None:
        for head, stored in zip(self.heads, state["heads"], strict=True):
            head.state = stored


class HeadOptimizer:
    """The optimizer of one head, whose `weights` are (number of a parameter of the bank, row of it, that row).

    torch.optim's own objects would spend most of a step in Python. These are the functions that they call in the end:
    one pass over the memory for all weights of a head.
    """

    def __init__(
        self, weights: list[tuple], optimizer: str, lr: float, weight_decay: float, momentum: float | None = None
    ):
        self.places = [(number, row) for number, row, _ in weights]
        self.weights = [weight for _, _, weight in weights]
        options = {"lr": lr, "weight_decay": weight_decay, "maximize": False, "grad_scale": None, "found_inf": None}
        self.sgd = optimizer == "sgd"
        if self.sgd:
            self.options = options | {"momentum": momentum or 0.0, "dampening": 0.0, "nesterov": False}
            self.options |= {"is_first_step": False}  # from 0, that is the same
        else:  # RMSprop is Adam without the momentum and, as at step infinity, without the correction of the bias
            betas = {"beta1": 0.9, "beta2": 0.999} if optimizer == "adam" else {"beta1": 0.0, "beta2": 0.99}
            self.options = options | betas | {"eps": 1e-8, "amsgrad": False}
        step = torch.tensor(0.0 if optimizer == "adam" else torch.inf, device=self.weights[0].device)
        averaged = [] if self.sgd and not momentum else self.weights
        zeros = [[torch.zeros_like(weight) for weight in averaged] for _ in range(1 if self.sgd else 2)]
        self.state = {"step": step, "averages": zeros}

    def step(self, gradients: list[tuple]) -> None:
        """Moves the weights by the `gradients` of all parameters, row by row."""
        own = [gradients[number][row] for number, row in self.places]
        if self.sgd:
            torch._fused_sgd_(self.weights, own, *self.state["averages"], **self.options)
        else:
            steps = [self.state["step"].add_(1)] * len(own)
            torch._fused_adam_(self.weights, own, *self.state["averages"], [], steps, **self.options)
