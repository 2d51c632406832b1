import json
from dataclasses import asdict
from itertools import product

import pytest
import torch

from fomo.networks.heads import HEADS, LINEAR, Head


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


def test_plain_head_is_a_sequence_whose_weights_are_drawn_in_order():
    torch.manual_seed(0)
    state = Head(32, "Tanh", 3).build(8, 5).state_dict()
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 32), torch.nn.Linear(32, 32), torch.nn.Linear(32, 5)]
    expected = {
        f"{2 * n}.{name}": value for n, layer in enumerate(layers) for name, value in layer.state_dict().items()
    }
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], value) for name, value in expected.items())


@pytest.mark.parametrize("head", [*HEADS[::7], LINEAR])
def test_head_is_read_back_from_its_description(head):
    assert Head(**json.loads(json.dumps(asdict(head)))) == head
