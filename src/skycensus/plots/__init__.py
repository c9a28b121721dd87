r"""Figures of results. Each function returns a matplotlib `Figure` and touches no global state.

`labels` maps parameter names to axis labels with their units, in matplotlib's own mathematics:
``{"mmin": r"$m_\mathrm{min}\ [M_\odot]$"}``. Colours stay apart for colour-blind eyes and in print.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from .checks import pp_plot, predictive_check
from .curves import cumulative_bands, density_bands, line
from .density import density_corner
from .draws import corner, trace
from .objects import n_eff, object_posteriors
from .style import save_figures

__all__ = [
    "Figure",
    "corner",
    "cumulative_bands",
    "density_bands",
    "density_corner",
    "line",
    "n_eff",
    "object_posteriors",
    "pp_plot",
    "predictive_check",
    "save_figures",
    "trace",
]
