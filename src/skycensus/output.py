"""The folder of a run: sample, complete, and put everything in place at once or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import __version__
from .analysis import Derived, analyse
from .diagnostics import quantile, scalars
from .errors import InputError
from .model import HierarchicalModel
from .result import Result
from .samplers import Progress, Sampler

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
    progress: Progress | None = None,
    extra: Extra | None = None,
) -> Result:
    """Sample, and write `result.nc`, `summary.json`, `config.toml` and `figures/` into `out`.

    The folder appears when everything is in it; an earlier one is replaced in the same moment. A
    run that fails leaves nothing.

    Args:
        inference: what to run.
        out: the folder.
        overwrite: replace the results of an earlier run.
        progress: see `analysis.analyse`.
        extra: called with the result and the folder in the making, to write more files.

    Raises:
        InputError: a folder that exists or cannot be written, and what the sampler raises.
    """
    began = time.perf_counter()
    with new_folder(out, overwrite=overwrite) as folder:
        result = analyse(
            inference.model,
            inference.sampler,
            jax.random.key(inference.seed),
            progress=progress,
            num_prior_draws=inference.num_prior_draws,
            num_marginal_draws=inference.num_marginal_draws,
            min_n_eff=inference.min_n_eff,
            truth=inference.truth,
            derived=inference.derived,
        )
        fault, drawing = None, time.perf_counter()
        if inference.figures:
            report = progress or (lambda *_: None)
            report(0, 1, "figures")
            try:
                draw_figures(inference, result, folder / "figures")
            except (Exception, KeyboardInterrupt) as error:  # told when the draws are in place
                fault = error
            report(1, 1, "figures")
        done = time.perf_counter()
        seconds = {
            "reading": inference.seconds_reading,
            **result.seconds,
            **({"figures": done - drawing} if inference.figures else {}),
            "total": inference.seconds_reading + done - began,
        }
        provenance = {
            "seed": inference.seed,
            "sampler": described(inference.sampler),
            "versions": versions(),
            "inputs": inference.inputs,
            "dropped": list(inference.dropped),
            "config": inference.config,
            **inference.provenance,
        }
        result = dataclasses.replace(result, seconds=seconds, provenance=provenance)
        write_result(result, folder, config=inference.config)
        if extra is not None:
            extra(result, folder)
    if fault is not None:
        fault.add_note(f"The result was written to {out} before its figures failed.")
        raise fault
    return result


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


def draw_figures(inference: Inference, result: Result, folder: Path) -> list[Path]:
    """Draw the standard figures of a result into `folder`."""
    from . import plots
    from .figures import standard_figures

    # A stream of its own: the draws do not depend on what is drawn of them.
    key = jax.random.fold_in(jax.random.key(inference.seed), 3)
    figures = standard_figures(inference.model, result, key=key, labels=inference.labels)
    return plots.save_figures(figures, folder, formats=inference.figure_formats)


def described(sampler: Any) -> dict[str, Any]:
    """A sampler's class and settings."""
    is_one = dataclasses.is_dataclass(sampler) and not isinstance(sampler, type)
    settings = dataclasses.asdict(sampler) if is_one else {}
    return {"kind": type(sampler).__name__, **settings}


def versions() -> dict[str, str]:
    """Versions of what computed a result."""
    found = {"skycensus": __version__, "python": platform.python_version()}
    for name in ("jax", "jaxlib", "numpyro", "numpy", "scipy", "arviz", "flowMC"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    found["platform"] = platform.platform()
    found["device"] = str(jax.devices()[0].device_kind)
    return found


def sha256(path: str | Path) -> str:
    """The hash of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---- a folder, whole or not at all ---------------------------------------------------------------


@contextmanager
def new_folder(out: str | Path, *, overwrite: bool = False, mark: str = MARK) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends, and vanishes when it fails.

    Args:
        out: must not exist, or be empty, or with `overwrite` hold the file `mark`.
        overwrite: whether results of an earlier run may be replaced.
        mark: the file by which those are known.

    Raises:
        InputError: `out` exists, or cannot be written to.
    """
    target = Path(os.path.abspath(Path(out).expanduser()))
    check_folder(target, overwrite=overwrite, mark=mark)
    try:
        # One level below, because only a folder with no content of its own may be renamed over.
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise _cannot_write(target.parent, error) from None
    fresh, old = work / "new", work / "old"
    try:
        fresh.mkdir()
        yield fresh
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_folder(out: str | Path, *, overwrite: bool = False, mark: str = MARK) -> None:
    """Raise `InputError` unless results can be put at `out`; makes the folder above it."""
    target = Path(os.path.abspath(Path(out).expanduser()))
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"'{target}' is not a folder; give another one with --out.")
    if target.is_dir() and any(target.iterdir()):
        if not (target / mark).is_file():
            raise InputError(
                f"'{target}' holds something other than the results of a run (there is no {mark}); "
                "give another folder with --out."
            )
        if not overwrite:
            raise InputError(
                f"'{target}' holds the results of an earlier run; give another folder with --out, "
                "or --overwrite to replace them."
            )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise _cannot_write(target.parent, error) from None


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write to '{path}': {error.strerror or error}; choose a folder that is writable "
        "and has space."
    )


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


def report(result: Result, out: str | Path) -> str:
    """The table, the evidence, the time and the place: what the command prints at the end."""
    lines = [table(result), ""]
    if result.log_evidence is not None:
        error = result.log_evidence_error
        plus = f" +- {error:.3f}" if error is not None else ""
        lines.append(f"log evidence {result.log_evidence:.3f}{plus}")
    parts = ("reading", "compiling", "sampling", "figures", "total")
    spent = [f"{name} {result.seconds[name]:.1f} s" for name in parts if name in result.seconds]
    lines.append(", ".join(spent))
    lines.append(str(result.status))
    lines.append(f"written to {os.path.abspath(out)}")
    return "\n".join(lines)


def is_terminal(stream: Any = None) -> bool:
    """Whether a stream (standard error by default) is a terminal."""
    stream = sys.stderr if stream is None else stream
    return bool(getattr(stream, "isatty", lambda: False)())
