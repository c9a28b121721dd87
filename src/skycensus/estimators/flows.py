r"""Normalising flows: maps of a normal distribution whose density is known; thin over FlowJAX.

A flow is a chain of layers. Each transforms every coordinate monotonically in a way that a network
reads off other coordinates: the earlier ones (masked autoregressive; Papamakarios et al. 2017,
arXiv:1705.07057) or the first half (coupling; Dinh et al. 2017, arXiv:1605.08803). The transform is
affine or a rational-quadratic spline (Durkan et al. 2019, arXiv:1906.04032). Between layers the
coordinates are mixed linearly.

Hidden layers are bounded (tanh), so that a flow is a plain affine map far out: finite anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import paramax
from flowjax.bijections import (
    AbstractBijection,
    Affine,
    Chain,
    Coupling,
    Invert,
    MaskedAutoregressive,
    Permute,
    Scan,
    TriangularAffine,
)
from jax import Array
from jax.scipy.special import ndtr, ndtri

from ..errors import InputError
from . import Estimate
from .pool import pooled
from .training import Settings, Weights, train

# Splines reach this far in standardised coordinates; beyond, they are the identity.
_REACH = 5.0
# The least width and height of a bin, and the least slope, in units of their average.
_LEAST = 1e-2


class Architecture(NamedTuple):
    """What a flow is built from; `context` is the number of conditioning variables."""

    kind: str
    dim: int
    context: int
    layers: int
    width: int
    depth: int
    bins: int


class Flow(eqx.Module):
    """A normalising flow as an estimate.

    Args:
        weights: the arrays that `assemble` takes.
        context: the values of the conditioning variables, (c,), where the flow has some.
    """

    weights: Weights
    context: Array | None
    architecture: Architecture = eqx.field(static=True)

    def __init__(self, weights: Sequence[Any], architecture: Architecture, context: Any = None):
        skeleton(architecture)
        self.weights = tuple(jnp.asarray(w) for w in weights)
        self.context = None if context is None else jnp.asarray(context)
        self.architecture = architecture

    @property
    def kind(self) -> str:
        return self.architecture.kind

    def log_prob(self, z: Array) -> Array:
        rows, context = self._rows(z)
        return flow_log_prob(self.weights, self.architecture, rows, *context).reshape(z.shape[:-1])

    def from_unit_cube(self, u: Array) -> Array:
        rows, context = self._rows(u)
        flow = assemble(_as(self.weights, u.dtype), self.architecture)
        return jax.vmap(flow.transform)(ndtri(rows), *context).reshape(u.shape)

    def to_unit_cube(self, z: Array) -> Array:
        """The inverse of `from_unit_cube`."""
        rows, context = self._rows(z)
        flow = assemble(_as(self.weights, z.dtype), self.architecture)
        return ndtr(jax.vmap(flow.inverse)(rows, *context)).reshape(z.shape)

    def _rows(self, points: Array) -> tuple[Array, list[Array]]:
        """Points (..., d) as rows, and as many rows of the context."""
        rows = points.reshape(-1, points.shape[-1])
        if self.context is None:
            return rows, []
        context = self.context.astype(points.dtype)
        return rows, [jnp.broadcast_to(context, (len(rows), len(context)))]

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        arrays = {f"weight_{i}": np.asarray(w) for i, w in enumerate(self.weights)}
        if self.context is not None:
            arrays["context"] = np.asarray(self.context)
        settings = {"architecture": self.architecture._asdict(), "num_weights": len(self.weights)}
        return settings, arrays

    @classmethod
    def from_arrays(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Flow:
        weights = [arrays[f"weight_{i}"] for i in range(settings["num_weights"])]
        return cls(weights, Architecture(**settings["architecture"]), arrays.get("context"))


def flow_log_prob(weights: Weights, a: Architecture, z: Array, *context: Array) -> Array:
    """Log density at rows (n, d), given rows (n, c) of context where the flow has one."""
    inverse = assemble(_as(weights, z.dtype), a).inverse_and_log_det
    normal, log_det = jax.vmap(inverse)(z, *context)
    return log_det - 0.5 * jnp.sum(normal**2, axis=-1) - 0.5 * a.dim * np.log(2.0 * np.pi)


def _as(weights: Weights, dtype: Any) -> Weights:
    """The weights in the precision of the points."""
    return tuple(w.astype(dtype) if jnp.issubdtype(w.dtype, jnp.floating) else w for w in weights)


class RationalQuadratic(AbstractBijection):
    r"""A monotone rational-quadratic spline of [-5, 5] onto itself, the identity outside.

    The slope is one at both ends, so that the density is continuous there. Bins are chosen by
    comparing with every knot: there are few, and no value is gathered from memory.
    """

    widths: Array
    heights: Array
    slopes: Array
    shape: tuple[int, ...]
    cond_shape: None

    def __init__(self, bins: int):
        self.shape, self.cond_shape = (), None
        self.widths = jnp.zeros(bins)
        self.heights = jnp.zeros(bins)
        self.slopes = jnp.zeros(bins - 1)

    def _bin(self, value: Array, of: str) -> tuple[Array, ...]:
        """The ends of the bin with `value` in x or y, its width, height and slopes at the ends."""
        x, width = _knots(self.widths)
        y, height = _knots(self.heights)
        knots = x if of == "x" else y
        ends = jnp.ones(1, self.slopes.dtype)
        slope = _LEAST + (1.0 - _LEAST) * jax.nn.softplus(self.slopes) / np.log(2.0)
        slope = jnp.concatenate([ends, slope, ends])
        above = value >= knots[1:-1]
        after = jnp.concatenate([above, jnp.zeros(1, bool)])
        here = jnp.concatenate([jnp.ones(1, bool), above]) & ~after
        columns = (x[:-1], y[:-1], width, height, slope[:-1], slope[1:])
        return tuple(jnp.sum(jnp.where(here, column, 0.0)) for column in columns)

    def transform_and_log_det(self, x: Any, condition: Any = None) -> tuple[Array, Array]:
        inside = jnp.abs(x) < _REACH
        within = jnp.where(inside, x, 0.0)
        x0, y0, width, height, left, right = self._bin(within, "x")
        t = (within - x0) / width
        y, log_det = _rational(t, width, height, left, right)
        return jnp.where(inside, y0 + y, x), jnp.where(inside, log_det, 0.0)

    def inverse_and_log_det(self, y: Any, condition: Any = None) -> tuple[Array, Array]:
        inside = jnp.abs(y) < _REACH
        within = jnp.where(inside, y, 0.0)
        x0, y0, width, height, left, right = self._bin(within, "y")
        slope, up = height / width, within - y0
        bend = left + right - 2.0 * slope
        a = height * (slope - left) + up * bend
        b = height * left - up * bend
        c = -slope * up
        root = jnp.sqrt(jnp.maximum(b**2 - 4.0 * a * c, 0.0))
        t = jnp.clip(-2.0 * c / (b + root), 0.0, 1.0)
        _, log_det = _rational(t, width, height, left, right)
        return jnp.where(inside, x0 + t * width, y), jnp.where(inside, -log_det, 0.0)


def _knots(free: Array) -> tuple[Array, Array]:
    """Knots from -5 to 5 and the lengths between them."""
    bins = len(free)
    length = 2.0 * _REACH * (_LEAST / bins + (1.0 - _LEAST) * jax.nn.softmax(free))
    inner = jnp.cumsum(length)[:-1] - _REACH
    end = jnp.full(1, _REACH, free.dtype)
    return jnp.concatenate([-end, inner, end]), length


def _rational(
    t: Array, width: Array, height: Array, left: Array, right: Array
) -> tuple[Array, Array]:
    """The rise from the left end at t in [0, 1], and the log of the slope there."""
    slope = height / width
    both = t * (1.0 - t)
    below = slope + (left + right - 2.0 * slope) * both
    rise = height * (slope * t**2 + left * both) / below
    above = right * t**2 + 2.0 * slope * both + left * (1.0 - t) ** 2
    return rise, 2.0 * jnp.log(slope) + jnp.log(above) - 2.0 * jnp.log(below)


def random_weights(key: Any, a: Architecture) -> Weights:
    """The arrays of a flow that nothing was learned by yet."""
    skeleton(a)
    return tuple(jax.tree.leaves(eqx.filter(_build(key, a), eqx.is_array)))


def assemble(weights: Weights, a: Architecture) -> AbstractBijection:
    """The bijection from the normal distribution to the density."""
    structure, rest = skeleton(a)
    return paramax.unwrap(eqx.combine(jax.tree.unflatten(structure, weights), rest))


@functools.cache
def skeleton(a: Architecture) -> tuple[Any, Any]:
    """What a flow is besides its weights. Must be called first outside of compiled code.

    FlowJAX keeps functions in its modules, and new ones in every flow that is built: with one
    skeleton for all flows of an architecture they share compiled code.
    """
    arrays, rest = eqx.partition(_build(jax.random.key(0), a), eqx.is_array)
    return jax.tree.structure(arrays), rest


def _build(key: Any, a: Architecture) -> AbstractBijection:
    keys = jax.random.split(key, a.layers)
    return Invert(Scan(eqx.filter_vmap(lambda k: _layer(k, a))(keys)))


def _layer(key: Any, a: Architecture) -> AbstractBijection:
    network_key, mix_key = jax.random.split(key)
    network: dict[str, Any] = {
        "dim": a.dim,
        "cond_dim": a.context or None,
        "nn_width": a.width,
        "nn_depth": a.depth,
        "nn_activation": jnp.tanh,
        "transformer": _transformer(a),
    }
    if a.kind in ("maf", "maf_spline"):
        made: AbstractBijection = MaskedAutoregressive(network_key, **network)
    else:
        made = Coupling(network_key, untransformed_dim=a.dim // 2, **network)
    return Chain([made, *_mixing(mix_key, a.dim)])


def _transformer(a: Architecture) -> AbstractBijection:
    if a.kind in ("maf_spline", "spline"):
        return RationalQuadratic(a.bins)
    # A slope that is bounded from below: no draw can get a spike of its own.
    scale: Any = paramax.Parameterize(lambda x: jax.nn.softplus(x) + _LEAST, jnp.asarray(0.5413))
    return eqx.tree_at(lambda one: one.scale, Affine(), scale)


def _mixing(key: Any, dim: int) -> list[AbstractBijection]:
    """A permutation and a linear map, as a product of triangular ones that begins at identity."""
    order = jnp.flip(jnp.arange(dim)) if dim == 2 else jax.random.permutation(key, dim)
    one = jnp.eye(dim)
    return [
        TriangularAffine(jnp.zeros(dim), one),
        TriangularAffine(jnp.zeros(dim), one, lower=False),
        Permute(order),
    ]


# ---- fitting -------------------------------------------------------------------------------------


def fit_flow(
    key: Any,
    z: np.ndarray,
    weight: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray],
    kind: str,
    progress: Any = None,
    num_members: int = 4,
    layers: int = 8,
    width: int = 32,
    depth: int = 1,
    bins: int = 8,
    max_epochs: int = 100,
    batch_size: int = 500,
    learning_rate: float = 5e-3,
    weight_decay: float = 1e-4,
    patience: int = 40,
) -> Estimate:
    """Train flows from different starts, all at once; the estimate is the mean of their densities.

    Args:
        num_members: how many flows.
        layers: how many transforms follow each other.
        width: units of a hidden layer of the networks, of which there are `depth`.
        bins: of a spline.
        max_epochs: and the rest: see `training.Settings`.

    Raises:
        InputError: settings out of range, or an affine flow over one parameter.
    """
    architecture = Architecture(kind, z.shape[1], 0, layers, width, depth, bins)
    settings = Settings(max_epochs, batch_size, learning_rate, weight_decay, patience)
    rows = ([z], weight, ([validation[0]], validation[1]))
    members = train_flows(key, architecture, num_members, *rows, settings, progress)
    flows = [Flow(weights, architecture) for weights in members]
    return pooled(flows, replicas=True)


fit_maf = functools.partial(fit_flow, kind="maf")
fit_maf_spline = functools.partial(fit_flow, kind="maf_spline", layers=3)
fit_spline = functools.partial(fit_flow, kind="spline", layers=6, max_epochs=150)
fit_realnvp = functools.partial(fit_flow, kind="realnvp")


def train_flows(
    key: Any,
    a: Architecture,
    num_members: int,
    draws: Sequence[np.ndarray],
    weight: np.ndarray,
    validation: tuple[Sequence[np.ndarray], np.ndarray],
    settings: Settings,
    progress: Any = None,
) -> list[Weights]:
    """The weights of every member; `draws` are points and, where there is one, their context.

    Raises:
        InputError: settings out of range, or an affine flow over one parameter.
    """
    check_architecture(a, num_members)
    start_key, train_key = jax.random.split(key)
    with jax.enable_x64(False):
        starts = [random_weights(k, a) for k in jax.random.split(start_key, num_members)]
    trained = train(
        train_key,
        lambda weights, z, *context: flow_log_prob(weights, a, z, *context),
        [np.stack(w) for w in zip(*starts, strict=True)],
        draws,
        weight,
        validation,
        settings,
        progress=progress,
        what=f"training {a.kind}",
    )
    return [tuple(w[k] for w in trained.weights) for k in range(num_members)]


def check_architecture(a: Architecture, num_members: int) -> None:
    """Raise `InputError` for a flow that cannot be built."""
    sizes = {name: getattr(a, name) for name in ("layers", "width", "depth", "bins")}
    for name, value in {**sizes, "num_members": num_members}.items():
        if value < 1:
            raise InputError(f"{name}={value} must be 1 or more.")
    if a.bins < 2:
        raise InputError("bins=1 is no spline; give 2 or more.")
    if a.dim == 1 and a.kind in ("maf", "realnvp") and not a.context:
        raise InputError(
            f"a flow of kind '{a.kind}' over one parameter is a Gaussian and no more; use "
            "kind='spline'."
        )
