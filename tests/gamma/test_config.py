"""Configs of photons: what is built of them, and that every problem is told in one line."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from astropy.table import QTable

from skycensus import InputError, Result
from skycensus.cli import main
from skycensus.config import build, parse_config, simulate_data
from skycensus.config.gamma import plan_of, seconds
from skycensus.config.gamma_parts import SKIES, SPECTRA, Place
from skycensus.gamma.halo import GeneralizedNFW, log_d_factor, log_j_within
from skycensus.gamma.photons import Background, Source
from skycensus.gamma.sky import Box, Cone, Gaussian, Point

TEXT = """
[data]
kind = "photons"
events = "photons.ecsv"
frame = "galactic"
response = "synthetic"
pointing = [0.0, 0.0]
livetime = "30 min"
region = {lon = [-1.0, 1.0], lat = [-0.8, 0.8]}
energy = [2.0, 30.0]

[sources.star]
sky = {kind = "point", lon = 0.3, lat = 0.1}
spectrum = {kind = "power_law", index = "index"}

[sources.ccr]
kind = "background"
parent = "rest"

[sources.other]
sky = {kind = "point", lon = -0.5, lat = -0.2}
spectrum = {kind = "cutoff_power_law", index = 2.0, cutoff = 8.0}
parent = "rest"

[prior]
"star, rest" = {dist = "Dirichlet", concentration = [1.0, 1.0]}
"ccr, other" = {dist = "Dirichlet", concentration = [1.0, 1.0]}
index = {dist = "Uniform", low = 1.0, high = 4.0}

[truth]
star = 0.5
rest = 0.5
ccr = 0.6
other = 0.4
index = 2.4

[simulate]
num_photons = 120
"""


def config(folder: Path, *overrides: str, text: str = TEXT):
    return parse_config(text, folder / "config.toml", overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of simulated photons."""
    out = tmp_path_factory.mktemp("photons") / "catalogue"
    said = simulate_data(config(out.parent), out)
    assert "photons of star" in said and "rest/ccr" in said
    return out


@pytest.fixture(scope="module")
def inference(folder):
    return build(config(folder, f"data.path='{folder}'"))


def test_simulated_photons_are_those_of_the_truth(folder):
    table = QTable.read(folder / "photons.ecsv")
    assert len(table) == 120 and table["energy"].unit == "TeV"
    assert set(table["component"]) == {"star", "rest/ccr", "rest/other"}
    assert json.loads((folder / "truth.json").read_text())["truth"]["index"] == 2.4
    record = json.loads((folder / "catalogue.json").read_text())
    assert record["kind"] == "photons" and sum(record["counts"].values()) == 120


def test_what_is_built(inference, folder):
    model = inference.model
    assert len(model.likelihood.names) == 120 and model.rate == "shape"
    assert set(model.prior.names) == {"star", "rest", "ccr", "other", "index"}
    assert list(model.likelihood.forms) == ["star", "rest/ccr", "rest/other"]
    # Where the truth lies beside the photons it is read.
    assert inference.truth == {"star": 0.5, "rest": 0.5, "ccr": 0.6, "other": 0.4, "index": 2.4}
    assert str(folder / "photons.ecsv") in inference.inputs
    assert inference.labels["index"] == r"$\Gamma$"
    # A run's config is that of another folder.
    assert inference.config["data"]["events"] == str(folder / "photons.ecsv")
    assert inference.config["data"]["response"] == "synthetic"


def test_it_runs_from_the_command_line(inference, folder, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(TEXT)
    settings = ["data.path='" + str(folder) + "'", "sampler.target_ess=300", "seed=2"]
    settings += ["output.num_object_draws=50", "output.num_marginal_draws=20"]
    settings += ["output.figures=false"]
    arguments = [x for setting in settings for x in ("--set", setting)]
    assert main(["run", str(path), "--out", str(tmp_path / "out"), *arguments]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    for name, truth in (("star", 0.5), ("index", 2.4), ("ccr", 0.6)):
        row = summary["parameters"][name]
        assert abs(row["mean"] - truth) < 4 * row["sd"]
    objects = QTable.read(tmp_path / "out" / "objects.ecsv")
    simulated = QTable.read(folder / "photons.ecsv")
    assert np.mean(objects["p_star"][simulated["component"] == "star"]) > 0.7
    assert np.mean(objects["p_star"][simulated["component"] != "star"]) < 0.3
    result = Result.load(tmp_path / "out" / "result.nc")
    figures = inference.more_figures(result, None)
    assert set(figures) == {"photons", "counts_spectrum", "spectra"}
    assert all(figure.get_axes() for figure in figures.values())


def test_check_says_what_would_be_run(folder, tmp_path, capsys):
    path = tmp_path / "config.toml"
    path.write_text(TEXT)
    assert main(["run", str(path), "--check", "--set", f"data.path='{folder}'"]) == 0
    assert "120 objects\n" in capsys.readouterr().out


def test_rates_and_runs_with_their_own_norms(folder):
    two = TEXT.replace('parent = "rest"\n\n[sources.other]', 'parent = "rest"\nnorm = "n_{run}"\n')
    two = two.split("[prior]")[0].replace('sky = {kind = "point", lon = -0.5', "#")
    text = (
        two[: two.index("#")]
        + """
[model]
rate = "poisson"
[prior]
star = {dist = "LogUniform", low = 1e-12, high = 1e-9}
ccr = 1.0
index = 2.4
"n_.*" = {dist = "LogNormal", loc = 0.0, scale = 0.3}
"""
    )
    names = '{name="a", events="photons.ecsv"}, {name="b", events="photons.ecsv", livetime=600}'
    text = text.replace('events = "photons.ecsv"', f"observations = [{names}]")
    model = build(config(folder, f"data.path='{folder}'", text=text)).model
    assert model.rate == "poisson" and len(model.likelihood.names) == 240
    assert set(model.prior.names) == {"star", "n_a", "n_b"}
    assert model.selection is not None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.livetime='5 parsec'"], "is no time"),
        (["data.livetime=-3"], "must be positive"),
        (["data.pointing=[1.0]"], r"pointing = \[1.0\] must be \[lon, lat\]"),
        (["data.energy=[3.0, 1.0]"], "must be positive and rise"),
        (["data.region={lon=1.0, lat=2.0}"], "lon = 1.0 is not a list of numbers"),
        (["data.region={lon=[1.0, 2.0], lat=[1.0]}"], "numbers with a radius"),
        (["data.response='ctao-prod5-sout-20deg'"], "did you mean 'ctao-prod5-south-20deg'"),
        (["data.events='none.ecsv'"], "events: there is no file"),
        (["data.runs=[1]"], "give one of runs, events and observations, not runs and events"),
        (["sources.star.sky.kind='pont'"], r"\[sources.star\] sky: kind = 'pont' is not known"),
        (["sources.star.sky.lan=3"], "there is no key 'lan'.*did you mean 'lon'"),
        (["sources.star.spectrum.kind='powerlaw'"], "did you mean 'power_law'"),
        (["sources.star.parent='other'"], "parent 'other' is a source itself"),
        (["sources.star.kind='bakground'"], "did you mean 'background'"),
        (["sources.ccr.norm='n_{x}'"], "may hold {run} and no other braces"),
        (["sources.two words={kind='background'}"], "expected section.key=value"),
        (["population.mass='power_law_peak'"], "photons have .sources.; leave it out"),
        (["selection.kind='injections'", "selection.file='x'"], "photons have their response"),
        (["prior.cutoff=3.0"], "prior 'cutoff' is for an unknown parameter"),
        (["truth.indx=3.0"], "'indx' is no hyperparameter.*did you mean 'index'"),
    ],
)
def test_every_problem_is_told(folder, overrides, said):
    with pytest.raises(InputError, match=said):
        build(config(folder, f"data.path='{folder}'", *overrides))


def test_all_problems_are_told_at_once(folder):
    wrong = ["data.livetime=-3", "sources.star.sky.kind='pont'", "sampler.kind='nut'"]
    with pytest.raises(InputError) as error:
        build(config(folder, f"data.path='{folder}'", *wrong))
    told = str(error.value).splitlines()
    assert len(told) == 3 and all(line.startswith("config.toml [") for line in told)


def test_wrong_runs_are_told(tmp_path):
    text = TEXT.replace('events = "photons.ecsv"', "runs = [1, 2]")
    with pytest.raises(InputError, match="path: there is no folder") as error:
        build(config(tmp_path, f"data.path='{tmp_path / 'none'}'", text=text))
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(InputError, match="no file matches"):
        build(config(tmp_path, "data.runs=['*.fits.gz']", text=text))
    with pytest.raises(InputError, match="runs have photons"):
        simulate_data(config(tmp_path, text=text), tmp_path / "out")


def test_what_a_simulation_needs(tmp_path):
    with pytest.raises(InputError, match="give either num_photons or counts"):
        simulate_data(config(tmp_path, text=TEXT.replace("num_photons = 120", "")), tmp_path / "a")
    with pytest.raises(InputError, match=r"no value of \['index'\]"):
        simulate_data(config(tmp_path, text=TEXT.replace("index = 2.4", "")), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_numpy_files_have_no_units(folder, tmp_path):
    table = QTable.read(folder / "photons.ecsv")
    columns = [table[n].value for n in ("energy", "glon", "glat")]
    np.save(tmp_path / "photons.npy", np.stack(columns, axis=1))
    here = (f"data.path='{tmp_path}'", "data.events='photons.npy'")
    with pytest.raises(InputError, match="plain numbers without units"):
        build(config(folder, *here))
    units = "data.units={energy='TeV', lon='deg', lat='deg'}"
    assert len(build(config(folder, *here, units)).model.likelihood.names) == 120


def test_seconds():
    assert seconds("5 h") == 18000.0 and seconds(12.0) == 12.0


# ---- skies and spectra ---------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path):
    return Place(config(tmp_path), "galactic", (0.0, 0.0), [])


@pytest.mark.parametrize(
    ("kind", "keys", "at"),
    [
        ("disk", {"lon": 0.1, "lat": 0.2, "radius": 0.3}, (0.1, 0.2)),
        ("isotropic", {}, (5.0, 5.0)),
        ("halo", {"profile": "nfw", "scale_radius": 20.0}, (0.5, 0.0)),
        ("halo", {"profile": "einasto", "alpha": 0.2, "decay": True}, (0.5, 0.0)),
    ],
)
def test_skies_shine_where_they_are(place, kind, keys, at):
    sky = SKIES[kind](**keys).build(place)
    assert np.isfinite(sky(*at)) and sky(*at) > 0


def test_a_halo_is_its_j_factor_and_not_its_logarithm(place):
    from skycensus.gamma.halo import Einasto, log_j_factor

    sky = SKIES["halo"](profile="einasto").build(place)
    np.testing.assert_allclose(
        np.log(sky(np.array([0.3, 2.0]), 0.0)),
        np.asarray(log_j_factor(Einasto(), np.array([0.3, 2.0]))),
        rtol=1e-5,
    )


HALO = """{kind = "halo", profile = "generalized_nfw", slope = "slope", decay = %s}"""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["sky.distance=-8.0"], "distance = -8 must be above 0"),
        (["sky.scale_radius=0.0"], "scale_radius = 0 must be above 0"),
        (["sky.profile='burkert'"], "a profile 'burkert' has no slope; leave it out"),
        (["prior.slope.high=1.7"], "slope = 'slope' has a prior from 0.2 to 1.7; give one within"),
        (["sky.local_density='rho'", "prior.rho={dist='Normal', loc=0.4, scale=0.1}"], "'rho' has"),
    ],
)
def test_what_a_halo_allows(settings, said):
    text = TEXT.replace('{kind = "point", lon = 0.3, lat = 0.1}', HALO % "false")
    text = text.replace(
        "[truth]", "[prior.slope]\ndist = 'Uniform'\nlow = 0.2\nhigh = 1.3\n[truth]"
    )
    settings = [s.replace("sky.", "sources.star.sky.") for s in settings]
    plan_of(config(Path(), text=text), simulated=True)
    with pytest.raises(InputError) as error:
        plan_of(config(Path(), *settings, text=text), simulated=True)
    assert "[sources.star] sky: " in str(error.value) and said in str(error.value)


def test_how_steep_a_halo_may_be():
    given = {"profile": "generalized_nfw", "slope": 1.6}
    assert list(SKIES["halo"](**given).faults({})) == ["slope = 1.6 must be from 0 to below 1.5."]
    assert not list(SKIES["halo"](**given, decay=True).faults({}))


@pytest.mark.slow
def test_a_halo_with_a_free_shape(tmp_path):
    text = TEXT.replace('{kind = "point", lon = 0.3, lat = 0.1}', HALO % "true")
    text = text.replace(
        "[truth]", "[prior.slope]\ndist = 'Uniform'\nlow = 0.2\nhigh = 1.3\n[truth]"
    )
    text = text.replace("index = 2.4", "index = 2.4\nslope = 0.9")
    simulate_data(config(tmp_path, text=text), tmp_path / "out")
    made = build(config(tmp_path, f"data.path='{tmp_path / 'out'}'", text=text))
    assert made.labels["slope"] == r"$\gamma$"
    h = {**made.truth, "slope": 1.0}
    assert np.isfinite(jax.jit(lambda h: made.model.log_likelihood(h).value)(h))
    profile = GeneralizedNFW(1.0)
    middle = log_j_within(profile, 0.8, factor=log_d_factor)
    # Of the box, which is a little larger than the circle in it.
    assert 0.0 < float(jax.jit(made.derived)(h)["log10_D_star"]) - middle / np.log(10.0) < 0.25


def test_a_name_makes_a_sky_move(place):
    assert SKIES["point"](lon=1.0, lat=2.0).build(place) == Point(1.0, 2.0)
    moving = SKIES["point"](lon="x", lat=2.0).build(place)
    assert moving({"x": 3.0}) == Point(3.0, 2.0)
    wide = SKIES["gaussian"](lon=1.0, lat=2.0, sigma="s").build(place)
    assert wide({"s": 0.2}) == Gaussian(1.0, 2.0, 0.2)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("power_law", {"index": "g", "amplitude": "a"}),
        ("log_parabola", {"index": "g", "curvature": 0.1, "amplitude": "a"}),
        ("cutoff_power_law", {"index": "g", "cutoff": 1e9, "amplitude": "a"}),
    ],
)
def test_amplitudes_are_fluxes_at_the_reference(place, kind, keys):
    spectrum = SPECTRA[kind](**keys).build(place)({"g": 2.0, "a": 3e-11})
    assert np.exp(spectrum.log_prob({"energy": 1.0})) == pytest.approx(3e-11, rel=1e-6)


def test_a_spectrum_from_a_table(place, tmp_path):
    import astropy.units as u

    energy = np.geomspace(0.1, 10.0, 20) * u.TeV
    flux = (energy.value**-2 * 1e-8) * u.Unit("cm-2 s-1 GeV-1")
    QTable({"energy": energy.to("GeV"), "flux": flux}).write(tmp_path / "flux.ecsv")
    found = SPECTRA["tabulated"](file="flux.ecsv", amplitude=2.0).build(place)({})
    assert np.exp(found.log_prob({"energy": 1.0})) == pytest.approx(2e-5, rel=1e-6)
    QTable({"energy": energy, "fux": flux}).write(tmp_path / "wrong.ecsv")
    with pytest.raises(InputError, match="no table with columns energy"):
        SPECTRA["tabulated"](file="wrong.ecsv").build(place)


def test_dark_matter(place, data_set):
    data_set("pppc")
    h = {"m": 1.0, "sv": 3e-26, "tau": 1e27, "w": 0.4}
    channels = {"b": 0.6, "W": "w"}
    found = SPECTRA["annihilation"](mass="m", channels=channels, sigma_v="sv").build(place)(h)
    mass_gev, photons = 1e3, SPECTRA["annihilation"](mass="m", channels=channels).build(place)(h)
    ratio = found.log_prob({"energy": 0.3}) - photons.log_shape(np.log(0.3))
    assert ratio == pytest.approx(np.log(3e-26 / (8 * np.pi * mass_gev**2)), rel=1e-9)
    decay = SPECTRA["decay"](mass="m", channels={"b": 1.0}, lifetime="tau").build(place)(h)
    # A particle of 1 TeV decays to quarks of half of that.
    assert decay.log_prob({"energy": 0.6}) == -np.inf
    assert np.isfinite(decay.log_prob({"energy": 0.4}))


def test_regions_and_components(inference, folder):
    from skycensus.config.gamma import _cut_of, _observations, _tree, plan_of
    from skycensus.config.schema import PhotonObservation

    box, low, high = _cut_of(
        PhotonObservation(region={"lon": [0.0, 1.0], "lat": [0.0, 2.0]}, energy=[1.0, 2.0]),
        needed=True,
    )
    assert box == Box((0.0, 1.0), (0.0, 2.0)) and (low, high) == (1.0, 2.0)
    cone, _, _ = _cut_of(
        PhotonObservation(region={"lon": 1, "lat": 2, "radius": 3}, energy=[1.0, 2.0]), needed=True
    )
    assert cone == Cone(1.0, 2.0, 3.0)
    plan, found = plan_of(config(folder, f"data.path='{folder}'"))
    (seen,) = _observations(plan, found)
    tree = _tree(plan, found, seen.cut.region)
    assert isinstance(tree["rest"]["ccr"], Background)
    assert isinstance(tree["star"], Source) and not tree["star"].is_fixed
    assert tree["rest"]["other"].is_fixed
