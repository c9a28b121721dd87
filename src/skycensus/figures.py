r"""The standard figures of a fitted hierarchical model, each by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from . import plots
from .density import Population
from .gw import rates
from .informed import InformedObjects, informed_objects, observed_predictive
from .likelihood import Leafwise, Samples
from .model import HierarchicalModel
from .objects import ObjectPosteriors
from .plots import Figure
from .predictive import hyperparameter_draws, population_curves, posterior_predictive
from .predictive_checks import Measurements, new_objects, predictive_check
from .result import Result

SOLAR_MASSES = r"\ [M_\odot]$"
LABELS: Mapping[str, str] = {
    "mass_1_source": "$m_1" + SOLAR_MASSES,
    "mass_2_source": "$m_2" + SOLAR_MASSES,
    "mass_1": r"$m_1^\mathrm{det}" + SOLAR_MASSES,
    "mass_2": r"$m_2^\mathrm{det}" + SOLAR_MASSES,
    "chirp_mass_source": r"$\mathcal{M}" + SOLAR_MASSES,
    "chirp_mass": r"$\mathcal{M}^\mathrm{det}" + SOLAR_MASSES,
    "total_mass_source": "$M" + SOLAR_MASSES,
    "total_mass": r"$M^\mathrm{det}" + SOLAR_MASSES,
    "mass_ratio": "$q$",
    "symmetric_mass_ratio": r"$\eta$",
    "redshift": "$z$",
    "luminosity_distance": r"$D_L\ [\mathrm{Mpc}]$",
    "a_1": r"$\chi_1$",
    "a_2": r"$\chi_2$",
    "cos_tilt_1": r"$\cos\theta_1$",
    "cos_tilt_2": r"$\cos\theta_2$",
    "chi_eff": r"$\chi_\mathrm{eff}$",
    "chi_p": r"$\chi_\mathrm{p}$",
    "eccentricity": "$e$",
}
"""Axis labels of the parameters of compact binaries."""

# A corner plot of more is a grey square.
_MOST_PANELS = 12
_GRID = 241


def standard_figures(
    model: HierarchicalModel,
    result: Result,
    *,
    key: Any,
    objects: ObjectPosteriors | None = None,
    labels: Mapping[str, str] | None = None,
    measured: Measurements | None = None,
    num_draws: int = 200,
) -> dict[str, Figure]:
    r"""Make the figures that every run of a hierarchical model has.

    * `corner`, `trace`: the hyperparameters (the first 12 in the corner).
    * `n_eff`: the effective draws behind every object's log marginal, if the result has them.
    * `population_NAME`: the (rate) density of each parameter of the population, where that does not
      depend on known columns of the objects.
    * `rate`: the merger rate against redshift, for populations with a factor of `gw.redshift`.
    * `objects_NAME`: each object given the population, and alone where it is known by draws.
    * `predictive_check`: the data beside those that the fitted population makes in their place,
      and how well each object's own parameters explain its data; for objects known by a formula.
    * `observed_NAME`: cumulative distributions of observed and predicted objects, where the
      selection is known by injections.

    Args:
        model: the model that was fitted.
        result: its posterior.
        key: for all draws that the figures need.
        objects: posteriors of the objects, if they were drawn.
        labels: name -> axis label of parameters or hyperparameters, over `LABELS`.
        measured: the objects' data, for the predictive check.
        num_draws: of the hyperparameters; each is one curve of the bands.
    """
    labels = {**LABELS, **(labels or {})}
    draw_key, curve_key, object_key, check_key, data_key = jax.random.split(key, 5)
    figures = hyperparameter_figures(result, labels=labels)
    after: Mapping[str, np.ndarray] = {}
    if measured is not None:
        before: Mapping[str, np.ndarray] = {}
        if model.prior.names:
            after, before = new_objects(model, result, key=draw_key, num_draws=num_draws)
        check = predictive_check(
            measured,
            key=data_key,
            names=model.likelihood.names,  # type: ignore[attr-defined]
            predicted=after,
            prior=before,
            objects=None if objects is None else objects.draws,
        )
        figures["predictive_check"] = plots.predictive_check(check)
    if not model.prior.names:
        return figures
    hyper = hyperparameter_draws(result, num_draws, key=draw_key, prior=model.prior)
    truth = _truth(model, result)
    # A population that depends on known columns of the objects is another one for each of them, and
    # leaves with forms of their own need not be densities over the same parameters.
    if not getattr(model.likelihood, "given", None) and not isinstance(model.likelihood, Leafwise):
        figures |= population_figures(
            model.population,
            hyper,
            key=curve_key,
            labels=labels,
            truth=truth,
            rate=model.rate == "poisson",
            theta=after,
        )
    if objects is not None and not isinstance(model.likelihood, Samples):
        for name, draws in objects.draws.items():
            # Objects that may be of a leaf without this parameter have NaN among their draws.
            if not np.isfinite(draws).all(axis=0).any():
                continue
            figures[f"objects_{name}"] = plots.object_posteriors(
                objects.names, None, list(draws.T), xlabel=labels.get(name, name)
            )
    if isinstance(model.likelihood, Samples):
        names = model.population(_first(hyper)).names
        informed = informed_objects(model, result, key=object_key, num_draws=num_draws)
        figures |= object_figures(informed, names, labels=labels)
        if isinstance(model.selection, Samples):
            figures |= _check_figures(model, result, check_key, names, labels, num_draws)
    return figures


def hyperparameter_figures(
    result: Result, *, labels: Mapping[str, str] | None = None
) -> dict[str, Figure]:
    """`corner`, `trace` and, where known, `n_eff`."""
    figures = {
        "corner": plots.corner(result, list(result.draws)[:_MOST_PANELS], labels=labels),
        "trace": plots.trace(result, labels=labels),
    }
    if result.n_eff is not None:
        figures["n_eff"] = plots.n_eff(result.n_eff, result.object_names)
    return figures


def population_figures(
    population: Population,
    hyperparameters: Mapping[str, Any],
    *,
    key: Any,
    labels: Mapping[str, str] | None = None,
    truth: Mapping[str, Any] | None = None,
    rate: bool = True,
    theta: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Figure]:
    """`population_NAME` for every parameter, and `rate` where there is a redshift.

    Args:
        hyperparameters: name -> (draw,).
        truth: true hyperparameters, of which there must be all.
        rate: whether the density is a rate density; otherwise it is shown normalised.
        theta: objects of the population, name -> (draw, object), that the axes shall hold; by
            default they are drawn.
    """
    labels = {**LABELS, **(labels or {})}
    names = population(_first(hyperparameters)).names
    # The truth goes along as one more draw: a program of its own would be compiled again.
    points = {name: np.asarray(x) for name, x in hyperparameters.items()}
    if truth is not None:
        points = {name: np.append(x, truth[name]) for name, x in points.items()}

    def bands(grid: np.ndarray, curves: np.ndarray, **more: Any) -> Figure:
        split = None if truth is None else -1
        true = None if truth is None else curves[-1]
        return plots.density_bands(grid, curves[:split], truth=true, **more)

    draw_key, *keys = jax.random.split(key, 1 + len(names))
    theta = theta or posterior_predictive(population, points, key=draw_key, num=50)
    what = "rate density" if rate else "probability density"
    figures = {}
    for name, k in zip(names, keys, strict=True):
        grid, label = _grid(theta[name]), labels.get(name, name)
        curves = population_curves(population, points, name, grid, key=k, normalise=not rate)
        figures[f"population_{name}"] = bands(
            grid,
            curves,
            xlabel=label,
            ylabel=f"{what} in {label.replace(SOLAR_MASSES, '$')}",
            yscale="log" if _is_steep(curves, label) else "linear",
        )
    if rate and rates.PARAMETER in names:
        grid = np.linspace(0.0, float(theta[rates.PARAMETER].max()), _GRID)
        figures["rate"] = bands(
            grid,
            rates.rate_evolution(population, points, grid),
            xlabel=labels[rates.PARAMETER],
            ylabel=r"$R(z)\ [\mathrm{Gpc}^{-3}\,\mathrm{yr}^{-1}]$",
            yscale="log",
        )
    return figures


def _is_steep(curves: np.ndarray, label: str) -> bool:
    """Whether a straight axis would show the peak alone; mass distributions always have peaks."""
    middle = np.median(curves, axis=0)
    low = np.mean((middle > 0) & (middle < 0.01 * middle.max())) > 0.25
    return bool(middle.max() > 0 and (low or label.endswith(SOLAR_MASSES)))


def object_figures(
    informed: InformedObjects,
    names: Sequence[str],
    *,
    labels: Mapping[str, str] | None = None,
    num: int = 1000,
) -> dict[str, Figure]:
    """`objects_NAME`: the objects' own and population-informed intervals of each parameter."""
    labels = {**LABELS, **(labels or {})}
    figures = {}
    for name in names:
        own = [draws[name] for draws in informed.draws]
        figures[f"objects_{name}"] = plots.object_posteriors(
            informed.names,
            own,
            informed.resample(name, num),
            xlabel=labels.get(name, name),
            xscale="log" if _is_wide(np.concatenate(own)) else "linear",
        )
    return figures


def _check_figures(
    model: HierarchicalModel,
    result: Result,
    key: Any,
    names: Sequence[str],
    labels: Mapping[str, str],
    num_draws: int,
) -> dict[str, Figure]:
    check = observed_predictive(model, result, key=key, num_draws=num_draws)
    figures = {}
    for name in (n for n in names if n in check.observed):
        both = {"predicted": check.predicted[name], "observed": check.observed[name]}
        wide = _is_wide(np.concatenate([x.ravel() for x in both.values()]))
        figures[f"observed_{name}"] = plots.cumulative_bands(
            both, xlabel=labels.get(name, name), xscale="log" if wide else "linear"
        )
    return figures


def _grid(draws: np.ndarray) -> np.ndarray:
    """Points over nearly all of the draws of a predictive distribution."""
    low, high = np.quantile(draws, [0.0005, 0.9995])
    room = 0.05 * (high - low) or 0.5
    start, end = low - room, high + room
    # A bound that the draws respect (zero, one, a cosine's) is the end of the axis, or nearly:
    # on the bound itself a density may be infinite.
    inset = 0.02 * room
    for bound in (-1.0, 0.0, 1.0):
        if draws.min() >= bound > start:
            start = bound + inset
        if draws.max() <= bound < end:
            end = bound - inset
    return np.linspace(start, end, _GRID)


def _is_wide(x: np.ndarray) -> bool:
    low, high = np.quantile(x, [0.01, 0.99])
    return bool(x.min() > 0 and high > 12 * low)


def _first(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(x)[0] for name, x in hyperparameters.items()}


def _truth(model: HierarchicalModel, result: Result) -> dict[str, Any] | None:
    """All true hyperparameters, where the result knows those that were sampled."""
    known = {name: value for name, value in (result.truth or {}).items() if value is not None}
    if not all(name in known for name in model.prior.names):
        return None
    every = model.prior.complete({name: known[name] for name in model.prior.names})
    return {**every, **{name: known[name] for name in every if name in known}}
