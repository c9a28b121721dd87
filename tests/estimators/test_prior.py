"""A learned density as the prior: every sampler gives what the prior itself gives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from skycensus import (
    NUTS,
    Dynesty,
    FlowMCMC,
    ImportanceSampler,
    InputError,
    Nested,
    Prior,
    QuadratureSampler,
    Target,
)
from skycensus.estimators import fit_density
from skycensus.estimators.coordinates import Coordinates
from skycensus.estimators.gaussian import GaussianMixture
from skycensus.estimators.learned import LearnedDensity

LOC, COVARIANCE = np.array([0.5, -1.0]), np.array([[1.0, 0.6], [0.6, 2.0]])
DATA, NOISE = np.array([1.2, 0.1]), np.array([0.7, 0.9])


def exact_density() -> LearnedDensity:
    """The normal prior itself, in the clothes of a learned one."""
    z = Coordinates([-np.inf] * 2, [np.inf] * 2)
    root = jnp.asarray(np.linalg.cholesky(COVARIANCE))
    return LearnedDensity(
        "ab", z, GaussianMixture(jnp.zeros(1), jnp.asarray(LOC)[None], root[None])
    )


def log_likelihood(h, data):
    return dist.Normal(h["a"], NOISE[0]).log_prob(data[0]) + dist.Normal(h["b"], NOISE[1]).log_prob(
        data[1]
    )


def answer() -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, sd and log evidence of the conjugate problem."""
    noise = np.diag(NOISE**2)
    covariance = np.linalg.inv(np.linalg.inv(COVARIANCE) + np.linalg.inv(noise))
    mean = covariance @ (np.linalg.solve(COVARIANCE, LOC) + np.linalg.solve(noise, DATA))
    log_z = stats.multivariate_normal(LOC, COVARIANCE + noise).logpdf(DATA)
    return mean, np.sqrt(np.diag(covariance)), float(log_z)


SAMPLERS = {
    "importance": ImportanceSampler(num_adapt=500),
    "quadrature": QuadratureSampler(),
    "nuts": NUTS(num_warmup=200, num_samples=500, num_chains=2, num_start=64),
    "nested": Nested(num_live=300),
    "dynesty": Dynesty(num_live=150),
    "flow_mcmc": FlowMCMC(
        num_chains=10, num_training_loops=2, num_production_loops=4, num_start=256, num_epochs=3
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "importance" else [pytest.mark.slow]) for n in SAMPLERS],
)
def test_evidence_and_posterior_are_those_of_the_same_analytic_prior(name):
    target = Target(Prior({"a, b": exact_density()}), log_likelihood, data=jnp.asarray(DATA))
    result = SAMPLERS[name].run(target, jax.random.key(1))
    mean, sd, log_z = answer()
    rows = result.summary()
    for i, parameter in enumerate("ab"):
        row = rows[parameter]
        error = sd[i] / np.sqrt(min(row["ess_bulk"], result.effective_sample_size()))
        assert abs(row["mean"] - mean[i]) < 4 * error
        assert abs(row["sd"] - sd[i]) < 5 * error
    if result.log_evidence is not None:
        tolerance = max(4 * result.log_evidence_error, QuadratureSampler.tolerance)
        assert abs(result.log_evidence - log_z) < tolerance


def test_names_may_stand_in_another_order():
    prior = Prior({"b, a": exact_density()})
    free = {"a": jnp.asarray(0.3), "b": jnp.asarray(-2.0)}
    expected = stats.multivariate_normal(LOC, COVARIANCE).logpdf([0.3, -2.0])
    np.testing.assert_allclose(prior.log_prob(free), expected)
    target = Target(prior, log_likelihood, data=jnp.asarray(DATA))
    x = target.unconstrain(free)
    np.testing.assert_allclose([target.constrain(x)[n] for n in "ab"], [0.3, -2.0])
    drawn = prior.sample(jax.random.key(0), (20_000,))
    np.testing.assert_allclose(drawn["a"].mean(), 0.5, atol=0.03)
    np.testing.assert_allclose(np.cov(drawn["a"], drawn["b"])[0, 1], 0.6, atol=0.05)
    cube = prior.from_unit_cube(jax.random.uniform(jax.random.key(1), (20_000, 2)))
    np.testing.assert_allclose(np.cov(cube["a"], cube["b"])[0, 1], 0.6, atol=0.05)


def test_the_joint_density_of_other_priors_too():
    prior = Prior({"a, b": exact_density(), "c": dist.Uniform(0.0, 4.0), "d": "c", "e": 2.0})
    free = {"a": 0.3, "b": -2.0, "c": 1.0}
    expected = stats.multivariate_normal(LOC, COVARIANCE).logpdf([0.3, -2.0]) - np.log(4.0)
    np.testing.assert_allclose(
        prior.log_prob({n: jnp.asarray(x) for n, x in free.items()}), expected
    )
    assert prior.complete(free)["d"] == 1.0
    assert prior.bounds()["c"] == (0.0, 4.0)


# ---- fitted to draws -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cut() -> LearnedDensity:
    """Draws of a normal cut at zero, with one bound declared; and an unbounded one beside it."""
    rng = np.random.default_rng(2)
    draws = {"a": stats.truncnorm(-0.5, np.inf, 0.5, 1.0).rvs(4000, random_state=rng)}
    draws["b"] = 0.5 * draws["a"] + rng.normal(0.0, 1.0, 4000)
    return fit_density(
        jax.random.key(0), draws, kind="mixture", support={"a": (0.0, np.inf)}, report=False
    )


def test_bounds_are_the_declared_ones(cut):
    prior = Prior({"a, b": cut})
    assert prior.bounds() == {"a": (0.0, np.inf), "b": (-np.inf, np.inf)}
    outside = {"a": jnp.asarray(-0.1), "b": jnp.asarray(0.0)}
    assert prior.log_prob(outside) == -np.inf
    slope = jax.grad(lambda a: prior.log_prob({**outside, "a": a}))(outside["a"])
    assert np.isfinite(slope)


@pytest.mark.slow
def test_a_fitted_prior_gives_the_evidence_of_the_prior_it_was_fitted_to(cut):
    """To what 4000 draws can tell of a density: a few per cent."""
    target = Target(Prior({"a, b": cut}), log_likelihood, data=jnp.asarray(DATA))
    result = ImportanceSampler(num_adapt=500).run(target, jax.random.key(3))
    a, b = np.meshgrid(np.linspace(0, 8, 801), np.linspace(-7, 9, 801), indexing="ij")
    density = stats.truncnorm(-0.5, np.inf, 0.5, 1.0).pdf(a) * stats.norm(0.5 * a, 1).pdf(b)
    likelihood = stats.norm(a, NOISE[0]).pdf(DATA[0]) * stats.norm(b, NOISE[1]).pdf(DATA[1])
    exact = np.log(np.trapezoid(np.trapezoid(density * likelihood, b[0], axis=1), a[:, 0]))
    assert abs(result.log_evidence - exact) < 0.05 + 4 * result.log_evidence_error
    assert (result.draws["a"] > 0).all()


def test_a_posterior_at_the_bound_of_a_learned_prior_is_noted():
    rng = np.random.default_rng(5)
    draws = {"a": rng.uniform(0.0, 1.0, 2000)}
    uniform = fit_density(
        jax.random.key(0), draws, kind="gaussian", support={"a": (0.0, 1.0)}, report=False
    )
    target = Target(Prior({"a": uniform}), lambda h, data: -20.0 * h["a"])
    result = ImportanceSampler(num_adapt=500).run(target, jax.random.key(0))
    assert any(n.kind == "prior_edge" for n in result.status.notes), str(result.status)


# ---- what is refused -----------------------------------------------------------------------------


def test_names_that_are_not_those_of_the_density():
    with pytest.raises(InputError, match=r"prior 'a, c': the density has no parameter 'c'"):
        Prior({"a, c": exact_density()})
    with pytest.raises(InputError, match=r"prior 'a': the density is over \['a', 'b'\].*marginal"):
        Prior({"a": exact_density()})
