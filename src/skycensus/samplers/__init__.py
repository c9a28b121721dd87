r"""Samplers: each takes a `Target` and gives a `Result`; they differ in how.

To add one, write a class whose `run(target, key)` returns a `Result`, and add a line to the table
of `tests/contracts.py`. Settings are fields of the class; randomness comes from `key` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from ..blocks import on_all_cores
from ..checkpoint import Part, Record
from ..diagnostics import scalars
from ..errors import InputError
from ..result import Result
from ..target import Target

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, what) now and then; the caller draws the bar."""


class Sampler(Protocol):
    """Anything that draws from a target."""

    def run(self, target: Target, key: Any, *, progress: Progress | None = None) -> Result:
        """Sample `target`; all randomness comes from `key`.

        A sampler whose work is not all in `evaluate` also takes the keyword `checkpoint`, where it
        keeps what it needs to go on after an interrupt; see `skycensus.checkpoint`. It may end
        early where that says `time_is_up`. A method `longer(by)`, the same sampler with `by` times
        as many draws, lets `Until` go on with a run rather than begin another.
        """
        ...


# Numbers that a batch of points may span together: more would not stay in cache.
_BATCH_NUMBERS = 2**18

# Points in a batch where the data are few; and at most, which as a prime tells what a batch made.
_BATCH, _LARGEST_BATCH = 64, 127

# So many times the numbers of a value has its gradient.
_OF_GRADIENT = 4


def batch_size(target: Target, *, gradient: bool = False) -> int:
    """How many points are best evaluated at once; one where a call goes through much data.

    What counts is how many numbers a call makes of the data, or how many those are if it makes
    more. A table that a point's numbers are multiplied with is much data of which little is made.
    """
    numbers = sum(leaf.size for leaf in jax.tree.leaves(target.data))
    if numbers * _BATCH <= _BATCH_NUMBERS:
        return _BATCH
    kept = target.__dict__.setdefault("_made", [])
    if not kept:
        points = jax.ShapeDtypeStruct((_LARGEST_BATCH, target.dim), jnp.result_type(float))
        program: Any = _batch(target)
        traced = program.trace(points, target.data).jaxpr.jaxpr
        kept.append(max(_made(traced), default=1))
    size = _BATCH_NUMBERS // min(numbers, kept[0])
    # That program has been traced already.
    return _LARGEST_BATCH if size >= _BATCH else max(size // (_OF_GRADIENT if gradient else 1), 1)


def in_batches(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    """A function of one point of which `jax.vmap` evaluates no more than `size` points at once.

    All points at once would go through large data in step, and no block of them stay in cache.
    """
    if jax.default_backend() != "cpu" or size >= _BATCH:
        return function
    batched = jax.custom_batching.custom_vmap(function)

    @batched.def_vmap
    def rule(num: int, mapped: Any, *args: Any) -> Any:
        points, shared = eqx.partition(args, tuple(mapped))
        # Of equal size, for a smaller rest would be compiled too.
        together = max(n for n in range(1, min(size, num) + 1) if num % n == 0)

        def one(point: Any, shared: Any) -> Any:
            return function(*eqx.combine(point, shared))

        # A map of maps is to have no more at once either. One by one is no map at all: that would
        # take both ways of a branch.
        some = one if together == 1 else jax.vmap(one, in_axes=(0, None))
        some = in_batches(some, size // together)
        if together == 1:
            out = jax.lax.map(lambda point: some(point, shared), points)
        else:
            split = lambda x: x.reshape(num // together, together, *x.shape[1:])  # noqa: E731
            out = jax.lax.map(lambda block: some(block, shared), jax.tree.map(split, points))
            out = jax.tree.map(lambda x: x.reshape(num, *x.shape[2:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return batched


def _made(program: Jaxpr, times: int = 1) -> Iterator[int]:
    """How many numbers each step of a program makes of one of `_LARGEST_BATCH` points."""
    for step in program.eqns:
        rounds = times * step.params.get("length", 1)
        for part in jax.tree.leaves(list(step.params.values())):
            inner = part.jaxpr if isinstance(part, ClosedJaxpr) else part
            if isinstance(inner, Jaxpr):
                yield from _made(inner, rounds)
        for made in step.outvars:
            shape = getattr(made.aval, "shape", ())
            each, rest = divmod(times * math.prod(shape), _LARGEST_BATCH)
            if not rest:
                yield each


def _batch(target: Target) -> Callable[..., Any]:
    """Log likelihood and log prior of points (n, dim), as one compiled program."""
    both = lambda x, data: (target.log_likelihood(x, data), target.log_prior(x))  # noqa: E731
    return target.compiled("evaluate", lambda: jax.vmap(both, in_axes=(0, None)))


def evaluate(target: Target, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log likelihood and log prior at the points (n, dim), in batches.

    Raises:
        InputError: a log likelihood or prior that is NaN or +inf, naming the point.
    """
    size = batch_size(target)
    # One compiled size for all calls: the last batch repeats the last point.
    padded = np.concatenate([x, np.repeat(x[-1:], -len(x) % size, axis=0)])
    both = _batch(target)
    record = target.record
    rows = [] if record is None else [record.known(x)]
    num_known = sum(map(len, rows))
    chunks = padded.reshape(-1, size, x.shape[1])[-(-num_known // size) :]
    for values in on_all_cores(lambda chunk: both(chunk, target.data), list(chunks)):
        log_l, log_p = (np.asarray(v, float) for v in values)
        rows.append(np.stack([log_l, log_p], axis=1)[: len(x) - num_known])
        num_known += len(rows[-1])
        if record is not None:
            record.add(x, rows[-1])
    log_l, log_p = np.concatenate(rows).T
    require_numbers(target, x, log_l + log_p)
    return log_l, log_p


def keep_record(target: Target, part: Part) -> None:
    """Let `evaluate` keep what it computes for `target` in `part`, and begin with what is there.

    Raises:
        InputError: the target has other values now than when the record was made.
    """
    record = Record(part)
    if record.first is not None:
        point, before = record.first
        now = np.ravel(evaluate(target, point[None]))
        if not np.allclose(now, before, rtol=1e-6, atol=1e-6):
            raise InputError(
                f"the unfinished run is of another model: at {at_point(target, point)} log "
                f"likelihood and log prior were {before} and are {now}; discard that run with "
                "restart=True (--restart), or give another folder for the results."
            )
    target.record = record


def require_numbers(target: Target, x: np.ndarray, log_density: np.ndarray) -> None:
    """Raise `InputError` naming the first point whose log density is NaN or +inf."""
    bad = np.flatnonzero(np.isnan(log_density) | (log_density == np.inf))
    if bad.size:
        first = bad[0]
        raise InputError(
            f"the log density is {log_density[first]} at {at_point(target, x[first])} ({bad.size} "
            f"of {len(x)} points): the model is broken there; evaluate it at this point and mend "
            "it, or keep the prior away."
        )


def at_point(target: Target, x: np.ndarray) -> str:
    """The scalar parameters at the unconstrained point `x`, as text."""
    values = target.constrain(jnp.asarray(x))
    named = (f"{name}={np.asarray(v):.8g}" for name, v in values.items() if np.ndim(v) == 0)
    return ", ".join(named) or str(x)


def prior_points(target: Target, key: Any, num: int) -> np.ndarray:
    """Draws of the prior as unconstrained points (num, dim)."""
    draw = target.compiled(f"prior points {num}", lambda: lambda k: target.sample_prior(k, num))
    return np.asarray(draw(key), float)


def named_draws(target: Target, x: Any) -> dict[str, np.ndarray]:
    """Constrain points of shape (chain, draw, dim); a vector `v` becomes `v[0]`, `v[1]`, …

    Parameters of objects carry the objects' names: `r[star 3]`.
    """
    constrain = target.compiled("constrain", lambda: jax.vmap(jax.vmap(target.constrain)))
    draws = {name: np.asarray(v, float) for name, v in constrain(x).items()}
    named = dict(scalars({name: v for name, v in draws.items() if name not in target.latents}))
    for name, labels in target.latents.items():
        named |= {label: draws[name][..., i] for i, label in enumerate(labels)}
    return named


def unconstrained(target: Target, draws: Mapping[str, np.ndarray]) -> np.ndarray:
    """The inverse of `named_draws`: draws (chain, draw) by name as points (chain * draw, dim)."""
    shapes = jax.eval_shape(target.constrain, jnp.zeros(target.dim))
    free = {}
    for name in target.names:
        shape = shapes[name].shape
        labels = [f"{name}[{','.join(map(str, i))}]" if i else name for i in np.ndindex(shape)]
        columns = np.stack([np.ravel(draws[label]) for label in labels], axis=-1)
        free[name] = columns.reshape(-1, *shape)
    place = target.compiled("unconstrain", lambda: jax.vmap(target.unconstrain))
    # A power of two of points, so that few sizes are compiled.
    num = len(next(iter(free.values())))
    padding = max(256, 1 << (num - 1).bit_length()) - num
    padded = {n: np.concatenate([x, np.repeat(x[-1:], padding, 0)]) for n, x in free.items()}
    return np.asarray(place(padded), float)[:num]


from .boosted import BoostedNested  # noqa: E402
from .coarse import Coarse, CoarseToExact  # noqa: E402
from .dynesty import Dynesty  # noqa: E402
from .flow_mcmc import FlowMCMC  # noqa: E402
from .importance import ImportanceSampler  # noqa: E402
from .learned_proposal import LearnedProposal  # noqa: E402
from .nested import Nested  # noqa: E402
from .nuts import NUTS  # noqa: E402
from .quadrature import QuadratureSampler  # noqa: E402
from .until import Until  # noqa: E402

__all__ = [
    "NUTS",
    "BoostedNested",
    "Coarse",
    "CoarseToExact",
    "Dynesty",
    "FlowMCMC",
    "ImportanceSampler",
    "LearnedProposal",
    "Nested",
    "Progress",
    "QuadratureSampler",
    "Sampler",
    "Until",
    "batch_size",
    "evaluate",
    "keep_record",
    "named_draws",
    "unconstrained",
]
