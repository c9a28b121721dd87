"""Configs whose data are tables: what is built, and that every problem is told in one line."""

from pathlib import Path

import jax
import numpy as np
import pytest
from astropy.table import Table

from skycensus import Gaussian, InputError, Quadrature
from skycensus.config import build, parse_config
from skycensus.figures import standard_figures
from skycensus.likelihood import LinearGrid
from skycensus.objects import object_posteriors
from skycensus.output import run_analysis
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


ONE = BINARIES.replace('"normal_log_period"', '"uniform_period"').split("[prior]")[0]
ECCENTRIC = ("data.orbit=eccentric", "data.num_candidates=1", "data.periods=[6.0, 16.0]")
UNKNOWN = 'data.jitter={dist = "LogUniform", low = 0.1, high = 3.0}'


@pytest.mark.slow
def test_eccentric_orbits_and_their_elements(folder, tmp_path):
    many = simulate_binaries(num_stars=2, num_epochs=20, lnsigma=-2.0)
    many.write(folder / "velocities.ecsv", overwrite=True)
    inference = made(ONE, folder, 'data.stars=["star 1"]', *ECCENTRIC, "output.figures=false")
    result = run_analysis(inference, tmp_path / "out")
    assert {"P", "a", "b", "v0", "e", "M0"} == set(result.draws)
    assert {"K", "omega"} == set(result.derived)
    np.testing.assert_allclose(result.derived["K"], np.hypot(*(result.draws[n] for n in "ab")))
    row = Table.read(tmp_path / "out" / "objects.ecsv")[0]
    # The simulated orbits are circular; the most probable one explains the data.
    assert row["e_95"] < 0.15
    best = {n: float(row[f"{n}_map"]) for n in ("P", "a", "b", "v0", "e", "M0")}
    measured = inference.measured
    assert measured.misfit({n: np.full(1, x) for n, x in best.items()})[0] < 40
    assert row["name"] == "star 1" and row["K_map"] == pytest.approx(np.hypot(best["a"], best["b"]))


def test_an_unknown_jitter_of_each_star(folder):
    form = made(BINARIES, folder, UNKNOWN).model.likelihood
    assert set(form.nodes) == {"lnP", "jitter"}
    assert float(form.nodes["jitter"].min()) >= 0.1 and float(form.nodes["jitter"].max()) <= 3.0


@pytest.mark.slow
def test_a_population_of_eccentricities(folder):
    text = BINARIES.replace("[prior]", 'eccentricity = "beta_eccentricity"\n[prior]')
    stars = 'data.stars=["star 0"]'
    inference = made(text, folder, *ECCENTRIC, stars, "prior.alpha_e=1.0", "prior.beta_e=1.0")
    flat = made(BINARIES, folder, *ECCENTRIC, stars, "data.max_eccentricity=0.95")
    h = {"mu": 2.3, "lnsigma": -0.5, "alpha_e": 1.0, "beta_e": 1.0}
    one, two = (float(m.model.log_marginals(h).value[0]) for m in (inference, flat))
    # Beta(1, 1) is uniform up to one, the default up to the largest eccentricity.
    assert one - two == pytest.approx(np.log(0.95), abs=1e-9)
    with pytest.raises(InputError, match=r"orbit = .circular., but the population has eccentrici"):
        made(text, folder)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('data.jitter={dist = "Normal", loc = 0.0, scale = 1.0}', "allows negative numbers"),
        ('data.jitter={dist = "LogUnifrom", low = 0.1, high = 3.0}', "did you mean 'LogUniform'"),
        ("data.jitter=-1.0", "jitter=-1 km/s must be"),
        ("data.orbit=elliptic", "orbit = 'elliptic' is not one of 'circular', 'eccentric'"),
    ],
)
def test_problems_of_orbits_are_told(folder, override, message):
    with pytest.raises(InputError, match=message):
        made(BINARIES, folder, override)


def test_figures_of_every_kind(folder, tmp_path):
    """Which figures are there, and that the line's colours are the memberships."""
    quick = ("sampler.kind=importance", "sampler.target_ess=400", "output.num_object_draws=40")
    inference = made(LINE, folder, *quick, "output.figures=false")
    result = run_analysis(inference, tmp_path / "out")
    table = Table.read(tmp_path / "out" / "objects.ecsv")
    objects = object_posteriors(inference.model, result, key=jax.random.key(0), num_draws=40)
    more = inference.more_figures(result, objects)
    points = more["line"].axes[0].collections[-1]
    np.testing.assert_allclose(points.get_array(), objects.membership["line"])
    assert len(table) == 10
    found = standard_figures(
        inference.model, result, key=jax.random.key(1), objects=objects,
        measured=inference.measured, num_draws=20,
    )  # fmt: skip
    assert {"corner", "trace", "predictive_check"} <= set(found)
    assert len(found["predictive_check"].axes) == 2
