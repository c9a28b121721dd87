"""GWKokab's commands, by their own names, options and files, run by this package.

| command              | what it does                                                        |
|----------------------|---------------------------------------------------------------------|
| `n_sage_n_pls_m_gs`  | N power laws and M Gaussians inferred by NUTS                       |
| `f_sage_n_pls_m_gs`  | the same by flow-enhanced MCMC                                      |
| `genie_n_pls_m_gs`   | mock catalogues of that population                                  |

Each is a mapping of options and JSON files onto the objects that `skycensus run` uses; what differs
from GWKokab is in `docs/gwkokab.md`. Heavy modules are imported when they are needed, so that help
is quick.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..cli import count, guarded, infer, start_jax
from ..errors import InputError
from .files import SamplerSettings, make_sampler, read_json, read_pmean, read_sampler
from .model import EXTRAS, Population, make_population, resolve

LOG_PRIOR = "log_prior"

# ---- the commands --------------------------------------------------------------------------------


def nuts_main(arguments: Sequence[str] | None = None) -> int:
    """`n_sage_n_pls_m_gs`: infer the population by NUTS; returns the exit code."""
    return _main(analysis_parser("n_sage_n_pls_m_gs", "NUTS"), partial(_infer, "nuts"), arguments)


def flow_mcmc_main(arguments: Sequence[str] | None = None) -> int:
    """`f_sage_n_pls_m_gs`: infer the population by flow-enhanced MCMC; returns the exit code."""
    parser = analysis_parser("f_sage_n_pls_m_gs", "flow-enhanced MCMC")
    return _main(parser, partial(_infer, "flow_mcmc"), arguments)


def genie_main(arguments: Sequence[str] | None = None) -> int:
    """`genie_n_pls_m_gs`: make mock catalogues; returns the exit code."""
    from .genie import simulate

    return _main(genie_parser(), simulate, arguments)


def _main(
    parser: argparse.ArgumentParser,
    run: Callable[[Any, str], int],
    arguments: Sequence[str] | None,
) -> int:
    options = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    command = " ".join([parser.prog, *map(shlex.quote, words)])
    return guarded(lambda: run(options, command))


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


# ---- options -------------------------------------------------------------------------------------


def analysis_parser(prog: str, sampler: str) -> argparse.ArgumentParser:
    """The options of an inference."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"Infer N power laws and M Gaussians in the masses by {sampler}.",
        epilog="exit codes: 0 converged; 2 bad input; 3 finished but not converged.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    _model_options(parser)
    add("--posterior-regex", required=True, metavar="PATTERN", help="files, one per event (a glob)")
    add("--posterior-columns", nargs="+", metavar="NAME",
        help="columns, in the order of the model's parameters; 'log_prior' is the log reference "
        "prior, which is flat otherwise")  # fmt: skip
    add("--pmean-cfg", "--pmean-json", default="pmean.json", metavar="JSON", help="selection")
    add("--prior-cfg", "--prior-json", default="prior.json", metavar="JSON", help="priors")
    add("--sampler-cfg", "--sampler-config", required=True, metavar="JSON", help="sampler")
    add("--variance-cut-threshold", type=float, metavar="V",
        help="variance of the log likelihood above which points are penalised")  # fmt: skip
    add("--min-draws", type=count, default=10, metavar="N",
        help="fewer usable draws than this in an event are an error (10)")  # fmt: skip
    add("--max-draws", type=count, metavar="N", help="keep at most so many draws of an event")
    add("--drop-invalid", action="store_true",
        help="leave out draws that are not finite or unphysical, rather than stop")  # fmt: skip
    add("--injection-spins", metavar="NAME",
        help="spins of the population where its parameters leave them open and the injections "
        "have them, e.g. isotropic-uniform")  # fmt: skip
    add("--restart", action="store_true",
        help="discard an interrupted run, rather than go on with it")  # fmt: skip
    add("--no-figures", action="store_true", help="draw no figures")
    for name in ("--n-buckets", "--threshold"):
        add(name, type=float, help="accepted and not needed: the layout of the draws suits itself")
    for name in ("--debug-nans", "--profile-memory", "--check-leaks"):
        add(name, action="store_true", help="accepted and not needed: see docs/gwkokab.md")
    _common_options(parser, "./inference")
    return parser


def genie_parser() -> argparse.ArgumentParser:
    """The options of a mock catalogue."""
    parser = argparse.ArgumentParser(
        prog="genie_n_pls_m_gs",
        description="Make mock catalogues of N power laws and M Gaussians in the masses.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    _model_options(parser)
    add("--model-json", "--model-params", required=True, metavar="JSON", help="hyperparameters")
    add("--err-json", required=True, metavar="JSON", help="scale_Mc, scale_eta, ...")
    add("--pmean-cfg", "--pmean-json", default="pmean.json", metavar="JSON", help="selection")
    add("--error-size", type=count, default=2000, metavar="N", help="draws per event (2000)")
    add("--num-realizations", type=count, default=5, metavar="N", help="catalogues (5)")
    _common_options(parser, "./data")
    return parser


def _common_options(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("--seed", type=int, default=37, help="of all randomness (37)")
    parser.add_argument("--out", default=out, metavar="DIR", help=f"folder of the results ({out})")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")


def _model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--n-pl", type=int, metavar="N", help="power laws")
    group.add_argument("--n-g", type=int, metavar="M", help="Gaussians")
    for extra, (parameters, aliases) in EXTRAS.items():
        group.add_argument(
            *(f"--add-{name}" for name in (extra, *aliases)),
            dest="extras",
            action="append_const",
            const=extra,
            default=[],
            help=", ".join(parameters),
        )


# ---- inference -----------------------------------------------------------------------------------


def _infer(kind: str, options: Any, command: str) -> int:
    from ..folders import check_folder
    from ..output import MARK

    settings = read_sampler(options.sampler_cfg, kind)
    start_jax({"sampler": settings.fields})
    check_folder(options.out, MARK, overwrite=options.overwrite)
    for note in settings.notes:
        _note(note)
    inference = build(kind, settings, options, command)
    return infer(
        inference,
        options.out,
        overwrite=options.overwrite,
        restart=options.restart,
        extra=partial(write_chains, seed=options.seed),
        quiet=not settings.progress,
    )


def build(kind: str, settings: SamplerSettings, options: Any, command: str) -> Any:
    """The `output.Inference` that the options of a command describe."""
    import jax

    from ..gw.tables import file_hash
    from ..likelihood import Samples
    from ..model import HierarchicalModel
    from ..output import Inference
    from .selection import read_selection

    began = time.perf_counter()
    sampler = make_sampler(kind, settings)
    population = make_population(options.n_pl, options.n_g, options.extras)
    entries = read_json(options.prior_cfg, "prior")
    prior = resolve(entries, population, f"prior file '{options.prior_cfg}'")
    pmean = read_pmean(options.pmean_cfg)
    events = read_posteriors(options, population)
    key = jax.random.fold_in(jax.random.key(options.seed), 1)
    selection = read_selection(pmean, population, prior, key, options.injection_spins)
    model = HierarchicalModel(
        prior,
        population.function,
        Samples(
            [e.draws for e in events], [e.log_ref for e in events], names=[e.name for e in events]
        ),
        selection=selection.form,
        log_exposure=selection.log_exposure,
        max_variance=options.variance_cut_threshold,
    )
    files = (options.pmean_cfg, options.prior_cfg, options.sampler_cfg)
    inputs = {str(path): file_hash(path) for path in files}
    inputs |= {str(event.path): event.sha256 for event in events}
    return Inference(
        model=model,
        sampler=sampler,
        seed=options.seed,
        inputs=inputs | selection.inputs,
        seconds_reading=time.perf_counter() - began,
        figures=not options.no_figures,
        provenance={"command": command},
    )


def read_posteriors(options: Any, population: Population) -> list[Any]:
    """The events of the options' files, with GWKokab's reference prior: flat, or a column."""
    from ..gw.files import read_events

    names = population.parameters
    columns = list(options.posterior_columns or names)
    flat = LOG_PRIOR not in columns
    columns = [name for name in columns if name != LOG_PRIOR]
    if len(columns) != len(names):
        raise InputError(
            f"--posterior-columns has {len(columns)} columns {columns} for the {len(names)} "
            f"parameters of the model, {list(names)}; give one for each, in this order."
        )
    # Names that are the parameters' own are told apart by name, whatever their order.
    own = set(columns) == set(names)
    return read_events(
        options.posterior_regex,
        names,
        _flat if flat else {"column": LOG_PRIOR, "log": True},
        columns=None if own else dict(zip(names, columns, strict=True)),
        max_draws=options.max_draws,
        seed=options.seed,
        min_draws=options.min_draws,
        drop_invalid=options.drop_invalid,
    )


def _flat(theta: Mapping[str, Any]) -> float:
    return 0.0


def write_chains(result: Any, folder: Path, *, seed: int) -> None:
    """Write `samples.dat`, draws of equal weight, and `chain_i.dat`, the chains as they ran."""
    import numpy as np

    names = list(result.draws)
    chains, draws = result.shape
    equal = result.equal_weight_draws(seed, chains * draws)
    samples = np.column_stack([equal[name] for name in names])
    np.savetxt(folder / "samples.dat", samples, header=" ".join(names))
    columns = dict(result.draws)
    if result.log_weight is not None:
        columns["log_weight"] = result.log_weight
    for chain in range(chains):
        table = np.column_stack([x[chain] for x in columns.values()])
        np.savetxt(folder / f"chain_{chain}.dat", table, header=" ".join(columns))
