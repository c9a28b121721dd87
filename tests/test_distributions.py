from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from skycensus import PowerLaw
from skycensus.distributions import mean_exp

NEAR_ONE = [-1.01, -1.0 - 1e-6, -1.0, -1.0 + 1e-10, -0.999]
EXPONENTS = [-50.0, -7.0, -2.35, *NEAR_ONE, 0.0, 1.3, 7.0, 50.0]
LOW, HIGH = 2.0, 90.0


def exact(exponent: float, x: float, low: float = LOW, high: float = HIGH) -> tuple[float, float]:
    """log density and cdf in extended precision, in units of the edge where it is largest."""
    k = np.longdouble(exponent) + 1
    edge = np.longdouble(low if k < 0 else high)
    lo, hi, at = (np.log(np.longdouble(v) / edge) for v in (low, high, x))
    if k == 0:
        norm, part = hi - lo, at - lo
    else:
        norm = np.exp(k * lo) * np.expm1(k * (hi - lo)) / k
        part = np.exp(k * lo) * np.expm1(k * (at - lo)) / k
    return float((k - 1) * at - np.log(norm) - np.log(edge)), float(part / norm)


@pytest.mark.parametrize(("dtype", "close"), [(jnp.float64, 1e-12), (jnp.float32, 2e-5)])
def test_log_prob_and_cdf_are_exact_for_any_exponent(dtype, close):
    exponents = np.array(EXPONENTS, np.float32).astype(float)
    a, x = np.meshgrid(exponents, [2.0625, 3.0, 40.5, 89.5], indexing="ij")
    d = PowerLaw(dtype(a), dtype(LOW), dtype(HIGH))
    want = np.array([exact(*p) for p in zip(a.flat, x.flat, strict=True)])
    log_prob, cdf = jax.jit(lambda x: (d.log_prob(x), d.cdf(x)))(dtype(x))
    assert log_prob.dtype == cdf.dtype == dtype
    np.testing.assert_allclose(log_prob, want[:, 0].reshape(a.shape), rtol=close, atol=close)
    np.testing.assert_allclose(cdf, want[:, 1].reshape(a.shape), rtol=10 * close, atol=1e-30)


def test_is_normalised():
    # In log x the integrand is a single exponential: Gauss-Legendre on pieces of it is exact.
    nodes, weights = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(np.log(LOW), np.log(HIGH), 101)
    x = np.exp(0.5 * (np.diff(edges)[:, None] * (nodes + 1)) + edges[:-1, None])
    log_prob = jax.jit(lambda a: PowerLaw(a, LOW, HIGH).log_prob(x))
    for exponent in EXPONENTS:
        total = np.sum(0.5 * np.diff(edges)[:, None] * weights * np.exp(log_prob(exponent)) * x)
        np.testing.assert_allclose(total, 1.0, rtol=1e-11)


@pytest.mark.parametrize(("dtype", "close"), [(jnp.float64, 1e-11), (jnp.float32, 1e-3)])
def test_icdf_inverts_cdf(dtype, close):
    a = dtype(np.array(EXPONENTS))[:, None]
    d = PowerLaw(a, dtype(LOW), dtype(HIGH))
    q = dtype(np.array([0.0, 1e-6, 0.01, 0.3, 0.5, 0.9, 1 - 1e-6, 1.0]))
    x, back = jax.jit(lambda q: (d.icdf(q), d.cdf(d.icdf(q))))(q)
    assert bool(jnp.all((x >= LOW * (1 - close)) & (x <= HIGH * (1 + close))))
    np.testing.assert_allclose(back, np.broadcast_to(q, x.shape), atol=close)
    np.testing.assert_allclose(x[:, 0], LOW, rtol=1e-6)
    np.testing.assert_allclose(x[:, -1], HIGH, rtol=1e-6)


def test_draws_follow_the_density():
    d = PowerLaw(jnp.array([-20.0, -2.35, -1.0, 0.5, 30.0]), LOW, HIGH)
    draws = jax.jit(lambda k: d.sample(k, (20_000,)))(jax.random.key(1))
    assert float(draws.min()) >= LOW * (1 - 1e-12)
    assert float(draws.max()) <= HIGH * (1 + 1e-12)
    # The cdf, tested above, turns draws into uniform numbers.
    for uniform in np.asarray(jax.jit(d.cdf)(draws)).T:
        assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-3


def test_draws_have_the_shape_asked_for():
    d = PowerLaw(jnp.array([-1.0, 2.0, 3.0]), 1.0, jnp.array([[4.0], [5.0]]))
    assert d.batch_shape == (2, 3)
    assert jax.eval_shape(lambda k: d.sample(k, (7,)), jax.random.key(0)).shape == (7, 2, 3)
    assert jax.eval_shape(PowerLaw(-1.0, 1.0, 2.0).sample, jax.random.key(0)).shape == ()


def test_gradient_at_exponent_minus_one_is_exact():
    # There p = 1/(x D): d log p / da = log x - mean of log x = log x - log(low high)/2.
    def log_prob(a, low, high):
        return PowerLaw(a, low, high).log_prob(5.0)

    da, dlow, dhigh = jax.jit(jax.grad(log_prob, argnums=(0, 1, 2)))(-1.0, LOW, HIGH)
    width = np.log(HIGH / LOW)
    np.testing.assert_allclose(da, np.log(5.0) - 0.5 * np.log(LOW * HIGH), rtol=1e-13)
    np.testing.assert_allclose(dlow, 1 / (LOW * width), rtol=1e-13)
    np.testing.assert_allclose(dhigh, -1 / (HIGH * width), rtol=1e-13)
    # Minus the variance of log x, uniform over the width.
    second = jax.jit(jax.grad(jax.grad(log_prob)))(-1.0, LOW, HIGH)
    np.testing.assert_allclose(second, -(width**2) / 12, rtol=1e-12)


@pytest.mark.parametrize("what", ["log_prob", "cdf", "icdf"])
def test_hyperparameter_gradients_match_finite_differences(what):
    at = 0.3 if what == "icdf" else 7.0

    def f(p):
        return getattr(PowerLaw(p[0], p[1], p[2]), what)(at)

    exponents = jnp.array([-50.0, -2.35, -1.3, -1.0 - 1e-5, -1.0 + 1e-9, -0.9, 2.0, 50.0])
    points = jnp.stack([exponents, jnp.full(8, LOW), jnp.full(8, HIGH)], axis=1)
    both = jax.jit(jax.vmap(jax.value_and_grad(f)))
    step, slopes = 1e-5, both(points)[1]
    for axis, e in enumerate(step * jnp.eye(3)):
        numeric = (both(points + e)[0] - both(points - e)[0]) / (2 * step)
        np.testing.assert_allclose(slopes[:, axis], numeric, rtol=2e-5, atol=2e-7)


def test_float32_gradient_agrees_with_float64():
    def slope(dtype):
        def log_prob(a):
            return PowerLaw(a, dtype(2), dtype(90)).log_prob(dtype(7))

        return jax.jit(jax.vmap(jax.grad(log_prob)))(dtype(np.array(EXPONENTS)))

    assert slope(jnp.float32).dtype == jnp.float32
    np.testing.assert_allclose(slope(jnp.float32), slope(jnp.float64), rtol=2e-5, atol=2e-5)


def test_inside():
    d = PowerLaw(-2.0, LOW, HIGH)
    inside = d.inside(jnp.array([-3.0, 0.0, 1.999, LOW, 5.0, HIGH, 90.1]))
    assert inside.tolist() == [False, False, False, True, True, True, False]
    assert not PowerLaw(-2.0, 9.0, 5.0).inside(jnp.linspace(1.0, 20.0, 50)).any()


def test_nan_bound_is_not_hidden():
    broken = jax.jit(lambda low: PowerLaw(-2.0, low, HIGH).inside(3.0))
    assert bool(broken(jnp.nan))
    value = jax.jit(lambda low: PowerLaw(-2.0, low, HIGH).log_prob(3.0))
    assert bool(jnp.isnan(value(jnp.nan)))


def test_arguments_are_validated():
    with pytest.raises(ValueError, match="low"):
        PowerLaw(-2.0, -1.0, 5.0, validate_args=True)


@pytest.mark.parametrize(("dtype", "close"), [(jnp.float64, 1e-14), (jnp.float32, 1e-6)])
def test_mean_exp(dtype, close):
    u = np.array(
        [-30.0, -3.0, -0.5001, -0.4999, -1e-3, -1e-9, 1e-300, 1e-9, 0.4999, 0.5001, 4.0, 60.0]
    )
    u = np.concatenate([u.astype(dtype), [0.0]]).astype(dtype)
    wide = u.astype(np.longdouble)
    safe = np.where(wide == 0, 1, wide)
    want = np.where(wide == 0, 1, -np.expm1(-safe) / safe)
    np.testing.assert_allclose(mean_exp(jnp.asarray(u)), want.astype(float), rtol=5 * close)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    t = 0.5 * (nodes + 1)
    slope = np.array([np.sum(-0.5 * weights * t * np.exp(-x * t)) for x in u.astype(float)])
    got = jax.jit(jax.vmap(jax.grad(mean_exp)))(jnp.asarray(u))
    np.testing.assert_allclose(got, slope, rtol=100 * close)
