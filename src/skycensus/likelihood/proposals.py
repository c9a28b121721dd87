r"""Selection by a function of theta, turned into draws once so that one operator integrates both.

A detection probability, or a sensitive volume, $V(\theta)$ known as a function has the integral

$$m_\mathrm{det}(\Lambda) = \int V(\theta)\,\rho(\theta \mid \Lambda)\,d\theta,$$

which importance sampling turns into the sum over draws that `Samples` already does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from ..blocks import in_blocks
from ..density import Density, Population, Theta
from ..errors import InputError
from ..prior import Prior
from ..weights import systematic
from . import LogMarginal
from .samples import Samples

# Points at a time: the density of each is evaluated at every hyperparameter point.
_BLOCK = 4096


def selection_by_function(
    log_p_det: Callable[[Theta], Array],
    population: Population,
    prior: Prior,
    key: Any,
    num: int,
    *,
    num_prior: int = 512,
    pool_factor: int = 16,
    name: str = "selection",
) -> Samples:
    r"""Return draws from $q(\theta)\,V(\theta)/Z$, as a selection for every $\Lambda$ in the prior.

    The proposal is the population averaged over its prior, $q(\theta) = \frac1K \sum_k p(\theta
    \mid \Lambda_k)$ with normalised $p$, which covers whatever the prior allows. A pool of draws
    from it, equally many from each $\Lambda_k$, gives $Z = \langle V \rangle_q$; `num` of them are
    kept by systematic resampling in proportion to $V$, along a curve that fills the space (which
    spreads them evenly). Their `log_ref` is $\ln q - \ln Z$, so that

    $$\hat m_\mathrm{det}(\Lambda) = \frac{Z}{n} \sum_j \frac{\rho(\theta_j \mid
      \Lambda)}{q(\theta_j)},\qquad
      \operatorname{var}(\ln \hat m_\mathrm{det}) = \frac1{n_\mathrm{eff}} - \frac1n,$$

    with the same draws for every $\Lambda$. The variance, which `Samples` states, is that of
    independent draws; these spread more evenly, and in two dimensions the error is about half.

    Args:
        log_p_det: $\ln V$, elementwise over the arrays of theta; $-\infty$ where nothing is found.
        population: hyperparameters -> density or rate density. Its parameters at points of the
            prior where it has no finite density at its own draws are left out.
        prior: of all hyperparameters, resolved.
        key: a JAX key.
        num: how many draws are kept.
        num_prior: K.
        pool_factor: draws in the pool per draw kept.
        name: of the one object of the result.

    Raises:
        InputError: counts that are not positive, $V$ that is NaN or infinite (the point is named),
            nothing detected, or a population without density anywhere in the prior.
    """
    for what, value in {"num": num, "num_prior": num_prior, "pool_factor": pool_factor}.items():
        if value < 1:
            raise InputError(f"selection by a function: {what}={value} must be at least 1.")
    prior_key, pool_key, pick_key = jax.random.split(key, 3)
    complete = jax.vmap(prior.complete, axis_size=num_prior)
    points = complete(prior.sample(prior_key, (num_prior,)))
    each = -(-num * pool_factor // num_prior)
    pool, sound = _pool(population, points, pool_key, each)
    if not sound.any():
        raise InputError(
            f"the population has no finite density at any of {num_prior} points of the prior; "
            "check the prior's bounds (a lower mass limit above the upper one, a negative width)."
        )
    points = {n: x[sound] for n, x in points.items()}
    pool = {n: x[sound].reshape(-1) for n, x in pool.items()}
    order = np.argsort(_place_on_curve([*pool.values()]), kind="stable")
    pool = {n: x[order] for n, x in pool.items()}
    log_v = _log_detection(log_p_det, pool)
    seen = np.isfinite(log_v)
    if not seen.any():
        raise InputError(
            f"nothing is detected: the detection function is zero at all {len(log_v)} draws of the "
            "population; check its parameters' units and order."
        )
    top = log_v.max()
    weight = np.where(seen, np.exp(log_v - top), 0.0)
    chosen = systematic(weight, num, float(jax.random.uniform(pick_key)))
    kept = {n: x[chosen] for n, x in pool.items()}
    log_ref = _log_proposal(population, points, kept) - (math.log(weight.mean()) + top)
    return Samples([kept], [log_ref], names=(name,))


def _pool(
    population: Population, points: Mapping[str, Array], key: Any, each: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """`each` draws at every point, (point, draw), and at which points all have a density."""

    def draw(at: Any) -> tuple[dict[str, Array], Array]:
        h, k = at
        density = population(h)
        theta = density.sample(k, (each,))
        return theta, jnp.all(jnp.isfinite(density.log_prob(theta)))

    count = len(next(iter(points.values())))
    keys = jax.random.split(key, count)
    theta, sound = jax.jit(lambda at: jax.lax.map(draw, at))((points, keys))
    return {n: np.asarray(x) for n, x in theta.items()}, np.asarray(sound)


def _log_detection(
    log_p_det: Callable[[Theta], Array], theta: Mapping[str, np.ndarray]
) -> np.ndarray:
    # A method of a module with arrays cannot be jitted itself.
    value = in_blocks(jax.jit(lambda block: log_p_det(block)), theta, _BLOCK)
    wrong = np.flatnonzero(np.isnan(value) | (value == np.inf))
    if wrong.size:
        at = ", ".join(f"{n}={x[wrong[0]]:.6g}" for n, x in theta.items())
        raise InputError(
            f"the detection function is {value[wrong[0]]} at {at} ({wrong.size} of {len(value)} "
            "draws of the population); it must be a finite logarithm, or -inf for nothing."
        )
    return value


def _log_proposal(
    population: Population, points: Mapping[str, Array], theta: Mapping[str, np.ndarray]
) -> np.ndarray:
    r"""$\ln \frac1K \sum_k p(\theta \mid \Lambda_k)$, with $p$ normalised."""
    count = len(next(iter(points.values())))

    def log_q(at: Theta) -> Array:
        def one(h: Mapping[str, Array]) -> Array:
            density = population(h)
            return density.log_prob(at) - getattr(density, "log_total", 0.0)

        return logsumexp(jax.lax.map(one, dict(points)), axis=0) - math.log(count)

    return in_blocks(jax.jit(log_q), theta, _BLOCK)


def _place_on_curve(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Places of points on Morton's curve through their ranks: near on it is near in space."""
    bits = max(1, min(10, 62 // len(columns)))
    cells = []
    for column in columns:
        rank = np.empty(len(column), np.int64)
        rank[np.argsort(column, kind="stable")] = np.arange(len(column))
        cells.append((rank << bits) // len(column))
    place = np.zeros(len(columns[0]), np.int64)
    for bit in reversed(range(bits)):
        for cell in cells:
            place = (place << 1) | ((cell >> bit) & 1)
    return place


class DetectedBy(eqx.Module):
    r"""A selection whose integral a function computes, with its Monte Carlo variance.

    Args:
        function: `function(density, data)` returns $m_\mathrm{det} \ge 0$ and the Monte Carlo
            variance of that number (not of its logarithm), two scalars under `jax.jit`.
        data: any pytree of arrays that the function needs.
        name: of the one object.
    """

    data: Any
    function: Callable[[Density, Any], tuple[Any, Any]] = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        function: Callable[[Density, Any], tuple[Any, Any]],
        data: Any = None,
        *,
        name: str = "selection",
    ):
        self.function, self.data, self.names = function, data, (name,)

    def log_marginal(self, density: Density) -> LogMarginal:
        r"""$\ln m_\mathrm{det}$ and $\operatorname{var}(m_\mathrm{det}) / m_\mathrm{det}^2$."""
        mean, variance = (jnp.asarray(x, float) for x in self.function(density, self.data))
        none = mean == 0
        safe = jnp.where(none, 1.0, mean)
        value = jnp.where(none, -jnp.inf, jnp.log(safe))
        relative = jnp.where(none, jnp.inf, variance / safe**2)
        return LogMarginal(value.reshape(1), relative.reshape(1))
