"""Runs and event lists: what is read, and what bad input gets."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from skycensus.errors import InputError
from skycensus.gamma.dl3 import aligned, events_of, filled, read_events, read_run, read_runs
from skycensus.gamma.fold import Cut
from skycensus.gamma.photons import Background, Observation, photon_model
from skycensus.gamma.response import energy_nodes, synthetic_tables
from skycensus.gamma.sky import Cone
from skycensus.gamma.tables import Table
from skycensus.prior import Prior

UNITS = {"energy": "GeV", "lon": "deg", "lat": "deg"}


def table(**columns):
    import astropy.units as u
    from astropy.table import QTable

    have = {"energy": [500.0, 2000.0] * u.GeV, "ra": [83.6, 83.7] * u.deg}
    have |= {"dec": [22.0, 21.9] * u.deg} | columns
    return QTable({n: x for n, x in have.items() if x is not None})


def test_tables_are_read_with_their_units(tmp_path):
    for ending in ("ecsv", "fits"):
        table().write(tmp_path / f"events.{ending}")
        events = read_events(tmp_path / f"events.{ending}")
        assert np.allclose(events.energy, [0.5, 2.0])
        assert np.allclose(events.lon, [83.6, 83.7])
        assert np.allclose(events.lat, [22.0, 21.9])


def test_directions_are_turned_into_the_frame():
    # The galactic pole and centre define the frame.
    import astropy.units as u

    poles = table(ra=[192.85948, 266.40499] * u.deg, dec=[27.12825, -28.93617] * u.deg)
    events = events_of(poles, frame="galactic")
    assert np.allclose(events.lat, [90.0, 0.0], atol=1e-4)
    assert abs((events.lon[1] + 180) % 360 - 180) < 1e-4
    own = table(ra=None, dec=None, lon=[1.0, 2.0] * u.deg, lat=[3.0, 4.0] * u.deg)
    assert np.allclose(events_of(own, frame="galactic").lon, [1.0, 2.0])


def test_plain_numbers_need_units():
    plain = np.array([[500.0, 83.6, 22.0], [2000.0, 83.7, 21.9]])
    events = events_of(plain, units=UNITS)
    assert np.allclose(events.energy, [0.5, 2.0])
    assert np.allclose(events.lat, [22.0, 21.9])
    with pytest.raises(InputError, match="units="):
        events_of(plain)
    with pytest.raises(InputError, match="photons, 3"):
        events_of(plain[:, :2], units=UNITS)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"energy": None}, "no column 'energy'"),
        ({"dec": None}, "ra and dec"),
        ({"energy": [1.0, 2.0]}, "'energy' has no unit"),
        ({"energy": "metres"}, "is no TeV"),
        ({"ra": "nan"}, "'ra' of photon 1 is NaN"),
    ],
)
def test_bad_tables(columns, message):
    import astropy.units as u

    known = {"metres": [1.0, 2.0] * u.m, "nan": [83.6, np.nan] * u.deg}
    named = {n: known[x] if isinstance(x, str) else x for n, x in columns.items()}
    with pytest.raises(InputError, match=message):
        events_of(table(**named))


def test_bad_files(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no file"):
        read_events(tmp_path / "none.fits")
    (tmp_path / "bad.fits").write_text("nothing")
    with pytest.raises(InputError, match="cannot be read as a table"):
        read_events(tmp_path / "bad.fits")
    monkeypatch.setitem(sys.modules, "gammapy.data", None)
    with pytest.raises(InputError, match="skycensus\\[gamma\\]"):
        read_run(tmp_path / "bad.fits")


def test_a_run_without_its_parts_is_told(tmp_path):
    pytest.importorskip("gammapy")
    table().write(tmp_path / "events.fits")
    with pytest.raises(InputError, match="no HDU EVENTS and no HDU GTI"):
        read_run(tmp_path / "events.fits")
    with pytest.raises(InputError, match="no index of runs"):
        read_runs(tmp_path, [1])


def test_a_field_that_is_turned_is_turned_back():
    lon = np.linspace(-2.0, 2.0, 9)
    e, x, y = np.meshgrid([1.0, 10.0], lon, lon, indexing="ij")
    axes = {"energy": np.array([1.0, 10.0]), "fov_lon": lon, "fov_lat": lon}
    own = Table(axes, 0.3 * x - 0.1 * y - np.log(e))
    # A quarter of a turn: what was east is north.
    turned = aligned(own, y[:1], -x[:1])
    assert np.allclose(turned.values, 0.3 * y + 0.1 * x - np.log(e))
    both = aligned(own, np.stack([x[0], -x[0]]), np.stack([y[0], y[0]]))
    assert np.allclose(both.values, np.log(np.cosh(0.3 * x)) - 0.1 * y - np.log(e))


def test_holes_of_a_background_are_filled():
    tiny = np.log(np.finfo(np.float32).tiny)
    energy, offset = np.geomspace(0.1, 100.0, 7), np.array([0.0, 1.0, 2.0])
    values = np.repeat(-3.0 * np.log(energy)[:, None], 3, axis=1) - np.array([0.0, 0.5, 1.0])
    holes = values.copy()
    holes[0], holes[2, 2], holes[-2:] = tiny, tiny, tiny
    mended = filled(Table({"energy": energy, "offset": offset}, holes)).values
    assert (mended[0] == tiny).all()
    # Its neighbour at that energy, and the power law of the energies before.
    assert mended[2, 2] == values[2, 1]
    assert np.allclose(mended[-2:], values[-2:])
    assert np.array_equal(mended[[1, 3, 4]], values[[1, 3, 4]])


def test_photons_beyond_the_response_are_left_out_and_counted():
    cut = Cut(Cone(0.0, 0.0, 2.5), 0.5, 20.0)
    columns = {"energy": [0.1, 1.0, 1.0, 1.0], "lon": [0.0, 0.0, 5.0, 2.4], "lat": [0.0] * 4}
    tables = synthetic_tables(max_offset=2.0)
    one = Observation(tables=tables, pointing=(-1.0, 0.0), livetime=1e3, cut=cut, **columns)
    assert one.left_out == {"energy": 1, "region": 1, "field of view": 1}
    assert one.used.tolist() == [False, True, False, False]
    # The acceptance knows of the same edge.
    number = one.fold(energy_nodes([(tables, 0.5, 20.0)])).background()[1]
    inside = Cut(Cone(-1.0, 0.0, 2.0), 0.5, 20.0)
    whole = Observation(tables=tables, pointing=(-1.0, 0.0), livetime=1e3, cut=inside)
    assert 0 < number < whole.fold(energy_nodes([(tables, 0.5, 20.0)])).background()[1]


def test_a_photon_where_nothing_is_seen_is_named():
    tables = synthetic_tables()
    background = Table(tables.background.axes, np.full_like(tables.background.values, -800.0))
    none = replace(tables, background=background)
    one = Observation(
        tables=none, pointing=(0.0, 0.0), livetime=1e3, cut=Cut(Cone(0.0, 0.0, 1.0), 0.5, 20.0),
        energy=[1.0], lon=[0.0], lat=[0.0],
    )  # fmt: skip
    with pytest.raises(InputError, match="photon 0"):
        photon_model([one], {"ccr": Background()}, Prior({"ccr": 1.0}), rate="rates")
