r"""Samplers: each takes a `Target` and gives a `Result`; they differ in how.

To add one, write a class whose `run(target, key)` returns a `Result`, and add a line to the table
of `tests/contracts.py`. Settings are fields of the class; randomness comes from `key` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from ..model import Target
from ..result import Result

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, what) now and then; the caller draws the bar."""


class Sampler(Protocol):
    """Anything that draws from a target."""

    def run(self, target: Target, key: Any, *, progress: Progress | None = None) -> Result:
        """Sample `target`; all randomness comes from `key`."""
        ...


def named_draws(target: Target, x: Any) -> dict[str, np.ndarray]:
    """Constrain points of shape (chain, draw, dim); a vector `v` becomes `v[0]`, `v[1]`, …"""
    constrained: Mapping[str, Any] = jax.jit(jax.vmap(jax.vmap(target.constrain)))(x)
    draws: dict[str, np.ndarray] = {}
    for name, value in constrained.items():
        value = np.asarray(value, float)
        if value.ndim == 2:
            draws[name] = value
        for index in np.ndindex(*value.shape[2:]) if value.ndim > 2 else ():
            label = ",".join(map(str, index))
            draws[f"{name}[{label}]"] = value[(slice(None), slice(None), *index)]
    return draws


from .flow_mcmc import FlowMCMC  # noqa: E402
from .importance import ImportanceSampler  # noqa: E402
from .nuts import NUTS  # noqa: E402

__all__ = ["NUTS", "FlowMCMC", "ImportanceSampler", "Progress", "Sampler", "named_draws"]
