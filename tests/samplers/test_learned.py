"""Samplers that learn a density first: unbiased whatever they have learned."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from samplers.targets import CASES, box, gaussian, gaussian_answer, two_modes, weights
from samplers.test_coarse import assert_the_same, make_model
from scipy import stats

from skycensus import (
    BoostedNested,
    Coarse,
    Dynesty,
    ImportanceSampler,
    InputError,
    LearnedProposal,
    Nested,
    Prior,
    QuadratureSampler,
    Target,
)
from skycensus.result import Result
from skycensus.samplers import evaluate
from skycensus.samplers.learned import LOG_DENSITY, CubeProposal, CubeTarget, coordinates, learn
from skycensus.status import Status

QUICK = ImportanceSampler(num_adapt=300, target_ess=600)


def target_1d(shift: float = 0.0) -> Target:
    """A standard normal prior and a Gaussian likelihood: everything is known."""

    def log_likelihood(h, data):
        return -0.5 * ((h["a"] - data) / 0.5) ** 2

    return Target(Prior({"a": dist.Normal(0.0, 1.0)}), log_likelihood, data=jnp.asarray(shift))


def answer_1d(shift: float) -> tuple[float, float, float]:
    """Mean, sd and log evidence of `target_1d`."""
    log_z = stats.norm(0, np.sqrt(1.25)).logpdf(shift) + 0.5 * np.log(2 * np.pi * 0.25)
    return shift / 1.25, np.sqrt(0.2), log_z


def learned(target: Target, at: float, spread: float, *, share: float = 0.1):
    """A density around a place of the cube, wherever the posterior is."""
    z = at + spread * np.random.default_rng(0).standard_normal((400, target.dim))
    u = stats.norm.cdf(z)
    return learn(jax.random.key(0), target, u, None, kind="gaussian", fit={}, prior_share=share)


# ---- the density on the cube ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("at", "spread"), [(0.8, 0.5), (-2.0, 0.3), (3.0, 2.0)])
def test_the_evidence_does_not_depend_on_what_was_learned(at, spread):
    """By the midpoint rule over the cube, for densities that are right, wrong and wide."""
    target = target_1d(1.0)
    cube = CubeTarget(target, learned(target, at, spread)).in_unit_cube()
    v = (np.arange(8_000) + 0.5)[:, None] / 8_000
    log_l, log_prior = evaluate(cube, v)
    assert not log_prior.any()
    assert abs(np.log(np.mean(np.exp(log_l))) - answer_1d(1.0)[2]) < 1e-4


def test_no_ratio_of_prior_to_proposal_is_above_what_the_prior_was_given():
    target = target_1d()
    density = learned(target, 0.5, 0.2, share=0.2)
    u = np.concatenate([np.geomspace(1e-300, 0.5, 500), 1 - np.geomspace(1e-16, 0.5, 500)])
    log_q = CubeProposal(density).log_prob(u[:, None])
    assert (-log_q <= -np.log(0.2) + 1e-9).all()
    assert abs(log_q[0] - np.log(0.2)) < 1e-9


def test_a_proposal_is_normalised_and_drawn_from_as_it_says():
    target = weights()
    density = learned(target, 0.5, 0.4)
    proposal = CubeProposal(density)
    u = proposal.sample(np.random.default_rng(1), 20_000)
    assert u.shape == (20_000, 2)
    inside = (u < [0.75, 0.7]).all(axis=1)
    # The area of that corner, and of the whole, by draws of the proposal.
    ratio = np.exp(-proposal.log_prob(u))
    assert abs(ratio.mean() - 1.0) < 4 * ratio.std() / np.sqrt(len(u))
    assert abs((ratio * inside).mean() - 0.525) < 4 * (ratio * inside).std() / np.sqrt(len(u))


def test_draws_on_the_cube_have_the_parameters_too():
    """A weight on the simplex has one coordinate less than components."""
    target = weights()
    cube = CubeTarget(target, learned(target, 0.0, 1.0))
    drawn = cube.constrain(jnp.asarray([0.3, -0.4]))
    assert set(drawn) == {*coordinates(target), LOG_DENSITY, "w_a", "w_b", "w_c"}
    assert abs(sum(float(drawn[n]) for n in ("w_a", "w_b", "w_c")) - 1) < 1e-9
    assert np.isfinite(drawn[LOG_DENSITY])


def test_mixtures_are_the_same_density_when_their_components_are_apart():
    target, rng = target_1d(), np.random.default_rng(3)
    z = np.concatenate([rng.normal(-2, 0.3, 500), rng.normal(1, 0.5, 1000)])[:, None]
    u, key = stats.norm.cdf(z), jax.random.key(0)
    kind = {"kind": "mixture", "fit": {"num_components": 2}, "prior_share": 0.01}
    proposal = CubeProposal(learn(key, target, u, None, **kind))
    drawn = stats.norm.ppf(proposal.sample(rng, 20_000)[:, 0])
    assert abs((drawn < -0.8).mean() - 1 / 3) < 0.02
    expected = np.logaddexp(
        np.log(1 / 3) + stats.norm(-2, 0.3).logpdf([-2.0, 1.0]),
        np.log(2 / 3) + stats.norm(1, 0.5).logpdf([-2.0, 1.0]),
    ) - stats.norm.logpdf([-2.0, 1.0])
    found = proposal.log_prob(stats.norm.cdf([[-2.0], [1.0]]))
    np.testing.assert_allclose(found, expected, atol=0.15)


# ---- likelihood reweighting ----------------------------------------------------------------------


def banana(width: float = 0.5) -> Target:
    """Not what one Gaussian describes; log likelihoods that differ by much for other widths."""
    prior = Prior({"a": dist.Uniform(-8.0, 8.0), "b": dist.Uniform(-5.0, 40.0)})

    def log_likelihood(h, data):
        bent = dist.Normal(0.5 * h["a"] ** 2, data).log_prob(h["b"])
        return dist.Normal(0.0, 1.0).log_prob(h["a"]) + bent

    return Target(prior, log_likelihood, data=jnp.asarray(width))


BANANA = -np.log(16.0 * 45.0)


@pytest.fixture(scope="module")
def reweighted():
    cheap, costly = banana(0.8), banana(0.5)
    sampler = LearnedProposal(first=QUICK, cheap=cheap, target_ess=1500)
    return sampler.run(costly, jax.random.key(1))


def assert_banana(result):
    assert abs(result.log_evidence - BANANA) < 4 * result.log_evidence_error
    rows = result.summary()
    for name, mean, sd in (("a", 0.0, 1.0), ("b", 0.5, np.sqrt(0.75))):
        error = sd / np.sqrt(rows[name]["ess_bulk"])
        assert abs(rows[name]["mean"] - mean) < 4 * error, name
        assert abs(rows[name]["sd"] - sd) < 5 * error, name


def test_reweighting_gives_the_posterior_and_evidence_of_the_costly_likelihood(reweighted):
    assert reweighted.status.converged, str(reweighted.status)
    assert_banana(reweighted)
    assert set(reweighted.draws) == {"a", "b"}
    assert reweighted.measures["n_eff"] >= 1500
    assert reweighted.measures["k_hat"] < 0.7
    assert "learned from" in str(reweighted.status)


def test_the_costly_likelihood_is_asked_for_at_draws_of_the_proposal_alone(reweighted):
    m = reweighted.measures
    drawn = reweighted.shape[1]
    assert m["num_likelihoods"] == drawn + 1000 * m["num_refits"]
    assert m["num_first_likelihoods"] > 0


def test_weights_of_the_cheap_posterior_would_be_biased():
    """L_B / L_A on draws of a density that knows the posterior of A roughly, beside L_B pi / q."""
    cheap, costly = target_1d(0.6).in_unit_cube(), target_1d(1.0).in_unit_cube()
    # Where the cheap posterior is, and not quite twice as wide.
    proposal = CubeProposal(learned(costly, 0.48, 0.8))
    u = proposal.sample(np.random.default_rng(4), 10_000)
    log_a, log_b = evaluate(cheap, u)[0], evaluate(costly, u)[0]
    a = stats.norm.ppf(u[:, 0])

    def mean_and_error(log_weight):
        w = np.exp(log_weight - log_weight.max())
        mean = np.average(a, weights=w)
        return mean, np.sqrt(np.sum((w * (a - mean)) ** 2)) / w.sum()

    exact = answer_1d(1.0)[0]
    mean, error = mean_and_error(log_b - proposal.log_prob(u))
    assert abs(mean - exact) < 4 * error
    naive, its_error = mean_and_error(log_b - log_a)
    assert abs(naive - exact) > 10 * its_error


@pytest.mark.slow
def test_a_cheap_likelihood_that_is_far_off_is_learned_away_from():
    """Four of its standard deviations from the other; the proposal is fitted anew."""
    sampler = LearnedProposal(
        first=QUICK, cheap=target_1d(-1.5), density="gaussian", prior_share=0.01
    )
    result = sampler.run(target_1d(1.5), jax.random.key(5))
    mean, sd, log_z = answer_1d(1.5)
    assert result.measures["num_refits"] > 0
    assert result.status.converged, str(result.status)
    assert abs(result.log_evidence - log_z) < 4 * result.log_evidence_error
    row = result.summary()["a"]
    assert abs(row["mean"] - mean) < 4 * sd / np.sqrt(row["ess_bulk"])


@pytest.mark.slow
def test_a_cheap_version_by_its_settings():
    """Few of the draws of each object, for a posterior of all of them."""
    target = make_model().target()
    exact = QuadratureSampler().run(target, jax.random.key(0))
    sampler = LearnedProposal(first=QUICK, cheap=Coarse(draws=100), target_ess=800)
    result = sampler.run(target, jax.random.key(1))
    assert result.status.converged, str(result.status)
    assert_the_same(result, exact)
    assert abs(result.log_evidence - exact.log_evidence) < 4 * result.log_evidence_error + 1e-2


@pytest.mark.slow
def test_calls_are_bounded_and_a_goal_that_is_not_met_is_told():
    sampler = LearnedProposal(first=QUICK, target_ess=50_000, num_adapt=500, max_samples=1500)
    result = sampler.run(target_1d(), jax.random.key(0))
    assert result.shape == (1, 1500)
    assert [p.kind for p in result.status.problems] == ["target_ess"]


@pytest.mark.slow
def test_evidences_by_importance_are_unbiased(sized):
    """The mean of Z itself over many runs that each learn from few draws."""
    num, target = sized(full=200, small=40), target_1d(1.0)
    sampler = LearnedProposal(
        first=replace(QUICK, target_ess=100, num_adapt=100), target_ess=100, num_adapt=100
    )
    results = [sampler.run(target, jax.random.key(seed)) for seed in range(num)]
    ratio = np.exp([r.log_evidence - answer_1d(1.0)[2] for r in results])
    assert abs(ratio.mean() - 1.0) < 4 * ratio.std(ddof=1) / np.sqrt(num)


# ---- nested sampling -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def boosted():
    sampler = BoostedNested(sampler=Nested(num_live=200), first=QUICK, density="gaussian")
    return sampler.run(gaussian(), jax.random.key(1))


@pytest.mark.slow
def test_boosted_evidence_and_posterior_are_those_of_the_prior_itself(boosted):
    mean, covariance, log_z = gaussian_answer()
    assert abs(boosted.log_evidence - log_z) < 4 * boosted.log_evidence_error
    rows = boosted.summary()
    for i, name in enumerate(("a", "b")):
        sd = np.sqrt(covariance[i, i])
        assert abs(rows[name]["mean"] - mean[i]) < 4 * rows[name]["mcse_mean"]
        assert abs(rows[name]["sd"] - sd) < 5 * sd / np.sqrt(rows[name]["ess_bulk"])
    # The first run's calls count.
    m = boosted.measures
    assert m["num_likelihoods"] > m["num_first_likelihoods"] > 600


def test_a_boosted_result_is_told_in_terms_of_the_target(boosted):
    assert set(boosted.draws) == {"a", "b"}
    assert set(boosted.sample_stats) == {"log_likelihood"}
    target = gaussian()
    chosen = {n: jnp.asarray(x[0, :50]) for n, x in boosted.draws.items()}
    expected = jax.vmap(target.log_likelihood_at)(chosen)
    np.testing.assert_allclose(
        boosted.sample_stats["log_likelihood"][0, :50], expected, rtol=1e-6, atol=1e-6
    )


def test_what_is_left_of_the_information_is_little(boosted):
    """H from the prior is that of two Gaussians; the defensive mixture costs -ln(1 - 0.1)."""
    mean, covariance, _ = gaussian_answer()
    exact = 0.5 * (np.trace(covariance) / 9 + mean @ mean / 9 - 2)
    exact += 0.5 * np.log(81 / np.linalg.det(covariance))
    assert abs(boosted.measures["information"] - exact) < 0.15
    assert 0.03 < boosted.measures["information_left"] < 0.3


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["edges", "five modes"]
    + [
        pytest.param(name, marks=pytest.mark.full)
        for name in ("weights of a mixture", "shells", "12-D")
    ],
)
def test_plain_and_boosted_agree(name, sized):
    """Over seeds: within their errors of each other, for fewer likelihoods times variance."""
    target, num = two_modes() if name == "12-D" else CASES[name].make(), sized(full=20, small=1)
    keys = [jax.random.key(seed) for seed in range(num)]
    plain = [Nested().run(target, key) for key in keys]
    fast = [BoostedNested().run(target, key) for key in keys]
    off = np.array([b.log_evidence - p.log_evidence for b, p in zip(fast, plain, strict=True)])
    error = np.array(
        [
            np.hypot(b.log_evidence_error, p.log_evidence_error)
            for b, p in zip(fast, plain, strict=True)
        ]
    )
    assert (np.abs(off) < 4 * error).all()
    assert abs(np.mean(off / error)) < 4 / np.sqrt(num)

    def cost(results):
        return np.median([r.measures["num_likelihoods"] * r.log_evidence_error**2 for r in results])

    if name in ("five modes", "12-D"):
        assert cost(plain) > 8 * cost(fast)


@pytest.mark.slow
def test_dynesty_can_be_boosted():
    case = CASES["conjugate Gaussian"]
    sampler = BoostedNested(sampler=Dynesty(num_live=150), first=Dynesty(num_live=50))
    result = sampler.run(case.make(), jax.random.key(0))
    assert abs(result.log_evidence - case.log_evidence) < 4 * result.log_evidence_error


# ---- what the first run has missed ---------------------------------------------------------------


def two_islands() -> Target:
    """Modes of equal weight at -4 and 4, each 1 % of the prior: ln Z = -ln 20."""
    prior = Prior({"a": dist.Uniform(-10.0, 10.0)})

    def log_likelihood(h, data):
        islands = dist.Normal(jnp.array([-4.0, 4.0]), 0.1).log_prob(h["a"])
        return jax.nn.logsumexp(islands) - jnp.log(2.0)

    return Target(prior, log_likelihood)


class OneIsland:
    """A first run that has met the mode at -4 alone."""

    def run(self, target, key, *, progress=None, checkpoint=None):
        a = -4.0 + 0.1 * np.random.default_rng(0).standard_normal(500)
        draws = dict.fromkeys(target.names, (a[None] + 10.0) / 20.0)
        return Result(draws, Status(True), measures={"num_likelihoods": 500.0})


def share_right(result):
    return float(result.weights[result.draws["a"] > 0].sum())


@pytest.mark.slow
def test_a_mode_that_the_first_run_missed_is_told_or_mended():
    sampler = LearnedProposal(first=OneIsland(), density="gaussian", max_refits=0, target_ess=50)
    missed = sampler.run(two_islands(), jax.random.key(0))
    told = {p.kind: p.message for p in missed.status.problems}
    assert "next to nothing: the first run did not meet it" in told["unforeseen"]
    mended = replace(sampler, density="mixture", max_refits=5, target_ess=1000)
    result = mended.run(two_islands(), jax.random.key(0))
    assert result.status.converged, str(result.status)
    assert result.measures["num_refits"] > 0
    assert abs(share_right(result) - 0.5) < 0.1
    assert abs(result.log_evidence + np.log(20.0)) < 4 * result.log_evidence_error


@pytest.mark.slow
def test_nested_sampling_tells_of_a_mode_that_the_first_run_missed():
    sampler = BoostedNested(
        sampler=Nested(num_live=200), first=OneIsland(), density="gaussian", prior_share=0.3
    )
    result = sampler.run(two_islands(), jax.random.key(2))
    assert share_right(result) > 0.05
    assert "unforeseen" in {problem.kind for problem in result.status.problems}


# ---- what is refused -----------------------------------------------------------------------------


def test_settings_out_of_range():
    with pytest.raises(InputError, match=r"prior_share = 0 must be between 0 and 1"):
        BoostedNested(prior_share=0)
    with pytest.raises(InputError, match=r"(?s)num_adapt = 0 must be 1.*max_refits = -1 must be 0"):
        LearnedProposal(num_adapt=0, max_refits=-1)


def test_a_cheap_version_has_the_same_parameters():
    with pytest.raises(InputError, match=r"its parameters \['x0'\] are not those"):
        other = Target(box(1, 0.0, 1.0), lambda h, data: 0.0)
        LearnedProposal(cheap=other).run(target_1d(), jax.random.key(0))
    with pytest.raises(InputError, match="is for hierarchical models"):
        LearnedProposal(cheap=Coarse(draws=5)).run(target_1d(), jax.random.key(0))


def test_draws_too_few_for_a_density_are_told():
    with pytest.raises(InputError, match=r"no proposal can be learned from 1 draws.*first run"):
        learn(
            jax.random.key(0),
            target_1d(),
            np.full((1, 1), 0.5),
            None,
            kind="gaussian",
            fit={},
            prior_share=0.1,
        )


def test_a_cheap_likelihood_that_knows_nothing_of_the_other():
    none = Target(
        Prior({"a": dist.Normal(0.0, 1.0)}), lambda h, data: jnp.where(h["a"] > 30, 0.0, -jnp.inf)
    )
    with pytest.raises(InputError, match="none of 1000 draws of the learned proposal"):
        LearnedProposal(first=QUICK, cheap=target_1d()).run(none, jax.random.key(0))
