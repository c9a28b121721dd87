from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import paramax
import pytest

from skycensus.estimators.layers import Affine, Autoregressive, Linear, RationalQuadratic


def filled(layer, seed=0):
    """The layer with random numbers for all of its weights."""
    rng = np.random.default_rng(seed)
    arrays, rest = eqx.partition(layer, eqx.is_inexact_array)
    arrays = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape)), arrays)
    return eqx.combine(arrays, rest)


@eqx.filter_jit
def there_and_back(layer, x, *condition):
    """y and its log determinant, both of the inverse at y, and dy/dx by differentiation."""
    y, log_det = layer.transform_and_log_det(x, *condition)
    jacobian = jax.jacfwd(lambda x: layer.transform_and_log_det(x, *condition)[0])(x)
    return y, log_det, *layer.inverse_and_log_det(y, *condition), jacobian


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dim", "context", "depth", "width"),
    [(3, 2, 2, 9), (6, None, 2, 3), (1, 1, 1, 4)],
)
def test_coordinates_follow_from_those_before_and_back(dim, context, depth, width):
    """Also with more coordinates than units, and with one coordinate that sees a context alone."""
    made = Autoregressive(
        jax.random.key(0),
        transformer=Affine,
        num_free=2,
        dim=dim,
        cond_dim=context,
        nn_width=width,
        nn_depth=depth,
    )
    layer = paramax.unwrap(filled(made))
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=dim))
    condition = () if context is None else (jnp.asarray(rng.normal(size=context)),)
    y, log_det, back, log_back, jacobian = there_and_back(layer, x, *condition)
    np.testing.assert_allclose(back, x, atol=1e-5)
    np.testing.assert_allclose(log_back, -log_det, atol=1e-5)
    np.testing.assert_allclose(np.linalg.slogdet(jacobian)[1], log_det, atol=1e-5)
    assert not np.triu(jacobian, 1).any()
    if width >= dim:
        assert np.all(np.asarray(jacobian)[np.tril_indices(dim, -1)] != 0)
    if context is not None:
        other = there_and_back(layer, x, condition[0] + 1.0)[0]
        assert np.all(other != y)


def test_a_linear_map_is_at_first_a_permutation_and_has_an_inverse():
    order = jnp.array([2, 0, 1])
    x = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(Linear(order).transform_and_log_det(x)[0], x[order])
    layer = filled(Linear(order))
    _, log_det, back, log_back, jacobian = there_and_back(layer, x)
    np.testing.assert_allclose(back, x, rtol=1e-12)
    np.testing.assert_allclose([log_det, -log_back], np.linalg.slogdet(jacobian)[1], rtol=1e-12)


def test_an_affine_map_is_the_identity_where_nothing_is_given():
    y, log_det = Affine().transform_and_log_det(3.0)
    np.testing.assert_allclose([y, log_det], [3.0, 0.0], atol=1e-12)
    y, log_det = Affine(jnp.array([1.0, -800.0])).transform_and_log_det(3.0)
    np.testing.assert_allclose([y, log_det], [1.03, np.log(0.01)], rtol=1e-12)


def test_spline_is_monotone_smooth_and_the_identity_outside():
    spline = RationalQuadratic(jnp.asarray(np.random.default_rng(0).normal(size=17)))
    x = jnp.linspace(-7, 7, 4001)
    y, log_slope = jax.jit(jax.vmap(spline.transform_and_log_det))(x)
    assert np.all(np.diff(y) > 0)
    outside = np.abs(x) >= 5
    np.testing.assert_array_equal(y[outside], x[outside])
    np.testing.assert_allclose(np.exp(log_slope)[1:-1], np.gradient(y, x)[1:-1], rtol=0.05)
    back, log_back = jax.jit(jax.vmap(spline.inverse_and_log_det))(y)
    np.testing.assert_allclose(back, x, atol=1e-9)
    np.testing.assert_allclose(log_back, -log_slope, atol=1e-7)
