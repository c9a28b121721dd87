"""skycensus: from objects that are each known imperfectly to the population behind them."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Imported on first use: `skycensus --help` must not wait for JAX.
_HOMES = {
    "BoostedNested": "samplers",
    "Coarse": "samplers",
    "CoarseToExact": "samplers",
    "Dynesty": "samplers",
    "FlowMCMC": "samplers",
    "Gaussian": "likelihood",
    "Grid": "likelihood",
    "HierarchicalModel": "model",
    "ImportanceSampler": "samplers",
    "InputError": "errors",
    "Joint": "density",
    "Latent": "likelihood",
    "Leafwise": "likelihood",
    "LearnedProposal": "samplers",
    "LearnedDensity": "estimators",
    "LinearGrid": "likelihood",
    "LogMarginal": "likelihood",
    "Mixture": "density",
    "NUTS": "samplers",
    "Nested": "samplers",
    "NuisanceFree": "nuisance_free",
    "Periodic": "estimators",
    "PowerLaw": "distributions",
    "Prior": "prior",
    "Quadrature": "likelihood",
    "QuadratureSampler": "samplers",
    "Result": "result",
    "Samples": "likelihood",
    "Status": "result",
    "Target": "target",
    "Until": "samplers",
    "calibrate": "calibration",
    "fit_density": "estimators",
    "joint_analysis": "nuisance_free",
    "learned_samples": "likelihood",
    "load_density": "estimators",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'skycensus' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
