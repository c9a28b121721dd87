"""Fit one density to draws of a file and measure it, in an environment of its own.

    python densities_worker.py skycensus|margarine-1|margarine-2 DATA.npz OUT.npz [KIND]

DATA holds `train` (n, d), `weights` (n,) and `test` (m, d). OUT gets the log density of the test
points, and as JSON the time of the fit with compilation, by the clock and of all cores together,
the size of the saved model, the peak memory of the process, and how many points a second are
evaluated and drawn.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

# As many points as a rate is measured with.
_MANY = 200_000


def of_skycensus(train: np.ndarray, weights: np.ndarray, kind: str, boxed: bool) -> Any:
    import jax

    jax.config.update("jax_enable_x64", True)
    from skycensus.estimators import fit_density

    names = [f"x{i}" for i in range(train.shape[1])]
    support = {name: (0.0, 1.0) for name in names} if boxed else None
    density = fit_density(
        jax.random.key(1),
        dict(zip(names, train.T, strict=True)),
        np.log(weights),
        kind=kind,
        support=support,
        report=False,
    )

    def log_prob(x: np.ndarray) -> np.ndarray:
        return np.asarray(density.log_prob(dict(zip(names, x.T, strict=True))))

    def sample(num: int) -> np.ndarray:
        return np.stack(list(density.sample(jax.random.key(2), (num,)).values()), axis=-1)

    return log_prob, sample, lambda folder: density.save(folder / "density.skc")


def of_margarine_1(train: np.ndarray, weights: np.ndarray, kind: str, boxed: bool) -> Any:
    from margarine.maf import MAF

    flow = MAF(train, weights=weights)
    flow.train(10_000, early_stop=True)

    def log_prob(x: np.ndarray) -> np.ndarray:
        return np.asarray(flow.log_prob(x.astype(np.float32)))

    def sample(num: int) -> np.ndarray:
        return np.asarray(flow.sample(num))

    return log_prob, sample, lambda folder: flow.save(str(folder / "density.pkl"))


def of_margarine_2(train: np.ndarray, weights: np.ndarray, kind: str, boxed: bool) -> Any:
    import jax
    from margarine.estimators.realnvp import RealNVP

    dim = train.shape[1]
    limits = np.stack([np.zeros(dim), np.ones(dim)]) if boxed else None
    flow = RealNVP(train, weights=weights, theta_ranges=limits, in_size=dim)
    flow.train(jax.random.PRNGKey(0))

    def log_prob(x: np.ndarray) -> np.ndarray:
        return np.asarray(flow.log_prob(x))

    def sample(num: int) -> np.ndarray:
        return np.asarray(flow.sample(jax.random.PRNGKey(1), num))

    return log_prob, sample, lambda folder: flow.save(str(folder / "density"))


def rate(function: Any) -> float:
    """Points a second, compilation apart."""
    function()
    start = time.perf_counter()
    function()
    return _MANY / (time.perf_counter() - start)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    who, data, out, kind, boxed = sys.argv[1:6]
    loaded = np.load(data)
    makers = {
        "skycensus": of_skycensus,
        "margarine-1": of_margarine_1,
        "margarine-2": of_margarine_2,
    }
    start, worked = time.perf_counter(), time.process_time()
    fitted = makers[who](loaded["train"], loaded["weights"], kind, boxed == "boxed")
    log_prob, sample, save = fitted
    told: dict[str, Any] = {"seconds": time.perf_counter() - start}
    told["cpu_seconds"] = time.process_time() - worked
    value = log_prob(loaded["test"])
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        told["bytes"] = size_of(Path(folder))
    many = np.resize(loaded["test"], (_MANY, loaded["test"].shape[1]))
    told["log_prob_per_second"] = rate(lambda: log_prob(many))
    told["samples_per_second"] = rate(lambda: sample(_MANY))
    told["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    np.savez(out, log_prob=value, told=json.dumps(told))


if __name__ == "__main__":
    main()
