import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fomo import load_model
from fomo.config import UserError
from fomo.networks.backbones import load_backbone
from fomo.networks.classifier import FinalClassifier, Network
from fomo.networks.gradcam import gradcam
from fomo.networks.heads import HEADS, LINEAR


def build(name="test_resnet", side=128, heads=(LINEAR,), count=1):
    """An untrained classifier of so many networks, whose last layer is 4 x 4 at 128 pixels."""
    backbones = [load_backbone(name, "random", side) for _ in range(count)]
    networks = [Network(one, [head.build(one.num_features, 3) for head in heads], (0, 1)) for one in backbones]
    return FinalClassifier(networks, [1.0] * count, [1 / count] * count, [0.0] * 3, None)


class Corner(nn.Module):
    """A network that sees the brightness of 4 x 4 places, of which the four in the upper left corner decide."""

    def forward_intermediates(self, images):
        places = F.avg_pool2d(images, images.shape[-1] // 4)
        return places, [places]

    def forward_head(self, places, pre_logits):
        return places[:, 0, :2, :2].flatten(1).mean(1, keepdim=True)


def test_map_is_where_the_region_lies_that_decides():
    head = nn.Linear(1, 2, bias=False)
    head.weight.data = torch.tensor([[-1.0], [1.0]])
    network = Network(nn.Module(), [head])
    network.backbone.network = Corner()
    places = torch.rand(2, 1, 4, 4) + 0.1
    bright, dark = gradcam(
        FinalClassifier([network], [1.0], [1.0], [0.0] * 2, None), places.expand(2, 3, 4, 4), torch.tensor([1, 0])
    )
    corner = places[0, 0, :2, :2]
    assert torch.allclose(bright[:2, :2], corner / corner.max())
    assert bright[2:].abs().max() == bright[:, 2:].abs().max() == 0
    assert dark.abs().max() == 0  # brightness never speaks for the first class


def test_map_of_the_last_layer_is_that_of_the_class_activation():
    """CAM (Zhou et al., arXiv:1512.04150): of a mean over places and a linear layer, the gradient is the weights."""
    classifier, images, classes = build(), torch.rand(3, 3, 128, 128), torch.tensor([0, 1, 2])
    maps = gradcam(classifier, images, classes)
    network = classifier.networks[0]
    weights = network.heads[0][0].weight
    features = network.backbone.network.forward_features(images)
    expected = torch.einsum("bc,bcij->bij", (weights - weights.mean(0))[classes], features).relu()
    expected = expected / expected.amax((1, 2), keepdim=True).clamp(min=1e-12)
    expected = F.interpolate(expected[:, None], (128, 128), mode="bilinear")
    assert features.shape[-1] == 4
    assert torch.allclose(maps, expected[:, 0], atol=1e-4)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext"])
def test_small_images_have_maps_of_a_layer_that_tells_places_apart(name):
    maps = gradcam(build(name, 32, (HEADS[0], LINEAR)), torch.rand(5, 3, 32, 32), torch.zeros(5, dtype=torch.int64))
    assert (maps.shape, maps.dtype, maps.requires_grad) == ((5, 32, 32), torch.float32, False)
    assert maps.min() >= 0
    assert 0.5 < maps.max() <= 1
    assert maps.amax((1, 2)).min() > 0.5
    assert maps.std((1, 2)).min() > 0.01


def test_several_networks_have_the_weighted_mean_of_their_maps():
    classifier, images, classes = build(count=2), torch.rand(2, 3, 128, 128), torch.tensor([2, 0])
    alone = [
        gradcam(FinalClassifier([one], [1.0], [1.0], [0.0] * 3, None), images, classes) for one in classifier.networks
    ]
    assert not torch.allclose(*alone, atol=0.1)
    classifier.weights = [0.75, 0.25]
    assert torch.allclose(gradcam(classifier, images, classes), 0.75 * alone[0] + 0.25 * alone[1], atol=1e-6)


def test_network_that_is_as_sure_as_can_be_has_the_same_map():
    classifier, images, classes = build(), torch.rand(2, 3, 128, 128), torch.tensor([0, 1])
    maps = gradcam(classifier, images, classes)
    classifier.networks[0].heads[0][0].weight.data *= 1e6
    assert torch.allclose(gradcam(classifier, images, classes), maps, atol=1e-4)


def test_network_with_fixed_layers_has_the_same_map():
    classifier, images, classes = build(), torch.rand(2, 3, 128, 128), torch.tensor([0, 1])
    maps = gradcam(classifier, images, classes)
    for parameter in classifier.parameters():
        parameter.requires_grad = False
    assert torch.equal(gradcam(classifier, images, classes), maps)


def test_transformer_is_refused_by_name():
    with pytest.raises(UserError, match=re.escape("'test_vit' looks cannot be shown")):
        gradcam(build("test_vit", 32), torch.rand(1, 3, 32, 32), torch.tensor([0]))


def test_trained_network_looks_elsewhere_than_one_of_random_weights(finished, dataset):
    """The sanity check of Adebayo et al. (arXiv:1810.03292): a map that did not depend on the weights would explain
    nothing."""
    model = load_model(finished.evaluation.model_path)
    files = sorted((dataset / "images_test").iterdir())
    trained = np.stack([one.map for one in model.explain(files)])
    model.classifier.networks = build("test_efficientnet", 32, count=2).networks
    untrained = np.stack([one.map for one in model.explain(files)])
    pairs = zip(trained, untrained, strict=True)
    alike = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in pairs]
    assert np.nanmean(alike) < 0.5
