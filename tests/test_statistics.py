"""Information gained and tension, against Gaussian cases with exact answers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import ImportanceSampler, InputError, Joint, Prior, Target
from skycensus.estimators import fit_density
from skycensus.result import Result
from skycensus.statistics import (
    InformationGain,
    Measured,
    information_gain,
    information_gain_of,
    tension,
)
from skycensus.status import Status

PRIOR = Prior({"a": dist.Uniform(-5.0, 5.0), "b": dist.Uniform(-5.0, 5.0)})
MEAN = np.array([0.4, -0.3])
COVARIANCE = np.array([[0.30, 0.12], [0.12, 0.20]])
# A Gaussian of k parameters well inside a uniform prior of volume V.
DIVERGENCE = np.log(100.0) - 0.5 * np.linalg.slogdet(2 * np.pi * np.e * COVARIANCE)[1]


def named(x):
    return {"a": x[..., 0], "b": x[..., 1]}


def draw(seed, size):
    return named(np.random.default_rng(seed).multivariate_normal(MEAN, COVARIANCE, size))


class Exact:
    """The density that the draws have."""

    names = ("a", "b")

    def log_prob(self, theta):
        x = jnp.stack([theta["a"], theta["b"]], axis=-1)
        return dist.MultivariateNormal(MEAN, COVARIANCE).log_prob(x)

    def sample(self, key, sample_shape=()):
        return named(dist.MultivariateNormal(MEAN, COVARIANCE).sample(key, sample_shape))


def within(measured, exact, sds=4.0):
    return abs(measured.value - exact) < sds * measured.error


def test_a_gaussian_in_a_box():
    gain = information_gain(Exact(), PRIOR, draw(1, 4000), key=jax.random.key(2))
    assert within(gain.kl_divergence, DIVERGENCE) and gain.kl_divergence.error < 0.02
    assert within(gain.model_dimensionality, 2.0) and gain.model_dimensionality.error < 0.12


@pytest.mark.slow
def test_a_learned_density_says_the_same_with_its_own_error():
    draws = draw(3, 2000)
    learned = fit_density(jax.random.key(4), draws, kind="gaussian", support=PRIOR)
    gain = information_gain(learned, PRIOR, draws, key=jax.random.key(5))
    assert within(gain.kl_divergence, DIVERGENCE) and within(gain.model_dimensionality, 2.0)


def test_weights_count():
    """Draws of a wider Gaussian, weighted, are worth fewer and say the same."""
    rng = np.random.default_rng(6)
    wide = rng.multivariate_normal(MEAN, 2.0 * COVARIANCE, 4000)
    theta = named(wide)
    proposal = dist.MultivariateNormal(MEAN, 2.0 * COVARIANCE)
    log_weight = np.asarray(Exact().log_prob(theta) - proposal.log_prob(wide))
    gain = information_gain(Exact(), PRIOR, theta, log_weight, key=jax.random.key(7))
    plain = information_gain(Exact(), PRIOR, draw(8, 4000), key=jax.random.key(7))
    assert within(gain.kl_divergence, DIVERGENCE) and within(gain.model_dimensionality, 2.0)
    assert gain.kl_divergence.error > plain.kl_divergence.error


def test_a_density_that_does_not_fit_has_a_larger_error():
    draws = draw(9, 4000)
    shifted = Joint(a=dist.Normal(0.9, 0.55), b=dist.Normal(-0.3, 0.45))
    gain = information_gain(shifted, PRIOR, draws, key=jax.random.key(1))
    assert gain.kl_divergence.error > 0.1


def test_an_ensemble_adds_its_spread():
    class Ensemble(Exact):
        def replicas(self):
            return [Joint(a=dist.Normal(m, 0.55), b=dist.Normal(-0.3, 0.45)) for m in (0.1, 0.6)]

    one, many = (
        information_gain(q, PRIOR, draw(1, 4000), key=jax.random.key(2)).kl_divergence
        for q in (Exact(), Ensemble())
    )
    assert many.value == one.value and many.error > 1.5 * one.error


def run(mean, key):
    """An experiment that measures both with the covariance above."""

    def log_likelihood(h, data):
        x = jnp.stack([h["a"], h["b"]], axis=-1)
        return dist.MultivariateNormal(jnp.asarray(mean), COVARIANCE).log_prob(x)

    target = Target(PRIOR, log_likelihood)
    return ImportanceSampler(target_ess=4000, num_adapt=500).run(target, jax.random.key(key))


def test_a_run_knows_its_gain_without_a_density():
    gain = information_gain_of(run(MEAN, 1))
    assert within(gain.kl_divergence, DIVERGENCE) and within(gain.model_dimensionality, 2.0)


@pytest.mark.parametrize("shift", [0.0, 2.2])
def test_tension_of_two_gaussians(shift):
    """Closed form: ln S = k/2 - chi2/2 with chi2 = d^T (C_A + C_B)^-1 d."""
    other = MEAN + shift * np.array([1.0, -0.3])

    def both(h, data):
        x = jnp.stack([h["a"], h["b"]], axis=-1)
        return sum(dist.MultivariateNormal(m, COVARIANCE).log_prob(x) for m in (MEAN, other))

    joint = ImportanceSampler(target_ess=4000, num_adapt=500).run(
        Target(PRIOR, both), jax.random.key(3)
    )
    found = tension(run(MEAN, 1), run(other, 2), joint)
    offset = other - MEAN
    chi2 = offset @ np.linalg.solve(2 * COVARIANCE, offset)
    log_evidence = dist.MultivariateNormal(MEAN, 2 * COVARIANCE).log_prob(other)
    assert within(found.log_ratio, float(log_evidence) + np.log(100.0))
    assert within(found.log_suspiciousness, 1.0 - 0.5 * chi2)
    assert within(found.dimensionality, 2.0)
    assert (found.probability < 0.01) == (shift > 0)
    assert (found.sigma > 2.5) == (shift > 0)


def test_what_cannot_be_compared_is_told():
    draws = draw(1, 100)
    key = jax.random.key(1)
    with pytest.raises(InputError, match=r"over \['a', 'b'\], the prior over \['a'\]"):
        information_gain(Exact(), PRIOR.marginal(["a"]), draws, key=key)
    narrow = Prior({"a": dist.Uniform(0.0, 1.0), "b": dist.Uniform(-5.0, 5.0)})
    with pytest.raises(InputError, match=r"draws are outside the prior, the first at a=.*widen"):
        information_gain(Exact(), narrow, draws, key=key)
    with pytest.raises(InputError, match=r"has no column 'b'"):
        information_gain(Exact(), PRIOR, {"a": draws["a"]}, key=key)
    blind = Result({"a": np.zeros((1, 4))}, Status(True))
    with pytest.raises(InputError, match=r"no evidence.*nested sampling"):
        information_gain_of(blind)
    gain = InformationGain(Measured(1.0, 0.1), Measured(1.0, 0.1))
    with pytest.raises(InputError, match=r"tension needs evidences"):
        tension(blind, blind, blind, gains=[gain] * 3)


@pytest.mark.slow
def test_stated_errors_are_calibrated(sized):
    """Refits of independent weighted draws: deviations are as large as their errors say."""
    num = sized(full=40, small=20)
    scores = []
    for seed in range(num):
        draws = draw(100 + seed, 1500)
        learned = fit_density(jax.random.key(seed), draws, kind="mixture", support=PRIOR)
        gain = information_gain(learned, PRIOR, draws, key=jax.random.key(1000 + seed))
        scores.append(
            [
                (gain.kl_divergence.value - DIVERGENCE) / gain.kl_divergence.error,
                (gain.model_dimensionality.value - 2.0) / gain.model_dimensionality.error,
            ]
        )
    rms = np.sqrt(np.mean(np.square(scores), axis=0))
    # The root mean square of standard normal scores has the standard deviation (2n)**-1/2.
    assert (np.abs(rms - 1.0) < 0.3 + 3 / np.sqrt(2 * num)).all(), rms
