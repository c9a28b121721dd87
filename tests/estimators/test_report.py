"""Reports: nothing found against the truth, planted faults found and named."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skycensus.estimators.coordinates import Coordinates
from skycensus.estimators.gaussian import GaussianMixture
from skycensus.estimators.learned import LearnedDensity
from skycensus.estimators.report import Report, make_report


def normal(loc=(0.0, 0.0), root=((1.0, 0.0), (0.0, 1.0)), weight=(1.0,)):
    loc, root = np.atleast_2d(loc), np.asarray(root)
    roots = np.broadcast_to(root, (len(loc), 2, 2))
    return GaussianMixture(jnp.log(jnp.array(weight)), jnp.asarray(loc), jnp.asarray(roots))


def report_of(estimate, draws, log_weight=None, num_held=400, **more):
    """The report of a density of (a, b) that claims to describe these draws."""
    density = LearnedDensity(("a", "b"), Coordinates([-np.inf] * 2, [np.inf] * 2), estimate)
    weight = np.ones(len(draws)) if log_weight is None else np.exp(log_weight)
    held, rest = slice(0, num_held), slice(num_held, None)
    parts = [(draws[s], weight[s] / weight[s].sum()) for s in (rest, held)]
    return make_report(jax.random.key(0), density, *parts[0], parts[1], **more)


def standard(num, seed):
    return np.random.default_rng(seed).normal(size=(num, 2))


def kinds(report):
    return [problem.kind for problem in report.problems]


@pytest.mark.slow
def test_the_truth_passes_at_its_own_rates():
    """Over many data sets p values are uniform, coverages those stated, the classifier at 1/2."""
    reports = [report_of(normal(), standard(2000, seed)) for seed in range(30)]
    assert all(report.status.converged for report in reports)
    p = np.array([r.marginals["a"].p_value for r in reports])
    assert 0.3 < p.mean() < 0.7
    coverage = np.mean([r.marginals["b"].coverage["90"] for r in reports])
    assert coverage == pytest.approx(0.9, abs=0.01)
    auc = np.array([(r.classifier - 0.5) / r.classifier_error for r in reports])
    assert abs(auc.mean()) < 0.6 and 0.5 < auc.std() < 1.6
    exact = -1 - np.log(2 * np.pi)
    pull = [(r.log_score - exact) / r.log_score_error for r in reports]
    assert abs(np.mean(pull)) < 0.6 and 0.6 < np.std(pull) < 1.5
    assert np.mean([r.lost for r in reports]) == pytest.approx(1e-3, rel=0.4)


def test_weighted_draws_of_the_truth_pass():
    draws = 1.5 * standard(6000, 1)
    log_weight = -0.5 * np.sum(draws**2, axis=1) * (1 - 1 / 1.5**2)
    report = report_of(normal(), draws, log_weight, num_held=1500)
    assert report.status.converged, str(report)
    weight = np.exp(log_weight)
    assert report.n_eff == pytest.approx(weight.sum() ** 2 / (weight**2).sum(), rel=0.02)


def test_a_lost_mode_is_flagged_and_placed():
    """One draw in fifty is in a mode that the density lacks: no marginal test of few sees it."""
    draws = standard(4000, 2)
    draws[::50] = 0.1 * draws[::50] + [0.0, 7.0]
    report = report_of(normal(), draws)
    assert "density_lost" in kinds(report)
    message = next(p.message for p in report.problems if p.kind == "density_lost")
    assert report.lost == pytest.approx(0.021, abs=0.002)
    place = float(re.search(r"b=([\d.]+)", message)[1])
    assert place == pytest.approx(7.0, abs=0.5)
    assert "a mode or a tail was lost" in message


def test_a_marginal_that_is_wrong_is_named():
    report = report_of(normal(loc=(0.0, 0.5)), standard(4000, 3))
    assert kinds(report)[0] == "density_marginals"
    assert "of b are not" in report.problems[0].message


def test_a_correlation_that_is_missed_is_seen():
    """Both marginals are right; directions and the classifier are not."""
    draws = standard(4000, 4)
    draws[:, 1] = 0.8 * draws[:, 0] + 0.6 * draws[:, 1]
    report = report_of(normal(), draws)
    assert "density_shape" in kinds(report) and "density_marginals" not in kinds(report)
    assert report.classifier > 0.6


def test_a_hole_that_is_missed_is_seen():
    """A ring under a normal of the same moments: only the heights of the density tell."""
    angle = np.random.default_rng(5).uniform(0, 2 * np.pi, 4000)
    draws = np.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    report = report_of(normal(), draws)
    assert report.highest.p_value < 1e-10
    assert not report.status.converged


def test_too_few_draws_are_told():
    report = report_of(normal(), standard(39, 6), num_held=5)
    assert kinds(report) == ["density_draws"]


def test_as_text_and_as_data():
    report = report_of(normal(), standard(2000, 7), scores={"maf": -2.9, "kde": -3.0})
    text = str(report)
    assert f"held-out log score {report.log_score:.4f}" in text and "maf -2.9" in text
    assert text.endswith("converged")
    assert Report.from_dict(report.as_dict()) == report
