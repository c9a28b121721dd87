"""Orbits after the fit: their elements, the most probable ones, and the data that they make."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import Joint
from skycensus.stars import orbits
from skycensus.stars.radial_velocity import Velocities, circular_orbits

T = np.array([0.0, 3.1, 4.7, 9.2, 14.9, 17.3, 21.0, 26.5, 33.3, 38.1])
TRUTH = {"P": 6.1, "a": 5.0, "b": -3.0, "v0": 12.0}


@pytest.fixture
def stars():
    rng = np.random.default_rng(3)
    error = rng.uniform(0.3, 0.8, len(T))
    v = orbits.velocity(TRUTH, T) + rng.normal(0.0, error)
    return Velocities((T,), (v,), (error,), ("star",), np.zeros(1))


def test_velocities_are_those_of_the_design():
    t = np.linspace(0.0, 9.0, 7)
    angle = 2 * np.pi * t / 6.1
    flat = 5.0 * np.cos(angle) - 3.0 * np.sin(angle) + 12.0
    np.testing.assert_allclose(orbits.velocity(TRUTH, t), flat)
    np.testing.assert_allclose(orbits.velocity({**TRUTH, "e": 0.0, "M0": 0.0}, t), flat)
    many = {name: np.full((4, 1), x) for name, x in TRUTH.items()}
    assert orbits.velocity(many, t).shape == (4, 7)


def test_elements():
    found = orbits.elements({"lnP": np.log(5.0), "a": 3.0, "b": -4.0, "v0": 0.0, "e": 0.1})
    assert found["P"] == pytest.approx(5.0)
    assert found["K"] == pytest.approx(5.0)
    # a = K cos(omega), b = -K sin(omega).
    assert found["omega"] == pytest.approx(np.arctan2(4.0, 3.0))
    assert set(orbits.elements({"P": 5.0, "a": 3.0, "b": 4.0})) == {"K"}


def test_the_most_probable_orbit_is_the_maximum(stars):
    """Against the closed form in a, b, v0 on a fine grid of P."""
    sd = {"a": 4.0, "b": 4.0, "v0": 20.0}
    density = Joint(P=dist.Normal(6.0, 0.02), **{n: dist.Normal(0.0, s) for n, s in sd.items()})
    form = circular_orbits(stars, periods=(5.0, 7.0), parameter="P")
    keys = jax.random.split(jax.random.key(0), 200)
    draws = jax.jit(lambda k: jax.lax.map(lambda k: form.draw(density, k), k))(keys)
    draws = {name: np.asarray(x) for name, x in draws.items()}
    got = orbits.most_probable(stars, draws, jax.jit(density.log_prob))
    p = np.linspace(draws["P"].min(), draws["P"].max(), 20001)
    angle = 2 * np.pi * T / p[:, None]
    basis = np.stack([np.cos(angle), np.sin(angle), np.ones_like(angle)], axis=-1)
    weight = stars.error[0] ** -2.0
    inner = np.einsum("nji,j,njk->nik", basis, weight, basis) + np.diag(
        [s**-2.0 for s in sd.values()]
    )
    right = np.einsum("nji,j->ni", basis, weight * stars.velocity[0])
    best = np.linalg.solve(inner, right[..., None])[..., 0]
    value = 0.5 * np.sum(best * right, axis=1) - 0.5 * ((p - 6.0) / 0.02) ** 2
    at = int(np.argmax(value))
    for name, want in zip(("P", "a", "b", "v0"), (p[at], *best[at]), strict=True):
        assert abs(got[name][0] - want) < 2e-3 * draws[name].std(), name
        # No draw hits the maximum of four parameters as well as that.
        assert np.abs(draws[name] - want).min() > 0 or name != "P"


def test_the_most_probable_orbit_respects_bounds_and_knows_jitter(stars):
    rng = np.random.default_rng(5)
    center = {**TRUTH, "e": 0.03, "M0": 0.0, "jitter": 0.2}
    spread = {"P": 0.01, "a": 0.3, "b": 0.3, "v0": 0.2, "e": 0.02, "M0": 0.1, "jitter": 0.1}
    draws = {n: x + spread[n] * rng.uniform(-1, 1, (50, 1)) for n, x in center.items()}

    @jax.jit
    def log_prior(theta):
        return -theta["jitter"] - 200.0 * theta["e"] + 0.0 * jnp.asarray(theta["P"])

    got = {n: x[0] for n, x in orbits.most_probable(stars, draws, log_prior).items()}
    # A prior that falls steeply from e = 0 has its maximum at the bound.
    assert got["e"] == 0.0
    assert 0 < got["jitter"] < 1.0

    def value(theta):
        noise = np.hypot(stars.error[0], theta["jitter"])
        left = (stars.velocity[0] - orbits.velocity(theta, T)) / noise
        return float(-0.5 * np.sum(left**2) - np.sum(np.log(noise)) + log_prior(theta))

    for name in ("P", "a", "b", "v0", "jitter"):
        for side in (-0.02, 0.02):
            moved = {**got, name: got[name] + side * spread[name]}
            assert moved["jitter"] < 0 or value(moved) < value(got), name


def test_replicated_velocities_scatter_with_the_jitter(stars):
    measured = orbits.measurements(stars)
    theta = {n: np.full((2000, 1), x) for n, x in {**TRUTH, "jitter": 2.0}.items()}
    made = measured.replicate(theta, np.random.default_rng(1))
    assert made.shape == (2000, 10)
    np.testing.assert_allclose(made.std(axis=0), np.hypot(stars.error[0], 2.0), rtol=0.08)
    np.testing.assert_allclose(made.mean(axis=0), orbits.velocity(TRUTH, T), atol=0.25)
