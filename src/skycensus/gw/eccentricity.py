r"""Eccentricity populations, over `eccentricity` (dimensionless, at the reference frequency of the
data)."""

from __future__ import annotations

from ..density import Density
from .families import Hyperparameters
from .families import power_law as _power_law
from .families import truncated_normal as _truncated_normal
from .families import two_truncated_normals as _two_truncated_normals


def truncated_normal(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return $p(e) \propto \mathcal N(e \mid \mu, \sigma)$ on [low, high].

    Hyperparameters `eccentricity_loc`, `eccentricity_scale`; `eccentricity_low` and
    `eccentricity_high` where they differ from 0 and 1. With loc 0 it is a half-normal.
    """
    return _truncated_normal("eccentricity", low=0.0, high=1.0)(h, suffix)


def two_truncated_normals(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return $(1-\zeta)\,\mathcal N_{[l_1,h_1]}(e \mid \mu_1, \sigma_1) +
    \zeta\,\mathcal N_{[l_2,h_2]}(e \mid \mu_2, \sigma_2)$.

    Hyperparameters `eccentricity_zeta`, `eccentricity_comp1_loc`, `_scale`, `_low`, `_high` and the
    same with `comp2`; the bounds are 0 and 1 where not given.
    """
    return _two_truncated_normals("eccentricity", low=0.0, high=1.0)(h, suffix)


def power_law(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return $p(e) \propto e^{\alpha}$ on [low, high].

    Hyperparameters `eccentricity_alpha`, `eccentricity_low` (positive), `eccentricity_high`.
    """
    return _power_law("eccentricity")(h, suffix)
