r"""Evidence, weights and self-test of nested sampling, from when points were born and died."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import digamma, logsumexp, polygamma


class Integral(NamedTuple):
    r"""What dead points say of the evidence.

    Attributes:
        log_weight: $\ln (L_i\,\Delta X_i)$ of the points, in the order given.
        log_evidence: $\ln Z$.
        error: its standard deviation.
        information: $H = \int p \ln (p/\pi)$, in nats.
    """

    log_weight: np.ndarray
    log_evidence: float
    error: float
    information: float


def integrate(
    log_l: np.ndarray, birth: np.ndarray, log_volume: float = 0.0, volume_variance: float = 0.0
) -> Integral:
    r"""Sum $Z = \sum_i L_i (X_{i-1} - X_i)$ over all points of a run, the last live ones included.

    When a point dies, as many are alive, $n_i$, as were born below it and have not died before.
    The volume shrinks by a factor $t_i \sim \mathrm{Beta}(n_i, 1)$; $\ln X_i = -\sum_{j \le i}
    1/n_j$ is its mean. Points that share a likelihood die one after the other with none born in
    between, which is right for a plateau (Fowlie, Handley & Su 2021, MNRAS 503, 1199). The last
    point has all the volume that is left. The error follows from the variances $1/n_i^2$ of
    $\ln t_i$, to first order:

    $$\operatorname{var} \ln Z = \sum_i \left(\frac{S_i - p_i\,t_i / (1 - t_i)}{n_i}\right)^2,
      \qquad S_i = \sum_{j>i} p_j, \quad p_i = L_i \Delta X_i / Z.$$

    Args:
        log_l: log likelihoods at death, finite, in any order.
        birth: those above which the points were drawn; $-\infty$ for the first.
        log_volume: log of the prior's mass where the likelihood is not zero.
        volume_variance: the variance of that.

    Source: Skilling 2006, Bayesian Analysis 1, 833.
    """
    order = np.argsort(log_l, kind="stable")
    died = log_l[order]
    num = np.searchsorted(np.sort(birth), died, side="left") - np.arange(len(died))
    log_x = log_volume - np.concatenate([[0.0], np.cumsum(1.0 / num)])
    log_shell = log_x[:-1] + np.log(-np.expm1(-1.0 / num))
    log_shell[-1] = log_x[-2]
    log_weight = np.empty_like(died)
    log_weight[order] = died + log_shell
    log_z = float(logsumexp(log_weight))
    p = np.exp(died + log_shell - log_z)
    beyond = np.append(np.cumsum(p[::-1])[-2::-1], 0.0)
    # The last shell has no edge of its own to be uncertain.
    slope = (beyond - p / np.expm1(1.0 / num)) / num
    slope[-1] = 0.0
    variance = float(np.sum(slope**2)) + volume_variance
    return Integral(log_weight, log_z, float(np.sqrt(variance)), float(p @ died) - log_z)


def support_volume(num_inside: int, num_drawn: int) -> tuple[float, float]:
    r"""Mean and variance of $\ln f$ when `num_drawn` prior draws were needed for `num_inside`.

    The last of the draws was inside. $f \sim \mathrm{Beta}(k, N - k)$, with Haldane's prior.
    """
    mean = float(digamma(num_inside) - digamma(num_drawn))
    return mean, float(polygamma(1, num_inside) - polygamma(1, num_drawn))


def insertion_p_value(
    below: np.ndarray, tied: np.ndarray, alive: np.ndarray, rng: np.random.Generator
) -> float:
    r"""Whether new points come uniformly among the old ones: a Kolmogorov–Smirnov p-value.

    A point drawn from the prior above a contour has a rank uniform on $0, \dots, m$ among the $m$
    points that were there already (Fowlie, Handley & Su 2020, MNRAS 497, 5256). Ranks are spread
    over the steps between them, and ties broken, at random.

    One where there are no new points.

    Args:
        below, tied, alive: of every new point, those below it, level with it, and all, before it.
        rng: for that.
    """
    # Half a second to import, which only this sampler should take.
    from scipy.stats import kstest

    if not len(below):
        return 1.0
    rank = below + rng.random(len(below)) * (tied + 1)
    return float(kstest(rank / (alive + 1), "uniform").pvalue)
