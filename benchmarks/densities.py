"""Densities learned from draws, beside margarine: one run, the same draws, one process a fit.

    python benchmarks/densities.py [--data DIR] [--names NAME ...] [--kinds KIND ...] [--no-peers]

DIR holds `<name>.npz` with `train`, `weights`, `test` and `logp_test`, the exact log density of the
test points; by default the shared reference data. Printed is the forward Kullback-Leibler
divergence, mean(logp_test - log q), with its standard error, and what `densities_worker.py`
measures. Where a name starts with "trunc" or "ns_" the support is declared to be the unit box.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from environments import python_of

ROOT = Path(__file__).resolve().parents[1]
_WORKER = Path(__file__).with_name("densities_worker.py")
_NAMES = ("cgm", "rings", "two_moons", "gauss5", "trunc3", "ns_chain", "banana8")
_PEERS = {"margarine-1": "margarine1", "margarine-2": "margarine2"}


def measure(who: str, python: str, data: Path, kind: str) -> str:
    """One line of the table."""
    boxed = "boxed" if data.stem.startswith(("trunc", "ns_")) else "free"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.npz"
        command = [python, str(_WORKER), who, str(data), str(out), kind, boxed]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")} if who == "skycensus" else None
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            return f"failed: {lines[-1]}"
        found = np.load(out)
        value, told = found["log_prob"], json.loads(str(found["told"]))
    gain = np.load(data)["logp_test"] - value
    finite = np.isfinite(gain)
    error = gain[finite].std() / np.sqrt(finite.sum())
    lost = "" if finite.all() else f" ({np.sum(~finite)} points of no density left out)"
    return (
        f"{gain[finite].mean():8.4f} ± {error:.4f}  {told['seconds']:7.1f} s  "
        f"{told['cpu_seconds']:7.1f} s CPU  "
        f"{told['bytes'] / 1e6:6.3f} MB  {told['memory'] / 1e9:5.2f} GB  "
        f"{told['log_prob_per_second'] / 1e6:7.3f} M/s  {told['samples_per_second'] / 1e6:7.3f} M/s"
        f"{lost}"
    )


def main() -> None:
    shared = Path(os.environ.get("SKYCENSUS_SHARED", ROOT.parent / "shared"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=shared / "reference" / "margarine")
    parser.add_argument("--names", nargs="+", default=list(_NAMES))
    parser.add_argument("--kinds", nargs="+", default=["auto"])
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    runs = [("skycensus", sys.executable, kind) for kind in options.kinds]
    for who, environment in () if options.no_peers else _PEERS.items():
        python = python_of(environment)
        if python is None:
            print(f"{who}: cannot be installed here", flush=True)
        else:
            runs.append((who, python, "-"))
    told = "KL, fit, of all cores, file, memory, log_prob, sample"
    print(f"{'density':10} {'by':12} {'kind':10} {told}")
    for name in options.names:
        for who, python, kind in runs:
            line = measure(who, python, options.data / f"{name}.npz", kind)
            print(f"{name:10} {who:12} {kind:10} {line}", flush=True)


if __name__ == "__main__":
    main()
