"""A cheap version sampled and weighted to the exact one: the same posterior as that itself."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import (
    NUTS,
    Coarse,
    CoarseToExact,
    HierarchicalModel,
    ImportanceSampler,
    InputError,
    Joint,
    Prior,
    Quadrature,
    QuadratureSampler,
    Samples,
    Target,
)
from skycensus.likelihood.layout import spread_subset
from skycensus.samplers import coarse

PRIOR = {"mu": dist.Normal(0.0, 2.0), "ln_sd": dist.Normal(0.0, 0.5)}


def population(h):
    return Joint({"x": dist.Normal(h["mu"], jnp.exp(h["ln_sd"]))})


def samples(num_objects=40, num_draws=1500):
    rng = np.random.default_rng(7)
    at = rng.normal(0.7, 1.0, num_objects)
    counts = num_draws + 100 * (np.arange(num_objects) % 3)
    draws = [{"x": rng.normal(x, 0.3, n)} for x, n in zip(at, counts, strict=True)]
    return Samples(draws, [np.zeros(n) for n in counts])


def make_model(form=None):
    return HierarchicalModel(Prior(PRIOR), population, form or samples(), rate="shape")


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def exact(model):
    return QuadratureSampler().run(model.target(), jax.random.key(0))


def assert_the_same(result, exact):
    rows, truth = result.summary(), exact.summary()
    for name, row in rows.items():
        assert abs(row["mean"] - truth[name]["mean"]) < 4 * row["mcse_mean"], name
        sd = truth[name]["sd"]
        assert abs(row["sd"] - sd) < 4 * sd / np.sqrt(row["ess_bulk"]), name


def note(result):
    return next(n.message for n in result.status.notes if n.kind == "coarse")


SAMPLERS = {
    "importance": ImportanceSampler(num_adapt=500),
    "nuts": NUTS(num_warmup=200, num_samples=400, num_chains=4, num_start=64),
    "quadrature": QuadratureSampler(num_samples=3000),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n == "nuts" else ()) for n in SAMPLERS],
)
def test_the_result_is_that_of_the_direct_run(model, exact, name):
    sampler = CoarseToExact(SAMPLERS[name], Coarse(draws=4), target_ess=600)
    result = sampler.run(model.target(), jax.random.key(1))
    assert result.status.converged, str(result.status)
    assert_the_same(result, exact)
    assert result.effective_sample_size() > 580
    assert result.measures["k_hat"] < 0.7
    # No more of the target's likelihoods than draws are worth.
    assert 600 <= result.measures["num_likelihoods"] < 2400
    if name != "nuts":
        assert abs(result.log_evidence - exact.log_evidence) < 4 * result.log_evidence_error
        assert result.log_evidence_error < 0.1
    assert note(result).startswith("sampled with 4 draws of each object: effective sample size")


def test_the_coarse_version_alone_is_another_posterior(model, exact):
    few = Coarse(draws=4).of(model, np.random.default_rng(1))
    alone = QuadratureSampler().run(few.target(), jax.random.key(0))
    with pytest.raises(AssertionError):
        assert_the_same(alone, exact)


@pytest.mark.slow
def test_a_poor_version_gives_way_to_a_finer_one(model, exact):
    sampler = CoarseToExact(SAMPLERS["importance"], Coarse(draws=1), target_ess=400)
    result = sampler.run(model.target(), jax.random.key(2))
    assert result.status.converged
    assert_the_same(result, exact)
    assert note(result).count("sampled with") > 1


def test_a_heavy_tail_of_few_good_weights_is_looked_at_again(model, exact, monkeypatch):
    """Of two hundred draws k-hat is known badly: the version is kept where more are well."""
    known = coarse.pareto_smooth

    def uneasy(log_weight, **settings):
        smoothed, k_hat = known(log_weight, **settings)
        return smoothed, (0.9 if log_weight.size < 250 else k_hat)

    monkeypatch.setattr(coarse, "pareto_smooth", uneasy)
    sampler = CoarseToExact(SAMPLERS["quadrature"], Coarse(draws=16), target_ess=400)
    result = sampler.run(model.target(), jax.random.key(1))
    assert result.status.converged and note(result).count("sampled") == 1
    assert_the_same(result, exact)


def test_a_heavy_tail_of_all_weights_is_not_overlooked(model, monkeypatch):
    monkeypatch.setattr(coarse, "pareto_smooth", lambda log_weight: (log_weight, 0.9))
    cheap = CoarseToExact(SAMPLERS["quadrature"], Coarse(draws=16), target_ess=400)
    result = replace(cheap, max_refinements=0).run(model.target(), jax.random.key(1))
    assert {problem.kind for problem in result.status.problems} == {"k_hat"}
    assert "then the target itself" in note(cheap.run(model.target(), jax.random.key(1)))


def far_off(target):
    """Of another place: its draws tell nothing of the target."""
    return Target(target.prior, lambda free, data: -0.5 * ((free["mu"] + 3.0) / 0.05) ** 2)


def test_at_last_the_target_itself_is_sampled(model, exact):
    sampler = CoarseToExact(SAMPLERS["importance"], far_off, target_ess=400)
    result = sampler.run(model.target(), jax.random.key(3))
    assert result.status.converged
    assert_the_same(result, exact)
    assert "then the target itself was sampled" in note(result)


def test_without_refinement_a_poor_version_is_a_problem(model):
    sampler = CoarseToExact(SAMPLERS["importance"], far_off, target_ess=400, max_refinements=0)
    result = sampler.run(model.target(), jax.random.key(3))
    kinds = {problem.kind for problem in result.status.problems}
    assert "target_ess" in kinds and result.status.exit_code == 3


def test_a_version_without_any_weight_is_told(model):
    def nowhere(target):
        return Target(target.prior, lambda free, data: -0.5 * (free["mu"] / 0.1) ** 2)

    inside = Target(Prior(PRIOR), lambda free, data: jnp.where(free["mu"] > 5.0, 0.0, -jnp.inf))
    sampler = CoarseToExact(SAMPLERS["importance"], nowhere, max_refinements=0)
    with pytest.raises(InputError, match="none of the draws of the coarse target"):
        sampler.run(inside, jax.random.key(0))


@pytest.mark.slow
def test_an_emulator_is_a_coarse_version(model, exact):
    def emulator(target):
        """A quadratic through log likelihoods at points of the prior that are not hopeless."""
        rng = np.random.default_rng(3)
        x = np.column_stack([rng.uniform(0.0, 1.4, 60), rng.uniform(-0.6, 0.6, 60)])
        terms = lambda a, b: jnp.stack([1.0 + 0 * a, a, b, a * a, a * b, b * b])  # noqa: E731
        y = jax.vmap(lambda p: target.log_likelihood_at({"mu": p[0], "ln_sd": p[1]}))(x)
        fitted, *_ = jnp.linalg.lstsq(terms(x[:, 0], x[:, 1]).T, y)
        return Target(target.prior, lambda h, fit: fit @ terms(h["mu"], h["ln_sd"]), data=fitted)

    for version in (emulator, emulator(model.target())):
        sampler = CoarseToExact(SAMPLERS["importance"], version, target_ess=400)
        result = sampler.run(model.target(), jax.random.key(4))
        assert result.status.converged, str(result.status)
        assert_the_same(result, exact)
        assert note(result).startswith("sampled with the coarse target given: effective")


@pytest.mark.slow
def test_fewer_nodes_and_half_the_bits(model, exact):
    def normal(theta, data):
        return dist.Normal(data["x"], 0.6).log_prob(theta["x"])

    at = np.random.default_rng(2).normal(size=12)
    formula = make_model(Quadrature(normal, {"x": at}, num_nodes=12))
    truth = QuadratureSampler().run(formula.target(), jax.random.key(0))
    sampler = CoarseToExact(SAMPLERS["quadrature"], Coarse(nodes=3), target_ess=400)
    result = sampler.run(formula.target(), jax.random.key(0))
    assert_the_same(result, truth)
    assert note(result).startswith("sampled with 3 nodes")
    half = CoarseToExact(SAMPLERS["quadrature"], Coarse(float32=True), target_ess=400)
    result = half.run(model.target(), jax.random.key(0))
    assert_the_same(result, exact)
    # Rounding leaves the weights all but equal.
    assert result.measures["num_likelihoods"] < 480
    assert note(result).startswith("sampled with 32 bits")


def test_what_cannot_be_made_coarser_is_named(model):
    with pytest.raises(InputError, match="nothing is coarser"):
        Coarse()
    with pytest.raises(InputError, match="draws = 0 must be at least 1"):
        Coarse(draws=0)
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="nodes = 3 is for objects of another form than Samples"):
        Coarse(nodes=3).of(model, rng)
    with pytest.raises(InputError, match="injections = 9 is for a selection of another form"):
        Coarse(injections=9).of(model, rng)
    other = Target(Prior({"a": dist.Normal(0.0, 1.0)}), lambda free, data: 0.0)
    sampler = CoarseToExact(SAMPLERS["importance"], other)
    with pytest.raises(InputError, match=r"its parameters \['a'\] are not those of the target"):
        sampler.run(model.target(), jax.random.key(0))
    with pytest.raises(InputError, match="5 draws of each object is for hierarchical models"):
        CoarseToExact(SAMPLERS["importance"], Coarse(draws=5)).run(other, jax.random.key(0))


# ---- which draws ---------------------------------------------------------------------------------


def test_fewer_draws_are_unbiased_and_scatter_little():
    x = np.random.default_rng(5).normal(size=(997, 2))
    values = np.exp(-((x[:, 0] - 0.5) ** 2)) * (2.0 + x[:, 1])
    rng = np.random.default_rng(6)
    means = np.array([values[spread_subset(x, 64, rng)].mean() for _ in range(400)])
    at_random = np.std(values) / 8
    assert abs(means.mean() - values.mean()) < 4 * means.std() / 20
    assert means.std() < 0.5 * at_random
    every = np.concatenate([spread_subset(x, 64, rng) for _ in range(400)])
    # Each has the same chance: counts scatter no more than those of a Poisson process.
    counts = np.bincount(every, minlength=997)
    assert np.var(counts) < 1.3 * counts.mean()
    assert np.array_equal(spread_subset(x, 2000, rng), np.arange(997))


def test_thinned_samples_keep_names_counts_and_the_draws_that_were_missed():
    rng = np.random.default_rng(8)
    draws = [{"x": rng.normal(size=n), "y": rng.normal(size=n)} for n in (300, 40, 120)]
    form = Samples(
        draws,
        [np.full(len(d["x"]), 0.5) for d in draws],
        names=["a", "b", "c"],
        num_drawn=[3000, 40, 240],
    )
    few = form.thinned(100, rng, dtype=np.float32)
    assert few.names == form.names
    assert few.num_draws.tolist() == [100, 40, 100]
    np.testing.assert_allclose(few.num_drawn, [1000, 40, 200])
    assert few.blocks[0].log_ref.dtype == np.float32
    own = few.object_draws(0)
    pairs = {tuple(p) for p in np.float32(np.column_stack([draws[0]["x"], draws[0]["y"]]))}
    assert {tuple(p) for p in np.column_stack([own["x"], own["y"]])} <= pairs
