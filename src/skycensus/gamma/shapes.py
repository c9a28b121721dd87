r"""Skies around a direction whose shape hyperparameters decide, as sums of a few that are folded.

What a response makes of a sky is linear in it. The shapes S that a prior allows span a space of few
dimensions: with some of them, $S_1 \dots S_R$, and as many angles $\theta_r$,

$$S(\theta; h) \approx \sum_r c_r(h)\, S_r(\theta),\qquad
  \sum_r c_r(h)\, S_r(\theta_q) = S(\theta_q; h)\ \text{for all}\ q,$$

and the same sum holds for all that is folded. Shapes and angles are picked one by one where the
sum is worst so far, until it is right to `TOLERANCE` (empirical interpolation: Barrault et al.
2004, C. R. Math. 339, 667). What remains for a call is the sky itself at R angles: exact in its
amplitude, and differentiable in whatever its profile has for parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.interpolate import CubicSpline

from ..errors import InputError
from ..likelihood import LogMarginal
from ..likelihood.folded import Hats
from ..likelihood.formula import ObjectNames
from ..prior import Prior
from .fold import Fold
from .located import Located
from .response import separation
from .sky import Around

# The largest relative error of a sky, at any angle from `_CENTRE` [deg] on, and of all nearer ones.
TOLERANCE = 1e-5
_CENTRE, _CORE = 0.015, 1e-4

# Draws of the prior whose shapes are described, angles where they are compared, and shapes at most.
_NUM_PRIOR = 1024
_NUM_ANGLES, _MOST = 48, 40

# The flux near the centre: evenly in the logarithm of the angle, and a power law in the core.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_WIDTH = float(np.log(_CENTRE / _CORE))
_INNER = np.append([_CORE, 1.5 * _CORE], _CORE * np.exp(0.5 * _WIDTH * (_NODES + 1.0)))
_INNER_WEIGHTS = 0.5 * _WIDTH * _WEIGHTS * (_INNER[2:] / _CENTRE) ** 2

Sky = Callable[[Mapping[str, Any]], Around]

View = tuple[tuple[float, float], float]
"""A square of the sky: longitude and latitude of its centre, and half of its side [deg]."""


class Shapes(NamedTuple):
    r"""Skies that describe all others, see the module.

    Attributes:
        skies: $S_r$.
        measure: what is known of a sky that is to be described.
        inverse: (Q, R), of the matrix (R, Q) of what is so known of each $S_r$.
        error: the largest relative one, see `TOLERANCE`.
    """

    skies: list[Around]
    measure: Measure
    inverse: np.ndarray
    error: float

    def coefficients(self, sky: Around) -> tuple[Array, Array]:
        """$c_r$ of a sky, over the exponential of a number; and that number."""
        values, top = self.measure(sky)
        return values @ self.inverse, top


class Measure(eqx.Module):
    """A sky at some angles, and its flux near the centre, as fractions of those of a typical sky.

    These are alike, and sums that tell skies by them lose many digits. Turned to the principal axes
    of all skies the first number is most of a sky, and each of the next a smaller correction.

    Attributes:
        angles: [deg].
        log_typical: (Q,) logarithms, first of the flux near the centre if that is `central`.
        axes: (Q, Q), in columns.
    """

    angles: Array
    log_typical: Array
    axes: Array
    central: bool = eqx.field(static=True)

    def __call__(self, sky: Around) -> tuple[Array, Array]:
        """(Q,) numbers over the exponential of one; and that one."""
        values = _log_values(sky, self.angles, self.central) - self.log_typical
        top = jax.lax.stop_gradient(jnp.max(values))
        return jnp.exp(values - top) @ self.axes, top


def _log_values(sky: Around, angles: Any, central: bool) -> Array:
    """Logarithms of the flux near the centre, per solid angle, and of the sky at angles [deg]."""
    if not central:
        return jnp.log(sky.profile(angles))
    both = jnp.asarray(sky.profile(jnp.concatenate([_INNER, angles])))
    inner, outer = both[: len(_INNER)], both[len(_INNER) :]
    rise = 2.0 + jnp.log(inner[1] / inner[0]) / np.log(1.5)
    core = inner[0] / rise * (_CORE / _CENTRE) ** 2
    return jnp.append(jnp.log(core + inner[2:] @ _INNER_WEIGHTS), jnp.log(outer))


def shapes_of(
    sky: Sky,
    draws: Mapping[str, Any],
    views: Sequence[View],
    name: str,
    *,
    tolerance: float = TOLERANCE,
) -> Shapes:
    """The shapes that describe a sky at all of some draws of the hyperparameters.

    Args:
        sky: hyperparameters -> a profile around a fixed place.
        draws: arrays (num,).
        views: what is looked at.
        name: of the component, for messages.
        tolerance: the largest relative error.

    Raises:
        InputError: a sky whose place changes, or that is not positive and finite at some draw, or
            that changes too much for a sum of 40 shapes.
    """
    place = _place(sky, draws, name)
    low, high = _angles_in_view(place, views)
    central = low < _CENTRE
    angles = np.geomspace(max(low, _CENTRE), high, _NUM_ANGLES)
    found = _at_draws(sky, draws, angles, central, name)
    typical = np.median(found, axis=0)
    # Amplitudes are exact in any case.
    scale = np.mean(found - typical, axis=1)
    values = np.exp(found - typical - scale[:, None])
    rows, columns, error = _picked(values, tolerance)
    if error > tolerance:
        raise InputError(
            f"component '{name}': its prior allows too many shapes of its sky for a sum of {_MOST} "
            f"of them (an error of {error:.1g} is left); narrow the priors of its profile."
        )
    outer = [c - central for c in columns if c >= central]
    axes = np.linalg.svd(values[:, columns], full_matrices=False)[2].T
    inverse = np.linalg.inv(values[np.ix_(rows, columns)] @ axes)
    return Shapes(
        _tabulated(sky, {n: x[rows] for n, x in draws.items()}, place),
        Measure(
            jnp.asarray(angles[outer]),
            jnp.asarray(typical[columns]),
            jnp.asarray(axes),
            len(outer) < len(columns),
        ),
        inverse * np.exp(-scale[rows]),
        error,
    )


def _tabulated(sky: Sky, draws: Mapping[str, Any], place: tuple[float, float]) -> list[Around]:
    """The skies at some draws, by splines over the angle: folded without compiling each."""
    # Even in ln tan(angle / 2): fine at the centre.
    first, last = (float(np.log(np.tan(0.5 * np.deg2rad(a)))) for a in (_CORE, 179.9))
    nodes = np.linspace(first, last, 512)
    angles = np.rad2deg(2.0 * np.arctan(np.exp(nodes)))
    found = jax.jit(lambda d: jax.lax.map(lambda h: jnp.log(sky(h).profile(angles)), d))(
        dict(draws)
    )

    def profile(spline: CubicSpline, angle: Any) -> np.ndarray:
        return np.exp(spline(np.clip(np.log(np.tan(0.5 * np.deg2rad(angle))), first, last)))

    return [Around(*place, partial(profile, CubicSpline(nodes, row))) for row in np.asarray(found)]


def prior_shapes(sky: Sky, prior: Prior, views: Sequence[View], name: str) -> Shapes:
    """`shapes_of` draws of a resolved prior."""
    every = prior.complete(
        jax.jit(prior.sample, static_argnums=1)(jax.random.key(0), (_NUM_PRIOR,))
    )
    draws = {n: np.broadcast_to(np.asarray(x), (_NUM_PRIOR,)) for n, x in every.items()}
    return shapes_of(sky, draws, views, name)


def _place(sky: Sky, draws: Mapping[str, Any], name: str) -> tuple[float, float]:
    """The one direction that a sky is around."""
    ends = [sky({n: float(x[k]) for n, x in draws.items()}) for k in (0, -1)]
    (lon, lat), other = ((float(one.lon), float(one.lat)) for one in ends)
    if (lon, lat) != other:
        raise InputError(
            f"component '{name}': a sky whose shape is free must have a place that is fixed; give "
            "Around two numbers, or a Point or a Gaussian where the place is free."
        )
    return lon, lat


def _angles_in_view(place: tuple[float, float], views: Sequence[View]) -> tuple[float, float]:
    """The smallest and largest angle from a place that there is in any view [deg]."""
    away = [float(separation(*place, *center)) for center, _ in views]
    corner = [np.sqrt(2.0) * half_width for _, half_width in views]
    low, high = np.subtract(away, corner).min(), np.add(away, corner).max()
    return max(float(low), 0.0), min(float(high), 179.9)


def _at_draws(
    sky: Sky, draws: Mapping[str, Any], angles: np.ndarray, central: bool, name: str
) -> np.ndarray:
    """(draw, Q) logarithms of the sky: see `_log_values`."""

    def one(h: Mapping[str, Any]) -> Array:
        return _log_values(sky(h), angles, central)

    found = np.asarray(jax.jit(lambda d: jax.lax.map(one, d, batch_size=64))(dict(draws)))
    if not np.isfinite(found).all():
        k = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
        at = ", ".join(f"{n} = {float(x[k]):.3g}" for n, x in draws.items())
        raise InputError(
            f"component '{name}': its sky is not positive, or its flux not finite, at {at}; keep "
            "the priors to what its profile allows (lengths, densities and alpha above zero, and a "
            "slope below 1.5 at the centre of a halo that annihilates)."
        )
    return found


def _picked(values: np.ndarray, tolerance: float) -> tuple[list[int], list[int], float]:
    """Rows and (ascending) columns whose sums make every row, and the relative error that is left.

    The next ones are those of the largest error so far.
    """
    rows: list[int] = []
    columns: list[int] = []
    relative = np.ones_like(values)
    while relative.max() > tolerance and len(rows) < _MOST:
        row, column = np.unravel_index(relative.argmax(), relative.shape)
        rows.append(int(row))
        columns = sorted([*columns, int(column)])
        matrix = values[np.ix_(rows, columns)]
        coefficients = np.linalg.solve(matrix.T, values[:, columns].T).T
        relative = np.abs(coefficients @ values[rows] / values - 1.0)
    return rows, columns, float(relative.max())


# ---- photons -------------------------------------------------------------------------------------


class Shaped(eqx.Module):
    r"""Objects of a source whose sky has a free shape, see the module: photons, or their number.

    $$m_i = \sum_{qj} S(\theta_q; h)\,F_{ijq} \int \Phi\,h_j\,dE,$$

    with the hat functions $h_j$ of the nodes of energy. `log_marginal` and `draw` want a `Located`
    density with a sky `Around` the place of the shapes.

    Args:
        shapes: that describe the sky.
        energy: (J,) the nodes [TeV].
        tables: one for each of the shapes, (N, J), as `Fold.table` makes them. What is kept are
            sums of them over the exponential of `log_scale`.
        names: of the objects.
        dtype: in which they are kept.
    """

    hats: Hats
    measure: Measure
    table: Array
    log_scale: Array
    names: tuple[str, ...] = eqx.field(static=True)
    error: float = eqx.field(static=True)

    def __init__(
        self,
        shapes: Shapes,
        energy: Any,
        tables: Iterable[np.ndarray],
        *,
        names: Sequence[str],
        dtype: Any = np.float64,
    ):
        self.hats, self.names = Hats("energy", np.asarray(energy)), ObjectNames(names)
        self.measure, self.error = shapes.measure, shapes.error
        tables = iter(tables)
        first = next(tables)
        # 32 bits end at 3e38, which areas times fluxes may exceed.
        scale = float(np.max(first) * np.abs(shapes.inverse[:, 0]).max()) or 1.0
        table = np.zeros((*first.shape, len(shapes.inverse)), dtype)
        for one, parts in zip(chain([first], tables), shapes.inverse.T, strict=True):
            # One by one: of many photons each is large.
            for column, part in enumerate(parts):
                table[:, :, column] += part / scale * one
        self.log_scale = jnp.asarray(math.log(scale))
        # One row of all nodes and angles: a single product then does both sums.
        self.table = jnp.asarray(table.reshape(len(table), -1))

    @property
    def near(self) -> Array:
        """(N,) which objects the source can have made."""
        return jnp.any(self.table != 0.0, axis=1)

    def log_marginal(self, density: Located) -> LogMarginal:
        """Integrate over the true energy and direction of every object."""
        weight, top = self._weights(density)
        total = self.table @ weight.ravel().astype(self.table.dtype)
        # Far from everything the sum may be a rounding error of either sign.
        empty = total <= 0
        value = jnp.where(
            empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, total)) + top + self.log_scale
        )
        return LogMarginal(value, jnp.zeros_like(value))

    def draw(self, density: Located, key: Any) -> dict[str, Array]:
        """One draw of every object's true energy [TeV]; NaN for those that it cannot have made."""
        weight, _ = self._weights(density)
        node_key, place_key = jax.random.split(key)
        seen = jnp.sum(self.table.reshape(-1, *weight.shape) * weight, axis=-1)
        node = jax.random.categorical(node_key, jnp.log(jnp.maximum(seen, 0.0)), axis=-1)
        energy = self.hats.draw(node, place_key)
        return {"energy": jnp.where(self.near, energy, jnp.nan)}

    def _weights(self, density: Located) -> tuple[Array, Array]:
        """(J, Q) of the columns of the table, over the exponential of a number; and that number."""
        mass, top = self.hats.masses(density)
        values, high = self.measure(density.sky)
        return mass[:, None] * values, top + high


def shaped_forms(
    folds: Sequence[Fold],
    dispersions: Sequence[np.ndarray],
    shapes: Shapes,
    *,
    names: Sequence[str],
    dtype: Any = np.float64,
) -> tuple[Shaped, Shaped]:
    """Forms of the photons and of their expected number, for a source of these shapes.

    The photons' is kept in `dtype`.
    """
    totals: list[np.ndarray] = []

    def tables() -> Iterator[np.ndarray]:
        for sky in shapes.skies:
            pairs = zip(folds, dispersions, strict=True)
            seen, number = zip(*(fold.table(sky, d) for fold, d in pairs), strict=True)
            totals.append(np.sum(number, axis=0)[None])
            yield np.concatenate(seen)

    energy = folds[0].response.energy
    photons = Shaped(shapes, energy, tables(), names=names, dtype=dtype)
    return photons, Shaped(shapes, energy, totals, names=("expected number",))
