"""How unlike the validation images an image is: a share with a known rate of false alarms."""

import numpy as np
import pytest
import torch

from fomo.networks.unlike import Unlike, outside
from fomo.training.calibration import fit_unlike


def drawn(count: int, seed: int) -> torch.Tensor:
    """Features of images of three classes, which differ along ten of 40 axes, and by noise along all."""
    random = np.random.default_rng(seed)
    classes, axes = np.random.default_rng(0).normal(size=(3, 10)), np.random.default_rng(1).normal(size=(10, 40))
    inner = classes[random.integers(0, 3, count)] * 3 + random.normal(size=(count, 10))
    return torch.from_numpy(inner @ axes + random.normal(size=(count, 40))).float()


def test_share_outside_the_axes_is_that_of_the_squared_distance():
    axes = torch.eye(3)[:1]
    features = torch.tensor([[4.0, 4.0, 1.0], [5.0, 1.0, 1.0], [1.0, 1.0, 9.0], [1.0, 1.0, 1.0]])
    assert outside(features, torch.ones(3), axes).tolist() == pytest.approx([0.5, 0.0, 1.0, 1.0])


@pytest.mark.parametrize("count", [60, 400, 3000])
def test_false_alarms_are_as_many_as_the_share_says(count):
    shares = fit_unlike(drawn(count, seed=2))(drawn(2000, seed=3))
    assert float((shares > 0.95).float().mean()) == pytest.approx(0.05, abs=0.05 if count < 100 else 0.02)
    assert float((shares > 0.5).float().mean()) == pytest.approx(0.5, abs=0.15 if count < 100 else 0.05)


def test_other_images_stand_out():
    others = torch.randn(200, 40, generator=torch.Generator().manual_seed(0)) * 9
    assert float((fit_unlike(drawn(400, seed=2))(others) > 0.95).float().mean()) > 0.9


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_images_are_enough_for_a_share(count):
    shares = fit_unlike(drawn(count, seed=2))(drawn(20, seed=3))
    assert ((shares >= 0) & (shares <= 1)).all()


def test_fit_is_the_same_each_time_and_draws_none_of_torchs_random_numbers():
    before = torch.get_rng_state()
    first, second = fit_unlike(drawn(50, seed=2)), fit_unlike(drawn(50, seed=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, two) for one, two in zip(first.buffers(), second.buffers(), strict=True))


def test_share_is_that_of_the_levels_below():
    unlike = Unlike(torch.zeros(2), torch.eye(2)[:1], torch.tensor([0.1, 0.2, 0.6, 0.9]))
    assert unlike(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])).tolist() == [0.0, 0.5, 1.0]
