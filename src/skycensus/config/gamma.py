"""Gamma rays: a checked config made into an analysis of photons, or into simulated ones."""

from __future__ import annotations

import fnmatch
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from .. import data as data_sets
from ..analysis import Derived
from ..density import Mixture
from ..errors import InputError, did_you_mean
from ..folders import check_folder, new_folder
from ..gamma.dl3 import read_events, read_run, read_runs
from ..gamma.expected import log_flux_within
from ..gamma.fold import Cut
from ..gamma.photons import Known, Observation, Tree, leaves_of, photon_model
from ..gamma.response import synthetic_tables
from ..gamma.simulate import draw_counts, simulate_all
from ..gamma.sky import Box, Cone, Region
from ..gamma.tables import ResponseTables, read_tables, tables_from_arrays
from ..gw.mock_files import MARK
from ..gw.tables import expand_paths, file_hash
from ..model import Hyperparameters
from ..output import Inference
from ..prior import Prior
from . import Config, collecting
from .gamma_figures import common_region, photon_figures, photon_labels
from .gamma_parts import HaloSky, Place
from .gamma_sources import Leaf, read_leaves, tree_of
from .plan import Plan, complete_truth, make_plan, resolved, settings
from .schema import NoSelection, PhotonObservation, Photons, fill

# The columns of directions in an event list, by frame.
_COLUMNS = {"icrs": ("ra", "dec"), "galactic": ("glon", "glat")}


@dataclass
class _Photons:
    """What the checks of `[data]` and `[sources]` have found."""

    observations: list[PhotonObservation]
    runs: list[Path] | list[int]
    names: list[str]
    leaves: list[Leaf]


def build(config: Config, *, provenance: Mapping[str, Any] | None = None) -> Inference:
    """Read the photons and responses of a checked config and make the analysis.

    Raises:
        InputError: every problem of the config at once; then the first problem of the data.
    """
    began = time.perf_counter()
    plan, found = plan_of(config)
    assert plan.prior is not None
    observations = _observations(plan, found)
    tree = _tree(plan, found, observations[0].cut.region)
    model = photon_model(observations, tree, plan.prior, rate=_rate(plan))
    return Inference(
        labels=photon_labels(found.leaves),
        derived=_fluxes_of_halos(found.leaves, tree, model.prior, common_region(observations)),
        model=model,
        sampler=plan.sampler(model),
        seconds_reading=time.perf_counter() - began,
        more_figures=photon_figures(observations, tree, model, seed=config.seed),
        **settings(plan, provenance),
    )


def parts(config: Config, *, simulated: bool = False) -> tuple[list[Observation], Tree, Prior]:
    """What a config's model is made of: the arguments of `photon_model` and of `gamma.limits`.

    Args:
        config: whose form was checked.
        simulated: observations without photons, whose event lists need not exist.

    Raises:
        InputError: as `build`.
    """
    plan, found = plan_of(config, simulated=simulated)
    assert plan.prior is not None
    if simulated:
        observations = [_empty(plan, one) for one in found.observations]
    else:
        observations = _observations(plan, found)
    return observations, _tree(plan, found, observations[0].cut.region), plan.prior


def _fluxes_of_halos(
    leaves: list[Leaf], tree: Tree, prior: Prior, region: Region
) -> Derived | None:
    """log10 of the J (or D) factor of every halo whose shape is free, over a region."""
    parts, found = dict(leaves_of(tree)), {}
    for leaf in leaves:
        if isinstance(leaf.sky, HaloSky) and parts[leaf.path].moves:
            name = f"log10_{'D' if leaf.sky.decay else 'J'}_{leaf.name}"
            sky = parts[leaf.path].sky
            found[name] = sky, log_flux_within(sky, prior, region, leaf.path)
    if not found:
        return None
    return lambda h: {n: log_flux(sky(h)) / np.log(10.0) for n, (sky, log_flux) in found.items()}


def _rate(plan: Plan) -> Literal["fractions", "rates"]:
    return "rates" if plan.rate == "poisson" else "fractions"


# ---- what can be checked before anything is read -------------------------------------------------


def plan_of(config: Config, *, simulated: bool = False) -> tuple[Plan, _Photons]:
    """Check a config; `simulated` ones need no event lists."""
    found = _Photons([], [], [], [])

    def population(plan: Plan) -> None:
        _plan_data(plan, found, simulated)
        _plan_sources(plan, found)

    plan = make_plan(config, lambda plan: _plan_halos(plan, found), population=population)
    return plan, found


def _plan_data(plan: Plan, found: _Photons, simulated: bool) -> None:
    section: Photons | None = plan.section("data")
    if not isinstance(plan.section("selection"), NoSelection | None):
        plan.problems.append(f"{plan.name} [selection]: photons have their response; leave it out.")
    if "population" in plan.config.raw:
        plan.problems.append(f"{plan.name} [population]: photons have [sources]; leave it out.")
    if section is None:
        return
    where = f"{plan.name} [data]: "
    given = [key for key in ("runs", "events", "observations") if getattr(section, key) is not None]
    if simulated and not given:
        given = ["events"]
    if len(given) != 1:
        plan.problems.append(
            f"{where}give one of runs, events and observations"
            + (f", not {' and '.join(given)}." if given else ".")
        )
        return
    if given == ["runs"]:
        with collecting(plan.problems, where):
            if simulated:
                raise InputError("runs have photons; describe observations to simulate some.")
            _cut_of(section, needed=False)
            found.runs = _find_runs(plan, section)
            found.names = [_run_name(run) for run in found.runs]
        return
    found.observations = _merged(section, where, plan.problems)
    found.names = [str(one.name) for one in found.observations]
    if repeated := sorted({n for n in found.names if found.names.count(n) > 1}):
        plan.problems.append(f"{where}observations have names that occur twice: {repeated}.")
    for one in found.observations:
        here = where if len(found.observations) == 1 else f"{where}{one.name}: "
        _plan_observation(plan, one, here, simulated)


def _find_runs(plan: Plan, section: Photons) -> list[Path] | list[int]:
    runs = section.runs or []
    if not runs:
        raise InputError("runs is an empty list; give files, patterns or numbers.")
    if all(isinstance(run, int) for run in runs):
        if not plan.config.data_folder.is_dir():
            raise InputError(f"path: there is no folder '{plan.config.data_folder}'.")
        return [int(run) for run in runs]
    return expand_paths([plan.config.in_data(str(run)) for run in runs])


def _run_name(run: Path | int) -> str:
    """The number of a run, from its file's header."""
    from astropy.io import fits

    if isinstance(run, int):
        return str(run)
    try:
        return str(fits.getval(run, "OBS_ID", "EVENTS"))
    except (OSError, KeyError):
        return run.name.split(".")[0]  # told when it is read


def _merged(section: Photons, where: str, problems: list[str]) -> list[PhotonObservation]:
    """Every observation, with the section's values where it has none of its own."""
    shared = [f.name for f in fields(PhotonObservation) if f.name != "name"]
    usual = {name: getattr(section, name) for name in shared}
    if section.observations is None:
        return [PhotonObservation(name="observation", **usual)]
    observations = []
    for number, table in enumerate(section.observations, start=1):
        one = fill(PhotonObservation, table, f"{where}observation {number}", problems)
        if one is not None:
            own = {n: getattr(one, n) for n in shared if getattr(one, n) is not None}
            name = one.name or f"observation_{number}"
            observations.append(PhotonObservation(name=name, **(usual | own)))
    if not section.observations:
        problems.append(f"{where}observations is an empty list.")
    return observations


def _plan_observation(plan: Plan, one: PhotonObservation, where: str, simulated: bool) -> None:
    for key in ("response", "pointing", "livetime", "energy", "region"):
        if getattr(one, key) is None:
            plan.problems.append(f"{where}'{key}' is missing.")
    if one.events is None:
        plan.problems.append(f"{where}'events' is missing; give a file of photons.")
    elif not simulated and not plan.config.in_data(one.events).is_file():
        path = plan.config.in_data(one.events)
        plan.problems.append(f"{where}events: there is no file '{path}'.")
    if one.pointing is not None and len(one.pointing) != 2:
        plan.problems.append(f"{where}pointing = {one.pointing} must be [lon, lat] in degrees.")
    if one.livetime is not None:
        with collecting(plan.problems, where):
            seconds(one.livetime)
    if one.energy is not None and one.region is not None:
        with collecting(plan.problems, where):
            _cut_of(one, needed=True)
    if one.response is not None:
        with collecting(plan.problems, where):
            _check_response(plan.config, one.response)


def seconds(livetime: float | str) -> float:
    """A time in seconds, or with a unit as "5 h".

    Raises:
        InputError: no time, or one that is not positive.
    """
    from astropy import units as u

    try:
        value = float(u.Quantity(livetime).to_value("s")) if isinstance(livetime, str) else livetime
    except (TypeError, ValueError, u.UnitConversionError) as error:
        raise InputError(
            f"livetime = '{livetime}' is no time ({error}); give seconds, or for example '5 h'."
        ) from None
    if not value > 0:
        raise InputError(f"livetime = {livetime} must be positive.")
    return value


def _cut_of(one: Any, *, needed: bool) -> tuple[Region | None, float | None, float | None]:
    """Region, lowest and highest energy; None for what is not given."""
    region, low, high = None, None, None
    if one.energy is not None or needed:
        if len(one.energy) != 2:
            raise InputError(f"energy = {one.energy} must be [lowest, highest] in TeV.")
        low, high = map(float, one.energy)
        if not 0 < low < high:
            raise InputError(f"energy = {one.energy} must be positive and rise.")
    if one.region is not None or needed:
        problems: list[str] = []
        kind = _ConeTable if "radius" in one.region else _BoxTable
        table: Any = fill(kind, one.region, "region", problems)
        if table is None:
            raise InputError("\n".join(problems))
        region = table.region()
    return region, low, high


@dataclass(frozen=True, kw_only=True)
class _BoxTable:
    lon: list[float]
    lat: list[float]

    def region(self) -> Region:
        if len(self.lon) != 2 or len(self.lat) != 2:
            raise InputError(
                "region: lon and lat must be [lowest, highest], or numbers with a radius."
            )
        (west, east), (south, north) = self.lon, self.lat
        return Box((west, east), (south, north))


@dataclass(frozen=True, kw_only=True)
class _ConeTable:
    lon: float
    lat: float
    radius: float

    def region(self) -> Region:
        return Cone(self.lon, self.lat, self.radius)


def _plan_sources(plan: Plan, found: _Photons) -> None:
    raw = plan.config.raw.get("sources", {})
    if not isinstance(raw, dict) or not raw:
        plan.problems.append(
            f"{plan.name} [sources]: missing; give a table [sources.NAME] for every component."
        )
        return
    before = len(plan.problems)
    found.leaves = read_leaves(raw, found.names, f"{plan.name} [sources", plan.problems)
    if len(plan.problems) > before or not found.names:
        return
    tree = tree_of({leaf.path: leaf for leaf in found.leaves})
    plan.population = _stand_in(tree, rates=plan.rate == "poisson")
    plan.parameters = ("energy",)


def _plan_halos(plan: Plan, found: _Photons) -> None:
    if plan.problems or plan.prior is None:
        return
    prior = resolved(plan)
    drawn = prior.complete(prior.bounds())
    bounds = {n: x if isinstance(x, tuple) else (float(x), float(x)) for n, x in drawn.items()}
    for leaf in found.leaves:
        faults = leaf.sky.faults(bounds) if isinstance(leaf.sky, HaloSky) else ()
        plan.problems += [f"{plan.name} [sources.{leaf.name}] sky: {fault}" for fault in faults]


def _stand_in(tree: Tree, *, rates: bool) -> Any:
    """A population that has the tree's hyperparameters, before any table is read."""

    def mixture(branch: Tree, h: Hyperparameters) -> Mixture:
        parts: dict[str, Any] = {}
        for name, part in branch.items():
            if isinstance(part, Leaf):
                for own in part.names:
                    h[own]
            if isinstance(part, Leaf) or not rates:
                h[name]
            parts[name] = Known() if isinstance(part, Leaf) else mixture(part, h)
        return Mixture(parts, log_weights=dict.fromkeys(parts, 0.0))

    return lambda h: mixture(tree, h)


# ---- reading -------------------------------------------------------------------------------------


def _observations(plan: Plan, found: _Photons) -> list[Observation]:
    section: Photons = plan.section("data")
    if found.runs:
        return _read_runs(plan, section, found.runs)
    observations = []
    for one in found.observations:
        assert one.events is not None
        path = plan.config.in_data(one.events)
        photons = read_events(path, frame=section.frame, units=section.units)
        plan.inputs[str(path)] = file_hash(path)
        observations.append(replace(_empty(plan, one), **photons._asdict()))
    return observations


def _read_runs(plan: Plan, section: Photons, runs: list[Path] | list[int]) -> list[Observation]:
    region, low, high = _cut_of(section, needed=False)
    options: dict[str, Any] = {"region": region, "low": low, "high": high, "frame": section.frame}
    options["safe"] = None if section.safe == "none" else section.safe
    numbers = [run for run in runs if isinstance(run, int)]
    if numbers:
        return read_runs(plan.config.data_folder, numbers, **options)
    for run in runs:
        plan.inputs[str(run)] = file_hash(Path(str(run)))
    return [read_run(Path(str(run)), **options) for run in runs]


def _empty(plan: Plan, one: PhotonObservation) -> Observation:
    """An observation without photons."""
    region, low, high = _cut_of(one, needed=True)
    assert region is not None and low is not None and high is not None
    assert one.response is not None and one.pointing is not None and one.livetime is not None
    lon, lat = one.pointing
    return Observation(
        tables=_response(plan, one.response),
        pointing=(float(lon), float(lat)),
        livetime=seconds(one.livetime),
        cut=Cut(region, low, high),
        name=str(one.name),
    )


def _check_response(config: Config, name: str) -> None:
    known, _, _ = name.partition("/")
    if name == "synthetic" or known in data_sets.SETS or config.either(name).is_file():
        return
    raise InputError(
        f"response = '{name}' is neither 'synthetic', a public data set"
        f"{did_you_mean(known, data_sets.SETS)} nor a file ('{config.in_data(name)}')."
    )


def _response(plan: Plan, name: str) -> ResponseTables:
    if name == "synthetic":
        return synthetic_tables()
    path = plan.config.either(name)
    if not path.is_file():
        known, _, pattern = name.partition("/")
        path = _one_of(data_sets.path(known), pattern, name)
    plan.inputs[str(path)] = file_hash(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return tables_from_arrays(dict(arrays))
    return read_tables(path)


def _one_of(place: Path, pattern: str, name: str) -> Path:
    """The one file of a data set that fits a pattern."""
    if place.is_file():
        return place
    have = sorted(file.name for file in place.iterdir())
    fit = [n for n in have if fnmatch.fnmatch(n, pattern or "*")]
    if len(fit) != 1:
        raise InputError(
            f"response = '{name}' fits {len(fit)} files; give '{name.partition('/')[0]}/PATTERN' "
            f"for one of {', '.join(have)}."
        )
    return place / fit[0]


def _tree(plan: Plan, found: _Photons, region: Region) -> Tree:
    section: Photons = plan.section("data")
    read: list[Path] = []
    place = Place(plan.config, section.frame, region.center, read)
    parts = {}
    for leaf in found.leaves:
        try:
            parts[leaf.path] = leaf.build(place)
        except InputError as error:
            raise InputError(f"{plan.name} [sources.{leaf.name}]: {error}") from error
    tree = tree_of(parts)
    plan.inputs.update({str(path): file_hash(path) for path in read})
    return tree


# ---- simulating ----------------------------------------------------------------------------------


def simulate(config: Config, out: str | Path, *, overwrite: bool = False) -> dict[str, int]:
    """Simulate the photons of a config's sources at `[truth]`, and write their event lists.

    `out` gets a list for each observation, by the name that `[data]` has for it, `truth.json`, and
    `catalogue.json` with the counts by component. Numbers of photons are Poisson where the model
    has rates; with fractions `[simulate]` gives `num_photons` or `counts`.

    Returns:
        path of every component -> photons.

    Raises:
        InputError: every problem of the config at once; a folder that cannot be written.
    """
    plan, found = plan_of(config, simulated=True)
    truth = complete_truth(plan)
    section = plan.section("simulate")
    if plan.rate == "shape" and (section.num_photons is None) == (section.counts is None):
        raise InputError(
            f"{plan.name} [simulate]: fractions do not say how many photons there are; give either "
            "num_photons or counts = {NAME = number, ...}."
        )
    check_folder(out, MARK, overwrite=overwrite)
    empty = [_empty(plan, one) for one in found.observations]
    tree = _tree(plan, found, empty[0].cut.region)
    count_key, photon_key = jax.random.split(jax.random.key(config.seed))
    counts = section.counts
    if counts is None:
        counts = draw_counts(empty, tree, truth, count_key, num_photons=section.num_photons)
    seen, told = simulate_all(empty, tree, truth, counts, photon_key)
    frame = plan.section("data").frame
    with new_folder(out, MARK, overwrite=overwrite) as folder:
        for one, observation, columns in zip(found.observations, seen, told, strict=True):
            _write_photons(folder / Path(str(one.events)).name, observation, columns, frame)
        _write_json(folder / "truth.json", {"truth": truth})
        record = {"kind": "photons", "seed": config.seed, "counts": counts}
        _write_json(folder / MARK, record)
    return counts


def _write_photons(
    path: Path, seen: Observation, columns: Mapping[str, np.ndarray], frame: str
) -> None:
    from astropy import units as u
    from astropy.table import QTable

    lon, lat = _COLUMNS[frame]
    table = QTable({"energy": seen.energy * u.TeV, lon: seen.lon * u.deg, lat: seen.lat * u.deg})
    for name, unit in (("energy", u.TeV), ("lon", u.deg), ("lat", u.deg)):
        table[f"true_{name}"] = columns[f"true_{name}"] * unit
    table["component"] = columns["component"]
    table.write(path)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
