r"""What data have taught, and whether two experiments agree: numbers, each with its error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.stats import chi2, norm

from .density import Density
from .errors import InputError
from .estimators.chains import read_draws
from .estimators.learned import replica_error
from .prior import Prior
from .result import Result
from .weights import kish, normalised_weights


class Measured(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        digits = max(0, 2 - math.floor(math.log10(self.error))) if self.error > 0 else 6
        return f"{self.value:.{digits}f} +- {self.error:.{digits}f}"


class InformationGain(NamedTuple):
    r"""What data have taught, with the posterior P and the prior π.

    Attributes:
        kl_divergence: $D = \int P \ln\frac{P}{\pi}\,\mathrm{d}\theta$, in nats: how much the prior
            was compressed (Kullback & Leibler 1951).
        model_dimensionality: $d = 2 \operatorname{Var}_P \ln\frac{P}{\pi}$: how many parameters
            were constrained; k for a Gaussian posterior in k parameters within a wide flat prior
            (Handley & Lemos 2019, arXiv:1903.06682).
    """

    kl_divergence: Measured
    model_dimensionality: Measured

    def __str__(self) -> str:
        return f"D = {self.kl_divergence} nats, d = {self.model_dimensionality}"


class Tension(NamedTuple):
    r"""Whether the experiments A and B agree on one model (Handley & Lemos 2019, arXiv:1902.04029).

    Attributes:
        log_ratio: $\ln R = \ln Z_{AB} - \ln Z_A - \ln Z_B$; it depends on how wide the prior is.
        log_suspiciousness: $\ln S = \ln R - (D_A + D_B - D_{AB})$, which does not.
        dimensionality: $d = d_A + d_B - d_{AB}$, the number of parameters that both constrain.
        probability: of a discordance as large by chance, $P(\chi^2_d > d - 2 \ln S)$;
            NaN where $d$ is not positive.
        sigma: the same as a number of standard deviations of a normal distribution, two-sided.
    """

    log_ratio: Measured
    log_suspiciousness: Measured
    dimensionality: Measured
    probability: float
    sigma: float

    def __str__(self) -> str:
        return (
            f"ln R = {self.log_ratio}, ln S = {self.log_suspiciousness}, "
            f"d = {self.dimensionality}: {self.sigma:.1f} sigma"
        )


def information_gain(
    posterior: Density,
    prior: Density | Prior,
    draws: Any,
    log_weight: Any = None,
    *,
    key: Any,
) -> InformationGain:
    r"""Kullback–Leibler divergence and model dimensionality of a learned marginal posterior.

    Both are moments of $r = \ln q - \ln \pi$ over the posterior's draws, where q is the density
    learned from them. Three errors are added in quadrature: the Monte Carlo error of the draws,
    from Kish's $n_\mathrm{eff}$; the spread of its replicas; and half the
    difference to the same moment over draws of q itself, which is zero for a density that fits.

    Args:
        posterior: q, a normalised density over some or all parameters: `fit_density(key, draws)`.
        prior: π over the same parameters (`Prior.marginal`), a learned one where it has no formula.
        draws: of the posterior, by name, shape (n,); those that q was fitted to, or others.
        log_weight: their log weights, (n,); equal where not given.
        key: for the draws of q.

    Raises:
        InputError: parameters that differ, a draw outside the prior or outside the density.
    """
    names = tuple(posterior.names)
    _check_same(names, prior)
    found = read_draws(draws, log_weight).select(names)
    theta = {name: np.asarray(x, float) for name, x in found.columns.items()}
    size = len(theta[names[0]])
    log_weight = np.zeros(size) if found.log_weight is None else np.asarray(found.log_weight)
    used = np.isfinite(log_weight)
    theta = {name: x[used] for name, x in theta.items()}
    log_weight = log_weight[used]
    log_prior = _finite(prior, theta, "the prior", "widen the prior, or draw within it")
    ratio = _finite(posterior, theta, "the density", "widen its support") - log_prior
    own = {name: np.asarray(x) for name, x in posterior.sample(key, (size,)).items()}
    inside, log_own = _log_prob(prior, own), _log_prob(posterior, own)
    # Where the density leaks out of the prior there is nothing to compare with.
    kept = np.isfinite(inside)
    # Farther out than any draw, the density's tails are nobody's measurement.
    own_ratio = np.maximum(log_own[kept] - inside[kept], ratio.min())
    mine = _moments(own_ratio, np.zeros(kept.sum()))
    spread = replica_error(
        posterior,
        lambda one: _values(_moments(_log_prob(one, theta) - log_prior, log_weight)),
    )
    errors = np.broadcast_to(spread, 2)
    return InformationGain(*map(_with_fit, _moments(ratio, log_weight), mine, errors))


def information_gain_of(result: Result) -> InformationGain:
    r"""The same of all the parameters of a run: $\ln P/\pi = \ln L - \ln Z$ needs no density.

    Raises:
        InputError: the run has no evidence.
    """
    if result.log_evidence is None or "log_likelihood" not in result.sample_stats:
        raise InputError(
            "this result has no evidence or no log likelihoods; sample with importance sampling "
            "or nested sampling."
        )
    log_likelihood = np.ravel(result.sample_stats["log_likelihood"])
    log_weight = np.ravel(np.log(np.maximum(result.weights, 1e-300)))
    n_eff = result.effective_sample_size()
    divergence, dimensionality = _moments(
        log_likelihood - result.log_evidence, log_weight, min(n_eff, kish(log_weight))
    )
    error = math.hypot(divergence.error, result.log_evidence_error or 0.0)
    return InformationGain(divergence._replace(error=error), dimensionality)


def tension(
    first: Result,
    second: Result,
    joint: Result,
    *,
    gains: Sequence[InformationGain] | None = None,
) -> Tension:
    r"""Compare two experiments by their own runs and the joint one; see `Tension`.

    Args:
        first, second, joint: runs with evidences, all with the same prior of what they share.
        gains: the information gains of the three in this order, where they are to be those of the
            shared parameters (`information_gain`); default: `information_gain_of` each run.

    Raises:
        InputError: a run has no evidence.
    """
    runs = (first, second, joint)
    a, b, both = gains if gains is not None else [information_gain_of(run) for run in runs]
    if any(run.log_evidence is None for run in runs):
        raise InputError("tension needs evidences; sample with importance or nested sampling.")
    evidences = [Measured(run.log_evidence or 0.0, run.log_evidence_error or 0.0) for run in runs]
    log_ratio = _sum((evidences[2], 1.0), (evidences[0], -1.0), (evidences[1], -1.0))
    information = _sum((a.kl_divergence, 1.0), (b.kl_divergence, 1.0), (both.kl_divergence, -1.0))
    suspiciousness = _sum((log_ratio, 1.0), (information, -1.0))
    shared = _sum(
        (a.model_dimensionality, 1.0),
        (b.model_dimensionality, 1.0),
        (both.model_dimensionality, -1.0),
    )
    d = shared.value
    probability = float(chi2.sf(d - 2.0 * suspiciousness.value, d)) if d > 0 else math.nan
    sigma = float(norm.isf(0.5 * probability)) if probability > 0 else math.inf
    return Tension(log_ratio, suspiciousness, shared, probability, math.nan if d <= 0 else sigma)


# ---- parts ---------------------------------------------------------------------------------------


def _moments(
    ratio: np.ndarray, log_weight: np.ndarray, n_eff: float | None = None
) -> tuple[Measured, Measured]:
    """The mean of a log ratio and twice its variance, with their Monte Carlo errors."""
    weight = normalised_weights(log_weight)
    # Kish's number where it is weights that count, the number of draws where all are alike.
    n_eff = kish(log_weight) if n_eff is None else n_eff
    mean = float(weight @ ratio)
    centred = ratio - mean
    variance = float(weight @ centred**2)
    fourth = float(weight @ centred**4)
    return (
        Measured(mean, math.sqrt(variance / n_eff)),
        Measured(2 * variance, 2 * math.sqrt(max(fourth - variance**2, 0.0) / n_eff)),
    )


def _values(pair: tuple[Measured, Measured]) -> list[float]:
    return [one.value for one in pair]


def _with_fit(value: Measured, own: Measured, spread: float) -> Measured:
    misfit = 0.5 * abs(own.value - value.value)
    return value._replace(error=math.sqrt(value.error**2 + spread**2 + misfit**2))


def _sum(*terms: tuple[Measured, float]) -> Measured:
    """A sum of independent numbers with factors."""
    value = sum(factor * one.value for one, factor in terms)
    return Measured(value, math.hypot(*(factor * one.error for one, factor in terms)))


def _check_same(names: tuple[str, ...], prior: Density | Prior) -> None:
    if sorted(prior.names) != sorted(names):
        raise InputError(
            f"the density is over {list(names)}, the prior over {list(prior.names)}; take "
            "prior.marginal of these names, or fit the density to all parameters of the prior."
        )


def _log_prob(density: Density | Prior, theta: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(jax.device_get(density.log_prob(theta)), np.float64)


def _finite(
    density: Density | Prior, theta: Mapping[str, np.ndarray], what: str, remedy: str
) -> np.ndarray:
    values = _log_prob(density, theta)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        point = ", ".join(f"{name}={x[bad[0]]:.6g}" for name, x in theta.items())
        raise InputError(
            f"{bad.size} of {len(values)} draws are outside {what}, the first at {point}; {remedy}."
        )
    return values
