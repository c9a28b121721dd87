import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from skycensus.gw.cosmology import PLANCK_2015, PLANCK_2018, SPEED_OF_LIGHT, FlatLambdaCDM

Z = np.array([1e-6, 1e-3, 0.01, 0.1, 0.5, 1.0, 2.0, 3.9, 10.0])


def exact_distance(z, H0, Om0):
    integral, _ = quad(
        lambda x: (Om0 * (1 + x) ** 3 + 1 - Om0) ** -0.5, 0, z, epsrel=1e-13, epsabs=0
    )
    return SPEED_OF_LIGHT / H0 * integral


@pytest.mark.parametrize(
    ("Om0", "rtol"), [(0.05, 1e-9), (0.2, 1e-10), (0.3075, 1e-11), (1.0, 1e-13)]
)
def test_comoving_distance_is_the_integral(Om0, rtol):
    exact = [exact_distance(z, 70.0, Om0) for z in Z]
    np.testing.assert_allclose(FlatLambdaCDM(70.0, Om0).comoving_distance(Z), exact, rtol=rtol)


def test_matter_only_universe_in_closed_form():
    cosmology = FlatLambdaCDM(70.0, 1.0)
    exact = 2 * SPEED_OF_LIGHT / 70.0 * (1 - (1 + Z) ** -0.5)
    np.testing.assert_allclose(cosmology.comoving_distance(Z), exact, rtol=1e-9)


def test_agrees_with_astropy():
    astropy_cosmology = pytest.importorskip("astropy.cosmology")
    rival = astropy_cosmology.FlatLambdaCDM(H0=67.66, Om0=0.30966, Tcmb0=0)
    z = Z[1:]
    np.testing.assert_allclose(
        PLANCK_2018.luminosity_distance(z), rival.luminosity_distance(z).value, rtol=1e-9
    )
    volume = 4 * np.pi * rival.differential_comoving_volume(z).value / 1e9
    np.testing.assert_allclose(PLANCK_2018.differential_comoving_volume(z), volume, rtol=1e-9)
    np.testing.assert_allclose(
        PLANCK_2018.comoving_volume(z), rival.comoving_volume(z).value / 1e9, rtol=1e-9
    )


def test_logarithm_slope_and_volume_are_consistent():
    z = jnp.asarray(Z)
    log_volume = PLANCK_2015.log_differential_comoving_volume(z)
    np.testing.assert_allclose(
        jnp.exp(log_volume), PLANCK_2015.differential_comoving_volume(z), rtol=1e-12
    )
    volume_slope = jax.vmap(jax.grad(PLANCK_2015.comoving_volume))(z)
    np.testing.assert_allclose(jnp.exp(log_volume), volume_slope, rtol=1e-8)
    slope = jax.vmap(jax.grad(PLANCK_2015.luminosity_distance))(z)
    np.testing.assert_allclose(
        jnp.exp(PLANCK_2015.log_luminosity_distance_slope(z)), slope, rtol=1e-8
    )


def test_redshift_inverts_the_distance():
    z = jnp.concatenate([jnp.asarray([0.0]), jnp.asarray(Z), jnp.asarray([100.0])])
    distance = PLANCK_2015.luminosity_distance(z)
    np.testing.assert_allclose(PLANCK_2015.redshift_at(distance), z, rtol=1e-12)


@pytest.mark.slow
def test_redshift_derivatives_are_those_of_the_inverse():
    def redshift(distance, H0, Om0):
        return FlatLambdaCDM(H0, Om0).redshift_at(distance)

    at = (3000.0, 70.0, 0.3)
    gradient = jax.jit(jax.grad(redshift, argnums=(0, 1, 2)))(*at)
    for i, slope in enumerate(gradient):
        up, down = list(at), list(at)
        up[i], down[i] = at[i] * (1 + 1e-5), at[i] * (1 - 1e-5)
        difference = (redshift(*up) - redshift(*down)) / (up[i] - down[i])
        np.testing.assert_allclose(slope, difference, rtol=1e-6)
    steeper = jax.jit(jax.grad(jax.grad(redshift), argnums=1))
    flipped = jax.jit(jax.grad(jax.grad(redshift, argnums=1)))
    np.testing.assert_allclose(steeper(*at), flipped(*at), rtol=1e-8)


def test_single_precision_stays_single_and_close():
    z = jnp.asarray(Z, jnp.float32)
    distance = PLANCK_2015.luminosity_distance(z)
    assert distance.dtype == jnp.float32
    np.testing.assert_allclose(distance, PLANCK_2015.luminosity_distance(Z), rtol=2e-6)
    np.testing.assert_allclose(PLANCK_2015.redshift_at(distance), z, rtol=1e-5)


def test_reference_values(shared, require_path):
    """The reference interpolates distances: good to some 1e-8, which the integral itself shows."""
    path = require_path(shared / "reference/gwkokab/log_density_gwkokab.json")
    reference = json.loads(path.read_text())["PLANCK_2015_Cosmology"]
    z = np.array(reference["z"])
    exact = np.array([exact_distance(x, reference["H0"], reference["Om"]) for x in z])
    assert np.max(np.abs(np.array(reference["Dc_Mpc"]) / exact - 1)) > 1e-8
    np.testing.assert_allclose(PLANCK_2015.comoving_distance(z), exact, rtol=1e-11)
    np.testing.assert_allclose(PLANCK_2015.comoving_distance(z), reference["Dc_Mpc"], rtol=5e-8)
    np.testing.assert_allclose(PLANCK_2015.luminosity_distance(z), reference["DL_Mpc"], rtol=5e-8)
    log_volume = PLANCK_2015.log_differential_comoving_volume(z)
    np.testing.assert_allclose(log_volume, reference["logdVcdz_Gpc3"], atol=1e-7)
