r"""Sums over nested lattices in up to three dimensions, grown to where a density has its mass."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import numpy as np

from ..weights import normalised_weights

# In standard deviations. A Gaussian, even a skewed one, then needs no refinement to 1e-4.
FIRST_SPACING = 0.9


def _generic_rotation(dim: int) -> np.ndarray:
    """A rotation whose axes lie in no direction that whole numbers of a parameter's axes have.

    A kink along a coordinate would otherwise hide from lattices that share that coordinate.
    """
    angle = np.arctan((5**0.5 - 1) / 2)
    rotation = np.eye(dim)
    for i, j in itertools.combinations(range(dim), 2):
        plane = np.eye(dim)
        plane[[i, i, j, j], [i, j, i, j]] = np.array([1, -1, 1, 1]) * [
            np.cos(angle), np.sin(angle), np.sin(angle), np.cos(angle)
        ]  # fmt: skip
        rotation = rotation @ plane
    return rotation


class Lattice:
    r"""Points $c + S\,u\,n$ of whole numbers $n$, whose log densities are known.

    Level 0 has all $n$ with $u = 0.9$. Refining doubles the points in one dimension ($u$ is
    halved); in more, every other level adds the centres of the cells: with $u$ halved, level 1
    keeps the $n$ whose components are all even or all odd, and level 2 has all $n$ for the same
    $u$. The trapezoid rule on a lattice errs by the density's Fourier transform at the dual
    lattice: for smooth densities its error falls at least exponentially in the inverse spacing,
    which grows by $\sqrt2$ (by 2 in one dimension) from level to level.

    Attributes:
        n: (point, dim) of integers.
        log_density: (point,).
        level, unit: how often it was refined, and $u$.
    """

    def __init__(
        self,
        log_density: Callable[[np.ndarray], np.ndarray],
        center: np.ndarray,
        scale: np.ndarray,
    ):
        # Turned: any square root of the covariance whitens as well.
        self.evaluate = log_density
        self.dim = len(center)
        self.center, self.scale = center, scale @ _generic_rotation(self.dim)
        self.level, self.unit = 0, FIRST_SPACING
        self.n = np.zeros((0, self.dim), int)
        self.log_density = np.zeros(0)

    @property
    def z(self) -> np.ndarray:
        """The points in units of the scale, (point, dim)."""
        return self.unit * self.n

    @property
    def x(self) -> np.ndarray:
        """The points, (point, dim)."""
        return self.center + self.z @ self.scale.T

    @property
    def centred(self) -> bool:
        """Whether the last refinement added centres of cells, and not all that fits the unit."""
        return self.dim > 1 and self.level % 2 == 1

    @property
    def high(self) -> float:
        """The highest log density."""
        return float(self.log_density.max())

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (dim,) and covariance (dim, dim) in units of the scale."""
        weight = normalised_weights(self.log_density)
        mean = weight @ self.z
        centred = self.z - mean
        return mean, (weight[:, None] * centred).T @ centred

    def nearest(self, x: np.ndarray) -> np.ndarray:
        """The whole numbers of level 0 nearest to points (n, dim)."""
        z = np.linalg.solve(self.scale, (x - self.center).T).T
        return np.rint(z / self.unit).astype(int)

    def grow(self, seeds: np.ndarray, depth: float, most: int) -> bool:
        r"""Add `seeds` and all neighbours of points within `depth` of the highest log density.

        Returns False where that takes more than `most` points; they are then not all added.
        """
        known = {tuple(n) for n in self.n.tolist()}
        new = np.concatenate([seeds, self._around(np.arange(len(self.n)), depth)])
        while True:
            fresh = sorted({tuple(n) for n in new.tolist()} - known)
            if not fresh:
                return True
            if len(known) + len(fresh) > most:
                return False
            known.update(fresh)
            added = np.array(fresh, int).reshape(-1, self.dim)
            values = self.evaluate(self.center + self.unit * added @ self.scale.T)
            self.n = np.concatenate([self.n, added])
            self.log_density = np.append(self.log_density, values)
            new = self._around(np.arange(len(self.n) - len(added), len(self.n)), depth)

    def _around(self, index: np.ndarray, depth: float) -> np.ndarray:
        """Neighbours of those of some points that are within `depth`, with repetitions."""
        if len(index) == 0:
            return self.n
        high = self.n[index][self.log_density[index] > self.high - depth]
        if self.centred:
            steps = np.array(list(itertools.product((-1, 1), repeat=self.dim)))
        else:
            steps = np.concatenate([np.eye(self.dim, dtype=int), -np.eye(self.dim, dtype=int)])
        return (high[:, None, :] + steps).reshape(-1, self.dim)

    def refined(self) -> Lattice:
        """The next level, with the points known already; the others are then to be grown."""
        finer = copy.copy(self)
        finer.level += 1
        if self.dim == 1 or finer.centred:
            finer.n, finer.unit = 2 * self.n, 0.5 * self.unit
        return finer

    def log_weights(self, coarser: int = 0, within: float | None = None) -> np.ndarray:
        r"""Log masses: log density plus log volume, $-\infty$ for points left out.

        Args:
            coarser: so many levels are undone, 0 to 2.
            within: keep only points within so much of the highest log density.
        """
        keep, log_cell = self._sublattice(coarser)
        if within is not None:
            keep = keep & (self.log_density > self.high - within)
        log_volume = log_cell + np.linalg.slogdet(self.scale)[1] + self.dim * np.log(self.unit)
        return np.where(keep, self.log_density + log_volume, -np.inf)

    def _sublattice(self, coarser: int) -> tuple[np.ndarray, float]:
        """Which points are there with so many levels undone, and their log volume in units."""
        d, n = self.dim, self.n
        if d == 1:
            return np.all(n % 2**coarser == 0, axis=1), coarser * np.log(2.0)
        # Centred, n are of one parity; undoing goes to even ones, and then to n/2 of one parity.
        whole = n if not self.centred else n // 2
        even = np.all(n % 2 == 0, axis=1)
        same = np.all(whole % 2 == whole[:, :1] % 2, axis=1)
        if self.centred:
            cells = [(np.ones(len(n), bool), d - 1), (even, d), (even & same, 2 * d - 1)]
        else:
            cells = [(np.ones(len(n), bool), 0), (same, d - 1), (even, d)]
        keep, doublings = cells[coarser]
        return keep, doublings * np.log(2.0)
