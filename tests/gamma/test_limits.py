"""Upper limits and evidence, where only the number of photons counts: the answers are exact."""

from dataclasses import replace

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import gammainc, gammaln
from scipy.stats import gamma, poisson

from skycensus import InputError, Prior, QuadratureSampler
from skycensus.gamma.expected import expected_counts
from skycensus.gamma.fold import Cut
from skycensus.gamma.limits import (
    expected_limits,
    signal_evidence,
    upper_limit,
    without,
)
from skycensus.gamma.photons import Observation, Source
from skycensus.gamma.response import synthetic_tables
from skycensus.gamma.simulate import draw_counts, simulate
from skycensus.gamma.sky import Box, Isotropic
from skycensus.gamma.spectra import PowerLaw

# Signal and background look the same: where a photon is says nothing.
SAME = Source(Isotropic(), PowerLaw(2.5, low=0.01, high=300.0, log_amplitude=np.log(1e-8)))
TREE = {"signal": SAME, "rest": {"other": SAME}}
EMPTY = Observation(
    tables=synthetic_tables(),
    pointing=(0.0, 0.0),
    livetime=3000.0,
    cut=Cut(Box((-0.5, 0.5), (-0.5, 0.5)), 1.0, 30.0),
)
MOST, LEVEL = 5.0, 0.95


@pytest.fixture(scope="module")
def expected() -> float:
    """Photons of either, at a rate factor of one."""
    return expected_counts(EMPTY, TREE, {"signal": 1.0, "other": 1.0})["signal"]


def prior() -> Prior:
    return Prior({"signal": dist.Uniform(0.0, MOST), "other": 1.0})


def exact_limit(num: int, expected: float) -> float:
    """Of n ~ Poisson((s + 1) N) with s uniform from 0 to MOST."""
    low, high = gammainc(num + 1, expected), gammainc(num + 1, (1.0 + MOST) * expected)
    return gamma.ppf(low + LEVEL * (high - low), num + 1) / expected - 1.0


def exact_evidence(num: int, expected: float) -> float:
    """ln of the mean over s of the Poisson likelihood, over that at s = 0."""
    low, high = gammainc(num + 1, expected), gammainc(num + 1, (1.0 + MOST) * expected)
    mean = np.log(high - low) - np.log(MOST * expected)
    return mean - (num * np.log(expected) - expected - gammaln(num + 1))


@pytest.fixture(scope="module")
def seen(expected):
    assert 5 < expected < 50  # few, so that the limit is not a Gaussian's
    counts = {"signal": 4, "other": int(expected)}
    return simulate(EMPTY, TREE, {}, counts, jax.random.key(1))[0]


@pytest.fixture(scope="module")
def evidence(seen):
    return signal_evidence(
        [seen], TREE, prior(), "signal", jax.random.key(2), sampler=QuadratureSampler()
    )


def test_the_limit_is_that_of_the_counts(seen, expected, evidence):
    limit = upper_limit(evidence.present, "signal")
    # 20,000 draws: a quantile's own error is below a percent.
    assert limit == pytest.approx(exact_limit(len(seen.energy), expected), rel=0.02)
    with pytest.raises(InputError, match="did you mean 'signal'"):
        upper_limit(evidence.present, "signl")


def test_the_evidence_is_that_of_the_counts(seen, expected, evidence):
    exact = exact_evidence(len(seen.energy), expected)
    assert evidence.log_bayes_factor == pytest.approx(exact, abs=2e-3)
    assert evidence.absent is None  # nothing is free in it


@pytest.mark.slow
def test_limits_without_a_signal_are_those_of_their_counts(expected):
    found = expected_limits(
        [EMPTY],
        TREE,
        prior(),
        {"signal": 0.0, "other": 1.0},
        "signal",
        jax.random.key(3),
        num_catalogues=60,
    )
    want = np.array([exact_limit(n, expected) for n in found.counts])
    np.testing.assert_allclose(found.limits, want, rtol=0.1)
    assert abs(np.mean(found.limits / want) - 1) < 0.02
    assert found.n_eff.min() > 200
    # Poisson counts: their mean, and that of the limits over all counts that there may be.
    assert abs(found.counts.mean() - expected) < 4 * np.sqrt(expected / 60)
    numbers = np.arange(poisson.ppf(1e-6, expected), poisson.ppf(1 - 1e-6, expected) + 1)
    limits = np.array([exact_limit(int(n), expected) for n in numbers])
    mean = np.sum(poisson.pmf(numbers, expected) * limits)
    assert abs(found.limits.mean() - mean) < 4 * limits.std() / np.sqrt(60)
    low, _, middle, _, high = found.quantiles()
    assert low < middle < high


def test_a_tree_without_a_component():
    assert list(without(TREE, "signal")) == ["rest"]
    assert list(without(TREE, "rest/other")) == ["signal"]
    with pytest.raises(InputError, match="no component 'sygnal'"):
        without(TREE, "sygnal")
    with pytest.raises(InputError, match="nothing is left"):
        without({"signal": SAME}, "signal")


def test_what_ties_a_signal_to_the_rest_is_told(seen):
    together = {"signal, other": dist.Dirichlet(np.ones(2))}
    with pytest.raises(InputError, match="ties what the signal has"):
        signal_evidence([seen], TREE, Prior(together), "signal", jax.random.key(0))
    tied = Prior({"signal": dist.Uniform(0.0, MOST), "other": "signal"})
    with pytest.raises(InputError, match="is tied to 'signal'"):
        signal_evidence([seen], TREE, tied, "signal", jax.random.key(0))
    with pytest.raises(InputError, match="'other' is no free hyperparameter"):
        expected_limits(
            [EMPTY], TREE, prior(), {"signal": 0.0, "other": 1.0}, "other", jax.random.key(0)
        )


def test_counts_follow_the_model(expected):
    both = [replace(EMPTY, livetime=3e6), replace(EMPTY, livetime=9e6, name="longer")]
    h = {"signal": 2.0, "rest": 0.5, "other": 1.0}
    drawn = draw_counts(both, TREE, h, jax.random.key(0))
    for path, mean in (("signal", 8000 * expected), ("rest/other", 4000 * expected)):
        assert abs(drawn[path] - mean) < 4 * np.sqrt(mean)
    fractions = {"signal": 0.3, "rest": 0.7, "other": 1.0}
    shares = draw_counts(both, TREE, fractions, jax.random.key(1), num_photons=1000)
    assert sum(shares.values()) == 1000 and abs(shares["signal"] - 300) < 60
