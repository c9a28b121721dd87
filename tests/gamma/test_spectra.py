import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from skycensus import InputError
from skycensus.gamma.spectra import CutoffPowerLaw, LogParabola, PowerLaw, Tabulated

BOUNDS = {"low": 0.1, "high": 100.0}
ENERGY = np.array([0.1, 0.35, 1.0, 7.3, 100.0])
CRAB = np.log(3.5e-11)

# Each with the logarithm of its flux at ln(E/TeV).
FORMULAS = {
    "power law": (
        PowerLaw(2.6, log_amplitude=CRAB, **BOUNDS),
        lambda t: CRAB - 2.6 * t,
    ),
    "power law, index 1": (
        PowerLaw(1.0, log_amplitude=CRAB, reference=5.0, **BOUNDS),
        lambda t: CRAB - (t - np.log(5.0)),
    ),
    "log-parabola": (
        LogParabola(2.5, 0.1, log_amplitude=CRAB, reference=2.0, **BOUNDS),
        lambda t: CRAB - (t - np.log(2.0)) * (2.5 + 0.1 * (t - np.log(2.0))),
    ),
    "cut-off": (
        CutoffPowerLaw(2.1, 8.0, log_amplitude=CRAB, **BOUNDS),
        lambda t: CRAB - 2.1 * t - np.exp(t) / 8.0,
    ),
    "steep cut-off": (
        CutoffPowerLaw(2.1, 0.05, log_amplitude=CRAB, **BOUNDS),
        lambda t: CRAB - 2.1 * t - np.exp(t) / 0.05,
    ),
}
cases = pytest.mark.parametrize(("spectrum", "log_flux"), FORMULAS.values(), ids=list(FORMULAS))


@cases
def test_flux_is_its_formula(spectrum, log_flux):
    found = spectrum.log_prob({"energy": ENERGY})
    np.testing.assert_allclose(found, log_flux(np.log(ENERGY)), rtol=1e-12, atol=1e-12)
    outside = spectrum.log_prob({"energy": np.array([0.09, 101.0, 0.0, -1.0])})
    assert np.all(np.isneginf(outside))
    assert np.isnan(spectrum.log_prob({"energy": np.nan}))


@cases
def test_integrals_agree_with_quadrature(spectrum, log_flux):
    def exact(low, high):
        return scipy.integrate.quad(
            lambda t: np.exp(log_flux(t) + t), np.log(low), np.log(high), epsrel=1e-12, epsabs=0
        )[0]

    low, high = np.array([0.1, 0.1, 1.0]), np.array([100.0, 0.4, 10.0])
    expected = [np.log(exact(a, b)) for a, b in zip(low, high, strict=True)]
    integral = jax.jit(spectrum.log_integral)
    np.testing.assert_allclose(integral(low, high), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(spectrum.log_total, expected[0], rtol=0, atol=1e-9)
    # What lies beyond the support does not count.
    np.testing.assert_allclose(integral(0.01, 0.4), expected[1], rtol=0, atol=1e-9)
    assert np.isneginf(integral(200.0, 300.0))


def test_table_is_a_power_law_between_its_nodes():
    table = Tabulated([0.1, 1.0, 100.0], [20.0, 1.0, 1e-6], log_amplitude=0.0)
    slope = np.log(20.0) / np.log(10.0)
    np.testing.assert_allclose(table.log_prob({"energy": 0.3}), -slope * np.log(0.3), rtol=1e-12)
    np.testing.assert_allclose(table.log_prob({"energy": 10.0}), np.log(1e-3), rtol=1e-12)
    below = (1.0 - 0.2 ** (1.0 - slope)) / (1.0 - slope)
    above = (1.0 - 10.0**-2) / 2.0
    np.testing.assert_allclose(
        jax.jit(table.log_integral)(0.2, 10.0), np.log(below + above), rtol=1e-12
    )


def test_gradients_are_right_on_both_sides_of_the_support():
    @jax.jit
    def value(index, curvature, energy):
        return LogParabola(index, curvature, **BOUNDS).log_prob({"energy": energy})

    inside = jax.grad(value, argnums=(0, 1, 2))(2.0, 0.1, 3.0)
    for k, step in enumerate(np.eye(3) * 1e-5):
        ends = [value(*(np.array([2.0, 0.1, 3.0]) + s * step)) for s in (1, -1)]
        np.testing.assert_allclose(inside[k], (ends[0] - ends[1]) / 2e-5, rtol=1e-6)
    assert np.all(np.isfinite(jax.grad(value, argnums=(0, 1, 2))(2.0, 0.1, 300.0)))


def test_bad_input_is_named():
    with pytest.raises(InputError, match=r"0 < low < high"):
        PowerLaw(2.0, low=10.0, high=1.0)
    with pytest.raises(InputError, match="positive and increase"):
        Tabulated([1.0, 1.0], [1.0, 2.0])
    with pytest.raises(InputError, match=r"0 at 2 TeV"):
        Tabulated([1.0, 2.0], [1.0, 0.0])
    with pytest.raises(InputError, match="one density for each"):
        Tabulated([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="needs parameter 'energy'"):
        PowerLaw(2.0, **BOUNDS).log_prob({"enrgy": jnp.ones(3)})
