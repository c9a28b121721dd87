"""Radial velocities against orbital phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ..stars.orbits import elements, period, same_mode, velocity
from .style import COLOURS, FAINT, style

# Stars in one figure; more would be stamps.
_MOST_STARS = 24
_CURVES = 30


def phase_folded(
    names: Sequence[str],
    time: Sequence[np.ndarray],
    velocities: Sequence[np.ndarray],
    error: Sequence[np.ndarray],
    draws: Mapping[str, ArrayLike],
    best: Mapping[str, ArrayLike] | None = None,
) -> Figure:
    r"""Velocities folded with the best of the periods, its orbit, and orbits of other draws.

    Args:
        names, time, velocities, error: for every star, days and km/s; the first 24 are shown.
        draws: `P` or `lnP`, `a`, `b`, `v0` [km/s], and `e` and `M0` of eccentric orbits, (draw,
            star) each; see `stars.orbits.velocity`. Only draws in the best one's mode of the period
            have a phase to be shown at. Errors have a draw's `jitter` as a fainter continuation.
        best: the same, (star,): the orbits shown as the best, by default the draws that fit best.
    """
    num = min(len(names), _MOST_STARS)
    columns = min(num, 3)
    rows = -(-num // columns)
    with style():
        figure = Figure(figsize=(3.3 * columns, 2.2 * rows + 0.5), layout="constrained")
        grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
        for i, axes in enumerate(grid):
            if i >= num:
                axes.set_axis_off()
                continue
            own = {name: np.asarray(x, float)[:, i] for name, x in draws.items()}
            if best is None:
                top = _best(own, time[i], velocities[i], error[i])
            else:
                top = {name: float(np.asarray(x)[i]) for name, x in best.items()}
            _one_star(axes, own, top, time[i], velocities[i], error[i])
            axes.set_title(f"{names[i]}\n{_described(top)}", fontsize=8)
        figure.supxlabel("phase")
        figure.supylabel("velocity [km/s]")
    return figure


def _best(
    own: Mapping[str, np.ndarray], t: np.ndarray, v: np.ndarray, e: np.ndarray
) -> dict[str, float]:
    misfit = np.sum(((v - velocity({n: x[:, None] for n, x in own.items()}, t)) / e) ** 2, axis=1)
    at = int(np.argmin(misfit))
    return {name: float(x[at]) for name, x in own.items()}


def _described(best: Mapping[str, float]) -> str:
    told = [f"{period(best):.7g} d", f"K = {elements(best)['K']:.4g} km/s"]
    return ", ".join(told + ([f"e = {best['e']:.3g}"] if "e" in best else []))


def _one_star(
    axes: Any,
    own: Mapping[str, np.ndarray],
    best: Mapping[str, float],
    t: np.ndarray,
    v: np.ndarray,
    e: np.ndarray,
) -> None:
    phase, top = np.linspace(0.0, 1.0, 201), float(period(best))
    for draw in np.flatnonzero(same_mode(own, top, t))[:_CURVES]:
        one = {name: x[draw] for name, x in own.items()}
        axes.plot(phase, velocity(one, phase * period(one)), color=FAINT, lw=0.6)
    axes.plot(phase, velocity(best, phase * top), color=COLOURS[0], lw=1.2)
    if "jitter" in best:
        wide = np.hypot(e, best["jitter"])
        axes.errorbar(t / top % 1.0, v, wide, fmt="none", lw=0.6, ecolor="0.6")
    axes.errorbar(t / top % 1.0, v, e, fmt="o", ms=3, lw=0.8, color="0.15")
    axes.set_xlim(0, 1)
