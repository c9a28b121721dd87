import numpy as np
import pytest

from skycensus.errors import InputError
from skycensus.gw.noise import (
    NOISE_CURVES,
    NoiseCurve,
    noise_curve,
    read_noise_curve,
    tabulated_noise,
)

SOLAR_MASS = 4.925490947641267e-06  # in seconds
MPC = 1.0292712503e14  # in seconds


def binary_neutron_star_range(curve, low=10.0):
    """Sky-averaged range in Mpc of 1.4 + 1.4 solar masses, inspiral to the last stable orbit."""
    total = 2.8 * SOLAR_MASS
    f = np.geomspace(low, 1.0 / (6.0**1.5 * np.pi * total), 20_001)
    power = np.trapezoid(f ** (-7.0 / 3.0) / curve.asd(f) ** 2, f)
    chirp = 2.8 * 0.25**0.6 * SOLAR_MASS
    snr = 2.0 * np.sqrt(5.0 / 24.0 * power) * np.pi ** (-2.0 / 3.0) * chirp ** (5.0 / 6.0) / MPC
    return snr / 8.0 / 2.26478


# Computed from the published tables of LIGO-P1200087-v18.
RANGES = {
    "aLIGO-early-high": 80.606,
    "aLIGO-mid-high": 120.683,
    "aLIGO-late-high": 171.083,
    "aLIGO-design": 196.504,
}


@pytest.mark.parametrize("name", RANGES)
def test_range_of_the_published_curves(name):
    assert binary_neutron_star_range(NOISE_CURVES[name]) == pytest.approx(RANGES[name], rel=1e-3)


def test_design_agrees_with_a_published_formula():
    # The zero-detuning, high-power fit of Ajith 2011 (arXiv:1107.1267), equation 4.7.
    f = np.geomspace(20.0, 1000.0, 50)
    x = f / 245.4
    s = 0.0152 * x**-4 + 0.2935 * x**2.25 + 2.7951 * x**1.5 - 6.5080 * x**0.75 + 17.7622
    np.testing.assert_allclose(NOISE_CURVES["aLIGO-design"].asd(f), np.sqrt(1e-48 * s), rtol=0.03)


def test_a_file_is_the_curve_it_was_written_from(tmp_path):
    curve = NOISE_CURVES["aLIGO-mid-high"]
    f = np.geomspace(10.0, 4000.0, 500)
    path = tmp_path / "asd.txt"
    np.savetxt(path, np.stack([f, curve.asd(f)], 1), header="frequency asd")
    read = read_noise_curve(path)
    assert read.name == "asd.txt"
    assert (read.low, read.high) == pytest.approx((10.0, 4000.0))
    x = np.geomspace(11.0, 3900.0, 77)
    np.testing.assert_allclose(read.asd(x), curve.asd(x), rtol=1e-3)


def test_names_and_functions():
    assert noise_curve("aLIGO-design") is NOISE_CURVES["aLIGO-design"]
    assert noise_curve(NOISE_CURVES["aLIGO-design"]).name == "aLIGO-design"
    assert noise_curve(lambda f: 0.0 * f + 1e-23).name == "function"
    with pytest.raises(InputError, match="did you mean 'aLIGO-design'"):
        noise_curve("aLIGO-desing")


@pytest.mark.parametrize(
    "frequency, asd, message",
    [
        ([10.0, 20.0], [1e-23], "two columns of equal length"),
        ([20.0, 10.0], [1e-23, 1e-23], "increase from row to row"),
        ([10.0, 20.0], [1e-23, -1.0], "1 amplitudes are not positive"),
        ([10.0, 20.0], [1e-46, 1e-46], "power spectral density"),
    ],
)
def test_bad_tables(frequency, asd, message):
    with pytest.raises(InputError, match=message):
        tabulated_noise(frequency, asd)


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_noise_curve(tmp_path / "absent.txt")
    for text in ("f asd\n10 x\n", "10\n20\n", "# nothing\n"):
        path = tmp_path / "bad.txt"
        path.write_text(text)
        with pytest.raises(InputError, match="expected two columns"):
            read_noise_curve(path)


def test_bad_band():
    with pytest.raises(InputError, match="0 < low < high"):
        NoiseCurve(lambda f: f, low=100.0, high=10.0)
