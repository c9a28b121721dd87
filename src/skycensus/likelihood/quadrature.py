r"""Objects known by a formula for log p(data | theta), integrated over theta one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..blocks import over_blocks
from ..density import Density, Population, leaves, logsumexp
from ..errors import InputError
from . import LogMarginal
from .coordinates import Coordinates, Place, Point
from .formula import LogLikelihood, Row, check_formula, check_objects, check_parameters
from .grid import Grid
from .leaves import draw_over_leaves, sum_over_leaves
from .placement import Placed, over_nodes, place
from .staging import stage

# Nodes per parameter; each count checks the one before.
_COUNTS = (6, 8, 12, 16, 24, 32, 48, 64, 96)
_MOST_NODES = 64

# Numbers per block: what is alive at a time stays near the processor, and a million objects with
# all their nodes never lie in memory at once.
_BLOCK_SIZE = {"cpu": 2**17}
_BLOCK_SIZE_ACCELERATOR = 2**23

# The local grid that draws are taken from: points per parameter, and its half-width in standard
# deviations. Its blocks are small because many draws are made at a time.
_DRAW_POINTS = {1: 65, 2: 49}
_DRAW_REACH = {1: 8.0, 2: 7.0}
_DRAW_BLOCK_SIZE = 2**15


class Quadrature(eqx.Module):
    r"""Objects whose likelihood is a formula, integrated by adaptive Gauss–Hermite quadrature:

    $$m_i = \int p(d_i|\theta)\,p(\theta)\,d\theta \approx |C_i| \sum_n W_n\,e^{x_n^2/2}\,
      f_i(\hat y_i + C_i x_n),\qquad
      f_i(y) = p(d_i|\theta)\,p(\theta)\,\left|\frac{d\theta}{dy}\right|,$$

    with nodes $x_n$ and weights $W_n$ of the weight $e^{-x^2/2}$ (Naylor & Smith 1982, Applied
    Statistics 31, 214). The coordinate y is unconstrained on the support of each of the
    population's factors, so that truncated populations are honoured. For every leaf of the
    population and every object, $\hat y_i$ is the maximum of $f_i$, sought from the best point of
    a scan over the population, and $C_i$ the inverse root of the curvature there; x is bent where
    the flanks of $f_i$ are unequal (see `placement`). Gradients take the nodes' y as constants:
    the integral does not depend on them. A second hill of $f_i$ that is as high as the first is
    not looked for; tabulate such objects (`Grid`).

    Args:
        log_likelihood: `log_likelihood(theta, data) -> scalar`, $\ln p(d_i|\theta)$ of ONE object:
            `theta` maps each parameter to a scalar, `data` maps each name to the object's own row.
            It is written with `jax.numpy` and twice differentiable in theta.
        data: name -> (num_objects, ...) measurements.
        names: names of the objects.
        given: known columns of the objects, name -> (num_objects,), which the population's
            conditional factors may depend on.
        num_nodes: nodes per parameter; one or two parameters can be integrated over.
        tolerance: goal for the error of the summed log marginals; see `error` and `finer`.

    Raises:
        InputError: data whose lengths differ or that are not finite; a formula that does not
            return one JAX scalar, or is NaN for some object wherever it is tried (named); and where
            it is used, a population over more than two parameters, without one of the formula's,
            or with a factor that is no continuous NumPyro distribution.
    """

    data: dict[str, Array]
    given: dict[str, Array]
    names: tuple[str, ...] = eqx.field(static=True)
    parameters: tuple[str, ...] = eqx.field(static=True)
    log_likelihood: LogLikelihood = eqx.field(static=True)
    num_nodes: int = eqx.field(static=True)
    tolerance: float = eqx.field(static=True)

    def __init__(
        self,
        log_likelihood: LogLikelihood,
        data: Mapping[str, Any],
        *,
        names: Sequence[str] | None = None,
        given: Mapping[str, Any] | None = None,
        num_nodes: int = 8,
        tolerance: float = 1e-6,
    ):
        if not 1 <= num_nodes <= _MOST_NODES:
            raise InputError(
                f"Quadrature: num_nodes={num_nodes} is not between 1 and {_MOST_NODES}; 8 suits "
                "most likelihoods."
            )
        if not tolerance > 0:
            raise InputError(f"Quadrature: tolerance={tolerance} is not positive; 1e-6 is usual.")
        (self.data, self.given), self.names = check_objects("Quadrature", data, given, names)
        self.parameters = check_formula("Quadrature", log_likelihood, self.data, self.names)
        self.log_likelihood = log_likelihood
        self.num_nodes = int(num_nodes)
        self.tolerance = float(tolerance)

    def log_marginal(self, density: Density) -> LogMarginal:
        """Integrate `density` against every object's likelihood; the variance is zero."""
        return self._log_marginal(density, self.num_nodes)

    def draw(self, density: Density, key: Any) -> dict[str, Array]:
        r"""One draw of every object's theta from $p(\theta_i|d_i)$ given the population.

        It inverts the cumulative distribution of y on a grid of a quarter of a standard deviation;
        a second parameter follows given the first.
        """
        return draw_over_leaves(
            density,
            key,
            lambda _, leaf: self._marginal(leaf, self.num_nodes),
            lambda _, leaf, k: self._draw(leaf, k),
        )

    def finer(self) -> Quadrature | None:
        """The same objects with the next larger number of nodes; None after the largest."""
        count = _more_nodes(self.num_nodes)
        return None if count > _MOST_NODES else self.with_nodes(count)

    def with_nodes(self, num: int) -> Quadrature:
        """The same objects with `num` nodes per parameter."""
        # A copy: the data were checked when they came.
        other = copy.copy(self)
        object.__setattr__(other, "num_nodes", num)
        return other

    def tabulated(self, population: Population, hyperparameters: Mapping[str, Any]) -> Grid | None:
        r"""The same objects as tables on nodes where this population has them, and more of them.

        Their log marginals for hyperparameters near these are those of this form, without a search
        for the nodes and without the formula. How near is near enough must be seen by comparing.
        None for a mixture, for objects with `given` columns, and where an object is impossible.
        """
        _, *more = jax.eval_shape(
            lambda h: [w for w, _ in leaves(population(h)).values()], hyperparameters
        )
        if more or self.given:
            return None
        tables = jax.jit(lambda h, form: form._tables(population(h)))
        nodes, table = tables(hyperparameters, self)
        if not bool(jnp.isfinite(table).any(axis=1).all()):
            return None
        return Grid(nodes, table, 0.0, names=self.names)

    def _tables(self, density: Density) -> tuple[dict[str, Array], Array]:
        """Nodes and their log likelihood times weight, (object, node)."""
        ((_, leaf),) = leaves(density).values()
        coordinates = self._coordinates(leaf)
        dim = len(coordinates.names)
        prepared = _prepare(self.log_likelihood, coordinates, self._rows())
        x, log_weight = _tensor_nodes(_more_nodes(self.num_nodes), dim)

        def block(rows: Row) -> tuple[dict[str, Array], Array]:
            placed = place(prepared.standard, dim, rows)
            values, size = _at(prepared, placed, _spread(x), rows)
            u, _ = placed.at(_spread(x))
            theta = over_nodes(lambda u, row: coordinates.at_standard(u, row.given).theta)(u, rows)
            table = values + jnp.log(size) + log_weight[:, None] - leaf.log_prob(theta)
            return {name: nodes.T for name, nodes in theta.items()}, table.T

        return over_blocks(block, self._rows(), _block_size() // max(len(log_weight), 32))

    def some(self, num: int) -> Quadrature:
        """`num` of the objects, evenly spread over them; all where there are no more."""
        index = np.unique(np.linspace(0, len(self.names) - 1, num).astype(int))
        other = copy.copy(self)
        names = type(self.names)(self.names[i] for i in index)
        object.__setattr__(other, "names", names)
        for part in ("data", "given"):
            columns = {name: x[index] for name, x in getattr(self, part).items()}
            object.__setattr__(other, part, columns)
        return other

    def error(self, density: Density) -> Array:
        r"""The sum over objects of $|\ln m_i' - \ln m_i|$, m' with the next larger node count.

        A bound on the error of the sum of log marginals, as far as m' is exact.
        """
        value = self._log_marginal(density, self.num_nodes).value
        finer = self._log_marginal(density, _more_nodes(self.num_nodes)).value
        # An impossible object has no error; what is NaN stays so.
        same = (value == -jnp.inf) & (finer == -jnp.inf)
        return jnp.sum(jnp.abs(jnp.where(same, 0.0, finer) - jnp.where(same, 0.0, value)))

    def _log_marginal(self, density: Density, num_nodes: int) -> LogMarginal:
        return sum_over_leaves(density, lambda _, leaf: self._marginal(leaf, num_nodes))

    def _marginal(self, leaf: Density, num_nodes: int) -> LogMarginal:
        coordinates = self._coordinates(leaf)
        dim = len(coordinates.names)
        prepared = _prepare(self.log_likelihood, coordinates, self._rows())
        x, log_weight = _tensor_nodes(num_nodes, dim)

        def integrate(placed: Placed, rows: Row) -> Array:
            values, size = _at(prepared, placed, _spread(x), rows)
            return _log_of_sum(values + log_weight[:, None], size)

        def block(rows: Row) -> Array:
            placed = jax.lax.stop_gradient(place(prepared.standard, dim, rows))
            # A gradient visits the nodes again rather than keep what was computed at each.
            return jax.checkpoint(integrate)(placed, rows)

        size = _block_size() // max(len(log_weight), 32)
        value = over_blocks(block, self._rows(), size)
        return LogMarginal(value, jnp.zeros_like(value))

    def _draw(self, leaf: Density, key: Any) -> dict[str, Array]:
        coordinates = self._coordinates(leaf)
        dim = len(coordinates.names)
        prepared = _prepare(self.log_likelihood, coordinates, self._rows())
        uniform = jax.random.uniform(key, (len(self.names), dim))
        x, log_weight = _tensor_nodes(max(self.num_nodes, 12), dim)
        grid = np.linspace(-_DRAW_REACH[dim], _DRAW_REACH[dim], _DRAW_POINTS[dim])

        def block(rows_and_uniform: tuple[Row, Array]) -> dict[str, Array]:
            rows, uniform = rows_and_uniform
            placed = place(prepared.standard, dim, rows)

            def values(x: Point) -> Array:
                value, size = _at(prepared, placed, x, rows)
                return value + jnp.log(size)

            weight = jax.nn.softmax(values(_spread(x)) + log_weight[:, None], axis=0)
            axes = [_axis_of(weight, column, grid) for column in x.T]
            if dim == 1:
                drawn: Point = (_invert(axes[0], values((axes[0],)), uniform[:, 0]),)
            else:
                drawn = _invert_both(axes, values, uniform)
            u, _ = placed.at(drawn)
            return jax.vmap(lambda u, row: coordinates.at_standard(u, row.given).theta)(u, rows)

        size = _DRAW_BLOCK_SIZE // len(grid) ** dim
        return over_blocks(block, (self._rows(), uniform), max(size, 1))

    def _rows(self) -> Row:
        return Row(self.data, self.given)

    def _coordinates(self, leaf: Density) -> Coordinates:
        coordinates = Coordinates(leaf)
        names = coordinates.names
        if len(names) > 2:
            raise InputError(
                f"Quadrature integrates over one or two parameters, but the population has "
                f"{list(names)}; keep them in the sampler (Latent) or tabulate (Grid)."
            )
        check_parameters("Quadrature", self.parameters, names)
        for name in self.given:
            if name in names:
                raise InputError(
                    f"Quadrature: '{name}' is given for every object, but the population has a "
                    "factor of it; leave one of them out."
                )
        return coordinates


# --- one object: scalars ----------------------------------------------------------------------


class _Prepared(NamedTuple):
    """Functions of one object: ln f_i(y); ln f_i(u) and u -> (y, ln|dy/du|) without gradient."""

    posterior: Callable[[Point, Row], Array]
    standard: Callable[[Point, Row], Array]
    locate: Callable[[Point, Row], tuple[Point, Array]]


def _prepare(log_likelihood: LogLikelihood, coordinates: Coordinates, rows: Row) -> _Prepared:
    """Make the functions, with what depends on the hyperparameters alone computed once.

    The hyperparameters of the last two are constants before anything is differentiated, so that
    a gradient does not follow the search for the nodes.
    """

    def value(at: Place, row: Row) -> Array:
        population = coordinates.density.log_prob({**row.given, **at.theta})
        return log_likelihood(at.theta, row.data) + population + at.log_det + at.log_scale

    def posterior(y: Point, row: Row) -> Array:
        return value(coordinates.at(y, row.given), row)

    def standard(u: Point, row: Row) -> Array:
        return value(coordinates.at_standard(u, row.given), row)

    def locate(u: Point, row: Row) -> tuple[Point, Array]:
        at = coordinates.at_standard(u, row.given)
        return at.y, at.log_scale

    example = (tuple(jnp.zeros(()) for _ in coordinates.names), jax.tree.map(lambda x: x[0], rows))

    def once(function: Callable[[Point, Row], Any], still: bool) -> Callable[[Point, Row], Any]:
        staged = stage(lambda _, data: function(*data), (), example)
        values = staged.parameters(())
        values = jax.lax.stop_gradient(values) if still else values
        return lambda u, row: staged.combine(values, staged.columns((u, row)))

    return _Prepared(once(posterior, False), once(standard, True), once(locate, True))


# --- blocks of objects: (node, object) --------------------------------------------------------


def _at(prepared: _Prepared, placed: Placed, x: Point, rows: Row) -> tuple[Array, Array]:
    """ln f_i(u) and |du/dx| at whitened points x, arrays that broadcast to (node, object)."""
    shape = (len(x[0]), len(placed.size))
    u, size = placed.at(x)
    u = tuple(jnp.broadcast_to(z, shape) for z in u)
    y, log_scale = over_nodes(prepared.locate)(u, rows)
    return over_nodes(prepared.posterior)(y, rows) + log_scale, jnp.broadcast_to(size, shape)


def _log_of_sum(values: Array, size: Array) -> Array:
    """Log of the sum of size e^values over the nodes; -inf, with no gradient, for nothing."""
    top = jax.lax.stop_gradient(jnp.max(values, axis=0))
    top = jnp.where(top == -jnp.inf, 0.0, top)
    total = jnp.sum(size * jnp.exp(values - top), axis=0)
    empty = total == 0
    return jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, total)) + top)


def _spread(x: np.ndarray) -> Point:
    """Nodes (node, dim) as columns for each dimension."""
    return tuple(jnp.asarray(column)[:, None] for column in x.T)


def _tensor_nodes(count: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Whitened nodes (node, dim) and the log weights of $\int f\,dx \approx \sum_n W_n f(x_n)$."""
    x, weight = np.polynomial.hermite_e.hermegauss(count)
    log_weight = np.log(weight) + 0.5 * x**2
    nodes = np.stack([g.ravel() for g in np.meshgrid(*[x] * dim, indexing="ij")], -1)
    weights = sum(np.meshgrid(*[log_weight] * dim, indexing="ij"))
    return nodes, np.ravel(weights)


def _more_nodes(count: int) -> int:
    return next(c for c in _COUNTS if c > count)


def _block_size() -> int:
    return _BLOCK_SIZE.get(jax.default_backend(), _BLOCK_SIZE_ACCELERATOR)


# --- draws ------------------------------------------------------------------------------------


def _axis_of(weight: Array, x: np.ndarray, grid: np.ndarray) -> Array:
    """Grid (point, object) around the mean, in units of the standard deviation."""
    column = jnp.asarray(x)[:, None]
    mean = jnp.sum(weight * column, axis=0)
    variance = jnp.sum(weight * (column - mean) ** 2, axis=0)
    return mean + jnp.sqrt(jnp.clip(variance, 0.01, 100.0)) * jnp.asarray(grid)[:, None]


def _invert(axis: Array, log_density: Array, uniform: Array) -> Array:
    """Where the cumulative of a density known at points (point, object) is `uniform`.

    The masses between the points are of third order; there the density rises or falls evenly.
    """
    top = jnp.max(log_density, axis=0)
    # An impossible object has no posterior; it is drawn evenly.
    p = jnp.exp(jnp.where(top == -jnp.inf, 0.0, log_density - top))
    even = 0.5 * (p[1:] + p[:-1])
    # Through the next points on both sides too; not across an edge, where it would overshoot.
    mass = even.at[1:-1].add((p[1:-2] + p[2:-1] - p[:-3] - p[3:]) / 24.0)
    mass = jnp.clip(mass, 0.5 * even, 1.5 * even)
    cumulative = jnp.cumsum(mass, axis=0)
    goal = uniform * cumulative[-1]
    cell = jnp.sum(cumulative[:-1] <= goal, axis=0)[None]

    def of_cell(x: Array) -> Array:
        return jnp.take_along_axis(x, cell, 0)

    before = jnp.where(cell > 0, jnp.take_along_axis(cumulative, jnp.maximum(cell - 1, 0), 0), 0.0)
    low, high = of_cell(p), jnp.take_along_axis(p, cell + 1, 0)
    share = (goal - before) / jnp.where(of_cell(mass) > 0, of_cell(mass), 1.0)
    # low t + (high - low) t^2/2 = share of the whole cell, solved without cancellation.
    rest = share * of_cell(even)
    root = low + jnp.sqrt(jnp.maximum(low**2 + 2.0 * (high - low) * rest, 0.0))
    part = jnp.clip(2.0 * rest / jnp.where(root > 0, root, 1.0), 0.0, 1.0)
    return (of_cell(axis) + part * (axis[1] - axis[0]))[0]


def _invert_both(axes: Sequence[Array], values: Callable[[Point], Array], uniform: Array) -> Point:
    """The first coordinate from its marginal, the second given the first."""
    first, second = axes
    points, objects = first.shape
    shape = (points, points, objects)
    table = values(
        tuple(
            jnp.broadcast_to(a, shape).reshape(-1, objects)
            for a in (first[:, None, :], second[None, :, :])
        )
    ).reshape(shape)
    one = _invert(first, logsumexp(table, axis=1), uniform[:, 0])
    other = _invert(second, values((jnp.broadcast_to(one, second.shape), second)), uniform[:, 1])
    return one, other
