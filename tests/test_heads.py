from itertools import product

import pytest
import torch
from torch.nn.functional import cross_entropy

from fomo.heads import HEADS, Head, HeadBank

FEATURES, CLASSES, BATCH = 12, 5, 16


@pytest.fixture
def separate():
    """The 37 heads as separate modules, and the bank of the same seed."""
    torch.manual_seed(1)
    heads = [head.build(FEATURES, CLASSES) for head in HEADS]
    torch.manual_seed(1)
    return heads, HeadBank(FEATURES, CLASSES)


def batch():
    return torch.randn(BATCH, FEATURES), torch.randint(CLASSES, (BATCH,))


def logits_of(heads, features):
    return torch.stack([head(features) for head in heads])


def total_loss(logits, labels):
    return sum(cross_entropy(one, labels) for one in logits)


def test_order_is_the_reports_hidden_size_outermost_then_activation_then_layer_number():
    mlps = product((32, 64, 128, 256), ("ReLU", "Tanh", "Sigmoid"), (2, 3, 4))
    assert [(head.hidden, head.activation, head.layers) for head in HEADS[:-1]] == list(mlps)


@pytest.mark.parametrize(
    ("operation", "name"),
    [(0, "32 ReLU x2"), (5, "32 Tanh x4"), (19, "128 ReLU x3"), (35, "256 Sigmoid x4"), (36, "linear")],
)
def test_operation_has_the_reports_number(operation, name):
    assert HEADS[operation].name == name


def test_names_are_unique():
    assert len({head.name for head in HEADS}) == len(HEADS) == 37


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (Head(32, "ReLU", 2), "Linear(512, 32), ReLU, Linear(32, 7)"),
        (Head(64, "Tanh", 3), "Linear(512, 64), Tanh, Linear(64, 64), Tanh, Linear(64, 7)"),
        (Head(), "Linear(512, 7)"),
    ],
)
def test_architecture_is_described_in_the_reports_form(head, text):
    assert head.describe(512, 7) == text


def test_bank_starts_as_37_separate_modules_of_the_same_seed(separate):
    heads, bank = separate
    features, _ = batch()
    torch.testing.assert_close(bank(features), logits_of(heads, features), atol=1e-5, rtol=0)


def test_gradient_through_the_bank_is_that_of_37_separate_modules(separate):
    heads, bank = separate
    features, labels = batch()
    gradients = []
    for compute in (bank, lambda x: logits_of(heads, x)):
        x = features.clone().requires_grad_()
        total_loss(compute(x), labels).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)
    norms = [sum(p.grad.pow(2).sum() for model in models for p in model.parameters()) for models in ([bank], heads)]
    torch.testing.assert_close(*norms, rtol=1e-5, atol=0)


def test_bank_has_the_weights_of_37_separate_modules_and_no_more(separate):
    heads, bank = separate
    counts = [sum(p.numel() for model in models for p in model.parameters()) for models in ([bank], heads)]
    assert counts[0] == counts[1]


def test_heads_of_a_trained_bank_are_those_trained_alone(separate):
    heads, bank = separate
    batches = [batch() for _ in range(10)]
    for models, compute in (([bank], bank), (heads, lambda x: logits_of(heads, x))):
        optimizer = torch.optim.Adam([p for model in models for p in model.parameters()], lr=1e-2)
        for features, labels in batches:
            optimizer.zero_grad()
            total_loss(compute(features), labels).backward()
            optimizer.step()
    features, _ = batch()
    torch.testing.assert_close(bank(features), logits_of(heads, features), atol=1e-4, rtol=0)
