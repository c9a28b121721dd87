"""GammaBayes 0.1.9 on photons of a file, as its tutorial does; run in its own environment.

Prints seconds of each step and calls of its log likelihood per second, as a line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
from astropy import units as u
from gammabayes import GammaBinning, GammaObs, ParameterSet
from gammabayes.dark_matter import CombineDMComps, Z2_ScalarSinglet
from gammabayes.dark_matter.density_profiles import Einasto_Profile
from gammabayes.hyper_inference import (
    DiscreteAdaptiveScan,
    MTree,
    ScanOutput_StochasticTreeMixturePosterior,
)
from gammabayes.likelihoods.irfs import FOV_IRF_Norm, IRF_LogLikelihood
from gammabayes.priors import (
    FermiGaggeroDiffusePrior,
    HESSCatalogueSources_Prior,
    ObsFluxDiscreteLogPrior,
)

POINTING, TIME = np.array([0.0, 0.0]) * u.deg, 5 * u.hr


def binning(per_decade: int, num: int) -> GammaBinning:
    return GammaBinning(
        energy_axis=np.logspace(-1, 2, 3 * per_decade + 1) * u.TeV,
        lon_axis=np.linspace(-3, 3, num + 1) * u.deg,
        lat_axis=np.linspace(-3, 3, num) * u.deg,
    )


def components(true: GammaBinning, response: IRF_LogLikelihood) -> list:
    usual = {
        "binning_geometry": true,
        "pointing_dir": POINTING,
        "observation_time": TIME,
        "irf_loglike": response,
    }
    dark = {"spectral_class": Z2_ScalarSinglet, "spatial_class": Einasto_Profile, "axes": true.axes}
    return [
        CombineDMComps(name="DM", **dark, **usual),
        ObsFluxDiscreteLogPrior(name="CCR_BKG", logfunction=response.log_bkg_CCR, **usual),
        HESSCatalogueSources_Prior(**usual),
        FermiGaggeroDiffusePrior(**usual),
    ]


def mass() -> ParameterSet:
    entry = {
        "name": "mass",
        "discrete": True,
        "scaling": "log10",
        "bounds": "event_dynamic",
        "absolute_bounds": [1.2e-1, 8e1],
        "parameter_type": "spectral_parameters",
        "dynamic_multiplier": 5,
        "num_events": 1e1,
        "default_value": 1.0,
        "bins": 121,
    }
    return ParameterSet({"spectral_parameters": {"mass": entry}})


def dirichlet(names: list[str]) -> dict:
    first, *others = names
    alpha = {"alpha": [1.0] * len(names)}
    head = {"discrete": False, "bounds": [0.0, 1.0], "dependent": others}
    head |= {"custom_dist_name": "dirichlet", "custom_dist_kwargs": alpha}
    return {first: head, **{n: {"discrete": False, "bounds": [0.0, 1.0]} for n in others}}


def main(path: str) -> None:
    clock, steps = time.perf_counter(), {}

    def done(name: str) -> None:
        nonlocal clock
        steps[name] = time.perf_counter() - clock
        clock = time.perf_counter()

    recon, true = binning(20, 30), binning(30, 60)
    setup = {"pointing_dir": POINTING, "observation_time": TIME}
    response = IRF_LogLikelihood(binning_geometry=recon, true_binning_geometry=true, **setup)
    priors = components(true, response)
    done("setup")
    norm = FOV_IRF_Norm(
        true_binning_geometry=true,
        recon_binning_geometry=recon,
        original_norm_matrix_pointing_dir=POINTING,
        new_pointing=POINTING,
        pointing_dirs=[POINTING],
        irf_loglike=response,
    )
    done("normalisation")
    energy, lon, lat = np.load(path).T
    seen = GammaObs(
        energy=energy * u.TeV, lon=lon * u.deg, lat=lat * u.deg, binning_geometry=recon,
        pointing_dir=POINTING, irf_loglike=response, name="photons",
    )  # fmt: skip
    scan = DiscreteAdaptiveScan(
        log_priors=priors,
        log_likelihood=response,
        axes=recon.axes,
        nuisance_axes=true.axes,
        prior_parameter_specifications=[mass(), *(ParameterSet({}) for _ in range(3))],
        log_likelihoodnormalisation=norm,
        bounds=[["log10", 0.5], ["linear", 0.5], ["linear", 0.5]],
    )
    marginals = scan.nuisance_log_marginalisation(measured_event_data=seen)
    done("marginals")
    names = [prior.name for prior in priors[1:]]
    tree = MTree()
    tree.create_tree(layout=["DM", {"bkg": names}])
    mixture = ScanOutput_StochasticTreeMixturePosterior(
        mixture_tree=tree,
        log_nuisance_marg_results=marginals,
        mixture_parameter_specifications={**dirichlet(["DM", "bkg"]), **dirichlet(names)},
        prior_parameter_specifications=scan.prior_parameter_specifications,
        shared_parameters={},
        event_weights=np.array(seen.nonzero_bin_data[1]),
    )
    clock = time.perf_counter()
    for i in range(2000):
        share = 0.1 + 0.8 * (i % 97) / 97
        mixture.ln_likelihood([share, 1 - share, 0.7, 0.2, 0.1, 0.2 + 0.01 * (i % 31)])
    rate = 2000 / (time.perf_counter() - clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**steps, "log_l_per_s": rate, "memory": peak}))


if __name__ == "__main__":
    main(sys.argv[1])
