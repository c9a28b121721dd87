r"""`fit_density`: from draws to a `LearnedDensity`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ..errors import InputError, did_you_mean
from ..keys import generator
from ..weights import kish, normalised_weights
from . import Estimate
from .chains import Draws, read_draws
from .coordinates import Coordinates, declared, standardised, to_standard
from .kinds import fitter, wanted
from .learned import LearnedDensity
from .report import make_report

# What fitters get from `fit_density` itself.
_GIVEN = ("validation", "progress", "coordinates", "names", "notes")


class Split(NamedTuple):
    """Draws in standardised coordinates, those to learn from and those held out."""

    z: np.ndarray
    """(n, d)"""
    weight: np.ndarray
    """(n,), of sum one."""
    validation: tuple[np.ndarray, np.ndarray]
    """The same two of the draws that are held out."""


def fit_density(
    key: Any,
    draws: Any,
    log_weight: Any = None,
    *,
    kind: str = "auto",
    support: Any = None,
    held_out: float = 0.1,
    num_bootstrap: int = 0,
    report: bool = True,
    progress: Any = None,
    **settings: Any,
) -> LearnedDensity:
    r"""Fit a normalised density to weighted draws.

    The draws are freed of their declared bounds and standardised (see `Coordinates`); an estimate
    of the kind asked for is fitted there. A part of the draws, by weight, is held out: it stops the
    training and chooses between estimates, and `LearnedDensity.report` tells how well the density
    describes it.

    Args:
        key: all randomness comes from it.
        draws: name -> (n,) array, or anything that `read_draws` understands.
        log_weight: (n,) log weights of the draws, unnormalised; equal where not given.
        kind: "auto", which combines several by their held-out score, or one of `kinds.KINDS`.
        support: name -> (low, high), `Periodic(low, high)` or a NumPyro distribution, or a `Prior`;
            a parameter that is not named has no bounds, or those that a chain's file declares. It
            is never taken from the draws.
        held_out: the part of the total weight that is held out.
        num_bootstrap: how often the density is fitted again with random weights of the draws, which
            tells the error of all that is said from it (`LearnedDensity.replicas`): exponential
            ones, the Bayesian bootstrap (Rubin 1981, Annals of Statistics 9, 130). Numbers of
            components and kinds that were chosen by trying are kept.
        report: whether to compare the density with the draws (see `Report`).
        progress: called as progress(done, total, what) now and then.
        settings: what the kind's own function `fit_<kind>` takes.

    Raises:
        InputError: draws or weights that no density can be fitted to (not finite, fewer effective
            draws than parameters, constant or repeated columns, outside the support), an unknown
            kind or setting.
    """
    fit = fitter(kind)
    found, support = with_source(draws, log_weight, support)
    names, x, weight = check_draws(found.columns, found.log_weight)
    plain = declared(names, support)
    check_inside(names, x, plain)
    coordinates = standardised(plain, x, weight)
    check_settings(kind, fit, settings)
    if num_bootstrap < 0 or num_bootstrap == 1:
        raise InputError(f"num_bootstrap={num_bootstrap} has no spread; give 0, or 2 or more.")
    split_key, fit_key, report_key = jax.random.split(key, 3)
    parts = split(split_key, to_standard(coordinates, x), weight, held_out)
    notes: dict[str, Any] = {"kind": kind, "num_draws": len(x), "held_out": held_out}
    settings |= wanted(fit, coordinates=coordinates, names=names, notes=notes)
    estimate = fit(
        fit_key, parts.z, parts.weight, validation=parts.validation, progress=progress, **settings
    )
    if "notes" in settings:
        # What was chosen by trying is not tried again.
        settings |= {"notes": {}, **notes.pop("chosen", {})}
    bootstrap = _bootstrap(jax.random.fold_in(fit_key, 1), fit, parts, num_bootstrap, settings)
    density = LearnedDensity(names, coordinates, estimate, bootstrap=bootstrap, provenance=notes)
    if report:
        scores = notes.get("held_out_score")
        density.report = make_report(report_key, density, *parts, scores=scores)
    return density


def _bootstrap(
    key: Any, fit: Any, parts: Split, num: int, settings: Mapping[str, Any]
) -> list[Estimate]:
    """Fits with random weights of the draws: together where the kind can, else one by one."""
    if num == 0:
        return []
    rng = generator(key)
    weights = [_sum_one(parts.weight * rng.exponential(size=len(parts.z))) for _ in range(num)]
    if hasattr(fit, "several"):
        every = [parts.validation] * num
        return fit.several(key, [parts.z] * num, weights, validation=every, **settings)
    return [
        fit(one, parts.z, weight, validation=parts.validation, **settings)
        for one, weight in zip(jax.random.split(key, num), weights, strict=True)
    ]


def split(key: Any, z: np.ndarray, weight: np.ndarray, held_out: float) -> Split:
    """Hold out draws at random until they have the part `held_out` of the total weight.

    Raises:
        InputError: the part is not between 0 and 1.
    """
    if not 0 < held_out < 1:
        raise InputError(f"held_out={held_out} is not a part of the draws between 0 and 1.")
    order = generator(key).permutation(len(z))
    total = np.cumsum(weight[order])
    # At least one draw on either side, however uneven the weights.
    num = int(np.clip(np.searchsorted(total, held_out * total[-1]) + 1, 1, len(z) - 1))
    out, rest = order[:num], np.sort(order[num:])
    out = np.sort(out)
    return Split(z[rest], _sum_one(weight[rest]), (z[out], _sum_one(weight[out])))


def _sum_one(weight: np.ndarray) -> np.ndarray:
    return weight / weight.sum()


# ---- what is checked -----------------------------------------------------------------------------


def with_source(draws: Any, log_weight: Any, support: Any) -> tuple[Draws, Any]:
    """Draws of any source, and the support, to which the source may add what it declares."""
    found = read_draws(draws, log_weight)
    if found.support and (support is None or isinstance(support, Mapping)):
        support = {**found.support, **(support or {})}
    return found, support


def check_draws(
    draws: Mapping[str, Any], log_weight: Any
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names, draws (n, d) and weights (n,) of sum one, without the draws of no weight.

    Raises:
        InputError: no columns, columns that are not finite numbers of one length, weights without
            a sum, too few effective draws, constant or repeated columns.
    """
    if not draws:
        raise InputError("there are no draws: give at least one column, {'name': array}.")
    names = tuple(draws)
    columns = [_numbers(name, draws[name]) for name in names]
    size = len(columns[0])
    for name, column in zip(names, columns, strict=True):
        if len(column) != size:
            raise InputError(
                f"column '{name}' has {len(column)} draws, but '{names[0]}' has {size}; give "
                "columns of one length."
            )
    weight = _weights(log_weight, size)
    for name, column in zip(names, columns, strict=True):
        bad = np.flatnonzero(~np.isfinite(column) & (weight > 0))
        if bad.size:
            raise InputError(
                f"column '{name}' has {column[bad[0]]} in draw {bad[0]} ({bad.size} of {size} are "
                "not finite); leave those draws out, or give them no weight."
            )
    keep = weight > 0
    x, weight = np.stack(columns, axis=-1)[keep], weight[keep]
    n_eff = kish(np.log(weight))
    if n_eff < len(names) + 1:
        raise InputError(
            f"the draws are worth {n_eff:.1f} of equal weight, too few for {len(names)} "
            "parameters; give more draws or fewer columns."
        )
    _check_columns(names, x, weight)
    return names, x, weight


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        column = np.asarray(values, float)
    except (TypeError, ValueError):
        raise InputError(f"column '{name}' does not hold numbers.") from None
    if column.ndim != 1:
        raise InputError(
            f"column '{name}' has the shape {column.shape}; give one number per draw, (n,)."
        )
    return column


def _weights(log_weight: Any, size: int) -> np.ndarray:
    if size == 0:
        raise InputError("the columns are empty; give at least a few draws.")
    if log_weight is None:
        return np.full(size, 1.0 / size)
    log_weight = np.asarray(log_weight, float)
    if log_weight.shape != (size,):
        raise InputError(
            f"log_weight has the shape {log_weight.shape}, but there are {size} draws; give one "
            "log weight per draw."
        )
    try:
        return normalised_weights(log_weight)
    except ValueError:
        raise InputError(
            "log_weight has a NaN or +inf, or no draw has a weight above zero; give logarithms of "
            "weights, with -inf for none."
        ) from None


def _check_columns(names: tuple[str, ...], x: np.ndarray, weight: np.ndarray) -> None:
    mean = weight @ x
    scale = np.sqrt(weight @ (x - mean) ** 2)
    for name, one, about in zip(names, scale, mean, strict=True):
        if not one > 1e-12 * abs(about):
            raise InputError(
                f"column '{name}' is constant ({about:.6g}); leave it out, a density needs a width."
            )
    correlation = np.einsum("n,ni,nj->ij", weight, (x - mean) / scale, (x - mean) / scale)
    for i, j in zip(*np.triu_indices(len(names), 1), strict=True):
        if abs(correlation[i, j]) > 1 - 1e-12:
            raise InputError(
                f"columns '{names[i]}' and '{names[j]}' are the same up to scale; leave one out."
            )


def check_inside(names: tuple[str, ...], x: np.ndarray, plain: Coordinates) -> None:
    """Raise `InputError` naming the first column with draws outside its support."""
    low, high = np.asarray(plain.low), np.asarray(plain.high)
    for i, name in enumerate(names):
        out = np.flatnonzero((x[:, i] < low[i]) | (x[:, i] > high[i]))
        if out.size:
            raise InputError(
                f"column '{name}' has {x[out[0], i]:.6g} outside its support [{low[i]:g}, "
                f"{high[i]:g}] ({out.size} of {len(x)} draws); widen the support, or leave those "
                "draws out."
            )


def check_settings(kind: str, fit: Any, settings: Mapping[str, Any]) -> None:
    """Raise `InputError` for a setting that the kind's function does not take."""
    parameters = inspect.signature(fit).parameters
    known = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    known = [n for n in known if n not in _GIVEN]
    for name in settings:
        if name not in known:
            raise InputError(
                f"kind '{kind}' has no setting '{name}'{did_you_mean(name, known)}; it takes "
                f"{', '.join(known) or 'none'}."
            )
