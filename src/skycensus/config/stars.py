"""Stars and other objects known by a formula: a checked config made into an analysis."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

from ..errors import InputError
from ..gw.tables import file_hash
from ..model import HierarchicalModel
from ..objects import ObjectPosteriors
from ..output import Inference
from ..predictive import hyperparameter_draws
from ..prior import Prior
from ..result import Result
from . import Config, collecting, data_kind
from .plan import Plan, make_plan, resolved, settings
from .schema import NoSelection, RadialVelocities


def build(config: Config, *, provenance: Mapping[str, Any] | None = None) -> Inference:
    """Read the table of a checked config and make the analysis.

    Raises:
        InputError: every problem of the config at once; then the first problem of the data.
    """
    began = time.perf_counter()
    plan = make_plan(config, _plan_data)
    assert plan.population is not None and plan.prior is not None
    path = config.data_path
    kind = data_kind(config.raw)
    likelihood, more = _READERS[kind](path, plan)
    plan.inputs[str(path)] = file_hash(path)
    model = HierarchicalModel(plan.prior, plan.population, likelihood, rate=plan.rate)
    return Inference(
        labels=_LABELS | (_LINE_LABELS if kind == "points" else {}),
        model=model,
        sampler=plan.sampler(model),
        derived=_derived(plan),
        seconds_reading=time.perf_counter() - began,
        **more,
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
    "K": r"$K\ [\mathrm{km/s}]$",
    "e": "$e$",
    "M0": "$M_0$",
    "omega": r"$\omega$",
    "jitter": r"$s_\mathrm{jitter}\ [\mathrm{km/s}]$",
    "mu": r"$\mu$",
    "lnsigma": r"$\ln\sigma$",
    "w0": "$w_0$",
    "ln_s_out": r"$\ln s_\mathrm{out}$",
}
# In a line, b is an intercept and not a velocity.
_LINE_LABELS = {"m": "$m$", "b": "$b$"}


def _plan_data(plan: Plan) -> None:
    section = plan.section("data")
    with collecting(plan.problems, f"{plan.name} [data]: "):
        if section is not None and not plan.config.data_path.is_file():
            raise InputError(f"path: there is no file '{plan.config.data_path}'.")
    if isinstance(section, RadialVelocities):
        _plan_orbits(plan, section)
    if not isinstance(plan.section("selection"), NoSelection | None):
        plan.problems.append(
            f"{plan.name} [selection]: only posterior samples have a selection; leave it out."
        )


def _plan_orbits(plan: Plan, section: RadialVelocities) -> None:
    where = f"{plan.name} [data]: "
    if len(section.periods) != 2:
        plan.problems.append(
            f"{where}periods = {section.periods} must be [shortest, longest] in days."
        )
    for name in ("oversampling", "max_baselines", "num_candidates"):
        if not getattr(section, name) > 0:
            plan.problems.append(f"{where}{name} = {getattr(section, name)} must be positive.")
    if not 0 < section.max_eccentricity < 1:
        plan.problems.append(
            f"{where}max_eccentricity = {section.max_eccentricity} must be between 0 and 1."
        )
    if "e" in plan.parameters and section.orbit == "circular":
        plan.problems.append(
            f'{where}orbit = "circular", but the population has eccentricities; give "eccentric".'
        )
    with collecting(plan.problems, where):
        _jitter_prior(section)


def _jitter_prior(section: RadialVelocities) -> Any:
    """The distribution of an unknown jitter; None for a known one."""
    if not isinstance(section.jitter, dict):
        return None
    prior = Prior({"jitter": section.jitter})
    if "jitter" not in prior.free:
        raise InputError(f"jitter = {section.jitter} is not a distribution, nor a number in km/s.")
    return prior.free["jitter"]


# What a reader gives besides the likelihood: fields of an `Inference`.
More = dict[str, Any]


def _parallaxes(path: Any, plan: Plan) -> tuple[Any, More]:
    from ..stars import parallax

    data = plan.section("data")
    found = parallax.read_parallaxes(
        path,
        parallax=data.parallax,
        error=data.error,
        name=data.name,
        drop_invalid=data.drop_invalid,
    )
    form = parallax.objects(found, tolerance=data.tolerance)
    return form, {"measured": parallax.measurements(found)}


def _velocities(path: Any, plan: Plan) -> tuple[Any, More]:
    from ..stars import kepler, orbits, radial_velocity

    data = plan.section("data")
    stars = radial_velocity.read_velocities(
        path,
        name=data.name,
        time=data.time,
        velocity=data.velocity,
        error=data.error,
        stars=data.stars,
        drop_invalid=data.drop_invalid,
    )
    prior = _jitter_prior(data)
    if prior is None:
        stars = stars.with_jitter(data.jitter)
    options: dict[str, Any] = {
        "periods": (data.periods[0], data.periods[1]),
        "parameter": "P" if "P" in plan.parameters else "lnP",
        "oversampling": data.oversampling,
        "max_baselines": data.max_baselines,
        "jitter": None if prior is None else radial_velocity.Jitter.of(prior, stars),
    }
    if data.orbit == "circular":
        form = radial_velocity.circular_orbits(stars, **options)
    else:
        free = dist.Uniform(0.0, data.max_eccentricity)
        form = kepler.eccentric_orbits(
            stars,
            eccentricity=None if "e" in plan.parameters else free,
            max_eccentricity=data.max_eccentricity,
            num_candidates=data.num_candidates,
            **options,
        )
    if not {"a", "b", "v0"} <= set(plan.parameters):
        return form, {}
    return form, {
        "measured": orbits.measurements(stars),
        "about_objects": partial(_about_orbits, plan, stars, prior),
        "more_figures": partial(_folded, stars),
    }


def _about_orbits(
    plan: Plan, stars: Any, jitter: Any, result: Result, objects: ObjectPosteriors
) -> ObjectPosteriors:
    """With the orbits' elements, and the most probable orbits at the mean hyperparameters."""
    from ..stars import orbits

    assert plan.population is not None
    prior = resolved(plan)
    mean = {name: np.sum(result.weights * result.draws[name]) for name in prior.names}
    density = plan.population(prior.complete(mean))

    @jax.jit
    def log_prior(theta: Mapping[str, Any]) -> Any:
        value = density.log_prob(theta)
        return value if jitter is None else value + jitter.log_prob(theta["jitter"])

    best = orbits.most_probable(
        stars, objects.draws, log_prior, max_eccentricity=plan.section("data").max_eccentricity
    )
    return objects._replace(
        draws=objects.draws | orbits.elements(objects.draws),
        most_probable=best | orbits.elements(best),
    )


def _folded(stars: Any, result: Any, objects: ObjectPosteriors | None) -> dict[str, Any]:
    """Phase-folded velocities, from the objects' draws."""
    from ..plots.velocities import phase_folded

    if objects is None:
        return {}
    # Some hundred draws show all there is to see.
    draws = {name: np.asarray(x)[:500] for name, x in objects.draws.items()}
    columns = stars.time, stars.velocity, stars.error
    return {"phase_folded": phase_folded(stars.names, *columns, draws, objects.most_probable)}


def _points(path: Any, plan: Plan) -> tuple[Any, More]:
    from ..stars import lines

    data = plan.section("data")
    found = lines.read_points(
        path, x=data.x, y=data.y, error=data.error, drop_invalid=data.drop_invalid
    )
    more: More = {"measured": lines.measurements(found)}
    if plan.section("population").line is not None:
        more["more_figures"] = partial(_line, plan, found)
    return lines.objects(found), more


def _line(
    plan: Plan, points: Any, result: Result, objects: ObjectPosteriors | None
) -> dict[str, Any]:
    """The points and the line, with the probabilities of being on it."""
    from .. import plots

    h = hyperparameter_draws(
        result, 500, key=jax.random.key(plan.config.seed), prior=resolved(plan)
    )
    share = objects.membership.get("line") if objects is not None else None
    return {"line": plots.line(points.x, points.y, points.error, h["m"], h["b"], membership=share)}


# [data] kind -> (path, plan) -> likelihood, and more of the `Inference`.
_READERS: dict[str, Callable[[Any, Plan], tuple[Any, More]]] = {
    "parallaxes": _parallaxes,
    "radial_velocities": _velocities,
    "points": _points,
}


def _derived(plan: Plan) -> Callable[[Mapping[str, Any]], Mapping[str, Any]] | None:
    """What follows from the hyperparameters of a named family, or from one star's orbit."""
    if plan.section("population").distance == "normal_cluster":
        from ..stars.parallax import cluster_size

        return cluster_size
    if not resolved(plan).names and {"a", "b", "v0"} <= set(plan.parameters):
        from ..stars.orbits import elements

        return elements
    return None
