r"""Tables of an instrument's response, as collaborations publish them (GADF, DL3), checked.

A table holds one number per cell of named axes and is interpolated linearly between the cells'
centres, in the logarithm of energies. The format: Deil et al. 2017, Gamma-ray astronomy data
formats (gamma-astro-data-formats.readthedocs.io).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import RegularGridInterpolator
from scipy.special import roots_genlaguerre

from ..errors import InputError

# Smallest positive numbers of 32 bits, the precision of the files: a rate of zero has a logarithm.
_TINY = float(np.finfo(np.float32).tiny)

# Gaussians that stand for a King profile: its tail is right to 1e-4 of its height at 10 sigma.
_KING_TERMS = 12

# Gaussians that stand for a tabulated profile, in units of its 68 % radius.
_WIDTHS = np.geomspace(0.12, 4.0, 14)


@dataclass(frozen=True)
class Table:
    """Numbers on named axes: axis name -> centres of its cells, and values of that shape."""

    axes: Mapping[str, np.ndarray]
    values: np.ndarray

    def __post_init__(self) -> None:
        shape = tuple(len(nodes) for nodes in self.axes.values())
        if np.shape(self.values)[: len(shape)] != shape:
            raise InputError(
                f"a response table over {list(self.axes)} has {shape} cells, but values of shape "
                f"{np.shape(self.values)}."
            )
        if not np.isfinite(self.values).all():
            raise InputError(f"a response table over {list(self.axes)} has NaN or infinite values.")

    def clipped(self, axis: str, x: Any) -> np.ndarray:
        """Coordinates that are no farther out than the axis."""
        return np.clip(x, self.axes[axis][0], self.axes[axis][-1])

    def at(self, **points: Any) -> np.ndarray:
        """Linear interpolation (and extrapolation) at broadcast coordinates, one for each axis."""
        return _interpolated(self.axes, self.values, points)

    def at_each(self, axis: str, where: np.ndarray, **points: Any) -> np.ndarray:
        """(K, ...) the same at each of the coordinates (K,) of one axis, with those of the others.

        Linear in one axis after the others, it takes a fraction of the time of `at`.
        """
        others = {name: x for name, x in self.axes.items() if name != axis}
        values = np.moveaxis(self.values, list(self.axes).index(axis), -1)
        rows = np.moveaxis(_interpolated(others, values, points), -1, 0)
        return _interpolated({axis: self.axes[axis]}, rows, {axis: where})


def _interpolated(
    axes: Mapping[str, np.ndarray], values: np.ndarray, points: Mapping[str, Any]
) -> np.ndarray:
    nodes = [_scaled(name, x) for name, x in axes.items()]
    where = np.broadcast_arrays(*(_scaled(name, points[name]) for name in axes))
    lookup = RegularGridInterpolator(nodes, values, bounds_error=False, fill_value=None)
    return lookup(np.stack(where, axis=-1))


def _scaled(axis: str, x: Any) -> np.ndarray:
    x = np.asarray(x, float)
    return np.log(x) if axis.startswith("energy") else x


@dataclass(frozen=True)
class ResponseTables:
    r"""What a response consists of, as functions of the true energy E [TeV] and offset [deg].

    Attributes:
        area: effective area [cm²] over `energy`, `offset`.
        migration: density of $\mu = E'/E$ over `energy`, `migra`, `offset`.
        psf: mixture of Gaussians: `weight` and `sigma` [deg] over `energy`, `offset`, each with a
            last axis of the terms; the weights are the contained fractions and sum to one.
        background: log of the rate [1/(TeV s sr)] over reconstructed `energy` and `offset`, or
            `energy`, `fov_lon`, `fov_lat` [deg]; None where there is none.
        max_offset: edge of the tables [deg].
    """

    area: Table
    migration: Table
    psf: Mapping[str, Table]
    background: Table | None
    max_offset: float

    def log_psf(self, energy: Any, offset: Any, separation: Any) -> np.ndarray:
        r"""$\ln p(\Omega'|E, \Omega)$ [1/deg²] at angular separations [deg]."""
        energy, offset, separation = np.broadcast_arrays(energy, offset, separation)
        weight, sigma = (self.psf[n].at(energy=energy, offset=offset) for n in ("weight", "sigma"))
        height = np.maximum(weight, _TINY) / (2 * np.pi * sigma**2)
        terms = np.log(height) - 0.5 * (separation[..., None] / sigma) ** 2
        return np.logaddexp.reduce(terms, axis=-1)

    def migration_density(self, reconstructed: Any, energy: Any, offset: Any) -> np.ndarray:
        """p(E'|E) [1/TeV], as tabulated (its integral may differ from one)."""
        ratio = np.asarray(reconstructed) / np.asarray(energy)
        return self.migration.at(energy=energy, migra=ratio, offset=offset) / energy


def read_tables(path: str | Path) -> ResponseTables:
    """Read the response in a FITS file in the GADF format, with gammapy (extra `gamma`).

    Raises:
        InputError: gammapy is missing; no such file; a file without one of the parts, or with axes
            or units that are not those of the format.
    """
    try:
        from gammapy.irf import load_irf_dict_from_file
    except ImportError as error:
        raise InputError(
            f"reading '{path}' needs gammapy ({error}); pip install 'skycensus[gamma]'."
        ) from None
    if not Path(path).exists():
        raise InputError(f"no response file '{path}'.")
    try:
        parts = load_irf_dict_from_file(path)
    except Exception as error:
        raise InputError(f"'{path}' is no response in the GADF format: {error}") from None
    return tables_of_gammapy(parts, f"'{path}'")


def tables_of_gammapy(parts: Mapping[str, Any], source: str) -> ResponseTables:
    """The response of gammapy's tables `aeff`, `edisp`, `psf` and maybe `bkg`.

    Raises:
        InputError: a part that is missing, or with axes or units that are not those of the format.
    """
    needed = {"aeff": "effective area", "edisp": "energy dispersion", "psf": "point spread"}
    if missing := [f"{key.upper()} ({what})" for key, what in needed.items() if key not in parts]:
        raise InputError(
            f"{source} has no {' and no '.join(missing)}; it has {sorted(parts) or 'nothing'}. "
            "Give a file with full-enclosure responses in the GADF format."
        )
    try:
        return _from_gammapy(parts)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None


def _from_gammapy(parts: Mapping[str, Any]) -> ResponseTables:
    area = parts["aeff"]
    migration, psf = parts["edisp"], parts["psf"]
    edges = area.axes["offset"].edges.to_value("deg")
    background = parts.get("bkg")
    return ResponseTables(
        Table(_axes(area, "energy", "offset"), np.asarray(area.quantity.to_value("cm2"), float)),
        Table(_axes(migration, "energy", "migra", "offset"), np.asarray(migration.data, float)),
        _psf(psf),
        None if background is None else _background(background),
        float(edges[-1]),
    )


def _axes(part: Any, *names: str) -> dict[str, np.ndarray]:
    """The named axes of one of gammapy's tables, in their order there."""
    units = {"energy": "TeV", "offset": "deg", "fov_lon": "deg", "fov_lat": "deg", "rad": "deg"}
    have = {str(n).replace("energy_true", "energy"): part.axes[n] for n in part.axes.names}
    if sorted(have) != sorted(names):
        raise InputError(f"{type(part).__name__} has axes {sorted(have)} instead of {names}.")
    return {
        n: np.asarray(axis.center.to_value(units.get(n, "")), float) for n, axis in have.items()
    }


def _psf(psf: Any) -> dict[str, Table]:
    kind = type(psf).__name__
    if kind == "PSF3D":
        axes = _axes(psf, "energy", "offset", "rad")
        return gaussians_of_table(axes, psf.quantity.to_value("deg-2"))
    axes = _axes(psf, "energy", "offset")
    value = {n: np.asarray(psf.data[n], float) for n in psf.data.dtype.names}
    if kind == "PSFKing":
        return king(axes, value["gamma"], value["sigma"])
    return three_gaussians(axes, **value)


def three_gaussians(axes: Mapping[str, np.ndarray], **value: np.ndarray) -> dict[str, Table]:
    r"""From $\mathtt{scale}\,[e^{-r^2/2\sigma_1^2} + A_2 e^{-r^2/2\sigma_2^2} + \dots]$.

    The fractions that the terms contain sum to one, whatever the scale; where it is zero nothing is
    known.
    """
    sigma = np.stack([value[f"sigma_{i}"] for i in (1, 2, 3)], axis=-1)
    height = np.stack([np.ones_like(value["sigma_1"]), value["ampl_2"], value["ampl_3"]], axis=-1)
    if not (sigma > 0).all() or (height < 0).any():
        raise InputError("the point spread function has widths or amplitudes that are negative.")
    share = height * sigma**2
    # Terms that occur nowhere cost as much as others.
    used = (height > 0).any(axis=tuple(range(height.ndim - 1)))
    share, sigma = share[..., used], sigma[..., used]
    share = share / share.sum(-1, keepdims=True)
    if "scale" in value:
        share, sigma = _filled(share, sigma, np.asarray(value["scale"]) > 0)
    return _mixture(axes, share, sigma)


def king(axes: Mapping[str, np.ndarray], gamma: np.ndarray, sigma: np.ndarray) -> dict[str, Table]:
    r"""From $\frac{1}{2\pi\sigma^2}(1-\frac1\gamma)(1+\frac{r^2}{2\gamma\sigma^2})^{-\gamma}$.

    It is a mixture of Gaussians of variance $\gamma\sigma^2/t$ with $t \sim \mathrm{Gamma}(\gamma -
    1)$, which Gauss–Laguerre nodes make a finite one.
    """
    gamma, sigma = np.maximum(gamma, 1.05), np.maximum(sigma, 1e-4)
    weight, width = (np.empty((*gamma.shape, _KING_TERMS)) for _ in range(2))
    for i in np.ndindex(gamma.shape):
        t, w = roots_genlaguerre(_KING_TERMS, gamma[i] - 2.0)
        weight[i], width[i] = w / w.sum(), sigma[i] * np.sqrt(gamma[i] / t)
    return _mixture(axes, weight, width)


def gaussians_of_table(axes: Mapping[str, np.ndarray], density: Any) -> dict[str, Table]:
    """From a radial profile over `energy`, `offset`, `rad` [deg], in any normalisation.

    The mixture has the containment of the table, by non-negative least squares.
    """
    from scipy.optimize import nnls

    order = [list(axes).index(n) for n in ("energy", "offset", "rad")]
    profile = np.transpose(np.asarray(density, float), order)
    rad = axes["rad"]
    edges = np.concatenate([[0.0], 0.5 * (rad[1:] + rad[:-1]), [1.5 * rad[-1] - 0.5 * rad[-2]]])
    ring = np.maximum(profile, 0.0) * np.diff(np.pi * edges**2)
    total = ring.sum(-1)
    weight = np.zeros((*total.shape, len(_WIDTHS)))
    width = np.ones_like(weight)
    weight[..., 0] = 1.0
    for i in np.argwhere(total > 0):
        contained = np.concatenate([[0.0], np.cumsum(ring[tuple(i)])]) / total[tuple(i)]
        scale = np.interp(0.68, contained, edges)
        sigma = _WIDTHS * max(scale, rad[0])
        terms = -np.expm1(-0.5 * (edges[:, None] / sigma) ** 2)
        found, _ = nnls(terms, contained)
        weight[tuple(i)], width[tuple(i)] = found / found.sum(), sigma
    two = {n: axes[n] for n in ("energy", "offset")}
    return _mixture(two, *_filled(weight, width, total > 0))


def _filled(
    weight: np.ndarray, width: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cells (energy, offset) without a profile get that of the next energy with one."""
    weight, width = weight.copy(), width.copy()
    for b in range(known.shape[1]):
        have = np.flatnonzero(known[:, b])
        if not len(have):
            raise InputError(
                f"the point spread function is zero at all energies (offset cell {b})."
            )
        near = have[np.argmin(abs(np.arange(len(known))[:, None] - have), axis=1)]
        weight[:, b], width[:, b] = weight[near, b], width[near, b]
    return weight, width


def _mixture(
    axes: Mapping[str, np.ndarray], weight: np.ndarray, sigma: np.ndarray
) -> dict[str, Table]:
    order = [list(axes).index(n) for n in ("energy", "offset")]
    axes = {n: axes[n] for n in ("energy", "offset")}
    turned = [np.transpose(x, (*order, 2)) for x in (weight, sigma)]
    return {"weight": Table(axes, turned[0]), "sigma": Table(axes, turned[1])}


def _background(part: Any) -> Table:
    three = "fov_lon" in part.axes.names
    names = ("energy", "fov_lon", "fov_lat") if three else ("energy", "offset")
    axes = _axes(part, *names)
    rate = np.asarray(part.quantity.to_value("s-1 TeV-1 sr-1"), float)
    return Table(axes, np.log(np.maximum(rate, _TINY)))


def tables_from_arrays(arrays: Mapping[str, Any]) -> ResponseTables:
    """From arrays `<part>_<axis>` and `<part>` of aeff [m²], edisp, psf (three Gaussians), bkg2d.

    Energies in TeV, angles in degrees, background in 1/(MeV s sr): the layout of a NumPy file for
    machines without gammapy.

    Raises:
        InputError: arrays that are missing, or shapes that do not fit.
    """
    names = ("aeff", "edisp", "bkg2d", *(f"psf_{n}" for n in _THREE))
    axes = {
        "aeff": ("energy_true", "offset"),
        "edisp": ("energy_true", "migra", "offset"),
        "psf": ("energy_true", "offset"),
        "bkg2d": ("energy", "offset"),
    }
    wanted = [*names, *(f"{part}_{axis}" for part, own in axes.items() for axis in own)]
    if missing := [n for n in wanted if n not in arrays]:
        raise InputError(f"the response arrays lack {missing}; they have {sorted(arrays)}.")
    array = {n: np.asarray(arrays[n], float) for n in wanted}

    def over(part: str) -> dict[str, np.ndarray]:
        return {a.replace("energy_true", "energy"): array[f"{part}_{a}"] for a in axes[part]}

    edges = arrays.get("aeff_offset_edges", array["aeff_offset"])
    rate = np.maximum(array["bkg2d"], _TINY) * 1e6
    return ResponseTables(
        Table(over("aeff"), array["aeff"] * 1e4),
        Table(over("edisp"), array["edisp"]),
        three_gaussians(over("psf"), **{n: array[f"psf_{n}"] for n in _THREE}),
        Table(over("bkg2d"), np.log(rate)),
        float(np.max(edges)),
    )


_THREE = ("sigma_1", "sigma_2", "sigma_3", "scale", "ampl_2", "ampl_3")
