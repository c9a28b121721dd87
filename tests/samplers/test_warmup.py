"""The warm-up of NUTS: what it learns from few draws, and what it costs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import NUTS as Kernel
from samplers.targets import box, vector

from skycensus import NUTS, Target
from skycensus.samplers.warmup import (
    Moments,
    Warmup,
    _added,
    _fisher,
    _geometric_mean,
    _inverse_mass,
)

RNG = np.random.default_rng(0)


def covariance(dim: int) -> np.ndarray:
    root = np.tril(RNG.normal(size=(dim, dim))) + 2 * np.eye(dim)
    scale = np.logspace(-3, 2, dim)
    return scale[:, None] * (root @ root.T) * scale


def moments(x: np.ndarray, gradient: np.ndarray, *, full: bool) -> Moments:
    dim = x.shape[1]
    zero, square = jnp.zeros(dim), jnp.zeros((dim, dim) if full else dim)
    of = Moments(jnp.zeros(()), zero, zero, square, square)
    for one, slope in zip(x, gradient, strict=True):
        of = _added(of, jnp.asarray(one), jnp.asarray(slope))
    return of


def test_moments_are_those_of_numpy():
    x, gradient = RNG.normal(size=(2, 20, 3)) + 5.0
    of = moments(x, gradient, full=True)
    assert of.num == 20
    np.testing.assert_allclose(of.x, x.mean(axis=0))
    np.testing.assert_allclose(of.xx, 20 * np.cov(x.T, ddof=0), rtol=1e-10)
    np.testing.assert_allclose(of.gradients, 20 * np.cov(gradient.T, ddof=0), rtol=1e-10)
    np.testing.assert_allclose(moments(x, gradient, full=False).xx, np.diag(of.xx), rtol=1e-10)


def test_the_geometric_mean_solves_its_equation():
    a, b = (np.cov(RNG.normal(size=(3, 9))) for _ in range(2))
    x = np.asarray(_geometric_mean(jnp.asarray(a), jnp.asarray(b)))
    np.testing.assert_allclose(x @ b @ x, a, rtol=1e-6)
    np.testing.assert_allclose(x, x.T, rtol=1e-6)


def test_a_gaussian_is_known_from_little_more_draws_than_dimensions():
    """Draws of one corner of it, not of the whole: their own covariance is quite another."""
    true = covariance(6)
    x = RNG.multivariate_normal(np.zeros(6), 1e-2 * np.diag(np.diag(true)), size=60)
    gradient = -np.linalg.solve(true, x.T).T
    found = np.asarray(_fisher(moments(x, gradient, full=True)))
    ratio = np.linalg.eigvals(np.linalg.solve(true, found)).real
    assert ratio.min() > 0.05 and ratio.max() < 3.0
    own = np.linalg.eigvals(np.linalg.solve(true, np.cov(x.T))).real
    assert own.max() / own.min() > 3 * ratio.max() / ratio.min()


def test_many_draws_are_believed_more_than_rough_gradients():
    true = covariance(3)
    x = RNG.multivariate_normal(np.zeros(3), true, size=400)
    gradient = -np.linalg.solve(true, x.T).T
    rough = gradient + 30.0 * RNG.normal(size=gradient.shape) / np.sqrt(np.diag(true))
    of = moments(x, rough, full=True)
    ratio = np.linalg.eigvals(np.linalg.solve(true, np.asarray(_inverse_mass(of)))).real
    assert ratio.min() > 0.7 and ratio.max() < 1.4
    misled = np.linalg.eigvals(np.linalg.solve(true, np.asarray(_fisher(of)))).real
    assert misled.min() < 0.3


def test_a_diagonal_one_is_the_ratio_of_spreads():
    true = np.array([1e-4, 1.0, 30.0])
    x = RNG.normal(size=(15, 3)) * np.sqrt(true)
    found = _inverse_mass(moments(x, -x / true, full=False))
    np.testing.assert_allclose(found, true, rtol=1e-10)


@pytest.mark.parametrize("num_steps", [0, 1, 5, 20, 60, 300, 2000])
def test_the_schedule_ends_with_the_step_size_alone(num_steps):
    switches, last = Warmup(num_steps, 0.8)._schedule()
    at = np.flatnonzero(switches)
    assert 1 <= last <= max(num_steps, 1)
    assert not len(at) or at[-1] < last
    if num_steps >= 60:
        # What the matrix is made of in the end are not only a few draws.
        assert last - at[-1] >= min(50, last // 2)


def test_what_a_chain_learns_stays_after_the_warmup():
    def log_density(x):
        return -0.5 * jnp.sum((x / jnp.asarray([1e-2, 1.0, 50.0])) ** 2)

    warmup = Warmup(80, 0.8)
    kernel = Kernel(
        potential_fn=lambda z: -log_density(z["x"]),
        dense_mass=[("x",)],
        adapt_step_size=False,
        adapt_mass_matrix=False,
    )
    first = kernel.init(jax.random.key(0), 0, {"x": jnp.array([0.03, 1.0, 20.0])}, (), {})

    @jax.jit
    def steps(state, tuning, begin, end):
        def step(i, carry):
            return warmup.update(i, kernel.sample(carry[0], (), {}), carry[1])

        return jax.lax.fori_loop(begin, end, step, (state, tuning))

    state, tuning = steps(*warmup.begin(first), 0, 80)
    later, same = steps(state, tuning, 80, 90)
    matrix = np.asarray(state.adapt_state.inverse_mass_matrix[("x",)])
    np.testing.assert_allclose(np.diag(matrix), [1e-4, 1.0, 2500.0], rtol=0.3)
    np.testing.assert_array_equal(later.adapt_state.inverse_mass_matrix[("x",)], matrix)
    assert later.adapt_state.step_size == state.adapt_state.step_size
    assert 0.3 < float(state.adapt_state.step_size) < 3.0
    assert int(same.num_gradients) == int(tuning.num_gradients) > 80


@pytest.mark.slow
def test_the_warmup_of_a_correlated_gaussian_is_short():
    """Condition 1000: with a unit matrix a trajectory across it is of hundreds of steps."""
    dim = 8
    precision = np.full((dim, dim), -1.0 / dim) * 0.999 + np.eye(dim)
    precision = jnp.asarray(1e4 * precision / np.linalg.eigvalsh(precision)[-1])
    target = Target(box(dim, -5.0, 5.0), lambda h, data: -0.5 * vector(h) @ precision @ vector(h))
    sampler = NUTS(num_warmup=150, num_samples=200, num_chains=2, num_start=32)
    result = sampler.run(target, jax.random.key(0))
    spent = result.measures["num_warmup_likelihoods"]
    assert spent < 2 * 150 * 40
    assert result.sample_stats["num_steps"].mean() < 20
    assert result.measures["num_likelihoods"] == spent + result.sample_stats["num_steps"].sum()


def test_a_gradient_that_is_not_finite_is_not_learnt_from():
    of = moments(RNG.normal(size=(5, 2)), RNG.normal(size=(5, 2)), full=True)
    same = _added(of, jnp.ones(2), jnp.array([1.0, jnp.nan]))
    jax.tree.map(np.testing.assert_array_equal, same, of)
