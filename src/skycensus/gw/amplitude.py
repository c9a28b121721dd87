r"""The Fourier amplitude of a binary black hole: inspiral, merger and ringdown (IMRPhenomD).

The dominant quadrupole of aligned-spin binaries, Khan et al. 2016 (arXiv:1508.07253), here for
equal dimensionless spins $\chi_1 = \chi_2 = \chi$. In geometric units the amplitude is

    $A(Mf) = \sqrt{2\eta/3}\, \pi^{-1/6} (Mf)^{-7/6}\, \alpha(Mf)$,

and `relative_amplitude` returns $\alpha$, one in the limit of low frequency. Everything here is
NumPy in double precision: it runs once, when a table is made.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

SOLAR_MASS_SECONDS = 4.925490947641267e-06
"""$G M_\\odot / c^3$ in seconds (IAU 2015 nominal solar mass parameter)."""

CUTOFF = 0.2
"""The largest $Mf$ of the model; the amplitude is zero above."""

_JOIN = 0.014
"""The $Mf$ at which the inspiral ends."""

# Coefficients of the fits of Khan et al. 2016, their equation (31) and table V (in full precision),
# in the order of the monomials below: (1, η, then {1, η, η²} times x, x² and x³), x = χ_PN - 1.
_FITS: dict[str, tuple[float, ...]] = {
    "rho_1": (
        3931.8979897196696, -17395.758706812805,
        3132.375545898835, 343965.86092361377, -1216256.5819981997,
        -70698.00600428853, 1383907.177859705, -3966276.1890979446,
        -60017.52423652596, 803515.1181825735, -2091710.365941658,
    ),
    "rho_2": (
        -40105.47653771657, 112253.0169706701,
        23561.696065836168, -3476180.699403351, 11375936.70849482,
        754313.1127166454, -13084760.44625268, 36444584.853928134,
        596226.612472288, -7427790.1143564405, 18928977.514040343,
    ),
    "rho_3": (
        83208.35471266537, -191237.7264145924,
        -210916.2454782992, 8717975.08352568, -26914942.420669552,
        -1988980.6527362722, 30888029.960154563, -83908702.79256162,
        -1453503.1953446497, 17063528.990822166, -42748659.731120914,
    ),
    "v_2": (
        0.8149838730507785, 2.5747553517454658,
        1.1610198035496786, -2.3627771785551537, 6.771038707057573,
        0.7570782938606834, -2.7256896890432474, 7.1140380397149965,
        0.1766934149293479, -0.7978690983168183, 2.1162391502005153,
    ),
    "gamma_1": (
        0.006927402739328343, 0.03020474290328911,
        0.006308024337706171, -0.12074130661131138, 0.26271598905781324,
        0.0034151773647198794, -0.10779338611188374, 0.27098966966891747,
        0.0007374185938559283, -0.02749621038376281, 0.0733150789135702,
    ),
    "gamma_2": (
        1.010344404799477, 0.0008993122007234548,
        0.283949116804459, -4.049752962958005, 13.207828172665366,
        0.10396278486805426, -7.025059158961947, 24.784892370130475,
        0.03093202475605892, -2.6924023896851663, 9.609374464684983,
    ),
    "gamma_3": (
        1.3081615607036106, -0.005537729694807678,
        -0.06782917938621007, -0.6689834970767117, 3.403147966134083,
        -0.05296577374411866, -0.9923793203111362, 4.820681208409587,
        -0.006134139870393713, -0.38429253308696365, 1.7561754421985984,
    ),
}  # fmt: skip


class _Ringdown(NamedTuple):
    """The merger and ringdown: a Lorentzian of centre `f`, times an exponential (equation 19)."""

    f: np.ndarray
    width: np.ndarray
    height: np.ndarray
    decay: np.ndarray

    def value(self, x: np.ndarray) -> np.ndarray:
        d = x - self.f
        lorentzian = self.height * self.width / (d * d + self.width**2)
        # Far below the peak, where this form is not used, the exponent would overflow.
        return lorentzian * np.exp(np.minimum(-self.decay * d / self.width, 50.0))

    def log_slope(self, x: np.ndarray) -> np.ndarray:
        d = x - self.f
        return -self.decay / self.width - 2.0 * d / (d * d + self.width**2)

    def peak(self) -> np.ndarray:
        # The maximum solves a quadratic with real roots only for decay < 1 (equation 20).
        root = np.sqrt(np.maximum(1.0 - self.decay**2, 0.0))
        return np.abs(self.f + self.width * (root - 1.0) / self.decay)


def final_spin(eta: np.ndarray, chi: np.ndarray) -> np.ndarray:
    """Return the spin of the remnant (Husa et al. 2016, arXiv:1508.07250, equation 3.6)."""
    s = chi * (1.0 - 2.0 * eta)
    orbital = 2.0 * math.sqrt(3.0) + eta * (
        -4.399247300629289 + eta * (9.397292189321194 - 13.180949901606242 * eta)
    )
    spins = (
        (1.0 / eta - 0.0850917821418767 - 5.837029316602263 * eta)
        + (0.1014665242971878 - 2.0967746996832157 * eta) * s
        + (-1.3546806617824356 + 4.108962025369336 * eta) * s**2
        + (-0.8676969352555539 + 2.064046835273906 * eta) * s**3
    )
    return eta * (orbital + s * spins)


def radiated_energy(eta: np.ndarray, chi: np.ndarray) -> np.ndarray:
    """Return the fraction of the mass that is radiated (Husa et al. 2016, arXiv:1508.07250)."""
    without_spin = eta * (
        0.055974469826360077
        + eta * (0.5809510763115132 + eta * (-0.9606726679372312 + 3.352411249771192 * eta))
    )
    up = -0.0030302335878845507 + eta * (-2.0066110851351073 + 7.7050567802399215 * eta)
    down = -0.6714403054720589 + eta * (-1.4756929437702908 + 7.304676214885011 * eta)
    return without_spin * (1.0 + up * chi) / (1.0 + down * chi)


def ringdown_frequencies(eta: np.ndarray, chi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Return $Mf$ of the ringdown and of its damping, $M$ the mass before the merger.

    From the fits to the fundamental quasi-normal mode of Berti, Cardoso & Will 2006
    (arXiv:gr-qc/0512160, table VIII): $M_f\omega = 1.5251 - 1.1568 (1-a)^{0.1292}$ and
    $Q = 0.7 + 1.4187 (1-a)^{-0.499}$.
    """
    below = 1.0 - final_spin(eta, chi)
    f = (1.5251 - 1.1568 * below**0.1292) / (2.0 * math.pi * (1.0 - radiated_energy(eta, chi)))
    return f, f / (2.0 * (0.7 + 1.4187 * below**-0.499))


def _fits(eta: np.ndarray, chi: np.ndarray) -> dict[str, np.ndarray]:
    x = chi * (1.0 - 76.0 * eta / 113.0) - 1.0
    quadratic = (np.ones_like(eta), eta, eta**2)
    monomials = [np.ones_like(eta), eta, *(x**k * e for k in (1, 2, 3) for e in quadratic)]
    return {
        name: sum(c * m for c, m in zip(fit, monomials, strict=True)) for name, fit in _FITS.items()
    }


def _inspiral(eta: np.ndarray, chi: np.ndarray, fits: dict[str, np.ndarray]) -> list[np.ndarray]:
    r"""Return the coefficients of $(\pi Mf)^{k/3}$, k = 0 … 9, of the inspiral (equations 29-30).

    Up to k = 6 those of the stationary-phase quadrupole at the third post-Newtonian order
    (appendix B); then the three fitted to simulations.
    """
    pi = math.pi
    one = np.ones_like(eta)
    second = -323.0 / 224.0 + 451.0 / 168.0 * eta
    third = chi * (27.0 / 8.0 - 11.0 / 6.0 * eta)
    fourth = (
        -27312085.0 / 8128512.0
        - 1975055.0 / 338688.0 * eta
        + 105271.0 / 24192.0 * eta**2
        + chi**2 * (-81.0 / 32.0 + 17.0 / 8.0 * eta)
    )
    fifth = -85.0 / 64.0 * pi * (1.0 - 4.0 * eta) + chi / 32256.0 * (
        570394.0 - 735216.0 * eta - 71264.0 * eta**2
    )
    sixth = (
        -177520268561.0 / 8583708672.0
        + (545384828789.0 / 5007163392.0 - 205.0 / 48.0 * pi**2) * eta
        - 3248849057.0 / 178827264.0 * eta**2
        + 34473079.0 / 6386688.0 * eta**3
        + chi * pi * (31.0 / 12.0 - 7.0 / 3.0 * eta)
        + chi**2 * (214828092864.0 / 8583708672.0 - 228716345088.0 / 5007163392.0 * eta)
        + chi**2 * (2548066752.0 / 178827264.0) * eta**2
    )
    fitted = [fits[f"rho_{k}"] * pi ** (-(k + 6) / 3.0) for k in (1, 2, 3)]
    return [one, 0.0 * one, second, third, fourth, fifth, sixth, *fitted]


def relative_amplitude(mf: np.ndarray, eta: np.ndarray, chi: np.ndarray) -> np.ndarray:
    r"""Return $\alpha(Mf)$ for every binary, shape `eta.shape + mf.shape`.

    Args:
        mf: frequencies times total detector-frame mass, geometric units, shape (k,).
        eta: symmetric mass ratios in (0, 1/4], shape (n,).
        chi: the dimensionless spin along the orbit of both components, shape (n,).
    """
    mf = np.asarray(mf, float)
    eta, chi = (np.asarray(x, float)[:, None] for x in (eta, chi))
    fits = _fits(eta, chi)
    f_ring, f_damp = ringdown_frequencies(eta, chi)
    ringdown = _Ringdown(f_ring, f_damp * fits["gamma_3"], fits["gamma_1"], fits["gamma_2"])
    series = _inspiral(eta, chi, fits)

    def inspiral(x: np.ndarray) -> np.ndarray:
        v = np.cbrt(math.pi * x)
        return sum(c * v**k for k, c in enumerate(series))

    def inspiral_slope(x: np.ndarray) -> np.ndarray:
        v = np.cbrt(math.pi * x)
        return sum(k / 3.0 * c * v**k for k, c in enumerate(series)) / x

    # In between, the quartic that joins both sides with its slope and passes a fitted midpoint.
    low, high = np.full_like(eta, _JOIN), ringdown.peak()
    middle = 0.5 * (low + high)
    powers = np.arange(5)
    rows = [low**powers, middle**powers, high**powers]
    rows += [powers * x ** np.maximum(powers - 1, 0) for x in (low, high)]
    top = ringdown.value(high)
    values = [inspiral(low), fits["v_2"], top]
    values += [inspiral_slope(low), top * ringdown.log_slope(high)]
    quartic = np.linalg.solve(np.stack(rows, 1), np.stack(values, 1))[..., 0]
    between = sum(quartic[:, k, None] * mf**k for k in powers)

    result = np.where(mf < low, inspiral(mf), np.where(mf < high, between, ringdown.value(mf)))
    return np.where(mf <= CUTOFF, result, 0.0)
