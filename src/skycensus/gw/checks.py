"""Checks of draws where they enter: finite, inside their supports, and in the expected units."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..errors import InputError

# Parameter -> (low, high, whether low itself is allowed); high always is.
SUPPORTS: dict[str, tuple[float, float, bool]] = {
    **{
        f"{name}{frame}": (0.0, math.inf, False)
        for name in ("mass_1", "mass_2", "chirp_mass", "total_mass")
        for frame in ("", "_source")
    },
    "mass_ratio": (0.0, 1.0, False),
    "symmetric_mass_ratio": (0.0, 0.25, False),
    "redshift": (0.0, math.inf, True),
    "luminosity_distance": (0.0, math.inf, False),
    "chi_eff": (-1.0, 1.0, True),
    "chi_p": (0.0, 1.0, True),
    "eccentricity": (0.0, 1.0, True),
    **{f"a_{i}": (0.0, 1.0, True) for i in (1, 2)},
    **{f"cos_tilt_{i}": (-1.0, 1.0, True) for i in (1, 2)},
    **{f"tilt_{i}": (0.0, math.pi, True) for i in (1, 2)},
    **{f"chi_{i}": (-1.0, 1.0, True) for i in (1, 2)},
}

# Files in single precision overstep their bounds by rounding.
_ROUNDING = 1e-6


def check_units(theta: Mapping[str, np.ndarray], where: str) -> None:
    """Raise `InputError` if masses or distances are plainly in other units than M☉ and Mpc."""
    for name, column in theta.items():
        if not np.any(np.isfinite(column)):
            continue
        median = float(np.median(column[np.isfinite(column)]))
        if ("mass_" in name and "ratio" not in name) or name.startswith(("chirp_", "total_")):
            if median > 1e6:
                raise InputError(
                    f"{where}: the median of '{name}' is {median:.3g}; expected solar masses, this "
                    "looks like kg (divide by 1.988e30)."
                )
        elif name == "luminosity_distance" and (median > 1e6 or 0.0 < median < 1.0):
            raise InputError(
                f"{where}: the median of '{name}' is {median:.3g}; expected Mpc, this looks like "
                f"{'Gpc (multiply by 1000)' if median < 1.0 else 'kpc, pc or m'}."
            )


def invalid_draws(
    theta: Mapping[str, np.ndarray], where: str, *, drop: bool = False, what: str = "draws"
) -> np.ndarray:
    """Return which draws are not finite or outside their support.

    Raises:
        InputError: if there are any and `drop` is false; the message counts them by parameter.
    """
    size = len(next(iter(theta.values())))
    bad = np.zeros(size, bool)
    problems: list[str] = []

    def note(wrong: np.ndarray, name: str, expected: str) -> None:
        nonlocal bad
        wrong = wrong & ~bad
        if np.any(wrong):
            first = theta[name][np.flatnonzero(wrong)[0]]
            problems.append(f"{int(wrong.sum())} with {name} {expected} (the first is {first:.6g})")
            bad = bad | wrong

    for name, column in theta.items():
        note(np.isnan(column), name, "NaN")
        note(np.isinf(column), name, "infinite")
    for name, column in theta.items():
        if name in SUPPORTS:
            low, high, closed = SUPPORTS[name]
            below = column < low - _ROUNDING if closed else column <= low
            note(below, name, f"{'below' if closed else 'not above'} {low:g}")
            note(column > high + _ROUNDING, name, f"above {high:.6g}")
    for stem in ("mass_{}_source", "mass_{}"):
        first, second = stem.format(1), stem.format(2)
        if first in theta and second in theta:
            swapped = theta[second] > theta[first] * (1.0 + _ROUNDING)
            note(swapped, second, f"larger than {first}")
    if problems and not drop:
        raise InputError(
            f"{where}: {int(bad.sum())} of {size} {what} cannot be used: {'; '.join(problems)}. "
            "Correct the file, or give drop_invalid = true to leave them out."
        )
    return bad


def to_support(name: str, column: np.ndarray) -> np.ndarray:
    """Return the column with values moved by rounding beyond a closed bound put back on it."""
    low, high, closed = SUPPORTS.get(name, (-math.inf, math.inf, False))
    return np.clip(column, low if closed else -math.inf, high)
