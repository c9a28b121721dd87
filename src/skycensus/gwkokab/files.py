"""GWKokab's JSON files: samplers in two forms, and the selection of a pmean file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError, did_you_mean


def read_json(path: str | Path, what: str) -> dict[str, Any]:
    """Read a JSON object; errors name `what` it is for."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"repeated keys {repeated}")
        return dict(pairs)

    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise InputError(f"{what} file '{path}' cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise InputError(f"{what} file '{path}' is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{what} file '{path}' must hold an object of names and values.")
    return value


def check_keys(given: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise `InputError` naming the keys that are not known, and what they may mean."""
    known = list(known)
    if wrong := [f"'{k}'{did_you_mean(k, known)}" for k in given if k not in known]:
        raise InputError(f"{where}: no key {', '.join(wrong)}; there are {', '.join(known)}.")


def positive(given: Mapping[str, Any], key: str, default: Any, where: str) -> Any:
    """Return `given[key]` or the default, a positive number: whole where the default is."""
    value = given.get(key, default)
    kinds = int if isinstance(default, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
        kind = "whole number" if kinds is int else "number"
        raise InputError(f"{where}: {key} = {value!r} must be a positive {kind}.")
    return value


# ---- samplers ------------------------------------------------------------------------------------

_KERNEL = {n: n for n in ("dense_mass", "max_tree_depth", "target_accept_prob")}
_MCMC = {n: n for n in ("num_warmup", "num_samples", "num_chains", "thinning", "chain_method")}
# What NUTS always does here; other values are not offered.
_FIXED: dict[str, tuple[Any, ...]] = {
    "adapt_step_size": (True,),
    "adapt_mass_matrix": (True,),
    "regularize_mass_matrix": (True,),
    "forward_mode_differentiation": (False,),
    "inverse_mass_matrix": (None,),
}
# What only starts the tuning, or has to do with how a run looks.
_TUNED = ("step_size", "find_heuristic_step_size")
_SHOWN = ("progress_bar", "progress_rate", "jit_model_args")
_FLOW = {
    "n_chains": "num_chains",
    "n_training_loops": "num_training_loops",
    "n_production_loops": "num_production_loops",
    "n_local_steps": "num_local_steps",
    "n_global_steps": "num_global_steps",
    "n_leapfrog": "num_leapfrog",
    "n_epochs": "num_epochs",
    "batch_size": "batch_size",
    "chain_batch_size": "chain_batch_size",
    "history_window": "history_window",
    "learning_rate": "learning_rate",
    "local_thinning": "local_thinning",
    "global_thinning": "global_thinning",
    "rq_spline_n_bins": "num_bins",
    "rq_spline_n_layers": "num_layers",
    "rq_spline_hidden_units": "hidden_units",
    "rq_spline_range": "spline_range",
    "local_sampler_name": "local_sampler",
    "n_max_examples": "max_examples",
    "n_NFproposal_batch_size": "proposal_batch_size",
}
_UNSCALED = ("step_size", "condition_matrix", "mass_matrix")


class SamplerSettings(NamedTuple):
    """Keyword arguments of `NUTS` or `FlowMCMC`, whether to show progress, and notes."""

    fields: dict[str, Any]
    progress: bool
    notes: tuple[str, ...]


def read_sampler(path: str | Path, kind: str) -> SamplerSettings:
    """Read a sampler's JSON file: the tutorial's form, or the one with `sampler_name`.

    Args:
        path: the file.
        kind: "nuts" or "flow_mcmc".

    Raises:
        InputError: the other sampler's file, unknown keys, values that are not offered.
    """
    settings = read_json(path, "sampler")
    name = settings.pop("sampler_name", None)
    kinds = {"numpyro": "nuts", "flowMC": "flow_mcmc"}
    if name not in (None, *kinds):
        raise InputError(
            f"sampler file '{path}': sampler_name = {name!r} is not known; it is 'numpyro' or "
            "'flowMC'."
        )
    looks = kinds.get(name, kind)
    if name is None and {"kernel", "mcmc"} & set(settings):
        looks = "nuts"
    elif name is None and {"bundle_config", "data_dump"} & set(settings):
        looks = "flow_mcmc"
    if looks != kind:
        right = "n_sage_n_pls_m_gs" if looks == "nuts" else "f_sage_n_pls_m_gs"
        raise InputError(f"sampler file '{path}' is one for {right}; use that command.")
    where = f"sampler file '{path}'"
    return _nuts(settings, where) if kind == "nuts" else _flow(settings, where)


def _nuts(settings: dict[str, Any], where: str) -> SamplerSettings:
    check_keys(settings, ("kernel", "mcmc"), where)
    kernel, mcmc = settings.get("kernel", {}), settings.get("mcmc", {})
    check_keys(kernel, [*_KERNEL, *_FIXED, *_TUNED], f"{where}, kernel")
    check_keys(mcmc, [*_MCMC, *_SHOWN], f"{where}, mcmc")
    notes = []
    for key, allowed in _FIXED.items():
        if kernel.get(key, allowed[0]) not in allowed:
            raise InputError(
                f"{where}, kernel: {key} = {kernel[key]!r} is not offered; leave it out "
                f"({json.dumps(allowed[0])})."
            )
    fields = {key: value for key, value in {**kernel, **mcmc}.items() if key in _KERNEL | _MCMC}
    for key in ("num_warmup", "num_samples", "num_chains", "thinning"):
        if key in fields:
            positive(fields, key, 1, f"{where}, mcmc")
    if isinstance(fields.get("max_tree_depth"), list):
        fields["max_tree_depth"] = fields["max_tree_depth"][-1]
        notes.append(f"max_tree_depth is {fields['max_tree_depth']} in the warm-up too.")
    if "max_tree_depth" in fields:
        positive(fields, "max_tree_depth", 1, f"{where}, kernel")
    if not isinstance(fields.get("dense_mass", True), bool):
        fields["dense_mass"] = bool(fields["dense_mass"])
        notes.append("dense_mass names blocks: one matrix for all parameters is used instead.")
    methods = ("parallel", "sequential", "vectorized")
    if fields.get("chain_method", "parallel") not in methods:
        raise InputError(
            f"{where}, mcmc: chain_method = {fields['chain_method']!r} is not one of {methods}."
        )
    if fields.get("chain_method") == "parallel":
        # One chain per device where there are as many; a likelihood that keeps all cores of a CPU
        # busy by itself gains nothing from chains beside it.
        fields["chain_method"] = "auto"
    return SamplerSettings(fields, bool(mcmc.get("progress_bar", True)), tuple(notes))


def _flow(settings: dict[str, Any], where: str) -> SamplerSettings:
    if {"bundle_config", "data_dump"} & set(settings):
        check_keys(settings, ("data_dump", "bundle_config"), where)
        dump, given = settings.get("data_dump", {}), dict(settings.get("bundle_config", {}))
        check_keys(dump, ("n_samples", "save_chains_every_step"), f"{where}, data_dump")
        where = f"{where}, bundle_config"
    else:
        dump, given = {}, settings
    check_keys(given, [*_FLOW, *_UNSCALED, "verbose"], where)
    fields = {_FLOW[key]: value for key, value in given.items() if key in _FLOW}
    if "n_samples" in dump:
        fields["num_flow_draws"] = dump["n_samples"]
    if isinstance(fields.get("local_sampler"), str):
        fields["local_sampler"] = fields["local_sampler"].strip().lower()
    notes = []
    if ignored := [key for key in _UNSCALED if given.get(key, 1.0) != 1.0]:
        notes.append(
            f"{' and '.join(ignored)} are in the parameters' own units: here the sampler works in "
            "those of the posterior's width, and tunes its steps."
        )
    return SamplerSettings(fields, True, tuple(notes))


def make_sampler(kind: str, settings: SamplerSettings) -> Any:
    """The sampler with these settings."""
    from ..samplers.flow_mcmc import FlowMCMC
    from ..samplers.nuts import NUTS

    return NUTS(**settings.fields) if kind == "nuts" else FlowMCMC(**settings.fields)


# ---- selection -----------------------------------------------------------------------------------

_NEURAL = {"batch_size": None, "num_samples": 1000, "time_scale": 1.0}
PMEAN: dict[str, dict[str, Any]] = {
    "neural_vt": _NEURAL,
    "neural_pdet": _NEURAL,
    "injection": {"batch_size": None, "far_cut": 1.0, "snr_cut": 10.0},
    "custom": {"python_module_path": ..., "kwargs": ...},
}


def read_pmean(path: str | Path) -> dict[str, Any]:
    """Read a pmean file, with defaults filled in and paths found.

    Raises:
        InputError: an unknown kind, key or value, or a file that is not there.
    """
    given = read_json(path, "pmean")
    where = f"pmean file '{path}'"
    kind = given.get("estimator_type")
    if kind not in PMEAN:
        raise InputError(
            f"{where}: estimator_type = {kind!r}{did_you_mean(str(kind), PMEAN)} is not one of "
            f"{', '.join(PMEAN)}."
        )
    known = {"filename": ..., **PMEAN[kind]}
    check_keys(given, ["estimator_type", *known], f"{where} ({kind})")
    if missing := [key for key, default in known.items() if default is ... and key not in given]:
        raise InputError(f"{where} ({kind}): {', '.join(missing)} missing.")
    out = {"estimator_type": kind, **known, **given, "stated": set(given)}
    for key in ("num_samples", "time_scale", "far_cut", "snr_cut"):
        if key in known:
            positive(out, key, known[key], where)
    for key in ("filename", "python_module_path"):
        if key in known:
            out[key] = find_file(out[key], Path(path).parent, f"{where}: {key}")
    return out


def find_file(name: Any, folder: Path, where: str) -> Path:
    """A file named relative to the current folder, as GWKokab has it, or to that of the JSON."""
    if not isinstance(name, str):
        raise InputError(f"{where} = {name!r} is not a path.")
    candidates = list(dict.fromkeys([Path(name), folder / name]))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    tried = " nor ".join(f"'{c.absolute()}'" for c in candidates)
    raise InputError(f"{where}: there is no file {tried}.")
