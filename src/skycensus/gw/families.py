r"""Pieces that the families of gravitational-wave populations share.

A family is a function `family(h, suffix="") -> Density` that reads its hyperparameters from the
mapping `h` under `name + suffix`, so that one family can serve several subpopulations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import betaln, erf, log_ndtr, ndtr, ndtri, xlog1py, xlogy
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes

from ..density import Density, Joint, Mixture
from ..distributions import PowerLaw
from ..errors import InputError, did_you_mean

Hyperparameters = Mapping[str, Any]
Family = Callable[..., Density]

_HALF_LOG_TWO_PI = 0.9189385332046727
# Bounds further than this many standard deviations from the mean count as infinite: the normal
# distribution function is 0 or 1 there in double precision.
_FAR = 37.0


def hyperparameter(h: Hyperparameters, name: str, default: Any = None) -> Any:
    """Return `h[name]`, or the default where there is one and `h` lacks the name.

    Raises:
        InputError: the name is missing and has no default.
    """
    value = h.get(name, default)
    if value is None:
        raise InputError(
            f"the population needs hyperparameter '{name}'{did_you_mean(name, h)}; "
            f"give it a prior or a fixed value."
        )
    return value


def log_fraction(x: Any) -> Array:
    r"""Return $\ln x$ of a mixing fraction, its gradient finite at $x = 0$; NaN where $x < 0$."""
    x = jnp.asarray(x, jnp.result_type(float, x))
    tiny = jnp.finfo(x.dtype).tiny
    return jnp.log(jnp.where((x >= 0) & (x < tiny), tiny, x))


def product(densities: Iterable[Density]) -> Joint:
    """Return the product of densities over different parameters, a `Joint` factor by factor."""
    factors: dict[Any, Any] = {}
    for density in densities:
        if isinstance(density, Joint):
            more = density.factors
        else:
            names = tuple(density.names)
            more = {names[0] if len(names) == 1 else names: density}
        if repeated := sorted(set(map(str, more)) & set(map(str, factors))):
            raise InputError(f"two factors for {repeated}; keep one of them.")
        factors.update(more)
    return Joint(factors)


class TruncatedNormal(dist.Distribution):
    r"""Normal density restricted to $[\mathrm{low}, \mathrm{high}]$ and normalised there.

    $$p(x) = \frac{e^{-\frac12 ((x-\mu)/\sigma)^2}}{\sqrt{2\pi}\,\sigma\,[\Phi(b) - \Phi(a)]},
      \qquad a = \frac{\mathrm{low}-\mu}{\sigma},\ b = \frac{\mathrm{high}-\mu}{\sigma}.$$

    The normaliser keeps its relative precision, and its gradient, where the interval lies far in a
    tail. `log_prob` is finite (but meaningless) outside the support.

    Args:
        loc, scale: $\mu$ and $\sigma > 0$ of the untruncated normal.
        low, high: bounds; `-inf` and `inf` where there is none.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
        # Not checked: "real" would refuse a bound at infinity.
        "low": constraints.dependent,
        "high": constraints.dependent,
    }
    reparametrized_params: ClassVar[list[str]] = ["loc", "scale", "low", "high"]
    finite_outside_support = True

    def __init__(
        self,
        loc: Any,
        scale: Any,
        *,
        low: Any = -float("inf"),
        high: Any = float("inf"),
        validate_args: bool | None = None,
    ):
        self.loc, self.scale, _ = promote_shapes(loc, scale, jnp.zeros(()))
        self.low, self.high = low, high
        shape = jax.lax.broadcast_shapes(*(jnp.shape(x) for x in (loc, scale, low, high)))
        super().__init__(batch_shape=shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.interval(self.low, self.high)

    def _standardise(self, bound: Any) -> Array:
        # An infinite bound is a constant: divided by the scale, its gradient would be NaN.
        z = (jnp.where(jnp.isinf(bound), 0.0, bound) - self.loc) / self.scale
        return jnp.where(jnp.isinf(bound), jnp.sign(bound) * _FAR, z)

    @property
    def log_mass(self) -> Array:
        r"""$\ln[\Phi(b) - \Phi(a)]$, the share of the untruncated normal inside the bounds."""
        return log_ndtr_difference(self._standardise(self.low), self._standardise(self.high))

    def log_prob(self, value: Any) -> Array:
        z = (value - self.loc) / self.scale
        constant = jnp.log(self.scale) + _HALF_LOG_TWO_PI + self.log_mass
        return -0.5 * jnp.square(z) - constant

    def cdf(self, value: Any) -> Array:
        a, b = self._standardise(self.low), self._standardise(self.high)
        x = jnp.clip((value - self.loc) / self.scale, a, b)
        inside = x > a
        part = log_ndtr_difference(a, jnp.where(inside, x, b))
        return jnp.where(inside, jnp.exp(part - log_ndtr_difference(a, b)), 0.0)

    def icdf(self, q: Any) -> Array:
        a, b = self._standardise(self.low), self._standardise(self.high)
        # Seen from the lower tail, where differences of the distribution function are accurate.
        flip = a + b > 0
        low, high = jnp.where(flip, -b, a), jnp.where(flip, -a, b)
        q = jnp.where(flip, 1.0 - q, q)
        z = ndtri(ndtr(low) + q * (ndtr(high) - ndtr(low)))
        z = jnp.clip(z, low, high)
        return self.loc + self.scale * jnp.where(flip, -z, z)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = sample_shape + self.batch_shape
        return self.icdf(jax.random.uniform(key, shape, jnp.result_type(float)))


def log_ndtr_difference(a: Any, b: Any) -> Array:
    r"""Return $\ln[\Phi(b) - \Phi(a)]$ for $a < b$, accurate in both tails.

    An empty interval has the mass of a very small one, so that value and gradient stay finite.
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    tiny = jnp.finfo(jnp.result_type(float, a, b)).tiny
    # Reflect so that the interval lies to the right of zero or across it.
    flip = a + b < 0
    a, b = jnp.where(flip, -b, a), jnp.where(flip, -a, b)
    tail = a > 1.0
    near_a, near_b = jnp.where(tail, 0.0, a), jnp.where(tail, 1.0, b)
    near = 0.5 * (erf(near_b * 0.5**0.5) - erf(near_a * 0.5**0.5))
    far_a = jnp.where(tail, a, 2.0)
    far_b = jnp.where(tail & (b > a), b, far_a + 1.0)
    above_a, above_b = log_ndtr(-far_a), log_ndtr(-far_b)
    far = above_a + jnp.log(-jnp.expm1(above_b - above_a))
    return jnp.where(tail, far, jnp.log(jnp.where(near > tiny, near, tiny)))


class Beta(dist.Distribution):
    r"""Density proportional to $x^{\alpha-1}(h-x)^{\beta-1}$ on $[0, h]$.

    Args:
        concentration1, concentration0: $\alpha$ and $\beta$, positive.
        high: $h$.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
        "high": constraints.positive,
    }

    def __init__(
        self,
        concentration1: Any,
        concentration0: Any,
        *,
        high: Any = 1.0,
        validate_args: bool | None = None,
    ):
        self.concentration1, self.concentration0 = promote_shapes(concentration1, concentration0)
        self.high = high
        shape = jax.lax.broadcast_shapes(
            *(jnp.shape(x) for x in (concentration1, concentration0, high))
        )
        super().__init__(batch_shape=shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.interval(0.0, self.high)

    def log_prob(self, value: Any) -> Array:
        x = value / self.high
        norm = betaln(self.concentration1, self.concentration0) + jnp.log(self.high)
        # xlogy: a spin of exactly zero is a draw like any other where the exponent is zero.
        powers = xlogy(self.concentration1 - 1.0, x) + xlog1py(self.concentration0 - 1.0, -x)
        return powers - norm

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = sample_shape + self.batch_shape
        return self.high * jax.random.beta(key, self.concentration1, self.concentration0, shape)


def truncated_normal(name: str, *, low: Any = None, high: Any = None, prefix: str = "") -> Family:
    """Return a family: a truncated normal in `name`.

    Hyperparameters `{prefix}_loc`, `_scale`, `_low` and `_high`, with `prefix` the name itself
    unless given; the bounds default to `low` and `high`, and those to none.
    """
    prefix = prefix or name

    def family(h: Hyperparameters, suffix: str = "") -> Joint:
        return Joint({name: _truncated(h, prefix + "_", suffix, low, high)})

    return family


def two_truncated_normals(name: str, *, low: Any = None, high: Any = None) -> Family:
    r"""Return a family: $(1-\zeta)$ of one truncated normal in `name` and $\zeta$ of another.

    Hyperparameters `{name}_zeta`, `{name}_comp1_loc`, `_comp1_scale`, `_comp1_low`, `_comp1_high`
    and the same with `comp2`; the bounds default to `low` and `high`, and those to none.
    """

    def family(h: Hyperparameters, suffix: str = "") -> Mixture:
        zeta = hyperparameter(h, f"{name}_zeta{suffix}")
        return Mixture(
            {
                c: Joint({name: _truncated(h, f"{name}_{c}_", suffix, low, high)})
                for c in ("comp1", "comp2")
            },
            log_weights={"comp1": log_fraction(1.0 - zeta), "comp2": log_fraction(zeta)},
        )

    return family


def power_law(name: str) -> Family:
    r"""Return a family: $p(x) \propto x^\alpha$ in `name`.

    Hyperparameters `{name}_alpha`, `{name}_low` (positive) and `{name}_high`.
    """

    def family(h: Hyperparameters, suffix: str = "") -> Joint:
        alpha, low, high = (
            hyperparameter(h, f"{name}_{part}{suffix}") for part in ("alpha", "low", "high")
        )
        return Joint({name: PowerLaw(alpha, low, high)})

    return family


def uniform(name: str, *, low: Any = None, high: Any = None) -> Family:
    """Return a family: uniform in `name` between `{name}_low` and `{name}_high`."""

    def family(h: Hyperparameters, suffix: str = "") -> Joint:
        return Joint(
            {
                name: dist.Uniform(
                    hyperparameter(h, f"{name}_low{suffix}", low),
                    hyperparameter(h, f"{name}_high{suffix}", high),
                )
            }
        )

    return family


def _truncated(h: Hyperparameters, prefix: str, suffix: str, low: Any, high: Any) -> Any:
    loc, scale = (hyperparameter(h, f"{prefix}{part}{suffix}") for part in ("loc", "scale"))
    low = h.get(f"{prefix}low{suffix}", -float("inf") if low is None else low)
    high = h.get(f"{prefix}high{suffix}", float("inf") if high is None else high)
    if _is_infinite(low) and _is_infinite(high):
        return dist.Normal(loc, scale)
    return TruncatedNormal(loc, scale, low=low, high=high)


def _is_infinite(bound: Any) -> bool:
    return isinstance(bound, float) and bound in (float("inf"), -float("inf"))
