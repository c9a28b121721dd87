"""Where chains start: good draws of the prior, the modes, or the user's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError, did_you_mean
from ..keys import generator
from ..prior import components
from ..target import Target
from . import at_point, evaluate
from .laplace import find_modes

Start = Literal["prior", "mode"] | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""`"prior"`, `"mode"`, parameters by name for all chains, or one such mapping for each chain."""

# Chains that share start values begin so many standard deviations of the prior away from them.
_JITTER = 0.01
_MOST_HALVINGS = 30


def start_points(target: Target, start: Start, key: Any, num: int, *, num_start: int) -> np.ndarray:
    r"""Unconstrained points (num, dim) with posterior density, for `num` chains to start at.

    Args:
        target: to be sampled.
        start: "prior": the points of highest likelihood among `num_start` draws of the prior;
            "mode": draws of the normal densities at the modes found from there, with the curvature
            there, in turn; or values by name, see `Start`. Hyperparameters that are not named come
            from the best draws of the prior given those that are. Mappings are used in turn; the
            second chain at the same values and those after it start close to them, $10^{-2}$
            standard deviations of the prior, in unconstrained coordinates.
        key: of all randomness.
        num: points wanted.
        num_start: draws of the prior.

    Raises:
        InputError: a name that is not a parameter's, a value outside its prior, values without a
            likelihood, or no draw of the prior with one.
    """
    if start == "prior":
        return _best(target, _candidates(target, key, num_start), num)
    if start == "mode":
        return _at_modes(target, key, num, num_start)
    if isinstance(start, str):
        raise InputError(
            f"start='{start}' is not known{did_you_mean(start, ('prior', 'mode'))}; give 'prior', "
            "'mode', or values by name."
        )
    return _near_values(target, start, key, num, num_start)


def _candidates(target: Target, key: Any, num: int) -> np.ndarray:
    x = np.asarray(target.start_points(key, num), float)
    # A draw on the very edge of the prior is infinitely far away in unconstrained coordinates.
    return x[np.isfinite(x).all(axis=1)]


def _best(target: Target, x: np.ndarray, num: int) -> np.ndarray:
    """The points of highest likelihood, one for each chain: different, and none hopeless."""
    log_l, _ = evaluate(target, x)
    best = np.argsort(-log_l)[: np.isfinite(log_l).sum()]
    if not len(best):
        raise InputError(
            f"none of {len(x)} prior draws has a likelihood: every one leaves some object outside "
            "the population; give start values, or a prior nearer to the data."
        )
    return x[best[np.arange(num) % len(best)]]


# ---- modes ---------------------------------------------------------------------------------------


def _at_modes(target: Target, key: Any, num: int, num_start: int) -> np.ndarray:
    if target.num_latent:
        raise InputError(
            "start='mode' is for hyperparameters alone; latent parameters of objects start at "
            "their own maxima anyway: leave start out."
        )
    x = _candidates(target, key, num_start)
    log_l, log_p = evaluate(target, x)
    if not np.isfinite(log_l).any():
        _best(target, x, num)  # raises
    modes = find_modes(lambda y: np.sum(evaluate(target, y), axis=0), x, log_l + log_p, log_p)
    number = np.arange(num) % len(modes)
    center = np.stack([mode.x for mode in modes])[number]
    scale = np.stack([mode.scale for mode in modes])[number]
    noise = generator(jax.random.fold_in(key, 1)).standard_normal(center.shape)
    return _shrunk(target, center, np.einsum("nij,nj->ni", scale, noise))


def _shrunk(target: Target, center: np.ndarray, step: np.ndarray) -> np.ndarray:
    """`center + step`, with steps halved until there is a density; centres must have one."""
    for _ in range(_MOST_HALVINGS):
        lost = ~np.isfinite(np.sum(evaluate(target, center + step), axis=0))
        if not lost.any():
            return center + step
        step = np.where(lost[:, None], 0.5 * step, step)
    return center + np.where(lost[:, None], 0.0, step)


# ---- the user's values ---------------------------------------------------------------------------


def _near_values(
    target: Target,
    start: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    key: Any,
    num: int,
    num_start: int,
) -> np.ndarray:
    each = [start] if isinstance(start, Mapping) else list(start)
    if not each or not all(isinstance(values, Mapping) and values for values in each):
        raise InputError("start: give parameters by name, or a list of such mappings.")
    for values in each[:num]:
        _check(target, values)
    points = np.stack([_point(target, values, key, num_start) for values in each[:num]])
    number = np.arange(num)
    spread = np.std(_candidates(target, key, 64), axis=0)
    noise = generator(jax.random.fold_in(key, 1)).standard_normal((num, target.dim))
    step = np.where(number[:, None] < len(points), 0.0, _JITTER * spread * noise)
    return _shrunk(target, points[number % len(points)], step)


def _point(target: Target, values: Mapping[str, Any], key: Any, num_start: int) -> np.ndarray:
    """The best point with these values, (dim,)."""
    given = {name: jnp.asarray(value, float) for name, value in values.items()}
    complete = set(given) == set(target.names)
    others = jnp.asarray(_candidates(target, key, 1 if complete else num_start))
    free = jax.vmap(target.constrain)(others)

    def replaced(free: Mapping[str, Any]) -> Any:
        return target.unconstrain({n: given.get(n, free[n]) for n in target.names})

    x = np.asarray(jax.jit(jax.vmap(replaced))({n: free[n] for n in target.names}), float)
    log_l, log_p = evaluate(target, x)
    best = int(np.argmax(log_l))
    if not np.isfinite(log_l[best] + log_p[best]):
        raise InputError(
            f"start: there is no likelihood at {at_point(target, x[best])}: some object is outside "
            "the population there; give values inside the support of the prior and the population."
        )
    return x[best]


def _check(target: Target, values: Mapping[str, Any]) -> None:
    """Raise `InputError` naming what is wrong with the start values of a chain."""
    shapes = jax.eval_shape(target.constrain, jnp.zeros(target.dim))
    for name, value in values.items():
        if name not in target.names:
            raise InputError(
                f"start: '{name}' is no free parameter{did_you_mean(name, target.names)}; there "
                f"are {', '.join(target.names)}."
            )
        if np.shape(value) != shapes[name].shape or not _is_finite(value):
            wanted = f"numbers of shape {shapes[name].shape}" if shapes[name].shape else "a number"
            raise InputError(f"start: {name} = {value!r} is not {wanted} that is finite.")
    for key, prior in target.prior.free.items():
        names = components(key) if prior.event_shape else (key,)
        if not (named := [name for name in names if name in values]):
            continue
        if missing := [name for name in names if name not in values]:
            raise InputError(
                f"start: {named} have one prior together with {missing}; give all of them or none."
            )
        joined = jnp.stack([jnp.asarray(values[name], float) for name in names])
        inside = prior.support(joined if prior.event_shape else joined[0])
        if not bool(jnp.all(inside)):
            told = ", ".join(f"{name} = {values[name]}" for name in names)
            low, high = target.prior.bounds()[names[0]]
            raise InputError(
                f"start: {told} is outside of the prior ({low:g} to {high:g}); give values inside "
                "of it."
            )


def _is_finite(value: Any) -> bool:
    try:
        return bool(np.isfinite(np.asarray(value, float)).all())
    except (TypeError, ValueError):
        return False
