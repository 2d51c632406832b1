"""The contest, on images whose answer is known: what tells their classes apart is drawn."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

import fomo
from fomo.data.datasets import load_dataset
from fomo.stages.contest import contest
from fomo.stages.facts import Facts

NAME = "tf_efficientnet_lite0"
SPEEDS = pd.DataFrame(
    {"backbone": [NAME], "side": [64], "forward": [300.0], "train": [100.0], "kept": [1e6], "bank": [0.01]}
)
FACTS = {
    "classes": 2,
    "smallest": 40,
    "grouped": False,
    "side": 64,
    "grey": False,
    "ranges": {},
    "decoded": 500.0,
    "free": 1e9,
    "solver": 1.0,
}


def arrows(label, rng):
    """An arrow to the left or to the right, somewhere."""
    image, (x, y) = blank(rng, (64, 64)), rng.integers(8, 16, 2)
    draw, length = ImageDraw.Draw(image), 36
    draw.line((x, y + 16, x + length, y + 16), "white", 5)
    tip, back = (x, x + 16) if label == 0 else (x + length, x + length - 16)
    draw.polygon([(tip, y + 16), (back, y), (back, y + 32)], "white")
    return image


def shapes(label, rng):
    """A circle or a square, somewhere."""
    image, (x, y), size = blank(rng, (64, 64)), rng.integers(4, 28, 2), rng.integers(18, 30)
    draw = ImageDraw.Draw(image)
    (draw.ellipse if label == 0 else draw.rectangle)((x, y, x + size, y + size), "white")
    return image


def ends(label, rng):
    """A wide image with a circle or a square at both ends, and nothing between."""
    image = blank(rng, (96, 24))
    draw = ImageDraw.Draw(image)
    for x in (2, 76):
        (draw.ellipse if label == 0 else draw.rectangle)((x, 3, x + 18, 21), "white")
    return image


def blank(rng, size):
    """A dark, noisy image."""
    return Image.fromarray(rng.integers(0, 60, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def held(tmp_path):
    """Holds the contest for images that a function draws; what it finds."""

    def hold(draw, aspect=1.0, images=50, sides=(64,), **asked):
        folder, pixels, rng = tmp_path / "photos", tmp_path / "pixels", np.random.default_rng(0)
        pixels.mkdir()
        for label in (0, 1):
            (folder / str(label)).mkdir(parents=True)
            for number in range(images):
                draw(label, rng).save(folder / str(label) / f"{number:03}.png")
        run, dataset = fomo.Run(folder, "auto", **asked), load_dataset(str(folder))
        facts = Facts(train=len(dataset.train), test=len(dataset.test()), aspect=aspect, speeds=SPEEDS, **FACTS)
        found = contest(run, dataset, facts, [NAME], list(sides), 1.0, pixels)
        assert not list(pixels.iterdir())  # no pixels are left behind
        return found

    return hold


def test_images_that_left_and_right_tell_apart_are_not_mirrored(held):
    found = held(arrows)
    assert found.table["accuracy"].iloc[0] > 0.8
    assert found.flip == "none"
    assert found.turns["turned"].tolist() == ["as it is", "mirrored", "cut-outs"]


def test_images_that_are_the_same_in_the_mirror_are_mirrored(held):
    found = held(shapes)
    assert found.table["accuracy"].iloc[0] > 0.8
    assert found.flip != "none"
    assert found.turns.set_index("turned").loc["mirrored", "taken"]


def lit(label, rng):
    """A circle or a square, small and dim, with light from above."""
    image, (x, y), size = rng.integers(0, 140, (64, 64, 3), dtype=np.uint8), rng.integers(4, 40, 2), rng.integers(6, 10)
    image = Image.fromarray(image)
    draw = ImageDraw.Draw(image)
    (draw.ellipse if label == 0 else draw.rectangle)((x, y, x + size, y + size), (130, 130, 130))
    return Image.fromarray(np.uint8(np.asarray(image) + np.linspace(90, 0, 64)[:, None, None]))


def test_images_that_have_an_upright_are_not_turned_upside_down(held):
    found = held(lit)
    turned = found.turns.set_index("turned").loc["upside down"]
    assert turned["difference"] < 0  # more views of few images help
    assert turned["told"] > 0.9
    assert found.flip == "horizontal"


def test_wide_images_whose_ends_tell_them_apart_are_not_cropped(held):
    found = held(ends, aspect=4.0)
    accuracy = found.table.set_index("fit")["accuracy"]
    assert sorted(accuracy.index) == ["crop", "pad", "squish"]
    assert found.fit != "crop"
    assert accuracy[found.fit] > accuracy["crop"]


def test_fit_that_was_asked_for_is_the_only_one(held):
    found = held(ends, aspect=4.0, images=20, fit="pad")
    assert (found.fit, found.table["fit"].tolist()) == ("pad", ["pad"])


def test_every_side_is_a_row(held):
    found = held(shapes, images=20, sides=(48, 64, 80))
    assert found.table["side"].tolist() == [48, 64, 80]


def patterns(label, rng):
    """Stripes or checks all over, at any size."""
    step, (width, height) = rng.integers(3, 8), (64, 64)
    rows, columns = np.indices((height, width)) // step
    of = (rows if label == 0 else rows + columns) % 2
    return Image.fromarray(np.uint8(of * 180 + rng.integers(0, 60, (height, width)))).convert("RGB")


def sizes(label, rng):
    """A circle in the middle, which is larger in one class."""
    image, radius = blank(rng, (64, 64)), 14 if label else 11
    ImageDraw.Draw(image).ellipse((32 - radius, 32 - radius, 32 + radius, 32 + radius), "white")
    return image


def test_cut_outs_are_taken_where_a_part_shows_what_the_whole_does(held):
    assert held(patterns).cuts


def test_cut_outs_are_not_taken_where_they_lose_what_matters(held):
    assert not held(sizes).cuts


@pytest.mark.parametrize("images", [3, 5])
def test_few_images_are_enough(held, images):
    found = held(shapes, images=images)
    assert np.isfinite(found.table["log_loss"]).all()
