"""Objects known by a formula: our exact road beside joint models in PyMC, nutpie and NumPyro.

    python benchmarks/hierarchical.py [--problems cluster one_binary binaries line]
                                      [--programs skycensus pymc nutpie numpyro]

Every run is a fresh process; ours has no compilation cache for the cold start, then one for the
next start, and is timed until it prints its posterior. `off` is the largest distance of a mean or
standard deviation from the exact answer, in exact standard deviations.
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

from environments import python_of

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
FOLDER = SHARED / "reference" / "hierarchical"
APOGEE = SHARED / "data" / "apogee" / "apogee-binaries.fits"
WORKER = Path(__file__).with_name("hierarchical_worker.py")

# Problem -> example folder, data, settings, file of the exact answer.
PROBLEMS = {
    "cluster": ("star_cluster", FOLDER / "cluster_parallax.ecsv", [], "exact_cluster.json"),
    "one_binary": (
        "apogee_binaries",
        APOGEE,
        ["one_star.toml"],
        "exact_rv1.json",
    ),
    "binaries": ("apogee_binaries", APOGEE, [], "exact_rv2.json"),
    "line": ("line_with_outliers", FOLDER / "line_outliers.ecsv", [], "exact_line.json"),
}
PROGRAMS = ("skycensus", "pymc", "nutpie", "numpyro")


def ours(problem: str) -> dict:
    folder, data, extra, _ = PROBLEMS[problem]
    name = extra[0] if extra else "config.toml"
    config = ROOT / "examples" / folder / name
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            *(sys.executable, "-m", "skycensus", "run", str(config)),
            *("--out", f"{scratch}/out", "--overwrite", "--set", f"data.path={str(data)!r}"),
            *("--set", "output.figures=false"),
        ]
        env = os.environ | {"SKYCENSUS_CACHE": f"{scratch}/cache"}
        # With an empty cache, then with what the first run left.
        first, again = (answered(command, env) for _ in range(2))
        summary = json.loads((Path(scratch) / "out" / "summary.json").read_text())
        walls_inside, rows = summary["seconds"], summary["parameters"]
    return {
        "wall": first,
        "again": again,
        "compiling": walls_inside["compiling"],
        "sampling": walls_inside["sampling"],
        "ess": {n: r["ess_bulk"] for n, r in rows.items()},
        "r_hat": {n: r["r_hat"] or 1.0 for n, r in rows.items()},
        "mean": {n: r["mean"] for n, r in rows.items()},
        "sd": {n: r["sd"] for n, r in rows.items()},
        "converged": summary["status"]["converged"],
    }


def answered(command: list[str], env: dict[str, str]) -> float:
    """Seconds until a run has printed its posterior; what it writes afterwards is not counted."""
    began, seconds = time.perf_counter(), None
    with tempfile.TemporaryFile("w+") as errors:
        run = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("parameter "):
                seconds = time.perf_counter() - began
        if run.wait() not in (0, 3) or seconds is None:
            errors.seek(0)
            raise SystemExit(errors.read())
    return seconds


def peer(program: str, problem: str) -> dict | None:
    python = sys.executable if program == "numpyro" else python_of("pymc")
    if python is None:
        return None
    began = time.perf_counter()
    done = subprocess.run(
        [python, str(WORKER), program, problem, str(FOLDER), str(APOGEE)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.splitlines()[-1]) | {"wall": time.perf_counter() - began}


def off(row: dict, exact: dict) -> float:
    """The largest error of a mean or a standard deviation, in exact standard deviations."""
    worst = 0.0
    for name, want in exact.items():
        if isinstance(want, dict) and "sd" in want and name in row["mean"]:
            worst = max(worst, abs(row["mean"][name] - want["mean"]) / want["sd"])
            worst = max(worst, abs(row["sd"][name] - want["sd"]) / want["sd"])
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=PROGRAMS)
    options = parser.parse_args()
    if not FOLDER.exists():
        raise SystemExit(f"absent: {FOLDER}")
    out = []
    head = ("problem", "program", "cold s", "again s", "compile", "sample", "ESS", "ESS/s", "r_hat")
    print("  ".join(f"{h:>10}" for h in head) + f"  {'off (sd)':>9}")
    for problem in options.problems:
        exact = json.loads((FOLDER / PROBLEMS[problem][3]).read_text())["params"]
        for program in options.programs:
            row = ours(problem) if program == "skycensus" else peer(program, problem)
            if row is None or "error" in row:
                print(f"{problem:>10}  {program:>10}  not run: {row and row['error']}")
                continue
            ess = min(v for n, v in row["ess"].items() if n in exact)
            cells = [
                *(row["wall"], row.get("again", float("nan")), row["compiling"], row["sampling"]),
                *(ess, ess / row["wall"], max(row["r_hat"].values())),
            ]
            print(
                f"{problem:>10}  {program:>10}  "
                + "  ".join(f"{c:10.2f}" for c in cells)
                + f"  {off(row, exact):9.4f}",
                flush=True,
            )
            out.append({"problem": problem, "program": program, "off": off(row, exact)} | row)
    results = Path(__file__).with_name("results")
    results.mkdir(exist_ok=True)
    (results / "hierarchical.json").write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
