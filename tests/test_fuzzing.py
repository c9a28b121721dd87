"""Whatever comes in as config, prior, data or --set: a command ends soon, and says how.

Hypothesis damages inputs that are sound. Exit codes are 0 or 2, and 2 has a message; a traceback
is a failure, and so is what does not end.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import io
import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.table import Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skycensus import cli
from skycensus.config import to_toml

# As a user has it: warnings are told, and do not end the command.
pytestmark = pytest.mark.filterwarnings("default")

# Seconds in which the check of a small problem ends, on a machine that is busy with others.
LIMIT = 300

CLUSTER: dict[str, Any] = {
    "seed": 1,
    "data": {"kind": "parallaxes", "path": "stars.ecsv"},
    "population": {"distance": "normal_cluster"},
    "prior": {
        "mu_r": {"dist": "TruncatedNormal", "loc": 1.0, "scale": 2.0, "low": 0.0},
        "ln_std_r": {"dist": "Uniform", "low": -8.0, "high": 0.0},
    },
    "sampler": {"kind": "quadrature"},
    "output": {"figures": False},
}
LINE: dict[str, Any] = {
    "data": {"kind": "points", "path": "points.csv"},
    "population": {"line": "line_with_outliers"},
    "prior": {
        "m": {"dist": "Uniform", "low": -20.0, "high": 20.0},
        "b": {"dist": "Normal", "loc": 0.0, "scale": 25.0},
        "w0": {"dist": "Uniform", "low": 0.0, "high": 1.0},
        "ln_s_out": 1.0,
    },
    "truth": {"m": 1.0},
    "sampler": {"kind": "nuts", "num_samples": 100},
}
BINARIES: dict[str, Any] = {
    "data": {
        "kind": "radial_velocities",
        "path": "velocities.ecsv",
        "name": "star",
        "time": "time",
        "velocity": "velocity",
        "error": "error",
        "periods": [2.0, 3.0],
        "jitter": 0.1,
    },
    "population": {"period": "normal_log_period"},
    "prior": {
        "mu": {"dist": "Uniform", "low": 0.0, "high": 2.0},
        "lnsigma": {"dist": "Uniform", "low": -2.0, "high": 1.0},
    },
}
MERGERS: dict[str, Any] = {
    "seed": 4,
    "data": {
        "path": "catalogue",
        "events": "event_*",
        "reference_prior": {"masses": "uniform-source-components"},
        "min_draws": 2,
        "on_low_n_eff": "keep",
    },
    "population": {"mass": "power_law_masses"},
    "model": {"rate": "poisson"},
    "selection": {"kind": "injections", "file": "found.hdf5", "time": 1.0},
    "prior": {"file": "prior.json"},
    "sampler": {"kind": "importance"},
}
PRIOR: dict[str, Any] = {
    "alpha": {"dist": "Uniform", "low": 0.0, "high": 4.0},
    "log_rate": {"dist": "Normal", "loc": 3.0, "scale": 2.0},
    "beta": 0.0,
    "mmin": 8.0,
    "mma.*": {"dist": "Uniform", "low": 40.0, "high": 60.0},
}
CONFIGS = {"cluster": CLUSTER, "line": LINE, "binaries": BINARIES, "mergers": MERGERS}


def write_inputs(folder: Path) -> None:
    """Small sound data for each of the configs."""
    rng = np.random.default_rng(5)
    stars = {"parallax": rng.normal(2.0, 0.05, 5), "parallax_error": np.full(5, 0.05)}
    Table(stars).write(folder / "stars.ecsv")
    x = np.arange(6.0)
    points = {"x": x, "y": x + rng.normal(size=6), "y_err": np.full(6, 0.5)}
    Table(points).write(folder / "points.csv")
    time = np.sort(rng.uniform(0.0, 20.0, 6))
    velocities = {
        "star": ["one"] * 6,
        "time": time,
        "velocity": 9.0 * np.sin(2.3 * time) + rng.normal(size=6),
        "error": np.full(6, 1.0),
    }
    Table(velocities).write(folder / "velocities.ecsv")
    catalogue = folder / "catalogue"
    catalogue.mkdir()
    m1 = rng.uniform(20.0, 45.0, (4, 16))
    m2 = rng.uniform(10.0, m1)
    columns = zip(m1, m2, strict=True)
    for i, both in enumerate(columns):
        if i < 2:
            table, head = np.transpose(both), "mass_1_source mass_2_source"
            np.savetxt(catalogue / f"event_{i}.dat", table, header=head, comments="")
        elif i == 2:
            head = "mass_1_source,mass_2_source"
            np.savetxt(catalogue / "event_2.csv", np.transpose(both), "%.9g", ",", header=head)
        else:
            with h5py.File(catalogue / "event_3.hdf5", "w") as file:
                file["mass_1_source"], file["mass_2_source"] = both
    m1 = rng.uniform(8.0, 70.0, 300)
    with h5py.File(catalogue / "found.hdf5", "w") as file:
        file["mass_1_source"], file["mass_2_source"] = m1, rng.uniform(5.0, m1)
        file["p_draw"] = np.full(300, 1e-3)
        file.attrs["total_generated"] = 3000
    (catalogue / "prior.json").write_text(json.dumps(PRIOR))


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzzing")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def inputs(sound, tmp_path_factory) -> Iterator[Path]:
    """A folder to be damaged; the working directory, so that nothing else is found by chance."""
    folder = tmp_path_factory.mktemp("damaged") / "inputs"
    shutil.copytree(sound, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SKYCENSUS_CACHE", "off")
        patch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
        yield folder


@pytest.fixture
def no_timing(monkeypatch):
    """Without the estimate of time and memory, for which a sound config compiles its likelihood."""
    monkeypatch.setattr(cli, "_costs", lambda inference: "")


# ---- what must hold ------------------------------------------------------------------------------


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Fail where the block has not ended after so long."""

    def late(*_: Any) -> None:
        raise AssertionError(f"not ended after {seconds} s")

    if not hasattr(signal, "SIGALRM"):  # Windows
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(config: Path, *arguments: str) -> tuple[int, str]:
    """Run `skycensus run CONFIG --check`; the exit code and what was said."""
    out, err = io.StringIO(), io.StringIO()
    with time_limit(LIMIT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(["run", str(config), "--check", *arguments])
        except SystemExit as exit:  # argparse has its own way
            code = int(exit.code or 0)
    assert code in (0, 2)
    if code == 0:
        assert "the config is sound." in out.getvalue()
        return code, out.getvalue()
    said = err.getvalue()
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert errors and all(line.removeprefix("error: ").strip() for line in errors)
    assert "Traceback" not in said and out.getvalue() == ""
    # A message is read by a person.
    assert len(said) < 20_000
    return code, said


# ---- what is tried -------------------------------------------------------------------------------


@pytest.fixture(params=["few", pytest.param("many", marks=pytest.mark.slow)])
def tried(request, sized) -> settings:
    """How much is tried; the same in every run."""
    many = request.param == "many" and sized(full=500, small=40)
    return settings(
        max_examples=many or 15,
        deadline=None,  # `time_limit` keeps it
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


EDGES = [
    *(math.nan, math.inf, -math.inf, 0, 0.0, -1, 1, 0.5, 2**63, -(2**63), 10**30, 10**400),
    *(1e308, -1e308, 5e-324, True, False, "", " ", "x", "nan", "\0", "a\nb", "x" * 3000, "é☃"),
    *("..", "/", "~nobody/x", "[", "*", "**", "a.py:f", "file.py:", ":", "none", "injections"),
    *([], [[]], [1], ["x"], [0.0, 1.0], [1e9, 1.0], {}, {"a": 1}, {"dist": "Normal"}),
    *({"dist": "Uniform", "low": 1.0, "high": 0.0}, {"dist": 3}, {"dist": "Dirichlet"}),
    *(datetime.date(2001, 2, 3), datetime.time(4, 5), {"same_as": "x"}, {"same_as": 1}),
]
KEYS = """seed data path kind population mass spin redshift eccentricity python cosmology name H0
model rate max_variance selection file time prior truth sampler num_samples num_chains output
simulate dist low high loc scale columns tolerance drop_invalid mu_r alpha,beta a.* ("""
WORDS = "nan inf -inf 1e999 -1 0 abc , ; # \" ' -- masked 1e-320 [ ] { } = true \\ \0 \t % \x1a"

numbers = st.integers() | st.floats()
scalars = numbers | st.text(max_size=12) | st.booleans()
values = st.sampled_from(EDGES) | scalars | st.lists(scalars, max_size=3)
values |= st.dictionaries(st.text(max_size=6), scalars, max_size=3)
# A copy: what is drawn may be damaged further.
values = values.map(copy.deepcopy)
keys = st.text(max_size=8) | st.sampled_from(KEYS.split())
junk = st.binary(max_size=30) | st.sampled_from([word.encode() for word in WORDS.split(" ")])


def tables_in(table: dict[str, Any]) -> list[dict[str, Any]]:
    """The table and all that are in it."""
    inner = [x for v in table.values() if isinstance(v, dict) for x in tables_in(v)]
    return [table, *inner]


@st.composite
def damaged_table(draw: Any, table: dict[str, Any]) -> dict[str, Any]:
    """The table with some keys dropped, renamed, added or of another value."""
    table = copy.deepcopy(table)
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from(tables_in(table)))
        action = draw(st.sampled_from(["replace", "replace", "drop", "rename", "add"]))
        if action == "add" or not part:
            part[draw(keys)] = draw(values)
            continue
        key = draw(st.sampled_from(list(part)))
        if action == "replace":
            part[key] = draw(values)
        else:
            old = part.pop(key)
            if action == "rename":
                part[draw(keys)] = old
    return table


@st.composite
def damaged_bytes(draw: Any, content: bytes) -> bytes:
    """The content cut short, with parts taken out, put in twice or replaced, or in another code."""
    for _ in range(draw(st.integers(1, 3))):
        start, stop = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        action = draw(st.sampled_from(["cut", "drop", "insert", "word", "line", "encode"]))
        if action == "cut":
            content = content[:start]
        elif action == "drop":
            content = content[:start] + content[stop:]
        elif action == "insert":
            content = content[:start] + draw(junk) + content[start:]
        elif action == "word":
            words = content.split(b" ")
            words[draw(st.integers(0, len(words) - 1))] = draw(junk)
            content = b" ".join(words)
        elif action == "line":
            lines = content.splitlines(keepends=True) or [b""]
            line = lines.pop(draw(st.integers(0, len(lines) - 1)))
            lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from([line * 2, b"\n"])))
            content = b"".join(lines)
        else:
            name = draw(st.sampled_from(["utf-16", "utf-8-sig", "utf-32"]))
            content = content.decode("utf-8", "replace").encode(name)
    return content


MASSES = ["mass_1_source", "mass_2_source"]
COLUMNS = [*MASSES, "p_draw", "redshift", "far", "snr", "name", "weights", "sampling_pdf"]
NODES = [*COLUMNS, "samples", "posterior_samples", "parameter_names", "injections", "events"]
NODES += ["C01:Mixed", "Overall_posterior", "prior"]
PAIRS = np.dtype([(name, float) for name in MASSES])
arrays = st.sampled_from(
    [
        *(np.linspace(10.0, 20.0, 16), np.linspace(5.0, 9.0, 16), np.full(16, 1e-3), np.arange(15)),
        *(np.full(16, np.nan), np.full(16, -1.0), np.full(16, 1e300), np.zeros(16), np.zeros(0)),
        *(np.ones((4, 4)), np.ones((16, 2)), np.float64(3.0), np.ones(16, complex)),
        *(np.ones(16, bool), np.array([b"o1"] * 16), np.array(MASSES, object), np.bytes_(b"x")),
        *(np.ones(16, PAIRS), np.ones((), PAIRS), np.ones((2, 2), PAIRS), np.ones(0, PAIRS)),
        np.zeros(16, np.dtype([("mass_1_source", float, 3), ("mass_2_source", "S4")])),
    ]
)
attributes = st.dictionaries(
    st.sampled_from(["total_generated", "T_obs_yr", "VTmax_Gpc3", "ndraw", "n_accepted"]),
    st.sampled_from([3000, 0, -1.0, math.nan, math.inf, "x", b"x", [1.0, 2.0], "3000"]),
    max_size=2,
)
trees = st.recursive(
    arrays, lambda inner: st.dictionaries(st.sampled_from(NODES), inner, max_size=4), max_leaves=5
)


def write_tree(group: h5py.Group, tree: dict[str, Any]) -> None:
    for name, node in tree.items():
        if isinstance(node, dict):
            write_tree(group.create_group(name), node)
        elif node.dtype == object:
            group.create_dataset(name, data=node, dtype=h5py.string_dtype())
        else:
            group[name] = node


# ---- the tests -----------------------------------------------------------------------------------


def config(inputs: Path, table: dict[str, Any]) -> Path:
    path = inputs / "config.toml"
    path.write_text(to_toml(table), encoding="utf-8")
    return path


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[None]:
    """Whatever becomes of the file, it is as it was afterwards."""
    content = path.read_bytes()
    try:
        yield
    finally:
        if path.is_dir():
            path.rmdir()
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["cluster", "line", "mergers"])
def test_what_is_damaged_is_sound(inputs, no_timing, name):
    assert check(config(inputs, CONFIGS[name]))[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_damaged_is_sound_and_can_be_timed(inputs, name):
    code, said = check(config(inputs, CONFIGS[name]))
    assert code == 0 and "estimate: " in said


def test_config_tables(inputs, no_timing, tried):
    @tried
    @given(table=st.sampled_from(list(CONFIGS.values())).flatmap(damaged_table))
    def attempt(table):
        check(config(inputs, table))

    attempt()


def test_config_texts(inputs, no_timing, tried):
    texts = [to_toml(table).encode() for table in CONFIGS.values()]

    @tried
    @given(content=st.sampled_from(texts).flatmap(damaged_bytes))
    def attempt(content):
        path = inputs / "config.toml"
        path.write_bytes(content)
        check(path)

    attempt()


def test_overrides(inputs, no_timing, tried):
    @tried
    @given(
        key=keys | st.lists(keys, max_size=3).map(".".join) | st.text(max_size=12),
        value=st.text(max_size=12) | values.map(str) | values.map(lambda v: to_toml({"": v})[5:-1]),
    )
    def attempt(key, value):
        check(config(inputs, CLUSTER), f"--set={key}={value}")

    attempt()


def test_priors(inputs, no_timing, tried):
    path = inputs / "catalogue" / "prior.json"
    texts = damaged_table({"": PRIOR}).map(lambda t: json.dumps(t.get(""), default=str).encode())

    @tried
    @given(content=texts | damaged_bytes(json.dumps(PRIOR).encode()))
    def attempt(content):
        with replaced(path):
            path.write_bytes(content)
            check(config(inputs, MERGERS))

    attempt()


# A file that is read, and a config that reads it.
FILES = {
    "stars.ecsv": CLUSTER,
    "points.csv": LINE,
    "velocities.ecsv": BINARIES,
    "catalogue/event_0.dat": MERGERS,
    "catalogue/event_2.csv": MERGERS,
    "catalogue/event_3.hdf5": MERGERS,
    "catalogue/found.hdf5": MERGERS,
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_data(inputs, no_timing, tried, name):
    path = inputs / name

    @tried
    @given(content=damaged_bytes(path.read_bytes()))
    def attempt(content):
        with replaced(path):
            path.write_bytes(content)
            check(config(inputs, FILES[name]))

    attempt()


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".hdf5")])
def test_hdf5_of_another_layout(inputs, no_timing, tried, name):
    path = inputs / name

    @tried
    @given(tree=st.dictionaries(st.sampled_from(NODES), trees, max_size=4), attrs=attributes)
    def attempt(tree, attrs):
        with replaced(path):
            with h5py.File(path, "w") as file:
                write_tree(file, tree)
                file.attrs.update(attrs)
            check(config(inputs, FILES[name]))

    attempt()


def test_hdf5_attributes(inputs, no_timing, tried):
    path = inputs / "catalogue" / "found.hdf5"
    content = path.read_bytes()

    @tried
    @given(attrs=attributes)
    def attempt(attrs):
        with replaced(path):
            path.write_bytes(content)
            with h5py.File(path, "a") as file:
                file.attrs.update(attrs)
            table = copy.deepcopy(MERGERS)
            del table["selection"]["time"]
            check(config(inputs, table))

    attempt()


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (MERGERS, {"population": {"mass": "n_power_laws_m_gaussians", "n_pl": 10**9, "n_g": 0}}),
        (MERGERS, {"selection": {"kind": "semi_analytic", "time": 1.0, "num_draws": 10**18}}),
        (MERGERS, {"selection": {"kind": "semi_analytic", "time": 1.0, "num_draws": 0}}),
        (MERGERS, {"selection": {**MERGERS["selection"], "volume": -1.0}}),
        (MERGERS, {"selection": {"kind": "neural_vt", "time": 1.0, "file": "found.hdf5"}}),
        (MERGERS, {"data": {**MERGERS["data"], "reference_prior": {"masses": []}}}),
        (MERGERS, {"data": {**MERGERS["data"], "reference_prior": {"column": 3}}}),
        (BINARIES, {"data": {**BINARIES["data"], "periods": [1e-9, 3.0]}}),
        (BINARIES, {"data": {**BINARIES["data"], "oversampling": 1e15}}),
        (BINARIES, {"data": {**BINARIES["data"], "jitter": {"same_as": "x"}}}),
        (BINARIES, {"data": {**BINARIES["data"], "stars": []}}),
    ],
)
def test_values_that_make_no_sense_or_have_no_room(inputs, no_timing, base, changes):
    assert check(config(inputs, {**base, **changes}))[0] == 2


LONG = "x" * 5000


@pytest.mark.parametrize("name", ["no_such", "", ".", "config.toml", LONG, "a\0b", "é/☃"])
@pytest.mark.parametrize(
    ("base", "section", "key"),
    [
        (CLUSTER, "data", "path"),
        (MERGERS, "data", "path"),
        (MERGERS, "data", "events"),
        (MERGERS, "selection", "file"),
        (MERGERS, "prior", "file"),
        (MERGERS, "truth", "file"),
        (CLUSTER, "population", "python"),
    ],
)
def test_files_that_are_not_there_or_not_files(inputs, no_timing, base, section, key, name):
    table = copy.deepcopy(base)
    table.setdefault(section, {})[key] = name
    code, said = check(config(inputs, table))
    # An empty name of a truth is none.
    assert code == (0 if (section, name) == ("truth", "") else 2), said


@pytest.mark.parametrize("name", [*FILES, "catalogue/prior.json", "config.toml"])
def test_a_folder_in_place_of_a_file(inputs, no_timing, name):
    path = config(inputs, FILES.get(name, MERGERS))
    with replaced(inputs / name):
        (inputs / name).unlink()
        (inputs / name).mkdir()
        assert check(path)[0] == 2


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "a = " + "[" * 100_000, "{" * 5000, "a." * 5000 + "a = 1"], ids=len
)
def test_deeply_nested(inputs, no_timing, content):
    path = inputs / "config.toml"
    path.write_text(content)
    assert check(path)[0] == 2
    prior = inputs / "catalogue" / "prior.json"
    with replaced(prior):
        prior.write_text(content)
        assert check(config(inputs, MERGERS))[0] == 2
