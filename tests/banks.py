"""Banks of heads, and the same heads as separate modules, for the tests of both."""

from functools import partial

import torch

from fomo.networks.bank import HeadBank
from fomo.networks.heads import LINEAR, Head
from fomo.training.bank_optimizer import BankOptimizer
from fomo.training.loop import cross_entropy, make_optimizer

FEATURES, CLASSES, BATCH = 12, 5, 16
MIXED = [
    LINEAR,
    Head(32, "ReLU", 2),
    Head(16, "Tanh", 4),
    Head(16, "ReLU", 3),
    Head(32, "ReLU", 2),  # the same once more
    Head(32, "Sigmoid", 4),
    Head(16, "Sigmoid", 2),
    Head(32, "Tanh", 3),
    Head(32, "ReLU", 3),
    LINEAR,
    Head(1024, "Tanh", 2),
    Head(1024, "ReLU", 3),
]


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(BATCH, FEATURES, generator=generator)
    return inputs, torch.randint(CLASSES, (BATCH,), generator=generator)


def pair(heads, seed=1, **options):
    """A bank, and the same heads as separate modules of the same seed."""
    torch.manual_seed(seed)
    modules = [head.build(FEATURES, CLASSES) for head in heads]
    torch.manual_seed(seed)
    return HeadBank(heads, FEATURES, CLASSES, **options), modules


def together(modules, inputs):
    return torch.stack([module(inputs) for module in modules])


def configurations(count):
    """So many different configurations of all three optimizers."""
    choices = [("adam", 1e-3, None), ("sgd", 1e-1, 0.9), ("rmsprop", 1e-4, None), ("sgd", 1e-2, None)]
    rows = [(*choices[number % 4], (0.0, 1e-2, 1e-4)[number % 3], 1 + number / count) for number in range(count)]
    return [{"optimizer": o, "lr": lr * f, "momentum": m, "weight_decay": decay} for o, lr, m, decay, f in rows]


def train(bank, modules, chosen, steps=88):
    """Trains the bank by `BankOptimizer`, and the modules by optimizers of their own, on the same batches."""
    alone = [make_optimizer(module, **one) for module, one in zip(modules, chosen, strict=True)]
    for compute, optimizers in ((bank, [BankOptimizer(bank, chosen)]), (partial(together, modules), alone)):
        for step in range(steps):
            inputs, labels = batch(step)
            for optimizer in optimizers:
                optimizer.zero_grad()
            cross_entropy(compute(inputs.to(next(bank.parameters()))), labels).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
