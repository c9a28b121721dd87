"""Every example runs, at small size; real data are used where they are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skycensus.cli import main

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


def test_every_example_has_a_config_and_a_readme():
    for folder in EXAMPLES.iterdir():
        assert (folder / "config.toml").exists() and (folder / "README.md").exists(), folder


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


@pytest.mark.slow
def test_gwtc1(shared, require_path, tmp_path):
    folder = require_path(shared / "data" / "2ogc")
    settings = [f"data.path='{folder}'", "data.max_draws=1000", "selection.num_draws=5000"]
    summary = run(EXAMPLES / "gwtc1" / "config.toml", tmp_path / "out", *settings)
    # Abbott et al. 2019, ApJL 882 L24: alpha = 1.3 (+1.4 -1.7).
    assert -0.4 < summary["parameters"]["alpha"]["mean"] < 2.7
    assert 33 < summary["parameters"]["mmax"]["quantiles"]["50"] < 55
