r"""Objects linear in some parameters and not in others: closed form on a grid of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Literal

from ..blocks import in_blocks
from ..density import Density, Joint, Population, leaves
from ..errors import InputError, did_you_mean
from . import LogMarginal
from .gaussian import (
    Normals,
    Reduced,
    conditional_draw,
    joint_factors,
    known_columns,
    log_evidence,
    normals,
    object_names,
    reduce_rows,
)
from .grid import Grid
from .leaves import draw_over_leaves, sum_over_leaves

Design = Callable[[Mapping[str, Array], Mapping[str, Array]], Array]
"""(nonlinear parameters, one object's columns (m,)) -> design matrix (m, k), or noise (m,)."""

# Objects times nodes times rows of data that are reduced at a time.
_REDUCE_SIZE = 2**18

_NAME = "LinearGrid"


class LinearGrid(eqx.Module):
    r"""Objects with a linear part $\theta$ and nodes in the others, $\phi$:
    $y_i = A_i(\phi)\,\theta + n_i$ with independent Gaussian noise, and

    $$m_i = \sum_n W_{in}\, p(\phi_{in})\, \int \mathcal N(y_i|A_i(\phi_{in})\theta, \sigma_i^2)\,
          \mathcal N(\theta|\mu, V)\,d\theta.$$

    $\mu$ and V, and so the inner integral (see `Gaussian`), may depend on the hyperparameters, on
    $\phi$ and on known columns. Where no hyperparameter enters them, it is tabulated once.

    Args:
        design: function of the nonlinear parameters (scalars by name) and one object's columns
            (name -> (m,)) that returns the design matrix (m, k).
        data: list of (m_i,) arrays, or (num_objects, m).
        noise: standard deviations shaped like `data`; or a function like `design` that returns
            them, (m,).
        columns: name -> list of (m_i,) arrays: what the functions need to know of each datum.
        nodes: nonlinear parameter -> list of (N_i,) arrays, or (num_objects, N).
        log_weight: likewise, log quadrature weights in the measure of all the nonlinear parameters
            that the population is a density of.
        parameters: names of the linear parameters, the columns of the design.
        names: of the objects.
        given: known columns, name -> (num_objects,), that the population may depend on.
        spacing: name -> widths of the nodes' cells, shaped like nodes, for draws; see `Grid`.

    A parameter that has nodes but no factor in the population has its prior in the weights.
    The variance is zero. Build it in 64-bit: phases of many cycles need the digits.

    Raises:
        InputError: shapes that do not fit, values that are not finite or noise that is not positive
            (the object and row are named), a function that returns another shape or is not finite;
            and where it is used, a population that is not Gaussian in the linear parameters, or
            that asks for a parameter without nodes.
    """

    rows: Reduced  # (k, k, n, N), (k, n, N), (n, N); the last with the log weights
    grid: Grid  # of the log weights
    data: dict[str, Any]
    given: dict[str, Array]
    design: Design = eqx.field(static=True)
    noise: Design | None = eqx.field(static=True)
    parameters: tuple[str, ...] = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        design: Design,
        data: Any,
        noise: Any,
        *,
        columns: Mapping[str, Any],
        nodes: Mapping[str, Any],
        log_weight: Any,
        parameters: Sequence[str],
        names: Sequence[str] | None = None,
        given: Mapping[str, Any] | None = None,
        spacing: Mapping[str, Any] | None = None,
    ):
        self.names = object_names(_NAME, names, len(data))
        self.parameters = tuple(parameters)
        self.given = known_columns(_NAME, given, self.names)
        self.design, self.noise = design, noise if callable(noise) else None
        self.data = _padded(data, None if callable(noise) else noise, columns, self.names)
        owner, folded = _folded(self.names, nodes, log_weight, spacing or {})
        weight = folded.pop("weight")[""]
        # The grid's own checks of nodes, weights and widths.
        self.grid = Grid(
            folded["nodes"], np.zeros_like(weight), weight, names=self.names, owner=owner,
            spacing=folded["spacing"],
        )  # fmt: skip
        rows = _reduce_all(self)
        self.rows = rows._replace(log_norm=rows.log_norm + self.grid.table)

    @property
    def nodes(self) -> dict[str, Array]:
        """Nonlinear parameter -> (num_rows, nodes of a row); see `grid.owner`."""
        return self.grid.nodes

    def log_marginal(self, density: Density) -> LogMarginal:
        """Integrate `density` against every object's likelihood; see the class."""
        return sum_over_leaves(density, self._marginal)

    def draw(self, density: Density, key: Any) -> dict[str, Array]:
        """One draw of every object's parameters.

        A node by its probability, spread within its cell, and the linear parameters from their
        conditional Gaussian at the very point that was drawn, not at the node.
        """
        return draw_over_leaves(density, key, self._marginal, self._draw)

    def integrated(self, density: Density) -> Grid:
        """The `Grid` in the nonlinear parameters that the Gaussian factors of `density` leave."""
        linear, _ = self._split(density)
        return self._grid(self._evidence(linear))

    def log_mass(self, density: Density) -> Array:
        """Log of weight times posterior density of every node, shaped like `nodes`."""
        total = jnp.full(self.rows.log_norm.shape, -jnp.inf)
        for weight, leaf in leaves(density).values():
            total = jnp.logaddexp(total, self._leaf_mass(leaf) + weight)
        return total

    def stage(self, population: Population, hyperparameters: Mapping[str, Any]) -> Any:
        """Prepare for many evaluations: tabulate what no hyperparameter enters."""
        example = {name: jnp.asarray(x, float) for name, x in hyperparameters.items()}

        def linear(h: Mapping[str, Any]) -> dict[str, Normals]:
            tree = leaves(population(h))
            return {path: self._normals(self._split(leaf)[0]) for path, (_, leaf) in tree.items()}

        grids = None
        if not _depends(linear, example):
            grids = {p: self._grid(log_evidence(self.rows, x)) for p, x in linear(example).items()}
        return _Staged(self, grids, population)

    def _marginal(self, path: str, leaf: Density) -> LogMarginal:
        del path
        linear, others = self._split(leaf)
        return self._grid(self._evidence(linear)).log_marginal(self._completed(others))

    def _grid(self, table: Array) -> Grid:
        return eqx.tree_at(lambda g: g.table, self.grid, table)

    def _leaf_mass(self, leaf: Density) -> Array:
        linear, others = self._split(leaf)
        return self._evidence(linear) + self._completed(others).log_prob(self.nodes)

    def _draw(self, path: str, leaf: Density, key: Any) -> dict[str, Array]:
        del path
        cell_key, linear_key = jax.random.split(key)
        theta = self.grid.draw_by_mass(self._leaf_mass(leaf), cell_key)
        design, data, _ = jax.vmap(self.whitened)(theta, self.data)
        rows = reduce_rows(design, data, 0)
        seen = {**self.given, **theta}
        population = normals(self._split(leaf)[0], self.parameters, seen, _NAME)
        drawn = conditional_draw(rows, population, linear_key)
        return {**dict(zip(self.parameters, drawn, strict=True)), **theta}

    def _evidence(self, linear: Mapping[Any, Any]) -> Array:
        return log_evidence(self.rows, self._normals(linear))

    def _normals(self, linear: Mapping[Any, Any]) -> Normals:
        seen = {**self._known(), **self.nodes}
        return normals(linear, self.parameters, seen, _NAME)

    def _known(self) -> dict[str, Array]:
        """The known columns for every row of nodes."""
        return {name: x[self.grid.owner][:, None] for name, x in self.given.items()}

    def _split(self, leaf: Density) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """The factors of a leaf over linear parameters, and those over nonlinear ones."""
        linear, others = {}, {}
        for key, factor in joint_factors(leaf, _NAME).items():
            names = key if isinstance(key, tuple) else (key,)
            inside = [name in self.parameters for name in names]
            if all(inside):
                linear[key] = factor
                continue
            if any(inside):
                raise InputError(
                    f"{_NAME}: the factor of {key!r} joins linear and nonlinear parameters; make "
                    "it two factors, of which the linear one may depend on the nonlinear ones."
                )
            for name in names:
                if name not in self.nodes:
                    raise InputError(
                        f"{_NAME}: the population has a factor of '{name}'"
                        f"{did_you_mean(name, (*self.nodes, *self.parameters))}, which is neither "
                        f"linear ({', '.join(self.parameters)}) nor on the grid "
                        f"({', '.join(self.nodes)})."
                    )
            others[key] = factor
        return linear, others

    def _completed(self, others: dict[Any, Any]) -> Any:
        return _Completed(Joint(others) if others else None, self._known())

    def whitened(self, theta: Mapping[str, Array], data: Mapping[str, Any]) -> tuple[Array, ...]:
        r"""Design and data of one object at one point in units of the noise, and their log norm."""
        design = jnp.asarray(self.design(theta, data["columns"]))
        if design.shape != (*data["y"].shape, len(self.parameters)):
            raise InputError(
                f"{_NAME}: design returned shape {design.shape}; for {data['y'].shape[0]} data and "
                f"the parameters {', '.join(self.parameters)} it must be "
                f"{(*data['y'].shape, len(self.parameters))}."
            )
        noise = data["noise"]
        if self.noise is not None:
            noise = self.noise(theta, data["columns"])
            if np.shape(noise) != data["y"].shape:
                raise InputError(
                    f"{_NAME}: noise returned shape {np.shape(noise)}; it must be "
                    f"{data['y'].shape}, one standard deviation per datum."
                )
        noise = jnp.where(data["used"], noise, 1.0)
        unit = jnp.where(data["used"], 1.0 / noise, 0.0)
        log_norm = -0.5 * jnp.log(2 * jnp.pi) - jnp.log(noise)
        log_norm = jnp.sum(jnp.where(data["used"], log_norm, 0.0))
        return design * unit[:, None], data["y"] * unit, log_norm


class _Completed:
    """A density of nodes that also sees the objects' known columns."""

    def __init__(self, joint: Any, given: Mapping[str, Array]):
        self.joint, self.given = joint, given

    def log_prob(self, theta: Mapping[str, Array]) -> Array:
        if self.joint is None:
            return jnp.zeros(())
        return self.joint.log_prob({**self.given, **theta})


class _Staged(eqx.Module):
    """A `LinearGrid` prepared for one population; `grids` by leaf where they are fixed."""

    form: LinearGrid
    grids: dict[str, Grid] | None
    population: Population = eqx.field(static=True)

    def log_marginal(self, hyperparameters: Mapping[str, Any]) -> LogMarginal:
        density = self.population(hyperparameters)
        if self.grids is None:
            return self.form.log_marginal(density)
        grids = self.grids

        def marginal(path: str, leaf: Density) -> LogMarginal:
            return grids[path].log_marginal(self.form._completed(self.form._split(leaf)[1]))

        return sum_over_leaves(density, marginal)


def _reduce_all(form: LinearGrid) -> Reduced:
    """Reduce every object at every node, some rows of nodes at a time."""
    num, size = form.grid.table.shape
    owner = np.asarray(form.grid.owner)
    batch = min(num, max(1, _REDUCE_SIZE // (size * form.data["y"].shape[1])))

    def some(block: dict[str, np.ndarray]) -> Any:
        index = block.pop("")
        return _reduced_rows(form.whitened, block, form.data, index)

    rows, finite = in_blocks(some, {**form.nodes, "": owner}, batch)
    for what, is_finite in finite.items():
        if not is_finite.all():
            bad = form.names[owner[np.argmin(is_finite)]]
            raise InputError(f"{_NAME}: {what} of {bad} is not finite at some node.")
    return Reduced(*(jnp.asarray(np.moveaxis(x, 0, -2)) for x in rows))


@eqx.filter_jit
def _reduced_rows(whitened: Any, nodes: Any, data: Any, owner: Any) -> Any:
    """Rows of nodes reduced, rows first; and whether all is finite, what -> (row,)."""

    def one(theta: Any, index: Array) -> Any:
        own = jax.tree.map(lambda x: x[index], data)
        return jax.vmap(lambda point: whitened(point, own))(theta)

    design, y, norm = jax.vmap(one)(nodes, owner)
    finite = {
        "design": jnp.isfinite(design).all(axis=(1, 2, 3)),
        "noise": jnp.isfinite(norm).all(axis=1),
    }
    rows = reduce_rows(design, y, 0)
    rows = rows._replace(log_norm=rows.log_norm + norm)
    return tuple(jnp.moveaxis(x, -2, 0) for x in rows), finite


def _folded(
    names: tuple[str, ...],
    nodes: Mapping[str, Any],
    log_weight: Any,
    spacing: Mapping[str, Any],
) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
    """Ragged nodes in rows of one length: the rows' objects, and nodes, weight and spacing."""
    if len(log_weight) != len(names):
        raise InputError(
            f"{_NAME}: log_weight of {len(log_weight)} objects, but {len(names)} have data."
        )
    counts = np.array([np.size(x) for x in log_weight])
    if not counts.all():
        raise InputError(f"{_NAME}: {names[int(np.argmin(counts))]} has no nodes.")
    # The least padding, where a row costs something of its own.
    length = min((2**i for i in range(3, 12)), key=lambda n: int(np.sum(-(-counts // n) * (n + 4))))
    length = min(length, int(counts.max()))
    rows = -(-counts // length)
    owner = np.repeat(np.arange(len(names)), rows)
    used = (np.arange(rows.sum() * length)).reshape(-1, length)
    start = (np.cumsum(rows) - rows)[owner] * length
    used = used - start[:, None] < counts[owner][:, None]

    def fold(what: str, values: Any, fill: float | None) -> np.ndarray:
        sizes = np.array([np.size(x) for x in values])
        if len(sizes) != len(counts) or (sizes != counts).any():
            bad = names[int(np.argmax(sizes != counts))] if len(sizes) == len(counts) else "all"
            raise InputError(f"{_NAME}: {what} and log_weight have different lengths ({bad}).")
        flat = np.concatenate([np.asarray(x, float).reshape(-1) for x in values])
        out = np.zeros(used.shape)
        out[used] = flat
        # A true node, as good as any without weight.
        filler = flat[np.cumsum(counts) - 1][owner] if fill is None else np.full(len(owner), fill)
        return np.where(used, out, filler[:, None])

    return owner, {
        "nodes": {k: fold(f"nodes of '{k}'", x, None) for k, x in nodes.items()},
        "spacing": {k: fold(f"spacing of '{k}'", x, None) for k, x in spacing.items()},
        "weight": {"": fold("log_weight", log_weight, -np.inf)},
    }


def _depends(function: Callable[[Any], Any], example: Any) -> bool:
    """Whether any output of `function` follows from its input, by its traced program."""
    jaxpr = jax.make_jaxpr(function)(example).jaxpr
    reached = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if any(not isinstance(v, Literal) and v in reached for v in equation.invars):
            reached.update(equation.outvars)
    return any(not isinstance(v, Literal) and v in reached for v in jaxpr.outvars)


def _padded(
    data: Any, noise: Any, columns: Mapping[str, Any], names: tuple[str, ...]
) -> dict[str, Any]:
    """Ragged rows as rectangular arrays; `used` says which are true."""
    counts = np.array([np.size(y) for y in data])
    if not counts.all():
        raise InputError(f"{names[int(np.argmin(counts))]} has no data; leave it out.")
    used = np.arange(counts.max()) < counts[:, None]

    def fill(what: str, rows: Any) -> Array:
        if len(rows) != len(names):
            raise InputError(f"{_NAME}: {what} of {len(rows)} objects, but {len(names)} have data.")
        out = np.zeros(used.shape)
        for i, row in enumerate(rows):
            x = np.asarray(row, float).reshape(-1)
            if x.size != counts[i]:
                raise InputError(f"{names[i]}: {counts[i]} data but {x.size} values of {what}.")
            if bad := np.flatnonzero(~np.isfinite(x)).tolist():
                raise InputError(f"{names[i]}: {what} is not finite in row {bad[0]}.")
            out[i, : counts[i]] = x
            # Filled up with a true row: whatever a function makes of it is finite.
            out[i, counts[i] :] = x[0]
        return jnp.asarray(out)

    sigma = None if noise is None else fill("noise", noise)
    if sigma is not None and (low := np.asarray(sigma) <= 0).any():
        i = int(np.flatnonzero(low.any(axis=1))[0])
        raise InputError(
            f"{names[i]}: a standard deviation of {float(sigma[i].min()):g} is not positive."
        )
    return {
        "y": fill("data", data),
        "noise": sigma,
        "used": jnp.asarray(used),
        "columns": {name: fill(f"column '{name}'", rows) for name, rows in columns.items()},
    }
