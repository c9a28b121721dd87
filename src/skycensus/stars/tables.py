"""Tables of measurements with units: FITS, ECSV, CSV and whatever else astropy reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import astropy.units as u
import numpy as np
from astropy.io.registry import IORegistryError
from astropy.table import Table

from ..errors import InputError, did_you_mean

# Endings that say no more than that it is text: a header, and columns between blanks.
_TEXT = ("", ".txt", ".dat", ".tbl")

# Rows that a message names before it stops counting them up.
_NAMED_ROWS = 5


class Columns(NamedTuple):
    """Columns of a table, as plain arrays in the units that were asked for.

    Attributes:
        values: name -> (row,) numbers, or strings for columns without a unit to convert to.
        rows: (row,) the numbers of the rows in the file, from zero.
        dropped: how many rows were left out because a value was missing.
    """

    values: dict[str, np.ndarray]
    rows: np.ndarray
    dropped: int


def read_table(path: str | Path) -> Table:
    """Read a table; the format follows from the file's name and contents.

    Raises:
        InputError: no such file, or one that astropy cannot read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file '{path}'.")
    try:
        try:
            return Table.read(path)
        except IORegistryError:
            if path.suffix.lower() not in _TEXT:
                raise
            return Table.read(path, format="ascii")
    except Exception as error:
        raise InputError(
            f"'{path}' cannot be read as a table ({type(error).__name__}: {error}); give FITS, "
            "ECSV or CSV, with the ending that its format has."
        ) from None


def columns_of(
    table: Table,
    wanted: Mapping[str, tuple[str, u.UnitBase | None]],
    *,
    source: str,
    positive: Iterable[str] = (),
    text: Iterable[str] = (),
    drop_invalid: bool = False,
) -> Columns:
    """Pick columns of `table`, converted.

    Args:
        table: of measurements; a column without a unit is taken to be in the unit asked for.
        wanted: name -> (the column's name in the table, unit or None for a plain number).
        source: how messages call the table.
        positive: names that must be above zero (uncertainties).
        text: names that are labels, not numbers.
        drop_invalid: leave out rows with a missing or infinite value instead of refusing them.

    Raises:
        InputError: a missing column, a unit that does not convert, a value that is missing or not
            finite, an uncertainty that is not positive; rows are named by their number from zero.
    """
    values = {}
    for name, (column, unit) in wanted.items():
        if column not in table.colnames:
            raise InputError(
                f"{source}: there is no column '{column}' for {name}"
                f"{did_you_mean(column, table.colnames)}; it has {', '.join(table.colnames)}."
            )
        if name in text:
            values[name] = _labels(table[column])
        else:
            values[name] = _numbers(table[column], unit, f"{source}, column '{column}'")
    bad = np.zeros(len(table), bool)
    for name, value in values.items():
        if name not in text:
            bad |= ~np.isfinite(value)
    if bad.any() and not drop_invalid:
        culprits = [n for n, v in values.items() if n not in text and not np.isfinite(v).all()]
        columns = ", ".join(f"'{wanted[n][0]}'" for n in culprits)
        raise InputError(
            f"{source}: column {columns} has a missing or infinite value in {_rows(bad)}; mend the "
            "table, or leave such rows out with drop_invalid = true."
        )
    kept = np.flatnonzero(~bad)
    if not kept.size:
        raise InputError(f"{source}: no row without missing values is left.")
    values = {name: value[kept] for name, value in values.items()}
    for name in positive:
        if (low := values[name] <= 0).any():
            at = np.zeros(len(table), bool)
            at[kept[low]] = True
            raise InputError(
                f"{source}: column '{wanted[name][0]}' is zero or negative in {_rows(at)}; an "
                "uncertainty must be positive."
            )
    return Columns(values, kept, int(bad.sum()))


def check_uncertainties(error: Any, names: Sequence[str]) -> None:
    """Raise where an uncertainty is not a positive number, before a square hides its sign.

    Args:
        error: (object,), or one array for each object.
        names: of the objects.

    Raises:
        InputError: the first such object is named.
    """
    if isinstance(error, np.ndarray) and error.ndim == 1 and error.dtype != object:
        flat, owner = error, np.arange(len(error))
    else:
        flat = np.concatenate([np.ravel(np.asarray(e, float)) for e in error])
        owner = np.repeat(np.arange(len(names)), [np.size(e) for e in error])
    bad = ~(np.isfinite(flat) & (flat > 0))
    if bad.any():
        first = int(np.argmax(bad))
        raise InputError(
            f"{names[owner[first]]}: an uncertainty of {flat[first]:g} is not a positive number; "
            "correct it, or leave the measurement out."
        )


def _labels(column: Any) -> np.ndarray:
    return np.array(
        [(x.decode() if isinstance(x, bytes) else str(x)).strip() for x in np.asarray(column)],
        dtype=object,
    )


def _numbers(column: Any, unit: u.UnitBase | None, where: str) -> np.ndarray:
    plain = column.value if isinstance(column, u.Quantity) else column
    try:
        value = np.ma.filled(np.ma.asarray(plain).astype(float), np.nan)
    except (TypeError, ValueError):
        raise InputError(f"{where} does not hold numbers.") from None
    given = getattr(column, "unit", None)
    if unit is None or given is None or given == unit:
        return value
    try:
        return np.asarray((value * u.Unit(given)).to_value(unit))
    except (u.UnitConversionError, ValueError, TypeError):
        raise InputError(
            f"{where} is in '{given}', which does not convert to {unit}; check the column or its "
            "unit."
        ) from None


def _rows(bad: np.ndarray) -> str:
    """ "row 3", "rows 3, 4", "7 rows (3, 4, 5, 6, 9, …)"."""
    index = np.flatnonzero(bad)
    listed = ", ".join(str(i) for i in index[:_NAMED_ROWS])
    if len(index) > _NAMED_ROWS:
        return f"{len(index)} rows ({listed}, …)"
    return f"row{'s' if len(index) > 1 else ''} {listed}"
