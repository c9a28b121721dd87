"""What a run is estimated to cost, against what it does cost."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from contracts import SAMPLERS

from skycensus import NUTS, HierarchicalModel, ImportanceSampler, Joint, Prior, QuadratureSampler
from skycensus.costs import Work, estimate, expected_work
from skycensus.likelihood import Grid


def model() -> HierarchicalModel:
    at = np.random.default_rng(1).normal(1.0, 2.0, 30)
    nodes = np.linspace(-12.0, 14.0, 400)
    table = np.asarray(dist.Normal(at[:, None], 0.5).log_prob(nodes))
    return HierarchicalModel(
        Prior({"loc": dist.Normal(0.0, 5.0), "scale": dist.Uniform(0.1, 10.0)}),
        lambda h: Joint({"x": dist.Normal(h["loc"], h["scale"])}),
        Grid({"x": nodes}, table, np.log(nodes[1] - nodes[0])),
        rate="shape",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [
        ImportanceSampler(target_ess=1000, num_adapt=500),
        QuadratureSampler(),
        NUTS(num_warmup=200, num_samples=200, num_start=64),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_the_work_is_known_to_a_factor_of_three(sampler):
    target = model().target()
    work = expected_work(sampler, target)
    assert work is not None
    spent = sampler.run(target, jax.random.key(1)).measures["num_likelihoods"]
    asked = work.gradients or work.values
    assert asked / 3 < spent < asked * 3


def test_every_sampler_has_an_estimate():
    target = model().target()
    for sampler in SAMPLERS.values():
        work = expected_work(sampler, target)
        assert work is not None and work.values + work.gradients > 10


def test_a_likelihood_is_timed():
    made = model()
    sampler = NUTS(num_chains=3)
    found = estimate(made, sampler, num_draws_after=10)
    target = made.target()
    points = jnp.zeros((50, 2))
    many = jax.jit(lambda x: jax.lax.map(target.log_likelihood, x))
    jax.block_until_ready(many(points))
    spent = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(many(points))
        spent.append((time.perf_counter() - began) / 50)
    # Other processes and batches make a difference; a wrong unit or count makes a larger one.
    assert min(spent) / 10 < found.seconds_each < min(spent) * 10
    assert found.gradient_each is not None and found.work is not None
    assert found.seconds is not None and found.seconds > found.compiling
    sampling = found.work.gradients * found.gradient_each + found.work.values * found.seconds_each
    assert found.seconds >= found.compiling + sampling
    assert found.data_bytes >= 30 * 400 * 8
    told = str(found)
    assert "estimate: about" in told and "with its gradient" in told and "of memory" in told


def test_an_unknown_sampler_has_no_time():
    class Mine:
        """A sampler of a user's own."""

        def run(self, target, key, *, progress=None):
            raise NotImplementedError

    assert expected_work(Mine(), model().target()) is None
    found = estimate(model(), Mine())
    assert found.seconds is None
    assert "is not known" in str(found)


def test_chains_that_move_together_wait_for_each_other():
    target = model().target()
    together = expected_work(NUTS(chain_method="vectorized"), target)
    alone = expected_work(NUTS(chain_method="sequential"), target)
    assert isinstance(together, Work) and isinstance(alone, Work)
    assert together.gradients > alone.gradients
    assert (together.together, alone.together) == (4, 1)
