"""Sources of a published catalogue, as components of a sky."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .photons import Source
from .sky import Disk, Gaussian, Point
from .spectra import CutoffPowerLaw, PowerLaw

_COLUMNS = (
    "Source_Name",
    "GLON",
    "GLAT",
    "Spatial_Model",
    "Size",
    "Spectral_Model",
    "Energy_Spec_PL_Pivot",
    "Flux_Spec_PL_Diff_Pivot",
    "Index_Spec_PL",
    "Energy_Spec_ECPL_Pivot",
    "Flux_Spec_ECPL_Diff_Pivot",
    "Index_Spec_ECPL",
    "Lambda_Spec_ECPL",
)

# True energies of the spectra [TeV].
_LOW, _HIGH = 0.01, 1000.0


def read_hgps(
    path: str | Path, center: tuple[float, float], radius: float
) -> dict[str, list[Source]]:
    """Read the sources of the H.E.S.S. Galactic plane survey around a direction.

    Source name -> components with their flux [1/(cm² s TeV)]: points, Gaussians (several share
    the flux by their maps), and shells as disks of their outer radius. Source: H.E.S.S.
    Collaboration 2018, A&A 612, A1.

    Args:
        path: the catalogue's FITS file.
        center: galactic longitude and latitude [deg].
        radius: [deg].

    Raises:
        InputError: no such file, or one that is not the catalogue.
    """
    from astropy.table import Table

    if not Path(path).exists():
        raise InputError(f"no catalogue '{path}'.")
    try:
        sources = Table.read(path, hdu="HGPS_SOURCES")
        parts = Table.read(path, hdu="HGPS_GAUSS_COMPONENTS")
    except (KeyError, OSError, ValueError) as error:
        raise InputError(f"'{path}' is not the HGPS catalogue: {error}") from None
    if missing := [c for c in _COLUMNS if c not in sources.colnames]:
        raise InputError(f"'{path}' is not the HGPS catalogue: no columns {missing}.")
    lon = (np.asarray(sources["GLON"]) - center[0] + 180.0) % 360.0 - 180.0
    near = np.hypot(lon, np.asarray(sources["GLAT"]) - center[1]) <= radius
    found = {}
    for row in sources[near]:
        name = str(row["Source_Name"]).strip()
        own = parts[[str(x).strip() == name for x in parts["Source_Name"]]]
        found[name] = [Source(sky, _spectrum(row, share)) for sky, share in _skies(row, own)]
    return found


def _skies(row: Any, parts: Any) -> list[tuple[Any, float]]:
    kind, place = str(row["Spatial_Model"]).strip(), (float(row["GLON"]), float(row["GLAT"]))
    if kind == "Point-Like":
        return [(Point(*place), 1.0)]
    if kind == "Shell":
        return [(Disk(*place, float(row["Size"])), 1.0)]
    if len(parts) < 2:
        return [(Gaussian(*place, float(row["Size"])), 1.0)]
    flux = np.asarray(parts["Flux_Map"], float)
    return [
        (Gaussian(float(p["GLON"]), float(p["GLAT"]), float(p["Size"])), float(f))
        for p, f in zip(parts, flux / flux.sum(), strict=True)
    ]


def _spectrum(row: Any, share: float) -> Any:
    kind = "ECPL" if str(row["Spectral_Model"]).strip() == "ECPL" else "PL"
    index, pivot = float(row[f"Index_Spec_{kind}"]), float(row[f"Energy_Spec_{kind}_Pivot"])
    flux = share * float(row[f"Flux_Spec_{kind}_Diff_Pivot"])
    if kind == "PL":
        return PowerLaw(index, low=_LOW, high=_HIGH, log_amplitude=np.log(flux), reference=pivot)
    # The catalogue's amplitude at the pivot is without the cut-off.
    return CutoffPowerLaw(
        index,
        1.0 / float(row["Lambda_Spec_ECPL"]),
        low=_LOW,
        high=_HIGH,
        log_amplitude=np.log(flux),
        reference=pivot,
    )
