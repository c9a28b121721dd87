r"""Weighted draws: normalised weights, Kish's number, quantiles, resampling, Pareto smoothing.

Everything is NumPy, in any shape; log weights are unnormalised.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def normalised_weights(log_weight: ArrayLike) -> np.ndarray:
    r"""Weights $w_k / \sum_j w_j$ in the shape given.

    Raises:
        ValueError: a NaN or $+\infty$, or no weight above zero.
    """
    log_weight = np.asarray(log_weight, float)
    if log_weight.size == 0 or np.isnan(log_weight).any() or not np.isfinite(log_weight.max()):
        raise ValueError("log_weight must have no NaN or +inf and at least one finite entry.")
    weight = np.exp(log_weight - log_weight.max())
    return weight / weight.sum()


def kish(log_weight: ArrayLike) -> float:
    r"""Kish's effective sample size of weighted draws, $(\sum_k w_k)^2 / \sum_k w_k^2$."""
    return float(1 / np.sum(normalised_weights(log_weight) ** 2))


def log_mean_weight(log_weight: ArrayLike) -> tuple[float, float]:
    r"""$\ln \frac1S \sum_s w_s$, the log evidence of importance weights, and its standard error.

    The error is $\sqrt{1/n_\mathrm{eff} - 1/S}$ with Kish's $n_\mathrm{eff}$.
    """
    log_weight = np.asarray(log_weight, float)
    size = log_weight.size
    value = np.logaddexp.reduce(log_weight, axis=None) - np.log(size)
    return float(value), float(np.sqrt(max(1 / kish(log_weight) - 1 / size, 0.0)))


def quantile(x: ArrayLike, q: Any, log_weight: ArrayLike | None = None) -> np.ndarray:
    """Quantiles of all of `x`: linear between draws, or inverting the weighted distribution."""
    x = np.ravel(x).astype(float)
    if log_weight is None:
        return np.quantile(x, q)
    weights = np.ravel(normalised_weights(log_weight))
    return np.quantile(x, q, weights=weights, method="inverted_cdf")


def systematic(weight: ArrayLike, num: int, offset: float) -> np.ndarray:
    r"""Indices of `num` draws of equal weight, in order, by systematic resampling.

    Of draws with normalised weight $w$ each comes $\lfloor nw \rfloor$ or $\lceil nw \rceil$
    times, on average over a uniform `offset` in [0, 1) $nw$ times.
    """
    cumulative = np.cumsum(np.ravel(np.asarray(weight, float)))
    points = (offset + np.arange(num)) / num * cumulative[-1]
    chosen = np.searchsorted(cumulative, points, side="right")
    # Rounding may put the last point on the sum itself, beyond the last draw with a weight.
    return np.minimum(chosen, np.searchsorted(cumulative, cumulative[-1]))


# ---- Pareto smoothing ----------------------------------------------------------------------------


def _tail_length(n: int, relative_efficiency: float) -> int:
    return int(np.ceil(min(n / 5, 3 * np.sqrt(n / relative_efficiency))))


def fit_generalised_pareto(x: np.ndarray) -> tuple[float, float]:
    r"""Shape $k$ and scale $\sigma$ of $F(x) = 1 - (1 + k x / \sigma)^{-1/k}$ from exceedances.

    The posterior mean over the profile likelihood in $b = -k/\sigma$ (Zhang & Stephens 2009,
    Technometrics 51, 316), with $k$ drawn towards 1/2 by as much as ten points would (Vehtari et
    al. 2024, JMLR 25(72), appendix G).

    Args:
        x: positive exceedances in ascending order.
    """
    n = len(x)
    grid = 30 + int(np.sqrt(n))
    quartile = x[max(int(n / 4 + 0.5) - 1, 0)]
    b = 1 / x[-1] + (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * quartile)
    shape = np.array([np.mean(np.log1p(-value * x)) for value in b])
    log_profile = n * (np.log(-b / shape) - shape - 1)
    b_mean = np.sum(normalised_weights(log_profile) * b)
    k = np.mean(np.log1p(-b_mean * x))
    return float((n * k + 5) / (n + 10)), float(-k / b_mean)


def pareto_smooth(
    log_weight: ArrayLike, *, relative_efficiency: float = 1.0
) -> tuple[np.ndarray, float]:
    r"""Pareto-smoothed log weights in the same shape and on the same scale, and $\hat k$.

    The $M = \min(S/5, 3\sqrt{S/r})$ largest of the $S$ weights become the expected order
    statistics of the generalised Pareto distribution fitted to them, capped at the largest.
    $\hat k > 0.7$: estimates with these weights are unreliable, at any size that one can afford.
    $\hat k$ is $-\infty$ where the tail has equal weights (nothing to smooth), and $+\infty$ where
    fewer than five weights stand above the tail's edge (too few to tell).

    Args:
        log_weight: unnormalised log weights, any shape; $-\infty$ is a weight of zero.
        relative_efficiency: $r$, the effective sample size of the draws over their number.

    Source: Vehtari, Simpson, Gelman, Yao & Gabry 2024, JMLR 25(72).
    """
    raw = np.asarray(log_weight, float)
    normalised_weights(raw)  # raises for a NaN or nothing but zeros
    top = raw.max()
    flat = np.ravel(raw) - top
    order = np.argsort(flat, kind="stable")
    count = _tail_length(flat.size, relative_efficiency)
    if flat.size <= count:
        return raw.copy(), float("inf")
    edge = max(flat[order[-count - 1]], np.log(np.finfo(float).tiny))
    tail = order[-count:][flat[order[-count:]] > edge]
    if tail.size < 5:
        # Equal weights leave no tail at all, which is as good as weights can be.
        return raw.copy(), float("-inf") if edge == 0 else float("inf")
    k, scale = fit_generalised_pareto(np.exp(flat[tail]) - np.exp(edge))
    log_survival = np.log1p(-(np.arange(tail.size) + 0.5) / tail.size)
    steps = -log_survival if k == 0 else np.expm1(-k * log_survival) / k
    flat[tail] = np.minimum(np.log(np.exp(edge) + scale * steps), 0.0)
    return flat.reshape(raw.shape) + top, k


def pareto_k(log_weight: ArrayLike, *, relative_efficiency: float = 1.0) -> float:
    r"""The tail shape $\hat k$ of `pareto_smooth`; give it weights that are not yet smoothed."""
    return pareto_smooth(log_weight, relative_efficiency=relative_efficiency)[1]
