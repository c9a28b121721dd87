r"""Another sampler, run on until its draws are worth enough, or the time is up."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import jax
import numpy as np

from ..checkpoint import Checkpoint, Part
from ..diagnostics import diagnose
from ..errors import InputError
from ..result import Result
from ..status import Problem, Status
from ..target import Target
from ..weights import normalised_weights
from . import Progress, Sampler, keep_record

# Draws of the next round: so many more than seem needed, and a factor at least and at most.
_MORE, _LEAST, _MOST = 1.1, 1.2, 10.0
# More draws that add less than this share of what they should are of no use.
_GROWTH = 0.2

# Smoothing the weights changes by a little what a sampler counted itself.
_CLOSE = 0.97

# What is judged anew when more draws have come.
OF_DRAWS = ("ess", "importance_ess", "prior_edge", "r_hat", "stuck")


@dataclass(frozen=True)
class Until:
    r"""`sampler`, run on until the effective sample size reaches `target_ess`, or time is up.

    A sampler with a field `target_ess` of its own is given the goal. For others each round has as
    many draws as the one before says are needed. Samplers with a method `longer(by)` go on where
    they were: chains from their last state, quadrature with the log densities that it has. The
    rest (nested sampling) run again with another key, and the runs are merged: with evidences
    $Z_k$ and weights $w_{ks}$,

    $$\hat Z = \frac1K \sum_k Z_k, \qquad w_{ks} \to Z_k\, w_{ks} \Big/ \sum_s w_{ks}.$$

    The effective sample size is that of `Result.effective_sample_size`. What falls short is a
    problem of the status. Whatever the goal, a status asks 400 of chains.

    Args:
        sampler: any sampler.
        target_ess: goal of the effective sample size; None leaves the sampler's own number of
            draws.
        time_limit: seconds; those before an interrupt count too. `NUTS`, `FlowMCMC`, `Nested` and
            `ImportanceSampler` end within a step or so of it with the draws that they have; others
            end the round that they are in.

    Raises:
        InputError: goals that are not positive.
    """

    sampler: Sampler
    _: KW_ONLY
    target_ess: float | None = None
    time_limit: float | None = None

    def __post_init__(self) -> None:
        for name in ("target_ess", "time_limit"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} = {value} must be a positive number.")

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
            InputError: what the sampler raises, and a time limit before the first draw.
        """
        part = checkpoint or Checkpoint().part("until")
        part = part.within(math.inf if self.time_limit is None else self.time_limit)
        result = run_until(self.sampler, target, key, self.target_ess, progress, part)
        if part.time_is_up and self.time_limit is not None:
            note = Problem.of("time_limit", f"the time limit of {self.time_limit:g} s was reached")
            result = replace(result, status=result.status.plus(notes=(note,)))
        return result


def run_until(
    sampler: Sampler,
    target: Target,
    key: Any,
    target_ess: float | None,
    progress: Progress | None,
    part: Part,
) -> Result:
    """Rounds of `sampler` until the draws are worth `target_ess`; see `Until`."""
    alone = target.record is None
    if alone:
        # Rounds ask again for what the ones before have computed.
        keep_record(target, part.part("evaluations"))
    try:
        return _rounds(sampler, target, key, target_ess, progress, part)
    finally:
        if alone:
            target.record = None


def run_once(
    sampler: Sampler, target: Target, key: Any, progress: Progress | None, part: Part
) -> Result:
    """A run of `sampler` with the checkpoint `part`, where it takes one."""
    takes = "checkpoint" in inspect.signature(sampler.run).parameters
    more: dict[str, Any] = {"checkpoint": part} if takes else {}
    return sampler.run(target, key, progress=progress, **more)


def _rounds(
    sampler: Any,
    target: Target,
    key: Any,
    target_ess: float | None,
    progress: Progress | None,
    part: Part,
) -> Result:
    own_goal = target_ess is not None and hasattr(sampler, "target_ess")
    if own_goal:
        sampler = replace(sampler, target_ess=target_ess)
    result = run_once(sampler, target, key, progress, part)
    runs = [result]
    while target_ess is not None:
        reached = _worth(result)
        if reached >= (_CLOSE if own_goal else 1.0) * target_ess:
            break
        if part.time_is_up or own_goal:
            return _short(result, reached, target_ess, "")
        by = float(np.clip(_MORE * target_ess / max(reached, 1.0), _LEAST, _MOST))
        if hasattr(sampler, "longer"):
            sampler = sampler.longer(by)
            result = run_once(sampler, target, key, progress, part)
        else:
            by = 1.0 + 1.0 / len(runs)
            number = len(runs)
            again = part.part(f"run {number}")
            runs.append(run_once(sampler, target, jax.random.fold_in(key, number), progress, again))
            result = merged(target, runs)
        if _worth(result) < reached * (1.0 + _GROWTH * (by - 1.0)) and not part.time_is_up:
            return _short(result, _worth(result), target_ess, ", and hardly grows with more draws")
    return result


def _worth(result: Result) -> float:
    """The effective sample size; zero where it is not known."""
    size = result.effective_sample_size()
    return 0.0 if math.isnan(size) else size


def _short(result: Result, reached: float, target_ess: float, why: str) -> Result:
    if reached >= target_ess:
        return result
    said = f"the effective sample size is {reached:.4g} (goal target_ess = {target_ess:g}){why}"
    status = result.status.plus(Problem.of("target_ess", said))
    return replace(result, status=status)


# ---- several runs as one -------------------------------------------------------------------------


def merged(target: Target, runs: Sequence[Result]) -> Result:
    """Independent runs of one sampler on `target` as one result; see `Until`."""
    first = runs[0]
    weighted = first.log_weight is not None
    # Independent weighted draws are one chain, Markov chains are chains beside each other.
    axis = 1 if weighted and first.shape[0] == 1 else 0

    def joined(field: str) -> dict[str, np.ndarray]:
        each = [getattr(run, field) for run in runs]
        return {name: np.concatenate([one[name] for one in each], axis) for name in each[0]}

    log_weight, log_evidence, error = None, None, None
    log_z = np.zeros(len(runs))
    if all(run.log_evidence is not None for run in runs):
        log_z = np.array([run.log_evidence for run in runs], float)
        log_evidence = float(np.logaddexp.reduce(log_z) - np.log(len(runs)))
        errors = np.array([run.log_evidence_error or 0.0 for run in runs])
        error = float(np.sqrt(np.sum((normalised_weights(log_z) * errors) ** 2)))
    if weighted:
        each = [np.log(run.weights) + z for run, z in zip(runs, log_z, strict=True)]
        log_weight = np.concatenate(each, axis)
    draws, stats = joined("draws"), joined("sample_stats")
    return Result(
        draws,
        _merged_status(target, runs, draws, stats, log_weight),
        log_weight=log_weight,
        log_evidence=log_evidence,
        log_evidence_error=error,
        sample_stats=stats,
        measures=_merged_measures(runs),
    )


def _merged_status(
    target: Target,
    runs: Sequence[Result],
    draws: dict[str, np.ndarray],
    stats: dict[str, np.ndarray],
    log_weight: np.ndarray | None,
) -> Status:
    # The tails of their weights were judged by the runs themselves.
    status = diagnose(draws, stats, log_weight, k_hat=-math.inf, prior_bounds=target.prior.bounds())
    found = [p for run in runs for p in run.status.problems if p.kind not in OF_DRAWS]
    notes = [p for run in runs for p in run.status.notes if p.kind not in OF_DRAWS]
    known = {*status.problems, *status.notes}
    new = [p for p in dict.fromkeys(found) if p not in known]
    return status.plus(*new, notes=tuple(p for p in dict.fromkeys(notes) if p not in known))


def _merged_measures(runs: Sequence[Result]) -> dict[str, float]:
    """Counts are added, p-values are the smallest, all else is averaged."""
    measures: dict[str, float] = {}
    for name in runs[0].measures:
        values = [run.measures[name] for run in runs]
        if name.startswith("num_"):
            measures[name] = sum(values)
        else:
            measures[name] = float(min(values) if name.endswith("p_value") else np.mean(values))
    return measures | {"num_runs": len(runs)}
