r"""Skies folded with a response: what a flux at each true energy makes of a photon, and how many.

For a sky S(Ω) and an observation of livetime t,

$$F_{ij} = t\,D(E'_i|E_j, o'_i) \int A\,P(\Omega'_i|E_j,\Omega)\,S(\Omega)\,d\Omega,\qquad
  G_j = \int_{\rm cut} F(E', \Omega')\,dE'\,d\Omega',$$

so that a spectrum s(E) makes the density of counts $\sum_j F_{ij} s(E_j)\,\delta E_j$ at a photon
and $\sum_j G_j s(E_j)\,\delta E_j$ counts in all. The integral over the sky is a convolution with
Gaussians on a plane (Fourier), or exact for points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import fft
from scipy.ndimage import map_coordinates

from ..blocks import in_blocks, on_all_cores
from ..errors import InputError
from .response import Response, psf_at, separation
from .sky import Plane, Point, Region, takes_energy
from .tables import Table

# Photons beyond so many widths of the point spread are not seen.
_REACH = 5.0

# Pixels are no smaller [deg], and otherwise half of the narrowest width.
_SMALLEST_PIXEL = 0.015

# Rings about a point, and places on each, to integrate its point spread over a region: where all of
# it is inside, and where the region has an edge.
_COARSE, _DENSE = (8, 12), (128, 32)

# Photons folded at a time, and those whose results are put together.
_BLOCK, _PART = 4096, 2**17

# Skies of known spectra whose transforms are held at a time.
_TOGETHER = 8

# Nodes per decade of reconstructed energy in the integral of the background.
_BACKGROUND_NODES = 50


# Called with rows (photons), nodes of energy and the values there.
Take = Callable[[Any, Any, np.ndarray], None]


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

    @property
    def half_width(self) -> float:
        """Of the square about the region's centre from which photons are seen in it [deg]."""
        return self.cut.region.half_width + _REACH * float(np.rad2deg(self._widths[1].max()))

    def _plane(self, pixel: float) -> _FieldPlane:
        """A plane with pixels [deg] of about this size, with what does not depend on the sky."""
        region = self.cut.region
        half = np.deg2rad(self.half_width)
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
        """(N, J) F / D [counts/sr per flux] and (J,) G [counts per flux/TeV] of a sky."""
        seen = np.zeros((len(self.energy), len(self.response.energy)))

        def take(rows: Any, nodes: Any, values: np.ndarray) -> None:
            seen[rows, nodes] = values

        return seen, self._accept(self._fold(sky, take))

    def table(self, sky: Any, dispersion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, J) F [counts/(TeV sr) per flux/TeV] and (J,) G of a sky; see `dispersion`."""
        found = np.zeros((len(self.energy), len(self.response.energy)))

        def take(rows: Any, nodes: Any, values: np.ndarray) -> None:
            found[rows, nodes] = values * dispersion[rows, nodes]

        return found, self._accept(self._fold(sky, take, dispersion))

    def sums(
        self, skies: Sequence[Any], dispersion: np.ndarray, masses: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """(N,) F and G of skies, summed with the masses (sky, J) of spectra that are known.

        Their tables over nodes are never made: memory is that of the dispersion. What pixels hold
        is smeared and looked up once for all of them, which takes nearly all the time.
        """
        found, total = np.zeros(len(self.energy)), 0.0

        def add(mass: Any, rows: Any, nodes: Any, values: np.ndarray) -> None:
            found[rows] += np.dot(values * dispersion[rows, nodes], mass)

        pixels: dict[float, list[int]] = {}
        for number, (sky, mass) in enumerate(zip(skies, masses, strict=True)):
            if isinstance(sky, Point):
                held = self._point(sky, partial(add, mass), dispersion)
                total += float(self._accept(held) @ mass)
            else:
                pixels.setdefault(self._pixel(sky), []).append(number)
        for alike in pixels.values():
            for some in (alike[i : i + _TOGETHER] for i in range(0, len(alike), _TOGETHER)):
                # Their masses are in the map.
                take = partial(add, 1.0)
                held = self._maps([skies[i] for i in some], take, dispersion, masses[some])
                total += float(np.sum(self._accept(held)))
        return found, total

    def held(self, sky: Any) -> np.ndarray:
        """(J, B) G as the offsets of the reconstructed directions share it, at any energy E'.

        Times `Response.energy_acceptance` and summed over B it is G between two energies.
        """
        return self._fold(sky, None)

    def _accept(self, held: np.ndarray) -> np.ndarray:
        return np.sum(held * self._accepted, axis=1)

    def dispersion(self) -> np.ndarray:
        """(N, J) density of the reconstructed energies [1/TeV] at the nodes, for all skies.

        In 32 bits, right to 6e-8: of very many photons it is the largest array.
        """
        response = self.response

        @jax.jit
        def block(rows: dict[str, Any]) -> Any:
            return (
                response.log_ratio_density(rows["energy"], rows["offset"]) / rows["energy"][:, None]
            )

        # Its columns are read one by one.
        found = np.empty((len(self.energy), len(response.energy)), np.float32, order="F")
        for some in self._parts():
            rows = {"energy": self.energy[some], "offset": self.offset[some]}
            found[some] = in_blocks(block, rows, _BLOCK)
        return found

    def _parts(self) -> list[slice]:
        """The photons, so many at a time that a table of them is small."""
        return [slice(i, i + _PART) for i in range(0, len(self.energy), _PART)]

    def _fold(self, sky: Any, take: Take | None, dispersion: np.ndarray | None = None) -> Any:
        """Give `take` the photons' values and return what the region holds; see `held`.

        Values are those of rows and nodes: all nodes of some photons, or one node of those photons
        that the dispersion lets it make.
        """
        if isinstance(sky, Point):
            return self._point(sky, take, dispersion)
        return self._maps([sky], take, dispersion)

    def _point(self, sky: Point, take: Take | None, dispersion: np.ndarray | None) -> np.ndarray:
        weights = np.asarray(
            self.response.offset_weights(separation(*self.pointing, sky.lon, sky.lat))
        )
        terms = self.response.psf_terms(weights)
        block = partial(_seen_of_point, here=(sky.lon, sky.lat), terms=terms)
        for some in self._parts() if take is not None else ():
            assert take is not None
            rows = {"lon": self.lon[some], "lat": self.lat[some]}
            take(some, slice(None), self.livetime * in_blocks(block, rows, _BLOCK))
        return self.livetime * point_acceptance(self, sky, weights)

    def _pixel(self, sky: Any) -> float:
        """Size of the pixels for a sky [deg]."""
        finest = max(_SMALLEST_PIXEL, 0.5 * float(np.rad2deg(self._widths[0].min())))
        return max(finest, getattr(sky, "pixel", 0.0))

    def _maps(
        self,
        skies: Sequence[Any],
        take: Take | None,
        dispersion: np.ndarray | None,
        masses: np.ndarray | None = None,
    ) -> np.ndarray:
        """`_fold` of the sum of skies with pixels of one size, times masses (sky, J)."""
        field = self._plane(self._pixel(skies[0]))
        plane, energy = field.plane, np.asarray(self.response.energy)
        x, y = plane.to_plane(self.lon, self.lat)
        every = np.arange(len(self.energy))
        shared = [None if takes_energy(sky) else self._transform(sky, field) for sky in skies]

        @lru_cache(maxsize=2)
        def cropped(num: int) -> tuple[list[np.ndarray | None], np.ndarray]:
            """What nodes with a grid of num x num share."""
            sent = [None if one is None else _cropped(one, num) for one in shared]
            return sent, _dual(_cropped(field.region, num))

        def sent_at(j: int, sent: Sequence[np.ndarray | None], num: int) -> Any:
            """What the skies send at node j."""
            total: Any = 0.0
            for number, (sky, one) in enumerate(zip(skies, sent, strict=True)):
                if one is None:
                    one = _cropped(self._transform(partial(sky, energy=energy[j]), field), num)
                total = total + (one if masses is None else masses[number, j] * one)
            return total

        def at_node(j: int) -> tuple[Any, Any, np.ndarray]:
            num = min(plane.num, _even(4.0 * plane.half_width / self._widths[0][j]))
            sent, region = cropped(num)
            total = self._smeared(sent_at(j, sent, num), plane, j)
            rows = every if dispersion is None else np.flatnonzero(dispersion[:, j])
            seen = None
            if take is not None and len(rows):
                seen = self.livetime * _at(total, plane, x[rows], y[rows])
            # Threads of its own, as a product of matrices has, would wait for those of this loop.
            inside = np.einsum("bn,n->b", region, total.view(float).ravel())
            return rows, seen, inside * (plane.pixel / plane.num) ** 2

        held = np.zeros(self.response.area.shape)
        nodes = np.flatnonzero(np.isfinite(self._widths[0])).tolist()
        for j, (rows, seen, inside) in zip(nodes, on_all_cores(at_node, nodes), strict=True):
            held[j] = inside
            if take is not None and seen is not None:
                take(rows, j, seen)
        return self.livetime * np.maximum(held, 0.0)

    def _transform(self, sky: Any, field: _FieldPlane) -> np.ndarray:
        """(B, ...) transforms of a sky times the offsets' weights."""
        return fft.rfft2(field.offsets * field.plane.pixel_means(sky), workers=-1)

    def _smeared(self, sent: np.ndarray, plane: Plane, j: int) -> np.ndarray:
        """The transform of what is seen at node j of transforms (B, num, num / 2 + 1)."""
        row, column = _frequencies(sent.shape[1], plane)
        total = np.zeros(sent.shape[1:], complex)
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
                total += (along @ across.T) * sent[b]
        return total

    # ---- background ------------------------------------------------------------------------------

    def background(self) -> tuple[np.ndarray, float]:
        """(N,) density of the background's counts at the photons [1/(TeV sr)], and their number.

        Raises:
            InputError: the response has no background.
        """
        seen = self.livetime * self.background_rate(self.energy, self.lon, self.lat)
        return seen, float(np.sum(self.background_counts()[1]))

    def background_counts(
        self, low: float | None = None, high: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Energies [TeV], 50 per decade, and the numbers of the background's photons about them.

        They go from `low` to `high`, by default the cut's.

        Raises:
            InputError: the response has no background.
        """
        energy, weight = log_panels(low or self.cut.low, high or self.cut.high)
        covered, lon, lat = self._background_plane
        rate = self.background_rates(energy, lon, lat) @ covered
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
        table, points, seen = self._background_at(lon, lat)
        energy = table.clipped("energy", energy)
        return np.where(seen, np.exp(table.at(energy=energy, **points)), 0.0)

    def background_rates(self, energy: np.ndarray, lon: Any, lat: Any) -> np.ndarray:
        """(K, ...) the same at each of the energies (K,) and directions."""
        table, points, seen = self._background_at(lon, lat)
        energy = table.clipped("energy", energy)
        return np.where(seen, np.exp(table.at_each("energy", energy, **points)), 0.0)

    def _background_at(self, lon: Any, lat: Any) -> tuple[Table, dict[str, np.ndarray], np.ndarray]:
        """The background's table, where directions are in it, and which are within its reach."""
        table = self.response.background
        if table is None:
            raise InputError("the response has no background table; leave out that component.")
        offset = np.asarray(separation(*self.pointing, lon, lat))
        points = {"offset": offset}
        if "fov_lon" in table.axes:
            x, y = Plane(*self.pointing, 1.0, 2).to_plane(lon, lat)
            points = {"fov_lon": np.rad2deg(x), "fov_lat": np.rad2deg(y)}
        points = {name: table.clipped(name, x) for name, x in points.items()}
        return table, points, offset <= self.response.max_offset


@jax.jit
def _seen_of_point(rows: dict[str, Array], here: tuple[Any, Any], terms: tuple[Any, Any]) -> Array:
    """(N, J) `psf_at` photons; one program for all points."""
    return psf_at(jnp.deg2rad(separation(*here, rows["lon"], rows["lat"])), *terms)


def log_panels(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Energies and weights of $\\int d\\ln E$ from `low` to `high`, by the midpoint rule."""
    num = int(np.ceil(np.log10(high / low) * _BACKGROUND_NODES))
    step = np.log(high / low) / num
    return low * np.exp(step * (np.arange(num) + 0.5)), np.full(num, step)


def point_acceptance(fold: Fold, sky: Point, weights: np.ndarray) -> np.ndarray:
    """(J, B) effective area [cm²] for photons of a point that are reconstructed in the region.

    The point spread's terms are integrated over the region by rings of equal content; B are the
    offsets of the reconstructed directions.
    """
    response = fold.response
    share = (np.asarray(response.area) * weights)[..., None] * np.asarray(response.psf_weight)
    j, b, k = np.nonzero(share > 0)
    sigma = np.asarray(response.psf_sigma)[j, b, k]
    seen, partly = _seen_nearby(fold, sky, sigma, *_COARSE)
    # Where the region's edge is near, more rings.
    for some in np.array_split(np.flatnonzero(partly), max(1, partly.sum() // 128)):
        seen[some], _ = _seen_nearby(fold, sky, sigma[some], *_DENSE)
    held = np.zeros(response.area.shape)
    np.add.at(held, j, share[j, b, k][:, None] * seen)
    return held


def _seen_nearby(
    fold: Fold, sky: Point, sigma: np.ndarray, rings: int, around: int
) -> tuple[np.ndarray, np.ndarray]:
    """Parts (T, B) of Gaussians about a point that are in the region, and which are only partly.

    Args:
        sigma: (T,) widths [rad].
        rings, around: places, by radius and angle.
    """
    radius = np.sqrt(-2.0 * np.log1p(-(np.arange(rings) + 0.5) / rings))
    angle = 2.0 * np.pi * (np.arange(around) + 0.5) / around
    # The last ring is where nearly nothing is beyond: it only asks for the edge.
    r = sigma[:, None, None] * np.append(radius, _REACH)[:, None]
    lon, lat = Plane(sky.lon, sky.lat, 1.0, 2).to_sky(r * np.cos(angle), r * np.sin(angle))
    inside = np.asarray(fold.cut.region.inside(lon, lat))
    offsets = fold.response.offset_weights(separation(*fold.pointing, lon[:, :-1], lat[:, :-1]))
    seen = np.asarray(offsets) * inside[:, :-1, :, None]
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
    """The low frequencies of real transforms (..., row, column), as of a grid of num x num."""
    half = num // 2
    some = transform[..., : half + 1]
    return np.concatenate([some[..., :half, :], some[..., -half:, :]], axis=-2)


def _dual(transform: np.ndarray) -> np.ndarray:
    """(B, 2n) real numbers of which a product with a transform's is the sum of both maps'."""
    twice = np.full(transform.shape[-1], 2.0)
    twice[0] = 1.0
    return (transform * twice).view(float).reshape(len(transform), -1)
