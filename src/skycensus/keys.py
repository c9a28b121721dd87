"""JAX's keys as seeds of NumPy, and even points, for what happens outside compiled functions."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def generator(key: Any) -> np.random.Generator:
    """A NumPy generator seeded by a JAX key: 64-bit draws whatever JAX's precision is."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def even_points(rng: np.random.Generator, num: int, dim: int) -> np.ndarray:
    """Points (num, dim) inside the unit cube, spread more evenly than independent ones would be.

    A scrambled Halton sequence (Owen 2017, arXiv:1706.02808): each point by itself is uniform, and
    means over all of them have a smaller error than means over independent draws.
    """
    # Slow to import, and not every run needs it.
    from scipy.stats import qmc

    u = qmc.Halton(dim, scramble=True, rng=rng).random(num)
    return np.clip(u, 1e-15, 1 - 1e-15)
