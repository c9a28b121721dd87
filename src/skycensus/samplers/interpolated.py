r"""Independent draws from a density that is known on a lattice."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import make_interp_spline
from scipy.ndimage import distance_transform_edt

from .lattice import Lattice

# Cells of the fine grid, narrow enough that their width adds little to the posterior's.
_NUM_CELLS = {1: 2**13, 2: 2**16, 3: 2**18}
# Log density below the highest of points that have none.
_FLOOR = 50.0


class Interpolated:
    r"""The density on a lattice, carried to fine cells around it.

    What the log density has beyond a Gaussian of the same moments is interpolated by splines of
    fifth order.

    Attributes:
        edges: of the cells, one array for each coordinate, in units of the lattice's scale.
        log_mass: (cell, ...), relative to the highest log density of the lattice.
    """

    def __init__(self, lattice: Lattice):
        self.lattice = lattice
        axes, table = _residual(lattice)
        each = round(_NUM_CELLS[lattice.dim] ** (1 / lattice.dim))
        unit = _spacing(lattice)
        # Splines overshoot where a density has jumps.
        jumps = bool(np.any(lattice.log_density < lattice.high - _FLOOR))
        edges = [np.linspace(a[0] - 0.5, a[-1] + 0.5, each + 1) for a in axes]
        for i, (axis, edge) in enumerate(zip(axes, edges, strict=True)):
            order = 1 if jumps else min(5, len(axis) - 1)
            spline = make_interp_spline(axis, table, k=order - (order % 2 == 0), axis=i)
            # Beyond the outermost points, half a spacing of constant.
            table = spline(np.clip(0.5 * (edge[1:] + edge[:-1]), axis[0], axis[-1]))
        self.edges = [unit * edge for edge in edges]
        self.log_mass = table + _log_gaussian(
            np.stack(np.meshgrid(*self._middle, indexing="ij"), axis=-1), *lattice.moments()
        )

    @property
    def _middle(self) -> list[np.ndarray]:
        return [0.5 * (edge[1:] + edge[:-1]) for edge in self.edges]

    def draw(self, num: int, rng: np.random.Generator) -> np.ndarray:
        r"""`num` points (num, dim), stratified, with exactly the lattice's mean and covariance.

        Cells are chosen coordinate after coordinate, each given those before it, by inverting
        cumulative sums at points that cover the unit cube evenly. What little their moments
        still differ from the lattice's, which are better known, is taken out by an affine map.
        """
        cells, share = self._cells(num, rng)
        edges = zip(self.edges, cells.T, share.T, strict=True)
        z = np.stack([e[c] + s * np.diff(e)[c] for e, c, s in edges], axis=-1)
        mean, covariance = self.lattice.moments()
        if num > 10 * z.shape[1]:
            now = np.cov(z.T, ddof=0).reshape(covariance.shape)
            whitened = np.linalg.solve(np.linalg.cholesky(now), (z - z.mean(axis=0)).T)
            z = mean + whitened.T @ np.linalg.cholesky(covariance).T
        return self._points(z[rng.permutation(num)])

    def trials(self, num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Points (num, dim) to ask the density at, and what is thought of its logarithm there."""
        cells, _ = self._cells(num, rng)
        z = np.stack([m[c] for m, c in zip(self._middle, cells.T, strict=True)], axis=-1)
        return self._points(z), self.log_mass[tuple(cells.T)] + self.lattice.high

    def _points(self, z: np.ndarray) -> np.ndarray:
        return self.lattice.center + z @ self.lattice.scale.T

    def _cells(self, num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Cells chosen by their mass, and where in them, in [0, 1]; both (num, dim)."""
        mass = np.exp(self.log_mass - self.log_mass.max())
        u = _even_points(rng, num, mass.ndim)
        cells, share = np.empty(u.shape, int), np.empty_like(u)
        row = np.zeros(num, int)  # of those that share the coordinates before
        for i, size in enumerate(mass.shape):
            rows = mass.reshape(-1, size, int(np.prod(mass.shape[i + 1 :]))).sum(axis=2)
            total = np.cumsum(np.pad(rows, ((0, 0), (1, 0))), axis=1)
            total /= np.maximum(total[:, -1:], 1e-300)
            # Row after row, each lifted above the last, is one sorted list.
            lifted = (total[:, 1:] + np.arange(len(rows))[:, None]).ravel()
            found = np.searchsorted(lifted, row + u[:, i], side="right") - row * size
            cells[:, i] = cell = np.clip(found, 0, size - 1)
            low, high = total[row, cell], total[row, cell + 1]
            share[:, i] = np.clip((u[:, i] - low) / np.maximum(high - low, 1e-300), 0.0, 1.0)
            row = row * size + cell
        return cells, share


def _spacing(lattice: Lattice) -> float:
    """Of the points that make a grid: all, or those without the centres of cells."""
    return lattice.unit * (2.0 if lattice.centred else 1.0)


def _residual(lattice: Lattice) -> tuple[list[np.ndarray], np.ndarray]:
    """Axes in units of the spacing, and log density less the Gaussian's on their product."""
    keep = np.all(lattice.n % 2 == 0, axis=1) if lattice.centred else np.full(len(lattice.n), True)
    n = lattice.n[keep] // (2 if lattice.centred else 1)
    spacing = _spacing(lattice)
    log_density = np.maximum(lattice.log_density[keep] - lattice.high, -_FLOOR)
    low, shape = n.min(axis=0), tuple(np.ptp(n, axis=0) + 1)
    table = np.full(shape, np.nan)
    table[tuple((n - low).T)] = log_density
    # Points that were not worth an evaluation fall off from the nearest known one, as a Gaussian
    # does some standard deviations out.
    away, nearest = distance_transform_edt(np.isnan(table), return_indices=True)
    away = spacing * away
    table = table[tuple(nearest)] - away * (3.0 + 0.5 * away)
    axes = [np.arange(a, a + size) for a, size in zip(low, shape, strict=True)]
    points = spacing * np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return axes, table - _log_gaussian(points, *lattice.moments())


def _log_gaussian(z: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    centred = z - mean
    return -0.5 * np.sum(centred * (centred @ np.linalg.inv(covariance)), axis=-1)


def _even_points(rng: np.random.Generator, num: int, dim: int) -> np.ndarray:
    """Points (num, dim) that fill the unit cube evenly, in every coordinate by itself too.

    One in the middle half of each of equal intervals of the first, so that no single draw is far
    out in a tail; in the others an additive recurrence from a random offset, with steps that are
    powers of an algebraic number of degree dim: the golden ratio for two dimensions.
    """
    first = (np.arange(num) + rng.uniform(0.25, 0.75, num)) / num
    if dim == 1:
        return first[:, None]
    root = 2.0
    for _ in range(60):
        root = (1.0 + root) ** (1.0 / dim)  # converges to the root of x^dim = x + 1
    steps = root ** -np.arange(1.0, dim)
    others = (rng.random(dim - 1) + np.arange(num)[:, None] * steps) % 1.0
    return np.concatenate([first[:, None], others], axis=1)
