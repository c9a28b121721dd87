r"""Nested sampling with evidence: slice sampling in the unit cube, on BlackJAX."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..checkpoint import Part, pack, unpack
from ..diagnostics import diagnose
from ..errors import InputError
from ..keys import generator
from ..result import Result
from ..status import Problem
from ..target import Target
from . import Progress, batch_size, evaluate, in_batches, named_draws, prior_points
from .nested_slice import Dead, Found, first_state, iterate, remaining
from .nested_volumes import Integral, insertion_p_value, integrate, support_volume

# Ranks this unlikely say that the chains did not forget where they started.
MIN_P_VALUE = 1e-3

# Iterations between looks at the run from outside: enough that a look costs nothing.
_CHUNK = 16

# Points at once that cost less together, though four of ten are of chains that are done.
_TOGETHER = 16

# Batches of prior draws, of num_live each, to find live points with a likelihood among.
_MAX_BATCHES = 100


@dataclass(frozen=True, kw_only=True)
class Nested:
    r"""Nested sampling: the evidence, and weighted draws of the posterior, from the prior inwards.

    `num_live` points are drawn from the prior. The `num_delete` of lowest likelihood die together,
    and as many new ones are drawn from the prior above the highest of those likelihoods, by
    `num_inner_steps` of slice sampling each, started at survivors. So the volume X of prior left
    above the contour shrinks by known factors, and $Z = \int L\,dX$ (Skilling 2006, Bayesian
    Analysis 1, 833; nested slice sampling: Yallup, Kroupa & Handley 2026, arXiv:2601.23252). It
    needs no gradient, does not mind jumps and edges, and finds modes in proportion to their mass
    if some first points fall among them.

    The chains move in the unit cube, where the prior is uniform (`Target.in_unit_cube`): a contour
    then ends at a face, and not far out in the tail of a transformed variable, weights on a simplex
    are as good as others, and a region without likelihood is only a place where no point is.

    Prior mass where the likelihood is zero counts in the evidence. Points that share a likelihood
    (plateaus) are weighted rightly. The ranks at which new points come in among the old ones are
    tested; that does not see chains that are merely too short: double `num_inner_steps` to be sure.

    Args:
        num_live: live points; the error of ln Z is about $\sqrt{H/\mathtt{num\_live}}$.
        num_inner_steps: slices for a new point, by default 5 times the dimension and 10 at least,
            in whole sweeps of as many as there are dimensions; too few bias ln Z upwards.
        num_delete: points replaced together, by default a fifth of the live ones.
        dlogz: stop when the live points can add no more than this to ln Z.
        max_likelihoods: evaluations at most; a run that needs more has not converged.

    Raises:
        InputError: numbers out of range.
    """

    num_live: int = 500
    num_inner_steps: int | None = None
    num_delete: int | None = None
    dlogz: float = 0.01
    max_likelihoods: int = 100_000_000

    def __post_init__(self) -> None:
        delete = self.deleted
        wrong = [
            f"{name} = {value} must be {what}"
            for name, value, good, what in (
                ("num_live", self.num_live, self.num_live >= 10, "10 or more"),
                ("num_inner_steps", self.num_inner_steps, self.steps(1) >= 1, "1 or more"),
                ("num_delete", delete, 1 <= delete < self.num_live, "between 1 and num_live - 1"),
                ("dlogz", self.dlogz, self.dlogz > 0, "positive"),
                ("max_likelihoods", self.max_likelihoods, self.max_likelihoods >= 1, "1 or more"),
            )
            if not good
        ]
        if wrong:
            raise InputError("nested sampling: " + "; ".join(wrong) + ".")

    @property
    def deleted(self) -> int:
        """Points replaced together."""
        return max(1, self.num_live // 5) if self.num_delete is None else self.num_delete

    def steps(self, dim: int) -> int:
        """Slices for a new point in `dim` dimensions."""
        return max(10, 5 * dim) if self.num_inner_steps is None else self.num_inner_steps

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
            InputError: a prior that is not known in the unit cube, naming it; a likelihood that is
                NaN or +inf, naming the point; one that is zero for (nearly) all draws of the prior.
        """
        start_key, loop_key, seed_key = jax.random.split(key, 3)
        cube = target.in_unit_cube()
        start = live_points(cube, start_key, self.num_live)
        run = self._iterate(cube, loop_key, start, progress, checkpoint)
        integral = integrate(run.log_l, run.birth, start.log_volume, start.volume_variance)
        rng = generator(seed_key)
        p_value = insertion_p_value(run.found.below, run.found.tied, run.found.alive, rng)
        measures = {
            "num_likelihoods": start.num_drawn + int(run.found.calls.sum()),
            "information": integral.information,
            "insertion_p_value": p_value,
            "support_fraction": math.exp(start.log_volume),
        }
        problems = self._problems(run, p_value, int(measures["num_likelihoods"]))
        return nested_result(
            target, run.u, run.log_l, integral, rng, measures, problems, birth=run.birth
        )

    def _iterate(
        self,
        cube: Target,
        key: Any,
        start: Start,
        progress: Progress | None,
        checkpoint: Part | None = None,
    ) -> _Run:
        """Replace points until the evidence is known, or on from where a run was cut off."""
        chunk = self._compiled(cube)
        state = jax.jit(first_state)(jnp.asarray(start.u), jnp.asarray(start.log_l))
        past = _Past(0, [], [])
        stored = None if checkpoint is None else checkpoint.load()
        if stored is not None:
            state, past = _restored(stored, state)
        count = _CHUNK
        while count == _CHUNK and start.num_drawn + past.calls < self.max_likelihoods:
            if checkpoint is not None and past.chunks and checkpoint.time_is_up:
                break
            state, gone, new, done = chunk(jax.random.fold_in(key, past.chunks), state, cube.data)
            count = int(done)
            past = past.plus(*_points(count, gone, new))
            _require_finite(cube, state.particles)
            left = float(remaining(state))
            if checkpoint is not None:
                saved = partial(_packed, state, past)
                checkpoint.offer(saved, f"{past.num} points, {left:.2g} of ln Z to come")
            if progress:
                ahead = int(self.num_live * math.log(max(left / self.dlogz, 1.0)))
                progress(past.num, past.num + ahead, "compressing the prior (points)")
        dead, found = past.joined()
        live = state.particles
        last = (live.position, live.loglikelihood, live.loglikelihood_birth)
        u, log_l, birth = (
            np.concatenate([d, np.asarray(a, float)]) for d, a in zip(dead, last, strict=True)
        )
        return _Run(u, log_l, birth, found, float(remaining(state)))

    def _compiled(self, cube: Target) -> Any:
        size = batch_size(cube)
        # One by one, chains that are done cost nothing while they wait for the others.
        size = size if size >= _TOGETHER else 1

        def chunk(key: Any, state: Any, data: Any) -> Any:
            def log_likelihood(u: Any, wanted: Any) -> Any:
                of_point = partial(cube.log_likelihood, data=data)
                return jax.lax.cond(wanted, of_point, lambda u: jnp.zeros((), u.dtype), u)

            return iterate(
                in_batches(log_likelihood, size),
                key,
                state,
                num_iterations=_CHUNK,
                num_inner_steps=self.steps(cube.dim),
                num_delete=self.deleted,
                dlogz=self.dlogz,
            )

        name = f"nested {self.steps(cube.dim)} {self.deleted} {self.dlogz}"
        return cube.compiled(name, lambda: chunk)

    def _problems(self, run: _Run, p_value: float, calls: int) -> list[Problem]:
        found = []
        if p_value < MIN_P_VALUE:
            unlike = f"new points do not come in uniformly among the old ones (p = {p_value:.2g}"
            found.append(Problem.of("insertion_ranks", f"{unlike}, goal {MIN_P_VALUE:g} or more)"))
        if run.remaining > self.dlogz and np.ptp(run.log_l[-self.num_live :]) > 0:
            what = f"after {calls} evaluations the live points may still add"
            found.append(
                Problem.of("evidence", f"{what} {run.remaining:.2g} to ln Z (goal {self.dlogz:g})")
            )
        return found


class Start(NamedTuple):
    """Live points with a likelihood, and the prior mass of such points (log, and variance)."""

    u: np.ndarray
    log_l: np.ndarray
    log_volume: float
    volume_variance: float
    num_drawn: int


class _Run(NamedTuple):
    """All points of a run, the last live ones at the end, and what was found of the new ones."""

    u: np.ndarray
    log_l: np.ndarray
    birth: np.ndarray
    found: Found
    remaining: float


class _Past(NamedTuple):
    """What a run has left behind, on the host: chunks, and the points of each."""

    chunks: int
    dead: list[Dead]
    found: list[Found]

    @property
    def num(self) -> int:
        return sum(len(part.log_l) for part in self.dead)

    @property
    def calls(self) -> int:
        return sum(int(part.calls.sum()) for part in self.found)

    def plus(self, dead: Dead, found: Found) -> _Past:
        return _Past(self.chunks + 1, [*self.dead, dead], [*self.found, found])

    def joined(self) -> tuple[Dead, Found]:
        join = lambda *parts: np.concatenate(parts)  # noqa: E731
        return jax.tree.map(join, *self.dead), jax.tree.map(join, *self.found)


def _packed(state: Any, past: _Past) -> dict[str, np.ndarray]:
    return pack((np.asarray(past.chunks), state, *past.joined()))


def _restored(stored: Any, like: Any) -> tuple[Any, _Past]:
    number, empty = np.zeros((), int), np.zeros(0)
    shapes = (number, like, Dead(*[empty] * 3), Found(*[empty] * 5))
    chunks, state, dead, found = unpack(stored, shapes)
    parts = (jax.tree.map(np.asarray, part) for part in (dead, found))
    return state, _Past(int(chunks), *([part] for part in parts))


def live_points(cube: Target, key: Any, num: int) -> Start:
    """Draw from the prior until `num` points have a likelihood.

    Raises:
        InputError: a log likelihood that is NaN or +inf, or too few points with one.
    """
    us, values, inside = [], [], 0
    for batch in range(_MAX_BATCHES):
        u = prior_points(cube, jax.random.fold_in(key, batch), num)
        log_l, _ = evaluate(cube, u)
        us.append(u)
        values.append(log_l)
        inside += int(np.isfinite(log_l).sum())
        if inside >= num:
            break
    u, log_l = np.concatenate(us), np.concatenate(values)
    good = np.flatnonzero(np.isfinite(log_l))[:num]
    if len(good) < num:
        raise InputError(
            f"only {len(good)} of {len(u)} prior draws have a likelihood: the others leave some "
            "object outside the population; use a prior nearer to the data, or fewer num_live."
        )
    drawn = int(good[-1]) + 1
    return Start(u[good], log_l[good], *support_volume(num, drawn), len(u))


def nested_result(
    target: Target,
    u: np.ndarray,
    log_l: np.ndarray,
    integral: Integral,
    rng: np.random.Generator,
    measures: dict[str, float],
    problems: list[Problem],
    *,
    birth: np.ndarray | None = None,
) -> Result:
    """The result of points (n, dim) of the unit cube with their weights, in random order."""
    # In the order of their likelihoods draws would look like a chain that has not mixed.
    order = rng.permutation(len(u))
    draws = named_draws(target.in_unit_cube(), u[order][None])
    log_weight = integral.log_weight[order][None]
    stats = {"log_likelihood": log_l[order][None]}
    if birth is not None:
        stats["log_likelihood_birth"] = birth[order][None]
    # No weight is far beyond the others, as in importance sampling: there is no tail to judge.
    status = diagnose(draws, stats, log_weight, k_hat=-math.inf, prior_bounds=target.prior.bounds())
    return Result(
        draws,
        status.plus(*problems),
        log_weight=log_weight,
        log_evidence=integral.log_evidence,
        log_evidence_error=integral.error,
        sample_stats=stats,
        measures=measures,
    )


def _points(count: int, dead: Dead, found: Found) -> tuple[Dead, Found]:
    """The points of the first `count` iterations, on one axis."""

    def flat(array: Any) -> np.ndarray:
        array = np.asarray(array)[:count]
        return array.reshape(-1, *array.shape[2:])

    return jax.tree.map(flat, dead), jax.tree.map(flat, found)


def _require_finite(cube: Target, particles: Any) -> None:
    log_l = np.asarray(particles.loglikelihood)
    if (broken := log_l == np.inf).any():
        # Where chains were trapped; evaluated again, so that the message has the value itself.
        evaluate(cube, np.asarray(particles.position)[broken])
