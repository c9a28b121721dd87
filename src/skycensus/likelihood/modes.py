r"""Whether a chain has been where an object's posterior is: modes visited, by their probability."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..density import Population
from ..errors import InputError
from .grid import Grid
from .linear_grid import LinearGrid


def mode_coverage(
    form: Grid | LinearGrid,
    population: Population,
    hyperparameters: Mapping[str, Any],
    visited: Mapping[str, Any],
    *,
    reach: float = 12.0,
) -> np.ndarray:
    r"""The exact posterior probability of the surroundings of what a chain visited, (num_objects,).

    $$c_i = \Big\langle \sum_{n \in V_i} P(n \mid d_i, \Lambda) \Big\rangle_\Lambda,$$

    with the probabilities of the form's nodes, averaged over draws of the hyperparameters, and
    $V_i$ the nodes within `reach` cells of any visited value. It is one for a chain that was in
    every mode that matters and small for one that sat in a wrong mode all the time, which no r_hat
    of the hyperparameters shows. A joint run has converged only if no $c_i$ is small.

    Args:
        form: with nodes in the parameter, and their spacing.
        population: hyperparameters -> density.
        hyperparameters: name -> (num_draws,), from the exact posterior or from the chain.
        visited: one parameter's name -> (num_visited, num_objects) values of the chain.
        reach: in cells; with two cells to a standard deviation, twelve are six of them.

    Raises:
        InputError: not one parameter, without nodes and spacing, or of another number of objects.
    """
    grid = form.grid if isinstance(form, LinearGrid) else form
    num = len(form.names)
    if len(visited) != 1 or (name := next(iter(visited))) not in grid.spacing:
        raise InputError(
            f"mode_coverage: visited has {sorted(visited)}; give one parameter of those that have "
            f"nodes and spacing: {sorted(grid.spacing)}."
        )
    values = np.sort(np.asarray(visited[name], float), axis=0)
    if values.ndim != 2 or values.shape[1] != num or not np.isfinite(values).all():
        raise InputError(
            f"mode_coverage: visited '{name}' has shape {values.shape}; give finite numbers, "
            f"(draws, {num})."
        )
    owner = np.arange(num) if grid.owner is None else np.asarray(grid.owner)
    nodes, width = (
        np.broadcast_to(np.asarray(x[name]), grid.table.shape) for x in (grid.nodes, grid.spacing)
    )
    near = np.empty(grid.table.shape, bool)
    for i in range(num):
        rows, own = owner == i, values[:, i]
        place = np.searchsorted(own, nodes[rows])
        left = np.abs(nodes[rows] - own[np.maximum(place - 1, 0)])
        right = np.abs(nodes[rows] - own[np.minimum(place, len(own) - 1)])
        near[rows] = np.minimum(left, right) <= reach * width[rows]

    def covered(point: Mapping[str, Any]) -> Any:
        mass = form.log_mass(population(point))
        top = jax.ops.segment_max(jnp.max(mass, axis=1), owner, num)
        share = jnp.exp(mass - top[owner][:, None])
        total = jax.ops.segment_sum(jnp.sum(share, axis=1), owner, num)
        seen = jax.ops.segment_sum(jnp.sum(share * near, axis=1), owner, num)
        return seen / total

    points = {key: jnp.asarray(x, float) for key, x in hyperparameters.items()}
    return np.asarray(jnp.mean(jax.jit(lambda p: jax.lax.map(covered, p))(points), axis=0))
