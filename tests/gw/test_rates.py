import jax
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import Joint, Mixture
from skycensus.errors import InputError
from skycensus.gw import mass, rates, redshift
from skycensus.gw.cosmology import PLANCK_2015
from skycensus.predictive import population_curves

HYPER = {
    **{f"alpha_pl_{i}": np.array([2.0, 3.0]) for i in (0, 1)},
    **{f"beta_pl_{i}": np.array([1.0, 0.0]) for i in (0, 1)},
    **{f"mmin_pl_{i}": np.array([5.0, 6.0]) for i in (0, 1)},
    **{f"mmax_pl_{i}": np.array([50.0, 60.0]) for i in (0, 1)},
    "log_rate_0": np.log([10.0, 20.0]),
    "log_rate_1": np.log([3.0, 1.0]),
}
EVOLVING = {
    **HYPER,
    "redshift_kappa_pl_0": np.array([2.0, 3.0]),
    "redshift_kappa_pl_1": np.array([-1.0, 0.0]),
    **{f"redshift_z_max_pl_{i}": np.array([1.5, 2.0]) for i in (0, 1)},
}
STATIC = mass.n_power_laws_m_gaussians(2, 0)
POPULATION = mass.n_power_laws_m_gaussians(2, 0, extra=[redshift.power_law])


@pytest.mark.parametrize(("population", "hyper"), [(STATIC, HYPER), (POPULATION, EVOLVING)])
def test_log_rates_are_the_rates_today(population, hyper):
    found = rates.merger_rate(population, hyper)
    assert set(found) == {"pl_0", "pl_1", "total"}
    np.testing.assert_allclose(found["pl_0"], [10, 20], rtol=1e-12)
    np.testing.assert_allclose(found["total"], [13, 21], rtol=1e-12)


def test_evolution_is_that_of_the_components():
    z = np.array([0.0, 0.4, 1.0, 1.7])
    curves = rates.rate_evolution(POPULATION, EVOLVING, z)
    exact = [10 * (1 + z) ** 2 + 3 / (1 + z), 20 * (1 + z) ** 3 + 1]
    exact[0][-1] = 0  # beyond z_max
    np.testing.assert_allclose(curves, exact, rtol=1e-12)


def test_mergers_are_the_integral_of_the_evolution():
    """Two roads: V of the factors, and R(z) dV/dz/(1+z) integrated here."""
    x, w = np.polynomial.legendre.leggauss(64)
    z = 0.75 * (x + 1)
    hyper = {name: values[:1] for name, values in EVOLVING.items()}
    volume = np.asarray(PLANCK_2015.differential_comoving_volume(z)) / (1 + z)
    curve = rates.rate_evolution(POPULATION, hyper, z)[0]
    total = rates.mergers_per_year(POPULATION, hyper)
    np.testing.assert_allclose(total, 0.75 * np.sum(w * curve * volume), rtol=1e-10)
    # A third: the marginal density of the rate density.
    marginal = population_curves(POPULATION, hyper, "redshift", z, key=jax.random.key(0))[0]
    np.testing.assert_allclose(marginal, curve * volume, rtol=1e-10)


def test_what_has_no_redshift_is_refused():
    with pytest.raises(InputError, match=r"no 'redshift'.*merger_rate"):
        rates.rate_evolution(STATIC, HYPER, [0.1])
    with pytest.raises(InputError, match="no 'redshift'"):
        rates.mergers_per_year(STATIC, HYPER)

    def foreign(h):
        part = Joint(redshift=dist.Uniform(0.0, h["high"]))
        return Mixture({"a": part}, log_weights={"a": 1.0})

    with pytest.raises(InputError, match=r"factors of gw\.redshift only"):
        rates.rate_evolution(foreign, {"high": np.ones(2)}, [0.1])
