"""Writing mock catalogues and injections: the layout that the readers and the examples use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..folders import new_folder
from .injections import Injections
from .mock import Catalogue, MockEvent

MARK = "catalogue.json"
"""The file by which the folder of a catalogue is known."""


def write_catalogue(
    catalogue: Catalogue,
    folder: str | Path,
    *,
    injections: Injections | None = None,
    prior: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a catalogue into a folder, whole or not at all, and return the folder.

    | file                    | what it holds                                                 |
    |-------------------------|---------------------------------------------------------------|
    | `posteriors/<name>.dat` | draws of an event: a header of names, then one draw per line  |
    | `truth.json`            | `truth` (hyperparameters), counts, true parameters and data   |
    | `catalogue.json`        | the measurement model and the reference prior of the draws    |
    | `injections_found.hdf5` | found injections, where given (see `write_injections`)        |
    | `prior.json`            | the prior of the hyperparameters, where given                 |

    Args:
        catalogue: what `simulate_catalogue` returned.
        folder: must not exist or be empty, unless `overwrite` and it holds such a catalogue.
        injections: what `draw_found_injections` returned for the same detection.
        prior: hyperparameter name -> a distribution by name, as the prior's file has it.
        overwrite: replace an earlier catalogue.

    Raises:
        InputError: a folder that exists, or that cannot be written.
    """
    with new_folder(folder, MARK, overwrite=overwrite) as fresh:
        _write_parts(fresh, catalogue, injections, prior)
    return Path(folder)


def _write_parts(
    folder: Path,
    catalogue: Catalogue,
    injections: Injections | None,
    prior: Mapping[str, Any] | None,
) -> None:
    (folder / "posteriors").mkdir()
    for event in catalogue.events:
        _write_draws(folder / "posteriors" / f"{event.name}.dat", event)
    counts = {
        "n_events": len(catalogue.events),
        "n_samples": [len(next(iter(e.draws.values()))) for e in catalogue.events],
        "n_mergers": catalogue.num_mergers,
        "exposure_yr": catalogue.exposure,
    }
    events = {e.name: {"true": e.truth, "data": e.data} for e in catalogue.events}
    _write_json(folder / "truth.json", {"truth": catalogue.truth, **counts, "events": events})
    _write_json(folder / MARK, catalogue.record)
    if injections is not None:
        path = folder / "injections_found.hdf5"
        write_injections(path, injections, exposure=catalogue.exposure)
    if prior is not None:
        _write_json(folder / "prior.json", prior)


def _write_draws(path: Path, event: MockEvent) -> None:
    names = list(event.draws)
    table = np.column_stack([event.draws[name] for name in names])
    np.savetxt(path, table, fmt="%.15g", header=" ".join(names), comments="")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, default=float)
    path.write_text(text + "\n", encoding="utf-8")


def write_injections(path: str | Path, injections: Injections, *, exposure: float) -> None:
    r"""Write found injections as HDF5: one dataset per parameter, and `p_draw`.

    The attributes `total_generated` (N), `T_obs_yr` (T) and `VTmax_Gpc3` (V) give
    $\mu(\Lambda) = T V \frac{1}{N} \sum_\mathrm{found} \rho(\theta \mid \Lambda) /
    p_\mathrm{draw}(\theta)$, as the attribute `note` says.

    Args:
        path: the file, which is replaced where it exists.
        injections: what `draw_found_injections` returned, whose scale is V.
        exposure: T in yr.
    """
    import h5py

    names = ",".join(injections.theta)
    with h5py.File(path, "w") as file:
        for name, column in injections.theta.items():
            file[name] = column
        file["p_draw"] = np.exp(injections.log_p_draw)
        file.attrs["total_generated"] = round(injections.total_generated)
        file.attrs["T_obs_yr"] = float(exposure)
        file.attrs["VTmax_Gpc3"] = injections.scale
        file.attrs["note"] = (
            f"mu(L)=T_obs_yr*VTmax_Gpc3/total_generated*sum_found rho({names}|L)/p_draw({names})"
        )
