"""Draws from files and from what others keep in memory."""

from importlib.metadata import version

import jax
import numpy as np
import pytest

from skycensus import InputError, Result, Status, fit_density
from skycensus.diagnostics import import_arviz
from skycensus.estimators.chains import read_chains, read_draws

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 3))
WEIGHT = RNG.integers(1, 5, 200).astype(float)


def check(draws, names="ab", weight=WEIGHT, x=X):
    assert list(draws.columns) == list(names)
    for i, name in enumerate(names):
        np.testing.assert_allclose(draws.columns[name], x[:, i])
    if weight is None:
        assert draws.log_weight is None
    else:
        np.testing.assert_allclose(draws.log_weight, np.log(weight))


@pytest.fixture
def getdist(tmp_path):
    """Two chains with names, a derived parameter and ranges."""
    rows = np.column_stack([WEIGHT, np.zeros(200), X])
    np.savetxt(tmp_path / "run_1.txt", rows[:80])
    np.savetxt(tmp_path / "run_2.txt", rows[80:])
    (tmp_path / "run.paramnames").write_text("a  \\alpha\nb  \\beta\nc*  c\n")
    (tmp_path / "run.ranges").write_text("a -10 10\nb N 20\nc N N\nfixed 1 1\n")
    return tmp_path / "run"


def test_getdist_chains(getdist):
    draws = read_chains(getdist)
    check(draws)
    assert draws.support == {"a": (-10.0, 10.0), "b": (-np.inf, 20.0)}
    assert [path.name for path in draws.paths] == ["run_1.txt", "run_2.txt"]
    check(draws.select(["a", "b", "c"]), "abc")
    check(read_chains(f"{getdist}_2.txt"), weight=WEIGHT[80:], x=X[80:])


def test_declared_ranges_become_the_support(getdist):
    density = fit_density(jax.random.key(0), getdist, kind="gaussian", support={"b": (-9.0, 9.0)})
    assert density.bounds == {"a": (-10.0, 10.0), "b": (-9.0, 9.0)}


def test_cobaya_chain(tmp_path):
    path = tmp_path / "run.1.txt"
    rows = np.column_stack([WEIGHT, np.zeros(200), X[:, :2], X[:, 2]])
    np.savetxt(path, rows, header="weight minuslogpost a b chi2__x")
    check(read_chains(path))


def test_nested_sampling_of_polychord_and_multinest(tmp_path):
    """Live points of a known number: each death shrinks the volume by exp(-1/n)."""
    log_l = np.sort(RNG.normal(size=200))
    birth = np.concatenate([np.full(50, -1e30), log_l[:150]])
    rows = np.column_stack([X, log_l, birth])
    np.savetxt(tmp_path / "pc_dead-birth.txt", rows[:160])
    # The first of the live points is among the dead ones as well.
    np.savetxt(tmp_path / "pc_phys_live-birth.txt", rows[159:])
    (tmp_path / "pc.paramnames").write_text("a\nb\nc*\n")
    draws = read_chains(tmp_path / "pc")
    order = np.argsort(draws.hidden["logL"])
    check(draws, weight=np.exp(draws.log_weight), x=np.unique(rows, axis=0))
    steps = np.diff((draws.log_weight - draws.hidden["logL"])[order])
    np.testing.assert_allclose(steps[:149], -1 / 50)
    many = np.column_stack([rows, np.zeros((200, 2))])
    np.savetxt(tmp_path / "mn-dead-birth.txt", many[:160])
    np.savetxt(tmp_path / "mn-phys_live-birth.txt", many[160:, :-1])
    other = read_chains(tmp_path / "mn-dead-birth.txt")
    np.testing.assert_allclose(np.sort(other.log_weight), np.sort(draws.log_weight))
    assert list(other.columns) == ["p1", "p2", "p3"]


ANESTHETIC = {
    "nested": ",,a,b,logL,nlive\nlabels,,$a$,$b$,$L$,$n$\n,weights,,,,\n",
    "weighted": ",weights,a,b\n",
    "labels": ",a,b\nlabels,$a$,$b$\n",
    "plain": ",a,b\n",
}


@pytest.mark.parametrize("form", ANESTHETIC)
def test_tables_of_anesthetic(tmp_path, form):
    index = np.arange(200)
    columns = {
        "nested": [index, WEIGHT, X[:, :2], X[:, 2], index],
        "weighted": [index, WEIGHT, X[:, :2]],
    }.get(form, [index, X[:, :2]])
    path = tmp_path / "chain.csv"
    with path.open("w") as stream:
        stream.write(ANESTHETIC[form])
        np.savetxt(stream, np.column_stack(columns), delimiter=",")
    check(read_chains(path), weight=WEIGHT if form in ("nested", "weighted") else None)


@pytest.mark.parametrize("delimiter, start", [(",", ""), (" ", "# "), ("\t", "")])
def test_tables(tmp_path, delimiter, start):
    path = tmp_path / "table.txt"
    header = start + delimiter.join(["a", "b", "w"])
    rows = np.column_stack([X[:, :2], WEIGHT])
    np.savetxt(path, rows, delimiter=delimiter, header=header, comments="")
    check(read_chains(path, weights="w"))
    np.testing.assert_array_equal(read_chains(path, log_weights="w").log_weight, WEIGHT)
    assert read_chains(path).log_weight is None


def test_arrays(tmp_path):
    np.savez(tmp_path / "x.npz", a=X[:, 0], b=X[:, 1], log_weight=np.log(WEIGHT))
    check(read_chains(tmp_path / "x.npz"))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="absent: pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="absent: pyarrow")
    path = tmp_path / "x.parquet"
    table = {"a": X[:, 0], "b": X[:, 1], "weights": WEIGHT}
    parquet.write_table(pyarrow.table(table), path)
    check(read_chains(path))
    parquet.write_table(pyarrow.table(table | {"note": ["x"] * len(X)}), path)
    with pytest.raises(InputError, match=r"x.parquet is not a Parquet table of numbers"):
        read_chains(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"x.parquet is not a Parquet table of numbers"):
        read_chains(path)


def test_results_and_arviz(tmp_path):
    by_chain = {"a": X[:, 0].reshape(2, 100), "v": X[:, 1:].reshape(2, 100, 2)}
    result = Result(by_chain, Status(True), log_weight=np.log(WEIGHT).reshape(2, 100))
    names = ("a", "v[0]", "v[1]")
    result.save(tmp_path / "result.nc")
    for source in (result, result.to_arviz(), tmp_path / "result.nc"):
        check(read_draws(source), names)
    groups = {"posterior": by_chain}
    is_old = version("arviz").startswith("0.")
    from_dict = import_arviz().from_dict
    foreign = from_dict(**groups) if is_old else from_dict(groups)
    foreign.to_netcdf(tmp_path / "arviz.nc")
    check(read_chains(tmp_path / "arviz.nc"), names, None)


def test_tables_in_memory():
    pandas = pytest.importorskip("pandas")
    check(read_draws(pandas.DataFrame({"a": X[:, 0], "b": X[:, 1], "weight": WEIGHT})))

    class Weighted(pandas.DataFrame):
        """As anesthetic has it: columns of names and labels, and weights beside them."""

        def get_weights(self):
            return WEIGHT

    labelled = pandas.MultiIndex.from_tuples([("a", "$a$"), ("b", "$b$"), ("logL", "$L$")])
    check(read_draws(Weighted(X, columns=labelled)))


def test_log_weights_of_ones_own_come_first(getdist):
    draws = read_draws(getdist, np.zeros(200))
    np.testing.assert_array_equal(draws.log_weight, np.zeros(200))


BAD = {
    "a,b\n1,2\n3,x\n": "could not convert string 'x'",
    "a,b\n1,2\n3\n": "number of columns changed",
    "a,b\n": "holds no draws",
    "1,2\n3,4\n": "no header",
    "a,b\n1,2,3\n4,5,6\n": "names 2 columns, but its rows have 3",
    "a,a\n1,2\n3,4\n": "more than once",
    "a,weight\n1,-2\n3,4\n": "column 'weight' has the weight -2.0 in draw 0",
    "a,weight\n1,0\n3,0\n": "column 'weight' has no weight above zero",
    "a,weight,log_weight\n1,0,1\n": "would both be weights",
}


@pytest.mark.parametrize("text", BAD)
@pytest.mark.filterwarnings("ignore:loadtxt:UserWarning")
def test_bad_tables(tmp_path, text):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=BAD[text]) as error:
        read_chains(path)
    assert str(path) in str(error.value)


def test_missing_columns_and_files(tmp_path, getdist):
    with pytest.raises(InputError, match=r"run has no column 'aa' \(did you mean 'a'"):
        read_chains(getdist).select(["aa"])
    with pytest.raises(InputError, match="no column 'w'; it has a, b, c"):
        read_chains(getdist, weights="w")
    with pytest.raises(InputError, match=r"no file .*nothing.*root of chains"):
        read_chains(tmp_path / "nothing")
    (tmp_path / "run.paramnames").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"5 columns, but run\.paramnames names 2"):
        read_chains(getdist)
    (tmp_path / "no.npz").write_bytes(b"PK\x03\x04 and nothing")
    (tmp_path / "no.nc").write_bytes(b"nothing")
    (tmp_path / "no.csv").write_bytes(b"\xff\xfe\x00\x01")
    for name in ("no.npz", "no.nc", "no.csv"):
        with pytest.raises(InputError, match=name):
            read_chains(tmp_path / name)
    with pytest.raises(InputError, match="draws of type int are not understood"):
        read_draws(3)
