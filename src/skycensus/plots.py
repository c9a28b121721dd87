r"""Figures of results. Each function returns a matplotlib `Figure` and touches no global state.

`labels` maps parameter names to axis labels with their units, in matplotlib's own mathematics:
``{"mmin": r"$m_\mathrm{min}\ [M_\odot]$"}``. Colours stay apart for colour-blind eyes and in print.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from .diagnostics import quantile, scalars
from .errors import InputError
from .result import Result

# The palette of Okabe & Ito, darkest first: blue, vermilion, green, orange, purple, sky blue.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
TRUTH = "black"
FAINT = "#9a9a9a"

STYLE: Any = {
    "font.size": 10,
    "axes.labelsize": 11,
    "axes.titlesize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": True,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.4,
    "mathtext.fontset": "dejavusans",
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
}


@contextmanager
def _style() -> Iterator[None]:
    with rc_context(STYLE):
        yield


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


def _range(
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


# ---- draws of hyperparameters --------------------------------------------------------------------


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
    from corner import corner as draw_corner

    labels = labels or {}
    every = _flat(result, names)
    flat = {k: x.ravel() for k, x in every.items() if np.isfinite(x).all() and np.ptp(x) > 0}
    log_weight = None if result.log_weight is None else result.log_weight.ravel()
    known = _truths(result, truths)
    size = len(flat)
    with _style():
        if not flat:
            figure = Figure(figsize=(4, 3))
            figure.text(0.5, 0.5, "no parameter varies", ha="center", va="center")
            return _saved(figure, path)
        figure = Figure(figsize=(1.0 + 1.9 * max(size, 1.6), 1.0 + 1.9 * max(size, 1.6)))
        draws = np.stack(list(flat.values()), axis=1)
        weights = result.weights.ravel()
        n_eff = 1 / np.sum(weights**2)
        if len(draws) < size:
            # corner refuses fewer draws than parameters; repeating all of them changes nothing.
            repeats = math.ceil(size / len(draws))
            draws, weights = np.tile(draws, (repeats, 1)), np.tile(weights, repeats)
        # Contours of a handful of draws are an invention: show the points.
        many = n_eff >= 50
        draw_corner(
            draws,
            weights=weights,
            fig=figure,
            bins=int(np.clip(np.sqrt(n_eff), 10, 30)),
            range=[_range(x, log_weight, known.get(name)) for name, x in flat.items()],
            labels=[labels.get(name, name) for name in flat],
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
        _finish_corner(figure, flat, log_weight, known, labels)
    return _saved(figure, path)


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


def _plain_log_ticks(axis: Axis, low: float, high: float) -> None:
    """Ticks 5, 10, 20, 50, ... in plain numbers, where an axis spans two decades or so."""
    if 0 < low < high < 300 * low and low >= 1e-3 and high <= 1e5:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


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
    with _style():
        figure = Figure(figsize=(9, 0.6 + 1.5 * len(flat)), layout="constrained")
        axes = figure.subplots(len(flat), 2, squeeze=False, width_ratios=(1, 2.4))
        for (left, right), (name, x) in zip(axes, flat.items(), strict=True):
            label = (labels or {}).get(name, name)
            finite = np.isfinite(x)
            edges: Any = _edges(x[finite])
            if weighted and finite.all():
                # Proposals far out have no weight and would squeeze the marginal.
                edges = np.linspace(*_range(x, result.log_weight, known.get(name)), 41)
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


# ---- curves --------------------------------------------------------------------------------------


def density_bands(
    x: ArrayLike,
    draws: ArrayLike | Mapping[str, ArrayLike],
    *,
    label: str = "",
    xlabel: str = "",
    ylabel: str = "",
    truth: ArrayLike | None = None,
    log_weight: ArrayLike | None = None,
    xscale: str = "linear",
    yscale: str = "linear",
    decades: float = 5.0,
    axes: Axes | None = None,
) -> Figure:
    """The median of curves with their pointwise 50 and 90 % bands.

    Args:
        x: grid (grid,).
        draws: curves (draw, grid), or label -> curves to draw over each other.
        label: name of a single set of curves in the legend.
        truth: the true curve (grid,).
        log_weight: log weights of the curves (draw,).
        xscale: "linear" or "log".
        yscale: "linear" or "log", then down to `decades` below the highest median.
        axes: where to draw, for a panel of a figure that exists.
    """
    x = np.asarray(x, float)
    sets = dict(draws) if isinstance(draws, Mapping) else {label: draws}
    with _style():
        if axes is None:
            axes = Figure(figsize=(6.4, 4.2), layout="constrained").subplots()
        top, bottom = -math.inf, math.inf
        for c, (name, curves) in enumerate(sets.items()):
            bands = _bands(np.atleast_2d(np.asarray(curves, float)), x, name, log_weight)
            colour = COLOURS[c % len(COLOURS)]
            axes.fill_between(x, bands[0], bands[4], color=colour, alpha=0.18, lw=0)
            axes.fill_between(x, bands[1], bands[3], color=colour, alpha=0.32, lw=0)
            axes.plot(x, bands[2], color=colour, label=name or None)
            if (high := bands[[2, 3]][np.isfinite(bands[[2, 3]])]).size:
                top = max(top, float(high.max()))
            if (positive := bands[0][bands[0] > 0]).size:
                bottom = min(bottom, float(positive.min()))
        if truth is not None:
            axes.plot(x, np.asarray(truth, float), color=TRUTH, ls=":", label="truth")
        axes.set(xscale=xscale, xlabel=xlabel, ylabel=ylabel, xlim=(x.min(), x.max()))
        if xscale == "log":
            _plain_log_ticks(axes.xaxis, x.min(), x.max())
        if yscale == "log" and top > 0:
            floor = max(top * 10.0**-decades, bottom / 2 if math.isfinite(bottom) else 0.0)
            axes.set_yscale("log")
            axes.set_ylim(min(floor, top / 10), top * 10 ** (decades / 10))
        elif yscale == "linear":
            axes.set_ylim(bottom=0 if bottom >= 0 and math.isfinite(bottom) else None)
        if len(sets) > 1 or label or truth is not None:
            axes.legend()
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def _bands(
    curves: np.ndarray, x: np.ndarray, name: str, log_weight: ArrayLike | None
) -> np.ndarray:
    """Quantiles of the curves at every point of the grid: array (5, grid)."""
    if curves.shape[1:] != x.shape:
        what = f"curves {name!r} have shape {curves.shape}"
        raise ValueError(f"{what}; expected (draw, grid) with a grid of {len(x)} points.")
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    columns = [
        quantile(column, levels, log_weight) if np.isfinite(column).all() else np.full(5, np.nan)
        for column in curves.T
    ]
    return np.stack(columns, axis=1)


# ---- objects -------------------------------------------------------------------------------------


def object_posteriors(
    names: Sequence[str],
    original: Sequence[ArrayLike],
    informed: Sequence[ArrayLike],
    *,
    xlabel: str = "",
    truth: ArrayLike | None = None,
    xscale: str = "linear",
    sort: bool = True,
) -> Figure:
    """Median and 90 % interval of every object, alone and given the population.

    Args:
        names: one per object.
        original: draws of one parameter for each object, as the objects' own posteriors have them.
        informed: draws of equal weight of the population-informed posteriors.
        truth: true value of each object.
        sort: by the informed median, largest at the top.
    """
    if not len(names) == len(original) == len(informed) or len(names) == 0:
        sizes = f"{len(names)}, {len(original)} and {len(informed)}"
        raise ValueError(f"names, original and informed need one entry an object, not {sizes}.")
    levels = [0.05, 0.5, 0.95]
    both = [np.stack([quantile(x, levels) for x in draws]) for draws in (original, informed)]
    order = np.argsort(both[1][:, 1], kind="stable") if sort else np.arange(len(names))[::-1]
    place = np.arange(len(names))
    # Up to here the names can be read; a larger catalogue is a picture of its shape.
    named = len(names) <= 120
    with _style():
        height = 1.1 + (0.23 * len(names) if named else 14.0)
        figure = Figure(figsize=(6.4, max(height, 2.2)), layout="constrained")
        axes = figure.subplots()
        thick = 1.0 if named else max(0.15, 60 / len(names))
        rows = (
            ("object alone", both[0], FAINT, 0.14),
            ("given the population", both[1], None, -0.14),
        )
        for label, values, colour, shift in rows:
            low, middle, high = values[order].T
            line: dict[str, Any] = {"color": colour or COLOURS[0], "lw": 1.5 * thick}
            at = place + (shift if named else 0)
            axes.hlines(at, low, high, **line)
            axes.plot(middle, at, "o", ms=3.6 * thick, color=line["color"], label=label)
        if truth is not None:
            true = np.asarray(truth, float)[order]
            axes.plot(true, place, "x", ms=5 * thick, mew=1.2, color=TRUTH, label="truth")
        if named:
            axes.set_yticks(place, [str(names[i]) for i in order])
            axes.tick_params(axis="y", length=0)
        else:
            axes.set(yticks=[], ylabel=f"{len(names)} objects")
        axes.set(xlabel=xlabel, xscale=xscale, ylim=(-0.7, len(names) - 0.3))
        if xscale == "log":
            _plain_log_ticks(axes.xaxis, *axes.get_xlim())
        axes.grid(axis="x", lw=0.4, color="0.88")
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=3, markerscale=1 / thick)
    return figure


def n_eff(
    values: ArrayLike, names: Sequence[str] | None = None, *, minimum: float = 10.0
) -> Figure:
    """The effective number of draws behind every object's log marginal.

    Args:
        values: (object,), or (..., object) over draws of the hyperparameters: median and 90 %.
        names: one per object; up to 60 are shown by name, more as a histogram of the medians.
        minimum: below it, an estimate is not to be trusted; a line and a count mark it.
    """
    values = np.asarray(values, float)
    values = values.reshape(-1, values.shape[-1])
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95], axis=0)
    count = int(np.sum(middle < minimum))
    said = f"minimum {minimum:g} ({count} of {len(middle)} objects below)"
    scarce: dict[str, Any] = {"color": COLOURS[1], "lw": 1.2, "ls": "--", "label": said}
    with _style():
        if names is not None and len(middle) <= 60:
            order = np.argsort(middle, kind="stable")[::-1]
            place = np.arange(len(middle))
            size = (6.4, max(1.0 + 0.23 * len(middle), 2.2))
            figure = Figure(figsize=size, layout="constrained")
            axes = figure.subplots()
            axes.hlines(place, low[order], high[order], color=COLOURS[0], lw=1.5)
            axes.plot(middle[order], place, "o", ms=4, color=COLOURS[0])
            axes.set_yticks(place, [str(names[i]) for i in order])
            axes.tick_params(axis="y", length=0)
            axes.set_ylim(-0.7, len(middle) - 0.3)
            axes.grid(axis="x", lw=0.4, color="0.88")
            axes.set_axisbelow(True)
        else:
            figure = Figure(figsize=(6.4, 3.6), layout="constrained")
            axes = figure.subplots()
            good = middle[middle > 0]
            ends = (good.min(), good.max()) if good.size else (1.0, 1.0)
            # A little room, or a value at the end falls out by rounding.
            bins: Any = np.geomspace(0.9 * ends[0], 1.1 * ends[1], 31)
            axes.hist(good, bins, color=COLOURS[0], alpha=0.85)
            axes.set_ylabel("objects")
        axes.set_xscale("log")
        axes.axvline(minimum, **scarce)
        axes.set_xlabel("effective number of draws")
        figure.legend(loc="outside upper center")
    return figure


# ---- files ---------------------------------------------------------------------------------------


def save_figures(
    figures: Mapping[str, Figure], folder: str | Path, *, formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Write every figure as `folder`/name.format, each whole or not at all; the paths.

    Raises:
        InputError: the folder cannot be written to.
    """
    paths = []
    for name, figure in figures.items():
        for end in formats:
            path = Path(folder) / f"{name}.{end}"
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with rc_context(STYLE):
                    figure.savefig(temporary, format=end, bbox_inches="tight")
                temporary.replace(path)
            except OSError as error:
                raise InputError(
                    f"cannot write {path}: {error.strerror}; choose a folder that is writable "
                    "and has space."
                ) from error
            finally:
                with suppress(OSError):
                    temporary.unlink()
            paths.append(path)
    return paths


def _saved(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        path = Path(path)
        save_figures({path.stem: figure}, path.parent, formats=[path.suffix[1:] or "png"])
    return figure
