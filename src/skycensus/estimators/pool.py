r"""A weighted sum of estimates: ensembles, pieces, and families that are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..blocks import over_blocks
from ..density import logsumexp
from . import Estimate
from .kinds import describe_parts, rebuild_parts

# Points that are evaluated at once: what lies between the layers of a network stays in cache.
BLOCK = 4096


class Pool(eqx.Module):
    r"""The mixture $\sum_k w_k\,q_k(z)$ of estimates over the same coordinates.

    Args:
        members: the estimates; those of one structure are evaluated together.
        weight: $w_k$, not negative; they are normalised.
        replicas: whether the members are estimates of one and the same density, so that their
            spread says how well it is known. The pieces of a density are no replicas.
    """

    members: tuple[Estimate, ...]
    log_weight: Array
    replicas: bool = eqx.field(static=True)
    kind: str = eqx.field(static=True)

    def __init__(
        self,
        members: Sequence[Estimate],
        weight: Any = None,
        *,
        replicas: bool = False,
    ):
        size = len(members)
        weight = np.full(size, 1.0 / size) if weight is None else np.asarray(weight, float)
        self.members = tuple(members)
        self.log_weight = jnp.log(jnp.asarray(weight / weight.sum()))
        self.replicas = replicas
        self.kind = "pool"

    def log_prob(self, z: Array) -> Array:
        return logsumexp(self.log_terms(z), axis=0)

    def log_terms(self, z: Array) -> Array:
        r"""$\ln w_k q_k(z)$, with the members first: (..., d) -> (k, ...)."""
        values = each(self.members, "log_prob", z)
        return jnp.stack(values) + self.log_weight.reshape(-1, *[1] * (z.ndim - 1))

    def from_unit_cube(self, u: Array) -> Array:
        """The first coordinate chooses the member; what is left of it is a uniform number again."""
        chosen, u = choose(self.log_weight, u)
        points = each(self.members, "from_unit_cube", u)
        out = points[0]
        for k, point in enumerate(points[1:], start=1):
            out = jnp.where((chosen == k)[..., None], point, out)
        return out

    def log_prob_variance(self, z: Array) -> Array:
        r"""The variance of `log_prob` from how much replicas differ, (..., d) -> (...).

        For K replicas of weight $w_k$ it is $\sum_k w_k^2 (q_k/q - 1)^2\, K/(K - 1)$. Through a
        sum of pieces it is propagated, each piece on its own.
        """
        share = jnp.exp(self.log_terms(z) - self.log_prob(z))
        size = len(self.members)
        if self.replicas:
            weight = jnp.exp(self.log_weight).reshape(-1, *[1] * (z.ndim - 1))
            return jnp.sum((share - weight) ** 2, axis=0) * size / max(size - 1, 1)
        inner = [log_prob_variance(member, z) for member in self.members]
        return jnp.sum(share**2 * jnp.stack(inner), axis=0)

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        parts, arrays = describe_parts({str(k): m for k, m in enumerate(self.members)})
        settings = {"replicas": self.replicas, "members": parts}
        return settings, {"log_weight": np.asarray(self.log_weight), **arrays}

    @classmethod
    def from_arrays(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Pool:
        parts = rebuild_parts(settings["members"], arrays)
        members = [parts[str(k)] for k in range(len(parts))]
        made = cls(members, replicas=bool(settings["replicas"]))
        # As it was: normalising again would change the last digit.
        return eqx.tree_at(lambda p: p.log_weight, made, jnp.asarray(arrays["log_weight"]))


def choose(log_weight: Array, u: Array) -> tuple[Array, Array]:
    """A member for every point (..., d) of the unit cube, and the point that is left of it.

    The first coordinate chooses, each member as often as it weighs (k,), and what is left of that
    coordinate is a uniform number again.
    """
    edges = jnp.concatenate([jnp.zeros(1), jnp.cumsum(jnp.exp(log_weight))])
    edges = edges.at[-1].set(1.0)
    first = u[..., 0]
    chosen = jnp.clip(jnp.searchsorted(edges, first, side="right") - 1, 0, len(edges) - 2)
    # Rounding may put it on an end of (0, 1), where there is no finite point.
    small = jnp.finfo(u.dtype).epsneg
    width = edges[chosen + 1] - edges[chosen]
    rest = jnp.clip((first - edges[chosen]) / jnp.where(width > 0, width, 1.0), small, 1 - small)
    return chosen, jnp.concatenate([rest[..., None], u[..., 1:]], axis=-1)


def log_prob_at(estimate: Estimate, z: Any) -> np.ndarray:
    """Log density at points (n, d), compiled and block by block, in NumPy."""
    return np.asarray(_log_prob(estimate, jnp.asarray(z)), float)


@eqx.filter_jit
def _log_prob(estimate: Estimate, z: Array) -> Array:
    return over_blocks(estimate.log_prob, z, BLOCK)


def draws_of(estimate: Estimate, key: Any, shape: tuple[int, int]) -> np.ndarray:
    """Draws (n, d), compiled and block by block, in NumPy."""
    return np.asarray(_draws_of(estimate, jax.random.uniform(key, shape, float)), float)


@eqx.filter_jit
def _draws_of(estimate: Estimate, u: Array) -> Array:
    return over_blocks(lambda rows: from_whole_cube(estimate, rows), u, BLOCK)


def from_whole_cube(estimate: Estimate, u: Array) -> Array:
    """`from_unit_cube` of points that may lie on the faces, where there is no finite point."""
    eps = jnp.finfo(u.dtype).epsneg
    return estimate.from_unit_cube(jnp.clip(u, eps, 1.0 - eps))


def pooled(members: Sequence[Any], weight: Any = None, *, replicas: bool = False) -> Any:
    """A `Pool`, or its only member."""
    return members[0] if len(members) == 1 else Pool(members, weight, replicas=replicas)


def log_prob_variance(estimate: Estimate, z: Array) -> Array:
    """The variance of an estimate's `log_prob` as its replicas tell; zero where it has none."""
    if hasattr(estimate, "log_prob_variance"):
        return estimate.log_prob_variance(z)
    return jnp.zeros(z.shape[:-1])


def has_replicas(estimate: Estimate) -> bool:
    """Whether any part of an estimate is a pool of replicas."""
    nodes = jax.tree.leaves(estimate, is_leaf=_is_replicas)
    return any(_is_replicas(node) for node in nodes)


def replicas_of(estimate: Estimate) -> list[Estimate]:
    """The estimate with one member in place of every pool of replicas; none where it has no such.

    Where pools have different numbers of members, the smallest decides.
    """
    pools = [n for n in jax.tree.leaves(estimate, is_leaf=_is_replicas) if _is_replicas(n)]
    size = min((len(pool.members) for pool in pools), default=0)
    return [
        jax.tree.map(
            lambda node: node.members[k] if _is_replicas(node) else node,  # noqa: B023
            estimate,
            is_leaf=_is_replicas,
        )
        for k in range(size)
    ]


def _is_replicas(node: Any) -> bool:
    return isinstance(node, Pool) and node.replicas


def each(members: Sequence[Estimate], method: str, points: Array) -> list[Array]:
    """A method of every member at the same points; members of one structure in one go."""
    groups: dict[Any, list[int]] = {}
    for k, member in enumerate(members):
        leaves, structure = jax.tree.flatten(member)
        shapes = tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
        groups.setdefault((structure, shapes), []).append(k)
    out: dict[int, Array] = {}
    for group in groups.values():
        if len(group) == 1:
            out[group[0]] = getattr(members[group[0]], method)(points)
            continue
        together = jax.tree.map(lambda *x: jnp.stack(x), *[members[k] for k in group])
        values = jax.vmap(lambda one: getattr(one, method)(points))(together)
        out |= dict(zip(group, values, strict=True))
    return [out[k] for k in range(len(members))]
