import jax
import numpy as np
import pytest
import scipy.interpolate

from skycensus.gamma.interpolation import monotone_cubic, monotone_surface

NODES = np.array([0.0, 0.5, 1.1, 2.0, 2.2, 3.5])
VALUES = np.array([0.0, 0.0, 1.0, 4.0, 3.0, 3.0])


def test_it_is_the_cubic_of_fritsch_and_butland():
    x = np.linspace(0.5, 2.2, 301)
    # scipy has other slopes at the ends, where its cubics differ.
    exact = scipy.interpolate.PchipInterpolator(NODES, VALUES)(x)
    np.testing.assert_allclose(monotone_cubic(NODES, VALUES, x), exact, atol=1e-12)
    # On even nodes too, where the cell is found by arithmetic.
    even = np.arange(6.0)
    exact = scipy.interpolate.PchipInterpolator(even, VALUES)(x + 0.5)
    np.testing.assert_allclose(monotone_cubic(even, VALUES, x + 0.5), exact, atol=1e-12)


def test_it_keeps_between_its_nodes_and_to_its_ends():
    x = np.concatenate([np.linspace(-1.0, 4.5, 2001), NODES])
    found = np.asarray(monotone_cubic(NODES, VALUES, x))
    np.testing.assert_array_equal(found[-len(NODES) :], VALUES)
    assert found.min() == 0.0 and found.max() == 4.0
    assert found[0] == 0.0 and found[2000] == 3.0
    slope = jax.jit(jax.vmap(jax.grad(lambda x: monotone_cubic(NODES, VALUES, x))))
    for node in NODES[1:-1]:
        left, right = slope(np.array([node - 1e-9, node + 1e-9]))
        assert abs(left - right) < 1e-6


def test_many_places_are_as_each_by_itself():
    """Many look up whole cubics, few the ends of their cells."""
    rng = np.random.default_rng(2)
    for nodes in (NODES, np.arange(6.0)):
        table = rng.normal(size=(6, 2))
        x = rng.uniform(-1.0, 6.0, 40)
        many = monotone_cubic(nodes, table, x)
        each = np.concatenate([monotone_cubic(nodes, table, x[i : i + 4]) for i in range(0, 40, 4)])
        np.testing.assert_allclose(many, each, atol=1e-13)
    assert np.isnan(monotone_cubic(NODES, VALUES, np.array([np.nan] * 9))).all()


def test_a_surface_is_one_cubic_after_the_other():
    rng = np.random.default_rng(1)
    one, two = np.linspace(0.0, 3.0, 7), np.linspace(-1.0, 1.0, 9)
    table = rng.uniform(0.0, 1.0, (7, 9, 2))
    surface = jax.jit(lambda x, y: monotone_surface((one, two), table, (x, y)))
    for x, y in [(1.3, 0.1), (0.1, -0.99), (2.9, 0.95), (0.0, 1.0), (9.0, -9.0)]:
        along = monotone_cubic(one, table, x)
        expected = monotone_cubic(two, along, y)
        np.testing.assert_allclose(surface(x, y), expected, atol=1e-12)


@pytest.mark.parametrize("x", [0.2, 1.7])
def test_gradients_with_respect_to_the_values(x):
    value = jax.jit(lambda v: monotone_cubic(NODES, v, x))
    grad = jax.grad(value)(VALUES + 0.1 * NODES)
    for k in range(len(NODES)):
        step = 1e-6 * np.eye(len(NODES))[k]
        ends = [value(VALUES + 0.1 * NODES + s * step) for s in (1, -1)]
        np.testing.assert_allclose(grad[k], (ends[0] - ends[1]) / 2e-6, atol=1e-7)
