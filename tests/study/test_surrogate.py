import math
import warnings

import mpmath
import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from fomo.study.space import Choice, Float, Space
from fomo.study.surrogate import LogExpectedImprovement, Surrogate, _log_h, _posterior_mode

PLANE = Space(x=Float(0.0, 1.0), y=Float(0.0, 1.0))
OPTIMIZERS = Space(
    lr=Float(1e-6, 1e-1, log=True),
    momentum=Float(0.1, 0.9, when=("optimizer", "sgd")),
    optimizer=Choice(("adam", "sgd", "rmsprop")),
    layers=Choice((1, 2, 3)),
)


def bowl(point):
    return 3 * (point["x"] - 0.7) ** 2 + (point["y"] - 0.2) ** 2


def training(point):
    """A made-up validation loss: best with sgd, a learning rate of 1e-3, a momentum of 0.8, 2 layers."""
    loss = 0.3 * abs(math.log10(point["lr"]) + 3) + abs(point["layers"] - 2)
    return loss + {"adam": 0.5, "sgd": 2 * abs((point["momentum"] or 0) - 0.8), "rmsprop": 0.7}[point["optimizer"]]


def draw(space, count, seed=0):
    return [space.decode(place) for place in np.random.default_rng(seed).random((count, len(space)))]


def fitted(function, count=25, space=PLANE, *, seed=0, **options):
    points = draw(space, count)
    return Surrogate(space, points, [function(point) for point in points], seed=seed, **options)


def distance(space, one, other):
    """How far two configurations are apart in the space's columns."""
    return np.linalg.norm(np.subtract(*space.columns(np.array([space.encode(one), space.encode(other)]))))


# ---- what it predicts


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("offset", [-50.0, 0.0, 2.0])
def test_smooth_function_is_predicted_in_its_own_units(scale, offset):
    new = draw(PLANE, 40, seed=1)
    truth = np.array([offset + scale * bowl(point) for point in new])
    median, low, high = fitted(lambda point: offset + scale * bowl(point)).predict(new)
    assert np.abs(median - truth).max() < 0.1 * np.ptp(truth)
    assert (low <= median).all()
    assert (median <= high).all()
    assert np.mean((low <= truth) & (truth <= high)) > 0.8


def test_trials_themselves_are_predicted_nearly_exactly():
    points = draw(PLANE, 20)
    median, low, high = fitted(bowl, 20).predict(points)
    assert median == pytest.approx([bowl(point) for point in points], abs=0.02)
    assert (high - low < 0.2).all()


def test_band_is_wider_where_nothing_was_tried():
    points = [{"x": 0.4 * point["x"], "y": point["y"]} for point in draw(PLANE, 15)]
    surrogate = Surrogate(PLANE, points, [math.sin(5 * p["x"]) + p["y"] for p in points], seed=0)
    _, low, high = surrogate.predict([{"x": 0.2, "y": 0.5}, {"x": 1.0, "y": 0.5}])
    assert high[1] - low[1] > 3 * (high[0] - low[0])


@pytest.mark.parametrize("huge", [1e3, 1e12, math.inf, math.nan, -math.inf])
def test_few_huge_losses_do_not_flatten_the_rest(huge):
    points, new = draw(PLANE, 30), draw(PLANE, 40, seed=1)
    losses = [huge if point["x"] < 0.1 else bowl(point) for point in points]
    assert 1 < sum(point["x"] < 0.1 for point in points) < 6
    new = [point for point in new if point["x"] > 0.3]
    median = Surrogate(PLANE, points, losses, seed=0).predict(new)[0]
    truth = [bowl(point) for point in new]
    assert np.abs(median - truth).max() < 0.4
    assert np.corrcoef(median, truth)[0, 1] > 0.9


def test_loss_that_is_not_finite_counts_as_the_highest():
    points = draw(PLANE, 12)
    losses = [bowl(point) for point in points]
    expected = Surrogate(PLANE, points, [*losses[:-1], max(losses[:-1])], seed=0).predict(points)
    for worst in (math.inf, math.nan):
        predicted = Surrogate(PLANE, points, [*losses[:-1], worst], seed=0).predict(points)
        assert np.allclose(predicted, expected, atol=0.02)


def test_noise_is_told_from_signal():
    rng = np.random.default_rng(0)
    new = [{"x": x, "y": 0.5} for x in np.linspace(0.1, 0.9, 9)]
    median, low, high = fitted(lambda point: 1 + 4 * point["x"] + 0.3 * rng.normal(), 60).predict(new)
    assert np.abs(median - [1 + 4 * point["x"] for point in new]).max() < 0.6
    assert (high - low > 0.5).all()  # a new trial has noise, too


def test_momentum_has_no_influence_where_it_does_not_act():
    surrogate = fitted(training, 30, OPTIMIZERS)
    points = [{"lr": 1e-3, "momentum": m, "optimizer": "adam", "layers": 2} for m in (None, 0.1, 0.5, 0.9)]
    for values in surrogate.predict(points):
        assert values.tolist() == [values[0]] * 4
    points = [point | {"optimizer": "sgd"} for point in points[1:]]
    assert len(set(surrogate.predict(points)[0])) == 3


def test_trials_under_adam_do_not_mislead_about_momentum():
    """Adam is bad here; were its inactive momentum taken for 0.5, sgd would look bad there."""
    points = [{"lr": 1e-3, "momentum": m, "optimizer": "sgd", "layers": 2} for m in (0.1, 0.25, 0.7, 0.9)]
    others = [{"lr": 10**-e, "momentum": None, "optimizer": "adam", "layers": 2} for e in (2, 2.5, 3, 3.5, 4)]
    surrogate = Surrogate(OPTIMIZERS, points + others, [1.0, 1.01, 1.0, 1.01] + [5.0] * 5, seed=0)
    sgd, adam = surrogate.predict([points[0] | {"momentum": 0.5}, others[2]])[0]
    assert sgd < 1.5
    assert adam > 3


# ---- where it looks next


@pytest.mark.parametrize("count", [1, 2, 10])
def test_suggestion_lies_in_the_space(count):
    for seed in range(3):
        suggestion = fitted(training, count, OPTIMIZERS, seed=seed).suggest()
        assert list(suggestion) == list(OPTIMIZERS)
        assert 1e-6 <= suggestion["lr"] <= 1e-1
        assert suggestion["layers"] in (1, 2, 3)
        if suggestion["optimizer"] == "sgd":
            assert 0.1 <= suggestion["momentum"] <= 0.9
        else:
            assert suggestion["momentum"] is None


def test_suggestion_is_the_place_that_the_acquisition_chose(monkeypatch):
    """Not one coordinate of it and another of a second maximisation."""
    chosen = []
    suggest = LogExpectedImprovement.suggest
    monkeypatch.setattr(
        LogExpectedImprovement, "suggest", lambda *args, **kwargs: chosen.append(suggest(*args, **kwargs)) or chosen[-1]
    )
    suggestion = fitted(training, 10, OPTIMIZERS).suggest()
    assert len(chosen) == 1
    assert suggestion == OPTIMIZERS.decode(chosen[0])


def test_suggestion_has_a_higher_acquisition_than_any_random_place(monkeypatch):
    kept = []
    suggest = LogExpectedImprovement.suggest

    def keep(self, gp, *args, **kwargs):
        place = suggest(self, gp, *args, **kwargs)
        values = [self.base_acq(*gp.predict(places, return_std=True)) for places in (place[None], kept_places)]
        kept.append((values[0][0], values[1].max()))
        return place

    kept_places = np.random.default_rng(5).random((5000, 2))
    monkeypatch.setattr(LogExpectedImprovement, "suggest", keep)
    for seed in range(3):
        fitted(bowl, 8, seed=seed).suggest()
    assert all(found > random - 0.01 for found, random in kept)


def test_same_seed_makes_the_same_suggestion_and_another_may_make_another():
    first = fitted(training, 12, OPTIMIZERS, seed=3).suggest()
    assert fitted(training, 12, OPTIMIZERS, seed=3).suggest() == first
    assert any(fitted(training, 12, OPTIMIZERS, seed=seed).suggest() != first for seed in (4, 5))


def test_suggestion_does_not_depend_on_what_was_drawn_elsewhere():
    first = fitted(bowl, 8).suggest()
    np.random.seed(99)
    assert fitted(bowl, 8).suggest() == first


@pytest.mark.parametrize(("space", "function"), [(PLANE, bowl), (OPTIMIZERS, training)])
def test_pending_configuration_is_avoided(space, function):
    first = fitted(function, 10, space).suggest()
    second = fitted(function, 10, space, pending=[first]).suggest()
    assert distance(space, first, second) > 0.05


def test_many_pending_configurations_spread():
    pending = []
    for seed in range(6):
        pending.append(fitted(bowl, 6, seed=seed, pending=pending).suggest())
    distances = [distance(PLANE, a, b) for number, a in enumerate(pending) for b in pending[:number]]
    assert min(distances) > 0.02
    assert max(distances) > 0.2


def test_what_was_tried_is_not_tried_again():
    """Every configuration of a small space comes once, and only then again."""
    space = Space(optimizer=Choice(("adam", "sgd")), layers=Choice((1, 2, 3)))
    tried = [{"optimizer": "adam", "layers": 1}]
    for seed in range(5):
        tried.append(Surrogate(space, tried, [1.0] * len(tried), seed=seed).suggest())
    assert len({tuple(configuration.values()) for configuration in tried}) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Surrogate(space, [*tried, tried[0]], range(7), seed=0).suggest()
    assert again in tried


def test_equal_losses_are_no_obstacle():
    suggestion = Surrogate(PLANE, draw(PLANE, 8), [2.0] * 8, seed=0).suggest()
    assert all(0 <= value <= 1 for value in suggestion.values())
    assert np.isfinite(Surrogate(PLANE, draw(PLANE, 8), [2.0] * 8, seed=0).predict([suggestion])).all()


def test_repeated_configuration_counts_with_its_mean():
    points, losses = draw(PLANE, 8), [2.0, 1.0, 3.0, 1.5, 2.5, 1.2, 2.2, 2.8]
    repeated = [*points, points[0], points[0]]
    means = [Surrogate(PLANE, repeated, [*losses, *more], seed=0).predict(points)[0] for more in ((1, 3), (3, 1))]
    assert means[0] == pytest.approx(means[1], abs=1e-6)
    assert means[0][0] == pytest.approx(2.0, abs=0.2)


def test_best_is_not_tried_again_though_all_others_are_much_worse():
    space = Space(choice=Choice(tuple(range(6))))
    tried = [{"choice": choice} for choice in range(5)]
    for seed in range(3):
        assert Surrogate(space, tried, [0.0, 9.0, 9.1, 9.2, 9.3], seed=seed).suggest() == {"choice": 5}


def test_acquisition_is_of_the_loss_itself_without_the_noise_of_a_trial():
    acquisition = LogExpectedImprovement(PLANE, [])
    acquisition.noise, acquisition.best = 0.16, 1.0
    value = acquisition.base_acq(np.array([1.0, 4.0]), np.array([0.5, 0.5]))  # the loss's own deviation is 0.3
    assert value[0] == pytest.approx(math.log(0.3 / math.sqrt(2 * math.pi)))
    assert value[1] == pytest.approx(math.log(3.0))


@pytest.mark.parametrize(
    ("space", "function", "start"), [(PLANE, bowl, 4), (OPTIMIZERS, training, 6)], ids=["bowl", "training"]
)
def test_it_finds_more_than_random_search(space, function, start):
    budget, found, random = 14, [], []
    for seed in range(5):
        tried = draw(space, start, seed=100 + seed)
        while len(tried) < budget:
            tried.append(Surrogate(space, tried, [function(point) for point in tried], seed=seed).suggest())
        found.append(min(function(point) for point in tried))
        draws = [draw(space, budget, seed=1000 * seed + number) for number in range(20)]
        random += [min(function(point) for point in drawn) for drawn in draws]
    assert np.mean(found) < 0.5 * np.mean(random)


# ---- what matters


def test_importance_of_a_parameter_that_matters_and_of_one_that_does_not():
    x, y = fitted(lambda point: 5 * point["x"]).importance()
    assert x == pytest.approx(1, abs=0.03)
    assert y < 0.02


def test_importance_of_an_interaction_is_counted_for_both():
    """The sign of (x - 0.5) (y - 0.5) is nothing but interaction: neither alone tells anything."""
    space = Space(x=Choice((-1, 1)), y=Choice((-1, 1)), z=Float(0, 1))
    importance = fitted(lambda point: point["x"] * point["y"], 20, space).importance()
    assert importance == pytest.approx([1, 1, 0], abs=0.1)


def test_importance_adds_up_to_one_where_nothing_interacts():
    """On the surrogate's scale, which is the logarithm of the loss above the lowest: hence a loss that is exp of it."""
    points = [{"x": 0.0, "y": 0.0}, *draw(PLANE, 30)]
    losses = np.exp([3 * point["x"] + point["y"] for point in points])
    importance = Surrogate(PLANE, points, losses, seed=0).importance()
    assert importance.sum() == pytest.approx(1, abs=0.15)
    assert importance[0] > 2 * importance[1] > 0.05


def test_importance_of_a_constant_is_nothing():
    assert Surrogate(PLANE, draw(PLANE, 8), [2.0] * 8, seed=0).importance().tolist() == [0, 0]


# ---- the maths


def exact_log_h(z):
    """log(phi(z) + z Phi(z)) with more digits than it loses: there, z Phi(z) is all but -phi(z)."""
    with mpmath.workdps(60):
        z = mpmath.mpf(z)
        cdf = mpmath.erfc(-z / mpmath.sqrt(2)) / 2
        return float(mpmath.log(mpmath.npdf(z) + z * cdf))


@pytest.mark.parametrize(
    "z", [-1e8, -1e5, -12345.6, -1000.1, -1000.0, -999.9, -300, -50, -10, -3, -1.0001, -1, -0.9999, -0.3, 0, 0.5, 3, 10]
)
def test_logarithm_of_the_improvement_is_accurate(z):
    assert _log_h(np.array([float(z)]))[0] == pytest.approx(exact_log_h(z), rel=1e-9, abs=1e-9)


def test_logarithm_of_the_improvement_is_finite_and_rises():
    z = np.concatenate([-np.geomspace(1e9, 1e-3, 3000), np.linspace(0, 10, 500)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = _log_h(z)
    assert np.isfinite(values).all()
    assert (np.diff(values) > 0).all()


def test_mode_is_that_of_a_normal_likelihood_and_a_normal_prior():
    """The optimum of two parabolas is the mean of their centres, weighted by their curvatures."""
    centre, curvature = np.array([2.0, -1.0, 30.0]), np.array([4.0, 1.0, 2.0])
    prior = np.array([(0.0, 1.0), (3.0, 0.5), (0.0, 100.0)])

    def likelihood(theta, eval_gradient):
        assert eval_gradient
        return 0.5 * (curvature * (theta - centre) ** 2).sum(), curvature * (theta - centre)

    bounds = np.array([(-10.0, 10.0)] * 3)
    theta, value = _posterior_mode(prior)(likelihood, np.zeros(3), bounds)
    weight = prior[:, 1] ** -2
    expected = np.minimum((curvature * centre + weight * prior[:, 0]) / (curvature + weight), 10)
    assert theta == pytest.approx(expected, abs=1e-4)
    penalty = 0.5 * (weight * (theta - prior[:, 0]) ** 2).sum()
    assert value == pytest.approx(likelihood(theta, True)[0] + penalty)


def test_mode_of_a_gaussian_process_is_near_its_prior_where_there_is_next_to_no_data():
    prior = np.array([(0.0, 1.0), (math.log(0.5), 1.0), (-8.0, 3.0)])
    start = np.exp(prior[:, 0])
    kernel = ConstantKernel(start[0], (1e-2, 1e2)) * Matern(start[1], (5e-2, 1e2), nu=2.5)
    kernel += WhiteKernel(start[2], (1e-6, 1.0))
    process = GaussianProcessRegressor(kernel, optimizer=_posterior_mode(prior)).fit([[0.1], [0.8]], [0.5, -0.3])
    assert np.abs(process.kernel_.theta - prior[:, 0]).max() < 1
