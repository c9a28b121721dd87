"""Mock draws with GWKokab's "banana" errors, for comparison with calibrated ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..keys import generator
from .amplitude import SOLAR_MASS_SECONDS
from .coordinates import (
    Columns,
    Theta,
    chirp_mass,
    component_masses,
    mass_ratio_from_symmetric,
    symmetric_mass_ratio,
)
from .measurement import BoundedPrior, Observation

_SOURCE_MASSES = {"mass_1_source", "mass_2_source", "mass_ratio", "chirp_mass_source"}


def banana_draws(
    key: Any,
    mass_1: float,
    mass_2: float,
    num_draws: int,
    *,
    scale_Mc: float = 1.0,
    scale_eta: float = 1.0,
    snr: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Return draws of the masses, scattered about shifted values of chirp mass and η:

    $$\mathcal{M}' = \mathcal{M}\,[1 + \beta\,(r_0 + s_\mathcal{M}\,r)],\qquad
      \eta' = \eta\,[1 + 0.03\,\tfrac{12}{\rho}\,(r_0' + s_\eta\,r')],$$

    $$\beta = \tfrac{12}{\rho}\,\min\bigl[0.07,\ 0.45\,(v/0.2)^7\bigr],\qquad
      v = \min\bigl[0.2,\ (\pi\,\mathcal{M}\cdot 20\,\mathrm{Hz})^{1/3}\bigr],$$

    with standard normal $r_0, r_0'$ per event and $r, r'$ per draw, and $p(\rho) \propto \rho^{-4}$
    above 9 (Mandel et al. 2017, MNRAS 465, 3254, section 3, with the widths that GWKokab uses).

    These draws are not calibrated. The shift has the scale 1 whatever $s$ is, so for $s < 1$ draws
    are narrower than their scatter about the truth; and being a cloud about a value, they follow
    from no prior. Draws with $\eta' > 1/4$ or $\mathcal{M}' \le 0$ are left out, so that few may
    remain for nearly equal masses; none, where the shift is large.

    Args:
        key: a JAX key.
        mass_1, mass_2: true masses, $m_1 \ge m_2$.
        num_draws: how many draws are made; at most so many are returned.
        scale_Mc, scale_eta: $s_\mathcal{M}$ and $s_\eta$.
        snr: $\rho$; drawn if None.
    """
    return _banana(generator(key), mass_1, mass_2, num_draws, scale_Mc, scale_eta, snr)[1]


def _banana(
    rng: np.random.Generator,
    mass_1: float,
    mass_2: float,
    num_draws: int,
    scale_Mc: float,
    scale_eta: float,
    snr: float | None,
) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    rho = 9.0 * rng.uniform() ** (-1.0 / 3.0) if snr is None else snr
    mc = chirp_mass(mass_1, mass_2)
    v = min(0.2, (math.pi * mc * SOLAR_MASS_SECONDS * 20.0) ** (1.0 / 3.0))
    beta = 12.0 / rho * min(0.07, 0.45 * (v / 0.2) ** 7)
    shifts = rng.normal(size=2)
    scatter = rng.normal(size=(2, num_draws))
    mc = mc * (1.0 + beta * (shifts[0] + scale_Mc * scatter[0]))
    eta = symmetric_mass_ratio(mass_2 / mass_1)
    eta = eta * (1.0 + 0.36 / rho * (shifts[1] + scale_eta * scatter[1]))
    keep = (mc > 0.0) & (eta > 0.0) & (eta <= 0.25)
    return rho, component_masses(mc[keep], mass_ratio_from_symmetric(eta[keep]))


@dataclass(frozen=True)
class BananaErrors:
    """Draws as GWKokab's mock catalogues have them, see `banana_draws`; for two masses alone.

    Args:
        scale_Mc, scale_eta: widths of the draws relative to their scatter about the truth.
    """

    scale_Mc: float = 1.0
    scale_eta: float = 1.0

    calibrated = False

    def __post_init__(self) -> None:
        for name, scale in (("scale_Mc", self.scale_Mc), ("scale_eta", self.scale_eta)):
            if not (scale > 0.0 and math.isfinite(scale)):
                raise InputError(f"banana errors: {name}={scale} must be a positive number.")

    def prepare(self, parameters: tuple[str, ...], prior: BoundedPrior) -> _BananaAnalysis:
        return _BananaAnalysis(parameters, self)

    def describe(self, parameters: tuple[str, ...]) -> dict[str, Any]:
        return {"model": "banana", "scale_Mc": self.scale_Mc, "scale_eta": self.scale_eta}


class _BananaAnalysis:
    def __init__(self, parameters: tuple[str, ...], errors: BananaErrors):
        self.parameters, self.errors = parameters, errors
        if len(parameters) != 2 or not _SOURCE_MASSES.issuperset(parameters):
            raise InputError(
                f"banana errors are those of two source-frame masses, got {list(parameters)}; use "
                "MeasurementModel for other parameters."
            )

    def observe(
        self, rng: np.random.Generator, truth: Theta, num_draws: int, snr: float | None = None
    ) -> Observation:
        columns = Columns({name: np.reshape(truth[name], 1) for name in self.parameters})
        m1, m2 = (float(columns[name][0]) for name in ("mass_1_source", "mass_2_source"))
        scales = self.errors.scale_Mc, self.errors.scale_eta
        rho, (mass_1, mass_2) = _banana(rng, m1, m2, num_draws, *scales, snr)
        table = Columns({"mass_1_source": mass_1, "mass_2_source": mass_2})
        return Observation({"snr": rho}, {name: np.array(table[name]) for name in self.parameters})
