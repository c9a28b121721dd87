r"""Skies folded with a response: what a flux at each true energy makes of a photon, and how many.

For a sky S(Ω) and an observation of livetime t,

$$F_{ij} = t\,D(E'_i|E_j, o'_i) \int A\,P(\Omega'_i|E_j,\Omega)\,S(\Omega)\,d\Omega,\qquad
  G_j = \int_{\rm cut} F(E', \Omega')\,dE'\,d\Omega',$$

so that a spectrum s(E) makes the density of counts $\sum_j F_{ij} s(E_j)\,\delta E_j$ at a photon
and $\sum_j G_j s(E_j)\,\delta E_j$ counts in all. The integral over the sky is a convolution with
Gaussians on a plane (Fourier), or exact for points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import fft
from scipy.ndimage import map_coordinates

from ..blocks import in_blocks
from ..errors import InputError
from .response import Response, psf_at, separation
from .sky import Plane, Point, Region, takes_energy

# Photons beyond so many widths of the point spread are not seen.
_REACH = 5.0

# Pixels are no smaller [deg], and otherwise half of the narrowest width.
_SMALLEST_PIXEL = 0.015

# Rings about a point, and places on each, to integrate its point spread over a region: where all of
# it is inside, and where the region has an edge.
_COARSE, _DENSE = (8, 12), (128, 32)

# Photons folded at a time.
_BLOCK = 4096

# Nodes per decade of reconstructed energy in the integral of the background.
_BACKGROUND_NODES = 50


@dataclass(frozen=True)
class Cut:
    """What is looked at: a region of the sky, and energies from `low` to `high` [TeV]."""

    region: Region
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise InputError(
                f"energies {self.low:g} to {self.high:g} TeV must be positive and rise."
            )

    def inside(self, energy: Any, lon: Any, lat: Any) -> np.ndarray:
        """Which photons are in it."""
        energy = np.asarray(energy)
        return (energy >= self.low) & (energy <= self.high) & self.region.inside(lon, lat)


class Fold:
    """One observation's response, ready to fold skies for its photons.

    Args:
        response: on nodes of true energy.
        pointing: longitude and latitude [deg].
        livetime: [s].
        cut: what is looked at; photons are those in it.
        energy, lon, lat: of the photons, reconstructed [TeV, deg].
    """

    def __init__(
        self,
        response: Response,
        pointing: tuple[float, float],
        livetime: float,
        cut: Cut,
        energy: Any,
        lon: Any,
        lat: Any,
    ):
        self.response, self.pointing, self.livetime, self.cut = response, pointing, livetime, cut
        self.energy, self.lon, self.lat = (np.asarray(x, float) for x in (energy, lon, lat))
        self.offset = np.asarray(separation(*pointing, self.lon, self.lat))
        self._planes: dict[int, _FieldPlane] = {}
        self._accepted = np.asarray(response.energy_acceptance(cut.low, cut.high))

    # ---- the plane -------------------------------------------------------------------------------

    def _plane(self, pixel: float) -> _FieldPlane:
        """A plane with pixels [deg] of about this size, with what does not depend on the sky."""
        region = self.cut.region
        half = np.deg2rad(region.half_width + _REACH * np.rad2deg(self._widths[1].max()))
        num = _even(2.0 * half / np.deg2rad(pixel))
        if num not in self._planes:
            plane = Plane(*region.center, float(half), num)
            away = separation(*self.pointing, *plane.centers())
            offsets = np.moveaxis(np.asarray(self.response.offset_weights(away)), -1, 0)
            covered = plane.pixel_means(lambda lon, lat: region.inside(lon, lat) + 0.0)
            self._planes[num] = _FieldPlane(
                plane, offsets, fft.rfft2(offsets * covered, workers=-1)
            )
        return self._planes[num]

    @cached_property
    def _widths(self) -> tuple[np.ndarray, np.ndarray]:
        """(J,) narrowest and widest terms of the point spread, where photons are seen [rad]."""
        sigma, weight = np.asarray(self.response.psf_sigma), np.asarray(self.response.psf_weight)
        seen = np.asarray(self.response.area) * self._accepted
        used = (weight > 1e-3) & (seen > 1e-6 * seen.max())[..., None]
        low = np.where(used, sigma, np.inf).min((1, 2))
        return low, np.where(used, sigma, 0.0).max((1, 2))

    # ---- skies -----------------------------------------------------------------------------------

    def density(self, sky: Any) -> tuple[np.ndarray, np.ndarray]:
        """(N, J) F [counts/(TeV sr) per flux/TeV] and (J,) G [counts per flux/TeV] of a sky."""
        seen = np.empty((len(self.energy), len(self.response.energy)))
        if isinstance(sky, Point):
            expected = self._point(sky, seen)
        else:
            expected = self._map(sky, seen)
        return seen, expected

    def dispersion(self) -> np.ndarray:
        """(N, J) density of the reconstructed energies [1/TeV] at the nodes, for all skies."""
        response = self.response

        @jax.jit
        def block(rows: dict[str, Any]) -> Any:
            return (
                response.log_ratio_density(rows["energy"], rows["offset"]) / rows["energy"][:, None]
            )

        if not len(self.energy):
            return np.zeros((0, len(response.energy)))
        return in_blocks(block, {"energy": self.energy, "offset": self.offset}, _BLOCK)

    def _point(self, sky: Point, seen: np.ndarray) -> np.ndarray:
        response, here = self.response, (sky.lon, sky.lat)
        weights = response.offset_weights(separation(*self.pointing, *here))

        @jax.jit
        def block(rows: dict[str, Any]) -> Any:
            away = jnp.deg2rad(separation(*here, rows["lon"], rows["lat"]))
            return psf_at(response, away, weights)

        if len(self.energy):
            seen[:] = in_blocks(block, {"lon": self.lon, "lat": self.lat}, _BLOCK)
            seen *= self.livetime
        return self.livetime * point_acceptance(self, sky, np.asarray(weights))

    def _map(self, sky: Any, seen: np.ndarray) -> np.ndarray:
        finest = max(_SMALLEST_PIXEL, 0.5 * float(np.rad2deg(self._widths[0].min())))
        field = self._plane(max(finest, getattr(sky, "pixel", 0.0)))
        plane, energy = field.plane, np.asarray(self.response.energy)
        x, y = plane.to_plane(self.lon, self.lat)
        expected = np.zeros(len(energy))
        transform: Any = None
        for j in range(len(energy)):
            if not np.isfinite(self._widths[0][j]):
                seen[:, j] = 0.0
                continue
            if transform is None or takes_energy(sky):
                at = partial(sky, energy=energy[j]) if takes_energy(sky) else sky
                transform = fft.rfft2(field.offsets * plane.pixel_means(at), workers=-1)
            num = min(plane.num, _even(4.0 * plane.half_width / self._widths[0][j]))
            total = self._smeared(transform, plane, num, j)
            expected[j] = self.livetime * sum(
                accepted * _inner(_cropped(region, num), total, plane)
                for region, accepted in zip(field.region, self._accepted[j], strict=True)
            )
            if len(self.energy):
                seen[:, j] = self.livetime * _at(total, plane, x, y)
        return np.maximum(expected, 0.0)

    def _smeared(self, transform: np.ndarray, plane: Plane, num: int, j: int) -> np.ndarray:
        """The transform of what is seen at node j, on a grid of num x num."""
        row, column = _frequencies(num, plane)
        total = np.zeros((num, num // 2 + 1), complex)
        # Indexed as NumPy's: JAX would dispatch a program for every slice.
        areas, weights, sigmas = (
            np.asarray(x)[j]
            for x in (self.response.area, self.response.psf_weight, self.response.psf_sigma)
        )
        for b, (area, weight, sigma) in enumerate(zip(areas, weights, sigmas, strict=True)):
            if area > 0:
                # A sum of Gaussians in both directions is a product of matrices.
                along = area * weight * np.exp(-0.5 * (row[:, None] * sigma) ** 2)
                across = np.exp(-0.5 * (column[:, None] * sigma) ** 2)
                total += (along @ across.T) * _cropped(transform[b], num)
        return total

    # ---- background ------------------------------------------------------------------------------

    def background(self) -> tuple[np.ndarray, float]:
        """(N,) density of the background's counts at the photons [1/(TeV sr)], and their number.

        Raises:
            InputError: the response has no background.
        """
        seen = self.livetime * self.background_rate(self.energy, self.lon, self.lat)
        return seen, float(np.sum(self.background_counts()[1]))

    def background_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Energies [TeV], 50 per decade, and the numbers of the background's photons about them.

        Raises:
            InputError: the response has no background.
        """
        energy, weight = log_panels(self.cut.low, self.cut.high)
        covered, lon, lat = self._background_plane
        rates = [self.background_rate(np.full(lon.shape, e), lon, lat) for e in energy]
        rate = np.array([np.sum(covered * r) for r in rates])
        return energy, self.livetime * weight * energy * rate

    @cached_property
    def _background_plane(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Solid angle [sr] in the region of some places, and their longitudes and latitudes."""
        half = np.deg2rad(self.cut.region.half_width)
        plane = Plane(*self.cut.region.center, float(half), 96)
        covered = plane.pixel_means(lambda lon, lat: self.cut.region.inside(lon, lat) + 0.0)
        lon, lat = plane.centers()
        some = covered > 0
        return covered[some] * plane.pixel**2, lon[some], lat[some]

    def background_rate(self, energy: Any, lon: Any, lat: Any) -> np.ndarray:
        """Rate [1/(TeV s sr)] at reconstructed energies and directions."""
        table = self.response.background
        if table is None:
            raise InputError("the response has no background table; leave out that component.")
        offset = np.asarray(separation(*self.pointing, lon, lat))
        points = {"energy": energy, "offset": offset}
        if "fov_lon" in table.axes:
            plane = Plane(*self.pointing, 1.0, 2)
            x, y = plane.to_plane(lon, lat)
            points |= {"fov_lon": np.rad2deg(x), "fov_lat": np.rad2deg(y)}
        axes = table.axes
        inside = {n: np.clip(points[n], axes[n][0], axes[n][-1]) for n in axes}
        return np.where(offset <= self.response.max_offset, np.exp(table.at(**inside)), 0.0)


def log_panels(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Energies and weights of $\\int d\\ln E$ from `low` to `high`, by the midpoint rule."""
    num = int(np.ceil(np.log10(high / low) * _BACKGROUND_NODES))
    step = np.log(high / low) / num
    return low * np.exp(step * (np.arange(num) + 0.5)), np.full(num, step)


def point_acceptance(fold: Fold, sky: Point, weights: np.ndarray) -> np.ndarray:
    """(J,) effective area [cm²] for photons of a point that are reconstructed in the cut.

    The point spread's terms are integrated over the region by rings of equal content.
    """
    response = fold.response
    share = (np.asarray(response.area) * weights)[..., None] * np.asarray(response.psf_weight)
    j, b, k = np.nonzero(share > 0)
    sigma = np.asarray(response.psf_sigma)[j, b, k]
    seen, partly = _seen_nearby(fold, sky, sigma, fold._accepted[j], *_COARSE)
    # Where the region's edge is near, more rings.
    for some in np.array_split(np.flatnonzero(partly), max(1, partly.sum() // 128)):
        seen[some], _ = _seen_nearby(fold, sky, sigma[some], fold._accepted[j[some]], *_DENSE)
    return np.bincount(j, share[j, b, k] * seen, minlength=len(share))


def _seen_nearby(
    fold: Fold, sky: Point, sigma: np.ndarray, accepted: np.ndarray, rings: int, around: int
) -> tuple[np.ndarray, np.ndarray]:
    """Parts of Gaussians about a point that are in the cut, and which are there only partly.

    Args:
        sigma: (T,) widths [rad].
        accepted: (T, B) energy acceptances.
        rings, around: places, by radius and angle.
    """
    radius = np.sqrt(-2.0 * np.log1p(-(np.arange(rings) + 0.5) / rings))
    angle = 2.0 * np.pi * (np.arange(around) + 0.5) / around
    # The last ring is where nearly nothing is beyond: it only asks for the edge.
    r = sigma[:, None, None] * np.append(radius, _REACH)[:, None]
    lon, lat = Plane(sky.lon, sky.lat, 1.0, 2).to_sky(r * np.cos(angle), r * np.sin(angle))
    inside = np.asarray(fold.cut.region.inside(lon, lat))
    offsets = fold.response.offset_weights(separation(*fold.pointing, lon[:, :-1], lat[:, :-1]))
    seen = np.einsum("trdb,tb->trd", np.asarray(offsets), accepted) * inside[:, :-1]
    return seen.mean((1, 2)), np.logical_not(inside.all((1, 2)))


class _FieldPlane(NamedTuple):
    """A plane with (B, num, num) offset weights and transforms of the region times those."""

    plane: Plane
    offsets: np.ndarray
    region: np.ndarray


def _even(size: float) -> int:
    """An even length of `size` or a little more, for which transforms are fast."""
    return 2 * int(fft.next_fast_len(int(np.ceil(0.5 * size)), real=True))


def _at(transform: np.ndarray, plane: Plane, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A map at places of its plane, by cubic splines, from its transform."""
    num = len(transform)
    # What the spline is at its knots, in terms of its coefficients: a convolution with 1, 4, 1.
    row, column = (2.0 * np.pi * f for f in (fft.fftfreq(num), fft.rfftfreq(num)))
    knots = np.outer(4.0 + 2.0 * np.cos(row), 4.0 + 2.0 * np.cos(column)) / 36.0
    spline = fft.irfft2(transform / knots, s=(num, num), workers=-1) * (num / plane.num) ** 2
    # The first knot is where the plane's first pixel has its centre, whatever the grid.
    places = [0.5 * num * (z / plane.half_width + 1.0 - 1.0 / plane.num) for z in (y, x)]
    found = map_coordinates(spline, places, order=3, mode="grid-wrap", prefilter=False)
    # Rounding leaves a little below zero where there is nothing.
    return np.maximum(found, 0.0)


def _frequencies(num: int, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    """Angular frequencies of the rows and columns of a transform [1/rad]."""
    pixel = 2.0 * plane.half_width / num
    return 2 * np.pi * fft.fftfreq(num, pixel), 2 * np.pi * fft.rfftfreq(num, pixel)


def _cropped(transform: np.ndarray, num: int) -> np.ndarray:
    """The low frequencies of a real transform, as of a grid of num x num."""
    half = num // 2
    return np.concatenate([transform[:half, : half + 1], transform[-half:, : half + 1]])


def _inner(one: np.ndarray, two: np.ndarray, plane: Plane) -> float:
    """The integral of the product of two maps, from their transforms on the plane's grid [sr]."""
    twice = np.full(one.shape[1], 2.0)
    twice[0] = 1.0
    product = float(np.sum(np.real(np.conj(one) * two) * twice))
    return product * plane.pixel**2 / plane.num**2
