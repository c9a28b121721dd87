"""Interpolation in a table on a uniform grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


@jax.jit
def interpolate(table: Any, position: Sequence[Any]) -> Array:
    """Return the local cubic through the four nearest nodes along every axis.

    Args:
        table: values on a uniform grid, at least four nodes along every axis.
        position: for every axis the place in units of its nodes, 0 … size - 1; arrays that
            broadcast. Beyond the grid the edge's value is taken.
    """
    shape = table.shape
    dtype = jnp.result_type(float, *position)
    flat = table.ravel().astype(dtype)
    starts, weights = [], []
    for size, x in zip(shape, position, strict=True):
        place = jnp.clip(jnp.asarray(x, dtype), 0.0, size - 1.0)
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
    total: Array = jnp.zeros((), dtype)
    for corner in itertools.product(range(4), repeat=len(shape)):
        index: Any = 0
        weight: Any = 1.0
        for size, start, w, k in zip(shape, starts, weights, corner, strict=True):
            index = index * size + start + k
            weight = weight * w[k]
        total = total + weight * flat[index]
    return total
