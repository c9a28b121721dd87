"""Simulated photons, not on a grid, through the whole pipeline: is the truth where it should be?

Ranks of the true values in their posteriors are uniform, and the fractions are not biased.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from contracts import toy_spectra

from skycensus import ImportanceSampler, Prior, calibrate
from skycensus.calibration import draw_truth
from skycensus.gamma.annihilation import mixed_channels
from skycensus.gamma.fold import Cut
from skycensus.gamma.halo import Einasto, Halo
from skycensus.gamma.photons import Background, Observation, Source, photon_model
from skycensus.gamma.response import synthetic_tables
from skycensus.gamma.simulate import draw_counts, simulate
from skycensus.gamma.sky import Around, Box, Gaussian
from skycensus.gamma.spectra import PowerLaw

NUM_PHOTONS = 200
TREE = {
    "DM": Source(
        Around(0.0, 0.0, Halo(Einasto())),
        mixed_channels(toy_spectra(), ["b"], low=0.01),
    ),
    "bkg": {
        "ccr": Background(),
        "nebula": Source(Gaussian(0.6, 0.2, 0.2), PowerLaw(2.3, low=0.01, high=300.0)),
    },
}
PRIOR = Prior(
    {
        "DM, bkg": dist.Dirichlet(jnp.full(2, 3.0)),
        "ccr, nebula": dist.Dirichlet(jnp.full(2, 3.0)),
        "mass": dist.LogUniform(0.6, 7.5),
    }
)
EMPTY = Observation(
    tables=synthetic_tables(),
    pointing=(0.0, 0.0),
    livetime=1800.0,
    cut=Cut(Box((-1.5, 1.5), (-1.2, 1.2)), 0.1, 10.0),
)


def catalogue(key):
    truth_key, count_key, photon_key = jax.random.split(key, 3)
    truth = {n: float(x) for n, x in draw_truth(PRIOR, truth_key).items()}
    counts = draw_counts([EMPTY], TREE, truth, count_key, num_photons=NUM_PHOTONS)
    seen, _ = simulate(EMPTY, TREE, truth, counts, photon_key)
    return truth, photon_model([seen], TREE, PRIOR)


@pytest.mark.slow
def test_ranks_are_uniform_and_fractions_unbiased(sized):
    num = sized(full=100, small=4)
    found = calibrate(
        catalogue, ImportanceSampler(target_ess=400), jax.random.key(3), num_catalogues=num
    )
    assert found.p_value > 0.01, str(found)
    assert all(min(row) > 0.01 for row in found.p_values().values()), str(found)
    for name in ("DM", "ccr"):
        # (truth - mean) / sd of posteriors that are about Gaussian.
        pull = scipy.stats.norm.ppf(found.ranks[:, found.parameters.index(name)])
        # A tenth of a standard deviation, as far as so many catalogues can tell: pulls have sd one.
        assert abs(pull.mean()) < 0.1 + 2.0 / np.sqrt(num), str(found)
