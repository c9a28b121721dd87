"""Four real runs of H.E.S.S.: what is read of them, and the Crab that comes out."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from skycensus import ImportanceSampler, Prior
from skycensus.config import build, read_config
from skycensus.gamma.dl3 import read_run
from skycensus.gamma.photons import Background, photon_model
from skycensus.gamma.sky import Cone

EXAMPLE = Path(__file__).parents[2] / "examples" / "hess_crab" / "config.toml"

# Of the pulsar, in whose wind the nebula shines.
CRAB = (83.6331, 22.0145)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(shared, require_path):
    pytest.importorskip("gammapy")
    return require_path(shared / "data" / "hess")


def test_a_run_is_what_its_header_says(data):
    path = data / "data" / "hess_dl3_dr1_obs_id_023523.fits.gz"
    run = read_run(path, region=Cone(*CRAB, 1.0))
    assert np.allclose(run.pointing, (83.633333, 21.514444), atol=1e-5)
    assert abs(run.livetime - 1581.737) < 0.01
    assert abs(run.cut.low - 0.870964) < 1e-5 and run.cut.high == 100.0
    assert len(run.energy) == 7613
    assert run.used.sum() + sum(run.left_out.values()) == 7613
    galactic = read_run(path, region=Cone(184.5575, -5.7843, 1.0), frame="galactic")
    assert abs(int(galactic.used.sum()) - int(run.used.sum())) <= 2
    # A tenth of the largest area is reached below the header's threshold.
    assert read_run(path, region=Cone(*CRAB, 1.0), safe=0.1).cut.low < run.cut.low


def test_the_background_lies_as_the_photons_do(data):
    path = data / "data" / "hess_dl3_dr1_obs_id_023592.fits.gz"
    run = read_run(path, region=Cone(82.0133, 22.0144, 1.2), low=0.9, high=30.0)
    table = run.tables.background
    mirrored = replace(table, values=table.values[:, ::-1])
    likely = []
    for background in (table, mirrored):
        one = replace(run, tables=replace(run.tables, background=background))
        model = photon_model([one], {"ccr": Background()}, Prior({"ccr": 1.0}))
        likely.append(float(model.log_likelihood({"ccr": 1.0}).value))
    assert likely[0] > likely[1] + 2.0


def test_the_crab(data):
    inference = build(read_config(EXAMPLE, [f"data.path='{data}'"]))
    assert len(inference.inputs) == 0  # runs by their numbers, of an index
    sampler = ImportanceSampler(target_ess=500)
    result = sampler.run(inference.model.target(), jax.random.key(1))
    draws = result.equal_weight_draws(2, 500)
    lon, lat = (np.mean(draws[n]) for n in ("lon", "lat"))
    assert abs(lon - CRAB[0]) * np.cos(np.deg2rad(CRAB[1])) < 0.02
    assert abs(lat - CRAB[1]) < 0.02
    # gammapy's fit in bins of the same runs, which shares photons and response.
    for value, want, error in (
        (lon, 83.6206, 0.0032),
        (lat, 22.0231, 0.0030),
        (np.mean(draws["index"]), 2.655, 0.073),
        (np.mean(draws["amplitude"]), 4.61e-11, 0.30e-11),
    ):
        assert abs(value - want) < 1.5 * error
    # Aharonian et al. 2006, A&A 457, 899, of other runs: 2.6 and 3.5e-11.
    assert abs(np.mean(draws["index"]) - 2.6) < 0.1 + 2 * np.std(draws["index"])
    for run in (23523, 23526, 23559, 23592):
        assert 0.5 < np.mean(draws[f"norm_{run}"]) < 2.0
