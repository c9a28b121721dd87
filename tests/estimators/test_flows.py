from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skycensus import InputError
from skycensus.estimators.flows import Architecture, Flow, RationalQuadratic, random_weights
from skycensus.estimators.kinds import fitter


def test_spline_is_monotone_smooth_and_the_identity_outside():
    rng = np.random.default_rng(0)
    spline = eqx.tree_at(
        lambda s: (s.widths, s.heights, s.slopes),
        RationalQuadratic(6),
        tuple(jnp.asarray(rng.normal(size=n)) for n in (6, 6, 5)),
    )
    x = jnp.linspace(-7, 7, 4001)
    y, log_slope = jax.jit(jax.vmap(spline.transform_and_log_det))(x)
    assert np.all(np.diff(y) > 0)
    outside = np.abs(x) >= 5
    np.testing.assert_array_equal(y[outside], x[outside])
    np.testing.assert_allclose(np.exp(log_slope)[1:-1], np.gradient(y, x)[1:-1], rtol=0.05)
    back, log_back = jax.jit(jax.vmap(spline.inverse_and_log_det))(y)
    np.testing.assert_allclose(back, x, atol=1e-9)
    np.testing.assert_allclose(log_back, -log_slope, atol=1e-7)


@pytest.mark.parametrize("kind", ["maf", "spline"])
def test_cube_and_back_and_the_density_of_the_map(kind):
    a = Architecture(kind, 3, 0, 2, 8, 1, 5)
    flow = Flow(random_weights(jax.random.key(1), a), a)
    u = jax.random.uniform(jax.random.key(2), (4, 3), float)
    z = jax.jit(lambda u: flow.from_unit_cube(u))(u)
    np.testing.assert_allclose(jax.jit(lambda z: flow.to_unit_cube(z))(z), u, atol=1e-9)
    slopes = jax.jit(jax.vmap(jax.jacfwd(lambda u: flow.from_unit_cube(u))))(u)
    np.testing.assert_allclose(
        jax.jit(lambda z: flow.log_prob(z))(z), -np.linalg.slogdet(slopes)[1], rtol=1e-7
    )


def test_members_differ_and_are_reproducible():
    rng = np.random.default_rng(0)
    z, weight = rng.normal(size=(100, 2)), np.full(100, 0.01)
    settings = {"layers": 1, "width": 4, "max_epochs": 1, "validation": (z[:20], np.full(20, 0.05))}
    first, again = (fitter("maf")(jax.random.key(3), z, weight, **settings) for _ in range(2))
    for one, other in zip(first.members, again.members, strict=True):
        for w, v in zip(one.weights, other.weights, strict=True):
            np.testing.assert_array_equal(w, v)
    assert first.replicas and len(first.members) == 4
    values = [[np.ravel(w) for w in member.weights] for member in first.members]
    assert not np.array_equal(np.concatenate(values[0]), np.concatenate(values[1]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 0}, "layers=0 must be 1 or more"),
        ({"num_members": 0}, "num_members=0 must be 1 or more"),
        ({"bins": 1}, "bins=1 is no spline"),
    ],
)
def test_bad_settings_are_told(settings, message):
    z, weight = np.zeros((10, 2)), np.full(10, 0.1)
    with pytest.raises(InputError, match=message):
        fitter("maf")(jax.random.key(0), z, weight, validation=(z, weight), **settings)


def test_an_affine_flow_over_one_parameter_is_told():
    z, weight = np.zeros((10, 1)), np.full(10, 0.1)
    with pytest.raises(InputError, match="is a Gaussian and no more; use kind='spline'"):
        fitter("maf")(jax.random.key(0), z, weight, validation=(z, weight))
