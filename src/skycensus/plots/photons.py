"""Photons on the sky and in energy, beside what a model expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ..gamma.photons import Observation, Tree
from ..gamma.simulate import expected_spectra
from ..gamma.sky import Plane, Region
from .style import COLOURS, FAINT, plain_log_ticks, style

# Contours of a Gaussian posterior in two dimensions that hold 68 % and 95 %.
_CONTOURS = (0.68, 0.95)


def counts_map(
    runs: Sequence[Observation],
    region: Region,
    *,
    place: ArrayLike | None = None,
    pixel: float = 0.05,
) -> Figure:
    """Photons of all runs in pixels of the sky, and where a source is.

    Args:
        runs: their photons that are used; the pointings are crosses.
        region: what is shown.
        place: (2, draw) longitudes and latitudes [deg] of a source: contours of 68 % and 95 % about
            their mean.
        pixel: its side [deg].
    """
    lon, lat = (
        np.concatenate([np.asarray(getattr(r, n))[r.used] for r in runs]) for n in ("lon", "lat")
    )
    plane = Plane(*region.center, 1.0, 2)
    half = float(region.half_width)
    edges = np.linspace(-half, half, int(np.ceil(2 * half / pixel)) + 1)

    def shown(lon: Any, lat: Any) -> tuple[np.ndarray, np.ndarray]:
        x, y = plane.to_plane(np.asarray(lon, float), np.asarray(lat, float))
        return np.rad2deg(x), np.rad2deg(y)

    with style():
        figure = Figure(figsize=(5.4, 4.4), layout="constrained")
        axes = figure.subplots()
        counts, _, _ = np.histogram2d(*shown(lon, lat), bins=(edges, edges))
        image = axes.pcolormesh(edges, edges, counts.T, cmap="Greys", rasterized=True)
        figure.colorbar(image, label=f"photons in a pixel of {pixel:g}°")
        if place is not None:
            _ellipses(axes, np.array(shown(*np.asarray(place, float))))
        for number, run in enumerate(runs):
            axes.plot(
                *shown(*run.pointing), "+", color=COLOURS[4], label=None if number else "pointings"
            )
        # East is on the left of the sky.
        axes.set(xlim=(half, -half), ylim=(-half, half), aspect="equal")
        middle = region.center
        axes.set_xlabel(f"degrees east of longitude {middle[0]:.3f}°")
        axes.set_ylabel(f"degrees north of latitude {middle[1]:.3f}°")
        axes.legend(loc="upper right")
    return figure


def _ellipses(axes: Any, place: np.ndarray) -> None:
    mean, covariance = place.mean(axis=1), np.cov(place)
    angle = np.linspace(0.0, 2.0 * np.pi, 181)
    root = np.linalg.cholesky(covariance)
    for share, line in zip(_CONTOURS, ("-", "--"), strict=True):
        radius = np.sqrt(-2.0 * np.log1p(-share))
        x, y = mean[:, None] + radius * root @ np.array([np.cos(angle), np.sin(angle)])
        axes.plot(x, y, line, color=COLOURS[1], lw=1.0, label=f"source, {share:.0%}")


def counts_spectrum(
    runs: Sequence[Observation],
    tree: Tree,
    hyperparameters: Mapping[str, Any],
    *,
    per_decade: int = 6,
) -> Figure:
    r"""Photons of all runs in bins of reconstructed energy, and what each component expects there.

    Below are $(n - \mu)/\sqrt\mu$ with the sum $\mu$ of all that is expected.

    Args:
        runs, tree: of the model.
        hyperparameters: at which it is taken, rates included.
        per_decade: bins.
    """
    low, high = min(r.cut.low for r in runs), max(r.cut.high for r in runs)
    edges = np.geomspace(low, high, max(int(np.log10(high / low) * per_decade), 4) + 1)
    energy = np.concatenate([np.asarray(r.energy)[r.used] for r in runs])
    seen, _ = np.histogram(energy, edges)
    expected = expected_spectra(runs, tree, hyperparameters, edges)
    total = np.sum(list(expected.values()), axis=0)
    middle = np.sqrt(edges[1:] * edges[:-1])
    with style():
        figure = Figure(figsize=(5.4, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.errorbar(middle, seen, np.sqrt(seen), fmt="o", ms=3.5, color="black", label="photons")
        for (name, counts), colour in zip(expected.items(), COLOURS[1:], strict=False):
            upper.stairs(counts, edges, color=colour, label=name)
        upper.stairs(total, edges, color=COLOURS[0], label="all")
        upper.set(xscale="log", yscale="log", ylabel="photons in a bin")
        upper.set_ylim(bottom=max(0.3, 0.5 * float(total.min())))
        upper.legend()
        # Where next to nothing is expected a residual says nothing.
        told = total > 1.0
        lower.axhline(0.0, color=FAINT, lw=0.8)
        lower.plot(
            middle[told], ((seen - total) / np.sqrt(total))[told], "o", ms=3.5, color="black"
        )
        lower.set(xlabel="reconstructed energy [TeV]", ylabel=r"$(n - \mu)/\sqrt{\mu}$")
        lower.set_ylim(-4.5, 4.5)
        plain_log_ticks(lower.xaxis, low, high)
    return figure
