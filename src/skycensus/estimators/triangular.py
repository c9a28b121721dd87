r"""Normals one after the other, bent by polynomials and cut at bounds: few numbers, exact maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.scipy.special import log_ndtr, ndtr, ndtri
from scipy.optimize import minimize

from ..keys import generator
from ..weights import kish

# What a normal depends on saturates here, in standard deviations: far out all stays finite.
_SATURATED = 10.0
# Beyond so many standard deviations a tail is an exponential to all digits that matter here.
_FAR = 30.0
# Logarithms of parameters near a bound at infinity: their exponentials still have squares.
_LARGEST_LOG = 150.0
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
# How the kinds of bounds that a parameter can have are called in files.
SIDES = ("none", "two", "below", "above")
_ARRAYS = ("mean", "root", "shift", "spread", "loc", "log_scale")


class Triangular(eqx.Module):
    r"""$t_i \mid t_{<i} \sim \mathcal{N}(m_i(t_{<i}), s_i(t_{<i})^2)$, one after the other, or cut.

    Of coordinates $y = m + R z$ each becomes $t = \Phi(y)$ between two bounds (0 and 1), $e^y$
    above one (0), $-e^{-y}$ below one (0), or y where there is none, and is then standardised.
    $m_i$ is a quadratic and $\ln s_i$ a linear function of the coordinates before: a triangular
    (Knothe-Rosenblatt) map from normals, whose inverse and determinant are at hand.

    Shapes: `mean`, `shift`, `spread` (d,), `root` (d, d); `loc` (d, 1 + d + d d) the coefficients
    of $m_i$ in $(1, t, t \otimes t)$; `log_scale` (d, 1 + d) those of $\ln s_i$ in $(1, t)$; both
    zero for coordinates that do not come before i.
    """

    mean: Array
    root: Array
    shift: Array
    spread: Array
    loc: Array
    log_scale: Array
    sides: tuple[str, ...] = eqx.field(static=True)
    kind: str = eqx.field(static=True)

    def log_prob(self, z: Array) -> Array:
        t, log_slope = self._bounded(z)
        loc, log_scale = self._given(t)
        white = (t - loc) * jnp.exp(-log_scale)
        value = -0.5 * white**2 - _HALF_LOG_2PI - log_scale - jnp.log(self.spread) + log_slope
        if set(self.sides) != {"none"}:
            value = value - log_interval(*self._ends(loc, log_scale))
        return value.sum(-1) + jnp.linalg.slogdet(self.root)[1]

    def from_unit_cube(self, u: Array) -> Array:
        def step(t: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
            i, value = one
            loc, log_scale = self._given(t)
            low, high = self._ends(loc, log_scale)
            white = cut_quantile(low[..., i], high[..., i], value)
            return t.at[..., i].set(loc[..., i] + jnp.exp(log_scale[..., i]) * white), None

        each = (jnp.arange(u.shape[-1]), jnp.moveaxis(u, -1, 0))
        t = jax.lax.scan(step, jnp.zeros_like(u), each)[0]
        y = self._unbounded(t) - self.mean
        return jnp.linalg.solve(self.root, y.reshape(-1, y.shape[-1]).T).T.reshape(u.shape)

    def to_unit_cube(self, z: Array) -> Array:
        """The inverse of `from_unit_cube`."""
        t = self.bounded(z)
        loc, log_scale = self._given(t)
        low, high = self._ends(loc, log_scale)
        white = (t - loc) * jnp.exp(-log_scale)
        return jnp.exp(log_interval(low, white) - log_interval(low, high))

    def _given(self, t: Array) -> tuple[Array, Array]:
        """Mean and log scale of every coordinate given those before it, (..., d) each."""
        inner = jnp.clip(t, -_SATURATED, _SATURATED)
        one = jnp.ones((*t.shape[:-1], 1))
        linear = jnp.concatenate([one, inner], axis=-1)
        squares = (inner[..., :, None] * inner[..., None, :]).reshape(*t.shape[:-1], -1)
        every = jnp.concatenate([linear, squares], axis=-1)
        log_scale = jnp.clip(linear @ self.log_scale.T, -_SATURATED, _SATURATED)
        return every @ self.loc.T, log_scale

    def _where(self, *sides: str) -> np.ndarray:
        return np.array([side in sides for side in self.sides])

    def _ends(self, loc: Array, log_scale: Array) -> tuple[Array, Array]:
        """The bounds in standard deviations from the mean, infinite where there are none."""
        scale = jnp.exp(log_scale)
        low = (-self.shift / self.spread - loc) / scale
        top = jnp.where(self._where("two"), 1.0, 0.0)
        high = ((top - self.shift) / self.spread - loc) / scale
        return (
            jnp.where(self._where("two", "below"), low, -jnp.inf),
            jnp.where(self._where("two", "above"), high, jnp.inf),
        )

    def bounded(self, z: Any) -> Array:
        """The coordinates t between the bounds, (..., d) -> (..., d)."""
        return self._bounded(jnp.asarray(z))[0]

    def _bounded(self, z: Array) -> tuple[Array, Array]:
        r"""t and $\ln \partial t / \partial y$, before t is divided by its spread."""
        y = self.mean + jnp.einsum("ij,...j->...i", self.root, z)
        t, log_slope = y, jnp.zeros_like(y)
        if (two := self._where("two")).any():
            t = jnp.where(two, ndtr(y), t)
            log_slope = jnp.where(two, -0.5 * y**2 - _HALF_LOG_2PI, log_slope)
        for side, sign in (("below", 1.0), ("above", -1.0)):
            if (one := self._where(side)).any():
                log_t = jnp.minimum(sign * y, _LARGEST_LOG)
                t = jnp.where(one, sign * jnp.exp(log_t), t)
                log_slope = jnp.where(one, sign * y, log_slope)
        return (t - self.shift) / self.spread, log_slope

    def _unbounded(self, t: Array) -> Array:
        t = self.shift + self.spread * t
        tiny, eps = jnp.finfo(t.dtype).tiny, jnp.finfo(t.dtype).epsneg
        y = jnp.where(self._where("two"), ndtri(jnp.clip(t, tiny, 1.0 - eps)), t)
        y = jnp.where(self._where("below"), jnp.log(jnp.maximum(t, tiny)), y)
        return jnp.where(self._where("above"), -jnp.log(jnp.maximum(-t, tiny)), y)

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"sides": list(self.sides)}, {n: np.asarray(getattr(self, n)) for n in _ARRAYS}

    @classmethod
    def from_arrays(
        cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> Triangular:
        every = {name: jnp.asarray(arrays[name]) for name in _ARRAYS}
        return cls(**every, sides=tuple(settings["sides"]), kind=str(settings["kind"]))


# ---- normals between bounds ----------------------------------------------------------------------


def log_interval(low: Array, high: Array) -> Array:
    r"""$\ln(\Phi(b) - \Phi(a))$ for $a < b$, infinities allowed, with finite gradients."""
    # Both in the lower half, where the logarithms keep their digits.
    mirrored = low > -high
    lower = jnp.where(mirrored, -high, low)
    upper = jnp.where(mirrored, -low, high)
    bounded = jnp.isfinite(lower)
    below = jnp.isfinite(upper)
    log_upper = jnp.where(below, log_ndtr(jnp.where(below, upper, 0.0)), 0.0)
    log_lower = log_ndtr(jnp.where(bounded, lower, 0.0))
    # Equal ends are a rounded interval, not an empty one.
    gap = jnp.minimum(jnp.where(bounded, log_lower - log_upper, -jnp.inf), -jnp.finfo(float).eps)
    gap = jnp.where(bounded, gap, -1.0)
    return log_upper + jnp.where(bounded, jnp.log(-jnp.expm1(gap)), 0.0)


def cut_quantile(low: Array, high: Array, u: Array) -> Array:
    """The number below which a standard normal between `low` and `high` has the part u."""
    mirrored = low > -high
    lower, upper = jnp.where(mirrored, -high, low), jnp.where(mirrored, -low, high)
    u = jnp.where(mirrored, 1.0 - u, u)
    from_lower, from_upper = ndtr(lower), ndtr(upper)
    tiny, eps = jnp.finfo(u.dtype).tiny, jnp.finfo(u.dtype).epsneg
    white = ndtri(jnp.clip(from_lower + u * (from_upper - from_lower), tiny, 1.0 - eps))
    # Far in a tail, where the parts themselves are nothing, it is an exponential.
    far = upper < -_FAR
    rate = jnp.where(far, -upper, 1.0)
    width = jnp.where(far & jnp.isfinite(lower), upper - lower, jnp.inf)
    floor = jnp.exp(-rate * width)
    white = jnp.where(far, upper + jnp.log(floor + u * (1.0 - floor)) / rate, white)
    white = jnp.clip(white, lower, upper)
    return jnp.where(mirrored, -white, white)


# ---- fitting -------------------------------------------------------------------------------------


def before(dim: int, degree: int) -> np.ndarray:
    """Which coefficients of a polynomial coordinate i has: those of coordinates before it."""
    earlier = np.tri(dim, k=-1, dtype=bool)
    parts = [np.ones((dim, 1), bool), earlier]
    if degree == 2:
        # Each product once: (j, k) with k not after j.
        pairs = earlier[:, :, None] & earlier[:, None, :] & np.tri(dim, dtype=bool)
        parts.append(pairs.reshape(dim, -1))
    return np.concatenate(parts, axis=1)


def fit_triangular(
    key: Any,
    z: np.ndarray,
    weight: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray],
    progress: Any = None,
    num_starts: int = 6,
    max_steps: int = 400,
) -> Triangular:
    r"""A linear map, and normals bent along the axes that it finds, by maximum likelihood.

    The linear map and the polynomials are found together (L-BFGS), from several sets of axes: those
    of z, those of the fourth moments in both orders (fourth-order blind identification, Cardoso
    1989), and random ones. The best after a few steps goes on; the state with the best held-out
    score is returned.

    Args:
        num_starts: how many sets of axes are tried.
        max_steps: of the last run.
    """
    rng = generator(key)
    dim = z.shape[1]
    some = rng.choice(len(z), min(len(z), 2500), p=weight)
    few = jnp.asarray(z[some]), jnp.full(len(some), 1.0 / len(some))
    tried = []
    squared = np.sum(z[some] ** 2, axis=1)
    # By rising kurtosis: what is bent by others has more of it than these, and comes after them.
    by_kurtosis = np.linalg.eigh((squared[:, None] * z[some]).T @ z[some])[1].T
    known = [by_kurtosis, np.eye(dim), by_kurtosis[::-1]]
    for start in range(num_starts):
        turned = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
        axes = known[start] if start < len(known) else turned
        tried.append(_climbed(_straight(axes), *few, kish(np.log(few[1])), 60))
        if progress is not None:
            progress(start + 1, num_starts + 1, "triangular map")
    first = max(tried, key=lambda pair: pair[1])[0]
    every = jnp.asarray(z), jnp.asarray(weight)
    positive = weight[weight > 0]
    best = _climbed(first, *every, kish(np.log(positive)), max_steps, validation=validation)[0]
    if progress is not None:
        progress(num_starts + 1, num_starts + 1, "triangular map")
    return best


def _straight(axes: np.ndarray) -> Triangular:
    dim = len(axes)
    zero, one = jnp.zeros(dim), jnp.ones(dim)
    loc, log_scale = jnp.zeros((dim, 1 + dim + dim**2)), jnp.zeros((dim, 1 + dim))
    sides = ("none",) * dim
    return Triangular(zero, jnp.asarray(axes), zero, one, loc, log_scale, sides, "triangular")


def _climbed(
    start: Triangular,
    z: Array,
    weight: Array,
    n_eff: float,
    num: int,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[Triangular, float]:
    """The map after `num` steps, or with the best held-out score on the way, and its objective."""
    free, unravel = ravel_pytree((start.root, start.loc, start.log_scale))
    held = (z[:1], weight[:1]) if validation is None else tuple(map(jnp.asarray, validation))
    best: list[Any] = [-math.inf, np.asarray(free), 0]

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _objective(start, unravel, jnp.asarray(x), z, weight, 1.0 / n_eff)
        return float(value), np.asarray(slope, float)

    def look(intermediate_result: Any) -> None:
        best[2] += 1
        if validation is None or best[2] % 5:
            return
        x = np.array(intermediate_result.x)
        score = float(_score(start, unravel, jnp.asarray(x), *held))
        if score > best[0]:
            best[:] = score, x, 0
        elif best[2] >= 60:
            raise StopIteration

    found = minimize(
        objective, free, jac=True, method="L-BFGS-B", callback=look, options={"maxiter": num}
    )
    x = found.x if validation is None or best[0] == -math.inf else best[1]
    return _with(start, unravel(jnp.asarray(x))), -float(found.fun)


def _with(start: Triangular, parts: Any) -> Triangular:
    root, loc, log_scale = parts
    dim = len(root)
    return eqx.tree_at(
        lambda m: (m.root, m.loc, m.log_scale),
        start,
        (root, loc * before(dim, 2), log_scale * before(dim, 1)),
    )


@partial(jax.jit, static_argnames=("unravel",))
def _score(
    start: Triangular, unravel: Callable[..., Any], x: Array, z: Array, weight: Array
) -> Array:
    return weight @ _with(start, unravel(x)).log_prob(z)


@partial(jax.jit, static_argnames=("unravel",))
@partial(jax.value_and_grad, argnums=2)
def _objective(
    start: Triangular, unravel: Callable[..., Any], x: Array, z: Array, weight: Array, pull: Any
) -> Array:
    """Minus the mean log density, with a faint normal prior of the bends."""
    parts = unravel(x)
    bends = jnp.sum(parts[1] ** 2) + jnp.sum(parts[2] ** 2)
    return -(weight @ _with(start, parts).log_prob(z)) + 0.5 * pull * bends
