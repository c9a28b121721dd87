r"""What a fitted population says: marginal densities, and draws of objects, seen or not.

Everything takes draws of the hyperparameters of equal weight (`hyperparameter_draws`), and returns
one curve or one set of objects for each of them; bands over the draws are credible intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from .density import Density, Joint, Mixture, Population, Theta, log_total
from .errors import InputError, did_you_mean
from .keys import generator
from .likelihood import Samples
from .prior import Prior
from .result import Result

Hyperparameters = Mapping[str, Any]

# Draws of a histogram for every draw of an integral, because nothing is known in closed form there.
_HISTOGRAM = 32


def hyperparameter_draws(
    result: Result, num: int, *, key: Any, prior: Prior | None = None
) -> dict[str, np.ndarray]:
    """Return `num` draws of equal weight, name -> (num,), of all hyperparameters.

    The fixed ones are those of `prior`, with its ties, or else of the result.
    """
    draws = result.equal_weight_draws(generator(key), num)
    every = prior.complete(draws) if prior is not None else {**draws, **result.fixed}
    return {
        name: np.broadcast_to(value, (num, *np.shape(value)[1:])) for name, value in every.items()
    }


# ---- marginal densities --------------------------------------------------------------------------


def population_curves(
    population: Population,
    hyperparameters: Hyperparameters,
    name: str,
    grid: Any,
    *,
    key: Any,
    num_theta: int = 512,
    derived: Callable[[Theta], Array] | None = None,
    normalise: bool = False,
) -> np.ndarray:
    r"""Marginal density of a parameter, $\rho(x) = \int \rho(\theta)\,\delta(\theta_x-x)\,d\theta$.

    A mixture is the sum of its components. In a `Joint`, later factors integrate to one, and

    * a factor over `name` alone is evaluated exactly;
    * a factor that depends on one other parameter $t$ with a factor of its own is integrated,
      $\int p(t)\,p(x|t)\,dt$, by a two-point Gauss rule between `num_theta`/2 nodes that follow the
      density of $t$ and the edges of both supports: error below $10^{-3}$ of the highest value,
      several per cent right beside a point where the marginal diverges (m2 at its minimum);
    * one that depends on several is averaged over $n$ = `num_theta` draws of them, $\frac1n\sum_j
      p(x|t_j)$: error $s_x/\sqrt{n}$ with $s_x$ the scatter of $p(x|t_j)$, mostly a few per cent;
    * a factor over `name` and one more is integrated over the other like the second;
    * what remains, and every `derived` parameter, is a histogram of 32 `num_theta` draws in cells
      around the grid points: relative error one over the root of the draws in the cell.

    Args:
        population: hyperparameters -> density or rate density.
        hyperparameters: name -> (draw,).
        name: the parameter.
        grid: its values, increasing.
        key: for the draws of the integrals.
        num_theta: see above.
        derived: theta -> value, for a quantity that is not a parameter of the density.
        normalise: divide by the total rate.

    Returns:
        Array (draw, grid), in units of the (rate) density per unit of the parameter.

    Raises:
        InputError: the density has no such parameter, or a grid that does not increase.
    """
    grid = _checked_grid(grid)
    hyper, size = _as_draws(hyperparameters)
    names = population({k: v[0] for k, v in hyper.items()}).names
    if derived is None and name not in names:
        raise InputError(
            f"the population has no parameter '{name}'{did_you_mean(name, names)}; it has "
            f"{sorted(names)}. Give `derived` for a quantity that follows from them."
        )

    def curve(h_and_key: tuple[Any, Any]) -> Array:
        h, k = h_and_key
        density = population(h)
        if derived is not None:
            curve = jnp.exp(log_total(density)) * _histogram(density, derived, grid, k, num_theta)
        else:
            curve = _marginal(density, name, grid, k, num_theta)
        return curve * jnp.exp(-log_total(density)) if normalise else curve

    keys = jax.random.split(key, size)
    return np.asarray(jax.jit(lambda *args: jax.lax.map(curve, args))(hyper, keys))


def _marginal(density: Any, name: str, x: Array, key: Any, num: int) -> Array:
    """Marginal of one density on the grid `x`, traced for one point of the hyperparameters."""
    if isinstance(density, Mixture):
        keys = jax.random.split(key, len(density.components))
        parts = zip(density.components.items(), keys, strict=True)
        values = [
            jnp.exp(density.log_weights[k]) * _marginal(c, name, x, sub, num)
            for (k, c), sub in parts
        ]
        return sum(values, start=jnp.zeros(x.shape))
    if isinstance(density, Joint):
        return _marginal_of_joint(density, name, x, key, num)
    if len(density.names) == 1:
        return jnp.exp(density.log_prob({name: x}))
    if len(density.names) == 2:
        return _integrate_other(density, name, x, key, num)
    return jnp.exp(log_total(density)) * _histogram(density, lambda t: t[name], x, key, num)


def _marginal_of_joint(joint: Joint, name: str, x: Array, key: Any, num: int) -> Array:
    label = next(k for k in joint.factors if name == k or (isinstance(k, tuple) and name in k))
    factor = joint.factors[label]
    others = [log_total(f) for k, f in joint.factors.items() if k != label]
    scale = jnp.exp(sum(others, start=jnp.zeros(())))
    if not _is_conditional(factor):
        if isinstance(factor, dist.Distribution):
            # As a Joint of its own, because that knows about edges of supports.
            alone = Joint({label: factor})
            if label == name:
                return scale * jnp.exp(alone.log_prob({name: x}))
            if len(label) == 2:
                return scale * _integrate_other(alone, name, x, key, num)
            return scale * _histogram(alone, lambda t: t[name], x, key, num)
        return scale * _marginal(factor, name, x, key, num)
    earlier = _earlier(joint, label)
    parents = _reads(factor, earlier, key)
    if label != name:
        return scale * _histogram(joint, lambda t: t[name], x, key, num)
    parent = earlier.factors.get(parents[0]) if len(parents) == 1 else None
    if parent is not None and not _is_conditional(parent):
        return scale * _integrate_parent(parents[0], parent, name, factor, x, key, num)
    theta = earlier.sample(key, (num,))
    given = factor(theta)
    given = Joint({name: given}) if isinstance(given, dist.Distribution) else given
    value = given.log_prob({name: jnp.broadcast_to(x[:, None], (x.size, num)), **theta})
    return scale * jnp.mean(jnp.exp(value), axis=1)


def _integrate_parent(
    parent: str, p_parent: Any, name: str, factor: Any, x: Array, key: Any, num: int
) -> Array:
    r"""$\int p(t)\,p(x|t)\,dt$ where the support of $p(x|t)$ may have edges that move with t."""
    own, pair = Joint({parent: p_parent}), Joint({parent: p_parent, name: factor})
    # Where p(t) is zero, p(x|t) need not be defined.
    t = _inside_support(own, parent, _nodes(p_parent, parent, key, num))
    given = factor({parent: t})
    margin = jnp.full((x.size, t.size), jnp.inf)
    if isinstance(given, dist.Distribution):
        low, high = _interval(given)
        margin = jnp.broadcast_to(jnp.minimum(x[:, None] - low, high - x[:, None]), margin.shape)
    # A cell with one end outside the support of p(x|t) counts from where the edge crosses it.
    a, b = margin[:, :-1], margin[:, 1:]
    cut = (a >= 0) != (b >= 0)
    share = jnp.where(cut, a, 0.0) / jnp.where(cut, a - b, 1.0)
    crossing = t[:-1] + share * (t[1:] - t[:-1])
    start = jnp.where(a >= 0, t[:-1], crossing)
    width = jnp.where((a >= 0) | (b >= 0), jnp.where(b >= 0, t[1:], crossing) - start, 0.0)

    def rule(log_prob: Callable[[Array], Array], start: Array, width: Array) -> Array:
        points = [start + width * (0.5 + s * 12**-0.5) for s in (-1.0, 1.0)]
        return jnp.sum(0.5 * width * sum(jnp.exp(log_prob(p)) for p in points), axis=-1)

    wide = jnp.broadcast_to(x[:, None], start.shape)
    value = rule(lambda p: pair.log_prob({parent: p, name: wide}), start, width)
    # What the nodes miss of p(t) in its tails, they miss here too.
    norm = rule(lambda p: own.log_prob({parent: p}), t[:-1], t[1:] - t[:-1])
    return value * jnp.exp(log_total(p_parent)) / norm


def _integrate_other(density: Any, name: str, x: Array, key: Any, num: int) -> Array:
    """Integrate a density over two parameters over the one that is not `name`."""
    other = next(n for n in density.names if n != name)
    t = _nodes(density, other, key, num)
    width = t[1:] - t[:-1]
    total: Array = jnp.zeros(x.shape)
    for s in (-1.0, 1.0):
        p = jnp.broadcast_to(t[:-1] + width * (0.5 + s * 12**-0.5), (x.size, width.size))
        wide = jnp.broadcast_to(x[:, None], p.shape)
        total = total + jnp.sum(0.5 * width * jnp.exp(density.log_prob({name: wide, other: p})), 1)
    return total


def _nodes(density: Any, name: str, key: Any, num: int) -> Array:
    """`num`/2 increasing values that follow the density, and its known edges."""
    theta = Joint({name: density}) if isinstance(density, dist.Distribution) else density
    draws = jnp.sort(theta.sample(key, (num,))[name])
    edges = list(_edges(density, name))
    # Without an edge there is a tail beyond the last draw.
    room = 0.25 * (draws[-1] - draws[0])
    known = jnp.stack([jnp.stack(pair) for pair in edges]) if edges else jnp.zeros((0, 2))
    low = jnp.min(known[:, 0], initial=jnp.inf)
    high = jnp.max(known[:, 1], initial=-jnp.inf)
    low = jnp.where(jnp.isfinite(low), jnp.minimum(low, draws[0]), draws[0] - room)
    high = jnp.where(jnp.isfinite(high), jnp.maximum(high, draws[-1]), draws[-1] + room)
    uniform = jnp.linspace(low, high, max(num // 4, 2))
    return jnp.sort(jnp.clip(jnp.concatenate([uniform, draws[::4], known.ravel()]), low, high))


def _inside_support(density: Density, name: str, t: Array) -> Array:
    """Increasing nodes moved to where the density is not zero, the first and last to its edges."""
    # "Not zero", so that a density that is NaN stays in sight.
    inside = density.log_prob({name: t}) != -jnp.inf
    first, last = jnp.argmax(inside), t.size - 1 - jnp.argmax(inside[::-1])
    outer = jnp.stack([t[jnp.maximum(first - 1, 0)], t[jnp.minimum(last + 1, t.size - 1)]])

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        good, bad = ends
        middle = 0.5 * (good + bad)
        here = density.log_prob({name: middle}) != -jnp.inf
        return jnp.where(here, middle, good), jnp.where(here, bad, middle)

    good, _ = jax.lax.fori_loop(0, 40, halve, (jnp.stack([t[first], t[last]]), outer))
    # The first node may itself be outside; those beyond it then make cells of no width.
    moved = jnp.clip(t, good[0], good[1])
    return moved.at[0].set(good[0]).at[-1].set(good[1])


def _edges(density: Any, name: str) -> Iterator[tuple[Array, Array]]:
    """Bounds of the supports of all leaves over `name` alone, as far as they are known."""
    if isinstance(density, dist.Distribution):
        yield _interval(density)
    elif isinstance(density, Mixture):
        for component in density.components.values():
            yield from _edges(component, name)
    elif isinstance(density, Joint) and not _is_conditional(density.factors.get(name)):
        yield from _edges(density.factors.get(name), name)


def _interval(d: dist.Distribution) -> tuple[Array, Array]:
    low = getattr(d.support, "lower_bound", -jnp.inf)
    high = getattr(d.support, "upper_bound", jnp.inf)
    return jnp.asarray(low, float), jnp.asarray(high, float)


def _histogram(
    density: Density, value: Callable[[Theta], Array], x: Array, key: Any, num: int
) -> Array:
    """Share of draws in the cell of each grid point, per width of the cell."""
    middle = 0.5 * (x[1:] + x[:-1])
    # The outer cells are symmetric about the ends of the grid.
    edges = jnp.concatenate([2 * x[:1] - middle[:1], middle, 2 * x[-1:] - middle[-1:]])
    size = _HISTOGRAM * num
    draws = value(density.sample(key, (size,)))
    return jnp.histogram(draws, edges)[0] / (size * jnp.diff(edges))


def _is_conditional(factor: Any) -> bool:
    known = isinstance(factor, dist.Distribution) or hasattr(factor, "log_prob")
    return callable(factor) and not known


def _earlier(joint: Joint, label: Any) -> Joint:
    labels = list(joint.factors)
    return Joint({k: joint.factors[k] for k in labels[: labels.index(label)]})


class _Noting(dict[str, Array]):
    """A theta that notes which of its parameters are read."""

    def __init__(self, theta: Theta):
        super().__init__(theta)
        self.read: dict[str, None] = {}

    def __getitem__(self, name: str) -> Array:
        self.read[name] = None
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read[name] = None
        return super().get(name, default)


def _reads(factor: Any, earlier: Joint, key: Any) -> tuple[str, ...]:
    """The earlier parameters that a conditional factor looks at."""
    read: dict[str, None] = {}

    def look() -> Array:
        noting = _Noting(earlier.sample(key, (1,)))
        given = factor(noting)
        if hasattr(given, "names"):
            # Such a density may look at theta itself when it is evaluated.
            read.update(dict.fromkeys(earlier.names))
        read.update(noting.read)
        return jnp.zeros(())

    jax.eval_shape(look)
    return tuple(name for name in read if name in earlier.names)


def _checked_grid(grid: Any) -> Array:
    grid = np.asarray(grid, float)
    if grid.ndim != 1 or grid.size < 2 or not np.all(np.diff(grid) > 0):
        raise InputError("the grid must be increasing values, at least two; sort them.")
    return jnp.asarray(grid)


def _as_draws(hyperparameters: Hyperparameters) -> tuple[dict[str, Array], int]:
    hyper = {name: jnp.asarray(x, float) for name, x in hyperparameters.items()}
    sizes = {name: x.shape[0] if x.ndim else 0 for name, x in hyper.items()}
    if not sizes or len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise InputError(
            f"hyperparameters need one array each with the same number of draws, not {sizes}; "
            "use hyperparameter_draws."
        )
    return hyper, next(iter(sizes.values()))


# ---- draws of objects ----------------------------------------------------------------------------


def posterior_predictive(
    population: Population,
    hyperparameters: Hyperparameters,
    *,
    key: Any,
    num: int = 1,
    given: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    r"""Draw objects from $p(\theta) = \langle \rho(\theta|\Lambda) / R(\Lambda) \rangle_\Lambda$.

    Args:
        hyperparameters: name -> (draw,).
        num: objects for each draw.
        given: known columns of these objects, (num,), where the population depends on them.

    Returns:
        Parameter name -> (draw, num); together they are the posterior predictive.
    """
    hyper, size = _as_draws(hyperparameters)
    known: dict[str, Any] = {"given": dict(given)} if given else {}

    def one(h_and_key: tuple[Any, Any]) -> dict[str, Array]:
        return population(h_and_key[0]).sample(h_and_key[1], (num,), **known)

    drawn = jax.jit(lambda *args: jax.lax.map(one, args))(hyper, jax.random.split(key, size))
    return {name: np.asarray(x) for name, x in drawn.items()}


def detected_predictive(
    population: Population,
    hyperparameters: Hyperparameters,
    selection: Any,
    *,
    key: Any,
    num: int = 1,
    num_theta: int = 10_000,
) -> dict[str, np.ndarray]:
    r"""Draw objects that are detected, $p(\theta|\det) \propto p_\det(\theta)\rho(\theta|\Lambda)$.

    Found injections $\theta_j$ are taken with probability proportional to $\rho(\theta_j|\Lambda) /
    p_\mathrm{draw}(\theta_j)$; with a function, `num_theta` draws of the population in proportion
    to $p_\det$. Either way an object can come more than once.

    Args:
        hyperparameters: name -> (draw,).
        selection: `Samples` with one object, the found injections; or theta -> $\ln p_\det$.
        num: objects for each draw of the hyperparameters.

    Returns:
        Name -> (draw, num), of all parameters of the injections or of the population.

    Raises:
        InputError: another kind of selection, or a population with nothing detected.
    """
    hyper, size = _as_draws(hyperparameters)
    if isinstance(selection, Samples):
        if len(selection.names) != 1:
            raise InputError(f"a selection has one object, not {len(selection.names)}.")
        theta = {n: jnp.asarray(x) for n, x in selection.object_draws(0).items()}
        log_ref = theta.pop("log_ref")
    elif not callable(selection):
        raise InputError(
            f"a selection of type {type(selection).__name__} does not tell which objects are seen; "
            "give found injections as Samples, or a function theta -> ln p_det."
        )

    def one(data: Any, h: Any, k: Any) -> tuple[dict[str, Array], Array]:
        pick_key, draw_key = jax.random.split(k)
        density = population(h)
        if data is None:
            theta = density.sample(draw_key, (num_theta,))
            log_weight = selection(theta)
        else:
            theta, log_ref = data
            log_weight = density.log_prob(theta) - log_ref
        top = jnp.max(log_weight)
        share = jnp.cumsum(jnp.exp(log_weight - top), dtype=jnp.result_type(float))
        u = jax.random.uniform(pick_key, (num,), share.dtype) * share[-1]
        chosen = jnp.minimum(jnp.searchsorted(share, u, side="right"), share.size - 1)
        return {n: x[chosen] for n, x in theta.items()}, share[-1]

    data = (theta, log_ref) if isinstance(selection, Samples) else None
    run = jax.jit(lambda data, *args: jax.lax.map(lambda a: one(data, *a), args))
    drawn, total = run(data, hyper, jax.random.split(key, size))
    if bad := int(np.sum(~np.isfinite(np.asarray(total)))):
        raise InputError(
            f"nothing is detected at {bad} of {size} draws of the hyperparameters (no injection "
            "inside the population, or a density that is NaN); draws of a posterior are needed."
        )
    return {name: np.asarray(x) for name, x in drawn.items()}
