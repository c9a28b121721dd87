"""Independent blocks: found, given, refused."""

import jax
import numpy as np
import pytest

from skycensus import InputError, fit_density


@pytest.fixture(scope="module")
def columns():
    """b is a parabola of a, which no correlation sees; d follows c; e is alone."""
    rng = np.random.default_rng(0)
    a, b, c, d, e = rng.normal(size=(5, 2000))
    return {"a": a, "c": c, "b": 0.5 * b + a**2, "d": d + c, "e": 3 * e + 1}


def fitted(columns, **settings):
    return fit_density(jax.random.key(0), columns, kind="product", part="gaussian", **settings)


@pytest.fixture(scope="module")
def found(columns):
    return fitted(columns)


def test_blocks_are_found(found):
    assert found.estimate.inner.blocks == ((0, 2), (1, 3), (4,))


def test_it_is_a_product(found, columns):
    """What one block does changes nothing of the others."""
    rng = np.random.default_rng(1)
    base = {name: x[:50] for name, x in columns.items()}
    moved = base | {"e": rng.normal(size=50), "c": rng.normal(size=50), "d": rng.normal(size=50)}
    one = base | {"e": moved["e"]}
    other = base | {"c": moved["c"], "d": moved["d"]}
    value = {
        k: np.asarray(found.log_prob(theta))
        for k, theta in {"base": base, "moved": moved, "one": one, "other": other}.items()
    }
    np.testing.assert_allclose(
        value["moved"] - value["base"],
        value["one"] + value["other"] - 2 * value["base"],
        atol=1e-9,
    )


def test_draws_are_sampled_in_unison(found, columns):
    drawn = found.sample(jax.random.key(1), (4000,))
    both = [np.corrcoef([np.asarray(d[n]) for n in "acbde"]) for d in (drawn, columns)]
    np.testing.assert_allclose(both[0], both[1], atol=0.08)


def test_given_blocks_that_depend_on_each_other_are_refused(columns):
    three = {name: columns[name] for name in "cde"}
    with pytest.raises(InputError, match=r"\(c, e; d\) are not independent.*one block"):
        fitted(three, blocks=[["c", "e"], ["d"]])


@pytest.mark.slow
def test_given_blocks_and_bounds():
    rng = np.random.default_rng(2)
    x, y = rng.random((2, 1000)) ** [[1.0], [2.0]]
    density = fit_density(
        jax.random.key(0),
        {"x": x, "y": y},
        kind="product",
        part="cut",
        blocks=["x", "y"],
        support={"x": (0, 1), "y": (0, 1)},
    )
    assert density.estimate.inner.blocks == ((0,), (1,))
    value = density.log_prob({"x": np.array([0.5, 1.5]), "y": np.array([0.5, 0.5])})
    assert np.isfinite(value[0]) and np.isneginf(value[1])


@pytest.mark.parametrize(
    "blocks, message",
    [
        ([["a", "bb"]], "no parameter 'bb' .*mean 'b'"),
        ([["a"], ["a", "b"]], "'a' is named twice"),
    ],
)
def test_wrong_blocks(columns, blocks, message):
    with pytest.raises(InputError, match=message):
        fitted(columns, blocks=blocks)
