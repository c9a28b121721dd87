r"""Read found injections: signals put into the data and found, with the density they came from.

With $N$ injections generated from $p_\mathrm{draw}(\theta)$, of which those in the table were
found, a rate density $\rho(\theta)$ has the expected number of detections

$$\mu = \frac{\mathrm{scale}}{N}
\sum_{k\,\mathrm{found}} \frac{\rho(\theta_k)}{p_\mathrm{draw}(\theta_k)},$$

where the scale is the observing time in years (for $\rho$ per year of the detector's frame), or
time times volume in Gpc³ yr (for $\rho$ per Gpc³ and year and $p_\mathrm{draw}$ relative to it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..likelihood import Samples
from .checks import check_units, invalid_draws, to_support
from .coordinates import SPIN_NAMES, Columns, block, blocks_of, log_volume
from .reference_priors import resolve
from .tables import (
    Table,
    canonical_columns,
    columns_of,
    file_hash,
    open_hdf5,
    read_posterior,
)

SECONDS_PER_YEAR = 365.25 * 86400.0


@dataclass(frozen=True, eq=False)
class Injections:
    r"""Found injections in the population's parameters, read or drawn.

    Attributes:
        theta: parameter name -> array over the found injections.
        log_p_draw: $\ln p_\mathrm{draw}(\theta)$ as a density in the parameters of `theta`; where
            the probability to be found is averaged exactly and not thrown, less its logarithm.
        total_generated: $N$, how many were generated, found or not.
        scale: see the module; None where it is not known (enough for shapes, not for rates).
        attrs: the attributes of the file that they were read from.
        path: that file, None for injections that were drawn here.
        sha256: its hash.
    """

    theta: dict[str, np.ndarray]
    log_p_draw: np.ndarray
    total_generated: float
    scale: float | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.log_p_draw)

    def form(self, dtype: Any = None) -> Samples:
        """The injections as a form with one object, the detection; `dtype` is that of `Samples`."""
        return Samples(
            [self.theta],
            [self.log_p_draw],
            names=("injections",),
            num_drawn=[round(self.total_generated)],
            dtype=dtype,
        )


class Stated(NamedTuple):
    """What a file of injections leaves open, or is to be overruled, as its reader states it.

    Attributes:
        columns: canonical name -> the file's name, where `tables.SYNONYMS` does not know it.
        p_draw: the column with the density, taken as a logarithm if its name begins with "log" or
            "ln"; by default the one the layout calls for.
        coordinates: what that density is a density in; by default as the layout says, for the
            generic table its other physical columns.
        total_generated: $N$.
        scale: see the module.
    """

    columns: Mapping[str, str] | None = None
    p_draw: str | None = None
    coordinates: Iterable[str] | None = None
    total_generated: float | None = None
    scale: float | None = None


@dataclass(frozen=True, eq=False)
class _Draw:
    """A table of injections, and the log density they were drawn with in some coordinates."""

    columns: Columns
    coordinates: tuple[str, ...]
    log_p_draw: np.ndarray


def read_injections(
    path: str | Path,
    parameters: Iterable[str] | None = None,
    *,
    stated: Stated | None = None,
    far_cut: float | None = None,
    snr_cut: float | None = None,
    spins: str | Mapping[str, Any] | None = None,
    cosmology: Any = None,
    drop_invalid: bool = False,
) -> Injections:
    r"""Read found injections as draws in the population's parameters and their log density.

    Layouts: a generic table in HDF5, text, CSV or Parquet with a column `log_p_draw` or `p_draw`;
    the LIGO-Virgo-KAGRA search sensitivity files of O3 and of O1 to O3 (group `injections`,
    `sampling_pdf`; LIGO-T2100113, LIGO-T2100377), those of O4a (table `events` with factors
    `lnpdraw_...`; LIGO-T2400073) and the cumulative ones to O4a (with `weights`; LIGO-T2400110).

    An injection is found if the smallest false-alarm rate over all searches is below `far_cut`,
    or, where no search analysed it (O1 and O2), its signal-to-noise ratio is above `snr_cut`.

    Args:
        path: the file.
        parameters: the population's parameters; by default the coordinates of the density.
        stated: what the file does not say itself.
        far_cut: in 1/yr. Files with false-alarm rates require it.
        snr_cut: files with injections that only have a signal-to-noise ratio require it.
        spins: the spins that the population is taken to have where `parameters` do not settle
            them, as a spin prior (`spin_priors.SPIN_PRIORS`): those of its own that are missing,
            and the distribution of component spins given chi_eff or chi_p.
        cosmology: see `Columns`.
        drop_invalid: leave out injections that are not finite or outside their support.

    Raises:
        InputError: see the above; also a density that is zero, negative or not finite.
    """
    path, stated = Path(path), stated or Stated()
    raw, attrs, layout = _read_layout(path, stated.columns)
    draw = _draw(path, raw, layout, stated, cosmology)
    found = _found(path, raw, layout, far_cut, snr_cut)
    total = _total(path, attrs, stated.total_generated, len(found))
    draw = _subset(draw, found)
    if not found.any():
        raise InputError(
            f"{path}: none of {len(found)} injections is found with far_cut = {far_cut} and "
            f"snr_cut = {snr_cut}; raise the first or lower the second."
        )
    wanted = tuple(parameters) if parameters is not None else draw.coordinates
    for name in wanted:
        draw.columns[name]
    check_units(draw.columns.consulted, str(path))
    bad = invalid_draws(draw.columns.consulted, str(path), drop=drop_invalid, what="injections")
    draw = _subset(draw, ~bad)
    value = draw.log_p_draw + _log_change(path, draw, wanted, spins)
    if np.any(~np.isfinite(value)):
        raise InputError(
            f"{path}: the density of {int(np.sum(~np.isfinite(value)))} injections is zero or not "
            f"finite as one in {list(wanted)}."
        )
    theta = {name: to_support(name, draw.columns[name]) for name in wanted}
    scale = stated.scale if stated.scale is not None else _scale(path, attrs)
    return Injections(theta, value, total, scale, attrs, path, file_hash(path))


# ---- layouts -------------------------------------------------------------------------------------


def _read_layout(
    path: Path, columns: Mapping[str, str] | None
) -> tuple[Table, dict[str, Any], str]:
    """The columns by canonical names, the file's attributes, and "lvk" or "generic"."""
    attrs: dict[str, Any] = {}
    if path.suffix.lower() not in (".h5", ".hdf5", ".hdf"):
        return read_posterior(path, columns=columns), attrs, "generic"
    with open_hdf5(path) as file:
        try:
            attrs |= {name: _plain(value) for name, value in file.attrs.items()}
            group = next((name for name in ("injections", "events") if name in file), None)
            node = file if group is None else file[group]
            attrs |= {name: _plain(value) for name, value in node.attrs.items()}
            raw = columns_of(node)
            if "name" in (node if hasattr(node, "keys") else node.dtype.names or ()):
                # The observing run, "o1" to "o3", of the mixture files.
                raw["searched"] = ~np.isin(np.asarray(node["name"]).astype(str), ["o1", "o2"])
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{path}: damaged, or in no known layout: {error}.") from error
    if not raw:
        raise InputError(f"{path}: no table of injections in any known layout.")
    return canonical_columns(raw, columns, where=str(path)), attrs, "lvk" if group else "generic"


def _plain(value: Any) -> Any:
    value = value.decode() if isinstance(value, bytes) else value
    return value.item() if isinstance(value, np.generic) else value


_CARTESIAN = tuple(f"spin_{i}{axis}" for i in (1, 2) for axis in "xyz")
_SPHERICAL = tuple(f"{stem}_{i}" for i in (1, 2) for stem in ("a", "tilt", "azimuth"))
_MASSES_REDSHIFT = ("mass_1_source", "mass_2_source", "redshift")
_LNPDRAW = "lnpdraw_mass1_source_mass2_source_redshift_"
_ANGLES = "spin{0}_magnitude_spin{0}_polar_angle_spin{0}_azimuthal_angle"
_FACTORS = ("mass1_source", "mass2_source_GIVEN_mass1_source", "z")
_SPIN_FACTORS = tuple(f"spin{i}_{part}" for i in (1, 2) for part in ("magnitude", "polar_angle"))


def _lvk_densities(raw: Table) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """The density in an LVK file, its logarithm and coordinates."""

    def log(name: str) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.log(raw[name])

    if (name := _LNPDRAW + "_".join(f"spin{i}{x}" for i in (1, 2) for x in "xyz")) in raw:
        return raw[name], _MASSES_REDSHIFT + _CARTESIAN
    if (name := _LNPDRAW + "_".join(_ANGLES.format(i) for i in (1, 2))) in raw:
        return raw[name], _MASSES_REDSHIFT + _SPHERICAL
    factors = [f"lnpdraw_{name}" for name in _FACTORS + _SPIN_FACTORS]
    if set(factors) <= set(raw):
        spins = tuple(f"{stem}_{i}" for i in (1, 2) for stem in ("a", "tilt"))
        return np.sum([raw[name] for name in factors], axis=0), _MASSES_REDSHIFT + spins
    if "sampling_pdf" in raw:
        return log("sampling_pdf"), _MASSES_REDSHIFT + _CARTESIAN
    masses, redshift = "mass1_source_mass2_source_sampling_pdf", "redshift_sampling_pdf"
    if masses in raw and redshift in raw:
        return log(masses) + log(redshift), _MASSES_REDSHIFT
    return None


def _draw(path: Path, raw: Table, layout: str, stated: Stated, cosmology: Any) -> _Draw:
    p_draw = stated.p_draw
    columns = Columns(raw, cosmology, where=str(path))
    known = _lvk_densities(raw) if layout == "lvk" and p_draw is None else None
    if known is not None:
        value, own = known
        if "weights" in raw:
            # Weighted draws stand for unweighted ones from the density over the weight.
            with np.errstate(all="ignore"):
                value = value - np.log(raw["weights"])
    else:
        names = [p_draw] if p_draw else ["log_p_draw", "lnp_draw", "p_draw", "sampling_pdf"]
        name = next((n for n in names if n in raw), None)
        if name is None:
            raise InputError(
                f"{path}: no column {' or '.join(names)} with the density that the injections were "
                f"drawn from; there are {sorted(raw)}. Name it with p_draw = '...'."
            )
        is_log = name.startswith(("log", "ln"))
        if not is_log and (bad := int(np.sum(~(raw[name] > 0.0)))):
            raise InputError(
                f"{path}: {bad} of {len(raw[name])} values of '{name}' are zero, negative or NaN; "
                "an injection cannot come from where its density is zero."
            )
        value = raw[name] if is_log else np.log(raw[name])
        own = tuple(n for n in raw if blocks_of([n]) <= {"masses", "distance", "spins"})
    own = tuple(stated.coordinates) if stated.coordinates is not None else own
    if bad := int(np.sum(~np.isfinite(value))):
        raise InputError(
            f"{path}: the density of {bad} of {len(value)} injections is zero, negative or not "
            "finite; an injection cannot come from where its density is zero."
        )
    return _Draw(columns, own, value)


def _subset(draw: _Draw, keep: np.ndarray) -> _Draw:
    table = draw.columns
    rows = {name: np.asarray(column)[keep] for name, column in table.items()}
    columns = Columns(rows, table.cosmology, where=table.where)
    return _Draw(columns, draw.coordinates, draw.log_p_draw[keep])


# ---- which are found, and out of how many --------------------------------------------------------

_SNR = (
    "semianalytic_observed_phase_maximized_snr_net",
    "observed_phase_maximized_snr_net",
    "observed_snr_net",
    "optimal_snr_net",
    "snr",
)


def _found(
    path: Path, raw: Table, layout: str, far_cut: float | None, snr_cut: float | None
) -> np.ndarray:
    size = len(next(iter(raw.values())))
    rates = [
        far(raw[name])
        for name in raw
        if (far := _false_alarm_rate(name)) is not None and len(raw[name]) == size
    ]
    ratio = next((raw[name] for name in _SNR if name in raw), None)
    if layout != "lvk" and far_cut is None and snr_cut is None:
        return np.ones(size, bool)
    if far_cut is not None and layout != "lvk" and not rates:
        raise InputError(f"{path}: far_cut was given, but no column holds false-alarm rates.")
    searched = np.asarray(raw.get("searched", np.ones(size)), bool) & bool(rates)
    if _SNR[0] in raw:
        # Zero for injections that searches analysed.
        searched &= ~(raw[_SNR[0]] > 0.0)
    found = np.zeros(size, bool)
    if np.any(searched) and far_cut is None:
        raise InputError(
            f"{path}: which injections count as found depends on the threshold on the "
            "false-alarm rate; give far_cut in 1/yr, as used for the events."
        )
    if rates and far_cut is not None:
        found |= np.min(rates, axis=0) < far_cut
    if not np.all(searched):
        if snr_cut is None or ratio is None:
            lacking = f"there is no column of {list(_SNR)}" if ratio is None else "give snr_cut"
            raise InputError(
                f"{path}: {int(np.sum(~searched))} injections were analysed by no search and have "
                f"no false-alarm rate, only a signal-to-noise ratio: {lacking}."
            )
        found |= ~searched & (ratio > snr_cut)
    return found


def _false_alarm_rate(name: str) -> Callable[[np.ndarray], np.ndarray] | None:
    """How a column gives a false-alarm rate in 1/yr, if it does; a missing one is infinite."""
    words = name.lower().split("_")
    if "ifar" in (words[0], words[-1]):
        return lambda x: np.where(x > 0.0, 1.0 / np.where(x > 0.0, x, 1.0), math.inf)
    if "far" in (words[0], words[-1]):
        return lambda x: np.where(np.isnan(x), math.inf, x)
    return None


def _total(path: Path, attrs: Mapping[str, Any], given: float | None, rows: int) -> float:
    total = given
    for name in ("total_generated", "n_total", "ndraw", "N_draw"):
        total = _number(path, attrs, name) if total is None else total
    if total is None and {"n_accepted", "n_rejected"} <= set(attrs):
        total = sum(_number(path, attrs, name) or 0.0 for name in ("n_accepted", "n_rejected"))
    if total is None:
        raise InputError(
            f"{path}: the number of injections generated is not in the file (attribute "
            "'total_generated'); give total_generated = N, counting those that were not found."
        )
    if not total >= rows:
        raise InputError(
            f"{path}: total_generated = {total} is below the {rows} injections in the table; it "
            "counts all that were generated, found or not."
        )
    return float(total)


def _scale(path: Path, attrs: Mapping[str, Any]) -> float | None:
    def first(*names: str) -> float | None:
        name = next((name for name in names if name in attrs), None)
        value = None if name is None else _number(path, attrs, name)
        if value == 0.0:
            raise InputError(f"{path}: the attribute '{name}' is zero; it must be positive.")
        return value

    time = first("T_obs_yr", "time_yr", "analysis_time_yr")
    if time is None:
        seconds = first("total_analysis_time", "analysis_time_s", "analysis_time")
        time = None if seconds is None else seconds / SECONDS_PER_YEAR
    volume = first("VTmax_Gpc3") or 1.0
    return None if time is None else time * volume


def _number(path: Path, attrs: Mapping[str, Any], name: str) -> float | None:
    """A count or an amount among the attributes; None where it is not there.

    Raises:
        InputError: it is no number, negative or not finite.
    """
    if name not in attrs:
        return None
    try:
        value = float(np.asarray(attrs[name], float).item())
    except (TypeError, ValueError):
        value = math.nan
    if not 0.0 <= value < math.inf:
        raise InputError(
            f"{path}: the attribute '{name}' is {attrs[name]!r}, not a number of zero or more."
        )
    return value


# ---- to the population's parameters --------------------------------------------------------------


def _log_change(
    path: Path, draw: _Draw, wanted: tuple[str, ...], spins: str | Mapping[str, Any] | None
) -> Any:
    r"""What turns $\ln p_\mathrm{draw}$ into a log density in the wanted parameters.

    Spins that the population leaves open are importance-weighted to the stated spin prior
    $\pi(s)$: with $x$ the wanted ones, $p_\mathrm{draw}(x) = p_\mathrm{draw}(s)\,\pi(x)/\pi(s)$.
    Where the density covers no spins, those injected are taken to follow $\pi$.
    """
    own, columns = draw.coordinates, draw.columns
    if set(own) == set(wanted):
        return 0.0
    drawn, kept = block(own, SPIN_NAMES), block(wanted, SPIN_NAMES)
    rest_own = tuple(n for n in own if n not in drawn)
    rest_wanted = tuple(n for n in wanted if n not in kept)
    if differ := blocks_of(rest_own) ^ blocks_of(rest_wanted):
        raise InputError(
            f"{path}: the injections' density is one over {list(own)}, the population's over "
            f"{list(wanted)}; {sorted(differ)} must be in both, since nothing says how it is to be "
            "integrated out. Give the population a factor for it."
        )
    change = log_volume(columns, rest_wanted) - log_volume(columns, rest_own)
    if not drawn and not kept:
        return change
    if drawn and _settles(kept):
        return change + log_volume(columns, kept) - log_volume(columns, drawn)
    if spins is None:
        raise InputError(
            f"{path}: the injections' density covers spins {list(drawn)}, the population's "
            f"parameters are {list(wanted)}; state the spins that it has otherwise, e.g. spins = "
            "{name = 'isotropic-uniform', a_max = 0.99}."
        )
    prior, options = resolve("spins", spins)
    with np.errstate(all="ignore"):
        if drawn:
            components = ("a_1", "cos_tilt_1", "a_2", "cos_tilt_2")
            change = change - log_volume(columns, drawn) - prior(columns, components, **options)
        if kept:
            change = change + prior(columns, kept, **options)
    return change


def _settles(names: tuple[str, ...]) -> bool:
    """Whether these are coordinates of both spins (up to azimuths)."""
    return all(
        {f"a_{i}", f"tilt_{i}"} <= set(names) or {f"a_{i}", f"cos_tilt_{i}"} <= set(names)
        for i in (1, 2)
    )
