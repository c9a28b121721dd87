from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import InputError, Prior, Target
from skycensus.estimators import LearnedDensity, fit_density
from skycensus.estimators.coordinates import declared
from skycensus.estimators.gaussian import GaussianMixture
from skycensus.estimators.pool import Pool


def gaussian(loc, scale):
    size = len(loc)
    tril = jnp.asarray(scale)[None, :, None] * jnp.eye(size)
    return GaussianMixture(jnp.zeros(1), jnp.asarray([loc]), tril)


@pytest.fixture(scope="module")
def density():
    """Standard normal in a, and b whose probit on (0, 2) is: uniform."""
    coordinates = declared(("a", "b"), {"b": (0.0, 2.0)})
    return LearnedDensity(("a", "b"), coordinates, gaussian([0.0, 0.0], [1.0, 1.0]))


def test_log_prob_is_that_of_the_parameters(density):
    a, b = jnp.array([0.3, -2.0]), jnp.array([0.1, 1.9])
    expected = dist.Normal(0, 1).log_prob(a) - jnp.log(2.0)
    np.testing.assert_allclose(density.log_prob({"a": a, "b": b}), expected, rtol=1e-12)
    with pytest.raises(InputError, match="needs parameter 'b'"):
        density.log_prob({"a": a})


def test_many_points_are_evaluated_in_blocks(density):
    theta = density.sample(jax.random.key(0), (3, 3000))
    assert theta["a"].shape == (3, 3000)
    value = density.log_prob(theta)
    assert value.shape == (3, 3000)
    expected = dist.Normal(0, 1).log_prob(theta["a"]) - jnp.log(2.0)
    np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_cube_and_back(density):
    u = jax.random.uniform(jax.random.key(1), (5, 2), float)
    np.testing.assert_allclose(density.to_unit_cube(density.from_unit_cube(u)), u, atol=1e-10)
    with pytest.raises(InputError, match="points have 3 coordinates"):
        density.from_unit_cube(jnp.zeros((2, 3)))


def test_error_is_that_of_the_mean_of_replicas():
    members = [gaussian([0.1 * k, 0.0], [1.0, 1.0]) for k in range(5)]
    names, coordinates = ("a", "b"), declared(("a", "b"), None)
    density = LearnedDensity(names, coordinates, Pool(members, replicas=True))
    theta = {"a": jnp.array([1.0]), "b": jnp.array([0.0])}
    each = np.exp([LearnedDensity(names, coordinates, m).log_prob(theta)[0] for m in members])
    expected = each.std(ddof=1) / np.sqrt(5) / each.mean()
    np.testing.assert_allclose(density.log_prob_error(theta), expected, rtol=1e-9)
    np.testing.assert_allclose(density.log_prob(theta), np.log(each.mean()), rtol=1e-9)
    # In a sum with something certain it counts by its part.
    half = Pool([Pool(members, replicas=True), members[0]], [0.5, 0.5])
    both = LearnedDensity(names, coordinates, half)
    part = each.mean() / (each.mean() + each[0])
    np.testing.assert_allclose(both.log_prob_error(theta), part * expected, rtol=1e-9)
    with pytest.raises(InputError, match="has no replicas"):
        LearnedDensity(names, coordinates, members[0]).log_prob_error(theta)


@pytest.mark.slow
def test_marginal_is_learned_from_draws(density):
    marginal = density.marginal(["b"], jax.random.key(3), num_draws=2000, kind="gaussian")
    assert marginal.names == ("b",) and marginal.bounds == {"b": (0.0, 2.0)}
    value = marginal.log_prob({"b": jnp.linspace(0.2, 1.8, 9)})
    np.testing.assert_allclose(value, -np.log(2.0), atol=0.15)
    with pytest.raises(InputError, match="has no parameter 'c'"):
        density.marginal(["c"], jax.random.key(3))


# ---- as a prior ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_as_a_prior_it_is_what_the_distributions_are(density):
    learned = Prior({"b, a": density})
    plain = Prior({"b": dist.Uniform(0.0, 2.0), "a": dist.Normal(0.0, 1.0)})
    assert learned.names == plain.names and learned.bounds() == plain.bounds()
    free = {"a": jnp.array([0.4, 0.4, 0.4]), "b": jnp.array([1.5, 2.5, 0.0])}
    np.testing.assert_allclose(jax.jit(learned.log_prob)(free), plain.log_prob(free), rtol=1e-9)
    slopes = jax.jit(jax.grad(lambda free: learned.log_prob(free)[1]))(free)
    assert np.isfinite(slopes["a"]).all() and np.isfinite(slopes["b"]).all()
    u = jax.random.uniform(jax.random.key(4), (6, 2), float)
    mapped = jax.jit(learned.from_unit_cube)(u)
    np.testing.assert_allclose(mapped["a"], dist.Normal(0, 1).icdf(u[:, 0]), rtol=1e-9)
    np.testing.assert_allclose(mapped["b"], 2.0 * u[:, 1], rtol=1e-9)
    assert learned.sample(jax.random.key(5), (7,))["b"].shape == (7,)


def test_a_target_moves_in_its_coordinates(density):
    targets = [
        Target(prior, lambda free, data: -free["b"] * (free["a"] - 1.0) ** 2)
        for prior in (
            Prior({"a, b": density}),
            Prior({"a": dist.Normal(0.0, 1.0), "b": dist.Uniform(0.0, 2.0)}),
        )
    ]
    free = {"a": 0.2, "b": 0.7}
    x, y = (target.unconstrain(free) for target in targets)
    assert x.shape == y.shape == (2,)
    for name, value in targets[0].constrain(x).items():
        np.testing.assert_allclose(value, free[name], rtol=1e-9)
    np.testing.assert_allclose(targets[0].log_likelihood(x), targets[1].log_likelihood(y))
    # In its own coordinates the density is a standard normal one.
    expected = dist.Normal(0, 1).log_prob(x).sum()
    np.testing.assert_allclose(targets[0].log_prior(x), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("a, c", "prior 'a, c': the density has no parameter 'c'"),
        ("a", "prior 'a': the density is over .* add .'b'."),
    ],
)
def test_a_key_with_other_names_is_told(density, key, message):
    with pytest.raises(InputError, match=message):
        Prior({key: density})


def test_one_parameter_is_a_scalar():
    rng = np.random.default_rng(0)
    density = fit_density(
        jax.random.key(0), {"h": rng.normal(70, 5, 200)}, kind="gaussian", report=False
    )
    prior = Prior({"h": density})
    value = prior.log_prob({"h": jnp.array(71.0)})
    np.testing.assert_allclose(value, dist.Normal(70, 5).log_prob(71.0), atol=0.1)
    assert prior.from_unit_cube(jnp.array([[0.5]]))["h"].shape == (1,)
