"""Learned densities beside the draws that they were learned from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike
from scipy.stats import qmc

from ..errors import InputError
from ..weights import kish, normalised_weights
from .draws import plot_range, saved
from .style import COLOURS, style

# Points of the density, spread evenly: many enough for contours without noise of their own.
_NUM_POINTS = 2**15


def density_corner(
    density: Any,
    draws: Mapping[str, ArrayLike],
    log_weight: ArrayLike | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Marginals of a learned density (lines) over those of draws (filled), at 50 and 90 %.

    Args:
        density: a `LearnedDensity`.
        draws: name -> (n,) array of the draws that it should describe.
        log_weight: their log weights (n,); equal where not given.
        labels: name -> axis label.
        path: where to save it as well.

    Raises:
        InputError: the draws lack a parameter of the density.
    """
    names = density.names
    if missing := [name for name in names if name not in draws]:
        raise InputError(f"no draws of {missing}; there are draws of {list(draws)}.")
    columns = np.stack([np.asarray(draws[name], float) for name in names], axis=1)
    log_weight = np.zeros(len(columns)) if log_weight is None else np.asarray(log_weight, float)
    weight = normalised_weights(log_weight)
    # A figure needs no randomness of its own: a fixed sequence that fills the cube evenly.
    cube = qmc.Sobol(density.dim, rng=np.random.default_rng(0)).random(_NUM_POINTS)
    points = density.from_unit_cube(cube)
    own = np.stack([np.asarray(points[name]) for name in names], axis=1)
    ranges = [
        _around(plot_range(x, log_weight, None), plot_range(y, None, None), ends)
        for x, y, ends in zip(columns.T, own.T, density.bounds.values(), strict=True)
    ]
    shown = [(labels or {}).get(name, name) for name in names]
    bins = int(np.clip(np.sqrt(kish(log_weight)), 10, 40))
    with style():
        side = 1.0 + 1.9 * max(density.dim, 1.6)
        figure = Figure(figsize=(side, side))
        _filled(figure, columns, weight, ranges, shown, bins)
        _lines(figure, own, ranges, shown, bins)
        handles: list[Any] = [
            Patch(color=COLOURS[0], alpha=0.5, label="draws"),
            Line2D([], [], color=COLOURS[1], label=f"density ({density.kind})"),
        ]
        figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(0.98, 0.98))
    return saved(figure, path)


def _around(
    one: tuple[float, float], other: tuple[float, float], bounds: tuple[float, float]
) -> tuple[float, float]:
    """The range of both, no farther than the support."""
    low, high = min(one[0], other[0]), max(one[1], other[1])
    return max(low, bounds[0]), min(high, bounds[1])


_COMMON: dict[str, Any] = {
    "levels": (0.5, 0.9),
    "plot_density": False,
    "plot_datapoints": False,
    "max_n_ticks": 4,
    "labelpad": -0.02,
    "quiet": True,
}


def _filled(
    figure: Figure, draws: np.ndarray, weight: np.ndarray, ranges: Any, labels: Any, bins: int
) -> None:
    from corner import corner

    corner(
        draws,
        weights=weight,
        fig=figure,
        bins=bins,
        range=ranges,
        labels=labels,
        color=COLOURS[0],
        smooth=0.9,
        fill_contours=True,
        contour_kwargs={"linewidths": 0.0},
        contourf_kwargs={"colors": [to_rgba(COLOURS[0], a) for a in (0.0, 0.25, 0.55)]},
        hist_kwargs={"linewidth": 0, "density": True, "histtype": "stepfilled", "alpha": 0.35},
        **_COMMON,
    )


def _lines(figure: Figure, points: np.ndarray, ranges: Any, labels: Any, bins: int) -> None:
    from corner import corner

    corner(
        points,
        fig=figure,
        bins=bins,
        range=ranges,
        labels=labels,
        color=COLOURS[1],
        # As much as the draws: an edge that is sharp in both is then smeared in both.
        smooth=0.9,
        fill_contours=False,
        no_fill_contours=True,
        contour_kwargs={"linewidths": 1.3},
        hist_kwargs={"linewidth": 1.5, "density": True},
        **_COMMON,
    )
