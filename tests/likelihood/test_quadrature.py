from __future__ import annotations

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats

from skycensus import HierarchicalModel, InputError, Joint, Mixture, PowerLaw, Prior
from skycensus.likelihood import Quadrature
from skycensus.likelihood import quadrature as room
from skycensus.likelihood.leaves import memberships


def gaussian(theta, data):
    """A measurement of x itself."""
    return dist.Normal(theta["x"], data["error"]).log_prob(data["at"])


def parallax(theta, data):
    """A parallax [mas] of a star at the distance x [kpc]."""
    return dist.Normal(1 / theta["x"], data["error"]).log_prob(data["at"])


def objects(formula, at, error, **more):
    return Quadrature(formula, {"at": np.asarray(at), "error": np.asarray(error)}, **more)


log_marginals = jax.jit(lambda form, density: form.log_marginal(density()).value, static_argnums=1)


@partial(jax.jit, static_argnums=1)
def judged(form, density):
    """The log marginals and their stated error: one program, for compiling takes the time here."""
    return form.log_marginal(density()).value, form.error(density())


def panels(log_density, edges):
    """Log of an integral over theta by 20-point Gauss-Legendre panels, for every row."""
    t, w = np.polynomial.legendre.leggauss(20)
    edges = np.unique(edges)
    half = 0.5 * np.diff(edges)[:, None]
    x = (0.5 * (edges[1:] + edges[:-1])[:, None] + half * t).ravel()
    values = np.asarray(log_density(x), float) + np.log((half * w).ravel())
    return scipy.special.logsumexp(values, axis=-1)


# ---- the star cluster --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(shared, require_path):
    from astropy.table import QTable

    table = QTable.read(require_path(shared / "reference/hierarchical/cluster_parallax.ecsv"))
    return table["parallax"].to_value("mas"), table["parallax_error"].to_value("mas")


def cluster_population(h):
    return Joint(x=dist.TruncatedNormal(h["mu_r"], jnp.exp(h["ln_std_r"]), low=0.0))


CLUSTER = {"mu_r": 0.5, "ln_std_r": np.log(0.0087)}


def test_star_cluster_is_exact(cluster, shared):
    path = shared / "reference/hierarchical/exact_cluster.json"
    want = float(json.loads(path.read_text())["meta"].split("=")[-1])

    @jax.jit
    def both(h, form):
        return form.log_marginal(cluster_population(h)).value.sum(), form.error(
            cluster_population(h)
        )

    six = objects(parallax, *cluster, num_nodes=6)
    value, error = both(CLUSTER, six)
    assert abs(value - want) < 1e-7
    assert abs(value - want) < 2 * error + 1e-10
    value, error = both(CLUSTER, six.finer())
    assert abs(value - want) < 1e-9
    assert error < 1e-10


def test_gradient_of_the_star_cluster(cluster):
    form = objects(parallax, *cluster)

    def total(h, form):
        return form.log_marginal(cluster_population(h)).value.sum()

    at, error = (jnp.asarray(x) for x in cluster)
    x, w = np.polynomial.legendre.leggauss(400)
    nodes = jnp.asarray(0.5 + 0.1 * x)

    def exact(h):
        density = cluster_population(h).log_prob({"x": nodes})
        values = parallax({"x": nodes}, {"at": at[:, None], "error": error[:, None]}) + density
        return jax.nn.logsumexp(values + jnp.log(0.1 * w), axis=1).sum()

    value_and_slope = jax.jit(jax.value_and_grad(total))
    value, slope = value_and_slope(CLUSTER, form)
    want, exact_slope = jax.jit(jax.value_and_grad(exact))(CLUSTER)
    np.testing.assert_allclose(value, want, atol=1e-9)
    step = 1e-5
    for name in CLUSTER:
        np.testing.assert_allclose(slope[name], exact_slope[name], rtol=1e-7)
        up, down = ({**CLUSTER, name: CLUSTER[name] + s} for s in (step, -step))
        difference = (value_and_slope(up, form)[0] - value_and_slope(down, form)[0]) / (2 * step)
        np.testing.assert_allclose(slope[name], difference, rtol=2e-4)


def test_a_hierarchical_model_of_the_cluster(cluster):
    prior = Prior({"mu_r": dist.Uniform(0.1, 2.0), "ln_std_r": dist.Uniform(-8.0, 0.0)})
    form = objects(parallax, *cluster)
    model = HierarchicalModel(prior, cluster_population, form, rate="shape")
    log_likelihood = jax.jit(lambda h: model.log_likelihood(h).value)
    assert abs(log_likelihood(CLUSTER) - 399.4537376317632) < 1e-9


# ---- exact answers -----------------------------------------------------------------------------

AT, ERROR, X = np.array([-1.0, 0.4, 30.0]), np.array([0.5, 3.0, 0.01]), np.array([0.2, 1.0, -2.0])


def test_normal_population_given_columns_and_its_gradient():
    form = objects(gaussian, AT, ERROR, given={"t": X}, names=["a", "b", "c"])
    assert form.names == ("a", "b", "c")

    def line(h):
        return Joint(x=lambda t: dist.Normal(h["m"] * t["t"] + h["b"], h["s"]))

    def exact(h):
        spread = jnp.sqrt(h["s"] ** 2 + ERROR**2)
        return dist.Normal(h["m"] * X + h["b"], spread).log_prob(AT)

    h = {"m": 2.0, "b": 0.3, "s": 1.2}

    def total(h):
        marginal = form.log_marginal(line(h))
        return marginal.value.sum(), marginal

    slope, (value, variance) = jax.jit(jax.grad(total, has_aux=True))(h)
    want, wanted = jax.jit(lambda h: (jax.grad(lambda h: exact(h).sum())(h), exact(h)))(h)
    np.testing.assert_allclose(value, wanted, rtol=1e-11)
    np.testing.assert_array_equal(variance, 0.0)
    for name in h:
        np.testing.assert_allclose(slope[name], want[name], rtol=1e-9)


def geometric(low, high, num=300):
    return np.geomspace(low, high, num)


# Parallaxes of 1 %, negative ones, and ones that say nothing.
PLX = np.array([8.0, 1.0, 0.22, 0.205, -0.5, -3.0, 0.3, 3.0])
PLX_ERROR = np.array([0.08, 0.01, 0.0022, 0.002, 0.3, 0.5, 0.2, 10.0])
# Gaussian measurements near the edge at zero, beyond it, far away and flat.
NEAR = np.array([0.05, 0.05, 0.05, -1.0, 3.0, 20.0])
NEAR_ERROR = np.array([0.02, 0.05, 1.0, 0.5, 0.1, 10.0])

fine = np.concatenate([geometric(1e-12, 1e-2, 100), np.linspace(1e-2, 40.0, 8000)])
both_sides = np.concatenate([-geometric(1e-2, 1e9)[::-1], np.linspace(-1e-2, 25.0, 4000), [1e9]])
both_sides = np.concatenate([both_sides, geometric(25.0, 1e9)])

POPULATIONS = {
    "uniform": (lambda: dist.Uniform(0.1, 5.0), parallax, np.linspace(0.1, 5.0, 2000)),
    "power law": (lambda: PowerLaw(-2.3, 0.1, 5.0), parallax, np.linspace(0.1, 5.0, 2000)),
    "wide truncated": (lambda: dist.TruncatedNormal(2.0, 2.0, low=0.0), parallax, fine),
    "lognormal": (lambda: dist.LogNormal(0.3, 0.6), parallax, fine),
    "gamma": (lambda: dist.Gamma(3.0, 2.0), parallax, fine),
    "edge": (lambda: dist.TruncatedNormal(-1.0, 1.0, low=0.0), gaussian, fine),
    "beta": (
        lambda: dist.Beta(2.0, 1.5),
        gaussian,
        np.concatenate([geometric(1e-12, 0.05), 1 - geometric(1e-12, 0.9)]),
    ),
    "student": (lambda: dist.StudentT(3.0, 0.0, 1.0), gaussian, both_sides),
}


# Of those of one kind all but one are in the slow tier: each is a program to compile.
SLOW_POPULATIONS = ("uniform", "power law", "lognormal", "gamma")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in SLOW_POPULATIONS else ()) for n in POPULATIONS],
)
def test_populations_against_panels(name):
    make, formula, edges = POPULATIONS[name]
    at, error = (PLX, PLX_ERROR) if formula is parallax else (NEAR, NEAR_ERROR)
    data = {"at": at[:, None], "error": error[:, None]}
    exact = panels(lambda x: formula({"x": x}, data) + make().log_prob(x), edges)

    def density():
        return Joint(x=make())

    @jax.jit
    def look(coarse, fine):
        return *judged(coarse, density), fine.log_marginal(density()).value

    coarse, stated, fine = look(*(objects(formula, at, error, num_nodes=n) for n in (8, 64)))
    off = np.abs(coarse - exact).sum()
    assert off < 0.02
    # The stated error is that of the coarser rule, neither hidden nor inflated.
    assert off / 2 - 1e-8 < stated < 4 * off + 1e-8
    np.testing.assert_allclose(fine, exact, atol=1e-4)


def test_a_moving_edge_has_its_gradient():
    # Uniform(0, b): d ln m/db has the boundary term, which fixed points in theta would miss.
    form = objects(gaussian, [0.9, 0.3], [0.2, 0.4], num_nodes=48)

    def exact(b):
        normal = dist.Normal(jnp.array([0.9, 0.3]), jnp.array([0.2, 0.4]))
        return jnp.sum(jnp.log(normal.cdf(b) - normal.cdf(0.0)) - jnp.log(b))

    def total(b):
        density = Joint(x=dist.Uniform(0.0, b))
        return form.log_marginal(density).value.sum(), form.error(density)

    (value, error), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(1.0)
    wanted, exact_slope = jax.jit(jax.value_and_grad(exact))(1.0)
    assert abs(value - wanted) < 4 * error
    np.testing.assert_allclose(slope, exact_slope, atol=5e-5)


def mixture():
    parts = {
        "tight": Joint(x=dist.Normal(0.0, 0.01)),
        "outliers": Mixture(
            {"near": Joint(x=dist.Normal(1.0, 5.0)), "far": Joint(x=dist.Normal(50.0, 2.0))},
            log_weights={"near": jnp.log(0.7), "far": jnp.log(0.3)},
        ),
    }
    return Mixture(parts, log_weights={"tight": jnp.log(0.8), "outliers": jnp.log(0.2)})


def test_mixtures_leaf_by_leaf():
    at, error = np.array([0.02, 0.5, 45.0]), np.array([0.01, 0.3, 1.0])
    form = objects(gaussian, at, error)
    terms = np.stack(
        [
            np.log(w) + scipy.stats.norm.logpdf(at, m, np.hypot(s, error))
            for w, m, s in [(0.8, 0, 0.01), (0.14, 1, 5), (0.06, 50, 2)]
        ]
    )
    exact = scipy.special.logsumexp(terms, axis=0)
    np.testing.assert_allclose(log_marginals(form, mixture), exact, rtol=1e-10)
    shares = memberships(form, mixture())
    assert list(shares) == ["tight", "outliers/near", "outliers/far"]
    np.testing.assert_allclose(np.stack(list(shares.values())), np.exp(terms - exact), atol=1e-10)


# ---- two parameters ----------------------------------------------------------------------------


def product(theta, data):
    """A measurement of a product, and one of its first part."""
    return dist.Normal(theta["a"] * theta["b"], 0.3).log_prob(data["ab"]) + dist.Normal(
        theta["a"], 0.4
    ).log_prob(data["a"])


COVARIANCE = jnp.array([[0.3, 0.1], [0.1, 0.2]])
PAIRS = {
    "conditional": lambda: Joint(
        a=dist.Normal(2.0, 0.5), b=lambda t: dist.LogNormal(0.3 * t["a"], 0.3)
    ),
    "pair": lambda: Joint({("a", "b"): dist.MultivariateNormal(jnp.array([2.0, 1.0]), COVARIANCE)}),
}
MEASURED = {"ab": np.array([3.0, 6.5]), "a": np.array([1.8, 2.4])}


def pair_table(make):
    a, b = np.linspace(-2.0, 6.0, 1201), np.linspace(-4.0, 9.0, 1501)
    theta = dict(zip("ab", np.meshgrid(a, b, indexing="ij"), strict=True))
    log_prob = make().log_prob({n: jnp.asarray(x) for n, x in theta.items()})
    rows = [product(theta, {n: x[i] for n, x in MEASURED.items()}) + log_prob for i in range(2)]
    return a, b, np.asarray(rows) + np.log((a[1] - a[0]) * (b[1] - b[0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_two_parameters_against_a_table(name):
    _, _, table = pair_table(PAIRS[name])
    exact = scipy.special.logsumexp(table, axis=(1, 2))
    form = Quadrature(product, MEASURED, num_nodes=16)
    value, stated = judged(form, PAIRS[name])
    np.testing.assert_allclose(value, exact, atol=1e-6)
    assert stated < 1e-5


# ---- draws -------------------------------------------------------------------------------------


def many_draws(form, density, num=4000):
    keys = jax.random.split(jax.random.key(5), num)
    return jax.jit(jax.vmap(lambda k: form.draw(density(), k)))(keys)


def test_draws_follow_the_exact_posteriors():
    form = objects(parallax, PLX, PLX_ERROR)
    drawn = many_draws(form, lambda: Joint(x=dist.Uniform(0.1, 5.0)))["x"]
    assert drawn.shape == (4000, len(PLX))
    x = np.linspace(0.1, 5.0, 200_001)
    for i in range(len(PLX)):
        density = np.exp(parallax({"x": x}, {"at": PLX[i], "error": PLX_ERROR[i]}))
        cumulative = np.cumsum(density) / density.sum()
        ranks = np.interp(drawn[:, i], x, cumulative)
        assert scipy.stats.kstest(ranks, "uniform").pvalue > 1e-3, i


@pytest.mark.slow
def test_draws_of_a_mixture_and_their_first_moments():
    form = objects(gaussian, [0.02, 0.5], [0.01, 0.3])
    drawn = np.asarray(many_draws(form, mixture)["x"])
    share = np.asarray(memberships(form, mixture())["tight"])
    # The second star: a tight member at zero, or one of the wide leaf at 0.5.
    tight = np.mean(np.abs(drawn[:, 1]) < 0.05)
    wide = (1 - share[1]) * np.diff(scipy.stats.norm.cdf([-0.05, 0.05], 0.5018, 0.2995))[0]
    assert abs(tight - share[1] - wide) < 4 * np.sqrt(0.25 / 4000)
    np.testing.assert_allclose(drawn[:, 0].mean(), 0.01, atol=4 * 0.0072 / np.sqrt(4000) + 1e-4)


@pytest.mark.slow
def test_draws_of_two_parameters():
    a, b, table = pair_table(PAIRS["conditional"])
    drawn = many_draws(Quadrature(product, MEASURED), PAIRS["conditional"], 2000)
    for i in range(2):
        share = np.exp(table[i] - scipy.special.logsumexp(table[i]))
        for name, axis, other in (("a", a, 1), ("b", b, 0)):
            part = share.sum(other)
            # Half of a point's own share lies below it.
            ranks = np.interp(drawn[name][:, i], axis, np.cumsum(part) - 0.5 * part)
            assert scipy.stats.kstest(ranks, "uniform").pvalue > 1e-3
        mean = np.einsum("ab,a,b", share, a, b)
        got = np.asarray(drawn["a"][:, i] * drawn["b"][:, i])
        assert abs(got.mean() - mean) < 5 * got.std() / np.sqrt(2000)


# ---- the machine -------------------------------------------------------------------------------


@pytest.mark.slow
def test_blocks_vmap_and_32_bit_change_nothing(monkeypatch):
    rng = np.random.default_rng(3)
    at, error = 1 / rng.normal(0.5, 0.02, 1000), rng.uniform(0.01, 0.1, 1000)
    form = objects(parallax, at, error)

    def total(loc, form):
        return form.log_marginal(Joint(x=dist.TruncatedNormal(loc, 0.02, low=0.0))).value

    loc = jnp.array([0.49, 0.52])
    whole = jax.jit(jax.vmap(total, (0, None)))(loc, form)
    slope = jax.jit(jax.grad(lambda m, f: total(m, f).sum()))(0.49, form)
    monkeypatch.setattr(room, "_BLOCK_SIZE", {jax.default_backend(): 32 * 300})
    np.testing.assert_allclose(jax.jit(total)(loc[1], form), whole[1], rtol=1e-12)
    blocked = jax.jit(jax.grad(lambda m, f: total(m, f).sum()))(0.49, form)
    np.testing.assert_allclose(blocked, slope, rtol=1e-10)
    with jax.enable_x64(False):
        short = jax.jit(total)(np.float32(0.49), objects(parallax, at, error))
    assert short.dtype == jnp.float32
    np.testing.assert_allclose(short, whole[0], atol=2e-5)


def test_finer_goes_up_to_the_most_nodes():
    form, counts = objects(gaussian, [0.0], [1.0], num_nodes=10, tolerance=1e-3), []
    while form is not None:
        counts.append(form.num_nodes)
        assert form.tolerance == 1e-3
        form = form.finer()
    assert counts == [10, 12, 16, 24, 32, 48, 64]


def test_impossible_objects_have_no_error():
    def edged(theta, data):
        return jnp.where(jnp.abs(theta["x"] - data["at"]) < 1.0, 0.0, -jnp.inf)

    form = Quadrature(edged, {"at": np.array([0.0, 100.0])})
    density = Joint(x=dist.Uniform(-1.0, 1.0))
    value = form.log_marginal(density).value
    np.testing.assert_allclose(value[0], 0.0, atol=0.1)
    assert value[1] == -jnp.inf
    assert bool(jnp.isfinite(form.error(density)))


# ---- bad input ---------------------------------------------------------------------------------

GOOD = {"at": np.array([1.0, 2.0]), "error": np.array([0.1, 0.2])}


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        ({}, {}, "Quadrature has no data"),
        ({"at": np.zeros(0)}, {}, "at least one object"),
        ({**GOOD, "error": 0.1}, {}, "'error' is a single number; give one row per object"),
        ({**GOOD, "error": np.ones(3)}, {}, "'error' has 3 rows but there are 2 objects"),
        ({**GOOD, "at": ["a", "b"]}, {}, "'at' is not an array of numbers"),
        ({**GOOD, "at": np.array([1.0, np.nan])}, {}, r"'at' of object 1 \(row 1\) is not finite"),
        ({**GOOD, "error": np.array([-0.1, 0.2])}, {}, "object 0 is NaN .*zero or negative"),
        ({**GOOD, "error": np.array([0.1, 0.0])}, {"names": ["u", "v"]}, "of v is NaN"),
        (GOOD, {"names": ["u"]}, "2 objects but 1 names"),
        (GOOD, {"given": {"t": np.ones((2, 2))}}, "given 't' has shape"),
        (GOOD, {"num_nodes": 0}, "num_nodes=0"),
        (GOOD, {"num_nodes": 65}, "num_nodes=65"),
        (GOOD, {"tolerance": 0.0}, "tolerance=0.0 is not positive"),
    ],
)
def test_bad_data(data, more, message):
    with pytest.raises(InputError, match=message):
        Quadrature(gaussian, data, **more)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        (lambda t, d: 0.0 * len(t), "object 0 returned a Python float"),
        (lambda t, d: jnp.ones(3) * t["x"], r"has shape \(3,\)"),
        (lambda t, d: (t["x"] > 0) & True, "returned an array of bool"),
        (lambda t, d: jnp.asarray(float(t["x"])), "cannot be traced"),
        (lambda t, d: t["x"] * d["eror"], "asks for 'eror', but the data are"),
        (lambda t, d: jnp.sum(d["at"]), "looks up no parameter"),
        (lambda t, d: t["x"] * jnp.nan, "object 0 is NaN wherever"),
    ],
)
def test_bad_formulas(formula, message):
    with pytest.raises(InputError, match=message):
        Quadrature(formula, GOOD)


class Strange:
    """A density that is no NumPyro distribution."""

    names = ("x",)

    def log_prob(self, theta):
        return -(theta["x"] ** 2)


@pytest.mark.parametrize(
    ("density", "message"),
    [
        (Joint(y=dist.Normal(0.0, 1.0)), r"needs theta\['x'\]"),
        (Joint({n: dist.Normal(0.0, 1.0) for n in "xyz"}), "one or two parameters"),
        (Strange(), "the population is a Strange"),
        (Joint(x=Strange()), "factor of 'x' is a Strange"),
        (Joint(x=dist.Poisson(3.0)), "factor of 'x' is a Poisson"),
        (Joint(x=dist.Normal(jnp.zeros(2), 1.0)), r"batch shape \(2,\)"),
        (Joint({("x", "y"): dist.Dirichlet(jnp.ones(2))}), "is a Dirichlet"),
        (Joint(x=dist.Normal(0.0, 1.0), t=dist.Normal(0.0, 1.0)), "'t' is given"),
    ],
)
def test_populations_that_cannot_be_integrated(density, message):
    form = Quadrature(gaussian, GOOD, given={"t": np.ones(2)})
    with pytest.raises(InputError, match=message):
        form.log_marginal(density)
