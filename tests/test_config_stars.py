"""Configs whose data are tables: what is built, and that every problem is told in one line."""

from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from skycensus import Gaussian, InputError, Quadrature
from skycensus.config import build, parse_config
from skycensus.likelihood import LinearGrid
from skycensus.stars import lines
from skycensus.stars.binaries import simulate as simulate_binaries

CLUSTER = """
[data]
kind = "parallaxes"
path = "stars.ecsv"

[population]
distance = "normal_cluster"

[prior]
mu_r = {dist = "HalfNormal", scale = 2.0}
ln_std_r = {dist = "Uniform", low = -8.0, high = 0.0}
"""
LINE = """
[data]
kind = "points"
path = "points.ecsv"

[population]
line = "line_with_outliers"
intrinsic_scatter = true

[prior]
m = {dist = "Uniform", low = -20.0, high = 20.0}
b = {dist = "Normal", loc = 0.0, scale = 25.0}
w0 = 0.8
ln_s_out = {dist = "Uniform", low = -5.0, high = 5.0}
ln_s = -1.0
"""
BINARIES = """
[data]
kind = "radial_velocities"
path = "velocities.ecsv"
name = "star"
time = "time"
velocity = "velocity"
error = "error"
periods = [2.0, 60.0]

[population]
period = "normal_log_period"

[prior]
mu = {dist = "Uniform", low = 1.0, high = 10.0}
lnsigma = {dist = "Uniform", low = -2.0, high = 3.0}
"""


@pytest.fixture
def folder(tmp_path):
    Table({"parallax": [2.0, 1.9], "parallax_error": [0.1, 0.05]}).write(tmp_path / "stars.ecsv")
    lines.simulate(num_points=10, num_outliers=2).write(tmp_path / "points.ecsv")
    simulate_binaries(num_stars=3, lnsigma=-2.0).write(tmp_path / "velocities.ecsv")
    return tmp_path


def made(text: str, folder: Path, *overrides: str):
    return build(parse_config(text, folder / "config.toml", overrides))


@pytest.mark.parametrize(
    ("text", "form", "parameters"),
    [
        (CLUSTER, Quadrature, {"mu_r", "ln_std_r"}),
        (LINE, Gaussian, {"m", "b", "ln_s_out"}),
        (BINARIES, LinearGrid, {"mu", "lnsigma"}),
    ],
)
def test_every_kind_of_table_makes_its_form(folder, text, form, parameters):
    inference = made(text, folder)
    assert isinstance(inference.model.likelihood, form)
    assert set(inference.model.prior.names) == parameters
    assert inference.model.rate == "shape"
    assert list(inference.inputs.values()) != []
    assert Path(inference.config["data"]["path"]).is_absolute()


def test_jitter_adds_to_the_errors(folder):
    sharp, blurred = (made(BINARIES, folder, s) for s in ("data.jitter=0", "data.jitter=30"))
    h = {"mu": 2.3, "lnsigma": -0.5}
    one, two = (m.model.log_marginals(h).value for m in (sharp, blurred))
    # Velocities that an orbit fits well are less likely with a large error.
    assert np.all(np.asarray(one) > np.asarray(two))


def test_a_population_without_hyperparameters_is_one_object(folder):
    text = BINARIES.replace('"normal_log_period"', '"uniform_period"').split("[prior]")[0]
    inference = made(text, folder, 'data.stars=["star 1"]')
    assert inference.model.prior.names == ()
    assert inference.model.likelihood.names == ("star 1",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.kind=paralaxes", "kind = 'paralaxes' is not known .did you mean 'parallaxes'"),
        ("data.paralax=plx", "there is no key 'paralax' .did you mean 'parallax'"),
        ("data.path=none.fits", "there is no file '.*none.fits'"),
        ("data.error=sigma", "no column 'sigma' for error"),
        ("population.distance=normal", "distance = 'normal' is not known"),
        ("selection.kind=injections", "'file' is missing"),
        ("selection.kind=python", "'function' is missing"),
        ("prior.ln_std_r.low=1.0", "low=1.0 is not below high=0.0"),
    ],
)
def test_problems_are_told(folder, override, message):
    with pytest.raises(InputError, match=message):
        made(CLUSTER, folder, override)


def test_a_selection_is_refused(folder):
    settings = ("selection.kind=python", "selection.function=a.py:b")
    with pytest.raises(InputError, match="only posterior samples have a selection"):
        made(CLUSTER, folder, *settings)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.periods=[2.0]", "must be .shortest, longest. in days"),
        ("data.periods=[60.0, 2.0]", "is no range"),
        ("data.periods=[2.0, 99999.0]", "star 0: its epochs span .* cannot resolve"),
        ('data.stars=["star 7"]', "there is no star 'star 7'"),
    ],
)
def test_problems_of_velocities_are_told(folder, override, message):
    with pytest.raises(InputError, match=message):
        made(BINARIES, folder, override)
