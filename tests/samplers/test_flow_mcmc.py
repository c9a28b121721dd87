from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus.errors import InputError
from skycensus.prior import Prior
from skycensus.samplers.flow_chains import whitened
from skycensus.samplers.flow_mcmc import FlowMCMC
from skycensus.samplers.pilot import Pilot
from skycensus.target import Target

# Small enough to compile in seconds; the flow has little to learn here.
SMALL: dict[str, Any] = {
    "num_chains": 8,
    "num_training_loops": 3,
    "num_production_loops": 25,
    "num_local_steps": 10,
    "num_global_steps": 30,
    "num_layers": 2,
    "hidden_units": (16,),
    "num_bins": 5,
    "num_epochs": 5,
    "max_examples": 2000,
    "batch_size": 500,
    "proposal_batch_size": 30,
}

NAMES = ("a", "b", "c")
PRIOR_SD = np.array([10.0, 10.0, 100.0])
CENTER = np.array([1.0, 2.0, 30.0])
SD = np.array([1.0, 0.1, 10.0])
CORRELATION = np.array([[1.0, 0.9, 0.3], [0.9, 1.0, 0.2], [0.3, 0.2, 1.0]])
COVARIANCE = CORRELATION * np.outer(SD, SD)


def gaussian_target(**options):
    """A correlated Gaussian likelihood with scales apart by a hundred, its precision as data."""

    def log_likelihood(h, data):
        z = jnp.stack([h[name] for name in NAMES]) - data["center"]
        return -0.5 * z @ data["precision"] @ z

    data = {"center": jnp.asarray(CENTER), "precision": jnp.linalg.inv(COVARIANCE)}
    prior = {name: dist.Normal(0.0, sd) for name, sd in zip(NAMES, PRIOR_SD, strict=True)}
    return Target(Prior(prior), log_likelihood, data=data, **options)


def gaussian_posterior():
    """Mean, covariance and log evidence in closed form."""
    prior = np.diag(PRIOR_SD**2)
    precision = np.linalg.inv(COVARIANCE)
    covariance = np.linalg.inv(precision + np.linalg.inv(prior))
    total = COVARIANCE + prior
    log_ratio = np.linalg.slogdet(COVARIANCE)[1] - np.linalg.slogdet(total)[1]
    log_evidence = 0.5 * (log_ratio - CENTER @ np.linalg.solve(total, CENTER))
    return covariance @ precision @ CENTER, covariance, log_evidence


def line_target(log_likelihood, prior=None, **options):
    prior = {"x": dist.Normal(0.0, 1.0)} if prior is None else prior
    return Target(Prior(prior), log_likelihood, **options)


def assert_moments(result, mean, sd):
    for row, m, s in zip(result.summary().values(), mean, sd, strict=True):
        assert abs(row["mean"] - m) < 4 * row["mcse_mean"]
        # The relative error of a Gaussian's standard deviation is 1 / sqrt(2 ESS).
        assert abs(np.log(row["sd"] / s)) < 4 / np.sqrt(2 * min(row["ess_bulk"], row["ess_tail"]))


# Every kernel is compiled anew, which takes most of the time.
@pytest.mark.slow
@pytest.mark.parametrize("local_sampler", ["hmc", "mala", "random_walk"])
def test_correlated_gaussian(local_sampler):
    target, (mean, covariance, log_evidence) = gaussian_target(), gaussian_posterior()
    steps = []
    result = FlowMCMC(local_sampler=local_sampler, **SMALL).run(
        target, jax.random.key(1), progress=lambda *step: steps.append(step)
    )
    assert result.shape == (8, 25 * 40)
    assert_moments(result, mean, np.sqrt(np.diag(covariance)))
    x = np.stack([result.draws[name].ravel() for name in NAMES])
    expected = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert np.corrcoef(x)[0, 1] == pytest.approx(expected, abs=0.03)

    assert result.status.converged, str(result.status)
    assert result.measures["flow_k_hat"] < 0.7
    assert result.log_evidence is not None and result.log_evidence_error is not None
    assert abs(result.log_evidence - log_evidence) < 4 * result.log_evidence_error
    assert result.log_evidence_error < 0.05
    assert 0.2 < result.measures["local_acceptance"] < 1
    assert result.measures["global_acceptance"] > 0.5
    assert result.sample_stats["global_step"].mean() == 30 / 40
    assert steps[-1] == (28, 28, "sampling")

    # lp is the log density of the very draws that are returned.
    draw = {name: x[3, 17] for name, x in result.draws.items()}
    lp = target.log_density(target.unconstrain(draw))
    assert result.sample_stats["lp"][3, 17] == pytest.approx(float(lp), rel=1e-9)


@pytest.mark.slow
def test_two_modes_have_their_weights():
    """Modes 16 standard deviations apart, with a third and two thirds of the mass."""
    sd, center = 0.5, 4.0

    def log_likelihood(h, data):
        del data
        modes = [
            jnp.log(weight)
            + dist.Normal(sign * center, sd).log_prob(h["x"])
            + dist.Normal(-sign * center, sd).log_prob(h["y"])
            for sign, weight in ((1.0, 1 / 3), (-1.0, 2 / 3))
        ]
        return jnp.logaddexp(*modes)

    prior = {"x": dist.Uniform(-10.0, 10.0), "y": dist.Uniform(-10.0, 10.0)}
    more = {"num_training_loops": 5, "num_production_loops": 60, "num_epochs": 20, "num_layers": 4}
    settings = SMALL | more
    result = FlowMCMC(**settings).run(line_target(log_likelihood, prior), jax.random.key(2))
    assert result.status.converged, str(result.status)
    x, y = result.draws["x"], result.draws["y"]
    n_eff = min(row["ess_bulk"] for row in result.summary().values())
    assert abs(np.mean(x > 0) - 1 / 3) < 4 * np.sqrt(2 / 9 / n_eff)
    assert np.all(np.sign(x) == -np.sign(y))
    right = x[x > 0]
    assert right.mean() == pytest.approx(center, abs=4 * sd / np.sqrt(n_eff / 3))
    assert right.std() == pytest.approx(sd, rel=4 / np.sqrt(2 * n_eff / 3))
    # A flow stretched over two modes has thin tails; where they are too thin, no evidence is given.
    assert (result.log_evidence is None) == (result.measures["flow_k_hat"] > 0.7)
    if result.log_evidence is not None and result.log_evidence_error is not None:
        assert abs(result.log_evidence + 2 * np.log(20)) < 4 * result.log_evidence_error


@pytest.mark.slow
def test_the_same_key_gives_the_same_draws():
    settings = SMALL | {"num_production_loops": 1, "num_flow_draws": 100}
    runs = [FlowMCMC(**settings).run(gaussian_target(), jax.random.key(k)) for k in (3, 3, 4)]
    for name in NAMES:
        np.testing.assert_array_equal(runs[0].draws[name], runs[1].draws[name])
        assert np.any(runs[0].draws[name] != runs[2].draws[name])
    assert runs[0].log_evidence == runs[1].log_evidence


@pytest.mark.slow
def test_a_jumping_likelihood_is_sampled_as_it_is():
    """Half of a normal, whose edge no gradient sees; the smooth version shows where it is."""

    def sharp(h, data):
        del data
        return jnp.where(h["x"] > 0.5, 0.0, -jnp.inf)

    def smooth():
        return line_target(lambda h, data: jax.nn.log_sigmoid((h["x"] - 0.5) / 0.05))

    settings = SMALL | {"num_local_steps": 20}
    result = FlowMCMC(**settings).run(line_target(sharp, smooth=smooth), jax.random.key(5))
    assert result.draws["x"].min() > 0.5
    # The mean and variance of a truncated normal in closed form.
    tail = 1 - 0.6914624612740131
    hazard = np.exp(-0.125) / np.sqrt(2 * np.pi) / tail
    assert_moments(result, [hazard], [np.sqrt(1 + 0.5 * hazard - hazard**2)])
    assert result.log_evidence is not None and result.log_evidence_error is not None
    assert abs(result.log_evidence - np.log(tail)) < 4 * result.log_evidence_error


@pytest.mark.slow
def test_thinning_and_batches_keep_the_shapes():
    settings = SMALL | {
        "num_production_loops": 2,
        "local_thinning": 3,
        "global_thinning": 7,
        "chain_batch_size": 4,
        "proposal_batch_size": 4,
        "num_flow_draws": 0,
    }
    result = FlowMCMC(**settings).run(gaussian_target(), jax.random.key(6))
    assert result.shape == (8, 2 * (10 // 3 + 30 // 7))
    assert np.isfinite(result.sample_stats["lp"]).all()
    acceptance = result.sample_stats["acceptance"]
    assert np.all((acceptance >= 0) & (acceptance <= 1))
    assert result.log_evidence is None
    # So few draws are no posterior, and the remedy names a setting of this sampler.
    assert not result.status.converged
    assert "num_production_loops" in str(result.status)


def test_large_data_are_gone_through_for_one_chain_at_a_time():
    """Chains in step would need arrays of chains times data, which no cache holds."""
    size = 2**18
    data = jnp.linspace(0.0, 1.0, size)
    target = line_target(lambda h, data: -0.5 * jnp.mean((h["x"] - data) ** 2), data=data)
    pilot = Pilot(np.zeros((4, 1)), np.zeros(1), np.eye(1), 0)
    log_density, arrays = whitened(target, target, pilot)
    both = jax.vmap(jax.value_and_grad(log_density), (0, None))
    y = jnp.linspace(-1.0, 1.0, 4)[:, None]
    assert f"4,{size}]" not in str(jax.make_jaxpr(both)(y, arrays))
    value, slope = jax.jit(both)(y, arrays)
    x = y[:, 0]
    np.testing.assert_allclose(slope[:, 0], -x - (x - 0.5), rtol=1e-9)
    expected = -0.5 * x**2 - 0.5 * jnp.mean((x[:, None] - data) ** 2, axis=1)
    np.testing.assert_allclose(value, expected - 0.5 * np.log(2 * np.pi), rtol=1e-9)


# ---- what goes wrong -----------------------------------------------------------------------------


def test_no_prior_draw_with_a_likelihood():
    target = line_target(lambda h, data: jnp.where(h["x"] > 100, 0.0, -jnp.inf))
    with pytest.raises(InputError, match="none of 2048 prior draws has a likelihood above zero"):
        FlowMCMC(**SMALL).run(target, jax.random.key(0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_likelihood_among_the_starts_is_named(value):
    target = line_target(lambda h, data: jnp.where(h["x"] > 1, value, 0.0))
    with pytest.raises(InputError, match=r"the log density is (nan|inf) at x=[\d.]+ "):
        FlowMCMC(**SMALL).run(target, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "local_sampler", ["hmc", pytest.param("random_walk", marks=pytest.mark.slow)]
)
def test_a_broken_likelihood_on_the_way_is_named(local_sampler, monkeypatch):
    """The pilot looks elsewhere, so that only the chains meet the NaN."""
    from skycensus.samplers import flow_mcmc

    def one_sided(target, rng, *, num_chains, **rest):
        start = -np.abs(rng.standard_normal((num_chains, 1)))
        return flow_mcmc.Pilot(start, np.zeros(1), np.eye(1), 0)

    monkeypatch.setattr(flow_mcmc, "run_pilot", one_sided)
    target = line_target(lambda h, data: jnp.where(h["x"] > 1, jnp.nan, 0.0))
    settings = SMALL | {"local_sampler": local_sampler}
    result = FlowMCMC(**settings).run(target, jax.random.key(0))
    assert not result.status.converged
    message = next(p.message for p in result.status.problems if p.kind == "nan_likelihood")
    assert "the log density is nan at x=1." in message or "nan at x=2." in message


def test_a_broken_gradient_is_named():
    def log_likelihood(h, data):
        # The classic: a square root whose branch is not taken, at zero.
        return -jnp.where(h["x"] > 5, jnp.sqrt(0.0 * h["x"]), h["x"] ** 2)

    with pytest.raises(InputError, match=r"gradient .* at x=.* local_sampler='random_walk'"):
        FlowMCMC(**SMALL).run(line_target(log_likelihood), jax.random.key(0))


def test_settings_that_make_no_sense_are_all_named():
    with pytest.raises(InputError) as error:
        FlowMCMC(
            num_chains=0,
            num_bins=2.5,  # type: ignore[arg-type]
            local_sampler="hcm",  # type: ignore[arg-type]
            step_size=-1.0,
            spline_range=(3.0, -3.0),
            mass_matrix=[1.0, 0.0],
        )
    message = str(error.value)
    for part in ("num_chains=0", "num_bins=2.5", "did you mean 'hmc'?", "step_size=-1.0"):
        assert part in message
    assert "spline_range" in message and "mass_matrix" in message
    with pytest.raises(InputError, match="local_thinning=30 keeps none of num_local_steps=20"):
        FlowMCMC(local_thinning=30, num_local_steps=20)
    with pytest.raises(InputError, match="2 numbers for 3 parameters"):
        FlowMCMC(**SMALL, mass_matrix=[1.0, 2.0]).run(gaussian_target(), jax.random.key(0))
