r"""Nested sampling from a density learned in a first run, instead of from the prior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from ..checkpoint import Checkpoint, Part
from ..diagnostics import diagnose
from ..errors import InputError
from ..keys import generator
from ..result import Result
from ..status import Problem, Status
from ..target import Target
from . import Progress, Sampler
from .dynesty import Dynesty
from .learned import (
    LOG_DENSITY,
    CubeTarget,
    First,
    first_run,
    learn,
    parameter_draws,
    unforeseen,
)
from .nested import Nested
from .settings import require
from .until import OF_DRAWS, run_once


@dataclass(frozen=True, kw_only=True)
class BoostedNested:
    r"""Nested sampling that begins near the posterior: the same evidence, with fewer likelihoods.

    The cost of nested sampling is the information H that takes it from the prior to the posterior,
    and the variance of ln Z is H over the number of live points. A first run at a low resolution
    finds roughly where the posterior is; a density q is fitted to its draws, and mixed with the
    prior, $q_\epsilon = (1 - \epsilon)\, q + \epsilon\, \pi$. Then `sampler` runs with the prior
    $q_\epsilon$ and the likelihood $L^* = L\,\pi / q_\epsilon$. As
    $\int L^* q_\epsilon = \int L\,\pi$ for every q, the evidence is that of the prior itself, and H
    has become the divergence from $q_\epsilon$ to the posterior. q is normalised exactly, which
    this rests on. A poor q costs likelihoods, not truth: where it is far too low, $L^*$ is at most
    $L / \epsilon$, an ordinary problem of nested sampling.

    What no point of the first run has met is as easily missed by the second: its draws of the
    prior are few. Where these do meet it, that is a problem of the status.

    (Posterior repartitioning: Chen, Hobson, Das & Gelderblom 2019, arXiv:1803.06387; Petrosyan &
    Handley 2022, arXiv:2212.01760. Learned densities: Alsing & Handley 2021, arXiv:2102.12478.)

    Args:
        sampler: the run that counts.
        first: any sampler, to learn from; by default `Nested` with 1000 live points and chains of
            one sweep.
        density: its kind, see `fit_density`. A mixture of Gaussians is quick; "auto" is for
            shapes that it does not describe.
        fit: further settings of `fit_density`.
        prior_share: $\epsilon$.

    Raises:
        InputError: numbers out of range, or a `sampler` that is no nested sampling.
    """

    sampler: Nested | Dynesty = field(default_factory=Nested)
    first: Sampler | None = None
    density: str = "mixture"
    fit: Mapping[str, Any] = field(default_factory=dict)
    prior_share: float = 0.1

    def __post_init__(self) -> None:
        require(self, shares=("prior_share",))
        if not isinstance(self.sampler, Nested | Dynesty):
            raise InputError(
                "boosted nested sampling: the sampler is nested or dynesty, not "
                f"{type(self.sampler).__name__}."
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

        `measures` has `num_likelihoods` of both runs, `num_first_likelihoods` of the first, the
        `information` from the prior to the posterior, and what was left of it for the second run,
        `information_left`.

        Raises:
            InputError: what the samplers raise, and draws that no density can be fitted to.
        """
        part = checkpoint or Checkpoint().part("boosted")
        first_key, fit_key, run_key = jax.random.split(key, 3)
        first = first_run(self.first, target, first_key, progress, part.part("first"))
        density = learn(
            fit_key,
            target,
            first.u,
            first.log_weight,
            kind=self.density,
            fit=self.fit,
            prior_share=self.prior_share,
        )
        boosted = CubeTarget(target, density)
        found = run_once(self.sampler, boosted, run_key, progress, part.part("second"))
        problem = unforeseen(
            generator(fit_key),
            density,
            found.draws[LOG_DENSITY].ravel(),
            np.log(np.maximum(found.weights.ravel(), 1e-300)),
            self.prior_share,
        )
        result = _for_parameters(target, found, first)
        problems = [] if problem is None else [problem]
        return replace(result, status=result.status.plus(*problems))


def _for_parameters(target: Target, found: Result, first: First) -> Result:
    """The result of a run on the target's cube, in the terms of the target."""
    assert found.log_evidence is not None
    draws = parameter_draws(found)
    log_likelihood = found.sample_stats["log_likelihood"] + found.draws[LOG_DENSITY]
    stats = {"log_likelihood": log_likelihood}
    # Where a weight is zero the likelihood may be, too.
    some = found.weights > 0
    mean = float(np.sum(found.weights[some] * log_likelihood[some]))
    measures = {
        **found.measures,
        "num_likelihoods": found.measures["num_likelihoods"] + first.num_likelihoods,
        "num_first_likelihoods": first.num_likelihoods,
        "information": mean - found.log_evidence,
        "information_left": found.measures["information"],
    }
    return replace(
        found,
        draws=draws,
        sample_stats=stats,
        measures=measures,
        status=_status(target, found, draws, stats).plus(notes=(first.note(),)),
    )


def _status(
    target: Target, found: Result, draws: Mapping[str, np.ndarray], stats: Mapping[str, np.ndarray]
) -> Status:
    """What is told of a run on the cube: its draws are judged as those of the parameters."""
    bounds = target.prior.bounds()
    status = diagnose(draws, stats, found.log_weight, k_hat=-math.inf, prior_bounds=bounds)
    problems: list[Problem] = [p for p in found.status.problems if p.kind not in OF_DRAWS]
    notes = tuple(p for p in found.status.notes if p.kind not in OF_DRAWS)
    return status.plus(*problems, notes=notes)
