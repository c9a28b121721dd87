"""The response: its tables as published, and that it is a normalised density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skycensus import InputError
from skycensus.gamma.response import (
    Response,
    energy_nodes,
    log_gaussian,
    psf_at,
    separation,
    synthetic_tables,
)
from skycensus.gamma.tables import (
    Table,
    gaussians_of_table,
    king,
    tables_from_arrays,
    three_gaussians,
)

AXES = {"energy": np.geomspace(0.05, 50.0, 4), "offset": np.array([0.5, 1.5, 2.5])}


@pytest.fixture(scope="module")
def tables():
    return synthetic_tables()


@pytest.fixture(scope="module")
def response(tables):
    return Response(tables, energy_nodes([(tables, 0.1, 100.0)]))


@pytest.fixture(scope="module")
def published(shared, require_path):
    folder = shared / "reference" / "gammabayes"
    arrays = dict(np.load(require_path(folder / "irf_tables.npz")))
    return arrays, dict(np.load(folder / "irf_pairs.npz"))


# ---- normalisation -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_dispersion_is_a_density(response):
    energy = np.geomspace(1e-4, 1e4, 40_000)
    density = response.log_ratio_density(energy, np.full(len(energy), 1.3))
    total = np.trapezoid(density, np.log(energy), axis=0)
    np.testing.assert_allclose(total, 1.0, atol=2e-6)


def test_the_dispersion_is_that_of_its_formula(response):
    # Lognormal of width 0.12, whatever the energy and offset.
    node = 80
    z = np.array([-2.0, -0.5, 0.0, 1.0, 3.0])
    at = float(response.energy[node]) * np.exp(0.12 * z)
    found = response.log_ratio_density(at, np.full(5, 2.2))[:, node]
    np.testing.assert_allclose(found, np.exp(-0.5 * z**2) / (0.12 * np.sqrt(2 * np.pi)), rtol=6e-3)


@pytest.mark.slow
def test_energy_acceptance_is_the_integral_of_the_dispersion(response):
    everything = response.energy_acceptance(1e-4, 1e4)
    np.testing.assert_allclose(everything, 1.0, atol=1e-9)
    low, high = 0.7, 5.0
    inside = np.geomspace(low, high, 20_001)
    density = response.log_ratio_density(inside, np.full(len(inside), 1.0))
    expected = np.trapezoid(density, np.log(inside), axis=0)
    weights = response.offset_weights(1.0)
    np.testing.assert_allclose(response.energy_acceptance(low, high) @ weights, expected, atol=1e-6)


@pytest.mark.slow
def test_the_point_spread_integrates_to_the_effective_area_over_the_sphere(response):
    angle = np.concatenate([np.linspace(0.0, 0.05, 20_001), np.linspace(0.0501, 1.0, 2000)])
    weights = response.offset_weights(0.8)
    spread = psf_at(angle, *response.psf_terms(weights))
    total = np.trapezoid(spread * 2 * np.pi * np.sin(angle)[:, None], angle, axis=0)
    np.testing.assert_allclose(total, response.area @ weights, rtol=1e-5)


@pytest.mark.parametrize("sigma", [1e-4, 0.01, 0.5, 3.0])
def test_a_gaussian_on_the_sphere_is_normalised(sigma):
    angle = np.concatenate([np.linspace(0, 12 * sigma, 4001), [np.pi]]).clip(0, np.pi)
    angle = np.unique(np.concatenate([angle, np.linspace(0, np.pi, 4001)]))
    density = np.exp(log_gaussian(angle, sigma))
    total = np.trapezoid(density * 2 * np.pi * np.sin(angle), angle)
    assert total == pytest.approx(1.0, rel=2e-5)


def test_offset_weights_are_hats(response):
    at = np.array([0.0, 0.25, 0.5, 1.3, 4.9, 5.0, 5.1])
    weights = np.asarray(response.offset_weights(at))
    np.testing.assert_allclose(weights.sum(1), [1, 1, 1, 1, 1, 1, 0])
    np.testing.assert_allclose(weights @ np.asarray(response.offset), [*at[:-1], 0.0], atol=1e-12)


def test_between_offsets_the_area_is_interpolated(tables, response):
    expected = tables.area.at(energy=np.asarray(response.energy), offset=1.3)
    inside = (response.energy >= 0.03) & (response.energy <= 200)
    found = response.area @ response.offset_weights(1.3)
    np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-12)


def test_separation():
    assert separation(359.9, 0.0, 0.1, 0.0) == pytest.approx(0.2)
    assert separation(10.0, 89.0, 190.0, 89.0) == pytest.approx(2.0)
    assert separation(3.0, 4.0, 3.0, 4.0) == 0.0
    assert separation(0.0, 90.0, 0.0, -90.0) == pytest.approx(180.0)
    assert separation(0.0, 0.0, 1e-7, 0.0) == pytest.approx(1e-7, rel=1e-6)
    assert np.isfinite(jax.grad(lambda x: separation(x, 1.0, 2.0, 1.0))(2.0))
    from astropy.coordinates import angular_separation

    lon, lat = np.deg2rad(np.random.default_rng(1).uniform(-80, 80, (2, 2, 50)))
    expected = np.rad2deg(angular_separation(lon[0], lat[0], lon[1], lat[1]))
    args = (np.rad2deg(x) for x in (lon[0], lat[0], lon[1], lat[1]))
    np.testing.assert_allclose(separation(*args), expected, rtol=1e-10)


# ---- profiles as mixtures of Gaussians -----------------------------------------------------------


def profile(mixture, angle):
    weight, sigma = (mixture[n].values[1, 1] for n in ("weight", "sigma"))
    height = weight / (2 * np.pi * sigma**2)
    return np.sum(height * np.exp(-0.5 * (angle[:, None] / sigma) ** 2), axis=1)


def test_a_king_profile():
    gamma, sigma = 2.3, 0.05
    shape = (len(AXES["energy"]), len(AXES["offset"]))
    mixture = king(AXES, np.full(shape, gamma), np.full(shape, sigma))
    r = np.linspace(0, 10 * sigma, 60)
    expected = (1 - 1 / gamma) / (2 * np.pi * sigma**2)
    expected = expected * (1 + r**2 / (2 * gamma * sigma**2)) ** -gamma
    np.testing.assert_allclose(profile(mixture, r), expected, atol=2e-3 * expected[0])


def test_a_tabulated_profile_keeps_its_containment():
    rad = np.linspace(0.0025, 0.7175, 144)
    density = 0.8 * np.exp(-0.5 * (rad / 0.05) ** 2) + 0.05 * np.exp(-0.5 * (rad / 0.12) ** 2)
    values = np.broadcast_to(density, (4, 3, 144))
    mixture = gaussians_of_table({**AXES, "rad": rad}, values)
    weight, sigma = (mixture[n].values[1, 1] for n in ("weight", "sigma"))
    assert weight.sum() == pytest.approx(1.0)
    share = np.array([0.8 * 0.05**2, 0.05 * 0.12**2])
    share /= share.sum()
    for r in (0.02, 0.05, 0.1, 0.2, 0.3):
        found = np.sum(weight * -np.expm1(-0.5 * (r / sigma) ** 2))
        exact = np.sum(share * -np.expm1(-0.5 * (r / np.array([0.05, 0.12])) ** 2))
        assert found == pytest.approx(exact, abs=4e-3)


def test_cells_without_a_profile_get_the_nearest():
    shape = (4, 3)
    value = {n: np.full(shape, 0.1) for n in ("sigma_1", "sigma_2", "sigma_3")}
    value |= {n: np.zeros(shape) for n in ("ampl_2", "ampl_3")} | {"scale": np.ones(shape)}
    value["sigma_1"][0], value["scale"][0] = 1.0, 0.0
    assert np.all(three_gaussians(AXES, **value)["sigma"].values == 0.1)
    value["scale"][:] = 0.0
    with pytest.raises(InputError, match="zero at all energies"):
        three_gaussians(AXES, **value)


# ---- as published --------------------------------------------------------------------------------


def test_published_tables_at_pairs_of_true_and_reconstructed(published):
    arrays, pairs = published
    tables = tables_from_arrays(arrays)
    true, seen = pairs["true"], pairs["recon"]
    offset = np.asarray(separation(0.0, 0.0, true[:, 1], true[:, 2]))
    area = np.log(tables.area.at(energy=true[:, 0], offset=offset))
    np.testing.assert_allclose(area, pairs["log_aeff_cm2"], atol=1e-12)
    known = np.isfinite(pairs["log_edisp_perTeV"])
    density = tables.migration_density(seen[:, 0], true[:, 0], offset)
    np.testing.assert_allclose(np.log(density[known]), pairs["log_edisp_perTeV"][known], atol=1e-12)
    assert np.all(density[~known] <= 0)
    # Elsewhere nothing is known of the point spread, and ours takes the next that is.
    cells = {n: arrays[f"psf_{n}"] for n in ("energy_true", "offset")}
    known = Table(
        {"energy": cells["energy_true"], "offset": cells["offset"]}, arrays["psf_scale"] > 0
    )
    inner = known.at(energy=true[:, 0], offset=offset) == 1
    away = np.asarray(separation(*true[:, 1:].T, *seen[:, 1:].T))
    spread = tables.log_psf(true[:, 0], offset, away)
    assert inner.sum() > 250
    np.testing.assert_allclose(spread[inner], pairs["log_psf_perdeg2"][inner], atol=1e-11)
    # Tabulated in 32 bits, of which the published numbers took the logarithm.
    rate = tables.background.at(energy=true[:, 0], offset=offset) - 2 * np.log(180 / np.pi)
    np.testing.assert_allclose(rate, pairs["log_bkg"], atol=2e-6)


def test_the_published_response_is_normalised(published):
    tables = tables_from_arrays(published[0])
    response = Response(tables, energy_nodes([(tables, 0.1, 100.0)]))
    energy = np.geomspace(1e-3, 1e3, 30_000)
    density = response.log_ratio_density(energy, np.full(len(energy), 1.7))
    total = np.trapezoid(density, np.log(energy), axis=0)
    np.testing.assert_allclose(total, 1.0, atol=2e-4)


# ---- wrong input ---------------------------------------------------------------------------------


def test_wrong_tables_are_told(tables):
    with pytest.raises(InputError, match=r"has \(4, 3\) cells"):
        Table(AXES, np.zeros((3, 4)))
    with pytest.raises(InputError, match="NaN or infinite"):
        Table(AXES, np.full((4, 3), np.nan))
    with pytest.raises(InputError, match="lack"):
        tables_from_arrays({"aeff": np.zeros((4, 3))})
    with pytest.raises(InputError, match="outside of the response"):
        energy_nodes([(tables, 2000.0, 3000.0)])
    dark = Table(tables.migration.axes, np.zeros_like(tables.migration.values))
    from dataclasses import replace

    with pytest.raises(InputError, match="zero everywhere"):
        Response(replace(tables, migration=dark), jnp.geomspace(0.1, 10.0, 8))
