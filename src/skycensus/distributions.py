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
    small = jnp.abs(u) < 0.1
    u_safe = jnp.where(small, 1.0, u)
    # psi'(u) = -sum_n (-u)^n (n+1)/(n+2)!, to the rounding error at |u| = 0.1.
    terms = 10 if jnp.finfo(psi.dtype).bits == 64 else 5
    series = jnp.zeros_like(psi)
    for n in range(terms - 1, -1, -1):
        series = series * (-u) - (n + 1) / math.factorial(n + 2)
    slope = jnp.where(small, series, ((1.0 - u * psi) - psi) / u_safe)
    return psi, slope * du


def log_integral(k: Any, log_low: Any, log_high: Any) -> Array:
    r"""Return $\ln \int_\mathrm{low}^\mathrm{high} t^{k-1}\,dt$ for low < high, elementwise.

    With $D=\ln(\mathrm{high}/\mathrm{low})$, $E=e^{-|k|D}$ it is $\ln[(1-E)/|k|]$ plus $k$ times
    the logarithm of the bound where the integrand is largest: no overflow, and nothing special at
    $k = 0$ (where it is $\ln D$). The derivatives are the two boundary terms and the mean of
    $\ln t$, exact there too. With $\tau = \tanh(|k|D/2)$, $1 - E = 2\tau/(1+\tau)$ has no
    cancellation either, and a compiler's `tanh` is twice as fast as its `expm1`.
    """
    # A rule of its own loses weak types: a Python number must not make the rest 64-bit.
    dtype = jnp.result_type(k, log_low, log_high)
    return _log_integral(*(jnp.asarray(x, dtype) for x in (k, log_low, log_high)))


@jax.custom_jvp
def _log_integral(k: Array, log_low: Array, log_high: Array) -> Array:
    return _log_integral_parts(k, log_low, log_high)[0]


def _log_integral_parts(k: Array, log_low: Array, log_high: Array) -> tuple[Array, ...]:
    width = log_high - log_low
    # An empty interval has no integral; one keeps value and gradient finite until it is masked.
    width = jnp.where(width <= 0, 1.0, width)
    steep = jnp.maximum(jnp.abs(k), jnp.finfo(jnp.result_type(width)).tiny ** 0.5)
    tau = jnp.tanh((0.5 * steep) * width)
    edge = jnp.maximum(k, 0.0) * log_high + jnp.minimum(k, 0.0) * log_low
    return edge + jnp.log(tau / (1.0 + tau) * (2.0 / steep)), width, steep, tau


@_log_integral.defjvp
def _log_integral_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (k, log_low, log_high), (dk, dlow, dhigh) = primals, tangents
    value, width, steep, tau = _log_integral_parts(k, log_low, log_high)
    # At the bound where the integrand is largest, |k|/(1 - E), and at the other one, less |k|.
    bottom = (0.5 * steep) / tau - 0.5 * steep
    top = bottom + steep
    # Mean of ln t, as its distance g D from the former: g = 1/(e^v - 1) - 1/v with v = |k| D,
    # -1/2 + v/12 - ... where the difference would cancel.
    rising = k >= 0
    v = jnp.where(rising, k, -k) * width
    small = v < 0.3
    v_safe, tau_safe = jnp.where(small, 1.0, v), jnp.where(small, 1.0, tau)
    square = v * v
    series = v * (1 / 12 + square * (-1 / 720 + square * (1 / 30240 - square / 1209600)))
    # One division: it costs as much as all the rest.
    beyond = jnp.where(small, series, (0.5 * v_safe - tau_safe) / (v_safe * tau_safe))
    shift = (beyond - 0.5) * width
    mean = jnp.where(rising, log_high + shift, log_low - shift)
    at_high, at_low = jnp.where(rising, top, bottom), jnp.where(rising, bottom, top)
    return value, mean * dk + at_high * dhigh - at_low * dlow


def safe_log(value: Any) -> Array:
    """Logarithm of data that may lie outside a positive support, at zero or below: finite there."""
    smallest = float(jnp.finfo(jnp.result_type(value, float)).tiny)
    return jnp.log(jnp.maximum(value, smallest))


class PowerLaw(dist.Distribution):
    r"""Density proportional to $x^a$ on $[\mathrm{low}, \mathrm{high}]$, $0 < \mathrm{low}$.

    $$p(x) = x^a \Big/ \int_\mathrm{low}^\mathrm{high} t^a\,dt,$$

    with $a=-1$ nothing special: value and gradient are exact there in 32- and 64-bit
    (`log_integral`). Logarithms of `value` and of the bounds are taken separately, so that those
    of data can be computed once. `log_prob` is finite (but meaningless) outside the support;
    `inside` tells where it holds.

    Args:
        exponent: $a$, any real number.
        low, high: positive bounds; where high <= low, `inside` is false everywhere.
        log_low, log_high: their logarithms instead, where those are at hand.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "exponent": constraints.real,
        "log_low": constraints.real,
        "log_high": constraints.real,
    }
    reparametrized_params: ClassVar[list[str]] = ["exponent", "log_low", "log_high"]
    finite_outside_support = True

    def __init__(
        self,
        exponent: Any,
        low: Any = None,
        high: Any = None,
        *,
        log_low: Any = None,
        log_high: Any = None,
        validate_args: bool | None = None,
    ):
        self.exponent = exponent
        self.log_low = jnp.log(low) if log_low is None else log_low
        self.log_high = safe_log(high) if log_high is None else log_high
        parts = (self.exponent, self.log_low, self.log_high)
        shape = jax.lax.broadcast_shapes(*map(jnp.shape, parts))
        super().__init__(batch_shape=shape, validate_args=validate_args)

    @property
    def low(self) -> Array:
        """The lower bound."""
        return jnp.exp(self.log_low)

    @property
    def high(self) -> Array:
        """The upper bound."""
        return jnp.exp(self.log_high)

    @property
    def support(self) -> Any:
        return constraints.interval(self.low, self.high)

    def _log_width(self) -> Array:
        width = self.log_high - self.log_low
        return jnp.where(width <= 0, 1.0, width)

    def log_prob(self, value: Any) -> Array:
        log_norm = log_integral(self.exponent + 1.0, self.log_low, self.log_high)
        return self.exponent * safe_log(value) - log_norm

    def inside(self, value: Any) -> Array:
        """Whether `value` lies in the support, compared in the logarithms that `log_prob` needs."""
        x = safe_log(value)
        # "Not outside", so that a bound that is NaN is not hidden: log_prob is NaN there.
        return ~((x < self.log_low) | (x > self.log_high))

    def cdf(self, value: Any) -> Array:
        k = self.exponent + 1.0
        width = self._log_width()
        part = jnp.clip(safe_log(value) - self.log_low, 0.0, width)
        # A ratio of two integrals from low: in e^{-st} where that falls, else in e^{-s(width - t)}.
        rising = k * width > 1.0
        s = jnp.where(rising, k, -k)
        ratio = part * mean_exp(s * part) / (width * mean_exp(s * width))
        return ratio * jnp.exp(-jnp.where(rising, s * (width - part), 0.0))

    def icdf(self, q: Any) -> Array:
        k = self.exponent + 1.0
        width = self._log_width()
        # The distance t from the edge where the density is largest, which has the share below:
        # 1 - e^{-st} = share * (1 - e^{-s width}); y = st, t = share width psi(s width)/psi(y).
        rising = k * width > 1.0
        s = jnp.where(rising, k, -k)
        share, rest = jnp.where(rising, 1.0 - q, q), jnp.where(rising, q, 1.0 - q)
        target = share * width * mean_exp(s * width)
        far = s * target > 0.5
        y_near = -jnp.log1p(-jnp.where(far, 0.0, s * target))
        y_far = -jnp.log(jnp.where(far, rest + share * jnp.exp(-s * width), 1.0))
        t = jnp.clip(target / mean_exp(jnp.where(far, y_far, y_near)), 0.0, width)
        return jnp.exp(self.log_low + jnp.where(rising, width - t, t))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = sample_shape + self.batch_shape
        return self.icdf(jax.random.uniform(key, shape, jnp.result_type(float)))
