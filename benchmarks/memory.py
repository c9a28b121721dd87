"""Peak memory of value and gradient of log L beside the size of the data.

    python benchmarks/memory.py [EVENTSxDRAWS ...]

Each size runs in its own process; "data" is the two masses and the reference density of every draw.
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

    data = numbers(*map(int, size.split("x")))
    jax.block_until_ready(jax.numpy.zeros(1) + 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call = skycensus(data, np.float64)
    made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    jax.block_until_ready(call())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mb = 1 / 1024
    out = {"data": 3 * data[0].nbytes / 2**20, "made": (made - before) * mb}
    print(json.dumps(out | {"call": (after - made) * mb}))


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
