from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import Prior, Target
from skycensus.samplers import ImportanceSampler
from skycensus.samplers.laplace import climb, find_modes

RNG = np.random.default_rng(0)


class Counted:
    def __init__(self, function):
        self.function, self.used = function, 0

    def __call__(self, x):
        self.used += len(x)
        return self.function(x)


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("width", [1.0, 1e-3])
def test_a_gaussian_takes_two_steps(dim, width):
    root = np.tril(RNG.normal(size=(dim, dim))) + 2 * np.eye(dim)
    precision = np.linalg.inv(root @ root.T) / width**2
    loc = RNG.normal(size=dim)
    density = Counted(lambda x: -0.5 * np.sum((x - loc) @ precision * (x - loc), axis=1))
    mode = climb(density, loc + 2.0, 3.0 * np.eye(dim))
    assert mode.converged
    np.testing.assert_allclose(mode.x, loc, atol=1e-4 * width)
    np.testing.assert_allclose(mode.scale @ mode.scale.T, width**2 * root @ root.T, rtol=1e-3)
    assert density.used <= 3 * (1 + 2 * dim + dim * (dim - 1) // 2)
    # The integral of a Gaussian, as far as its maximum is known.
    exact = 0.5 * dim * np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(precision)[1]
    assert abs(mode.log_mass - exact) < 0.1


def test_a_start_far_out_on_a_skewed_density():
    density = Counted(lambda x: np.sum(50 * (3 * x - np.exp(x)), axis=1))
    mode = climb(density, np.array([-6.0, 2.0]), 3.0 * np.eye(2))
    assert mode.converged
    np.testing.assert_allclose(mode.x, np.log(3.0), atol=0.2 / np.sqrt(150))
    np.testing.assert_allclose(np.diag(mode.scale @ mode.scale.T), 1 / 150, rtol=0.2)
    assert density.used < 120


def test_edges_without_density_are_kept_away_from():
    def density(x):
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(x[:, 0] > 0, 3 * np.log(np.abs(x[:, 0])) - x[:, 0], -np.inf)

    mode = climb(density, np.array([0.01]), np.eye(1))
    assert mode.converged
    assert abs(mode.x[0] - 3.0) < 0.4


def test_a_ridge_does_not_converge_but_ends():
    density = Counted(lambda x: -1e4 * np.abs(x[:, 0] - x[:, 1]) + np.minimum(x[:, 0], 0.0))
    mode = climb(density, np.array([-1.0, 2.0]), np.eye(2))
    assert np.isfinite(mode.log_density)
    assert density.used <= 6 * 25


def test_every_mode_that_the_points_know_of_is_found():
    def density(x):
        far = -1.0 - 0.5 * np.sum((x - 2) ** 2, axis=1) / 0.04
        return np.logaddexp(-0.5 * np.sum((x + 2) ** 2, axis=1) / 0.01, far)

    x = 3.0 * np.random.default_rng(1).standard_normal((400, 2))
    base = -0.5 * np.sum((x / 3) ** 2, axis=1)
    modes = find_modes(lambda x: density(x), x, density(x), np.zeros_like(base))
    np.testing.assert_allclose([mode.x for mode in modes], [[-2, -2], [2, 2]], atol=0.05)
    single = find_modes(lambda x: -0.5 * np.sum(x**2, axis=1), x, 9 * base, base)
    assert len(single) == 1


# ---- as the start of importance sampling ---------------------------------------------------------


def test_a_smooth_posterior_needs_no_adaptation():
    y = jnp.asarray(np.random.default_rng(3).normal(1.0, 2.0, 300))

    def log_likelihood(h, data):
        return jnp.sum(dist.Normal(h["m"], jnp.exp(h["ls"])).log_prob(data))

    prior = Prior({"m": dist.Normal(0.0, 10.0), "ls": dist.Uniform(-4.0, 4.0)})
    target = Target(prior, log_likelihood, data=y)
    quick = ImportanceSampler(num_adapt=500).run(target, jax.random.key(0))
    slow = ImportanceSampler(num_adapt=500, laplace=False).run(target, jax.random.key(0))
    assert quick.status.converged
    assert quick.measures["num_components"] == 1
    assert quick.measures["num_likelihoods"] < 0.8 * slow.measures["num_likelihoods"]
    error = np.hypot(quick.log_evidence_error, slow.log_evidence_error)
    assert abs(quick.log_evidence - slow.log_evidence) < 4 * error


def test_a_heavy_tail_makes_it_adapt():
    # A narrow spike on a broad base: curvature at the mode knows nothing of the base.
    def log_likelihood(h, data):
        return jnp.logaddexp(
            dist.Normal(0.0, 0.05).log_prob(h["a"]),
            jnp.log(3.0) + dist.Normal(0.0, 2.0).log_prob(h["a"]),
        )

    target = Target(Prior({"a": dist.Uniform(-10.0, 10.0)}), log_likelihood)
    result = ImportanceSampler(num_adapt=500).run(target, jax.random.key(4))
    assert result.status.converged, str(result.status)
    assert result.measures["num_components"] > 1
    assert abs(result.log_evidence - np.log(4.0 / 20.0)) < 4 * result.log_evidence_error


def test_a_long_way_to_a_narrow_mode():
    """A million draws of a standard normal as a function of its mean and log width, from afar."""

    def density(x):
        return -1e6 * (x[:, 1] + 0.5 * (1 + x[:, 0] ** 2) * np.exp(-2 * x[:, 1]))

    mode = climb(density, np.array([100.0, 2.0]), np.diag([10.0, 1.0]))
    assert mode.converged
    np.testing.assert_allclose(mode.x, 0.0, atol=1e-6)
