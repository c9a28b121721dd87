"""Gravitational waves: what can be checked of events and selection before any data are read."""

from __future__ import annotations

import glob
from pathlib import Path

from ..errors import InputError, did_you_mean
from ..gw.detection import OBSERVING_TIME
from ..gw.files import event_name
from ..gw.noise import NOISE_CURVES, NoiseCurve, read_noise_curve
from ..gw.reference_priors import check_reference_prior
from ..gw.tables import expand_paths
from . import Config, collecting
from .names import load_function
from .plan import Plan

# Draws of a selection that a machine's memory may hold.
_MOST_DRAWS = 10**8


def plan_events(plan: Plan) -> None:
    """Find the files of the events, and check what describes them."""
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


def plan_selection(plan: Plan) -> None:
    """Check the selection as far as it goes without reading it."""
    section = plan.section("selection")
    if section is None:
        return
    where = f"{plan.name} [selection]: "
    kind = plan.config.raw["selection"]["kind"]
    if kind == "none" and plan.rate == "poisson":
        plan.problems.append(
            f"{where}kind = 'none' has no expected number of detections, which the Poisson "
            "likelihood needs; give a selection, or [model] rate = 'shape'."
        )
    with collecting(plan.problems, where):
        if getattr(section, "time", None) is not None:
            years(section.time)
    num_draws = getattr(section, "num_draws", 1)
    if not 1 <= num_draws <= _MOST_DRAWS:
        plan.problems.append(f"{where}num_draws = {num_draws} is not between 1 and {_MOST_DRAWS}.")
    volume = getattr(section, "volume", None)
    if volume is not None and not volume > 0:
        plan.problems.append(f"{where}volume = {volume} Gpc³ must be positive.")
    with collecting(plan.problems, where):
        if hasattr(section, "file"):
            path = plan.config.either(section.file)
            if not path.is_file():
                raise InputError(f"file: there is no file '{path}'.")
        if hasattr(section, "noise"):
            noise_of(plan.config, section.noise)
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


def noise_of(config: Config, name: str) -> str | NoiseCurve:
    """A built-in noise curve's name, or the curve of a file."""
    path = config.either(name)
    if path.is_file():
        return read_noise_curve(path)
    if name not in NOISE_CURVES:
        raise InputError(
            f"noise = '{name}' is neither a built-in curve{did_you_mean(name, NOISE_CURVES)} "
            f"({', '.join(NOISE_CURVES)}) nor a file ('{path}')."
        )
    return name
