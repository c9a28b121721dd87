"""Skies folded with a response: against closed forms and against each other."""

import numpy as np
import pytest

from skycensus import InputError
from skycensus.gamma.fold import Cut, Fold
from skycensus.gamma.response import Response, separation, synthetic_tables
from skycensus.gamma.sky import Box, Cone, Gaussian, Isotropic, Plane, Point, Template

POINTING, LIVETIME = (10.0, 5.0), 3600.0
CUT = Cut(Box((8.5, 11.5), (3.8, 6.2)), 0.3, 30.0)
# Of all of these some photons are reconstructed in the cut.
NODES = np.geomspace(0.2, 35.0, 9)


@pytest.fixture(scope="module")
def response():
    return Response(synthetic_tables(), NODES)


def fold(response, energy=(), lon=(), lat=(), cut=CUT) -> Fold:
    return Fold(response, POINTING, LIVETIME, cut, energy, lon, lat)


@pytest.fixture(scope="module")
def photons():
    rng = np.random.default_rng(1)
    return np.full(60, 1.0), rng.uniform(8.6, 11.4, 60), rng.uniform(3.9, 6.1, 60)


def test_a_round_source_is_a_gaussian_of_summed_squares(response, photons):
    # At the pointing the response hardly changes with the offset over so small a source.
    source = Gaussian(10.0, 5.0, 0.15)
    seen, _ = fold(response, *photons).density(source)
    away = np.deg2rad(np.asarray(separation(10.0, 5.0, *photons[1:])))
    area, sigma = np.asarray(response.area)[:, 0], np.asarray(response.psf_sigma)[:, 0, 0]
    width = np.sqrt(sigma**2 + np.deg2rad(0.15) ** 2)
    exact = np.exp(-0.5 * (away[:, None] / width) ** 2) / (2 * np.pi * width**2)
    exact *= LIVETIME * area
    near = away < np.deg2rad(0.5)
    assert near.sum() > 4
    np.testing.assert_allclose(seen[near], exact[near], rtol=0.02)
    brightest = exact.max(0)
    np.testing.assert_allclose(seen / brightest, exact / brightest, atol=0.01)


def test_a_narrow_source_is_a_point(response):
    one = fold(response, np.full(3, 1.0), [10.6, 10.55, 10.7], [5.5, 5.45, 5.5])
    seen, expected = one.density(Point(10.6, 5.5))
    spread, total = one.density(Gaussian(10.6, 5.5, 0.02))
    np.testing.assert_allclose(total, expected, rtol=1e-3)
    # The point spread is 0.13 deg wide at the lowest energy and 0.023 at the highest.
    np.testing.assert_allclose(spread[:, :3], seen[:, :3], rtol=0.06)


@pytest.mark.parametrize("sky", [Gaussian(11.3, 6.0, 0.3), Point(11.4, 5.0), Isotropic()])
def test_the_expected_number_is_the_integral_of_the_density(response, sky):
    plane = Plane(*CUT.region.center, np.deg2rad(1.6), 256)
    covered = plane.pixel_means(lambda lon, lat: CUT.region.inside(lon, lat) + 0.0)
    lon, lat = plane.centers()
    some = covered > 0
    one = fold(response, np.full(some.sum(), 1.0), lon[some], lat[some])
    seen, expected = one.density(sky)
    accepted = np.asarray(response.energy_acceptance(CUT.low, CUT.high))
    energies = np.asarray(response.offset_weights(one.offset)) @ accepted.T
    total = np.sum(seen * energies * covered[some][:, None], axis=0) * plane.pixel**2
    # Pixels of 0.0125 deg are half of the narrowest point spread.
    np.testing.assert_allclose(total, expected, rtol=4e-3)


def test_the_dispersion_integrates_to_the_energy_acceptance(response):
    energy = np.geomspace(CUT.low, CUT.high, 4001)
    one = fold(response, energy, np.full(4001, 10.0), np.full(4001, 5.0))
    total = np.trapezoid(one.dispersion() * energy[:, None], np.log(energy), axis=0)
    accepted = response.energy_acceptance(CUT.low, CUT.high)[:, 0]
    np.testing.assert_allclose(total, accepted, atol=1e-4)


def test_a_template_of_a_gaussian_is_the_gaussian(response, photons):
    source = Gaussian(10.0, 5.0, 0.3)
    axes = np.arange(7.0, 13.01, 0.05), np.arange(2.0, 8.01, 0.05)
    template = Template(*axes, source(*np.meshgrid(*axes)))
    one = fold(response, *photons)
    seen, expected = one.density(source)
    again, total = one.density(template)
    np.testing.assert_allclose(total, expected, rtol=2e-3)
    assert np.max(np.abs(again - seen) / seen.max(0)) < 0.01


def test_energy_dependent_skies(response, photons):
    axes = np.arange(7.0, 13.01, 0.1), np.arange(2.0, 8.01, 0.1)
    flat = np.ones((len(axes[1]), len(axes[0])))
    energy = np.array([0.1, 10.0])
    cube = Template(*axes, energy[:, None, None] ** -2.0 * flat, energy)
    one = fold(response, *photons)
    seen, expected = one.density(cube)
    plain, total = one.density(Template(*axes, flat))
    np.testing.assert_allclose(seen, plain * NODES**-2.0, rtol=1e-6)
    np.testing.assert_allclose(expected, total * NODES**-2.0, rtol=1e-6)


def test_known_spectra_are_summed_as_one(response, photons):
    lon, lat = np.linspace(8.4, 11.6, 33), np.linspace(3.7, 6.3, 27)
    energy = np.geomspace(0.1, 50.0, 12)
    cube = Template(lon, lat, np.full((12, 27, 33), 2.0) * energy[:, None, None] ** -2.0, energy)
    skies = [Gaussian(10.0, 5.0, 0.15), Point(10.2, 5.2), cube, Gaussian(9.5, 4.6, 0.3)]
    masses = np.random.default_rng(2).uniform(0.1, 1.0, (len(skies), len(NODES)))
    one = fold(response, *photons)
    dispersion = one.dispersion()
    seen, expected = one.sums(skies, dispersion, masses)
    each = [one.table(sky, dispersion) for sky in skies]
    want = sum(table @ mass for (table, _), mass in zip(each, masses, strict=True))
    np.testing.assert_allclose(seen, want, rtol=1e-9)
    want = sum(total @ mass for (_, total), mass in zip(each, masses, strict=True))
    assert expected == pytest.approx(want, rel=1e-9)


def test_the_background_is_not_smeared_again(response):
    # A power law of the reconstructed energy, times a Gaussian of the offset.
    one = fold(response, [1.0, 2.0, 1.0], [10.0, 10.0, 11.0], [5.0, 5.0, 5.0], CUT)
    seen, number = one.background()
    rate = 0.4 * 3282.8 * LIVETIME
    fall = np.exp(-0.5 * (one.offset[2] / 2.5) ** 2)
    # The table is interpolated between offsets, in the logarithm.
    np.testing.assert_allclose(seen, rate * np.array([1.0, 2.0**-2.7, fall]), rtol=3e-3)
    each = one.background_rates(np.array([1.0, 2.0]), one.lon, one.lat)
    np.testing.assert_allclose(LIVETIME * each[[0, 1, 0], [0, 1, 2]], seen, rtol=1e-12)
    lon, lat = np.meshgrid(np.linspace(8.5, 11.5, 201), np.linspace(3.8, 6.2, 201))
    away = np.asarray(separation(*POINTING, lon, lat))
    area = np.exp(-0.5 * (away / 2.5) ** 2) * np.cos(np.deg2rad(lat))
    solid = np.trapezoid(np.trapezoid(area, np.deg2rad(lon[0]), axis=1), np.deg2rad(lat[:, 0]))
    energies = (0.3**-1.7 - 30.0**-1.7) / 1.7
    assert number == pytest.approx(rate * solid * energies, rel=4e-3)


def test_a_cone_is_a_region_too(response):
    cut = Cut(Cone(10.0, 5.0, 0.2), 0.3, 30.0)
    _, expected = fold(response, cut=cut).density(Point(10.0, 5.0))
    area, sigma = np.asarray(response.area)[:, 0], np.asarray(response.psf_sigma)[:, 0, 0]
    contained = -np.expm1(-0.5 * (np.deg2rad(0.2) / sigma) ** 2)
    accepted = np.asarray(response.energy_acceptance(0.3, 30.0))[:, 0]
    np.testing.assert_allclose(expected, LIVETIME * area * contained * accepted, rtol=0.02)


def test_wrong_input_is_told(response):
    from dataclasses import replace

    with pytest.raises(InputError, match="must be positive and rise"):
        Cut(CUT.region, 2.0, 1.0)
    bare = Response(replace(synthetic_tables(), background=None), NODES)
    with pytest.raises(InputError, match="no background"):
        fold(bare).background()
