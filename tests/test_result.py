import json
import os
import sys

import numpy as np
import pytest
from scipy import stats

from skycensus.diagnostics import import_arviz
from skycensus.errors import InputError
from skycensus.result import Problem, Result, Status, plain, summarise


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def full(rng):
    """A result with everything in it, and values that are hard to write."""
    shape = (2, 30)
    weight = rng.normal(size=shape)
    weight[0, 0] = -np.inf
    vector = rng.normal(size=(*shape, 3))
    vector[1, 2, 0] = np.nan
    return Result(
        {"alpha": rng.normal(size=shape), "amplitude": vector},
        Status(
            False, (Problem("ess", "few; more."),), (Problem("prior_edge", "near 5 % — μ; widen."),)
        ),
        log_weight=weight,
        log_evidence=-209.19912345678912,
        log_evidence_error=float("nan"),
        sample_stats={"diverging": rng.random(shape) > 0.9, "num_steps": np.full(shape, 7)},
        log_marginals=rng.normal(size=(2, 10, 4)),
        log_marginal_variances=rng.random((2, 10, 4)),
        n_eff=rng.random((2, 10, 4)),
        marginal_draws=np.arange(0, 30, 3),
        object_names=["GW150914", "GW151012", "GW170817-β", "d"],
        prior_draws={"alpha": rng.normal(size=50), "amplitude": rng.normal(size=(50, 3))},
        derived={"rate": rng.random(shape)},
        truth={"alpha": 0.1 + 0.2, "amplitude": [1.0, 2.0, 3.0]},
        fixed={"mmin": 1 / 3},
        measures={"k_hat": -np.inf},
        provenance={"seed": 3, "versions": {"jax": "0.10"}, "inputs": {"x" * 100: "0" * 64}},
        seconds={"sampling": 1.25},
        peak_memory_bytes=123456789,
    )


def converged(draws, **more):
    return Result(draws, Status(True), **more)


# ---- numbers -------------------------------------------------------------------------------------


def test_summary_of_a_gaussian():
    """The draws are the quantiles of the distribution themselves."""
    n = 4000
    x = np.random.default_rng(0).permutation(stats.norm.ppf((np.arange(n) + 0.5) / n, 3, 2))
    row = converged({"a": x.reshape(4, -1)}).summary()["a"]
    assert row["mean"] == pytest.approx(3, abs=1e-12)
    assert row["sd"] == pytest.approx(2, rel=2e-3)
    for name, value in row["quantiles"].items():
        assert value == pytest.approx(stats.norm.ppf(int(name) / 100, 3, 2), abs=4e-3)
    assert row["r_hat"] == pytest.approx(1, abs=0.005)
    assert row["mcse_mean"] == pytest.approx(2 / np.sqrt(n), rel=0.1)
    assert row["ess_bulk"] == pytest.approx(n, rel=0.1)


def test_weighted_summary_is_that_of_the_target(rng):
    n = 50_000
    x = rng.standard_t(5, size=(1, n)) * 2
    log_weight = stats.norm.logpdf(x, 0.5) - stats.t.logpdf(x, 5, scale=2) + 77.0
    row = converged({"a": x}, log_weight=log_weight).summary()["a"]
    assert row["mean"] == pytest.approx(0.5, abs=4 * row["mcse_mean"])
    assert row["sd"] == pytest.approx(1, abs=0.02)
    for name, value in row["quantiles"].items():
        assert value == pytest.approx(stats.norm.ppf(int(name) / 100, 0.5), abs=0.03)
    assert row["r_hat"] is None
    # A proposal with heavier tails knows them better than draws of the target would.
    assert row["ess_tail"] > n


def test_r_hat_of_weighted_chains_is_that_of_the_chains(rng):
    x = rng.normal(size=(4, 200))
    assert summarise(x, 0.1 * x)["r_hat"] == summarise(x)["r_hat"]


def test_summary_names_array_elements(rng):
    result = converged({"a": rng.normal(size=(2, 20, 2))}, derived={"b": rng.normal(size=(2, 20))})
    assert list(result.summary()) == ["a[0]", "a[1]", "b"]
    told = result.summary_json()
    assert list(told["parameters"]) == ["a[0]", "a[1]"] and list(told["derived"]) == ["b"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_cannot_be_known_is_none(value):
    row = summarise(np.full((2, 50), value))
    assert {v for k, v in row.items() if k != "quantiles"} == {None}
    assert set(row["quantiles"].values()) == {None}


def test_summary_of_a_constant_and_of_one_draw():
    row = summarise(np.full((2, 50), 2.0))
    assert row["mean"] == 2 and row["sd"] == 0 and row["r_hat"] is None
    assert summarise(np.ones((1, 1)))["quantiles"]["50"] == 1


def test_effective_sample_size(rng):
    x = rng.normal(size=(2, 500))
    assert converged({"a": x}).effective_sample_size() == pytest.approx(1000, rel=0.2)
    weight = np.log(np.where(x > 0, 1.0, 1e-30))
    chains = converged({"a": x}, log_weight=weight).effective_sample_size()
    assert 0.8 * np.sum(x > 0) < chains < 1.001 * np.sum(x > 0)
    # A single weighted chain is of independent draws.
    one = converged({"a": x[:1]}, log_weight=weight[:1])
    assert one.effective_sample_size() == pytest.approx(np.sum(x[:1] > 0))
    # Correlated draws are worth less than their weights say.
    slow = {"a": np.repeat(x[:, :50], 10, axis=1)}
    assert converged(slow, log_weight=np.zeros((2, 500))).effective_sample_size() < 200


def test_equal_weight_draws(rng):
    x = np.arange(4.0).reshape(2, 2)
    weight = np.log([[0.1, 0.2], [0.3, 0.4]])
    result = converged({"a": x}, log_weight=weight, derived={"b": np.stack([x, x], -1)})
    draws = result.equal_weight_draws(1, 1000)
    assert np.bincount(draws["a"].astype(int)) == pytest.approx([100, 200, 300, 400], abs=1)
    assert draws["b"].shape == (1000, 2) and (draws["b"][:, 0] == draws["a"]).all()
    assert (result.equal_weight_draws(1, 7)["a"] == result.equal_weight_draws(1, 7)["a"]).all()
    # Without weights and with n of all, every draw comes once.
    assert (converged({"a": x}).equal_weight_draws(rng, 4)["a"] == x.ravel()).all()


def test_weights_of_zero_are_never_drawn():
    result = converged({"a": np.arange(3.0)[None]}, log_weight=np.array([[-np.inf, 0, -np.inf]]))
    assert set(result.equal_weight_draws(0, 50)["a"]) == {1.0}


# ---- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draws": {}}, "at least one parameter"),
        ({"draws": {"a": np.ones(3)}}, r"\(chain, draw\)"),
        ({"derived": {"a": np.ones((2, 3))}}, "derived, or latents; rename"),
        ({"derived": {"b": np.ones((3, 2))}}, r"derived\['b'\] has shape \(3, 2\)"),
        ({"sample_stats": {"b": np.ones(6)}}, r"sample_stats\['b'\]"),
        ({"sample_stats": {"n_eff": np.ones((2, 3))}}, "give them as fields"),
        ({"log_weight": np.ones(6)}, "log_weight has shape"),
        ({"log_weight": np.full((2, 3), np.nan)}, "no NaN"),
        ({"log_marginals": np.ones((2, 3, 4))}, "object_names"),
        ({"prior_draws": {"a": np.ones(3), "b": np.ones(4)}}, "prior_draws"),
    ],
)
def test_shapes_that_do_not_belong_together(arguments, message):
    arguments = {"draws": {"a": np.ones((2, 3))}, "status": Status(True), **arguments}
    with pytest.raises(ValueError, match=message):
        Result(**arguments)


def test_arrays_are_copies(rng):
    x = rng.normal(size=(1, 5))
    result = converged({"a": x})
    x[:] = 0
    assert (result.draws["a"] != 0).all()


# ---- JSON ----------------------------------------------------------------------------------------


def test_summary_json_is_strict(full):
    told = json.loads(json.dumps(full.summary_json(), allow_nan=False))
    assert told["parameters"]["amplitude[0]"]["mean"] is None
    assert told["log_evidence"] == {"value": -209.19912345678912, "error": None}
    assert told["status"]["problems"] == [{"kind": "ess", "message": "few; more."}]
    assert told["status"]["converged"] is False and len(told["status"]["notes"]) == 1
    assert told["seed"] == 3 and told["versions"] == {"jax": "0.10"}
    assert told["truth"]["alpha"] == 0.1 + 0.2 and told["measures"] == {"k_hat": None}
    assert told["peak_memory_bytes"] == 123456789 and told["seconds"] == {"sampling": 1.25}


def test_plain_types(tmp_path):
    value = {1: (np.float32(0.5), np.int64(3), np.bool_(True)), "p": tmp_path, "s": {"b", "a"}}
    assert plain(value) == {"1": [0.5, 3, True], "p": str(tmp_path), "s": ["a", "b"]}
    assert plain([np.nan, -np.inf]) == [None, None]
    assert plain([-np.inf], strict=False) == [-np.inf]


# ---- files ---------------------------------------------------------------------------------------


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b or (a != a and b != b)


def test_round_trip_to_the_bit(full, tmp_path):
    path = tmp_path / "result.nc"
    full.save(path)
    back = Result.load(path)
    assert vars(full).keys() == vars(back).keys()
    wrong = [name for name, value in vars(full).items() if not same(value, getattr(back, name))]
    assert not wrong
    assert [file.name for file in tmp_path.iterdir()] == ["result.nc"]


def test_round_trip_of_the_least(tmp_path):
    result = converged({"a": np.ones((1, 1))})
    result.save(tmp_path / "r.nc")
    back = Result.load(tmp_path / "r.nc")
    assert all(same(value, getattr(back, name)) for name, value in vars(result).items())


def test_the_record_may_be_long(tmp_path):
    """More than the 64 kB that an HDF5 attribute holds."""
    inputs = {f"folder/event_{k}.hdf5": "0" * 64 for k in range(2000)}
    converged({"a": np.ones((1, 9))}, provenance={"inputs": inputs}).save(tmp_path / "r.nc")
    assert Result.load(tmp_path / "r.nc").provenance["inputs"] == inputs


def test_arviz_reads_the_file(full, tmp_path):
    full.save(tmp_path / "result.nc")
    for data in (full.to_arviz(), import_arviz().from_netcdf(tmp_path / "result.nc")):
        np.testing.assert_array_equal(data["posterior"]["alpha"].values, full.draws["alpha"])
        assert data["posterior"]["rate"].dims == ("chain", "draw")
        assert data["sample_stats"]["diverging"].dtype == bool
        marginal = data["log_likelihood"]["log_marginal"]
        assert list(marginal["object"].values) == list(full.object_names)
        assert list(marginal["draw"].values) == list(range(0, 30, 3))
        assert data["prior"]["amplitude"].shape == (1, 50, 3)
        assert data["posterior"].attrs["inference_library"] == "skycensus"
        assert json.loads(data["constant_data"]["record"].item())["fixed"] == {"mmin": 1 / 3}


def test_arviz_summarises_it(rng):
    result = converged({"a": rng.normal(size=(4, 200)), "b": rng.normal(size=(4, 200, 2))})
    table = import_arviz().summary(result.to_arviz())
    assert list(table.index) == ["a", "b[0]", "b[1]"]
    ess = [row["ess_bulk"] for row in result.summary().values()]
    assert table["ess_bulk"].astype(float).to_list() == pytest.approx(ess, abs=1)


def test_saving_again_replaces(tmp_path):
    path = tmp_path / "result.nc"
    for value in (1.0, 2.0):
        converged({"a": np.full((1, 3), value)}).save(path)
    assert (Result.load(path).draws["a"] == 2.0).all()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*missing.*choose a folder"):
        converged({"a": np.ones((1, 3))}).save(tmp_path / "missing" / "result.nc")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_is_read_only(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write"):
        converged({"a": np.ones((1, 3))}).save(tmp_path / "result.nc")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.nc"
    converged({"a": np.ones((1, 3))}).save(path)

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(InputError, match=r"No space left on device; .* free some"):
        converged({"a": np.zeros((1, 3))}).save(path)
    monkeypatch.undo()
    assert (Result.load(path).draws["a"] == 1).all()
    assert [file.name for file in tmp_path.iterdir()] == ["result.nc"]


def test_files_that_are_no_results(tmp_path):
    with pytest.raises(InputError, match="no result at"):
        Result.load(tmp_path / "none.nc")
    (tmp_path / "text.nc").write_text("hello")
    with pytest.raises(InputError, match="not a result that this package wrote"):
        Result.load(tmp_path / "text.nc")
    import xarray as xr

    xr.DataTree.from_dict({"posterior": xr.Dataset({"a": 1.0})}).to_netcdf(
        tmp_path / "other.nc", engine="h5netcdf"
    )
    with pytest.raises(InputError, match="not a result that this package wrote"):
        Result.load(tmp_path / "other.nc")
