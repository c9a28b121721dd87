r"""Kernel density estimates of weighted draws in many dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri
from scipy.optimize import minimize_scalar

from ..density import logsumexp
from ..keys import generator
from ..weights import kish, systematic
from .clusters import nearest_centre
from .pool import choose

# How much narrower kernels may be where draws are dense: powers of the density.
_SENSITIVITIES = (0.0, 0.25, 0.5)


class KernelDensity(eqx.Module):
    r"""$q(z) = \sum_k w_k\,\mathcal{N}(z \mid c_k, h_k^2 I)$, in whitened coordinates.

    Whitened, one number per kernel is a matrix in the parameters: their covariance times $h_k^2$.
    Shapes: `log_weight` (k,), `loc` (k, d), `log_scale` (k,).
    """

    log_weight: Array
    loc: Array
    log_scale: Array
    kind: str = eqx.field(static=True, default="kde")

    def log_prob(self, z: Array) -> Array:
        dim = self.loc.shape[-1]
        # As a product of matrices: differences of all points and kernels would fill the memory.
        squares = jnp.sum(z**2, axis=-1)[..., None] + jnp.sum(self.loc**2, axis=-1)
        squares = jnp.maximum(squares - 2.0 * jnp.einsum("...i,ki->...k", z, self.loc), 0.0)
        terms = -0.5 * squares * jnp.exp(-2.0 * self.log_scale) - dim * self.log_scale
        return logsumexp(self.log_weight + terms, axis=-1) - 0.5 * dim * math.log(2.0 * math.pi)

    def from_unit_cube(self, u: Array) -> Array:
        """The first coordinate chooses the kernel, in order of the kernels' first coordinates."""
        chosen, u = choose(self.log_weight, u)
        return self.loc[chosen] + jnp.exp(self.log_scale[chosen])[..., None] * ndtri(u)

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        names = ("log_weight", "loc", "log_scale")
        return {}, {name: np.asarray(getattr(self, name)) for name in names}

    @classmethod
    def from_arrays(
        cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> KernelDensity:
        del settings
        log_weight, loc, log_scale = (
            jnp.asarray(arrays[name]) for name in ("log_weight", "loc", "log_scale")
        )
        return cls(log_weight, loc, log_scale)


def fit_kde(
    key: Any,
    z: np.ndarray,
    weight: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray],
    progress: Any = None,
    max_kernels: int = 1000,
    adaptive: bool = True,
) -> KernelDensity:
    r"""Kernels at the draws, or at the means of neighbouring draws where these are many.

    The bandwidth, a multiple of Scott's $n_\mathrm{eff}^{-1/(d+4)}$ times the covariance (Scott
    1992), has the best held-out score. So has the power s by which kernels narrow where draws are
    dense, $h_k \propto q(c_k)^{-s}$ (Abramson 1982: 1/2).

    Args:
        max_kernels: how many kernels there are at most.
        adaptive: whether kernels may differ in width.
    """
    loc, mass = _compressed(generator(key), z, weight, max_kernels)
    scott = kish(np.log(mass)) ** (-1.0 / (z.shape[1] + 4))
    squares = _squared_distances(validation[0], loc)
    among = _squared_distances(loc, loc)
    best = None
    tried = _SENSITIVITIES if adaptive else _SENSITIVITIES[:1]
    for done, power in enumerate(tried):
        pilot = np.zeros(len(loc))
        if power:
            assert best is not None
            density = _log_density(among, mass, np.full(len(loc), best[1][0]), z.shape[1])
            pilot = -power * (density - mass @ density)
        found = _bandwidth(squares, validation[1], mass, pilot + math.log(scott), z.shape[1])
        if progress is not None:
            progress(done + 1, len(tried), "kernels")
        if best is None or found[0] > best[0]:
            best = found[0], found[1]
    assert best is not None
    order = np.argsort(loc[:, 0], kind="stable")
    return KernelDensity(
        jnp.log(jnp.asarray(mass[order])), jnp.asarray(loc[order]), jnp.asarray(best[1][order])
    )


def _compressed(
    rng: np.random.Generator, z: np.ndarray, weight: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """At most so many points and their weights: means of draws that are nearest to one of them."""
    if len(z) <= most:
        return z, weight
    centres = z[np.unique(systematic(weight, most, rng.random()))]
    for _ in range(3):
        label = nearest_centre(z, centres)
        mass = np.bincount(label, weight, minlength=len(centres))
        sums = np.stack([np.bincount(label, weight * c, len(centres)) for c in z.T], axis=1)
        centres = sums[mass > 0] / mass[mass > 0, None]
    return centres, mass[mass > 0] / mass.sum()


def _squared_distances(x: np.ndarray, loc: np.ndarray) -> np.ndarray:
    squares = np.sum(x**2, axis=1)[:, None] + np.sum(loc**2, axis=1) - 2.0 * x @ loc.T
    return np.maximum(squares, 0.0)


def _log_density(
    squares: np.ndarray, mass: np.ndarray, log_scale: np.ndarray, dim: int
) -> np.ndarray:
    """Log density at points of squared distances (n, k), up to a constant."""
    terms = np.log(mass) - 0.5 * squares * np.exp(-2.0 * log_scale) - dim * log_scale
    top = terms.max(axis=1)
    return top + np.log(np.exp(terms - top[:, None]).sum(axis=1))


def _bandwidth(
    squares: np.ndarray, weight: np.ndarray, mass: np.ndarray, log_scale: np.ndarray, dim: int
) -> tuple[float, np.ndarray]:
    """The best held-out score, and the log scales with the factor that reaches it."""

    def loss(log_factor: float) -> float:
        return -float(weight @ _log_density(squares, mass, log_scale + log_factor, dim))

    found = minimize_scalar(loss, bounds=(-4.0, 1.0), method="bounded", options={"xatol": 1e-2})
    return -float(found.fun), log_scale + found.x
