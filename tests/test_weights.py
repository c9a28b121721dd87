import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from skycensus.diagnostics import import_arviz
from skycensus.weights import (
    fit_generalised_pareto,
    kish,
    log_mean_weight,
    pareto_k,
    pareto_smooth,
    quantile,
    systematic,
)


@pytest.fixture
def rng():
    return np.random.default_rng(20240)


def test_kish():
    assert kish(np.full(7, -300.0)) == pytest.approx(7)
    assert kish([0.0, -np.inf, 0.0]) == pytest.approx(2)
    assert kish(np.log([1, 2, 3])) == pytest.approx(36 / 14)


@pytest.mark.parametrize("bad", [[np.nan, 0], [-np.inf, -np.inf], [np.inf, 0], []])
def test_weights_that_are_none(bad):
    with pytest.raises(ValueError, match="log_weight"):
        kish(bad)


def test_weighted_quantiles(rng):
    x = rng.normal(scale=2, size=200_000)
    log_weight = stats.norm.logpdf(x) - stats.norm.logpdf(x, scale=2)
    q = np.array([0.05, 0.5, 0.95])
    assert quantile(x, q, log_weight) == pytest.approx(stats.norm.ppf(q), abs=0.02)
    assert quantile([0.0, 1.0], 0.25) == 0.25


def test_the_log_mean_of_weights_and_its_error(rng):
    """Weights exp(N(0, 1)) have the mean e^(1/2); the claimed error is the scatter."""
    log_weight = rng.normal(size=(300, 2000)) - 700.0
    found = np.array([log_mean_weight(row) for row in log_weight])
    value, error = found.mean(axis=0)
    assert value == pytest.approx(-699.5, abs=5 * error / np.sqrt(300))
    assert error == pytest.approx(found[:, 0].std(), rel=0.15)
    assert log_mean_weight(np.full((2, 3), 1.5)) == pytest.approx((1.5, 0.0), abs=1e-7)


@pytest.mark.parametrize("offset", [0.0, 0.31, 1.0 - 1e-16])
def test_systematic_resampling_takes_every_draw_in_proportion(rng, offset):
    weight = rng.exponential(size=(4, 25)) * (rng.random((4, 25)) < 0.7)
    counts = np.bincount(systematic(weight, 1000, offset), minlength=100)
    expected = 1000 * weight.ravel() / weight.sum()
    assert np.all(np.abs(counts - expected) < 1 + 1e-9)
    assert np.all(counts[weight.ravel() == 0] == 0)


# ---- Pareto smoothing ----------------------------------------------------------------------------


@pytest.mark.parametrize("k", [-0.5, 0.2, 0.5, 0.9, 1.5])
def test_generalised_pareto_is_recovered(k):
    n = 4000
    x = np.sort(stats.genpareto.ppf((np.arange(n) + 0.5) / n, k, scale=2.5))
    shape, scale = fit_generalised_pareto(x)
    assert shape == pytest.approx((n * k + 5) / (n + 10), abs=0.02)
    assert scale == pytest.approx(2.5, rel=0.03)


@pytest.mark.parametrize("k", [0.3, 0.6, 1.0])
def test_pareto_tail_of_weights(rng, k):
    """Weights u^-k have a Pareto tail of shape k; the prior of k pulls the fit towards 1/2."""
    log_weight = -k * np.log(rng.random((4, 25_000)))
    tail = 3 * np.sqrt(log_weight.size)
    expected = (tail * k + 5) / (tail + 10)
    assert pareto_k(log_weight) == pytest.approx(expected, abs=4 * (1 + k) / np.sqrt(tail))


def test_smoothing_keeps_order_scale_and_body(rng):
    log_weight = rng.normal(size=(2, 500)) - 1000
    smooth, k = pareto_smooth(log_weight)
    assert smooth.shape == log_weight.shape and smooth.max() <= log_weight.max()
    assert (np.argsort(smooth, axis=None) == np.argsort(log_weight, axis=None)).all()
    assert np.sum(smooth != log_weight) <= np.ceil(3 * np.sqrt(1000))
    assert np.isfinite(k) and k == pareto_k(log_weight + 17.0)


def test_smoothing_agrees_with_arviz(rng):
    log_weight = rng.normal(scale=1.5, size=1000)
    arviz = import_arviz()
    if not hasattr(arviz, "psislw"):
        pytest.skip("arviz 1 has no psislw of arrays")
    expected, k = arviz.psislw(log_weight)
    smooth, ours = pareto_smooth(log_weight)
    assert ours == pytest.approx(float(k), abs=1e-10)
    np.testing.assert_allclose(smooth - logsumexp(smooth), expected, rtol=1e-9)


def test_smoothing_where_there_is_no_tail():
    assert pareto_k(np.zeros(1000)) == -np.inf
    assert pareto_k([0.0, -1.0, -2.0]) == np.inf
    assert pareto_k(np.r_[np.zeros(1), np.full(999, -50.0)]) == np.inf
    assert pareto_k(np.r_[np.zeros(500), np.full(500, -np.inf)]) == -np.inf
    with pytest.raises(ValueError, match="NaN"):
        pareto_smooth([np.nan, 0.0])
