"""Credible regions of densities that are known on a grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from .draws import saved
from .style import COLOURS, TRUTH, style


def regions(
    x: np.ndarray,
    y: np.ndarray,
    log_densities: Mapping[str, np.ndarray],
    *,
    lines: Mapping[str, np.ndarray] | None = None,
    labels: tuple[str, str] = ("x", "y"),
    truth: tuple[float, float] | None = None,
    levels: tuple[float, ...] = (0.68, 0.95),
    path: str | Path | None = None,
) -> Figure:
    """Highest-density regions of several densities over two parameters, filled and as lines.

    Args:
        x, y: a grid of equal cells, (n, m) each.
        log_densities: name -> log density on the grid, drawn filled.
        lines: name -> log density drawn as black lines over them, such as exact ones.
        labels: of the axes.
        truth: a point to mark.
        levels: the probabilities that the regions hold.
        path: where to save it as well.
    """
    with style():
        figure = Figure(figsize=(5.2, 4.2))
        axes = figure.subplots()
        shown = np.zeros(np.shape(x), bool)
        for colour, (name, log_density) in zip(COLOURS, log_densities.items(), strict=False):
            edges = _edges(log_density, levels)
            shades = [to_rgba(colour, a) for a in np.linspace(0.25, 0.6, len(levels))]
            axes.contourf(x, y, log_density, [*edges, np.inf], colors=shades)
            axes.plot([], [], color=colour, lw=6, alpha=0.5, label=name)
            shown |= np.asarray(log_density) >= edges[0]
        for i, log_density in enumerate((lines or {}).values()):
            edges = _edges(log_density, levels)
            axes.contour(x, y, log_density, edges, colors="black", linewidths=0.8, linestyles="-")
            if i == 0:
                axes.plot([], [], color="black", lw=0.8, label="exact")
        if truth is not None:
            axes.plot(*truth, "+", color=TRUTH, ms=10, mew=2, label="truth")
        axes.set(xlabel=labels[0], ylabel=labels[1], xlim=_around(x, shown), ylim=_around(y, shown))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, columnspacing=1.0)
    return saved(figure, path)


def _around(x: np.ndarray, shown: np.ndarray) -> tuple[float, float]:
    """The range of the points that are shown and a tenth more on either side, within the grid."""
    low, high = x[shown].min(), x[shown].max()
    margin = 0.1 * (high - low)
    return max(low - margin, x.min()), min(high + margin, x.max())


def _edges(log_density: Any, levels: tuple[float, ...]) -> list[float]:
    """The log densities above which the regions lie, in ascending order."""
    flat = np.sort(np.asarray(log_density, float).ravel())[::-1]
    held = np.cumsum(np.exp(flat - flat[0]))
    at = [int(np.searchsorted(held, level * held[-1])) for level in sorted(levels, reverse=True)]
    return [float(flat[i]) for i in at]
