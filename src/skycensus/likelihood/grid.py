r"""Objects known by a table of log p(d | theta) on nodes with quadrature weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..density import Density
from ..errors import InputError
from . import LogMarginal
from .samples import log_sums


class Grid(eqx.Module):
    r"""Objects whose likelihood is tabulated on nodes with quadrature weights $W_n$:

    $$\ln m_i = \ln \sum_n W_n\, p(d_i|\theta_n)\, p(\theta_n).$$

    Args:
        nodes: parameter name -> (num_nodes,) values shared by all objects, or (num_objects,
            num_nodes) where each object has its own.
        log_likelihood: (num_objects, num_nodes) table of $\ln p(d_i|\theta_n)$, maybe $-\infty$.
        log_weight: log quadrature weights, broadcastable to the table.
        names: names of the objects.

    The variance is zero: a quadrature has no Monte Carlo error. Where the nodes are shared, the
    density is evaluated once for all objects.

    Raises:
        InputError: shapes that do not fit, nodes that are not finite, NaN or $+\infty$ in the table
            or the weights, or an object whose whole row is $-\infty$ (named).
    """

    nodes: dict[str, Array]
    table: Array
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        nodes: Mapping[str, Any],
        log_likelihood: Any,
        log_weight: Any,
        *,
        names: Sequence[str] | None = None,
    ):
        table = np.asarray(log_likelihood, float)
        if table.ndim != 2:
            raise InputError(
                f"Grid: log_likelihood must be objects x nodes; got shape {table.shape}."
            )
        self.names = (
            tuple(names) if names is not None else tuple(f"object {i}" for i in range(len(table)))
        )
        if len(self.names) != len(table):
            raise InputError(f"Grid: {len(table)} objects but {len(self.names)} names.")
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
        for name, row in zip(self.names, table, strict=True):
            if np.isnan(row).any() or np.isposinf(row).any():
                raise InputError(f"Grid: log_likelihood of {name} is NaN or +inf at some node.")
            if not np.isfinite(row).any():
                raise InputError(
                    f"Grid: log_likelihood of {name} is -inf everywhere; widen the nodes."
                )
        own = any(np.ndim(v) == 2 for v in nodes.values())
        shape = table.shape if own else table.shape[1:]
        self.nodes = {k: jnp.asarray(np.broadcast_to(v, shape), float) for k, v in nodes.items()}
        self.table = jnp.asarray(table + weight)

    def log_marginal(self, density: Density) -> LogMarginal:
        """Integrate `density` against every object's table."""
        # The same sum as a Monte Carlo one, with the table in place of a reference density.
        value, _ = log_sums([density.log_prob(self.nodes)], -self.table, squares=False)
        return LogMarginal(value, jnp.zeros_like(value))
