"""Interpolation in a table on a uniform grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def interpolate(table: Any, position: Sequence[Any]) -> Array:
    """Return the local cubic through the four nearest nodes along every axis.

    Args:
        table: values on a uniform grid, at least four nodes along every axis.
        position: for every axis the place in units of its nodes, 0 … size - 1; arrays that
            broadcast, whose precision is the result's. Beyond the grid the edge's value is taken.
    """
    dtype = jnp.result_type(float, *position)
    return _interpolate(jnp.asarray(table, dtype), [jnp.asarray(x, dtype) for x in position])


@jax.jit
def _interpolate(table: Array, position: Sequence[Array]) -> Array:
    shape, dtype, flat = table.shape, table.dtype, table.ravel()
    starts, weights = [], []
    for size, x in zip(shape, position, strict=True):
        place = jnp.clip(x, 0.0, size - 1.0)
        start = jnp.clip(jnp.floor(place).astype(int) - 1, 0, size - 4)
        t = place - start
        # Lagrange's weights at nodes 0, 1, 2, 3.
        weights.append(
            (
                -(t - 1.0) * (t - 2.0) * (t - 3.0) / 6.0,
                t * (t - 2.0) * (t - 3.0) / 2.0,
                -t * (t - 1.0) * (t - 3.0) / 2.0,
                t * (t - 1.0) * (t - 2.0) / 6.0,
            )
        )
        starts.append(start)
    # The four neighbours along the last axis are read as one row: a program of a quarter the size.
    last = jnp.stack(weights[-1], axis=-1)
    total: Array = jnp.zeros((), dtype)
    for corner in itertools.product(range(4), repeat=len(shape) - 1):
        index: Any = 0
        weight: Any = 1.0
        for size, start, w, k in zip(shape[:-1], starts[:-1], weights[:-1], corner, strict=True):
            index = index * size + start + k
            weight = weight * w[k]
        index = index * shape[-1] + starts[-1]
        row = flat[index[..., None] + jnp.arange(4)]
        total = total + weight * jnp.sum(last * row, axis=-1)
    return total
