"""Writing mock catalogues and injections: the layout that the readers and the examples use."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .mock import Catalogue, FoundInjections, MockEvent

_RECORD = "catalogue.json"


def write_catalogue(
    catalogue: Catalogue,
    folder: str | Path,
    *,
    injections: FoundInjections | None = None,
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
        folder: must not exist, unless `overwrite` and it holds such a catalogue or nothing.
        injections: what `draw_found_injections` returned for the same detection.
        prior: hyperparameter name -> a distribution by name, as the prior's file has it.
        overwrite: replace an earlier catalogue.

    Raises:
        InputError: a folder that exists, or that cannot be written.
    """
    target = Path(folder)
    _check_target(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that putting it in place is a mere change of name.
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"cannot write to {target.parent}: {error.strerror}.") from error
    try:
        _write_parts(work / "new", catalogue, injections, prior)
        if target.exists():
            target.rename(work / "old")
        (work / "new").rename(target)
    except OSError as error:
        if (work / "old").exists() and not target.exists():
            (work / "old").rename(target)
        raise InputError(f"cannot write the catalogue {target}: {error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _check_target(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise InputError(f"{target} exists; give another folder, or overwrite=True to replace it.")
    if target.is_symlink() or not target.is_dir():
        raise InputError(f"{target} is no folder; give another one.")
    if any(target.iterdir()) and not (target / _RECORD).is_file():
        raise InputError(f"{target} holds something other than a mock catalogue; give another one.")


def _write_parts(
    folder: Path,
    catalogue: Catalogue,
    injections: FoundInjections | None,
    prior: Mapping[str, Any] | None,
) -> None:
    (folder / "posteriors").mkdir(parents=True)
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
    _write_json(folder / _RECORD, catalogue.record)
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


def write_injections(path: str | Path, injections: FoundInjections, *, exposure: float) -> None:
    r"""Write found injections as HDF5: one dataset per parameter, and `p_draw`.

    The attributes `total_generated` (N), `T_obs_yr` (T) and `VTmax_Gpc3` (V) give
    $\mu(\Lambda) = T V \frac{1}{N} \sum_\mathrm{found} \rho(\theta \mid \Lambda) /
    p_\mathrm{draw}(\theta)$, as the attribute `note` says.

    Args:
        path: the file, which is replaced where it exists.
        injections: what `draw_found_injections` returned.
        exposure: T in yr.
    """
    import h5py

    names = ",".join(injections.columns)
    with h5py.File(path, "w") as file:
        for name, column in injections.columns.items():
            file[name] = column
        file["p_draw"] = np.exp(injections.log_p_draw)
        file.attrs["total_generated"] = injections.total
        file.attrs["T_obs_yr"] = float(exposure)
        file.attrs["VTmax_Gpc3"] = injections.volume
        file.attrs["note"] = (
            f"mu(L)=T_obs_yr*VTmax_Gpc3/total_generated*sum_found rho({names}|L)/p_draw({names})"
        )
