"""Regions, planes, and skies given by formulas and maps."""

import numpy as np
import pytest
from astropy.io import fits

from skycensus import InputError
from skycensus.gamma.sky import (
    Around,
    Box,
    Cone,
    Disk,
    Gaussian,
    Isotropic,
    Plane,
    Template,
    read_template,
)

PLANE = Plane(359.0, 20.0, 0.08, 120)
LON, LAT = np.linspace(-3.0, 3.0, 25), np.linspace(-2.0, 2.0, 17)


@pytest.mark.parametrize("center", [(0.0, 0.0), (359.0, 20.0), (120.0, -80.0), (10.0, 90.0)])
def test_a_plane_goes_to_the_sky_and_back(center):
    plane = Plane(*center, 0.1, 10)
    x, y = np.random.default_rng(1).uniform(-0.1, 0.1, (2, 200))
    back = plane.to_plane(*plane.to_sky(x, y))
    np.testing.assert_allclose(back, [x, y], atol=1e-12)


def test_a_plane_has_equal_areas():
    # A cone's solid angle by its pixels.
    covered = PLANE.pixel_means(lambda lon, lat: Cone(359.0, 20.0, 3.0).inside(lon, lat) + 0.0)
    exact = 2 * np.pi * (1 - np.cos(np.deg2rad(3.0)))
    assert covered.sum() * PLANE.pixel**2 == pytest.approx(exact, rel=2e-4)


@pytest.mark.parametrize("sky", [Gaussian(359.5, 20.3, 0.4), Disk(0.2, 19.0, 1.5)])
def test_sources_have_flux_one(sky):
    assert PLANE.pixel_means(sky).sum() * PLANE.pixel**2 == pytest.approx(1.0, rel=2e-3)


def test_a_cusp_is_integrated_within_its_pixels():
    sky = Around(359.0, 20.0, lambda angle: 1.0 / np.maximum(angle, 1e-9))
    inside = lambda lon, lat: sky(lon, lat) * Cone(359.0, 20.0, 3.0).inside(lon, lat)  # noqa: E731
    # In degrees: the integral of 1/r over a disk is 2 pi r.
    exact = 2 * np.pi * 3.0 * np.deg2rad(1.0) ** 2
    assert PLANE.pixel_means(inside).sum() * PLANE.pixel**2 == pytest.approx(exact, rel=5e-3)


def test_regions():
    box = Box((-2.0, 2.0), (-1.0, 1.0))
    assert box.center == (0.0, 0.0)
    assert box.half_width == pytest.approx(2.0, rel=2e-3)
    assert np.array_equal(box.inside([359.0, 357.0, 1.0], [0.0, 0.0, 1.5]), [True, False, False])
    cone = Cone(0.0, 0.0, 1.0)
    assert np.array_equal(cone.inside([359.5, 1.5], [0.0, 0.0]), [True, False])
    assert np.all(Isotropic()([1.0, 2.0], 0.0) == 1.0)


def test_a_template_is_interpolated_and_zero_outside():
    values = 2.0 + LON + 10.0 * LAT[:, None] + 30.0
    template = Template(LON, LAT, values)
    found = template(np.array([359.1, 0.33, 5.0]), np.array([0.5, -1.1, 0.0]))
    np.testing.assert_allclose(found, [2 - 0.9 + 5 + 30, 2 + 0.33 - 11 + 30, 0.0])
    assert template.with_mean(3.0).values.mean() == pytest.approx(3.0)
    assert template.at_energy(1.0) is template


def test_a_cube_follows_power_laws_in_energy():
    energy = np.array([0.01, 0.1, 1.0])
    cube = energy[:, None, None] ** -2.4 * (1.0 + LAT[:, None] ** 2 * np.ones(25))
    template = Template(LON, LAT, cube, energy)
    for e in (0.003, 0.05, 20.0):
        assert template(0.0, 1.0, e) == pytest.approx(2.0 * e**-2.4)
    with pytest.raises(InputError, match="changes with the energy"):
        template(0.0, 1.0)


def write(path, *, kinds=("GLON-CAR", "GLAT-CAR"), cube=False, energies=True, unit=None):
    values = np.arange(1.0, 7.0).reshape(2, 3)
    header = fits.Header({"CTYPE1": kinds[0], "CTYPE2": kinds[1], "CRVAL1": 0.0, "CRVAL2": 0.0})
    header.update({"CRPIX1": 2.0, "CRPIX2": 1.0, "CDELT1": -1.0, "CDELT2": 0.5})
    header.update({"CUNIT1": "deg", "CUNIT2": "deg"})
    if unit:
        header["BUNIT"] = unit
    parts = [fits.PrimaryHDU(np.stack([values, values]) if cube else values, header)]
    if cube and energies:
        column = fits.Column("Energy", "E", unit="MeV", array=[1e5, 1e6])
        parts.append(fits.BinTableHDU.from_columns([column], name="ENERGIES"))
    fits.HDUList(parts).writeto(path)
    return path


def test_reading_a_map(tmp_path):
    # Longitude falls along the rows of most maps.
    template = read_template(write(tmp_path / "map.fits"))
    np.testing.assert_allclose(template.lon - template.lon[1], [-1.0, 0.0, 1.0])
    np.testing.assert_allclose(template.values, [[3, 2, 1], [6, 5, 4]])
    np.testing.assert_allclose(template.lat, [0.0, 0.5])
    assert template(1.0, 0.0) == pytest.approx(1.0)


def test_reading_a_cube_with_units(tmp_path):
    template = read_template(write(tmp_path / "m.fits", cube=True), unit="cm-2 s-1 MeV-1 sr-1")
    np.testing.assert_allclose(template.energy, [0.1, 1.0], rtol=1e-6)
    assert template(0.0, 0.0, 0.5) == pytest.approx(2e6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kinds": ("RA---CAR", "DEC--CAR")}, "has axes"),
        ({"kinds": ("GLON-TAN", "GLAT-TAN")}, "in the projection CAR"),
        ({"cube": True, "energies": False}, "extension ENERGIES"),
        ({"unit": "furlong per"}, "is no unit"),
    ],
)
def test_maps_that_are_none(tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        read_template(write(tmp_path / "map.fits", **options))


def test_wrong_input_is_told(tmp_path):
    with pytest.raises(InputError, match="no sky map"):
        read_template(tmp_path / "none.fits")
    with pytest.raises(InputError, match="values of shape"):
        Template(LON, LAT, np.ones((3, 3)))
    with pytest.raises(InputError, match="negative, infinite or NaN"):
        Template(LON, LAT, -np.ones((17, 25)))
    with pytest.raises(InputError, match="must rise"):
        Box((1.0, 1.0), (0.0, 1.0))
    with pytest.raises(InputError, match="must be positive"):
        Cone(0.0, 0.0, 0.0)
    with pytest.raises(InputError, match="negative, infinite or NaN"):
        PLANE.pixel_means(lambda lon, lat: np.full(np.shape(lon), np.nan))


@pytest.mark.parametrize("power", [0.5, 1.3, 1.9])
def test_a_cusp_is_integrated_over_its_pixels(power):
    """On a grid whose pixels have the centre at a corner, and within one."""
    sky = Around(0.0, 0.0, lambda angle: np.asarray(angle) ** -power)
    plane = Plane(0.0, 0.0, np.deg2rad(1.0), 64)
    inner = plane.pixel_means(sky)[24:40, 24:40].sum() * plane.pixel**2
    # A square about the centre, in closed form but for the angle.
    phi = 0.125 * np.pi * (np.polynomial.legendre.leggauss(20)[0] + 1.0)
    weight = 0.125 * np.pi * np.polynomial.legendre.leggauss(20)[1]
    edge = 8 * plane.pixel / np.cos(phi)
    exact = 8 * weight @ edge ** (2.0 - power) / (2.0 - power) * np.rad2deg(1.0) ** -power
    assert abs(inner / exact - 1.0) < 1e-5
    moved = Around(0.011, -0.004, sky.profile)
    assert (
        abs(
            plane.pixel_means(moved)[20:44, 20:44].sum()
            / plane.pixel_means(sky)[20:44, 20:44].sum()
            - 1.0
        )
        < 2e-3
    )


def test_a_cusp_without_a_flux_is_refused():
    with pytest.raises(InputError, match="flux is infinite"):
        Plane(0.0, 0.0, 0.02, 16).pixel_means(Around(0.0, 0.0, lambda a: np.asarray(a) ** -2.1))
