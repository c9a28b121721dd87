"""The tutorial's analysis of the reference catalogue, cold start to finish, by each sampler.

    python benchmarks/tutorial.py [FOLDER] [--samplers importance nuts flow_mcmc]

FOLDER holds `posteriors/`, `injections_found.hdf5`, `prior.json` (default: the shared reference).
Every run is a fresh process without a compilation cache, so compilation is in the time.
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

ROOT = Path(__file__).resolve().parents[1]
SAMPLERS = ("importance", "nuts", "flow_mcmc")


def run(folder: Path, sampler: str) -> dict:
    config = (ROOT / "examples" / "gw_tutorial" / "config.toml").read_text()
    head = config[: config.index("[sampler]")]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "config.toml"
        goal = "target_ess = 2000.0\n" if sampler == "importance" else ""
        path.write_text(f'{head}[sampler]\nkind = "{sampler}"\n{goal}\n[output]\nfigures = false\n')
        command = [
            sys.executable,
            "-m",
            "skycensus",
            "run",
            str(path),
            "--out",
            f"{scratch}/out",
        ]
        began = time.perf_counter()
        done = subprocess.run(
            [*command, "--set", f"data.path={str(folder)!r}"],
            env=os.environ | {"SKYCENSUS_CACHE": "off"},
            capture_output=True,
            text=True,
        )
        wall = time.perf_counter() - began
        if done.returncode not in (0, 3):
            raise SystemExit(done.stderr)
        summary = json.loads((Path(scratch) / "out" / "summary.json").read_text())
    rows = [r for n, r in summary["parameters"].items() if n in json.loads(_prior(folder))]
    return {
        "sampler": sampler,
        "wall_s": wall,
        "min_ess": min(r["ess_bulk"] for r in rows),
        "r_hat": max((r["r_hat"] or 1.0) for r in rows),
        "log_evidence": summary.get("log_evidence"),
        "converged": summary["status"]["converged"],
    }


def _prior(folder: Path) -> str:
    return (folder / "prior.json").read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = ROOT.parent / "shared" / "reference" / "gwkokab"
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS, choices=SAMPLERS)
    options = parser.parse_args()
    print(f"{'sampler':>12} {'wall s':>8} {'least bulk ESS':>15} {'r_hat':>7}  converged")
    for sampler in options.samplers:
        row = run(options.folder, sampler)
        print(
            f"{sampler:>12} {row['wall_s']:8.1f} {row['min_ess']:15.0f} {row['r_hat']:7.3f}  "
            f"{row['converged']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
