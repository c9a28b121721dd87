r"""Normalising flows: maps of a normal distribution whose density is known; thin over FlowJAX.

A flow is a chain of layers. Each transforms every coordinate monotonically in a way that a network
reads off other coordinates: the earlier ones (masked autoregressive; Papamakarios et al. 2017,
arXiv:1705.07057) or the first half (coupling; Dinh et al. 2017, arXiv:1605.08803). The transform is
affine or a rational-quadratic spline (Durkan et al. 2019, arXiv:1906.04032). Between layers the
coordinates are mixed linearly (`layers.py`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import paramax
from flowjax.bijections import AbstractBijection, Chain, Coupling, Invert, Scan
from jax import Array
from jax.scipy.special import ndtr, ndtri

from ..errors import InputError
from . import Estimate
from .layers import ACTIVATION, Affine, Autoregressive, InSingle, Linear, RationalQuadratic
from .pool import pooled
from .training import Rows, Settings, Weights, train


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
    transformer: Any = RationalQuadratic if a.kind in ("maf_spline", "spline") else Affine
    num_free = 3 * a.bins - 1 if transformer is RationalQuadratic else 2
    network: dict[str, Any] = {
        "dim": a.dim,
        "cond_dim": a.context or None,
        "nn_width": a.width,
        "nn_depth": a.depth,
    }
    if a.kind in ("maf", "maf_spline"):
        network |= {"transformer": transformer, "num_free": num_free}
        made: AbstractBijection = Autoregressive(network_key, **network)
    else:
        network |= {"untransformed_dim": a.dim // 2, "nn_activation": ACTIVATION}
        plain = Coupling(network_key, transformer=transformer(jnp.zeros(num_free)), **network)
        made = eqx.tree_at(lambda c: c.conditioner, plain, replace_fn=InSingle)
    order = jnp.flip(jnp.arange(a.dim)) if a.dim == 2 else jax.random.permutation(mix_key, a.dim)
    return Chain([made, Linear(order)])


# ---- fitting -------------------------------------------------------------------------------------


def fit_flows(
    key: Any,
    z: Sequence[np.ndarray],
    weight: Sequence[np.ndarray],
    *,
    validation: Sequence[tuple[np.ndarray, np.ndarray]],
    kind: str,
    progress: Any = None,
    num_members: int = 4,
    layers: int = 5,
    width: int = 32,
    depth: int = 1,
    bins: int = 8,
    max_epochs: int = 100,
    batch_size: int = 500,
    learning_rate: float = 5e-3,
    weight_decay: float = 1e-4,
    patience: int = 40,
) -> list[Estimate]:
    """Train flows for one or more sets of draws, from different starts, all at once.

    Args:
        z, weight, validation: of every set; its estimate is the mean of the densities of its flows.
        num_members: how many flows a set has.
        layers: how many transforms follow each other.
        width: units of a hidden layer of the networks, of which there are `depth`.
        bins: of a spline.
        max_epochs: and the rest: see `training.Settings`.

    Raises:
        InputError: settings out of range, or an affine flow over one parameter.
    """
    a = Architecture(kind, z[0].shape[1], 0, layers, width, depth, bins)
    settings = Settings(max_epochs, batch_size, learning_rate, weight_decay, patience)
    rows = [Rows((x,), w, (v,), u) for x, w, (v, u) in zip(z, weight, validation, strict=True)]
    flows = [Flow(w, a) for w in train_flows(key, a, num_members, rows, settings, progress)]
    each = [flows[i : i + num_members] for i in range(0, len(flows), num_members)]
    return [pooled(members, replicas=True) for members in each]


class FlowFit:
    """The function `fit_<kind>` of a kind of flow, with settings that suit it: `fit_flows` of one.

    `several` is `fit_flows` itself: sets of draws whose flows are trained together.
    """

    def __init__(self, **preset: Any):
        self.several: Callable[..., list[Estimate]] = functools.partial(fit_flows, **preset)
        self.__signature__ = inspect.signature(self.several)

    def __call__(
        self, key: Any, z: np.ndarray, weight: np.ndarray, *, validation: Any, **settings: Any
    ) -> Estimate:
        return self.several(key, [z], [weight], validation=[validation], **settings)[0]


fit_maf = FlowFit(kind="maf")
fit_maf_spline = FlowFit(kind="maf_spline", layers=3)
fit_spline = FlowFit(kind="spline", layers=6, max_epochs=150)
fit_realnvp = FlowFit(kind="realnvp", layers=8)


def train_flows(
    key: Any,
    a: Architecture,
    num_members: int,
    rows: Sequence[Rows],
    settings: Settings,
    progress: Any = None,
) -> list[Weights]:
    """The weights of every member, those of the first set of draws first.

    Args:
        num_members: of every set.
        rows: whose columns are points and, where there is one, their context.

    Raises:
        InputError: settings out of range, or an affine flow over one parameter.
    """
    check_architecture(a, num_members)
    num = num_members * len(rows)
    start_key, train_key = jax.random.split(key)
    with jax.enable_x64(False):
        starts = [random_weights(k, a) for k in jax.random.split(start_key, num)]
    trained = train(
        train_key,
        lambda weights, z, *context: flow_log_prob(weights, a, z, *context),
        [np.stack(w) for w in zip(*starts, strict=True)],
        rows,
        settings,
        progress=progress,
        what=f"training {a.kind}",
    )
    return [tuple(w[k] for w in trained.weights) for k in range(num)]


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
