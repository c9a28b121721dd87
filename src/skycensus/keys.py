"""JAX's keys as seeds of NumPy, for what happens outside compiled functions."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def generator(key: Any) -> np.random.Generator:
    """A NumPy generator seeded by a JAX key: 64-bit draws whatever JAX's precision is."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
