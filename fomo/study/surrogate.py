"""The surrogate of a study: a Gaussian process over a search space, and where to look next. Knows nothing of trials."""

import math
from collections.abc import Sequence

import numpy as np
from bayes_opt import BayesianOptimization
from bayes_opt.acquisition import AcquisitionFunction
from bayes_opt.parameter import wrap_kernel
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.special import erfcx, ndtr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from fomo.study.space import Space

# Priors of the kernel's logarithms, (mean, standard deviation). Lengths are in units of the cube's side. Losses come
# with noise, but whoever tunes something exact should not be told to expect any: hence the wide last one.
AMPLITUDE, LENGTH, LENGTH_OF_CHOICE, NOISE = (0.0, 1.0), (math.log(0.5), 1.0), (math.log(2.0), 1.0), (-8.0, 3.0)

SAME = 1e-3  # configurations nearer than this to a trial's would only repeat it: training is deterministic here


class Surrogate:
    """A Gaussian process (Matern 5/2, a length scale for each column, fitted noise) of losses over a search space.

    What it models is log(1 + (loss - lowest) / (median - lowest)): a few huge losses do not flatten the rest. Losses
    that are not finite count as the highest that is. Its kernel is fitted under weak priors on its length scales and
    noise, for 10 trials do not tell 8 length scales. `pending` configurations, whose losses are not known yet, are
    believed to turn out as predicted (Kriging believer), so that nobody tries their neighbourhood at the same time.
    """

    def __init__(
        self,
        space: Space,
        configurations: Sequence[dict],
        losses: Sequence[float],
        *,
        seed,
        pending: Sequence[dict] = (),
    ):
        self.space = space
        losses = np.asarray(losses, dtype=float)
        finite = losses[np.isfinite(losses)]
        self._lowest = finite.min()
        self._unit = float(np.median(finite) - self._lowest) or 1.0
        warped = np.log1p((np.where(np.isfinite(losses), losses, finite.max()) - self._lowest) / self._unit)
        self._acquisition = LogExpectedImprovement(space, [space.encode(configuration) for configuration in pending])
        self._names = [f"{number:03}" for number in range(len(space))]  # the library sorts names
        self._optimizer = BayesianOptimization(
            None,
            dict.fromkeys(self._names, (0.0, 1.0)),
            acquisition_function=self._acquisition,
            random_state=np.random.RandomState(seed),
            verbose=0,
            allow_duplicate_points=True,
        )
        prior = [AMPLITUDE]
        for column in space.columns(np.random.default_rng(0).random((64, len(space)))).T:
            prior.append(LENGTH_OF_CHOICE if set(column) <= {0.0, 1.0} else LENGTH)
        prior = np.array([*prior, NOISE])
        start = np.exp(prior[:, 0])
        kernel = ConstantKernel(start[0], (1e-2, 1e2)) * Matern(start[1:-1], (5e-2, 1e2), nu=2.5)
        self._optimizer.set_gp_params(
            kernel=wrap_kernel(kernel + WhiteKernel(start[-1], (1e-6, 1.0)), transform=space.columns),
            optimizer=_posterior_mode(prior),
            n_restarts_optimizer=1,
        )
        tried = {}  # the library takes a place once
        for configuration, value in zip(configurations, warped, strict=True):
            tried.setdefault(tuple(space.encode(configuration)), []).append(value)
        for place, values in tried.items():
            self._optimizer.register(dict(zip(self._names, place, strict=True)), -np.mean(values))  # it maximises

    def suggest(self) -> dict:
        """The configuration that promises most."""
        place = self._optimizer.suggest()
        return self.space.decode([place[name] for name in self._names])

    def predict(self, configurations: Sequence[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The median of the loss of a new trial of each configuration, and the ends of the band that holds 95%."""
        mean, std = self._optimizer.predict([self._point(c) for c in configurations], return_std=True)
        return tuple(self._lowest + self._unit * np.expm1(-mean + shift * std) for shift in (0, -1.96, 1.96))

    def importance(self) -> np.ndarray:
        """The share of the (warped) loss's variance that each parameter is involved in, alone or with others.

        The total index of the functional ANOVA of the surrogate's mean, over the whole space (Jansen's estimator:
        Saltelli et al. 2010, doi:10.1016/j.cpc.2009.09.018, table 2 f). Shares overlap where parameters interact.
        """
        rng, count = np.random.default_rng(0), 2000
        base, other = rng.random((2, count, len(self.space)))
        places = [base]
        for number in range(len(self.space)):
            places.append(base.copy())
            places[-1][:, number] = other[:, number]
        points = [dict(zip(self._names, place, strict=True)) for place in np.concatenate(places)]
        values = self._optimizer.predict(points).reshape(len(places), count)
        return ((values[0] - values[1:]) ** 2).mean(axis=1) / (2 * max(values[0].var(), 1e-12))

    def _point(self, configuration: dict) -> dict[str, float]:
        return dict(zip(self._names, self.space.encode(configuration), strict=True))


class LogExpectedImprovement(AcquisitionFunction):
    """log of the expected improvement over the best predicted mean (Ament et al., arXiv:2310.20708, eq. 9).

    The logarithm can still be climbed where the improvement itself is too small a number. It is maximised over random
    places and then by ever smaller random steps from the best of them, which works for choices as well as for numbers.
    """

    def __init__(self, space: Space, pending: list[np.ndarray]):
        super().__init__()
        self.space = space
        self.pending = pending

    def base_acq(self, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        """log EI of the true loss, without the noise of a trial."""
        std = np.sqrt(np.maximum(std**2 - self.noise, 1e-12))
        return _log_h((mean - self.best) / std) + np.log(std)

    def suggest(self, gp: GaussianProcessRegressor, target_space, *args, random_state, **kwargs) -> np.ndarray:
        """The best place found, shape (parameters,)."""
        self._fit_gp(gp, target_space)
        places, losses = target_space.params, target_space.target
        self.noise = gp.kernel_.k2.noise_level * float(gp._y_train_std) ** 2
        if self.pending:
            places = np.vstack([places, self.pending])
            losses = np.concatenate([losses, gp.predict(np.array(self.pending))])
            gp = GaussianProcessRegressor(gp.kernel_, optimizer=None, alpha=gp.alpha, normalize_y=True)
            gp.fit(places, losses)
        self.best = gp.predict(places).max()

        def value(candidates: np.ndarray) -> np.ndarray:
            again = cdist(self.space.columns(candidates), self.space.columns(places)).min(axis=1) < SAME
            return np.where(again, -np.inf, self.base_acq(*gp.predict(candidates, return_std=True)))

        candidates = random_state.uniform(size=(2000, places.shape[1]))
        starts = np.vstack([candidates[np.argsort(-value(candidates))[:5]], places[np.argsort(-losses)[:3]]])
        for step in 0.1 * 0.6 ** np.arange(8):
            moves = random_state.normal(scale=step, size=(len(starts), 40, places.shape[1]))
            moves *= random_state.uniform(size=moves.shape) < max(0.4, 1 / places.shape[1])
            moves[:, 0] = 0
            moved = (starts[:, None] + moves).clip(0, 1)
            values = value(moved.reshape(-1, places.shape[1])).reshape(moved.shape[:2])
            starts = moved[np.arange(len(starts)), values.argmax(axis=1)]
        return starts[value(starts).argmax()]

    def get_acquisition_params(self) -> dict:
        return {}

    def set_acquisition_params(self, params: dict) -> None:
        pass


def _posterior_mode(prior: np.ndarray):
    """An optimizer for scikit-learn's regressor: maximises the likelihood times normal priors of the kernel's theta."""
    mean, std = prior.T

    def optimize(objective, theta: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, float]:
        def penalised(theta: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = objective(theta, eval_gradient=True)
            return value + 0.5 * (((theta - mean) / std) ** 2).sum(), gradient + (theta - mean) / std**2

        result = minimize(penalised, theta, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 100})
        return result.x, result.fun

    return optimize


def _log_h(z: np.ndarray) -> np.ndarray:
    """log(phi(z) + z Phi(z)), accurate where the sum itself is 0 in floating point (z far below 0)."""
    near, low = np.clip(z, -1e3, -1.0), np.minimum(z, -1.0)
    tail = np.log1p(math.sqrt(math.pi / 2) * near * erfcx(-near / math.sqrt(2)))
    far = -2 * np.log(-low)  # of which the line above would lose all digits
    high = np.maximum(z, -1.0)
    density = -(z**2) / 2 - math.log(2 * math.pi) / 2
    direct = np.log(np.exp(-(high**2) / 2) / math.sqrt(2 * math.pi) + high * ndtr(high))
    return np.where(z > -1, direct, density + np.where(low > -1e3, tail, far))
