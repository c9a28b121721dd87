import itertools

import h5py
import numpy as np
import pytest
from scipy import integrate

from skycensus.errors import InputError
from skycensus.gw import reference_priors as rp
from skycensus.gw import spin_priors as sp
from skycensus.gw.coordinates import Columns, precession_weight
from skycensus.gw.cosmology import FlatLambdaCDM

COSMOLOGY = FlatLambdaCDM(67.74, 0.3075)
DRAWS = {
    "mass_1": np.array([36.0, 55.0, 20.0]),
    "mass_2": np.array([30.0, 20.0, 19.0]),
    "redshift": np.array([0.1, 0.5, 1.2]),
    "a_1": np.array([0.1, 0.5, 0.9]),
    "a_2": np.array([0.2, 0.0, 0.3]),
    "cos_tilt_1": np.array([0.3, -0.5, 0.9]),
    "cos_tilt_2": np.array([0.9, 0.1, -0.3]),
}


def log_reference(prior, parameters, draws=DRAWS):
    return rp.log_reference(prior, draws, parameters, COSMOLOGY)


def same(value, expected):
    """Equal up to one constant per event."""
    difference = np.asarray(value) - np.asarray(expected)
    np.testing.assert_allclose(difference, difference[0], rtol=0, atol=1e-9)


# ---- masses and distance: closed forms -----------------------------------------------------------

Q = DRAWS["mass_2"] / DRAWS["mass_1"]
Z = DRAWS["redshift"]
M1 = DRAWS["mass_1"] / (1 + Z)
MC = M1 * Q**0.6 / (1 + Q) ** 0.2


@pytest.mark.parametrize(
    ("prior", "parameters", "expected"),
    [
        ("uniform-source-components", ("mass_1_source", "mass_2_source"), 0 * M1),
        ("uniform-source-components", ("mass_1_source", "mass_ratio"), np.log(M1)),
        ("uniform-source-components", ("mass_1", "mass_2"), -2 * np.log1p(Z)),
        ("uniform-detector-components", ("mass_1", "mass_2"), 0 * M1),
        ("uniform-detector-components", ("mass_1_source", "mass_2_source"), 2 * np.log1p(Z)),
        (
            "uniform-detector-components",
            ("mass_1_source", "mass_ratio"),
            np.log(M1) + 2 * np.log1p(Z),
        ),
        (
            "uniform-detector-components",
            ("chirp_mass", "mass_ratio"),
            np.log(MC * (1 + Z)) - 1.2 * np.log(Q) + 0.4 * np.log1p(Q),
        ),
        ("uniform-chirp-mass-mass-ratio", ("chirp_mass", "mass_ratio"), 0 * M1),
        (
            "uniform-chirp-mass-mass-ratio",
            ("mass_1_source", "mass_ratio"),
            np.log(MC / M1) + np.log1p(Z),
        ),
        ("uniform-source-chirp-mass-mass-ratio", ("chirp_mass_source", "mass_ratio"), 0 * M1),
        ("uniform-total-mass-mass-ratio", ("total_mass", "mass_ratio"), 0 * M1),
        ("log-uniform-source-components", ("mass_1_source", "mass_ratio"), -np.log(M1 * Q)),
    ],
)
def test_mass_priors(prior, parameters, expected):
    same(log_reference({"masses": prior}, parameters), expected)


def test_distance_priors():
    distance = np.asarray(COSMOLOGY.luminosity_distance(Z))
    slope = np.exp(np.asarray(COSMOLOGY.log_luminosity_distance_slope(Z)))
    volume = np.asarray(COSMOLOGY.differential_comoving_volume(Z))
    for prior, expected in {
        "luminosity-distance-squared": np.log(distance**2 * slope),
        "euclidean": np.log(distance**2 * slope),
        "comoving-volume": np.log(volume),
        "source-frame": np.log(volume / (1 + Z)),
        "uniform-luminosity-distance": np.log(slope),
        "uniform-redshift": 0 * Z,
    }.items():
        same(log_reference({"distance": prior}, ("redshift",)), expected)
        same(log_reference({"distance": prior}, ("luminosity_distance",)), expected - np.log(slope))


def test_blocks_add_up_and_unused_ones_do_not_matter():
    prior = rp.CATALOGUE_PRIORS["GWTC-cosmo"]
    both = log_reference("GWTC-cosmo", ("mass_1_source", "mass_ratio", "redshift"))
    one = log_reference({"masses": prior["masses"]}, ("mass_1_source", "mass_ratio"))
    two = log_reference({"distance": prior["distance"]}, ("redshift",))
    np.testing.assert_allclose(both, one + two)
    np.testing.assert_allclose(log_reference(prior, ("redshift",)), two)


def test_functions_and_columns():
    draws = DRAWS | {"log_prior": np.array([-1.0, -2.0, -3.0]), "prior": np.array([1.0, 2.0, 3.0])}
    parameters = ("mass_1", "mass_ratio")
    value = log_reference(lambda theta: np.log(theta["mass_1_source"]), parameters)
    np.testing.assert_allclose(value, np.log(M1))
    value = log_reference({"column": "log_prior"}, parameters, draws)
    np.testing.assert_allclose(value, draws["log_prior"])
    value = log_reference({"column": "prior"}, parameters, draws)
    np.testing.assert_allclose(value, np.log(draws["prior"]))
    # The column as a density in other coordinates.
    stated = {"column": "log_prior", "coordinates": ["mass_1_source", "mass_2_source"]}
    value = log_reference(stated, ("mass_1_source", "mass_ratio"), draws)
    np.testing.assert_allclose(value, draws["log_prior"] + np.log(M1))
    # One block by a function, the other by name.
    mixed = {"masses": lambda theta: -np.log(theta["mass_1"]), "distance": "uniform-redshift"}
    value = log_reference(mixed, ("mass_1", "mass_2", "redshift"))
    np.testing.assert_allclose(value, -np.log(DRAWS["mass_1"]))


def test_parameters_of_no_block():
    draws = DRAWS | {"eccentricity": np.array([0.1, 0.2, 0.4])}
    value = log_reference({"eccentricity": "uniform"}, ("eccentricity",), draws)
    np.testing.assert_allclose(value, 0.0)
    value = log_reference({"eccentricity": "log-uniform"}, ("eccentricity",), draws)
    np.testing.assert_allclose(value, -np.log(draws["eccentricity"]))


# ---- spins ---------------------------------------------------------------------------------------


def test_component_spins():
    spins = {"spins": {"name": "isotropic-uniform", "a_max": 0.9}}
    value = log_reference(spins, ("a_1", "a_2", "cos_tilt_1", "cos_tilt_2"))
    np.testing.assert_allclose(value, -np.log(4 * 0.9**2))
    np.testing.assert_allclose(log_reference(spins, ("a_1",)), -np.log(0.9))
    value = log_reference(spins, ("tilt_1",))
    np.testing.assert_allclose(value, np.log(0.5 * np.sqrt(1 - DRAWS["cos_tilt_1"] ** 2)))
    with pytest.raises(InputError, match="described twice"):
        log_reference(spins, ("a_1", "chi_1"))
    with pytest.raises(InputError, match="no joint density"):
        log_reference(spins, ("a_1", "chi_eff"))
    with pytest.raises(InputError, match="no joint density"):
        log_reference({"spins": "aligned-uniform"}, ("cos_tilt_1",))


@pytest.mark.parametrize(("q", "a_max"), [(1.0, 1.0), (0.5, 0.99), (0.05, 0.8)])
def test_effective_spin_is_a_convolution(q, a_max):
    """The closed form against the adaptive quadrature of its definition."""

    def density(s):
        def integrand(x):
            return sp._along(x, a_max) * sp._along((s - x) / q, a_max) / q

        low, high = max(-a_max, s - q * a_max), min(a_max, s + q * a_max)
        breaks = sorted({low, high, *(x for x in (0.0, s) if low < x < high)})
        return sum(
            integrate.quad(integrand, x, y, epsabs=1e-13, epsrel=1e-10)[0]
            for x, y in itertools.pairwise(breaks)
        )

    chi = a_max * np.array([-0.999, -0.97, -0.5, -1e-3, 0.0, 0.2, 0.9, 0.995])
    expected = [(1 + q) * density((1 + q) * x) for x in chi]
    np.testing.assert_allclose(sp.isotropic_chi_eff(chi, q, a_max), expected, rtol=1e-7)
    assert sp.isotropic_chi_eff(1.001 * a_max, q, a_max) == 0.0


@pytest.mark.parametrize("q", [1.0, 0.3])
def test_joint_effective_spins_have_the_right_marginals(q):
    # Gauss–Legendre in panels, since the densities have kinks.
    nodes, weights = np.polynomial.legendre.leggauss(20)
    panels = np.linspace(0, 1, 51)[:-1]
    x, w = np.ravel(panels[:, None] + 0.01 * (nodes + 1)), np.tile(0.01 * weights, 50)
    for chi_p in (0.05, 0.3, 0.7, 0.95):
        joint = sum(sp.isotropic_chi_eff_chi_p(sign * x, chi_p, q, 1.0) for sign in (-1, 1))
        np.testing.assert_allclose(joint @ w, sp.isotropic_chi_p(chi_p, q, 1.0), rtol=2e-4)
    for chi_eff in (0.02, -0.4, 0.8):
        joint = sp.isotropic_chi_eff_chi_p(chi_eff, x, q, 1.0)
        np.testing.assert_allclose(joint @ w, sp.isotropic_chi_eff(chi_eff, q, 1.0), rtol=1e-3)


@pytest.mark.parametrize(("q", "a_max"), [(0.9, 0.99), (0.3, 1.0)])
def test_induced_priors_agree_with_drawn_spins(q, a_max):
    rng = np.random.default_rng(11)
    n = 200_000
    a, cos = rng.uniform(0, a_max, (2, n)), rng.uniform(-1, 1, (2, n))
    chi_eff = (a[0] * cos[0] + q * a[1] * cos[1]) / (1 + q)
    plane = a * np.sqrt(1 - cos**2)
    chi_p = np.maximum(plane[0], precession_weight(q) * plane[1])
    fine = np.linspace(0, 1, 1001)

    def check(samples, density, low, high, bins=20):
        counts, edges = np.histogram(samples, bins, (low, high))
        x = low + (high - low) * (fine + 1e-7)
        mass = integrate.cumulative_simpson(density(x), x=x, initial=0)
        expected = n * np.diff(np.interp(edges, x, mass))
        used = expected > 25
        assert np.sum((counts - expected)[used] ** 2 / expected[used]) < 2.2 * used.sum()

    check(chi_eff, lambda x: sp.isotropic_chi_eff(x, q, a_max), -a_max, a_max)
    check(chi_p, lambda x: sp.isotropic_chi_p(x, q, a_max), 0, a_max)
    # The joint: in cells of both, by the midpoint rule.
    counts, *edges = np.histogram2d(chi_eff, chi_p, [12, 10], [[-0.9, 0.9], [0, 0.9]])
    sub = (np.arange(16) + 0.5) / 16
    grid = [e[:-1, None] + (e[1] - e[0]) * sub for e in edges]
    joint = sp.isotropic_chi_eff_chi_p(
        grid[0][:, None, :, None], grid[1][None, :, None, :], np.array(q), a_max
    )
    cell = (edges[0][1] - edges[0][0]) * (edges[1][1] - edges[1][0])
    expected = n * cell * joint.mean((-1, -2))
    used = expected > 25
    assert np.sum((counts - expected)[used] ** 2 / expected[used]) < 1.6 * used.sum()


def test_aligned_spins():
    chi = np.linspace(-0.99, 0.99, 20001)
    total = integrate.trapezoid(sp.aligned_chi_eff(chi, 0.4, 0.99), chi)
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)
    rng = np.random.default_rng(3)
    one, two = rng.uniform(-0.99, 0.99, (2, 100_000))
    drawn = np.sort((one + 0.4 * two) / 1.4)
    cumulative = integrate.cumulative_trapezoid(sp.aligned_chi_eff(chi, 0.4, 0.99), chi, initial=0)
    empirical = np.searchsorted(drawn, chi) / len(drawn)
    assert np.max(np.abs(empirical - cumulative)) < 1.63 / np.sqrt(len(drawn))
    names = ("chi_eff",)
    one = log_reference({"spins": "aligned-isotropic"}, names)
    np.testing.assert_allclose(one, log_reference({"spins": "isotropic-uniform"}, names))


# ---- what wrong or missing priors get ------------------------------------------------------------


@pytest.mark.parametrize(
    ("prior", "parameters", "message"),
    [
        ({"masses": "uniform-source-components"}, ("mass_1", "mass_2", "redshift"), "distance"),
        ({}, ("chi_eff",), "says nothing of the spins"),
        ({"masses": "uniform-source-component"}, ("mass_1", "mass_2"), "did you mean"),
        ({"mases": "uniform-source-components"}, ("mass_1", "mass_2"), "did you mean 'masses'"),
        ("uniform-source-components", ("mass_1", "mass_2"), "masses = 'uniform-source"),
        ("3-OGC", ("mass_1", "mass_2"), "did you mean '2-OGC'"),
        ({"spins": {"name": "isotropic-uniform", "amax": 1}}, ("a_1",), "did you mean 'a_max'"),
        ({"spins": {"name": "isotropic-uniform", "a_max": 2}}, ("a_1",), "not in"),
        ({"column": "log_priors"}, ("mass_1", "mass_2"), "no column 'log_priors'"),
        ({"masses": "uniform-source-components"}, ("mass_1_source",), "two independent"),
        ({}, ("eccentricity",), "says nothing of it: state 'eccentricity'"),
    ],
)
def test_wrong_or_missing_priors(prior, parameters, message):
    with pytest.raises(InputError, match=message):
        log_reference(prior, parameters)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan])
def test_prior_densities_must_be_positive(bad):
    draws = DRAWS | {"prior": np.array([1.0, bad, 2.0])}
    with pytest.raises(InputError, match="1 of 3 values of the prior density 'prior' are zero"):
        log_reference({"column": "prior"}, ("mass_1", "mass_2"), draws)


def test_draws_outside_the_prior_are_named():
    with pytest.raises(InputError, match=r"density is zero at draw 2 .*a_1=0.9"):
        log_reference({"spins": {"name": "isotropic-uniform", "a_max": 0.8}}, ("a_1",))


# ---- the published 2-OGC files -------------------------------------------------------------------


def test_2_ogc_draws_follow_the_stated_prior(shared, require_path):
    r"""The files' own columns show the prior: uniform in both source masses and comoving volume.

    `logprior` is the prior's density times `logjacobian`, that of (m1, m2, V) with respect to the
    chirp mass, m1/m2 and ln V. What is left beside the spins' sines are the sines and cosines of
    sky angles that the files leave out: never positive, and near zero for some draws anywhere.
    """
    name = "H1L1V1-EXTRACT_POSTERIOR_170818_09H_34M_45UTC-29-1.hdf"
    path = require_path(shared / "data" / "2ogc" / name)
    with h5py.File(path) as file:
        raw = {key: data[()].astype(float) for key, data in file["samples"].items()}
    m1, m2, volume = raw["mass1"], raw["mass2"], raw["comoving_volume"]
    columns = {"mass_1_source": m1, "mass_2_source": m2, "redshift": raw["redshift"]}
    theta = Columns(columns, COSMOLOGY)
    # d(m1, m2)/d(Mc, m1/m2) has q squared more than d(m1, m2)/d(Mc, q).
    parameters = ("chirp_mass_source", "mass_ratio")
    own = rp.log_reference({"masses": "uniform-source-components"}, theta, parameters)
    expected = own + 2 * np.log(theta["mass_ratio"]) + np.log(volume)
    np.testing.assert_allclose(raw["logjacobian"], expected, atol=1e-3)
    distance = np.asarray(COSMOLOGY.luminosity_distance(raw["redshift"]))
    np.testing.assert_allclose(distance, raw["distance"], rtol=1e-3)
    sines = np.log(np.sin(raw["spin1_polar"])) + np.log(np.sin(raw["spin2_polar"]))
    rest = raw["logprior"] - raw["logjacobian"] - sines
    rest -= rest.max()
    for column in (m1, m2, volume, raw["spin1_a"], raw["spin2_a"]):
        tenth = np.digitize(column, np.quantile(column, np.linspace(0, 1, 11)[1:-1]))
        assert min(rest[tenth == k].max() for k in range(10)) > -0.01
