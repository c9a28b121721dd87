r"""Chains of a NumPyro kernel, a second or so at a time, so that a run can be left and resumed.

Each stretch of steps is one call of a compiled loop whose length is an argument. What a step does
depends on its number and the state before it and on nothing else: however a run is cut into
stretches, and wherever it was interrupted, the draws are the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..checkpoint import Part, pack, unpack
from ..errors import InputError
from ..target import Target
from . import Progress
from .warmup import Warmup

Method = Literal["vectorized", "parallel", "sequential"]
Arrays = dict[str, Any]

# Steps of a stretch at most, and the seconds that one should take: an interrupted run loses these.
_MOST_STEPS = 64
_SECONDS = 1.0

_WHAT = "sampling (steps of all chains)"


@dataclass(frozen=True, kw_only=True)
class Chains:
    """What to run.

    Attributes:
        kernel: of `numpyro.infer`, without an adaptation of its own.
        warmup: what tunes it in the first steps.
        collect: its state -> what is kept of a step, by name.
        target: whose data are the argument of the kernel's model, and that keeps what is compiled.
        name: of kernel, warm-up and `collect`: chains of one name and target are compiled once.
        num_samples, num_chains, thinning: per chain, NumPyro's words. The last of every `thinning`
            draws is kept.
        method: all chains in one program, one on each device, or a program of its own for each.
    """

    kernel: Any
    warmup: Warmup
    collect: Callable[[Any], Arrays]
    target: Target
    name: str
    num_samples: int
    num_chains: int
    thinning: int
    method: Method

    def run(
        self,
        key: Any,
        start: Mapping[str, Any],
        *,
        progress: Progress | None = None,
        checkpoint: Part | None = None,
    ) -> dict[str, np.ndarray]:
        """What `collect` has kept, by name; (chain, draw, ...).

        Also `num_warmup_steps`, the leapfrog steps of each chain's warm-up.

        Args:
            key: of all randomness.
            start: where the chains begin, site -> (chain, dim).
            progress, checkpoint: see `skycensus.samplers.Sampler`.
        """
        keys = jax.random.split(key, self.num_chains) if self.num_chains > 1 else key[None]
        # A lane is what one call moves on: all chains together, or one of them.
        size = 1 if self.method == "sequential" else self.num_chains
        steps = self.warmup.num_steps + self.num_samples
        begin, advance = self._compiled()
        data = self._placed()
        at = _Position(self.num_chains // size)
        like = jax.eval_shape(begin, keys[:size], _rows(start, 0, size), data)
        at.restore(None if checkpoint is None else checkpoint.load(), like)
        count, first = 1, True
        while (step := (lanes := at.behind())[0].step) < steps:
            if checkpoint is not None and checkpoint.time_is_up:
                self._require_draws(step, checkpoint)
                break
            for lane in lanes:
                if lane.state is None:
                    here = lane.number * size
                    lane.state = begin(keys[here : here + size], _rows(start, here, size), data)
            if progress:
                progress(at.done, at.num_lanes * steps, _WHAT)
            began = time.perf_counter()
            count = min(count, steps - step)
            calls = [partial(advance, lane.state, step, count, data) for lane in lanes]
            # One at a time at first, so that nothing is compiled twice.
            found = _computed(calls, 1 if first else len(calls))
            for lane, (state, kept) in zip(lanes, found, strict=True):
                lane.move(state, kept, count, self._kept(step, count))
                if checkpoint is not None:
                    checkpoint.offer(at.snapshot(), f"step {lane.step} of {steps}")
            if progress:
                progress(at.done, at.num_lanes * steps, _WHAT)
            pace = (time.perf_counter() - began) / count
            count, first = int(np.clip(_SECONDS / pace, 1, _MOST_STEPS)), False
        return at.drawn(self.num_samples // self.thinning)

    def _require_draws(self, step: int, checkpoint: Part) -> None:
        """Raise `InputError` where the time was up before every chain had a draw."""
        num_warmup = self.warmup.num_steps
        needed = num_warmup + self.num_samples % self.thinning + self.thinning
        if step < needed:
            checkpoint.save()
            raise InputError(
                f"time_limit: the time was up at step {step} of {num_warmup} of the warm-up, "
                "before there was any draw; raise time_limit (the same command goes on where this "
                "run was), or lower num_warmup."
            )

    def _kept(self, step: int, count: int) -> np.ndarray:
        """Which of the next `count` steps are kept."""
        draw = np.arange(step, step + count) - self.warmup.num_steps
        first = self.num_samples % self.thinning
        return (draw >= first) & ((draw - first + 1) % self.thinning == 0)

    def _compiled(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Two functions: from keys, start and data the state; from there the next and the kept.

        The second takes a state, the number of its next step, how many to go, and data.
        """

        def begin(key: Any, start: Any, data: Any) -> Any:
            # What the kernel takes for its warm-up is where trajectories are kept short.
            state = self.kernel.init(key, self.warmup.num_early, start, model_args=(data,))
            # Weak types would become strong on the way, and all be compiled twice.
            return jax.tree.map(lambda x: jnp.asarray(x, x.dtype), self.warmup.begin(state))

        def advance(state: Any, first: Any, count: Any, data: Any) -> Any:
            def step(i: Any, carry: Any) -> Any:
                (state, tuning), kept = carry
                state = self.kernel.sample(state, (data,), {})
                here = self.collect(state)
                kept = {name: kept[name].at[i].set(x) for name, x in here.items()}
                return self.warmup.update(first + i, state, tuning), kept

            shapes = jax.eval_shape(self.collect, state[0])
            kept = {n: jnp.zeros((_MOST_STEPS, *x.shape), x.dtype) for n, x in shapes.items()}
            return jax.lax.fori_loop(0, count, step, (state, kept))

        if self.method == "parallel":
            return jax.pmap(begin), jax.pmap(advance, in_axes=(0, None, None, 0))
        kept = self.target.compiled
        return (
            kept(f"begin {self.name}", lambda: jax.vmap(begin, in_axes=(0, 0, None))),
            kept(f"advance {self.name}", lambda: jax.vmap(advance, in_axes=(0, None, None, None))),
        )

    def _placed(self) -> Any:
        """The data; once on each device where every chain has its own."""
        if self.method != "parallel":
            return self.target.data
        each = jnp.zeros(self.num_chains)
        return jax.pmap(lambda _, data: data, in_axes=(0, None))(each, self.target.data)


class _Lane:
    """How far one lane has come: its steps, its state, and what was kept."""

    def __init__(self, number: int):
        self.number, self.step = number, 0
        self.state: Any = None
        self.kept: list[dict[str, np.ndarray]] = []

    def move(self, state: Any, kept: Arrays, count: int, chosen: np.ndarray) -> None:
        """Go on by `count` steps, of which the `chosen` ones are kept."""
        self.state, self.step = state, self.step + count
        if chosen.any():
            part = {name: np.asarray(x)[:, :count][:, chosen] for name, x in kept.items()}
            self.kept.append(part)


class _Position:
    """How far a run has come. Lanes go together, so that a run that ends early has all chains."""

    def __init__(self, num_lanes: int):
        self.num_lanes = num_lanes
        self._lanes = [_Lane(number) for number in range(num_lanes)]

    @property
    def done(self) -> int:
        """Steps of all lanes."""
        return sum(lane.step for lane in self._lanes)

    def behind(self) -> list[_Lane]:
        """The lanes that have come least far."""
        least = min(lane.step for lane in self._lanes)
        return [lane for lane in self._lanes if lane.step == least]

    def snapshot(self) -> Callable[[], Arrays]:
        """What describes this point, also when the run has gone on."""
        states = [(lane.step, lane.state, len(lane.kept)) for lane in self._lanes]

        def arrays() -> Arrays:
            out: Arrays = {}
            for number, (step, state, length) in enumerate(states):
                if state is None:
                    continue
                joined = _joined(self._lanes[number].kept[:length])
                out[f"{number}.step"] = np.array(step)
                out |= {f"{number}.state.{name}": x for name, x in pack(state).items()}
                out |= {f"{number}.kept.{name}": x for name, x in joined.items()}
            return out

        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray] | None, like: Any) -> None:
        """Go to where a `snapshot` was taken; `like` has the shapes of the state."""
        for lane in self._lanes:
            if arrays is None or f"{lane.number}.step" not in arrays:
                continue

            def part(head: str, arrays: Mapping[str, np.ndarray] = arrays) -> Arrays:
                return {n.removeprefix(head): x for n, x in arrays.items() if n.startswith(head)}

            lane.step = int(arrays[f"{lane.number}.step"])
            lane.state = unpack(part(f"{lane.number}.state."), like)
            kept = part(f"{lane.number}.kept.")
            lane.kept = [kept] if kept else []

    def drawn(self, num: int) -> dict[str, np.ndarray]:
        """The first `num` draws of all that was kept, (chain, draw, ...); fewer, if some lack."""
        lanes = [_joined(lane.kept) for lane in self._lanes]
        num = min(num, *(x.shape[1] for lane in lanes for x in lane.values()))
        drawn = {n: np.concatenate([lane[n][:, :num] for lane in lanes]) for n in lanes[0]}
        tunings = [lane.state[1] for lane in self._lanes]
        steps = np.concatenate([np.asarray(tuning.num_gradients) for tuning in tunings])
        return drawn | {"num_warmup_steps": steps}


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    names = parts[0] if parts else {}
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in names}


def _rows(start: Mapping[str, Any], first: int, count: int) -> dict[str, Any]:
    return {name: x[first : first + count] for name, x in start.items()}


def _computed(calls: Sequence[Callable[[], Any]], most: int) -> Iterator[Any]:
    """What the calls give, in order; on a CPU as many at a time as it has cores, `most` at most.

    A likelihood of much data goes through it in blocks, and keeps one core busy.
    """
    cores = (os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    with ThreadPoolExecutor(min(cores, most)) as threads:
        futures = [threads.submit(lambda call: jax.block_until_ready(call()), c) for c in calls]
        for future in futures:
            # With an ear for interrupts, which waiting inside of JAX is deaf to.
            yield future.result()
