"""The Crab in four runs of H.E.S.S.: position and spectrum, and each run's background.

Call it with the folder of the data (see README.md): python run.py FOLDER [OUT]
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
import numpyro.distributions as dist

from skycensus import ImportanceSampler, Prior
from skycensus.gamma.dl3 import read_runs
from skycensus.gamma.photons import Background, Source, photon_model
from skycensus.gamma.sky import Cone, Point
from skycensus.gamma.spectra import PowerLaw
from skycensus.plots import save_figures
from skycensus.plots.photons import counts_map, counts_spectrum

RUNS = (23523, 23526, 23559, 23592)
REGION = Cone(83.633, 22.014, 1.0)

TREE = {
    "crab": Source(
        sky=lambda h: Point(h["lon"], h["lat"]),
        spectrum=lambda h: PowerLaw(
            h["index"], low=0.1, high=200.0, log_amplitude=h["log_amplitude"]
        ),
    ),
    "background": Background(
        norm=lambda h, run: h[f"norm_{run}"], tilt=lambda h, run: h[f"tilt_{run}"]
    ),
}
PRIOR = {
    "lon": dist.Uniform(83.53, 83.73),
    "lat": dist.Uniform(21.91, 22.11),
    "index": dist.Uniform(1.5, 4.0),
    # Of the flux at 1 TeV, 1/(cm² s TeV).
    "log_amplitude": dist.Uniform(np.log(1e-12), np.log(1e-9)),
    "norm_.*": dist.LogNormal(0.0, 0.5),
    "tilt_.*": dist.Normal(0.0, 0.5),
    "crab": 1.0,
    "background": 1.0,
}


def observations(folder: str | Path, runs=RUNS, region=REGION, high: float = 30.0):
    """The runs, from the energies that their headers trust to 30 TeV."""
    return read_runs(folder, runs, region=region, high=high)


def model(runs):
    return photon_model(runs, TREE, Prior(PRIOR), rate="rates")


def figures(runs, draws) -> dict:
    """What was seen beside what the posterior's mean expects."""
    mean = {name: float(np.mean(x)) for name, x in draws.items()}
    mean |= {"crab": 1.0, "background": 1.0}
    place = np.array([draws["lon"], draws["lat"]])
    return {
        "counts_map": counts_map(runs, REGION, place=place),
        "counts_spectrum": counts_spectrum(runs, TREE, mean),
    }


def main(folder: str, out: str = "results") -> None:
    jax.config.update("jax_enable_x64", True)
    runs = observations(folder)
    for run in runs:
        print(run.name, run.cut.low, "TeV,", int(run.used.sum()), "photons; left out", run.left_out)
    result = ImportanceSampler(target_ess=2000).run(model(runs).target(), jax.random.key(1))
    print(result.status)
    draws = result.equal_weight_draws(2, 2000)
    for name, x in draws.items():
        print(f"{name:>16} {np.mean(x):10.4f} ± {np.std(x):.4f}")
    flux = np.exp(np.asarray(draws["log_amplitude"]))
    print(f"flux at 1 TeV: ({flux.mean() * 1e11:.3f} ± {flux.std() * 1e11:.3f})e-11 / (cm² s TeV)")
    save_figures(figures(runs, draws), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
