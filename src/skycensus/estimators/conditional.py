r"""Densities of some parameters given others, $q(\theta \mid c)$, learned from pairs of draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..blocks import over_blocks
from ..density import Theta, check_names
from ..errors import InputError, did_you_mean
from .coordinates import Coordinates, declared, stacked, standardised, to_standard
from .files import archive, arrays_of, coordinates_of, parts_of, read_archive, write_new
from .fit import check_draws, check_inside, split, with_source
from .flows import Architecture, Flow, check_architecture, train_flows
from .learned import LearnedDensity, from_unit_cube_at, log_prob_at
from .pool import BLOCK, pooled
from .training import Rows, Settings

_FORMAT = "skycensus conditional density"
_KINDS = ("maf", "maf_spline", "spline", "realnvp")


class ConditionalDensity:
    r"""A density $q(\theta \mid c)$ of named parameters, normalised over $\theta$ for every c.

    A flow whose networks also see the context c, standardised. Far from the contexts that it was
    trained with it says nothing.
    """

    def __init__(
        self,
        names: Sequence[str],
        context_names: Sequence[str],
        coordinates: Coordinates,
        context_coordinates: Coordinates,
        members: Sequence[Sequence[Any]],
        architecture: Architecture,
    ):
        self.names, self.context_names = tuple(names), tuple(context_names)
        self.coordinates, self.context_coordinates = coordinates, context_coordinates
        self.members = tuple(tuple(weights) for weights in members)
        self.architecture = architecture

    def given(self, context: Mapping[str, Any]) -> LearnedDensity:
        """The density of the parameters at one context, a number for each of its names.

        Raises:
            InputError: a name is missing, or a value is not one finite number.
        """
        check_names(self.context_names, context)
        for name in self.context_names:
            value = np.asarray(context[name], float)
            if value.ndim or not np.isfinite(value):
                raise InputError(
                    f"context '{name}' is {context[name]!r}; give one finite number, or call "
                    "log_prob and sample, which take arrays."
                )
        point, _ = self.context_coordinates.forward(stacked(self.context_names, context))
        estimate = _conditioned(self.members, self.architecture, point)
        return LearnedDensity(self.names, self.coordinates, estimate)

    def log_prob(self, theta: Theta, context: Theta) -> Array:
        r"""$\ln q(\theta \mid c)$ at parameters and contexts that broadcast together.

        Raises:
            InputError: a name is missing in one of them.
        """
        check_names(self.names, theta)
        check_names(self.context_names, context)
        x, c = _together(stacked(self.names, theta), stacked(self.context_names, context))
        return self._over_rows(log_prob_at, x, c)

    def sample(
        self, key: Any, context: Theta, sample_shape: tuple[int, ...] = ()
    ) -> dict[str, Array]:
        """Draws of every context: arrays of the sample shape and then the contexts' shape.

        Raises:
            InputError: a name of the context is missing.
        """
        check_names(self.context_names, context)
        c = stacked(self.context_names, context)
        u = jax.random.uniform(key, (*sample_shape, *c.shape[:-1], len(self.names)), float)
        x = self._over_rows(from_unit_cube_at, *_together(u, c))
        return {name: x[..., i] for i, name in enumerate(self.names)}

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write it to one file, without draws or code; see `skycensus.estimators.files`.

        Raises:
            InputError: the file exists and `overwrite` is not set, or it cannot be written.
        """
        return write_new(path, self._bytes, overwrite=overwrite)

    def _bytes(self) -> bytes:
        head = {
            "names": list(self.names),
            "context_names": list(self.context_names),
            "periodic": list(self.coordinates.periodic),
            "architecture": self.architecture._asdict(),
            "num_members": len(self.members),
            "num_weights": len(self.members[0]),
        }
        arrays = {
            f"{k}/weight_{i}": np.asarray(w)
            for k, weights in enumerate(self.members)
            for i, w in enumerate(weights)
        }
        arrays |= arrays_of(self.coordinates, "coordinates")
        arrays |= arrays_of(self.context_coordinates, "context")
        return archive(_FORMAT, head, arrays)

    @classmethod
    def load(cls, path: str | Path) -> ConditionalDensity:
        """Read a file of `save`: the same density to the bit (where JAX has 64 bits).

        Raises:
            InputError: a file that is missing, truncated, changed, of another kind or of a
                version that is not known.
        """
        head, arrays = read_archive(path, _FORMAT)
        with parts_of(path):
            architecture = Architecture(**head["architecture"])
            check_architecture(architecture, head["num_members"])
            return cls(
                head["names"],
                head["context_names"],
                coordinates_of(arrays, "coordinates", head["periodic"]),
                coordinates_of(arrays, "context", [False] * len(head["context_names"])),
                [
                    [jnp.asarray(arrays[f"{k}/weight_{i}"]) for i in range(head["num_weights"])]
                    for k in range(head["num_members"])
                ],
                architecture,
            )

    def _over_rows(self, function: Any, points: Array, context: Array) -> Array:
        """`function(density at the context, point)` for each of the points (..., d)."""
        c, _ = self.context_coordinates.forward(context)
        shape = points.shape[:-1]
        rows = points.reshape(-1, points.shape[-1]), c.reshape(-1, c.shape[-1])
        at = _at(function, self.architecture, self.coordinates, self.members, rows)
        return at.reshape(*shape, *at.shape[1:])


@eqx.filter_jit
def _at(
    function: Any, architecture: Architecture, coordinates: Coordinates, members: Any, rows: Any
) -> Array:
    def one(point: Array, context: Array) -> Array:
        return function(coordinates, _conditioned(members, architecture, context), point)

    return over_blocks(lambda block: jax.vmap(one)(*block), rows, BLOCK)


def _conditioned(members: Any, architecture: Architecture, context: Array) -> Any:
    flows = [Flow(weights, architecture, context) for weights in members]
    return pooled(flows, replicas=True)


def _together(points: Array, context: Array) -> tuple[Array, Array]:
    """Points (..., d) and contexts (..., c), broadcast but for the last axis."""
    shape = jnp.broadcast_shapes(points.shape[:-1], context.shape[:-1])
    return (
        jnp.broadcast_to(points, (*shape, points.shape[-1])),
        jnp.broadcast_to(context, (*shape, context.shape[-1])),
    )


def fit_conditional(
    key: Any,
    draws: Any,
    context: Mapping[str, Any],
    log_weight: Any = None,
    *,
    kind: str = "maf",
    support: Any = None,
    held_out: float = 0.1,
    progress: Any = None,
    num_members: int = 4,
    layers: int = 5,
    width: int = 32,
    depth: int = 1,
    bins: int = 8,
    **training: Any,
) -> ConditionalDensity:
    r"""Learn $q(\theta \mid c)$ from pairs of draws by maximum likelihood.

    Args:
        draws: the parameters, name -> (n,), as in `fit_density`.
        context: the conditioning variables of the same draws, name -> (n,), without bounds.
        log_weight: (n,) log weights of the pairs.
        kind: of the flow: "maf", "maf_spline", "spline" or "realnvp".
        support: of the parameters, as in `fit_density`.
        training: fields of `training.Settings`.

    Raises:
        InputError: as `fit_density`; a name that is both parameter and context.
    """
    if kind not in _KINDS:
        raise InputError(
            f"there is no conditional density of kind '{kind}'{did_you_mean(kind, _KINDS)}; the "
            f"kinds are {', '.join(_KINDS)}."
        )
    found, support = with_source(draws, log_weight, support)
    for name in context:
        if name in found.columns:
            raise InputError(f"column '{name}' is both a parameter and a context; keep one.")
    names, context_names = tuple(found.columns), tuple(context)
    if not context_names:
        raise InputError("there is no context; use fit_density.")
    _, both, weight = check_draws({**found.columns, **context}, found.log_weight)
    x, c = np.split(both, [len(names)], axis=1)
    plain = declared(names, support)
    check_inside(names, x, plain)
    coordinates = standardised(plain, x, weight)
    scale = standardised(declared(context_names, None), c, weight)
    split_key, train_key = jax.random.split(key)
    both = np.concatenate([to_standard(coordinates, x), to_standard(scale, c)], axis=1)
    z, weight, (held, held_weight) = split(split_key, both, weight, held_out)
    a = Architecture(kind, len(names), len(context_names), layers, width, depth, bins)
    columns, out = (tuple(np.split(x, [len(names)], axis=1)) for x in (z, held))
    rows = [Rows(columns, weight, out, held_weight)]
    members = train_flows(train_key, a, num_members, rows, _settings(training), progress)
    return ConditionalDensity(names, context_names, coordinates, scale, members, a)


def _settings(training: Mapping[str, Any]) -> Settings:
    for name in training:
        if name not in Settings._fields:
            raise InputError(
                f"training has no setting '{name}'{did_you_mean(name, Settings._fields)}; it has "
                f"{', '.join(Settings._fields)}."
            )
    return Settings(**training)
