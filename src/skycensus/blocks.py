"""Elementwise functions of long columns in blocks of one shape, compiled once for all lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def in_blocks(
    function: Callable[[dict[str, np.ndarray]], Any], columns: Mapping[str, Any], size: int
) -> Any:
    """Return what `function` makes of the columns, evaluated `size` rows at a time.

    Args:
        function: name -> array of `size` rows to arrays of as many, in any pytree; jitted or not.
        columns: name -> one-dimensional array, all of one length.
        size: rows in a block; the last block repeats its last row.

    Returns:
        The pytree of `function`, with 64-bit NumPy arrays of the columns' length.
    """
    rows = {name: np.asarray(x) for name, x in columns.items()}
    num = len(next(iter(rows.values())))
    missing = -num % size if num else size
    padded = {
        n: np.pad(x, (0, missing), mode="edge" if num else "constant") for n, x in rows.items()
    }
    starts = range(0, num + missing, size)
    parts = [function({n: x[i : i + size] for n, x in padded.items()}) for i in starts]
    return jax.tree.map(lambda *x: np.concatenate([np.asarray(p, float) for p in x])[:num], *parts)
