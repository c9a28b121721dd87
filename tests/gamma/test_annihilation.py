import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import toy_spectra

from skycensus import InputError
from skycensus.gamma.annihilation import (
    Annihilation,
    ChannelSpectra,
    decay,
    log_annihilation_factor,
    log_decay_factor,
    mixed_channels,
    read_pppc,
)

TOY = toy_spectra()


@functools.partial(jax.jit, static_argnames="spectra")
def photons(mass, energy, fractions, spectra=TOY):
    density = Annihilation(spectra, mass, fractions=fractions, low=0.05, log_amplitude=0.0)
    return density.log_prob({"energy": energy})


def test_at_a_node_it_is_the_table():
    mass, x = TOY.mass[3], 10.0 ** TOY.log10_x[-30:-2]
    found = np.exp(photons(mass, mass * x, {"b": 0.8, "tau": 0.1}))
    table = TOY.table[3, -30:-2]
    expected = (0.8 * table[:, 0] + 0.1 * table[:, 1]) / (np.log(10.0) * mass * x)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_between_nodes_the_spectrum_ends_at_the_mass():
    mass = 1.7
    found = photons(mass, np.array([1.699, 1.7, 1.7001, 5.0]), {"b": 1.0})
    assert np.all(np.isfinite(found[:2])) and np.all(np.isneginf(found[2:]))
    # The toy is m**0.1 times a function of x alone, so what lies between is known.
    x = np.geomspace(0.05, 0.9, 40)
    expected = 9.0 * np.exp(-6.0 * x) / np.sqrt(x) * mass**0.1 / (np.log(10.0) * mass * x)
    np.testing.assert_allclose(np.exp(photons(mass, mass * x, {"b": 1.0})), expected, rtol=5e-4)


def test_it_is_smooth_in_mass_and_shares():
    @jax.jit
    def value(mass, tau):
        return photons(mass, jnp.array([0.3, 1.1]), {"b": 1.0 - tau, "tau": tau})

    slopes = jax.jit(jax.jacfwd(value, argnums=(0, 1)))
    for mass in (1.3, float(TOY.mass[4])):
        found = slopes(mass, 0.3)
        for k, step in enumerate(np.eye(2) * 1e-6):
            ends = [value(mass + s * step[0], 0.3 + s * step[1]) for s in (1, -1)]
            np.testing.assert_allclose(found[k], (ends[0] - ends[1]) / 2e-6, rtol=1e-4)
        left, right = slopes(mass - 1e-9, 0.3)[0], slopes(mass + 1e-9, 0.3)[0]
        np.testing.assert_allclose(left, right, rtol=1e-6)
    # Above the mass there is nothing, and no NaN in the gradient of it.
    above = jax.jit(jax.jacfwd(lambda m: jnp.exp(photons(m, 4.0, {"b": 1.0}))))(2.0)
    assert above == 0.0


def test_its_integral_counts_photons():
    def count(low, high):
        spectrum = Annihilation(TOY, 2.0, fractions={"b": 1.0}, low=0.05, log_amplitude=0.0)
        return jnp.exp(spectrum.log_integral(low, high)), jnp.exp(spectrum.log_total)

    edges = np.array([0.05, 0.4, 1.9, 7.0])
    parts, total = jax.jit(count)(edges[:-1], edges[1:])
    x = np.geomspace(0.025, 1.0, 20001)
    per_decade = 9.0 * np.exp(-6.0 * x) / np.sqrt(x) * 2.0**0.1
    expected = np.trapezoid(per_decade, np.log10(x))
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    np.testing.assert_allclose(parts.sum(), total, rtol=1e-12)


def test_its_integral_is_that_of_its_density():
    """Cell by cell, as the density by quadrature between the tables' nodes."""

    @jax.jit
    def values(log_energy):
        shares = {"b": 0.7, "tau": 0.3}
        spectrum = Annihilation(TOY, 2.3, fractions=shares, low=0.05, high=1.3)
        return spectrum.log_shape(log_energy), spectrum._log_scale()

    nodes = np.clip(np.log(2.3 * 10.0**TOY.log10_x), np.log(0.05), np.log(1.3))
    place, weight = np.polynomial.legendre.leggauss(12)
    log_energy = nodes[:-1, None] + 0.5 * (place + 1.0) * np.diff(nodes)[:, None]
    log_shape, log_scale = values(log_energy)
    shape = np.exp(log_shape + log_energy)
    expected = np.sum(0.5 * weight * np.diff(nodes)[:, None] * shape)
    assert float(-log_scale) == pytest.approx(np.log(expected), abs=1e-8)


def test_a_decay_is_an_annihilation_at_half_the_mass():
    energy = np.array([0.3, 0.9, 1.1])

    @jax.jit
    def found(mass):
        one = decay(TOY, mass, fractions={"b": 1.0}, low=0.05, log_amplitude=0.0)
        return one.log_prob({"energy": energy})

    np.testing.assert_allclose(found(2.0), photons(1.0, energy, {"b": 1.0}), rtol=1e-12)


def test_fluxes_carry_the_right_factors():
    # 3e-26 cm³/s, 2 TeV = 2000 GeV, J = 1e22 GeV²/cm⁵.
    found = log_annihilation_factor(3e-26, 2.0, np.log(1e22))
    np.testing.assert_allclose(np.exp(found), 3e-26 / (8 * np.pi * 2000.0**2) * 1e22, rtol=1e-12)
    found = log_decay_factor(1e-27, 2.0, np.log(1e22))
    np.testing.assert_allclose(np.exp(found), 1e-27 / (4 * np.pi * 2000.0) * 1e22, rtol=1e-12)


def test_heavy_channels_open_at_their_particles_mass():
    mass, log10_x = np.array([0.05, 0.1, 0.2, 0.4]), np.linspace(-2.0, 0.0, 21)
    table = np.broadcast_to(2.0 - log10_x, (4, 21)).copy()
    table[0] = 0.0  # below the mass of the W, as published
    spectra = ChannelSpectra(("W",), mass, log10_x, table[:, :, None])
    share = {"W": 1.0}
    # Open just above, with the spectrum over x of the lightest mass tabulated.
    between = photons(0.085, 0.085 * 0.7, share, spectra)
    first = photons(0.1, 0.1 * 0.7, share, spectra)
    np.testing.assert_allclose(between + np.log(0.085), first + np.log(0.1), rtol=1e-12)

    @jax.jit
    def normalised(mass):
        return Annihilation(spectra, mass, fractions=share, low=0.06).log_prob({"energy": 0.065})

    assert np.isneginf(normalised(0.07)) and np.isfinite(normalised(0.085))
    assert np.isneginf(photons(0.07, 0.065, share, spectra))


def test_population_by_names():
    population = mixed_channels(TOY, ["tau", "b"], low=0.1, log_j=50.0)
    h = {"mass": 2.0, "sigma_v": 1e-26, "fraction_tau": 0.25, "fraction_b": 0.75}
    expected = photons(2.0, 0.7, {"b": 0.75, "tau": 0.25}) + log_annihilation_factor(
        1e-26, 2.0, 50.0
    )
    found = jax.jit(lambda h: population(h).log_prob({"energy": 0.7}))(h)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    alone = mixed_channels(TOY, ["b"], low=0.1)
    total = jax.jit(lambda m: alone({"mass": m}).log_integral(0.1, m))(2.0)
    np.testing.assert_allclose(total, 0.0, atol=1e-12)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no annihilation channel 'tao'.*'tau'"):
        Annihilation(TOY, 1.0, fractions={"tao": 1.0}, low=0.1)
    with pytest.raises(InputError, match=r"9 TeV lies beyond the tables.*0.5 to 8"):
        Annihilation(TOY, 9.0, fractions={"b": 1.0}, low=0.1)
    # Known only inside a traced function, it is NaN: not known, which is not the same as dark.
    assert np.isnan(photons(9.0, 0.5, {"b": 1.0}))
    with pytest.raises(InputError, match="at least one channel"):
        Annihilation(TOY, 1.0, fractions={}, low=0.1)
    with pytest.raises(InputError, match="0 < low < high"):
        Annihilation(TOY, 1.0, fractions={"b": 1.0}, low=2.0, high=1.0)
    with pytest.raises(InputError, match=r"no such file.*skycensus data pppc"):
        read_pppc(tmp_path / "none.dat")
    file = tmp_path / "table.dat"
    for text, message in [
        ("a b c\n1 2 3\n", "begins with the columns mDM"),
        ("mDM Log[10,x] b\n5 x 3\n", "not a table of numbers"),
        ("mDM Log[10,x] b\n5 -1 3\n5 0 1\n6 -1 3\n", "no grid of 2 masses and 2"),
        ("mDM Log[10,x] b\n5 -1 3\n5 0 -1\n", "not negative"),
    ]:
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_pppc(file)


def test_reading_the_published_layout(tmp_path):
    file = tmp_path / "table.dat"
    rows = [(6, 0, 3, 4), (5, -1, 1, 2), (5, 0, 5, 6), (6, -1, 7, 8)]
    header = r"mDM Log[10,x] \[Tau] V->\[Mu]"
    file.write_text("\n".join([header, *(" ".join(map(str, row)) for row in rows)]))
    spectra = read_pppc(file)
    assert spectra.channels == ("tau", "V_mu")
    np.testing.assert_allclose(spectra.mass, [0.005, 0.006])
    np.testing.assert_array_equal(spectra.table[..., 0], [[1, 5], [7, 3]])
    assert read_pppc(file, ["V_mu"]).channels == ("V_mu",)


def test_published_tables_conserve_energy(data_set):
    spectra = read_pppc(data_set("pppc"))
    assert {"e", "mu", "tau", "q", "c", "b", "t", "W", "Z", "g", "gamma", "h"} <= set(
        spectra.channels
    )
    one = spectra.only(["b", "tau", "W"])
    _, per_decade = one.at_mass(1.0, 1e-8)
    x = 10.0 ** one.log10_x[-len(per_decade) :]
    carried = np.trapezoid(x[:, None] * per_decade, np.log10(x), axis=0)
    # Of the two masses' energy photons have no more than a half; of b about 0.55 of one.
    np.testing.assert_allclose(carried, [0.546, 0.323, 0.434], atol=2e-3)


def test_leaving_out_every_other_node_changes_little(data_set):
    spectra = read_pppc(data_set("pppc"), ["b", "W", "tau"])
    mass, x = spectra.mass, spectra.log10_x
    half = ChannelSpectra(spectra.channels, mass[1::2], x, spectra.table[1::2])
    at_mass = jax.jit(lambda m: half.at_mass(m, 1e-3)[1])
    # Masses left out, from 200 GeV on.
    for m in mass[(mass >= 0.2)][::2][1:-1]:
        left = np.asarray(at_mass(m))
        there = spectra.table[list(mass).index(m), -len(left) :]
        seen = (there > 1e-3) & (x[-len(left) :, None] < -0.1)
        assert np.median(np.abs(left[seen] / there[seen] - 1)) < 0.01
