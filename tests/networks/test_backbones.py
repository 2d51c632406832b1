import re
from itertools import chain

import pytest
import torch

from fomo.config import UserError
from fomo.networks import backbones
from fomo.networks.backbones import Backbone, check_sides, load_backbone, split_stages
from fomo.networks.classifier import Classifier
from fomo.networks.heads import LINEAR
from fomo.networks.weights import OFFLINE

TINY = ("test_efficientnet", "test_resnet", "test_vit")


def tensors(backbone):
    """Copies of the parameters and buffers of each of the four stages, by name."""
    return [
        {
            f"{path}.{name}": value.detach().clone()
            for path, module in stage
            for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        }
        for stage in split_stages(backbone.name, backbone.network)
    ]


# ---- mixed precision


def test_half_precision_is_for_gpus_that_have_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert backbones.computes_in_half(torch.device("cuda"))
    assert not backbones.computes_in_half(torch.device("cpu"))


def test_in_half_precision_features_and_gradients_are_nearly_the_same_and_in_full(lite0, monkeypatch):
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def compute(half):
        monkeypatch.setattr(backbones, "computes_in_half", lambda device: half)
        features = lite0.eval()(images)
        return features.detach(), *torch.autograd.grad(features.square().sum(), lite0.network.conv_head.weight)

    for exact, rough in zip(compute(False), compute(True), strict=True):
        assert rough.dtype == torch.float32
        assert 1e-4 < (rough - exact).norm() / exact.norm() < 0.1


# ---- stages


@pytest.mark.parametrize("name", [*TINY, "resnet34", *OFFLINE])
def test_four_stages_hold_every_weight_once(name):
    backbone = Backbone(name, 32)
    modules = chain.from_iterable(backbone.stages)
    in_stages = [weight for module in modules for weight in module.parameters(recurse=False)]
    assert len(backbone.stages) == 4
    assert sorted(map(id, in_stages)) == sorted(map(id, backbone.parameters()))
    assert backbone.summary()["weights"].gt(0).all()


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet34", [["layer1"], ["layer2"], ["layer3"], ["layer4"]]),
        (
            "tf_efficientnet_lite0",
            [["blocks.0", "blocks.1"], ["blocks.2"], ["blocks.3", "blocks.4"], ["blocks.5", "blocks.6"]],
        ),
    ],
)
def test_stages_end_where_the_resolution_changes(name, blocks):
    stages = split_stages(name, Backbone(name, 32).network)
    assert [[path for path, _ in stage if re.fullmatch(r"(layer|blocks\.)\d", path)] for stage in stages] == blocks


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
@pytest.mark.parametrize("name", TINY)
def test_training_changes_every_stage_but_the_fixed_ones(name, layer):
    backbone = load_backbone(name, "random", 32)
    model = Classifier(backbone, LINEAR.build(backbone.num_features, 3))
    backbone.fix_until(layer)
    before = tensors(backbone)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.rand(8, 3, 32, 32)), torch.arange(8) % 3).backward()
        optimizer.step()
    same = [
        {tensor: torch.equal(value, after[tensor]) for tensor, value in stage.items()}
        for stage, after in zip(before, tensors(backbone), strict=True)
    ]
    assert [all(stage.values()) for stage in same] == [number < layer for number in (1, 2, 3, 4)]


def test_fixed_stages_stay_in_eval_mode_when_the_model_is_set_to_train():
    backbone = load_backbone("test_efficientnet", "random", 32)
    backbone.fix_until(3)
    backbone.train()
    assert [any(module.training for module in stage) for stage in backbone.stages] == [False, False, True, True]


@pytest.mark.parametrize("layer", [1, 3])
def test_fixed_statistics_stay_and_weights_are_trained_through_them(layer):
    backbone = load_backbone("test_efficientnet", "random", 32)
    backbone.fix_until(layer, statistics=True)
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    images = torch.rand(8, 3, 32, 32)
    assert torch.equal(backbone.train()(images), backbone.eval()(images))  # trained as it is used
    backbone.train()(images).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())
    scales = [module.weight for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert any(weight.grad is not None for weight in scales)
    backbone.fix_until(1)
    backbone.train()(images)
    assert any(not torch.equal(value, before[name]) for name, value in backbone.named_buffers())


@pytest.mark.parametrize(("name", "by_batch"), [(name, name != "test_vit") for name in TINY])
def test_batch_normalisation_is_found(name, by_batch):
    assert load_backbone(name, "random", 32).normalises_by_batch == by_batch


def test_what_is_fixed_can_be_trained_again():
    backbone = load_backbone("test_efficientnet", "random", 32)
    backbone.fix_until(4)
    backbone.fix_until(1)
    assert all(weight.requires_grad for weight in backbone.parameters())
    assert backbone.summary()["state"].tolist() == ["trained"] * 4


@pytest.mark.parametrize("name", [*TINY, "lcnet_035"])  # which widens them after the pooling
def test_features_are_as_many_as_said(name):
    backbone = load_backbone(name, "random", 32).eval()
    assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, backbone.num_features)


def test_network_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="backbone 'identity' does not divide into four stages"):
        split_stages("identity", torch.nn.Identity())


@pytest.mark.parametrize("name", ["test_vit", "xcit_nano_12_p16_224"], ids=["seen", "built"])
def test_image_size_that_a_network_is_not_made_for_is_refused(name):
    with pytest.raises(UserError, match=f"backbone '{name}' is not made for images of 36 pixels .*IMAGE_SIZE"):
        check_sides(load_backbone(name, "random", 36), [36])


def test_sizes_that_a_network_can_see_are_let_pass():
    backbone = load_backbone("test_efficientnet", "random", 32)
    assert check_sides(backbone, [32, 24]) is None
