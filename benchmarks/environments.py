"""Peers' environments, made on first use in the user's cache folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PEERS = {
    "gwpopulation": ["gwpopulation==1.4.0", "jax"],
    "gwkokab": ["gwkokab==0.3.1"],
    "gammabayes": ["gammabayes==0.1.9", "setuptools<80", "matplotlib==3.8.4", "pandas<3"],
    "margarine1": ["margarine==1.4.2"],
    "margarine2": ["margarine==2.2.0"],
    "nutpie": ["nutpie>=0.16.10", str(Path(__file__).resolve().parents[1])],
    "pymc": ["pymc>=5.20", "nutpie[pymc]>=0.15", "astropy"],
}
_FOLDER = Path(os.environ.get("SKYCENSUS_PEERS", Path.home() / ".cache" / "skycensus-peers"))


def python_of(peer: str) -> str | None:
    """The interpreter of a peer's own environment; None where it cannot be installed.

    `SKYCENSUS_PEER_<NAME>` names an interpreter that has the peer already.
    """
    given = os.environ.get(f"SKYCENSUS_PEER_{peer.upper()}")
    if given:
        return given
    folder = _FOLDER / peer
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return str(python)
    shutil.rmtree(folder, ignore_errors=True)
    for base in (sys.executable, "python3.12", "python3.13"):
        made = subprocess.run([base, "-m", "venv", str(folder)], capture_output=True)
        if made.returncode:
            continue
        install = [str(python), "-m", "pip", "install", "-q", *PEERS[peer]]
        if subprocess.run(install, capture_output=True).returncode == 0:
            (folder / "complete").touch()
            return str(python)
        shutil.rmtree(folder, ignore_errors=True)
    return None
