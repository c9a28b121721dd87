r"""Sources whose place (and extent) hyperparameters decide: the response's integral kept whole.

For a source at $\Omega$, with photons counted as in `fold`,

$$F_{ij}(\Omega) = t\,D(E'_i|E_j, o'_i) \sum_b w_b(o)\,A_{jb} \sum_k W_{jbk}\,
  \mathcal{N}(\Omega'_i|\Omega, \sigma_{jbk}^2 + s^2),\qquad
  m_i = \sum_j F_{ij}\,\textstyle\int \Phi\,h_j\,dE,$$

with the hat functions $h_j$ of the nodes of true energy and the extent s of a round Gaussian, whose
wings have the response of its centre. The terms fall off within the width of the point spread: only
photons that a source can have sent from somewhere in its prior take part, and how much is lost by
that is stated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import ndtr

from ..density import Density, Theta
from ..errors import InputError
from ..likelihood import LogMarginal
from ..likelihood.folded import Hats
from ..likelihood.formula import ObjectNames
from ..prior import Prior
from .fold import Fold
from .interpolation import monotone_cubic, monotone_surface
from .response import hat_functions, separation
from .sky import Around, Gaussian, Plane, Point

# The fraction of a source's photons that may be missed, at any energy.
TRUNCATION = 1e-6

# Energies of which the dispersion makes a photon's less than this, of the likeliest, are left out.
_FAINT = 1e-9

# Photons in a block, which have about the same energy: so many nodes apart at most.
_ROWS, _SPREAD = 64, 8

# Draws of the prior that show where a source may be, and how much farther the window goes.
_NUM_PRIOR, _MARGIN = 4096, 1.2

# Nodes of the table of what the region holds: along a side of the window, and in the width.
_MOST_PLACES, _NUM_WIDTHS, _PIXELS = 48, 33, 192


class Located:
    """A spectrum with a sky that hyperparameters decide: the density of a moving leaf."""

    names = ("energy",)

    def __init__(self, sky: Any, spectrum: Density):
        self.sky, self.spectrum = sky, spectrum

    @property
    def settings(self) -> Array:
        """Numbers of the sky, which the density over the energy does not tell."""
        if isinstance(self.sky, Around):
            return jnp.asarray(self.sky.profile(jnp.ones(1)))
        return jnp.stack([jnp.asarray(x, float) for x in _place(self.sky)])

    def log_prob(self, theta: Theta) -> Array:
        return self.spectrum.log_prob(theta)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> dict[str, Array]:
        return self.spectrum.sample(key, sample_shape)

    @property
    def log_total(self) -> Array:
        r"""$\ln\int\Phi\,dE$."""
        return getattr(self.spectrum, "log_total", jnp.zeros(()))


class Window(NamedTuple):
    """Where a source may be: within `radius` of a direction; extents up to `extent` [deg]."""

    lon: float
    lat: float
    radius: float
    extent: float


def window_of(
    sky: Callable[[Mapping[str, Any]], Point | Gaussian], prior: Prior, name: str
) -> Window:
    """The directions and extents that 4096 draws of a resolved prior take, and a fifth more.

    Raises:
        InputError: `sky` makes something that is neither a `Point` nor a `Gaussian`, or directions
            that are not finite or all over the sky.
    """

    def place(draw: Mapping[str, Array]) -> Array:
        found = sky(prior.complete(draw))
        if not isinstance(found, Point | Gaussian):
            raise InputError(
                f"component '{name}': a sky that hyperparameters decide must be a Point, a "
                f"Gaussian or Around a place, not a {type(found).__name__}; give its maps a place "
                "that is fixed."
            )
        return jnp.stack(jnp.broadcast_arrays(*map(jnp.asarray, _place(found))))

    draws = jax.jit(prior.sample, static_argnums=1)(jax.random.key(0), (_NUM_PRIOR,))
    # A prior that fixes all has no draws.
    places = jax.jit(jax.vmap(place, axis_size=_NUM_PRIOR))(draws)
    lon, lat, extent = np.asarray(places).T
    if not np.isfinite([lon, lat, extent]).all() or (extent < 0).any() or (abs(lat) > 90).any():
        raise InputError(
            f"component '{name}': its prior allows places or extents that are no directions or "
            "negative; correct the priors of its position and extent."
        )
    mean = _directions(lon, lat).mean(0)
    center_lon = float(np.rad2deg(np.arctan2(mean[1], mean[0])))
    center_lat = float(np.rad2deg(np.arctan2(mean[2], np.hypot(mean[0], mean[1]))))
    radius = _MARGIN * float(np.max(separation(center_lon, center_lat, lon, lat)))
    if radius > 30.0:
        raise InputError(
            f"component '{name}': its prior lets it be {radius:.0f} deg apart; give its position a "
            "prior that keeps to the field of view."
        )
    # A window of no size has no inside to interpolate in.
    return Window(center_lon, center_lat, max(radius, 1e-3), _MARGIN * float(extent.max()))


def _place(sky: Point | Gaussian) -> tuple[Any, Any, Any]:
    """Longitude, latitude and extent [deg]."""
    return sky.lon, sky.lat, getattr(sky, "sigma", 0.0)


def _directions(lon: Any, lat: Any) -> Any:
    """(..., 3) unit vectors of directions [deg]."""
    xp: Any = jnp if isinstance(lon, jax.Array) else np
    lon, lat = xp.deg2rad(lon), xp.deg2rad(lat)
    return xp.stack([xp.cos(lat) * xp.cos(lon), xp.cos(lat) * xp.sin(lon), xp.sin(lat)], -1)


# ---- responses, near a window --------------------------------------------------------------------


class _Run(eqx.Module):
    """A run's response to a source in the window, at the offsets of its tables that count there.

    Attributes:
        share: (J, B, K) counts per flux and per term, livetime times area times weight [cm² s].
        square: (J, B, K) its width, squared [rad²].
        offsets: of the response's tables, of which `first` is the first that counts.
    """

    share: Array
    square: Array
    offsets: Array
    pointing: tuple[float, float] = eqx.field(static=True)
    max_offset: float = eqx.field(static=True)
    first: int = eqx.field(static=True)

    def __init__(self, fold: Fold, window: Window):
        response = fold.response
        away = float(separation(*fold.pointing, window.lon, window.lat))
        offsets = np.asarray(response.offset)
        # The hats that do not vanish somewhere between the nearest and the farthest place.
        last = len(offsets) - 1
        low = int(np.clip(np.searchsorted(offsets, away - window.radius, "right") - 1, 0, last))
        high = int(np.clip(np.searchsorted(offsets, away + window.radius, "left"), low, last))
        some = slice(low, high + 1)
        area = fold.livetime * np.asarray(response.area)[:, some, None]
        self.share = jnp.asarray(area * np.asarray(response.psf_weight)[:, some])
        self.square = jnp.asarray(np.asarray(response.psf_sigma)[:, some] ** 2)
        self.offsets, self.first = response.offset, low
        self.pointing, self.max_offset = fold.pointing, response.max_offset

    def weights(self, lon: Any, lat: Any) -> Array:
        """(B,) hat functions at a place."""
        away = separation(*self.pointing, lon, lat)
        hats = hat_functions(self.offsets, self.max_offset, away)
        return hats[self.first : self.first + self.share.shape[1]]


# ---- the photons ---------------------------------------------------------------------------------


class _Block(NamedTuple):
    """Photons of one run and about one energy; of many, with one more axis in front.

    Attributes:
        number: of the block among all.
        direction: (S, 3) unit vectors.
        dispersion: (S, M) densities of E' [1/TeV] at M nodes; zero in rows that only fill up.
        start: the first of the nodes.
    """

    number: Array
    direction: Array
    dispersion: Array
    start: Array


class LocatedPhotons(eqx.Module):
    r"""Photons of several runs as objects of a source with a place of its own; see the module.

    `log_marginal` and `draw` want a `Located` density. A photon too far from every place in the
    window has a log marginal of $-\infty$: no more than a fraction `truncation` of the source's
    photons, at any energy, is missed by that, which changes $\ln L$ by no more than that fraction
    times the number of the source's photons over the share of the least likely of them. Places
    outside of the window miss more.

    Args:
        folds: one for each run, on the same nodes of energy.
        dispersions: theirs, (N, J) each; see `Fold.dispersion`.
        window: where the source may be.
        names: of all photons, run after run.
    """

    hats: Hats
    runs: list[_Run]
    blocks: list[_Block]
    row: Array
    names: tuple[str, ...] = eqx.field(static=True)
    window: Window = eqx.field(static=True)
    truncation: float = eqx.field(static=True)

    def __init__(
        self,
        folds: Sequence[Fold],
        dispersions: Sequence[np.ndarray],
        window: Window,
        *,
        names: Sequence[str],
    ):
        self.hats = Hats("energy", np.asarray(folds[0].response.energy))
        self.window, self.truncation, self.names = window, TRUNCATION, ObjectNames(names)
        self.runs = [_Run(fold, window) for fold in folds]
        self.blocks, rows, num_rows, number = [], [], 0, 0
        for fold, run, dispersion in zip(folds, self.runs, dispersions, strict=True):
            dispersion = np.where(_near(fold, run, dispersion, window)[:, None], dispersion, 0.0)
            blocks, row = _blocks(fold, dispersion, number)
            self.blocks.append(blocks)
            rows.append(np.where(row < 0, -1, row + num_rows))
            number += len(blocks.start)
            num_rows += blocks.dispersion[..., 0].size
        row = np.concatenate(rows)
        # The last row of all is that of the photons far away.
        self.row = jnp.asarray(np.where(row < 0, num_rows, row))

    @property
    def near(self) -> Array:
        """(N,) which photons take part: those that the source can have made."""
        return self.row < sum(b.dispersion[..., 0].size for b in self.blocks)

    def log_marginal(self, density: Located) -> LogMarginal:
        """Integrate over the true energy and direction of every photon."""
        mass, top = self.hats.masses(density)

        def integrate(block: _Block, *terms: Array) -> Array:
            return _integrated(*terms, block.dispersion)

        total = self._over_blocks(density, mass, integrate)
        empty = total == 0
        value = jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, total)) + top)
        return LogMarginal(value, jnp.zeros_like(value))

    def draw(self, density: Located, key: Any) -> dict[str, Array]:
        """One draw of every photon's true energy [TeV]; NaN for those too far away."""
        mass, _ = self.hats.masses(density)
        node_key, place_key = jax.random.split(key)

        def pick(block: _Block, mass: Array, weights: Array, *terms: Array) -> Array:
            own = jax.random.fold_in(node_key, block.number)
            seen = block.dispersion * mass * (_terms(*terms)[0] @ weights)
            node = block.start + jax.random.categorical(own, jnp.log(seen), axis=-1)
            return jnp.asarray(node, float)

        node = self._over_blocks(density, mass, pick).astype(int)
        energy = self.hats.draw(node, place_key)
        return {"energy": jnp.where(self.near, energy, jnp.nan)}

    def _over_blocks(self, density: Located, mass: Array, function: Callable[..., Array]) -> Array:
        """(N,) what `function(block, ...)` makes of the first arguments of `_integrated`."""
        lon, lat, extent = (jnp.asarray(x, float) for x in _place(density.sky))
        toward, extent = _directions(lon, lat), jnp.deg2rad(extent) ** 2
        found = []
        for run, blocks in zip(self.runs, self.blocks, strict=True):
            weights, num = run.weights(lon, lat), blocks.dispersion.shape[-1]

            def one(block: _Block, run: _Run = run, weights: Any = weights, num: int = num) -> Any:
                nodes = [
                    jax.lax.dynamic_slice_in_dim(x, block.start, num)
                    for x in (mass, run.share, run.square)
                ]
                # Squares of differences keep what a cosine would round away.
                chord = 0.5 * jnp.sum((block.direction - toward) ** 2, -1)
                return function(block, nodes[0], weights, chord, extent, *nodes[1:])

            found.append(jax.lax.map(one, blocks).ravel())
        return jnp.append(jnp.concatenate(found), 0.0)[self.row]


@jax.custom_jvp
def _integrated(
    mass: Array,
    weights: Array,
    chord: Array,
    extent: Array,
    share: Array,
    square: Array,
    dispersion: Array,
) -> Array:
    """(S,) sums over nodes, offsets and terms; the last three arguments count as constants.

    The derivative is made along with the sums: reverse mode would otherwise keep every term of
    every photon.

    Args:
        mass: (M,) of the spectrum.
        weights: (B,) of the offsets.
        chord: (S,) one minus the cosine of the separation.
        extent: its square [rad²].
        share, square: (M, B, K) of the terms.
        dispersion: (S, M).
    """
    return jnp.sum(dispersion * mass * (_terms(chord, extent, share, square)[0] @ weights), -1)


@_integrated.defjvp
def _integrated_tangent(primals: Any, tangents: Any) -> tuple[Array, Array]:
    mass, weights, chord, extent, share, square, dispersion = primals
    dmass, dweights, dchord, dextent, *_ = tangents
    by_offset, by_chord, by_extent = _terms(chord, extent, share, square)
    seen = dispersion * (by_offset @ weights)
    slopes = [
        jnp.einsum("sm,smb->sb", dispersion * mass, x) for x in (by_offset, by_chord, by_extent)
    ]
    tangent = seen @ dmass + slopes[0] @ dweights
    tangent = tangent + (slopes[1] @ weights) * dchord + (slopes[2] @ weights) * dextent
    return seen @ mass, tangent


def _terms(chord: Array, extent: Array, share: Array, square: Array) -> tuple[Array, Array, Array]:
    r"""(S, M, B) sums over the terms K, each $e^{-x\kappa}\kappa/2\pi(1 - e^{-2\kappa})$ with
    $1/\kappa = \sigma^2 + s^2$ (see `response.log_gaussian`), and its derivatives by x and s²."""
    kappa = 1.0 / (square + extent)
    height = share * kappa / (2 * jnp.pi * -jnp.expm1(-2.0 * kappa))
    each = height * jnp.exp(-chord[:, None, None, None] * kappa)
    # d ln(height) / d s²; the last term is what the sphere is not a plane.
    rise = -kappa + 2.0 * kappa**2 * jnp.exp(-2.0 * kappa) / -jnp.expm1(-2.0 * kappa)
    by_chord = -jnp.sum(each * kappa, -1)
    by_extent = jnp.sum(each * rise, -1) + chord[:, None, None] * jnp.sum(each * kappa**2, -1)
    return jnp.sum(each, -1), by_chord, by_extent


def _near(fold: Fold, run: _Run, dispersion: np.ndarray, window: Window) -> np.ndarray:
    """(N,) whether a place in the window can have sent a photon, at one of its energies."""
    away = np.asarray(separation(window.lon, window.lat, fold.lon, fold.lat)) - window.radius
    alive = dispersion > _FAINT * dispersion.max(axis=1, keepdims=True, initial=0.0)
    seen = np.asarray(run.share).sum((1, 2)) > 0
    return (alive & seen & (away[:, None] < _reach(run, window.extent))).any(axis=1)


def _reach(run: _Run, extent: float) -> np.ndarray:
    """(J,) separations [deg] beyond which less is seen than the truncation, at every offset."""
    share, square = np.asarray(run.share), np.asarray(run.square) + np.deg2rad(extent) ** 2
    most = TRUNCATION * share.sum(-1)
    low, high = np.zeros(len(share)), np.full(len(share), np.pi)
    for _ in range(40):
        middle = 0.5 * (low + high)
        chord = 2.0 * np.sin(0.5 * middle[:, None, None]) ** 2
        inside = (np.sum(share * np.exp(-chord / square), -1) <= most).all(-1)
        low, high = np.where(inside, low, middle), np.where(inside, middle, high)
    return np.rad2deg(high)


def _blocks(fold: Fold, dispersion: np.ndarray, first: int) -> tuple[_Block, np.ndarray]:
    """Blocks of the photons with some dispersion, and (N,) their rows among all, -1 for others."""
    alive = dispersion > _FAINT * dispersion.max(axis=1, keepdims=True, initial=0.0)
    num_nodes = dispersion.shape[1]
    low = np.where(alive.any(1), alive.argmax(1), num_nodes)
    high = num_nodes - alive[:, ::-1].argmax(1)
    order = np.argsort(low, kind="stable")[: int((low < num_nodes).sum())]
    groups: list[np.ndarray] = []
    while len(order):
        end = min(_ROWS, int(np.searchsorted(low[order], low[order[0]] + _SPREAD, "right")))
        groups.append(order[:end])
        order = order[end:]
    width = max((int(high[g].max() - low[g[0]]) for g in groups), default=1)
    shape = (max(len(groups), 1), _ROWS)
    rows = np.full(len(dispersion), -1)
    picked, direction = np.zeros((*shape, width)), np.zeros((*shape, 3))
    start = np.zeros(shape[0], int)
    for n, group in enumerate(groups):
        start[n] = min(low[group[0]], num_nodes - width)
        picked[n, : len(group)] = dispersion[group, start[n] : start[n] + width]
        direction[n, : len(group)] = _directions(fold.lon[group], fold.lat[group])
        rows[group] = n * _ROWS + np.arange(len(group))
    numbers = first + jnp.arange(shape[0])
    return _Block(numbers, *map(jnp.asarray, (direction, picked, start))), rows


# ---- their number --------------------------------------------------------------------------------


class LocatedNumber(eqx.Module):
    """The expected number of a source's photons in the cut, as one object; see `LocatedPhotons`.

    What the region holds of a Gaussian is interpolated, smoothly, between places half a width of
    the point spread apart (or 48 along a side of the window) and between 33 widths.
    """

    hats: Hats
    runs: list[_Run]
    regions: list[_Region]
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, folds: Sequence[Fold], window: Window):
        self.hats = Hats("energy", np.asarray(folds[0].response.energy))
        self.names = ("expected number",)
        self.runs = [_Run(fold, window) for fold in folds]
        self.regions = [
            _Region(fold, run, window) for fold, run in zip(folds, self.runs, strict=True)
        ]

    def counts(self, sky: Point | Gaussian) -> Array:
        """(J,) expected number per flux [counts per 1/(cm² s)] at the nodes of energy."""
        lon, lat, extent = (jnp.asarray(x, float) for x in _place(sky))
        total = jnp.zeros(())
        for run, region in zip(self.runs, self.regions, strict=True):
            inside = region.inside(lon, lat, run.square + jnp.deg2rad(extent) ** 2)
            held = jnp.einsum("jbkc,jc->jbk", inside, region.accepted)
            total = total + jnp.sum(run.share * held, -1) @ run.weights(lon, lat)
        return total

    def log_marginal(self, density: Located) -> LogMarginal:
        """The log of the expected number."""
        mass, top = self.hats.masses(density)
        total = self.counts(density.sky) @ mass
        empty = total <= 0
        value = jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, total)) + top)
        return LogMarginal(value[None], jnp.zeros(1))

    def draw(self, density: Located, key: Any) -> dict[str, Array]:
        """One true energy [TeV] of those that are expected."""
        mass, _ = self.hats.masses(density)
        node_key, place_key = jax.random.split(key)
        node = jax.random.categorical(
            node_key, jnp.log(self.counts(density.sky) * mass), shape=(1,)
        )
        return {"energy": self.hats.draw(node, place_key)}


class _Region(eqx.Module):
    """What a region holds of Gaussians at places in the window, by offset.

    Attributes:
        table: (X, Y, T, C) the integral of a Gaussian over the region times each of C hats.
        accepted: (J, C) probability that the reconstructed energy is in the cut.
    """

    table: Array
    accepted: Array
    plane: Plane = eqx.field(static=True)
    corner: tuple[float, float] = eqx.field(static=True)
    side: float = eqx.field(static=True)
    log_widths: tuple[float, float] = eqx.field(static=True)

    def __init__(self, fold: Fold, run: _Run, window: Window):
        square = np.asarray(run.square)
        low, high = (np.sqrt(f(square)) for f in (np.min, np.max))
        high = np.hypot(high, np.deg2rad(window.extent))
        # Cubic interpolation needs four nodes.
        widths = np.geomspace(0.99 * low, 1.01 * high, _NUM_WIDTHS)
        region = fold.cut.region
        half = np.deg2rad(region.half_width)
        lon, lat = map(float, region.center)
        self.plane = Plane(lon, lat, float(half), _PIXELS)
        away = separation(*fold.pointing, *self.plane.centers())
        hats = np.moveaxis(np.asarray(fold.response.offset_weights(away)), -1, 0)
        covered = self.plane.pixel_means(lambda lon, lat: region.inside(lon, lat) + 0.0)
        radius = np.deg2rad(window.radius)
        num = int(np.clip(np.ceil(4.0 * radius / low), 5, _MOST_PLACES)) + 1
        center = self.plane.to_plane(window.lon, window.lat)
        self.corner = float(center[0] - radius), float(center[1] - radius)
        self.side = 2.0 * float(radius)
        places = [c + self.side * np.linspace(0.0, 1.0, num) for c in self.corner]
        self.table = jnp.asarray(_held(self.plane, hats * covered, places, widths))
        self.accepted = jnp.asarray(fold.response.energy_acceptance(fold.cut.low, fold.cut.high))
        self.log_widths = float(np.log(widths[0])), float(np.log(widths[-1]))

    def inside(self, lon: Array, lat: Array, square: Array) -> Array:
        """(J, B, K, C) of Gaussians of variances `square` (J, B, K) [rad²] at a place [deg]."""
        num = np.array(self.table.shape[:3])
        nodes = [np.arange(float(n)) for n in num]
        place = zip(self.plane.to_plane(lon, lat), self.corner, num, strict=False)
        here = [(z - corner) / self.side * (n - 1) for z, corner, n in place]
        low, high = self.log_widths
        width = (0.5 * jnp.log(square) - low) / (high - low) * (num[2] - 1)
        return monotone_cubic(nodes[2], monotone_surface(nodes[:2], self.table, here), width)


def _held(
    plane: Plane, maps: np.ndarray, places: Sequence[np.ndarray], widths: np.ndarray
) -> np.ndarray:
    """(X, Y, T, C) integrals of maps (C, y, x), constant in pixels, times Gaussians at places."""
    edges = plane.half_width * np.linspace(-1.0, 1.0, plane.num + 1)
    found = np.empty((*(len(p) for p in places), len(widths), len(maps)))
    for t, width in enumerate(widths):
        x, y = (np.diff(ndtr((edges - p[:, None]) / width), axis=1) for p in places)
        found[:, :, t] = np.moveaxis(y @ (maps @ x.T), (0, 1, 2), (2, 1, 0))
    return found
