import pytest
import torch

from fomo.networks.backbones import load_backbone
from fomo.networks.classifier import FinalClassifier, Network, view
from fomo.networks.heads import HEADS, LINEAR


def build(heads, views=1, temperatures=(1.0,)):
    """An untrained classifier, of a network for each temperature."""
    backbones = [load_backbone("test_vit", "random", 32) for _ in temperatures]
    networks = [Network(one, [head.build(one.num_features, 3) for head in heads], views) for one in backbones]
    return FinalClassifier(networks, list(temperatures), [0.0] * 3).eval()


def test_heads_and_views_are_averaged_as_probabilities_and_each_network_then_calibrated():
    model = build([HEADS[0], LINEAR], views=2, temperatures=[2.0, 0.5])
    pixels, expected = torch.rand(5, 3, 32, 32), []
    with torch.inference_mode():
        for network, temperature in zip(model.networks, model.temperatures, strict=True):
            features = [network.backbone(view) for view in (pixels, pixels.flip(-1))]
            parts = [head(view).softmax(1) for view in features for head in network.heads]
            expected.append((torch.stack(parts).mean(0).log() / temperature).softmax(1))
        torch.testing.assert_close(model(pixels).exp(), torch.stack(expected).mean(0))
        torch.testing.assert_close(model(pixels.flip(-1)), model(pixels))


def test_eight_views_are_all_ways_to_turn_and_mirror_a_square():
    image = torch.rand(1, 3, 32, 32)
    views = [view(image, number) for number in range(8)]
    assert torch.equal(views[0], image)
    assert torch.equal(views[1], image.flip(-1))
    assert len({seen.numpy().tobytes() for seen in views}) == 8
    model = build(HEADS[:1], views=8)
    with torch.inference_mode():
        for seen in views:  # so it does not matter how an image is held
            torch.testing.assert_close(model(seen), model(image))


def test_handicaps_are_taken_off_before_a_class_is_named_and_confidence_is_its_probability():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert FinalClassifier([], [], [0.0, -0.4, -0.8]).decide(logits)[0].tolist() == [0]
    named, confidence = FinalClassifier([], [], [0.0, -0.6, -0.8]).decide(logits)
    assert (named.tolist(), confidence.tolist()) == ([1], pytest.approx([0.3]))
