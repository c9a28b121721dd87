r"""Weighted draws from what others write: chain files, tables, ArviZ, anesthetic, our results."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..diagnostics import import_arviz, scalars
from ..errors import InputError, did_you_mean
from ..result import Result

WEIGHTS = ("weight", "weights")
LOG_WEIGHTS = ("log_weight", "log_weights")
# What samplers keep beside the parameters.
_BOOKKEEPING = re.compile(
    r"(logl|loglike|log_likelihood|lnl|logl_birth|nlive|chain|insertion|index|minuslog.*|chi2.*)",
    re.IGNORECASE,
)
# PolyChord and MultiNest write -1e30 where a point was drawn from the whole prior.
_NO_BIRTH = -1e29


@dataclass(frozen=True, eq=False)
class Draws:
    r"""Weighted draws of named parameters.

    Attributes:
        columns: name -> (n,) array.
        log_weight: (n,) unnormalised, or None where all weigh the same.
        support: name -> (low, high), where the file declares the prior's bounds.
        where: what messages call the source.
        hidden: columns that are kept for those who name them: derived ones, log likelihoods.
        paths: the files that were read.
    """

    columns: Mapping[str, np.ndarray]
    log_weight: np.ndarray | None = None
    support: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    where: str = "the draws"
    hidden: Mapping[str, np.ndarray] = field(default_factory=dict)
    paths: tuple[Path, ...] = ()

    def select(self, names: Sequence[str]) -> Draws:
        """The same draws of these parameters only.

        Raises:
            InputError: there is no such column.
        """
        every = {**self.columns, **self.hidden}
        chosen = {name: self._column(name, every) for name in names}
        support = {name: ends for name, ends in self.support.items() if name in chosen}
        return Draws(chosen, self.log_weight, support, self.where, {}, self.paths)

    def weighted(self, weights: str | None = None, log_weights: str | None = None) -> Draws:
        """The same draws, weighted by a column.

        Without a name, a column called weight, weights, log_weight or log_weights is taken.

        Raises:
            InputError: two columns are named or found, there is no such column, or it has negative
                or no positive weights.
        """
        every = {**self.columns, **self.hidden}
        if weights is None and log_weights is None:
            weights, log_weights = self._found(WEIGHTS), self._found(LOG_WEIGHTS)
        if weights is not None and log_weights is not None:
            raise InputError(
                f"{self.where}: columns '{weights}' and '{log_weights}' would both be weights; "
                "name one of them."
            )
        name = weights or log_weights
        if name is None:
            return self
        column = self._column(name, every)
        if weights is not None:
            column = _logarithms(column, f"{self.where}: column '{name}'")
        rest = {n: x for n, x in self.columns.items() if n != name}
        return Draws(rest, column, self.support, self.where, self.hidden, self.paths)

    def _found(self, names: tuple[str, ...]) -> str | None:
        return next((name for name in self.columns if name.lower() in names), None)

    def _column(self, name: str, every: Mapping[str, np.ndarray]) -> np.ndarray:
        if name not in every:
            raise InputError(
                f"{self.where} has no column '{name}'{did_you_mean(name, every)}; it has "
                f"{', '.join(every) or 'none'}."
            )
        return every[name]


def read_draws(source: Any, log_weight: Any = None) -> Draws:
    """Draws of what is in memory, or of a file; see `read_chains`.

    Args:
        source: name -> (n,) array; a `Result`; ArviZ's InferenceData or DataTree; a table of pandas
            or anesthetic; or the path of a file.
        log_weight: (n,) log weights, instead of those that the source has.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(source, Draws):
        found = source
    elif isinstance(source, Mapping) and not hasattr(source, "to_netcdf"):
        found = Draws({str(name): np.asarray(x) for name, x in source.items()})
    elif isinstance(source, str | Path):
        found = read_chains(source)
    elif isinstance(source, Result):
        found = _of_chains(source.draws, source.log_weight, "the result", source.derived)
    elif hasattr(source, "posterior"):
        found = _of_arviz(source, "the posterior")
    elif hasattr(source, "columns") and hasattr(source, "to_numpy"):
        found = _of_table(source)
    else:
        raise InputError(
            f"draws of type {type(source).__name__} are not understood; give a mapping of names to "
            "arrays, a Result, an ArviZ object, a table of pandas or anesthetic, or a file's path."
        )
    if log_weight is None:
        return found
    return Draws(found.columns, log_weight, found.support, found.where, found.hidden, found.paths)


def read_chains(
    path: str | Path, *, weights: str | None = None, log_weights: str | None = None
) -> Draws:
    r"""Read a file of weighted draws, or all files of a root.

    Formats: GetDist and Cobaya chains (`root_1.txt`, `root.1.txt`, `root.txt`: weight,
    $-\ln L$, parameters; with `root.paramnames` and `root.ranges`, whose bounds become the
    support); nested sampling by PolyChord (`root_dead-birth.txt` with `root_phys_live-birth.txt`)
    and MultiNest (`rootdead-birth.txt`), whose weights follow from births and deaths; tables of
    anesthetic; text with a header, NPZ with an array per column, Parquet (with pyarrow); netCDF by
    ArviZ or `Result.save`.

    Args:
        path: a file, or the root of several chains, of which all are read.
        weights, log_weights: the column of the weights, or of their natural logarithms. Without,
            the format's own weights are taken, or a column called weight(s) or log_weight(s).

    Raises:
        InputError: there is no such file, it cannot be read, or a column is missing or holds
            something else than numbers; the message names file and column.
    """
    path = Path(path)
    found = _by_suffix(path) if path.is_file() else _by_root(path)
    if found.log_weight is not None and weights is None and log_weights is None:
        return found
    return found.weighted(weights, log_weights)


# ---- in memory -----------------------------------------------------------------------------------


def _of_chains(
    draws: Mapping[str, Any],
    log_weight: Any,
    where: str,
    hidden: Mapping[str, Any] | None = None,
    paths: tuple[Path, ...] = (),
) -> Draws:
    columns = {name: np.ravel(x) for name, x in scalars(draws)}
    others = {name: np.ravel(x) for name, x in scalars(hidden or {})}
    flat = None if log_weight is None else np.ravel(log_weight)
    return Draws(columns, flat, {}, where, others, paths)


def _of_arviz(tree: Any, where: str, paths: tuple[Path, ...] = ()) -> Draws:
    """An InferenceData or a DataTree; log weights are looked for among its sample statistics."""
    dims = ("chain", "draw")
    variables = {
        str(name): x.transpose(*dims, ...).values
        for name, x in tree.posterior.data_vars.items()
        if set(dims) <= set(x.dims)
    }
    stats = getattr(tree, "sample_stats", None)
    log_weight = None
    if stats is not None and "log_weight" in stats:
        log_weight = stats["log_weight"].transpose(*dims).values
    return _of_chains(variables, log_weight, where, paths=paths)


def _of_table(table: Any) -> Draws:
    """A table of pandas or anesthetic, which has weights beside its columns."""
    names = [str(name[0] if isinstance(name, tuple) else name) for name in table.columns]
    values = table.to_numpy()
    every = {name: values[:, i] for i, name in enumerate(names)}
    found = _sorted("the table", every)
    if not hasattr(table, "get_weights"):
        return found.weighted()
    log_weight = _logarithms(np.asarray(table.get_weights(), float), "the table's weights")
    return Draws(found.columns, log_weight, {}, found.where, found.hidden)


def _sorted(where: str, every: Mapping[str, Any], paths: tuple[Path, ...] = ()) -> Draws:
    """Parameters apart from what samplers keep beside them."""
    hidden = {name: x for name, x in every.items() if _BOOKKEEPING.fullmatch(name)}
    columns = {name: x for name, x in every.items() if name not in hidden}
    return Draws(columns, None, {}, where, hidden, paths)


def _logarithms(weight: np.ndarray, where: str) -> np.ndarray:
    """Natural logarithms of weights."""
    weight = np.asarray(weight, float)
    bad = np.flatnonzero(~np.isfinite(weight) | (weight < 0))
    if bad.size:
        raise InputError(
            f"{where} has the weight {weight[bad[0]]} in draw {bad[0]}; weights are not negative. "
            "Name the right column, or its logarithms with log_weights."
        )
    if not (weight > 0).any():
        raise InputError(f"{where} has no weight above zero; name the right column.")
    with np.errstate(divide="ignore"):
        return np.log(weight)


# ---- files ---------------------------------------------------------------------------------------


def _by_suffix(path: Path) -> Draws:
    readers: dict[str, Callable[[Path], Draws]] = {
        ".nc": _netcdf,
        ".npz": _npz,
        ".parquet": _parquet,
        ".pq": _parquet,
    }
    if path.suffix in readers:
        return readers[path.suffix](path)
    if path.name.endswith("dead-birth.txt"):
        return _nested(path)
    if path.suffix == ".txt" and _is_chain(path):
        return _getdist([path], _root(path))
    return _table(path)


def _by_root(root: Path) -> Draws:
    """All files of a root; the weights of nested sampling are best made from its own."""
    for middle in ("_", ""):
        nested = root.with_name(f"{root.name}{middle}dead-birth.txt")
        if nested.is_file():
            return _nested(nested)
    pattern = re.compile(re.escape(root.name) + r"[_.](\d+)\.txt")
    folder = root.parent
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    numbered = {int(m[1]): f for f in files if (m := pattern.fullmatch(f.name))}
    chains = [numbered[k] for k in sorted(numbered)]
    whole = root.with_name(f"{root.name}.txt")
    if not chains and whole.is_file():
        chains = [whole]
    if not chains:
        near = did_you_mean(root.name, [file.name for file in files])
        raise InputError(
            f"there is no file {root}{near}, nor chains {root.name}_1.txt, {root.name}.txt or "
            f"{root.name}_dead-birth.txt; give a file of draws, or the root of chains."
        )
    return _getdist(chains, root)


def _root(path: Path) -> Path:
    """The root of a chain file: what its paramnames are named by."""
    stem = path.name.removesuffix(".txt")
    bare = re.sub(r"[_.]\d+$", "", stem)
    has_own = path.with_name(f"{stem}.paramnames").is_file()
    return path.with_name(stem if has_own else bare)


def _is_chain(path: Path) -> bool:
    """Whether a text file is in the format of GetDist: by its companions, or Cobaya's header."""
    root = _root(path)
    if root.with_name(f"{root.name}.paramnames").is_file():
        return True
    words = _first_line(path).lstrip("# ").split()
    return words[:2] == ["weight", "minuslogpost"]


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            return stream.readline().strip()
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is not a text file of draws ({error}).") from None


def _numbers(path: Path, delimiter: str | None = None, skip: int = 0) -> np.ndarray:
    """The rows of a text file, (n, columns).

    Raises:
        InputError: naming the line with something else than a number, or with too few.
    """
    try:
        rows = np.loadtxt(path, delimiter=delimiter, skiprows=skip, ndmin=2, encoding="utf-8-sig")
    except (ValueError, UnicodeDecodeError) as error:
        told = str(error).split(";")[0].rstrip(".")
        raise InputError(
            f"{path}: {told} (rows are counted after {skip} header lines); each row must hold one "
            "number per column."
        ) from None
    if rows.size == 0:
        raise InputError(f"{path} holds no draws; give a file with at least a few.")
    return rows


def _getdist(paths: Sequence[Path], root: Path) -> Draws:
    parts = [_numbers(path) for path in paths]
    header = _first_line(paths[0])
    names, derived = _paramnames(root)
    if not names and header.startswith("#"):
        names = header.lstrip("# ").split()[2:]
    width = parts[0].shape[1] - 2
    if not names:
        names = [f"p{i + 1}" for i in range(width)]
    for path, part in zip(paths, parts, strict=True):
        if part.shape[1] - 2 != len(names):
            raise InputError(
                f"{path} has {part.shape[1]} columns, but {root.name}.paramnames names "
                f"{len(names)} parameters: expected weight, -ln L and these, {len(names) + 2}; "
                "give the paramnames of these chains."
            )
    rows = np.concatenate(parts)
    every = {name: rows[:, i + 2] for i, name in enumerate(names)}
    found = _sorted(str(root), every, tuple(paths))
    hidden = {**found.hidden, **{name: every[name] for name in derived}}
    columns = {name: x for name, x in found.columns.items() if name not in derived}
    log_weight = _logarithms(rows[:, 0], f"{paths[0]}: its first column")
    return Draws(columns, log_weight, _ranges(root, names), str(root), hidden, tuple(paths))


def _paramnames(root: Path) -> tuple[list[str], set[str]]:
    """Names of all parameters, and which are derived (their names end in a star)."""
    path = root.with_name(f"{root.name}.paramnames")
    if not path.is_file():
        return [], set()
    words = [line.split()[0] for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    names = [word.removesuffix("*") for word in words]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path} names {repeated} more than once; each column needs its own name.")
    return names, {word[:-1] for word in words if word.endswith("*")}


def _ranges(root: Path, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """The bounds of the prior, where `root.ranges` has both numbers in order, or one; N is none."""
    path = root.with_name(f"{root.name}.ranges")
    found = {}
    for line in path.read_text("utf-8-sig").splitlines() if path.is_file() else []:
        words = line.split()
        if len(words) < 3 or words[0] not in names:
            continue
        try:
            low = -math.inf if words[1] in ("N", "None") else float(words[1])
            high = math.inf if words[2] in ("N", "None") else float(words[2])
        except ValueError:
            raise InputError(
                f"{path}: the range of '{words[0]}' is '{words[1]} {words[2]}', not two numbers; "
                "write N where there is no bound."
            ) from None
        # A fixed parameter has a range of no width.
        if low < high and (math.isfinite(low) or math.isfinite(high)):
            found[words[0]] = (low, high)
    return found


def _nested(path: Path) -> Draws:
    """Dead points of PolyChord or MultiNest with their births, and the live points where kept."""
    from ..samplers.nested_volumes import integrate

    start = path.name.removesuffix("dead-birth.txt")
    is_polychord = start.endswith("_")
    # MultiNest writes the prior's mass and a mode's number behind the two likelihoods.
    extra, live_extra = (0, 0) if is_polychord else (2, 1)
    rows = _numbers(path)
    rows = rows[:, : rows.shape[1] - extra]
    paths = [path]
    live = path.with_name(f"{start}phys_live-birth.txt")
    if live.is_file() and live.read_text().strip():
        last = _numbers(live)
        last = last[:, : last.shape[1] - live_extra]
        # PolyChord's last live points may be among the dead ones already.
        rows = np.unique(np.concatenate([rows, last]), axis=0)
        paths.append(live)
    root = path.with_name(start.removesuffix("_"))
    names, derived = _paramnames(root if is_polychord else path.with_name(start))
    width = rows.shape[1] - 2
    names = names or [f"p{i + 1}" for i in range(width)]
    if len(names) != width:
        raise InputError(
            f"{path} has {width} parameters before ln L and its birth, but {root.name}.paramnames "
            f"names {len(names)}; give the paramnames of this run."
        )
    log_l, birth = rows[:, -2], np.where(rows[:, -1] < _NO_BIRTH, -np.inf, rows[:, -1])
    if not np.isfinite(log_l).all() or (birth >= log_l).any():
        raise InputError(
            f"{path}: the last two columns must be ln L and the ln L above which the point was "
            "drawn, which is lower; this is another file."
        )
    columns = {n: rows[:, i] for i, n in enumerate(names) if n not in derived}
    hidden = {n: rows[:, i] for i, n in enumerate(names) if n in derived} | {"logL": log_l}
    log_weight = integrate(log_l, birth).log_weight
    return Draws(columns, log_weight, _ranges(root, names), str(path), hidden, tuple(paths))


def _table(path: Path) -> Draws:
    """Text with a header, "," or white space between; also what anesthetic writes."""
    header = _first_line(path)
    delimiter = "," if "," in header else None
    cells = [cell.strip().strip('"') for cell in header.lstrip("# ").split(delimiter)]
    if not any(re.search("[A-Za-z]", cell) for cell in cells):
        raise InputError(
            f"{path} has no header: its first line is '{header[:60]}'; write the names of the "
            "columns there, or add a .paramnames file to a chain."
        )
    skip, weights = 1, None
    if delimiter and not cells[0]:
        # pandas writes its index first, and anesthetic labels and weights with it.
        skip, weights = _anesthetic(path, cells)
    rows = _numbers(path, delimiter, skip)
    if rows.shape[1] != len(cells):
        raise InputError(
            f"{path} names {len(cells)} columns, but its rows have {rows.shape[1]}; give every "
            "column one name without blanks."
        )
    every = {name: rows[:, i] for i, name in enumerate(cells) if name and i != weights}
    if len(every) < sum(bool(name) and i != weights for i, name in enumerate(cells)):
        raise InputError(f"{path} names a column more than once; each needs its own name.")
    found = _sorted(str(path), every, (path,))
    if weights is None:
        return found
    log_weight = _logarithms(rows[:, weights], f"{path}: column 'weights'")
    return Draws(found.columns, log_weight, {}, found.where, found.hidden, found.paths)


def _anesthetic(path: Path, cells: Sequence[str]) -> tuple[int, int | None]:
    """How many lines the header has, and which column holds weights."""
    weights = 1 if len(cells) > 1 and cells[1] == "weights" else None
    with path.open(encoding="utf-8-sig") as stream:
        lines = [stream.readline().rstrip("\n").split(",") for _ in range(3)]
    skip = 1
    for line in lines[1:]:
        if line[0] not in ("", "labels"):
            break
        skip += 1
        if len(line) > 1 and line[0] == "" and line[1] == "weights":
            weights = 1
    return skip, weights


def _npz(path: Path) -> Draws:
    try:
        # Opened here, because NumPy leaves a file open that is no archive.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            every = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InputError(f"{path} is not an NPZ file of numbers ({error}).") from None
    for name, x in every.items():
        if x.ndim != 1 or not np.issubdtype(x.dtype, np.number):
            raise InputError(
                f"{path}: '{name}' has the shape {x.shape} and type {x.dtype}; store one array of "
                "numbers (n,) per parameter."
            )
    return _sorted(str(path), every, (path,))


def _parquet(path: Path) -> Draws:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"{path}: reading Parquet needs pyarrow; install skycensus[parquet]."
        ) from None
    try:
        table = pyarrow.parquet.read_table(path)
        every = {name: np.asarray(table[name].to_numpy(), float) for name in table.column_names}
    except (OSError, ValueError, TypeError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} is not a Parquet table of numbers ({error}).") from None
    return _sorted(str(path), every, (path,))


def _netcdf(path: Path) -> Draws:
    try:
        result = Result.load(path)
    except InputError:
        return _foreign_netcdf(path)
    return _of_chains(result.draws, result.log_weight, str(path), result.derived, (path,))


def _foreign_netcdf(path: Path) -> Draws:
    try:
        tree = import_arviz().from_netcdf(str(path))
        return _of_arviz(tree, str(path), (path,))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is not netCDF with a group 'posterior', as ArviZ writes it ({error})."
        ) from None
