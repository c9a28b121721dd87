"""Mock catalogues: calibrated draws, detection by its probability, counts, files."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from skycensus.density import Joint, Mixture
from skycensus.distributions import PowerLaw
from skycensus.errors import InputError
from skycensus.gw.banana import BananaErrors, banana_draws
from skycensus.gw.cosmology import FlatLambdaCDM
from skycensus.gw.measurement import BoundedPrior, MeasurementModel
from skycensus.gw.mock import (
    SensitiveVolume,
    SnrDetection,
    broad_proposal,
    chirp_mass_volume,
    draw_found_injections,
    simulate_catalogue,
)
from skycensus.gw.mock_files import write_catalogue

TRUTH = {"log_rate_0": 5.0, "alpha_pl_0": 2.0, "beta_pl_0": 0.0, "mmin_pl_0": 10.0}
TRUTH |= {"mmax_pl_0": 50.0}


def power_law(h=TRUTH):
    """The population of the tutorial: one power law in each mass."""
    low, high = h["mmin_pl_0"], h["mmax_pl_0"]
    masses = Joint(
        {
            "mass_1_source": PowerLaw(-h["alpha_pl_0"], low, high),
            "mass_2_source": lambda t: PowerLaw(h["beta_pl_0"], low, t["mass_1_source"]),
        }
    )
    return Mixture({"pl_0": masses}, log_weights={"pl_0": h["log_rate_0"]})


def unit_detection(theta):
    return jnp.ones_like(theta["mass_1_source"])


class Fixed:
    """A density given by draws that were made elsewhere; only sampling is wanted of it."""

    def __init__(self, draw, names):
        self._draw, self.names = draw, names

    def log_prob(self, theta):
        raise NotImplementedError

    def sample(self, key, sample_shape=()):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        draws = self._draw(rng, sample_shape[0])
        return {name: draws[name] for name in self.names}


LOW, HIGH = 5.0, 80.0
NEAR, FAR = 0.02, 1.0


def uniform_masses(rng, size):
    """Uniform in the triangle of component masses: two uniform numbers, put in order."""
    pair = np.sort(rng.uniform(LOW, HIGH, (2, size)), axis=0)
    return {"mass_1_source": pair[1], "mass_2_source": pair[0]}


def uniform_volume(rng, size):
    z = np.linspace(NEAR, FAR, 4001)
    slope = np.asarray(FlatLambdaCDM().differential_comoving_volume(z))
    volume = np.concatenate([[0.0], np.cumsum(slope[1:] + slope[:-1])])
    return np.interp(rng.uniform(size=size) * volume[-1], volume, z)


def effective_spin(rng, q, a_max):
    chi = rng.uniform(0.0, a_max, (2, len(q))) * rng.uniform(-1.0, 1.0, (2, len(q)))
    return (chi[0] + q * chi[1]) / (1.0 + q)


def calibrated(catalogue, least=0.01):
    for name, ranks in catalogue.ranks().items():
        p = stats.kstest(ranks, "uniform").pvalue
        assert p > least, (name, p)


# ---- calibration --------------------------------------------------------------------------------


def test_draws_of_the_masses_are_calibrated():
    density = Fixed(uniform_masses, ("mass_1_source", "mass_2_source"))
    catalogue = simulate_catalogue(
        jax.random.key(1),
        density,
        unit_detection,
        prior=BoundedPrior(mass=(LOW, HIGH)),
        num_draws=200,
        num_events=800,
    )
    calibrated(catalogue)
    # Where a mass ratio is above or below its truth is another question than for either mass.
    q = [
        np.mean(
            e.draws["mass_2_source"] * e.truth["mass_1_source"]
            < e.truth["mass_2_source"] * e.draws["mass_1_source"]
        )
        for e in catalogue.events
    ]
    assert stats.kstest(q, "uniform").pvalue > 0.01


@pytest.mark.slow
def test_draws_of_masses_redshift_and_spin_are_calibrated():
    a_max = 0.8

    def draw(rng, size):
        masses = uniform_masses(rng, size)
        q = masses["mass_2_source"] / masses["mass_1_source"]
        return {
            "mass_1_source": masses["mass_1_source"],
            "mass_ratio": q,
            "redshift": uniform_volume(rng, size),
            "chi_eff": effective_spin(rng, q, a_max),
            "eccentricity": rng.uniform(0.0, 0.3, size),
        }

    names = ("mass_1_source", "mass_ratio", "redshift", "chi_eff", "eccentricity")
    prior = BoundedPrior(
        names={
            "masses": "uniform-source-components",
            "distance": "comoving-volume",
            "spins": {"name": "isotropic-uniform", "a_max": a_max},
            "eccentricity": "uniform",
        },
        mass=(LOW, HIGH),
        redshift=(NEAR, FAR),
        others={"eccentricity": (0.0, 0.3)},
    )
    catalogue = simulate_catalogue(
        jax.random.key(2),
        Fixed(draw, names),
        unit_detection,
        prior=prior,
        num_draws=200,
        num_events=250,
    )
    calibrated(catalogue)


@jax.jit
def amplitude(theta):
    """A signal-to-noise ratio: the leading power of the chirp mass, and of the distance."""
    m1, m2 = theta["mass_1_source"], theta["mass_2_source"]
    mass = (m1 * m2) ** 0.6 / (m1 + m2) ** 0.2 * (1.0 + theta["redshift"])
    distance = FlatLambdaCDM().luminosity_distance(theta["redshift"])
    return 8.0 * (mass / 30.0) ** (5 / 6) * 2500.0 / distance


@pytest.mark.slow
def test_a_threshold_on_the_data_keeps_them_calibrated():
    """Every draw is as likely to have been the truth, for data above the threshold too."""

    def draw(rng, size):
        return uniform_masses(rng, size) | {"redshift": uniform_volume(rng, size)}

    catalogue = simulate_catalogue(
        jax.random.key(3),
        Fixed(draw, ("mass_1_source", "mass_2_source", "redshift")),
        measurement=MeasurementModel(snr=amplitude),
        prior=BoundedPrior(mass=(LOW, HIGH), redshift=(NEAR, FAR)),
        num_draws=200,
        num_events=250,
    )
    calibrated(catalogue)
    assert min(event.data["snr"] for event in catalogue.events) > 8.0
    assert catalogue.num_mergers > 250


@pytest.mark.slow
@pytest.mark.parametrize(
    ("masses", "distance"),
    [
        ("uniform-detector-components", "luminosity-distance-squared"),
        ("log-uniform-source-components", "source-frame"),
    ],
)
def test_draws_agree_with_a_brute_force_posterior(masses, distance):
    """Draws of one event against importance weights of draws of the prior, in every parameter."""
    prior = BoundedPrior(
        names={"masses": masses, "distance": distance}, mass=(LOW, HIGH), redshift=(NEAR, FAR)
    )
    model = MeasurementModel()
    analysis = model.prepare(("mass_1_source", "mass_2_source", "redshift"), prior)
    truth = {"mass_1_source": 40.0, "mass_2_source": 30.0, "redshift": 0.3}
    data, draws = analysis.observe(np.random.default_rng(4), truth, 20_000, 10.0)

    rng = np.random.default_rng(5)
    m = uniform_masses(rng, 1_000_000)
    m1, m2, z = m["mass_1_source"], m["mass_2_source"], rng.uniform(NEAR, FAR, 1_000_000)
    cosmology = FlatLambdaCDM()
    d = np.asarray(cosmology.luminosity_distance(z))
    if masses.startswith("log"):
        volume = np.asarray(cosmology.differential_comoving_volume(z))
        log_w = -np.log(m1 * m2) + np.log(volume / (1.0 + z))
    else:
        slope = np.asarray(cosmology.log_luminosity_distance_slope(z))
        log_w = 2.0 * np.log1p(z) + 2.0 * np.log(d) + slope
    mass = (m1 * m2) ** 0.6 / (m1 + m2) ** 0.2 * (1.0 + z)
    widths = 0.8 * np.array([0.08, 0.09, 0.21])
    measured = [np.log(mass), np.log(m1 * m2 / (m1 + m2) ** 2), np.log(d)]
    names = ("chirp_mass", "mass_ratio", "luminosity_distance")
    for y, name, width in zip(measured, names, widths, strict=True):
        log_w = log_w - 0.5 * ((y - data[name]) / width) ** 2
    w = np.exp(log_w - log_w.max())
    w /= w.sum()
    error = math.sqrt(np.sum(w**2) + 1.0 / 20_000)
    for name, x in (("mass_1_source", m1), ("mass_2_source", m2), ("redshift", z)):
        mean = np.sum(w * x)
        sd = math.sqrt(np.sum(w * (x - mean) ** 2))
        assert abs(draws[name].mean() - mean) < 4.0 * sd * error, name
        assert abs(draws[name].std() - sd) < 5.0 * sd * error, name


def test_draws_lie_in_the_range_of_the_prior():
    prior = BoundedPrior(mass=(9.0, 55.0))
    catalogue = simulate_catalogue(
        jax.random.key(6), power_law(), chirp_mass_volume(), prior=prior, num_draws=100
    )
    for event in catalogue.events:
        assert all(len(x) == 100 for x in event.draws.values())
        m1, m2 = event.draws["mass_1_source"], event.draws["mass_2_source"]
        assert np.all((m2 >= 9.0 - 1e-4) & (m2 <= m1) & (m1 <= 55.0 + 1e-4))


def test_a_width_that_is_measured_well_gives_back_the_truth():
    model = MeasurementModel(chirp_mass=1e-5, symmetric_mass_ratio=1e-5)
    catalogue = simulate_catalogue(
        jax.random.key(7), power_law(), chirp_mass_volume(), measurement=model, num_draws=50
    )
    for event in catalogue.events:
        mc = [
            (x["mass_1_source"] * x["mass_2_source"]) ** 0.6
            / (x["mass_1_source"] + x["mass_2_source"]) ** 0.2
            for x in (event.draws, event.truth)
        ]
        np.testing.assert_allclose(mc[0], mc[1], rtol=1e-4)


def masses_snr(theta):
    return 9.0 * ((theta["mass_1_source"] + theta["mass_2_source"]) / 40.0) ** 0.8


def shape_log_posterior(catalogue, p_det, slopes):
    """ln L of the slope with the rate integrated out, written out with sums and a quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    m1 = (30.0 + 20.0 * nodes)[:, None]
    m2 = 10.0 + (m1 - 10.0) * 0.5 * (1.0 + nodes)
    found = np.asarray(p_det({"mass_1_source": m1 + 0.0 * m2, "mass_2_source": m2})) @ weights
    powers = m1[:, 0] ** -slopes[:, None] * weights
    total = -len(catalogue.events) * np.log(powers @ found)
    for event in catalogue.events:
        a, b = event.draws["mass_1_source"], event.draws["mass_2_source"]
        a = a[(b >= 10.0) & (a <= 50.0)]
        # Draws of a flat prior in both masses carry no weight of their own.
        total += np.log(np.sum(a ** -slopes[:, None] / (a - 10.0), axis=1))
    return total


@pytest.mark.slow
@pytest.mark.parametrize("cut_on_data", [False, True])
def test_a_population_is_recovered_from_the_draws(cut_on_data):
    """The slope of m1 from twenty catalogues: its error has the size that each claims."""
    slopes = np.linspace(-3.0, 7.0, 101)
    scores = []
    # Measured so well that every event has draws where the population is.
    widths: dict[str, Any] = {"chirp_mass": 0.03, "symmetric_mass_ratio": 0.03}
    detection: Any = None if cut_on_data else chirp_mass_volume(mass_high=50.0)
    p_det = detection or SnrDetection(masses_snr, 8.0)
    measurement = MeasurementModel(**widths, snr=masses_snr if cut_on_data else None)
    for i in range(20):
        catalogue = simulate_catalogue(
            jax.random.key(100 + i),
            power_law(),
            detection,
            measurement=measurement,
            prior=BoundedPrior(mass=(4.0, 120.0)),
            num_draws=1000,
            num_events=60,
        )
        log_l = shape_log_posterior(catalogue, p_det, slopes)
        p = np.exp(log_l - log_l.max())
        mean = np.average(slopes, weights=p)
        scores.append((mean - 2.0) / math.sqrt(np.average((slopes - mean) ** 2, weights=p)))
    assert abs(np.mean(scores)) < 3.0 / math.sqrt(20)
    assert 0.5 < np.std(scores) < 1.6


# ---- detection and counts -----------------------------------------------------------------------


def expected_detections():
    """By quadrature over both masses: T times the integral of rho V."""
    volume = chirp_mass_volume()
    nodes, weights = np.polynomial.legendre.leggauss(60)
    m1 = 30.0 + 20.0 * nodes
    u = 0.5 * (1.0 + nodes)
    p1 = m1**-2.0 / (1 / 10.0 - 1 / 50.0)
    m2 = 10.0 + (m1[:, None] - 10.0) * u
    v = volume.volume({"mass_1_source": m1[:, None], "mass_2_source": m2})
    return math.exp(5.0) * float((20.0 * weights * p1) @ v @ (0.5 * weights))


def test_the_tutorials_mergers_and_detections_are_poisson():
    # A catalogue of 70, as the tutorial has it, is 1.3 standard deviations above the mean.
    assert expected_detections() == pytest.approx(60.257, abs=1e-3)
    volume = chirp_mass_volume()
    assert volume.largest == pytest.approx(15.738586584049509, rel=1e-12)
    found, mergers = [], []
    for i in range(20):
        catalogue = simulate_catalogue(
            jax.random.key(i), power_law(), volume, num_draws=1, truth=TRUTH
        )
        found.append(len(catalogue.events))
        mergers.append(catalogue.num_mergers)
    for counts, mean in (
        (found, expected_detections()),
        (mergers, math.exp(5.0) * volume.largest),
    ):
        # Both are Poisson: their mean, and their variance, within four standard errors.
        assert abs(np.mean(counts) - mean) < 4.0 * math.sqrt(mean / 20)
        assert 4.0 < 19.0 * np.var(counts, ddof=1) / mean < 52.0


def test_exposure_multiplies_the_counts():
    catalogue = simulate_catalogue(
        jax.random.key(8), power_law(), chirp_mass_volume(), exposure=10.0, num_draws=1
    )
    mean = 10.0 * expected_detections()
    assert abs(len(catalogue.events) - mean) < 4.0 * math.sqrt(mean)


def test_found_mergers_follow_the_weighted_population():
    """The found are distributed as rho V: their mean mass against quadrature by injections."""
    catalogue = simulate_catalogue(
        jax.random.key(9), power_law(), chirp_mass_volume(), num_events=1000, num_draws=1
    )
    m1 = np.array([event.truth["mass_1_source"] for event in catalogue.events])
    sample = power_law().sample(jax.random.key(10), (200_000,))
    v = np.asarray(chirp_mass_volume()(sample))
    x = np.asarray(sample["mass_1_source"])
    assert abs(m1.mean() - np.average(x, weights=v)) < 4.0 * m1.std() / math.sqrt(1000)


def test_mergers_are_only_where_the_masses_are_ordered():
    both = Joint({"mass_1_source": dist.Normal(30.0, 5.0), "mass_2_source": dist.Normal(30.0, 5.0)})
    density = Mixture({"g": both}, log_weights={"g": math.log(400.0)})
    catalogue = simulate_catalogue(jax.random.key(11), density, unit_detection, num_draws=1)
    assert abs(len(catalogue.events) - 200.0) < 4.0 * math.sqrt(200.0)
    assert all(e.truth["mass_2_source"] <= e.truth["mass_1_source"] for e in catalogue.events)


def test_no_mergers_is_an_empty_catalogue():
    density = power_law(TRUTH | {"log_rate_0": -20.0})
    catalogue = simulate_catalogue(jax.random.key(12), density, chirp_mass_volume())
    assert catalogue.events == ()
    assert catalogue.num_mergers == 0
    assert catalogue.ranks() == {}


def test_a_catalogue_is_a_function_of_its_key():
    def make(seed):
        return simulate_catalogue(
            jax.random.key(seed), power_law(), chirp_mass_volume(), num_draws=20
        )

    one, same, other = make(1), make(1), make(2)
    assert len(one.events) == len(same.events)
    for a, b in zip(one.events, same.events, strict=True):
        assert a.truth == b.truth
        for name in a.draws:
            np.testing.assert_array_equal(a.draws[name], b.draws[name])
    assert one.events[0].truth != other.events[0].truth
    # The number of draws changes no truth and no data.
    more = simulate_catalogue(jax.random.key(1), power_law(), chirp_mass_volume(), num_draws=40)
    assert [e.data for e in more.events] == [e.data for e in one.events]


# ---- injections ---------------------------------------------------------------------------------


def test_injections_give_the_expected_number_of_detections():
    volume = chirp_mass_volume()
    proposal = broad_proposal(("mass_1_source", "mass_2_source"))
    found = draw_found_injections(jax.random.key(13), proposal, volume, 200_000)
    terms = np.exp(np.asarray(power_law().log_prob(found.theta)) - found.log_p_draw)
    each = found.scale / found.total_generated
    mean, error = each * terms.sum(), each * math.sqrt(np.sum(terms**2))
    assert error < 0.04 * mean
    assert abs(mean - expected_detections()) < 4.0 * error


def test_the_fraction_of_found_injections_is_the_mean_probability():
    found = draw_found_injections(jax.random.key(14), power_law(), chirp_mass_volume(), 100_000)
    p = expected_detections() / math.exp(5.0) / chirp_mass_volume().largest
    assert found.total_generated == 100_000
    error = math.sqrt(p * (1.0 - p) / 100_000)
    assert abs(len(found.log_p_draw) / 100_000 - p) < 4.0 * error


def test_detection_by_ratio_has_the_probability_of_its_threshold():
    detection = SnrDetection(lambda theta: theta["mass_1_source"], 10.0)
    p = detection({"mass_1_source": jnp.array([9.0, 10.0, 11.0])})
    np.testing.assert_allclose(p, [0.15865525393145707, 0.5, 0.8413447460685429], rtol=1e-12)


def test_a_broad_proposal_covers_other_parameters():
    names = ("mass_ratio", "mass_1_source", "redshift", "chi_eff")
    proposal = broad_proposal(names)
    sample = proposal.sample(jax.random.key(15), (1000,))
    assert set(sample) == set(names)
    assert np.all(np.isfinite(proposal.log_prob(sample)))
    with pytest.raises(InputError, match="mass_1_source with one of"):
        broad_proposal(("chirp_mass", "mass_ratio"))


# ---- banana errors ------------------------------------------------------------------------------


def test_banana_draws_scatter_about_a_shifted_value():
    m1, m2, snr = 30.0, 12.0, 24.0
    mc, eta = (m1 * m2) ** 0.6 / (m1 + m2) ** 0.2, m1 * m2 / (m1 + m2) ** 2
    shifts, widths = [], []
    for i in range(300):
        a, b = banana_draws(jax.random.key(i), m1, m2, 400, scale_Mc=0.5, scale_eta=0.25, snr=snr)
        x = (a * b) ** 0.6 / (a + b) ** 0.2 / mc - 1.0, a * b / (a + b) ** 2 / eta - 1.0
        shifts.append([v.mean() for v in x])
        widths.append([v.std() for v in x])
    # At this mass v is at its cap, so the chirp mass has the relative width 0.07 x 12 / snr.
    scatter, spread = np.std(shifts, axis=0), np.mean(widths, axis=0)
    np.testing.assert_allclose(scatter, [0.035, 0.015], rtol=0.15)
    np.testing.assert_allclose(spread, [0.5 * 0.035, 0.25 * 0.015], rtol=0.02)


def test_banana_draws_of_light_binaries_have_a_narrower_chirp_mass():
    a, b = banana_draws(jax.random.key(0), 3.0, 1.4, 20_000, scale_Mc=1.0, scale_eta=0.01, snr=12.0)
    mc = (3.0 * 1.4) ** 0.6 / 4.4**0.2
    v = (math.pi * mc * 4.925490947e-6 * 20.0) ** (1 / 3)
    width = np.std((a * b) ** 0.6 / (a + b) ** 0.2) / mc
    assert width == pytest.approx(0.45 * (v / 0.2) ** 7, rel=0.03)


def test_a_banana_catalogue_is_physical_and_says_that_it_is_not_calibrated():
    catalogue = simulate_catalogue(
        jax.random.key(16),
        power_law(),
        chirp_mass_volume(),
        measurement=BananaErrors(0.5, 0.5),
        num_draws=1000,
    )
    assert catalogue.record["calibrated"] is False
    lengths = [len(event.draws["mass_1_source"]) for event in catalogue.events]
    assert min(lengths) < 1000 == max(lengths)
    for event in catalogue.events:
        assert np.all(event.draws["mass_2_source"] <= event.draws["mass_1_source"])
    ranks = catalogue.ranks()["mass_1_source"]
    # Half the width of the scatter: far too many truths lie at the ends of their draws.
    assert np.mean((ranks < 0.05) | (ranks > 0.95)) > 0.2


# ---- files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    catalogue = simulate_catalogue(
        jax.random.key(17), power_law(), chirp_mass_volume(), num_draws=30, truth=TRUTH
    )
    proposal = broad_proposal(("mass_1_source", "mass_2_source"))
    found = draw_found_injections(jax.random.key(18), proposal, chirp_mass_volume(), 5000)
    return catalogue, found


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_files_hold_what_was_simulated(small, tmp_path):
    catalogue, found = small
    prior = {"alpha_pl_0": {"dist": "Uniform", "low": -5.0, "high": 5.0}}
    folder = write_catalogue(catalogue, tmp_path / "a" / "mock", injections=found, prior=prior)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["mock"]

    files = sorted((folder / "posteriors").iterdir())
    assert [f.stem for f in files] == [event.name for event in catalogue.events]
    for file, event in zip(files, catalogue.events, strict=True):
        assert file.read_text().split("\n", 1)[0] == "mass_1_source mass_2_source"
        table = np.loadtxt(file, skiprows=1)
        expected = np.column_stack(list(event.draws.values()))
        np.testing.assert_allclose(table, expected, rtol=1e-14)

    truth = json.loads((folder / "truth.json").read_text())
    assert truth["truth"] == TRUTH
    assert truth["n_events"] == len(catalogue.events)
    assert truth["n_samples"] == [30] * len(catalogue.events)
    assert truth["events"]["event_00"]["true"] == catalogue.events[0].truth
    record = json.loads((folder / "catalogue.json").read_text())
    assert record["reference_prior"]["names"] == {"masses": "uniform-source-components"}
    assert record["measurement"]["widths_at_threshold"]["ln_chirp_mass"] == 0.08
    assert record["calibrated"] is True
    assert json.loads((folder / "prior.json").read_text()) == prior

    with h5py.File(folder / "injections_found.hdf5") as file:
        assert set(file) == {"mass_1_source", "mass_2_source", "p_draw"}
        np.testing.assert_array_equal(file["mass_1_source"], found.theta["mass_1_source"])
        np.testing.assert_allclose(np.log(file["p_draw"][:]), found.log_p_draw, rtol=1e-12)
        assert file.attrs["total_generated"] == 5000
        assert file.attrs["T_obs_yr"] == 1.0
        assert file.attrs["VTmax_Gpc3"] == pytest.approx(15.738586584049509)


def test_injections_are_laid_out_as_in_the_reference(small, tmp_path, shared, require_path):
    path = require_path(shared / "reference" / "gwkokab" / "injections_found.hdf5")
    folder = write_catalogue(small[0], tmp_path / "mock", injections=small[1])
    with h5py.File(path) as theirs, h5py.File(folder / "injections_found.hdf5") as ours:
        assert set(ours) == set(theirs)
        assert set(ours.attrs) == set(theirs.attrs)
        assert ours.attrs["VTmax_Gpc3"] == pytest.approx(theirs.attrs["VTmax_Gpc3"], rel=1e-12)
        # The same estimate of the expected number of detections, within both errors.
        for file in (ours, theirs):
            theta = {n: file[n][:] for n in ("mass_1_source", "mass_2_source")}
            terms = np.exp(np.asarray(power_law().log_prob(theta))) / file["p_draw"][:]
            scale = file.attrs["VTmax_Gpc3"] / file.attrs["total_generated"]
            error = scale * math.sqrt(np.sum(terms**2))
            assert abs(scale * terms.sum() - expected_detections()) < 4.0 * error


def test_an_earlier_catalogue_is_replaced_only_on_request(small, tmp_path):
    folder = write_catalogue(small[0], tmp_path / "mock")
    before = digests(folder)
    with pytest.raises(InputError, match="overwrite=True"):
        write_catalogue(small[0], folder)
    assert digests(folder) == before
    (folder / "extra").write_text("x")
    write_catalogue(small[0], folder, injections=small[1], overwrite=True)
    assert set(digests(folder)) == set(before) | {"injections_found.hdf5"}
    assert [p.name for p in tmp_path.iterdir()] == ["mock"]


def test_something_else_is_never_replaced(small, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"something other than .* \(there is no catalogue.json\)"):
        write_catalogue(small[0], tmp_path / "precious", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a folder"):
        write_catalogue(small[0], tmp_path / "file", overwrite=True)
    with pytest.raises(InputError, match="cannot write"):
        write_catalogue(small[0], tmp_path / "file" / "mock")


def test_a_failed_write_leaves_nothing(small, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    folder = write_catalogue(small[0], tmp_path / "mock")
    before = digests(folder)
    monkeypatch.setattr(np, "savetxt", full)
    with pytest.raises(InputError, match="No space left"):
        write_catalogue(small[0], folder, overwrite=True)
    assert digests(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["mock"]


# ---- what bad input gets ------------------------------------------------------------------------


def simulate(*args, **kwargs):
    return simulate_catalogue(jax.random.key(0), *args, **{"num_draws": 5, **kwargs})


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("no detection", {"density": power_law()}),
        (
            "both a detection",
            {
                "density": power_law(),
                "detection": unit_detection,
                "measurement": MeasurementModel(snr=amplitude),
            },
        ),
        (
            "'largest' must be the largest",
            {"density": power_law(), "detection": SensitiveVolume(lambda t: t["mass_1_source"], 1)},
        ),
        (
            "detection probability is nan",
            {"density": power_law(), "detection": lambda t: t["mass_1_source"] * jnp.nan},
        ),
        (
            "no total rate",
            {"density": power_law().components["pl_0"], "detection": unit_detection},
        ),
        (
            "mergers are expected",
            {"density": power_law(TRUTH | {"log_rate_0": 40.0}), "detection": unit_detection},
        ),
        (
            "outside the range of the reference prior",
            {
                "density": power_law(),
                "detection": unit_detection,
                "prior": BoundedPrior(mass=(20.0, 30.0)),
            },
        ),
        ("num_draws=0", {"density": power_law(), "detection": unit_detection, "num_draws": 0}),
        (
            "exposure=nan",
            {"density": power_law(), "detection": unit_detection, "exposure": math.nan},
        ),
    ],
)
def test_bad_arguments_are_named(message, arguments):
    with pytest.raises(InputError, match=message):
        simulate(**arguments)


def extended(**more):
    return Mixture(
        {"pl": Joint({**power_law().components["pl_0"].factors, **more})}, log_weights={"pl": 3.0}
    )


def test_parameters_that_cannot_be_measured_are_named():
    with pytest.raises(InputError, match=r"no width for 'chi_ef'.*'chi_eff'"):
        simulate(extended(chi_ef=dist.Uniform(-1.0, 1.0)), unit_detection)
    with pytest.raises(InputError, match="two mass parameters"):
        simulate(
            Mixture({"z": Joint(redshift=dist.Uniform(0.1, 1.0))}, log_weights={"z": 1.0}),
            lambda theta: jnp.ones_like(theta["redshift"]),
        )
    with pytest.raises(InputError, match="state 'distance'"):
        simulate(
            extended(redshift=dist.Uniform(0.1, 1.0)),
            unit_detection,
            prior=BoundedPrior(names={"masses": "uniform-source-components"}),
        )
    with pytest.raises(InputError, match="banana errors are those of two"):
        simulate(
            extended(redshift=dist.Uniform(0.1, 1.0)), unit_detection, measurement=BananaErrors()
        )


def test_ranges_and_widths_are_checked():
    with pytest.raises(InputError, match="low=5 is not below high=5"):
        BoundedPrior(mass=(5, 5))
    with pytest.raises(InputError, match="above zero"):
        BoundedPrior(redshift=(0.0, 1.0))
    with pytest.raises(InputError, match="'chirp_mass': -1"):
        MeasurementModel(chirp_mass=-1)
    with pytest.raises(InputError, match="scale_eta=0"):
        BananaErrors(1.0, 0)
