"""Write velocities of 64 binaries at 8 epochs each: sparse_binaries.ecsv.

    python simulate.py [ARRAYS.npz]

ARRAYS has t [days] and y [km/s] of shape (star, epoch), and one err: then these are written.
"""

import sys
from pathlib import Path

import numpy as np

from skycensus.stars.binaries import simulate, velocity_table

if len(sys.argv) > 1:
    with np.load(sys.argv[1]) as arrays:
        table = velocity_table(arrays["t"], arrays["y"], float(arrays["err"]))
else:
    table = simulate()
path = Path(__file__).with_name("sparse_binaries.ecsv")
table.write(path, overwrite=True)
print(f"{len(table)} velocities written to {path}")
