"""The `skycensus` command. Its imports wait until they are needed: help must not load JAX."""

from __future__ import annotations

import argparse
import gc
import hashlib
import logging
import os
import platform
import shlex
import signal
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from . import __version__
from .errors import InputError

BAD_INPUT = 2
INTERRUPTED = 130

# Python looks for cycles of garbage when so many objects have come: tracing makes millions that
# stay, and by default the search takes a tenth of a short run.
_SEARCHES = (100_000, 20, 50)

EPILOG = """\
exit codes: 0 converged; 2 bad input, nothing written; 3 finished but not converged, everything
written and the reason told; 130 interrupted: the same command goes on with the run.

environment: SKYCENSUS_CACHE is the folder of compiled programs (default: skycensus in the user's
cache folder; "off" for none); SKYCENSUS_DATA is the folder of public data sets;
SKYCENSUS_CHECKPOINT_SECONDS are the seconds between two checkpoints of a run (default: 60).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    command = " ".join(["skycensus", *map(shlex.quote, arguments or sys.argv[1:])])
    return guarded(lambda: options.run(options, command))


def guarded(run: Callable[[], int]) -> int:
    """Turn the ways in which a command ends into exit codes and messages without tracebacks."""
    before, searches = None, gc.get_threshold()
    gc.set_threshold(*_SEARCHES)
    with suppress(ValueError):  # not in the main thread
        # A terminated run cleans up like an interrupted one.
        before = signal.signal(signal.SIGTERM, _interrupt)
    log = logging.getLogger("skycensus")
    handler, level = logging.StreamHandler(sys.stderr), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        return run()
    except InputError as error:
        for line in str(error).split("\n"):
            print(f"error: {line}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as error:
        notes = getattr(error, "__notes__", ["nothing half-written is left"])
        print(f"interrupted: {'; '.join(notes)}.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever reads has gone; the interpreter would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        # A name that is too long, a folder that may not be entered, a disk that is gone.
        print(f"error: '{error.filename}': {error.strerror}; check this path.", file=sys.stderr)
        return BAD_INPUT
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        gc.set_threshold(*searches)
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


# ---- arguments -----------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(
        prog="skycensus",
        description="From objects that are each known only imperfectly to the population behind "
        "them: hierarchical Bayesian inference in astronomy.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"skycensus {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, run: Callable[[Any, str], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    run = add("run", _run, "infer a population as a config says")
    _config_options(run, "folder of the results")
    run.add_argument(
        "--restart", action="store_true", help="discard an interrupted run, rather than go on"
    )
    run.add_argument(
        "--check",
        action="store_true",
        help="check config and data and estimate time and memory; sample nothing",
    )

    simulate = add("simulate", _simulate, "make a mock catalogue of a config's population")
    _config_options(simulate, "folder of the catalogue")

    train = add("train", _train, "fit a neural detection probability or sensitive volume")
    train.add_argument("table", metavar="TABLE", help="columns of parameters and of the target")
    train.add_argument("--out", required=True, metavar="FILE", help="the HDF5 file to write")
    train.add_argument("--target", required=True, metavar="COLUMN", help="what is to be learnt")
    train.add_argument(
        "--parameters", required=True, nargs="+", metavar="NAME", help="columns it depends on"
    )
    train.add_argument("--is-log", action="store_true", help="the target is a natural logarithm")
    train.add_argument("--take-log", action="store_true", help="learn the target's logarithm")
    train.add_argument("--width", type=count, default=64, help="units of a layer (64)")
    train.add_argument("--depth", type=count, default=3, help="hidden layers (3)")
    train.add_argument("--epochs", type=count, default=300, help="passes at most (300)")
    train.add_argument("--seed", type=int, default=0, help="of the randomness (0)")
    train.add_argument("--overwrite", action="store_true", help="replace an existing file")

    fit = add("fit", _fit, "learn a density from the draws of a chain file")
    fit.add_argument("chains", metavar="CHAINS", help="a file of draws, or the root of chains")
    fit.add_argument("--out", required=True, metavar="FILE", help="the density's file (.skc)")
    fit.add_argument("--columns", metavar="A,B,C", help="parameters (all that are not derived)")
    fit.add_argument("--weights", metavar="COLUMN", help="column of the draws' weights")
    fit.add_argument("--log-weights", metavar="COLUMN", help="column of their natural logarithms")
    fit.add_argument(
        "--support",
        action="append",
        default=[],
        metavar="NAME=LOW:HIGH",
        help="bounds of a parameter's prior; LOW: or :HIGH for one, LOW:HIGH:periodic for an "
        "angle; may be repeated",
    )
    fit.add_argument("--kind", default="auto", help="kind of density (auto)")
    fit.add_argument("--figure", metavar="FILE", help="draw draws and density there")
    fit.add_argument("--seed", type=int, default=1, help="of the randomness (1)")
    fit.add_argument("--overwrite", action="store_true", help="replace existing files")

    data = add("data", _data, "fetch a named public data set, or list them")
    data.add_argument("name", metavar="NAME", nargs="?", help="the data set; none lists them")
    data.add_argument("--from", dest="file", metavar="FILE", help="a file fetched by other means")
    data.add_argument("--list", action="store_true", help="what there is, licences and citations")

    demo = add("demo", _demo, "simulate a catalogue and infer its population: the main job, small")
    demo.add_argument("--out", metavar="DIR", help="folder of everything (./skycensus-demo)")
    demo.add_argument("--overwrite", action="store_true", help="replace an earlier demo")
    demo.add_argument("--seed", type=int, default=1, help="of the randomness (1)")

    add("version", _version, "print the version")
    return parser


def _config_options(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a TOML file")
    parser.add_argument("--out", metavar="DIR", help=out)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a key of the config; may be repeated",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier DIR")


def count(text: str) -> int:
    """A whole number from one upwards, for an option."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


# ---- commands ------------------------------------------------------------------------------------


def _run(options: Any, command: str) -> int:
    from .config import read_config

    if options.out is None and not options.check:
        raise InputError("give the folder of the results with --out DIR (or --check).")
    config = read_config(options.config, options.set)
    start_jax(config.raw)
    from .config import build
    from .folders import check_folder
    from .output import MARK

    if not options.check:
        check_folder(options.out, MARK, overwrite=options.overwrite)
    inference = build(config, provenance={"command": command})
    if options.check:
        print(describe(inference))
        print(_costs(inference))
        return 0
    return infer(inference, options.out, overwrite=options.overwrite, restart=options.restart)


def infer(
    inference: Any,
    out: str | Path,
    *,
    overwrite: bool = False,
    restart: bool = False,
    extra: Callable[[Any, Path], None] | None = None,
    quiet: bool = False,
) -> int:
    """Run an `output.Inference` with progress on standard error; print its table; the exit code.

    `restart` and `extra`: see `output.run_analysis`. `quiet`: no progress.
    """
    from .output import closing, report, run_analysis

    with nullcontext() if quiet else progress_reporter() as progress:
        result = run_analysis(
            inference,
            out,
            overwrite=overwrite,
            restart=restart,
            progress=progress,
            told=lambda result: print(report(result), flush=True),
            extra=extra,
        )
    print(closing(result, out))
    return result.status.exit_code


def describe(inference: Any) -> str:
    """What would be run, in a few lines."""
    from .output import described

    model = inference.model
    prior = model.prior
    # Leaves with forms of their own may have different parameters.
    over = ", ".join(getattr(model.likelihood, "parameters", ()))
    lines = [f"{len(model.likelihood.names)} objects" + (f" over {over}" if over else "")]
    if inference.dropped:
        lines.append(f"left out for too few effective draws: {', '.join(inference.dropped)}")
    if hasattr(model.selection, "num_draws"):
        lines.append(f"selection by {int(model.selection.num_draws[0])} draws")
    lines += [f"  {name} ~ {_shown(d)}" for name, d in prior.free.items()]
    lines += [f"  {name} = {value:g}" for name, value in prior.fixed.items()]
    lines += [f"  {name} = {other}" for name, other in prior.same_as.items()]
    kinds: list[str] = []
    sampler: Any = described(inference.sampler)
    while sampler:
        kinds.append(sampler["kind"])
        sampler = sampler.get("sampler")
    lines.append(f"sampler {' of '.join(kinds)}, seed {inference.seed}")
    return "\n".join([*lines, "the config is sound."])


def _costs(inference: Any) -> str:
    """What the run may cost, in a few lines."""
    from .costs import estimate

    if not inference.model.prior.names:
        return "estimate: no more than a few seconds, for there is nothing to sample"
    after = inference.num_marginal_draws + inference.num_object_draws
    found = estimate(
        inference.model, inference.sampler, num_draws_after=after, figures=inference.figures
    )
    return str(found)


def _shown(distribution: Any) -> str:
    values = {n: getattr(distribution, n, None) for n in distribution.arg_constraints}
    inside = ", ".join(f"{n}={_number(v)}" for n, v in values.items() if v is not None)
    return f"{type(distribution).__name__}({inside})"


def _number(value: Any) -> str:
    return f"{float(value):g}" if getattr(value, "ndim", 0) == 0 else str(value.tolist())


def _simulate(options: Any, command: str) -> int:
    from .config import read_config

    if options.out is None:
        raise InputError("give the folder of the catalogue with --out DIR.")
    config = read_config(options.config, options.set)
    start_jax(config.raw)
    from .config import simulate_data

    del command
    made = simulate_data(config, options.out, overwrite=options.overwrite)
    print(f"{made}, written to {os.path.abspath(options.out)}")
    return 0


def _train(options: Any, command: str) -> int:
    start_jax({})
    from .config.simulate import train

    del command
    done = train(options)
    print(
        f"rms error {done.rms:.4g}, largest {done.largest_error:.4g} on rows kept back; "
        f"{len(done.rms_by_epoch)} passes; written to {os.path.abspath(options.out)}"
    )
    return 0


def _fit(options: Any, command: str) -> int:
    start_jax({})
    from .config.densities import fit

    with progress_reporter() as progress:
        density = fit(options, command, progress)
    print(f"{density.kind} over {', '.join(density.names)}")
    for name, (low, high) in density.bounds.items():
        if (low, high) != (-float("inf"), float("inf")):
            print(f"  {name} between {low:g} and {high:g}")
    print(density.report)
    print(f"written to {os.path.abspath(options.out)}")
    return density.report.status.exit_code


def _data(options: Any, command: str) -> int:
    del command
    from .data import add, listing, path

    if options.name is None or options.list:
        if options.file is not None:
            raise InputError("say which data set FILE is: skycensus data NAME --from FILE")
        print(listing())
    else:
        print(path(options.name) if options.file is None else add(options.name, options.file))
    return 0


def _demo(options: Any, command: str) -> int:
    start_jax({})
    from .config.simulate import demo

    out = options.out or _free_name("skycensus-demo")
    return demo(out, command, seed=options.seed, overwrite=options.overwrite)


def _free_name(name: str) -> str:
    """`name`, or with a number where that is taken."""
    candidates = (name if n == 1 else f"{name}-{n}" for n in range(1, 10_000))
    return next(c for c in candidates if not os.path.lexists(c))


def _version(options: Any, command: str) -> int:
    del options, command
    print(f"skycensus {__version__}")
    return 0


# ---- JAX -----------------------------------------------------------------------------------------


def start_jax(raw: dict[str, Any]) -> None:
    """Set up JAX for a command: 64-bit, devices for parallel chains, compiled programs kept."""
    from .config import data_kind

    if data_kind(raw) not in ("posterior_samples", "photons"):
        # XLA's newer code generator for CPUs takes half as long again to compile. Sums over draws
        # and over photons' tables run up to three times faster by it, but other forms so little
        # that not even a million stars repay that. Versions of XLA without it ignore the option.
        _add_xla_flag("--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters")
    sampler = raw.get("sampler", {})
    if isinstance(sampler, dict) and sampler.get("chain_method") == "parallel":
        chains = sampler.get("num_chains", 4)
        count = min(chains if isinstance(chains, int) else 1, os.cpu_count() or 1)
        _add_xla_flag(f"--xla_force_host_platform_device_count={max(count, 1)}")
    import jax

    jax.config.update("jax_enable_x64", True)
    folder = cache_folder()
    if folder is not None and not getattr(jax.config, "jax_compilation_cache_dir", None):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # Small programs too: there are many, and together they take as long as the large ones.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        # Two runs at a time may see each other's half-written entry: it is compiled again.
        warnings.filterwarnings("ignore", message="Error (reading|writing) persistent")


def _add_xla_flag(flag: str) -> None:
    """Set it unless the user has; it has no effect where JAX has started to work already."""
    flags = os.environ.get("XLA_FLAGS", "")
    if flag.split("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


def cache_folder() -> Path | None:
    """Where compiled programs are kept; None where that is not wanted or not safe.

    Compiled programs are executed: the folder must be the user's own, and closed to others. Each
    kind of processor has its own, because a home folder may be shared between machines.
    """
    given = os.environ.get("SKYCENSUS_CACHE", "")
    if given.lower() in ("off", "0", "none", "no"):
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (Path(given) if given else base / "skycensus") / f"jax-{_processor()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        owned = not hasattr(os, "getuid") or found.st_uid == os.getuid()
        closed = not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return folder if owned and closed and os.access(folder, os.W_OK) else None
    except OSError:
        return None


def _processor() -> str:
    told = platform.machine() + platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass
    return hashlib.sha256(told.encode()).hexdigest()[:12]


# ---- progress ------------------------------------------------------------------------------------


@contextmanager
def progress_reporter() -> Iterator[Callable[[int, int, str], None]]:
    """Bars on a terminal, a plain line now and then elsewhere; on standard error."""
    if sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _lines()


@contextmanager
def _bars() -> Iterator[Callable[[int, int, str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Where both are a terminal, what is printed meanwhile goes above the bars.
    both = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=both) as bars:
        tasks: dict[str, Any] = {}

        def report(done: int, total: int, what: str) -> None:
            # "adapting (temperature 0.1)": one bar, with a text that changes.
            name = what.split(" (")[0]
            if name not in tasks:
                tasks[name] = bars.add_task(what, total=total)
            bars.update(tasks[name], completed=done, total=total, description=what)

        yield report


def _lines(every: float = 2.0) -> Callable[[int, int, str], None]:
    began = time.monotonic()
    last_name, last_time = "", -every

    def report(done: int, total: int, what: str) -> None:
        nonlocal last_name, last_time
        name = what.split(" (")[0]
        now = time.monotonic()
        if name == last_name and done < total and now - last_time < every:
            return
        last_name, last_time = name, now
        print(f"[{now - began:6.1f} s] {what}: {done}/{total}", file=sys.stderr, flush=True)

    return report
