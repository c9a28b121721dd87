r"""One-dimensional distributions that NumPyro does not have in the form needed here."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints


@jax.custom_jvp
def mean_exp(u: Array) -> Array:
    r"""Return $\psi(u) = \int_0^1 e^{-ut}\,dt = (1 - e^{-u})/u$, with $\psi(0) = 1$, exactly.

    Plain automatic differentiation of $(1-e^{-u})/u$ cancels catastrophically for small u; the
    rule below uses $\psi'(u) = (e^{-u} - \psi(u))/u$ and a series where that would cancel.
    """
    tiny = jnp.abs(u) < jnp.finfo(jnp.result_type(u)).tiny
    u_safe = jnp.where(tiny, 1.0, u)
    return jnp.where(tiny, 1.0, -jnp.expm1(-u_safe) / u_safe)


@mean_exp.defjvp
def _mean_exp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (u,), (du,) = primals, tangents
    psi = mean_exp(u)
    small = jnp.abs(u) < 0.5
    u_safe = jnp.where(small, 1.0, u)
    # psi'(u) = -sum_n (-u)^n (n+1)/(n+2)!; fifteen terms: 1e-17 at |u| = 1/2.
    series = jnp.zeros_like(u)
    for n in range(14, -1, -1):
        series = series * (-u) - (n + 1) / math.factorial(n + 2)
    slope = jnp.where(small, series, ((1.0 - u * psi) - psi) / u_safe)
    return psi, slope * du


def _log(value: Any) -> Array:
    """Logarithm of data that may lie outside the support, at zero or below: finite there."""
    value = jnp.asarray(value, jnp.result_type(float, value) if False else None)
    smallest = float(jnp.finfo(jnp.result_type(value, float)).tiny)
    return jnp.log(jnp.maximum(value, smallest))


class PowerLaw(dist.Distribution):
    r"""Density proportional to $x^a$ on $[\mathrm{low}, \mathrm{high}]$, $0 < \mathrm{low}$.

    $$p(x) = \frac{x^a}{\int_\mathrm{low}^\mathrm{high} t^a dt}, \qquad
      \int = \mathrm{high}^{k}\, D\, \psi(kD),\quad k = a+1,\ D = \ln(\mathrm{high}/\mathrm{low}),$$

    with $\psi(u) = (1-e^{-u})/u$, so that $a=-1$ is nothing special: value and gradient are exact
    there in 32- and 64-bit. Logarithms of `value` and of the bounds are taken separately, so that
    those of data can be computed once. `log_prob` is finite (but meaningless) outside the support;
    `inside` tells where it holds.

    Args:
        exponent: $a$, any real number.
        low, high: positive bounds; where high <= low, `inside` is false everywhere.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "exponent": constraints.real,
        "low": constraints.positive,
        "high": constraints.positive,
    }
    reparametrized_params: ClassVar[list[str]] = ["exponent", "low", "high"]
    finite_outside_support = True

    def __init__(self, exponent: Any, low: Any, high: Any, *, validate_args: bool | None = None):
        self.exponent, self.low, self.high = exponent, low, high
        shape = jax.lax.broadcast_shapes(*(jnp.shape(x) for x in (exponent, low, high)))
        super().__init__(batch_shape=shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.interval(self.low, self.high)

    def _log_width(self) -> Array:
        width = jnp.log(self.high) - jnp.log(self.low)
        # An empty interval has no density; one keeps value and gradient finite until it is masked.
        return jnp.where(width <= 0, 1.0, width)

    def log_prob(self, value: Any) -> Array:
        k = self.exponent + 1.0
        width = self._log_width()
        u = k * width
        # Seen from the edge where the density is largest, so that a steep one does not overflow.
        falling = u < -1.0
        edge = jnp.where(falling, jnp.log(self.low), jnp.log(self.high))
        log_norm = k * edge + jnp.log(width * mean_exp(jnp.where(falling, -u, u)))
        return self.exponent * _log(value) - log_norm

    def inside(self, value: Any) -> Array:
        """Whether `value` lies in the support (compared in logarithms, as `log_prob` needs them)."""
        x = _log(value)
        # "Not outside", so that a bound that is NaN is not hidden: log_prob is NaN there.
        return ~((x < jnp.log(self.low)) | (x > jnp.log(self.high)))

    def cdf(self, value: Any) -> Array:
        k = self.exponent + 1.0
        width = self._log_width()
        part = jnp.clip(_log(value) - jnp.log(self.low), 0.0, width)
        # A ratio of two integrals from low: in e^{-st} where that falls, else in e^{-s(width - t)}.
        rising = k * width > 1.0
        s = jnp.where(rising, k, -k)
        ratio = part * mean_exp(s * part) / (width * mean_exp(s * width))
        return ratio * jnp.exp(-jnp.where(rising, s * (width - part), 0.0))

    def icdf(self, q: Any) -> Array:
        k = self.exponent + 1.0
        width = self._log_width()
        # The distance t from the edge where the density is largest, which has the share below:
        # 1 - e^{-st} = share * (1 - e^{-s width}). With y = st, t = share * width psi(s width)/psi(y).
        rising = k * width > 1.0
        s = jnp.where(rising, k, -k)
        share, rest = jnp.where(rising, 1.0 - q, q), jnp.where(rising, q, 1.0 - q)
        target = share * width * mean_exp(s * width)
        far = s * target > 0.5
        y_near = -jnp.log1p(-jnp.where(far, 0.0, s * target))
        y_far = -jnp.log(jnp.where(far, rest + share * jnp.exp(-s * width), 1.0))
        t = jnp.clip(target / mean_exp(jnp.where(far, y_far, y_near)), 0.0, width)
        return jnp.exp(jnp.log(self.low) + jnp.where(rising, width - t, t))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = sample_shape + self.batch_shape
        return self.icdf(jax.random.uniform(key, shape, jnp.result_type(float)))
