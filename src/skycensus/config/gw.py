"""Gravitational waves: the one table of names, and a checked config made into objects."""

from __future__ import annotations

import glob
import importlib.util
import inspect
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import samplers
from ..analysis import choose_sampler, effective_draws, marginals_at
from ..density import Mixture, Population
from ..errors import InputError, did_you_mean
from ..gw import cosmology, eccentricity, mass, mass_smoothed, redshift, spin
from ..gw.detection import OBSERVING_TIME, MassProposal, SemiAnalyticDetection, draw_injections
from ..gw.families import hyperparameter, product
from ..gw.files import event_name, read_events, read_injections
from ..gw.neural import read_network
from ..gw.noise import NOISE_CURVES, read_noise_curve
from ..gw.reference_priors import check_reference_prior
from ..gw.tables import expand_paths, file_hash
from ..likelihood import Samples
from ..likelihood.proposals import selection_by_function
from ..model import HierarchicalModel, Hyperparameters, hyperparameter_names
from ..output import Inference
from ..prior import Prior
from . import Config, as_run, collecting
from .schema import fill

# ---- the table of names --------------------------------------------------------------------------

FAMILIES: dict[str, dict[str, Callable[..., Any]]] = {
    "mass": {
        f.__name__: f
        for f in (
            mass.n_power_laws_m_gaussians,
            mass.power_law_mass_ratio,
            mass.power_law_masses,
            mass.power_law_peak,
            mass.gaussian_masses,
            mass.wysocki_2019,
            mass_smoothed.smoothed_power_law,
            mass_smoothed.smoothed_power_law_peak,
            mass_smoothed.smoothed_multi_peak,
            mass_smoothed.smoothed_broken_power_law,
            mass_smoothed.smoothed_broken_power_law_peak,
            mass_smoothed.broken_power_law_two_peaks,
        )
    },
    "spin": {
        f.__name__: f
        for f in (
            spin.beta_magnitudes,
            spin.beta_magnitudes_iid,
            spin.beta_magnitudes_shape,
            spin.magnitude_mixture,
            spin.tilt_mixture,
            spin.tilt_mixture_iid,
            spin.gaussian_chi_eff,
            spin.skew_normal_chi_eff,
            spin.correlated_chi_eff_chi_p,
        )
    },
    "redshift": {f.__name__: f for f in (redshift.power_law, redshift.madau_dickinson)},
    "eccentricity": {
        f.__name__: f
        for f in (
            eccentricity.truncated_normal,
            eccentricity.two_truncated_normals,
            eccentricity.power_law,
        )
    },
}
"""Block of parameters -> the families' names in config files."""

SAMPLERS = {"importance": "ImportanceSampler", "nuts": "NUTS", "flow_mcmc": "FlowMCMC"}

COSMOLOGIES = {"Planck15": cosmology.PLANCK_2015, "Planck18": cosmology.PLANCK_2018}


# ---- populations ---------------------------------------------------------------------------------


def make_population(
    families: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    rate: str = "poisson",
    universe: cosmology.FlatLambdaCDM | None = None,
) -> Population:
    r"""Return the population of families named in the table of names.

    Their product is the density. With `rate="poisson"` it is a rate density: `log_rate` is then the
    natural logarithm of the total rate, in Gpc⁻³ yr⁻¹ where there is a redshift factor and
    otherwise in what the selection integrates to one. `n_power_laws_m_gaussians` has its own rates.

    Args:
        families: "mass", "spin" (one or several), "redshift", "eccentricity" -> name.
        options: keyword arguments of the families.
        rate: "poisson" or "shape".
        universe: a fixed cosmology for the redshift family; None lets `H0` and `Om0` be
            hyperparameters, with a default.

    Raises:
        InputError: an unknown name or option; all of them at once.
    """
    chosen, problems = _chosen(families)
    taken = {name: [f for f, _ in chosen.values() if name in _options(f)] for name in options}
    known = [name for f, _ in chosen.values() for name in _options(f)]
    problems += [
        f"there is no key or option '{name}'{did_you_mean(name, [*known, *FAMILIES])}; these "
        f"families take {known or 'none'}."
        for name, users in taken.items()
        if not users
    ]
    if problems:
        raise InputError("\n".join(problems))
    built: list[Any] = []
    for f, block in chosen.values():
        mine = {name: value for name, value in options.items() if name in _options(f)}
        if block == "redshift" and universe is not None:
            mine["cosmology"] = universe
        built.append(partial(f, **mine) if mine else f)
    head, rest = built[0], built[1:]
    if chosen and next(iter(chosen.values()))[0] is mass.n_power_laws_m_gaussians:
        try:
            return head(extra=tuple(rest))
        except TypeError:
            raise InputError("n_power_laws_m_gaussians needs the options n_pl and n_g.") from None

    def density(h: Hyperparameters) -> Any:
        return product(f(h) for f in built)

    if rate == "shape":
        return density

    def rate_density(h: Hyperparameters) -> Mixture:
        whole = density(h)
        log_weight = hyperparameter(h, "log_rate") + redshift.log_volume(whole)
        return Mixture({"all": whole}, log_weights={"all": log_weight})

    return rate_density


def _chosen(families: Mapping[str, Any]) -> tuple[dict[str, tuple[Any, str]], list[str]]:
    """Name -> (family, block) in the order of the table; and what is wrong."""
    chosen: dict[str, tuple[Any, str]] = {}
    problems = []
    for block, table in FAMILIES.items():
        given = families.get(block)
        for name in [given] if isinstance(given, str) else given or []:
            if name not in table:
                problems.append(
                    f"{block} = '{name}' is not known{did_you_mean(name, table)}; give one of "
                    f"{', '.join(table)}."
                )
            else:
                chosen[f"{block}.{name}"] = (table[name], block)
    if not chosen and not problems:
        problems.append(
            "no family is given: name those of mass, spin, redshift and eccentricity that the "
            "population has, or python = 'file.py:function'."
        )
    return chosen, problems


def _options(family: Callable[..., Any]) -> list[str]:
    """Keyword arguments that a config may set."""
    parameters = inspect.signature(family).parameters
    return [n for n in parameters if n not in ("h", "suffix", "extra", "cosmology")]


def parameters_of(population: Population) -> tuple[str, ...]:
    """The per-object parameters of a population."""
    names: list[tuple[str, ...]] = []

    def look() -> None:
        h = dict.fromkeys(hyperparameter_names(population), jnp.asarray(0.5))
        names.append(tuple(population(h).names))

    jax.eval_shape(look)
    return names[0]


def load_function(spec: str, folder: Path, what: str) -> tuple[Callable[..., Any], Path]:
    """The function that `file.py:function` names, and its file.

    Raises:
        InputError: no such file or function, or a file that fails when it is run.
    """
    name, _, function = spec.rpartition(":")
    path = folder / Path(name).expanduser()
    if not name or not function.isidentifier():
        raise InputError(f"{what} = '{spec}': expected 'file.py:function'.")
    if not path.is_file():
        raise InputError(f"{what}: there is no file '{path}'.")
    module_name = f"skycensus_user_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"{what}: '{path}' is not a Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(
            f"{what}: '{path}' fails when it is run: {type(error).__name__}: {error}."
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        have = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise InputError(
            f"{what}: '{path}' has no function '{function}'{did_you_mean(function, have)}."
        )
    return found, path


# ---- checks before any data are read -------------------------------------------------------------


@dataclass
class Plan:
    """The parts of an analysis that need no data."""

    config: Config
    population: Population | None = None
    parameters: tuple[str, ...] = ()
    prior: Prior | None = None
    sampler: Any = None
    universe: cosmology.FlatLambdaCDM = cosmology.PLANCK_2015
    events: list[Path] = field(default_factory=list)
    truth: dict[str, float] | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """How messages call the config."""
        return self.config.path.name

    def section(self, name: str) -> Any:
        """A section's dataclass, None where it is wrong."""
        return self.config.sections.get(name)


def make_plan(config: Config, *, with_data: bool = True) -> Plan:
    """Check all that can be checked before data are read, and build what needs none.

    Raises:
        InputError: every problem of the config, a line each.
    """
    plan = Plan(config, problems=list(config.problems))
    _plan_cosmology(plan)
    _plan_population(plan)
    _plan_prior(plan)
    with collecting(plan.problems, f"{plan.name} [sampler]: "):
        plan.sampler = make_sampler(config.raw.get("sampler", {}))
    _plan_truth(plan)
    if with_data:
        _plan_data(plan)
        _plan_selection(plan)
    if plan.problems:
        raise InputError("\n".join(plan.problems))
    return plan


def _plan_cosmology(plan: Plan) -> None:
    section = plan.section("cosmology")
    if section is None:
        return
    named = COSMOLOGIES[section.name]
    values = {"H0": section.H0, "Om0": section.Om0}
    if wrong := {k: v for k, v in values.items() if v is not None and not v > 0}:
        plan.problems.append(f"{plan.name} [cosmology]: {wrong} must be positive.")
        return
    plan.universe = named._replace(**{k: v for k, v in values.items() if v is not None})


def _plan_population(plan: Plan) -> None:
    section, model = plan.section("population"), plan.section("model")
    raw = plan.config.raw.get("population", {})
    if section is None or model is None or not isinstance(raw, dict):
        return
    where = f"{plan.name} [population]: "
    fixed = set(section.__dataclass_fields__)
    options = {name: value for name, value in raw.items() if name not in fixed}
    families = {block: getattr(section, block) for block in FAMILIES}
    prior = plan.config.raw.get("prior", {})
    free_cosmology = isinstance(prior, dict) and {"H0", "Om0"} & set(prior)
    with collecting(plan.problems, where):
        if section.python is not None:
            if named := [b for b in raw if b != "python"]:
                raise InputError(f"python is given, which excludes {named}; keep one.")
            plan.population, path = load_function(section.python, plan.config.folder, "python")
            plan.inputs[str(path)] = file_hash(path)
        else:
            plan.population = make_population(
                families,
                options,
                rate=model.rate,
                universe=None if free_cosmology else plan.universe,
            )
        try:
            plan.parameters = parameters_of(plan.population)
        except InputError:
            raise
        except Exception as error:
            source = section.python or "the population"
            plan.population = None
            raise InputError(
                f"{source} fails at a trial point: {type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''}"
            ) from error


def _plan_prior(plan: Plan) -> None:
    raw = plan.config.raw.get("prior")
    if not isinstance(raw, dict) or not raw:
        plan.problems.append(
            f"{plan.name} [prior]: missing; give every hyperparameter a prior there, or "
            "file = 'prior.json'."
        )
        return
    entries = dict(raw)
    with collecting(plan.problems, f"{plan.name} [prior]: "):
        if "file" in entries:
            path = plan.config.either(str(entries.pop("file")))
            read = Prior.read(path)
            plan.inputs[str(path)] = file_hash(path)
            entries = {**read.free, **read.fixed, **read.same_as, **entries}
        plan.prior = Prior(entries)
        if plan.population is not None:
            # The model resolves it again; here it is told with all other problems.
            resolved = HierarchicalModel(plan.prior, plan.population, _Nothing(), rate="shape").prior
            if not resolved.names:
                raise InputError("every hyperparameter is fixed; give at least one a distribution.")


class _Nothing:
    """A likelihood of no objects, to check a prior against a population."""

    names: tuple[str, ...] = ()


def make_sampler(table: Any) -> Any:
    """The sampler that `[sampler]` describes; None for `kind = "auto"`.

    Raises:
        InputError: an unknown kind, key or value.
    """
    if not isinstance(table, Mapping):
        return None  # told already
    kind = table.get("kind", "auto")
    rest = {name: value for name, value in table.items() if name != "kind"}
    if kind == "auto":
        if rest:
            raise InputError(
                f"{list(rest)} belong to one kind of sampler: say which with kind = one of "
                f"{', '.join(SAMPLERS)}."
            )
        return None
    if kind not in SAMPLERS:
        raise InputError(
            f"kind = {kind!r} is not known{did_you_mean(str(kind), [*SAMPLERS, 'auto'])}; give one "
            f"of auto, {', '.join(SAMPLERS)}."
        )
    problems: list[str] = []
    made = fill(getattr(samplers, SAMPLERS[kind]), rest, f"kind = '{kind}'", problems)
    for name, low in (("num_samples", 1), ("num_chains", 1), ("num_warmup", 0), ("thinning", 1)):
        if isinstance(rest.get(name), int) and rest[name] < low:
            problems.append(f"kind = '{kind}': {name} = {rest[name]} must be at least {low}.")
    if problems:
        raise InputError("\n".join(problems))
    return made


def _plan_truth(plan: Plan) -> None:
    raw = plan.config.raw.get("truth", {})
    if not isinstance(raw, dict):
        return
    where = f"{plan.name} [truth]: "
    values = {name: value for name, value in raw.items() if name != "file"}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            plan.problems.append(f"{where}{name} = {value!r} is not a number.")
            return
    path = plan.config.in_data("truth.json")
    if "file" in raw:
        path = plan.config.either(str(raw["file"])) if raw["file"] else Path()
        if raw["file"] and not path.is_file():
            plan.problems.append(f"{where}there is no file '{path}'.")
            return
    known = hyperparameter_names(plan.population) if plan.population is not None else ()
    with collecting(plan.problems, where):
        if path.is_file():
            stored = {k: v for k, v in _read_truth(path).items() if k in known}
            if stored:
                plan.inputs[str(path)] = file_hash(path)
            values = stored | values
    if known and (unknown := [name for name in values if name not in known]):
        plan.problems += [
            f"{where}'{n}' is no hyperparameter{did_you_mean(n, known)}." for n in unknown
        ]
    plan.truth = {name: float(value) for name, value in values.items()} or None


def _read_truth(path: Path) -> dict[str, float]:
    import json

    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be read as JSON: {error}.") from None
    values = stored.get("truth", stored) if isinstance(stored, dict) else {}
    return {k: float(v) for k, v in values.items() if isinstance(v, int | float)}


def _plan_data(plan: Plan) -> None:
    section = plan.section("data")
    if section is None:
        return
    where = f"{plan.name} [data]: "
    with collecting(plan.problems, where):
        if plan.parameters:
            check_reference_prior(section.reference_prior, plan.parameters)
    with collecting(plan.problems, where):
        if not plan.config.data_folder.is_dir():
            raise InputError(f"path: there is no folder '{plan.config.data_folder}'.")
        patterns = [section.events] if isinstance(section.events, str) else section.events
        if not patterns:
            raise InputError("events is an empty list; give files or a pattern.")
        files = expand_paths([_pattern(plan.config, p) for p in patterns])
        plan.events = [f for f in files if event_name(f) not in section.exclude]
        names = [event_name(f) for f in files]
        for name in section.exclude:
            if name not in names:
                raise InputError(f"exclude: there is no event '{name}'{did_you_mean(name, names)}.")
        if not plan.events:
            raise InputError("exclude leaves no event.")
    for key in ("max_draws", "min_draws"):
        if getattr(section, key) is not None and getattr(section, key) < 1:
            plan.problems.append(f"{where}{key} = {getattr(section, key)} must be at least 1.")


def _pattern(config: Config, pattern: str) -> str:
    """A pattern in the data folder, whose own name is taken literally."""
    path = Path(pattern).expanduser()
    if path.is_absolute():
        return str(path)
    return str(Path(glob.escape(str(config.data_folder))) / path)


def _plan_selection(plan: Plan) -> None:
    section, model = plan.section("selection"), plan.section("model")
    if section is None or model is None:
        return
    where = f"{plan.name} [selection]: "
    kind = plan.config.raw["selection"]["kind"]
    if kind == "none" and model.rate == "poisson":
        plan.problems.append(
            f"{where}kind = 'none' has no expected number of detections, which the Poisson "
            "likelihood needs; give a selection, or [model] rate = 'shape'."
        )
    with collecting(plan.problems, where):
        if getattr(section, "time", None) is not None:
            years(section.time)
    with collecting(plan.problems, where):
        if hasattr(section, "file"):
            path = plan.config.either(section.file)
            if not path.is_file():
                raise InputError(f"file: there is no file '{path}'.")
        if hasattr(section, "noise"):
            _noise(plan.config, section.noise)
        if kind == "python":
            load_function(section.function, plan.config.folder, "function")


def years(value: float | str) -> float:
    """An observing time: years, or observing runs such as "O1+O2".

    Raises:
        InputError: neither.
    """
    if not isinstance(value, str):
        if not value > 0:
            raise InputError(f"time = {value} years must be positive.")
        return float(value)
    runs = [run.strip() for run in value.split("+")]
    if unknown := [run for run in runs if run not in OBSERVING_TIME]:
        raise InputError(
            f"time = '{value}': {unknown} is no observing run whose time is known; give years, or "
            f"runs among {', '.join(OBSERVING_TIME)} joined by '+'."
        )
    return sum(OBSERVING_TIME[run] for run in runs)


def _noise(config: Config, name: str) -> Any:
    path = config.either(name)
    if path.is_file():
        return read_noise_curve(path)
    if name not in NOISE_CURVES:
        raise InputError(
            f"noise = '{name}' is neither a built-in curve{did_you_mean(name, NOISE_CURVES)} "
            f"({', '.join(NOISE_CURVES)}) nor a file ('{path}')."
        )
    return name


# ---- reading and building ------------------------------------------------------------------------


def build(config: Config, *, provenance: Mapping[str, Any] | None = None) -> Inference:
    """Read the data of a checked config and make the analysis.

    Raises:
        InputError: every problem of the config at once; then the first problem of the data.
    """
    began = time.perf_counter()
    plan = make_plan(config)
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
        rate=model_options.rate,
        log_exposure=log_exposure,
        max_variance=model_options.max_variance,
    )
    model = make(_samples(events, data.dtype))
    model, dropped = _with_usable_events(model, make, events, plan, jax.random.fold_in(key, 2))
    output = plan.section("output")
    return Inference(
        model=model,
        sampler=plan.sampler or choose_sampler(model),
        seed=config.seed,
        truth=plan.truth,
        derived=_local_rate if "redshift" in plan.parameters else None,
        inputs=plan.inputs,
        config=as_run(config),
        dropped=dropped,
        min_n_eff=data.min_n_eff,
        seconds_reading=time.perf_counter() - began,
        num_prior_draws=output.num_prior_draws,
        num_marginal_draws=output.num_marginal_draws,
        figures=output.figures,
        figure_formats=tuple(output.figure_formats),
        provenance=dict(provenance or {}),
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
        log_p_det = network.log_value
        if kind == "neural_pdet":
            log_p_det = partial(_capped, network.log_value)
    plan.inputs[str(path)] = file_hash(path)
    return _by_function(plan, log_p_det, key, section.num_draws), exposure


def _log_of(function: Callable[..., Any], theta: Mapping[str, Any]) -> Any:
    value = jnp.asarray(function(theta))
    zero = value == 0
    return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1.0, value)))


def _capped(log_p_det: Callable[..., Any], theta: Mapping[str, Any]) -> Any:
    """A network's probability, which may overshoot one by its error."""
    return jnp.minimum(log_p_det(theta), 0.0)


def _by_function(plan: Plan, log_p_det: Callable[..., Any], key: Any, num: int) -> Samples:
    assert plan.population is not None and plan.prior is not None
    resolved = HierarchicalModel(plan.prior, plan.population, _Nothing(), rate="shape").prior
    return selection_by_function(log_p_det, plan.population, resolved, key, num)


def _from_injections(plan: Plan, section: Any) -> tuple[Samples, float]:
    path = plan.config.either(section.file)
    found = read_injections(
        path,
        plan.parameters,
        columns=section.columns,
        p_draw=section.p_draw,
        draw_coordinates=section.draw_coordinates,
        total_generated=section.total_generated,
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
        if plan.section("model").rate == "poisson":
            raise InputError(
                f"{path}: the observing time is not in the file; give [selection] time in years "
                "(the Poisson likelihood needs it), or [model] rate = 'shape'."
            )
        scale = 1.0
    return injections_form(found, plan.section("data").dtype), math.log(scale)


def injections_form(found: Any, dtype: str = "float64") -> Samples:
    """Found injections as a form with one object, the detection."""
    return Samples(
        [found.theta],
        [found.log_p_draw],
        names=["injections"],
        num_drawn=[found.total_generated],
        dtype=np.dtype(dtype),
    )


def _semi_analytic(plan: Plan, section: Any, key: Any) -> Samples:
    detection = SemiAnalyticDetection(
        _noise(plan.config, section.noise),
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
    return injections_form(found, plan.section("data").dtype)
