r"""How long a run may take and how much memory: estimated from a few likelihoods, without sampling.

The likelihood is timed; how often a sampler asks for it is known beforehand only roughly, from what
it took on posteriors that are not far from Gaussian. A factor of two or three is what to expect.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .analysis import compile_clock, peak_memory
from .model import HierarchicalModel
from .samplers import (
    NUTS,
    BoostedNested,
    Coarse,
    CoarseToExact,
    Dynesty,
    FlowMCMC,
    ImportanceSampler,
    LearnedProposal,
    Nested,
    QuadratureSampler,
    Sampler,
    Until,
    batch_size,
    evaluate,
)
from .samplers.learned import default_first
from .target import Target

# Leapfrog steps of a trajectory: seven are three doublings. Chains that move together wait for the
# longest one.
_LEAPFROG, _TOGETHER = 7, 1.6

# Compiling: seconds that every run takes for its small programs, and how often a sampler compiles
# something like the likelihood.
_SMALL_PROGRAMS, _LIKELIHOODS, _GRADIENTS = 4.0, 3.0, 3.0

# What summaries and figures take beside the likelihood: seconds of each, and bytes.
_SUMMARIES, _FIGURES, _LIBRARIES = 3.0, 8.0, 250e6


class Work(NamedTuple):
    """How many points a sampler evaluates, and at how many of them a gradient too.

    `together` chains take their gradients at once.
    """

    values: float
    gradients: float = 0.0
    together: int = 1


class Estimate(NamedTuple):
    """Seconds of compiling and in all (None where the sampler's work is not known), and bytes.

    `seconds_each` are those of one log likelihood, and `gradient_each` of one with its gradient.
    """

    work: Work | None
    seconds_each: float
    gradient_each: float | None
    compiling: float
    seconds: float | None
    data_bytes: int
    memory_bytes: int | None

    def __str__(self) -> str:
        each = f"a likelihood takes {_seconds(self.seconds_each)}"
        if self.gradient_each is not None:
            each += f", with its gradient {_seconds(self.gradient_each)}"
        lines = [f"{each} (data {_megabytes(self.data_bytes)})"]
        if self.work is None or self.seconds is None:
            lines.append("estimate: how often this sampler asks for it is not known")
        else:
            calls = self.work.values + self.work.gradients
            lines.append(
                f"estimate: about {_seconds(self.seconds)} with {calls:.2g} likelihoods and "
                f"{_seconds(self.compiling)} of compiling, to a factor of two or three"
            )
        if self.memory_bytes is not None:
            lines.append(f"estimate: about {_megabytes(self.memory_bytes)} of memory at most")
        return "\n".join(lines)


def estimate(
    model: HierarchicalModel, sampler: Sampler, *, num_draws_after: int = 0, figures: bool = False
) -> Estimate:
    """What a run of `sampler` may cost.

    Args:
        model: whose likelihood is timed, at points of the prior.
        sampler: how it is to be sampled.
        num_draws_after: draws at which something like a likelihood is evaluated afterwards.
        figures: whether there will be figures.

    Raises:
        InputError: a log likelihood or prior that is NaN or +inf, naming the point.
    """
    target = model.target()
    work = expected_work(sampler, target)
    with compile_clock() as compiling:
        x = np.asarray(target.start_points(jax.random.key(0), 2 * batch_size(target)))
        before = compiling()
        value = _timed(lambda: evaluate(target, x)) / len(x)
        total = _SMALL_PROGRAMS + _LIKELIHOODS * (compiling() - before)
        gradient = None
        if work is not None and work.gradients:
            before = compiling()
            followed = target.smooth() if target.smooth is not None else target
            slope = jax.jit(jax.vmap(jax.value_and_grad(followed.log_density), in_axes=(0, None)))
            points = jnp.asarray(np.resize(x, (work.together, x.shape[1])))
            taken = _timed(lambda: jax.block_until_ready(slope(points, followed.data)))
            gradient = taken / work.together
            total += _GRADIENTS * (compiling() - before)
    seconds = None
    if work is not None:
        seconds = (work.values + num_draws_after) * value + total + _SUMMARIES
        seconds += _FIGURES if figures else 0.0
        seconds += work.gradients * (gradient or 0.0)
    peak = peak_memory()
    return Estimate(
        work,
        value,
        gradient,
        total,
        seconds,
        sum(leaf.nbytes for leaf in jax.tree.leaves(model.data) if hasattr(leaf, "nbytes")),
        None if peak is None else int(peak + _LIBRARIES + 8.0 * _kept_numbers(sampler, target)),
    )


def _timed(call: Callable[[], Any], at_least: float = 0.3) -> float:
    """Seconds of a call once it is compiled; the best of several that take `at_least` together."""
    call()
    spent: list[float] = []
    while sum(spent) < at_least and len(spent) < 20:
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return min(spent)


# ---- how much samplers ask for -------------------------------------------------------------------


def expected_work(sampler: Any, target: Target) -> Work | None:
    """How much `sampler` will ask for; None for one that is not known here."""
    for kind, work in _WORK.items():
        if isinstance(sampler, kind):
            return work(sampler, target)
    return None


def _climbing(dim: int) -> float:
    """Evaluations of a search for the mode, with eight quadratics."""
    return 8.0 * (1 + 2 * dim + dim * (dim - 1) / 2)


def _of_importance(sampler: ImportanceSampler, target: Target) -> Work:
    if not sampler.laplace or target.smooth is not None:
        # Some eight steps of adaptation, and a proposal of which half is effective.
        return Work(10.0 * sampler.num_adapt + 2.0 * sampler.target_ess)
    return Work(sampler.num_adapt + _climbing(target.dim) + 500 + 1.5 * sampler.target_ess)


def _of_quadrature(sampler: QuadratureSampler, target: Target) -> Work:
    nodes = {1: 40.0, 2: 120.0}.get(target.dim, 700.0)
    return Work(min(sampler.num_start + 2 * _climbing(target.dim) + nodes, sampler.max_nodes))


def _of_nuts(sampler: NUTS, target: Target) -> Work:
    steps = sampler.num_chains * (sampler.num_warmup + sampler.num_samples)
    alone = sampler.method(target) == "sequential" or sampler.num_chains == 1
    longest = min(_LEAPFROG, 2**sampler.max_tree_depth - 1) * (1.0 if alone else _TOGETHER)
    values = sampler.num_start + sampler.num_chains * sampler.num_samples / sampler.thinning
    return Work(values, steps * longest, 1 if alone else sampler.num_chains)


def _of_flow_mcmc(sampler: FlowMCMC, target: Target) -> Work:
    loops = sampler.num_chains * (sampler.num_training_loops + sampler.num_production_loops)
    # Ten temperatures with three moves each, and fifteen moves at the last.
    pilot = sampler.num_start + 45.0 * sampler.num_particles
    steps = {"hmc": sampler.num_leapfrog + 3, "mala": 2, "random_walk": 1}[sampler.local_sampler]
    local = loops * sampler.num_local_steps * steps
    wide = loops * sampler.num_global_steps + sampler.num_flow_draws
    if sampler.local_sampler == "random_walk":
        return Work(pilot + wide + local)
    return Work(pilot + wide, local, sampler.num_chains)


def _information(target: Target) -> float:
    """A guess of ln of how much smaller the posterior is than the prior: three for a parameter."""
    return 3.0 * target.dim


def _of_nested(sampler: Nested, target: Target) -> Work:
    points = sampler.num_live * (_information(target) + 5.0)
    # A slice steps out and shrinks: some five evaluations.
    return Work(points * sampler.steps(target.dim) * 5.0)


def _of_dynesty(sampler: Dynesty, target: Target) -> Work:
    points = sampler.num_live * (_information(target) + 5.0)
    return Work(points * (5.0 if target.dim < 10 else 25.0 + target.dim))


def _of_until(sampler: Until, target: Target) -> Work | None:
    """That of the first round: nobody knows before how many there will be."""
    return expected_work(sampler.sampler, target)


def _of_coarse(sampler: CoarseToExact, target: Target) -> Work | None:
    """That of the first version, as cheap as its share of the draws, and of the weights."""
    inner, weighting = expected_work(sampler.sampler, target), 1.5 * sampler.target_ess
    if inner is None or not isinstance(sampler.coarse, Coarse) or target.model is None:
        # What a version given costs is not known: much less, or it would not be given.
        return None if inner is None else Work(weighting)
    counts = getattr(target.model.likelihood, "num_draws", np.ones(1))
    kept = np.minimum(counts, sampler.coarse.draws or np.inf)
    share = float(np.sum(kept) / np.sum(counts)) * (0.5 if sampler.coarse.float32 else 1.0)
    return Work(share * inner.values + weighting, share * inner.gradients, inner.together)


def _of_boosted(sampler: BoostedNested, target: Target) -> Work | None:
    """That of both runs: the second begins near the posterior, a nat or so for a parameter."""
    first = expected_work(sampler.first or default_first(target.dim), target)
    second = expected_work(sampler.sampler, target)
    if first is None or second is None:
        return None
    nearer = (target.dim + 5.0) / (_information(target) + 5.0)
    return Work(first.values + nearer * second.values, first.gradients, first.together)


def _of_learned_proposal(sampler: LearnedProposal, target: Target) -> Work | None:
    """That of the first run, where it asks for this likelihood, and of the weights."""
    weighting = 2.0 * sampler.num_adapt + 1.5 * sampler.target_ess
    if sampler.cheap is not None:
        return Work(weighting)
    first = expected_work(sampler.first or default_first(target.dim), target)
    return first and first._replace(values=first.values + weighting)


_WORK: dict[type, Callable[[Any, Target], Work | None]] = {
    ImportanceSampler: _of_importance,
    QuadratureSampler: _of_quadrature,
    NUTS: _of_nuts,
    FlowMCMC: _of_flow_mcmc,
    Nested: _of_nested,
    Dynesty: _of_dynesty,
    Until: _of_until,
    CoarseToExact: _of_coarse,
    BoostedNested: _of_boosted,
    LearnedProposal: _of_learned_proposal,
}


def _kept_numbers(sampler: Any, target: Target) -> float:
    """Numbers of the draws and of what is made of them: each is held some four times."""
    chains = getattr(sampler, "num_chains", 1)
    draws = float(getattr(sampler, "num_samples", getattr(sampler, "target_ess", 2000.0)))
    return 4.0 * chains * draws * (target.dim + 5)


# ---- words ---------------------------------------------------------------------------------------


def _seconds(x: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if x >= size:
            return f"{x / size:.2g} {unit}" if x < 100 * size else f"{x / size:.0f} {unit}"
    return f"{x / 1e-6:.2g} µs"


def _megabytes(x: float) -> str:
    return f"{x / 1e6:.3g} MB" if x < 1e9 else f"{x / 1e9:.2g} GB"
