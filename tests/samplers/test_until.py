"""Runs that go on until a goal is met, or the time is up."""

from __future__ import annotations

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from samplers import targets

from skycensus import (
    NUTS,
    CoarseToExact,
    FlowMCMC,
    ImportanceSampler,
    InputError,
    Nested,
    QuadratureSampler,
    Until,
)
from skycensus import checkpoint as checkpoint_module
from skycensus.checkpoint import Checkpoint
from skycensus.samplers.until import merged

QUICK = {"num_warmup": 150, "num_samples": 60, "num_start": 32, "num_chains": 2}
CHAINS = {
    "nuts": NUTS(**QUICK),
    "nuts, one by one": NUTS(**QUICK, chain_method="sequential"),
    "nuts, thinned": NUTS(**QUICK | {"num_samples": 61}, thinning=2),
}


def kinds(problems):
    return [problem.kind for problem in problems]


@pytest.fixture(scope="module")
def target():
    return targets.gaussian()


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_chains_go_on_where_they_were(target, name):
    sampler = CHAINS[name]
    first = sampler.run(target, jax.random.key(1))
    result = Until(sampler, target_ess=500).run(target, jax.random.key(1))
    assert result.effective_sample_size() >= 500 > first.effective_sample_size()
    num = first.shape[1]
    assert result.shape[1] > num
    np.testing.assert_array_equal(result.draws["a"][:, :num], first.draws["a"])
    assert target.record is None


def test_longer_chains_are_those_of_one_run(target):
    whole = NUTS(**QUICK).longer(3.0)
    assert whole.num_samples == 180
    one = whole.run(target, jax.random.key(1))
    kept = Checkpoint().part("sampler")
    NUTS(**QUICK).run(target, jax.random.key(1), checkpoint=kept)
    two = whole.run(target, jax.random.key(1), checkpoint=kept)
    np.testing.assert_array_equal(one.draws["a"], two.draws["a"])
    # And the first draws are found again in what has come further.
    again = NUTS(**QUICK).run(target, jax.random.key(1), checkpoint=kept)
    np.testing.assert_array_equal(again.draws["a"], one.draws["a"][:, :60])


@pytest.mark.slow
def test_longer_flow_chains_go_on(target):
    sampler = FlowMCMC(
        num_chains=6, num_training_loops=2, num_production_loops=2, num_start=128, num_epochs=2
    )
    first = sampler.run(target, jax.random.key(1))
    kept = Checkpoint().part("sampler")
    sampler.run(target, jax.random.key(1), checkpoint=kept)
    result = sampler.longer(2.0).run(target, jax.random.key(1), checkpoint=kept)
    num = first.shape[1]
    assert result.shape[1] == 2 * num
    np.testing.assert_array_equal(result.draws["a"][:, :num], first.draws["a"])
    again = sampler.run(target, jax.random.key(1), checkpoint=kept)
    np.testing.assert_array_equal(again.draws["a"], first.draws["a"])


def test_a_sampler_with_a_goal_of_its_own_is_given_this_one(target):
    result = Until(ImportanceSampler(num_adapt=300), target_ess=3000).run(target, jax.random.key(1))
    assert result.effective_sample_size() > 2900
    assert "target_ess" not in kinds(result.status.problems)
    short = ImportanceSampler(num_adapt=300, max_samples=600)
    status = Until(short, target_ess=3000).run(target, jax.random.key(1)).status
    assert "target_ess" in kinds(status.problems) and status.exit_code == 3


def test_quadrature_draws_more(target):
    result = Until(QuadratureSampler(num_samples=500), target_ess=1200).run(
        target, jax.random.key(1)
    )
    assert result.shape[1] >= 1200


@pytest.mark.slow
def test_runs_that_cannot_go_on_are_merged(target):
    sampler = Nested(num_live=60)
    result = Until(sampler, target_ess=600).run(target, jax.random.key(2))
    count = int(result.measures["num_runs"])
    assert result.effective_sample_size() >= 600 and count > 2
    mean, covariance, log_z = targets.gaussian_answer()
    assert abs(result.log_evidence - log_z) < 4 * result.log_evidence_error
    single = sampler.run(target, jax.random.key(2))
    assert result.log_evidence_error < 1.5 * single.log_evidence_error / math.sqrt(count)
    row = result.summary()["a"]
    assert abs(row["mean"] - mean[0]) < 4 * math.sqrt(covariance[0, 0] / row["ess_bulk"])


def test_merged_chains_stand_beside_each_other(target):
    runs = [NUTS(**QUICK).run(target, jax.random.key(k)) for k in (1, 2)]
    both = merged(target, runs)
    assert both.shape == (4, 60)
    assert both.log_weight is None and both.log_evidence is None
    total = sum(run.measures["num_likelihoods"] for run in runs)
    assert both.measures["num_likelihoods"] == total


def test_more_draws_that_do_not_help_end_it():
    class Stuck:
        """Gives the same draws, however many are asked for."""

        def run(self, target, key, *, progress=None):
            return NUTS(**QUICK).run(target, jax.random.key(0))

        def longer(self, by):
            return self

    result = Until(Stuck(), target_ess=1e6).run(targets.gaussian(), jax.random.key(0))
    assert "hardly grows" in result.status.problems[-1].message


# ---- time ----------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock takes a second."""
    now = 0.0

    def tick():
        nonlocal now
        now += 1.0
        return now

    # That of checkpoints alone: others wait by the true one.
    monkeypatch.setattr(checkpoint_module, "time", SimpleNamespace(monotonic=tick))


@pytest.mark.parametrize("name", ["nuts", pytest.param("nuts, one by one", marks=pytest.mark.slow)])
def test_chains_end_in_time_with_what_they_have(target, clock, monkeypatch, name):
    monkeypatch.setattr("skycensus.samplers.chains._MOST_STEPS", 16)
    sampler = Until(CHAINS[name], target_ess=1e5, time_limit=60.0)
    result = sampler.run(target, jax.random.key(1))
    assert 60 < result.shape[1] < 2000 and result.shape[0] == 2
    assert "target_ess" in kinds(result.status.problems)
    assert "time_limit" in kinds(result.status.notes)
    assert result.status.exit_code == 3


def test_a_limit_before_the_first_draw_is_told(target, clock):
    with pytest.raises(InputError, match=r"time_limit: .*step \d+ of 150 of the warm-up"):
        Until(NUTS(**QUICK), time_limit=3.0).run(target, jax.random.key(1))


def test_importance_sampling_ends_in_time(target, clock):
    sampler = Until(ImportanceSampler(num_adapt=200), target_ess=5e6, time_limit=6.0)
    result = sampler.run(target, jax.random.key(1))
    assert 300 < result.effective_sample_size() < 5e6
    assert "target_ess" in kinds(result.status.problems)


@pytest.mark.slow
def test_nested_sampling_ends_in_time(target, clock, monkeypatch):
    monkeypatch.setattr("skycensus.samplers.nested._CHUNK", 8)
    result = Until(Nested(num_live=50), time_limit=0.5).run(target, jax.random.key(1))
    assert "evidence" in kinds(result.status.problems)
    assert "time_limit" in kinds(result.status.notes)


def test_time_before_an_interrupt_counts(tmp_path):
    kept = Checkpoint(tmp_path / "checkpoint", {}, every=0.0)
    kept.part("a").offer(dict, "a point")
    spent = kept.spent
    again = Checkpoint(tmp_path / "checkpoint", {})
    assert again.earlier > 0 and again.spent > again.earlier
    assert not again.part("a").within(spent + 1000.0).time_is_up
    assert again.part("a").within(again.earlier).part("b").time_is_up


def test_goals_are_positive():
    with pytest.raises(InputError, match="target_ess = 0 must be a positive number"):
        Until(NUTS(), target_ess=0)
    with pytest.raises(InputError, match="time_limit = inf must be a positive number"):
        Until(NUTS(), time_limit=math.inf)


def test_goals_of_coarse_to_exact(target):
    def coarse(target):
        return target

    sampler = CoarseToExact(ImportanceSampler(num_adapt=300), coarse)
    result = Until(sampler, target_ess=1500).run(target, jax.random.key(1))
    assert 1450 < result.effective_sample_size() < 2500
