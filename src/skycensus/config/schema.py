"""The keys of a config file: one dataclass for each section, and what checks values against it."""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from ..errors import did_you_mean

T = TypeVar("T")

# A key that names files: relative to `data.path`, or to the config.
OF_DATA = {"path": "data"}
BESIDE = {"path": "config"}


@dataclass(frozen=True, kw_only=True)
class PosteriorSamples:
    """`[data]` with `kind = "posterior_samples"`, the default: one file of draws per event."""

    events: str | list[str] = field(metadata=OF_DATA)
    path: str = field(default=".", metadata=BESIDE)
    exclude: list[str] = field(default_factory=list)
    reference_prior: str | dict[str, Any]
    columns: dict[str, str] | None = None
    group: str | None = None
    max_draws: int | None = None
    min_draws: int | None = None
    drop_invalid: bool = False
    min_n_eff: float = 10.0
    on_low_n_eff: Literal["error", "drop", "keep"] = "error"
    dtype: Literal["float64", "float32"] = "float64"


@dataclass(frozen=True, kw_only=True)
class Parallaxes:
    """`[data]` with `kind = "parallaxes"`: a table with a row for each star."""

    path: str = field(metadata=BESIDE)
    parallax: str = "parallax"
    error: str = "parallax_error"
    name: str | None = None
    drop_invalid: bool = False
    tolerance: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class RadialVelocities:
    """`[data]` with `kind = "radial_velocities"`: a table with a row for each epoch."""

    path: str = field(metadata=BESIDE)
    name: str = "APOGEE_ID"
    time: str = "JD"
    velocity: str = "VHELIO"
    error: str = "VHELIO_ERR"
    stars: list[str] | None = None
    drop_invalid: bool = False
    periods: list[float] = field(default_factory=lambda: [1.5, 20.0])
    oversampling: float = 10.0
    max_baselines: float = 10.0
    orbit: Literal["circular", "eccentric"] = "circular"
    max_eccentricity: float = 0.95
    num_candidates: int = 12
    jitter: float | dict[str, Any] = 0.0


@dataclass(frozen=True, kw_only=True)
class Points:
    """`[data]` with `kind = "points"`: a table of points with errors in y."""

    path: str = field(metadata=BESIDE)
    x: str = "x"
    y: str = "y"
    error: str = "y_err"
    drop_invalid: bool = False


@dataclass(frozen=True, kw_only=True)
class Photons:
    """`[data]` with `kind = "photons"`: runs in the DL3 format, or event lists with a response.

    `observations` are tables with the keys of an `Observation`; what one lacks is taken from here.
    """

    path: str = field(default=".", metadata=BESIDE)
    runs: list[str] | list[int] | None = field(default=None, metadata=OF_DATA)
    safe: float | Literal["header", "none"] = "header"
    events: str | None = field(default=None, metadata=OF_DATA)
    units: dict[str, str] | None = None
    response: str | None = field(default=None, metadata=OF_DATA)
    pointing: list[float] | None = None
    livetime: float | str | None = None
    frame: Literal["icrs", "galactic"] = "icrs"
    region: dict[str, Any] | None = None
    energy: list[float] | None = None
    observations: list[dict[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class PhotonObservation:
    """An entry of `observations`, with the keys of `[data]` that may differ between them."""

    name: str | None = None
    events: str | None = None
    response: str | None = None
    pointing: list[float] | None = None
    livetime: float | str | None = None
    region: dict[str, Any] | None = None
    energy: list[float] | None = None


DATA: dict[str, Any] = {
    "posterior_samples": PosteriorSamples,
    "parallaxes": Parallaxes,
    "radial_velocities": RadialVelocities,
    "points": Points,
    "photons": Photons,
}


@dataclass(frozen=True, kw_only=True)
class Population:
    """`[population]`: families by name, or a function of the user's own; more keys are options."""

    mass: str | None = None
    spin: str | list[str] | None = None
    redshift: str | None = None
    eccentricity: str | None = None
    distance: str | None = None
    period: str | None = None
    line: str | None = None
    python: str | None = field(default=None, metadata=BESIDE)


@dataclass(frozen=True, kw_only=True)
class Cosmology:
    """`[cosmology]`: a named one, or its two numbers."""

    name: Literal["Planck15", "Planck18"] = "Planck15"
    H0: float | None = None
    Om0: float | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    """`[model]`: how objects and selection make a likelihood.

    `rate` is by default "poisson" for posterior samples, and "shape" for what has no selection.
    """

    rate: Literal["poisson", "shape"] | None = None
    max_variance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Injections:
    """`[selection]` with `kind = "injections"`."""

    file: str = field(metadata=OF_DATA)
    far_cut: float | None = None
    snr_cut: float | None = None
    total_generated: float | None = None
    time: float | str | None = None
    volume: float | None = None
    columns: dict[str, str] | None = None
    p_draw: str | None = None
    draw_coordinates: list[str] | None = None
    spins: str | dict[str, Any] | None = None
    drop_invalid: bool = False


@dataclass(frozen=True, kw_only=True)
class Neural:
    """`[selection]` with `kind = "neural_vt"` or `kind = "neural_pdet"`."""

    file: str = field(metadata=OF_DATA)
    time: float | str
    is_log: bool | None = None
    num_draws: int = 20_000


@dataclass(frozen=True, kw_only=True)
class SemiAnalytic:
    """`[selection]` with `kind = "semi_analytic"`."""

    time: float | str
    noise: str = field(default="aLIGO-early-high", metadata=OF_DATA)
    snr_threshold: float = 8.0
    low_frequency: float = 10.0
    aligned_spin: bool = False
    num_draws: int = 20_000
    mass_low: float = 3.0
    mass_high: float = 120.0
    mass_exponent: float = -1.0
    mass_ratio_exponent: float = 1.0


@dataclass(frozen=True, kw_only=True)
class PythonSelection:
    """`[selection]` with `kind = "python"`: a function of theta, a probability or a volume."""

    function: str = field(metadata=BESIDE)
    time: float | str = 1.0
    is_log: bool = False
    num_draws: int = 20_000


@dataclass(frozen=True, kw_only=True)
class NoSelection:
    """`[selection]` with `kind = "none"`."""


SELECTIONS: dict[str, Any] = {
    "injections": Injections,
    "neural_vt": Neural,
    "neural_pdet": Neural,
    "semi_analytic": SemiAnalytic,
    "python": PythonSelection,
    "none": NoSelection,
}


# Sections whose keys depend on their `kind`.
KINDS: dict[str, dict[str, Any]] = {"data": DATA, "selection": SELECTIONS}


@dataclass(frozen=True, kw_only=True)
class OfAnySampler:
    """`[sampler]`: the keys that every kind has, see `samplers.Until` and `samplers.Coarse`."""

    target_ess: float | None = None
    time_limit: float | None = None
    coarse: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Output:
    """`[output]`: what is written beside the draws."""

    num_prior_draws: int = 1000
    num_marginal_draws: int = 200
    num_object_draws: int = 500
    figures: bool = True
    figure_formats: list[str] = field(default_factory=lambda: ["png"])


@dataclass(frozen=True, kw_only=True)
class Simulate:
    """`[simulate]`: a mock catalogue of the same population, for `skycensus simulate`."""

    detection: Literal["chirp_mass_volume", "semi_analytic", "python"] = "chirp_mass_volume"
    function: str | None = field(default=None, metadata=BESIDE)
    volume_amplitude: float = 8.5e-4
    volume_exponent: float = 2.2
    noise: str = field(default="aLIGO-early-high", metadata=OF_DATA)
    snr_threshold: float = 8.0
    exposure: float = 1.0
    num_events: int | None = None
    num_draws: int = 1000
    num_injections: int = 400_000
    errors: Literal["gaussian", "banana"] = "gaussian"
    chirp_mass: float = 0.08
    symmetric_mass_ratio: float = 0.09
    luminosity_distance: float = 0.21
    scale_Mc: float = 1.0
    scale_eta: float = 1.0
    mass_range: list[float] = field(default_factory=lambda: [1.0, 200.0])
    redshift_range: list[float] = field(default_factory=lambda: [1e-3, 2.3])


@dataclass(frozen=True, kw_only=True)
class SimulatePhotons:
    """`[simulate]` for photons: how many, where the model does not say it."""

    num_photons: int | None = None
    counts: dict[str, int] | None = None


SECTIONS: dict[str, Any] = {
    "data": None,  # by its kind
    "sources": None,  # components are its keys
    "population": Population,
    "cosmology": Cosmology,
    "model": Model,
    "selection": None,  # by its kind
    "prior": None,  # hyperparameters are its keys
    "truth": None,  # hyperparameters are its keys
    "sampler": None,  # by its kind
    "output": Output,
    "simulate": Simulate,
}


# ---- values against types ------------------------------------------------------------------------


def fill(
    cls: type[T],
    given: Mapping[str, Any],
    where: str,
    problems: list[str],
    *,
    more: Sequence[str] = (),
) -> T | None:
    """An object of the dataclass `cls` from a table; what is wrong is appended to `problems`.

    `more` are keys that may stand there too, and are not the object's.
    """
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    count = len(problems)
    for name, value in given.items():
        if name not in known:
            problems.append(
                f"{where}: there is no key '{name}'{did_you_mean(name, [*known, *more])}; it takes "
                f"{', '.join(dict.fromkeys([*known, *more]))}."
            )
        elif not fits(value, hints[name]):
            problems.append(
                f"{where}: {name} = {value!r} is not {described(hints[name])}"
                f"{_meant(value, hints[name])}."
            )
    for name, key in known.items():
        required = key.default is key.default_factory is dataclasses.MISSING
        if required and name not in given:
            problems.append(f"{where}: '{name}' is missing; give {described(hints[name])}.")
    if len(problems) > count:
        return None
    return cls(**{name: _plain(value, hints[name]) for name, value in given.items()})


def _meant(value: Any, hint: Any) -> str:
    words = [c for c in _choices(hint) if isinstance(c, str)]
    return did_you_mean(value, words) if isinstance(value, str) else ""


def _choices(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    return tuple(c for part in _union(hint) if part is not hint for c in _choices(part))


def _union(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def fits(value: Any, hint: Any) -> bool:
    """Whether a TOML value may stand where the type `hint` is asked for."""
    parts = _union(hint)
    if len(parts) > 1:
        return any(fits(value, part) for part in parts)
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return False  # TOML has no null: leave the key out
    if origin is Literal:
        return value in args and not (isinstance(value, bool) and True not in args)
    if origin is bool:
        return isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is float:
        return _is_number(value)
    if origin is str:
        return isinstance(value, str)
    if origin in (dict, collections.abc.Mapping):
        return isinstance(value, dict) and all(fits(v, args[1]) for v in value.values())
    if origin in (list, collections.abc.Sequence):
        return isinstance(value, list) and all(fits(v, args[0]) for v in value)
    return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any, hint: Any) -> Any:
    wants_float = float in _union(hint) and int not in _union(hint)
    return float(value) if wants_float and _is_number(value) else value


_WORDS = {str: "a string", float: "a number", int: "a whole number", bool: "true or false"}


def described(hint: Any) -> str:
    """A type in the words of a message."""
    parts = [part for part in _union(hint) if part is not type(None)]
    if len(parts) > 1:
        return " or ".join(described(part) for part in parts)
    hint = parts[0]
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(f"'{choice}'" for choice in args)
    if origin in (dict, collections.abc.Mapping):
        return "a table"
    if origin in (list, collections.abc.Sequence):
        return "a list of " + described(args[0]).removeprefix("a ") + "s"
    return _WORDS.get(origin, str(origin))
