"""One system, one size, one precision: prints a line of JSON. Called by likelihood.py."""

from __future__ import annotations

import json
import sys
import time

import numpy as np

NUM_INJECTIONS = 20_000
POINT = {"alpha": 2.1, "beta": 0.2, "mmin": 9.4, "mmax": 51.5, "log_rate": 4.95}


def numbers(
    num_events: int, num_draws: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Primary masses and mass ratios of events (event, draw) and of injections."""
    rng = np.random.default_rng(1)
    shape = (num_events, num_draws)
    m1, q = rng.uniform(20, 45, shape), rng.uniform(0.55, 1, shape)
    return m1, q, rng.uniform(20, 45, NUM_INJECTIONS), rng.uniform(0.55, 1, NUM_INJECTIONS)


def skycensus(data, dtype):
    import jax

    from skycensus.density import Mixture
    from skycensus.gw.mass import power_law_mass_ratio
    from skycensus.likelihood import Samples
    from skycensus.model import HierarchicalModel
    from skycensus.prior import Prior

    m1, q, i1, iq = data
    population = lambda h: Mixture(  # noqa: E731
        {"all": power_law_mass_ratio(h)}, log_weights={"all": h["log_rate"]}
    )
    events = Samples(
        [{"mass_1_source": a, "mass_ratio": b} for a, b in zip(m1, q, strict=True)],
        [np.log(a) for a in m1],
        dtype=dtype,
    )
    found = Samples([{"mass_1_source": i1, "mass_ratio": iq}], [np.zeros(len(i1))], dtype=dtype)
    prior = Prior({name: {"dist": "Normal", "loc": v, "scale": 0.1} for name, v in POINT.items()})
    model = HierarchicalModel(prior, population, events, selection=found)
    function = jax.jit(jax.value_and_grad(lambda h, data: model.log_likelihood(h, data).value))
    point = {k: np.asarray(v) for k, v in POINT.items()}
    return lambda: function(point, model.data)


def gwpopulation(data, dtype):
    import jax
    import jax.numpy as jnp
    from gwpopulation.backend import set_backend

    set_backend("jax")
    from gwpopulation.models.mass import power_law_primary_mass_ratio

    m1, q, i1, iq = (jnp.asarray(x, dtype) for x in data)
    ref = jnp.log(m1)

    def log_likelihood(h):
        names = {k: h[k] for k in ("alpha", "beta", "mmin", "mmax")}
        p = power_law_primary_mass_ratio({"mass_1": m1, "mass_ratio": q}, **names) / jnp.exp(ref)
        found = power_law_primary_mass_ratio({"mass_1": i1, "mass_ratio": iq}, **names)
        rate = jnp.exp(h["log_rate"])
        return jnp.sum(jnp.log(rate * jnp.mean(p, axis=1))) - rate * jnp.mean(found)

    function = jax.jit(jax.value_and_grad(log_likelihood))
    point = {k: jnp.asarray(v, dtype) for k, v in POINT.items()}
    return lambda: function(point)


def gwkokab(data, dtype):
    import jax
    import jax.numpy as jnp
    from gwkokab.models import PowerlawPrimaryMassRatio

    m1, q, i1, iq = (jnp.asarray(x, dtype) for x in data)
    theta, found = jnp.stack([m1, q], -1), jnp.stack([i1, iq], -1)
    ref = jnp.log(m1)

    def log_likelihood(h):
        model = PowerlawPrimaryMassRatio(
            alpha=h["alpha"], beta=h["beta"], mmin=h["mmin"], mmax=h["mmax"], validate_args=False
        )
        log_p = jax.vmap(model.log_prob)(theta) - ref
        log_m = jax.nn.logsumexp(log_p, axis=1) - jnp.log(log_p.shape[1]) + h["log_rate"]
        return jnp.sum(log_m) - jnp.mean(jnp.exp(h["log_rate"] + model.log_prob(found)))

    function = jax.jit(jax.value_and_grad(log_likelihood))
    point = {k: jnp.asarray(v, dtype) for k, v in POINT.items()}
    return lambda: function(point)


def limit(data, dtype):
    import jax
    import jax.numpy as jnp

    x = -jnp.asarray(data[0], dtype)
    function = jax.jit(lambda x: jnp.sum(jnp.exp(x)))
    return lambda: (function(x),)


def main() -> None:
    system, size, bits, repeat = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    num_events, num_draws = map(int, size.split("x"))
    import jax

    jax.config.update("jax_enable_x64", bits == 64)
    began = time.perf_counter()
    call = globals()[system](
        numbers(num_events, num_draws), np.float64 if bits == 64 else np.float32
    )
    value = jax.block_until_ready(call())
    compiled = time.perf_counter() - began
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(1e3 * (time.perf_counter() - start))
    print(
        json.dumps(
            {
                "system": system,
                "size": size,
                "bits": bits,
                "best": min(times),
                "median": float(np.median(times)),
                "cold_s": compiled,
                "value": float(value[0]),
            }
        )
    )


if __name__ == "__main__":
    main()
