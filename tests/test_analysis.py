"""What is added to a sampler's draws, against what it is made of."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus.analysis import (
    analyse,
    choose_sampler,
    compile_clock,
    effective_draws,
    peak_memory,
)
from skycensus.density import Joint, Mixture
from skycensus.likelihood import Grid, Samples
from skycensus.model import HierarchicalModel
from skycensus.prior import Prior
from skycensus.result import Result
from skycensus.samplers import NUTS, ImportanceSampler
from skycensus.status import Status

PRIOR = {"mu": dist.Normal(0.0, 1.0), "log_rate": dist.Uniform(0.0, 3.0), "nu": "mu", "sd": 1.0}


def population(h):
    density = Joint({"x": dist.Normal(h["mu"] + 0.0 * h["nu"], h["sd"])})
    return Mixture({"all": density}, log_weights={"all": h["log_rate"]})


def make_model(rng, *, num_objects=3, num_draws=200, num_injections=500, rate="poisson", **more):
    draws = [{"x": rng.normal(size=num_draws)} for _ in range(num_objects)]
    log_ref = [np.zeros(num_draws) for _ in draws]
    found = rng.normal(scale=2.0, size=num_injections)
    selection = Samples(
        [{"x": found}],
        [np.asarray(dist.Normal(0.0, 2.0).log_prob(found))],
        num_drawn=[2 * num_injections],
        names=["injections"],
    )
    likelihood = Samples(draws, log_ref, names=[f"o{i}" for i in range(num_objects)])
    return HierarchicalModel(
        Prior(PRIOR), population, likelihood, selection=selection, rate=rate, **more
    )


@dataclass
class Fixed:
    """A sampler that returns given draws."""

    draws: dict[str, np.ndarray]
    log_weight: Any = None

    def run(self, target, key, *, progress=None):
        return Result(self.draws, Status(True), log_weight=self.log_weight)


def fixed(rng, shape, log_weight=None):
    draws = {"mu": rng.normal(size=shape), "log_rate": rng.uniform(0.0, 3.0, size=shape)}
    return Fixed(draws, log_weight)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def index(result):
    assert result.marginal_draws is not None
    return result.marginal_draws.tolist()


def kinds(problems):
    return [problem.kind for problem in problems]


@pytest.mark.slow
def test_marginals_are_the_models_own(rng):
    model = make_model(rng)
    sampler = fixed(rng, (2, 30))
    result = analyse(model, sampler, jax.random.key(0), num_marginal_draws=8, num_prior_draws=7)
    assert index(result) == [0, 10, 19, 29]
    assert result.object_names == ("o0", "o1", "o2")
    assert result.log_marginals is not None and result.log_marginal_variances is not None
    assert result.n_eff is not None
    variances = []
    for chain, place in np.ndindex(2, 4):
        draw = index(result)[place]
        free = {name: jnp.asarray(x[chain, draw]) for name, x in sampler.draws.items()}
        h = model.prior.complete(free)
        value, variance = model.log_marginals(h)
        assert np.allclose(result.log_marginals[chain, place], value)
        assert np.allclose(result.log_marginal_variances[chain, place], variance)
        assert np.allclose(result.n_eff[chain, place], 1 / (variance + 1 / 200))
        variances.append(float(model.log_likelihood(h, variance=True).variance))
    assert np.isclose(result.measures["log_likelihood_variance"], np.mean(variances))
    assert np.isclose(result.measures["log_likelihood_variance_max"], np.max(variances))


def test_shape_only_likelihoods_have_their_variance(rng):
    model = make_model(rng, rate="shape")
    sampler = fixed(rng, (1, 1))
    result = analyse(model, sampler, jax.random.key(0))
    h = model.prior.complete({name: jnp.asarray(x[0, 0]) for name, x in sampler.draws.items()})
    exact = model.log_likelihood(h, variance=True).variance
    assert np.isclose(result.measures["log_likelihood_variance"], exact)
    # There is no rate to speak of.
    assert "total_rate" not in result.derived


def test_what_follows_from_the_draws(rng):
    sampler = fixed(rng, (2, 30))
    model = make_model(rng)
    result = analyse(
        model,
        sampler,
        jax.random.key(0),
        num_prior_draws=7,
        truth={"mu": 0.5},
        derived=lambda h: {"twice": 2.0 * h["mu"] * h["sd"]},
    )
    assert np.array_equal(result.derived["nu"], sampler.draws["mu"])
    assert np.allclose(result.derived["total_rate"], np.exp(sampler.draws["log_rate"]))
    assert np.allclose(result.derived["twice"], 2.0 * sampler.draws["mu"])
    assert result.fixed == {"sd": 1.0}
    assert result.truth == {"mu": 0.5}
    assert {name: x.shape for name, x in result.prior_draws.items()} == dict.fromkeys(PRIOR, (7,))
    assert np.array_equal(result.prior_draws["nu"], result.prior_draws["mu"])
    assert result.seconds["sampling"] >= 0 and result.seconds["compiling"] > 0
    assert result.peak_memory_bytes is None or result.peak_memory_bytes > 10_000_000


def test_weighted_draws_are_thinned_by_their_weights(rng):
    log_weight = np.full((1, 30), -50.0)
    log_weight[0, [4, 17]] = np.log([3.0, 1.0])
    sampler = fixed(rng, (1, 30), log_weight)
    result = analyse(make_model(rng), sampler, jax.random.key(0), num_marginal_draws=8)
    assert index(result) == [4] * 6 + [17] * 2


def test_few_effective_draws_are_named(rng):
    model = make_model(rng, num_draws=4)
    result = analyse(model, fixed(rng, (1, 20)), jax.random.key(0))
    assert result.status.converged
    notes = {note.kind: note.message for note in result.status.notes}
    assert "3 of 3 objects" in notes["few_draws"] and "o1" in notes["few_draws"]
    poor = make_model(rng, num_injections=6)
    result = analyse(poor, fixed(rng, (1, 20)), jax.random.key(0))
    assert "few_injections" in kinds(result.status.notes)


def test_noise_in_the_shape_of_the_posterior_is_a_problem_and_a_noisy_level_a_note(rng):
    noisy = make_model(rng, num_draws=3, num_objects=20)
    result = analyse(noisy, fixed(rng, (1, 20)), jax.random.key(0))
    assert set(kinds(result.status.problems)) == {"monte_carlo_variance"}
    assert result.measures["log_likelihood_difference_variance"] > 1
    draws = {"mu": 0.3 + 1e-3 * rng.normal(size=(1, 20)), "log_rate": np.full((1, 20), 1.0)}
    result = analyse(noisy, Fixed(draws), jax.random.key(0))
    assert result.status.converged
    assert "monte_carlo_variance" in kinds(result.status.notes)
    assert result.measures["log_likelihood_difference_variance"] < 0.1
    limited = make_model(rng, num_draws=3, num_objects=20, max_variance=0.5)
    status = analyse(limited, Fixed(draws), jax.random.key(0)).status
    assert kinds(status.problems) == ["monte_carlo_variance"]
    assert "goal 0.5" in status.problems[0].message


def test_a_form_without_noise_has_no_n_eff():
    grid = Grid({"x": np.linspace(-1, 1, 5)}, np.zeros((2, 5)), np.zeros(5))
    assert effective_draws(grid, np.zeros(2)) is None
    draws = [{"x": np.zeros(4)}]
    samples = Samples(draws, [np.zeros(4)])
    n_eff = effective_draws(samples, np.array([np.inf, 0.0]))
    assert n_eff is not None and n_eff.tolist() == [0.0, 4.0]


def test_the_sampler_is_chosen_by_the_number_of_hyperparameters(rng):
    model = make_model(rng)
    assert isinstance(choose_sampler(model), ImportanceSampler)

    def many(h):
        return Joint({"x": dist.Normal(sum(h[f"mu_{i}"] for i in range(11)), 1.0)})

    prior = Prior({f"mu_{i}": dist.Normal(0.0, 1.0) for i in range(11)})
    wide = HierarchicalModel(prior, many, model.likelihood, rate="shape")
    assert isinstance(choose_sampler(wide), NUTS)


def test_the_clock_counts_compilation_alone():
    with compile_clock() as seconds:
        before = seconds()
        jax.jit(lambda x: jnp.sin(x) + 0.125)(jnp.ones(3)).block_until_ready()
        after = seconds()
    assert before == 0.0 < after
    jax.jit(lambda x: jnp.cos(x) + 0.25)(jnp.ones(3)).block_until_ready()
    assert seconds() == after, "it still listens"


def test_peak_memory_is_in_bytes():
    memory = peak_memory()
    assert memory is None or 10**7 < memory < 10**12
