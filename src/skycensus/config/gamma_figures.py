"""What a run with photons draws beside the standard figures, and how it labels its axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import jax
import numpy as np

from ..gamma.photons import Background, Observation, Source, Tree, leaves_of
from ..gamma.response import separation
from ..gamma.sky import Cone, Gaussian, Point, Region
from ..model import HierarchicalModel
from ..objects import ObjectPosteriors
from ..predictive import hyperparameter_draws
from ..result import Result
from .gamma_sources import Leaf

# Draws of the hyperparameters in bands.
_NUM_DRAWS = 200

# Argument of a sky or a spectrum -> how its axis is labelled.
_LABELS = {
    "mass": r"$m\ [\mathrm{TeV}]$",
    "mass_1": r"$m_1\ [\mathrm{TeV}]$",
    "mass_2": r"$m_2\ [\mathrm{TeV}]$",
    "sigma_v": r"$\langle\sigma v\rangle\ [\mathrm{cm^3\,s^{-1}}]$",
    "lifetime": r"$\tau\ [\mathrm{s}]$",
    "coupling": r"$\lambda_{hS}$",
    "index": r"$\Gamma$",
    "cutoff": r"$E_c\ [\mathrm{TeV}]$",
    "lon": "longitude [deg]",
    "lat": "latitude [deg]",
    "sigma": "extent [deg]",
    "alpha": r"$\alpha$",
    "slope": r"$\gamma$",
    "scale_radius": r"$r_s\ [\mathrm{kpc}]$",
    "distance": r"$d\ [\mathrm{kpc}]$",
    "local_density": r"$\rho_\odot\ [\mathrm{GeV\,cm^{-3}}]$",
    "amplitude": r"$\phi_0\ [\mathrm{cm^{-2}\,s^{-1}\,TeV^{-1}}]$",
}


def photon_labels(leaves: Sequence[Leaf]) -> dict[str, str]:
    """Hyperparameter -> axis label, for those that one component alone has an argument for."""
    found: dict[str, set[str]] = {}
    for leaf in leaves:
        for table in (leaf.sky, leaf.spectrum):
            for entry in fields(table) if table is not None else ():
                value = getattr(table, entry.name)
                if isinstance(value, str) and value in leaf.names and entry.name in _LABELS:
                    label = _LABELS[entry.name]
                    own = label if value == entry.name else f"{value}: {label}"
                    found.setdefault(value, set()).add(own)
    return {name: labels.pop() for name, labels in found.items() if len(labels) == 1}


def photon_figures(
    observations: Sequence[Observation], tree: Tree, model: HierarchicalModel, *, seed: int
) -> Callable[[Result, ObjectPosteriors | None], Mapping[str, Any]]:
    """What makes `photons`, `counts_spectrum`, `spectra`, and a map for a source that moves."""
    rates = model.rate == "poisson"
    parts = dict(leaves_of(tree))

    def figures(result: Result, objects: ObjectPosteriors | None) -> dict[str, Any]:
        from ..plots import photons

        key = jax.random.key(seed)
        draws = hyperparameter_draws(result, _NUM_DRAWS, key=key, prior=model.prior)
        region = common_region(observations)
        known = objects.membership if objects is not None else {}
        membership = {path: known[path] for path in parts if path in known}
        made = {
            "photons": photons.peek(observations, membership, region),
            "counts_spectrum": photons.counts_spectrum(observations, tree, draws, rates=rates),
        }
        if any(not isinstance(part, Background) for part in parts.values()):
            truth = _truth(model, result)
            made["spectra"] = photons.spectra(observations, tree, draws, rates=rates, truth=truth)
        for path, part in parts.items():
            sky: Any = part.sky(draws) if isinstance(part, Source) and part.moves else None
            if isinstance(sky, Point | Gaussian):
                name = f"map_{path.replace('/', '_')}"
                place = np.broadcast_arrays(sky.lon, sky.lat, draws[model.prior.names[0]])[:2]
                made[name] = photons.counts_map(observations, region, place=np.array(place))
        return made

    return figures


def common_region(observations: Sequence[Observation]) -> Region:
    """What all observations look at: their one region, or a circle that holds all."""
    regions = [observation.cut.region for observation in observations]
    first = regions[0]
    if all(region == first for region in regions):
        return first
    lon, lat = np.mean([region.center for region in regions], axis=0)
    away = [float(separation(lon, lat, *region.center)) + region.half_width for region in regions]
    return Cone(float(lon), float(lat), max(away))


def _truth(model: HierarchicalModel, result: Result) -> dict[str, Any] | None:
    """All true hyperparameters, where they are known."""
    known = result.truth or {}
    if any(known.get(name) is None for name in model.prior.names):
        return None
    return model.prior.complete({name: float(known[name]) for name in model.prior.names})
