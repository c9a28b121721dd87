r"""Independent weighted draws of a proposal: as many as are needed, and the result of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from ..diagnostics import GOALS, diagnose
from ..result import Result
from ..target import Target
from ..weights import kish, log_mean_weight, pareto_smooth
from . import Progress, evaluate, named_draws

# Draws at once at most: the time is looked at between them.
MOST_AT_ONCE = 4000


class Drawn(NamedTuple):
    """Independent draws (n, dim) of a proposal, with their log weights and log likelihoods (n,)."""

    x: np.ndarray
    log_weight: np.ndarray
    log_likelihood: np.ndarray

    def plus(self, more: Drawn) -> Drawn:
        """These draws and those."""
        return Drawn(*(np.concatenate(pair) for pair in zip(self, more, strict=True)))


class Proposal(Protocol):
    """A density that can be drawn from, at points (n, dim) in the coordinates of a target."""

    def log_prob(self, x: np.ndarray) -> np.ndarray: ...

    def sample(self, rng: np.random.Generator, num: int) -> np.ndarray: ...


def draw(target: Target, proposal: Proposal, rng: np.random.Generator, num: int) -> Drawn:
    """`num` draws of the proposal, weighted to the target."""
    x = proposal.sample(rng, num)
    log_l, log_p = evaluate(target, x)
    return Drawn(x, log_l + log_p - proposal.log_prob(x), log_l)


def draw_until(
    target: Target,
    proposal: Proposal,
    rng: np.random.Generator,
    *,
    target_ess: float,
    max_samples: int,
    size: int,
    progress: Progress | None,
    in_time: Callable[[], bool],
    drawn: Drawn | None = None,
) -> Drawn:
    """Fresh draws from the fixed proposal until they are worth `target_ess`.

    `size` of them at first, or so many as are missing from what was `drawn` already.
    """
    while True:
        if drawn is not None:
            total = len(drawn.x)
            some = np.isfinite(drawn.log_weight).any()
            n_eff = kish(drawn.log_weight) if some else 0.0
            if progress:
                done = int(min(n_eff, target_ess))
                progress(done, int(target_ess), "sampling (effective draws)")
            if n_eff >= target_ess or total >= max_samples or not in_time():
                return drawn
            # As many again as the rate so far says are missing.
            size = int(min(1.1 * total * (target_ess / max(n_eff, 1.0) - 1), 4 * total))
            size = min(max(size, 500), MOST_AT_ONCE, max_samples - total)
        more = draw(target, proposal, rng, min(size, max_samples))
        drawn = more if drawn is None else drawn.plus(more)


def weighted_result(
    target: Target, drawn: Drawn, target_ess: float, measures: Mapping[str, float]
) -> Result:
    """The result of independent draws, with their evidence and what their weights say."""
    smoothed, k_hat = pareto_smooth(drawn.log_weight)
    log_evidence, error = log_mean_weight(drawn.log_weight)
    draws = named_draws(target, drawn.x[None])
    return Result(
        draws,
        diagnose(
            draws,
            log_weight=smoothed[None],
            k_hat=k_hat,
            prior_bounds=target.prior.bounds(),
            goals=GOALS._replace(ess=min(GOALS.ess, target_ess)),
        ),
        log_weight=smoothed[None],
        log_evidence=log_evidence,
        log_evidence_error=error,
        sample_stats={"log_likelihood": drawn.log_likelihood[None]},
        measures={"k_hat": k_hat, "n_eff": kish(drawn.log_weight), **measures},
    )
