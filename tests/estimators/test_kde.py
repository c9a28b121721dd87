"""Kernel density estimates: the sum itself, its bandwidth, its compression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from skycensus.estimators.kde import fit_kde


def normal_draws(num, dim, seed):
    z = np.random.default_rng(seed).normal(size=(num, dim))
    return z, np.full(num, 1 / num)


@pytest.fixture(scope="module")
def small():
    """An estimate whose kernels are the draws themselves."""
    z, _ = normal_draws(300, 2, 0)
    weight = np.random.default_rng(1).random(300)
    weight /= weight.sum()
    found = fit_kde(jax.random.key(0), z, weight, validation=normal_draws(100, 2, 2))
    return z, weight, found


def test_density_is_the_weighted_sum_of_the_kernels(small):
    z, weight, found = small
    points = np.random.default_rng(3).normal(size=(20, 2))
    loc, scale = np.asarray(found.loc), np.exp(np.asarray(found.log_scale))
    mass = np.exp(np.asarray(found.log_weight))
    kernels = norm(loc, scale[:, None]).pdf(points[:, None, :]).prod(axis=-1)
    np.testing.assert_allclose(found.log_prob(jnp.asarray(points)), np.log(kernels @ mass))
    order = np.argsort(z[:, 0])
    np.testing.assert_array_equal(loc, z[order])
    np.testing.assert_allclose(mass, weight[order])


def test_cube_gives_draws_of_it(small):
    _, _, found = small
    u = np.random.default_rng(4).random((200_000, 2))
    points = np.asarray(found.from_unit_cube(jnp.asarray(u)))
    mass, loc = np.exp(np.asarray(found.log_weight)), np.asarray(found.loc)
    np.testing.assert_allclose(points.mean(axis=0), mass @ loc, atol=0.01)
    widths = np.exp(2 * np.asarray(found.log_scale))[:, None]
    variance = mass @ (loc**2 + widths) - (mass @ loc) ** 2
    np.testing.assert_allclose(points.var(axis=0), variance, rtol=0.01)


def test_many_draws_become_few_kernels():
    z, weight = normal_draws(6000, 2, 4)
    held = normal_draws(1000, 2, 5)
    few = fit_kde(jax.random.key(0), z, weight, validation=held, max_kernels=200)
    assert len(few.loc) <= 200
    truth = norm.logpdf(held[0]).sum(axis=1)
    assert np.mean(truth - np.asarray(few.log_prob(jnp.asarray(held[0])))) < 0.03


def test_kernels_narrow_where_draws_are_dense():
    """A narrow mode and a wide one, which no single width suits."""
    rng = np.random.default_rng(6)

    def draws(num):
        wide = rng.normal(size=(num, 1))
        return np.where(rng.random((num, 1)) < 0.5, 0.02 * wide + 4, wide)

    z, held = draws(800), draws(400)
    weight, held_weight = np.full(800, 1 / 800), np.full(400, 1 / 400)
    both = [
        fit_kde(jax.random.key(0), z, weight, validation=(held, held_weight), adaptive=adaptive)
        for adaptive in (False, True)
    ]
    fixed, adaptive = both
    assert np.ptp(np.asarray(fixed.log_scale)) == 0
    narrow = np.abs(np.asarray(adaptive.loc[:, 0]) - 4) < 0.1
    scale = np.asarray(adaptive.log_scale)
    assert scale[narrow].mean() < scale[~narrow].mean() - 0.5
    score = [held_weight @ np.asarray(one.log_prob(jnp.asarray(held))) for one in both]
    assert score[1] > score[0] + 0.02


def test_far_out_all_is_finite(small):
    found = small[2]
    z = jnp.array([[1e6, -1e6]])
    assert np.isfinite(found.log_prob(z)).all()
    assert np.isfinite(jax.vmap(jax.grad(found.log_prob))(z)).all()
