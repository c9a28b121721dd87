from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp

from skycensus import InputError, Joint
from skycensus.stars.kepler import eccentric_anomaly, eccentric_orbits, keplerian
from skycensus.stars.radial_velocity import Jitter, Velocities, circular


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
        [np.cos(omega), -np.sin(omega), 0.0]
    )

    def height(t):  # of the orbit along the line of sight
        x = eccentric_anomaly(2 * jnp.pi * t / period + m0, e)
        flat = (jnp.cos(x) - e) * jnp.sin(omega)
        return flat + jnp.sqrt(1 - e**2) * jnp.sin(x) * jnp.cos(omega)

    speed = jax.vmap(jax.grad(height))(t) * period / (2 * np.pi) * np.sqrt(1 - e**2)
    np.testing.assert_allclose(got, speed, atol=1e-10)
    round_orbit = keplerian({"lnP": np.log(period), "e": 0.0, "M0": 0.0}, {"t": t})
    np.testing.assert_allclose(round_orbit, circular({"P": period}, {"t": t}), atol=1e-10)


def simulated(e, seed):
    rng = np.random.default_rng(seed)
    t = np.sort(rng.uniform(0, 200, 16))
    t -= t[0]
    design = np.asarray(keplerian({"P": 7.3, "e": e, "M0": 1.1}, {"t": jnp.asarray(t)}))
    v = design @ np.array([11.5, -9.7, 3.0]) + rng.normal(0, 0.4, 16)
    return t, v, np.full(16, 0.4)


@pytest.mark.slow
def test_eccentric_and_circular_orbits_are_recovered():
    columns = zip(simulated(0.4, 5), simulated(0.0, 6), strict=True)
    stars = Velocities(*columns, ("eccentric", "circular"), np.zeros(2))
    form = eccentric_orbits(stars, num_candidates=2)
    density = Joint(
        lnP=dist.Uniform(np.log(1.5), np.log(20.0)), e=dist.Uniform(0.0, 0.95),
        a=dist.Normal(0.0, 100.0), b=dist.Normal(0.0, 100.0), v0=dist.Normal(0.0, 150.0),
    )  # fmt: skip
    keys = jax.random.split(jax.random.key(1), 1000)
    draws = jax.jit(lambda k: jax.lax.map(lambda k: form.draw(density, k), k, batch_size=50))(keys)
    truth = {"lnP": np.log(7.3), "e": 0.4, "M0": 1.1, "a": 11.5, "b": -9.7, "v0": 3.0}
    for name, true in truth.items():
        x = np.asarray(draws[name][:, 0])
        assert abs(x.mean() - true) < 3.5 * x.std(), name
    assert np.std(draws["e"][:, 0]) < 0.05
    e = np.asarray(draws["e"][:, 1])
    assert np.quantile(e, 0.05) < 0.015 and np.quantile(e, 0.95) < 0.1
    with pytest.raises(InputError, match="max_eccentricity=1 must be"):
        eccentric_orbits(stars, max_eccentricity=1.0)


# ---- against brute force -------------------------------------------------------------------------


def solved(mean_anomaly, e):
    """Kepler's equation by bisection, which owes nothing to the package."""
    m = np.mod(mean_anomaly, 2 * np.pi)
    low, high = np.zeros(np.shape(m)), np.full(np.shape(m), 2 * np.pi)
    for _ in range(40):
        middle = 0.5 * (low + high)
        above = middle - e * np.sin(middle) > m
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return 0.5 * (low + high)


def brute_force(t, v, noises, periods, max_e, shape):
    """Log marginal for uniform ln P, e and M0 and each noise, by a sum over midpoints."""
    edges = [np.log(periods), (0.0, max_e), (0.0, 2 * np.pi)]
    axes = [a + (b - a) * (np.arange(n) + 0.5) / n for (a, b), n in zip(edges, shape, strict=True)]
    lnp, e, m0 = (x.reshape(-1, 1) for x in np.meshgrid(*axes, indexing="ij"))
    anomaly = solved(2 * np.pi * t * np.exp(-lnp) + m0, e)
    f = 2 * np.arctan(np.sqrt((1 + e) / (1 - e)) * np.tan(anomaly / 2))
    basis = np.stack([np.cos(f) + e, np.sin(f), np.ones_like(f)], axis=-1)
    prior = np.array([100.0, 100.0, 150.0])
    out = []
    for s in noises:
        # The determinant and the quadratic form of s² + B prior² B^T, by the 3 x 3 matrix.
        b = basis * prior / s[:, None]
        inner = np.eye(3) + np.swapaxes(b, 1, 2) @ b
        y = np.einsum("nji,j->ni", b, v / s)
        gain = np.einsum("ni,ni->n", y, np.linalg.solve(inner, y[..., None])[..., 0])
        norm = np.sum(np.log(2 * np.pi * s**2)) + np.linalg.slogdet(inner)[1]
        out.append(logsumexp(-0.5 * (np.sum((v / s) ** 2) - gain + norm)) - np.log(len(f)))
    return np.array(out)


@pytest.mark.slow
def test_eccentric_orbits_with_jitter_are_integrated_exactly():
    rng = np.random.default_rng(8)
    t = np.sort(rng.uniform(0.0, 40.0, 14))
    t -= t[0]
    design = np.asarray(keplerian({"P": 7.0, "e": 0.35, "M0": 1.0}, {"t": t}))
    v = design @ np.array([6.0, -4.0, 10.0]) + rng.normal(0.0, 1.0, 14)
    error = np.full(14, 0.6)
    stars = Velocities((t,), (v,), (error,), ("star",), np.zeros(1))
    jitter = Jitter(np.array([0.6, 0.8]), np.array([0.6, 0.4]))
    options = {"periods": (6.0, 8.2), "num_candidates": 3}
    noises = np.hypot(error, jitter.value[:, None])
    exact = brute_force(t, v, noises, (6.0, 8.2), 0.95, (64, 40, 48))
    density = Joint(
        lnP=dist.Uniform(np.log(6.0), np.log(8.2)), a=dist.Normal(0.0, 100.0),
        b=dist.Normal(0.0, 100.0), v0=dist.Normal(0.0, 150.0),
    )  # fmt: skip
    prior = dist.Uniform(0.0, 0.95)
    both = eccentric_orbits(stars, eccentricity=prior, jitter=jitter, **options)
    want = logsumexp(exact, b=jitter.probability)
    np.testing.assert_allclose(float(both.log_marginal(density).value[0]), want, atol=0.01)
    # In P itself, with the prior 1/P of the same law, and without jitter.
    alone = eccentric_orbits(stars.with_jitter(0.8), eccentricity=prior, parameter="P", **options)
    others = {name: f for name, f in density.factors.items() if name != "lnP"}
    uniform = Joint(P=dist.LogUniform(6.0, 8.2), **others)
    got = float(alone.log_marginal(uniform).value[0])
    np.testing.assert_allclose(got, exact[1], atol=0.01)
