import pytest
import torch

from fomo.evidence.blocks import Block, BlockHead

GENERAL = BlockHead(256, (Block("ReLU", "layer"), Block("GELU", "batch", 0.2, residual=True)))


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (GENERAL, "256 ReLU+layer, GELU+batch+res+drop0.2"),
        (BlockHead(32, (Block("SiLU", "batch"),) * 2), "32 SiLU+batch x3"),
        (BlockHead(64, (Block("GELU"),)), "64 GELU x2"),
        (BlockHead(), "linear"),
    ],
)
def test_name_says_what_differs_from_a_plain_mlp(head, name):
    assert head.name == name


def test_head_has_its_layers_in_order():
    names = [type(module).__name__ for module in GENERAL.build(512, 7)]
    assert names == ["Linear", "LayerNorm", "ReLU", "Residual", "Linear"]
    residual = [type(module).__name__ for module in GENERAL.build(512, 7)[3]]
    assert residual == ["Linear", "BatchNorm1d", "GELU", "Dropout"]
    assert GENERAL.build(512, 7)(torch.randn(3, 512)).shape == (3, 7)


def test_residual_block_adds_its_input():
    head = BlockHead(16, (Block("ReLU"), Block("ReLU", residual=True)))
    module = head.build(8, 5)
    module[2][0].weight.data.zero_()
    module[2][0].bias.data.fill_(2)
    features = torch.randn(3, 8)
    torch.testing.assert_close(module(features), module[3](module[:2](features) + 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Block("Relu"), "unknown activation 'Relu'; choose from ReLU, GELU, SiLU, Tanh, Sigmoid"),
        (lambda: Block("ReLU", "group"), "unknown norm 'group'; choose from none, batch, layer"),
        (lambda: Block("ReLU", dropout=1.0), "dropout is 1.0"),
        (lambda: BlockHead(32, (Block("ReLU", residual=True),)), "first block cannot be residual"),
        (lambda: BlockHead(32), "0 blocks of width 32"),
        (lambda: BlockHead(0, (Block("ReLU"),)), "1 blocks of width 0"),
    ],
)
def test_head_that_cannot_be_built_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
