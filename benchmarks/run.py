"""Run every benchmark; each can also be run alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

for script in (
    "likelihood.py",
    "memory.py",
    "tutorial.py",
    "parallaxes.py",
    "hierarchical.py",
    "nested.py",
    "coarse.py",
    "nuts.py",
    "photons.py",
    "densities.py",
    "boosted.py",
):
    print(f"== {script}", flush=True)
    subprocess.run([sys.executable, str(Path(__file__).parent / script)], check=False)
