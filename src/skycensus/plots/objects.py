"""Figures with a row for every object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ..weights import quantile
from .style import COLOURS, FAINT, TRUTH, plain_log_ticks, style


def object_posteriors(
    names: Sequence[str],
    original: Sequence[ArrayLike] | None,
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
        original: draws of one parameter for each object, as the objects' own posteriors have them;
            None shows those given the population only.
        informed: draws of equal weight of the population-informed posteriors.
        truth: true value of each object.
        sort: by the informed median, largest at the top.
    """
    alone = informed if original is None else original
    if not len(names) == len(alone) == len(informed) or len(names) == 0:
        sizes = f"{len(names)}, {len(alone)} and {len(informed)}"
        raise ValueError(f"names, original and informed need one entry an object, not {sizes}.")
    levels = [0.05, 0.5, 0.95]
    both = [np.stack([quantile(x, levels) for x in draws]) for draws in (alone, informed)]
    order = np.argsort(both[1][:, 1], kind="stable") if sort else np.arange(len(names))[::-1]
    place = np.arange(len(names))
    # Up to here the names can be read; a larger catalogue is a picture of its shape.
    named = len(names) <= 120
    with style():
        height = 1.1 + (0.23 * len(names) if named else 14.0)
        figure = Figure(figsize=(6.4, max(height, 2.2)), layout="constrained")
        axes = figure.subplots()
        thick = 1.0 if named else max(0.15, 60 / len(names))
        rows = (
            ("object alone", both[0], FAINT, 0.14),
            ("given the population", both[1], None, -0.14),
        )
        for label, values, colour, shift in rows[1 if original is None else 0 :]:
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
            plain_log_ticks(axes.xaxis, *axes.get_xlim())
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
    with style():
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
