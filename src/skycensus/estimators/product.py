r"""Products of independent blocks of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.sparse.csgraph import connected_components
from scipy.special import ndtri

from ..errors import InputError, did_you_mean
from ..weights import kish
from . import Estimate
from .coordinates import Coordinates
from .kinds import describe_parts, fitter, rebuild_parts, wanted
from .pool import log_prob_at, log_prob_variance
from .shifted import Shifted

# Two parameters depend on each other beyond so many standard errors of a correlation of zero.
_SIGNIFICANT = 4.5


class Product(eqx.Module):
    """Independent estimates, each of a block of the coordinates.

    Args:
        blocks: the coordinates of each part; every coordinate is in one block.
        parts: the estimates, in the order of the blocks.
    """

    parts: tuple[Estimate, ...]
    blocks: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    kind: str = eqx.field(static=True, default="product")

    def log_prob(self, z: Array) -> Array:
        terms = [part.log_prob(z[..., np.array(b)]) for part, b in self._pairs()]
        return jnp.sum(jnp.stack(terms), axis=0)

    def from_unit_cube(self, u: Array) -> Array:
        points = [part.from_unit_cube(u[..., np.array(b)]) for part, b in self._pairs()]
        order = np.argsort(np.concatenate([np.array(b) for b in self.blocks]))
        return jnp.concatenate(points, axis=-1)[..., order]

    def log_prob_variance(self, z: Array) -> Array:
        """See `Pool.log_prob_variance`."""
        terms = [log_prob_variance(part, z[..., np.array(b)]) for part, b in self._pairs()]
        return jnp.sum(jnp.stack(terms), axis=0)

    def _pairs(self) -> list[tuple[Estimate, tuple[int, ...]]]:
        return list(zip(self.parts, self.blocks, strict=True))

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        parts, arrays = describe_parts({str(k): part for k, part in enumerate(self.parts)})
        return {"blocks": [list(block) for block in self.blocks], "parts": parts}, arrays

    @classmethod
    def from_arrays(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Product:
        parts = rebuild_parts(settings["parts"], arrays)
        blocks = tuple(tuple(int(i) for i in block) for block in settings["blocks"])
        return cls(tuple(parts[str(k)] for k in range(len(parts))), blocks)


def fit_product(
    key: Any,
    z: np.ndarray,
    weight: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray],
    coordinates: Coordinates,
    names: Sequence[str],
    progress: Any = None,
    blocks: Sequence[Sequence[str]] | None = None,
    part: str = "mixture",
    settings: Mapping[str, Any] | None = None,
) -> Estimate:
    r"""Estimates of blocks of parameters that are independent, multiplied.

    Blocks are those given, or those found: parameters whose normal scores or their squares
    correlate are in one block. They are held against a joint estimate of the same kind by the
    held-out score, and for blocks that were found the better one is returned.

    Args:
        blocks: names of the parameters of each block; who is in none is in a block alone.
        part: the kind of the blocks' estimates.
        settings: what that kind takes.

    Raises:
        InputError: unknown or repeated names, or given blocks to which a joint estimate is better
            by more than three standard errors.
    """
    if part == "product":
        raise InputError("parts of kind 'product' are not possible; take another kind.")
    y = np.asarray(coordinates.mean) + z @ np.asarray(coordinates.root).T
    places = _found(y, weight) if blocks is None else _given(names, blocks)
    fit = fitter(part)
    settings = dict(settings or {})

    def one(key: Any, rows: np.ndarray, held: np.ndarray, own: Coordinates, of: Any) -> Estimate:
        given = wanted(fit, coordinates=own, names=of, notes={})
        return fit(key, rows, weight, validation=(held, validation[1]), **given, **settings)

    joint_key, *keys = jax.random.split(key, len(places) + 1)
    joint = one(joint_key, z, validation[0], coordinates, names)
    if len(places) == 1:
        return joint
    inner = _block_diagonal(coordinates, places)
    # z' = R_b^-1 R z has no covariance between blocks, and is where their estimates live.
    across = np.linalg.solve(np.asarray(inner.root), np.asarray(coordinates.root))
    rows, held = z @ across.T, validation[0] @ across.T
    parts = []
    for k, (block_key, block) in enumerate(zip(keys, places, strict=True)):
        mine = list(block)
        own, of = _part(inner, mine), [names[i] for i in mine]
        parts.append(one(block_key, rows[:, mine], held[:, mine], own, of))
        if progress is not None:
            progress(k + 1, len(places), "blocks")
    zero = jnp.zeros(z.shape[1])
    product = Shifted(Product(tuple(parts), places), zero, jnp.asarray(np.linalg.inv(across)))
    return _better(product, joint, validation, given=blocks is not None, names=names)


def _better(
    product: Shifted,
    joint: Estimate,
    validation: tuple[np.ndarray, np.ndarray],
    *,
    given: bool,
    names: Sequence[str],
) -> Estimate:
    """The product, unless the joint estimate is clearly better."""
    points, weight = validation
    gain = log_prob_at(joint, points) - log_prob_at(product, points)
    mean = float(weight @ gain)
    error = float(np.sqrt(np.sum((weight * (gain - mean)) ** 2)))
    if mean <= 3.0 * error:
        return product
    if not given:
        return joint
    assert isinstance(product.inner, Product)
    shown = "; ".join(", ".join(names[i] for i in block) for block in product.inner.blocks)
    raise InputError(
        f"the blocks ({shown}) are not independent: a joint density scores {mean:.3g} +- "
        f"{error:.2g} more per draw; put the dependent parameters into one block."
    )


def _given(names: Sequence[str], blocks: Sequence[Sequence[str]]) -> tuple[tuple[int, ...], ...]:
    seen: list[str] = []
    for block in blocks:
        for name in [block] if isinstance(block, str) else block:
            if name not in names:
                raise InputError(
                    f"blocks: there is no parameter '{name}'{did_you_mean(name, names)}; the draws "
                    f"have {list(names)}."
                )
            if name in seen:
                raise InputError(f"blocks: parameter '{name}' is named twice; name it once.")
            seen.append(name)
    places = [
        tuple(sorted(names.index(n) for n in ([block] if isinstance(block, str) else block)))
        for block in blocks
    ]
    places += [(i,) for i, name in enumerate(names) if name not in seen]
    return tuple(sorted(places))


def _found(y: np.ndarray, weight: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Groups of parameters that depend on each other, pair by pair."""
    order = np.argsort(y, axis=0, kind="stable")
    rank = np.empty_like(y)
    for i, column in enumerate(order.T):
        rank[column, i] = np.cumsum(weight[column]) - 0.5 * weight[column]
    score = ndtri(np.clip(rank, 1e-12, 1.0 - 1e-12))
    features = np.concatenate([score, score**2], axis=1)
    features -= weight @ features
    features /= np.sqrt(weight @ features**2)
    correlation = np.abs((weight[:, None] * features).T @ features)
    dim = y.shape[1]
    # A score may depend on another's square as well as on the other.
    strongest = correlation.reshape(2, dim, 2, dim).max(axis=(0, 2))
    dependent = strongest > _SIGNIFICANT / np.sqrt(kish(np.log(weight)))
    label = connected_components(dependent, directed=False)[1]
    return tuple(tuple(int(i) for i in np.flatnonzero(label == k)) for k in range(label.max() + 1))


def _block_diagonal(whole: Coordinates, places: Sequence[Sequence[int]]) -> Coordinates:
    """The same coordinates, standardised block by block."""
    covariance = np.asarray(whole.root) @ np.asarray(whole.root).T
    root = np.zeros_like(covariance)
    for block in places:
        mine = np.ix_(block, block)
        root[mine] = np.linalg.cholesky(covariance[mine])
    return eqx.tree_at(lambda c: c.root, whole, jnp.asarray(root))


def _part(whole: Coordinates, block: Sequence[int]) -> Coordinates:
    mine = list(block)
    return Coordinates(
        np.asarray(whole.low)[mine],
        np.asarray(whole.high)[mine],
        periodic=[whole.periodic[i] for i in mine],
        cut=np.asarray(whole.cut)[mine],
        mean=np.asarray(whole.mean)[mine],
        root=np.asarray(whole.root)[np.ix_(mine, mine)],
    )
