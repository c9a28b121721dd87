"""Read a catalogue: posterior draws of every event, each with the log density they came from.

Everything that depends on the data alone happens here, once: names, units, coordinates, Jacobians,
reference priors, and the checks of all of them.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .checks import check_units, invalid_draws, to_support
from .coordinates import Columns
from .injections import Injections, read_injections
from .reference_priors import ReferencePrior, check_reference_prior, log_reference
from .tables import expand_paths, file_hash, read_posterior

__all__ = [
    "Event",
    "Injections",
    "event_name",
    "read_events",
    "read_injections",
    "read_posterior",
]


@dataclass(frozen=True, eq=False)
class Event:
    r"""Draws from one event's posterior, in the population's parameters.

    Attributes:
        name: the event's name.
        draws: parameter name -> draws, all of one length.
        log_ref: $\ln\pi(\theta)$ at the draws, the log density of the reference prior as a density
            in the parameters of `draws`, up to a constant.
        path: the file the draws were read from.
        sha256: the hash of that file.
        num_dropped: how many draws were left out as invalid.
    """

    name: str
    draws: dict[str, np.ndarray]
    log_ref: np.ndarray
    path: Path
    sha256: str
    num_dropped: int = 0

    def __len__(self) -> int:
        return len(self.log_ref)


def event_name(path: str | Path) -> str:
    """Return an event's name from its file's: GWyymmdd_hhmmss or GWyymmdd in it, else its stem.

    Open Gravitational-wave Catalogue names such as
    `H1L1V1-EXTRACT_POSTERIOR_150914_09H_50M_45UTC-0-1` become `GW150914_095045`.
    """
    stem = Path(path).stem
    if found := re.search(r"_(\d{6})_(\d\d)H_(\d\d)M_(\d\d)UTC", stem):
        day, *time = found.groups()
        return f"GW{day}_{''.join(time)}"
    if found := re.search(r"GW\d{6}(_\d{6})?", stem):
        return found.group()
    return stem


def read_events(
    paths: str | Path | Iterable[str | Path],
    parameters: Iterable[str],
    reference_prior: ReferencePrior,
    *,
    columns: Mapping[str, str] | None = None,
    group: str | None = None,
    cosmology: Any = None,
    max_draws: int | None = None,
    seed: int | None = None,
    min_draws: int = 10,
    drop_invalid: bool = False,
) -> list[Event]:
    r"""Read one event per file, as draws in the population's parameters and their `log_ref`.

    Args:
        paths: a file, a pattern, or several of either; events are in the order of these.
        parameters: the population's parameters, e.g. ("mass_1_source", "mass_ratio", "redshift").
        reference_prior: what the draws were drawn with; see `reference_priors.log_reference`.
        columns, group: see `read_posterior`.
        cosmology: e.g. `cosmology.FlatLambdaCDM`; needed between distance and redshift, and by
            distance priors.
        max_draws: keep at most so many draws per event, chosen at random without replacement.
        seed: of that choice. An event's choice depends on the seed and its name alone.
        min_draws: fewer usable draws than this in an event is an error.
        drop_invalid: leave out draws that are not finite or outside their support, rather than
            raise; `Event.num_dropped` counts them.

    Raises:
        InputError: anything wrong with a file or with what it holds, naming the file and the
            column; a reference prior that does not cover the parameters.
    """
    parameters = tuple(parameters)
    if not parameters:
        raise InputError("no parameters were given; name those of the population.")
    check_reference_prior(reference_prior, parameters)
    if max_draws is not None and seed is None:
        raise InputError("max_draws chooses draws at random; give a seed with it.")
    events = []
    for name, path in _named_files(paths).items():
        table = read_posterior(path, group=group, columns=columns)
        event = _event(
            name,
            path,
            Columns(table, cosmology, where=str(path)),
            parameters,
            reference_prior,
            drop_invalid,
        )
        if len(event) < min_draws:
            raise InputError(
                f"{path}: event {name} has {len(event)} usable draws, fewer than min_draws = "
                f"{min_draws}"
                + (f" ({event.num_dropped} were dropped as invalid)" if event.num_dropped else "")
                + "; leave the event out or lower min_draws."
            )
        events.append(event if max_draws is None else _thinned(event, max_draws, seed))
    return events


def _named_files(paths: str | Path | Iterable[str | Path]) -> dict[str, Path]:
    """Event name -> file, in order."""
    seen: dict[str, Path] = {}
    for path in expand_paths(paths):
        name = event_name(path)
        if name in seen:
            raise InputError(
                f"'{seen[name]}' and '{path}' are both of event {name}; an event may be counted "
                "once, so leave one out."
            )
        seen[name] = path
    return seen


def _event(
    name: str,
    path: Path,
    table: Columns,
    parameters: tuple[str, ...],
    reference_prior: ReferencePrior,
    drop_invalid: bool,
) -> Event:
    for parameter in parameters:
        table[parameter]
    check_units(table.consulted, table.where)
    bad = invalid_draws(table.consulted, table.where, drop=drop_invalid)
    # Only sound draws go on, so that what is undefined below is the prior's doing.
    sound = Columns(
        {key: column[~bad] for key, column in table.items()},
        table.cosmology,
        where=table.where,
    )
    if np.all(bad):
        raise InputError(f"{path}: none of the {len(bad)} draws of event {name} can be used.")
    log_ref = log_reference(reference_prior, sound, parameters)
    # The prior may have consulted columns that the parameters did not.
    late = invalid_draws(sound.consulted, table.where, drop=drop_invalid)
    draws = {key: to_support(key, sound[key])[~late] for key in parameters}
    dropped = int(bad.sum() + late.sum())
    return Event(name, draws, log_ref[~late], path, file_hash(path), dropped)


def _thinned(event: Event, max_draws: int, seed: int | None) -> Event:
    if len(event) <= max_draws:
        return event
    # Tied to the name, so that adding an event to a catalogue leaves the others as they were.
    rng = np.random.default_rng([seed or 0, zlib.crc32(event.name.encode())])
    keep = np.sort(rng.choice(len(event), max_draws, replace=False))
    draws = {name: column[keep] for name, column in event.draws.items()}
    return Event(
        event.name, draws, event.log_ref[keep], event.path, event.sha256, event.num_dropped
    )
