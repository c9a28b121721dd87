r"""Spectra: the density of photons in true energy, as a flux or normalised.

Energies are in TeV, fluxes in cm⁻² s⁻¹ TeV⁻¹. A spectrum is a density over the one name `energy`.
With an amplitude it is a flux, whose integral `log_total` is that of photons per cm² and s between
its bounds; without one it is normalised there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .. import distributions
from ..density import Theta, check_names, logsumexp
from ..distributions import log_integral, safe_log
from ..errors import InputError

# Gauss-Legendre nodes of a panel, on [0, 1].
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_NODES, _LOG_WEIGHTS = 0.5 * (_NODES + 1.0), np.log(0.5 * _WEIGHTS)

# Cells of the grid that draws are made on, and the darkness below the brightest node (in ln) that
# stands for none at all: exp(-200) of the photons.
_NUM_CELLS = 2048
_DARK = 200.0


class Spectrum(ABC):
    r"""A spectrum $\Phi(E) = A\,s(E)$ on $[\mathrm{low}, \mathrm{high}]$; zero outside.

    To add one, write `log_shape`. Where $\ln A$ is None the spectrum is normalised on its support.
    Every hyperparameter is one number, traced or not.

    Attributes:
        low, high: bounds in TeV.
        log_amplitude: $\ln A$, or None.
    """

    names: ClassVar[tuple[str, ...]] = ("energy",)
    low: Any
    high: Any
    log_amplitude: Any

    @abstractmethod
    def log_shape(self, log_energy: Array) -> Array:
        r"""$\ln s$ at $\ln(E/\mathrm{TeV})$ inside the support; any shape, elementwise."""

    def log_prob(self, theta: Theta) -> Array:
        r"""$\ln\Phi$ at `theta["energy"]` in TeV; $-\infty$ outside the support."""
        check_names(self.names, theta)
        log_energy = safe_log(theta["energy"])
        log_low, log_high = self._log_bounds()
        # "Not outside", so that a NaN is not hidden.
        inside = ~((log_energy < log_low) | (log_energy > log_high))
        within = jnp.clip(log_energy, log_low, log_high)
        value = self.log_shape(within) + self._log_scale()
        return jnp.where(inside, value, -jnp.inf)

    @property
    def log_total(self) -> Array:
        r"""$\ln\int\Phi\,dE$ over the support: zero where the spectrum is normalised."""
        if self.log_amplitude is None:
            return jnp.zeros(())
        return self.log_integral(self.low, self.high)

    def log_integral(self, low: Any, high: Any) -> Array:
        r"""$\ln\int_\mathrm{low}^\mathrm{high}\Phi\,dE$, bounds in TeV of any common shape.

        What lies beyond the support does not count. A derived class has a closed form or
        integrates with 8 Gauss–Legendre nodes in each of 64 panels in $\ln E$.
        """
        return self._log_shape_integral(*self._within(low, high)) + self._log_scale()

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> dict[str, Array]:
        """Draw energies, by the inverse distribution function of power laws between 2049 nodes."""
        log_low, log_high = self._log_bounds()
        nodes = log_low + (log_high - log_low) * jnp.linspace(0.0, 1.0, _NUM_CELLS + 1)
        return {"energy": sample_power_laws(key, nodes, self.log_shape(nodes), sample_shape)}

    def _log_bounds(self) -> tuple[Array, Array]:
        return jnp.log(self.low), jnp.log(self.high)

    def _within(self, low: Any, high: Any) -> tuple[Array, Array]:
        log_low, log_high = self._log_bounds()
        bottom = jnp.clip(safe_log(low), log_low, log_high)
        return bottom, jnp.clip(safe_log(high), log_low, log_high)

    def _log_scale(self) -> Array:
        if self.log_amplitude is None:
            log_norm = self._log_shape_integral(*self._log_bounds())
            # Where there is nothing to normalise, infinity would make NaN of no photons.
            return jnp.where(jnp.isneginf(log_norm), 0.0, -log_norm)
        return jnp.asarray(self.log_amplitude, float)

    def _log_shape_integral(self, log_low: Array, log_high: Array, panels: int = 64) -> Array:
        """Log integral of the shape between logarithms of energies; -inf where they coincide."""
        steps = ((np.arange(panels)[:, None] + _NODES) / panels).ravel()
        log_weights = np.tile(_LOG_WEIGHTS - np.log(panels), panels)
        width = log_high - log_low
        log_energy = log_low[..., None] + width[..., None] * steps
        terms = self.log_shape(log_energy) + log_energy + log_weights
        empty = width <= 0
        total = logsumexp(terms, axis=-1) + jnp.log(jnp.where(empty, 1.0, width))
        return jnp.where(empty, -jnp.inf, total)


def sample_power_laws(
    key: Any, log_nodes: Array, log_density: Array, sample_shape: tuple[int, ...]
) -> Array:
    """Draw from a density that is a power law between its nodes, given by their logarithms."""
    log_density = jnp.maximum(log_density, jnp.max(log_density) - _DARK)
    steps = jnp.diff(log_nodes)
    slopes = jnp.diff(log_density) / jnp.where(steps > 0, steps, 1.0)
    masses = _log_masses(log_nodes, log_density)
    cell_key, place_key = jax.random.split(key)
    total = jnp.cumsum(jnp.exp(masses - jnp.max(masses)))
    u = jax.random.uniform(cell_key, sample_shape, total.dtype) * total[-1]
    cell = jnp.clip(jnp.searchsorted(total, u, side="right"), 0, len(masses) - 1)
    within = distributions.PowerLaw(
        slopes[cell], log_low=log_nodes[cell], log_high=log_nodes[cell + 1]
    )
    return within.icdf(jax.random.uniform(place_key, sample_shape, total.dtype))


def _log_masses(log_nodes: Array, log_density: Array) -> Array:
    """Log integrals of a density that is a power law between its nodes, one for each cell."""
    steps = jnp.diff(log_nodes)
    slopes = jnp.diff(log_density) / jnp.where(steps > 0, steps, 1.0)
    inner = log_integral(slopes + 1.0, jnp.zeros_like(steps), steps)
    return jnp.where(steps > 0, log_density[:-1] + log_nodes[:-1] + inner, -jnp.inf)


class PowerLaw(Spectrum):
    r"""$\Phi(E) = A\,(E/E_0)^{-\Gamma}$; its integrals are closed forms.

    Args:
        index: $\Gamma$.
        low, high: bounds in TeV.
        log_amplitude: $\ln A$, A in cm⁻² s⁻¹ TeV⁻¹; None normalises.
        reference: $E_0$ in TeV.
    """

    def __init__(
        self, index: Any, *, low: Any, high: Any, log_amplitude: Any = None, reference: Any = 1.0
    ):
        self.index, self.reference = index, reference
        self.low, self.high, self.log_amplitude = *_checked(low, high), log_amplitude

    def log_shape(self, log_energy: Array) -> Array:
        return -self.index * (log_energy - jnp.log(self.reference))

    def _log_shape_integral(self, log_low: Array, log_high: Array, panels: int = 0) -> Array:
        inner = log_integral(1.0 - jnp.asarray(self.index, float), log_low, log_high)
        inner = inner + self.index * jnp.log(self.reference)
        return jnp.where(log_high > log_low, inner, -jnp.inf)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> dict[str, Array]:
        law = distributions.PowerLaw(-jnp.asarray(self.index, float), self.low, self.high)
        return {"energy": law.sample(key, sample_shape)}


class LogParabola(Spectrum):
    r"""$\Phi(E) = A\,(E/E_0)^{-\alpha - \beta \ln(E/E_0)}$ (Massaro et al. 2004, A&A 413, 489, with
    a natural logarithm).

    Args:
        index: $\alpha$, the index at $E_0$.
        curvature: $\beta$.
        low, high: bounds in TeV.
        log_amplitude: $\ln A$, A in cm⁻² s⁻¹ TeV⁻¹; None normalises.
        reference: $E_0$ in TeV.
    """

    def __init__(
        self,
        index: Any,
        curvature: Any,
        *,
        low: Any,
        high: Any,
        log_amplitude: Any = None,
        reference: Any = 1.0,
    ):
        self.index, self.curvature, self.reference = index, curvature, reference
        self.low, self.high, self.log_amplitude = *_checked(low, high), log_amplitude

    def log_shape(self, log_energy: Array) -> Array:
        x = log_energy - jnp.log(self.reference)
        return -x * (self.index + self.curvature * x)


class CutoffPowerLaw(Spectrum):
    r"""$\Phi(E) = A\,(E/E_0)^{-\Gamma}\,e^{-E/E_c}$.

    Args:
        index: $\Gamma$.
        cutoff: $E_c$ in TeV.
        low, high: bounds in TeV.
        log_amplitude: $\ln A$, A in cm⁻² s⁻¹ TeV⁻¹; None normalises.
        reference: $E_0$ in TeV.
    """

    def __init__(
        self,
        index: Any,
        cutoff: Any,
        *,
        low: Any,
        high: Any,
        log_amplitude: Any = None,
        reference: Any = 1.0,
    ):
        self.index, self.cutoff, self.reference = index, cutoff, reference
        self.low, self.high, self.log_amplitude = *_checked(low, high), log_amplitude

    def log_shape(self, log_energy: Array) -> Array:
        slope = -self.index * (log_energy - jnp.log(self.reference))
        return slope - jnp.exp(log_energy) / self.cutoff


class Tabulated(Spectrum):
    r"""A table of a spectrum, a power law between its nodes (linear in $\ln E$ and $\ln\Phi$).

    Its support is the table's range; its integrals are exact.

    Args:
        energy: increasing nodes in TeV, at least two.
        density: the spectrum there, positive; its unit is the amplitude's business.
        log_amplitude: $\ln A$ of a factor on the table: zero where `density` is the flux in
            cm⁻² s⁻¹ TeV⁻¹ itself; None normalises.

    Raises:
        InputError: nodes that do not increase, or a density that is not positive and finite.
    """

    def __init__(self, energy: Any, density: Any, *, log_amplitude: Any = None):
        nodes, table = np.asarray(energy, float), np.asarray(density, float)
        if nodes.ndim != 1 or nodes.shape != table.shape or len(nodes) < 2:
            raise InputError(
                f"a tabulated spectrum needs one density for each of two or more energies, got "
                f"shapes {nodes.shape} and {table.shape}."
            )
        if not (np.all(np.diff(nodes) > 0) and nodes[0] > 0):
            raise InputError("the energies of a tabulated spectrum must be positive and increase.")
        if wrong := np.flatnonzero(~(np.isfinite(table) & (table > 0))).tolist():
            raise InputError(
                f"a tabulated spectrum must be positive and finite; it is {table[wrong[0]]:g} at "
                f"{nodes[wrong[0]]:g} TeV. Leave those nodes out."
            )
        self.log_nodes, self.log_density = np.log(nodes), np.log(table)
        self.low, self.high, self.log_amplitude = nodes[0], nodes[-1], log_amplitude

    def log_shape(self, log_energy: Array) -> Array:
        return jnp.interp(log_energy, self.log_nodes, self.log_density)

    def _log_shape_integral(self, log_low: Array, log_high: Array, panels: int = 0) -> Array:
        def one(bottom: Array, top: Array) -> Array:
            # Nodes outside are moved to the bounds: their cells become empty.
            nodes = jnp.clip(jnp.asarray(self.log_nodes), bottom, top)
            nodes = jnp.concatenate([nodes, top[None]])
            masses = _log_masses(nodes, self.log_shape(nodes))
            return logsumexp(masses, axis=0)

        return jnp.vectorize(one)(log_low, log_high)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> dict[str, Array]:
        nodes, values = jnp.asarray(self.log_nodes), jnp.asarray(self.log_density)
        return {"energy": sample_power_laws(key, nodes, values, sample_shape)}


def _checked(low: Any, high: Any) -> tuple[Any, Any]:
    """Bounds that are plain numbers must be in order; traced ones cannot be looked at."""
    if isinstance(low, int | float) and isinstance(high, int | float) and not 0 < low < high:
        raise InputError(
            f"a spectrum needs bounds 0 < low < high in TeV, got low={low:g} and high={high:g}."
        )
    return low, high
