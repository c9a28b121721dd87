"""Photons drawn from components and put through the response: continuous, not on a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InputError, did_you_mean
from ..keys import generator
from .fold import Cut, Fold, log_panels
from .photons import Background, Observation, Source, Tree, leaves_of
from .response import Response, energy_nodes, separation
from .sky import Plane, Point, takes_energy

# Draws are made in rounds until enough of them are seen.
_MAX_ROUNDS = 200
_ROUND = 1_000_000

Photons = dict[str, np.ndarray]


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
        hyperparameters: of the spectra that are not fixed.
        counts: path or name of every leaf -> number of photons seen. For a Poisson process draw
            them around `expected_counts`.
        key: of all randomness.

    Returns:
        The observation with the photons, in random order, and columns of the same order:
        `component` (path), and `true_energy` [TeV], `true_lon`, `true_lat` [deg], which are NaN for
        a background that is known as it is reconstructed.

    Raises:
        InputError: counts of a component that there is not, or one without photons in the cut.
    """
    rng = generator(key)
    fold = _empty(observation)
    numbers = _by_path(tree, counts)
    parts = []
    for path, part in leaves_of(tree):
        drawn = _component(fold, part, hyperparameters, numbers[path], rng, path)
        parts.append({**drawn, "component": np.full(numbers[path], path)})
    joined = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
    order = rng.permutation(len(joined["energy"]))
    joined = {n: x[order] for n, x in joined.items()}
    energy, lon, lat = (joined.pop(n) for n in ("energy", "lon", "lat"))
    middle = observation.cut.region.center[0]
    lon = middle + (lon - middle + 180.0) % 360.0 - 180.0
    return replace(observation, energy=energy, lon=lon, lat=lat), joined


def expected_counts(
    observation: Observation, tree: Tree, hyperparameters: Mapping[str, Any]
) -> dict[str, float]:
    """Path of every leaf -> expected number of photons in the cut, at a rate factor of one."""
    fold = _empty(observation)
    return {
        path: _expected(fold, part, hyperparameters, observation.name)
        for path, part in leaves_of(tree)
    }


def expected_spectra(
    observations: Sequence[Observation],
    tree: Tree,
    hyperparameters: Mapping[str, Any],
    edges: Any,
) -> dict[str, np.ndarray]:
    """Path of every leaf -> expected photons between reconstructed energies, all runs together.

    Args:
        observations: of each counts what lies in its cut.
        tree, hyperparameters: of a model with rates.
        edges: (bin + 1,) [TeV].
    """
    edges = np.asarray(edges, float)
    total = {path: np.zeros(len(edges) - 1) for path, _ in leaves_of(tree)}
    for run in observations:
        inside = np.clip(edges, run.cut.low, run.cut.high)
        for b in np.flatnonzero(np.diff(inside) > 0):
            cut = replace(run.cut, low=float(inside[b]), high=float(inside[b + 1]))
            for path, number in expected_counts(
                replace(run, cut=cut), tree, hyperparameters
            ).items():
                total[path][b] += hyperparameters[path.rsplit("/", 1)[-1]] * number
    return total


def _expected(fold: Fold, part: Any, h: Mapping[str, Any], run: str = "") -> float:
    if isinstance(part, Background):
        energy, counts = fold.background_counts()
        scale = part.at(h, [run])
        return float(np.sum(counts * scale.norm[0] * energy ** -np.asarray(scale.tilt[0])))
    total = 0.0
    for source in [part] if isinstance(part, Source) else part:
        fine, density = _spectrum(fold, source, h)
        sky = source.at(h).sky
        seen = np.interp(np.log(fine), np.log(fold.response.energy), fold.density(sky)[1])
        total += float(np.trapezoid(density * seen * fine, np.log(fine)))
    return total


def _empty(observation: Observation) -> Fold:
    bare = replace(observation, energy=(), lon=(), lat=())
    cut = observation.cut
    return bare.fold(energy_nodes([(observation.tables, cut.low, cut.high)]))


def _by_path(tree: Tree, counts: Mapping[str, int]) -> dict[str, int]:
    paths = [path for path, _ in leaves_of(tree)]
    names = {p: p for p in paths} | {p.rsplit("/", 1)[-1]: p for p in paths}
    for name in counts:
        if name not in names:
            raise InputError(
                f"counts of '{name}', which is no component{did_you_mean(name, names)}; there are "
                f"{paths}."
            )
    given = {names[n]: int(c) for n, c in counts.items()}
    return {path: given.get(path, 0) for path in paths}


def _component(
    fold: Fold, part: Any, h: Mapping[str, Any], num: int, rng: np.random.Generator, path: str
) -> Photons:
    if isinstance(part, Background):
        return _background(fold, num, rng)
    sources = [part] if isinstance(part, Source) else list(part)
    share = np.array([_expected(fold, s, h) if len(sources) > 1 else 1.0 for s in sources])
    if not share.sum() > 0:
        raise InputError(f"component '{path}' has no photons in the cut.")
    each = rng.multinomial(num, share / share.sum())
    drawn = [_source(fold, s, h, int(n), rng, path) for s, n in zip(sources, each, strict=True)]
    return {n: np.concatenate([d[n] for d in drawn]) for n in drawn[0]}


def _source(
    fold: Fold, source: Source, h: Mapping[str, Any], num: int, rng: np.random.Generator, path: str
) -> Photons:
    draws = _TrueDraws(fold, source, h)
    kept: list[Photons] = []
    have, accepted = 0, 0.5
    for _ in range(_MAX_ROUNDS):
        if have >= num:
            break
        wanted = min(int(1.1 * (num - have) / accepted) + 100, _ROUND)
        one = _seen(fold, draws.draw(wanted, rng), rng)
        some = fold.cut.inside(one["energy"], one["lon"], one["lat"])
        kept.append({n: x[some] for n, x in one.items()})
        have += int(some.sum())
        accepted = max(some.mean(), 1e-3)
    if have < num:
        raise InputError(f"component '{path}' has (nearly) no photons in the cut: {have} of {num}.")
    if not kept:
        return {n: np.empty(0) for n in _COLUMNS}
    return {n: np.concatenate([k[n] for k in kept])[:num] for n in _COLUMNS}


_COLUMNS = ("energy", "lon", "lat", "true_energy", "true_lon", "true_lat")


class _TrueDraws:
    """True energies and directions of a source's photons that reach the telescopes."""

    def __init__(self, fold: Fold, source: Source, h: Mapping[str, Any]):
        self.fold, self.sky = fold, source.at(h).sky
        self.nodes = np.log(np.asarray(fold.response.energy))
        self.area = np.asarray(fold.response.area)
        self.maps: dict[int, np.ndarray] = {}
        if not isinstance(self.sky, Point):
            field = fold._plane(max(0.02, getattr(self.sky, "pixel", 0.0)))
            self.plane, self.offsets = field.plane, field.offsets
        fine, density = _spectrum(fold, source, h)
        total = np.array([self._map(j).sum() for j in range(len(self.nodes))])
        self.log_fine = np.log(fine)
        mass = density * fine * np.interp(self.log_fine, self.nodes, total)
        steps = np.diff(self.log_fine) * 0.5 * (mass[1:] + mass[:-1])
        self.cumulated = np.append(0.0, np.cumsum(steps))

    def _map(self, j: int) -> np.ndarray:
        """Photons of node j by their place, in any unit."""
        if j not in self.maps:
            if isinstance(self.sky, Point):
                away = separation(*self.fold.pointing, self.sky.lon, self.sky.lat)
                weights = np.asarray(self.fold.response.offset_weights(away))
                self.maps[j] = np.array([weights @ self.area[j]])
            else:
                self.maps[j] = (self._flux(j) * np.tensordot(self.area[j], self.offsets, 1)).ravel()
        return self.maps[j]

    def _flux(self, j: int) -> np.ndarray:
        if takes_energy(self.sky):
            energy = float(np.exp(self.nodes[j]))
            return self.plane.pixel_means(lambda lon, lat: self.sky(lon, lat, energy))
        if not hasattr(self, "_means"):
            self._means = self.plane.pixel_means(self.sky)
        return self._means

    def draw(self, num: int, rng: np.random.Generator) -> Photons:
        """Energies, directions, and the node whose response each photon gets."""
        if not self.cumulated[-1] > 0:
            raise InputError("a component has no photons that reach the telescopes.")
        log_energy = np.interp(rng.random(num) * self.cumulated[-1], self.cumulated, self.log_fine)
        place = (log_energy - self.nodes[0]) / (self.nodes[1] - self.nodes[0])
        low = np.clip(place.astype(int), 0, len(self.nodes) - 2)
        node = low + (rng.random(num) < place - low)
        # The neighbour may be blind where the photon's own energy is not.
        blind = ~(self.area[node] > 0).any(1)
        node = np.where(blind, 2 * low + 1 - node, node)
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
        row, column = np.divmod(pixel, self.plane.num)
        y, x = (
            self.plane.half_width * (2.0 * (z + rng.random(len(z))) / self.plane.num - 1.0)
            for z in (row, column)
        )
        return self.plane.to_sky(x, y)


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


def _background(fold: Fold, num: int, rng: np.random.Generator) -> Photons:
    """Photons of the background table, uniform within small cells of energy and direction."""
    cut: Cut = fold.cut
    energy, _ = log_panels(cut.low, cut.high)
    plane = Plane(*cut.region.center, float(np.deg2rad(cut.region.half_width)), 96)
    lon, lat = plane.centers()
    rates = np.stack([e * fold.background_rate(np.full(lon.shape, e), lon, lat) for e in energy])
    cumulated = np.cumsum(rates.ravel())
    step = np.log(cut.high / cut.low) / len(energy)
    kept: list[Photons] = []
    have = 0
    for _ in range(_MAX_ROUNDS):
        if have >= num:
            break
        wanted = min(2 * (num - have) + 100, _ROUND)
        cell = np.searchsorted(cumulated, rng.random(wanted) * cumulated[-1], "right")
        e, pixel = np.divmod(cell, plane.num**2)
        row, column = np.divmod(pixel, plane.num)
        y, x = (
            plane.half_width * (2.0 * (z + rng.random(wanted)) / plane.num - 1.0)
            for z in (row, column)
        )
        place = plane.to_sky(x, y)
        one = {
            "energy": energy[e] * np.exp(step * (rng.random(wanted) - 0.5)),
            "lon": place[0],
            "lat": place[1],
        }
        some = cut.inside(one["energy"], one["lon"], one["lat"])
        kept.append({n: c[some] for n, c in one.items()})
        have += int(some.sum())
    joined = {
        n: np.concatenate([np.empty(0), *(k[n] for k in kept)])[:num]
        for n in ("energy", "lon", "lat")
    }
    return {**joined, **{f"true_{n}": np.full(num, np.nan) for n in joined}}
