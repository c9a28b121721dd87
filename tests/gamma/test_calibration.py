"""Simulated photons, not on a grid, through the whole pipeline: ranks of the truth are uniform."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import Prior, QuadratureSampler, calibrate
from skycensus.calibration import draw_truth
from skycensus.gamma.fold import Cut
from skycensus.gamma.photons import Background, Observation, Source, photon_model
from skycensus.gamma.response import synthetic_tables
from skycensus.gamma.simulate import simulate
from skycensus.gamma.sky import Box, Gaussian, Point
from skycensus.gamma.spectra import PowerLaw
from skycensus.keys import generator

NUM_PHOTONS = 200
TREE = {
    "nebula": Source(Gaussian(0.3, 0.1, 0.2), lambda h: PowerLaw(h["index"], low=0.01, high=300.0)),
    "bkg": {
        "ccr": Background(),
        "star": Source(Point(-0.8, 0.4), PowerLaw(2.3, low=0.01, high=300.0)),
    },
}
PRIOR = Prior(
    {
        "nebula, bkg": dist.Dirichlet(jnp.full(2, 3.0)),
        "ccr, star": dist.Dirichlet(jnp.full(2, 3.0)),
        "index": dist.Uniform(1.5, 3.0),
    }
)
EMPTY = Observation(
    tables=synthetic_tables(),
    pointing=(0.0, 0.0),
    livetime=1800.0,
    cut=Cut(Box((-1.5, 1.5), (-1.2, 1.2)), 0.5, 30.0),
)


def catalogue(key):
    truth_key, count_key, photon_key = jax.random.split(key, 3)
    truth = {n: float(x) for n, x in draw_truth(PRIOR, truth_key).items()}
    share = truth["bkg"]
    fractions = [truth["nebula"], share * truth["ccr"], share * truth["star"]]
    counts = generator(count_key).multinomial(NUM_PHOTONS, np.array(fractions) / sum(fractions))
    each = dict(zip(("nebula", "ccr", "star"), counts, strict=True))
    seen, _ = simulate(EMPTY, TREE, truth, each, photon_key)
    return truth, photon_model([seen], TREE, PRIOR)


@pytest.mark.slow
def test_ranks_of_the_truth_are_uniform(sized):
    found = calibrate(
        catalogue, QuadratureSampler(), jax.random.key(3), num_catalogues=sized(full=100, small=12)
    )
    assert found.p_value > 0.01, str(found)
    assert all(min(row) > 0.01 for row in found.p_values().values()), str(found)
