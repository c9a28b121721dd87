"""The commands that make things: mock catalogues, networks, and the demonstration."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..folders import check_folder, new_folder
from ..gw.banana import BananaErrors
from ..gw.detection import SemiAnalyticDetection
from ..gw.measurement import BoundedPrior, MeasurementModel
from ..gw.mock import (
    Catalogue,
    broad_proposal,
    chirp_mass_volume,
    draw_found_injections,
    simulate_catalogue,
)
from ..gw.mock_files import MARK, write_catalogue
from ..gw.neural import Settings, Training, train_network, write_network
from ..gw.tables import read_posterior
from . import Config, collecting, read_config
from .gw_plan import noise_of
from .names import load_function
from .plan import Plan, complete_truth, make_plan


def simulate(config: Config, out: str | Path, *, overwrite: bool = False) -> Catalogue:
    """Make the mock catalogue of a config's population, `[truth]` and `[simulate]`.

    Raises:
        InputError: every problem of the config at once; a folder that cannot be written.
    """
    config = _without_data(config)
    plan = Plan(config)
    problems: list[str] = []
    with collecting(problems):
        plan = make_plan(config)
    section = config.sections.get("simulate")
    truth: dict[str, Any] = {}
    if not problems:
        with collecting(problems):
            truth = complete_truth(plan)
    if section is not None:
        with collecting(problems, f"{plan.name} [simulate]: "):
            _check_section(section)
    if problems or section is None:
        raise InputError("\n".join(problems))
    check_folder(out, MARK, overwrite=overwrite)
    detection = _detection(plan, section)
    assert plan.population is not None
    prior = BoundedPrior(
        mass=tuple(section.mass_range),
        redshift=tuple(section.redshift_range),
        cosmology=plan.universe,
    )
    events_key, injections_key = jax.random.split(jax.random.key(config.seed))
    density = plan.population({name: jnp.asarray(value) for name, value in truth.items()})
    catalogue = simulate_catalogue(
        events_key,
        density,
        detection,
        exposure=section.exposure,
        measurement=_measurement(section),
        prior=prior,
        num_draws=section.num_draws,
        num_events=section.num_events,
        truth=truth,
    )
    if not catalogue.events:
        raise InputError(
            f"none of {catalogue.num_mergers} mergers was found; raise the rate or the exposure, "
            "or give [simulate] num_events."
        )
    injections = draw_found_injections(
        injections_key, broad_proposal(plan.parameters, prior), detection, section.num_injections
    )
    write_catalogue(
        catalogue, out, injections=injections, prior=_prior_entries(config), overwrite=overwrite
    )
    return catalogue


def _without_data(config: Config) -> Config:
    """A catalogue that is to be made needs no data or selection, even if the config has them."""
    sections = ("[data]", "[selection]")
    rest = [p for p in config.problems if not any(s in p for s in sections)]
    return Config(config.path, config.raw, config.seed, config.sections, rest)


def _check_section(section: Any) -> None:
    if section.detection == "python" and section.function is None:
        raise InputError("detection = 'python' needs function = 'file.py:function'.")
    for name in ("mass_range", "redshift_range"):
        if len(getattr(section, name)) != 2:
            raise InputError(f"{name} = {getattr(section, name)} must be [low, high].")
    for name in ("exposure", "num_draws", "num_injections"):
        if not getattr(section, name) > 0:
            raise InputError(f"{name} = {getattr(section, name)} must be positive.")


def _detection(plan: Plan, section: Any) -> Callable[[Mapping[str, Any]], Any]:
    if section.detection == "chirp_mass_volume":
        return chirp_mass_volume(
            section.volume_amplitude, section.volume_exponent, mass_high=section.mass_range[1]
        )
    if section.detection == "python":
        return load_function(section.function, plan.config.folder, "function")[0]
    detection = SemiAnalyticDetection(
        noise_of(plan.config, section.noise),
        snr_threshold=section.snr_threshold,
        cosmology=plan.universe,
    )
    return jax.jit(detection.p_det)


def _measurement(section: Any) -> MeasurementModel | BananaErrors:
    if section.errors == "banana":
        return BananaErrors(section.scale_Mc, section.scale_eta)
    return MeasurementModel(
        chirp_mass=section.chirp_mass,
        symmetric_mass_ratio=section.symmetric_mass_ratio,
        luminosity_distance=section.luminosity_distance,
    )


def _prior_entries(config: Config) -> dict[str, Any]:
    """`[prior]` as one table, to be written as prior.json."""
    entries = dict(config.raw["prior"])
    if "file" in entries:
        path = config.either(str(entries.pop("file")))
        entries = json.loads(path.read_text(encoding="utf-8")) | entries
    return entries


# ---- networks ------------------------------------------------------------------------------------


def train(options: Any) -> Training:
    """Train a network on a table of values and write it in GWKokab's layout.

    Args:
        options: the arguments of `skycensus train`.

    Raises:
        InputError: columns that are missing, values that are not finite, a file that exists.
    """
    path = Path(options.out)
    if path.exists() and not options.overwrite:
        raise InputError(f"'{path}' exists; give another file with --out, or --overwrite.")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder '{path.parent}' for '{path.name}'; make it first.")
    table = read_posterior(options.table)
    for name in [*options.parameters, options.target]:
        if name not in table:
            raise InputError(f"{options.table}: no column '{name}'; there are {sorted(table)}.")
    target = np.asarray(table[options.target], float)
    if options.take_log:
        if bad := int(np.sum(~(target > 0))):
            raise InputError(
                f"{options.table}: {bad} of {target.size} values of '{options.target}' are not "
                "positive and have no logarithm; drop these rows, or leave out --take-log."
            )
        target = np.log(target)
    done = train_network(
        jax.random.key(options.seed),
        {name: table[name] for name in options.parameters},
        target,
        is_log=options.is_log or options.take_log,
        settings=Settings(options.width, options.depth, max_epochs=options.epochs),
    )
    # Beside its place first: an interrupted write leaves no half network.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        write_network(done.network, Path(folder) / path.name)
        (Path(folder) / path.name).replace(path)
    return done


# ---- the demonstration ---------------------------------------------------------------------------


def demo(out: str | Path, command: str, *, seed: int = 1, overwrite: bool = False) -> int:
    """Simulate a small catalogue of the tutorial's kind, infer its population, say where it is.

    `out` gets `config.toml`, `catalogue/` and `results/`, each whole or not at all.
    """
    import sys

    from ..cli import infer
    from .gw import build

    folder = Path(out).absolute()
    text = Path(__file__).with_name("demo.toml").read_text(encoding="utf-8")
    text = text.replace("seed = 1", f"seed = {seed}", 1)
    with new_folder(folder, "config.toml", overwrite=overwrite) as fresh:
        (fresh / "config.toml").write_text(text, encoding="utf-8")
    config = read_config(folder / "config.toml")
    print("simulating a catalogue of black-hole mergers ...", file=sys.stderr, flush=True)
    catalogue = simulate(config, folder / "catalogue")
    print(f"{len(catalogue.events)} events; inferring their population ...", file=sys.stderr)
    code = infer(build(config, provenance={"command": command}), folder / "results")
    print(
        "the same by hand, from the config that is there:\n"
        f"  skycensus simulate {out}/config.toml --out {out}/catalogue --overwrite\n"
        f"  skycensus run {out}/config.toml --out {out}/results --overwrite"
    )
    return code
