r"""From the prior to the posterior without a gradient: where chains start, how far they step."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import numpy as np

from ..errors import InputError
from ..target import Target
from ..weights import normalised_weights, systematic
from . import Progress, evaluate
from .tempering import next_temperature

# A random walk works best at about this acceptance (Roberts & Rosenthal 2001, Stat. Sci. 16, 351).
GOAL_ACCEPTANCE = 0.3


# Moves at the posterior itself: enough to forget the last resampling, and to find the posterior's
# width from points that may all be at one place.
_NUM_LAST, _NUM_ALL = 15, 60


class Pilot(NamedTuple):
    """Starts (chain, dim), centre (dim,) and scale S (dim, dim), and evaluations spent."""

    start: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    used: int


def run_pilot(
    target: Target,
    rng: np.random.Generator,
    *,
    num_chains: int,
    num_start: int,
    num_particles: int,
    start: np.ndarray | None = None,
    progress: Progress | None = None,
) -> Pilot:
    r"""Carry prior draws to the posterior by tempering; starts and covariance are from there.

    Points follow $\pi(x) L(x)^\beta$, $\beta$ rising to one in steps that leave half of them
    effective; each step resamples them and moves them by random walks with their own covariance
    (Del Moral, Doucet & Jasra 2006, JRSS B 68, 411).

    Args:
        target: as for a sampler; no gradient is taken.
        rng: the source of all randomness.
        num_chains: starts wanted.
        num_start: prior draws to begin with.
        num_particles: points carried, at least one for each chain.
        start: points (n, dim) with a likelihood to begin with at the posterior itself, rather than
            with draws of the prior.

    Raises:
        InputError: no prior draw with a likelihood, or a log density that is NaN or +inf, with
            the point.
    """
    if start is None:
        (x, log_l, log_p), before = _prior_points(target, rng, num_start), 0.0
        used, num_last = num_start, _NUM_LAST
    else:
        (x, log_l, log_p), before = (start, *evaluate(target, start)), 1.0
        used, num_last = len(start), _NUM_ALL
    wide = np.var(x, axis=0) if len(x) > 1 else np.ones(target.dim)
    num = max(num_particles, num_chains)
    size = 2.38 / math.sqrt(target.dim)
    for _ in range(100):
        goal = 0.5 * min(num, len(x))
        beta = next_temperature(before, log_l, -before * log_l, goal=goal) if before < 1 else 1.0
        weight = normalised_weights((beta - before) * log_l)
        chosen = systematic(weight, num, rng.random())
        x, log_l, log_p = x[chosen], log_l[chosen], log_p[chosen]
        moves = 3 if beta < 1.0 else num_last
        for move in range(moves):
            if move % 3 == 0:
                step = _scale(x, wide)
            proposal = x + size * rng.standard_normal(x.shape) @ step.T
            new_l, new_p = evaluate(target, proposal)
            log_ratio = beta * (new_l - log_l) + new_p - log_p
            accept = np.log(rng.random(num)) < log_ratio
            x[accept], log_l[accept], log_p[accept] = proposal[accept], new_l[accept], new_p[accept]
            size *= math.exp(accept.mean() - GOAL_ACCEPTANCE)
        used += moves * num
        if progress:
            progress(int(100 * beta), 100, f"pilot (temperature {beta:.2g})")
        if beta == 1.0:
            break
        before = beta
    start = x[rng.choice(num, num_chains, replace=False)]
    return Pilot(start, x.mean(axis=0), _scale(x, wide), used)


def _prior_points(
    target: Target, rng: np.random.Generator, num: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those of `num` prior draws that have a likelihood, with its log and that of their prior."""
    key = jax.random.key(int(rng.integers(2**31)))
    x = np.asarray(target.sample_prior(key, num), float)
    # A draw on the very edge of the prior is infinitely far away in unconstrained coordinates.
    x = x[np.isfinite(x).all(axis=1)]
    log_l, log_p = evaluate(target, x)
    good = np.isfinite(log_l + log_p)
    if not good.any():
        raise InputError(
            f"none of {num} prior draws has a likelihood above zero: every one leaves some object "
            "outside the population; use a prior nearer to the data, or raise num_start."
        )
    return x[good], log_l[good], log_p[good]


def _scale(x: np.ndarray, wide: np.ndarray) -> np.ndarray:
    """A Cholesky factor of the covariance of `x`, kept regular by a little of the prior's."""
    covariance = np.cov(x.T).reshape(x.shape[1], x.shape[1])
    few = len(np.unique(x, axis=0)) <= 2 * x.shape[1]
    share = 1e-2 if few else 1e-13
    regular = share * wide + 1e-9 * np.diag(covariance)
    return np.linalg.cholesky(covariance + np.diag(regular))
