r"""Gaussians and mixtures of them, fitted by expectation-maximisation; quantiles of mixtures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtr, ndtri

from ..density import logsumexp
from ..keys import generator
from .clusters import spread_points

# How many components are tried, in turn.
_SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 22, 27, 33, 40)
# A component keeps at least this part of the whole's variances: none collapses on a point.
_FLOOR = 1e-5
# Draws that weigh less than so much of the heaviest one tell a fit nothing, and cost as much.
_NEGLIGIBLE = 1e-9
_LOG_2PI = math.log(2.0 * math.pi)


class GaussianMixture(eqx.Module):
    r"""$q(z) = \sum_k w_k\,\mathcal{N}(z \mid \mu_k, L_k L_k^\mathsf{T})$.

    Shapes: `log_weight` (k,), `loc` (k, d), `scale_tril` (k, d, d) lower triangular.
    """

    log_weight: Array
    loc: Array
    scale_tril: Array

    @property
    def kind(self) -> str:
        return "gaussian" if len(self.log_weight) == 1 else "mixture"

    def log_prob(self, z: Array) -> Array:
        dim = self.loc.shape[-1]
        # Triangular and small: inverted once, a whitening is one product for all points.
        whiten = jnp.linalg.inv(self.scale_tril)
        step = z[..., None, :] - self.loc
        squares = jnp.sum(jnp.einsum("kij,...kj->...ki", whiten, step) ** 2, axis=-1)
        log_det = jnp.log(jnp.diagonal(self.scale_tril, axis1=1, axis2=2)).sum(-1)
        return logsumexp(self.log_weight - log_det - 0.5 * (squares + dim * _LOG_2PI), axis=-1)

    def from_unit_cube(self, u: Array) -> Array:
        """Rosenblatt's transform: each coordinate by its distribution given those before it."""
        if len(self.log_weight) == 1:
            return self.loc[0] + jnp.einsum("ij,...j->...i", self.scale_tril[0], ndtri(u))
        rows = u.reshape(-1, u.shape[-1])
        place = jax.vmap(lambda row: self._scan(row, to_cube=False))
        return place(rows).reshape(u.shape)

    def to_unit_cube(self, z: Array) -> Array:
        """The inverse of `from_unit_cube`."""
        if len(self.log_weight) == 1:
            whiten = jnp.linalg.inv(self.scale_tril[0])
            return ndtr(jnp.einsum("ij,...j->...i", whiten, z - self.loc[0]))
        rows = z.reshape(-1, z.shape[-1])
        place = jax.vmap(lambda row: self._scan(row, to_cube=True))
        return place(rows).reshape(z.shape)

    def _scan(self, given: Array, to_cube: bool) -> Array:
        """One point to or from the cube, coordinate by coordinate, (d,) -> (d,)."""

        def step(state: Any, one: Any) -> Any:
            log_weight, white = state
            i, value, loc, row = one
            # What the coordinates so far say about this one, component by component.
            mean = loc + jnp.einsum("kj,kj->k", row, white)
            scale = row[:, i]
            if to_cube:
                z, out = value, mixture_cdf(log_weight, mean, scale, value)
            else:
                z = out = mixture_quantile(log_weight, mean, scale, value)
            residual = (z - mean) / scale
            log_weight = log_weight - 0.5 * residual**2 - jnp.log(scale)
            return (log_weight, white.at[:, i].set(residual)), out

        start = (self.log_weight, jnp.zeros_like(self.loc))
        each = (
            jnp.arange(len(given)),
            given,
            self.loc.T,
            jnp.swapaxes(self.scale_tril, 0, 1),
        )
        return jax.lax.scan(step, start, each)[1]

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        names = ("log_weight", "loc", "scale_tril")
        return {}, {name: np.asarray(getattr(self, name)) for name in names}

    @classmethod
    def from_arrays(
        cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> GaussianMixture:
        del settings
        names = ("log_weight", "loc", "scale_tril")
        return cls(*(jnp.asarray(arrays[name]) for name in names))


# ---- one-dimensional mixtures --------------------------------------------------------------------


def mixture_cdf(log_weight: Array, mean: Array, scale: Array, x: Array) -> Array:
    r"""$\sum_k w_k\,\Phi((x - \mu_k)/\sigma_k)$ of components (k,) at one number x.

    `log_weight` need not be normalised.
    """
    return jnp.sum(jax.nn.softmax(log_weight) * ndtr((x - mean) / scale))


def mixture_quantile(log_weight: Array, mean: Array, scale: Array, u: Array) -> Array:
    r"""The number x with `mixture_cdf` of u in (0, 1): Newton's method inside a closing bracket.

    In the tail where u lies, for the logarithm of the tail's mass, which is nearly straight there.
    """
    weight = jax.nn.softmax(log_weight)
    # The upper tail is the lower one seen in a mirror.
    side = jnp.where(u > 0.5, -1.0, 1.0)
    mean = side * mean
    tail = jnp.maximum(jnp.minimum(u, 1.0 - u), jnp.finfo(u.dtype).tiny)
    log_tail = jnp.log(tail)
    # The quantile of a mixture lies between those of its components.
    ends = mean + scale * ndtri(tail)
    low, high = jnp.min(ends), jnp.max(ends)
    accuracy = 4.0 * jnp.finfo(u.dtype).eps

    def step(state: Any) -> Any:
        x, low, high, _, n = state
        standard = (x - mean) / scale
        mass = jnp.sum(weight * ndtr(standard))
        slope = jnp.sum(weight * jnp.exp(-0.5 * standard**2) / scale) / math.sqrt(2.0 * math.pi)
        low, high = jnp.where(mass < tail, x, low), jnp.where(mass < tail, high, x)
        newton = x - (jnp.log(mass) - log_tail) * mass / slope
        middle = 0.5 * (low + high)
        new = jnp.where((newton > low) & (newton < high), newton, middle)
        # Every fourth step halves the bracket, whatever Newton does.
        new = jnp.where(n % 4 == 3, middle, new)
        close = jnp.abs(newton - x) <= accuracy * (1.0 + jnp.abs(x))
        return jnp.where(close, x, new), low, high, close, n + 1

    def going(state: Any) -> Array:
        x, low, high, close, n = state
        return ~close & (high - low > accuracy * (1.0 + jnp.abs(x))) & (n < 200)

    start = (jnp.sum(weight * ends), low, high, jnp.array(False), 0)
    return side * jax.lax.while_loop(going, step, start)[0]


# ---- fitting -------------------------------------------------------------------------------------


class _Mixture(NamedTuple):
    """A mixture in NumPy, as the iterations see it; shapes as in `GaussianMixture`."""

    weight: np.ndarray
    loc: np.ndarray
    root: np.ndarray


def fit_gaussian(
    key: Any, z: np.ndarray, weight: np.ndarray, *, validation: Any = None, progress: Any = None
) -> GaussianMixture:
    """The Gaussian of largest likelihood: the weighted mean and covariance."""
    del key, validation, progress
    mean, root = moments(z, weight)
    return GaussianMixture(jnp.zeros(1), jnp.asarray(mean)[None], jnp.asarray(root)[None])


def fit_mixture(
    key: Any,
    z: np.ndarray,
    weight: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray],
    progress: Any = None,
    notes: dict[str, Any] | None = None,
    num_components: int | None = None,
    num_starts: int = 3,
) -> GaussianMixture:
    """A mixture of Gaussians by expectation-maximisation, its size by the held-out score.

    Every size has several starts from points that lie far apart, of which the best goes on until
    it has settled. Sizes grow until the score of the held-out draws has stopped growing.

    Args:
        notes: gets the size under "chosen".
        num_components: a size of one's own choice, instead of trying.
        num_starts: starts per size.
    """
    rng = generator(key)
    used = weight > _NEGLIGIBLE * weight.max()
    z, weight = z[used], weight[used] / weight[used].sum()
    held_out, held_weight = validation
    sizes = _SIZES if num_components is None else (num_components,)
    best, best_score, since = None, 0.0, 0
    for done, size in enumerate(sizes):
        mixture = _fitted(rng, z, weight, size, num_starts)
        score = np.logaddexp.reduce(_log_terms(mixture, held_out), axis=0)
        if progress is not None:
            progress(done + 1, len(sizes), f"mixture ({size} components)")
        if best is None or clearly_better(score - best_score, held_weight):
            best, best_score, since = mixture, score, 0
        else:
            since += 1
        if since == 3:
            break
    assert best is not None
    if notes is not None:
        notes["chosen"] = {"num_components": len(best.weight)}
    return GaussianMixture(
        jnp.log(jnp.asarray(best.weight)), jnp.asarray(best.loc), jnp.asarray(best.root)
    )


def clearly_better(gain: np.ndarray, weight: np.ndarray, errors: float = 1.0) -> bool:
    """Whether a mean gain is above so many of its standard errors: else the plainer is kept."""
    mean = weight @ gain
    return bool(mean > errors * np.sqrt(np.sum((weight * (gain - mean)) ** 2)))


def moments(z: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean (d,) and the Cholesky root (d, d) of the covariance of draws (n, d)."""
    mean = weight @ z
    centred = z - mean
    return mean, np.linalg.cholesky((weight[:, None] * centred).T @ centred)


def _fitted(
    rng: np.random.Generator, z: np.ndarray, weight: np.ndarray, size: int, num_starts: int
) -> _Mixture:
    """The best of several starts, iterated until it has settled."""
    mean, root = moments(z, weight)
    if size == 1:
        return _Mixture(np.ones(1), mean[None], root[None])
    floor = _FLOOR * np.diag(np.diag(root @ root.T))
    tried = []
    for _ in range(num_starts):
        loc = spread_points(rng, z, weight, size, root)
        num = len(loc)
        roots = np.repeat(root[None] / num ** (1 / z.shape[1]), num, axis=0)
        tried.append(_iterated(_Mixture(np.full(num, 1 / num), loc, roots), z, weight, floor, 30))
    best = max(tried, key=lambda pair: pair[1])[0]
    return _iterated(best, z, weight, floor, 300)[0]


def _iterated(
    mixture: _Mixture, z: np.ndarray, weight: np.ndarray, floor: np.ndarray, num: int
) -> tuple[_Mixture, float]:
    """At most `num` steps of expectation-maximisation, and the mean log density reached."""
    dim = z.shape[1]
    products = (z[:, :, None] * z[:, None, :]).reshape(len(z), -1)
    before = -math.inf
    for _ in range(num):
        log_terms = _log_terms(mixture, z)
        top = log_terms.max(axis=0)
        share = np.exp(log_terms - top)
        total = share.sum(axis=0)
        score = float(weight @ (np.log(total) + top))
        if score - before < 1e-5:
            break
        before = score
        share *= weight / total
        held = share.sum(axis=1)
        # A component needs more effective draws than its covariance has dimensions.
        kept = held**2 > (dim + 2) * (share**2).sum(axis=1)
        if not kept.any():
            break
        share, held = share[kept], held[kept]
        loc = share @ z / held[:, None]
        second = (share @ products / held[:, None]).reshape(-1, dim, dim)
        covariance = second - loc[:, :, None] * loc[:, None, :] + floor
        mixture = _Mixture(held / held.sum(), loc, np.linalg.cholesky(covariance))
    return mixture, before


def _log_terms(mixture: _Mixture, z: np.ndarray) -> np.ndarray:
    """Weighted log densities of the components at points (n, d), as (k, n)."""
    size, dim = mixture.loc.shape
    whiten = np.linalg.inv(mixture.root)
    white = (whiten.reshape(-1, dim) @ z.T).reshape(size, dim, -1)
    white -= np.einsum("kij,kj->ki", whiten, mixture.loc)[:, :, None]
    log_det = np.log(np.diagonal(mixture.root, axis1=1, axis2=2)).sum(-1)
    constant = np.log(mixture.weight) - log_det - 0.5 * dim * _LOG_2PI
    return constant[:, None] - 0.5 * np.einsum("kdn,kdn->kn", white, white)
