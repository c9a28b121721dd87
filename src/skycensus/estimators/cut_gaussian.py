r"""A Gaussian cut off by the bounds of its parameters: normals between bounds, in turn."""

from __future__ import annotations

import itertools
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.special import log_ndtr

from ..weights import kish
from .coordinates import Coordinates
from .gaussian import clearly_better
from .triangular import Triangular, before

__all__ = ["Triangular", "fit_cut"]

# Degrees of the mean and of the log scale in the coordinates before, from the plainest on.
_DEGREES = ((1, 0), (2, 0), (1, 1), (2, 1))
# The standard deviation of the prior of a coefficient, in standardised parameters.
_PRIOR = 3.0


def fit_cut(
    key: Any,
    z: np.ndarray,
    weight: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray],
    coordinates: Coordinates,
    progress: Any = None,
) -> Triangular:
    r"""Normals between the declared bounds, each given the parameters before it, by likelihood.

    In the parameters themselves, not freed of their bounds: a posterior that a prior cuts off is
    smooth there. Each parameter's mean and log scale are polynomials of those before it, of the
    degrees with the best held-out score. A periodic parameter is cut where draws are sparsest.
    """
    del key
    sides = tuple(
        "two" if two else "below" if below else "above" if above else "none"
        for two, below, above in zip(
            coordinates.two, coordinates.below, coordinates.above, strict=True
        )
    )
    dim = z.shape[1]
    plain = Triangular(
        coordinates.mean,
        coordinates.root,
        jnp.zeros(dim),
        jnp.ones(dim),
        jnp.zeros((dim, 1 + dim + dim**2)),
        jnp.zeros((dim, 1 + dim)),
        sides,
        "cut",
    )
    t = np.asarray(_bounded(plain, z), float)
    shift = weight @ t
    spread = np.sqrt(weight @ (t - shift) ** 2)
    standard = _replaced(plain, shift=shift, spread=spread)
    rows = (t - shift) / spread
    held = np.asarray(_bounded(standard, validation[0]), float)
    n_eff = kish(np.log(weight[weight > 0]))
    loc, log_scale = np.array(plain.loc), np.array(plain.log_scale)
    for i, side in enumerate(sides):
        low = -shift[i] / spread[i] if side in ("two", "below") else -np.inf
        top = 1.0 if side == "two" else 0.0
        high = (top - shift[i]) / spread[i] if side in ("two", "above") else np.inf
        loc[i], log_scale[i] = _coefficients(
            i, rows, weight, n_eff, held, validation[1], (low, high)
        )
        if progress is not None:
            progress(i + 1, dim, "cut Gaussian")
    return _replaced(standard, loc=loc, log_scale=log_scale)


@eqx.filter_jit
def _bounded(estimate: Triangular, z: np.ndarray) -> Any:
    return estimate.bounded(z)


def _replaced(estimate: Triangular, **arrays: np.ndarray) -> Triangular:
    names = ("mean", "root", "shift", "spread", "loc", "log_scale")
    every = {n: jnp.asarray(arrays.get(n, getattr(estimate, n))) for n in names}
    return Triangular(**every, sides=estimate.sides, kind=estimate.kind)


def _coefficients(
    i: int,
    t: np.ndarray,
    weight: np.ndarray,
    n_eff: float,
    held: np.ndarray,
    held_weight: np.ndarray,
    ends: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of coordinate i's mean and log scale, of the degrees that predict best."""
    dim = t.shape[1]
    best = None
    for degree, scale_degree in _DEGREES if i else _DEGREES[:1]:
        kept = before(dim, degree)[i]
        scale_kept = before(dim, 1)[i] if scale_degree else np.arange(1 + dim) == 0
        features, scale_features = _features(t, kept), _features(t, scale_kept)
        x = _climbed(features, scale_features, t[:, i], weight, n_eff, ends)
        features, scale_features = _features(held, kept), _features(held, scale_kept)
        score = _slopes(x, features, scale_features, held[:, i], ends)[0]
        if best is None or clearly_better(score - best[0], held_weight):
            best = score, kept, scale_kept, x
    assert best is not None
    _, kept, scale_kept, x = best
    loc, log_scale = np.zeros(1 + dim + dim**2), np.zeros(1 + dim)
    num = int(kept.sum())
    loc[np.flatnonzero(kept)], log_scale[np.flatnonzero(scale_kept)] = x[:num], x[num:]
    return loc, log_scale


def _features(t: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The polynomial's terms that are kept, in the order of `Triangular.loc`."""
    dim = t.shape[1]
    every = itertools.chain(
        [()], ((j,) for j in range(dim)), itertools.product(range(dim), repeat=2)
    )
    inner = np.clip(t, -10.0, 10.0)
    columns = [
        np.prod(inner[:, list(term)], axis=1)
        for term, keep in zip(every, kept, strict=False)
        if keep
    ]
    return np.stack(columns, axis=1)


def _climbed(
    features: np.ndarray,
    scale_features: np.ndarray,
    t: np.ndarray,
    weight: np.ndarray,
    n_eff: float,
    ends: tuple[float, float],
) -> np.ndarray:
    """Coefficients of largest posterior density, under a faint normal prior."""
    num = features.shape[1]
    root = np.sqrt(weight)
    start = np.zeros(num + scale_features.shape[1])
    start[:num] = np.linalg.lstsq(features * root[:, None], t * root, rcond=None)[0]
    residual = t - features @ start[:num]
    start[num] = 0.5 * np.log(weight @ residual**2 + 1e-20)
    pull = 1.0 / (_PRIOR**2 * n_eff)

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        log_prob, by_loc, by_log_scale = _slopes(x, features, scale_features, t, ends)
        slope = np.concatenate(
            [features.T @ (weight * by_loc), scale_features.T @ (weight * by_log_scale)]
        )
        return -(weight @ log_prob) + 0.5 * pull * x @ x, pull * x - slope

    return minimize(objective, start, jac=True, method="L-BFGS-B").x


def _slopes(
    x: np.ndarray,
    features: np.ndarray,
    scale_features: np.ndarray,
    t: np.ndarray,
    ends: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log densities, and their slopes by the means and the log scales."""
    num = features.shape[1]
    loc = features @ x[:num]
    log_scale = np.clip(scale_features @ x[num:], -10.0, 10.0)
    scale = np.exp(log_scale)
    white = (t - loc) / scale
    log_prob = -0.5 * white**2 - 0.5 * np.log(2 * np.pi) - log_scale
    by_loc, by_log_scale = white / scale, white**2 - 1.0
    low, high = ((end - loc) / scale for end in ends)
    log_mass = _log_interval(low, high)
    for sign, end in ((-1.0, low), (1.0, high)):
        if np.isfinite(end).all():
            ratio = sign * np.exp(-0.5 * end**2 - 0.5 * np.log(2 * np.pi) - log_mass)
            by_loc += ratio / scale
            by_log_scale += ratio * end
    return log_prob - log_mass, by_loc, by_log_scale


def _log_interval(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """As `triangular.log_interval`, in NumPy: many small fits need no compiling."""
    mirrored = low > -high
    lower, upper = np.where(mirrored, -high, low), np.where(mirrored, -low, high)
    log_upper = log_ndtr(upper)
    gap = np.minimum(log_ndtr(lower) - log_upper, -np.finfo(float).eps)
    return log_upper + np.log(-np.expm1(gap))
