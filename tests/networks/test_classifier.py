import pytest
import torch

from fomo.networks.backbones import load_backbone
from fomo.networks.classifier import FinalClassifier, Network, view
from fomo.networks.heads import HEADS, LINEAR
from fomo.networks.unlike import Unlike
from fomo.stages.final import view_sets


def build(heads, views=(0,), temperatures=(1.0,), weights=None):
    """An untrained classifier, of a network for each temperature."""
    backbones = [load_backbone("test_vit", "random", 32) for _ in temperatures]
    networks = [Network(one, [head.build(one.num_features, 3) for head in heads], views) for one in backbones]
    unlike = Unlike(torch.zeros(64), torch.zeros(1, 64), torch.ones(1))
    return FinalClassifier(
        networks, list(temperatures), list(weights or [1 / len(networks)] * len(networks)), [0.0] * 3, unlike
    ).eval()


def test_heads_and_views_are_averaged_as_probabilities_and_each_network_then_calibrated():
    model = build([HEADS[0], LINEAR], views=(0, 1), temperatures=[2.0, 0.5], weights=[0.75, 0.25])
    pixels, expected = torch.rand(5, 3, 32, 32), []
    with torch.inference_mode():
        for network, temperature in zip(model.networks, model.temperatures, strict=True):
            features = [network.backbone(view) for view in (pixels, pixels.flip(-1))]
            parts = [head(view).softmax(1) for view in features for head in network.heads]
            expected.append((torch.stack(parts).mean(0).log() / temperature).softmax(1))
        torch.testing.assert_close(model(pixels).exp(), 0.75 * expected[0] + 0.25 * expected[1])
        torch.testing.assert_close(model(pixels.flip(-1)), model(pixels))


def test_eight_views_are_all_ways_to_turn_and_mirror_a_square():
    image = torch.rand(1, 3, 32, 32)
    views = [view(image, number) for number in range(8)]
    assert torch.equal(views[0], image)
    assert torch.equal(views[1], image.flip(-1))
    assert len({seen.numpy().tobytes() for seen in views}) == 8
    model = build(HEADS[:1], views=range(8))
    with torch.inference_mode():
        for seen in views:  # so it does not matter how an image is held
            torch.testing.assert_close(model(seen), model(image))


def test_views_that_keep_a_square_upright_or_turn_it_are_told_by_number():
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(view(image, 4), image.flip(-1, -2))
    assert torch.equal(view(image, 5), image.flip(-2))
    assert torch.equal(view(view(image, 2), 6), image)


ALL = tuple(range(8))


@pytest.mark.parametrize(
    ("flip", "rotation", "sets"),
    [
        ("none", 0.0, [(0,)]),
        ("none", 89.0, [(0,)]),
        ("none", 90.0, [(0,), (0, 2, 4, 6)]),
        ("horizontal", 0.0, [(0,), (0, 1)]),
        ("horizontal", 30.0, [(0,), (0, 1)]),
        ("horizontal", 90.0, [(0,), (0, 1), ALL]),
        ("both", 0.0, [(0,), (0, 1), (0, 1, 4, 5)]),
        ("both", 30.0, [(0,), (0, 1), (0, 1, 4, 5)]),
        ("both", 180.0, [(0,), (0, 1), ALL]),
    ],
)
def test_views_that_are_tried_are_those_that_training_could_show(flip, rotation, sets):
    assert view_sets(flip, rotation) == sets


@pytest.mark.parametrize("views", [(0,), (0, 1), (0, 1, 4, 5), (0, 2, 4, 6)])
def test_network_sees_exactly_its_views(views):
    network = build(HEADS[:1], views=views).networks[0]
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        for number, features in zip(views, network.look(image), strict=True):
            torch.testing.assert_close(features, network.backbone(view(image, number)))
        for number in views:  # each set is closed: so it does not matter in which of its views an image comes
            torch.testing.assert_close(network(view(image, number)), network(image))


def test_handicaps_are_taken_off_before_a_class_is_named_and_confidence_is_its_probability():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert FinalClassifier([], [], [], [0.0, -0.4, -0.8], None).decide(logits)[0].tolist() == [0]
    named, confidence = FinalClassifier([], [], [], [0.0, -0.6, -0.8], None).decide(logits)
    assert (named.tolist(), confidence.tolist()) == ([1], pytest.approx([0.3]))
