"""Smooth interpolation that keeps to its table: no overshoot, nothing negative out of positive."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def monotone_slopes(nodes: np.ndarray, values: Any) -> Any:
    r"""Return slopes at the nodes for which `hermite` is monotone wherever the table is.

    The weighted harmonic mean of the two neighbouring secants, and zero where they differ in sign
    (Fritsch & Butland 1984, SIAM J. Sci. Stat. Comput. 5, 300); at an end the last secant.

    Args:
        nodes: increasing, at least two; shape `(n,)`.
        values: shape `(n, ...)`, an array of numpy or of JAX; so is the result.
    """
    # A table's slopes are made once, by numpy: a compiler takes long over large constants.
    xp: Any = jnp if isinstance(values, jax.Array) else np
    widths = np.diff(nodes).reshape((-1,) + (1,) * (values.ndim - 1))
    secants = xp.diff(values, axis=0) / widths
    before, after = secants[:-1], secants[1:]
    weight_before = 2.0 * widths[1:] + widths[:-1]
    weight_after = widths[1:] + 2.0 * widths[:-1]
    same_sign = before * after > 0
    total = xp.where(same_sign, weight_before * after + weight_after * before, 1.0)
    mean = (weight_before + weight_after) * before * after / total
    return xp.concatenate([secants[:1], xp.where(same_sign, mean, 0.0), secants[-1:]])


def hermite(nodes: np.ndarray, values: Any, slopes: Any, x: Any) -> Array:
    """Return the cubics that have these values and slopes at the nodes.

    Args:
        nodes: increasing, at least two; shape `(n,)`.
        values, slopes: shape `(n, ...)`.
        x: any shape; beyond the nodes the end's value is taken.

    Returns:
        The shape of `x`, then that of a row of `values`.
    """
    widths = np.diff(nodes)
    even = bool(np.allclose(widths, widths[0], rtol=1e-9, atol=0.0))
    return _hermite(nodes, widths, jnp.asarray(values), jnp.asarray(slopes), x, even=even)


@functools.partial(jax.jit, static_argnames="even")
def _hermite(
    nodes: Array, widths: Array, values: Array, slopes: Array, x: Any, even: bool
) -> Array:
    x = jnp.clip(x, nodes[0], nodes[-1])
    if even:
        place = (x - nodes[0]) / widths[0]
        cell = jnp.clip(jnp.floor(place).astype(int), 0, len(widths) - 1)
        t = place - cell
    else:
        cell = jnp.clip(jnp.searchsorted(nodes, x, side="right") - 1, 0, len(widths) - 1)
        t = (x - nodes[cell]) / widths[cell]

    def at(rows: Array, step: int = 0) -> Array:
        return rows.at[cell + step].get(mode="promise_in_bounds")

    # Looking up is what takes time: of few cells their ends, at many places the cubics themselves.
    if jnp.size(x) > len(widths):
        terms = [at(c) for c in cubics(widths, values[:-1], values[1:], slopes[:-1], slopes[1:])]
    else:
        terms = cubics(widths[cell], at(values), at(values, 1), at(slopes), at(slopes, 1))
    return cubic_at(terms, t.reshape(t.shape + (1,) * (values.ndim - 1)))


def cubics(width: Any, low: Any, high: Any, slope_low: Any, slope_high: Any) -> list[Any]:
    """Coefficients in t, constant first, of cubics over cells, by values and slopes at the ends.

    Args:
        width: of the cells; its shape is the first axes of the others'.
    """
    width = width.reshape(width.shape + (1,) * (jnp.ndim(low) - jnp.ndim(width)))
    rise, rise_low, rise_high = high - low, width * slope_low, width * slope_high
    return [
        low,
        rise_low,
        3.0 * rise - 2.0 * rise_low - rise_high,
        rise_low + rise_high - 2.0 * rise,
    ]


def cubic_at(terms: Sequence[Any], t: Any) -> Any:
    """Cubics at places t in their cells, from zero to one."""
    constant, linear, square, cube = terms
    return constant + t * (linear + t * (square + t * cube))


def monotone_cubic(nodes: np.ndarray, values: Any, x: Any) -> Array:
    """Return the piecewise cubic through a table, monotone wherever the table is.

    Value and first derivative are continuous, in `x` and in `values`, and no value lies outside
    those of the two nodes around it. For the arguments see `hermite`.
    """
    return hermite(nodes, values, monotone_slopes(nodes, values), x)


def monotone_surface(nodes: Sequence[np.ndarray], table: Any, x: Sequence[Any]) -> Array:
    """Return `monotone_cubic` along the first axis of a table, then along the second.

    Args:
        nodes: of the two axes, at least four each, and evenly spaced up to their rounding.
        table: shape `(n, m, ...)`.
        x: one place on each axis, scalars; beyond the nodes the end's value is taken.

    Returns:
        A row of `table`, of its shape less two axes.
    """
    four = np.arange(4.0)
    starts, places = [], []
    for axis, at in zip(nodes, x, strict=True):
        place = jnp.interp(at, axis, np.arange(float(len(axis))))
        start = jnp.clip(jnp.floor(place).astype(int) - 1, 0, len(axis) - 4)
        starts.append(start)
        places.append(place - start)
    rest = table.shape[2:]
    # Of all the table only the four nodes on either axis count.
    window = jax.lax.dynamic_slice(jnp.asarray(table), (*starts, *(0 for _ in rest)), (4, 4, *rest))
    return monotone_cubic(four, monotone_cubic(four, window, places[0]), places[1])
