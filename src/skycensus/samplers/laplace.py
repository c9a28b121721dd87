r"""Modes of a target and its curvature there, from few evaluations and no derivative.

A quadratic through points one standard deviation apart gives gradient and Hessian for as many
evaluations as differentiating twice would cost, without another function to compile, and sees the
posterior on its own scale: a likelihood that is rough below it does not disturb.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..weights import normalised_weights, systematic
from .tempering import next_temperature

LogDensity = Callable[[np.ndarray], np.ndarray]
"""Points (n, dim) -> log densities (n,), -inf where there is none."""

# A step of Newton first goes no further than so many times the points that its quadratic knows.
_REACH = 3.0
# A mode is found when Newton would win less than this, and the scale is right to such a factor.
_GAIN, _RATIO = 0.02, 2.0

# After so many steps a climb goes on only while these last ones have gained more than one.
_PATIENCE, _STALLED = 25, 3


@dataclass(frozen=True)
class Mode:
    r"""A local maximum and the scale around it.

    Attributes:
        x: where, (dim,).
        scale: $S$ (dim, dim) with $SS^\top$ the inverse of the negative Hessian, where that is
            positive; else of its absolute value.
        log_density: of the best point seen near it.
        converged: whether both are as good as promised: to some 0.2 standard deviations.
    """

    x: np.ndarray
    scale: np.ndarray
    log_density: float
    converged: bool

    @property
    def log_mass(self) -> float:
        r"""Laplace's approximation of the integral: $\ln p + \frac d2 \ln 2\pi + \ln|S|$."""
        d = len(self.x)
        return self.log_density + 0.5 * d * np.log(2 * np.pi) + np.linalg.slogdet(self.scale)[1]


def climb(
    log_density: LogDensity, x: np.ndarray, scale: np.ndarray, *, max_steps: int = 80
) -> Mode:
    r"""Newton's method on the quadratic through $x$, $x \pm Se_i$ and $x + S(e_i + e_j)$.

    Each step takes $1 + 2d + d(d-1)/2$ evaluations. Its curvature rescales $S$ to the inverse
    square root of the Hessian (of its absolute value, where it is indefinite: a saddle is left).

    Args:
        log_density: to be maximised.
        x: a start with finite density.
        scale: a first guess of the scale, (dim, dim); any order of magnitude will do.
        max_steps: steps at most.
    """
    dim = len(x)
    stencil = _stencil(dim)
    before, best_x, best, reach = -np.inf, x, -np.inf, _REACH
    converged = False
    heights: list[float] = []
    for number in range(max_steps):
        if number >= _PATIENCE and not best > heights[-_STALLED] + 1.0:
            break
        heights.append(best)
        points = x + stencil @ scale.T
        f = log_density(points)
        top = int(np.argmax(f))
        if f[top] > best:
            best_x, best = points[top], float(f[top])
        if f[0] < before or not np.isfinite(f).all():
            # Newton, or a point that the quadratic needs, went astray: closer to the best point.
            x, scale, before, reach = best_x, 0.3 * scale, -np.inf, _REACH
            continue
        before = f[0]
        gradient, hessian = _derivatives(f, dim)
        curvature, axes = np.linalg.eigh(-hessian)
        size = np.clip(np.abs(curvature), 1e-2, 1e8)
        step = (axes.T @ gradient) / size
        gain = 0.5 * np.sum(step**2 * size)
        length = float(np.linalg.norm(step))
        if length > reach:
            step *= reach / length
            reach *= 2.0  # forgotten where this goes astray
        settled = bool(np.all(np.abs(np.log(size)) < np.log(_RATIO)) and curvature.min() > 0)
        x = x + scale @ axes @ step
        scale = scale @ axes / np.sqrt(size)
        if settled and gain < _GAIN:
            converged = True
            break
    return Mode(x if converged else best_x, scale, best, converged)


def find_modes(
    log_density: LogDensity,
    x: np.ndarray,
    values: np.ndarray,
    base: np.ndarray,
    *,
    num_asked: int = 16,
    most: int = 4,
) -> list[Mode]:
    r"""The mode above the best of some points, and others that these points know of, best first.

    Where the density dips between a point and every mode so far, another mode is climbed to from
    there: a single one has no such dips unless it is bent. The points asked are a few with weights
    $L^\beta$, the power leaving a fifth of them effective, so that no narrow mode outshines all.

    Args:
        log_density: of the posterior.
        x: draws of the prior, (n, dim).
        values: their log densities, at least one finite.
        base: their log priors: the densities that they were drawn from.
        num_asked: points asked at most, four evaluations each.
        most: modes at most.
    """
    good = np.isfinite(values) & np.isfinite(x).all(axis=1)
    x, values, base = x[good], values[good], base[good]
    order = np.argsort(-values)
    # The spread of the better points is nearer to the posterior's than that of all.
    near = x[order[: max(4, len(x) // 4)]]
    spread = np.std(near, axis=0) if len(near) > 1 else np.ones(x.shape[1])
    wide = np.diag(np.maximum(spread, 1e-6 * (1.0 + np.abs(x[order[0]]))))
    modes = [climb(log_density, x[order[0]], wide)]
    log_l = values - base
    power = next_temperature(0.0, log_l, np.zeros(len(x)), goal=max(2.0, 0.2 * len(x)))
    asked = np.unique(systematic(normalised_weights(power * log_l), num_asked, 0.5))
    for i in asked[np.argsort(-values[asked])]:
        if len(modes) == most:
            break
        if not _apart(log_density, x[i], values[i], modes):
            continue
        # Some steps up first: where a density is only bent, the way to its mode straightens.
        other = climb(log_density, x[i], wide, max_steps=4)
        if _apart(log_density, other.x, other.log_density, modes):
            other = climb(log_density, other.x, other.scale)
            distances = [np.linalg.norm(np.linalg.solve(m.scale, other.x - m.x)) for m in modes]
            if min(distances) > 1.0:
                modes.append(other)
    return sorted(modes, key=lambda mode: -mode.log_density)


def _apart(log_density: LogDensity, x: np.ndarray, value: float, modes: list[Mode]) -> bool:
    """Whether the density falls by a factor e or more on every straight way to a mode."""
    # Denser towards the mode, which is the narrower end.
    shares = np.array([0.2, 0.5, 0.75, 0.9])[:, None]
    between = log_density(np.concatenate([x + shares * (mode.x - x) for mode in modes]))
    return bool(np.all(between.reshape(len(modes), -1).min(axis=1) < value - 1.0))


def _stencil(dim: int) -> np.ndarray:
    unit = np.eye(dim)
    pairs = [unit[i] + unit[j] for i in range(dim) for j in range(i)]
    return np.concatenate([np.zeros((1, dim)), unit, -unit, np.reshape(pairs, (-1, dim))])


def _derivatives(f: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and Hessian of the quadratic through the values at `_stencil`."""
    up, down, pairs = f[1 : dim + 1], f[dim + 1 : 2 * dim + 1], f[2 * dim + 1 :]
    gradient = 0.5 * (up - down)
    hessian = np.diag(up - 2 * f[0] + down)
    alone = gradient + 0.5 * np.diag(hessian)
    rows, columns = np.tril_indices(dim, -1)  # in the order of the pairs
    mixed = pairs - f[0] - alone[rows] - alone[columns]
    hessian[rows, columns] = hessian[columns, rows] = mixed
    return gradient, hessian
