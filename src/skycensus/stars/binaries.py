r"""Populations of binary stars: periods, and the linear parameters of their orbits.

Amplitudes (see `radial_velocity`, `kepler`) and systemic velocities are normal around zero,
$a, b \sim \mathcal N(0, s_K)$, $v_0 \sim \mathcal N(0, s_v)$ in km/s, with fixed widths unless
hyperparameters `ln_s_K`, `ln_s_v` are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import astropy.units as u
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from astropy.table import QTable
from jax import Array

from ..density import Joint


def normal_log_period(
    h: Mapping[str, Array], *, amplitude_sd: float = 100.0, velocity_sd: float = 150.0
) -> Joint:
    r"""$\ln P \sim \mathcal N(\mu, \sigma)$, P in days.

    Hyperparameters: `mu`, and `lnsigma`, the natural log of $\sigma$.
    """
    period = dist.Normal(h["mu"], jnp.exp(h["lnsigma"]))
    return Joint({"lnP": period, **_linear(h, amplitude_sd, velocity_sd)})


def uniform_period(
    h: Mapping[str, Array],
    *,
    low: float = 1.5,
    high: float = 20.0,
    amplitude_sd: float = 100.0,
    velocity_sd: float = 150.0,
) -> Joint:
    """P uniform between `low` and `high` days: the prior of one star by itself."""
    return Joint({"P": dist.Uniform(low, high), **_linear(h, amplitude_sd, velocity_sd)})


def beta_eccentricity(h: Mapping[str, Array]) -> Joint:
    r"""Eccentricities $e \sim \mathrm{Beta}(\alpha, \beta)$, a factor beside one of periods.

    Hyperparameters: `alpha_e` and `beta_e`; without them 0.867 and 3.03 (Kipping 2013, MNRAS 434,
    L51).
    """
    return Joint(e=dist.Beta(h.get("alpha_e", 0.867), h.get("beta_e", 3.03)))


def _linear(h: Mapping[str, Any], amplitude_sd: float, velocity_sd: float) -> dict[str, Any]:
    amplitude = jnp.exp(h.get("ln_s_K", jnp.log(amplitude_sd)))
    velocity = jnp.exp(h.get("ln_s_v", jnp.log(velocity_sd)))
    return {
        "a": dist.Normal(0.0, amplitude),
        "b": dist.Normal(0.0, amplitude),
        "v0": dist.Normal(0.0, velocity),
    }


def velocity_table(time: np.ndarray, velocity: np.ndarray, error: float) -> QTable:
    """A table with columns star, time [days], velocity and error [km/s] from arrays (star, epoch).

    It has one row for each epoch of each star, which is what `radial_velocity.velocities` reads.
    """
    num_stars, num_epochs = np.shape(time)
    names = [f"star {i}" for i in range(num_stars)]
    km_s = u.km / u.s
    return QTable(
        {
            "star": np.repeat(names, num_epochs),
            "time": np.ravel(time) * u.day,
            "velocity": np.ravel(velocity) * km_s,
            "error": np.full(np.size(time), error) * km_s,
        }
    )


def simulate(
    seed: int = 1,
    *,
    num_stars: int = 64,
    num_epochs: int = 8,
    baseline: float = 700.0,
    error: float = 0.5,
    mu: float = 2.3,
    lnsigma: float = -0.5,
) -> QTable:
    """Make velocities of binaries on circular orbits at random epochs; see `velocity_table`.

    Periods are log-normal (days); semi-amplitudes 4 to 20 km/s, phases uniform, systemic velocities
    normal with 30 km/s.
    """
    rng = np.random.default_rng(seed)
    time = np.sort(rng.uniform(0.0, baseline, (num_stars, num_epochs)), axis=1)
    period = np.exp(rng.normal(mu, np.exp(lnsigma), num_stars))
    amplitude = rng.uniform(4.0, 20.0, num_stars)
    phase = rng.uniform(0.0, 2 * np.pi, num_stars)
    systemic = rng.normal(0.0, 30.0, num_stars)
    angle = 2 * np.pi * time / period[:, None] + phase[:, None]
    truth = systemic[:, None] + amplitude[:, None] * np.cos(angle)
    return velocity_table(time, rng.normal(truth, error), error)
