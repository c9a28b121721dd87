from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import InputError, Prior
from skycensus.estimators import Periodic
from skycensus.estimators.coordinates import declared, standardised

NAMES = ("two", "below", "above", "none", "angle")
SUPPORT = {
    "two": (-1.0, 3.0),
    "below": (2.0, np.inf),
    "above": (-np.inf, -1.0),
    "angle": Periodic(0.0, 6.0),
}


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(0)
    n = 500
    angle = np.mod(rng.normal(0.2, 0.7, n), 6.0)
    columns = [4 * rng.beta(2, 3, n) - 1, 2 + rng.gamma(2, 1, n), -1 - rng.gamma(3, 1, n)]
    return np.stack([*columns, rng.normal(3, 2, n), angle], axis=-1)


@pytest.fixture(scope="module")
def coordinates(draws):
    return standardised(declared(NAMES, SUPPORT), draws, np.full(len(draws), 1 / len(draws)))


@pytest.mark.slow
def test_draws_are_standardised_and_come_back(coordinates, draws):
    z, _ = coordinates.forward(jnp.asarray(draws))
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(np.cov(z.T, bias=True), np.eye(5), atol=1e-10)
    np.testing.assert_allclose(coordinates.inverse(z), draws, rtol=1e-10, atol=1e-12)


def test_the_jacobian_is_that_of_the_map(coordinates, draws):
    x = jnp.asarray(draws[:3])
    slopes = jax.jit(jax.vmap(jax.jacfwd(lambda one: coordinates.forward(one)[0])))(x)
    log_det = coordinates.forward(x)[1]
    np.testing.assert_allclose(log_det, np.linalg.slogdet(slopes)[1], rtol=1e-9)


def test_an_angle_is_cut_where_draws_are_sparsest(coordinates):
    # They lie about 0.2 on a turn of 6, so that the other side is near 3.2.
    assert abs(6.0 * float(coordinates.cut[4]) - 3.2) < 1.0


def test_all_is_finite_on_the_support_and_far_out(coordinates):
    middle = [0.5, 3.0, -2.0, 1.0, 1.0]
    forward = jax.jit(jax.value_and_grad(lambda x: coordinates.forward(x)[::-1], has_aux=True))
    for i, values in enumerate(
        ([-1.0, 3.0, -1 + 1e-16], [2.0, 1e300, 2 + 1e-15], [-1.0, -1e300], [1e300], [0.0, 6.0])
    ):
        for value in values:
            x = jnp.array(middle).at[i].set(value)
            assert coordinates.inside(x)
            (log_det, z), slope = forward(x)
            assert np.isfinite(z).all() and np.isfinite(log_det) and np.isfinite(slope).all()
    for i, value in enumerate((-1.1, 1.9, -0.9, np.inf, 6.1)):
        assert not coordinates.inside(jnp.array(middle).at[i].set(value))
    far = coordinates.inverse(jnp.array([[-40.0] * 5, [40.0] * 5]))
    assert np.isfinite(far).all() and bool(coordinates.inside(far).all())


def test_supports_are_taken_from_distributions_and_priors():
    made = declared(("a", "b"), {"a": dist.Uniform(1.0, 2.0), "b": dist.HalfNormal(1.0)})
    np.testing.assert_array_equal(made.low, [1.0, 0.0])
    np.testing.assert_array_equal(made.high, [2.0, np.inf])
    prior = Prior({"a": dist.Uniform(1.0, 2.0), "c": dist.Uniform(0.0, 1.0)})
    np.testing.assert_array_equal(declared(("b", "a"), prior).low, [-np.inf, 1.0])


@pytest.mark.parametrize(
    ("support", "message"),
    [
        ({"aa": (0, 1)}, "support 'aa' is for an unknown parameter"),
        ({"a": (2, 1)}, "support 'a': low=2.0 is not below high=1.0; swap them"),
        ({"a": 3}, "support 'a': 3 is not a pair"),
        ({"a": ("x", 1)}, "are not two numbers"),
        ({"a": Periodic(0, np.inf)}, "a period needs two finite ends"),
        (7, "support=7 is not understood"),
    ],
)
def test_bad_supports_are_told(support, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        declared(("a", "b"), support)
