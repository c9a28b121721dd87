import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skycensus.gw import projection


def brute_force(num, seed=1):
    """The projection factor from the antenna pattern of Finn & Chernoff 1993, equation 3.8."""
    rng = np.random.default_rng(seed)
    c, i = rng.uniform(-1.0, 1.0, (2, num))
    phi, psi = rng.uniform(0.0, 2.0 * np.pi, (2, num))
    a, b = 0.5 * (1.0 + c**2) * np.cos(2.0 * phi), c * np.sin(2.0 * phi)
    plus = a * np.cos(2.0 * psi) - b * np.sin(2.0 * psi)
    cross = a * np.sin(2.0 * psi) + b * np.cos(2.0 * psi)
    return np.sqrt((plus * (1.0 + i**2) / 2.0) ** 2 + (cross * i) ** 2)


def moment(power):
    x, w = np.polynomial.legendre.leggauss(200)
    x, w = 0.5 * (x + 1.0), 0.5 * w
    return np.sum(w * power * x ** (power - 1) * np.asarray(projection.survival(x)))


def test_mean_square_is_four_twenty_fifths():
    assert moment(2) == pytest.approx(projection.MEAN_SQUARE, abs=1e-6)


def test_horizon_to_range_is_the_known_ratio():
    # Finn & Chernoff 1993; 2.264 in Abadie et al. 2010 (arXiv:1003.2481), 2.26478 in full.
    assert moment(3) ** (-1.0 / 3.0) == pytest.approx(2.26478, abs=2e-5)


def test_agrees_with_draws_of_directions():
    num = 400_000
    w = brute_force(num)
    for x in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
        share = np.mean(w > x)
        error = np.sqrt(share * (1.0 - share) / num)
        assert float(projection.survival(x)) == pytest.approx(share, abs=4.0 * error)


def test_agrees_with_the_published_fit():
    # Dominik et al. 2015 (arXiv:1405.7016), equation A2: good to about 0.01.
    x = np.linspace(0.0, 1.0, 21)
    a, b, c = 0.374222, 2.04216, -2.63948
    y = 1.0 - x
    fit = a * y**2 + b * y**4 + c * y**8 + (1.0 - a - b - c) * y**10
    np.testing.assert_allclose(projection.survival(x), fit, atol=0.012)


def test_limits_and_gradients():
    x = jnp.array([0.0, 1e-6, 0.5, 1.0 - 1e-6, 1.0, 3.0])
    p = projection.survival(x)
    assert p[0] == 1.0 and p[4] == 0.0 and p[5] == 0.0
    assert float(p[3]) == pytest.approx(0.5e-12, rel=1e-4)
    slopes = jax.vmap(jax.grad(projection.survival))(x)
    assert np.all(np.isfinite(slopes)) and np.all(slopes <= 0.0)
    assert np.isnan(projection.survival(jnp.nan))


def test_single_precision():
    x = np.linspace(0.0, 1.1, 57, dtype=np.float32)
    with jax.enable_x64(False):
        single = projection.survival(x)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, projection.survival(x.astype(float)), atol=1e-6)
