"""Every example runs, at small size; real data are used where they are there."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from skycensus import QuadratureSampler
from skycensus.cli import main
from skycensus.stars import lines
from skycensus.stars.binaries import velocity_table
from skycensus.stars.parallax import simulate_cluster

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = ["sampler.target_ess=200", "sampler.num_adapt=256", "output.figures=false"]


def run(config: Path, out: Path, *settings: str) -> dict:
    arguments = ["run", str(config), "--out", str(out)]
    for setting in (*QUICK, "output.num_marginal_draws=20", *settings):
        arguments += ["--set", setting]
    code = main(arguments)
    summary = json.loads((out / "summary.json").read_text())
    assert code == (0 if summary["status"]["converged"] else 3)
    return summary


def test_every_example_has_a_readme_and_a_config_or_a_script():
    for folder in EXAMPLES.iterdir():
        assert (folder / "README.md").exists(), folder
        assert any((folder / name).exists() for name in ("config.toml", "run.py")), folder


@pytest.mark.slow
def test_gw_tutorial(shared, require_path, tmp_path):
    folder = require_path(shared / "reference" / "gwkokab")
    summary = run(
        EXAMPLES / "gw_tutorial" / "config.toml", tmp_path / "out", f"data.path='{folder}'"
    )
    reference = json.loads((folder / "reference_posterior.json").read_text())
    evidence = summary["log_evidence"]
    assert abs(evidence["value"] - reference["logZ"]) < 5 * evidence["error"]
    for name, row in summary["parameters"].items():
        if name in reference["params"]:
            want = reference["params"][name]
            # The stated Monte Carlo error, and that of the reference's own 20,000 draws.
            error = row["mcse_mean"] + want["sd"] / 20_000**0.5
            assert abs(row["mean"] - want["mean"]) < 5 * error, name


CLOSE = 0.01  # of an exact standard deviation
QUICK_OBJECTS = ["output.figures=false", "output.num_object_draws=0"]


def run_table(config: str, data: Path, out: Path, *settings: str) -> dict:
    """An example whose data are one table."""
    arguments = ["run", str(EXAMPLES / config), "--out", str(out), "--set", f"data.path='{data}'"]
    for setting in (*QUICK_OBJECTS, *settings):
        arguments += ["--set", setting]
    assert main(arguments) == 0
    return json.loads((out / "summary.json").read_text())["parameters"]


def check_exact(rows: dict, exact: Path, tolerance: float = CLOSE) -> None:
    for name, want in json.loads(exact.read_text())["params"].items():
        if isinstance(want, dict) and "sd" in want:
            assert abs(rows[name]["mean"] - want["mean"]) < tolerance * want["sd"], name
            assert abs(rows[name]["sd"] / want["sd"] - 1) < tolerance, name


@pytest.mark.parametrize(
    ("config", "data", "exact"),
    [
        (
            "star_cluster/config.toml",
            "reference/hierarchical/cluster_parallax.ecsv",
            "exact_cluster.json",
        ),
        ("apogee_binaries/config.toml", "data/apogee/apogee-binaries.fits", "exact_rv2.json"),
        pytest.param(
            *("apogee_binaries/one_star.toml", "data/apogee/apogee-binaries.fits"),
            "exact_rv1.json",
            marks=pytest.mark.slow,
        ),
        (
            "line_with_outliers/config.toml",
            "reference/hierarchical/line_outliers.ecsv",
            "exact_line.json",
        ),
    ],
)
def test_exact_answers(config, data, exact, shared, require_path, tmp_path):
    data = require_path(shared / data)
    rows = run_table(config, data, tmp_path / "out")
    # A single star's draws are independent: their own error is a third of the tolerance.
    check_exact(rows, shared / "reference" / "hierarchical" / exact)


def test_sparse_binaries(shared, require_path, tmp_path):
    """The velocities of the reference: where a joint sampler is 2.4 to 2.9 sd off."""
    arrays = require_path(shared / "reference/hierarchical/rv_sparse_N64_J8_s1.npz")
    with np.load(arrays) as found:
        table = velocity_table(found["t"], found["y"], float(found["err"]))
    table.write(tmp_path / "sparse.ecsv")
    rows = run_table("sparse_binaries/config.toml", tmp_path / "sparse.ecsv", tmp_path / "out")
    exact = json.loads(arrays.with_suffix(".json").read_text())["exact"]
    for name, (mean, sd) in exact.items():
        # The reference itself is good to about 2 % of a standard deviation.
        assert abs(rows[name]["mean"] - mean) < 0.05 * sd
        assert abs(rows[name]["sd"] / sd - 1) < 0.05


@pytest.mark.slow
def test_simulated_data_of_the_examples(tmp_path):
    """Without any reference data: each generator's table goes through its example's config."""
    simulate_cluster(num_stars=40).write(tmp_path / "cluster.ecsv")
    lines.simulate().write(tmp_path / "line.ecsv")
    run_table("star_cluster/config.toml", tmp_path / "cluster.ecsv", tmp_path / "a")
    rows = run_table(
        "line_with_outliers/config.toml",
        tmp_path / "line.ecsv",
        tmp_path / "b",
        "sampler.target_ess=1000",
    )
    assert abs(rows["m"]["mean"] - 3.17) < 5 * rows["m"]["sd"]


@pytest.mark.slow
def test_gwtc1(shared, require_path, tmp_path):
    folder = require_path(shared / "data" / "2ogc")
    settings = [f"data.path='{folder}'", "data.max_draws=1000", "selection.num_draws=5000"]
    summary = run(EXAMPLES / "gwtc1" / "config.toml", tmp_path / "out", *settings)
    # Abbott et al. 2019, ApJL 882 L24: alpha = 1.3 (+1.4 -1.7).
    assert -0.4 < summary["parameters"]["alpha"]["mean"] < 2.7
    assert 33 < summary["parameters"]["mmax"]["quantiles"]["50"] < 55


def script(path: Path) -> Any:
    """The module of an example's script."""
    spec = importlib.util.spec_from_file_location(f"example_{path.parent.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_learned_prior(tmp_path):
    """The posterior of one experiment as the prior of the next, beside sums over a grid of both."""
    make = script(EXAMPLES / "learned_prior" / "make.py")
    make.write(tmp_path)
    density = tmp_path / "earlier.skc"
    fit = ["fit", str(tmp_path / "chain.csv"), "--columns", "m,b", "--support", "m=3:"]
    assert main([*fit, "--kind", "mixture", "--out", str(density)]) == 0
    config = tmp_path / "config.toml"
    config.write_text((EXAMPLES / "learned_prior" / "config.toml").read_text())
    settings = ["output.figures=false", "output.num_object_draws=0"]
    arguments = [a for setting in settings for a in ("--set", setting)]
    assert main(["run", str(config), "--out", str(tmp_path / "out"), *arguments]) == 0
    summary, exact = json.loads((tmp_path / "out" / "summary.json").read_text()), make.exact()
    evidence = summary["log_evidence"]
    # 10,000 draws know the prior to a few hundredths.
    assert abs(evidence["value"] - exact["log_evidence"]) < 0.05 + 4 * evidence["error"]
    for name in "mb":
        row = summary["parameters"][name]
        assert abs(row["mean"] - exact[name]) < 0.05 * exact[f"{name}_sd"] + 4 * row["mcse_mean"]
    # The run can be repeated from its own folder.
    assert str(density) in (tmp_path / "out" / "config.toml").read_text()


@pytest.mark.slow
def test_likelihood_reweighting():
    made = script(EXAMPLES / "likelihood_reweighting" / "run.py")
    result = made.reweighted(target_ess=1500.0)
    exact = QuadratureSampler().run(made.target(made.exposed), jax.random.key(0))
    assert result.status.converged, str(result.status)
    assert abs(result.log_evidence - exact.log_evidence) < 4 * result.log_evidence_error + 1e-2
    rows, truth = result.summary(), exact.summary()
    for name, row in rows.items():
        assert abs(row["mean"] - truth[name]["mean"]) < 4 * row["mcse_mean"] + 0.02 * row["sd"]
