r"""Objects known by a table over one parameter, summed as a product of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..density import Density
from ..errors import InputError
from . import Likelihood, LogMarginal
from .formula import ObjectNames


class Hats(eqx.Module):
    r"""The hat functions $h_j(x)$ of nodes that are evenly spaced in $\ln x$, linear in $\ln x$.

    Args:
        name: of the parameter x.
        nodes: (num_nodes,) positive.
        refine: finer nodes between two nodes, on which a density is integrated.

    Raises:
        InputError: nodes that are not as above.
    """

    fine: Array
    log_width: Array
    name: str = eqx.field(static=True)
    refine: int = eqx.field(static=True)

    def __init__(self, name: str, nodes: np.ndarray, refine: int = 8):
        step = np.diff(np.log(nodes)) if (nodes > 0).all() else np.zeros(1)
        if not (step[0] > 0 and np.allclose(step, step[0], rtol=1e-6)):
            raise InputError(f"Folded: nodes of '{name}' must rise evenly in the logarithm.")
        self.name, self.refine = name, refine
        num_fine = (len(nodes) - 1) * refine + 1
        fine = np.geomspace(nodes[0], nodes[-1], num_fine)
        self.fine = jnp.asarray(fine)
        width = fine * step[0] / refine
        # The ends have half a cell.
        width[[0, -1]] *= 0.5
        self.log_width = jnp.asarray(np.log(width))

    def masses(self, density: Density) -> tuple[Array, Array]:
        r"""(num_nodes,) $\int p(x) h_j(x)\,dx$ over $e^{top}$; and that top."""
        log_p = density.log_prob({self.name: self.fine}) + self.log_width
        top = jax.lax.stop_gradient(jnp.max(log_p))
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        p = jnp.exp(log_p - top)
        rise = np.arange(self.refine) / self.refine
        # What a cell's values give to the hats of its two ends.
        both = p[:-1].reshape(-1, self.refine) @ jnp.asarray(np.stack([1.0 - rise, rise], axis=1))
        last = jnp.zeros((1,), p.dtype)
        left, right = jnp.append(both[:, 0], p[-1:]), jnp.concatenate([last, both[:, 1]])
        return left + right, top

    def draw(self, node: Array, key: Any) -> Array:
        """A value of x from the hat function of every `node`, (num_objects,)."""
        nodes = jnp.log(self.fine[:: self.refine])
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
        self.table = jnp.asarray(table / top[:, None])
        self.log_scale = jnp.log(jnp.asarray(top))

    def log_marginal(self, density: Density) -> LogMarginal:
        """Integrate `density` against every object's table."""
        mass, top = self.hats.masses(density)
        total = self.table @ mass.astype(self.table.dtype)
        # A gradient of zero where nothing is, as in every form.
        empty = total == 0
        value = jnp.log(jnp.where(empty, 1.0, total)) + self.log_scale + top
        value = jnp.where(empty, -jnp.inf, value)
        return LogMarginal(value, jnp.zeros_like(value))

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

    def draw(self, density: Density, key: Any) -> dict[str, Array]:
        """One draw of every object's theta."""
        return self.form.draw(density, key)


def _check(table: np.ndarray, names: tuple[str, ...]) -> None:
    # Whole-table comparisons would take copies of it.
    low, high = table.min(axis=1, initial=0.0), table.max(axis=1, initial=0.0)
    if (wrong := ~(low >= 0) | ~np.isfinite(high)).any():
        name = names[int(np.flatnonzero(wrong)[0])]
        raise InputError(f"Folded: the likelihood of {name} is negative or not finite somewhere.")
