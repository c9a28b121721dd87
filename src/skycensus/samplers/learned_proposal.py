r"""Importance sampling from a density learned from a first run, or from a cheap likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from ..checkpoint import Checkpoint, Part
from ..diagnostics import GOALS
from ..errors import InputError
from ..estimators.learned import LearnedDensity
from ..keys import generator
from ..result import Result
from ..status import Problem
from ..target import Target
from ..weights import kish, pareto_k
from . import Progress, Sampler, keep_record
from .coarse import Coarse, coarse_version
from .learned import CubeProposal, first_run, learn, unforeseen
from .settings import require
from .tempering import next_temperature
from .weighted import Drawn, draw, draw_until, weighted_result

# A proposal whose draws are worth less than this share of their number is fitted anew, unless the
# last time has not made it better.
_LEAST_EFFICIENCY, _BETTER = 0.4, 1.1


@dataclass(frozen=True, kw_only=True)
class LearnedProposal:
    r"""Independent draws of a density learned from a first run, weighted to the posterior.

    A density q is fitted to the draws of a first run and mixed with the prior,
    $q_\epsilon = (1 - \epsilon)\,q + \epsilon\,\pi$. Draws of it have the weights

    $$w_s = \frac{L(\theta_s)\,\pi(\theta_s)}{q_\epsilon(\theta_s)}, \qquad
      \hat Z = \frac1S \sum_s w_s,$$

    which is unbiased whatever q is, and no weight is above $L / \epsilon$.

    With `cheap`, a version of the likelihood that costs little, the first run samples that one, and
    the likelihood itself is asked for at draws of q alone (likelihood reweighting). What q has
    learned of the cheap posterior only roughly does not matter. Weights $L / L_\mathrm{cheap}$ on
    draws of q would be biased: q is not the cheap posterior.

    `num_adapt` draws tell how good q is. Where their weights have a heavy tail ($\hat k > 0.7$),
    few of the draws count, or draws of the prior have met what q does not know, q is fitted anew to
    all weighted points so far (tempered, if these are few). Then it is held fixed, and drawn from
    until the draws are worth `target_ess`.

    What no point of the first run has met is as easily missed here: draws of the prior are few.
    Where these do meet it and q cannot be mended, that is a problem of the status.

    Args:
        first: any sampler, to learn from; by default `Nested` with 1000 live points and chains of
            one sweep.
        cheap: `Coarse` settings; a `Target` in the same coordinates; or a function of the target
            that returns one. None: the target itself.
        density: its kind, see `fit_density`. A mixture of Gaussians is quick; "auto" is for
            shapes that it does not describe.
        fit: further settings of `fit_density`.
        prior_share: $\epsilon$.
        target_ess: stop when the weighted draws are worth this many.
        num_adapt: draws by which a proposal is judged.
        max_refits: times that it is fitted anew, at most.
        max_samples: draws of a proposal at most.

    Raises:
        InputError: numbers out of range.
    """

    first: Sampler | None = None
    cheap: Coarse | Target | Callable[[Target], Target] | None = None
    density: str = "mixture"
    fit: Mapping[str, Any] = field(default_factory=dict)
    prior_share: float = 0.1
    target_ess: float = 2000.0
    num_adapt: int = 1000
    max_refits: int = 5
    max_samples: int = 100_000

    def __post_init__(self) -> None:
        require(
            self,
            counts=("num_adapt", "max_samples"),
            counts_or_none=("max_refits",),
            positive=("target_ess",),
            shares=("prior_share",),
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

        `measures` has `k_hat`, `n_eff`, `num_refits`, `num_likelihoods` of the target and
        `num_first_likelihoods` of the first run, which are of the target too where nothing cheap
        was given.

        Raises:
            InputError: a cheap version that cannot be made or has other parameters, draws that no
                density can be fitted to, and what the first sampler raises.
        """
        part = checkpoint or Checkpoint().part("learned")
        version_key, first_key, fit_key, seed_key = jax.random.split(key, 4)
        cheap = target
        if self.cheap is not None:
            cheap = coarse_version(target, self.cheap, generator(version_key))
        first = first_run(self.first, cheap, first_key, progress, part.part("first"))
        density = self._learned(fit_key, target, first.u, first.log_weight)
        cube = target.in_unit_cube()
        keep_record(cube, part.part("evaluations"))
        try:
            stage = _Stage(self, cube, fit_key, generator(seed_key), progress, part)
            drawn = stage.run(density)
        finally:
            cube.record = None
        own = 0.0 if self.cheap is not None else first.num_likelihoods
        measures = {
            "num_likelihoods": stage.used + own,
            "num_first_likelihoods": first.num_likelihoods,
            "num_refits": stage.refits,
        }
        result = weighted_result(cube, drawn, self.target_ess, measures)
        problems = [] if stage.missed is None else [stage.missed]
        if (n_eff := result.measures["n_eff"]) < self.target_ess:
            said = f"the effective sample size is {n_eff:.4g} (goal {self.target_ess:g})"
            problems.append(Problem.of("target_ess", said))
        return replace(result, status=result.status.plus(*problems, notes=(first.note(),)))

    def _learned(
        self, key: Any, target: Target, u: np.ndarray, log_weight: np.ndarray | None
    ) -> LearnedDensity:
        kind, fit, share = self.density, self.fit, self.prior_share
        return learn(key, target, u, log_weight, kind=kind, fit=fit, prior_share=share)


class _Stage:
    """Proposals, each drawn from and judged, until one is good."""

    def __init__(
        self,
        settings: LearnedProposal,
        cube: Target,
        key: Any,
        rng: np.random.Generator,
        progress: Progress | None,
        part: Part,
    ):
        self.used, self.refits = 0, 0
        self.missed: Problem | None = None
        self._settings, self._cube, self._key, self._rng = settings, cube, key, rng
        self._progress, self._part = progress, part
        self._past: list[tuple[CubeProposal, Drawn]] = []

    def run(self, density: LearnedDensity) -> Drawn:
        """Draws of the last proposal, `density` being the first."""
        settings, before = self._settings, 0.0
        while True:
            proposal = CubeProposal(density)
            drawn = draw(self._cube, proposal, self._rng, settings.num_adapt)
            last = self.refits >= settings.max_refits or self._part.time_is_up
            share = _efficiency(drawn)
            good = share >= _LEAST_EFFICIENCY and self._missed_by(density, proposal, drawn) is None
            settled = good or share < _BETTER * before
            if last or (settled and _has_light_tail(drawn)):
                drawn = self._until_the_goal(proposal, drawn)
            self.used += len(drawn.x)
            # So many draws know tails that the first of them had not seen.
            if last or (settled and _has_light_tail(drawn)):
                self.missed = self._missed_by(density, proposal, drawn)
                return drawn
            before = share
            self._past.append((proposal, drawn))
            self.refits += 1
            density = self._fitted_anew()

    def _missed_by(
        self, density: LearnedDensity, proposal: CubeProposal, drawn: Drawn
    ) -> Problem | None:
        """What the draws have of the posterior that the proposal's density has not."""
        if not np.isfinite(drawn.log_weight).any():
            return None
        log_q = proposal.log_prob(drawn.x)
        share = self._settings.prior_share
        return unforeseen(self._rng, density, log_q, drawn.log_weight, share)

    def _until_the_goal(self, proposal: CubeProposal, drawn: Drawn) -> Drawn:
        return draw_until(
            self._cube,
            proposal,
            self._rng,
            target_ess=self._settings.target_ess,
            max_samples=self._settings.max_samples,
            size=self._settings.num_adapt,
            progress=self._progress,
            in_time=lambda: not self._part.time_is_up,
            drawn=drawn,
        )

    def _fitted_anew(self) -> LearnedDensity:
        """Fitted to all points so far, each weighted against the mixture of all that made them."""
        u = np.concatenate([drawn.x for _, drawn in self._past])
        log_l = np.concatenate([drawn.log_likelihood for _, drawn in self._past])
        if not np.isfinite(log_l).any():
            raise InputError(
                f"none of {len(u)} draws of the learned proposal has a likelihood: let the first "
                "run be of a likelihood that is nearer to this one, or raise prior_share."
            )
        made = [np.log(len(drawn.x)) + proposal.log_prob(u) for proposal, drawn in self._past]
        log_base = -np.logaddexp.reduce(made)
        goal = min(self._settings.num_adapt / 4, np.isfinite(log_l).sum() / 2)
        beta = next_temperature(0.0, log_l, log_base, goal=goal)
        key = jax.random.fold_in(self._key, self.refits)
        return self._settings._learned(key, self._cube, u, beta * log_l + log_base)


def _efficiency(drawn: Drawn) -> float:
    """The effective share of the draws."""
    some = np.isfinite(drawn.log_weight).any()
    return kish(drawn.log_weight) / len(drawn.x) if some else 0.0


def _has_light_tail(drawn: Drawn) -> bool:
    some = np.isfinite(drawn.log_weight).any()
    return bool(some and pareto_k(drawn.log_weight) <= GOALS.k_hat)
