r"""How well Monte Carlo sums know the shape of a posterior: the error that its points do not share.

Let $\epsilon(\Lambda)$ be the error of $\ln\hat L(\Lambda)$, with covariance $C(\Lambda,\Lambda')$.
An error that all points of the posterior share changes the evidence and nothing else. What is left,

$$V = \langle C(\Lambda, \Lambda) \rangle - \langle C(\Lambda, \Lambda') \rangle
    = \tfrac12 \langle \operatorname{var}[\epsilon(\Lambda) - \epsilon(\Lambda')] \rangle,$$

averaged over independent $\Lambda, \Lambda'$ of the posterior, costs it $V/2$ nats: the expected
divergence of the posterior that is seen from the exact one (to second order in $\epsilon$; Heinzel
& Vitale 2025, arXiv:2509.07221; that differences are what matters, Essick & Farr 2022,
arXiv:2204.00461). As the draws are the same at every $\Lambda$, their shares of a sum, $u_{ij} =
w_{ij} / \sum_k w_{ik}$, give

$$\operatorname{cov}[\ln\hat m_i(\Lambda), \ln\hat m_i(\Lambda')] =
  \sum_j u_{ij}(\Lambda)\,u_{ij}(\Lambda') - \frac1{N_i},$$

so that the second average takes no pairs of points: it is that of the averaged shares.

The logarithm of a noisy sum is too small as well, by half its variance to first order: $\ln\hat L$
by $\frac12 \sum_i \operatorname{var}\ln\hat m_i$, and with a rate of "shape" too large by $\frac N2
\operatorname{var}\ln\hat m_\det$ (the selection of a Poisson rate enters without a logarithm).
Where that changes over the posterior it pulls the posterior away from populations that the draws
hardly resolve; weighting its draws by the inverse shows how far.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .informed import mean_shares
from .likelihood import Samples
from .model import HierarchicalModel
from .status import Problem

LARGEST = 1.0
"""A larger variance of log L (Talbot & Golomb 2023, arXiv:2304.06138) or of its differences fails
or is worth a note; see `precision_findings`."""


LARGEST_BIAS = 0.5
"""A larger shift of a mean, in standard deviations, by the bias of the logarithms fails."""

# Points at which differences are looked at: enough for an average over pairs of them.
_MOST_POINTS = 64


class Precision(NamedTuple):
    r"""Monte Carlo variance of $\ln\hat L$ over the posterior.

    Attributes:
        mean: $\langle C(\Lambda, \Lambda) \rangle$.
        largest: the largest at any of the points.
        difference: $V$; None where the noise of objects or selection at two points has a covariance
            that is not known, or where there are no two points.
        bias: by how many standard deviations the mean of each hyperparameter would move, were the
            logarithms of sums not too small by half their variances.
    """

    mean: float
    largest: float
    difference: float | None
    bias: Mapping[str, float] = MappingProxyType({})


def likelihood_precision(
    model: HierarchicalModel,
    free: Mapping[str, np.ndarray],
    weight: np.ndarray,
    at: Mapping[str, np.ndarray],
) -> Precision:
    """Estimate the Monte Carlo variance of log L and of its differences over the posterior.

    Args:
        model: whose likelihood it is.
        free: free hyperparameters at draws of the posterior, name -> (point,).
        weight: of these draws, (point,).
        at: what `analysis.marginals_at` says of them.
    """
    # A draw without weight may have no variance to speak of; it says nothing either.
    used = np.flatnonzero(weight > 0)
    variance = at["log_likelihood_variance"]
    largest = float(variance[used].max())
    mean = float(np.average(variance[used], weights=weight[used]))
    lacking = 0.5 * at["variance"][used].sum(axis=-1)
    if model.selection is not None and model.rate == "shape":
        lacking = lacking - 0.5 * len(model.likelihood.names) * at["detected_variance"][used]
    bias = _bias({name: x[used] for name, x in free.items()}, weight[used], lacking)
    if len(used) > _MOST_POINTS:
        used = used[np.linspace(0, len(used) - 1, _MOST_POINTS).round().astype(int)]
    share = weight[used] / weight[used].sum()
    # The share of pairs of different points among all pairs.
    pairs = 1.0 - float(np.sum(share**2))
    if pairs <= 0 or not np.isfinite(mean):
        return Precision(mean, largest, None, bias)
    hyper = model.prior.complete({name: jnp.asarray(x[used]) for name, x in free.items()})
    points = {name: jnp.broadcast_to(x, share.shape) for name, x in hyper.items()}
    known = _Marginals(at["value"][used], at["variance"][used], share[:, None])
    shared = _shared(model, model.likelihood, points, known)
    if model.selection is not None and shared is not None:
        value = at["detected"][used] - model.log_exposure
        factor = share * at["detected_weight"][used]
        columns = (value, at["detected_variance"][used], factor)
        known = _Marginals(*(x[:, None] for x in columns))
        more = _shared(model, model.selection, points, known)
        shared = None if more is None else shared + more
    if shared is None:
        return Precision(mean, largest, None, bias)
    return Precision(mean, largest, (float(share @ variance[used]) - shared) / pairs, bias)


def _bias(
    free: Mapping[str, np.ndarray], weight: np.ndarray, lacking: np.ndarray
) -> dict[str, float]:
    """By how many standard deviations means move when log L gets back what it lacks."""
    if not np.isfinite(lacking).all():
        return {}
    before = weight / weight.sum()
    after = before * np.exp(lacking - lacking.max())
    after /= after.sum()
    out = {}
    for name, x in free.items():
        mean = before @ x
        sd = np.sqrt(before @ (x - mean) ** 2)
        if np.ptp(x) > 0:
            out[name] = float((after @ x - mean) / sd)
    return out


class _Marginals(NamedTuple):
    """Log marginals of a form at points and their variances, (point, object), and factors c_is."""

    value: np.ndarray
    variance: np.ndarray
    factor: np.ndarray


def _shared(model: HierarchicalModel, form: Any, points: Any, known: _Marginals) -> float | None:
    r"""Variance of $\sum_s c_{is} \ln\hat m_i(\Lambda_s)$, summed over the objects of a form.

    `points` are the hyperparameters, name -> (point,). None where the form does not say.
    """
    if not known.variance.any():
        return 0.0
    if not isinstance(form, Samples):
        return None
    drawn = np.asarray(form.num_drawn, float)
    sound = np.isfinite(known.value)
    log_sum = np.where(sound, known.value + np.log(drawn), 0.0)
    factor = np.where(sound, known.factor, 0.0)
    shares = mean_shares(model.population, form, points, jnp.asarray(log_sum), jnp.asarray(factor))
    total = np.sum(np.asarray(shares, float) ** 2)
    return float(total - np.sum(factor.sum(axis=0) ** 2 / drawn))


def precision_findings(
    precision: Precision, limit: float | None = None
) -> tuple[list[Problem], list[Problem]]:
    r"""Problems and notes: the posterior is not known, or the evidence alone is not.

    Args:
        precision: what was found.
        limit: of the mean variance, if the user has set one; beyond it is a problem as well.
    """
    problems, notes = [], []
    mean, difference = precision.mean, precision.difference
    if difference is not None and difference > LARGEST:
        found = f"the Monte Carlo variance of differences of log L is {difference:.3g}"
        problems.append(_finding(f"{found} over the posterior", LARGEST))
    name, shift = max(precision.bias.items(), key=lambda one: abs(one[1]), default=("", 0.0))
    if abs(shift) > LARGEST_BIAS:
        found = f"the Monte Carlo noise of log L moves '{name}' by {-shift:.2g} sd"
        problems.append(_finding(found, LARGEST_BIAS))
    most = limit or LARGEST
    if mean > most:
        finding = _finding(f"the mean Monte Carlo variance of log L is {mean:.3g}", most)
        if limit is not None:
            problems.append(finding)
        elif difference is None:
            notes.append(finding)
        elif not problems:
            text = (
                f"the mean Monte Carlo variance of log L is {mean:.3g}, of its differences over "
                f"the posterior {difference:.3g}: the posterior is known, the log evidence to "
                f"+- {np.sqrt(mean):.2g}."
            )
            notes.append(Problem("monte_carlo_variance", text))
    return problems, notes


def _finding(text: str, goal: float) -> Problem:
    return Problem.of("monte_carlo_variance", f"{text} (goal {goal:g} at most)")
