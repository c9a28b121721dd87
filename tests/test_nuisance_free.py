"""Likelihoods with their nuisances integrated out, against linear Gaussian experiments."""

import runpy
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import ImportanceSampler, InputError, Joint, Prior
from skycensus.estimators import LearnedDensity, fit_density
from skycensus.nuisance_free import NuisanceFree, joint_analysis, joint_target

PRIOR = Prior({"a": dist.Uniform(-6.0, 6.0), "b": dist.Uniform(-6.0, 6.0)})
NUM_NUISANCES = 8


class Experiment:
    """y = M theta + N alpha + noise, with nuisances alpha ~ N(0, 1): everything in closed form."""

    def __init__(self, seed, truth=(0.5, -0.4)):
        rng = np.random.default_rng(seed)
        num = 12
        self.design = rng.normal(size=(num, 2))
        nuisance = 0.4 * rng.normal(size=(num, NUM_NUISANCES))
        self.noise = nuisance @ nuisance.T + 0.25 * np.eye(num)
        self.y = self.design @ np.array(truth) + np.linalg.cholesky(self.noise) @ rng.normal(
            size=num
        )
        weighted = np.linalg.solve(self.noise, self.design)
        self.covariance = np.linalg.inv(self.design.T @ weighted)
        self.mean = self.covariance @ weighted.T @ self.y
        self.log_evidence = float(
            self.log_likelihood(self.mean)
            + 0.5 * np.linalg.slogdet(2 * np.pi * self.covariance)[1]
            - np.log(144.0)
        )

    def log_likelihood(self, theta):
        return dist.MultivariateNormal(self.design @ theta, self.noise).log_prob(self.y)

    def posterior(self, seed, size=4000):
        x = np.random.default_rng(seed).multivariate_normal(self.mean, self.covariance, size)
        return {"a": x[:, 0], "b": x[:, 1]}


def learned(experiment, seed=1, prior=PRIOR, size=4000):
    draws = experiment.posterior(seed, size)
    settings = {"kind": "gaussian", "num_bootstrap": 8, "report": False}
    density = fit_density(jax.random.key(seed), draws, support=prior, **settings)
    return NuisanceFree(
        posterior=density,
        prior=prior,
        log_evidence=experiment.log_evidence,
        log_evidence_error=0.01,
    )


@pytest.fixture(scope="module")
def experiments():
    return {"first": Experiment(1), "second": Experiment(2)}


def _without_bootstrap(density):
    return LearnedDensity(density.names, density.coordinates, density.estimate)


def joint_moments(experiments):
    """Mean and covariance of all data together."""
    one, two = experiments.values()
    covariance = np.linalg.inv(np.linalg.inv(one.covariance) + np.linalg.inv(two.covariance))
    first, second = (np.linalg.solve(e.covariance, e.mean) for e in (one, two))
    return covariance @ (first + second), covariance


@pytest.fixture(scope="module")
def likelihoods(experiments):
    return {name: learned(one) for name, one in experiments.items()}


@pytest.mark.slow
def test_the_likelihood_is_that_without_nuisances(experiments, likelihoods):
    one, likelihood = experiments["first"], likelihoods["first"]
    points = one.posterior(9, 50)
    exact = [one.log_likelihood(np.array([a, b])) for a, b in zip(*points.values(), strict=True)]
    found = likelihood.log_likelihood(points)
    assert np.abs(np.asarray(found) - np.asarray(exact)).max() < 0.3
    assert np.abs(np.mean(np.asarray(found) - np.asarray(exact))) < 0.03
    assert likelihood.log_likelihood({"a": 7.0, "b": 0.0}) == -np.inf


def test_a_joint_analysis_is_that_of_both_data_sets(experiments, likelihoods):
    result = joint_analysis(
        jax.random.key(3), PRIOR, likelihoods, sampler=ImportanceSampler(target_ess=4000)
    )
    one, two = experiments.values()
    mean, covariance = joint_moments(experiments)
    rows = result.summary()
    for i, name in enumerate("ab"):
        sd = np.sqrt(covariance[i, i])
        assert abs(rows[name]["mean"] - mean[i]) < 0.1 * sd
        assert rows[name]["sd"] == pytest.approx(sd, rel=0.08)
    exact = (
        one.log_evidence
        + two.log_evidence
        + np.log(144.0)
        + float(
            dist.MultivariateNormal(one.mean, one.covariance + two.covariance).log_prob(two.mean)
        )
    )
    # The learned Gaussians are good to a percent or two, the evidences to the error given.
    assert result.status.converged, str(result.status)
    assert abs(result.log_evidence - exact) < 0.06
    assert result.log_evidence_error > np.hypot(0.01, 0.01)


@pytest.mark.slow
def test_what_few_draws_leave_open_is_stated(experiments):
    """Densities from 40 draws: off by about what is said, and said to be too much."""
    sampler = ImportanceSampler(target_ess=3000)
    mean, covariance = joint_moments(experiments)
    off, stated, kinds = [], [], set()
    for seed in range(3):
        few = {n: learned(one, seed=seed, size=40) for n, one in experiments.items()}
        result = joint_analysis(jax.random.key(seed), PRIOR, few, sampler=sampler)
        rows = result.summary()
        for i, name in enumerate("ab"):
            sd = np.sqrt(covariance[i, i])
            off += [rows[name]["mean"] - mean[i], rows[name]["sd"] - sd]
            stated += [result.measures[f"learned_error_{kind}[{name}]"] for kind in ("mean", "sd")]
        kinds |= {problem.kind for problem in result.status.problems}
    # A spread of eight replicas is itself known to a quarter.
    assert 0.5 < np.sqrt(np.mean(np.square(off) / np.square(stated))) < 2.0
    assert "learned_error" not in kinds or kinds == {"learned_error"}
    # Without replicas nothing is said of such errors, but that.
    plain = {n: replace(one, posterior=_without_bootstrap(one.posterior)) for n, one in few.items()}
    result = joint_analysis(jax.random.key(9), PRIOR, plain, sampler=sampler)
    assert not any(name.startswith("learned_error") for name in result.measures)
    assert "experiment 'first' has no replicas" in str(result.status)
    worse = {n: learned(one, size=8) for n, one in experiments.items()}
    result = joint_analysis(jax.random.key(9), PRIOR, worse, sampler=sampler)
    assert "learned_error" in {problem.kind for problem in result.status.problems}
    assert "uncertain by" in str(result.status)


def test_experiments_that_disagree_are_a_problem(experiments):
    away = Experiment(2, truth=(4.0, 4.0))
    result = joint_analysis(
        jax.random.key(4),
        PRIOR,
        {"first": learned(experiments["first"]), "away": learned(away)},
        sampler=ImportanceSampler(target_ess=500, num_adapt=300),
    )
    assert "extrapolated" in {problem.kind for problem in result.status.problems}
    assert not result.status.converged


def test_it_goes_into_a_file_and_comes_back(likelihoods, tmp_path):
    one = likelihoods["first"]
    path = one.save(tmp_path / "first.skc")
    again = NuisanceFree.load(path)
    points = one.posterior.sample(jax.random.key(1), (20,))
    assert np.array_equal(again.log_likelihood(points), one.log_likelihood(points))
    assert again.log_evidence_error == 0.01
    learned_prior = fit_density(
        jax.random.key(2), PRIOR.sample(jax.random.key(3), (500,)), kind="gaussian", support=PRIOR
    )
    both = NuisanceFree(posterior=one.posterior, prior=learned_prior)
    both.save(path, overwrite=True)
    found = NuisanceFree.load(path).log_likelihood(points)
    assert np.array_equal(found, both.log_likelihood(points))
    assert {p.name for p in tmp_path.iterdir()} == {"first.skc"}


def test_files_that_are_none(likelihoods, tmp_path):
    path = likelihoods["first"].save(tmp_path / "first.skc")
    with pytest.raises(InputError, match="exists already"):
        likelihoods["first"].save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="no nuisance-free likelihood, or only a part"):
        NuisanceFree.load(path)
    likelihoods["first"].posterior.save(path, overwrite=True)
    with pytest.raises(InputError, match="no nuisance-free likelihood"):
        NuisanceFree.load(path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        NuisanceFree.load(tmp_path / "none.skc")
    truncated = Prior({n: dist.TruncatedNormal(0.0, 9.0, low=-8.0) for n in "ab"})
    odd = NuisanceFree(posterior=likelihoods["first"].posterior, prior=truncated)
    with pytest.raises(InputError, match=r"prior 'a': .* cannot be written as JSON"):
        odd.save(tmp_path / "odd.skc")
    assert not list(tmp_path.glob("*odd*"))


def test_a_marginal_prior():
    prior = Prior({"a": dist.Normal(0.0, 1.0), "b": dist.Uniform(0.0, 2.0), "c": 3.0})
    one = prior.marginal(["b"])
    assert one.names == ("b",) and float(one.log_prob({"b": 1.0})) == pytest.approx(-np.log(2.0))
    with pytest.raises(InputError, match=r"no free parameter 'bb' \(did you mean 'b'"):
        prior.marginal(["bb"])
    pair = Prior({"a, b": dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))})
    with pytest.raises(InputError, match=r"'a, b' is joint: \['b'\] cannot be left out"):
        pair.marginal(["a"])


def test_what_does_not_belong_together_is_told(experiments, likelihoods):
    with pytest.raises(InputError, match=r"over \['a', 'b'\], the prior over \['a'\]"):
        NuisanceFree(posterior=likelihoods["first"].posterior, prior=PRIOR.marginal(["a"]))
    narrow = Prior({"a": dist.Uniform(-6.0, 0.3), "b": dist.Uniform(-6.0, 6.0)})
    with pytest.raises(InputError, match=r"of the posterior lies where its prior has no density"):
        NuisanceFree(posterior=likelihoods["first"].posterior, prior=narrow)
    with pytest.raises(InputError, match="log_evidence = nan is not a finite number"):
        NuisanceFree(posterior=likelihoods["first"].posterior, prior=PRIOR, log_evidence=np.nan)
    wide = Prior({"a": dist.Uniform(-8.0, 8.0), "b": dist.Uniform(-6.0, 6.0)})
    with pytest.raises(InputError, match=r"prior of 'a' reaches over \[-8, 8\], but exp"):
        joint_target(wide, likelihoods)
    with pytest.raises(InputError, match=r"experiment 'first' has \['b'\], which the prior does"):
        joint_target(PRIOR.marginal(["a"]), likelihoods)
    with pytest.raises(InputError, match="needs experiments"):
        joint_target(PRIOR, {})
    plain = NuisanceFree(
        posterior=Joint(a=dist.Normal(0.0, 1.0), b=dist.Normal(0.0, 1.0)), prior=PRIOR
    )
    with pytest.raises(InputError, match="was not learned"):
        plain.log_likelihood_error({"a": 0.0, "b": 0.0})


@pytest.mark.slow
def test_the_example_agrees_with_quadrature():
    """Two instruments with eight nuisances each, sampled alone, then together without them."""
    path = Path(__file__).parents[1] / "examples" / "joint_analysis" / "run.py"
    example = runpy.run_path(str(path))
    ones = example["instruments"]()
    key = jax.random.key(1)
    likelihoods = {
        name: example["without_nuisances"](jax.random.fold_in(key, i), one, num_live=500)[1]
        for i, (name, one) in enumerate(ones.items())
    }
    result = joint_analysis(key, Prior(example["SHARED"]), likelihoods)
    known = example["exact"](ones)
    assert abs(result.log_evidence - known.log_evidence) < 3 * result.log_evidence_error
    rows = result.summary()
    for name, (mean, sd) in known.moments().items():
        assert abs(rows[name]["mean"] - mean) < 0.4 * sd
        assert rows[name]["sd"] == pytest.approx(sd, rel=0.2)
