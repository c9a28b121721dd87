"""Value and gradient of log L, power-law population: skycensus beside its peers and the bare limit.

    python benchmarks/likelihood.py [--sizes 100x5000 200x10000] [--precision 32 64] [--repeat 40]

Every system runs in its own process on the same numbers (made from one seed); times are those of
one call in milliseconds, compiled, best and median. The limit is `sum(exp(x))` over as many
numbers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import environments

HERE = Path(__file__).parent
SYSTEMS = ("limit", "skycensus", "gwpopulation", "gwkokab")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["100x5000", "200x10000"])
    parser.add_argument("--precision", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--repeat", type=int, default=40)
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    options = parser.parse_args()
    rows = []
    for size in options.sizes:
        for precision in options.precision:
            for system in options.systems:
                row = run(system, size, precision, options.repeat)
                if row is not None:
                    rows.append(row)
    table(rows)
    out = HERE / "results"
    out.mkdir(exist_ok=True)
    (out / "likelihood.json").write_text(json.dumps(rows, indent=1))


def run(system: str, size: str, precision: int, repeat: int) -> dict | None:
    python = sys.executable
    if system in environments.PEERS:
        python = environments.python_of(system)
        if python is None:
            print(f"{system}: cannot be installed here, left out", file=sys.stderr)
            return None
    worker = [python, str(HERE / "likelihood_worker.py"), system, size, str(precision), str(repeat)]
    done = subprocess.run(worker, capture_output=True, text=True)
    if done.returncode:
        print(f"{system} {size} {precision}-bit failed:\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict]) -> None:
    print(
        f"{'size':>12} {'bits':>4} {'system':>14} {'best ms':>9} {'median ms':>10} "
        f"{'× limit':>8}  log L"
    )
    for row in rows:
        limit = next(
            (
                r
                for r in rows
                if r["system"] == "limit" and (r["size"], r["bits"]) == (row["size"], row["bits"])
            ),
            None,
        )
        ratio = f"{row['median'] / limit['median']:8.1f}" if limit else " " * 8
        print(
            f"{row['size']:>12} {row['bits']:>4} {row['system']:>14} {row['best']:9.3f} "
            f"{row['median']:10.3f} {ratio}  {row['value']:.6f}"
        )


if __name__ == "__main__":
    main()
