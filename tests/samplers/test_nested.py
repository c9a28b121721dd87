"""Nested sampling: evidences that are known, what happens at plateaus and holes, its self-test."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from samplers.targets import CASES, box, shells
from samplers.test_targets import check
from scipy.special import logsumexp
from scipy.stats import chi2

from skycensus import Dynesty, InputError, Nested, Prior, Target
from skycensus.checkpoint import Checkpoint
from skycensus.samplers import nested
from skycensus.samplers.nested_volumes import insertion_p_value, integrate, support_volume

QUICK = Nested(num_live=200)


# ---- volumes -------------------------------------------------------------------------------------


def test_a_likelihood_that_is_constant_has_its_value_as_evidence():
    result = QUICK.run(Target(box(2, 0.0, 1.0), lambda h, data: 3.5), jax.random.key(0))
    assert abs(result.log_evidence - 3.5) < 1e-9
    assert result.log_evidence_error < 1e-9
    assert abs(result.measures["information"]) < 1e-9
    assert result.shape == (1, 200)


def test_prior_mass_without_likelihood_counts():
    """A disc with nothing outside, and a smaller one in which it is twice as high: two plateaus."""

    def log_likelihood(h, data):
        r = jnp.hypot(h["x0"], h["x1"])
        return jnp.where(r < 0.5, jnp.log(2.0), jnp.where(r < 1.0, 0.0, -jnp.inf))

    result = QUICK.run(Target(box(2, -2.0, 2.0), log_likelihood), jax.random.key(1))
    exact = np.log(np.pi * (0.75 + 2 * 0.25) / 16)
    assert abs(result.log_evidence - exact) < 3 * result.log_evidence_error
    assert abs(result.measures["support_fraction"] - np.pi / 16) < 0.04
    inner = np.hypot(result.draws["x0"], result.draws["x1"]) < 0.5
    assert abs(result.weights[inner].sum() - 0.4) < 0.1
    assert np.isfinite(result.sample_stats["log_likelihood"]).all()


def test_error_is_that_of_simulated_volumes():
    rng = np.random.default_rng(0)
    log_l = np.sort(-0.5 * rng.chisquare(4, 3000) * np.linspace(200, 1, 3000))
    birth = np.concatenate([np.full(100, -np.inf), log_l[:-100]])
    found = integrate(log_l, birth)
    num = np.concatenate([np.full(2900, 100), np.arange(100, 0, -1)])
    log_x = -np.cumsum(rng.exponential(size=(2000, 3000)) / num, axis=1)
    before = np.concatenate([np.zeros((2000, 1)), log_x[:, :-1]], axis=1)
    shell = np.exp(before) - np.concatenate([np.exp(log_x[:, :-1]), np.zeros((2000, 1))], axis=1)
    simulated = logsumexp(log_l, b=shell, axis=1)
    assert abs(found.log_evidence - simulated.mean()) < 0.1 * simulated.std()
    assert abs(found.error / simulated.std() - 1) < 0.1


def test_support_volume_is_exact_where_all_have_a_likelihood():
    assert support_volume(50, 50) == (0.0, 0.0)
    mean, variance = support_volume(500, 2000)
    assert abs(mean - np.log(0.25)) < 2e-3
    assert abs(variance - 0.75 / 500) < 1e-4


def test_insertion_ranks():
    rng = np.random.default_rng(1)
    alive = np.full(4000, 99)
    uniform = rng.integers(0, 100, 4000)
    low = np.minimum(uniform, rng.integers(0, 100, 4000))
    none = np.zeros(4000, int)
    assert insertion_p_value(uniform, none, alive, rng) > 0.01
    assert insertion_p_value(low, none, alive, rng) < 1e-10
    # All level with each other: the order is nobody's.
    assert insertion_p_value(none, alive, alive, rng) > 0.01


# ---- the status ----------------------------------------------------------------------------------


def test_a_bias_of_the_ranks_is_told(monkeypatch):
    monkeypatch.setattr(nested, "insertion_p_value", lambda *ranks: 1e-9)
    result = QUICK.run(shells(), jax.random.key(6))
    assert "insertion_ranks" in [p.kind for p in result.status.problems]
    assert "raise num_inner_steps" in str(result.status)


def test_a_run_that_is_cut_off_is_told():
    # A likelihood without an upper bound.
    target = Target(box(1, 0.0, 1.0), lambda h, data: -2.0 * jnp.log(h["x0"]))
    result = Nested(num_live=50, max_likelihoods=100_000).run(target, jax.random.key(0))
    assert "evidence" in [p.kind for p in result.status.problems]
    assert np.isfinite(result.log_evidence)


def test_few_live_points_leave_too_few_draws():
    result = Nested(num_live=50).run(shells(), jax.random.key(0))
    assert [p.kind for p in result.status.problems] == ["importance_ess"]


@pytest.mark.parametrize("broken", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("sampler", [QUICK, Dynesty(num_live=50)], ids=["nested", "dynesty"])
def test_a_broken_likelihood_far_up_names_the_point(sampler, broken):
    """Where no draw of the prior meets it, a chain must."""

    def log_likelihood(h, data):
        r = jnp.hypot(h["x0"] - 0.3, h["x1"] - 0.3)
        return jnp.where(r < 1e-2, broken, -200.0 * r)

    target = Target(box(2, -1.0, 1.0), log_likelihood)
    with pytest.raises(InputError, match=r"is (nan|inf) at x0=0\.(29|30|31)\d*, x1=0\.(29|30|31)"):
        sampler.run(target, jax.random.key(2))


def test_no_likelihood_anywhere():
    target = Target(box(1, 0.0, 1.0), lambda h, data: jnp.where(h["x0"] > 2, 0.0, -jnp.inf))
    with pytest.raises(InputError, match=r"only 0 of 1000 prior draws have a likelihood.*nearer"):
        Nested(num_live=10).run(target, jax.random.key(0))


def test_numbers_out_of_range():
    with pytest.raises(InputError, match=r"num_live = 5 must be 10 or more; num_delete = 7"):
        Nested(num_live=5, num_delete=7)
    with pytest.raises(InputError, match=r"dlogz = 0 must be positive"):
        Nested(dlogz=0)
    with pytest.raises(InputError, match=r"num_live = 5 must be 10"):
        Dynesty(num_live=5)


def test_a_prior_without_a_transform_is_named():
    prior = Prior({"angle": dist.VonMises(0.0, 1.0)})
    with pytest.raises(InputError, match=r"prior 'angle': VonMises has neither icdf nor cdf"):
        QUICK.run(Target(prior, lambda h, data: 0.0), jax.random.key(0))


# ---- targets -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_numpyro_model_with_a_conditional_prior():
    """Schools-like: theta given mu given data; prior and likelihood come apart in the cube."""
    y = jnp.asarray([0.3, 1.1, 0.7])

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        with numpyro.plate("object", len(y)):
            theta = numpyro.sample("theta", dist.Normal(mu, 1.0))
            numpyro.sample("y", dist.Normal(theta, 0.5), obs=y)
        numpyro.deterministic("double", 2 * mu)

    result = Nested(num_live=300).run(Target.from_numpyro(model, y), jax.random.key(1))
    covariance = 1.25 * np.eye(3) + 4.0
    exact = -0.5 * y @ np.linalg.solve(covariance, y)
    exact -= 0.5 * (np.linalg.slogdet(covariance)[1] + 3 * np.log(2 * np.pi))
    assert abs(result.log_evidence - exact) < 3 * result.log_evidence_error
    precision = 1 / 4 + 3 / 1.25
    row = result.summary()["mu"]
    mean = float(y.sum()) / 1.25 / precision
    assert abs(row["mean"] - mean) < 4 * row["mcse_mean"]
    assert {"mu", "theta[0]", "theta[2]", "double"} <= set(result.draws)


def test_numpyro_model_with_a_discrete_site():
    def model():
        p = numpyro.sample("p", dist.Uniform(0.0, 1.0))
        numpyro.factor("peak", -((p - 0.5) ** 2))
        numpyro.sample("free", dist.ImproperUniform(dist.constraints.real, (), ()))

    with pytest.raises(InputError, match="'free': ImproperUniform"):
        QUICK.run(Target.from_numpyro(model), jax.random.key(0))


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    """The second half alone gives what the whole gave."""
    target = shells()
    whole = QUICK.run(target, jax.random.key(6))
    path = tmp_path / "checkpoint"
    first = Checkpoint(path, {}, every=0.0)
    stopped = Nested(num_live=200, max_likelihoods=20_000)
    stopped.run(target, jax.random.key(6), checkpoint=first.part("sampler"))
    first.write()
    second = Checkpoint(path, {}, every=0.0)
    again = QUICK.run(target, jax.random.key(6), checkpoint=second.part("sampler"))
    assert second.resumed == 1
    np.testing.assert_array_equal(again.draws["x0"], whole.draws["x0"])
    assert again.log_evidence == whole.log_evidence


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shells", pytest.param("five modes", marks=pytest.mark.full)])
def test_dynamic_dynesty(name):
    case = CASES[name]
    result = Dynesty(num_live=250, dynamic=True).run(case.make(), jax.random.key(0))
    check(result, case)
    assert result.status.converged, str(result.status)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shells", "five modes", "edges", "weights of a mixture"])
def test_evidences_scatter_as_their_errors_say(name, sized):
    """z-scores of ln Z over seeds: mean zero, standard deviation one."""
    case, num = CASES[name], sized(full=30, small=4)
    target = case.make()
    results = [Nested(num_live=300).run(target, jax.random.key(seed)) for seed in range(num)]
    z = np.array([(r.log_evidence - case.log_evidence) / r.log_evidence_error for r in results])
    assert abs(z.mean()) < 3.5 / np.sqrt(num)
    low, high = chi2.ppf([1e-3, 1 - 1e-3], num - 1) / (num - 1)
    assert 0.7**2 * low < z.var(ddof=1) < 1.3**2 * high


def test_of_much_data_finished_chains_ask_for_no_likelihood():
    """They wait for the others, and on large data that must not cost what they do."""
    asked = []

    def log_likelihood(h, data):
        jax.debug.callback(lambda: asked.append(1))
        return -0.5 * jnp.mean((h["x"] - data) ** 2) / 0.01

    prior = Prior({"x": dist.Uniform(-1.0, 1.0)})
    target = Target(prior, log_likelihood, data=jnp.zeros(2**18))
    result = Nested(num_live=20, num_delete=5, dlogz=0.5).run(target, jax.random.key(1))
    jax.effects_barrier()
    assert len(asked) == result.measures["num_likelihoods"] > 200
