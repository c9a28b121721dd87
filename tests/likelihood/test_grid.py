from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats

from skycensus import Grid, InputError, Joint, Mixture, PowerLaw

NODES = np.linspace(-9.0, 9.0, 1801)
LOG_STEP = np.log(NODES[1] - NODES[0])
AT = np.array([-1.0, 0.4, 2.0])
TABLE = scipy.stats.norm.logpdf(NODES, AT[:, None], 0.5)


def test_gaussian_objects_and_population():
    grid = Grid({"x": NODES}, TABLE, LOG_STEP, names=["a", "b", "c"])
    assert grid.names == ("a", "b", "c")
    value, variance = grid.log_marginal(Joint({"x": dist.Normal(0.3, 1.2)}))
    np.testing.assert_allclose(value, scipy.stats.norm.logpdf(AT, 0.3, 1.3), rtol=1e-12)
    np.testing.assert_array_equal(variance, 0.0)

    def total(loc, scale):
        return grid.log_marginal(Joint({"x": dist.Normal(loc, scale)})).value.sum()

    slopes = jax.jit(jax.grad(total, argnums=(0, 1)))(0.3, 1.2)
    np.testing.assert_allclose(slopes[0], np.sum(AT - 0.3) / 1.69, rtol=1e-10)
    want = np.sum((AT - 0.3) ** 2 / 1.69 - 1) * 1.2 / 1.69
    np.testing.assert_allclose(slopes[1], want, rtol=1e-10)


def test_gauss_legendre_nodes_against_adaptive_quadrature():
    t, w = np.polynomial.legendre.leggauss(80)
    x = 5.0 + 3.0 * t
    grid = Grid({"m": x}, -0.5 * (x[None] - 4.0) ** 2, np.log(3.0 * w))
    got = grid.log_marginal(Joint({"m": PowerLaw(-2.3, 2.0, 8.0)})).value[0]

    def integrand(x):
        return np.exp(-0.5 * (x - 4.0) ** 2) * np.exp(float(PowerLaw(-2.3, 2.0, 8.0).log_prob(x)))

    want = scipy.integrate.quad(integrand, 2.0, 8.0)[0]
    np.testing.assert_allclose(got, np.log(want), rtol=1e-10)


def test_nodes_may_differ_between_objects():
    own = AT[:, None] + np.linspace(-4.0, 4.0, 801)
    table = scipy.stats.norm.logpdf(own, AT[:, None], 0.5)
    grid = Grid({"x": own}, table, np.log(0.01))
    value = grid.log_marginal(Joint({"x": dist.Normal(0.3, 1.2)})).value
    np.testing.assert_allclose(value, scipy.stats.norm.logpdf(AT, 0.3, 1.3), rtol=1e-10)


def test_shared_and_own_nodes_together():
    # y is the same for all objects and x is not; the density looks at both at once.
    x = AT[:, None] + np.linspace(-1.0, 1.0, 5)
    y = np.arange(5.0)
    grid = Grid({"x": x, "y": y}, np.zeros((3, 5)), 0.0)
    pair = dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    got = grid.log_marginal(Joint({("x", "y"): pair})).value
    want = scipy.stats.norm.logpdf(x) + scipy.stats.norm.logpdf(y)
    np.testing.assert_allclose(got, np.log(np.exp(want).sum(axis=1)), rtol=1e-12)


def test_weights_that_differ_between_objects_and_impossible_nodes():
    table = np.zeros((2, 3))
    table[0, 0] = -np.inf
    grid = Grid({"x": [0.0, 0.5, 1.0]}, table, np.log([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    density = Mixture({"a": Joint({"x": dist.Uniform(-1.0, 0.6)})}, log_weights={"a": np.log(1.6)})
    np.testing.assert_allclose(grid.log_marginal(density).value, np.log([2.0, 9.0]), atol=1e-12)


def draws_of(grid, density, num=20000):
    keys = jax.random.split(jax.random.key(4), num)
    return jax.jit(lambda k: jax.lax.map(lambda k: grid.draw(density, k), k, batch_size=1000))(keys)


def test_draws_lie_between_the_nodes_and_have_the_right_moments():
    # Two nodes to a standard deviation: flat cells would be a per cent too wide.
    nodes = np.arange(-12.0, 12.0, 0.5)
    table = scipy.stats.norm.logpdf(nodes, AT[:, None], 1.2)
    grid = Grid({"x": nodes}, table, np.log(0.5), spacing={"x": 0.5})
    x = draws_of(grid, Joint(x=dist.Normal(0.3, 1.6)))["x"]
    sd = (1 / 1.2**2 + 1 / 1.6**2) ** -0.5
    mean = sd**2 * (AT / 1.2**2 + 0.3 / 1.6**2)
    assert np.all(np.abs(x.mean(axis=0) - mean) < 4 * sd / np.sqrt(20000))
    np.testing.assert_allclose(x.std(axis=0), sd, rtol=4 / np.sqrt(40000))
    inside = np.abs(np.mod(np.asarray(x) / 0.5, 1.0) - 0.5) < 0.25
    np.testing.assert_allclose(inside.mean(), 0.5, atol=0.01)


def test_draws_of_objects_in_several_rows_and_without_spacing():
    nodes = np.arange(12.0).reshape(3, 4)
    share = np.array([[1, 2, 0, 1], [3, 1, 1, 1], [0, 0, 5, 5]], float)
    with np.errstate(divide="ignore"):
        grid = Grid({"x": nodes}, np.log(share), 0.0, owner=[0, 0, 1], names=["a", "b"])
    flat = Joint(x=dist.Uniform(-1.0, 20.0))
    want = np.log(np.array([10.0, 10.0]) / 21.0)
    np.testing.assert_allclose(grid.log_marginal(flat).value, want)
    x = np.asarray(draws_of(grid, flat)["x"]).astype(int)
    for i, p in enumerate((share[:2].ravel() / 10, np.append(np.zeros(8), share[2] / 10))):
        counts = np.bincount(x[:, i], minlength=12)[: 8 if i == 0 else 12]
        np.testing.assert_allclose(counts / 20000, p[: len(counts)], atol=4 * 0.5 / np.sqrt(20000))


GOOD = {"nodes": {"x": np.zeros(4)}, "log_likelihood": np.zeros((2, 4)), "log_weight": np.zeros(4)}
NAN_ROW = np.array([[0.0, 0, 0, 0], [0, np.nan, 0, 0]])
EMPTY_ROW = np.array([[-np.inf] * 4, [0.0] * 4])
BAD = {
    "table": ({"log_likelihood": np.zeros(4)}, r"objects x nodes; got shape \(4,\)"),
    "names": ({"names": ["a"]}, "2 objects but 1 names"),
    "nodes": ({"nodes": {"x": np.zeros(3)}}, r"nodes of 'x' have shape \(3,\)"),
    "node value": ({"nodes": {"x": [0, 1, np.inf, 2]}}, "nodes of 'x' are not all finite"),
    "nan": ({"log_likelihood": NAN_ROW}, "object 1 is NaN"),
    "plus infinity": ({"log_likelihood": np.full((2, 4), np.inf)}, r"object 0 is NaN or \+inf"),
    "empty": ({"log_likelihood": EMPTY_ROW, "names": ["A", "B"]}, "of A is -inf everywhere"),
    "weight": ({"log_weight": np.full(4, np.nan)}, "log_weight is NaN"),
    "owner": ({"owner": [0, 2]}, "every object at least one"),
    "owner order": ({"owner": [1, 0]}, "owner has shape|not ascending"),
    "spacing": ({"spacing": {"y": 1.0}}, "spacing of 'y', which has no nodes"),
    "spacing value": ({"spacing": {"x": -1.0}}, "spacing of 'x' must be finite"),
    "spacing shape": ({"spacing": {"x": np.ones(3)}}, r"spacing of 'x' has shape \(3,\)"),
    "weight shape": ({"log_weight": np.zeros(3)}, r"shape \(3,\), which does not fit"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=list(BAD))
def test_errors(change, message):
    with pytest.raises(InputError, match=message):
        Grid(**{**GOOD, **change})
