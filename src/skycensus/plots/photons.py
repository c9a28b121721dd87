"""Photons on the sky and in energy, by component, beside what a model expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ..gamma.expected import expected_spectra, fluxes, shares
from ..gamma.photons import Observation, Tree, leaves_of
from ..gamma.sky import Plane, Region
from .style import COLOURS, FAINT, plain_log_ticks, style

# Contours of a Gaussian posterior in two dimensions that hold 68 % and 95 %.
_CONTOURS = (0.68, 0.95)

# The part of a band that lies below, in the middle and above.
_BAND = (0.05, 0.5, 0.95)


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
    _, lon, lat = _used(runs)
    shown, half, edges = _pixels(region, pixel)
    with style():
        figure = Figure(figsize=(5.4, 4.4), layout="constrained")
        axes = figure.subplots()
        x, y = shown(lon, lat)
        counts, _, _ = np.histogram2d(x, y, bins=[edges, edges])
        image = axes.pcolormesh(edges, edges, counts.T, cmap="Greys", rasterized=True)
        figure.colorbar(image, label=f"photons in a pixel of {pixel:g}°")
        if place is not None:
            _ellipses(axes, np.array(shown(*np.asarray(place, float))))
        for number, run in enumerate(runs):
            axes.plot(
                *shown(*run.pointing), "+", color=COLOURS[4], label=None if number else "pointings"
            )
        _sky_axes(axes, half)
        axes.set_xlabel(f"degrees east of longitude {region.center[0]:.3f}°")
        axes.set_ylabel(f"degrees north of latitude {region.center[1]:.3f}°")
        axes.legend(loc="upper right")
    return figure


def peek(
    runs: Sequence[Observation],
    membership: Mapping[str, ArrayLike],
    region: Region,
    *,
    pixel: float | None = None,
    per_decade: int = 8,
) -> Figure:
    """Maps and spectra of the photons of all runs, all of them and by component.

    Args:
        runs: their photons that are used.
        membership: component -> (photon,) the probability that a photon is its, in the order of the
            runs; or which are, where they were simulated. In the order of the tree, colours are
            those of the other figures.
        region: what is shown.
        pixel: its side [deg]; by default a fortieth of the region.
        per_decade: bins of reconstructed energy.
    """
    energy, lon, lat = _used(runs)
    pixel = pixel or region.half_width / 20.0
    shown, half, edges = _pixels(region, pixel)
    x, y = shown(lon, lat)
    bins = _energy_bins(runs, per_decade)
    weights = {"all": np.ones(len(energy))}
    weights |= {name: np.asarray(p, float) for name, p in membership.items()}
    every, _ = np.histogram(energy, bins)
    colours = [COLOURS[0], *(COLOURS[1:] * len(weights))]
    with style():
        size = (2.5 * len(weights) + 0.6, 4.8)
        figure = Figure(figsize=size, layout="constrained")
        maps, spectra = figure.subplots(2, len(weights), height_ratios=(1.15, 1), squeeze=False)
        for column, (name, weight) in enumerate(weights.items()):
            axes, below = maps[column], spectra[column]
            counts, _, _ = np.histogram2d(x, y, bins=[edges, edges], weights=weight)
            image = axes.pcolormesh(edges, edges, counts.T, cmap="Greys", vmin=0, rasterized=True)
            figure.colorbar(image, ax=axes, location="top", shrink=0.8)
            _sky_axes(axes, half)
            axes.set(title=f"{name}: {weight.sum():.0f}", xlabel="degrees east")
            below.stairs(every, bins, color=FAINT)
            inside, _ = np.histogram(energy, bins, weights=weight)
            below.stairs(inside, bins, color=colours[column], fill=True, alpha=0.7)
            below.set(xscale="log", yscale="log", ylim=(0.5, 2.0 * every.max() + 1.0))
            below.set_xlabel("energy [TeV]")
            plain_log_ticks(below.xaxis, bins[0], bins[-1])
            below.set_xlim(bins[0], bins[-1])
            if column:
                below.set_yticklabels([])
        maps[0].set_ylabel("degrees north")
        spectra[0].set_ylabel("photons in a bin")
        east, north = region.center
        figure.suptitle(f"photons about longitude {east:.4g}°, latitude {north:.4g}°", fontsize=10)
    return figure


def _used(runs: Sequence[Observation]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energy, longitude and latitude of the photons that are used."""
    energy, lon, lat = (
        np.concatenate([np.asarray(getattr(r, n))[r.used] for r in runs])
        for n in ("energy", "lon", "lat")
    )
    return energy, lon, lat


def _pixels(region: Region, pixel: float) -> tuple[Any, float, Any]:
    """Degrees east and north of the region's centre, the half width, and edges of pixels."""
    plane = Plane(*region.center, 1.0, 2)
    half = float(region.half_width)
    edges = np.linspace(-half, half, int(np.ceil(2 * half / pixel)) + 1)

    def shown(lon: Any, lat: Any) -> tuple[np.ndarray, np.ndarray]:
        x, y = plane.to_plane(np.asarray(lon, float), np.asarray(lat, float))
        return np.rad2deg(x), np.rad2deg(y)

    return shown, half, edges


def _sky_axes(axes: Any, half: float) -> None:
    # East is on the left of the sky.
    axes.set(xlim=(half, -half), ylim=(-half, half), aspect="equal")


def _ellipses(axes: Any, place: np.ndarray) -> None:
    mean, covariance = place.mean(axis=1), np.cov(place)
    angle = np.linspace(0.0, 2.0 * np.pi, 181)
    root = np.linalg.cholesky(covariance)
    for share, line in zip(_CONTOURS, ("-", "--"), strict=True):
        radius = np.sqrt(-2.0 * np.log1p(-share))
        x, y = mean[:, None] + radius * root @ np.array([np.cos(angle), np.sin(angle)])
        axes.plot(x, y, line, color=COLOURS[1], lw=1.0, label=f"source, {share:.0%}")


def _energy_bins(runs: Sequence[Observation], per_decade: int) -> np.ndarray:
    low, high = min(r.cut.low for r in runs), max(r.cut.high for r in runs)
    return np.geomspace(low, high, max(int(np.log10(high / low) * per_decade), 4) + 1)


def counts_spectrum(
    runs: Sequence[Observation],
    tree: Tree,
    hyperparameters: Mapping[str, Any],
    *,
    rates: bool = True,
    per_decade: int = 6,
) -> Figure:
    r"""Photons of all runs in bins of reconstructed energy, and what each component expects there.

    Below are $(n - \mu)/\sqrt\mu$ with the sum $\mu$ of all that is expected.

    Args:
        runs, tree: of the model.
        hyperparameters: at which it is taken, all of them; with arrays (draw,) the median is shown,
            and 90 % as a band.
        rates: whether the leaves have rates, rather than fractions.
        per_decade: bins.
    """
    edges = _energy_bins(runs, per_decade)
    seen, _ = np.histogram(_used(runs)[0], edges)
    expected = expected_spectra(runs, tree, hyperparameters, edges, rates=rates)
    expected = {name: np.atleast_2d(counts) for name, counts in expected.items()}
    every = np.sum(list(expected.values()), axis=0)
    total = np.median(every, axis=0)
    middle = np.sqrt(edges[1:] * edges[:-1])
    with style():
        figure = Figure(figsize=(5.4, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.errorbar(middle, seen, np.sqrt(seen), fmt="o", ms=3.5, color="black", label="photons")
        colours = {**_colours(tree), "all": COLOURS[0]}
        for name, counts in {**expected, "all": every}.items():
            colour = colours[name]
            low, median, high = np.quantile(counts, _BAND, axis=0)
            upper.stairs(median, edges, color=colour, label=name)
            upper.stairs(high, edges, baseline=low, color=colour, fill=True, alpha=0.2)
        upper.set(xscale="log", yscale="log", ylabel="photons in a bin")
        upper.set_ylim(bottom=max(0.3, 1e-4 * float(total.max())))
        upper.set_xlim(edges[0], edges[-1])
        upper.legend()
        # Where next to nothing is expected a residual says nothing.
        told = total > 1.0
        lower.axhline(0.0, color=FAINT, lw=0.8)
        lower.plot(
            middle[told], ((seen - total) / np.sqrt(total))[told], "o", ms=3.5, color="black"
        )
        lower.set(xlabel="reconstructed energy [TeV]", ylabel=r"$(n - \mu)/\sqrt{\mu}$")
        lower.set_ylim(-4.5, 4.5)
        plain_log_ticks(lower.xaxis, edges[0], edges[-1])
    return figure


def spectra(
    runs: Sequence[Observation],
    tree: Tree,
    hyperparameters: Mapping[str, Any],
    *,
    rates: bool = True,
    truth: Mapping[str, Any] | None = None,
) -> Figure:
    r"""$E^2\Phi(E)$ of every component with a sky, from the first region: median and 90 %.

    With fractions fluxes are known up to a factor, and each is shown with a maximum of one.

    Args:
        runs, tree: of the model.
        hyperparameters: name -> (draw,).
        rates: whether the leaves have rates, rather than fractions.
        truth: true hyperparameters, dotted.
    """
    low, high = min(r.cut.low for r in runs), max(r.cut.high for r in runs)
    energy = np.geomspace(low, high, 120)
    region = runs[0].cut.region

    def curves(h: Mapping[str, Any]) -> dict[str, np.ndarray]:
        weight = shares(tree, h, rates=True)
        found = {}
        for name, flux in fluxes(tree, h, region, energy).items():
            power = energy**2 * flux
            top = np.maximum(power.max(axis=1, keepdims=True), 1e-300)
            found[name] = power * np.reshape(weight[name], (-1, 1)) if rates else power / top
        return found

    with style():
        figure = Figure(figsize=(5.4, 4.0), layout="constrained")
        axes = figure.subplots()
        true = curves(truth) if truth is not None else {}
        highest, lowest = 0.0, np.inf
        colours = _colours(tree)
        for name, power in curves(hyperparameters).items():
            colour = colours[name]
            bottom, middle, top = np.quantile(power, _BAND, axis=0)
            axes.plot(energy, middle, color=colour, label=name)
            axes.fill_between(energy, bottom, top, color=colour, alpha=0.25, lw=0)
            highest, lowest = max(highest, float(top.max())), min(lowest, float(bottom.min()))
            if name in true:
                axes.plot(energy, true[name][0], ":", color=colour)
        what = r"$E^2\Phi\ [\mathrm{TeV\,cm^{-2}\,s^{-1}}]$"
        axes.set(xlabel="true energy [TeV]", ylabel=what if rates else r"$E^2\Phi$, maximum 1")
        axes.set(xscale="log", yscale="log", xlim=(low, high))
        if highest > 0:
            axes.set_ylim(max(highest * 1e-4, 0.5 * lowest), highest * 3.0)
        plain_log_ticks(axes.xaxis, low, high)
        axes.legend()
    return figure


def _colours(tree: Tree) -> dict[str, str]:
    """Path of every leaf -> its colour, in all figures of a model; the first is that of all."""
    paths = [path for path, _ in leaves_of(tree)]
    return {path: COLOURS[1 + n % (len(COLOURS) - 1)] for n, path in enumerate(paths)}
