import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from fomo.data.batches import FeatureBatches, ImageBatches, augment, loader


@pytest.mark.parametrize("seed", range(6))
def test_augment_is_torchvisions_rotation_and_flip(seed):
    images = torch.rand(8, 3, 17, 17)
    augmented = augment(images, 30.0, torch.Generator().manual_seed(seed))
    draws = torch.Generator().manual_seed(seed)
    angles = (2 * torch.rand(8, generator=draws) - 1) * 30
    flips = torch.rand(8, generator=draws) < 0.5
    for image, angle, flip, result in zip(images, angles, flips, augmented, strict=True):
        expected = transforms.rotate(image, angle.item(), interpolation=v2.InterpolationMode.BILINEAR)
        expected = transforms.horizontal_flip(expected) if flip else expected
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


ARROW = torch.tensor(
    [
        [0, 0, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1],
        [0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
).float()  # points to the left, in the upper half


@pytest.mark.parametrize(
    ("flip", "shares"),
    [("none", (1, 0, 0, 0)), ("horizontal", (0.5, 0.5, 0, 0)), ("both", (0.25, 0.25, 0.25, 0.25))],
)
@pytest.mark.parametrize("seed", range(3))
def test_arrows_point_where_flip_lets_them(flip, shares, seed):
    augmented = augment(ARROW.expand(400, 1, 8, 8), 0.0, torch.Generator().manual_seed(seed), flip=flip)
    ways = [ARROW, ARROW.flip(-1), ARROW.flip(-2), ARROW.flip(-1, -2)]
    counts = [sum(torch.equal(image[0], way) for image in augmented) for way in ways]
    assert sum(counts) == 400
    assert counts == pytest.approx([400 * share for share in shares], abs=50 if max(shares) < 1 else 0)
    assert [count > 0 for count in counts] == [share > 0 for share in shares]


@pytest.mark.parametrize("flip", ["none", "horizontal", "both"])
def test_each_image_is_turned_and_then_flipped(flip):
    images = torch.rand(16, 3, 17, 17)
    augmented = augment(images, 30.0, torch.Generator().manual_seed(1), flip=flip)
    draws = torch.Generator().manual_seed(1)
    angles = (2 * torch.rand(16, generator=draws) - 1) * 30
    for image, angle, result in zip(images, angles, augmented, strict=True):
        turned = transforms.rotate(image, angle.item(), interpolation=v2.InterpolationMode.BILINEAR)
        ways = [turned, turned.flip(-1), turned.flip(-2), turned.flip(-1, -2)]
        near = [torch.allclose(result, way, atol=1e-4, rtol=0) for way in ways]
        assert near.index(True) < {"none": 1, "horizontal": 2, "both": 4}[flip]


@pytest.mark.parametrize(("flip", "ways"), [("none", 1), ("horizontal", 2), ("both", 4)])
def test_batches_are_flipped_as_asked(flip, ways):
    pixels = (255 * ARROW).byte().numpy().reshape(1, 1, 8, 8)
    options = {"rotation": 0.0, "flip": flip, "generator": torch.Generator().manual_seed(0)}
    batches = ImageBatches(pixels, [0] * 40, [0] * 40, (0.0,) * 3, (1.0,) * 3, **options)
    assert len({image.numpy().tobytes() for image in batches[list(range(40))][0]}) == ways


def test_angles_fill_the_range_and_half_the_images_are_flipped():
    dot = torch.zeros(400, 1, 65, 65)
    dot[:, :, 32, 56:] = 1  # a mark on the right, at angle 0
    places = augment(dot, 30.0, torch.Generator().manual_seed(0))[:, 0].flatten(1).argmax(1)
    x, y = places % 65 - 32, 32 - places // 65
    angles = torch.rad2deg(torch.atan2(y.float(), x.abs().float()))
    assert 0.4 < (x < 0).float().mean() < 0.6
    assert angles.abs().max() < 31.5
    assert angles.min() < -25
    assert angles.max() > 25


def test_zoomed_cut_outs_lie_within_the_image_and_have_its_size():
    """An image whose brightness is its place: a cut-out shows a part of it, of at least half its side."""
    ramp = torch.linspace(0, 1, 64).expand(200, 1, 64, 64)
    parts = augment(ramp, 0.0, torch.Generator().manual_seed(0), zoom=0.5)
    assert parts.shape == (200, 1, 64, 64)
    low, high = parts.flatten(1).min(1).values, parts.flatten(1).max(1).values
    inner = parts[:, :, :, 1:-1].flatten(1)  # the outermost pixels touch the black around
    kept = (inner.max(1).values - inner.min(1).values) * 64 / 62
    assert 0.49 < kept.min() < 0.55
    assert 0.95 < kept.max() < 1.03
    assert low.min() < 0.05
    assert high.max() > 0.95
    places = (inner.max(1).values + inner.min(1).values) / 2
    assert 0.45 < places.mean() < 0.55
    assert places.std() > 0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_batch_is_normalised_and_has_three_channels(channels):
    pixels = np.full((4, channels, 8, 8), 255, np.uint8)
    images, labels = ImageBatches(pixels, range(4), [0, 1, 2, 1], (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))[[1, 3]]
    assert images.mean((0, 2, 3)).tolist() == [1, 3, 1]
    assert labels.tolist() == [1, 1]


def test_only_batches_with_a_generator_are_augmented():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    options = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "rotation": 30.0}
    plain = ImageBatches(pixels, range(4), [0] * 4, **options)
    train = ImageBatches(pixels, range(4), [0] * 4, **options, generator=torch.Generator().manual_seed(0))
    rows = [0, 1, 2, 3]
    assert torch.equal(plain[rows][0], torch.from_numpy(pixels) / 255)
    assert not torch.equal(train[rows][0], plain[rows][0])


@pytest.mark.parametrize("channels", [1, 3])
def test_generator_alone_decides_the_batches_of_an_epoch(channels):
    def epoch(seed):
        torch.rand(1)
        generator = torch.Generator().manual_seed(seed)
        pixels = np.random.default_rng(0).integers(0, 256, (9, channels, 8, 8), dtype=np.uint8)
        options = {"rotation": 30.0, "generator": generator}
        batches = ImageBatches(pixels, range(9), range(9), (0.0,) * 3, (1.0,) * 3, **options)
        return torch.cat([images for images, _ in loader(batches, 4, generator)])

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0)[:8], epoch(1)[:8])


def test_loader_without_a_generator_keeps_the_order_and_every_image():
    labels = [label for _, batch in loader(FeatureBatches(np.zeros((9, 2)), range(9)), 4) for label in batch.tolist()]
    assert labels == list(range(9))


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (9, [4, 4]), (10, [4, 4, 2])])
def test_training_never_sees_a_batch_of_one_image(count, sizes):
    batches = loader(FeatureBatches(np.zeros((count, 2)), range(count)), 4, torch.Generator())
    assert [len(labels) for _, labels in batches] == sizes


def test_rows_say_where_the_pixels_of_an_image_are():
    pixels = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    images, labels = ImageBatches(pixels, [3, 1], [7, 8], (0.0,) * 3, (1.0,) * 3)[[0, 1]]
    assert (images[:, 0, 0, 0] * 255).round().tolist() == [3, 1]
    assert labels.tolist() == [7, 8]


@pytest.mark.parametrize("augmented", [True, False])
def test_batch_is_scaled_down_to_a_side_and_never_up(augmented):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    generator = torch.Generator() if augmented else None
    for side, expected in {0: 8, 5: 5, 8: 8, 12: 8}.items():
        options = {"rotation": 0.0, "side": side, "generator": generator}
        images = ImageBatches(pixels, range(4), [0] * 4, (0.0,) * 3, (1.0,) * 3, **options)[[0, 1]][0]
        assert images.shape == (2, 3, expected, expected)
    small = ImageBatches(pixels, range(4), [0] * 4, (0.0,) * 3, (1.0,) * 3, side=4)[[3]][0]
    reference = transforms.resize(torch.from_numpy(pixels[3:]) / 255, [4], antialias=True)
    torch.testing.assert_close(small, reference)
