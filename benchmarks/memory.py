"""Peak memory of value and gradient of log L beside the size of the data.

    python benchmarks/memory.py [EVENTSxDRAWS ...]

Each size runs in its own process; "data" is the two masses and the reference density of every draw,
as the caller holds them. "Objects" and "call" are the peak beyond that once a catalogue of ten
events has been analysed, which takes what every analysis takes: imports and a compiler.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np


def worker(size: str) -> None:
    import jax

    jax.config.update("jax_enable_x64", True)
    from likelihood_worker import numbers, skycensus

    jax.block_until_ready(skycensus(numbers(10, 100), np.float64)())
    data = numbers(*map(int, size.split("x")))
    inputs = 3 * data[0].nbytes / 2**20
    before = peak()
    call = skycensus(data, np.float64)
    made = peak()
    jax.block_until_ready(call())
    after = peak()
    # The reference densities are an input too, but made within `skycensus`.
    row = {"data": inputs, "made": made - before - inputs / 3, "call": after - made}
    print(json.dumps(row))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    sizes = sys.argv[1:] or ["100x5000", "1000x10000"]
    print(f"{'size':>12} {'data MB':>9} {'objects made MB':>16} {'call adds MB':>13}")
    for size in sizes:
        done = subprocess.run(
            [sys.executable, __file__, "--worker", size], capture_output=True, text=True, check=True
        )
        row = json.loads(done.stdout.splitlines()[-1])
        print(f"{size:>12} {row['data']:9.1f} {row['made']:16.1f} {row['call']:13.1f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        sys.path.insert(0, str(Path(__file__).parent))
        worker(sys.argv[2])
    else:
        main()
