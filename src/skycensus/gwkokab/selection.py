"""The forms that a pmean file describes: networks, found injections, a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from ..errors import InputError
from .model import KokabModel, Population

# Draws that stand for a detection function, at least: GWKokab's usual thousand or two per
# component, new for every hyperparameter, would leave more noise in these, which are the same.
MIN_SELECTION_DRAWS = 2**16


class Selection(NamedTuple):
    """A selection as the model takes it: the form, the log exposure, and the files read."""

    form: Any
    log_exposure: float
    inputs: dict[str, str]


def read_selection(
    pmean: Mapping[str, Any], population: Population, prior: Any, key: Any, spins: Any = None
) -> Selection:
    """Make the form that a pmean file describes (see `read_pmean`)."""
    from ..gw.tables import file_hash
    from ..likelihood.proposals import selection_by_function

    kind, path = pmean["estimator_type"], pmean["filename"]
    inputs = {str(path): file_hash(path)}
    if kind == "injection":
        return _from_injections(pmean, population, spins, inputs)
    if kind == "custom":
        from ..likelihood.proposals import DetectedBy

        inputs[str(pmean["python_module_path"])] = file_hash(pmean["python_module_path"])
        _, function, arguments = custom_estimator(pmean, population.parameters, key)
        function, arrays = _split(function, arguments)

        def detected(density: Any, data: Any) -> Any:
            return function(KokabModel(density, population.parameters), **data)

        return Selection(DetectedBy(detected, arrays), 0.0, inputs)
    log_p_det = network_function(pmean, population)
    num = max(pmean["num_samples"], MIN_SELECTION_DRAWS)
    form = selection_by_function(log_p_det, population.function, prior, key, num)
    return Selection(form, math.log(pmean["time_scale"]), inputs)


def network_function(
    pmean: Mapping[str, Any], population: Population
) -> Callable[[Mapping[str, Any]], Any]:
    """The network's log VT or log detection probability, as a function of theta."""
    from ..gw.neural import log_selection, read_network

    network = read_network(pmean["filename"])
    if missing := [n for n in network.names if n not in population.parameters]:
        raise InputError(
            f"network {pmean['filename']} needs {', '.join(missing)}, which the model does not "
            f"have: it is over {', '.join(population.parameters)}. Add them with --add-..., or use "
            "another network."
        )
    volume = pmean["estimator_type"] == "neural_vt"
    if volume and "redshift" in population.parameters and "redshift" not in network.names:
        raise InputError(
            f"network {pmean['filename']} gives a volume, so the redshift is integrated over "
            "already; leave out --add-...-redshift, or use a neural_pdet network."
        )

    return log_selection(network, probability=not volume)


def _from_injections(
    pmean: Mapping[str, Any], population: Population, spins: Any, inputs: dict[str, str]
) -> Selection:
    from ..gw.injections import read_injections
    from ..gw.tables import open_hdf5

    path = pmean["filename"]
    lvk = False
    if path.suffix.lower() in (".h5", ".hdf5", ".hdf"):
        with open_hdf5(path) as file:
            lvk = "injections" in file or "events" in file
    # A plain table holds what was found: GWKokab's default cuts are not for it.
    cuts = {cut: pmean[cut] for cut in ("far_cut", "snr_cut") if lvk or cut in pmean["stated"]}
    found = read_injections(path, population.parameters, spins=spins, **cuts)
    if found.scale is None:
        raise InputError(
            f"{path}: the observing time is not in the file; add the attribute T_obs_yr (years)."
        )
    return Selection(found.form(), math.log(found.scale), inputs)


def custom_estimator(
    pmean: Mapping[str, Any], parameters: tuple[str, ...], key: Any
) -> tuple[Any, Callable[..., Any], dict[str, Any]]:
    """What the user's `custom_poisson_mean_estimator` returns."""
    import importlib.util

    path = pmean["python_module_path"]
    spec = importlib.util.spec_from_file_location("custom_module", path)
    if spec is None or spec.loader is None:
        raise InputError(f"'{path}' is not a Python module; its name must end with .py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "custom_poisson_mean_estimator"):
        raise InputError(f"'{path}' defines no function custom_poisson_mean_estimator.")
    made = module.custom_poisson_mean_estimator(
        key, parameters, str(pmean["filename"]), **pmean["kwargs"]
    )
    if not (isinstance(made, tuple) and len(made) == 3 and callable(made[1])):
        raise InputError(
            f"'{path}': custom_poisson_mean_estimator must return (log selection function or None, "
            f"function of (model, **kwargs) giving (mean, variance), kwargs); it returned {made!r}."
        )
    return made


def _split(function: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    """Bind what is no array, so that arrays alone travel as data of compiled functions."""
    import jax
    import numpy as np

    arrays = {n: x for n, x in arguments.items() if isinstance(x, (jax.Array, np.ndarray))}
    return partial(function, **{n: x for n, x in arguments.items() if n not in arrays}), arrays
