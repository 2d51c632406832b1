import json
from dataclasses import asdict
from itertools import product

import pytest
import torch

from fomo.heads import HEADS, LINEAR, Block, Head, mlp, read_head

GENERAL = Head(256, (Block("ReLU", "layer"), Block("GELU", "batch", 0.2, residual=True)))


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
        (mlp(32, "ReLU", 2), "Linear(512, 32), ReLU, Linear(32, 7)"),
        (mlp(64, "Tanh", 3), "Linear(512, 64), Tanh, Linear(64, 64), Tanh, Linear(64, 7)"),
        (Head(), "Linear(512, 7)"),
        (
            GENERAL,
            "Linear(512, 256), LayerNorm, ReLU, Residual(Linear(256, 256), BatchNorm1d, GELU, Dropout(0.2)), "
            "Linear(256, 7)",
        ),
    ],
)
def test_architecture_is_described_in_the_reports_form(head, text):
    assert head.describe(512, 7) == text


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (GENERAL, "256 ReLU+layer, GELU+batch+res+drop0.2"),
        (Head(32, (Block("SiLU", "batch"),) * 2), "32 SiLU+batch x3"),
        (mlp(64, "GELU", 2), "64 GELU x2"),
        (mlp(0, "", 1), "linear"),
    ],
)
def test_name_says_what_differs_from_a_plain_mlp(head, name):
    assert head.name == name


def test_plain_head_is_a_sequence_whose_weights_are_drawn_in_order():
    torch.manual_seed(0)
    state = mlp(32, "Tanh", 3).build(8, 5).state_dict()
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 32), torch.nn.Linear(32, 32), torch.nn.Linear(32, 5)]
    expected = {
        f"{2 * n}.{name}": value for n, layer in enumerate(layers) for name, value in layer.state_dict().items()
    }
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_residual_block_adds_its_input():
    head = Head(16, (Block("ReLU"), Block("ReLU", residual=True)))
    module = head.build(8, 5)
    module[2][0].weight.data.zero_()
    module[2][0].bias.data.fill_(2)
    features = torch.randn(3, 8)
    torch.testing.assert_close(module(features), module[3](module[:2](features) + 2))


@pytest.mark.parametrize("head", [*HEADS[::7], LINEAR, GENERAL])
def test_head_is_read_back_from_its_description(head):
    assert read_head(json.loads(json.dumps(asdict(head)))) == head


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Block("Relu"), "unknown activation 'Relu'; choose from ReLU, GELU, SiLU, Tanh, Sigmoid"),
        (lambda: Block("ReLU", "group"), "unknown norm 'group'; choose from none, batch, layer"),
        (lambda: Block("ReLU", dropout=1.0), "dropout is 1.0"),
        (lambda: Head(32, (Block("ReLU", residual=True),)), "first block cannot be residual"),
        (lambda: Head(32), "0 blocks of width 32"),
        (lambda: Head(0, (Block("ReLU"),)), "1 blocks of width 0"),
    ],
)
def test_head_that_cannot_be_built_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
