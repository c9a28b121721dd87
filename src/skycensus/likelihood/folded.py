r"""Objects known by a table over one parameter, summed as a product of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..blocks import over_blocks
from ..density import Density
from ..errors import InputError
from . import Likelihood, LogMarginal
from .formula import ObjectNames

# Rows of a table of 32 bits that are made 64 at a time: what stays in cache.
_ROWS = 4096


class Hats(eqx.Module):
    r"""The hat functions $h_j(x)$ of nodes that are evenly spaced in $\ln x$, linear in $\ln x$.

    Args:
        name: of the parameter x.
        nodes: (num_nodes,) positive.
        refine: finer nodes between two nodes, on which a density is integrated.

    Raises:
        InputError: nodes that are not as above.
    """

    name: str = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)
    num: int = eqx.field(static=True)
    refine: int = eqx.field(static=True)

    def __init__(self, name: str, nodes: np.ndarray, refine: int = 8):
        step = np.diff(np.log(nodes)) if (nodes > 0).all() else np.zeros(1)
        if not (step[0] > 0 and np.allclose(step, step[0], rtol=1e-6)):
            raise InputError(f"Folded: nodes of '{name}' must rise evenly in the logarithm.")
        # Numbers, not arrays: a compiler then sees that several tables ask for the same masses.
        self.name, self.refine = name, refine
        self.low, self.high, self.num = float(nodes[0]), float(nodes[-1]), len(nodes)

    @property
    def nodes(self) -> np.ndarray:
        """(num,) the nodes."""
        return np.geomspace(self.low, self.high, self.num)

    def masses(self, density: Density) -> tuple[Array, Array]:
        r"""(num,) $\int p(x) h_j(x)\,dx$ over $e^{top}$, the largest of them; and that top."""
        fine, log_width = self._fine
        log_p = density.log_prob({self.name: jnp.asarray(fine)}) + log_width
        # What 64 bits hold needs no scale: to look for it would take as long as all the rest.
        narrow = jnp.finfo(log_p.dtype).bits < 64
        shift = _finite(jnp.max(log_p)) if narrow else 0.0
        p = jnp.exp(log_p - shift)
        # What a cell's values give to the hats of its two ends.
        rise = (np.arange(self.refine) / self.refine)[:, None]
        inner, last = p[:-1].reshape(self.refine, -1), p[-1:]
        left, right = jnp.sum((1.0 - rise) * inner, axis=0), jnp.sum(rise * inner, axis=0)
        none = jnp.zeros_like(last)
        mass = jnp.concatenate([left, last]) + jnp.concatenate([none, right])
        top = _finite(jnp.log(jnp.max(mass)))
        return mass * jnp.exp(-top), top + shift

    @property
    def _fine(self) -> tuple[np.ndarray, np.ndarray]:
        """Finer nodes and the logs of their widths: a row for each place in a cell, then the end.

        Sums over rows are quick.
        """
        num = (self.num - 1) * self.refine + 1
        fine = np.geomspace(self.low, self.high, num)
        width = fine * np.log(self.high / self.low) / (num - 1)
        # The ends have half a cell.
        width[[0, -1]] *= 0.5
        fine, log_width = (
            np.append(x[:-1].reshape(-1, self.refine).T, x[-1]) for x in (fine, np.log(width))
        )
        return fine, log_width

    def draw(self, node: Array, key: Any) -> Array:
        """A value of x from the hat function of every `node`, (num_objects,)."""
        nodes = jnp.log(self.nodes)
        # A hat is the sum of two uniform numbers.
        place = jax.random.uniform(key, (2, len(node))).sum(0) - 1.0
        inside = jnp.clip(nodes[node] + place * (nodes[1] - nodes[0]), nodes[0], nodes[-1])
        return jnp.exp(inside)


class Folded(eqx.Module):
    r"""Objects whose likelihood is a table on nodes of one parameter that all share.

    $$m_i = \int F_i(x)\,p(x)\,dx,$$

    with $F_i$ linear between the nodes $x_j$, which are evenly spaced in $\ln x$: it is given there
    and smooth, while $p$ may have edges and lines, and is integrated against the hat functions of
    the nodes on `refine` finer ones. What all objects share is computed once, and what is theirs is
    a product of a matrix with a vector: fast, and without a variance.

    The sums are of numbers, not of logarithms: a term below $10^{-300}$ of an object's largest
    counts as zero.

    Args:
        name: of the parameter.
        nodes: (num_nodes,) its values, positive and evenly spaced in the logarithm.
        table: (num_objects, num_nodes) likelihoods $F_i(x_j)$, not logarithms.
        names: of the objects.
        refine: finer nodes between two nodes.
        dtype: of the table as it is kept: 32 bits are half the memory, and right to 6e-8.

    Raises:
        InputError: shapes that do not fit, nodes that are not as above, numbers in the table that
            are negative or not finite, or an object whose likelihood is zero everywhere (named).
    """

    hats: Hats
    table: Array
    log_scale: Array
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        name: str,
        nodes: Any,
        table: Any,
        *,
        names: Sequence[str] | None = None,
        refine: int = 8,
        dtype: type = np.float64,
    ):
        nodes, table = np.asarray(nodes, float), np.asarray(table)
        if table.ndim != 2 or nodes.shape != table.shape[1:] or len(nodes) < 2:
            raise InputError(
                f"Folded: table has shape {table.shape} and nodes {nodes.shape}; give objects x "
                "nodes, and two nodes at least."
            )
        self.names = ObjectNames(names or (f"object {i}" for i in range(len(table))))
        if len(self.names) != len(table):
            raise InputError(f"Folded: {len(table)} objects but {len(self.names)} names.")
        self.hats = Hats(name, nodes, refine)
        _check(table, self.names)
        top = table.max(axis=1, initial=0.0)
        top = np.where(top > 0, top, 1.0)
        # In one go: of very many objects the table is not to be held twice.
        scaled = np.empty(table.shape, dtype)
        self.table = jnp.asarray(np.divide(table, top[:, None], out=scaled, casting="same_kind"))
        self.log_scale = jnp.log(jnp.asarray(top))

    def log_marginal(self, density: Density) -> LogMarginal:
        """Integrate `density` against every object's table."""
        total, top = self.sums(density)
        value = log_or_nothing(total) + self.log_scale + top
        return LogMarginal(value, jnp.zeros_like(value))

    def sums(self, density: Density) -> tuple[Array, Array]:
        """(num_objects,) marginals over `log_scale`, and the log of a factor of them all."""
        mass, top = self.hats.masses(density)
        if mass.dtype == self.table.dtype:
            return self.table @ mass, top
        # Rounding within a sum is alike for all objects, and adds up: sums have 64 bits.
        some = jax.checkpoint(lambda rows: rows.astype(mass.dtype) @ mass)
        return over_blocks(some, self.table, _ROWS), top

    def draw(self, density: Density, key: Any) -> dict[str, Array]:
        """One draw of every object's parameter: a node by its mass, and a place in its cell."""
        mass, _ = self.hats.masses(density)
        node_key, place_key = jax.random.split(key)
        node = jax.random.categorical(node_key, jnp.log(self.table * mass), axis=-1)
        return {self.hats.name: self.hats.draw(node, place_key)}


class Constant(eqx.Module):
    """Objects whose log marginals no hyperparameter changes: a leaf that is a number per object.

    Args:
        value: (num_objects,) log marginals, maybe -inf.
        names: of the objects.

    Raises:
        InputError: NaN or +inf, naming the object.
    """

    value: Array
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, value: Any, *, names: Sequence[str] | None = None):
        value = np.asarray(value, float)
        self.names = ObjectNames(names or (f"object {i}" for i in range(len(value))))
        if (bad := np.isnan(value) | (value == np.inf)).any():
            name = self.names[int(np.flatnonzero(bad)[0])]
            raise InputError(f"Constant: the log marginal of {name} is NaN or +inf.")
        self.value = jnp.asarray(value)

    def log_marginal(self, density: Density) -> LogMarginal:
        """The numbers, whatever `density` is."""
        return LogMarginal(self.value, jnp.zeros_like(self.value))

    @property
    def log_scale(self) -> Array:
        """The numbers: see `sums`."""
        return self.value

    def sums(self, density: Density) -> tuple[Array, Array]:
        """Ones, and the log of a factor of one: see `Folded.sums`."""
        return jnp.ones_like(self.value), jnp.zeros(())

    def draw(self, density: Density, key: Any) -> dict[str, Array]:
        """Nothing is known of these objects but their numbers: NaN for every parameter."""
        return {name: jnp.full(self.value.shape, jnp.nan) for name in density.names}


class Detected(eqx.Module):
    r"""Objects given that they are detected: $\ln m_i - \ln m_\det$, leaf by leaf.

    With it the weights of a mixture are fractions of the objects that are seen, not of those that
    there are.

    Args:
        form: the objects.
        selection: a form with one object, their detection.
    """

    form: Any
    selection: Any
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, form: Likelihood, selection: Likelihood):
        self.form, self.selection, self.names = form, selection, form.names

    def log_marginal(self, density: Density) -> LogMarginal:
        """Log marginals of `density` as far as it is detected."""
        value, variance = self.form.log_marginal(density)
        seen, seen_variance = self.selection.log_marginal(density)
        unseen = seen[0] == -jnp.inf
        value = jnp.where(unseen, -jnp.inf, value - jnp.where(unseen, 0.0, seen[0]))
        return LogMarginal(value, variance + seen_variance[0])

    @property
    def log_scale(self) -> Array:
        """Of the objects: see `sums`."""
        return self.form.log_scale

    def sums(self, density: Density) -> tuple[Array, Array]:
        """See `Folded.sums`; of parts that both have them."""
        total, top = self.form.sums(density)
        seen, seen_top = self.selection.sums(density)
        log_seen = log_or_nothing(seen[0]) + self.selection.log_scale[0] + seen_top
        unseen = log_seen == -jnp.inf
        return total, jnp.where(unseen, -jnp.inf, top - jnp.where(unseen, 0.0, log_seen))

    def draw(self, density: Density, key: Any) -> dict[str, Array]:
        """One draw of every object's theta."""
        return self.form.draw(density, key)


def has_sums(form: Any) -> bool:
    """Whether a form has the method `sums`: tables, numbers, and these as far as detected."""
    if isinstance(form, Detected):
        return has_sums(form.form) and has_sums(form.selection)
    return isinstance(form, Folded | Constant)


def log_or_nothing(total: Array) -> Array:
    """The log; -inf of zero, with a gradient of zero, as in every form."""
    empty = total == 0
    return jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, total)))


def _finite(top: Array) -> Array:
    """A scale of logarithms, without a gradient; zero where it would be infinite or NaN."""
    top = jax.lax.stop_gradient(top)
    return jnp.where(jnp.isfinite(top), top, 0.0)


def _check(table: np.ndarray, names: tuple[str, ...]) -> None:
    # Whole-table comparisons would take copies of it.
    low, high = table.min(axis=1, initial=0.0), table.max(axis=1, initial=0.0)
    if (wrong := ~(low >= 0) | ~np.isfinite(high)).any():
        name = names[int(np.flatnonzero(wrong)[0])]
        raise InputError(f"Folded: the likelihood of {name} is negative or not finite somewhere.")
