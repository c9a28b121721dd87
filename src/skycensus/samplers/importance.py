r"""Adaptive importance sampling: population Monte Carlo with Student-t mixtures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ..checkpoint import Part
from ..diagnostics import GOALS
from ..errors import InputError
from ..keys import generator
from ..result import Result
from ..target import Target
from ..weights import kish, pareto_smooth
from . import Progress, evaluate, prior_points
from .laplace import Mode, find_modes
from .settings import require
from .student_t import StudentTMixture, fit
from .tempering import next_temperature
from .weighted import MOST_AT_ONCE, draw_until, weighted_result

# Draws from the density at the mode by which it is judged.
_NUM_TRIALS = 500
# Times that the final stage is drawn at most, while its weights have too heavy a tail.
_MOST_ROUNDS = 3
# Effective draws per dimension to which a mixture can be fitted.
_ENOUGH = 50


@dataclass(frozen=True, kw_only=True)
class ImportanceSampler:
    r"""Independent weighted draws from a proposal that was adapted to the posterior.

    A Student-t density at the mode, as wide as the curvature says, is the first proposal, and often
    the last. Where its weights have a heavy tail, or draws of the prior know of another mode,
    the target $\pi(x) L(x)^\beta$ is followed from the prior to $\beta = 1$, each step as large
    as the effective sample size allows, fitting a mixture of Student-t densities to all weighted
    points so far. Then the proposal is held fixed and fresh draws give posterior and evidence,

    $$\hat Z = \frac1S \sum_s w_s,\qquad w_s = \frac{\pi(x_s) L(x_s)}{q(x_s)},\qquad
      \operatorname{sd}(\ln \hat Z) = \sqrt{1/n_\mathrm{eff} - 1/S}.$$

    The weights are Pareto-smoothed, and their tail shape $\hat k$ decides on convergence; where it
    is too heavy, the proposal is fitted to these draws and the stage begins anew. It needs no
    gradient and does not mind jumps of the likelihood (where it does not trust a curvature and
    starts from the prior): the quickest road up to about ten parameters. (Cappé et al. 2008,
    arXiv:0710.4242; Cornuet et al. 2012, arXiv:0907.1254; Vehtari et al. 2024, JMLR 25(72).)

    Args:
        target_ess: stop when the weighted draws are worth this many.
        num_adapt: draws per adaptation step.
        max_adapt_steps: adaptation steps at most.
        max_samples: evaluations at most each time that the final stage is drawn.
        num_components: components of the proposal at most.
        dof: degrees of freedom of the Student-t's; smaller means heavier tails.
        laplace: start at the mode; else from the prior always.
    """

    target_ess: float = 2000.0
    num_adapt: int = 1000
    max_adapt_steps: int = 30
    max_samples: int = 100_000
    num_components: int = 4
    dof: float = 6.0
    laplace: bool = True

    def __post_init__(self) -> None:
        require(
            self,
            counts=("num_adapt", "max_samples", "num_components"),
            counts_or_none=("max_adapt_steps",),
            positive=("target_ess", "dof"),
        )

    def run(
        self,
        target: Target,
        key: Any,
        *,
        progress: Progress | None = None,
        checkpoint: Part | None = None,
    ) -> Result:
        """Sample `target`; see the class and `skycensus.samplers.Sampler`.

        Raises:
            InputError: a likelihood that is NaN or +inf, naming the point; one that is zero for all
            draws of the prior.
        """
        prior_key, seed_key = jax.random.split(key)
        rng = generator(seed_key)
        in_time = _in_time(checkpoint)
        proposal, used = self._propose(target, prior_key, rng, progress, in_time)
        for more_rounds in reversed(range(_MOST_ROUNDS)):
            drawn = draw_until(
                target,
                proposal,
                rng,
                target_ess=self.target_ess,
                max_samples=self.max_samples,
                size=max(2 * self.num_adapt, min(int(self.target_ess), MOST_AT_ONCE)),
                progress=progress,
                in_time=in_time,
            )
            used += len(drawn.x)
            k_hat = pareto_smooth(drawn.log_weight)[1]
            # So many draws know tails that the few of the adaptation had not seen; but a handful of
            # draws that have all the weight know nothing.
            enough = kish(drawn.log_weight) > _ENOUGH * target.dim
            if k_hat <= GOALS.k_hat or not enough or not more_rounds or not in_time():
                break
            proposal = self._fit(rng, drawn.x, drawn.log_weight)
        return weighted_result(
            target,
            drawn,
            self.target_ess,
            {"num_likelihoods": used, "num_components": len(proposal.weight)},
        )

    def _propose(
        self,
        target: Target,
        key: Any,
        rng: np.random.Generator,
        progress: Progress | None,
        in_time: Callable[[], bool],
    ) -> tuple[StudentTMixture, int]:
        """The proposal for the final stage, and how many evaluations it has cost."""
        start = self._points(target, prior_points(target, key, self.num_adapt))
        x, log_l, log_p = start
        used = len(x)
        laplace = None
        if self.laplace and target.smooth is None and np.isfinite(log_l).any():

            def log_density(x: np.ndarray) -> np.ndarray:
                nonlocal used
                used += len(x)
                return np.sum(evaluate(target, x), axis=0)

            if progress:
                progress(0, self.max_adapt_steps, "looking for the mode")
            modes = find_modes(log_density, x, log_l + log_p, log_p)
            laplace = self._around(modes)
            if len(modes) == 1 and modes[0].converged:
                new = laplace.sample(rng, _NUM_TRIALS)
                log_weight = log_density(new) - laplace.log_prob(new)
                k_hat = pareto_smooth(log_weight)[1] if np.isfinite(log_weight).any() else np.inf
                if k_hat < 0.5 and kish(log_weight) > 0.3 * len(new):
                    return laplace, used
        more = prior_points(target, jax.random.fold_in(key, 1), self.num_adapt)
        both = zip(start, self._points(target, more), strict=True)
        every = tuple(np.concatenate(pair) for pair in both)
        proposal, adapted = self._adapt(target, rng, every, laplace, progress, in_time)
        return proposal, used - len(x) + adapted

    def _around(self, modes: list[Mode]) -> StudentTMixture:
        """A component at every mode, all alike: their masses are not known yet."""
        loc = np.array([mode.x for mode in modes])
        cholesky = np.array([np.linalg.cholesky(mode.scale @ mode.scale.T) for mode in modes])
        return StudentTMixture(np.full(len(modes), 1 / len(modes)), loc, cholesky, self.dof)

    @staticmethod
    def _points(target: Target, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (x, *evaluate(target, x))

    def _adapt(
        self,
        target: Target,
        rng: np.random.Generator,
        start: tuple[np.ndarray, ...],
        first: StudentTMixture | None,
        progress: Progress | None,
        in_time: Callable[[], bool],
    ) -> tuple[StudentTMixture, int]:
        """Follow the tempered posterior to the posterior; return the proposal and what it cost.

        `start` are draws of the prior with their log likelihoods and log priors. Points of `first`
        join them: a way that cools from the prior alone takes long to reach a mode which most of
        the prior does not know of.
        """
        x, log_l, log_p = start
        if not np.isfinite(log_l).any():
            raise InputError(
                f"none of {len(x)} prior draws has a likelihood: every one leaves some object "
                "outside the population; use a prior nearer to the data, or raise num_adapt."
            )
        # Every point's weight is against the mixture of all that made points so far: `log_q` is
        # the log of their densities, each times the number of points that it made, added up.
        log_q = log_p + np.log(len(x))
        num_prior = len(x)
        proposals: list[StudentTMixture] = []
        proposal, beta, before, share = first, 0.0, 0.0, 0.0
        for step in range(self.max_adapt_steps):
            if proposal is not None:
                new = proposal.sample(rng, self.num_adapt)
                new_l, new_p = evaluate(target, new)
                share = kish(new_l + new_p - proposal.log_prob(new)) / len(new)
                proposals.append(proposal)
                made = [q.log_prob(new) + np.log(self.num_adapt) for q in proposals]
                new_q = np.logaddexp.reduce([new_p + np.log(num_prior), *made])
                log_q = np.logaddexp(log_q, proposal.log_prob(x) + np.log(self.num_adapt))
                x, log_q = np.concatenate([x, new]), np.append(log_q, new_q)
                log_l, log_p = np.append(log_l, new_l), np.append(log_p, new_p)
            # At the posterior, stop when another step has not made the proposal better.
            if (beta == 1.0 and share < 1.1 * before) or not in_time():
                break
            before = share if beta == 1.0 else 0.0
            log_base = log_p - log_q
            beta = next_temperature(beta, log_l, log_base, goal=self.num_adapt / 4)
            proposal = self._fit(rng, x, beta * log_l + log_base)
            if progress:
                progress(step + 1, self.max_adapt_steps, f"adapting (temperature {beta:.2g})")
        return self._fit(rng, x, log_l + log_p - log_q), len(x)

    def _fit(
        self, rng: np.random.Generator, x: np.ndarray, log_weight: np.ndarray
    ) -> StudentTMixture:
        good = np.isfinite(log_weight)
        weight = np.exp(log_weight[good] - log_weight[good].max())
        return fit(rng, x[good], weight, num_components=self.num_components, dof=self.dof)


def _in_time(checkpoint: Part | None) -> Callable[[], bool]:
    """Whether there is time left; always, where nobody counts it."""
    return lambda: checkpoint is None or not checkpoint.time_is_up
