"""The folder of a run: sample, complete, and put everything in place at once or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import __version__
from .analysis import Derived, analyse
from .checkpoint import Checkpoint, unfinished
from .diagnostics import scalars
from .folders import check_folder, interrupts_wait, new_folder
from .model import HierarchicalModel
from .objects import ObjectPosteriors, object_posteriors, single_object
from .predictive_checks import Measurements
from .result import Result, plain
from .samplers import Progress, Sampler
from .target import Target
from .weights import quantile

# What a folder must hold to be taken for the results of an earlier run.
MARK = "summary.json"


@dataclass(frozen=True, kw_only=True)
class Inference:
    """All that a run needs; `config.gw.build` makes one from a config, Python code by hand.

    Attributes:
        model, sampler, seed: what is sampled, how, and where its randomness comes from.
        truth: hyperparameter -> true value, where the data were simulated.
        derived: see `analysis.analyse`.
        inputs: file -> hash of what was read.
        config: the config as run, section -> keys, to be written as TOML.
        labels: parameter -> axis label.
        dropped: names of objects that were left out for too few effective draws.
        min_n_eff: see `analysis.analyse`.
        seconds_reading: spent on the data so far.
        num_prior_draws, num_marginal_draws: see `analysis.analyse`.
        num_object_draws: of every object's parameters after the fit (none with 0).
        about_objects: adds what follows from the objects' draws, given the result too.
        measured: the objects' data, for a predictive check among the figures.
        more_figures: makes figures beside the standard ones, from result and objects.
        figures, figure_formats: whether to draw, and the files' endings.
        provenance: more to be recorded, such as the command.
    """

    model: HierarchicalModel
    sampler: Sampler
    seed: int = 0
    truth: Mapping[str, float] | None = None
    derived: Derived | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    min_n_eff: float = 10.0
    seconds_reading: float = 0.0
    num_prior_draws: int = 1000
    num_marginal_draws: int = 200
    num_object_draws: int = 500
    about_objects: Callable[[Result, ObjectPosteriors], ObjectPosteriors] | None = None
    measured: Measurements | None = None
    more_figures: Callable[[Result, ObjectPosteriors | None], Mapping[str, Any]] | None = None
    figures: bool = True
    figure_formats: tuple[str, ...] = ("png",)
    provenance: Mapping[str, Any] = field(default_factory=dict)


Extra = Callable[[Result, Path], None]
"""Writes more files of a result into the folder that is to become the output."""


def run_analysis(
    inference: Inference,
    out: str | Path,
    *,
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
    told: Callable[[Result], None] | None = None,
    extra: Extra | None = None,
) -> Result:
    """Sample, and write `result.nc`, `summary.json`, `config.toml` and `figures/` into `out`.

    Where the form of the objects can draw them, `objects.ecsv` tells what is known of each given
    all the data. A model without free hyperparameters is the posterior of its one object.

    The folder appears when everything is in it; an earlier one is replaced in the same moment.
    Until then `OUT.unfinished` beside it holds a checkpoint, with which a run that was interrupted
    goes on when it is run again (see `checkpoint`). A run that fails at once leaves nothing.

    Args:
        inference: what to run.
        out: the folder.
        overwrite: replace the results of an earlier run.
        restart: discard what an interrupted run has left, rather than go on with it.
        progress: see `analysis.analyse`.
        told: called with the result as soon as it is judged, before its figures are drawn.
        extra: called with the result and the folder in the making, to write more files.

    Raises:
        InputError: a folder that exists, cannot be written or that another run is writing to, an
            unfinished run of another problem, and what the sampler raises.
    """
    began = time.perf_counter() - inference.seconds_reading
    check_folder(out, MARK, overwrite=overwrite)
    command = inference.provenance.get("command")
    kept = unfinished(out, fingerprint(inference), restart=restart, command=command)
    with kept as checkpoint:
        result = _analysed(inference, progress, checkpoint)
        began -= checkpoint.earlier
        seconds = {"reading": inference.seconds_reading, **result.seconds}
        if checkpoint.resumed:
            seconds["earlier"] = checkpoint.earlier
        provenance = {**_provenance(inference), "resumed": checkpoint.resumed}
        result = dataclasses.replace(result, seconds=seconds, provenance=provenance)
        if told is not None:
            told(result)
        place = new_folder(out, MARK, overwrite=overwrite, inside=checkpoint.folder)
        with checkpoint.telling(command), place as folder:
            result, fault = _written(inference, result, folder, progress, began)
            if extra is not None:
                extra(result, folder)
    if fault is not None:
        fault.add_note(f"The result was written to {out} before its figures failed.")
        raise fault
    return result


def fingerprint(inference: Inference) -> dict[str, Any]:
    """What the draws of a run depend on; not what is made of them afterwards."""
    after = ("seed", "sampler", "output", "truth", "simulate")
    config = {k: v for k, v in (inference.config or {}).items() if k not in after}
    # With more time the same run goes on.
    sampler = {k: v for k, v in described(inference.sampler).items() if k != "time_limit"}
    told: dict[str, Any] = {
        "seed": inference.seed,
        "sampler": sampler,
        "config": config,
        "inputs": inference.inputs,
        "objects": len(getattr(inference.model.likelihood, "names", ())),
        "hyperparameters": list(inference.model.prior.names),
        "versions": {n: v for n, v in versions().items() if n not in ("platform", "python")},
        "dtype": str(jnp.result_type(float)),
    }
    return plain(told)


def _written(
    inference: Inference,
    result: Result,
    folder: Path,
    progress: Progress | None,
    began: float,
) -> tuple[Result, BaseException | None]:
    """Write a result with its objects and figures; what went wrong with the latter is returned."""
    seconds, fault = dict(result.seconds), None
    drawing = time.perf_counter()
    objects = _objects(inference, result)
    if objects is not None:
        write_objects(objects, folder)
        seconds["objects"] = time.perf_counter() - drawing
    if inference.figures:
        drawing = time.perf_counter()
        fault = _try_figures(inference, result, objects, folder / "figures", progress)
        seconds["figures"] = time.perf_counter() - drawing
    seconds["total"] = time.perf_counter() - began
    result = dataclasses.replace(result, seconds=seconds)
    write_result(result, folder, config=inference.config)
    return result, fault


def _analysed(inference: Inference, progress: Progress | None, checkpoint: Checkpoint) -> Result:
    key = jax.random.key(inference.seed)
    if not inference.model.prior.names:
        result = single_object(inference.model, key, truth=inference.truth)
        follows = inference.derived(result.draws) if inference.derived is not None else {}
        return dataclasses.replace(result, derived=follows)
    return analyse(
        inference.model,
        inference.sampler,
        key,
        progress=progress,
        num_prior_draws=inference.num_prior_draws,
        num_marginal_draws=inference.num_marginal_draws,
        min_n_eff=inference.min_n_eff,
        truth=inference.truth,
        derived=inference.derived,
        checkpoint=checkpoint,
    )


def _objects(inference: Inference, result: Result) -> ObjectPosteriors | None:
    model, num = inference.model, inference.num_object_draws
    if not num or not hasattr(model.likelihood, "draw"):
        return None
    if not model.prior.names:
        # The result is that of the one object.
        draws = {name: x.reshape(-1, 1)[:num] for name, x in result.draws.items()}
        objects = ObjectPosteriors(tuple(model.likelihood.names), draws, {})
    else:
        # A stream of its own, as of the figures.
        key = jax.random.fold_in(jax.random.key(inference.seed), 4)
        objects = object_posteriors(model, result, key=key, num_draws=num)
    if inference.about_objects is not None:
        objects = inference.about_objects(result, objects)
    return objects


# A text table of more rows is slow to write and to read.
_MOST_TEXT_ROWS = 20_000


@interrupts_wait()
def write_objects(objects: ObjectPosteriors, folder: Path) -> Path:
    """Write the summary of every object to `objects.ecsv`, or `.fits` for more than 20,000."""
    from astropy.table import Table

    table = Table({"name": np.array(objects.names, str), **objects.summary()})
    path = folder / ("objects.ecsv" if len(table) <= _MOST_TEXT_ROWS else "objects.fits")
    table.write(path)
    return path


def _try_figures(
    inference: Inference,
    result: Result,
    objects: ObjectPosteriors | None,
    folder: Path,
    progress: Progress | None,
) -> BaseException | None:
    """Draw the figures; what went wrong is returned, to be told when the draws are in place."""
    if progress:
        progress(0, 1, "figures")
    try:
        draw_figures(inference, result, folder, objects)
    except (Exception, KeyboardInterrupt) as error:
        return error
    if progress:
        progress(1, 1, "figures")
    return None


def _provenance(inference: Inference) -> dict[str, Any]:
    return {
        "seed": inference.seed,
        "sampler": described(inference.sampler),
        "versions": versions(),
        "inputs": inference.inputs,
        "dropped": list(inference.dropped),
        "config": inference.config,
        **inference.provenance,
    }


@interrupts_wait()
def write_result(result: Result, folder: Path, *, config: Mapping[str, Any] | None = None) -> None:
    """Write `result.nc`, `summary.json` and, where given, `config.toml`."""
    from .config import to_toml

    result.save(folder / "result.nc")
    text = json.dumps(summary(result), indent=1, ensure_ascii=False, allow_nan=False)
    _write_text(folder / MARK, text + "\n")
    if config is not None:
        _write_text(folder / "config.toml", to_toml(config))


def summary(result: Result) -> dict[str, Any]:
    """What goes into `summary.json`: `Result.summary_json`, the sampler, and the weakest object."""
    told = result.summary_json()
    provenance = result.provenance
    told |= {key: provenance.get(key) for key in ("sampler", "command", "dropped")}
    if result.n_eff is not None and result.object_names:
        middle = np.median(result.n_eff.reshape(-1, result.n_eff.shape[-1]), axis=0)
        least = int(np.argmin(middle))
        told["smallest_n_eff"] = {
            "object": result.object_names[least],
            "n_eff": float(middle[least]),
        }
    told["num_objects"] = len(result.object_names)
    return told


def draw_figures(
    inference: Inference, result: Result, folder: Path, objects: ObjectPosteriors | None = None
) -> list[Path]:
    """Draw the standard figures of a result, and the model's graph, into `folder`."""
    from . import plots
    from .figures import standard_figures
    from .graph import draw_graph

    # A stream of its own: the draws do not depend on what is drawn of them.
    key = jax.random.fold_in(jax.random.key(inference.seed), 3)
    figures = standard_figures(
        inference.model,
        result,
        key=key,
        objects=objects,
        labels=inference.labels,
        measured=inference.measured,
    )
    figures["graph"] = draw_graph(inference.model)
    if inference.more_figures is not None:
        figures |= inference.more_figures(result, objects)
    return plots.save_figures(figures, folder, formats=inference.figure_formats)


def described(sampler: Any) -> dict[str, Any]:
    """A sampler's class and settings, those of a sampler within it too."""

    def told(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return described(value)
        # The address of an object or a function is another one in each process.
        addressed = callable(value) or isinstance(value, Target)
        return getattr(value, "__qualname__", type(value).__name__) if addressed else value

    is_one = dataclasses.is_dataclass(sampler) and not isinstance(sampler, type)
    fields = dataclasses.fields(sampler) if is_one else ()
    return {
        "kind": type(sampler).__name__,
        **{field.name: told(getattr(sampler, field.name)) for field in fields},
    }


def versions() -> dict[str, str]:
    """Versions of what computed a result."""
    found = {"skycensus": __version__, "python": platform.python_version()}
    for name in ("jax", "jaxlib", "numpyro", "numpy", "scipy", "arviz", "flowMC"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    found["platform"] = platform.platform()
    found["device"] = str(jax.devices()[0].device_kind)
    return found


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


# ---- the table at the end ------------------------------------------------------------------------


def table(result: Result) -> str:
    """Parameter, median, 90 % interval, truth, r_hat and ess, as lines of text."""
    rows = result.summary()
    truth = result.truth or {}
    flat = dict(scalars({**result.draws, **result.derived}))
    head = ["parameter", "median", "90 % interval", *(["truth"] if truth else [])]
    lines = [[*head, "r_hat", "ess bulk", "ess tail"]]
    for name, row in rows.items():
        low, middle, high = quantile(flat[name], [0.05, 0.5, 0.95], result.log_weight)
        cells = [name, _number(middle), f"{_number(low)} .. {_number(high)}"]
        if truth:
            cells.append(_number(truth.get(name)))
        cells += [f"{row['r_hat']:.3f}" if row["r_hat"] is not None else "-"]
        cells += [f"{row[k]:.0f}" if row[k] is not None else "-" for k in ("ess_bulk", "ess_tail")]
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(line.rstrip() for line in text)


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.4g}"


def report(result: Result) -> str:
    """The table, the evidence and the status: what the command prints when it knows them."""
    lines = [table(result), ""]
    if result.log_evidence is not None:
        error = result.log_evidence_error
        plus = f" +- {error:.3f}" if error is not None else ""
        lines.append(f"log evidence {result.log_evidence:.3f}{plus}")
    lines.append(str(result.status))
    return "\n".join(lines)


def closing(result: Result, out: str | Path) -> str:
    """The time and the place: what the command prints at the end."""
    parts = ("reading", "compiling", "sampling", "figures", "total")
    spent = [f"{name} {result.seconds[name]:.1f} s" for name in parts if name in result.seconds]
    return f"{', '.join(spent)}\nwritten to {os.path.abspath(out)}"
