"""Tables over one parameter, summed as products of matrices."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.integrate import quad
from scipy.stats import lognorm

from skycensus import InputError, Joint, Mixture, PowerLaw
from skycensus.likelihood import Constant, Detected, Folded, Leafwise

NODES = np.geomspace(0.1, 100.0, 121)
AT, WIDTH = np.array([0.5, 2.0, 30.0]), 0.2


def table(x):
    """Three objects measured with lognormal errors."""
    return lognorm.pdf(np.asarray(x), WIDTH, scale=AT[:, None])


def folded(**options) -> Folded:
    return Folded("x", NODES, table(NODES), **options)


def law(index, low=0.2, high=50.0) -> Joint:
    return Joint({"x": PowerLaw(index, low, high)})


def exact(index, low=0.2, high=50.0) -> np.ndarray:
    norm = quad(lambda x: x**index, low, high)[0]
    edges = [low, *AT, high]
    return np.array(
        [
            np.log(
                sum(
                    quad(lambda x, i=i: table([x])[i, 0] * x**index, a, b, epsrel=1e-11)[0]
                    for a, b in pairwise(edges)
                )
                / norm
            )
            for i in range(3)
        ]
    )


def test_against_quadrature():
    value, variance = folded().log_marginal(law(-1.7))
    np.testing.assert_allclose(value, exact(-1.7), atol=2e-4)
    assert not np.any(variance)


def test_an_edge_between_nodes_is_integrated():
    # To about half of a fine cell, where nodes alone would see it jump.
    for high in (2.01, 2.03, 2.05):
        value = folded().log_marginal(law(-1.7, high=high)).value[:2]
        np.testing.assert_allclose(value, exact_two(-1.7, high), atol=1.2e-2)
    finer = folded(refine=64).log_marginal(law(-1.7, high=2.03)).value[:2]
    np.testing.assert_allclose(finer, exact_two(-1.7, 2.03), atol=1.5e-3)


def exact_two(index, high) -> list[float]:
    norm = quad(lambda x: x**index, 0.2, high)[0]
    return [
        np.log(quad(lambda x, i=i: table([x])[i, 0] * x**index, 0.2, high)[0] / norm)
        for i in (0, 1)
    ]


def test_gradient_and_batches():
    form = folded()
    value = lambda index: form.log_marginal(law(index)).value.sum()  # noqa: E731
    step = 1e-5
    slope = (value(-1.7 + step) - value(-1.7 - step)) / (2 * step)
    assert float(jax.grad(value)(-1.7)) == pytest.approx(float(slope), rel=1e-7)
    many = jax.jit(jax.vmap(value))(jnp.array([-2.0, -1.7]))
    assert float(many[1]) == pytest.approx(float(value(-1.7)))


def test_a_table_of_32_bits_has_sums_of_64(monkeypatch):
    monkeypatch.setattr("skycensus.likelihood.folded._ROWS", 2)
    narrow = folded(dtype=np.float32)
    assert narrow.table.dtype == np.float32
    both = [
        jax.jit(
            jax.value_and_grad(lambda index, form=form: form.log_marginal(law(index)).value.sum())
        )
        for form in (folded(), narrow)
    ]
    (value, slope), (near, near_slope) = (f(-1.7) for f in both)
    assert near.dtype == np.float64
    assert float(near) == pytest.approx(float(value), abs=2e-7)
    assert float(near_slope) == pytest.approx(float(slope), rel=1e-6)


def test_nothing_is_minus_infinity_with_a_gradient_of_zero():
    form = folded()
    value = lambda low: form.log_marginal(law(-1.0, low=low, high=low * 2)).value  # noqa: E731
    assert np.all(value(300.0) == -np.inf)
    assert np.all(jax.jacobian(value)(300.0) == 0)
    blind = Folded("x", NODES, table(NODES) * np.array([[1.0], [0.0], [1.0]]))
    assert blind.log_marginal(law(-1.0)).value[1] == -np.inf


@pytest.mark.slow
def test_draws_have_the_posterior_mean():
    form = folded(names=["a", "b", "c"])
    keys = jax.random.split(jax.random.key(2), 4000)
    draws = jax.vmap(lambda key: form.draw(law(0.0), key)["x"])(keys)
    # A flat population on a lognormal likelihood: ln x is normal about ln at.
    z = (np.log(draws) - np.log(AT)).mean(0) / (WIDTH / np.sqrt(4000))
    assert np.all(np.abs(z) < 4)
    assert np.log(draws[:, 0]).std() == pytest.approx(WIDTH, rel=0.05)


def test_detected_makes_fractions_of_what_is_seen():
    seen = Folded("x", NODES, np.clip(NODES / 100.0, 0, 1)[None], names=["seen"])
    forms = {"a": folded(), "b": Constant(np.log([0.1, 0.2, 0.3]))}
    expected = {"a": seen, "b": Constant(np.log([2.0]))}
    each = Leafwise({n: Detected(forms[n], expected[n]) for n in forms})
    weights = {"a": jnp.log(0.3), "b": jnp.log(0.7)}
    tree = Mixture({"a": law(-1.7), "b": law(0.0)}, log_weights=weights)
    a = np.exp(folded().log_marginal(law(-1.7)).value - seen.log_marginal(law(-1.7)).value)
    np.testing.assert_allclose(
        np.exp(each.log_marginal(tree).value), 0.3 * a + 0.7 * np.array([0.05, 0.1, 0.15])
    )


def test_detected_without_any_detection():
    blind = Folded("x", NODES, np.where(NODES > 60.0, 1.0, 0.0)[None])
    value = Detected(folded(), blind).log_marginal(law(-1.0)).value
    assert np.all(value == -np.inf)


def test_constant_ignores_the_density():
    form = Constant([0.0, -np.inf], names=["a", "b"])
    assert np.array_equal(form.log_marginal(dist.Normal(0, 1)).value, [0.0, -np.inf])
    assert np.isnan(form.draw(law(0.0), jax.random.key(0))["x"]).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Folded("x", NODES[:-1], table(NODES)), "two nodes at least"),
        (lambda: Folded("x", np.linspace(1, 2, 121), table(NODES)), "rise evenly"),
        (lambda: Folded("x", -NODES, table(NODES)), "rise evenly"),
        (lambda: Folded("x", NODES, -table(NODES)), "of object 0 is negative"),
        (lambda: Folded("x", NODES, table(NODES) * [[1], [np.nan], [1]]), "of object 1 is"),
        (lambda: Folded("x", NODES, table(NODES), names=["a"]), "3 objects but 1 names"),
        (lambda: Constant([0.0, np.nan], names=["a", "b"]), "of b is NaN"),
    ],
)
def test_wrong_input_is_told(wrong, said):
    with pytest.raises(InputError, match=said):
        wrong()
