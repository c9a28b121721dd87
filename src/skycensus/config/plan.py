"""What can be checked of a config before any data are read, all of it at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..analysis import choose_sampler
from ..density import Population
from ..errors import InputError, did_you_mean
from ..gw import cosmology
from ..gw.tables import file_hash
from ..likelihood import LogMarginal
from ..model import HierarchicalModel, hyperparameter_names
from ..prior import Prior
from ..samplers import Sampler
from . import Config, as_run, collecting, data_kind
from .names import COSMOLOGIES, FAMILIES, load_function, make_population, parameters_of
from .sampler import make_sampler
from .schema import Model

_FORMATS = ("png", "pdf", "svg", "jpg", "jpeg", "eps", "ps", "webp", "tif", "tiff")


@dataclass
class Plan:
    """The parts of an analysis that need no data."""

    config: Config
    population: Population | None = None
    parameters: tuple[str, ...] = ()
    prior: Prior | None = None
    sampler: Callable[[HierarchicalModel], Sampler] = choose_sampler
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

    @property
    def rate(self) -> Literal["poisson", "shape"]:
        """What the likelihood is, see `HierarchicalModel`."""
        given = (self.section("model") or Model()).rate
        draws = data_kind(self.config.raw) == "posterior_samples"
        return given or ("poisson" if draws else "shape")


def make_plan(
    config: Config,
    *more: Callable[[Plan], None],
    population: Callable[[Plan], None] | None = None,
) -> Plan:
    """Check all that can be checked before data are read, and build what needs none.

    Args:
        config: whose form was checked.
        more: checks of what belongs to one kind of data; they add to `Plan.problems`.
        population: makes `Plan.population`, by default from `[population]`.

    Raises:
        InputError: every problem of the config, a line each.
    """
    plan = Plan(config, problems=list(config.problems))
    _plan_cosmology(plan)
    (population or _plan_population)(plan)
    _plan_prior(plan)
    with collecting(plan.problems, f"{plan.name} [sampler]: "):
        plan.sampler = make_sampler(config.raw.get("sampler", {}))
    _plan_truth(plan)
    _plan_output(plan)
    for check in more:
        check(plan)
    if plan.problems:
        raise InputError("\n".join(plan.problems))
    return plan


def settings(plan: Plan, provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of an `output.Inference` that do not depend on the kind of data."""
    output = plan.section("output")
    return {
        "seed": plan.config.seed,
        "truth": plan.truth,
        "inputs": plan.inputs,
        "config": as_run(plan.config),
        "num_prior_draws": output.num_prior_draws,
        "num_marginal_draws": output.num_marginal_draws,
        "num_object_draws": output.num_object_draws,
        "figures": output.figures,
        "figure_formats": tuple(output.figure_formats),
        "provenance": dict(provenance or {}),
    }


def _plan_output(plan: Plan) -> None:
    section = plan.section("output")
    if section is None:
        return
    where = f"{plan.name} [output]: "
    for name in ("num_prior_draws", "num_marginal_draws", "num_object_draws"):
        if getattr(section, name) < 0:
            plan.problems.append(f"{where}{name} = {getattr(section, name)} must be 0 or more.")
    for ending in section.figure_formats:
        if ending not in _FORMATS:
            plan.problems.append(
                f"{where}figure_formats: '{ending}' is none{did_you_mean(ending, _FORMATS)}; give "
                f"some of {', '.join(_FORMATS)}."
            )


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
    # A wrong [model] is told already; what depends on it is checked as if it had its default.
    section = plan.section("population")
    raw = plan.config.raw.get("population", {})
    if section is None or not isinstance(raw, dict):
        return
    if "sources" in plan.config.raw:
        plan.problems.append(
            f"{plan.name} [sources]: photons alone have sources; give [data] kind = 'photons', or "
            "leave them out."
        )
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
                rate=plan.rate,
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
    if raw is None and plan.population is not None and not hyperparameter_names(plan.population)[0]:
        plan.prior = Prior({})  # nothing to infer but the objects themselves
        return
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
        plan.prior = Prior(_with_densities(plan, entries))
        # The model resolves it again; here it is told with all other problems.
        if plan.population is not None and not resolved(plan).names:
            raise InputError("every hyperparameter is fixed; give at least one a distribution.")


def _with_densities(plan: Plan, entries: dict[str, Any]) -> dict[str, Any]:
    """The entries of a prior with learned densities in the place of the files that hold them."""
    from ..estimators import load_density

    out = {}
    for key, entry in entries.items():
        out[key] = entry
        if isinstance(entry, dict) and set(entry) == {"density"}:
            path = plan.config.either(str(entry["density"]))
            out[key] = load_density(path)
            plan.inputs[str(path)] = file_hash(path)
    return out


def resolved(plan: Plan) -> Prior:
    """The prior of exactly the hyperparameters that the population has."""
    assert plan.population is not None and plan.prior is not None
    return HierarchicalModel(plan.prior, plan.population, _Nothing(), rate="shape").prior


def complete_truth(plan: Plan) -> dict[str, float]:
    """The true value of every hyperparameter: from `[truth]`, or fixed or tied in `[prior]`.

    Raises:
        InputError: one that has no value.
    """
    prior = resolved(plan)
    truth = {**prior.fixed, **(plan.truth or {})}
    if missing := [name for name in prior.names if name not in truth]:
        raise InputError(
            f"{plan.name} [truth]: no value of {missing}; a simulation needs all hyperparameters."
        )
    return {name: float(value) for name, value in prior.complete(truth).items()} | truth


class _Nothing:
    """A likelihood of no objects, to check a prior against a population."""

    names: tuple[str, ...] = ()

    def log_marginal(self, density: Any) -> LogMarginal:
        raise NotImplementedError

    def draw(self, density: Any, key: Any) -> Any:
        raise NotImplementedError


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
    known = sum(hyperparameter_names(plan.population), ()) if plan.population is not None else ()
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
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"'{path}' cannot be read as JSON: {error}.") from None
    values = stored.get("truth", stored) if isinstance(stored, dict) else {}
    return {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
