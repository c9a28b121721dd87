import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from skycensus.gw import redshift
from skycensus.gw.cosmology import SPEED_OF_LIGHT, FlatLambdaCDM

POWER_LAW = {"redshift_kappa": 2.7, "redshift_z_max": 2.3}
PEAKED = {**POWER_LAW, "redshift_z_peak": 1.9, "redshift_gamma": 5.6}
FAMILIES = {
    "power_law": (redshift.power_law, POWER_LAW),
    "madau_dickinson": (redshift.madau_dickinson, PEAKED),
}


def evolution(z, h):
    psi = (1 + z) ** h["redshift_kappa"]
    if "redshift_gamma" in h:
        gamma, peak = h["redshift_gamma"], 1 + h["redshift_z_peak"]
        psi *= (1 + peak**-gamma) / (1 + ((1 + z) / peak) ** gamma)
    return psi


def exact_spacetime(z, h, H0=67.74, Om0=0.3075):
    """psi dVc/dz/(1+z) in Gpc³, by adaptive quadrature."""

    def inverse_e(x):
        return (Om0 * (1 + x) ** 3 + 1 - Om0) ** -0.5

    hubble = SPEED_OF_LIGHT / H0 / 1e3
    distance = hubble * quad(inverse_e, 0, z, epsrel=1e-12, epsabs=0)[0]
    return 4 * np.pi * distance**2 * hubble * inverse_e(z) * evolution(z, h) / (1 + z)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_density_and_volume_against_quadrature(name):
    family, h = FAMILIES[name]
    density = family(h)
    volume, _ = quad(exact_spacetime, 0, 2.3, args=(h,), epsrel=1e-11)
    np.testing.assert_allclose(redshift.log_volume(density), np.log(volume), rtol=1e-10)
    z = np.array([1e-3, 0.1, 0.9, 2.2])
    exact = [np.log(exact_spacetime(x, h) / volume) for x in z]
    np.testing.assert_allclose(density.log_prob({"redshift": z}), exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_agrees(name):
    family, h = FAMILIES[name]
    density = family(h)
    grid = np.linspace(0.0, 2.3, 4001)
    p = np.exp(np.array(jax.jit(density.log_prob)({"redshift": jnp.asarray(grid)})))
    cumulative = np.concatenate([[0], np.cumsum(0.5 * (p[1:] + p[:-1]) * np.diff(grid))])
    np.testing.assert_allclose(cumulative[-1], 1.0, rtol=1e-6)
    draws = np.array(
        jax.jit(density.sample, static_argnums=1)(jax.random.key(7), (20000,))["redshift"]
    )
    assert stats.kstest(draws, lambda x: np.interp(x, grid, cumulative)).pvalue > 0.01


def test_euclidean_volume_at_small_redshift():
    h = {"redshift_kappa": 0.0, "redshift_z_max": 1e-5}
    density = redshift.power_law(h)
    np.testing.assert_allclose(
        density.log_prob({"redshift": jnp.asarray(5e-6)}), np.log(3 * 0.25 / 1e-5), rtol=1e-4
    )


def test_free_cosmology_is_read_and_differentiable():
    z = {"redshift": jnp.asarray([0.1, 1.0])}
    fixed = redshift.power_law(POWER_LAW, cosmology=FlatLambdaCDM(70.0, 0.25)).log_prob(z)
    free = redshift.power_law({**POWER_LAW, "H0": 70.0, "Om0": 0.25}).log_prob(z)
    np.testing.assert_allclose(free, fixed, rtol=1e-14)

    @jax.jit
    def log_volume(H0, Om0):
        return redshift.log_volume(redshift.power_law({**POWER_LAW, "H0": H0, "Om0": Om0}))

    # Every volume goes as H0^-3; the normalised density does not know H0.
    np.testing.assert_allclose(jax.grad(log_volume)(70.0, 0.25), -3 / 70.0, rtol=1e-9)
    slope = jax.grad(log_volume, argnums=1)(70.0, 0.25)
    difference = (log_volume(70.0, 0.2501) - log_volume(70.0, 0.2499)) / 2e-4
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


@pytest.mark.slow
def test_edges_and_vmap():
    h = {k: jnp.asarray(v) for k, v in POWER_LAW.items()}
    outside = {"redshift": jnp.asarray([-0.1, 2.4])}
    assert np.all(np.isneginf(redshift.power_law(h).log_prob(outside)))
    gradient = jax.jit(jax.jacrev(lambda h: redshift.power_law(h).log_prob(outside)))(h)
    assert all(np.all(np.isfinite(g)) for g in gradient.values())
    kappas = jnp.asarray([0.0, 2.7])
    many = jax.vmap(
        lambda k: redshift.power_law({**h, "redshift_kappa": k}).log_prob({"redshift": 0.5})
    )(kappas)
    one = redshift.power_law(h).log_prob({"redshift": 0.5})
    np.testing.assert_allclose(many[1], one, rtol=1e-12)
    batch = redshift.PowerLawRedshift(kappas, 2.3)
    np.testing.assert_allclose(batch.log_prob(0.5), many, rtol=1e-12)


@pytest.mark.slow
def test_single_precision():
    for family, h in FAMILIES.values():
        z = np.array([0.01, 0.5, 2.0])
        narrow_h = {k: jnp.asarray(v, jnp.float32) for k, v in h.items()}
        narrow = family(narrow_h).log_prob({"redshift": jnp.asarray(z, jnp.float32)})
        assert narrow.dtype == jnp.float32
        np.testing.assert_allclose(narrow, family(h).log_prob({"redshift": z}), atol=2e-5)


@pytest.mark.parametrize(
    ("entry", "family"),
    [
        ("PowerlawRedshiftModel", redshift.power_law),
        ("MadauDickinsonRedshiftModel", redshift.madau_dickinson),
    ],
)
def test_reference_values(shared, require_path, entry, family):
    """The reference is not normalised and interpolates its distances (1e-7 in the density)."""
    path = require_path(shared / "reference/gwkokab/log_density_gwkokab.json")
    table = json.loads(path.read_text())
    (case,) = next(v for k, v in table.items() if k.startswith(entry))
    h = {f"redshift_{k}": float(v) for k, v in case["params"].items()}
    z = jnp.asarray(case["points"])

    def rate(h):
        density = family(h)
        return density.log_prob({"redshift": z}) + redshift.log_volume(density)

    np.testing.assert_allclose(rate(h), case["log_prob"], atol=1e-7)
    exact = [np.log(exact_spacetime(x, h)) for x in case["points"]]
    np.testing.assert_allclose(rate(h), exact, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(redshift.log_volume(family(h)), case["log_norm"], atol=1e-6)
    gradient = jax.jit(jax.jacrev(rate))(h)
    for name, expected in case["dlog_prob_dparam"].items():
        np.testing.assert_allclose(gradient[f"redshift_{name}"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("entry", "family"),
    [
        ("PowerLawRedshift(z_max=2.3)", redshift.power_law),
        ("MadauDickinsonRedshift(z_max=2.3)", redshift.madau_dickinson),
    ],
)
def test_second_reference(shared, require_path, entry, family):
    """Normalised by a sum over 2,500 redshifts there: agrees to 1e-7."""
    path = require_path(shared / "reference/gwkokab/log_density_gwpopulation.json")
    (case,) = json.loads(path.read_text())[entry]
    p = case["params"]
    h = {"redshift_z_max": 2.3, "redshift_kappa": p.get("lamb", p.get("gamma"))}
    if "kappa" in p:
        # Its letters for the two slopes are swapped.
        h |= {"redshift_gamma": p["kappa"], "redshift_z_peak": p["z_peak"]}
    z = {"redshift": jnp.asarray(case["data"]["redshift"])}
    np.testing.assert_allclose(family(h).log_prob(z), case["log_prob"], atol=1e-7)
