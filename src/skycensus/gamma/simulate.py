"""Photons drawn from components and put through the response: continuous, not on a grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from ..errors import InputError
from ..keys import generator
from .expected import empty_fold, expected_counts, shares
from .fold import Cut, Fold, log_panels
from .photons import Background, Observation, Source, Tree, leaves_of, path_of
from .response import Response, separation
from .sky import Plane, Point, takes_energy

# Draws are made in rounds until enough of them are seen.
_MAX_ROUNDS = 200
_ROUND = 1_000_000

Photons = dict[str, np.ndarray]

_TRUE = ("true_energy", "true_lon", "true_lat")
_COLUMNS = ("energy", "lon", "lat", *_TRUE)


def simulate(
    observation: Observation,
    tree: Tree,
    hyperparameters: Mapping[str, Any],
    counts: Mapping[str, int],
    key: Any,
) -> tuple[Observation, Photons]:
    """Draw photons of every component that are seen in the observation's cut.

    Args:
        observation: pointing, response and cut; its own photons are not used.
        tree: the components.
        hyperparameters: of skies, spectra and backgrounds that are not fixed.
        counts: path or name of every leaf -> number of photons seen; `draw_counts` draws them.
        key: of all randomness.

    Returns:
        The observation with the photons, in random order, and columns of the same order:
        `component` (path), and `true_energy` [TeV], `true_lon`, `true_lat` [deg], which are NaN for
        a background that is known as it is reconstructed.

    Raises:
        InputError: counts of a component that there is not, or one without photons in the cut.
    """
    rng = generator(key)
    fold = empty_fold(observation)
    numbers = _by_path(tree, counts)
    parts = []
    for path, part in leaves_of(tree):
        draw = _drawing(fold, part, hyperparameters, observation.name, rng)
        drawn = _in_cut(fold.cut, draw, numbers[path], path)
        parts.append({**drawn, "component": np.full(numbers[path], path)})
    joined = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
    order = rng.permutation(len(joined["energy"]))
    joined = {n: x[order] for n, x in joined.items()}
    energy, lon, lat = (joined.pop(n) for n in ("energy", "lon", "lat"))
    middle = observation.cut.region.center[0]
    lon = middle + (lon - middle + 180.0) % 360.0 - 180.0
    return replace(observation, energy=energy, lon=lon, lat=lat), joined


def simulate_all(
    observations: Sequence[Observation],
    tree: Tree,
    hyperparameters: Mapping[str, Any],
    counts: Mapping[str, int],
    key: Any,
) -> tuple[list[Observation], list[Photons]]:
    """`simulate` for several observations, among which each component's photons are divided.

    Every photon falls into one of them with the share that it has of the expected number.
    """
    numbers = _by_path(tree, counts)
    split_key, *keys = jax.random.split(key, len(observations) + 1)
    each = [numbers]
    if len(observations) > 1:
        rng = generator(split_key)
        expected = [expected_counts(o, tree, hyperparameters) for o in observations]
        each = [{} for _ in observations]
        for path, num in numbers.items():
            mean = np.array([e[path] for e in expected])
            if num and not mean.sum() > 0:
                raise InputError(f"component '{path}' has no photons in any cut.")
            drawn = rng.multinomial(num, mean / max(mean.sum(), 1e-300)) if num else 0 * mean
            for own, n in zip(each, drawn, strict=True):
                own[path] = int(n)
    pairs = [
        simulate(o, tree, hyperparameters, own, k)
        for o, own, k in zip(observations, each, keys, strict=True)
    ]
    return [seen for seen, _ in pairs], [told for _, told in pairs]


def draw_counts(
    observations: Sequence[Observation],
    tree: Tree,
    hyperparameters: Mapping[str, Any],
    key: Any,
    *,
    num_photons: int | None = None,
) -> dict[str, int]:
    """Path of every leaf -> photons seen, all observations together, as the model has them.

    Args:
        observations, tree: of the model.
        hyperparameters: all of them, with the leaves' fractions or rates.
        key: of all randomness.
        num_photons: divided by the fractions (multinomial); None for a model with rates, whose
            numbers are Poisson.
    """
    rng = generator(key)
    paths = [path for path, _ in leaves_of(tree)]
    weight = shares(tree, hyperparameters, rates=num_photons is None)
    if num_photons is not None:
        p = np.array([float(weight[path]) for path in paths])
        return dict(zip(paths, rng.multinomial(num_photons, p / p.sum()).tolist(), strict=True))
    each = [expected_counts(o, tree, hyperparameters) for o in observations]
    return {p: int(rng.poisson(float(weight[p]) * sum(e[p] for e in each))) for p in paths}


def _by_path(tree: Tree, counts: Mapping[str, int]) -> dict[str, int]:
    fault = "counts of '{}', which is no component"
    given = {path_of(tree, n, fault.format(n)): int(count) for n, count in counts.items()}
    return {path: given.get(path, 0) for path, _ in leaves_of(tree)}


Draw = Callable[[int], Photons]


def _in_cut(cut: Cut, draw: Draw, num: int, path: str) -> Photons:
    """So many photons that are seen in the cut."""
    kept: list[Photons] = [{n: np.empty(0) for n in _COLUMNS}]
    have, accepted = 0, 0.5
    for _ in range(_MAX_ROUNDS):
        if have >= num:
            break
        one = draw(min(int(1.1 * (num - have) / accepted) + 100, _ROUND))
        some = cut.inside(one["energy"], one["lon"], one["lat"])
        kept.append({n: x[some] for n, x in one.items()})
        have += int(some.sum())
        accepted = max(some.mean(), 1e-3)
    if have < num:
        raise InputError(f"component '{path}' has (nearly) no photons in the cut: {have} of {num}.")
    return {n: np.concatenate([k[n] for k in kept])[:num] for n in _COLUMNS}


def _drawing(
    fold: Fold, part: Any, h: Mapping[str, Any], run: str, rng: np.random.Generator
) -> Draw:
    """What draws photons of a component, wherever they are seen."""
    if isinstance(part, Background):
        return _background(fold, float(np.asarray(part.at(h, [run]).tilt[0])), rng)
    sources = [part] if isinstance(part, Source) else list(part)
    # Made when the first photons are asked for.
    made: list[_TrueDraws] = []

    def draw(num: int) -> Photons:
        if not made:
            made.extend(_TrueDraws(fold, source, h) for source in sources)
        reach = np.array([one.total for one in made])
        if not reach.sum() > 0:
            return {n: np.empty(0) for n in _COLUMNS}
        each = rng.multinomial(num, reach / reach.sum())
        drawn = [
            _seen(fold, one.draw(int(n), rng), rng) for one, n in zip(made, each, strict=True) if n
        ]
        joined = {n: np.concatenate([d[n] for d in drawn]) for n in _COLUMNS}
        # A round that is cut short must not prefer the first sources.
        order = rng.permutation(num)
        return {n: x[order] for n, x in joined.items()}

    return draw


class _TrueDraws:
    """True energies and directions of a source's photons that reach the telescopes.

    Attributes:
        total: of them, in units that all sources of a fold share.
    """

    def __init__(self, fold: Fold, source: Source, h: Mapping[str, Any]):
        self.fold, self.sky = fold, source.at(h).sky
        self.nodes = np.log(np.asarray(fold.response.energy))
        self.area = np.asarray(fold.response.area)
        self.maps: dict[int, np.ndarray] = {}
        if not isinstance(self.sky, Point):
            field = fold._plane(max(0.02, getattr(self.sky, "pixel", 0.0)))
            self.plane, self.offsets = field.plane, field.offsets
        fine, density = _spectrum(fold, source, h)
        self.log_fine = np.log(fine)
        self.reaching = self._reaching()
        mass = density * fine * np.interp(self.log_fine, self.nodes, self.reaching)
        steps = np.diff(self.log_fine) * 0.5 * (mass[1:] + mass[:-1])
        self.cumulated = np.append(0.0, np.cumsum(steps))
        self.total = float(self.cumulated[-1])

    def _reaching(self) -> np.ndarray:
        """(J,) photons per flux that reach the telescopes."""
        if isinstance(self.sky, Point):
            away = separation(*self.fold.pointing, self.sky.lon, self.sky.lat)
            return self.area @ np.asarray(self.fold.response.offset_weights(away))
        if takes_energy(self.sky):
            return np.array([self._map(j).sum() for j in range(len(self.nodes))])
        return self.area @ np.tensordot(self.offsets, self._flux(0), 2)

    def _map(self, j: int) -> np.ndarray:
        """Photons of node j by the pixel that they come from."""
        if j not in self.maps:
            self.maps[j] = (self._flux(j) * np.tensordot(self.area[j], self.offsets, 1)).ravel()
        return self.maps[j]

    def _flux(self, j: int) -> np.ndarray:
        """Flux in each pixel."""
        if takes_energy(self.sky):
            energy = float(np.exp(self.nodes[j]))
            means = self.plane.pixel_means(lambda lon, lat: self.sky(lon, lat, energy))
            return means * self.plane.pixel**2
        if not hasattr(self, "_means"):
            self._means = self.plane.pixel_means(self.sky) * self.plane.pixel**2
        return self._means

    def draw(self, num: int, rng: np.random.Generator) -> Photons:
        """Energies, directions, and the node whose response each photon gets."""
        log_energy = np.interp(rng.random(num) * self.total, self.cumulated, self.log_fine)
        place = (log_energy - self.nodes[0]) / (self.nodes[1] - self.nodes[0])
        low = np.clip(place.astype(int), 0, len(self.nodes) - 2)
        # Each node as often as photons reach the telescopes at it.
        above = (place - low) * self.reaching[low + 1]
        below = (1.0 - (place - low)) * self.reaching[low]
        node = low + (rng.random(num) * (above + below) < above)
        lon, lat = self._places(node, rng)
        return {"energy": np.exp(log_energy), "lon": lon, "lat": lat, "node": node}

    def _places(self, node: np.ndarray, rng: np.random.Generator) -> tuple[Any, Any]:
        if isinstance(self.sky, Point):
            return np.full(len(node), self.sky.lon), np.full(len(node), self.sky.lat)
        pixel = np.empty(len(node), int)
        for j in np.unique(node):
            here = node == j
            cumulated = np.cumsum(self._map(j))
            u = rng.random(int(here.sum())) * cumulated[-1]
            pixel[here] = np.minimum(np.searchsorted(cumulated, u, "right"), len(cumulated) - 1)
        return self.plane.to_sky(*_within(pixel, self.plane, rng))


def _spectrum(fold: Fold, source: Source, h: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    spectrum: Any = source.at(h).spectrum
    energy = np.asarray(fold.response.energy)
    fine = np.geomspace(energy[0], energy[-1], 16 * len(energy))
    return fine, np.exp(np.asarray(spectrum.log_prob({"energy": fine})))


def _seen(fold: Fold, true: Photons, rng: np.random.Generator) -> Photons:
    """What the response makes of photons."""
    response, num = fold.response, len(true["energy"])
    node = true["node"]
    area = np.asarray(response.area)[node]
    away = separation(*fold.pointing, true["lon"], true["lat"])
    b = _pick(np.asarray(response.offset_weights(away)) * area, rng)
    k = _pick(np.asarray(response.psf_weight)[node, b], rng)
    sigma = np.asarray(response.psf_sigma)[node, b, k]
    radius = sigma * np.sqrt(-2.0 * np.log1p(-rng.random(num)))
    lon, lat = moved(true["lon"], true["lat"], radius, 2.0 * np.pi * rng.random(num))
    energy = true["energy"] * _ratios(fold, response, node, lon, lat, rng)
    told = {f"true_{n}": true[n] for n in ("energy", "lon", "lat")}
    return {"energy": energy, "lon": lon, "lat": lat, **told}


def _ratios(
    fold: Fold,
    response: Response,
    node: np.ndarray,
    lon: np.ndarray,
    lat: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Reconstructed over true energy."""
    weights = np.asarray(response.offset_weights(separation(*fold.pointing, lon, lat)))
    b = _pick(weights, rng)
    log_ratio = response.log_ratio
    table = np.asarray(response.dispersion)
    ratio = np.empty(len(node))
    pair = node * len(response.offset) + b
    order = np.argsort(pair, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(pair[order]) > 0))
    for some in np.split(order, starts[1:]):
        density = table[node[some[0]], b[some[0]]]
        cumulated = np.append(0.0, np.cumsum(0.5 * (density[1:] + density[:-1])))
        u = rng.random(len(some)) * cumulated[-1]
        ratio[some] = np.exp(np.interp(u, cumulated, log_ratio))
    return ratio


def _pick(weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A place on the last axis of each row, by its weight; the first where all are zero."""
    cumulated = np.cumsum(weight, axis=-1)
    u = rng.random(len(weight)) * cumulated[:, -1]
    return np.minimum((cumulated <= u[:, None]).sum(1), weight.shape[1] - 1) * (
        cumulated[:, -1] > 0
    )


def moved(lon: Any, lat: Any, radius: Any, angle: Any) -> tuple[np.ndarray, np.ndarray]:
    """Directions [deg] at a distance [rad] from others, in a direction [rad] from north."""
    lon, lat = np.deg2rad(lon), np.deg2rad(lat)
    up = np.sin(lat) * np.cos(radius) + np.cos(lat) * np.sin(radius) * np.cos(angle)
    east = np.sin(angle) * np.sin(radius)
    north = np.cos(radius) * np.cos(lat) - np.sin(radius) * np.sin(lat) * np.cos(angle)
    return np.rad2deg(lon + np.arctan2(east, north)), np.rad2deg(np.arcsin(np.clip(up, -1, 1)))


def _background(fold: Fold, tilt: float, rng: np.random.Generator) -> Draw:
    """Photons of the background table, uniform within small cells of energy and direction."""
    cut: Cut = fold.cut
    energy, _ = log_panels(cut.low, cut.high)
    plane = Plane(*cut.region.center, float(np.deg2rad(cut.region.half_width)), 96)
    lon, lat = plane.centers()
    rates = fold.background_rates(energy, lon, lat)
    cumulated = np.cumsum(energy[:, None, None] ** (1.0 - tilt) * rates)
    step = np.log(cut.high / cut.low) / len(energy)

    def draw(num: int) -> Photons:
        cell = np.searchsorted(cumulated, rng.random(num) * cumulated[-1], "right")
        e, pixel = np.divmod(np.minimum(cell, len(cumulated) - 1), plane.num**2)
        lon, lat = plane.to_sky(*_within(pixel, plane, rng))
        drawn = {
            "energy": energy[e] * np.exp(step * (rng.random(num) - 0.5)),
            "lon": lon,
            "lat": lat,
        }
        return {**drawn, **{n: np.full(num, np.nan) for n in _TRUE}}

    return draw


def _within(
    pixel: np.ndarray, plane: Plane, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Places x and y anywhere in pixels of a plane."""
    row, column = np.divmod(pixel, plane.num)
    x, y = (
        plane.half_width * (2.0 * (z + rng.random(len(z))) / plane.num - 1.0) for z in (column, row)
    )
    return x, y
