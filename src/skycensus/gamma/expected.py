r"""How many photons components make in a cut, and in bins of reconstructed energy.

$$N_{kb} = \sum_j G_{kj}(b) \int s_k(E)\,h_j(E)\,dE,$$

with the part $G_{kj}(b)$ of the response that reconstructs energies in bin b (see `fold`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..likelihood.folded import Hats
from ..prior import Prior
from .fold import Fold
from .photons import Background, Observation, Source, Tree, leaves_of
from .response import energy_nodes
from .shapes import View, prior_shapes, shapes_of
from .sky import Around, Plane, Point, Region, takes_energy

Hyperparameters = Mapping[str, Any]

# The relative error of a sky of many draws, which is for figures.
_ROUGHLY = 1e-3

# Pixels along a side of the plane on which a sky is integrated over a region.
_PIXELS = 128


def expected_counts(
    observation: Observation, tree: Tree, hyperparameters: Hyperparameters
) -> dict[str, float]:
    """Path of every leaf -> expected number of photons in the cut, at a rate factor of one."""
    edges = np.array([observation.cut.low, observation.cut.high])
    found = _numbers([observation], tree, hyperparameters, edges)
    return {path: float(number[0, 0]) for path, number in found.items()}


def expected_spectra(
    observations: Sequence[Observation],
    tree: Tree,
    hyperparameters: Hyperparameters,
    edges: Any,
    *,
    rates: bool = True,
) -> dict[str, np.ndarray]:
    """Path of every leaf -> expected photons between reconstructed energies, all runs together.

    Args:
        observations: of each counts what lies in its cut.
        tree: of the model.
        hyperparameters: numbers, or arrays (draw,) of several points. A sky that they move, not
            shape, is taken where it is at their mean.
        edges: (bin + 1,) [TeV].
        rates: whether leaves have rates; with fractions, they share the photons that were seen.

    Returns:
        (bin,), or (draw, bin).
    """
    found = _numbers(observations, tree, hyperparameters, np.asarray(edges, float))
    weight = shares(tree, hyperparameters, rates=rates)
    seen = float(sum(observation.used.sum() for observation in observations))
    out = {}
    for path, number in found.items():
        factor = np.asarray(weight[path], float)[..., None]
        if not rates:
            factor = factor * seen / np.maximum(number.sum(axis=-1, keepdims=True), 1e-300)
        out[path] = factor * number
        if not _num_draws(hyperparameters):
            out[path] = out[path][0]
    return out


def shares(tree: Tree, hyperparameters: Hyperparameters, *, rates: bool) -> dict[str, Any]:
    """Path of every leaf -> its rate factor, or the product of the fractions on the way to it."""

    def of(path: str) -> Any:
        names = path.split("/")
        return np.prod([np.asarray(hyperparameters[n], float) for n in names[-rates:]], axis=0)

    return {path: of(path) for path, _ in leaves_of(tree)}


def _num_draws(h: Hyperparameters) -> int:
    return max((np.size(x) for x in h.values() if np.ndim(x)), default=0)


def _numbers(
    observations: Sequence[Observation], tree: Tree, h: Hyperparameters, edges: np.ndarray
) -> dict[str, np.ndarray]:
    """Path of every leaf -> (draw, bin), one draw where the hyperparameters are numbers."""
    shape = (max(_num_draws(h), 1), len(edges) - 1)
    total = {path: np.zeros(shape) for path, _ in leaves_of(tree)}
    for run in observations:
        fold = empty_fold(run)
        inside = np.clip(edges, run.cut.low, run.cut.high)
        for path, part in leaves_of(tree):
            if isinstance(part, Background):
                total[path] += _of_background(fold, part, h, inside, run.name, shape[0])
                continue
            for source in [part] if isinstance(part, Source) else part:
                total[path] += _of_source(fold, source, h, inside, shape[0])
    return total


def empty_fold(observation: Observation) -> Fold:
    """An observation's response without photons."""
    bare = replace(observation, energy=(), lon=(), lat=())
    cut = observation.cut
    return bare.fold(energy_nodes([(observation.tables, cut.low, cut.high)]))


def _at_draws(h: Hyperparameters, num: int) -> dict[str, np.ndarray]:
    return {name: np.broadcast_to(np.asarray(x, float), (num,)) for name, x in h.items()}


def _of_background(
    fold: Fold, part: Background, h: Hyperparameters, edges: np.ndarray, run: str, num: int
) -> np.ndarray:
    scale = jax.vmap(lambda h: part.at(h, [run]).both, axis_size=num)(_at_draws(h, num))
    norm, tilt = (np.asarray(x, float) for x in scale)
    found = np.zeros((num, len(edges) - 1))
    for b in np.flatnonzero(np.diff(edges) > 0):
        energy, counts = fold.background_counts(float(edges[b]), float(edges[b + 1]))
        found[:, b] = norm[:, 0] * (energy**-tilt @ counts)
    return found


def _of_source(
    fold: Fold, source: Source, h: Hyperparameters, edges: np.ndarray, num: int
) -> np.ndarray:
    skies, shares = _skies(source, h, num, (fold.cut.region.center, fold.half_width))
    bins = np.zeros((len(skies), len(edges) - 1, len(fold.response.energy)))
    held = [fold.held(sky) for sky in skies]
    for b in np.flatnonzero(np.diff(edges) > 0):
        accepted = fold.response.energy_acceptance(float(edges[b]), float(edges[b + 1]))
        bins[:, b] = np.sum(held * np.asarray(accepted), axis=-1)
    hats = Hats("energy", np.asarray(fold.response.energy))

    def masses(h: Hyperparameters) -> Any:
        spectrum: Any = source.at(h).spectrum
        return hats.masses(spectrum)

    points, own = _points(source, h, num)
    mass, top = jax.jit(jax.vmap(masses, axis_size=own))(points)
    return np.exp(np.asarray(top))[:, None] * np.einsum("nr,nj,rbj->nb", shares, mass, bins)


def _skies(
    source: Source, h: Hyperparameters, num: int, view: View
) -> tuple[list[Any], np.ndarray]:
    """Fixed skies of a source, and (draw, sky) how much of each there is.

    One that moves is where it is at the mean of the hyperparameters.
    """
    still = source.at({name: float(np.mean(x)) for name, x in h.items()}).sky
    if num == 1 or not source.moves or not isinstance(still, Around):
        return [still], np.ones((1, 1))
    draws = _at_draws(h, num)
    shapes = shapes_of(source.sky, draws, [view], "sky", tolerance=_ROUGHLY)
    found, top = jax.jit(jax.vmap(lambda h: shapes.coefficients(source.sky(h))))(draws)
    return shapes.skies, np.asarray(found) * np.exp(np.asarray(top))[:, None]


def _points(source: Source, h: Hyperparameters, num: int) -> tuple[dict[str, np.ndarray], int]:
    """Hyperparameters as arrays, and their length: one for a spectrum that nothing changes."""
    own = 1 if source.is_fixed else num
    return {name: np.broadcast_to(np.ravel(x)[:own], (own,)) for name, x in h.items()}, own


# ---- fluxes --------------------------------------------------------------------------------------


def fluxes(
    tree: Tree, hyperparameters: Hyperparameters, region: Region, energy: Any
) -> dict[str, np.ndarray]:
    """Path of every leaf with a sky -> its flux from a region [1/(cm² s TeV)], (draw, energy).

    At a rate factor of one. With fractions it is known up to a factor.

    Args:
        tree, hyperparameters: as of `expected_spectra`.
        region: over which the sky is integrated.
        energy: (energy,) true energies [TeV].
    """
    energy, num = np.asarray(energy, float), max(_num_draws(hyperparameters), 1)
    found = {}
    for path, part in leaves_of(tree):
        if isinstance(part, Background):
            continue
        total = np.zeros((num, len(energy)))
        for source in [part] if isinstance(part, Source) else part:
            view = region.center, region.half_width
            skies, shares = _skies(source, hyperparameters, num, view)
            held = shares @ np.stack([_within(sky, region, energy) for sky in skies])
            total = total + held * _spectrum(source, hyperparameters, energy, num)
        found[path] = total
    return found


def log_flux_within(
    sky: Callable[[Hyperparameters], Around], prior: Prior, region: Region, name: str
) -> Callable[[Around], Any]:
    """What makes the logarithm of the flux from a region, for a sky whose shape is free.

    It may be compiled and differentiated; of dJ/dΩ it is the logarithm of the J factor.

    Args:
        sky, prior, name: see `shapes.prior_shapes`.
        region: over which the sky is integrated.
    """
    shapes = prior_shapes(sky, prior, [(region.center, region.half_width)], name)
    held = np.array([_within(one, region, np.ones(1))[0] for one in shapes.skies])

    def log_flux(now: Around) -> Any:
        shares, top = shapes.coefficients(now)
        return jnp.log(shares @ held) + top

    return log_flux


def _spectrum(source: Source, h: Hyperparameters, energy: np.ndarray, num: int) -> np.ndarray:
    def at(h: Hyperparameters) -> Any:
        spectrum: Any = source.at(h).spectrum
        return jnp.exp(spectrum.log_prob({"energy": energy}))

    points, own = _points(source, h, num)
    return np.asarray(jax.jit(jax.vmap(at, axis_size=own))(points))


def _within(sky: Any, region: Region, energy: np.ndarray) -> np.ndarray:
    """(energy,) integral of a sky over a region; 1 for a point in it."""
    if isinstance(sky, Point):
        return np.full(len(energy), float(region.inside(sky.lon, sky.lat)))
    plane = Plane(*region.center, float(np.deg2rad(region.half_width)), _PIXELS)
    inside = plane.pixel_means(lambda lon, lat: region.inside(lon, lat) + 0.0) * plane.pixel**2
    if not takes_energy(sky):
        return np.full(len(energy), np.sum(inside * plane.pixel_means(sky)))
    each = [np.sum(inside * plane.pixel_means(partial(sky, energy=e))) for e in energy]
    return np.array(each)
