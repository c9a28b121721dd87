"""Figures of draws of hyperparameters."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..diagnostics import scalars
from ..errors import InputError
from ..result import Result
from ..weights import quantile
from .style import COLOURS, TRUTH, save_figures, style


def corner(
    result: Result,
    names: Sequence[str] | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    truths: Mapping[str, Any] | None = None,
    path: str | Path | None = None,
) -> Figure:
    """One- and two-dimensional marginals, with 50 and 90 % contours, medians and 90 % intervals.

    Args:
        result: its draws and weights.
        names: parameters in order (default: all draws; constants are left out).
        labels: name -> axis label.
        truths: name -> true value (default: `result.truth`).
        path: where to save it as well.
    """
    labels = labels or {}
    every = _flat(result, names)
    flat = {k: x.ravel() for k, x in every.items() if np.isfinite(x).all() and np.ptp(x) > 0}
    log_weight = None if result.log_weight is None else result.log_weight.ravel()
    known = _truths(result, truths)
    with style():
        if not flat:
            figure = Figure(figsize=(4, 3))
            figure.text(0.5, 0.5, "no parameter varies", ha="center", va="center")
            return saved(figure, path)
        side = 1.0 + 1.9 * max(len(flat), 1.6)
        figure = Figure(figsize=(side, side))
        ranges = [plot_range(x, log_weight, known.get(name)) for name, x in flat.items()]
        shown = [labels.get(name, name) for name in flat]
        _draw_corner(figure, np.stack([*flat.values()], axis=1), result.weights, ranges, shown)
        _finish_corner(figure, flat, log_weight, known, labels)
    return saved(figure, path)


def _draw_corner(
    figure: Figure, draws: np.ndarray, weights: np.ndarray, ranges: list[Any], labels: list[str]
) -> None:
    """The panels of a corner plot of draws (draw, parameter)."""
    from corner import corner as draw_corner

    weights = weights.ravel()
    n_eff = 1 / np.sum(weights**2)
    if len(draws) < len(labels):
        # corner refuses fewer draws than parameters; repeating all of them changes nothing.
        repeats = math.ceil(len(labels) / len(draws))
        draws, weights = np.tile(draws, (repeats, 1)), np.tile(weights, repeats)
    # Contours of a handful of draws are an invention: show the points.
    many = n_eff >= 50
    draw_corner(
        draws,
        weights=weights,
        fig=figure,
        bins=int(np.clip(np.sqrt(n_eff), 10, 30)),
        range=ranges,
        labels=labels,
        color=COLOURS[0],
        levels=(0.5, 0.9),
        smooth=0.9 if many else None,
        plot_contours=many,
        plot_density=False,
        fill_contours=many,
        contour_kwargs={"linewidths": 1.0},
        contourf_kwargs={"colors": [to_rgba(COLOURS[0], a) for a in (0.0, 0.25, 0.55)]},
        plot_datapoints=not many,
        data_kwargs={"alpha": 0.6, "ms": 4},
        hist_kwargs={"linewidth": 1.4, "density": True},
        max_n_ticks=4,
        labelpad=-0.02,
        quiet=True,
    )


def _finish_corner(
    figure: Figure,
    flat: Mapping[str, np.ndarray],
    log_weight: np.ndarray | None,
    known: Mapping[str, float],
    labels: Mapping[str, str],
) -> None:
    """Titles with credible intervals, the interval itself and the true values."""
    size = len(flat)
    axes = np.array(figure.axes[: size * size]).reshape(size, size)
    for i, (name, x) in enumerate(flat.items()):
        panel = axes[i, i]
        low, middle, high = quantile(x, [0.05, 0.5, 0.95], log_weight)
        panel.axvspan(low, high, color=COLOURS[0], alpha=0.10, lw=0)
        panel.axvline(middle, color=COLOURS[0], lw=1.0, ls="--")
        label = labels.get(name, name)
        panel.set_title(_title(label, _credible(x, log_weight)), pad=6)
        for j, other in enumerate(flat):
            if other in known:
                for row in range(j, size):
                    axes[row, j].axvline(known[other], color=TRUTH, lw=0.9, ls=":")
                if j == i:
                    for column in range(j):
                        axes[j, column].axhline(known[other], color=TRUTH, lw=0.9, ls=":")


def _title(label: str, interval: str) -> str:
    """The label without a bracketed unit at its end, which the axis says already, and the value."""
    unit = re.search(r"(\\[ ,;]|\s)+\[[^\[]*\](\$?)$", label)
    head = label[: unit.start()] + unit[2] if unit else label
    letters = re.sub(r"\\[a-zA-Z]+|[{}$_^\\]", "", head)
    return f"{head}\n{interval}" if len(letters) > 10 else f"{head} = {interval}"


def trace(
    result: Result,
    names: Sequence[str] | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    truths: Mapping[str, Any] | None = None,
) -> Figure:
    """The marginal of every parameter (left) and its draws in order (right), one colour a chain.

    The draws of a weighted result are as the sampler made them and their marginals are weighted.
    """
    flat = _flat(result, names)
    known = _truths(result, truths)
    weights = result.weights
    weighted = result.log_weight is not None
    with style():
        figure = Figure(figsize=(9, 0.6 + 1.5 * len(flat)), layout="constrained")
        axes = figure.subplots(len(flat), 2, squeeze=False, width_ratios=(1, 2.4))
        for (left, right), (name, x) in zip(axes, flat.items(), strict=True):
            label = (labels or {}).get(name, name)
            finite = np.isfinite(x)
            edges: Any = _edges(x[finite])
            if weighted and finite.all():
                # Proposals far out have no weight and would squeeze the marginal.
                edges = np.linspace(*plot_range(x, result.log_weight, known.get(name)), 41)
            for c, (chain, weight) in enumerate(zip(x, weights, strict=True)):
                colour = COLOURS[c % len(COLOURS)]
                good = finite[c]
                if good.any() and weight[good].sum() > 0:
                    density = np.histogram(chain[good], edges, weights=weight[good])[0]
                    density = density / (density.sum() * np.diff(edges))
                    left.stairs(density, edges, color=colour, lw=1.1)
                mark: dict[str, Any] = {"ls": "none", "marker": ".", "ms": 2, "mew": 0}
                if not weighted and len(chain) > 1:
                    mark = {"lw": 0.5}
                right.plot(chain, color=colour, alpha=0.75, rasterized=True, **mark)
            if name in known:
                left.axvline(known[name], color=TRUTH, lw=1, ls=":")
                right.axhline(known[name], color=TRUTH, lw=1, ls=":")
            left.set(xlabel=label, yticks=[])
            left.spines["left"].set_visible(False)
            left.xaxis.set_major_locator(MaxNLocator(4))
            right.margins(x=0.005)
            right.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes[-1, 1].set_xlabel("draw, as proposed" if weighted else "draw")
    return figure


def _edges(x: np.ndarray) -> np.ndarray:
    if x.size == 0:
        return np.linspace(-0.5, 0.5, 3)
    low, high = float(x.min()), float(x.max())
    if low == high:
        room = 0.05 * abs(low) or 0.5
        return np.linspace(low - room, high + room, 12)
    return np.linspace(low, high, int(np.clip(np.sqrt(x.size), 8, 40)) + 1)


def saved(figure: Figure, path: str | Path | None) -> Figure:
    """The figure, which is saved as well where a path is given."""
    if path is not None:
        path = Path(path)
        save_figures({path.stem: figure}, path.parent, formats=[path.suffix[1:] or "png"])
    return figure


def _flat(result: Result, names: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Scalar parameters as arrays (chain, draw): those named, or all that are not derived."""
    every = dict(scalars({**result.draws, **result.derived}))
    chosen = [name for name, _ in scalars(result.draws)] if names is None else list(names)
    if missing := [name for name in chosen if name not in every]:
        raise InputError(f"no draws of {missing}; this result has {list(every)}.")
    return {name: every[name] for name in chosen}


def _truths(result: Result, truths: Mapping[str, Any] | None) -> dict[str, float]:
    """True values of scalar parameters by name."""
    known = result.truth if truths is None else truths
    arrays = {name: np.asarray(v, float) for name, v in (known or {}).items() if v is not None}
    named = scalars({name: array[None, None] for name, array in arrays.items()})
    return {name: float(value[0, 0]) for name, value in named}


def plot_range(
    x: np.ndarray, log_weight: np.ndarray | None, truth: float | None
) -> tuple[float, float]:
    """Where nearly all of the draws lie, with the truth, and never empty."""
    low, high = quantile(x, [0.001, 0.999], log_weight)
    if truth is not None and math.isfinite(truth):
        low, high = min(low, truth), max(high, truth)
    room = 0.04 * (high - low) or 0.5 * abs(low) or 0.5
    return low - room, high + room


def _credible(x: np.ndarray, log_weight: np.ndarray | None) -> str:
    r"""Median and the distances to the 5 and 95 % quantiles, to two digits of the smaller one."""
    low, middle, high = quantile(x, [0.05, 0.5, 0.95], log_weight)
    width = min(high - middle, middle - low) or high - low
    digits = max(0, 1 - math.floor(math.log10(width))) if width > 0 else 2
    if digits > 6 or abs(middle) >= 1e5:
        return f"${middle:.3g}^{{+{high - middle:.2g}}}_{{-{middle - low:.2g}}}$"
    # Adding zero turns a rounded -0.0 into 0.0.
    values = (round(value, digits) + 0.0 for value in (middle, high - middle, middle - low))
    parts = (f"{value:.{digits}f}" for value in values)
    return "${}^{{+{}}}_{{-{}}}$".format(*parts)
