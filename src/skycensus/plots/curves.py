"""Figures of curves and of catalogues, with their credible bands."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ..weights import quantile
from .style import COLOURS, TRUTH, plain_log_ticks, style


def density_bands(
    x: ArrayLike,
    draws: ArrayLike | Mapping[str, ArrayLike],
    *,
    xlabel: str = "",
    ylabel: str = "",
    truth: ArrayLike | None = None,
    xscale: str = "linear",
    yscale: str = "linear",
    axes: Axes | None = None,
) -> Figure:
    """The median of curves with their pointwise 50 and 90 % bands.

    Args:
        x: grid (grid,).
        draws: curves of equal weight (draw, grid), or label -> curves to draw over each other.
        truth: the true curve (grid,).
        xscale: "linear" or "log".
        yscale: "linear" or "log", then down to five decades below the highest median.
        axes: where to draw, for a panel of a figure that exists.
    """
    x = np.asarray(x, float)
    sets = dict(draws) if isinstance(draws, Mapping) else {"median, 50 % and 90 %": draws}
    with style():
        if axes is None:
            axes = Figure(figsize=(6.4, 4.2), layout="constrained").subplots()
        top, bottom = -math.inf, math.inf
        for c, (name, curves) in enumerate(sets.items()):
            bands = _bands(np.atleast_2d(np.asarray(curves, float)), x, name)
            colour = COLOURS[c % len(COLOURS)]
            axes.fill_between(x, bands[0], bands[4], color=colour, alpha=0.18, lw=0)
            axes.fill_between(x, bands[1], bands[3], color=colour, alpha=0.32, lw=0)
            axes.plot(x, bands[2], color=colour, label=name)
            if (high := bands[[2, 3]][np.isfinite(bands[[2, 3]])]).size:
                top = max(top, float(high.max()))
            if (positive := bands[0][bands[0] > 0]).size:
                bottom = min(bottom, float(positive.min()))
        if truth is not None:
            axes.plot(x, np.asarray(truth, float), color=TRUTH, ls=":", label="truth")
        axes.set(xscale=xscale, xlabel=xlabel, ylabel=ylabel, xlim=(x.min(), x.max()))
        if xscale == "log":
            plain_log_ticks(axes.xaxis, x.min(), x.max())
        if yscale == "log" and top > 0:
            _log_heights(axes, top, bottom)
        elif yscale == "linear":
            axes.set_ylim(bottom=0 if bottom >= 0 and math.isfinite(bottom) else None)
        axes.legend()
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def _log_heights(axes: Axes, top: float, bottom: float) -> None:
    """A logarithmic axis from the smallest height worth showing to a little above the largest."""
    floor = max(top * 1e-5, bottom / 2 if math.isfinite(bottom) else 0.0)
    low, high = min(floor, top / 10), top * 10**0.5
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    plain_log_ticks(axes.yaxis, low, high)


def _bands(curves: np.ndarray, x: np.ndarray, name: str) -> np.ndarray:
    """Quantiles of the curves at every point of the grid: array (5, grid)."""
    if curves.shape[1:] != x.shape:
        what = f"curves {name!r} have shape {curves.shape}"
        raise ValueError(f"{what}; expected (draw, grid) with a grid of {len(x)} points.")
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    columns = [
        quantile(column, levels) if np.isfinite(column).all() else np.full(5, np.nan)
        for column in curves.T
    ]
    return np.stack(columns, axis=1)


def line(
    x: ArrayLike,
    y: ArrayLike,
    error: ArrayLike,
    slope: ArrayLike,
    intercept: ArrayLike,
    *,
    membership: ArrayLike | None = None,
    xlabel: str = "x",
    ylabel: str = "y",
) -> Figure:
    """Points with errors in y, and the 50 and 90 % bands of a straight line through them.

    Args:
        x, y, error: (point,).
        slope, intercept: draws (draw,).
        membership: (point,) the probability that a point belongs to the line, shown as its colour.
    """
    x, y, error = (np.asarray(values, float) for values in (x, y, error))
    grid = np.linspace(x.min(), x.max(), 101)
    lines = np.asarray(slope)[:, None] * grid + np.asarray(intercept)[:, None]
    with style():
        axes = Figure(figsize=(6.4, 4.2), layout="constrained").subplots()
        figure = density_bands(grid, {"line": lines}, xlabel=xlabel, ylabel=ylabel, axes=axes)
        axes.errorbar(x, y, error, fmt="none", lw=0.8, ecolor="0.5", zorder=3)
        colour = "0.15" if membership is None else np.asarray(membership, float)
        points = axes.scatter(
            x, y, 22, c=colour, cmap="coolwarm_r", vmin=0.0, vmax=1.0, edgecolors="0.15",
            linewidths=0.6, zorder=4,
        )  # fmt: skip
        if membership is not None:
            figure.colorbar(points, label="probability of being on the line")
        low, high = min(y.min(), lines.min()), max(y.max(), lines.max())
        room = 0.06 * (high - low)
        axes.set_xlim(*(x.min(), x.max()) + np.array([-0.03, 0.03]) * np.ptp(x))
        axes.set_ylim(low - room, high + room)
    return figure


def cumulative_bands(
    values: Mapping[str, ArrayLike], *, xlabel: str = "", xscale: str = "linear"
) -> Figure:
    """Cumulative distributions of catalogues: where their k-th smallest value lies, for every k.

    Args:
        values: label -> (draw, object): one catalogue a draw. The first is shown with filled 50 and
            90 % bands, others by their median (solid) and 90 % interval (dashed).
        xscale: "linear" or "log".
    """
    with style():
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for c, (name, catalogues) in enumerate(values.items()):
            ranked = np.sort(np.asarray(catalogues, float), axis=1)
            share = (np.arange(ranked.shape[1]) + 0.5) / ranked.shape[1]
            x = np.quantile(ranked, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
            colour = COLOURS[c % len(COLOURS)]
            if c == 0:
                axes.fill_betweenx(share, x[0], x[4], color=colour, alpha=0.18, lw=0)
                axes.fill_betweenx(share, x[1], x[3], color=colour, alpha=0.32, lw=0)
            else:
                for edge in (x[0], x[4]):
                    axes.plot(edge, share, color=colour, lw=1.0, ls="--")
            axes.plot(x[2], share, color=colour, label=name)
        axes.set(xscale=xscale, xlabel=xlabel, ylabel="fraction of objects below", ylim=(0, 1))
        axes.margins(x=0.02)
        if xscale == "log":
            plain_log_ticks(axes.xaxis, *axes.get_xlim())
        axes.legend(loc="upper left")
    return figure
