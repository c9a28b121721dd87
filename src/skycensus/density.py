r"""Densities over named parameters: products of factors, mixtures, and mixtures of mixtures.

A density is anything with `names`, `log_prob(theta)` and `sample(key, sample_shape)`, where `theta`
maps parameter names to arrays of one common shape. One-dimensional pieces are NumPyro
distributions; `Joint` joins them by name and `Mixture` adds them up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from .errors import InputError, did_you_mean

# Supports without their end points: a density over one may diverge or be NaN there.
_OPEN = (constraints.greater_than, constraints.less_than, constraints.open_interval)
# NumPyro derives these from the open ones.
_HALF_CLOSED = (constraints.greater_than_eq, constraints.less_than_eq)

Theta = Mapping[str, Array]
Names = str | tuple[str, ...]


@runtime_checkable
class Density(Protocol):
    r"""A density $p(\theta)$, or a rate density $R\,p(\theta)$, over named parameters.

    To add one, write these three members; nothing is registered. `log_prob` must be elementwise
    over the common shape of the arrays in `theta`, return $-\infty$ outside the support with a
    finite gradient, and ignore entries of `theta` that are not in `names`.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def log_prob(self, theta: Theta) -> Array: ...

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> dict[str, Array]: ...


Population = Callable[[Mapping[str, Array]], Density]
"""A model is a function: hyperparameters -> density."""


class Kernels(dict[str, Array]):
    r"""A theta whose points stand for small kernels: `width` holds their standard deviations.

    Hard edges of a density are then averaged over the kernels (see `Joint`), which makes a Monte
    Carlo integral a smooth function of the edges at the resolution of its own draws.
    """

    def __init__(self, theta: Theta, width: Mapping[str, Array]):
        super().__init__(theta)
        self.width = dict(width)


class Joint:
    r"""A product of named factors, $p(\theta) = \prod_k p_k(\theta_k \mid \theta_{<k})$.

    Args:
        factors: mapping from a parameter name (or a tuple of names) to the factor: a NumPyro
            distribution, a `Density` over exactly these names, or a function of the earlier
            parameters that returns either. Keyword arguments add factors after the mapping's.

    Outside a one-dimensional interval support `log_prob` is $-\infty$ with a finite gradient. For
    `Kernels` the indicator of such a support is replaced by its average over each kernel. A factor
    that is a function then sees earlier parameters softly clipped into their supports.

    Raises:
        InputError: no factors, or a parameter that appears twice.
    """

    def __init__(self, factors: Mapping[Any, Any] | None = None, /, **more: Any):
        self.factors: dict[Names, Any] = dict(factors or {}) | more
        if not self.factors:
            raise InputError("Joint needs at least one factor: Joint(mass=distribution, ...).")
        names = [n for key in self.factors for n in _as_names(key)]
        if repeated := sorted({n for n in names if names.count(n) > 1}):
            raise InputError(
                f"Joint has more than one factor for {repeated}; merge or rename them."
            )
        self.names = tuple(names)

    def log_prob(self, theta: Theta) -> Array:
        return logsumexp_terms(self.log_terms(theta))

    def log_terms(self, theta: Theta) -> dict[str, Array]:
        """Split over the leaves of a factor that is a mixture; see `log_terms`."""
        check_names(self.names, theta)
        seen: Theta = theta
        values: list[Array] = []
        masks: list[Array] = []
        split: dict[str, Array] | None = None
        for key, factor in self.factors.items():
            factor = _given(factor, seen)
            if isinstance(factor, dist.Distribution):
                value, inside, seen = _distribution_log_prob(key, factor, seen)
                if inside is not None:
                    masks.append(inside)
            elif split is None and hasattr(factor, "log_terms"):
                split = factor.log_terms(theta)
                continue
            else:
                value = factor.log_prob(theta)
            values.append(value)
        common = functools.reduce(jnp.add, values) if values else jnp.zeros(())
        if masks:
            # Added, not selected: a select over this much arithmetic keeps a compiler from using
            # vector instructions, which doubles the cost of the whole likelihood on a CPU.
            common = common + jnp.where(functools.reduce(jnp.logical_and, masks), 0.0, -jnp.inf)
        if split is None:
            return {"": common}
        return {leaf: term + common for leaf, term in split.items()}

    def sample(
        self, key: Any, sample_shape: tuple[int, ...] = (), given: Theta | None = None
    ) -> dict[str, Array]:
        """Draw the factors in turn; known columns in `given` have the sample shape."""
        theta: dict[str, Array] = dict(given or {})
        for (names, factor), k in zip(
            self.factors.items(), jax.random.split(key, len(self.factors)), strict=True
        ):
            conditional = not _is_factor(factor) and bool(theta)
            drawn = _given(factor, theta)
            if conditional and not isinstance(drawn, dist.Distribution):
                theta.update(_sample_conditional(factor, theta, k, sample_shape))
                continue
            # A conditional distribution already carries the sample shape of what it depends on.
            batch = drawn.batch_shape if conditional else ()
            known = {"given": given} if given and isinstance(drawn, Joint | Mixture) else {}
            draw = drawn.sample(k, sample_shape[: len(sample_shape) - len(batch)], **known)
            if isinstance(drawn, dist.Distribution):
                if isinstance(names, tuple):
                    theta.update({n: draw[..., i] for i, n in enumerate(names)})
                else:
                    theta[names] = draw
            else:
                theta.update(draw)
        return {name: theta[name] for name in self.names}


class Mixture:
    r"""A weighted sum of densities over the same parameters, $\sum_k w_k\,p_k(\theta)$.

    Args:
        components: name -> density; a component may itself be a `Mixture` (the mixture tree) or a
            `Joint` with one.
        log_weights: name -> $\ln w_k$. They need not sum to one: unnormalised weights are rates.

    Raises:
        InputError: no components, weights that do not match them, or different parameters.
    """

    def __init__(self, components: Mapping[str, Any], *, log_weights: Mapping[str, Any]):
        self.components = dict(components)
        self.log_weights = dict(log_weights)
        if not self.components:
            raise InputError("Mixture needs at least one component.")
        if self.components.keys() != self.log_weights.keys():
            raise InputError(
                f"Mixture has components {sorted(self.components)} but weights for "
                f"{sorted(self.log_weights)}; give exactly one log weight per component."
            )
        first, *rest = self.components.items()
        for name, component in rest:
            if set(component.names) != set(first[1].names):
                raise InputError(
                    f"Mixture component '{name}' is over {sorted(component.names)}, but "
                    f"'{first[0]}' over {sorted(first[1].names)}; all must share one set."
                )
        self.names = tuple(first[1].names)

    def log_prob(self, theta: Theta) -> Array:
        return logsumexp_terms(self.log_terms(theta))

    def log_terms(self, theta: Theta) -> dict[str, Array]:
        """Return `path -> log(w_k p_k)` for every leaf, with paths such as `bkg/ccr`."""
        terms: dict[str, Array] = {}
        for name, component in self.components.items():
            for leaf, term in log_terms(component, theta).items():
                path = f"{name}/{leaf}" if leaf else name
                terms[path] = term + self.log_weights[name]
        return terms

    @property
    def log_total(self) -> Array:
        r"""$\ln \sum_k w_k \int p_k$: the log of the total rate, zero where all is normalised."""
        return logsumexp(self._log_rates(), axis=0)

    def _log_rates(self) -> Array:
        """Log of each component's weight times its integral: a branch may be a rate itself."""
        return jnp.stack(
            [
                jnp.asarray(self.log_weights[name], float) + log_total(component)
                for name, component in self.components.items()
            ]
        )

    def sample(
        self, key: Any, sample_shape: tuple[int, ...] = (), given: Theta | None = None
    ) -> dict[str, Array]:
        """Draw a component by its weight for each draw; for `given` see `Joint.sample`."""
        known = {"given": given} if given else {}
        pick_key, *keys = jax.random.split(key, len(self.components) + 1)
        pick = jax.random.categorical(pick_key, self._log_rates(), shape=sample_shape)
        draws = [
            c.sample(k, sample_shape, **known)
            for c, k in zip(self.components.values(), keys, strict=True)
        ]
        out = draws[0]
        for i, draw in enumerate(draws[1:], start=1):
            out = {n: jnp.where(pick == i, draw[n], out[n]) for n in self.names}
        return out


def log_terms(density: Any, theta: Theta) -> dict[str, Array]:
    r"""Return the log densities of a density's leaves, whose sum of exponentials is `log_prob`.

    Keeping the leaves apart lets a Monte Carlo integral take one exponential per leaf and draw,
    and gives the membership probabilities. A density without leaves is its own leaf, named "".
    """
    if hasattr(density, "log_terms"):
        return density.log_terms(theta)
    return {"": density.log_prob(theta)}


def leaves(density: Any) -> dict[str, tuple[Array, Any]]:
    r"""Return `path -> (log weight, density)` of a mixture tree: $p = \sum_k e^{w_k} p_k$.

    The same paths as `log_terms`, for those who integrate leaf by leaf. A `Joint` with a factor
    that is a mixture is a mixture of joints. A density without leaves is its own leaf, named "".
    """
    if isinstance(density, Mixture):
        return {
            "/".join(filter(None, (name, path))): (weight + density.log_weights[name], leaf)
            for name, component in density.components.items()
            for path, (weight, leaf) in leaves(component).items()
        }
    if isinstance(density, Joint):
        for key, factor in density.factors.items():
            if isinstance(factor, Mixture | Joint) and len(inner := leaves(factor)) > 1:
                return {
                    path: (weight, _with_factor(density, key, leaf))
                    for path, (weight, leaf) in inner.items()
                }
    return {"": (jnp.zeros(()), density)}


def log_total(density: Any) -> Array:
    r"""$\ln \int p(\theta)\,d\theta$: the log of the rate of a rate density, else zero.

    It comes from the weights of mixtures; conditional factors must be normalised.
    """
    if isinstance(density, Joint):
        return sum((log_total(f) for f in density.factors.values()), jnp.zeros(()))
    return getattr(density, "log_total", jnp.zeros(()))


def logsumexp_terms(terms: Mapping[str, Array]) -> Array:
    """Add up the leaves of `log_terms`."""
    return logsumexp_of(list(terms.values()))


def logsumexp_of(values: Sequence[Array]) -> Array:
    """`logsumexp` of several arrays that broadcast, element by element."""
    if len(values) == 1:
        return values[0]
    # One after the other: a compiler fuses that, and does not fuse through a stack of them.
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, values))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    total = functools.reduce(jnp.add, [jnp.exp(value - top) for value in values])
    empty = total == 0
    return jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, total)) + top)


def logsumexp(x: Array, axis: int) -> Array:
    """Log of the sum of exponentials; where all are -inf, it is -inf with a zero gradient."""
    top = jax.lax.stop_gradient(jnp.max(x, axis=axis))
    # All at -inf (outside every support): a shift of zero keeps the gradient finite.
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    total = jnp.sum(jnp.exp(x - jnp.expand_dims(top, axis)), axis=axis)
    empty = total == 0
    return jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, total)) + top)


def _with_factor(joint: Joint, key: Names, replacement: Any) -> Joint:
    """`joint` with another factor at `key`, whose own factors are spliced in."""
    factors: dict[Names, Any] = {}
    for name, factor in joint.factors.items():
        if name != key:
            factors[name] = factor
        elif isinstance(replacement, Joint):
            factors |= replacement.factors
        else:
            factors[name] = replacement
    return Joint(factors)


def _as_names(key: Names) -> tuple[str, ...]:
    return key if isinstance(key, tuple) else (key,)


def _is_factor(factor: Any) -> bool:
    return isinstance(factor, dist.Distribution) or hasattr(factor, "log_prob")


def _given(factor: Any, theta: Theta) -> Any:
    return factor if _is_factor(factor) else factor(theta)


def _sample_conditional(
    factor: Any, theta: dict[str, Array], key: Any, shape: tuple[int, ...]
) -> dict[str, Array]:
    """One draw of a conditional density for each of the draws `theta` that it depends on."""
    flat = {name: x.reshape(-1) for name, x in theta.items()}
    keys = jax.random.split(key, math.prod(shape))
    draws = jax.vmap(lambda k, given: factor(given).sample(k))(keys, flat)
    return {name: x.reshape(shape) for name, x in draws.items()}


def check_names(names: tuple[str, ...], theta: Theta) -> None:
    """Raise `InputError` where `theta` lacks one of `names`."""
    for name in names:
        if name not in theta:
            raise InputError(
                f"the density needs parameter '{name}', but theta has {sorted(theta)}"
                f"{did_you_mean(name, theta)}; give that column or leave out the factor."
            )


def _distribution_log_prob(
    key: Names, d: dist.Distribution, theta: Theta
) -> tuple[Array, Array | None, Theta]:
    """Log density of one NumPyro factor, where it holds (None: everywhere), and theta as later
    factors may see it."""
    if isinstance(key, tuple):
        return d.log_prob(jnp.stack([theta[n] for n in key], axis=-1)), None, theta
    x = theta[key]
    bounds = _bounds(d)
    if bounds is None:
        return d.log_prob(x), None, theta
    if isinstance(theta, Kernels) and key in theta.width:
        return _kernel_log_prob(key, d, theta, bounds)
    if hasattr(d, "inside"):
        inside = d.inside(x)
    else:
        inside = _inside(d.support, x, *bounds)
    if not getattr(d, "finite_outside_support", False):
        x = jnp.where(inside, x, _within(*bounds))
    # Every comparison with a bound that is NaN is false, which must not look like "outside".
    broken = jnp.isnan(bounds[0]) | jnp.isnan(bounds[1])
    value = d.log_prob(x) if hasattr(d, "inside") else jnp.where(broken, jnp.nan, d.log_prob(x))
    return value, inside if hasattr(d, "inside") else inside | broken, theta


def _kernel_log_prob(
    key: str, d: dist.Distribution, theta: Kernels, bounds: tuple[Any, Any]
) -> tuple[Array, Array, Theta]:
    low, high = bounds
    x, width = theta[key], _KERNEL_REACH * theta.width[key]
    clipped, inside = x, jnp.ones_like(x)
    if not _is_infinite(low):
        share, ramp = _pass_edge((x - low) / width)
        inside, clipped = inside * share, low + width * ramp
    if not _is_infinite(high):
        share, ramp = _pass_edge((high - x) / width)
        # Between two edges the ramps add up: x is moved by what each of them moves it.
        inside, clipped = inside * share, clipped + (high - width * ramp) - x
    out = inside <= 0
    if not getattr(d, "finite_outside_support", False):
        clipped = jnp.where(out, _within(low, high), clipped)
    value = d.log_prob(clipped) + jnp.log(jnp.where(out, 1.0, inside))
    return value, ~out, Kernels({**theta, key: clipped}, theta.width)


# The kernel's half-width in units of its standard deviation.
_KERNEL_REACH = 5.0**0.5


def _pass_edge(z: Array) -> tuple[Array, Array]:
    r"""The part of a kernel that lies beyond an edge, and where it lies on average.

    For the kernel $\frac34(1-t^2)$ on $[-1,1]$ (Epanechnikov) centred at z, the mass at positive
    values, $\frac14 (1+z)^2 (2-z)$, and a smooth positive part of z, $\frac14(1+z)^2$: both rise
    with a continuous slope from zero at $z=-1$, with a finite ratio, so that a density that
    diverges at the edge stays finite. Polynomials, because this is done for every draw.
    """
    t = jnp.clip(z, -1.0, 1.0)
    square = 0.25 * (1.0 + t) ** 2
    return square * (2.0 - t), square + jnp.maximum(z - 1.0, 0.0)


def _bounds(d: dist.Distribution) -> tuple[Any, Any] | None:
    """The interval of a one-dimensional support, or None where there is no edge to respect."""
    support = d.support
    low = getattr(support, "lower_bound", None)
    high = getattr(support, "upper_bound", None)
    if (low is None and high is None) or support.is_discrete:
        return None
    return (-jnp.inf if low is None else low, jnp.inf if high is None else high)


def _inside(support: Any, x: Array, low: Any, high: Any) -> Array:
    if isinstance(support, _OPEN) and not isinstance(support, _HALF_CLOSED):
        return (x > low) & (x < high)
    return (x >= low) & (x <= high)


def _is_infinite(bound: Any) -> bool:
    return isinstance(bound, float) and bound in (float("inf"), float("-inf"))


def _within(low: Any, high: Any) -> Any:
    """A point inside the interval, where a masked-out value can be evaluated harmlessly."""
    if _is_infinite(low):
        return high - 1.0
    return low + 1.0 if _is_infinite(high) else 0.5 * (low + high)
