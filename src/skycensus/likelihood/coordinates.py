r"""Unconstrained coordinates of a population's parameters, and where the population lies in them.

Every factor has its own: y is the real line of `numpyro.distributions.biject_to(support)`; for
heavy-tailed families on the whole line, $\theta = \mathrm{loc} + \mathrm{scale}\,\sinh y$, in which
power-law tails are exponential. The standard coordinate u of a factor, $y = c + s\,u$, has its
median and half the width of its central 68 % (or its mean and standard deviation) as origin and
unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to

from ..density import Density, Joint
from ..errors import InputError

# Median and one standard deviation of a normal distribution on either side.
_QUANTILES = (0.15865525393145707, 0.5, 0.8413447460685429)

Point = tuple[Array, ...]


class Place(NamedTuple):
    """A point: its parameters, ln|d theta/dy|, its y and ln|dy/du|."""

    theta: dict[str, Array]
    log_det: Array
    y: Point
    log_scale: Array


class Coordinates:
    r"""The coordinates of a density, for one object; every number is a scalar.

    Args:
        density: a `Joint` of continuous NumPyro distributions, possibly conditional or nested.

    `names` are its parameters, in the order of the coordinates.

    Raises:
        InputError: another density; and where it is used, a factor that has no such coordinate.
    """

    def __init__(self, density: Density):
        if not isinstance(density, Joint):
            raise InputError(
                f"the population is a {type(density).__name__}, whose support is not known; make "
                "it a Joint of NumPyro distributions, or use draws (Samples) or a table (Grid)."
            )
        self.density = density
        self.names = density.names

    def at(self, y: Point, given: Mapping[str, Array]) -> Place:
        """Parameters at the unconstrained point y."""
        return self._walk(y, given, standard=False)

    def at_standard(self, u: Point, given: Mapping[str, Array]) -> Place:
        """Parameters at the standard point u, each factor's seen from the parameters before it."""
        return self._walk(u, given, standard=True)

    def _walk(self, point: Point, given: Mapping[str, Array], standard: bool) -> Place:
        values = iter(point)
        theta: dict[str, Array] = dict(given)
        log_det, log_scale = jnp.zeros(()), jnp.zeros(())
        place: list[Array] = []
        for names, axes in _axes(self.density, theta):
            for name, axis in zip(names, axes, strict=True):
                y = next(values)
                if standard:
                    log_scale = log_scale + jnp.log(axis.unit)
                    y = axis.origin + axis.unit * y
                place.append(y)
                theta[name], jacobian = axis.forward(y)
                log_det = log_det + jacobian
        return Place({n: theta[n] for n in self.names}, log_det, tuple(place), log_scale)


class _Axis(NamedTuple):
    """One coordinate: y -> (theta, ln|d theta/dy|), and the origin and unit of u in y."""

    forward: Callable[[Array], tuple[Array, Array]]
    origin: Array
    unit: Array


def _axes(
    joint: Joint, theta: Mapping[str, Array]
) -> Iterator[tuple[tuple[str, ...], list[_Axis]]]:
    """Axes of the factors in order; `theta` gains the earlier parameters meanwhile."""
    for key, factor in joint.factors.items():
        if not isinstance(factor, dist.Distribution) and not hasattr(factor, "log_prob"):
            factor = factor(theta)
        if isinstance(factor, Joint):
            yield from _axes(factor, theta)
            continue
        names = key if isinstance(key, tuple) else (key,)
        label = ", ".join(names)
        if not isinstance(factor, dist.Distribution):
            raise InputError(
                f"the population's factor of '{label}' is a {type(factor).__name__}, whose support "
                "is not known; use a NumPyro distribution, or draws (Samples) or a table (Grid)."
            )
        if factor.batch_shape != ():
            raise InputError(
                f"the population's factor of '{label}' has batch shape {factor.batch_shape}; it "
                "must be one distribution, of scalar hyperparameters."
            )
        yield names, _vector(factor, label) if isinstance(key, tuple) else [_scalar(factor, label)]


def _vector(d: dist.Distribution, label: str) -> list[_Axis]:
    if d.support != constraints.real_vector:
        raise InputError(
            f"the population's factor of '{label}' is a {type(d).__name__}; a factor over several "
            "parameters must be one on the whole plane, such as MultivariateNormal."
        )
    return [
        _Axis(_identity, *_usable(mean, jnp.sqrt(variance)))
        for mean, variance in zip(d.mean, d.variance, strict=True)
    ]


def _scalar(d: dist.Distribution, label: str) -> _Axis:
    if d.support.is_discrete or d.event_dim != 0:
        raise InputError(
            f"the population's factor of '{label}' is a {type(d).__name__}; only continuous "
            "one-dimensional distributions can be integrated over by name."
        )
    if d.support is constraints.real and hasattr(d, "loc") and hasattr(d, "scale"):
        if isinstance(d, dist.Normal):
            return _Axis(_identity, *_usable(d.loc, d.scale))
        return _Axis(_sinh(d.loc, d.scale), jnp.zeros(()), jnp.ones(()))
    try:
        transform = biject_to(d.support)
    except NotImplementedError:
        raise InputError(
            f"the population's factor of '{label}' has the support {d.support}, which no "
            "transform reaches; use a distribution on an interval, half-line or line."
        ) from None

    def forward(y: Array) -> tuple[Array, Array]:
        x = transform(y)
        return x, transform.log_abs_det_jacobian(y, x)

    try:
        low, middle, high = (transform.inv(d.icdf(jnp.asarray(q))) for q in _QUANTILES)
    except (NotImplementedError, AttributeError, ImportError):
        # Some quantile functions need a library that may be absent.
        middle = transform.inv(d.mean)
        unit = jnp.sqrt(d.variance) * jnp.exp(-forward(middle)[1])
    else:
        unit = 0.5 * jnp.abs(high - low)
    return _Axis(forward, *_usable(middle, unit))


def _usable(origin: Array, unit: Array) -> tuple[Array, Array]:
    """Only where to look: what is not finite there must not make the integral so."""
    origin = jnp.where(jnp.isfinite(origin), origin, 0.0)
    return origin, jnp.where(jnp.isfinite(unit) & (unit > 0), unit, 1.0)


def _identity(y: Array) -> tuple[Array, Array]:
    return y, jnp.zeros(())


def _sinh(loc: Array, scale: Array) -> Callable[[Array], tuple[Array, Array]]:
    def forward(y: Array) -> tuple[Array, Array]:
        log_cosh = jnp.abs(y) + jnp.log1p(jnp.exp(-2.0 * jnp.abs(y))) - jnp.log(2.0)
        return loc + scale * jnp.sinh(y), jnp.log(scale) + log_cosh

    return forward
