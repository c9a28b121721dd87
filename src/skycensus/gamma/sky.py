r"""Where photons come from: directions, regions, and skies given by functions, maps and points.

A sky is a `Point`, or a function of galactic (or any) longitude and latitude in degrees to the flux
per steradian; functions that also take the energy [TeV] change with it. How a sky is normalised is
the user's: to one for a source (its spectrum is then the flux), or absolute (a map of dJ/dΩ).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import maximum_filter, minimum_filter

from ..errors import InputError
from .response import separation

SkyFunction = Callable[..., Any]

# Where neighbouring pixels differ by so much, the mean over a pixel is taken from so many points
# along each of its sides.
_STEEP, _FINER = 1.5, 8

# Within so many pixels of its centre a function of the angle is integrated exactly; nearer to it
# than so many degrees it is a power law.
_NEAR, _CORE = 16, 1e-4
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
_STEPS, _STEP_WEIGHTS = 0.5 * (_NODES + 1.0), 0.5 * _WEIGHTS


@dataclass(frozen=True)
class Point:
    """A source without extent at a longitude and latitude [deg], of flux one."""

    lon: float
    lat: float


@dataclass(frozen=True)
class Disk:
    """A uniform disk [deg] of flux one."""

    lon: float
    lat: float
    radius: float

    def __call__(self, lon: Any, lat: Any) -> np.ndarray:
        inside = _angle(self, lon, lat) <= self.radius
        return inside / (2 * np.pi * (1.0 - np.cos(np.deg2rad(self.radius))))


@dataclass(frozen=True)
class Gaussian:
    """A round Gaussian of width `sigma` [deg], of flux one."""

    lon: float
    lat: float
    sigma: float

    def __call__(self, lon: Any, lat: Any) -> np.ndarray:
        width = np.deg2rad(self.sigma)
        square = 2.0 * np.sin(0.5 * np.deg2rad(_angle(self, lon, lat))) ** 2
        return np.exp(-square / width**2) / (2 * np.pi * width**2 * -np.expm1(-2.0 / width**2))


@dataclass(frozen=True)
class Isotropic:
    """The same from everywhere: one per steradian."""

    def __call__(self, lon: Any, lat: Any) -> np.ndarray:
        return np.ones(np.broadcast(lon, lat).shape)


@dataclass(frozen=True)
class Around:
    """A function of the angle [deg] from a direction, as a halo of dark matter is.

    It may rise to the centre without an end as long as the flux is finite, and is a power law below
    1e-4 degrees.
    """

    lon: float
    lat: float
    profile: Callable[[Any], Any]

    def __call__(self, lon: Any, lat: Any) -> np.ndarray:
        return np.asarray(self.profile(_angle(self, lon, lat)))

    def pixel_means(self, plane: Plane, near: np.ndarray) -> np.ndarray:
        r"""(P,) means over pixels, by row and column (P, 2), that are near the centre.

        By the divergence theorem $\int f\,dA = \oint Q(r)\,r^{-2}\,(\mathbf r\cdot\mathbf n)\,ds$
        with $Q = \int_0^r f\,r'\,dr'$, so that a cusp is no harder than the rest.
        """
        center = np.array(plane.to_plane(self.lon, self.lat))
        low = plane.pixel * near[:, ::-1] - plane.half_width - center
        total = np.zeros(len(near))
        for axis, side in ((0, 0), (0, 1), (1, 0), (1, 1)):
            away = low[:, axis] + side * plane.pixel
            distance = np.maximum(np.abs(away), 1e-12)
            # Even steps in asinh(t / distance) along an edge, as the integrand asks.
            start, stop = (np.arcsinh((low[:, 1 - axis] + z) / distance) for z in (0, plane.pixel))
            r = distance * np.cosh(start + _STEPS[:, None] * (stop - start))
            mean = _STEP_WEIGHTS @ (np.exp(self._log_disk(np.log(r))) / r)
            total += (2 * side - 1) * away * (stop - start) * mean
        return total / plane.pixel**2

    def _log_disk(self, log_r: np.ndarray) -> np.ndarray:
        """The logarithm of Q at the logarithm of radii r in the plane [rad]."""
        nodes, log_q = self._disks
        first = (log_q[1] - log_q[0]) / (nodes[1] - nodes[0])
        return np.interp(log_r, nodes, log_q) + first * np.minimum(log_r - nodes[0], 0.0)

    @cached_property
    def _disks(self) -> tuple[np.ndarray, np.ndarray]:
        angle = np.geomspace(_CORE, 90.0, 801)
        radius = 2.0 * np.sin(np.deg2rad(0.5 * angle))
        flux = np.maximum(np.asarray(self.profile(angle), float), 1e-300) * radius**2
        # Power laws between the nodes.
        rise, step = np.diff(np.log(flux)), np.diff(np.log(radius))
        flat = np.abs(rise) < 1e-9
        mean = np.where(flat, flux[1:], np.diff(flux) / np.where(flat, 1.0, rise))
        if not rise[0] > 0:
            raise InputError(
                "a sky's flux is infinite: towards its centre it rises as the angle to the power "
                f"{rise[0] / step[0] - 2.0:.3g}, which has no integral from -2 on. A halo that "
                "annihilates needs a slope below 1.5 there."
            )
        within = np.cumsum(np.append(flux[0] * step[0] / rise[0], mean * step))
        return np.log(radius), np.log(within)


class Template:
    """A map on a grid of longitudes and latitudes [deg], and maybe energies [TeV]; zero outside.

    It is interpolated linearly. Along the energy it follows power laws, beyond the ends too.

    Args:
        lon, lat: ascending centres of the cells.
        values: (lat, lon) or (energy, lat, lon), not negative.
        energy: ascending, where the map has one for each.

    Raises:
        InputError: shapes that do not fit, or values that are negative or not finite.
    """

    def __init__(self, lon: Any, lat: Any, values: Any, energy: Any = None):
        self.lon, self.lat = np.asarray(lon, float), np.asarray(lat, float)
        self.values = np.asarray(values, float)
        self.energy = None if energy is None else np.asarray(energy, float)
        first = () if self.energy is None else (len(self.energy),)
        shape = (*first, len(self.lat), len(self.lon))
        if self.values.shape != shape:
            raise InputError(f"a template has values of shape {self.values.shape} on axes {shape}.")
        if not (np.isfinite(self.values).all() and (self.values >= 0).all()):
            raise InputError("a template has values that are negative, infinite or NaN.")
        self.pixel = 0.5 * float(min(np.diff(x).min() for x in (self.lon, self.lat)))

    @property
    def has_energy(self) -> bool:
        """Whether the map changes with the energy."""
        return self.energy is not None

    def at_energy(self, energy: float) -> Template:
        """The map at one energy [TeV]."""
        if self.energy is None:
            return self
        nodes = np.log(self.energy)
        low = int(np.clip(np.searchsorted(nodes, np.log(energy)) - 1, 0, len(nodes) - 2))
        share = (np.log(energy) - nodes[low]) / (nodes[low + 1] - nodes[low])
        one, two = self.values[low : low + 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            between = np.exp((1.0 - share) * np.log(one) + share * np.log(two))
        return Template(self.lon, self.lat, np.where((one > 0) & (two > 0), between, 0.0))

    def with_mean(self, mean: float) -> Template:
        """The map in units in which its mean over the grid is `mean`."""
        return Template(self.lon, self.lat, self.values * (mean / self.values.mean()), self.energy)

    def __call__(self, lon: Any, lat: Any, energy: float | None = None) -> np.ndarray:
        if self.energy is not None:
            if energy is None:
                raise InputError("the template changes with the energy: give one.")
            return self.at_energy(energy)(lon, lat)
        middle = 0.5 * (self.lon[0] + self.lon[-1])
        # The nearest turn of the circle.
        lon = middle + (np.asarray(lon) - middle + 180.0) % 360.0 - 180.0
        lookup = RegularGridInterpolator(
            (self.lat, self.lon), self.values, bounds_error=False, fill_value=0.0
        )
        return lookup(np.stack(np.broadcast_arrays(lat, lon), axis=-1))


def takes_energy(sky: Any) -> bool:
    """Whether a sky changes with the energy."""
    return bool(getattr(sky, "has_energy", False))


def read_template(path: str | Path, *, frame: str = "galactic", unit: str = "") -> Template:
    """Read a FITS map (lat, lon), or a cube (energy, lat, lon) with its energies in an extension.

    Args:
        path: the file; the image is in its first HDU.
        frame: "galactic" or "icrs", of the map and of everything else.
        unit: of the values, where the header has none; what converts to 1/(cm² s TeV sr) is so
            converted, and other maps are taken as they are.

    Raises:
        InputError: no such file, or one without a map on a grid of longitudes and latitudes (plate
            carrée, CAR) in that frame.
    """
    from astropy.io import fits
    from astropy.wcs import WCS

    if not Path(path).exists():
        raise InputError(f"no sky map '{path}'.")
    with fits.open(path) as file:
        header, values = file[0].header, file[0].data
        energy = _energies(file["ENERGIES"], path) if "ENERGIES" in file else None
    if values is None or values.ndim != (2 if energy is None else 3):
        raise InputError(
            f"'{path}' must have an image (lat, lon) in its first HDU, or (energy, lat, lon) and "
            "an extension ENERGIES."
        )
    wcs = WCS(header).celestial
    names = {"galactic": ("GLON", "GLAT"), "icrs": ("RA", "DEC")}[frame]
    kinds = tuple(wcs.wcs.ctype)
    if not all(k.startswith(n) and k.endswith("CAR") for k, n in zip(kinds, names, strict=True)):
        raise InputError(f"'{path}' has axes {kinds}; give {names} in the projection CAR.")
    num_lat, num_lon = values.shape[-2:]
    lon = wcs.wcs_pix2world(np.arange(num_lon), np.full(num_lon, num_lat // 2), 0)[0]
    lat = wcs.wcs_pix2world(np.full(num_lat, num_lon // 2), np.arange(num_lat), 0)[1]
    lon = np.rad2deg(np.unwrap(np.deg2rad(lon)))
    if lon[0] > lon[-1]:
        lon, values = lon[::-1], values[..., ::-1]
    return Template(lon, lat, values * _per_tev(header.get("BUNIT") or unit, path), energy)


def _energies(table: Any, path: Any) -> np.ndarray:
    from astropy import units

    name = next((c for c in table.columns.names if c.upper() == "ENERGY"), None)
    if name is None:
        raise InputError(f"'{path}': ENERGIES has {table.columns.names} but no column ENERGY.")
    unit = units.Unit(table.columns[name].unit or "MeV")
    return (np.asarray(table.data[name], float) * unit).to_value("TeV")


def _per_tev(unit: str, path: Any) -> float:
    from astropy import units

    try:
        return float(units.Unit(unit).to("cm-2 s-1 TeV-1 sr-1"))
    except units.UnitConversionError:
        return 1.0
    except ValueError:
        raise InputError(f"'{path}': '{unit}' is no unit that is known.") from None


def _angle(center: Any, lon: Any, lat: Any) -> np.ndarray:
    lon, lat = np.asarray(lon, float), np.asarray(lat, float)
    return np.asarray(separation(center.lon, center.lat, lon, lat))


# ---- regions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """Longitudes and latitudes [deg] between two values each."""

    lon: tuple[float, float]
    lat: tuple[float, float]

    def __post_init__(self) -> None:
        for name, (low, high) in (("lon", self.lon), ("lat", self.lat)):
            if not low < high:
                raise InputError(f"region: {name} = [{low:g}, {high:g}] must rise.")

    @property
    def center(self) -> tuple[float, float]:
        return 0.5 * sum(self.lon), 0.5 * sum(self.lat)

    @property
    def half_width(self) -> float:
        """Of the square of the plane about the centre that holds it [deg]."""
        plane = Plane(*self.center, 1.0, 2)
        line = np.linspace(-1.0, 1.0, 65)
        edges = [(a, b) for a in (-1.0, 1.0) for b in line] + [
            (b, a) for a in (-1.0, 1.0) for b in line
        ]
        u, v = np.array(edges).T
        half = [0.5 * (high - low) for low, high in (self.lon, self.lat)]
        xy = plane.to_plane(self.center[0] + u * half[0], self.center[1] + v * half[1])
        return float(np.rad2deg(np.max(np.abs(xy))))

    def inside(self, lon: Any, lat: Any) -> np.ndarray:
        """Whether directions [deg] are in it."""
        middle = self.center[0]
        lon = middle + (np.asarray(lon) - middle + 180.0) % 360.0 - 180.0
        return _between(lon, self.lon) & _between(np.asarray(lat), self.lat)


@dataclass(frozen=True)
class Cone:
    """Directions within `radius` of one [deg]."""

    lon: float
    lat: float
    radius: float

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise InputError(f"region: radius = {self.radius:g} must be positive.")

    @property
    def center(self) -> tuple[float, float]:
        return self.lon, self.lat

    @property
    def half_width(self) -> float:
        """Of the square of the plane about the centre that holds it [deg]."""
        return self.radius

    def inside(self, lon: Any, lat: Any) -> np.ndarray:
        """Whether directions [deg] are in it."""
        return _angle(self, lon, lat) <= self.radius


Region = Box | Cone


def _between(x: np.ndarray, bounds: Sequence[float]) -> np.ndarray:
    return (x >= bounds[0]) & (x <= bounds[1])


# ---- a piece of the sky as a plane ---------------------------------------------------------------


@dataclass(frozen=True)
class Plane:
    """A square of the sky about a centre, in equal-area coordinates x, y [rad] (Lambert).

    Areas are exact; distances are wrong by an eighth of the square of the angle from the centre,
    3e-4 at three degrees.
    """

    lon: float
    lat: float
    half_width: float
    num: int

    @property
    def pixel(self) -> float:
        """The side of a pixel [rad]."""
        return 2.0 * self.half_width / self.num

    def centers(self, num: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Longitudes and latitudes [deg] of `num` x `num` pixel centres, rows along y."""
        num = num or self.num
        line = self.half_width * ((2.0 * np.arange(num) + 1.0) / num - 1.0)
        return self.to_sky(*np.meshgrid(line, line))

    def to_sky(self, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Longitude and latitude [deg] of points of the plane."""
        rho = np.hypot(x, y)
        angle = 2.0 * np.arcsin(np.minimum(0.5 * rho, 1.0))
        # sin(angle) / rho, without its removable zero.
        ratio = np.sqrt(np.maximum(1.0 - 0.25 * rho**2, 0.0))
        lat = np.deg2rad(self.lat)
        up = np.cos(angle) * np.sin(lat) + y * ratio * np.cos(lat)
        east, north = x * ratio, np.cos(angle) * np.cos(lat) - y * ratio * np.sin(lat)
        return self.lon + np.rad2deg(np.arctan2(east, north)), np.rad2deg(
            np.arcsin(np.clip(up, -1, 1))
        )

    def to_plane(self, lon: Any, lat: Any) -> tuple[Any, Any]:
        """x and y [rad] of directions [deg]; arrays of JAX where the longitudes are."""
        xp: Any = jnp if isinstance(lon, jax.Array) else np
        dlon, lat, zero = xp.deg2rad(lon - self.lon), xp.deg2rad(lat), np.deg2rad(self.lat)
        cosine = np.sin(zero) * xp.sin(lat) + np.cos(zero) * xp.cos(lat) * xp.cos(dlon)
        factor = xp.sqrt(2.0 / (1.0 + cosine))
        x = factor * xp.cos(lat) * xp.sin(dlon)
        return x, factor * (np.cos(zero) * xp.sin(lat) - np.sin(zero) * xp.cos(lat) * xp.cos(dlon))

    def pixel_means(self, function: SkyFunction) -> np.ndarray:
        """(num, num) means of a sky over pixels; more points where it is steep or has an edge.

        Raises:
            InputError: values that are negative, infinite or NaN, or a flux that is infinite.
        """
        line = self.half_width * ((2.0 * np.arange(self.num) + 1.0) / self.num - 1.0)
        x, y = np.meshgrid(line, line)
        mean = np.array(function(*self.to_sky(x, y)), float)
        if not np.isfinite(mean).all() or (mean < 0).any():
            raise InputError("a sky map has values that are negative, infinite or NaN.")
        high, low = maximum_filter(mean, 3), minimum_filter(mean, 3)
        steep = (high > _STEEP * low) & (high > 1e-4 * mean.max())
        if isinstance(function, Around):
            x0, y0 = self.to_plane(function.lon, function.lat)
            near = np.hypot(x - x0, y - y0) < _NEAR * self.pixel
            mean[near] = function.pixel_means(self, np.argwhere(near))
            steep &= ~near
        place = self.pixel * ((np.arange(_FINER) + 0.5) / _FINER - 0.5)
        dx, dy = (d.ravel() for d in np.meshgrid(place, place))
        finer = function(*self.to_sky(x[steep][:, None] + dx, y[steep][:, None] + dy))
        mean[steep] = np.mean(finer, axis=-1)
        return mean
