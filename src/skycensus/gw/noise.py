"""The noise of ground-based detectors: by name, from a file, a table or a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, did_you_mean

# Terms (coefficient, power) of S(f) / 1e-47 Hz^-1 = sum c (f / 100 Hz)^p, least-squares fits in
# ln S over 10 to 4000 Hz to the curves published with Abbott et al. 2018 (Living Reviews in
# Relativity 21, 3; LIGO-P1200087): within 0.3, 0.4, 0.6 and 1.1 % rms in amplitude between 20 and
# 1500 Hz, the narrow lines left out, and within 0.02 % in the range for binary neutron stars.
_FITS: dict[str, tuple[tuple[float, float], ...]] = {
    "aLIGO-early-high": (
        (8.396e-14, -16.34),
        (1.125, -4.007),
        (1.148, -0.755),
        (3.044, 0.067),
        (0.2309, 2.005),
    ),
    "aLIGO-mid-high": (
        (4.243e-14, -16.619),
        (0.2155, -4.067),
        (0.4773, -1.352),
        (2.322, -0.033),
        (0.142, 1.998),
    ),
    "aLIGO-late-high": (
        (6.751e-15, -17.388),
        (0.01484, -4.658),
        (0.189, -2.348),
        (1.824, -0.172),
        (0.09524, 1.976),
    ),
    "aLIGO-design": (
        (3.712e-13, -15.646),
        (0.03223, -4.329),
        (0.9934, -0.495),
        (0.5455, 0.185),
        (0.01683, 2.025),
    ),
}


@dataclass(frozen=True)
class NoiseCurve:
    r"""The one-sided amplitude spectral density $\sqrt{S(f)}$ of a detector.

    Args:
        asd: function of the frequency in Hz (a NumPy array), in Hz$^{-1/2}$.
        low, high: the band, in Hz, in which it is known; outside it the noise is infinite.
        name: what it is called in messages and provenance.
    """

    asd: Callable[[np.ndarray], np.ndarray]
    low: float = 10.0
    high: float = 4000.0
    name: str = "function"

    def __post_init__(self) -> None:
        if not 0.0 < self.low < self.high:
            raise InputError(
                f"noise curve '{self.name}': the band low={self.low}, high={self.high} Hz is not "
                "0 < low < high; give both in Hz, in this order."
            )


def _fit(terms: tuple[tuple[float, float], ...]) -> Callable[[np.ndarray], np.ndarray]:
    def asd(frequency: np.ndarray) -> np.ndarray:
        x = np.asarray(frequency) / 100.0
        return np.sqrt(1e-47 * sum(coefficient * x**power for coefficient, power in terms))

    return asd


NOISE_CURVES = {name: NoiseCurve(_fit(terms), name=name) for name, terms in _FITS.items()}
"""The built-in curves, smooth fits to LIGO-P1200087; `aLIGO-early-high` is close to O1 and O2."""


def noise_curve(noise: str | NoiseCurve | Callable[[np.ndarray], np.ndarray]) -> NoiseCurve:
    """Return the curve of that name, or the given curve or amplitude spectral density itself."""
    if isinstance(noise, NoiseCurve):
        return noise
    if callable(noise):
        return NoiseCurve(noise)
    if noise not in NOISE_CURVES:
        raise InputError(
            f"noise curve '{noise}' is not known{did_you_mean(noise, NOISE_CURVES)}; choose one of "
            f"{', '.join(NOISE_CURVES)}, or read a file of your own with read_noise_curve(path)."
        )
    return NOISE_CURVES[noise]


def tabulated_noise(frequency: Any, asd: Any, *, name: str = "table") -> NoiseCurve:
    r"""Return the curve through a table, linear in $\ln \sqrt S$ against $\ln f$.

    Args:
        frequency: in Hz, strictly increasing and positive.
        asd: amplitude spectral density in Hz$^{-1/2}$, positive.
        name: what the curve is called in messages.
    """
    f, a = np.asarray(frequency, float), np.asarray(asd, float)
    if f.ndim != 1 or f.shape != a.shape or f.size < 2:
        raise InputError(
            f"noise curve '{name}': frequencies of shape {f.shape} and amplitudes of shape "
            f"{a.shape}; give two columns of equal length, at least two rows."
        )
    if not (np.all(f > 0.0) and np.all(np.diff(f) > 0.0) and np.all(np.isfinite(f))):
        raise InputError(
            f"noise curve '{name}': the first column must be positive frequencies in Hz that "
            "increase from row to row; sort the table and drop repeated rows."
        )
    if not (np.all(a > 0.0) and np.all(np.isfinite(a))):
        raise InputError(
            f"noise curve '{name}': {int(np.sum(~(a > 0.0) | ~np.isfinite(a)))} amplitudes are not "
            "positive and finite; drop these rows."
        )
    if np.median(a) < 1e-35:
        raise InputError(
            f"noise curve '{name}': the median of the second column is {np.median(a):.1e}, which "
            "looks like a power spectral density; give its square root, in Hz^-1/2."
        )
    log_f, log_a = np.log(f), np.log(a)
    return NoiseCurve(
        lambda x: np.exp(np.interp(np.log(x), log_f, log_a)),
        low=float(f[0]),
        high=float(f[-1]),
        name=name,
    )


def read_noise_curve(path: str | Path) -> NoiseCurve:
    """Read a text file of two columns, frequency [Hz] and amplitude spectral density [Hz^-1/2].

    Lines that begin with `#` are comments; a comma or white space separates the columns.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"noise curve {path}: cannot be read ({error}).") from error
    rows = [line.split("#")[0].replace(",", " ").split() for line in text.splitlines()]
    try:
        table = np.array([[float(x) for x in row[:2]] for row in rows if row])
    except ValueError as error:
        raise InputError(
            f"noise curve {path}: expected two columns of numbers, frequency [Hz] and amplitude "
            f"spectral density [Hz^-1/2] ({error})."
        ) from error
    if table.ndim != 2 or table.shape[1] != 2:
        raise InputError(
            f"noise curve {path}: expected two columns, frequency [Hz] and amplitude spectral "
            f"density [Hz^-1/2]; found a table of shape {table.shape}."
        )
    return tabulated_noise(table[:, 0], table[:, 1], name=path.name)
