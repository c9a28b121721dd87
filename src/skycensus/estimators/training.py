r"""Training of networks by maximum likelihood: minibatches, early stopping, ensembles in one go."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ..errors import InputError

Weights = tuple[Array, ...]
LogProb = Callable[..., Array]
"""log_prob(weights, *columns): the log densities of rows, (n, ...) -> (n,)."""

# How many times during a training its caller hears of it, and may find that it is over.
_STAGES = 10


class Settings(NamedTuple):
    """How to train.

    The learning rate rises to its peak over the first fifth of `max_epochs` and then falls to
    nothing as a cosine. Training ends before where no member has improved on the draws held out
    for `patience` epochs.
    """

    max_epochs: int = 150
    batch_size: int = 500
    learning_rate: float = 5e-3
    weight_decay: float = 1e-4
    patience: int = 40


class Trained(NamedTuple):
    """Weights of every member as they were when its held-out score was best, and the scores."""

    weights: Weights
    """Each (member, ...)."""
    score: np.ndarray
    """Mean held-out log density after every epoch, (epoch, member)."""


class _State(NamedTuple):
    """Of a member while it is trained; all float32."""

    free: Weights
    moments: Any
    best: Weights
    best_score: Array


class Rows(NamedTuple):
    """Draws to learn from and draws held out: columns (n, ...), and weights (n,) of sum one."""

    draws: tuple[Any, ...]
    weight: Any
    held_out: tuple[Any, ...]
    held_out_weight: Any


def train(
    key: Any,
    log_prob: LogProb,
    weights: Sequence[Any],
    rows: Sequence[Rows],
    settings: Settings,
    *,
    progress: Any = None,
    what: str = "training",
) -> Trained:
    r"""Maximise $\sum_n w_n \ln q(x_n)$ by AdamW, for all members of an ensemble at once.

    Every epoch shuffles the draws anew. The weights that come back are those of the epoch at which
    a member's mean log density of the held-out draws was highest, not the last ones. Works in 32
    bits, whatever JAX's precision is.

    Args:
        log_prob: of one member; see `LogProb`.
        weights: each (member, ...). Integer arrays are constants.
        rows: the draws, columns that `log_prob` takes. Of several sets each belongs to equally
            many of the members, in order: several ensembles, trained together. An epoch is then as
            long for each as for the largest set.
        progress: called as progress(epoch, max_epochs, what) now and then.

    Raises:
        InputError: settings out of range, or a training that never found a finite score.
    """
    _check(settings)
    with jax.enable_x64(False):
        every = [_single(w) for w in weights]
        num = len(every[0])
        shared = _alike(rows, num // len(rows))
        is_free = [jnp.issubdtype(w.dtype, jnp.floating) for w in every]
        free = tuple(w for w, flag in zip(every, is_free, strict=True) if flag)
        fixed = tuple(w for w, flag in zip(every, is_free, strict=True) if not flag)

        def whole(free: Weights, fixed: Weights) -> Weights:
            one, other = iter(free), iter(fixed)
            return tuple(next(one) if flag else next(other) for flag in is_free)

        optimiser = _optimiser(settings, shared.weight.shape[1])
        stage = _stage(lambda free, *a: log_prob(whole(free, a[0]), *a[1:]), optimiser, settings)
        worst = jnp.full(num, -jnp.inf, jnp.float32)
        start = _State(free, jax.vmap(optimiser.init)(free), free, worst)
        keys = jax.random.split(key, (num, settings.max_epochs))
        state, scores = _run(stage, (start, fixed, keys, shared), settings, progress, what)
        if not np.isfinite(np.asarray(state.best_score)).all():
            raise InputError(
                "training never reached a finite score; lower learning_rate (it is "
                f"{settings.learning_rate:g}), or look for draws far away from all others."
            )
        return Trained(whole(state.best, fixed), scores)


def _single(weights: Any) -> Array:
    weights = np.asarray(weights)
    is_float = np.issubdtype(weights.dtype, np.floating)
    return jnp.asarray(weights.astype(np.float32) if is_float else weights)


def _alike(rows: Sequence[Rows], times: int) -> Rows:
    """All sets as one, (member, n, ...): filled up with draws of no weight, each so many times."""

    def together(columns: Sequence[Any], last: bool) -> Array:
        size = max(len(x) for x in columns)
        # The last draw again: what has no weight must not be infinite either.
        filled = [np.concatenate([x, np.repeat(x[-1:] * last, size - len(x), 0)]) for x in columns]
        return jnp.repeat(jnp.asarray(np.stack(filled), jnp.float32), times, axis=0)

    def points(columns: Sequence[Sequence[Any]]) -> tuple[Array, ...]:
        return tuple(together(x, True) for x in zip(*columns, strict=True))

    weight = together([one.weight for one in rows], False)
    return Rows(
        points([one.draws for one in rows]),
        # Of mean one: the learning rate then means the same for any number of draws.
        weight * weight.shape[1],
        points([one.held_out for one in rows]),
        together([one.held_out_weight for one in rows], False),
    )


def _stage(log_prob: LogProb, optimiser: Any, settings: Settings) -> Callable[..., Any]:
    """Some epochs of some members: (state, fixed, keys, rows) -> (state, scores)."""

    def epoch(state: _State, key: Any, fixed: Weights, rows: Rows) -> tuple[_State, Array]:
        num = len(rows.weight)
        size = min(settings.batch_size, num)
        order = jax.random.permutation(key, num)[: num // size * size].reshape(-1, size)

        def loss(free: Weights, index: Array) -> Array:
            value = log_prob(free, fixed, *[x[index] for x in rows.draws])
            return -jnp.mean(rows.weight[index] * value)

        def step(carry: Any, index: Array) -> Any:
            free, moments = carry
            change, moments = optimiser.update(jax.grad(loss)(free, index), moments, free)
            return (optax.apply_updates(free, change), moments), None

        (free, moments), _ = jax.lax.scan(step, (state.free, state.moments), order)
        score = jnp.sum(rows.held_out_weight * log_prob(free, fixed, *rows.held_out))
        # A NaN is not better, so that a training that breaks keeps what it had.
        better = score > state.best_score
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), free, state.best)
        return _State(free, moments, best, jnp.where(better, score, state.best_score)), score

    def stage(state: _State, fixed: Weights, keys: Any, rows: Rows) -> tuple[_State, Array]:
        return jax.lax.scan(lambda s, k: epoch(s, k, fixed, rows), state, keys)

    return jax.jit(jax.vmap(stage))


def _run(
    stage: Callable[..., Any],
    members: tuple[_State, Weights, Any, Rows],
    settings: Settings,
    progress: Any,
    what: str,
) -> tuple[_State, np.ndarray]:
    """All stages, until there is no more progress; the members are shared out to the cores.

    A step of a small network is too short for several cores to share.
    """
    num_groups = math.gcd(len(members[2]), os.cpu_count() or 1)
    groups = _split(members, num_groups)
    length = -(-settings.max_epochs // _STAGES)
    scores: list[np.ndarray] = []

    def run(group: Any, start: int) -> Any:
        # Threads do not inherit the precision.
        with jax.enable_x64(False):
            state, fixed, keys, rows = group
            state, score = stage(state, fixed, keys[:, start : start + length], rows)
            return (jax.block_until_ready(state), fixed, keys, rows), np.asarray(score)

    with ThreadPoolExecutor(num_groups) as threads:
        for start in range(0, settings.max_epochs, length):
            # The first group goes ahead where something is to be compiled, so that it is so once.
            alone = groups[:1] if start in (0, settings.max_epochs // length * length) else []
            done = [run(group, start) for group in alone]
            done += threads.map(run, groups[len(alone) :], [start] * num_groups)
            groups = [group for group, _ in done]
            scores.extend(np.concatenate([score for _, score in done]).T.astype(float))
            if progress is not None:
                progress(len(scores), settings.max_epochs, what)
            if len(scores) - 1 - _last_improvement(np.array(scores)) >= settings.patience:
                break
    states = [group[0] for group in groups]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *states), np.array(scores)


def _split(tree: Any, num: int) -> list[Any]:
    """Equal parts of the first axis of all arrays."""
    leaves, structure = jax.tree.flatten(tree)
    parts = zip(*[jnp.split(x, num) for x in leaves], strict=True)
    return [jax.tree.unflatten(structure, part) for part in parts]


def _last_improvement(score: np.ndarray) -> int:
    """The epoch at which the last of the members was best, from scores (epoch, member)."""
    return int(np.argmax(np.where(np.isnan(score), -np.inf, score), axis=0).max())


def _optimiser(settings: Settings, num: int) -> Any:
    num_steps = max(num // settings.batch_size, 1) * settings.max_epochs
    schedule = optax.cosine_onecycle_schedule(
        num_steps, settings.learning_rate, pct_start=0.2, div_factor=10, final_div_factor=100
    )
    # Clipped: a draw far out must not throw the weights away.
    return optax.chain(
        optax.clip_by_global_norm(5.0),
        optax.adamw(schedule, weight_decay=settings.weight_decay),
    )


def _check(settings: Settings) -> None:
    for name in ("max_epochs", "batch_size", "patience", "learning_rate"):
        if not getattr(settings, name) > 0:
            raise InputError(f"{name}={getattr(settings, name)} must be above 0.")
    if settings.weight_decay < 0:
        raise InputError(f"weight_decay={settings.weight_decay} must be 0 or more.")
