import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import toy_spectra

from skycensus import InputError
from skycensus.gamma.annihilation import Annihilation, ChannelSpectra, read_pppc
from skycensus.gamma.particle_models import (
    SingletRatios,
    read_singlet_ratios,
    read_z5_ratios,
    scalar_singlet,
    z5,
)

TOY = toy_spectra()
COUPLING = np.geomspace(0.01, 10.0, 13)


def toy_ratios():
    share = 0.2 + 0.1 * np.log10(COUPLING)[None, :] + 0.05 * np.log(TOY.mass)[:, None]
    log_sigma_v = np.log(1e-26 * COUPLING[None, :] ** 2 / TOY.mass[:, None] ** 2)
    return SingletRatios(
        ("b", "tau"), TOY.mass, COUPLING, np.stack([1.0 - share, share], -1), log_sigma_v
    )


def test_shares_follow_mass_and_coupling():
    ratios = toy_ratios()
    found = jax.jit(ratios.at)(1.3, 0.4)
    share = 0.2 + 0.1 * np.log10(0.4) + 0.05 * np.log(1.3)
    np.testing.assert_allclose([found["b"], found["tau"]], [1 - share, share], rtol=1e-10)
    slope = jax.jit(jax.grad(lambda c: ratios.at(1.3, c)["tau"]))(0.4)
    np.testing.assert_allclose(slope, 0.1 / np.log(10.0) / 0.4, rtol=1e-9)
    sigma_v = np.exp(jax.jit(ratios.log_sigma_v_at)(1.3, 0.4))
    np.testing.assert_allclose(sigma_v, 1e-26 * 0.4**2 / 1.3**2, rtol=1e-10)


def test_a_fixed_coupling_is_the_free_one_there():
    energy = {"energy": np.array([0.2, 0.6, 1.1, 2.0])}
    at_coupling = scalar_singlet(TOY, toy_ratios(), low=0.1, coupling=0.4)
    anywhere = scalar_singlet(TOY, toy_ratios(), low=0.1)
    fixed = jax.jit(lambda h: at_coupling(h).log_prob(energy))
    free = jax.jit(lambda h: anywhere(h).log_prob(energy))
    for mass in (1.3, 2.0, 5.1):
        expected, found = free({"mass": mass, "coupling": 0.4}), fixed({"mass": mass})
        np.testing.assert_allclose(np.exp(found), np.exp(expected), rtol=2e-4)


def test_reading_partial_cross_sections(tmp_path):
    file = tmp_path / "singlet.csv"
    header = ' "mS [GeV]" lahS W+W- uu dd Zgamma "hadrons (below confinement scale)"'
    rows = []
    for m in (100.0, 200.0):
        for c in (0.1, 1.0):
            rows.append(f"{len(rows)} {m} {c} 6e-26 1e-26 1e-26 2e-26 0")
    file.write_text("\n".join([header, *reversed(rows)]))
    ratios = read_singlet_ratios(file)
    assert ratios.channels == ("W", "q", "Z", "gamma")
    np.testing.assert_allclose(ratios.fractions[0, 0], [0.6, 0.2, 0.1, 0.1])
    np.testing.assert_allclose(ratios.log_sigma_v, np.log(1e-25))
    np.testing.assert_allclose(ratios.mass, [0.1, 0.2])
    file.write_text("\n".join([header.replace("uu", "up"), *rows]))
    with pytest.raises(InputError, match="expected the columns"):
        read_singlet_ratios(file)
    file.write_text("\n".join([header, *rows[:3]]))
    with pytest.raises(InputError, match="no grid of 2 masses and 2"):
        read_singlet_ratios(file)
    with pytest.raises(InputError, match="no such file"):
        read_singlet_ratios(tmp_path / "none.csv")


def write_z5(file, shares):
    nodes = np.array([1000.0, 1500.0, 2000.0, 3000.0])
    one, two = (x.ravel() for x in np.meshgrid(nodes, nodes, indexing="ij"))
    with h5py.File(file, "w") as out:
        out["mdm1"], out["mdm2"] = one, two
        for (initial, final), share in shares.items():
            out[f"{initial}/{final}"] = np.full(len(one), share)


def test_pairs_and_single_higgs_bosons_have_their_own_energies(tmp_path):
    file = tmp_path / "z5.h5"
    write_z5(file, {("x1X1", "bB"): 0.5, ("x2X2", "lL"): 0.25, ("x1X2", "hX1"): 0.25})
    # All channels of the model, of the toy's two shapes.
    names = ("W", "Z", "b", "c", "g", "gamma", "h", "mu", "q", "t", "tau")
    table = np.concatenate([TOY.table, np.repeat(TOY.table[..., :1], 9, axis=-1)], axis=-1)
    order = [("b", "tau", *(n for n in names if n not in ("b", "tau"))).index(n) for n in names]
    spectra = ChannelSpectra(names, TOY.mass, TOY.log10_x, table[..., order])
    population = z5(spectra, read_z5_ratios(file), low=0.1)
    energy = {"energy": np.array([0.3, 1.2, 1.6, 1.9])}
    found = jax.jit(lambda h: population(h).log_prob(energy))({"mass_1": 2.0, "mass_2": 1.5})
    root_s = 3.5
    boson = 0.5 * (root_s + (0.1252**2 - 2.0**2) / root_s)

    @jax.jit
    def one(mass, fractions):
        leaf = Annihilation(spectra, mass, fractions=fractions, low=0.1, log_amplitude=0.0)
        return jnp.exp(leaf.log_prob(energy))

    nothing = {"b": 0.0, "tau": 0.0, "h": 0.0}
    expected = one(2.0, nothing | {"b": 0.5}) + one(1.5, nothing | {"tau": 0.25})
    expected = expected + one(boson, nothing | {"h": 0.125})
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-9)
    with pytest.raises(InputError, match="no such file"):
        read_z5_ratios(tmp_path / "none.h5")
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a table of the Z5 model"):
        read_z5_ratios(file)


@pytest.mark.slow
def test_published_z5_ratios(data_set):
    ratios = read_z5_ratios(data_set("z5"))
    total = sum(ratios.fractions.values())
    # The rest ends in dark particles alone.
    assert total.min() > 0.6 and total.max() < 1.01
    population = z5(read_pppc(data_set("pppc")), ratios, low=0.1)
    energy = {"energy": np.array([0.1, 1.0, 1.9, 2.1])}
    found = jax.jit(lambda h: population(h).log_prob(energy))({"mass_1": 2.0, "mass_2": 1.5})
    assert np.all(np.isfinite(found[:3])) and np.isneginf(found[3])


def test_singlet_agrees_with_gammabayes(data_set, require_path, shared):
    """Its cubic interpolation rings next to the line at E = m; below it both are the same."""
    reference = np.load(require_path(shared / "reference" / "gammabayes" / "dm_parts.npz"))
    spectra = read_pppc(data_set("pppc"))
    ratios = read_singlet_ratios(data_set("singlet-darksusy"))
    energy, mass = np.logspace(-1, 2, 91), np.geomspace(0.12, 38.11876574469643, 121)
    population = scalar_singlet(spectra, ratios, low=0.1, coupling=0.1, log_j=0.0)

    @jax.jit
    @jax.vmap
    def photons(m):
        flux = population({"mass": m, "sigma_v": 8.0 * np.pi}).log_prob({"energy": energy})
        return flux + 2.0 * jnp.log(1000.0 * m)

    found, expected = np.asarray(photons(mass)).T, reference["log_spec"]
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    x = energy[:, None] / mass
    with np.errstate(invalid="ignore"):
        error = np.abs(found - expected)
    # Where the Higgs channel opens, at 125 GeV, a step is resolved by the nodes of either table.
    clear = np.isfinite(expected) & (mass > 0.2)
    assert error[clear & (x < 0.5)].max() < 5e-3
    assert np.median(error[clear & (x < 0.5)]) < 2e-4
    assert np.median(error[clear & (x > 0.5) & (x < 0.8)]) < 0.01
