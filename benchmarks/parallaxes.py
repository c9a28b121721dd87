"""Time of log L of a star cluster by `Quadrature`, from 256 parallaxes to a million.

    python benchmarks/parallaxes.py [FOLDER] [--nodes 8] [--most 1000000] [--repeat 9]

Writes `parallaxes.json` and the figure `parallaxes.png` to FOLDER (by default benchmarks/results).
Wall time is the best of the repeated calls, each at other hyperparameters; the CPU time beside it
says what other programs on the machine took away. Compilation is shown apart. Before that, the
whole analysis of the largest size from the table to the posterior, twice: with what is to be
compiled, and again. Data are those of the cluster in `examples/star_cluster`, simulated at each
size, in 64 bits.
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

SIZES = (256, 1_000, 4_000, 16_000, 64_000, 250_000, 1_000_000)


def cluster(num: int) -> dict[str, np.ndarray]:
    """Parallaxes [mas] and their errors of stars around 0.5 kpc."""
    rng = np.random.default_rng(42)
    distance = rng.normal(0.5, 0.0087, num)
    error = 10 ** rng.uniform(-2.0, -1.0, num)
    return {"parallax": rng.normal(1 / distance, error), "error": error}


def measure(function: Any, repeat: int, *args: Any) -> dict[str, float]:
    """Seconds of the first call, and the best wall and CPU seconds of later ones."""
    import jax
    import jax.numpy as jnp

    point = jnp.array([0.5, np.log(0.0087)])
    began = time.perf_counter()
    jax.block_until_ready(function(point, *args))
    first = time.perf_counter() - began
    wall, cpu = [], []
    for i in range(repeat):
        began, busy = time.perf_counter(), time.process_time()
        jax.block_until_ready(function(point + 1e-4 * i, *args))
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - busy)
    return {"first": first, "wall": min(wall), "cpu": min(cpu)}


def rows(sizes: list[int], nodes: int, repeat: int) -> list[dict[str, Any]]:
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist

    from skycensus import Joint
    from skycensus.likelihood import Quadrature

    jax.config.update("jax_enable_x64", True)

    def log_likelihood(theta: Any, data: Any) -> Any:
        return dist.Normal(1 / theta["distance"], data["error"]).log_prob(data["parallax"])

    def total(point: Any, form: Any) -> Any:
        population = dist.TruncatedNormal(point[0], jnp.exp(point[1]), low=0.0)
        return jnp.sum(form.log_marginal(Joint(distance=population)).value)

    out = []
    for size in sizes:
        form = Quadrature(log_likelihood, cluster(size), num_nodes=nodes)
        row: dict[str, Any] = {"objects": size, "value": measure(jax.jit(total), repeat, form)}
        row["gradient"] = measure(jax.jit(jax.value_and_grad(total)), repeat, form)
        row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        out.append(row)
        ms = [1e3 * row[part][kind] for part in ("value", "gradient") for kind in ("wall", "cpu")]
        print(f"{size:>9,}" + "".join(f"{x:11.2f}" for x in ms) + f"{row['peak_mb']:11.0f}")
    return out


def analysed(size: int) -> dict[str, Any]:
    """Seconds from the table to the posterior of the cluster, and peak memory, in this process."""
    import jax
    import numpyro.distributions as dist

    from skycensus import HierarchicalModel, Prior, QuadratureSampler
    from skycensus.analysis import analyse
    from skycensus.cli import start_jax
    from skycensus.stars import parallax

    start_jax({"data": {"kind": "parallaxes"}})
    table = parallax.simulate_cluster(num_stars=size)
    prior = Prior(
        {"mu_r": dist.TruncatedNormal(1.0, 2.0, low=0.0), "ln_std_r": dist.Uniform(-8.0, 0.0)}
    )
    began = time.perf_counter()
    objects = parallax.objects(parallax.parallaxes(table))
    model = HierarchicalModel(prior, parallax.normal_cluster, objects, rate="shape")
    result = analyse(model, QuadratureSampler(), jax.random.key(0))
    return {
        "objects": size,
        "seconds": time.perf_counter() - began,
        **result.seconds,
        "converged": result.status.converged,
        "posterior": {n: (row["mean"], row["sd"]) for n, row in result.summary().items()},
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def analyses(size: int) -> dict[str, Any]:
    """`analysed` with nothing compiled before, and again, each in a process of its own."""
    command = [sys.executable, __file__, "--analysed", str(size)]
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {"SKYCENSUS_CACHE": cache}
        runs = [subprocess.run(command, env=env, check=True, capture_output=True) for _ in range(2)]
    return dict(zip(("first", "again"), (json.loads(run.stdout) for run in runs), strict=True))


def draw(table: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = np.array([row["objects"] for row in table])
    figure, axes = plt.subplots(figsize=(6.0, 4.0), layout="constrained")
    for part, label in (("value", "log L"), ("gradient", "log L and gradient")):
        axes.loglog(size, [1e3 * row[part]["wall"] for row in table], "o-", label=label)
    last = 1e3 * table[-1]["value"]["wall"]
    axes.loglog(size, last * size / size[-1], ":", color="0.5", label="linear in objects")
    axes.set(xlabel="parallaxes", ylabel="milliseconds per call")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).with_name("results")
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--most", type=int, default=SIZES[-1])
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--analysed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.analysed:
        print(json.dumps(analysed(options.analysed)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    print(
        f"{'objects':>9}{'value ms':>11}{'cpu ms':>11}{'grad ms':>11}{'cpu ms':>11}{'peak MB':>11}"
    )
    sizes = [size for size in SIZES if size <= options.most]
    whole = analyses(sizes[-1])
    table = rows(sizes, options.nodes, options.repeat)
    print(json.dumps(whole))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    record = {
        "nodes": options.nodes,
        "cores": os.cpu_count(),
        "load": load,
        "rows": table,
        "analysis": whole,
    }
    (options.folder / "parallaxes.json").write_text(json.dumps(record, indent=1))
    draw(table, options.folder / "parallaxes.png")


if __name__ == "__main__":
    main()
