import numpy as np
import pytest

from skycensus.gw.amplitude import (
    CUTOFF,
    final_spin,
    radiated_energy,
    relative_amplitude,
    ringdown_frequencies,
)


@pytest.mark.parametrize("eta, chi", [(0.25, 0.0), (0.25, 0.9), (0.16, -0.6), (0.05, 0.3)])
def test_continuous_with_its_slope(eta, chi):
    mf = np.geomspace(1e-3, CUTOFF * 0.999, 200_001)
    log_a = np.log(relative_amplitude(mf, np.array([eta]), np.array([chi]))[0])
    slope = np.gradient(log_a, np.log(mf))
    assert np.max(np.abs(np.diff(log_a))) < 1e-3
    assert np.max(np.abs(np.diff(slope))) < 5e-3


def test_tends_to_the_newtonian_amplitude():
    mf = np.array([1e-7])
    eta = np.array([0.25, 0.1])
    alpha = relative_amplitude(mf, eta, np.zeros(2))
    # The first correction is (-323/224 + 451/168 eta) (pi M f)^(2/3).
    expected = (-323.0 / 224.0 + 451.0 / 168.0 * eta[:, None]) * (np.pi * mf) ** (2.0 / 3.0)
    np.testing.assert_allclose(alpha - 1.0, expected, rtol=1e-3)


def test_remnant_of_equal_masses_without_spin():
    # Numerical relativity: spin 0.6864, radiated energy 4.84 % (Scheel et al. 2009,
    # arXiv:0810.1767); quasi-normal mode M_f omega = 0.5267 - 0.0811i at this spin.
    eta, chi = np.array([0.25]), np.array([0.0])
    assert final_spin(eta, chi)[0] == pytest.approx(0.6864, abs=1e-3)
    lost = radiated_energy(eta, chi)[0]
    assert lost == pytest.approx(0.0484, abs=5e-4)
    f, damping = ringdown_frequencies(eta, chi)
    assert f[0] * 2.0 * np.pi * (1.0 - lost) == pytest.approx(0.5267, rel=5e-3)
    assert damping[0] * 2.0 * np.pi * (1.0 - lost) == pytest.approx(0.0811, rel=2e-2)


def test_zero_above_the_cut():
    mf = np.array([0.5 * CUTOFF, CUTOFF * 1.01])
    a = relative_amplitude(mf, np.array([0.2]), np.array([0.0]))[0]
    assert a[0] > 0.0 and a[1] == 0.0
