"""Mock catalogues as GWKokab's generator makes them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..cli import start_jax
from ..errors import InputError
from .files import check_keys, positive, read_json, read_pmean
from .model import MASSES, KokabModel, Population, make_population, resolve
from .selection import custom_estimator, network_function


def simulate(options: Any, command: str) -> int:
    """Make the catalogues that the options ask for; returns the exit code."""
    start_jax({})
    import jax

    from ..folders import new_folder
    from ..gw.mock import simulate_catalogue
    from ..gw.mock_files import write_catalogue

    model = read_json(options.model_json, "model")
    n_pl, n_g = model.pop("N_pl", options.n_pl), model.pop("N_g", options.n_g)
    population = make_population(n_pl, n_g, options.extras)
    where = f"model file '{options.model_json}'"
    prior = resolve(model, population, where)
    if prior.free:
        raise InputError(f"{where}: {', '.join(prior.free)} must be numbers, not distributions.")
    hyper = prior.complete({})
    try:
        density = population.function(hyper)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    key = jax.random.key(options.seed)
    pmean = read_pmean(options.pmean_cfg)
    errors = MockErrors(read_json(options.err_json, "error"), population.parameters)
    with new_folder(options.out, "command.txt", overwrite=options.overwrite) as folder:
        (folder / "command.txt").write_text(command + "\n", encoding="utf-8")
        for i in range(options.num_realizations):
            catalogue_key, size_key, raw_key = jax.random.split(jax.random.fold_in(key, i), 3)
            found = _detection(pmean, population, density, size_key)
            catalogue = simulate_catalogue(
                catalogue_key,
                density,
                found.function,
                exposure=found.exposure,
                measurement=errors,  # type: ignore[arg-type]
                num_draws=options.error_size,
                num_events=found.num_events,
                truth=hyper,
            )
            place = write_catalogue(catalogue, folder / f"realization_{i}")
            _write_truths(place, catalogue, density, raw_key, population.parameters)
            few = sum(len(next(iter(e.draws.values()))) < 10 for e in catalogue.events)
            print(f"realization_{i}: {len(catalogue.events)} events, {few} with under 10 draws")
    print(f"written to {os.path.abspath(options.out)}")
    return 0


class _Found(NamedTuple):
    function: Any
    exposure: float
    num_events: int | None


def _detection(pmean: Mapping[str, Any], population: Population, density: Any, key: Any) -> _Found:
    """What decides which mergers are found."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ..gw.coordinates import is_binary
    from ..gw.mock import SensitiveVolume

    kind = pmean["estimator_type"]
    size_key, draw_key = jax.random.split(key)
    num_events, exposure = None, pmean.get("time_scale", 1.0)
    if kind == "injection":
        raise InputError(
            "a pmean file of kind 'injection' says which injections were found, not which other "
            "mergers would be; give one of kind neural_vt, neural_pdet or custom."
        )
    if kind == "custom":
        log_p, mean, arguments = custom_estimator(pmean, population.parameters, key)
        if log_p is None:
            raise InputError(
                f"'{pmean['python_module_path']}' gives no log selection function, without which "
                "nothing says which mergers are found."
            )
        expected, _ = mean(KokabModel(density, population.parameters), **arguments)
        num_events = int(jax.random.poisson(size_key, float(expected)))

        def value(theta: Mapping[str, Any]) -> Any:
            return jnp.exp(log_p(jnp.stack([theta[n] for n in population.parameters], axis=-1)))
    else:
        log_v = network_function(pmean, population)

        def value(theta: Mapping[str, Any]) -> Any:
            return jnp.exp(log_v(theta))

    if kind == "neural_pdet":
        return _Found(value, exposure, None)
    theta = density.sample(draw_key, (2**15,))
    largest = float(np.max(np.where(is_binary(theta), value(theta), 0.0)))
    if not 0.0 < largest < math.inf:
        raise InputError(f"the largest sensitive volume of the population is {largest} Gpc³.")
    # Twice what so many draws have seen leaves room for those that they have not.
    return _Found(SensitiveVolume(value, 2.0 * largest), exposure, num_events)


class MockErrors:
    r"""GWKokab's errors: banana-shaped in the masses, truncated normals about the truth in others.

    Not calibrated (see `gw.banana`). For a parameter x, `x_scale` is required, and `x_low` and
    `x_high` cut the normal.
    """

    calibrated = False

    def __init__(self, errors: Mapping[str, Any], parameters: tuple[str, ...]):
        from ..gw.banana import BananaErrors

        others = [name for name in parameters if name not in MASSES]
        known = ["scale_Mc", "scale_eta"]
        known += [f"{name}_{part}" for name in others for part in ("scale", "low", "high")]
        errors = {name: value for name, value in errors.items() if value is not None}
        check_keys(errors, known, "error file")
        missing = [k for k in (*known[:2], *(f"{n}_scale" for n in others)) if k not in errors]
        if missing:
            raise InputError(f"error file: {', '.join(missing)} missing.")
        for name in (k for k in errors if "scale" in k):
            positive(errors, name, 1.0, "error file")
        self.errors, self.parameters, self.others = errors, parameters, others
        self.banana = BananaErrors(errors["scale_Mc"], errors["scale_eta"])

    def describe(self, parameters: tuple[str, ...]) -> dict[str, Any]:
        return {"model": "banana", **self.errors}

    def prepare(self, parameters: tuple[str, ...], prior: Any) -> MockErrors:
        self._masses = self.banana.prepare(MASSES, prior)
        return self

    def observe(self, rng: Any, truth: Mapping[str, float], num: int, snr: Any = None) -> Any:
        from scipy.stats import truncnorm

        masses = self._masses.observe(rng, truth, num, snr)
        draws = dict(masses.draws)
        count = len(draws[MASSES[0]])
        for name in self.others:
            scale = self.errors[f"{name}_scale"]
            low, high = (
                (self.errors.get(f"{name}_{part}", bound) - truth[name]) / scale
                for part, bound in (("low", -math.inf), ("high", math.inf))
            )
            draws[name] = truncnorm.rvs(low, high, truth[name], scale, size=count, random_state=rng)
        return masses._replace(draws={name: draws[name] for name in self.parameters})


def _write_truths(
    folder: Path, catalogue: Any, density: Any, key: Any, parameters: tuple[str, ...]
) -> None:
    """Write `injections.dat`, the found mergers, and `raw_injections.dat`, as many of all."""
    import numpy as np

    header = " ".join(parameters)
    found = np.array([[e.truth[name] for name in parameters] for e in catalogue.events])
    found = found.reshape(-1, len(parameters))
    np.savetxt(folder / "injections.dat", found, header=header, comments="")
    raw = KokabModel(density, parameters).sample(key, (len(found),))
    np.savetxt(folder / "raw_injections.dat", np.asarray(raw), header=header, comments="")
