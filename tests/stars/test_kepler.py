from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import InputError, Joint
from skycensus.stars.kepler import eccentric_anomaly, eccentric_orbits, keplerian
from skycensus.stars.radial_velocity import Velocities, circular


@pytest.mark.parametrize("e", [0.0, 0.3, 0.7, 0.95])
def test_keplers_equation(e):
    x = jnp.linspace(-np.pi, np.pi, 20001)
    got = jax.jit(eccentric_anomaly)(x - e * jnp.sin(x) + 4 * np.pi, e)
    # At periastron dE/dM = 1/(1 - e): the phase itself carries the rounding.
    difference = np.mod(got - x + np.pi, 2 * np.pi) - np.pi
    np.testing.assert_allclose(difference, 0.0, atol=1e-12)


def test_velocity_is_that_of_the_ellipse():
    e, m0, omega, period = 0.6, 0.8, 1.1, 7.0
    t = jnp.linspace(0.0, 9.0, 31)
    got = keplerian({"P": period, "e": e, "M0": m0}, {"t": t}) @ jnp.array(
        [np.cos(omega), np.sin(omega), 0.0]
    )

    def height(t):  # of the orbit along the line of sight
        x = eccentric_anomaly(2 * jnp.pi * t / period + m0, e)
        flat = (jnp.cos(x) - e) * jnp.sin(omega)
        return flat + jnp.sqrt(1 - e**2) * jnp.sin(x) * jnp.cos(omega)

    speed = jax.vmap(jax.grad(height))(t) * period / (2 * np.pi) * np.sqrt(1 - e**2)
    np.testing.assert_allclose(got, speed, atol=1e-10)
    round_orbit = keplerian({"lnP": np.log(period), "e": 0.0, "M0": 0.0}, {"t": t})
    want = circular({"P": period}, {"t": t}) * jnp.array([1.0, -1.0, 1.0])
    np.testing.assert_allclose(round_orbit, want, atol=1e-10)


def simulated(e, seed):
    rng = np.random.default_rng(seed)
    t = np.sort(rng.uniform(0, 200, 16))
    t -= t[0]
    design = np.asarray(keplerian({"P": 7.3, "e": e, "M0": 1.1}, {"t": jnp.asarray(t)}))
    v = design @ np.array([11.5, 9.7, 3.0]) + rng.normal(0, 0.4, 16)
    return t, v, np.full(16, 0.4)


def test_eccentric_and_circular_orbits_are_recovered():
    columns = zip(simulated(0.4, 5), simulated(0.0, 6), strict=True)
    stars = Velocities(*columns, ("eccentric", "circular"), np.zeros(2))
    form = eccentric_orbits(stars, num_candidates=2)
    density = Joint(
        lnP=dist.Uniform(np.log(1.5), np.log(20.0)), e=dist.Uniform(0.0, 0.95),
        M0=dist.Uniform(0.0, 2 * np.pi), K_cos=dist.Normal(0.0, 100.0),
        K_sin=dist.Normal(0.0, 100.0), v0=dist.Normal(0.0, 150.0),
    )  # fmt: skip
    keys = jax.random.split(jax.random.key(1), 1000)
    draws = jax.jit(lambda k: jax.lax.map(lambda k: form.draw(density, k), k, batch_size=50))(keys)
    truth = {"lnP": np.log(7.3), "e": 0.4, "M0": 1.1, "K_cos": 11.5, "K_sin": 9.7, "v0": 3.0}
    for name, true in truth.items():
        x = np.asarray(draws[name][:, 0])
        assert abs(x.mean() - true) < 3.5 * x.std(), name
    assert np.std(draws["e"][:, 0]) < 0.05
    e = np.asarray(draws["e"][:, 1])
    assert np.quantile(e, 0.05) < 0.015 and np.quantile(e, 0.95) < 0.1
    with pytest.raises(InputError, match="max_eccentricity=1 must be"):
        eccentric_orbits(stars, max_eccentricity=1.0)
