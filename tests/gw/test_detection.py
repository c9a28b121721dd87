import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skycensus.errors import InputError
from skycensus.gw.amplitude import relative_amplitude
from skycensus.gw.detection import (
    MEGAPARSEC_SECONDS,
    OBSERVING_TIME,
    SOLAR_MASS_SECONDS,
    MassProposal,
    SemiAnalyticDetection,
    draw_injections,
)
from skycensus.gw.noise import NOISE_CURVES


@pytest.fixture(scope="module")
def detection():
    return SemiAnalyticDetection()


def snr_by_quadrature(curve, mass_1, mass_2, low=10.0, chi=0.0):
    """Optimal SNR at 1 Mpc on a frequency grid of its own."""
    total = (mass_1 + mass_2) * SOLAR_MASS_SECONDS
    eta = mass_1 * mass_2 / (mass_1 + mass_2) ** 2
    # Eighty panels of sixteen nodes: the amplitude's second derivative jumps where its pieces join.
    x, w = np.polynomial.legendre.leggauss(16)
    panel = np.log(curve.high / low) / 80
    f = low * np.exp(panel * (np.arange(80)[:, None] + 0.5 * (x + 1.0))).ravel()
    w = np.tile(0.5 * panel * w, 80)
    alpha = relative_amplitude(f * total, np.array([eta]), np.array([chi]))[0]
    strain = np.sqrt(5.0 / 24.0 * eta) * np.pi ** (-2.0 / 3.0) * total ** (5.0 / 6.0)
    strain = strain * f ** (-7.0 / 6.0) * alpha / MEGAPARSEC_SECONDS
    return np.sqrt(4.0 * np.sum(w * f * strain**2 / curve.asd(f) ** 2))


@pytest.mark.parametrize("name", ["aLIGO-early-high", "aLIGO-design"])
def test_table_agrees_with_quadrature(name):
    detection = SemiAnalyticDetection(name)
    rng = np.random.default_rng(0)
    mass_1 = np.exp(rng.uniform(np.log(3.0), np.log(300.0), 60))
    ratio = rng.uniform(0.05, 1.0, 60)
    theta = {"mass_1": mass_1, "mass_ratio": ratio, "luminosity_distance": np.ones(60)}
    exact = [
        snr_by_quadrature(NOISE_CURVES[name], m, m * q) for m, q in zip(mass_1, ratio, strict=True)
    ]
    np.testing.assert_allclose(detection.snr(theta), exact, rtol=3e-4)


def test_table_with_spin_agrees_with_quadrature():
    detection = SemiAnalyticDetection(aligned_spin=True)
    rng = np.random.default_rng(1)
    mass_1, ratio = rng.uniform(5.0, 100.0, 40), rng.uniform(0.1, 1.0, 40)
    chi = rng.uniform(-0.9, 0.9, 40)
    theta = {"mass_1": mass_1, "mass_ratio": ratio, "chi_eff": chi, "luminosity_distance": 1.0}
    exact = [
        snr_by_quadrature(detection.noise, m, m * q, chi=x)
        for m, q, x in zip(mass_1, ratio, chi, strict=True)
    ]
    np.testing.assert_allclose(detection.snr(theta), exact, rtol=1e-3)


# Detector-frame masses, and the SNR at 1 Mpc from 10 Hz by LALSimulation's IMRPhenomD with the
# published tables of LIGO-P1200087-v18.
LAL = [
    ("aLIGO-early-high", 1.4, 1.4, 1421.21),
    ("aLIGO-early-high", 10.5, 10.5, 6822.45),
    ("aLIGO-early-high", 24.0, 6.0, 6553.73),
    ("aLIGO-early-high", 30.0, 30.0, 15467.01),
    ("aLIGO-early-high", 39.6, 31.9, 17732.82),
    ("aLIGO-early-high", 75.0, 75.0, 31919.43),
    ("aLIGO-design", 1.4, 1.4, 3481.27),
    ("aLIGO-design", 30.0, 30.0, 37933.20),
    ("aLIGO-design", 75.0, 75.0, 77747.60),
    ("aLIGO-design", 200.0, 160.0, 129751.81),
]


@pytest.mark.parametrize("name, mass_1, mass_2, snr", LAL)
def test_agrees_with_lalsimulation(name, mass_1, mass_2, snr):
    theta = {"mass_1": mass_1, "mass_2": mass_2, "luminosity_distance": 1.0}
    assert float(SemiAnalyticDetection(name).snr(theta)) == pytest.approx(snr, rel=3e-3)


# Abbott et al. 2018 (Living Reviews in Relativity 21, 3), table 2: the upper ends of the BNS
# (1.4 + 1.4) and BBH (30 + 30) ranges in Mpc, radii of the sphere with the sensitive volume.
RANGES = [
    ("aLIGO-early-high", 80.0, 775.0),
    ("aLIGO-mid-high", 120.0, 1110.0),
    ("aLIGO-late-high", 170.0, 1490.0),
    ("aLIGO-design", 190.0, 1640.0),
]


@pytest.mark.parametrize("name, neutron_stars, black_holes", RANGES)
def test_published_ranges(name, neutron_stars, black_holes):
    detection = SemiAnalyticDetection(name)
    mass = np.array([1.4, 30.0])
    volume = detection.sensitive_volume({"mass_1_source": mass, "mass_2_source": mass})
    radius = 1e3 * (3.0 * np.asarray(volume) / (4.0 * np.pi)) ** (1.0 / 3.0)
    # That of neutron stars is quoted without cosmology and the merger: 2 to 4 % more.
    assert radius[0] == pytest.approx(neutron_stars, rel=0.04)
    assert radius[1] == pytest.approx(black_holes, rel=0.006)


def test_observing_time():
    assert OBSERVING_TIME["O1"] == pytest.approx(0.133, abs=1e-3)
    assert OBSERVING_TIME["O2"] == pytest.approx(0.323, abs=1e-3)


def test_probability_goes_from_one_to_zero(detection):
    z = jnp.geomspace(1e-6, 5.0, 200)
    theta = {"mass_1_source": 30.0, "mass_ratio": 0.8, "redshift": z}
    p = np.asarray(detection.p_det(theta))
    assert p[0] == pytest.approx(1.0, abs=1e-6)
    assert p[-1] == 0.0
    assert np.all(np.diff(p) <= 0.0)
    np.testing.assert_allclose(np.exp(detection.log_p_det(theta)), p)
    here = {"mass_1_source": 30.0, "mass_ratio": 0.8, "redshift": 0.0}
    assert float(detection.p_det(here)) == 1.0


def test_horizon_has_the_threshold(detection):
    masses = {"mass_1_source": jnp.array([1.4, 10.0, 40.0]), "mass_ratio": jnp.ones(3)}
    z = detection.horizon_redshift(masses)
    np.testing.assert_allclose(detection.snr({**masses, "redshift": z}), 8.0, rtol=1e-6)


def test_volume_is_the_integral_over_redshift(detection):
    z = np.linspace(1e-6, 0.6, 20_001)
    theta = {"mass_1_source": 35.0, "mass_ratio": 0.9, "redshift": z}
    cosmology = detection.cosmology
    value = detection.p_det(theta) * cosmology.differential_comoving_volume(z) / (1.0 + z)
    volume = detection.sensitive_volume({"mass_1_source": jnp.array(35.0), "mass_ratio": 0.9})
    assert float(volume) == pytest.approx(np.trapezoid(value, z), rel=1e-4)


def test_coordinates_agree(detection):
    z = 0.2
    distance = detection.cosmology.luminosity_distance(z)
    same = [
        {"mass_1_source": 30.0, "mass_ratio": 0.5, "redshift": z},
        {"mass_1_source": 30.0, "mass_2_source": 15.0, "redshift": z},
        {"mass_1_source": 15.0, "mass_2_source": 30.0, "luminosity_distance": distance},
        {"mass_1": 36.0, "mass_2": 18.0, "luminosity_distance": distance},
        {"mass_1": 36.0, "mass_ratio": 0.5, "redshift": z},
    ]
    values = [float(detection.p_det(theta)) for theta in same]
    np.testing.assert_allclose(values, values[0], rtol=1e-9)


def test_gradients_are_finite_and_nan_is_not_hidden(detection):
    def p(m, q, z):
        return detection.p_det({"mass_1_source": m, "mass_ratio": q, "redshift": z})

    gradient = jax.jit(jax.vmap(jax.grad(p, argnums=(0, 1, 2))))
    points = jnp.array([[30.0, 0.5, 0.1], [30.0, 1.0, 3.0], [9e3, 0.9, 0.5], [2.0, 0.01, 1e-3]])
    assert np.all(np.isfinite(gradient(*points.T)))
    step = 1e-5
    slope = (p(30.0 + step, 0.5, 0.1) - p(30.0 - step, 0.5, 0.1)) / (2.0 * step)
    assert float(gradient(*points.T)[0][0]) == pytest.approx(float(slope), rel=1e-6)
    for bad in ((jnp.nan, 0.5, 0.1), (30.0, jnp.nan, 0.1), (30.0, 0.5, jnp.nan)):
        assert np.isnan(p(*bad))


def test_spin_along_the_orbit_is_louder():
    detection = SemiAnalyticDetection(aligned_spin=True)
    theta = {"mass_1_source": 30.0, "mass_ratio": 1.0, "redshift": 0.2}
    chi = jnp.array([-0.8, 0.0, 0.8])
    snr = detection.snr({**theta, "chi_eff": chi})
    assert snr[0] < snr[1] < snr[2]
    plain = SemiAnalyticDetection().snr(theta)
    assert float(snr[1]) == pytest.approx(float(plain), rel=1e-6)


def test_single_precision(detection):
    z = np.linspace(0.01, 0.6, 30, dtype=np.float32)
    theta = {"mass_1_source": np.float32(30.0), "mass_ratio": np.float32(0.7), "redshift": z}
    with jax.enable_x64(False):
        single = detection.p_det(theta)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, detection.p_det(theta), atol=2e-5)


# A population between 5 and 50 solar masses, p(m1) ~ m1^-a, p(q) ~ q on 5/m1 < q < 1, at one merger
# per Gpc³ and year.
def log_population(mass, ratio, exponent=2.35):
    k = 1.0 - exponent
    log_norm = np.log((50.0**k - 5.0**k) / k)
    inside = (mass > 5.0) & (mass < 50.0) & (mass * ratio > 5.0)
    share = np.where(inside, 1.0 - (5.0 / mass) ** 2, 1.0)
    value = -exponent * np.log(mass) - log_norm + np.log(2.0 * ratio) - np.log(share)
    return np.where(inside, value, -np.inf)


@pytest.fixture(scope="module")
def mean_volume(detection):
    x, w = np.polynomial.legendre.leggauss(40)
    x, w = 0.5 * (x + 1.0), 0.5 * w
    mass = 5.0 * 10.0**x
    low = 5.0 / mass
    ratio = low[:, None] + (1.0 - low[:, None]) * x
    weight = (w * mass * np.log(10.0))[:, None] * w * (1.0 - low[:, None])
    mass = np.broadcast_to(mass[:, None], ratio.shape)
    volume = detection.sensitive_volume({"mass_1_source": mass, "mass_ratio": ratio})
    return np.sum(weight * np.exp(log_population(mass, ratio)) * np.asarray(volume))


@pytest.mark.slow
@pytest.mark.parametrize("secondary", ["mass_ratio", "mass_2_source"])
@pytest.mark.parametrize("redshift", [True, False])
def test_injections_estimate_the_volume(detection, mean_volume, secondary, redshift):
    parameters = ["mass_1_source", secondary] + ["redshift"] * redshift
    drawn = draw_injections(
        jax.random.key(5), 8000, detection, observing_time=0.5, parameters=parameters
    )
    assert list(drawn.theta) == parameters and drawn.scale == 0.5
    mass = drawn.theta["mass_1_source"]
    ratio = drawn.theta[secondary] / (mass if secondary == "mass_2_source" else 1.0)
    log_rate = log_population(mass, ratio) - (secondary == "mass_2_source") * np.log(mass)
    if redshift:
        z = drawn.theta["redshift"]
        cosmology = detection.cosmology
        log_rate = log_rate + np.asarray(cosmology.log_differential_comoving_volume(z))
        log_rate = log_rate - np.log1p(z)
    weight = np.exp(log_rate - drawn.log_p_draw)
    estimate = np.sum(weight) / drawn.total_generated
    error = np.sqrt(np.sum(weight**2) / drawn.total_generated - estimate**2)
    error = error / np.sqrt(drawn.total_generated)
    assert error < 0.02 * estimate
    assert estimate == pytest.approx(mean_volume, abs=3.5 * error)


@pytest.mark.slow
def test_injections_are_distributed_as_they_say(detection):
    """The density is normalised given the masses: its inverse averages to the horizon."""
    proposal = MassProposal(low=29.9999, high=30.0001)
    drawn = draw_injections(
        jax.random.key(1), 20_000, detection, observing_time=1.0, proposal=proposal
    )
    z = drawn.theta["redshift"]
    masses = {"mass_1_source": jnp.array(30.0), "mass_ratio": jnp.array(1.0)}
    horizon = float(detection.horizon_redshift(masses))
    assert np.all((z > 0.0) & (z < horizon * 1.001))
    grid = np.linspace(1e-4, horizon, 2001)
    value = detection.p_det({**masses, "redshift": grid})
    value = np.asarray(value * detection.cosmology.differential_comoving_volume(grid) / (1 + grid))
    expected = np.cumsum(value) / np.sum(value)
    empirical = np.searchsorted(np.sort(z), grid) / len(z)
    assert np.max(np.abs(expected - empirical)) < 1.6 / np.sqrt(len(z)) + 2e-3


@pytest.mark.slow
def test_injections_with_spin():
    detection = SemiAnalyticDetection(aligned_spin=True)
    parameters = ("mass_1_source", "mass_ratio", "redshift", "chi_eff")
    drawn = draw_injections(
        jax.random.key(2), 500, detection, observing_time=1.0, parameters=parameters
    )
    assert len(drawn) == 500 and np.all(np.isfinite(drawn.log_p_draw))
    assert np.all(np.abs(drawn.theta["chi_eff"]) < 1.0)


def test_proposal_is_normalised():
    mass, ratio, log_p = MassProposal(5.0, 50.0, -1.7, 0.3).sample(jax.random.key(0), 20_000)
    assert np.all((mass > 5.0) & (mass < 50.0) & (ratio < 1.0) & (mass * ratio > 5.0 * (1 - 1e-9)))
    # The area of 5 < m2 < m1 < 50 in (m1, q).
    area = 45.0 - 5.0 * np.log(10.0)
    inverse = np.exp(-log_p)
    error = np.std(inverse) / np.sqrt(len(inverse))
    assert np.mean(inverse) == pytest.approx(area, abs=4.0 * error)


def test_errors(detection):
    with pytest.raises(InputError, match="'redshift' or 'luminosity_distance'"):
        detection.p_det({"mass_1_source": 30.0, "mass_ratio": 1.0})
    with pytest.raises(InputError, match="'mass_1_source' with 'mass_ratio'"):
        detection.p_det({"chirp_mass": 30.0, "redshift": 0.1})
    with pytest.raises(InputError, match="needs 'chi_eff'"):
        SemiAnalyticDetection(aligned_spin=True).p_det(
            {"mass_1": 30.0, "mass_2": 30.0, "redshift": 0.1}
        )
    with pytest.raises(InputError, match="snr_threshold"):
        SemiAnalyticDetection(snr_threshold=0.0)
    with pytest.raises(InputError, match="outside the band"):
        SemiAnalyticDetection(low_frequency=1e5)
    with pytest.raises(InputError, match="not positive and finite"):
        SemiAnalyticDetection(lambda f: 0.0 * f)
    with pytest.raises(InputError, match="0 < low < high"):
        MassProposal(low=5.0, high=-5.0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"observing_time": 0.0}, "must be positive"),
        ({"parameters": ("mass_1_source", "redshift")}, "one of 'mass_ratio'"),
        ({"parameters": ("mass_1_source", "mass_ratio", "a_1")}, "does not depend on 'a_1'"),
        ({"parameters": ("mass_1_source", "mass_ratio", "chi_eff")}, "aligned_spin=True"),
    ],
)
def test_injection_errors(detection, change, message):
    with pytest.raises(InputError, match=message):
        draw_injections(jax.random.key(0), 10, detection, **{"observing_time": 1.0, **change})
