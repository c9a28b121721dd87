"""Photons through a response: the tutorial's problem, and how it grows to a million photons.

    python benchmarks/photons.py [--photons 500 10000 100000 1000000] [--peer]

`tutorial` is examples/gamma_galactic_centre: 500 photons of dark matter, cosmic rays, catalogued
sources and diffuse emission on CTAO's response, from reading to the posterior, in a process of its
own: first with nothing compiled before, then again with the compiled programs kept. `log_l_per_s`
are calls at points of the prior with a continuous mass: 64 and 1024 at a time, and as the samplers
make them. `nested` are evidences by nested sampling, with the likelihood calls that they took.
`growth` folds as many photons of the same four components: seconds and peak memory, each in a
process of its own.

`--peer` runs GammaBayes 0.1.9 in its own environment on the same 500 photons, as its tutorial does:
normalisation of the response, marginals on its grid, and calls of its log likelihood. On this kind
of machine it published 540 s in all, and 4,600 calls a second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "examples" / "gamma_galactic_centre" / "config.toml"
# A text table of a million photons takes longer than they do.
EVENTS = "data.events='photons.fits'"
SHARES = {"DM": 0.5, "CCR": 0.35, "HESS": 0.1, "diffuse": 0.05}


def simulated(folder: Path, num: int) -> None:
    """Photons of the four components, in the tutorial's proportions."""
    from skycensus.config import read_config, simulate_data

    counts = {name: round(share * num) for name, share in SHARES.items()}
    told = ", ".join(f"{name} = {n}" for name, n in counts.items())
    simulate_data(read_config(CONFIG, [f"simulate.counts={{{told}}}", EVENTS]), folder)


def tutorial(folder: Path) -> dict[str, Any]:
    """From reading to the posterior, in this process."""
    began = time.perf_counter()
    import jax

    from skycensus.cli import start_jax
    from skycensus.config import build, read_config

    start_jax({})
    inference = build(read_config(CONFIG, [f"data.path='{folder}'", EVENTS]))
    target = inference.model.target()
    folded = time.perf_counter() - began
    result = inference.sampler.run(target, jax.random.key(1))
    total = time.perf_counter() - began
    rows = result.summary()
    return {
        "fold": folded,
        "total": total,
        "memory": memory(),
        "DM": (rows["DM"]["mean"], rows["DM"]["sd"]),
        "mass": (rows["mass"]["mean"], rows["mass"]["sd"]),
        **calls_per_second(target),
    }


def calls_per_second(target: Any) -> dict[str, float]:
    import jax

    from skycensus.samplers import evaluate

    many = jax.jit(jax.vmap(target.log_likelihood, (0, None)))
    points = np.asarray(target.sample_prior(jax.random.key(2), 16 * 1024))

    def compiled(size: int) -> None:
        for i in range(0, len(points), size):
            jax.block_until_ready(many(points[i : i + size], target.data))

    found = {}
    for name, call in (
        ("log_l_per_s_64", lambda: compiled(64)),
        ("log_l_per_s_1024", lambda: compiled(1024)),
        ("log_l_per_s_samplers", lambda: evaluate(target, points)),
    ):
        call()
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        found[name] = len(points) / min(seconds)
    return found


def nested(folder: Path) -> dict[str, Any]:
    """Evidence, its error, calls and seconds of nested samplers, and of importance sampling."""
    import jax

    from skycensus.cli import start_jax
    from skycensus.config import build, read_config
    from skycensus.samplers import Dynesty, Nested

    start_jax({})
    inference = build(read_config(CONFIG, [f"data.path='{folder}'", EVENTS]))
    target = inference.model.target()
    samplers = {
        "default": inference.sampler,
        # As sure as GammaBayes' evidence, whose error is 0.14.
        "nested": Nested(num_live=400, num_inner_steps=4, dlogz=0.5),
        "nested, as it is": Nested(),
        "dynesty": Dynesty(num_live=400),
    }
    rows = {}
    for name, sampler in samplers.items():
        began = time.perf_counter()
        result = sampler.run(target, jax.random.key(1))
        dm = result.summary()["DM"]
        rows[name] = {
            "calls": result.measures["num_likelihoods"],
            "seconds": time.perf_counter() - began,
            "log_evidence": (result.log_evidence, result.log_evidence_error),
            "DM": (dm["mean"], dm["sd"]),
        }
    return rows


def growth(folder: Path) -> dict[str, Any]:
    import jax

    jax.config.update("jax_enable_x64", True)
    from skycensus.config import build, read_config

    began, busy = time.perf_counter(), time.process_time()
    inference = build(read_config(CONFIG, [f"data.path='{folder}'", EVENTS]))
    wall, busy = time.perf_counter() - began, time.process_time() - busy
    target = inference.model.target()
    value = jax.jit(target.log_likelihood)
    x = target.sample_prior(jax.random.key(0), 1)[0]
    jax.block_until_ready(value(x, target.data))
    again = time.perf_counter()
    jax.block_until_ready(value(x, target.data))
    return {"fold": wall, "cpu": busy, "log_l": time.perf_counter() - again, "memory": memory()}


def memory() -> float:
    """The peak so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


TASKS = {"tutorial": tutorial, "nested": nested, "growth": growth}


def apart(task: str, folder: Path, **more: str) -> dict[str, Any]:
    """A task in a process of its own; `more` are variables of its environment."""
    command = [sys.executable, __file__, "--task", task, str(folder)]
    environment = {**os.environ, **more}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photons", type=int, nargs="*", default=[500, 10_000, 100_000, 1_000_000])
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--task", nargs=2, metavar=("TASK", "FOLDER"))
    given = parser.parse_args()
    if given.task:
        print(json.dumps(TASKS[given.task[0]](Path(given.task[1]))))
        return
    with tempfile.TemporaryDirectory() as place:
        rows: dict[str, Any] = {}
        photons = Path(place) / "tutorial"
        simulated(photons, 500)
        for name in ("cold", "warm"):
            found = rows[name] = apart("tutorial", photons, SKYCENSUS_CACHE=f"{place}/cache")
            print(f"tutorial, {name}: {json.dumps(found)}", flush=True)
        rows["nested"] = apart("nested", photons, SKYCENSUS_CACHE=f"{place}/cache")
        print(f"nested: {json.dumps(rows['nested'])}", flush=True)
        if given.peer:
            rows["gammabayes"] = peer(photons)
            print(f"gammabayes: {json.dumps(rows['gammabayes'])}", flush=True)
        for num in given.photons:
            folder = Path(place) / str(num)
            simulated(folder, num)
            rows[str(num)] = apart("growth", folder)
            print(f"{num} photons: {json.dumps(rows[str(num)])}", flush=True)
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "photons.json").write_text(json.dumps(rows, indent=1) + "\n")


def peer(folder: Path) -> dict[str, Any]:
    """GammaBayes on the same photons; an error where it cannot be installed."""
    from environments import python_of

    python = python_of("gammabayes")
    if python is None:
        return {"error": "gammabayes cannot be installed here"}
    from astropy.table import QTable

    table = QTable.read(folder / "photons.fits")
    lon = (table["glon"].value + 180.0) % 360.0 - 180.0
    columns = np.stack([table["energy"].value, lon, table["glat"].value], axis=1)
    path = folder / "photons.npy"
    np.save(path, columns)
    worker = Path(__file__).with_name("gammabayes_worker.py")
    done = subprocess.run([python, str(worker), str(path)], capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
