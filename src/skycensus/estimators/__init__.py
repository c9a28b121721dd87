r"""Densities learned from samples: draws in, a normalised density out.

`fit_density` maps the draws to unbounded standardised coordinates z (`coordinates.py`), fits an
`Estimate` there, and returns both together as a `LearnedDensity` over the named parameters.

To add a kind of estimate, write the class and a function `fit_<kind>`, and add a line to the table
of `kinds.py` and to that of `tests/contracts.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jax import Array


class Estimate(Protocol):
    r"""A normalised density on $\mathbb{R}^d$, in standardised coordinates; an equinox Module.

    A pytree, so that it can be an argument of compiled code. Both maps take points of shape
    (..., d); a point's value must not depend on the points beside it.
    """

    kind: str
    """Its line in the table of `kinds.py`."""

    def log_prob(self, z: Array) -> Array:
        """Log density, (..., d) -> (...): finite wherever z is."""
        ...

    def from_unit_cube(self, u: Array) -> Array:
        """Points (..., d) -> (..., d), distributed as the density where `u` is uniform on (0, 1).

        A map that preserves measure, and no more: it need have no inverse.
        """
        ...

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What a file needs: settings that JSON can hold, and arrays by names without "/".

        An estimate made of others puts theirs under a prefix of its own ("0/", "1/", ...).
        """
        ...

    @classmethod
    def from_arrays(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Estimate:
        """The inverse of `to_arrays`."""
        ...


# Imported on first use: the flows bring a neural-network library along.
_HOMES = {
    "ConditionalDensity": "conditional",
    "LearnedDensity": "learned",
    "Periodic": "coordinates",
    "fit_conditional": "conditional",
    "fit_density": "fit",
    "load_density": "files",
}

__all__ = ["Estimate", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
