"""Tables of draws in the formats they are published in, with the columns' names made canonical.

What a table holds is decided by its layout, not by its file's name. No checks of values are made
here, save that the file can be read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, did_you_mean
from .coordinates import DISTANCE_NAMES, MASS_NAMES, RULES, SPIN_NAMES

CANONICAL = MASS_NAMES | DISTANCE_NAMES | SPIN_NAMES | set(RULES) | {"eccentricity"}

# Canonical name -> the names that files use for it. Masses without "source" in their name are in
# the detector frame, as in LALInference, Bilby and PESummary.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "mass_1_source": ("mass1_source", "m1_source", "srcmass1", "m1s", "mass_1_src", "m1_src"),
    "mass_2_source": ("mass2_source", "m2_source", "srcmass2", "m2s", "mass_2_src", "m2_src"),
    "mass_1": ("mass1", "m1", "m1_detector_frame_Msun", "mass_1_det", "m1_det", "mass1_det"),
    "mass_2": ("mass2", "m2", "m2_detector_frame_Msun", "mass_2_det", "m2_det", "mass2_det"),
    "mass_ratio": ("q",),
    "symmetric_mass_ratio": ("eta",),
    "chirp_mass": ("mchirp", "mc", "chirp_mass_det"),
    "chirp_mass_source": ("srcmchirp", "mchirp_source", "mc_source", "chirpmass_source"),
    "total_mass": ("mtotal", "mtot"),
    "total_mass_source": ("srcmtot", "mtotal_source", "mtot_source"),
    "redshift": ("z",),
    "luminosity_distance": ("luminosity_distance_Mpc", "distance", "dist", "d_luminosity", "dL"),
    "a_1": ("spin1", "spin1_a", "a1", "spin1_magnitude"),
    "a_2": ("spin2", "spin2_a", "a2", "spin2_magnitude"),
    "cos_tilt_1": ("costilt1", "cos_theta_1", "costheta1"),
    "cos_tilt_2": ("costilt2", "cos_theta_2", "costheta2"),
    "tilt_1": ("tilt1", "spin1_polar", "theta_1", "spin1_polar_angle"),
    "tilt_2": ("tilt2", "spin2_polar", "theta_2", "spin2_polar_angle"),
    "azimuth_1": ("spin1_azimuthal", "spin1_azimuthal_angle"),
    "azimuth_2": ("spin2_azimuthal", "spin2_azimuthal_angle"),
    **{f"spin_{i}{axis}": (f"spin{i}{axis}", f"s{i}{axis}") for i in (1, 2) for axis in "xyz"},
    "chi_1": ("chi1",),
    "chi_2": ("chi2",),
    "chi_eff": ("chieff", "effective_spin"),
    "chi_p": ("chip",),
    "eccentricity": ("ecc", "eccentricity_20Hz"),
}

# Waveform groups that are published as the preferred one, in order.
PREFERRED_GROUPS = (
    *("C01:Mixed", "C00:Mixed", "C00:Mixed+XO4a"),
    *("PublicationSamples", "Overall", "Overview"),
)

Table = dict[str, np.ndarray]


def read_posterior(
    path: str | Path,
    *,
    group: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Table:
    """Read a table of draws: canonical parameter name -> array, other columns by their own names.

    Layouts: whitespace text with a header, "#" before it or not (`.dat`, `.txt`); CSV; Parquet
    (with pyarrow); HDF5 as PyCBC and the Open Gravitational-wave Catalogues write it (group
    `samples`), as PESummary does (one group per waveform with a table `posterior_samples`, or
    `posterior_samples/<waveform>`), as GWTC-1 does (`Overall_posterior`, ...), or one dataset per
    column at the top.

    Args:
        path: the file.
        group: which waveform of a file with several. By default the one published as preferred
            (`PREFERRED_GROUPS`), or the only one.
        columns: canonical name -> the file's name for it, where `SYNONYMS` does not know it or
            would get it wrong; e.g. `{"mass_1_source": "mass1"}`.

    In PyCBC's layout `mass1` is taken as a source-frame mass where the file also has
    `comoving_volume`, as 2-OGC has, and as a detector-frame mass otherwise.

    Raises:
        InputError: a file that is missing, unreadable or cut short; several groups with none
            preferred; a column in `columns` that the file does not have.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name its files, e.g. by a pattern '{path}/*.hdf5'.")
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path.")
    raw, pycbc = _read_raw(path, group)
    if not raw or min(len(column) for column in raw.values()) == 0:
        raise InputError(f"{path}: no draws in it; leave the file out, or fetch it again.")
    return canonical_columns(raw, columns, where=str(path), source_masses=pycbc)


def canonical_columns(
    raw: Table,
    columns: Mapping[str, str] | None = None,
    *,
    where: str,
    source_masses: bool = False,
) -> Table:
    """Rename a table's columns by `SYNONYMS`; `source_masses` reads mass1, mass2 as those."""
    named: Table = {}
    for name, original in (columns or {}).items():
        if original not in raw:
            raise InputError(
                f"{where}: no column '{original}' to read as '{name}'"
                f"{did_you_mean(original, raw)}; there are {sorted(raw)}."
            )
        named[name] = raw[original]
    taken = set((columns or {}).values())
    synonyms = {other: name for name, others in SYNONYMS.items() for other in others}
    if source_masses:
        synonyms |= {"mass1": "mass_1_source", "mass2": "mass_2_source"}
    # A file that uses the canonical name means it.
    for name in raw:
        if name in CANONICAL and name not in taken:
            named.setdefault(name, raw[name])
    for other, column in raw.items():
        if other not in taken and other not in CANONICAL:
            named.setdefault(synonyms.get(other, other), column)
    return named


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expand_paths(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the files that paths or patterns (`*`, `?`, `[...]`, `**`) name, sorted.

    Raises:
        InputError: a pattern that no file matches.
    """
    import glob

    found: list[Path] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        text = str(path)
        if Path(text).exists() or not glob.has_magic(text):
            matches = [text]
        else:
            matches = sorted(glob.glob(text, recursive=True))
        if not matches:
            folder = Path(text).parent
            hint = "" if glob.has_magic(str(folder)) else _listing(folder)
            raise InputError(f"no file matches '{text}'{hint}.")
        found += [Path(match) for match in matches if Path(match) not in found]
    if not found:
        raise InputError("no posterior files were given; name at least one file or pattern.")
    return found


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return f": there is no folder '{folder}'"
    names = sorted(entry.name for entry in folder.iterdir())
    return f"; '{folder}' holds {names[:5] + ['...'] * (len(names) > 5)}"


# ---- formats -------------------------------------------------------------------------------------


def _read_raw(path: Path, group: str | None) -> tuple[Table, bool]:
    """The columns as the file names them, and whether its mass1, mass2 are source-frame masses."""
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5", ".hdf"):
        return _read_hdf5(path, group)
    if group is not None:
        raise InputError(f"{path}: group = '{group}' was given, but only HDF5 files have groups.")
    if suffix in (".parquet", ".pq"):
        return _read_parquet(path), False
    if suffix in (".dat", ".txt", ".csv"):
        return _read_text(path), False
    raise InputError(
        f"{path}: no reader for '{suffix}'; expected .dat or .txt (whitespace), .csv, "
        ".h5, .hdf5 or .hdf, or .parquet."
    )


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _read_text(path: Path) -> Table:
    try:
        with open(path, encoding="utf-8") as file:
            lines = enumerate(file)
            start, header = next(((i, s) for i, s in lines if s.strip(" \t\r\n#")), (0, ""))
            _, first = next(((i, s) for i, s in lines if s.strip()), (0, ""))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as text: {error}.") from error
    comma = "," if "," in header else None
    names = [word.strip().strip('"') for word in header.strip().lstrip("#").split(comma)]
    words = [word.strip() for word in first.strip().split(comma)]
    if not header:
        return {}
    if all(_is_number(name) for name in names):
        raise InputError(
            f"{path}: the first line is {header.strip()[:60]!r}, not a header; the columns must be "
            "named, e.g. 'mass_1_source mass_2_source'."
        )
    if first.strip() and len(words) != len(names):
        raise InputError(
            f"{path}: the header names {len(names)} columns {names}, the first row has "
            f"{len(words)}."
        )
    # A column of words (a waveform's name) is no parameter.
    used = [i for i, word in enumerate(words) if _is_number(word)]
    if not used:
        return {}
    try:
        table = np.loadtxt(path, delimiter=comma, skiprows=start + 1, usecols=used, ndmin=2)
    except ValueError as error:
        raise InputError(f"{path}: cut short, or not a table of numbers: {error}.") from error
    return {names[i]: table[:, k] for k, i in enumerate(used)}


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError(
            f"{path}: Parquet files need pyarrow; install it with pip install 'skycensus[parquet]'."
        ) from error
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable as Parquet, or cut short: {error}.") from error
    numeric = [
        field.name
        for field in table.schema
        if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
    ]
    return {name: np.asarray(table[name].to_numpy(), float) for name in numeric}


def open_hdf5(path: str | Path) -> Any:
    """Open an HDF5 file for reading.

    Raises:
        InputError: no such file, not HDF5, or cut short.
    """
    import h5py

    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; check the path.")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(
            f"{path}: not an HDF5 file, or cut short ({error}); fetch it again."
        ) from error


def _read_hdf5(path: Path, group: str | None) -> tuple[Table, bool]:
    with open_hdf5(path) as file:
        try:
            return _find_table(path, file, group)
        except InputError:
            raise
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{path}: damaged or cut short: {error}.") from error


def _find_table(path: Path, file: Any, group: str | None) -> tuple[Table, bool]:
    candidates = {name: node for name, node in _candidates(file).items() if name != "prior"}
    if not candidates:
        table = columns_of(file)
        if not table:
            raise InputError(
                f"{path}: no posterior samples in any known layout; at its top are {sorted(file)}."
            )
        return table, False
    name = _choose(path, candidates, group)
    table = columns_of(candidates[name])
    return table, name == "samples" and "comoving_volume" in table


def _candidates(file: Any) -> dict[str, Any]:
    """The tables of a file, by the name of their waveform."""
    found: dict[str, Any] = {}
    for name, node in _nodes(file):
        is_group = hasattr(node, "keys")
        if is_group and "posterior_samples" in node:
            found[name] = node["posterior_samples"]
        elif name == "posterior_samples" and is_group:
            # PESummary's first layout: posterior_samples/<waveform>.
            inner = {key: table for key, table in node.items() if columns_of(table)}
            found |= inner if inner else {name: node}
        elif not is_group and node.dtype.names:
            found[name.removesuffix("_posterior")] = node
        elif name in ("samples", "posterior") and is_group:
            found[name] = node
    return found


def _choose(path: Path, candidates: Mapping[str, Any], group: str | None) -> str:
    if group is not None:
        name = group.removesuffix("_posterior")
        if name not in candidates:
            raise InputError(
                f"{path}: no group '{group}'{did_you_mean(group, candidates)}; there are "
                f"{sorted(candidates)}."
            )
        return name
    for name in PREFERRED_GROUPS:
        if name in candidates:
            return name
    if len(candidates) > 1:
        raise InputError(
            f"{path}: several sets of posterior samples {sorted(candidates)}, none of them "
            "published as preferred; choose one with group = '...'."
        )
    return next(iter(candidates))


def _nodes(group: Any) -> list[tuple[str, Any]]:
    """What is in a group, but for links that lead nowhere."""
    return [(name, node) for name, node in group.items() if node is not None]


def columns_of(node: Any) -> Table:
    """Return the numeric columns of a structured dataset, or of a group with one dataset each."""
    if not hasattr(node, "keys"):
        if not node.dtype.names or node.ndim != 1:
            return {}
        rows = node[()]
        return {
            name: np.asarray(rows[name], float)
            for name in node.dtype.names
            if rows.dtype[name].kind in "fiu"
        }
    if "parameter_names" in node and "samples" in node:
        names = [
            n.decode() if isinstance(n, bytes) else str(n) for n in node["parameter_names"][()]
        ]
        samples = np.asarray(node["samples"][()], float)
        if samples.shape[1:] != (len(names),):
            raise ValueError(f"samples of shape {samples.shape} for {len(names)} parameter_names")
        return dict(zip(names, samples.T, strict=True))
    return {
        name: np.asarray(data[()], float)
        for name, data in _nodes(node)
        if not hasattr(data, "keys") and data.ndim == 1 and data.dtype.kind in "fiu"
    }
