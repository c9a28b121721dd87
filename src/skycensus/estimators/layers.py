r"""Layers of flows that FlowJAX lacks, as bijections of one point; flows map them over many.

Networks work in 32 bits, at a third of the time of 64, whatever the precision of the points. A
layer is the monotone map that its network says, and its Jacobian is that of just this map:
normalised as well. The coordinates themselves and the sum of the layers' log determinants keep the
precision of the points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.bijections import AbstractBijection
from flowjax.bijections.masked_autoregressive import masked_autoregressive_mlp
from jax import Array

# Bounded, so that a flow is a plain affine map far out: finite anywhere.
ACTIVATION = jnp.tanh
# Splines reach this far in standardised coordinates; beyond, they are the identity.
_REACH = 5.0
# The least width and height of a bin, and the least slope, in units of their average; the least
# slope of an affine map.
_LEAST = 1e-2
# Added to what a network says, so that an affine map is the identity where it says nothing.
_UNIT = float(np.log(np.expm1(1.0 - _LEAST)))


class InSingle(eqx.Module):
    """A network (n,) -> (m,) evaluated in 32 bits, its result in the precision of the input."""

    network: Callable[[Array], Array]

    def __call__(self, x: Array) -> Array:
        return _single(self.network)(x.astype(jnp.float32)).astype(x.dtype)


def _single(tree: Any) -> Any:
    """The same with its floating-point arrays in 32 bits."""
    return jax.tree.map(lambda w: w.astype(jnp.float32) if eqx.is_inexact_array(w) else w, tree)


class Autoregressive(AbstractBijection):
    r"""Coordinate i transformed as a masked network says from the coordinates before it.

    Masks as in Germain et al. (2015, arXiv:1502.03509): a hidden unit of rank r sees the
    coordinates 0 to r, and coordinate i is transformed by units of rank below i.

    The inverse has to go through the coordinates one after the other. Hidden units are sorted by
    rank and each is evaluated when the last of its inputs is known: together as much work as the
    network once, not once for each coordinate.
    """

    network: eqx.nn.MLP
    transformer: Callable[[Array], AbstractBijection] = eqx.field(static=True)
    ranks: tuple[int, ...] = eqx.field(static=True)
    """Of the hidden units, ascending; -1 where one sees the context alone."""
    shape: tuple[int, ...]
    cond_shape: tuple[int, ...] | None

    def __init__(
        self,
        key: Any,
        *,
        transformer: Callable[[Array], AbstractBijection],
        num_free: int,
        dim: int,
        cond_dim: int | None,
        nn_width: int,
        nn_depth: int,
    ):
        self.transformer = transformer
        first = 0 if cond_dim is None else -1
        last = max(dim - 1, first + 1)
        self.ranks = tuple(int(r) for r in np.sort(np.resize(np.arange(first, last), nn_width)))
        in_ranks = np.concatenate([np.arange(dim), np.full(cond_dim or 0, -1)])
        self.network = masked_autoregressive_mlp(
            jnp.asarray(in_ranks),
            jnp.asarray(self.ranks),
            jnp.tile(jnp.arange(dim), num_free),
            depth=nn_depth,
            activation=ACTIVATION,
            key=key,
        )
        self.shape = (dim,)
        self.cond_shape = None if cond_dim is None else (cond_dim,)

    def transform_and_log_det(self, x: Any, condition: Any = None) -> tuple[Array, Array]:
        seen = x if condition is None else jnp.concatenate([x, condition])
        free = _single(self.network)(seen.astype(jnp.float32)).reshape(-1, len(x))

        def one(free: Array, x: Array) -> tuple[Array, Array]:
            return self.transformer(free).transform_and_log_det(x)

        y, log_det = jax.vmap(one, (1, 0))(free, x)
        return y, log_det.sum()

    def inverse_and_log_det(self, y: Any, condition: Any = None) -> tuple[Array, Array]:
        dim = len(y)
        *inner, last = _single(self.network).layers
        # What hidden units get from the context and from nothing.
        start = inner[0].bias
        if condition is not None:
            start = start + inner[0].weight[:, dim:] @ condition.astype(jnp.float32)
        units: list[list[Array]] = [[] for _ in inner]

        def evaluate(rank: int) -> None:
            begin, end = np.searchsorted(self.ranks, [rank, rank + 1])
            for i, layer in enumerate(inner if end > begin else ()):
                rows = slice(begin, end)
                if i == 0:
                    before = jnp.stack(x).astype(jnp.float32) if x else jnp.zeros(0, jnp.float32)
                    free = start[rows] + layer.weight[rows, : len(x)] @ before
                else:
                    before = jnp.concatenate(units[i - 1])
                    free = layer.bias[rows] + layer.weight[rows, :end] @ before
                units[i].append(ACTIVATION(free))

        x: list[Array] = []
        log_det = jnp.zeros((), y.dtype)
        for i in range(dim):
            evaluate(i - 1)
            free = last.bias[i::dim]
            if units[-1]:
                before = jnp.concatenate(units[-1])
                free = free + last.weight[i::dim, : len(before)] @ before
            value, change = self.transformer(free).inverse_and_log_det(y[i])
            x.append(value)
            log_det += change
        return jnp.stack(x), log_det


class Affine(AbstractBijection):
    r"""$y = s\,x + t$ with $s = 0.01 + \ln(1 + e^c)$; one where nothing is given.

    The slope is bounded from below: no draw can get a spike of its own.
    """

    loc: Array
    free: Array
    shape: tuple[int, ...]
    cond_shape: None

    def __init__(self, free: Array | None = None):
        self.shape, self.cond_shape = (), None
        self.loc, self.free = jnp.zeros(2) if free is None else free

    def _scale(self) -> Array:
        c = self.free + _UNIT
        # jax.nn.softplus takes eight times as long in 64 bits, with care for infinities.
        return _LEAST + jnp.maximum(c, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(c)))

    def transform_and_log_det(self, x: Any, condition: Any = None) -> tuple[Array, Array]:
        scale = self._scale()
        return scale * x + self.loc, jnp.log(scale)

    def inverse_and_log_det(self, y: Any, condition: Any = None) -> tuple[Array, Array]:
        scale = self._scale()
        return (y - self.loc) / scale, -jnp.log(scale)


class Linear(AbstractBijection):
    r"""$y = P\,(I + L)(D + U)\,x + m$: triangular matrices, at first none, and a permutation P.

    A linear map with an inverse and a determinant that cost nothing (Kingma & Dhariwal 2018,
    arXiv:1807.03039). L, U and the logarithm of D are the parts of the square matrix `free`.
    """

    free: Array
    loc: Array
    order: Array
    shape: tuple[int, ...]
    cond_shape: None

    def __init__(self, order: Array):
        dim = len(order)
        self.free, self.loc, self.order = jnp.zeros((dim, dim)), jnp.zeros(dim), order
        self.shape, self.cond_shape = (dim,), None

    def _matrix(self) -> Array:
        lower = jnp.eye(len(self.loc), dtype=self.free.dtype) + jnp.tril(self.free, -1)
        upper = jnp.triu(self.free, 1) + jnp.diag(jnp.exp(jnp.diagonal(self.free)))
        return (lower @ upper)[self.order]

    def transform_and_log_det(self, x: Any, condition: Any = None) -> tuple[Array, Array]:
        return self._matrix() @ x + self.loc, jnp.diagonal(self.free).sum()

    def inverse_and_log_det(self, y: Any, condition: Any = None) -> tuple[Array, Array]:
        # One small matrix for all points.
        inverse = jnp.linalg.inv(self._matrix())
        return inverse @ (y - self.loc), -jnp.diagonal(self.free).sum()


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

    def __init__(self, free: Array):
        bins = (len(free) + 1) // 3
        self.shape, self.cond_shape = (), None
        self.widths, self.heights, self.slopes = (
            free[:bins],
            free[bins : -bins + 1],
            free[-bins + 1 :],
        )

    def _bin(self, value: Array, of: str) -> tuple[Array, ...]:
        """The ends of the bin with `value` in x or y, its width, height and slopes at the ends."""
        x, width = _knots(self.widths.astype(value.dtype))
        y, height = _knots(self.heights.astype(value.dtype))
        knots = x if of == "x" else y
        ends = jnp.ones(1, value.dtype)
        slope = jax.nn.softplus(self.slopes.astype(value.dtype)) / np.log(2.0)
        slope = _LEAST + (1.0 - _LEAST) * slope
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
