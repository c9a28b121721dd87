"""The command `skycensus fit`: a chain file in, a learned density out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from ..errors import InputError, did_you_mean
from ..estimators import LearnedDensity, Periodic, fit_density
from ..estimators.chains import Draws, read_chains
from ..gw.tables import file_hash
from ..output import versions


def fit(options: Any, command: str, progress: Any) -> LearnedDensity:
    """Fit a density to the draws of a file and write it.

    Args:
        options: the arguments of `skycensus fit`.
        command: the command line, for the provenance.
        progress: called as progress(done, total, what) now and then.

    Raises:
        InputError: anything wrong with the file, its columns, the supports or the place to write
            to; nothing is written then.
    """
    out = Path(options.out)
    for path in filter(None, (out, options.figure and Path(options.figure))):
        if path.exists() and not options.overwrite:
            raise InputError(f"'{path}' exists; give another file, or --overwrite.")
        if not path.parent.is_dir():
            raise InputError(
                f"there is no folder '{path.parent}' for '{path.name}'; make it first."
            )
    if options.weights and options.log_weights:
        raise InputError("--weights and --log-weights exclude each other; name one column.")
    draws = read_chains(options.chains, weights=options.weights, log_weights=options.log_weights)
    if options.columns:
        draws = draws.select([name.strip() for name in options.columns.split(",")])
    support = {**draws.support, **parse_support(options.support, list(draws.columns))}
    density = fit_density(
        jax.random.key(options.seed),
        draws,
        kind=options.kind,
        support=support,
        progress=progress,
    )
    density.provenance |= {
        "command": command,
        "seed": options.seed,
        "inputs": {str(path): file_hash(path) for path in draws.paths},
        "versions": versions(),
    }
    density.save(out, overwrite=options.overwrite)
    if options.figure:
        _draw(density, draws, Path(options.figure))
    return density


def parse_support(entries: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Supports from text: "a=0:1", "a=0:" for one bound, "phi=0:360:periodic".

    Raises:
        InputError: text of another form, or a column that there is not.
    """
    found: dict[str, Any] = {}
    for entry in entries:
        name, equals, ends = (part.strip() for part in entry.partition("="))
        parts = ends.split(":")
        if not equals or len(parts) not in (2, 3) or parts[2:] not in ([], ["periodic"]):
            raise InputError(
                f"--support '{entry}' is not understood; write NAME=LOW:HIGH, NAME=LOW: or "
                "NAME=:HIGH for one bound, or NAME=LOW:HIGH:periodic."
            )
        if name not in names:
            raise InputError(
                f"--support '{entry}': there is no column '{name}'{did_you_mean(name, names)}; the "
                f"columns are {', '.join(names)}."
            )
        try:
            low, high = float(parts[0] or "-inf"), float(parts[1] or "inf")
        except ValueError:
            raise InputError(
                f"--support '{entry}': '{parts[0]}' and '{parts[1]}' are not two numbers."
            ) from None
        found[name] = Periodic(low, high) if len(parts) == 3 else (low, high)
    return found


def _draw(density: LearnedDensity, draws: Draws, path: Path) -> None:
    from ..plots import density_corner

    density_corner(density, draws.columns, draws.log_weight, path=path)
