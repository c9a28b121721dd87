from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

from skycensus import (
    Gaussian,
    Grid,
    HierarchicalModel,
    InputError,
    Joint,
    Mixture,
    PowerLaw,
    Prior,
    Samples,
    Target,
)
from skycensus.model import hyperparameter_names

RNG = np.random.default_rng(0)
EVENTS = Samples([{"x": RNG.normal(1.5, 0.3, 60 + 20 * i)} for i in range(5)],
                 [np.zeros(60 + 20 * i) for i in range(5)])  # fmt: skip
FOUND = RNG.uniform(0.5, 4.0, 900)
SELECTION = Samples([{"x": FOUND}], [np.full(900, -np.log(3.5))], num_drawn=[2000])
H = {"a": 1.3, "low": 0.4, "log_rate": 2.0}
PRIOR = {
    "a": dist.Normal(0.0, 3.0),
    "low": {"dist": "Uniform", "low": 0.1, "high": 0.5},
    "log_rate": {"dist": "Uniform", "low": -5, "high": 5},
}


def rates(h):
    line = Joint({"x": PowerLaw(-h["a"], h["low"], 4.0)})
    return Mixture({"line": line}, log_weights={"line": h["log_rate"]})


def shape(h):
    return Joint({"x": PowerLaw(-h["a"], h["low"], 4.0)})


def model(population=rates, selection=SELECTION, **options):
    prior = {k: v for k, v in PRIOR.items() if k != "log_rate" or population is rates}
    return HierarchicalModel(Prior(prior), population, EVENTS, selection=selection, **options)


# --- the likelihood ------------------------------------------------------------------------------


def parts(population):
    both = jax.jit(lambda parts: [s.log_marginal(population(H)) for s in parts])
    objects, detected = both((EVENTS, SELECTION))
    return objects.value, objects.variance, detected.value[0], detected.variance[0]


def test_poisson_likelihood_by_hand():
    value, variance, log_det, det_variance = parts(rates)
    got = model(log_exposure=0.7).log_likelihood(H, variance=True)
    expected = np.exp(log_det + 0.7)
    np.testing.assert_allclose(got.value, value.sum() - expected, rtol=1e-12)
    np.testing.assert_allclose(
        got.variance, variance.sum() + expected**2 * det_variance, rtol=1e-10
    )
    assert model().log_likelihood(H).variance == 0.0


def test_shape_likelihood_by_hand():
    value, variance, log_det, det_variance = parts(shape)
    got = model(shape, rate="shape").log_likelihood(H, variance=True)
    np.testing.assert_allclose(got.value, value.sum() - 5 * log_det, rtol=1e-12)
    np.testing.assert_allclose(got.variance, variance.sum() + 25 * det_variance, rtol=1e-10)
    # All are seen: only the objects are left.
    got = model(shape, None, rate="shape").log_likelihood(H)
    np.testing.assert_allclose(got.value, value.sum(), rtol=1e-12)


def test_shape_likelihood_is_the_poisson_one_at_its_best_rate():
    """Profiling the rate leaves N ln N - N and the shape likelihood."""
    shaped = model(shape, rate="shape").log_likelihood(H).value
    log_det = parts(shape)[2]
    best = model().log_likelihood({**H, "log_rate": jnp.log(5.0) - log_det}).value
    np.testing.assert_allclose(best - (5 * np.log(5) - 5), shaped, rtol=1e-12)


def test_parts_of_the_likelihood_can_be_asked_for():
    m = model(log_exposure=0.7)
    value, variance, log_det, det_variance = parts(rates)
    each, detected = m.log_marginals(H), m.detected(H)
    np.testing.assert_allclose(each.value, value, rtol=1e-12)
    np.testing.assert_allclose(each.variance, variance, rtol=1e-10)
    np.testing.assert_allclose(detected, (log_det + 0.7, det_variance), rtol=1e-10)
    with pytest.raises(InputError, match="no selection"):
        model(shape, None, rate="shape").detected(H)


def test_data_are_arguments():
    m, other = model(), HierarchicalModel(Prior(PRIOR), rates, EVENTS, selection=SELECTION)
    value = jax.jit(lambda h, data: m.log_likelihood(h, data).value)(H, other.data)
    np.testing.assert_allclose(value, m.log_likelihood(H).value, rtol=1e-13)


def test_forms_without_preparation():
    nodes = np.linspace(0.41, 3.9, 200)
    table = scipy.stats.norm.logpdf(nodes, np.array([[1.0], [2.0]]), 0.3)
    grid = Grid({"x": nodes}, table, np.log(nodes[1] - nodes[0]))
    m = HierarchicalModel(Prior(PRIOR), rates, grid, selection=SELECTION)
    got = m.log_likelihood(H, variance=True)
    want = grid.log_marginal(rates(H)).value.sum() - np.exp(parts(rates)[2])
    np.testing.assert_allclose(got.value, want, rtol=1e-12)
    np.testing.assert_allclose(
        m.log_marginals(H).value, grid.log_marginal(rates(H)).value, rtol=1e-12
    )
    each = m.log_marginals(H, jax.tree.map(lambda x: x, m.data))
    assert each.value.shape == (2,)


# --- the variance as a penalty -------------------------------------------------------------------


def test_penalty_is_smooth_and_starts_at_the_maximum():
    variance = float(model().log_likelihood(H, variance=True).variance)
    value = model().log_likelihood(H).value
    for limit, want in ((2 * variance, 0.0), (variance / 1.5, -12.5), (variance, 0.0)):
        got = model(max_variance=limit).penalised_log_likelihood(H)
        np.testing.assert_allclose(got - value, want, atol=1e-9)
    m = model(max_variance=variance)
    line = jax.vmap(jax.value_and_grad(lambda r: m.penalised_log_likelihood({**H, "log_rate": r})))
    rate = jnp.linspace(1.9, 2.1, 201)
    v, g = jax.jit(line)(rate)
    np.testing.assert_allclose(np.cumsum(0.5 * (g[1:] + g[:-1]) * 0.001), v[1:] - v[0], atol=1e-3)


def outside(h):
    """A population whose upper edge is a hyperparameter."""
    return Joint({"x": PowerLaw(h["a"], 0.01, h["high"])})


@pytest.mark.parametrize("rate", ["poisson", "shape"])
@pytest.mark.parametrize("limit", [None, 1.0])
def test_a_point_that_excludes_objects_or_detections(rate, limit):
    prior = Prior({"a": dist.Normal(0.0, 1.0), "high": dist.Uniform(0.0, 5.0)})
    near = Samples([{"x": np.linspace(0.1, 0.2, 9)}], [np.zeros(9)])
    far = Samples([{"x": np.linspace(2.0, 3.0, 9)}], [np.zeros(9)])
    h = {"a": jnp.array(0.5), "high": jnp.array(1.0)}
    for events, selection in ((far, near), (near, far), (far, far)):
        m = HierarchicalModel(
            prior, outside, events, selection=selection, rate=rate, max_variance=limit
        )
        value, slope = jax.jit(jax.value_and_grad(m.penalised_log_likelihood))(h)
        assert not np.isnan(value)
        assert value < np.inf
        if events is far or rate == "shape":
            assert value == -np.inf
        assert all(np.isfinite(g) for g in slope.values())


# --- errors ------------------------------------------------------------------------------------


def test_errors():
    with pytest.raises(InputError, match="rate='poisson' needs a selection"):
        model(selection=None)
    with pytest.raises(InputError, match="rate='possion' is not known; use 'poisson' or 'shape'"):
        model(rate="possion")
    with pytest.raises(InputError, match="'low' is missing"):
        HierarchicalModel(Prior({"a": 1.0}), shape, EVENTS, rate="shape")
    with pytest.raises(InputError, match="'beta' is for an unknown parameter"):
        HierarchicalModel(Prior({"a": 1.0, "low": 0.3, "beta": 1.0}), shape, EVENTS, rate="shape")
    with pytest.raises(InputError, match="needs parameter 'mass'"):
        HierarchicalModel(
            Prior({"a": 1.0}),
            lambda h: Joint({"mass": dist.Normal(h["a"], 1.0)}),
            EVENTS,
            rate="shape",
        )
    with pytest.raises(InputError, match="hyperparameter 'low' is missing"):
        model().log_likelihood({"a": 1.0, "log_rate": 0.0})


# --- which hyperparameters a population has -------------------------------------------------------


def test_hyperparameter_names_are_discovered():
    def population(h):
        first = Joint(
            {
                "m": PowerLaw(-h["alpha"], h["low"], h["high"]),
                "q": lambda t: PowerLaw(h["beta"], 0.1, t["m"]),
            }
        )
        return Mixture({"a": first, "b": first}, log_weights={"a": h["w_a"], "b": h["w_b"]})

    assert hyperparameter_names(population)[0] == ("alpha", "low", "high", "w_a", "w_b", "beta")


def test_optional_hyperparameters():
    def population(h):
        scale = h["scale"] if "scale" in h else 1.0  # noqa: SIM401 (both ways of asking)
        return Joint({"x": dist.Normal(h["loc"] + h.get("shift", 0.5), scale)})

    assert hyperparameter_names(population)[0] == ("loc",)
    plain = HierarchicalModel(Prior({"loc": 1.0}), population, EVENTS, rate="shape")
    given = HierarchicalModel(
        Prior({"loc": 1.0, "scale": 1.0, "shift": 0.5}), population, EVENTS, rate="shape"
    )
    other = HierarchicalModel(Prior({"loc": 1.0, "scale": 2.0}), population, EVENTS, rate="shape")
    values = [m.log_likelihood(m.prior.complete({})).value for m in (plain, given, other)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-13)
    assert abs(values[2] - values[0]) > 0.1


def test_names_that_only_ties_use_are_not_needed_for_the_likelihood():
    prior = Prior({"a": "common", "low": 0.4, "common": dist.Normal(0.0, 1.0)})
    m = HierarchicalModel(prior, shape, EVENTS, rate="shape")
    assert m.prior.names == ("common",)
    direct = m.log_likelihood({"a": 1.3, "low": 0.4}).value
    tied = m.log_likelihood(m.prior.complete({"common": 1.3})).value
    np.testing.assert_allclose(direct, tied, rtol=1e-13)


# --- targets -----------------------------------------------------------------------------------

SUPPORTS = {
    "real": dist.Normal(0.4, 1.3),
    "interval": dist.Uniform(-3.0, 2.0),
    "half": dist.HalfNormal(2.0),
    "positive": dist.LogNormal(0.3, 0.5),
    "unit": dist.Beta(2.0, 3.0),
    "from below": dist.TruncatedNormal(1.0, 2.0, low=0.5),
    "from above": dist.TruncatedNormal(1.0, 2.0, high=1.5),
    "log-uniform": dist.LogUniform(0.1, 20.0),
}


@pytest.mark.parametrize("d", SUPPORTS.values(), ids=list(SUPPORTS))
def test_log_prior_is_normalised_in_unconstrained_space(d):
    target = Target(Prior({"a": d}), lambda free, data: jnp.zeros(()))
    x = jnp.linspace(-45.0, 45.0, 20_001)
    log_prior = jax.jit(jax.vmap(lambda x: target.log_prior(x[None])))(x)
    np.testing.assert_allclose(jnp.trapezoid(jnp.exp(log_prior), x), 1.0, rtol=1e-6)
    values = target.constrain(jnp.array([0.37]))
    np.testing.assert_allclose(target.unconstrain(values), [0.37], rtol=1e-9)
    draws = target.sample_prior(jax.random.key(0), 500)
    assert draws.shape == (500, 1)
    assert bool(jnp.all(jnp.isfinite(draws)))


def test_target_of_a_model():
    m = HierarchicalModel(Prior({**PRIOR, "low": 0.4}), rates, EVENTS, selection=SELECTION)
    target = m.target()
    assert target.names == ("a", "log_rate")
    assert target.dim == 2
    x = target.unconstrain({"a": 1.3, "log_rate": 2.0})
    back = target.constrain(x)
    np.testing.assert_allclose([back["a"], back["log_rate"]], [1.3, 2.0], rtol=1e-12)
    np.testing.assert_allclose(target.log_likelihood(x), m.log_likelihood(H).value, rtol=1e-12)
    total = target.log_prior(x) + target.log_likelihood(x)
    density = jax.jit(jax.value_and_grad(target.log_density))
    np.testing.assert_allclose(density(x, target.data)[0], total, rtol=1e-12)
    assert bool(jnp.all(jnp.isfinite(density(x, target.data)[1])))
    draws = target.sample_prior(jax.random.key(1), 4000)
    free = jax.vmap(target.constrain)(draws)
    assert scipy.stats.kstest(free["log_rate"], scipy.stats.uniform(-5, 10).cdf).pvalue > 1e-3
    assert target.smooth is None


def test_moving_edges_have_a_smooth_target():
    prior = {**PRIOR, "low": {"dist": "Uniform", "low": 0.5, "high": 1.5}}
    target = HierarchicalModel(Prior(prior), rates, EVENTS, selection=SELECTION).target()
    smooth = target.smooth()
    assert smooth.names == target.names
    x = target.unconstrain({**H, "low": 0.8})
    np.testing.assert_allclose(smooth.log_prior(x), target.log_prior(x), rtol=1e-12)
    np.testing.assert_allclose(smooth.log_likelihood(x), target.log_likelihood(x), atol=0.5)


def test_models_that_differ_in_data_alone():
    def plain(x, *, population, prior=PRIOR, **options):
        objects = Gaussian(np.ones((len(x), 1)), x, 0.1, parameters=["x"])
        prior = Prior({"a": prior["a"]})
        return HierarchicalModel(prior, population, objects, rate="shape", **options)

    def line(h):
        return Joint({"x": dist.Normal(h["a"], 1.0)})

    one = plain(np.arange(4.0), population=line)
    assert one.same_but_for_data(plain(np.ones(4), population=line))
    for other in (
        plain(np.ones(5), population=line),
        plain(np.ones(4), population=lambda h: line(h)),
        plain(np.ones(4), population=line, log_exposure=1.0),
        plain(np.ones(4), population=line, prior={"a": dist.Normal(0.0, 2.0)}),
        plain(np.ones(4), population=line, prior={"a": dist.Laplace(0.0, 3.0)}),
        plain(np.ones(4), population=line, prior={"a": 1.0}),
    ):
        assert not one.same_but_for_data(other)


def test_a_part_that_stays_is_not_prepared_again():
    before = model()
    fewer = Samples([{"x": np.full(9, 1.5)}], [np.zeros(9)])
    after = before.with_parts(fewer, before.selection)
    assert after.data[1] is before.data[1] and after.data[0] is not before.data[0]
    whole = HierarchicalModel(Prior(PRIOR), rates, fewer, selection=SELECTION)
    np.testing.assert_allclose(after.log_likelihood(H).value, whole.log_likelihood(H).value)


# --- any NumPyro model ---------------------------------------------------------------------------

Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)
    numpyro.deterministic("largest", jnp.max(theta))


def test_numpyro_model():
    target = Target.from_numpyro(schools, SIGMA, y=Y)
    assert set(target.names) == {"mu", "tau", "theta"}
    assert target.dim == 10
    point = {"mu": jnp.array(4.0), "tau": jnp.array(3.0), "theta": jnp.linspace(-5.0, 12.0, 8)}
    x = target.unconstrain(point)
    assert x.shape == (10,)
    back = target.constrain(x)
    for name, value in point.items():
        np.testing.assert_allclose(back[name], value, rtol=1e-12)
    assert back["largest"] == 12.0
    np.testing.assert_allclose(target.unconstrain(back), x, rtol=1e-12)
    want = (
        scipy.stats.norm.logpdf(4.0, 0, 5)
        + scipy.stats.halfcauchy.logpdf(3.0, scale=5.0)
        + np.log(3.0)  # the Jacobian of log tau
        + scipy.stats.norm.logpdf(np.asarray(point["theta"]), 4.0, 3.0).sum()
        + scipy.stats.norm.logpdf(Y, np.asarray(point["theta"]), SIGMA).sum()
    )
    value, slope = jax.jit(jax.value_and_grad(target.log_density))(x, target.data)
    np.testing.assert_allclose(value, want, rtol=1e-12)
    assert bool(jnp.all(jnp.isfinite(slope)))


def test_numpyro_prior_draws_follow_the_hierarchy():
    target = Target.from_numpyro(schools, SIGMA, y=Y)
    draws = target.sample_prior(jax.random.key(0), 3000)
    assert draws.shape == (3000, 10)
    free = jax.vmap(target.constrain)(draws)
    assert free["theta"].shape == (3000, 8)
    z = (free["theta"] - free["mu"][:, None]) / free["tau"][:, None]
    assert scipy.stats.kstest(np.asarray(z[:, 3]), "norm").pvalue > 1e-3
    assert scipy.stats.kstest(np.asarray(free["mu"]), scipy.stats.norm(0, 5).cdf).pvalue > 1e-3


# --- joint priors ---------------------------------------------------------------------------------


def test_a_target_with_a_joint_prior_has_scalars_and_one_coordinate_less():
    concentration = np.array([1.5, 2.0, 4.0])
    prior = Prior(
        {
            "w_a, w_b, w_c": dist.Dirichlet(jnp.asarray(concentration)),
            "x": dist.Normal(0.0, 2.0),
        }
    )
    target = Target(prior, lambda h, data: h["x"] * h["w_b"])
    assert target.dim == 3
    assert target.names == ("w_a", "w_b", "w_c", "x")
    points = target.sample_prior(jax.random.key(0), 5)
    free = jax.vmap(target.constrain)(points)
    np.testing.assert_allclose(free["w_a"] + free["w_b"] + free["w_c"], 1.0, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(target.unconstrain)(free), points, atol=1e-9)
    np.testing.assert_allclose(target.log_likelihood(points[0]), free["x"][0] * free["w_b"][0])
    # Normalised in the two coordinates that the simplex has.
    axis = jnp.linspace(-9.0, 9.0, 181)
    plane = jnp.stack([*jnp.meshgrid(axis, axis), jnp.zeros((181, 181))], -1).reshape(-1, 3)
    log_prior = jax.jit(jax.vmap(target.log_prior))(plane)
    total = jnp.exp(log_prior - dist.Normal(0.0, 2.0).log_prob(0.0)).sum() * 0.1**2
    np.testing.assert_allclose(total, 1.0, atol=1e-4)


def test_weights_of_a_mixture_with_a_joint_prior():
    def population(h):
        parts = {"near": dist.Normal(1.0, 0.3), "far": dist.Normal(3.0, 0.3)}
        return Mixture(
            {name: Joint({"x": d}) for name, d in parts.items()},
            log_weights={"near": jnp.log(h["w_near"]), "far": jnp.log(h["w_far"])},
        )

    prior = Prior({"w_near, w_far": {"dist": "Dirichlet", "concentration": [1, 1]}})
    m = HierarchicalModel(prior, population, EVENTS, rate="shape")
    assert m.prior.names == ("w_near", "w_far")
    target = m.target()
    h = {"w_near": jnp.array(0.3), "w_far": jnp.array(0.7)}
    at = target.unconstrain(h)
    np.testing.assert_allclose(target.log_likelihood(at), m.log_likelihood(h).value, rtol=1e-9)
