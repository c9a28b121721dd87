"""The table of kinds of estimate: where each is written, how it is fitted, what reads it back."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError, did_you_mean
from . import Estimate


class Kind(NamedTuple):
    """A module of this package, the class of the estimate and the function that fits one.

    `fit` is None for what is only made of other estimates.
    """

    module: str
    estimate: str
    fit: str | None


KINDS: dict[str, Kind] = {
    "auto": Kind("auto", "Pool", "fit_auto"),
    "gaussian": Kind("gaussian", "GaussianMixture", "fit_gaussian"),
    "mixture": Kind("gaussian", "GaussianMixture", "fit_mixture"),
    "cut": Kind("cut_gaussian", "Triangular", "fit_cut"),
    "triangular": Kind("triangular", "Triangular", "fit_triangular"),
    "kde": Kind("kde", "KernelDensity", "fit_kde"),
    "maf": Kind("flows", "Flow", "fit_maf"),
    "maf_spline": Kind("flows", "Flow", "fit_maf_spline"),
    "spline": Kind("flows", "Flow", "fit_spline"),
    "realnvp": Kind("flows", "Flow", "fit_realnvp"),
    "piecewise": Kind("piecewise", "Pool", "fit_piecewise"),
    "product": Kind("product", "Product", "fit_product"),
    "pool": Kind("pool", "Pool", None),
    "shifted": Kind("shifted", "Shifted", None),
}


def fitter(kind: str) -> Callable[..., Estimate]:
    """The function that fits estimates of this kind.

    Raises:
        InputError: there is no such kind.
    """
    known = [name for name, row in KINDS.items() if row.fit]
    if kind not in known:
        raise InputError(
            f"there is no density of kind '{kind}'{did_you_mean(kind, known)}; the kinds are "
            f"{', '.join(known)}."
        )
    row = KINDS[kind]
    assert row.fit is not None
    return getattr(importlib.import_module(f".{row.module}", __package__), row.fit)


def wanted(fit: Any, **known: Any) -> dict[str, Any]:
    """Those of `known` that the function of a kind asks for: its coordinates, its parameters."""
    parameters = inspect.signature(fit).parameters
    return {name: value for name, value in known.items() if name in parameters}


def rebuild(settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Estimate:
    """The estimate that `describe` took apart.

    Raises:
        InputError: a kind that this version does not know.
    """
    kind = settings.get("kind")
    if kind not in KINDS:
        raise InputError(
            f"a density of kind '{kind}' is not known to this version of skycensus; the kinds are "
            f"{', '.join(KINDS)}. Update skycensus, or fit the density again."
        )
    row = KINDS[kind]
    estimate = getattr(importlib.import_module(f".{row.module}", __package__), row.estimate)
    return estimate.from_arrays(settings, arrays)


def describe(estimate: Estimate) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """`to_arrays` of the estimate, with its kind among the settings."""
    settings, arrays = estimate.to_arrays()
    return {**settings, "kind": estimate.kind}, arrays


def describe_parts(parts: Mapping[str, Estimate]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Settings by part, and the arrays of all of them, as "part/name"."""
    settings: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for label, part in parts.items():
        settings[label], inner = describe(part)
        arrays |= {f"{label}/{name}": x for name, x in inner.items()}
    return settings, arrays


def rebuild_parts(
    settings: Mapping[str, Mapping[str, Any]], arrays: Mapping[str, np.ndarray]
) -> dict[str, Estimate]:
    """The inverse of `describe_parts`; arrays that belong to none of the parts are passed over."""
    return {
        label: rebuild(
            inner,
            {
                name.removeprefix(f"{label}/"): x
                for name, x in arrays.items()
                if name.startswith(f"{label}/")
            },
        )
        for label, inner in settings.items()
    }
