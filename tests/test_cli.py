"""The command line: one small run from end to end, and what bad input gets."""

import errno
import json
import os
import shutil
import signal
import tomllib
from typing import Any

import numpy as np
import pytest

from skycensus import cli, output
from skycensus.config import to_toml
from skycensus.gw.tables import file_hash
from skycensus.result import Result

TRUTH = {"alpha": 2.0, "beta": 0.0, "mmin": 10.0, "mmax": 50.0, "log_rate": 5.0}

CONFIG: dict[str, Any] = {
    "seed": 4,
    "data": {
        "path": "catalogue",
        "events": "posteriors/*.dat",
        "reference_prior": {"masses": "uniform-source-components"},
        "on_low_n_eff": "keep",
    },
    "population": {"mass": "power_law_masses"},
    "selection": {"kind": "injections", "file": "injections_found.hdf5"},
    "prior": {
        "alpha": {"dist": "Uniform", "low": 0.0, "high": 4.0},
        "log_rate": {"dist": "Uniform", "low": 0.0, "high": 10.0},
        "beta": 0.0,
        "mmin": 8.0,
        "mmax": 55.0,
    },
    "truth": TRUTH,
    "sampler": {"kind": "importance", "target_ess": 100.0, "num_adapt": 200},
    "output": {"figures": False, "num_prior_draws": 50, "num_marginal_draws": 20},
    "simulate": {"num_events": 8, "num_draws": 60, "num_injections": 16384},
}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with a config and a small catalogue that the command made."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "config.toml").write_text(to_toml(CONFIG))
    before = os.environ.get("SKYCENSUS_CACHE")
    os.environ["SKYCENSUS_CACHE"] = "off"
    config, out = str(folder / "config.toml"), str(folder / "catalogue")
    assert cli.main(["simulate", config, "--out", out]) == 0
    yield folder
    os.environ.pop("SKYCENSUS_CACHE")
    if before is not None:
        os.environ["SKYCENSUS_CACHE"] = before


@pytest.fixture(scope="session")
def finished(made):
    """The exit code and the folder of one run."""
    out = made / "out"
    return cli.main(["run", str(made / "config.toml"), "--out", str(out)]), out


@pytest.fixture
def copy(made, tmp_path):
    """A folder of one's own with the same config and catalogue."""
    shutil.copy(made / "config.toml", tmp_path)
    shutil.copytree(made / "catalogue", tmp_path / "catalogue")
    return tmp_path


def run(folder, *arguments):
    return cli.main(["run", str(folder / "config.toml"), "--out", str(folder / "out"), *arguments])


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if p.name not in ("config.toml", "catalogue"))


@pytest.fixture
def refused(copy, capsys):
    """Runs a command that must be refused; returns what it said."""

    def refuse(*arguments, lines=None, answer=""):
        assert run(copy, *arguments) == 2
        said = capsys.readouterr()
        assert said.out.startswith(answer) and bool(said.out) == bool(answer)
        assert "Traceback" not in said.err
        told = said.err.splitlines()
        errors = [line for line in told if line.startswith("error: ")]
        assert errors == told[-len(errors) :], said.err
        if lines is not None:
            assert len(errors) == lines, said.err
        assert leftovers(copy) == [], "something was written"
        return said.err

    return refuse


# ---- what a run leaves ---------------------------------------------------------------------------


def test_the_catalogue(made):
    folder = made / "catalogue"
    assert len(list((folder / "posteriors").glob("*.dat"))) == 8
    assert json.loads((folder / "truth.json").read_text())["truth"] == TRUTH
    assert json.loads((folder / "prior.json").read_text()) == CONFIG["prior"]


def test_a_run(finished):
    code, out = finished
    told = json.loads((out / "summary.json").read_text())
    assert code == (0 if told["status"]["converged"] else 3)
    assert set(told["parameters"]) == {"alpha", "log_rate"}
    row = told["parameters"]["alpha"]
    assert set(row["quantiles"]) == {"5", "16", "50", "84", "95"}
    assert {"mean", "sd", "r_hat", "ess_bulk", "ess_tail"} <= set(row)
    assert told["truth"] == TRUTH
    assert told["fixed"] == {"beta": 0.0, "mmin": 8.0, "mmax": 55.0}
    assert np.isfinite(told["log_evidence"]["value"])
    assert {"reading", "compiling", "sampling", "total"} <= set(told["seconds"])
    assert told["peak_memory_bytes"] > 1e7
    assert {"skycensus", "jax", "numpyro", "python", "platform"} <= set(told["versions"])
    assert told["seed"] == 4
    assert len(told["inputs"]) == 8 + 2  # events, injections and the truth that lies beside them
    for path, digest in told["inputs"].items():
        assert file_hash(path) == digest
    assert told["smallest_n_eff"]["object"].startswith("event_")
    assert told["num_objects"] == 8
    # The rate is known to about 1/sqrt(8).
    assert row["quantiles"]["5"] < row["quantiles"]["95"]
    assert told["derived"]["total_rate"]["mean"] > 0


def test_its_result(finished):
    result = Result.load(finished[1] / "result.nc")
    assert result.log_marginals is not None and result.n_eff is not None
    assert result.log_marginals.shape == (1, 20, 8)
    assert result.n_eff.shape == (1, 20, 8)
    assert result.object_names[0] == "event_00"
    # Fixed hyperparameters have draws from the prior too.
    assert set(result.prior_draws) == set(CONFIG["prior"])
    assert result.prior_draws["mmin"].shape == (50,)
    assert np.allclose(result.derived["total_rate"], np.exp(result.draws["log_rate"]))
    assert result.measures["log_likelihood_variance"] > 0
    assert result.measures["n_eff_injections_min"] > 0


def test_its_config_runs_again(finished, tmp_path, capsys):
    written = finished[1] / "config.toml"
    assert tomllib.loads(written.read_text())["sampler"] == CONFIG["sampler"]
    assert cli.main(["run", str(written), "--check"]) == 0
    said = capsys.readouterr().out
    assert "8 objects over mass_1_source, mass_2_source" in said
    assert "alpha ~ Uniform" in said


def test_the_same_seed_gives_the_same_draws(made, finished, capsys):
    # Only the draws: `measures` and times are another matter.
    out = made / "again"
    run_again = ["run", str(made / "config.toml"), "--out", str(out)]
    assert cli.main(run_again) == finished[0]
    one, two = (Result.load(folder / "result.nc") for folder in (finished[1], out))
    assert np.array_equal(one.draws["alpha"], two.draws["alpha"])
    assert one.log_evidence == two.log_evidence
    said = capsys.readouterr()
    assert "parameter" in said.out and "log evidence" in said.out and str(out) in said.out
    # Not a terminal: plain lines.
    assert "adapting" in said.err and "\r" not in said.err and "\x1b" not in said.err


@pytest.fixture
def no_sampling(monkeypatch, finished):
    """Sampling that takes no time: it returns the finished run's result."""
    stored = Result.load(finished[1] / "result.nc")
    monkeypatch.setattr(output, "analyse", lambda *args, **kwargs: stored)
    return stored


def test_earlier_results_are_kept(copy, no_sampling, capsys):
    out = copy / "out"
    first = run(copy)
    (out / "mine.txt").write_text("")
    assert run(copy) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "mine.txt").exists()
    assert run(copy, "--overwrite") == first
    assert not (out / "mine.txt").exists()
    assert leftovers(copy) == ["out"]


def test_a_folder_of_something_else_is_never_replaced(copy, no_sampling, capsys):
    (copy / "out").mkdir()
    assert run(copy) in (0, 3)  # an empty folder is no results
    shutil.rmtree(copy / "out")
    (copy / "out").mkdir()
    (copy / "out" / "thesis.tex").write_text("")
    assert run(copy, "--overwrite") == 2
    assert "something other" in capsys.readouterr().err
    assert leftovers(copy / "out") == ["thesis.tex"]


def test_exit_code_of_a_run_that_has_not_converged(copy, monkeypatch, finished, capsys):
    from dataclasses import replace

    from skycensus.status import Problem, Status

    stored = Result.load(finished[1] / "result.nc")
    poor = replace(stored, status=Status(False, (Problem.of("r_hat", "r_hat is 1.4"),)))
    monkeypatch.setattr(output, "analyse", lambda *args, **kwargs: poor)
    assert run(copy) == 3
    assert "raise num_warmup" in capsys.readouterr().out
    assert (copy / "out" / "result.nc").is_file()


# ---- interrupted, or no space --------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(copy, monkeypatch, capsys, number):
    def stop(*_, **__):
        os.kill(os.getpid(), number)

    monkeypatch.setattr(output, "analyse", stop)
    assert run(copy) == 130
    assert "interrupted" in capsys.readouterr().err
    assert leftovers(copy) == []


def test_interrupted_while_drawing_keeps_the_draws(copy, monkeypatch, no_sampling):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(output, "draw_figures", stop)
    assert run(copy, "--set", "output.figures=true") == 130
    assert (copy / "out" / "summary.json").is_file()


def test_full_disk(refused, monkeypatch, no_sampling):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(output, "write_result", full)
    # What was found is told before it is written.
    assert "No space left on device" in refused(lines=1, answer="parameter ")


def test_a_place_that_cannot_be_written(copy, capsys, monkeypatch):
    monkeypatch.setattr(output, "analyse", None)  # never reached
    for place in ("/dev/null/out", str(copy / "config.toml")):
        assert cli.main(["run", str(copy / "config.toml"), "--out", place]) == 2
        assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(copy, capsys):
    locked = copy / "locked"
    locked.mkdir(mode=0o500)
    assert cli.main(["run", str(copy / "config.toml"), "--out", str(locked / "out")]) == 2
    assert "cannot write" in capsys.readouterr().err


# ---- bad configs ---------------------------------------------------------------------------------


def test_no_config(capsys, tmp_path):
    assert cli.main(["run", str(tmp_path / "none.toml"), "--out", str(tmp_path / "out")]) == 2
    assert "none.toml' cannot be read" in capsys.readouterr().err


def test_no_out(copy, capsys):
    assert cli.main(["run", str(copy / "config.toml")]) == 2
    assert "--out" in capsys.readouterr().err


def test_every_problem_is_told_at_once(refused):
    said = refused(
        *("--set", "prior.alpha={dist='Uniform', low=5, high=1}"),
        *("--set", "prior.beta={dist='Unifrom', low=0, high=1}"),
        *("--set", "sampler.num_adpat=3"),
        *("--set", "data.events=no_such/*.dat"),
        *("--set", "selection.file=none.hdf5"),
        *("--set", "data.reference_prior={masses='uniform-sorce-components'}"),
        *("--set", "truth.gamma=1"),
        *("--set", "model.rate=shapes"),
    )
    for part in (
        "prior 'alpha': low=5 is not below high=1",
        "dist 'Unifrom' is not a NumPyro distribution (did you mean 'Uniform'?)",
        "'num_adpat' (did you mean 'num_adapt'?)",
        "no_such/*.dat",
        "none.hdf5",
        "did you mean 'uniform-source-components'?",
        "rate = 'shapes'",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("prior.gamma=1", ["'gamma'", "unknown parameter"]),
        ("prior.alpha='alhpa'", ["'alhpa'", "did you mean"]),
        ("prior={alpha='beta', beta='alpha', log_rate=1, mmin=8, mmax=55}", ["circle"]),
        ("prior={alpha={dist='Uniform', low=0, high=4}}", ["prior for 'beta' is missing"]),
        ("prior={alpha=1, beta=0, log_rate=1, mmin=8, mmax=55}", ["every hyperparameter is fixed"]),
        ("prior.file=nowhere.json", ["nowhere.json", "cannot be read"]),
        ("prior.alpha={dist='Normal', loc=0, scale=-1}", ["'alpha'", "Normal"]),
        ("sampler.kind=nust", ["did you mean 'nuts'?"]),
        ("sampler={kind='nuts', num_live=400}", ["'num_live'", "num_samples"]),
        ("sampler={kind='nuts', num_samples='all'}", ["num_samples = 'all'", "whole number"]),
        ("sampler={num_samples=10}", ["num_samples", "kind"]),
        ("population.mass=power_law_mass", ["did you mean 'power_law_masses'?"]),
        ("population.n_pl=2", ["'n_pl'"]),
        ("population={mass='n_power_laws_m_gaussians'}", ["n_pl", "n_g"]),
        ("population={python='none.py:f'}", ["none.py"]),
        ("population.redshift=power_law", ["distance"]),
        ("selection={kind='none'}", ["Poisson", "rate = 'shape'"]),
        ("selection={kind='semi_analytic', time='O9'}", ["O9", "O1"]),
        ("selection={kind='semi_analytic', time=1, noise='aLIGO'}", ["'aLIGO'", "built-in"]),
        ("data.exclude=['event_99']", ["event_99"]),
        ("data.path=nowhere", ["no folder", "nowhere"]),
        ("cosmology.H0=-70", ["H0"]),
        ("truth.alfa=2", ["'alfa'", "did you mean 'alpha'?"]),
    ],
)
def test_bad_configs(refused, setting, parts):
    said = refused("--set", setting)
    for part in parts:
        assert part in said, said


BAD_PYTHON = {
    "syntax": ("def f(:", ["SyntaxError"]),
    "raises": ("raise RuntimeError('no luck')", ["RuntimeError", "no luck"]),
    "lacks": ("def ff(h): ...", ["has no function 'f'", "did you mean 'ff'?"]),
    "fails": ("def f(h):\n    return h['alpha'].no_such", ["fails at a trial point", "no_such"]),
}


@pytest.mark.parametrize("name", BAD_PYTHON)
def test_bad_python(copy, refused, name):
    text, parts = BAD_PYTHON[name]
    (copy / "catalogue" / f"{name}.py").write_text(text)
    said = refused("--set", f"population={{python='catalogue/{name}.py:f'}}")
    for part in (f"{name}.py", *parts):
        assert part in said, said


# ---- bad data ------------------------------------------------------------------------------------


def change(folder, event, edit):
    path = folder / "catalogue" / "posteriors" / f"{event}.dat"
    header, *rows = path.read_text().splitlines()
    table = np.array([row.split() for row in rows], float)
    header, table = edit(header, table)
    np.savetxt(path, table, header=header, comments="", fmt="%.12g")


def nan(header, table):
    table[3, 0] = np.nan
    return header, table


def swapped(header, table):
    return header, table[:, ::-1]


BAD_EVENTS = {
    "missing column": (
        lambda header, table: (header.replace("mass_2_source", "mass_3_source"), table),
        ["event_03.dat", "mass_2_source"],
    ),
    "NaN": (nan, ["event_03.dat", "mass_1_source", "NaN", "drop_invalid"]),
    "out of support": (swapped, ["event_03.dat", "mass_2_source larger than mass_1_source"]),
    "kilograms": (lambda h, t: (h, t * 1.989e30), ["event_03.dat", "kg"]),
    "negative": (lambda h, t: (h, -t), ["event_03.dat", "mass_1_source"]),
    "few draws": (lambda h, t: (h, t[:3]), ["event_03.dat", "3 usable draws", "min_draws"]),
}


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_bad_events(copy, refused, name):
    edit, parts = BAD_EVENTS[name]
    change(copy, "event_03", edit)
    said = refused("--set", "data.min_draws=10", lines=1)
    for part in parts:
        assert part in said, said


def test_an_event_that_is_cut_short(copy, refused):
    path = copy / "catalogue" / "posteriors" / "event_03.dat"
    path.write_text("")
    assert "event_03.dat" in refused(lines=1)


def few_effective(header, table):
    """All draws but two far outside any population of the prior."""
    table[2:] = [199.0, 198.0]
    return header, table


def test_an_event_without_effective_draws_is_the_users_choice(copy, refused, capsys):
    change(copy, "event_05", few_effective)
    said = refused("--set", "data.on_low_n_eff=error", "--set", "data.min_n_eff=5", lines=1)
    for part in ("event_05", "min_n_eff", "'drop' or 'keep'"):
        assert part in said
    config = str(copy / "config.toml")
    for choice, objects in (("drop", 7), ("keep", 8)):
        settings = ["--set", f"data.on_low_n_eff={choice}", "--set", "data.min_n_eff=5"]
        assert cli.main(["run", config, "--check", *settings]) == 0
        said = capsys.readouterr().out
        assert f"{objects} objects" in said
        assert ("event_05" in said) == (choice == "drop")


def test_injections_without_total(copy, refused):
    import h5py

    with h5py.File(copy / "catalogue" / "injections_found.hdf5", "a") as file:
        del file.attrs["total_generated"]
    said = refused(lines=1)
    assert "injections_found.hdf5" in said and "total_generated" in said


def test_injections_without_time(copy, refused):
    import h5py

    with h5py.File(copy / "catalogue" / "injections_found.hdf5", "a") as file:
        del file.attrs["T_obs_yr"]
    said = refused(lines=1)
    assert "injections_found.hdf5" in said and "time" in said


NAN_POPULATION = """
import jax.numpy as jnp
from skycensus.density import Mixture
from skycensus.gw.mass import power_law_masses

def population(h):
    # Broken on half of the prior.
    alpha = jnp.where(h["alpha"] > 2.0, jnp.nan, h["alpha"])
    density = power_law_masses({**{n: h[n] for n in ("beta", "mmin", "mmax")}, "alpha": alpha})
    return Mixture({"all": density}, log_weights={"all": h["log_rate"]})
"""


def test_a_nan_likelihood_names_the_point(copy, refused):
    (copy / "catalogue" / "broken.py").write_text(NAN_POPULATION)
    said = refused("--set", "population={python='catalogue/broken.py:population'}", lines=1)
    for part in ("nan", "alpha=", "log_rate=", "keep the prior away"):
        assert part in said


# ---- the rest ------------------------------------------------------------------------------------


def test_simulate_is_refused(copy, capsys):
    config = str(copy / "config.toml")
    assert cli.main(["simulate", config, "--out", str(copy / "catalogue")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    bad = ["--set", "truth={alpha=2.0}", "--set", "simulate.detection=magic"]
    assert cli.main(["simulate", config, "--out", str(copy / "new"), *bad]) == 2
    said = capsys.readouterr().err
    assert "detection = 'magic'" in said
    assert not (copy / "new").exists()


def test_train(tmp_path, capsys):
    rng = np.random.default_rng(1)
    x = rng.uniform(1.0, 2.0, size=(200, 2))
    table = np.column_stack([x, x[:, 0] * x[:, 1]])
    path = tmp_path / "table.dat"
    np.savetxt(path, table, header="mass_1_source mass_2_source volume", comments="")
    out = tmp_path / "vt.hdf5"
    names = ["--parameters", "mass_1_source", "mass_2_source", "--target", "volume", "--take-log"]
    small = ["--width", "8", "--depth", "1", "--epochs", "3"]
    command = ["train", str(path), "--out", str(out), *names, *small]
    assert cli.main(command) == 0
    assert "rms error" in capsys.readouterr().out

    from skycensus.gw.neural import read_network

    network = read_network(out)
    assert network.names == ("mass_1_source", "mass_2_source") and network.is_log
    assert cli.main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    command[-1] = "2"
    assert cli.main([*command, "--overwrite", "--target", "volumes"]) == 2
    assert "no column 'volumes'" in capsys.readouterr().err


def test_the_demo_is_the_tutorials_problem(tmp_path, monkeypatch, no_sampling, capsys):
    """With a catalogue of a few injections, and sampling left out."""
    from skycensus.config import simulate

    shown = []
    monkeypatch.setattr(simulate, "simulate", lambda config, out, **_: shown.append(config))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AttributeError):  # no catalogue was made
        cli.main(["demo", "--seed", "7"])
    config = shown[0]
    assert config.problems == []
    assert config.seed == 7
    assert config.raw["truth"]["alpha_pl_0"] == 2.0
    assert (tmp_path / "skycensus-demo" / "config.toml").is_file()
    # A second one has its own place.
    with pytest.raises(AttributeError):
        cli.main(["demo"])
    assert (tmp_path / "skycensus-demo-2").is_dir()


def test_version(capsys):
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out.startswith("skycensus ")
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    with pytest.raises(SystemExit) as end:
        cli.main(["rnu"])
    assert end.value.code == 2


def test_compiled_programs_are_kept_where_only_the_user_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("SKYCENSUS_CACHE", str(tmp_path / "cache"))
    folder = cli.cache_folder()
    assert folder is not None and folder.parent == tmp_path / "cache"
    assert folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    assert cli.cache_folder() is None
    monkeypatch.setenv("SKYCENSUS_CACHE", "off")
    assert cli.cache_folder() is None
    monkeypatch.setenv("SKYCENSUS_CACHE", "/dev/null/cache")
    assert cli.cache_folder() is None


def test_jax_is_set_up(tmp_path, monkeypatch):
    import jax

    before = getattr(jax.config, "jax_compilation_cache_dir", None)
    monkeypatch.setenv("SKYCENSUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=")
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        cli.start_jax({"sampler": {"chain_method": "parallel", "num_chains": 1}})
        folder = str(getattr(jax.config, "jax_compilation_cache_dir", None))
        assert folder.startswith(str(tmp_path / "cache"))
        devices = "--xla_force_host_platform_device_count=1"
        assert os.environ["XLA_FLAGS"] == f"--xla_dump_to= {devices}"
        assert jax.numpy.zeros(1).dtype == "float64"
        for _ in range(2):
            cli.start_jax({"data": {"kind": "parallax"}})
        code = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
        assert os.environ["XLA_FLAGS"] == f"--xla_dump_to= {devices} {code}"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
