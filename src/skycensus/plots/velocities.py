"""Radial velocities against orbital phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from .style import COLOURS, FAINT, style

# Stars in one figure; more would be stamps.
_MOST_STARS = 24
_CURVES = 30


def phase_folded(
    names: Sequence[str],
    time: Sequence[np.ndarray],
    velocity: Sequence[np.ndarray],
    error: Sequence[np.ndarray],
    draws: Mapping[str, ArrayLike],
) -> Figure:
    r"""Velocities folded with the most likely of the drawn periods, and orbits of other draws.

    Args:
        names, time, velocity, error: for every star, days and km/s; the first 24 are shown.
        draws: `P` [days], `a`, `b`, `v0` [km/s], (draw, star) each, of circular orbits $v = a
            \cos(2\pi t/P) + b\sin(2\pi t/P) + v_0$. Only draws in the best one's mode of the period
            have a phase to be shown at.
    """
    num = min(len(names), _MOST_STARS)
    columns = min(num, 3)
    rows = -(-num // columns)
    with style():
        figure = Figure(figsize=(3.3 * columns, 2.0 * rows + 0.5), layout="constrained")
        grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
        for i, axes in enumerate(grid):
            if i >= num:
                axes.set_axis_off()
                continue
            own = {name: np.asarray(x, float)[:, i] for name, x in draws.items()}
            best = _best(own, time[i], velocity[i], error[i])
            _one_star(axes, own, best, time[i], velocity[i], error[i])
            axes.set_title(f"{names[i]}, {own['P'][best]:.6g} d", fontsize=8)
        figure.supxlabel("phase")
        figure.supylabel("velocity [km/s]")
    return figure


def _orbit(own: Mapping[str, np.ndarray], draw: int, t: np.ndarray) -> np.ndarray:
    angle = 2 * np.pi * t / own["P"][draw]
    return own["a"][draw] * np.cos(angle) + own["b"][draw] * np.sin(angle) + own["v0"][draw]


def _best(own: Mapping[str, np.ndarray], t: np.ndarray, v: np.ndarray, e: np.ndarray) -> int:
    misfit = [np.sum(((v - _orbit(own, k, t)) / e) ** 2) for k in range(len(own["P"]))]
    return int(np.argmin(misfit))


def _one_star(
    axes, own: Mapping[str, np.ndarray], best: int, t: np.ndarray, v: np.ndarray, e: np.ndarray
) -> None:
    period = own["P"][best]
    phase = np.linspace(0.0, 1.0, 201)
    # Within a cycle over the epochs of the best one: another mode has another phase.
    near = np.abs(1 / own["P"] - 1 / period) * max(float(np.ptp(t)), period) < 0.5
    for draw in np.flatnonzero(near)[:_CURVES]:
        axes.plot(phase, _orbit(own, draw, phase * own["P"][draw]), color=FAINT, lw=0.6)
    axes.plot(phase, _orbit(own, best, phase * period), color=COLOURS[0], lw=1.2)
    axes.errorbar(t / period % 1.0, v, e, fmt="o", ms=3, lw=0.8, color="0.15")
    axes.set_xlim(0, 1)
