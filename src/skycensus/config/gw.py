"""Gravitational waves: a checked config and its data made into an analysis."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..analysis import effective_draws, marginals_at
from ..errors import InputError
from ..gw.detection import MassProposal, SemiAnalyticDetection, draw_injections
from ..gw.files import read_events, read_injections
from ..gw.injections import Stated
from ..gw.neural import log_selection, read_network
from ..gw.tables import file_hash
from ..likelihood import Samples
from ..likelihood.proposals import selection_by_function
from ..model import HierarchicalModel, Hyperparameters
from ..output import Inference
from . import Config
from .gw_plan import noise_of, plan_events, plan_selection, years
from .names import load_function
from .plan import Plan, make_plan, resolved, settings


def build(config: Config, *, provenance: Mapping[str, Any] | None = None) -> Inference:
    """Read the data of a checked config and make the analysis.

    Raises:
        InputError: every problem of the config at once; then the first problem of the data.
    """
    began = time.perf_counter()
    plan = make_plan(config, plan_events, plan_selection)
    assert plan.population is not None and plan.prior is not None
    data, model_options = plan.section("data"), plan.section("model")
    events = _read_events(plan)
    key = jax.random.key(config.seed)
    selection, log_exposure = _selection(plan, jax.random.fold_in(key, 1))
    make = partial(
        HierarchicalModel,
        plan.prior,
        plan.population,
        selection=selection,
        rate=plan.rate,
        log_exposure=log_exposure,
        max_variance=model_options.max_variance,
    )
    model = make(_samples(events, data.dtype))
    model, dropped = _with_usable_events(model, make, events, plan, jax.random.fold_in(key, 2))
    return Inference(
        model=model,
        sampler=plan.sampler(model),
        derived=_local_rate if "redshift" in plan.parameters else None,
        dropped=dropped,
        min_n_eff=data.min_n_eff,
        seconds_reading=time.perf_counter() - began,
        **settings(plan, provenance),
    )


def _read_events(plan: Plan) -> list[Any]:
    data = plan.section("data")
    least = data.min_draws
    if least is None:
        # Where the user takes events with few effective draws, few draws are no error either.
        least = 10 if data.on_low_n_eff == "error" else 1
    events = read_events(
        plan.events,
        plan.parameters,
        data.reference_prior,
        columns=data.columns,
        group=data.group,
        cosmology=plan.universe,
        max_draws=data.max_draws,
        seed=plan.config.seed,
        min_draws=least,
        drop_invalid=data.drop_invalid,
    )
    plan.inputs.update({str(event.path): event.sha256 for event in events})
    return events


def _samples(events: list[Any], dtype: str) -> Samples:
    return Samples(
        [event.draws for event in events],
        [event.log_ref for event in events],
        names=[event.name for event in events],
        dtype=np.dtype(dtype),
    )


def _with_usable_events(
    model: HierarchicalModel,
    make: Callable[..., HierarchicalModel],
    events: list[Any],
    plan: Plan,
    key: Any,
) -> tuple[HierarchicalModel, tuple[str, ...]]:
    """Find events with few effective draws wherever in the prior, and do what the user chose."""
    data = plan.section("data")
    if data.on_low_n_eff == "keep":
        return model, ()
    free = {name: np.asarray(x) for name, x in model.prior.sample(key, (64,)).items()}
    variance = marginals_at(model, free, 64)["variance"]
    n_eff = effective_draws(model.likelihood, variance)
    assert n_eff is not None
    best = np.max(np.where(np.isnan(n_eff), 0.0, n_eff), axis=0)
    low = {e.name: b for e, b in zip(events, best, strict=True) if not b >= data.min_n_eff}
    if not low:
        return model, ()
    listed = ", ".join(f"{name} ({value:.3g})" for name, value in low.items())
    if data.on_low_n_eff == "error":
        raise InputError(
            f"{len(low)} of {len(events)} events have fewer than min_n_eff = {data.min_n_eff:g} "
            f"effective draws at every one of 64 prior points: {listed}. Give more draws of them, "
            "or choose [data] on_low_n_eff = 'drop' or 'keep'."
        )
    kept = [event for event in events if event.name not in low]
    if not kept:
        raise InputError(
            f"no event has min_n_eff = {data.min_n_eff:g} effective draws anywhere in the prior: "
            "population, prior and data do not belong together."
        )
    return make(_samples(kept, data.dtype)), tuple(low)


def _local_rate(h: Hyperparameters) -> dict[str, Any]:
    """The comoving rate today in Gpc^-3 yr^-1, of a population with a redshift factor."""
    rates = [h[name] for name in h if name == "log_rate" or name.startswith("log_rate_")]
    return {"local_merger_rate": sum(jnp.exp(r) for r in rates)} if rates else {}


def _selection(plan: Plan, key: Any) -> tuple[Samples | None, float]:
    """The selection as a form with one object, and the log of the exposure."""
    section = plan.section("selection")
    kind = plan.config.raw["selection"]["kind"]
    if kind == "none":
        return None, 0.0
    if kind == "injections":
        return _from_injections(plan, section)
    exposure = math.log(years(section.time))
    if kind == "semi_analytic":
        return _semi_analytic(plan, section, key), exposure
    if kind == "python":
        function, path = load_function(section.function, plan.config.folder, "function")
        log_p_det = function if section.is_log else partial(_log_of, function)
    else:
        path = plan.config.either(section.file)
        network = read_network(path, is_log=section.is_log)
        if missing := [n for n in network.names if n not in plan.parameters]:
            raise InputError(
                f"network {path} needs {missing}, which the population over "
                f"{list(plan.parameters)} does not have."
            )
        log_p_det = log_selection(network, probability=kind == "neural_pdet")
    plan.inputs[str(path)] = file_hash(path)
    return _by_function(plan, log_p_det, key, section.num_draws), exposure


def _log_of(function: Callable[..., Any], theta: Mapping[str, Any]) -> Any:
    value = jnp.asarray(function(theta))
    zero = value == 0
    return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1.0, value)))


def _by_function(plan: Plan, log_p_det: Callable[..., Any], key: Any, num: int) -> Samples:
    assert plan.population is not None
    return selection_by_function(log_p_det, plan.population, resolved(plan), key, num)


def _from_injections(plan: Plan, section: Any) -> tuple[Samples, float]:
    path = plan.config.either(section.file)
    found = read_injections(
        path,
        plan.parameters,
        stated=Stated(
            section.columns, section.p_draw, section.draw_coordinates, section.total_generated
        ),
        far_cut=section.far_cut,
        snr_cut=section.snr_cut,
        spins=section.spins,
        cosmology=plan.universe,
        drop_invalid=section.drop_invalid,
    )
    plan.inputs[str(path)] = found.sha256
    scale = found.scale
    if section.time is not None:
        volume = section.volume if section.volume is not None else found.attrs.get("VTmax_Gpc3", 1)
        scale = years(section.time) * float(volume)
    elif section.volume is not None:
        raise InputError("[selection] volume is given without time; give both.")
    if scale is None:
        if plan.rate == "poisson":
            raise InputError(
                f"{path}: the observing time is not in the file; give [selection] time in years "
                "(the Poisson likelihood needs it), or [model] rate = 'shape'."
            )
        scale = 1.0
    return found.form(plan.section("data").dtype), math.log(scale)


def _semi_analytic(plan: Plan, section: Any, key: Any) -> Samples:
    detection = SemiAnalyticDetection(
        noise_of(plan.config, section.noise),
        snr_threshold=section.snr_threshold,
        low_frequency=section.low_frequency,
        aligned_spin=section.aligned_spin,
        cosmology=plan.universe,
    )
    known = {"mass_1_source", "mass_2_source", "mass_ratio", "redshift"}
    known |= {"chi_eff"} if section.aligned_spin else set()
    if set(plan.parameters) - known and "redshift" in plan.parameters:
        # The detection does not depend on the other parameters, but the draws must have them.
        return _by_function(plan, detection.log_p_det, key, section.num_draws)
    proposal = MassProposal(
        section.mass_low,
        section.mass_high,
        section.mass_exponent,
        section.mass_ratio_exponent,
    )
    found = draw_injections(
        key,
        section.num_draws,
        detection,
        observing_time=1.0,
        parameters=plan.parameters,
        proposal=proposal,
    )
    return found.form(plan.section("data").dtype)
