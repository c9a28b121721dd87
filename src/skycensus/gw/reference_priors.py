r"""Reference priors: the log densities that published draws were drawn with, by name.

Posterior draws follow $p(\theta\mid d) \propto p(d\mid\theta)\,\pi(\theta)$, so a population needs
$\ln\pi$ at every draw, as a density in the population's own parameters. A prior is stated per
block, and each block is brought to the population's parameters with its Jacobian:

    {"masses": "uniform-detector-components", "distance": "luminosity-distance-squared",
     "spins": {"name": "isotropic-uniform", "a_max": 0.99}}

The masses' density is that at fixed redshift. A population without a redshift factor thereby takes
its redshifts to be distributed as the reference prior's; one without spins, likewise. A prior that
the population needs is never guessed: it is an error when it is missing.

All densities are up to a constant per event, which cancels from the shape of a posterior of the
hyperparameters and shifts log evidences and likelihoods by the same number for every model. Spin
densities are normalised. Densities are those of ordered masses, $m_1 \ge m_2$.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import InputError, did_you_mean
from .coordinates import (
    DISTANCE_NAMES,
    MASS_NAMES,
    SPIN_NAMES,
    Columns,
    Theta,
    block,
    log_volume,
    log_volume_distance,
    log_volume_masses,
    to_parameters,
)
from .spin_priors import SPIN_PRIORS

# ---- masses: log density in (mass_1_source, mass_2_source) at fixed redshift ---------------------


def uniform_source_components(theta: Theta) -> Any:
    r"""$\pi(m_1^s, m_2^s) \propto 1$: source-frame component masses (2-OGC, 3-OGC, 4-OGC)."""
    return -log_volume_masses(theta, ("mass_1_source", "mass_2_source"))


def uniform_detector_components(theta: Theta) -> Any:
    r"""$\pi(m_1, m_2) \propto 1$ in the detector frame, $(1+z)^2$ in source-frame masses.

    GWTC-1 to GWTC-4: directly, or through $\pi(\mathcal{M}, q) \propto \mathcal{M}\,q^{-6/5}
    (1+q)^{2/5}$, which is the same (Abbott et al. 2019, arXiv:1811.12907).
    """
    return -log_volume_masses(theta, ("mass_1", "mass_2"))


def uniform_chirp_mass_mass_ratio(theta: Theta) -> Any:
    r"""$\pi(\mathcal{M}, q) \propto 1$, the chirp mass in the detector frame."""
    return -log_volume_masses(theta, ("chirp_mass", "mass_ratio"))


def uniform_source_chirp_mass_mass_ratio(theta: Theta) -> Any:
    r"""$\pi(\mathcal{M}^s, q) \propto 1$, the chirp mass in the source frame."""
    return -log_volume_masses(theta, ("chirp_mass_source", "mass_ratio"))


def uniform_total_mass_mass_ratio(theta: Theta) -> Any:
    r"""$\pi(M, q) \propto 1$, the total mass in the detector frame."""
    return -log_volume_masses(theta, ("total_mass", "mass_ratio"))


def log_uniform_source_components(theta: Theta) -> Any:
    r"""$\pi(\ln m_1^s, \ln m_2^s) \propto 1$, or $\pi(m_1, m_2) \propto 1/(m_1 m_2)$."""
    return -np.log(theta["mass_1_source"]) - np.log(theta["mass_2_source"])


MASS_PRIORS: dict[str, Callable[[Theta], Any]] = {
    "uniform-source-components": uniform_source_components,
    "uniform-detector-components": uniform_detector_components,
    "uniform-chirp-mass-mass-ratio": uniform_chirp_mass_mass_ratio,
    "uniform-source-chirp-mass-mass-ratio": uniform_source_chirp_mass_mass_ratio,
    "uniform-total-mass-mass-ratio": uniform_total_mass_mass_ratio,
    "log-uniform-source-components": log_uniform_source_components,
}


# ---- distance: log density in redshift -----------------------------------------------------------


def luminosity_distance_squared(theta: Theta) -> Any:
    r"""$\pi(D_L) \propto D_L^2$, "Euclidean": GWTC-1, and GWTC-2 to -4 files named "nocosmo"."""
    return 2.0 * np.log(theta["luminosity_distance"]) - log_volume_distance(
        theta, "luminosity_distance"
    )


def comoving_volume(theta: Theta) -> Any:
    r"""$\pi(z) \propto dV_C/dz$: uniform in comoving volume (2-OGC, 3-OGC, 4-OGC)."""
    return np.log(theta["comoving_volume_slope"])


def source_frame(theta: Theta) -> Any:
    r"""$\pi(z) \propto (1+z)^{-1} dV_C/dz$: uniform in comoving volume and source-frame time.

    GWTC-2.1 to -4 files named "cosmo" (Abbott et al. 2024, arXiv:2108.01045).
    """
    return np.log(theta["comoving_volume_slope"]) - np.log1p(theta["redshift"])


def uniform_luminosity_distance(theta: Theta) -> Any:
    r"""$\pi(D_L) \propto 1$."""
    return -log_volume_distance(theta, "luminosity_distance")


def uniform_redshift(theta: Theta) -> Any:
    r"""$\pi(z) \propto 1$."""
    return np.zeros(np.shape(theta["redshift"]))


DISTANCE_PRIORS: dict[str, Callable[[Theta], Any]] = {
    "luminosity-distance-squared": luminosity_distance_squared,
    "euclidean": luminosity_distance_squared,
    "comoving-volume": comoving_volume,
    "source-frame": source_frame,
    "uniform-luminosity-distance": uniform_luminosity_distance,
    "uniform-redshift": uniform_redshift,
}


# ---- any other parameter: log density in itself --------------------------------------------------


def uniform(x: Any) -> Any:
    r"""$\pi(x) \propto 1$."""
    return np.zeros(np.shape(x))


def log_uniform(x: Any) -> Any:
    r"""$\pi(x) \propto 1/x$."""
    return -np.log(x)


OTHER_PRIORS: dict[str, Callable[[Any], Any]] = {"uniform": uniform, "log-uniform": log_uniform}


# ---- whole catalogues ----------------------------------------------------------------------------

CATALOGUE_PRIORS: dict[str, dict[str, Any]] = {
    # Confirmed from the columns logprior and logjacobian of the published files.
    "2-OGC": {
        "masses": "uniform-source-components",
        "distance": "comoving-volume",
        "spins": {"name": "isotropic-uniform", "a_max": 0.99},
    },
    "GWTC-1": {
        "masses": "uniform-detector-components",
        "distance": "luminosity-distance-squared",
        "spins": {"name": "isotropic-uniform", "a_max": 0.99},
    },
    "GWTC-cosmo": {
        "masses": "uniform-detector-components",
        "distance": "source-frame",
        "spins": {"name": "isotropic-uniform", "a_max": 0.99},
    },
    "GWTC-nocosmo": {
        "masses": "uniform-detector-components",
        "distance": "luminosity-distance-squared",
        "spins": {"name": "isotropic-uniform", "a_max": 0.99},
    },
}


# ---- putting a prior together --------------------------------------------------------------------

ReferencePrior = str | Mapping[str, Any] | Callable[[Theta], Any]


def check_reference_prior(prior: ReferencePrior, parameters: Iterable[str]) -> None:
    """Raise `InputError` if `prior` is misspelt or says nothing of one of the parameters.

    This needs no data, so that a configuration can be checked before any file is opened.
    """
    if callable(prior):
        return
    stated = _as_mapping(prior)
    if "column" in stated:
        _check_column(stated)
        return
    parameters = tuple(parameters)
    others = [name for name in parameters if _title(name) == name]
    for key, value in stated.items():
        if key not in _TABLES and key not in others:
            raise InputError(
                f"reference prior '{key}'{did_you_mean(key, [*_TABLES, *others])}: expected "
                f"'masses', 'distance', 'spins', 'column' or a population parameter {others}."
            )
        resolve(key, value)
    for name in parameters:
        if _title(name) not in stated:
            title = _title(name)
            known = sorted(_TABLES.get(title, OTHER_PRIORS))
            raise InputError(
                f"the population has '{name}', but the reference prior says nothing of "
                f"{'it' if title == name else 'the ' + title}: state '{title}', one of {known}; "
                "it is the prior that the draws were drawn with, so it is never assumed."
            )


def log_reference(
    prior: ReferencePrior,
    columns: Theta,
    parameters: Iterable[str],
    cosmology: Any = None,
) -> np.ndarray:
    r"""Return $\ln\pi$ at every draw as a density in `parameters`, up to a constant per event.

    Args:
        prior: one of
            a mapping with a name for each block that the population has ("masses", "distance",
            "spins", or the name of any other parameter), where a name may also be a table
            `{"name": ..., option: value}` or a function of theta giving the log density in the
            population's parameters of that block;
            a mapping `{"column": name}`: a column of the file, taken as a log density where its
            name begins with "log" or "ln" and as a density otherwise, unless `"log"` is given as
            true or false, in the population's parameters unless `"coordinates"` lists others;
            a function of theta (any column, or parameter that follows from the columns) that
            returns the log density in `parameters`;
            the name of a catalogue in `CATALOGUE_PRIORS`.
        columns: the draws, parameter name -> array.
        parameters: the population's parameters.
        cosmology: see `coordinates.Columns`.

    Raises:
        InputError: a missing or unknown prior, or a prior density that is zero, negative or not
            finite at some draw.
    """
    parameters = tuple(parameters)
    check_reference_prior(prior, parameters)
    theta = columns if isinstance(columns, Columns) else Columns(columns, cosmology)
    shape = theta[parameters[0]].shape
    with np.errstate(all="ignore"):
        if callable(prior):
            value = prior(theta)
        elif "column" in (stated := _as_mapping(prior)):
            value = _from_column(stated, theta, parameters)
        else:
            value = _from_blocks(stated, theta, parameters)
    value = np.asarray(value, float)
    if value.shape not in (shape, ()):
        raise InputError(
            f"{theta.where}: the reference prior has shape {value.shape} for draws of {shape}."
        )
    return _checked(np.broadcast_to(value, shape).copy(), theta)


_TABLES: dict[str, Mapping[str, Callable[..., Any]]] = {
    "masses": MASS_PRIORS,
    "distance": DISTANCE_PRIORS,
    "spins": SPIN_PRIORS,
}


def _title(name: str) -> str:
    """The block of a parameter, or the parameter itself where it belongs to none."""
    for title, members in (
        ("masses", MASS_NAMES),
        ("distance", DISTANCE_NAMES),
        ("spins", SPIN_NAMES),
    ):
        if name in members:
            return title
    return name


def _as_mapping(prior: Any) -> Mapping[str, Any]:
    if isinstance(prior, Mapping):
        return prior
    if isinstance(prior, str) and prior in CATALOGUE_PRIORS:
        return CATALOGUE_PRIORS[prior]
    if prior in MASS_PRIORS:
        raise InputError(
            f"reference prior '{prior}' is that of the masses: {{masses = '{prior}'}}."
        )
    raise InputError(
        f"reference prior {prior!r}{did_you_mean(str(prior), CATALOGUE_PRIORS)}: expected a table "
        "such as {masses = '...', distance = '...', spins = '...'} or {column = '...'}, or one of "
        f"{sorted(CATALOGUE_PRIORS)}."
    )


def _check_options(what: str, options: Mapping[str, Any], known: set[str]) -> None:
    for key in options:
        if key not in known:
            raise InputError(
                f"{what}: no option '{key}'{did_you_mean(key, known)}; there are {sorted(known)}."
            )


def _check_column(stated: Mapping[str, Any]) -> None:
    """Check a prior that is a column: its name, and what is said of it."""
    _check_options("the reference prior", stated, {"column", "log", "coordinates"})
    if not isinstance(stated["column"], str):
        raise InputError(f"reference prior: column = {stated['column']!r} is not a column's name.")
    if not isinstance(stated.get("log", False), bool):
        raise InputError(f"reference prior: log = {stated['log']!r} is not true or false.")
    names = stated.get("coordinates") or ()
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InputError(f"reference prior: coordinates = {names!r} is not a list of names.")


def resolve(title: str, value: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the function of a block's prior (`title`) and its options; see `log_reference`."""
    if callable(value):
        return value, {}
    options = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = options.pop("name", None)
    table = _TABLES.get(title, OTHER_PRIORS)
    if not isinstance(name, str) or name not in table:
        raise InputError(
            f"reference prior {title} = {name!r}{did_you_mean(str(name), table)}: expected one of "
            f"{sorted(table)}."
        )
    _check_options(f"reference prior {title} = '{name}'", options, {"a_max"} & _options(title))
    a_max = options.get("a_max", 1.0)
    if not isinstance(a_max, int | float) or not 0.0 < a_max <= 1.0:
        raise InputError(f"reference prior spins: a_max={a_max!r} is not in (0, 1].")
    return table[name], options


def _options(title: str) -> set[str]:
    return {"a_max"} if title == "spins" else set()


def _from_blocks(stated: Mapping[str, Any], theta: Columns, parameters: tuple[str, ...]) -> Any:
    total: Any = 0.0
    done: set[str] = set()
    for name in parameters:
        title = _title(name)
        if title in done:
            continue
        done.add(title)
        function, options = resolve(title, stated[title])
        if callable(stated[title]):
            total = total + function(theta)
        elif title == "spins":
            total = total + function(theta, block(parameters, SPIN_NAMES), **options)
        elif title == "masses":
            names = block(parameters, MASS_NAMES)
            total = total + function(theta) + log_volume_masses(theta, names)
        elif title == "distance":
            names = block(parameters, DISTANCE_NAMES)
            total = total + function(theta) + log_volume(theta, names)
        else:
            total = total + function(theta[name])
    return total


def _from_column(stated: Mapping[str, Any], theta: Columns, parameters: tuple[str, ...]) -> Any:
    name = stated["column"]
    if name not in theta:
        raise InputError(
            f"{theta.where}: no column '{name}' for the reference prior"
            f"{did_you_mean(str(name), theta)}; there are {sorted(theta)}."
        )
    value = theta[name]
    if not stated.get("log", str(name).startswith(("log", "ln"))):
        if bad := int(np.sum(~(value > 0.0))):
            raise InputError(
                f"{theta.where}: {bad} of {value.size} values of the prior density '{name}' are "
                "zero, negative or NaN; a draw cannot come from where its prior is zero. If the "
                "column holds the logarithm, say log = true."
            )
        value = np.log(value)
    coordinates = stated.get("coordinates")
    return value + to_parameters(theta, parameters, given=coordinates)[1]


def _checked(value: np.ndarray, theta: Columns) -> np.ndarray:
    """Refuse a density that is zero, infinite or undefined where the draw itself is sound."""
    sound = np.ones(value.shape, bool)
    for column in theta.consulted.values():
        sound &= np.isfinite(column)
    bad = ~np.isfinite(value) & sound
    if np.any(bad):
        first = int(np.flatnonzero(bad)[0])
        where = {name: float(column[first]) for name, column in theta.consulted.items()}
        kind = "zero" if value[first] == -math.inf else f"exp({value[first]})"
        raise InputError(
            f"{theta.where}: the reference prior density is {kind} at draw {first} "
            f"({', '.join(f'{k}={v:.6g}' for k, v in where.items())}), and at {int(bad.sum())} of "
            f"{value.size} draws; a draw cannot come from where its prior is zero, so this is not "
            "the prior that the draws were drawn with."
        )
    return value
