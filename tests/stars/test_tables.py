"""Tables of measurements: units, missing values, and what bad input gets."""

import astropy.units as u
import numpy as np
import pytest
from astropy.table import MaskedColumn, QTable, Table

from skycensus import InputError
from skycensus.stars.tables import columns_of, read_table


def pick(table, **options):
    wanted = {"value": ("v", u.mas), "error": ("e", u.mas)}
    return columns_of(table, wanted, source="stars.ecsv", positive=["error"], **options)


@pytest.mark.parametrize("ending", ["ecsv", "fits", "csv"])
def test_formats_give_the_same_numbers(tmp_path, ending):
    table = QTable({"v": [1.0, 2.0] * u.arcsec, "e": [0.1, 0.2] * u.mas})
    if ending == "csv":  # no units in it: plain numbers are in the unit asked for
        table = Table({"v": [1000.0, 2000.0], "e": [0.1, 0.2]})
    path = tmp_path / f"stars.{ending}"
    table.write(path)
    found = pick(read_table(path))
    assert found.values["value"] == pytest.approx([1000.0, 2000.0])
    assert found.values["error"] == pytest.approx([0.1, 0.2])


def test_unit_that_does_not_convert():
    table = QTable({"v": [1.0] * u.km, "e": [0.1] * u.mas})
    with pytest.raises(InputError, match="column 'v' is in 'km', which does not convert to mas"):
        pick(table)


def test_missing_column_has_a_suggestion():
    table = Table({"vv": [1.0], "e": [0.1]})
    with pytest.raises(InputError, match=r"no column 'v' for value.*did you mean 'vv'"):
        pick(table)


def test_missing_values_are_named_and_dropped_only_when_asked():
    table = Table(
        {"v": [1.0, np.nan, 3.0, 4.0], "e": MaskedColumn([1.0, 1, 1, 1], mask=[0, 0, 1, 0])}
    )
    with pytest.raises(
        InputError, match=r"column 'v', 'e' has a missing .* rows 1, 2; .*drop_inval"
    ):
        pick(table)
    found = pick(table, drop_invalid=True)
    assert found.dropped == 2
    assert found.rows.tolist() == [0, 3]
    assert found.values["value"].tolist() == [1.0, 4.0]


@pytest.mark.parametrize("bad", [0.0, -0.1])
def test_uncertainties_must_be_positive(bad):
    table = Table({"v": [1.0, 2.0, np.nan, 3.0], "e": [0.1, 0.1, 0.1, bad]})
    with pytest.raises(InputError, match="column 'e' is zero or negative in row 3"):
        pick(table, drop_invalid=True)


def test_many_rows_are_counted():
    table = Table({"v": np.full(20, np.inf), "e": np.ones(20)})
    with pytest.raises(InputError, match=r"20 rows \(0, 1, 2, 3, 4, …\)"):
        pick(table)


def test_nothing_left():
    table = Table({"v": [np.nan], "e": [1.0]})
    with pytest.raises(InputError, match="no row without missing values"):
        pick(table, drop_invalid=True)


def test_text_where_numbers_are_asked_for():
    with pytest.raises(InputError, match="column 'v' does not hold numbers"):
        pick(Table({"v": ["a"], "e": [1.0]}))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_table(tmp_path / "none.fits")
    path = tmp_path / "broken.fits"
    path.write_bytes(b"\x00\x01\x02")
    with pytest.raises(InputError, match="cannot be read as a table"):
        read_table(path)
