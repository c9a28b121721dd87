"""Nested sampling from a learned density beside nested sampling from the prior.

    python benchmarks/boosted.py [--seeds 20] [--problems NAME ...]

Every sampler on problems of known evidence, over the same seeds. What is compared is the number of
likelihoods times the variance of ln Z: likelihoods that an error of one would take. The first run's
are counted; the last column leaves them out, as one may where that run was needed anyway.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from samplers.targets import CASES, TWO_MODES, two_modes  # noqa: E402

from skycensus import BoostedNested, LearnedProposal, Nested  # noqa: E402

PROBLEMS = {
    "five modes, 5-D": (CASES["five modes"].make, CASES["five modes"].log_evidence),
    "two modes, 12-D": (two_modes, TWO_MODES),
}
SAMPLERS = {
    "nested": Nested(),
    "boosted nested": BoostedNested(),
    "learned proposal": LearnedProposal(target_ess=10_000),
}


def row(results: list[Any], log_evidence: float) -> dict[str, float]:
    """Medians over seeds, and how ln Z scatters."""
    off = np.array([r.log_evidence - log_evidence for r in results])
    error = np.array([r.log_evidence_error for r in results])
    calls = np.array([r.measures["num_likelihoods"] for r in results])
    first = np.array([r.measures.get("num_first_likelihoods", 0.0) for r in results])
    found = {
        "likelihoods": np.median(calls),
        "first": np.median(first),
        "error": np.median(error),
        "bias": off.mean(),
        "scatter": off.std(ddof=1),
        "median_off": np.median(off),
        "mean_z": (off / error).mean(),
        "sd_z": (off / error).std(ddof=1),
        "cost": np.median(calls * error**2),
        "cost_without_first": np.median((calls - first) * error**2),
        "converged": np.mean([r.status.converged for r in results]),
    }
    return {name: float(value) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=list(PROBLEMS))
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rows = []
    for problem in given.problems:
        make, log_evidence = PROBLEMS[problem]
        target, plain = make(), {}
        for name, sampler in SAMPLERS.items():
            began = time.process_time()
            results = [sampler.run(target, jax.random.key(seed)) for seed in range(given.seeds)]
            found = row(results, log_evidence)
            found["cpu"] = (time.process_time() - began) / given.seeds
            plain = plain or found
            for kind in ("cost", "cost_without_first"):
                found[f"gain_{kind}"] = plain["cost"] / found[kind]
            rows.append({"problem": problem, "sampler": name, **found})
            numbers = ", ".join(f"{key} {value:.3g}" for key, value in found.items())
            print(f"{problem} | {name} | {numbers}", flush=True)
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "boosted.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
