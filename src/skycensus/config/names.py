"""The one table of names: populations by name, or by a function of the user's own."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ..density import Mixture, Population
from ..errors import InputError, did_you_mean
from ..gw import cosmology
from ..gw.families import hyperparameter, product
from ..model import Hyperparameters, hyperparameter_names

# ---- the table of names --------------------------------------------------------------------------

FAMILIES: dict[str, dict[str, str]] = {
    "mass": {
        **dict.fromkeys(
            (
                "n_power_laws_m_gaussians",
                "power_law_mass_ratio",
                "power_law_masses",
                "power_law_peak",
                "gaussian_masses",
                "wysocki_2019",
            ),
            "gw.mass",
        ),
        **dict.fromkeys(
            (
                "smoothed_power_law",
                "smoothed_power_law_peak",
                "smoothed_multi_peak",
                "smoothed_broken_power_law",
                "smoothed_broken_power_law_peak",
                "broken_power_law_two_peaks",
            ),
            "gw.mass_smoothed",
        ),
    },
    "spin": dict.fromkeys(
        (
            "beta_magnitudes",
            "beta_magnitudes_iid",
            "beta_magnitudes_shape",
            "magnitude_mixture",
            "tilt_mixture",
            "tilt_mixture_iid",
            "gaussian_chi_eff",
            "skew_normal_chi_eff",
            "correlated_chi_eff_chi_p",
        ),
        "gw.spin",
    ),
    "redshift": dict.fromkeys(("power_law", "madau_dickinson"), "gw.redshift"),
    "eccentricity": {
        **dict.fromkeys(
            ("truncated_normal", "two_truncated_normals", "power_law"), "gw.eccentricity"
        ),
        "beta_eccentricity": "stars.binaries",
    },
    "distance": {"normal_cluster": "stars.parallax"},
    "period": dict.fromkeys(("normal_log_period", "uniform_period"), "stars.binaries"),
    "line": dict.fromkeys(("line", "line_with_outliers"), "stars.lines"),
}
"""Block of parameters -> a family's name in config files -> its module, imported when used."""

COSMOLOGIES = {"Planck15": cosmology.PLANCK_2015, "Planck18": cosmology.PLANCK_2018}


# ---- populations ---------------------------------------------------------------------------------


def make_population(
    families: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    rate: str = "poisson",
    universe: cosmology.FlatLambdaCDM | None = None,
) -> Population:
    r"""Return the population of families named in the table of names.

    Their product is the density. With `rate="poisson"` it is a rate density: `log_rate` is then the
    natural logarithm of the total rate, in Gpc⁻³ yr⁻¹ where there is a redshift factor and
    otherwise in what the selection integrates to one. `n_power_laws_m_gaussians` has its own rates.

    Args:
        families: "mass", "spin" (one or several), "redshift", "eccentricity" -> name.
        options: keyword arguments of the families.
        rate: "poisson" or "shape".
        universe: a fixed cosmology for the redshift family; None lets `H0` and `Om0` be
            hyperparameters, with a default.

    Raises:
        InputError: an unknown name or option; all of them at once.
    """
    chosen, problems = _chosen(families)
    taken = {name: [f for f, _ in chosen.values() if name in _options(f)] for name in options}
    known = [name for f, _ in chosen.values() for name in _options(f)]
    problems += [
        f"there is no key or option '{name}'{did_you_mean(name, [*known, *FAMILIES])}; these "
        f"families take {known or 'none'}."
        for name, users in taken.items()
        if not users
    ]
    if problems:
        raise InputError("\n".join(problems))
    built: list[Any] = []
    for f, block in chosen.values():
        mine = {name: value for name, value in options.items() if name in _options(f)}
        if block == "redshift" and universe is not None:
            mine["cosmology"] = universe
        built.append(partial(f, **mine) if mine else f)
    head, rest = built[0], built[1:]
    head_name = next(iter(chosen)).split(".")[1]
    if head_name == "n_power_laws_m_gaussians":
        try:
            return head(extra=tuple(rest))
        except TypeError:
            raise InputError("n_power_laws_m_gaussians needs the options n_pl and n_g.") from None

    def density(h: Hyperparameters) -> Any:
        return product(f(h) for f in built)

    if rate == "shape":
        return density

    from ..gw.redshift import log_volume

    def rate_density(h: Hyperparameters) -> Mixture:
        whole = density(h)
        log_weight = hyperparameter(h, "log_rate") + log_volume(whole)
        return Mixture({"all": whole}, log_weights={"all": log_weight})

    return rate_density


def _chosen(families: Mapping[str, Any]) -> tuple[dict[str, tuple[Any, str]], list[str]]:
    """Name -> (family, block) in the order of the table; and what is wrong."""
    chosen: dict[str, tuple[Any, str]] = {}
    problems = []
    for block, table in FAMILIES.items():
        given = families.get(block)
        for name in [given] if isinstance(given, str) else given or []:
            if name not in table:
                problems.append(
                    f"{block} = '{name}' is not known{did_you_mean(name, table)}; give one of "
                    f"{', '.join(table)}."
                )
            else:
                module = importlib.import_module(f"..{table[name]}", __package__)
                chosen[f"{block}.{name}"] = (getattr(module, name), block)
    if not chosen and not problems:
        problems.append(
            "no family is given: name those of mass, spin, redshift and eccentricity that the "
            "population has, or python = 'file.py:function'."
        )
    return chosen, problems


def _options(family: Callable[..., Any]) -> list[str]:
    """Keyword arguments that a config may set."""
    parameters = inspect.signature(family).parameters
    return [n for n in parameters if n not in ("h", "suffix", "extra", "cosmology")]


def parameters_of(population: Population) -> tuple[str, ...]:
    """The per-object parameters of a population."""
    names: list[tuple[str, ...]] = []

    def look() -> None:
        h = dict.fromkeys(hyperparameter_names(population)[0], jnp.asarray(0.5))
        names.append(tuple(population(h).names))

    jax.eval_shape(look)
    return names[0]


def load_function(spec: str, folder: Path, what: str) -> tuple[Callable[..., Any], Path]:
    """The function that `file.py:function` names, and its file.

    Raises:
        InputError: no such file or function, or a file that fails when it is run.
    """
    name, _, function = spec.rpartition(":")
    path = folder / Path(name).expanduser()
    if not name or not function.isidentifier():
        raise InputError(f"{what} = '{spec}': expected 'file.py:function'.")
    if not path.is_file():
        raise InputError(f"{what}: there is no file '{path}'.")
    module_name = f"skycensus_user_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"{what}: '{path}' is not a Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(
            f"{what}: '{path}' fails when it is run: {type(error).__name__}: {error}."
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        have = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise InputError(
            f"{what}: '{path}' has no function '{function}'{did_you_mean(function, have)}."
        )
    return found, path
