r"""`LearnedDensity`: an estimate in standardised coordinates as a density over named parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform, biject_to

from ..blocks import on_all_cores, over_blocks
from ..density import Theta, check_names
from ..errors import InputError, did_you_mean
from . import Estimate
from .coordinates import Coordinates, Periodic, stacked
from .pool import (
    BLOCK,
    each,
    from_whole_cube,
    has_replicas,
    log_prob_variance,
    replicas_of,
)


class LearnedDensity:
    r"""A normalised density $q(\theta)$ over named parameters, learned from draws.

    $q(\theta) = q_z(z(\theta))\,|\partial z / \partial \theta|$ with an estimate $q_z$ in the
    standardised coordinates z: finite everywhere on the declared support, $-\infty$ outside. It is
    a `Density`, and an entry of a `Prior`: `Prior({"a, b": density})`.

    All methods can be jitted and differentiated; a point's value does not depend on the points
    that it is evaluated with.
    """

    def __init__(
        self,
        names: Sequence[str],
        coordinates: Coordinates,
        estimate: Estimate,
        *,
        bootstrap: Sequence[Estimate] = (),
        report: Any = None,
        provenance: Mapping[str, Any] | None = None,
    ):
        self.names = tuple(names)
        self.coordinates = coordinates
        self.estimate = estimate
        self.bootstrap = tuple(bootstrap)
        self.report = report
        self.provenance = dict(provenance or {})

    @property
    def kind(self) -> str:
        """The kind of its estimate, one of `kinds.KINDS`."""
        return self.estimate.kind

    @property
    def dim(self) -> int:
        """How many parameters it is over."""
        return len(self.names)

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """The declared support of each parameter, infinite where it has no bound."""
        low, high = np.asarray(self.coordinates.low), np.asarray(self.coordinates.high)
        return {n: (float(a), float(b)) for n, a, b in zip(self.names, low, high, strict=True)}

    def log_prob(self, theta: Theta) -> Array:
        r"""$\ln q(\theta)$: finite on the support, $-\infty$ outside, NaN where theta is NaN.

        Raises:
            InputError: a parameter is missing.
        """
        return self._at(log_prob_at, self._points(theta))

    def log_prob_error(self, theta: Theta) -> Array:
        r"""The standard error of $\ln q(\theta)$, from the spread of what `replicas` returns.

        Raises:
            InputError: a parameter is missing, or the density has no replicas.
        """
        points = self._points(theta)
        if self.bootstrap:
            return self._at(_bootstrap_error, points, self.bootstrap)
        if not has_replicas(self.estimate):
            raise InputError(
                "this density has no replicas, so that nothing tells its error; fit it with "
                "num_bootstrap=10, or as a flow with num_members=4."
            )
        return self._at(_log_prob_error, points)

    def replicas(self) -> list[LearnedDensity]:
        """Densities that differ as this one may differ from the truth; none where it has no such.

        Those of the bootstrap where it was made: they know that the draws are few. Else the density
        as each member of its ensemble has it: these know what training scatters.
        """
        every = self.bootstrap or replicas_of(self.estimate)
        return [LearnedDensity(self.names, self.coordinates, one) for one in every]

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> dict[str, Array]:
        """Draws by name: `from_unit_cube` of uniform numbers."""
        u = jax.random.uniform(key, (*sample_shape, self.dim), float)
        return self.from_unit_cube(u)

    def from_unit_cube(self, u: Array) -> dict[str, Array]:
        """The parameters at points u in (0, 1), (..., d): each distributed as the density."""
        x = self._at(from_unit_cube_at, jnp.asarray(u, float))
        return {name: x[..., i] for i, name in enumerate(self.names)}

    def to_unit_cube(self, theta: Theta) -> Array:
        """The inverse of `from_unit_cube`, (..., d).

        Raises:
            InputError: a parameter is missing, or the density is a sum of several estimates, so
                that several points of the cube lead to one theta.
        """
        if not hasattr(self.estimate, "to_unit_cube"):
            raise InputError(
                f"a density of kind '{self.kind}' has no inverse of from_unit_cube; a single flow "
                "has one: fit kind='maf' with num_members=1."
            )
        return self._at(_to_unit_cube, self._points(theta))

    def as_distribution(self, names: Sequence[str] | None = None) -> LearnedDistribution:
        """A NumPyro distribution over the vector of the parameters, in the order of `names`.

        Over one parameter it is a distribution over a scalar.

        Raises:
            InputError: `names` are not those of the density.
        """
        names = self.names if names is None else tuple(names)
        self._check_known(names)
        if sorted(names) != sorted(self.names):
            missing = [name for name in self.names if name not in names]
            raise InputError(
                f"the density is over {list(self.names)}, but only {list(names)} are named; add "
                f"{missing}, or take density.marginal({list(names)}, key)."
            )
        return LearnedDistribution(self.coordinates, self.estimate, self._order(names))

    def marginal(
        self, names: Sequence[str], key: Any, *, num_draws: int = 20_000, **settings: Any
    ) -> LearnedDensity:
        """The density of some of the parameters alone, learned from draws of this one.

        Args:
            names: of the parameters to keep, in the order wanted.
            settings: what `fit_density` takes.

        Raises:
            InputError: a name that the density does not have, or none.
        """
        from .fit import fit_density

        self._check_known(names)
        draw_key, fit_key = jax.random.split(key)
        draws = self.sample(draw_key, (num_draws,))
        kept = {name: np.asarray(draws[name]) for name in names}
        return fit_density(fit_key, kept, support=self._support(names), **settings)

    def _support(self, names: Sequence[str]) -> dict[str, Any]:
        """The declared supports, as `fit_density` takes them."""
        turns = dict(zip(self.names, self.coordinates.periodic, strict=True))
        bounds = self.bounds
        return {name: Periodic(*bounds[name]) if turns[name] else bounds[name] for name in names}

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write it to one file; see `skycensus.estimators.files`."""
        from .files import save_density

        return save_density(self, path, overwrite=overwrite)

    def _check_known(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.names:
                raise InputError(
                    f"the density has no parameter '{name}'{did_you_mean(name, self.names)}; it is "
                    f"over {list(self.names)}."
                )

    def _order(self, names: Sequence[str]) -> tuple[int, ...]:
        return tuple(self.names.index(name) for name in names)

    def _points(self, theta: Theta) -> Array:
        check_names(self.names, theta)
        return stacked(self.names, theta)

    def _at(self, function: Any, points: Array, estimate: Any = None) -> Array:
        """`function(coordinates, estimate, points)`, block by block, on all cores if it can be."""
        shape, dim = points.shape[:-1], points.shape[-1]
        if dim != self.dim:
            raise InputError(
                f"points have {dim} coordinates, but the density is over {list(self.names)}."
            )
        rows = points.reshape(-1, dim)
        parts = (self.coordinates, self.estimate if estimate is None else estimate)
        if isinstance(rows, jax.core.Tracer) or len(rows) <= BLOCK:
            values = _in_blocks(function, *parts, rows)
        else:
            short = -len(rows) % BLOCK
            padded = jnp.concatenate([rows, jnp.repeat(rows[-1:], short, axis=0)])
            blocks = list(padded.reshape(-1, BLOCK, dim))
            done = on_all_cores(lambda block: _compiled(function, *parts, block), blocks)
            values = jnp.concatenate(list(done))[: len(rows)]
        return values.reshape(*shape, *values.shape[1:])


def replica_error(density: Any, number: Callable[[Any], Any]) -> np.ndarray:
    """The standard error of numbers that rest on a density, from what they are for its replicas.

    The spread of the values; divided by the root of their number for an ensemble, whose mean the
    density is. Zero for a density that was not learned, or has fewer than two replicas.

    Args:
        number: of a replica, an array of any shape.
    """
    values = np.array([number(one) for one in replicas_of_density(density)], float)
    if len(values) < 2:
        return np.zeros(values.shape[1:])
    whole = bool(getattr(density, "bootstrap", ()))
    return values.std(axis=0, ddof=1) / (1.0 if whole else math.sqrt(len(values)))


def replicas_of_density(density: Any) -> list[Any]:
    """Its `replicas`; none for a density that has no such method."""
    replicas: Any = getattr(density, "replicas", list)
    return replicas()


@eqx.filter_jit
def _compiled(function: Any, coordinates: Coordinates, estimate: Estimate, x: Array) -> Array:
    return function(coordinates, estimate, x)


@eqx.filter_jit
def _in_blocks(function: Any, coordinates: Coordinates, estimate: Estimate, x: Array) -> Array:
    return over_blocks(lambda rows: function(coordinates, estimate, rows), x, BLOCK)


def log_prob_at(coordinates: Coordinates, estimate: Estimate, x: Array) -> Array:
    """Log density at points x (..., d) of parameters; see `LearnedDensity.log_prob`."""
    z, log_det = coordinates.forward(x)
    value = jnp.where(coordinates.inside(x), estimate.log_prob(z) + log_det, -jnp.inf)
    return jnp.where(jnp.isnan(x).any(-1), jnp.nan, value)


def _log_prob_error(coordinates: Coordinates, estimate: Estimate, x: Array) -> Array:
    variance = log_prob_variance(estimate, coordinates.forward(x)[0])
    return jnp.where(coordinates.inside(x), jnp.sqrt(variance), jnp.nan)


def _bootstrap_error(coordinates: Coordinates, replicas: Sequence[Estimate], x: Array) -> Array:
    z, _ = coordinates.forward(x)
    values = jnp.stack(each(replicas, "log_prob", z))
    return jnp.where(coordinates.inside(x), jnp.std(values, axis=0, ddof=1), jnp.nan)


def from_unit_cube_at(coordinates: Coordinates, estimate: Estimate, u: Array) -> Array:
    """Parameters x (..., d) at points of the unit cube; see `LearnedDensity.from_unit_cube`."""
    return coordinates.inverse(from_whole_cube(estimate, u))


def _to_unit_cube(coordinates: Coordinates, estimate: Any, x: Array) -> Array:
    return estimate.to_unit_cube(coordinates.forward(x)[0])


# ---- as a NumPyro distribution -------------------------------------------------------------------


class _Support(constraints.Constraint):
    """The declared support; its unconstrained coordinates are the standardised ones."""

    def __init__(self, coordinates: Coordinates, order: tuple[int, ...]):
        self.coordinates, self.order = coordinates, order

    @property
    def event_dim(self) -> int:
        return int(len(self.order) > 1)

    @property
    def lower_bound(self) -> Array:
        return self._each(self.coordinates.low)

    @property
    def upper_bound(self) -> Array:
        return self._each(self.coordinates.high)

    def _each(self, values: Array) -> Array:
        return values[jnp.array(self.order)] if self.event_dim else values[0]

    def __call__(self, x: Any) -> Any:
        return self.coordinates.inside(_to_points(jnp.asarray(x), self.order))

    def feasible_like(self, prototype: Any) -> Any:
        point = _from_points(self.coordinates.inverse(jnp.zeros(len(self.order))), self.order)
        return jnp.broadcast_to(point, jnp.shape(prototype))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Support) or self.order != other.order:
            return False
        mine, theirs = jax.tree.leaves(self.coordinates), jax.tree.leaves(other.coordinates)
        return all(a is b or bool(jnp.array_equal(a, b)) for a, b in zip(mine, theirs, strict=True))

    def __hash__(self) -> int:
        return hash((type(self), self.order))

    def tree_flatten(self) -> Any:
        return (self.coordinates,), (("coordinates",), {"order": self.order})


class _Standardise(Transform):
    """From standardised coordinates to parameters."""

    domain = constraints.real_vector

    def __init__(self, coordinates: Coordinates, order: tuple[int, ...]):
        self.coordinates, self.order = coordinates, order
        if len(order) == 1:
            self.domain = constraints.real

    @property
    def codomain(self) -> _Support:
        return _Support(self.coordinates, self.order)

    def __call__(self, z: Array) -> Array:
        z = z if len(self.order) > 1 else z[..., None]
        return _from_points(self.coordinates.inverse(z), self.order)

    def _inverse(self, x: Array) -> Array:
        z = self.coordinates.forward(_to_points(x, self.order))[0]
        return z if len(self.order) > 1 else z[..., 0]

    def log_abs_det_jacobian(self, z: Array, x: Array, intermediates: Any = None) -> Array:
        return -self.coordinates.forward(_to_points(x, self.order))[1]

    def tree_flatten(self) -> Any:
        return (self.coordinates,), (("coordinates",), {"order": self.order})


@biject_to.register(_Support)
def _biject_to_support(support: _Support) -> _Standardise:
    return _Standardise(support.coordinates, support.order)


class LearnedDistribution(dist.Distribution):
    r"""A `LearnedDensity` as a NumPyro distribution; a vector where it has several parameters.

    Unconstrained samplers move in its standardised coordinates. `from_unit_cube` serves those that
    start from the unit cube.
    """

    pytree_data_fields = ("coordinates", "estimate")
    pytree_aux_fields = ("order",)

    def __init__(self, coordinates: Coordinates, estimate: Estimate, order: tuple[int, ...]):
        self.coordinates, self.estimate, self.order = coordinates, estimate, tuple(order)
        shape = (len(order),) if len(order) > 1 else ()
        super().__init__(event_shape=shape, validate_args=False)

    @property
    def support(self) -> Any:
        return _Support(self.coordinates, self.order)

    def log_prob(self, value: Any) -> Array:
        return log_prob_at(
            self.coordinates, self.estimate, _to_points(jnp.asarray(value), self.order)
        )

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.from_unit_cube(jax.random.uniform(key, (*sample_shape, len(self.order)), float))

    def from_unit_cube(self, u: Array) -> Array:
        """The value at points of the unit cube, (..., d) -> (..., d), or (...) for a scalar."""
        return _from_points(from_unit_cube_at(self.coordinates, self.estimate, u), self.order)


def _to_points(x: Array, order: tuple[int, ...]) -> Array:
    """A vector in the order asked for as a point of the density."""
    if len(order) == 1:
        return x[..., None]
    return x[..., jnp.argsort(jnp.array(order))]


def _from_points(x: Array, order: tuple[int, ...]) -> Array:
    return x[..., jnp.array(order)] if len(order) > 1 else x[..., 0]
