r"""Backgrounds that are known up to a norm and a tilt for every run, which hyperparameters decide.

For run r with the tabulated rate $b_r$ of its response,

$$n(E', \Omega') = t\,c_r\,(E'/\mathrm{TeV})^{-\delta_r}\,b_r(E', \Omega'),$$

as in gammapy's `FoVBackgroundModel`; norm c and tilt δ are one and zero where nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..density import Theta
from ..likelihood import LogMarginal
from ..likelihood.formula import ObjectNames
from .fold import Fold


class Scaled:
    """Norms and tilts (R,) of the runs' backgrounds: the density of such a leaf.

    It has no true energy that could be integrated over, and is one in it.
    """

    names = ("energy",)

    def __init__(self, norm: Sequence[Any], tilt: Sequence[Any]):
        self.norm, self.tilt = (
            jnp.stack([jnp.asarray(x, float) for x in xs]) for xs in (norm, tilt)
        )

    @property
    def both(self) -> tuple[Array, Array]:
        """Norms and tilts."""
        return self.norm, self.tilt

    @property
    def settings(self) -> Array:
        """Both as one vector: all that the density is, for it is one in the energy."""
        return jnp.concatenate(self.both)

    def log_prob(self, theta: Theta) -> Array:
        return jnp.zeros(jnp.shape(theta["energy"]))


class BackgroundPhotons(eqx.Module):
    """Photons of several runs as objects of a background that is `Scaled`.

    Args:
        folds: one for each run.
        names: of all photons, run after run.
    """

    log_density: Array
    log_energy: Array
    run: Array
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, folds: Sequence[Fold], *, names: Sequence[str]):
        density = np.concatenate([fold.background()[0] for fold in folds])
        with np.errstate(divide="ignore"):
            self.log_density = jnp.asarray(np.log(density))
        self.log_energy = jnp.log(jnp.asarray(np.concatenate([fold.energy for fold in folds])))
        self.run = jnp.repeat(jnp.arange(len(folds)), np.array([len(f.energy) for f in folds]))
        self.names = ObjectNames(names)

    def log_marginal(self, density: Scaled) -> LogMarginal:
        """Log densities of counts [1/(TeV sr)] at the photons."""
        own = jnp.log(density.norm)[self.run] - density.tilt[self.run] * self.log_energy
        return LogMarginal(self.log_density + own, jnp.zeros_like(own))

    def draw(self, density: Scaled, key: Any) -> dict[str, Array]:
        """Nothing is known of a true energy: NaN."""
        return {"energy": jnp.full(self.run.shape, jnp.nan)}


class BackgroundNumber(eqx.Module):
    """The expected number of a background's photons in the cut, as one object."""

    log_energy: list[Array]
    counts: list[Array]
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, folds: Sequence[Fold]):
        spectra = [fold.background_counts() for fold in folds]
        self.log_energy = [jnp.log(jnp.asarray(energy)) for energy, _ in spectra]
        self.counts = [jnp.asarray(counts) for _, counts in spectra]
        self.names = ("expected number",)

    def log_marginal(self, density: Scaled) -> LogMarginal:
        """The log of the expected number, of all runs."""
        each = [
            norm * jnp.sum(counts * jnp.exp(-tilt * log_energy))
            for norm, tilt, counts, log_energy in zip(
                density.norm, density.tilt, self.counts, self.log_energy, strict=True
            )
        ]
        return LogMarginal(jnp.log(jnp.sum(jnp.stack(each)))[None], jnp.zeros(1))

    def draw(self, density: Scaled, key: Any) -> dict[str, Array]:
        """Nothing is known of a true energy: NaN."""
        return {"energy": jnp.full(1, jnp.nan)}
