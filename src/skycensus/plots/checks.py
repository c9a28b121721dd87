"""Figures of checks: data beside what the fitted model makes in their place, and calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import chdtri
from scipy.stats import kstwo

from ..calibration import Calibration
from ..predictive_checks import DataCheck
from .style import COLOURS, FAINT, style

# Objects whose names can be read beside each other.
_NAMED = 30


def predictive_check(check: DataCheck) -> Figure:
    r"""Predictive check of a population and of its objects; see `predictive_checks`.

    Left, the cumulative distribution of the objects' data (or of their scatter) as observed, and
    the 50 and 90 % bands of data from the fitted population; dashed, 90 % before the fit.
    Middle, the share of predicted data below each observed one, against the 90 % band of what the
    same model would show. Right, where objects have several data, $\chi^2$ per datum of each object
    at its own posterior draws, with the 90 % interval of right errors.
    """
    whole = check.predicted is not None
    number = 2 * whole + (check.misfit is not None)
    with style():
        figure = Figure(figsize=(4.0 * max(number, 1) + 0.4, 3.8), layout="constrained")
        panels = iter(np.atleast_1d(figure.subplots(1, max(number, 1))))
        if whole:
            _cumulative(next(panels), check)
            _shares(next(panels), check)
        if check.misfit is not None:
            _misfits(next(panels), check)
    return figure


def pp_plot(calibration: Calibration, *, labels: Mapping[str, str] | None = None) -> Figure:
    r"""P–P plot: the fraction of catalogues whose truth has a posterior probability p below it.

    The bands hold whole curves of right analyses, 90 and 99 % of them (Kolmogorov & Smirnov), so
    that a curve outside has a p-value below 0.1 and 0.01. In the legend are the p-values of both
    tests, see `calibration.PValues`.
    """
    num = len(calibration.ranks)
    share = np.linspace(0.0, 1.0, 201)
    with style():
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        for level, alpha in ((0.99, 0.12), (0.90, 0.2)):
            half = kstwo.ppf(level, num)
            band = np.clip([share - half, share + half], 0.0, 1.0)
            axes.fill_between(share, *band, color=FAINT, alpha=alpha, lw=0, label=f"{level:.0%}")
        axes.plot(share, share, color=FAINT, lw=0.8)
        for i, (name, tests) in enumerate(calibration.p_values().items()):
            steps = np.concatenate([[0.0], np.sort(calibration.ranks[:, i]), [1.0]])
            height = np.append(np.arange(num + 1) / num, 1.0)
            told = f"{(labels or {}).get(name, name)} ({tests[0]:.2g}, {tests[1]:.2g})"
            line = ("-", "--", ":")[i // len(COLOURS) % 3]
            colour = COLOURS[i % len(COLOURS)]
            axes.step(steps, height, where="post", color=colour, ls=line, label=told)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set(xlabel="posterior probability below the truth", ylabel="fraction of catalogues")
        axes.set_title(f"{num} catalogues, all together p = {calibration.p_value:.2g}")
        figure.legend(loc="outside right upper", fontsize=8, title="p (KS), p (χ²)")
    return figure


def _cumulative(axes: Axes, check: DataCheck) -> None:
    assert check.predicted is not None
    share = (np.arange(len(check.names)) + 0.5) / len(check.names)
    ranked = np.sort(check.predicted, axis=1)
    x = np.quantile(ranked, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    axes.fill_betweenx(share, x[0], x[4], color=COLOURS[0], alpha=0.18, lw=0)
    axes.fill_betweenx(share, x[1], x[3], color=COLOURS[0], alpha=0.32, lw=0, label="predicted")
    observed = np.sort(check.observed)
    axes.plot(observed, share, color=COLOURS[1], label="observed")
    low, high = min(observed[0], x[0, 0]), max(observed[-1], x[4, -1])
    room = 0.05 * (high - low) or 1.0
    if check.prior is not None:
        before = np.quantile(np.sort(check.prior, axis=1), [0.05, 0.95], axis=0)
        for i, edge in enumerate(before):
            label = "before the fit" if i == 0 else None
            axes.plot(edge, share, color=FAINT, lw=1.0, ls="--", label=label)
    # Data from the prior may be anywhere: the axis shows the observed ones.
    axes.set(xlim=(low - room, high + room), ylim=(0, 1))
    axes.set(xlabel=check.label, ylabel="fraction of objects below")
    axes.legend(loc="lower right", fontsize=8)


def _shares(axes: Axes, check: DataCheck) -> None:
    assert check.predicted is not None
    num = len(check.names)
    share = (np.arange(num) + 0.5) / num
    rank = np.argsort(np.argsort(check.predicted, axis=0), axis=0)
    band = np.quantile(np.sort((rank + 0.5) / len(rank), axis=1), [0.05, 0.95], axis=0)
    axes.fill_between(share, *(band - share), color=COLOURS[0], alpha=0.18, lw=0)
    axes.plot(share, np.sort(check.pit) - share, color=COLOURS[1])
    axes.axhline(0.0, color=FAINT, lw=0.8)
    axes.set(
        xlabel="fraction of objects", ylabel="predicted below, less that fraction", xlim=(0, 1)
    )
    # What none of the draws reaches is below one in their number.
    tail, least = check.tail_probability, 1 / len(rank)
    told = f"tail probability {tail:.2g}" if tail > 0 else f"tail probability below {least:.2g}"
    axes.set_title(told, fontsize=9)


def _misfits(axes: Axes, check: DataCheck) -> None:
    assert check.misfit is not None
    each = check.misfit / check.counts
    low, middle, high = np.quantile(each, [0.05, 0.5, 0.95], axis=0)
    order = np.argsort(middle, kind="stable")
    place, num = np.arange(len(order)), check.counts[order]
    low_edge, high_edge = (
        np.append(x, x[-1]) for x in (chdtri(num, p) / num for p in (0.95, 0.05))
    )
    edges = np.append(place - 0.5, place[-1] + 0.5)
    band: dict[str, Any] = {
        "color": COLOURS[0],
        "alpha": 0.18,
        "lw": 0,
        "label": "90 % of right errors",
    }
    axes.fill_between(edges, low_edge, high_edge, step="post", **band)
    axes.vlines(place, low[order], high[order], color=COLOURS[1], lw=1.2)
    axes.plot(place, middle[order], "o", ms=3, color=COLOURS[1])
    if len(order) <= _NAMED:
        names = [check.names[i] for i in order]
        axes.set_xticks(place, names, rotation=90, fontsize=6)
    else:
        axes.set(xticks=[], xlabel=f"{len(order)} objects")
    axes.set(yscale="log", ylabel=r"$\chi^2$ per datum", xlim=(-0.6, len(order) - 0.4))
    axes.legend(loc="upper left", fontsize=8)
