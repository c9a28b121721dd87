r"""Objects known by a table of log p(d | theta) on nodes with quadrature weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..blocks import over_blocks
from ..density import Density, logsumexp
from ..errors import InputError
from . import LogMarginal
from .estimator import add_up, log_sums
from .formula import ObjectNames

# Numbers in a block of rows.
_BLOCK_SIZE = 2**14

# Places within a cell at which a draw's density is evaluated.
_CELL_POINTS = 32


class Grid(eqx.Module):
    r"""Objects whose likelihood is tabulated on nodes with quadrature weights $W_n$:

    $$\ln m_i = \ln \sum_n W_n\, p(d_i|\theta_n)\, p(\theta_n).$$

    Args:
        nodes: parameter name -> (num_nodes,) values shared by all objects, or (num_objects,
            num_nodes) where each object has its own.
        log_likelihood: (num_objects, num_nodes) table of $\ln p(d_i|\theta_n)$, maybe $-\infty$.
        log_weight: log quadrature weights, broadcastable to the table.
        names: names of the objects.
        owner: (num_rows,) the number of each row's object, ascending, where objects with many nodes
            take several rows of the table; without it, each has one.
        spacing: parameter name -> widths of the nodes' cells, shaped like nodes: a draw lies
            anywhere in its node's cell. Along the first of these parameters, where nodes that
            follow each other in the table lie next to each other, their values shape the density in
            the cell; otherwise it is flat there. Without it draws lie on nodes.

    The variance is zero: a quadrature has no Monte Carlo error. Where the nodes are shared, the
    density is evaluated once for all objects.

    Raises:
        InputError: shapes that do not fit, nodes that are not finite, NaN or $+\infty$ in the table
            or the weights, or an object whose whole row is $-\infty$ (named).
    """

    nodes: dict[str, Array]
    table: Array
    owner: Array | None
    spacing: dict[str, Array]
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        nodes: Mapping[str, Any],
        log_likelihood: Any,
        log_weight: Any,
        *,
        names: Sequence[str] | None = None,
        owner: Any = None,
        spacing: Mapping[str, Any] | None = None,
    ):
        table = np.asarray(log_likelihood, float)
        if table.ndim != 2:
            raise InputError(
                f"Grid: log_likelihood must be objects x nodes; got shape {table.shape}."
            )
        rows = np.arange(len(table)) if owner is None else _check_owner(owner, len(table))
        num = int(rows[-1]) + 1 if len(rows) else 0
        self.names = ObjectNames(names or (f"object {i}" for i in range(num)))
        if len(self.names) != num:
            raise InputError(f"Grid: {num} objects but {len(self.names)} names.")
        self.owner = None if owner is None else jnp.asarray(rows)
        for name, value in nodes.items():
            if np.shape(value) not in (table.shape[1:], table.shape):
                raise InputError(
                    f"Grid: nodes of '{name}' have shape {np.shape(value)}; the table asks for "
                    f"{table.shape[1:]} or {table.shape}."
                )
            if not np.isfinite(np.asarray(value, float)).all():
                raise InputError(f"Grid: nodes of '{name}' are not all finite.")
        weight = np.asarray(log_weight, float)
        if np.isnan(weight).any() or np.isposinf(weight).any():
            raise InputError("Grid: log_weight is NaN or +inf at some node.")
        try:
            weight = np.broadcast_to(weight, table.shape)
        except ValueError:
            raise InputError(
                f"Grid: log_weight has shape {weight.shape}, which does not fit the table's "
                f"{table.shape}; give one weight per node."
            ) from None
        _check_table(table, rows, self.names)
        own = any(np.ndim(v) == 2 for v in nodes.values())
        shape = table.shape if own else table.shape[1:]
        self.nodes = {k: jnp.asarray(np.broadcast_to(v, shape), float) for k, v in nodes.items()}
        self.table = jnp.asarray(table + weight)
        self.spacing = _spacing(spacing or {}, self.nodes, table.shape)

    def log_marginal(self, density: Density) -> LogMarginal:
        """Integrate `density` against every object's table."""
        if next(iter(self.nodes.values())).ndim == 1:
            value = _integral(density.log_prob(self.nodes), self.table)
        else:
            # A block of rows at a time: what is made of them stays near the processor.
            value = over_blocks(
                lambda rows: _integral(density.log_prob(rows[0]), rows[1]),
                (self.nodes, self.table),
                _BLOCK_SIZE // self.table.shape[1],
            )
        if self.owner is not None:
            value = add_up(value, self.owner, len(self.names))
        return LogMarginal(value, jnp.zeros_like(value))

    def draw(self, density: Density, key: Any) -> dict[str, Array]:
        """One draw of every object's theta: a node by its probability, spread within its cell."""
        return self.draw_by_mass(self.log_mass(density), key)

    def log_mass(self, density: Density) -> Array:
        """Log of weight times posterior density of every node, shaped like the table."""
        return density.log_prob(self.nodes) + self.table

    def draw_by_mass(self, log_mass: Array, key: Any) -> dict[str, Array]:
        r"""One draw per object by the nodes' weights times posterior densities, made continuous.

        In the cell $x_n + h_n u$, $|u| < \frac12$, the log density is the parabola through the node
        and its two neighbours: not only the nodes' masses but the density between them counts.
        """
        keys = jax.random.split(key, len(self.spacing) + 3)
        uniform = [jax.random.uniform(k, (len(self.names),), log_mass.dtype) for k in keys]
        slope, bend = self._parabola(log_mass)
        # Gauss-Legendre: the mass of a cell, in units of the one that its node's weight says.
        place, share = (0.5 * jnp.asarray(x) for x in np.polynomial.legendre.leggauss(5))
        shape = jnp.exp(place * slope[..., None] + 0.5 * place**2 * bend[..., None])
        log_mass = log_mass + jnp.log(shape @ share)
        row = self._pick_rows(log_mass, uniform[0])
        node = _pick(log_mass[row], uniform[1])

        def at(x: Array) -> Array:
            return jnp.broadcast_to(x, log_mass.shape)[row, node]

        drawn = {name: at(x) for name, x in self.nodes.items()}
        for i, (name, u) in enumerate(zip(self.spacing, uniform[3:], strict=True)):
            u = u - 0.5
            if i == 0:
                middle = (jnp.arange(_CELL_POINTS) + 0.5) / _CELL_POINTS - 0.5
                curve = at(slope)[:, None] * middle + 0.5 * at(bend)[:, None] * middle**2
                u = middle[_pick(curve, uniform[2])] + u / _CELL_POINTS
            drawn[name] = drawn[name] + u * at(self.spacing[name])
        return drawn

    def _pick_rows(self, log_mass: Array, uniform: Array) -> Array:
        """For every object one of its rows, by their masses."""
        num = len(self.names)
        if self.owner is None:
            return jnp.arange(num)
        mass = logsumexp(log_mass, axis=-1)
        top = jax.ops.segment_max(mass, self.owner, num)
        weight = jnp.exp(mass - jnp.where(top == -jnp.inf, 0.0, top)[self.owner])
        total = jax.ops.segment_sum(weight, self.owner, num)
        # The first row of an object whose cumulated weight passes the object's uniform number.
        cumulated = jnp.cumsum(weight)
        before = jnp.append(0.0, jnp.cumsum(total))[:-1]
        past = cumulated > (before + uniform * total)[self.owner]
        rows = jnp.where(past & (weight > 0), jnp.arange(len(mass)), len(mass) - 1)
        return jax.ops.segment_min(rows, self.owner, num)

    def _parabola(self, log_mass: Array) -> tuple[Array, Array]:
        """Slope and curvature of the log density in units of the cells; zero beside a gap."""
        if not self.spacing:
            return jnp.zeros_like(log_mass), jnp.zeros_like(log_mass)
        shape = log_mass.shape

        def line(x: Array) -> Array:
            return jnp.broadcast_to(x, shape).reshape(-1)

        owner = jnp.arange(shape[0]) if self.owner is None else self.owner
        near = jnp.diff(line(owner[:, None])) == 0
        for i, name in enumerate(self.spacing):
            step, h = jnp.diff(line(self.nodes[name])), line(self.spacing[name])
            if i == 0:
                # One direction alone: a parabola does not care which.
                near &= jnp.abs(jnp.abs(step) - 0.5 * (h[1:] + h[:-1])) < 0.1 * h[1:]
            else:
                near &= step == 0
        log_mass = log_mass.reshape(-1)
        # An empty neighbour lies beyond an edge: nothing is known of the density towards it.
        near &= jnp.isfinite(log_mass[1:]) & jnp.isfinite(log_mass[:-1])
        upwards = jnp.sign(jnp.diff(line(self.nodes[next(iter(self.spacing))])))
        rise = jnp.where(near, jnp.diff(log_mass), 0.0)
        up, down = jnp.append(rise, 0.0), jnp.append(0.0, rise)
        has_up, has_down = jnp.append(near, False), jnp.append(False, near)
        both = has_up & has_down
        # With one neighbour alone, the line through the two.
        slope = jnp.where(both, 0.5 * (up + down), up + down)
        sign = jnp.where(has_up, jnp.append(upwards, 0.0), jnp.append(0.0, upwards))
        bend = jnp.where(both, up - down, 0.0)
        return (slope * sign).reshape(shape), bend.reshape(shape)


def _integral(log_prob: Array, table: Array) -> Array:
    # The same sum as a Monte Carlo one, with the table in place of a reference density.
    return log_sums([log_prob], -table, squares=False)[0]


def _pick(log_mass: Array, uniform: Array) -> Array:
    """A place on the last axis by its mass, for one uniform number each."""
    top = jnp.max(log_mass, axis=-1, keepdims=True)
    cumulated = jnp.cumsum(jnp.exp(log_mass - top), axis=-1)
    place = jnp.sum(cumulated <= uniform[:, None] * cumulated[:, -1:], axis=-1)
    return jnp.minimum(place, log_mass.shape[-1] - 1)


def _check_owner(owner: Any, num_rows: int) -> np.ndarray:
    rows = np.asarray(owner)
    if rows.shape != (num_rows,) or not np.array_equal(np.unique(rows), np.arange(rows.max() + 1)):
        raise InputError(
            f"Grid: owner has shape {rows.shape}; give the number of an object for each of the "
            f"{num_rows} rows, and every object at least one."
        )
    if (np.diff(rows) < 0).any():
        raise InputError("Grid: owner is not ascending; put the rows of an object together.")
    return rows


def _check_table(table: np.ndarray, rows: np.ndarray, names: tuple[str, ...]) -> None:
    """Raise where a table holds NaN or +inf, or nothing at all for some object."""
    bad = (np.isnan(table) | np.isposinf(table)).any(axis=1)
    if bad.any():
        name = names[rows[np.flatnonzero(bad)[0]]]
        raise InputError(f"Grid: log_likelihood of {name} is NaN or +inf at some node.")
    seen = np.zeros(len(names), bool)
    np.logical_or.at(seen, rows, np.isfinite(table).any(axis=1))
    if not seen.all():
        name = names[np.flatnonzero(~seen)[0]]
        raise InputError(f"Grid: log_likelihood of {name} is -inf everywhere; widen the nodes.")


def _spacing(
    spacing: Mapping[str, Any], nodes: Mapping[str, Array], shape: tuple[int, ...]
) -> dict[str, Array]:
    """Checked widths of the nodes' cells."""
    out = {}
    for name, value in spacing.items():
        if name not in nodes:
            raise InputError(f"Grid: spacing of '{name}', which has no nodes.")
        width = np.asarray(value, float)
        if width.shape not in ((), shape[1:], shape):
            raise InputError(
                f"Grid: spacing of '{name}' has shape {width.shape}; the nodes ask for "
                f"{np.shape(nodes[name])}."
            )
        if not (np.isfinite(width).all() and (width >= 0).all()):
            raise InputError(f"Grid: spacing of '{name}' must be finite and not negative.")
        out[name] = jnp.asarray(np.broadcast_to(width, nodes[name].shape), float)
    return out
