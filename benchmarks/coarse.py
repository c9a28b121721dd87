"""Coarse to exact beside the direct run: 100 events of 10,000 draws, a power-law population.

    python benchmarks/coarse.py [--events 100] [--draws 10000] [--repeat 1] [--nuts]

Every run is a process of its own. Cold is the first run, compiling included; warm is the second one
with another key, with the programs of the first kept on disk, as the command line keeps them. All
end at an effective sample size of 1,000. The last columns compare the means of the hyperparameters
with those of the direct run: the largest difference in standard errors of the difference, and in
standard deviations of the posterior.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
NUM_INJECTIONS, TARGET_ESS = 20_000, 1000.0
FEW, BOTH = "Coarse(draws=500)", "Coarse(draws=500, float32=True)"
RUNS = {
    "importance": "Importance()",
    "importance, 500 draws": f"CoarseToExact(Importance(), {FEW})",
    "importance, 500 draws, 32 bits": f"CoarseToExact(Importance(), {BOTH})",
}
NUTS_RUNS = {
    "NUTS": "Until(NUTS(), target_ess=TARGET_ESS)",
    "NUTS, 500 draws, 32 bits": f"CoarseToExact(NUTS(), {BOTH})",
}


def make_model(num_events: int, num_draws: int):
    """Masses from a power law between edges, measured to a tenth; the edges are free too."""
    from skycensus import HierarchicalModel, Mixture, Prior, Samples
    from skycensus.gw.mass import power_law_mass_ratio

    rng = np.random.default_rng(1)
    # By the inverse of the distribution function, of slope -2.3 between 9 and 50 solar masses.
    u = rng.uniform(size=num_events)
    mass = (9**-1.3 + u * (50**-1.3 - 9**-1.3)) ** (-1 / 1.3)
    ratio = rng.uniform(0.3, 1.0, num_events)
    shape = (num_events, num_draws)
    center = np.log(mass) + 0.1 * rng.normal(size=num_events)
    m1 = np.exp(center[:, None] + 0.1 * rng.normal(size=shape))
    # Normal within (0.1, 1): what falls outside is reflected.
    q = ratio[:, None] + 0.15 * rng.normal(size=shape)
    q = np.abs(np.mod(q - 0.1, 1.8))
    q = np.where(q > 0.9, 1.8 - q, q) + 0.1
    events = Samples(
        [{"mass_1_source": a, "mass_ratio": b} for a, b in zip(m1, q, strict=True)],
        [np.log(a) for a in m1],
    )
    injected = {
        "mass_1_source": rng.uniform(3.0, 100.0, NUM_INJECTIONS),
        "mass_ratio": rng.uniform(0.05, 1.0, NUM_INJECTIONS),
    }
    found = Samples([injected], [np.full(NUM_INJECTIONS, -np.log(97.0 * 0.95))])
    ranges = {"alpha": (-4, 8), "beta": (-4, 8), "mmin": (2, 10), "mmax": (35, 100)}
    ranges["log_rate"] = (0, 10)
    prior = Prior({n: {"dist": "Uniform", "low": a, "high": b} for n, (a, b) in ranges.items()})

    def population(h):
        return Mixture({"all": power_law_mass_ratio(h)}, log_weights={"all": h["log_rate"]})

    return HierarchicalModel(prior, population, events, selection=found)


def worker(run: str, num_events: int, num_draws: int, num_runs: int) -> None:
    """Cold and warm seconds of one sampler, and what it found, as JSON."""
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_compilation_cache_dir", os.environ["BENCHMARK_CACHE"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    import skycensus
    from skycensus import ImportanceSampler

    names = {
        name: getattr(skycensus, name) for name in ("Coarse", "CoarseToExact", "NUTS", "Until")
    }
    names |= {"Importance": lambda: ImportanceSampler(target_ess=TARGET_ESS)}
    sampler = eval(run, names | {"TARGET_ESS": TARGET_ESS})
    model = make_model(num_events, num_draws)
    seconds = []
    for key in range(num_runs):
        began = time.perf_counter()
        result = sampler.run(model.target(), jax.random.key(key))
        seconds.append(time.perf_counter() - began)
    told = {
        "seconds": seconds,
        "ess": result.effective_sample_size(),
        "k_hat": result.measures.get("k_hat"),
        "likelihoods": result.measures["num_likelihoods"],
        "log_evidence": [result.log_evidence, result.log_evidence_error],
        "rows": {n: [r["mean"], r["sd"], r["mcse_mean"]] for n, r in result.summary().items()},
        "status": str(result.status),
    }
    print(json.dumps(told))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=1, help="processes of each; medians are told")
    parser.add_argument(
        "--nuts", action="store_true", help="NUTS too: the direct run takes an hour"
    )
    parser.add_argument("--only", nargs="+", help="names of runs")
    parser.add_argument("--cold", action="store_true", help="no second, warm run")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.events, options.draws, 1 if options.cold else 2)
        return
    runs = RUNS | (NUTS_RUNS if options.nuts else {})
    rows: dict[str, list[dict]] = {}
    for name in options.only or runs:
        sizes = ["--events", str(options.events), "--draws", str(options.draws)]
        sizes += ["--cold"] if options.cold else []
        for _ in range(options.repeat):
            with tempfile.TemporaryDirectory() as cache:
                done = subprocess.run(
                    [sys.executable, __file__, "--worker", runs[name], *sizes],
                    capture_output=True,
                    text=True,
                    env=os.environ | {"BENCHMARK_CACHE": cache},
                )
            if done.returncode:
                print(f"{name} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
                continue
            rows.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
            seconds = " and ".join(f"{t:.1f} s" for t in rows[name][-1]["seconds"])
            print(f"{name}: {seconds}", file=sys.stderr, flush=True)
    out = HERE / "results"
    out.mkdir(exist_ok=True)
    (out / "coarse.json").write_text(json.dumps(rows, indent=1))
    table(rows)


def table(rows: dict[str, list[dict]]) -> None:
    """Medians of every run, and how they compare with the direct run of the same sampler."""
    print(
        f"{'run':>32} {'cold s':>8} {'warm s':>8} {'×':>6} {'log L':>7} {'ESS':>6} {'k-hat':>6} "
        f"{'ln Z':>15}  differences"
    )
    for name, found in rows.items():
        cold, *_ = spent = np.median([row["seconds"] for row in found], axis=0)
        warm = spent[-1]
        direct, one = rows.get(name.split(",")[0]), found[0]
        speed, apart = "", ""
        if direct is not None and direct is not found:
            base = np.median([row["seconds"] for row in direct], axis=0)
            speed = f"{base[-1] / warm:.1f}"
            apart = difference(one["rows"], direct[0]["rows"])
        z, error = one["log_evidence"]
        evidence = "" if z is None else f"{z:.3f} ± {error:.3f}"
        k_hat = "" if one["k_hat"] is None else f"{one['k_hat']:.2f}"
        print(
            f"{name:>32} {cold:8.1f} {warm:8.1f} {speed:>6} {one['likelihoods']:7.0f} "
            f"{one['ess']:6.0f} {k_hat:>6} {evidence:>15}  {apart}"
        )


def difference(rows: dict, direct: dict) -> str:
    """The largest difference of the means, in standard errors and in standard deviations."""
    moved = {n: abs(rows[n][0] - direct[n][0]) for n in direct}
    errors = max(d / np.hypot(rows[n][2], direct[n][2]) for n, d in moved.items())
    return f"{errors:.1f} s.e., {max(d / direct[n][1] for n, d in moved.items()):.3f} sd"


if __name__ == "__main__":
    main()
