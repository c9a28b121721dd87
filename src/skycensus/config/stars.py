"""Stars and other objects known by a formula: a checked config made into an analysis."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..analysis import choose_sampler
from ..errors import InputError
from ..gw.tables import file_hash
from ..model import HierarchicalModel
from ..output import Inference
from . import Config, collecting, data_kind
from .plan import Plan, make_plan, settings


def build(config: Config, *, provenance: Mapping[str, Any] | None = None) -> Inference:
    """Read the table of a checked config and make the analysis.

    Raises:
        InputError: every problem of the config at once; then the first problem of the data.
    """
    began = time.perf_counter()
    plan = make_plan(config, _plan_file)
    assert plan.population is not None and plan.prior is not None
    path = config.data_path
    kind = data_kind(config.raw)
    likelihood, more = _READERS[kind](path, plan.section("data"), plan.parameters)
    plan.inputs[str(path)] = file_hash(path)
    model = HierarchicalModel(plan.prior, plan.population, likelihood, rate=plan.rate)
    return Inference(
        labels=_LABELS | (_LINE_LABELS if kind == "points" else {}),
        more_figures=more,
        model=model,
        sampler=plan.sampler or choose_sampler(model),
        derived=_derived(plan),
        seconds_reading=time.perf_counter() - began,
        **settings(plan, provenance),
    )


_LABELS = {
    "r": r"$r\ [\mathrm{kpc}]$",
    "mu_r": r"$\mu_r\ [\mathrm{kpc}]$",
    "ln_std_r": r"$\ln\sigma_r$",
    "std_r": r"$\sigma_r\ [\mathrm{kpc}]$",
    "lnP": r"$\ln P\ [\mathrm{d}]$",
    "P": r"$P\ [\mathrm{d}]$",
    "a": r"$a\ [\mathrm{km/s}]$",
    "b": r"$b\ [\mathrm{km/s}]$",
    "v0": r"$v_0\ [\mathrm{km/s}]$",
    "mu": r"$\mu$",
    "lnsigma": r"$\ln\sigma$",
    "w0": "$w_0$",
    "ln_s_out": r"$\ln s_\mathrm{out}$",
}
# In a line, b is an intercept and not a velocity.
_LINE_LABELS = {"m": "$m$", "b": "$b$"}


def _plan_file(plan: Plan) -> None:
    with collecting(plan.problems, f"{plan.name} [data]: "):
        if plan.section("data") is not None and not plan.config.data_path.is_file():
            raise InputError(f"path: there is no file '{plan.config.data_path}'.")
    if plan.config.raw.get("selection", {}).get("kind", "none") != "none":
        plan.problems.append(
            f"{plan.name} [selection]: only posterior samples have a selection; leave it out."
        )


def _parallaxes(path: Any, data: Any, parameters: tuple[str, ...]) -> Any:
    from ..stars import parallax

    found = parallax.read_parallaxes(
        path,
        parallax=data.parallax,
        error=data.error,
        name=data.name,
        drop_invalid=data.drop_invalid,
    )
    return parallax.objects(found, tolerance=data.tolerance), None


def _velocities(path: Any, data: Any, parameters: tuple[str, ...]) -> Any:
    from ..stars import radial_velocity

    if len(data.periods) != 2:
        raise InputError(f"[data] periods = {data.periods} must be [shortest, longest] in days.")
    stars = radial_velocity.read_velocities(
        path,
        name=data.name,
        time=data.time,
        velocity=data.velocity,
        error=data.error,
        stars=data.stars,
        drop_invalid=data.drop_invalid,
    )
    stars = stars.with_jitter(data.jitter) if data.jitter else stars
    form = radial_velocity.circular_orbits(
        stars,
        periods=(data.periods[0], data.periods[1]),
        parameter="P" if "P" in parameters else "lnP",
        oversampling=data.oversampling,
        max_baselines=data.max_baselines,
    )
    return form, partial(_folded, stars)


def _folded(stars: Any, result: Any, objects: Any) -> dict[str, Any]:
    """Phase-folded velocities, from the objects' draws or those of a single star."""
    from ..plots.velocities import phase_folded

    draws = objects.draws if objects is not None else {n: x.T for n, x in result.draws.items()}
    if not {"a", "b", "v0"} <= draws.keys():
        return {}
    # Some hundred draws show all there is to see.
    draws = {name: np.asarray(x)[:500] for name, x in draws.items()}
    period = draws["P"] if "P" in draws else np.exp(draws["lnP"])
    columns = stars.time, stars.velocity, stars.error
    return {"phase_folded": phase_folded(stars.names, *columns, {**draws, "P": period})}


def _points(path: Any, data: Any, parameters: tuple[str, ...]) -> Any:
    from ..stars import lines

    found = lines.read_points(
        path, x=data.x, y=data.y, error=data.error, drop_invalid=data.drop_invalid
    )
    return lines.objects(found), None


# [data] kind -> (path, section, the population's parameters) -> likelihood, and what draws more
# figures.
_READERS: dict[str, Callable[[Any, Any, tuple[str, ...]], Any]] = {
    "parallaxes": _parallaxes,
    "radial_velocities": _velocities,
    "points": _points,
}


def _derived(plan: Plan) -> Callable[[Mapping[str, Any]], Mapping[str, Any]] | None:
    """What follows from the hyperparameters of a named family."""
    if plan.section("population").distance == "normal_cluster":
        from ..stars.parallax import cluster_size

        return cluster_size
    return None
