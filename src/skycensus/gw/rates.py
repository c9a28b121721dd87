r"""Merger rates of fitted populations, and how they evolve with redshift.

Where the population has a redshift factor of `gw.redshift`, its mixture weights are mergers per
year of detector time in all the volume out to $z_\mathrm{max}$, and the comoving rate density is

$$R(z) = \sum_k \frac{w_k}{V_k}\,\psi_k(z)\quad[\mathrm{Gpc}^{-3}\,\mathrm{yr}^{-1}],\qquad
  V_k = \int_0^{z_\mathrm{max}} \psi_k \frac{dV_C}{dz} \frac{dz}{1+z},$$

per comoving volume and source time. Without one, a weight is in the units that the selection asks
for: Gpc⁻³ yr⁻¹ where it integrates over volume in Gpc³ and time in years. A population that is
normalised to one has no rate: everything here is then per merger.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from ..density import Joint, Mixture, Population, log_total
from ..errors import InputError
from ..predictive import Hyperparameters

PARAMETER = "redshift"


def merger_rate(population: Population, hyperparameters: Hyperparameters) -> dict[str, np.ndarray]:
    r"""Return the rate density today of every component, and "total", each (draw,).

    With a redshift factor $R_k(0)$ in Gpc⁻³ yr⁻¹; without one the total rate in the units of the
    selection, usually Gpc⁻³ yr⁻¹ as well.

    Args:
        hyperparameters: name -> (draw,).
    """

    def one(h: Hyperparameters) -> dict[str, Array]:
        return {name: jnp.exp(value) for name, value in _local(population(h)).items()}

    return _over_draws(one, hyperparameters)


def mergers_per_year(population: Population, hyperparameters: Hyperparameters) -> np.ndarray:
    r"""Return the mergers out to $z_\mathrm{max}$ per year of detector time, seen or not, (draw,).

    Raises:
        InputError: a population without redshift.
    """
    return _over_draws(_needs_redshift(population, log_total), hyperparameters)


def rate_evolution(
    population: Population, hyperparameters: Hyperparameters, redshift: Any
) -> np.ndarray:
    r"""Return the comoving rate density $R(z)$ in Gpc⁻³ yr⁻¹, (draw, redshift).

    Exact, from $\psi_k$ of the redshift factors; zero beyond their $z_\mathrm{max}$.

    Args:
        redshift: values >= 0.

    Raises:
        InputError: a population without redshift, or with a factor that is not of `gw.redshift`.
    """
    z = jnp.asarray(redshift, float)
    curves = _needs_redshift(population, lambda density: _log_evolution(density, z))
    return _over_draws(curves, hyperparameters)


def _needs_redshift(population: Population, log_rate: Any) -> Any:
    def one(h: Hyperparameters) -> Array:
        density = population(h)
        if PARAMETER not in density.names:
            raise InputError(
                f"the population has no '{PARAMETER}', but {sorted(density.names)}; add a factor "
                "of gw.redshift, or use merger_rate."
            )
        return jnp.exp(log_rate(density))

    return one


def _over_draws(function: Any, hyperparameters: Hyperparameters) -> Any:
    hyper = {name: jnp.asarray(x, float) for name, x in hyperparameters.items()}
    return jax.tree.map(np.asarray, jax.jit(lambda h: jax.lax.map(function, h))(hyper))


def _local(density: Any) -> dict[str, Array]:
    """Log rates today of the components of a mixture, and of all of it."""

    def rate(part: Any) -> Array:
        if PARAMETER in part.names:
            return _log_evolution(part, jnp.zeros(()))
        return log_total(part)

    if not isinstance(density, Mixture):
        return {"total": rate(density)}
    parts = {k: rate(c) + density.log_weights[k] for k, c in density.components.items()}
    return {**parts, "total": logsumexp(jnp.stack(list(parts.values())))}


def _log_evolution(density: Any, z: Array) -> Array:
    r"""$\ln R(z)$ of one density."""
    if isinstance(density, Mixture):
        parts = [
            _log_evolution(c, z) + density.log_weights[k] for k, c in density.components.items()
        ]
        return logsumexp(jnp.stack(parts), axis=0)
    if isinstance(density, Joint) and PARAMETER in density.factors:
        factor = density.factors[PARAMETER]
        others = (log_total(f) for k, f in density.factors.items() if k != PARAMETER)
        rest = sum(others, start=jnp.zeros(()))
        if hasattr(factor, "log_evolution"):
            value = factor.log_evolution(z) - factor.log_volume
            return rest + jnp.where(z <= factor.z_max, value, -jnp.inf)
        if isinstance(factor, Joint | Mixture):
            return rest + _log_evolution(factor, z)
    raise InputError(
        f"the rate over '{PARAMETER}' is known for factors of gw.redshift only, which carry their "
        "volume and evolution; use one of these in a Joint."
    )
