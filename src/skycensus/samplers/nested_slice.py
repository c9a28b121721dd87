r"""Nested slice sampling in the unit cube, on the device: the loop of BlackJAX, and its chains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri

# The length of a bracket, in standard deviations of the live points along it: an interval is 3.5
# of its own long, a disc 4.
_WIDTH = 4.0

# Shrinking nearly halves a bracket on average: more steps mean a contour narrower than rounding.
_MAX_SHRINKS = 100

LogLikelihood = Callable[[Array, Array], Array]
"""Of one point (dim,), and whether it is wanted; else what comes back is of no matter."""


class Found(NamedTuple):
    """New points of one iteration, (num_delete,) each.

    `below`, `tied` and `alive` are numbers of points that were there before, survivors and earlier
    ones of the iteration: with a lower log likelihood, with the same, and altogether. `calls` are
    evaluations.
    """

    log_l: Any
    below: Any
    tied: Any
    alive: Any
    calls: Any


class Dead(NamedTuple):
    """Points that died in one iteration, (num_delete, ...)."""

    u: Any
    log_l: Any
    birth: Any


class _Chain(NamedTuple):
    u: Array
    log_l: Array
    left: Array
    right: Array
    steps: Array
    shrinks: Array
    calls: Array


def run_chains(
    log_likelihood: LogLikelihood,
    key: Any,
    u: Array,
    log_l: Array,
    floor: Array,
    directions: Array,
    places: Array,
    jumps: Array,
) -> _Chain:
    r"""Slice steps of many chains within the cube where log L > `floor`, and jumps.

    A bracket of length one direction, placed at random around the point and cut where it leaves the
    cube, is shrunk until a uniform draw in it is inside (Neal 2003, Annals of Statistics 31, 705,
    fig. 5). The prior is uniform, so being inside is all that counts. A bracket is not stepped out:
    it is wide already, and the evaluations at its ends are better spent on more steps.

    After every sweep of `dim` slices comes one attempt to jump by the difference of two other
    points (ter Braak 2006, Statistics and Computing 16, 239), which leads from mode to mode.
    Without it the share of the points in a mode that is apart would drift like a random walk.

    Every turn of the loop evaluates the likelihood once for every chain, wherever each is. With a
    loop for each slice all would wait for the slowest at every slice.

    A log likelihood that is NaN or $+\infty$ ends the chain there, with $+\infty$.

    Args:
        log_likelihood: not wanted any more of a chain that is done while others go on.
        u, log_l: starts (chain, dim), (chain,), above the floor.
        floor: a number.
        directions: (sweep, dim, dim).
        places: uniform numbers (chain, sweep * dim), where in its first bracket the point is.
        jumps: (chain, sweep, dim).
    """
    dim = u.shape[1]
    num = len(directions) * (dim + 1)

    def direction(i: Array, jumps: Array) -> Array:
        sweep, step = jnp.divmod(i, dim + 1)
        line = directions[sweep, jnp.minimum(step, dim - 1)]
        return jnp.where(step == dim, jumps[sweep], line)

    def bracket(u: Array, i: Array, places: Array, jumps: Array) -> tuple[Array, Array]:
        d = direction(i, jumps)
        up, down = (1.0 - u) / d, -u / d
        high = jnp.where(d > 0, up, jnp.where(d < 0, down, jnp.inf))
        low = jnp.where(d > 0, down, jnp.where(d < 0, up, -jnp.inf))
        place = places[i // (dim + 1) * dim + jnp.minimum(i % (dim + 1), dim - 1)]
        jump = i % (dim + 1) == dim
        left = jnp.where(jump, 1.0, jnp.maximum(-place, jnp.max(low)))
        return left, jnp.where(jump, 1.0, jnp.minimum(1.0 - place, jnp.min(high)))

    def turn(c: _Chain, v: Array, places: Array, jumps: Array) -> _Chain:
        t = c.left + v * (c.right - c.left)
        raw = c.u + t * direction(c.steps, jumps)
        # A jump may lead out of the cube, and rounding onto a face.
        eps = jnp.finfo(c.u.dtype)
        point = jnp.clip(raw, eps.tiny, 1.0 - eps.epsneg)
        value = log_likelihood(point, c.steps < num)
        within = jnp.all((raw > 0) & (raw < 1))
        broken = within & (jnp.isnan(value) | (value == jnp.inf))
        inside = within & ((value > floor) | broken)
        last = (c.steps % (dim + 1) == dim) | (c.shrinks + 1 >= _MAX_SHRINKS)
        again = ~inside & ~last
        u = jnp.where(inside, point, c.u)
        steps = jnp.where(broken, num, c.steps + ~again)
        left, right = bracket(u, jnp.minimum(steps, num - 1), places, jumps)
        new = _Chain(
            u,
            jnp.where(broken, jnp.inf, jnp.where(inside, value, c.log_l)),
            jnp.where(again, jnp.where(t < 0, t, c.left), left),
            jnp.where(again, jnp.where(t < 0, c.right, t), right),
            steps,
            jnp.where(again, c.shrinks + 1, 0),
            c.calls + 1,
        )
        return jax.tree.map(lambda a, b: jnp.where(c.steps < num, a, b), new, c)

    def all_turn(carry: tuple[Array, _Chain]) -> tuple[Array, _Chain]:
        n, chains = carry
        # One stream for all: a key for each chain would cost more than a simple likelihood.
        v = jax.random.uniform(jax.random.fold_in(key, n), (len(u),), u.dtype)
        return n + 1, jax.vmap(turn)(chains, v, places, jumps)

    zero = jnp.zeros(len(u), int)
    left, right = jax.vmap(bracket)(u, zero, places, jumps)
    start = _Chain(u, log_l, left, right, zero, zero, zero)
    return jax.lax.while_loop(
        lambda carry: jnp.any(carry[1].steps < num), all_turn, (jnp.zeros((), int), start)
    )[1]


def covariance_root(_: Any, state: Any, *unused: Any) -> dict[str, Array]:
    """A root of the live points' covariance, for BlackJAX's tuning of the inner kernel."""
    u = state.particles.position
    sd = jnp.std(u, axis=0)
    # All live points may share a coordinate, to rounding.
    sd = jnp.maximum(sd, jnp.finfo(u.dtype).eps)
    z = (u - jnp.mean(u, axis=0)) / sd
    correlation = z.T @ z / len(z) + 1e-6 * jnp.eye(u.shape[1])
    return {"root": sd[:, None] * jnp.linalg.cholesky(correlation)}


def inner_kernel(
    log_likelihood: LogLikelihood, num_inner_steps: int, num_delete: int
) -> Callable[..., Any]:
    """BlackJAX's inner kernel: new points from chains that start at survivors."""
    from blackjax.ns.base import StateWithLogLikelihood

    def kernel(key: Any, state: Any, floor: Array, *, root: Array) -> Any:
        position, old = state.particles.position, state.particles.loglikelihood
        num_live, dim = position.shape
        # Almost all in one draw, for every random call costs a fifth of a second to compile.
        draw_key, chain_key = jax.random.split(key)
        sweeps = -(-num_inner_steps // dim)
        sizes = (num_live, num_delete * sweeps * dim, num_delete * sweeps * 2, sweeps * dim**2)
        low = jnp.finfo(position.dtype).tiny
        drawn = jax.random.uniform(draw_key, (sum(sizes),), position.dtype, minval=low)
        ends = [sum(sizes[: n + 1]) for n in range(3)]
        shuffle, places, pairs, z = jnp.split(drawn, ends)
        alive = old > floor
        # Each survivor starts one chain before any starts two.
        order = jnp.argsort(shuffle + 2.0 * ~alive)
        num_alive = jnp.maximum(jnp.sum(alive), 1)
        start = order[jnp.arange(num_delete) % num_alive]
        pairs = order[(pairs.reshape(num_delete, sweeps, 2) * num_alive).astype(int)]
        # Orthogonal directions forget a place sooner than independent ones; all chains may share
        # them, for they start at different points.
        bases = jnp.linalg.qr(ndtri(z).reshape(sweeps, dim, dim))[0]
        chains = run_chains(
            log_likelihood,
            chain_key,
            position[start],
            old[start],
            floor,
            _WIDTH * bases @ root.T,
            places.reshape(num_delete, -1),
            position[pairs[..., 0]] - position[pairs[..., 1]],
        )
        new = StateWithLogLikelihood(
            chains.u,
            jnp.zeros(num_delete, old.dtype),
            chains.log_l,
            jnp.full(num_delete, floor),
        )
        # Each among the survivors and the new points before it: those ranks are independent, and
        # ranks of many among the same survivors are not.
        among = jnp.concatenate([old, chains.log_l])
        earlier = jnp.tri(num_delete, k=-1, dtype=bool)
        there = jnp.concatenate([jnp.broadcast_to(alive, (num_delete, num_live)), earlier], axis=1)
        value = chains.log_l[:, None]
        found = Found(
            chains.log_l,
            jnp.sum(there & (among < value), axis=1),
            jnp.sum(there & (among == value), axis=1),
            jnp.sum(there, axis=1),
            chains.calls,
        )
        return new, found

    return kernel


def remaining(state: Any) -> Array:
    r"""$\ln(1 + X L_{\max} / Z)$: what the live points may still add to ln Z, at most."""
    best = jnp.max(state.particles.loglikelihood)
    return jnp.logaddexp(0.0, state.integrator.logX + best - state.integrator.logZ)


def unfinished(state: Any, dlogz: float, num_delete: int) -> Array:
    """Whether to go on: there is evidence left, and a point above those that would die next."""
    old = state.particles.loglikelihood
    floor = jnp.sort(old)[num_delete - 1]
    top = jnp.max(old)
    return (remaining(state) > dlogz) & (floor < top) & (top < jnp.inf)


def first_state(u: Array, log_l: Array) -> Any:
    """BlackJAX's state of live points with known log likelihoods."""
    from blackjax.ns.adaptive import init
    from blackjax.ns.base import StateWithLogLikelihood

    birth = jnp.full_like(log_l, -jnp.inf)
    return init(
        u,
        lambda u: StateWithLogLikelihood(u, jnp.zeros_like(log_l), log_l, birth),
        -jnp.inf,
        covariance_root,
    )


def iterate(
    log_likelihood: LogLikelihood,
    key: Any,
    state: Any,
    *,
    num_iterations: int,
    num_inner_steps: int,
    num_delete: int,
    dlogz: float,
) -> tuple[Any, Dead, Found, Array]:
    """Up to `num_iterations` iterations: the state, what died, what was found, how many."""
    from blackjax.ns.adaptive import build_kernel
    from blackjax.ns.base import delete_fn

    kernel = build_kernel(
        partial(delete_fn, num_delete=num_delete),
        inner_kernel(log_likelihood, num_inner_steps, num_delete),
        covariance_root,
    )

    def once(i: Array, state: Any) -> tuple[Any, tuple[Dead, Found]]:
        state, info = kernel(jax.random.fold_in(key, i), state)
        gone = info.particles
        return state, (
            Dead(gone.position, gone.loglikelihood, gone.loglikelihood_birth),
            info.update_info,
        )

    def body(carry: Any) -> Any:
        i, state, kept = carry
        state, new = once(i, state)
        return i + 1, state, jax.tree.map(lambda all, one: all.at[i].set(one), kept, new)

    shapes = jax.eval_shape(once, jnp.zeros((), int), state)[1]
    empty = jax.tree.map(lambda s: jnp.zeros((num_iterations, *s.shape), s.dtype), shapes)
    count, state, (dead, found) = jax.lax.while_loop(
        lambda carry: (carry[0] < num_iterations) & unfinished(carry[1], dlogz, num_delete),
        body,
        (jnp.zeros((), int), state, empty),
    )
    return state, dead, found, count
