import itertools

import jax
import numpy as np
import pytest
import scipy.integrate

from skycensus import InputError
from skycensus.gamma.halo import (
    Burkert,
    Einasto,
    GeneralizedNFW,
    Isothermal,
    log_d_factor,
    log_j_factor,
    log_j_within,
    moore,
    nfw,
    tabulated,
)

KPC = 3.0856775814913673e21
SHAPES = {
    "Einasto": (Einasto(), lambda x: np.exp(-2 / 0.17 * (x**0.17 - 1))),
    "NFW": (nfw(), lambda x: 1 / x / (1 + x) ** 2),
    "steep NFW": (
        GeneralizedNFW(1.4, scale_radius=15.0, local_density=0.4, distance=8.2),
        lambda x: x**-1.4 * (1 + x) ** -1.6,
    ),
    "Moore": (moore(), lambda x: x**-1.16 * (1 + x) ** -1.84),
    "Burkert": (Burkert(), lambda x: 1 / (1 + x) / (1 + x * x)),
    "isothermal": (Isothermal(), lambda x: 1 / (1 + x * x)),
}
profiles = pytest.mark.parametrize(("profile", "shape"), SHAPES.values(), ids=list(SHAPES))


def density(profile, shape, radius):
    rs = profile.scale_radius
    return profile.local_density * shape(radius / rs) / shape(profile.distance / rs)


@profiles
def test_density_passes_through_the_local_one(profile, shape):
    radius = np.array([1e-3, 1.0, profile.distance, 50.0])
    found = np.exp(profile.log_density(radius))
    np.testing.assert_allclose(found, density(profile, shape, radius), rtol=1e-12)
    np.testing.assert_allclose(found[2], profile.local_density, rtol=1e-12)


@profiles
@pytest.mark.parametrize(("power", "factor"), [(2, log_j_factor), (1, log_d_factor)])
def test_line_of_sight_is_exact(profile, shape, power, factor):
    """Against adaptive quadrature over the distance l itself, piece by piece."""
    angles = np.array([0.01, 1.0, 40.0, 90.0, 140.0, 180.0])
    expected = []
    for angle in np.deg2rad(np.minimum(angles, 180.0 - 1e-6)):
        d = profile.distance
        closest, impact = d * np.cos(angle), d * np.sin(angle)

        def integrand(s, impact=impact):
            return density(profile, shape, np.hypot(impact, s)) ** power

        # Distances from the closest point, in pieces of a factor: from the Sun to the end.
        pieces = np.geomspace(impact * 1e-3, 1e4, 60)
        pieces = np.concatenate([-pieces[::-1], [0.0], pieces])
        pieces = np.concatenate([[-closest], pieces[pieces > -closest]])
        total = sum(
            scipy.integrate.quad(integrand, a, b, epsrel=1e-11, epsabs=0)[0]
            for a, b in itertools.pairwise(pieces)
        )
        expected.append(np.log(total * KPC))
    np.testing.assert_allclose(factor(profile, angles), expected, rtol=0, atol=1e-9)


def test_isothermal_sphere_in_closed_form():
    profile, angle = Isothermal(), np.array([0.1, 5.0, 70.0, 120.0])
    theta = np.deg2rad(angle)
    scale, d = profile.scale_radius, profile.distance
    central = profile.local_density * (1 + (d / scale) ** 2)
    core = np.sqrt(scale**2 + (d * np.sin(theta)) ** 2)
    # The line ends at 1e4 kpc.
    length = np.arctan(1e4 / core) + np.arctan(d * np.cos(theta) / core)
    expected = central * scale**2 / core * length * KPC
    np.testing.assert_allclose(np.exp(log_d_factor(profile, angle)), expected, rtol=1e-7)


def test_smooth_in_the_hyperparameters():
    @jax.jit
    def value(alpha, scale_radius, local_density, distance):
        halo = Einasto(
            alpha, scale_radius=scale_radius, local_density=local_density, distance=distance
        )
        return log_j_factor(halo, 1.3)

    at = np.array([0.17, 25.0, 0.4, 8.2])
    found = jax.jit(jax.grad(value, argnums=(0, 1, 2, 3)))(*at)
    for k, step in enumerate(np.eye(4) * 1e-5):
        ends = [value(*(at + s * step * at)) for s in (1, -1)]
        np.testing.assert_allclose(found[k], (ends[0] - ends[1]) / (2e-5 * at[k]), rtol=1e-6)
    # The local density enters squared, and nothing else of it.
    np.testing.assert_allclose(found[2], 2.0 / 0.4, rtol=1e-12)
    quick = jax.jit(jax.grad(lambda d: tabulated(Einasto(0.17, distance=d))(1.3)))
    steep = jax.jit(jax.grad(lambda d: log_j_factor(Einasto(0.17, distance=d), 1.3)))
    np.testing.assert_allclose(quick(8.2), steep(8.2), rtol=1e-4)
    slope = jax.jit(jax.grad(lambda a: log_j_factor(nfw(), a)))
    assert np.isfinite(slope(1e-4)) and np.isfinite(slope(90.0)) and np.isfinite(slope(179.9))


@pytest.mark.slow
@profiles
def test_table_is_within_its_stated_error(profile, shape):
    angle = np.concatenate([np.geomspace(1e-4, 179.9, 301), [90.0]])
    for factor in (log_j_factor, log_d_factor):
        found = tabulated(profile, factor)(angle)
        np.testing.assert_allclose(found, factor(profile, angle), rtol=0, atol=1e-5)


REGIONS = [
    {"radius": 1.0},
    {"radius": 5.0, "inner": 0.3},
    {"radius": 30.0, "plane": 2.0},
    {"radius": 180.0},
    {"radius": 10.0, "inner": 2.0, "plane": 0.3},
]


@pytest.mark.slow
@pytest.mark.parametrize("region", REGIONS, ids=str)
def test_region_is_a_sum_over_rings(region):
    profile = nfw()
    inner, plane = region.get("inner", 0.0), region.get("plane", 0.0)
    start, end = max(inner, plane, 1e-6), region["radius"]
    edges = start + (end - start) * np.linspace(0.0, 1.0, 40001) ** 2
    angle = 0.5 * (edges[1:] + edges[:-1])
    height = np.clip(np.sin(np.deg2rad(plane)) / np.sin(np.deg2rad(angle)), 0.0, 1.0)
    solid = 2 * np.pi * -np.diff(np.cos(np.deg2rad(edges)))
    share = 1.0 - 2.0 / np.pi * np.arcsin(height)
    expected = np.sum(np.exp(tabulated(profile)(angle)) * solid * share)
    found = np.exp(log_j_within(profile, **region))
    np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_cusp_is_summed_to_the_centre():
    # For a density r**-γ, dJ/dΩ goes with θ**(1 - 2γ), and the disk with θ**(3 - 2γ).
    profile = GeneralizedNFW(1.4)
    ratio = log_j_within(profile, 1e-3) - log_j_within(profile, 1e-4)
    np.testing.assert_allclose(ratio, 0.2 * np.log(10.0), rtol=1e-3)


def test_regions_that_are_none_are_refused():
    with pytest.raises(InputError, match="inner < radius"):
        log_j_within(nfw(), 1.0, inner=2.0)
    assert np.isneginf(log_j_within(nfw(), 1.0, plane=2.0))


def test_gammabayes_took_the_tangent_for_the_sine(require_path, shared):
    reference = np.load(require_path(shared / "reference" / "gammabayes" / "dm_parts.npz"))
    lon, lat = np.meshgrid(np.linspace(-3, 3, 61), np.linspace(-3, 3, 60), indexing="ij")
    angle = np.rad2deg(np.arccos(np.cos(np.deg2rad(lon)) * np.cos(np.deg2rad(lat))))
    # In TeV² cm⁻⁵ deg⁻² there; Einasto with the same values as here.
    there = reference["log_diffJ"] + np.log(1e6) + 2.0 * np.log(180.0 / np.pi)
    difference = there - np.asarray(tabulated(Einasto())(angle))
    # It begins its integral over r at d tan θ, beyond the closest point: less than all of it, and
    # the less the further out. At the centre its sums are too coarse by two hundredths.
    assert difference.min() > -0.06 and difference.max() < 0.02
    ring = [difference[(angle > a) & (angle < a + 0.5)].mean() for a in (1.0, 2.0, 3.5)]
    assert ring[0] > ring[1] > ring[2]
