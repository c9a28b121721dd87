r"""Runs of telescopes in the DL3 format (GADF), and event lists from elsewhere, as `Observation`s.

gammapy (extra `gamma`) reads the files; what leaves this module are plain arrays. The format: Deil
et al. 2017, gamma-astro-data-formats.readthedocs.io.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import InputError, did_you_mean
from .fold import Cut
from .photons import Observation
from .response import separation
from .sky import Cone, Plane, Region
from .tables import ResponseTables, Table, tables_of_gammapy

Frame = Literal["icrs", "galactic"]

# The columns of directions in either frame, in the order in which they are looked for.
_COLUMNS: dict[str, tuple[tuple[str, str], ...]] = {
    "icrs": (("ra", "dec"), ("lon", "lat")),
    "galactic": (("glon", "glat"), ("l", "b"), ("lon", "lat")),
}

# Files of NumPy: numbers without units.
_NUMPY = (".npy", ".npz")

# A background on axes that turn with the sky is averaged over so many times of a run.
_TIMES = 7

# Background beyond the last energy with any falls with this index, unless two energies tell more.
_STEEPEST, _FLATTEST = 5.0, 2.0


class Events(NamedTuple):
    """Photons: energies [TeV], longitudes and latitudes [deg]."""

    energy: np.ndarray
    lon: np.ndarray
    lat: np.ndarray


# ---- event lists ---------------------------------------------------------------------------------


def read_events(
    path: str | Path, *, frame: Frame = "icrs", units: Mapping[str, str] | None = None
) -> Events:
    """Read a table of photons: FITS, ECSV or what else astropy reads, with units, or NumPy's files.

    Columns, in any case: `energy`, and `ra`, `dec`, or `glon`, `glat` (`l`, `b`), which are turned
    into the frame; or `lon`, `lat`, which are in it. `.npz` has them by these names and `.npy` is
    an array (N, 3) of energy, lon and lat; both need `units`, see `events_of`.

    Raises:
        InputError: no such file, one that is no table, or what `events_of` raises.
    """
    from astropy.table import QTable

    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file '{path}'.")
    is_fits = path.suffix not in _NUMPY and _has_hdu(path, "EVENTS")
    try:
        if path.suffix in _NUMPY:
            table = _numpy_columns(path)
        else:
            table = QTable.read(path, **({"hdu": "EVENTS"} if is_fits else {}))
    except Exception as error:
        raise InputError(
            f"'{path}' cannot be read as a table ({type(error).__name__}: {error}); give FITS or "
            "ECSV, with the ending that its format has."
        ) from None
    return events_of(table, frame=frame, units=units, source=f"'{path}'")


def _numpy_columns(path: Path) -> Any:
    """An array, or arrays by name, that hold nothing but numbers."""
    found = np.load(path, allow_pickle=False)
    return found if isinstance(found, np.ndarray) else dict(found)


def events_of(
    table: Any,
    *,
    frame: Frame = "icrs",
    units: Mapping[str, str] | None = None,
    source: str = "the events",
) -> Events:
    """Photons of a table with units, or of an array (N, 3) with `units=`.

    Args:
        table: an astropy table, a mapping of names to columns, or an array of energy, longitude and
            latitude in the frame.
        frame: that the directions are to be in.
        units: `{"energy": "TeV", "lon": "deg", "lat": "deg"}`, for columns that have none.
        source: how messages call the table.

    Raises:
        InputError: a column that is missing, has no unit or one that does not fit, an array without
            `units`, or a value that is not finite (which photon).
    """
    if frame not in _COLUMNS:
        raise InputError(f"frame='{frame}' is not known; use 'icrs' or 'galactic'.")
    units = {name.lower(): unit for name, unit in (units or {}).items()}
    if isinstance(table, np.ndarray) and table.dtype.names is None:
        table = _array_columns(table, units, source)
    names = table.keys() if isinstance(table, Mapping) else table.colnames
    columns = {str(name).lower(): table[name] for name in names}
    pair, own = _direction_columns(columns, frame, source)
    values = {"energy": _quantity(columns, "energy", "TeV", units, source)}
    values |= {n: _quantity(columns, n, "deg", units, source) for n in pair}
    for name, value in values.items():
        if (bad := ~np.isfinite(value)).any():
            raise InputError(
                f"{source}: '{name}' of photon {int(np.flatnonzero(bad)[0])} is NaN or infinite "
                f"({int(bad.sum())} such photons); leave them out."
            )
    lon, lat = (values[n] for n in pair)
    if own != frame:
        lon, lat = _turned(lon, lat, own, frame)
    return Events(values["energy"], lon, lat)


def _array_columns(table: np.ndarray, units: Mapping[str, str], source: str) -> dict[str, Any]:
    if table.ndim != 2 or table.shape[1] != 3:
        raise InputError(
            f"{source}: an array of shape {table.shape}; give (photons, 3): energy, lon, lat."
        )
    if missing := [n for n in ("energy", "lon", "lat") if n not in units]:
        raise InputError(
            f"{source}: plain numbers without units for {', '.join(missing)}; give units="
            '{"energy": "TeV", "lon": "deg", "lat": "deg"}.'
        )
    return dict(zip(("energy", "lon", "lat"), table.T, strict=True))


def _direction_columns(
    columns: Mapping[str, Any], frame: Frame, source: str
) -> tuple[tuple[str, str], Frame]:
    """The names of the two columns, and the frame that they are in."""
    order: list[Frame] = [frame, "galactic" if frame == "icrs" else "icrs"]
    for own in order:
        for pair in _COLUMNS[own]:
            if all(name in columns for name in pair):
                return pair, frame if pair[0] == "lon" else own
    raise InputError(
        f"{source}: no columns for directions{did_you_mean('ra', columns)}; give ra and dec, glon "
        f"and glat, or lon and lat. There are {', '.join(columns)}."
    )


def _quantity(
    columns: Mapping[str, Any], name: str, unit: str, units: Mapping[str, str], source: str
) -> np.ndarray:
    import astropy.units as u

    if name not in columns:
        raise InputError(
            f"{source}: there is no column '{name}'{did_you_mean(name, columns)}; there are "
            f"{', '.join(columns)}."
        )
    column = columns[name]
    own = getattr(column, "unit", None) or units.get(name)
    if own is None:
        raise InputError(
            f"{source}: column '{name}' has no unit; write it into the table (QTable, ECSV), or "
            f'give units={{"{name}": "{unit}"}}.'
        )
    value: np.ndarray = np.ma.filled(np.ma.asarray(getattr(column, "value", column), float), np.nan)
    try:
        return np.asarray(u.Quantity(value, own).to_value(unit), float)
    except (u.UnitConversionError, ValueError, TypeError) as error:
        raise InputError(
            f"{source}: column '{name}' in '{own}' is no {unit} ({error}); correct the unit."
        ) from None


def _turned(lon: Any, lat: Any, own: Frame, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Directions [deg] in another frame."""
    from astropy.coordinates import SkyCoord

    turned = SkyCoord(lon, lat, unit="deg", frame=own).transform_to(frame).spherical
    return np.asarray(turned.lon.deg), np.asarray(turned.lat.deg)


def _has_hdu(path: Path, name: str) -> bool:
    from astropy.io import fits

    try:
        with fits.open(path) as file:
            return name in file
    except OSError:
        return False


# ---- runs ----------------------------------------------------------------------------------------


def read_runs(
    folder: str | Path,
    obs_ids: Sequence[int],
    *,
    region: Region | None = None,
    low: float | None = None,
    high: float | None = None,
    safe: float | Literal["header"] | None = "header",
    frame: Frame = "icrs",
) -> list[Observation]:
    """Read runs of a folder with `hdu-index` and `obs-index` files, by their numbers.

    For the other arguments see `read_run`.

    Raises:
        InputError: gammapy is missing; a folder without an index; a number that it does not have;
            and what `read_run` raises.
    """
    gammapy = _gammapy()
    try:
        store = gammapy.DataStore.from_dir(folder)
    except Exception as error:
        raise InputError(
            f"'{folder}' has no index of runs ({error}); give a folder with hdu-index.fits.gz and "
            "obs-index.fits.gz, or read single files."
        ) from None
    have = [int(n) for n in store.obs_ids]
    if missing := [n for n in obs_ids if int(n) not in have]:
        shown = ", ".join(map(str, have[:8])) + (", ..." if len(have) > 8 else "")
        raise InputError(f"'{folder}' has no run {missing}; it has {shown}.")
    options: dict[str, Any] = {"region": region, "low": low, "high": high}
    options |= {"safe": safe, "frame": frame}
    runs = []
    for number in obs_ids:
        source = f"run {number} of '{folder}'"
        try:
            run = store.obs(int(number), required_irf=["aeff", "edisp", "psf"])
        except Exception as error:
            raise InputError(f"{source} cannot be read: {error}") from None
        runs.append(_observation(run, source, **options))
    return runs


def read_run(
    path: str | Path,
    *,
    region: Region | None = None,
    low: float | None = None,
    high: float | None = None,
    safe: float | Literal["header"] | None = "header",
    frame: Frame = "icrs",
) -> Observation:
    """Read a run from one file: events, good times, pointing and response.

    Args:
        path: FITS with the HDUs EVENTS and GTI and a full-enclosure response (AEFF, EDISP, PSF, and
            maybe BKG), in the GADF format.
        region: what is looked at, in the frame; by default the whole field of view.
        low, high: energies [TeV]; by default all that are safe.
        safe: narrows the energies to those at which the response can be trusted: "header", as the
            effective area's header says (LO_THRES, HI_THRES); a fraction, where the area at the
            centre of the region exceeds it times its maximum; or None.
        frame: "icrs" or "galactic".

    Raises:
        InputError: gammapy is missing; no such file, or one without the HDUs, units and axes of the
            format; NaN (which photon); no energies that are safe.
    """
    gammapy = _gammapy()
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file '{path}'.")
    if missing := [hdu for hdu in ("EVENTS", "GTI") if not _has_hdu(path, hdu)]:
        raise InputError(
            f"'{path}' has no HDU {' and no HDU '.join(missing)}; give a run in the DL3 format, or "
            "read a table of photons with read_events."
        )
    try:
        run = gammapy.Observation.read(path)
    except Exception as error:
        raise InputError(f"'{path}' is no run in the DL3 format: {error}") from None
    return _observation(run, f"'{path}'", region=region, low=low, high=high, safe=safe, frame=frame)


def _gammapy() -> Any:
    try:
        import gammapy.data
    except ImportError as error:
        raise InputError(
            f"reading runs needs gammapy ({error}); pip install 'skycensus[gamma]'."
        ) from None
    return gammapy.data


def _observation(
    run: Any,
    source: str,
    *,
    region: Region | None,
    low: float | None,
    high: float | None,
    safe: float | Literal["header"] | None,
    frame: Frame,
) -> Observation:
    events = events_of(run.events.table, frame=frame, source=f"{source}, EVENTS")
    parts = {n: getattr(run, n) for n in ("aeff", "edisp", "psf", "bkg") if n in run.available_irfs}
    tables = tables_of_gammapy(parts, source)
    tables = _with_background(run, parts.get("bkg"), tables, frame)
    at = run.get_pointing_icrs(run.tmid)
    lon, lat = map(float, _turned(at.icrs.ra.deg, at.icrs.dec.deg, "icrs", frame))
    pointing = (lon, lat)
    region = region or Cone(*pointing, tables.max_offset)
    away = float(separation(*pointing, *region.center))
    bounds = _safe(tables, parts["aeff"].meta or {}, safe, min(away, tables.max_offset), source)
    low, high = max(low or 0.0, bounds[0]), min(high or np.inf, bounds[1])
    if not low < high:
        raise InputError(
            f"{source}: no energy between {low:g} and {high:g} TeV is safe; ask for other "
            "energies, or give safe=None."
        )
    return Observation(
        tables=tables,
        pointing=pointing,
        livetime=float(run.observation_live_time_duration.to_value("s")),
        cut=Cut(region, low, high),
        energy=events.energy,
        lon=events.lon,
        lat=events.lat,
        name=str(run.obs_id),
    )


def _safe(
    tables: ResponseTables,
    header: Mapping[str, Any],
    safe: float | Literal["header"] | None,
    offset: float,
    source: str,
) -> tuple[float, float]:
    """Lowest and highest energy [TeV] that can be trusted."""
    energy = tables.area.axes["energy"]
    if safe is None:
        return float(energy[0]), float(energy[-1])
    if safe == "header":
        known = [header.get(key) for key in ("LO_THRES", "HI_THRES")]
        if any(x is None for x in known):
            raise InputError(
                f"{source}: the header of the effective area has no LO_THRES and HI_THRES; give "
                "safe = 0.1 (of the largest area), or None."
            )
        return float(known[0]), float(known[1])  # type: ignore[arg-type]
    area = tables.area.at(energy=energy, offset=offset)
    trusted = np.flatnonzero(area > safe * area.max())
    return float(energy[trusted[0]]), float(energy[trusted[-1]])


# ---- background ----------------------------------------------------------------------------------


def _with_background(run: Any, part: Any, tables: ResponseTables, frame: Frame) -> ResponseTables:
    """The tables with the background on axes of the frame, and without holes."""
    if tables.background is None:
        return tables
    table = filled(tables.background)
    if "fov_lon" in table.axes:
        table = aligned(table, *_in_field(run, part, table, frame))
    return replace(tables, background=table)


def _in_field(run: Any, part: Any, table: Table, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """(time, lon, lat) the field's own coordinates [deg] of places east and north of the pointing.

    FOVALIGN says how they lie: fixed with RADEC, and turning in the course of a run with ALTAZ.
    Files of the first H.E.S.S. release count longitudes the other way, which gammapy tells.
    """
    from astropy.coordinates import SkyCoord
    from gammapy.irf import FoVAlignment

    x, y = np.meshgrid(*(np.deg2rad(table.axes[n]) for n in ("fov_lon", "fov_lat")), indexing="ij")
    pointing = run.get_pointing_icrs(run.tmid).icrs
    at_lon, at_lat = map(float, _turned(pointing.ra.deg, pointing.dec.deg, "icrs", frame))
    plane = Plane(at_lon, at_lat, 1.0, 2)
    places = SkyCoord(*plane.to_sky(x, y), unit="deg", frame=frame)
    start, stop = run.gti.time_start[0], run.gti.time_stop[-1]
    turns = part.fov_alignment == FoVAlignment.ALTAZ
    num = _TIMES if turns else 1
    sign = -1.0 if part.fov_alignment == FoVAlignment.REVERSE_LON_RADEC else 1.0
    found = []
    for n in range(num):
        time = start + (stop - start) * ((n + 0.5) / num)
        field = places.transform_to(run.get_fov_frame(time, part.fov_alignment))
        found.append([sign * field.fov_lon.wrap_at("180d").deg, field.fov_lat.deg])
    lon, lat = np.moveaxis(np.array(found, float), 1, 0)
    return lon, lat


def aligned(table: Table, lon: np.ndarray, lat: np.ndarray) -> Table:
    """A background table (log rate over `energy`, `fov_lon`, `fov_lat`) on axes east and north.

    Args:
        table: in the field's own axes.
        lon, lat: (time, fov_lon, fov_lat) where the new axes' nodes are in the own ones [deg]; the
            mean over the times is taken.
    """
    axes = [table.axes[n] for n in ("energy", "fov_lon", "fov_lat")]
    total = np.zeros(tuple(len(x) for x in axes))
    for x, y in zip(lon, lat, strict=True):
        x, y = (np.clip(z, n[0], n[-1]) for z, n in zip((x, y), axes[1:], strict=True))
        total += np.exp(table.at(energy=axes[0][:, None, None], fov_lon=x, fov_lat=y))
    names = ("energy", "fov_lon", "fov_lat")
    return Table(dict(zip(names, axes, strict=True)), np.log(total / len(lon)))


def filled(table: Table) -> Table:
    """A background table without holes: cells without a rate where others tell what it is.

    Such a cell gets the rate of the nearest one at its energy that has some. Energies above the
    last with any rate continue a power law from the two before, of an index from 2 to 5. Below the
    first there is none.
    """
    from scipy.ndimage import distance_transform_edt

    order = list(table.axes)
    values = np.moveaxis(table.values, order.index("energy"), 0).copy()
    energy = table.axes["energy"]
    known = values > np.log(np.finfo(np.float32).tiny) + 1e-6
    some = np.flatnonzero(known.reshape(len(energy), -1).any(1))
    if not len(some):
        return table
    for j in some:
        nearest = distance_transform_edt(~known[j], return_distances=False, return_indices=True)
        values[j] = values[j][tuple(nearest)]
    for above in range(int(some[-1]) + 1, len(energy)):
        before = some[-1] - 1 if len(some) > 1 and known[some[-1] - 1].any() else some[-1]
        rise = values[some[-1]].mean() - values[before].mean()
        width = max(np.log(energy[some[-1]] / energy[before]), 1e-9)
        index = np.clip(-rise / width, _FLATTEST, _STEEPEST)
        values[above] = values[some[-1]] - index * np.log(energy[above] / energy[some[-1]])
    return Table(table.axes, np.moveaxis(values, 0, order.index("energy")))
