"""Nested sampling beside dynesty on problems of known evidence, and the calibration of its errors.

    python benchmarks/nested.py [--seeds 3] [--num-live 500]
    python benchmarks/nested.py --calibrate [--seeds 30] [--problems NAME ...]

The first runs both samplers at equal numbers of live points, compilation included, each run in a
process of its own. dynesty gets its likelihoods in NumPy, which is quicker for it than calls of
compiled functions; the second number is the processor time, which other programs do not change.
The second runs `Nested` with its defaults over many seeds: bias and scatter of ln Z in units of the
stated error, the share of runs that its self-test refuses, and evaluations per run. Problems are
those of `tests/samplers/targets.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

PROBLEMS = ("shells", "25 dimensions")


def shells(u: np.ndarray) -> float:
    x, y = 12.0 * u - 6.0
    each = [-0.5 * ((np.hypot(x - c, y) - 2.0) / 0.1) ** 2 for c in (-3.5, 3.5)]
    return np.logaddexp(*each) - 0.5 * np.log(2 * np.pi * 0.01)


def gaussian(dim: int) -> Any:
    covariance = 0.5 ** np.abs(np.subtract.outer(np.arange(dim), np.arange(dim)))
    precision = np.linalg.inv(covariance)
    norm = 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]

    def log_likelihood(u: np.ndarray) -> float:
        x = 20.0 * u - 10.0
        return -0.5 * x @ precision @ x - norm

    return log_likelihood


def run_dynesty(problem: str, num_live: int, seed: int) -> tuple[float, float, int]:
    import dynesty

    dim = 2 if problem == "shells" else 25
    function = shells if problem == "shells" else gaussian(dim)
    rng = np.random.default_rng(seed)
    sampler = dynesty.NestedSampler(function, np.copy, dim, nlive=num_live, rstate=rng)
    sampler.run_nested(dlogz=0.01, print_progress=False)
    found = sampler.results
    return float(found.logz[-1]), float(found.logzerr[-1]), int(np.sum(found.ncall))


def run_nested(problem: str, num_live: int, seed: int) -> tuple[float, float, int]:
    import jax
    from samplers.targets import CASES

    from skycensus import Nested

    jax.config.update("jax_enable_x64", True)
    result = Nested(num_live=num_live).run(CASES[problem].make(), jax.random.key(seed))
    return result.log_evidence, result.log_evidence_error, result.measures["num_likelihoods"]


RUNS = {"skycensus": run_nested, "dynesty": run_dynesty}


def one(name: str, problem: str, num_live: int, seed: int) -> None:
    """A run in this process, from before its first import; prints a line of JSON."""
    began, busy = time.perf_counter(), time.process_time()
    value, error, calls = RUNS[name](problem, num_live, seed)
    row = {"value": value, "error": error, "calls": calls}
    row |= {"wall": time.perf_counter() - began, "cpu": time.process_time() - busy}
    print(json.dumps(row))


def compare(num_live: int, seeds: int) -> list[dict[str, Any]]:
    from samplers.targets import CASES

    rows = []
    print("problem | sampler | wall [s] | cpu [s] | evaluations | ln Z - exact | stated error")
    for problem in PROBLEMS:
        exact = CASES[problem].log_evidence
        for name in RUNS:
            found = []
            for seed in range(seeds):
                task = ["--one", name, problem, "--num-live", str(num_live), "--first", str(seed)]
                command = [sys.executable, __file__, *task]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found.append(json.loads(said.splitlines()[-1]))
            middle = {key: float(np.median([f[key] for f in found])) for key in found[0]}
            off = np.mean([f["value"] for f in found]) - exact
            rows.append({"problem": problem, "sampler": name, "runs": found})
            print(
                f"{problem} | {name} | {middle['wall']:.1f} | {middle['cpu']:.1f} | "
                f"{middle['calls']:.3g} | {off:+.3f} | {middle['error']:.3f}",
                flush=True,
            )
    return rows


def calibrate(names: list[str], num_live: int, seeds: int) -> list[dict[str, Any]]:
    import jax
    from samplers.targets import CASES

    from skycensus import Nested

    jax.config.update("jax_enable_x64", True)
    rows = []
    print("problem | error of ln Z | bias | mean z | sd of z | refused | evaluations | cpu [s]")
    for name in names:
        case = CASES[name]
        target, busy = case.make(), time.process_time()
        results = [Nested(num_live=num_live).run(target, jax.random.key(i)) for i in range(seeds)]
        busy = (time.process_time() - busy) / seeds
        error = np.array([r.log_evidence_error for r in results])
        off = np.array([r.log_evidence for r in results]) - case.log_evidence
        kinds = [{p.kind for p in r.status.problems} for r in results]
        row = {
            "error": error.mean(),
            "bias": off.mean(),
            "mean_z": (off / error).mean(),
            "sd_z": (off / error).std(ddof=1),
            "refused": np.mean(["insertion_ranks" in k for k in kinds]),
            "calls": np.mean([r.measures["num_likelihoods"] for r in results]),
            "cpu": busy,
        }
        rows.append({"problem": name, **{key: float(value) for key, value in row.items()}})
        numbers = " | ".join(f"{value:.3g}" for value in row.values())
        print(f"{name} | {numbers}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--problems", nargs="*")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--num-live", type=int, default=500)
    parser.add_argument("--one", nargs=2, metavar=("SAMPLER", "PROBLEM"))
    parser.add_argument("--first", type=int, default=0, help="the seed of --one")
    given = parser.parse_args()
    if given.one:
        return one(*given.one, given.num_live, given.first)
    if given.calibrate:
        from samplers.targets import CASES

        names = given.problems or [n for n, case in CASES.items() if "nested" in case.samplers]
        rows = calibrate(names, given.num_live, given.seeds or 30)
    else:
        rows = compare(given.num_live, given.seeds or 3)
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    kind = "nested_calibration" if given.calibrate else "nested"
    (folder / f"{kind}.json").write_text(json.dumps(rows, indent=1))
    return None


if __name__ == "__main__":
    main()
