r"""Samplers: each takes a `Target` and gives a `Result`; they differ in how.

To add one, write a class whose `run(target, key)` returns a `Result`, and add a line to the table
of `tests/contracts.py`. Settings are fields of the class; randomness comes from `key` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from ..errors import InputError
from ..model import Target
from ..result import Result

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, what) now and then; the caller draws the bar."""


class Sampler(Protocol):
    """Anything that draws from a target."""

    def run(self, target: Target, key: Any, *, progress: Progress | None = None) -> Result:
        """Sample `target`; all randomness comes from `key`."""
        ...


# Numbers that a batch of points may span together: more would not stay in cache.
_BATCH_NUMBERS = 2**17


def batch_size(target: Target) -> int:
    """How many points are best evaluated at once; one where the data are many."""
    numbers = sum(leaf.size for leaf in jax.tree.leaves(target.data))
    return int(np.clip(_BATCH_NUMBERS // max(numbers, 1), 1, 64))


def evaluate(target: Target, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log likelihood and log prior at the points (n, dim), in batches.

    Raises:
        InputError: a log likelihood or prior that is NaN or +inf, naming the point.
    """
    # One compiled size for all calls: whole multiples of it, the rest repeats the last point.
    size, batch = 512, batch_size(target)
    padded = np.concatenate([x, np.repeat(x[-1:], -len(x) % size, axis=0)])
    chunks = padded.reshape(-1, size, x.shape[1])
    both = target.compiled("evaluate", lambda: _both(target, batch))
    out = [both(chunk, target.data) for chunk in chunks]
    log_l, log_p = (
        np.concatenate([np.asarray(o[i], float) for o in out])[: len(x)] for i in (0, 1)
    )
    require_numbers(target, x, log_l + log_p)
    return log_l, log_p


def _both(target: Target, batch: int) -> Callable[..., Any]:
    def one(x: Any, data: Any) -> tuple[Any, Any]:
        return target.log_likelihood(x, data), target.log_prior(x)

    return lambda points, data: jax.lax.map(lambda x: one(x, data), points, batch_size=batch)


def require_numbers(target: Target, x: np.ndarray, log_density: np.ndarray) -> None:
    """Raise `InputError` naming the first point whose log density is NaN or +inf."""
    bad = np.flatnonzero(np.isnan(log_density) | (log_density == np.inf))
    if bad.size:
        values = target.constrain(x[bad[0]])
        point = ", ".join(
            f"{name}={np.asarray(v):.8g}" for name, v in values.items() if np.ndim(v) == 0
        )
        raise InputError(
            f"the log density is {log_density[bad[0]]} at {point or x[bad[0]]} ({bad.size} of "
            f"{len(x)} points): the model is broken there; evaluate it at this point and mend it, "
            "or keep the prior away."
        )


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

__all__ = [
    "NUTS",
    "FlowMCMC",
    "ImportanceSampler",
    "Progress",
    "Sampler",
    "batch_size",
    "evaluate",
    "named_draws",
]
