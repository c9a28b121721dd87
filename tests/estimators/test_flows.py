from __future__ import annotations

import jax
import numpy as np
import pytest

from skycensus import InputError
from skycensus.estimators.flows import Architecture, Flow, random_weights
from skycensus.estimators.kinds import fitter


@pytest.mark.parametrize("kind", ["maf", pytest.param("spline", marks=pytest.mark.slow)])
def test_cube_and_back_and_the_density_of_the_map(kind):
    a = Architecture(kind, 3, 0, 2, 8, 1, 5)
    flow = Flow(random_weights(jax.random.key(1), a), a)
    u = jax.random.uniform(jax.random.key(2), (4, 3), float)
    z = jax.jit(lambda u: flow.from_unit_cube(u))(u)
    # The networks work in 32 bits.
    np.testing.assert_allclose(jax.jit(lambda z: flow.to_unit_cube(z))(z), u, atol=1e-6)
    slopes = jax.jit(jax.vmap(jax.jacfwd(lambda u: flow.from_unit_cube(u))))(u)
    np.testing.assert_allclose(
        jax.jit(lambda z: flow.log_prob(z))(z), -np.linalg.slogdet(slopes)[1], rtol=1e-6
    )


@pytest.mark.slow
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
