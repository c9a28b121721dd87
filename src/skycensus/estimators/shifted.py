r"""An estimate seen from other axes: pieces and blocks are fitted in coordinates of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array

from . import Estimate
from .coordinates import whitened
from .kinds import describe_parts, rebuild_parts
from .pool import log_prob_variance


class Shifted(eqx.Module):
    r"""The density of $z = m + R z'$, where $z'$ has the density of `inner` and R is triangular.

    Shapes: `mean` (d,), `root` (d, d) lower triangular.
    """

    inner: Estimate
    mean: Array
    root: Array
    kind: str = eqx.field(static=True, default="shifted")

    def log_prob(self, z: Array) -> Array:
        return self.inner.log_prob(self._own(z)) - jnp.log(jnp.diagonal(self.root)).sum()

    def from_unit_cube(self, u: Array) -> Array:
        inner = self.inner.from_unit_cube(u)
        return self.mean + jnp.einsum("ij,...j->...i", self.root, inner)

    def log_prob_variance(self, z: Array) -> Array:
        """See `Pool.log_prob_variance`."""
        return log_prob_variance(self.inner, self._own(z))

    def _own(self, z: Array) -> Array:
        return whitened(z - self.mean, self.root)

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        settings, arrays = describe_parts({"inner": self.inner})
        own = {"mean": np.asarray(self.mean), "root": np.asarray(self.root)}
        return {"parts": settings}, {**own, **arrays}

    @classmethod
    def from_arrays(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Shifted:
        inner = rebuild_parts(settings["parts"], arrays)["inner"]
        return cls(inner, jnp.asarray(arrays["mean"]), jnp.asarray(arrays["root"]))
