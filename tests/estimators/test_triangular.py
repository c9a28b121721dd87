"""Bent and cut normals: exact pieces, maps that invert, densities that they should find."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import truncexpon, truncnorm

from skycensus import fit_density
from skycensus.estimators.triangular import before, cut_quantile, fit_triangular, log_interval

ENDS = [(-1.0, 2.0), (-np.inf, 0.5), (3.0, np.inf), (8.0, 9.0), (-12.0, -10.0), (-np.inf, np.inf)]

QUANTILE = jax.jit(cut_quantile)
INTERVAL = jax.jit(jax.value_and_grad(log_interval, argnums=(0, 1)))


@pytest.mark.parametrize("low, high", ENDS)
def test_interval_and_quantile(low, high):
    mass = truncnorm(low, high)
    u = jnp.array([1e-9, 0.1, 0.5, 0.9, 1 - 1e-9])
    np.testing.assert_allclose(QUANTILE(low, high, u), mass.ppf(u), rtol=1e-7)
    middle = float(mass.median())
    log_mass, slopes = INTERVAL(low, high)
    log_density = -0.5 * middle**2 - 0.5 * np.log(2 * np.pi) - float(log_mass)
    assert log_density == pytest.approx(mass.logpdf(middle), rel=1e-10)
    assert np.isfinite(slopes).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_far_in_a_tail_it_is_an_exponential(sign):
    ends = np.sort(sign * np.array([50.0, 50.01]))
    u = jnp.array([0.1, 0.5, 0.9])
    x = QUANTILE(*ends, u)
    part = u if sign > 0 else 1 - u
    exact = sign * (50 + truncexpon(0.5, scale=1 / 50).ppf(part))
    np.testing.assert_allclose(x, exact, rtol=1e-6)


def test_coefficients_are_of_earlier_coordinates():
    kept = before(3, 2)
    assert kept.shape == (3, 13)
    assert kept.sum(axis=1).tolist() == [1, 3, 6]
    assert before(3, 1).sum(axis=1).tolist() == [1, 2, 3]


def cut_draws(num, seed):
    """Two correlated normals in [0, inf) x (-inf, 1], by leaving out what is beyond."""
    rng = np.random.default_rng(seed)
    z = rng.multivariate_normal([0.5, 0.2], [[1.0, 0.6], [0.6, 1.0]], 6 * num)
    return z[(z[:, 0] > 0) & (z[:, 1] < 1)][:num]


@pytest.fixture(scope="module")
def cut():
    draws = cut_draws(4000, 0)
    support = {"a": (0.0, np.inf), "b": (-np.inf, 1.0), "c": (-2.0, 2.0)}
    c = truncnorm(-2, 2).rvs(4000, random_state=np.random.default_rng(1))
    columns = dict(zip("abc", [*draws.T, c], strict=True))
    return fit_density(jax.random.key(0), columns, kind="cut", support=support)


@pytest.mark.slow
def test_cut_normals_are_found(cut):
    """The shape at the bounds, where an estimate in unbounded coordinates has its worst."""
    mean, cov = np.array([0.5, 0.2]), np.array([[1.0, 0.6], [0.6, 1.0]])
    grid = np.stack(np.meshgrid(np.linspace(1e-6, 5, 400), np.linspace(-4, 1, 400)), axis=-1)
    step = (5 / 399) ** 2
    truth = np.exp(-0.5 * np.einsum("...i,ij,...j", grid - mean, np.linalg.inv(cov), grid - mean))
    truth /= truth.sum() * step
    theta = {"a": grid[..., 0], "b": grid[..., 1], "c": np.zeros(grid.shape[:2])}
    found = np.asarray(cut.log_prob(theta))
    # The density of (a, b) where c is zero, which should not matter.
    found = found - np.log(np.exp(found).sum() * step)
    divergence = np.sum(truth * step * (np.log(truth) - found))
    # About 12 numbers from 3,600 draws.
    assert 0 <= divergence < 0.006
    assert cut.report.status.converged, str(cut.report)


def test_cut_is_nothing_outside_and_finite_inside(cut):
    theta = {"a": [0.0, -1e-9, 1e8, 1.0], "b": [1.0, 0.0, -1e8, 1.1], "c": [2.0, 0.0, -2.0, 0.0]}
    value = np.asarray(cut.log_prob({k: np.array(v) for k, v in theta.items()}))
    assert np.isfinite(value).tolist() == [True, False, True, False]
    assert (value[[1, 3]] == -np.inf).all()


def test_cut_cube_and_back(cut):
    u = np.random.default_rng(2).random((2000, 3))
    theta = cut.from_unit_cube(u)
    np.testing.assert_allclose(cut.to_unit_cube(theta), u, atol=1e-9)
    one = cut.from_unit_cube(u[7:8])
    assert all(np.allclose(one[n][0], theta[n][7], rtol=1e-13) for n in "abc")
    mean = [np.mean(theta["a"]), np.mean(theta["b"])]
    np.testing.assert_allclose(mean, cut_draws(20_000, 3).mean(axis=0), atol=0.05)


def banana(num, seed):
    """A normal bent along axes that are not those of its parameters."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(num, 2))
    log_q = -0.5 * np.sum(y**2, axis=1) - np.log(2 * np.pi)
    # Of unit covariance, as the coordinates are that densities are fitted in.
    y[:, 1] = (0.5 * y[:, 1] + y[:, 0] ** 2 - 1) / 1.5
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    return y @ turn.T, log_q - np.log(0.5 / 1.5)


@pytest.mark.slow
def test_triangular_finds_the_axes_of_a_banana():
    z, truth = banana(2500, 0)
    weight = np.full(2000, 1 / 2000)
    held = z[2000:], np.full(500, 1 / 500)
    found = fit_triangular(
        jax.random.key(0), z[:2000], weight, validation=held, num_starts=2, max_steps=100
    )
    value = np.asarray(found.log_prob(jnp.asarray(z)))
    gap = (truth - value).mean()
    assert abs(gap) < 0.01
    u = jnp.asarray(np.random.default_rng(1).random((200, 2)))
    np.testing.assert_allclose(found.to_unit_cube(found.from_unit_cube(u)), u, atol=1e-9)
    far = jnp.array([[1e6, 1e6], [-1e6, 0.0]])
    assert np.isfinite(found.log_prob(far)).all()
    assert np.isfinite(jax.vmap(jax.grad(found.log_prob))(far)).all()
