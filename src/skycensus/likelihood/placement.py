r"""Where the mass of a density of one or two coordinates lies: its maximum and curvature.

Written for one object, with every coordinate a scalar, and mapped over the objects; the unit of
every coordinate is about the width of the population.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .coordinates import Point
from .formula import Row

LogDensity = Callable[[Point, Row], Array]

# The coarse scan: values per coordinate between -5 and 5 widths of the population.
_SCAN = {1: 21, 2: 11}
_SCAN_REACH = 5.0

# Curvatures are floored here, so that nodes never reach beyond a few widths of the population.
_LEAST_CURVATURE = 0.1

# A Newton step this small, in (standard deviations)^2, is the last; most objects take two or three.
_LAST_STEP = 1e-2
_MOST_STEPS = 40


# Where the two sides of a hill are compared, in standard deviations; how strongly the coordinate
# may bend, and the share of it that stays straight, so that no end of the line is out of reach.
_FLANK = 2.0
_MOST_SKEW = 0.35
_STRAIGHT = 0.25


class Placed(NamedTuple):
    r"""Whitened coordinates x in which a density is close to a standard normal one.

    $u = \hat u + R z$ and $z_j = c_j [(1-\eta)(e^{k_j x_j} - 1)/k_j + \eta x_j]$ with $\eta = 1/4$:
    `point` is the maximum $\hat u$, `root` the symmetric inverse root R of the curvature there,
    `unit` and `skew` are c and k, and `log_size` is $\ln|R|$. Each value is an array (object,).
    """

    point: Point
    root: tuple[Point, ...]
    size: Array
    unit: Point
    skew: Point

    def at(self, x: Point) -> tuple[Point, Array]:
        """The point u and |du/dx|, for arrays that broadcast to (node, object)."""
        z, size = [], self.size
        for value, unit, skew in zip(x, self.unit, self.skew, strict=True):
            power = skew * value
            # The difference from one, not taken as a difference: in 32-bit nothing is left of it.
            rise = jnp.expm1(power)
            straight = skew == 0
            bent = jnp.where(straight, value, rise / jnp.where(straight, 1.0, skew))
            z.append(unit * ((1.0 - _STRAIGHT) * bent + _STRAIGHT * value))
            size = size * unit * (1.0 + (1.0 - _STRAIGHT) * rise)
        u = tuple(
            start + sum((c * along for c, along in zip(row, z, strict=True)), jnp.zeros(()))
            for start, row in zip(self.point, self.root, strict=True)
        )
        return u, size


class _Taylor(NamedTuple):
    value: Array
    slope: Point
    curvature: tuple[Point, ...]  # of minus the function


class _Search(NamedTuple):
    point: Point
    taylor: _Taylor
    trial: Point
    radius: Array
    active: Array
    steps: Array


def place(log_density: LogDensity, dim: int, rows: Row) -> Placed:
    r"""Find the maximum of `log_density(u, row)` for every row by scan and Newton's method.

    The scan finds the hill. From its best point Newton's method climbs within a trust radius, with
    the absolute values of the curvature's eigenvalues, so that every step goes uphill even where
    the function is convex: a likelihood much narrower than the scan's spacing is found too.
    """
    start = _scan(log_density, dim, rows)
    expand = jax.vmap(lambda u, row: _taylor(log_density, u, row))
    zero = jnp.zeros_like(start[0])
    nowhere = _Taylor(zero - jnp.inf, (zero,) * dim, ((zero,) * dim,) * dim)
    search = _Search(start, nowhere, start, zero + 1.0, zero == 0.0, jnp.zeros((), int))

    def step(s: _Search) -> _Search:
        taylor = expand(s.trial, rows)
        taken = jnp.sqrt(sum((t - u) ** 2 for t, u in zip(s.trial, s.point, strict=True)))
        # At the top, rounding must not look like going down.
        slack = 8 * jnp.finfo(taylor.value.dtype).eps * jnp.abs(taylor.value)
        better = s.active & (taylor.value + slack >= s.taylor.value)
        point, taylor = jax.tree.map(
            lambda new, old: jnp.where(better, new, old), (s.trial, taylor), (s.point, s.taylor)
        )
        radius = jnp.where(better, jnp.maximum(s.radius, 2 * taken), 0.25 * taken)
        move = _newton(taylor)
        length = jnp.sqrt(sum(m * m for m in move))
        short = jnp.minimum(1.0, radius / jnp.maximum(length, 1e-30))
        trial = tuple(u + short * m for u, m in zip(point, move, strict=True))
        # False where it is NaN: there is nothing to climb.
        active = s.active & (_gain(taylor) > _LAST_STEP) & (radius > 1e-12)
        return _Search(point, taylor, trial, radius, active, s.steps + 1)

    def unfinished(s: _Search) -> Array:
        return jnp.any(s.active) & (s.steps < _MOST_STEPS)

    found = jax.lax.while_loop(unfinished, step, search)
    # The last, small step costs nothing: what it needs is at hand.
    move, gain = _newton(found.taylor), _gain(found.taylor)
    small = gain <= _LAST_STEP
    point = tuple(jnp.where(small, u + m, u) for u, m in zip(found.point, move, strict=True))
    top = found.taylor.value + jnp.where(small, 0.5 * gain, 0.0)
    root = _of_curvature(found.taylor.curvature, lambda x: x**-0.5)
    size = root[0][0] if dim == 1 else root[0][0] * root[1][1] - root[0][1] * root[1][0]
    none = tuple(jnp.zeros_like(x) for x in point)
    plain = Placed(point, root, size, tuple(jnp.ones_like(x) for x in point), none)
    return _bent(log_density, plain, top, rows)


def _bent(log_density: LogDensity, plain: Placed, top: Array, rows: Row) -> Placed:
    r"""Give each whitened axis the unit and the skew that make both flanks those of a normal one.

    A flank that falls by D at the distance h is as wide as a normal one of standard deviation
    $h/\sqrt{2D}$. A truncated population has one long, exponential flank and one steep one.
    """
    dim = len(plain.point)
    corners = np.concatenate([np.eye(dim), -np.eye(dim)]) * _FLANK
    u, _ = plain.at(tuple(jnp.asarray(column)[:, None] for column in corners.T))
    fall = top - over_nodes(log_density)(u, rows)
    fall = jnp.clip(jnp.where(jnp.isnan(fall), 0.5 * _FLANK**2, fall), 0.1, 40.0)
    up, down = _FLANK / jnp.sqrt(2.0 * fall[:dim]), _FLANK / jnp.sqrt(2.0 * fall[dim:])
    skew = jnp.clip(jnp.log(up / down) / _FLANK, -_MOST_SKEW, _MOST_SKEW) / (1.0 - _STRAIGHT)
    # The whole distance between the two flanks is kept.
    reach = jnp.maximum(jnp.abs(skew) * _FLANK, 1e-4)
    stretch = (1.0 - _STRAIGHT) * jnp.sinh(reach) / reach + _STRAIGHT
    return plain._replace(unit=tuple(0.5 * (up + down) / stretch), skew=tuple(skew))


def _scan(log_density: LogDensity, dim: int, rows: Row) -> Point:
    axis = np.linspace(-_SCAN_REACH, _SCAN_REACH, _SCAN[dim])
    grid = tuple(jnp.asarray(g.ravel()) for g in np.meshgrid(*[axis] * dim, indexing="ij"))
    each = jax.vmap(log_density, (None, 0))

    def better(best: tuple[Array, Point], u: Point) -> tuple[tuple[Array, Point], None]:
        # One point for all objects: what depends on it alone is computed once.
        value = each(u, rows)
        higher = value > best[0]
        point = tuple(jnp.where(higher, new, old) for new, old in zip(u, best[1], strict=True))
        return (jnp.where(higher, value, best[0]), point), None

    zero = jnp.zeros(len(jax.tree.leaves(rows)[0]))
    return jax.lax.scan(better, (zero - jnp.inf, (zero,) * dim), grid)[0][1]


def over_nodes(function: Callable[[Point, Row], Any]) -> Any:
    """`function` at every object's own points, (node, object)."""
    return jax.vmap(jax.vmap(function), (0, None))


def _taylor(log_density: LogDensity, u: Point, row: Row) -> _Taylor:
    def value(*u: Array) -> Array:
        return log_density(u, row)

    def along(f: Callable[..., Array], i: int) -> Callable[..., Array]:
        unit = tuple(jnp.ones_like(x) if i == j else jnp.zeros_like(x) for j, x in enumerate(u))
        return lambda *u: jax.jvp(f, u, unit)[1]

    dims = range(len(u))
    slopes = [along(value, i) for i in dims]
    curvature = {(i, j): -along(slopes[i], j)(*u) for i in dims for j in dims if i <= j}
    return _Taylor(
        value(*u),
        tuple(slope(*u) for slope in slopes),
        tuple(tuple(curvature[min(i, j), max(i, j)] for j in dims) for i in dims),
    )


def _newton(taylor: _Taylor) -> Point:
    inverse = _of_curvature(taylor.curvature, lambda x: 1.0 / x)
    return tuple(
        sum((a * g for a, g in zip(row, taylor.slope, strict=True)), jnp.zeros(()))
        for row in inverse
    )


def _gain(taylor: _Taylor) -> Array:
    """The squared length of the Newton step in standard deviations, twice what it gains."""
    steps = zip(_newton(taylor), taylor.slope, strict=True)
    return sum((m * g for m, g in steps), jnp.zeros(()))


def _of_curvature(
    curvature: tuple[Point, ...], function: Callable[[Array], Array]
) -> tuple[Point, ...]:
    r"""A function of a symmetric 1x1 or 2x2 matrix, of its eigenvalues' absolute values.

    For eigenvalues $m \pm r$ it is $\frac{g_+ + g_-}{2} + \frac{g_+ - g_-}{2r}(H - m)$.
    """

    def at(x: Array) -> Array:
        x = jnp.where(jnp.isfinite(x), jnp.abs(x), 1.0)
        return function(jnp.maximum(x, _LEAST_CURVATURE))

    if len(curvature) == 1:
        return ((at(curvature[0][0]),),)
    (a, b), (_, c) = curvature
    middle, half = 0.5 * (a + c), 0.5 * (a - c)
    r = jnp.sqrt(half * half + b * b)
    plus, minus = at(middle + r), at(middle - r)
    mean = 0.5 * (plus + minus)
    # Equal eigenvalues have no direction, and none is needed.
    tilt = jnp.where(r > 0, 0.5 * (plus - minus) / jnp.where(r > 0, r, 1.0), 0.0)
    tilt, half, b = (jnp.where(jnp.isfinite(x), x, 0.0) for x in (tilt, half, b))
    return ((mean + tilt * half, tilt * b), (tilt * b, mean - tilt * half))
