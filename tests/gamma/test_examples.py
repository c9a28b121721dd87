"""The gamma-ray examples run, at small size; real responses and tables where they are there."""

import json
from pathlib import Path

import pytest

from skycensus.cli import main
from skycensus.config import read_config
from skycensus.config.gamma import plan_of

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ["output.num_marginal_draws=20", "output.num_object_draws=0", "output.figures=false"]


@pytest.mark.parametrize("name", ["gamma_galactic_centre", "gamma_two_pointings", "hess_crab"])
def test_configs_are_sound(name, tmp_path):
    """As far as that needs no data: sections, keys, components and hyperparameters."""
    for path in (EXAMPLES / name).glob("*.toml"):
        config = read_config(path, [f"data.path='{tmp_path}'"])
        plan, found = plan_of(config, simulated=name != "hess_crab")
        assert plan.population is not None and len(found.leaves) > 1


def both(config: str, tmp_path: Path, *settings: str) -> tuple[dict, dict]:
    """Simulate an example's photons and fit them: the rows of its table, and the truth."""
    path, catalogue, out = str(EXAMPLES / config), tmp_path / "catalogue", tmp_path / "out"
    more = [x for setting in settings for x in ("--set", setting)]
    assert main(["simulate", path, "--out", str(catalogue), *more]) == 0
    here = [f"data.path='{catalogue}'", *QUICK, *settings]
    arguments = [x for setting in here for x in ("--set", setting)]
    assert main(["run", path, "--out", str(out), *arguments]) == 0
    summary = json.loads((out / "summary.json").read_text())
    truth = json.loads((catalogue / "truth.json").read_text())["truth"]
    return summary["parameters"], truth


def check(rows: dict, truth: dict) -> None:
    for name, row in rows.items():
        assert abs(row["mean"] - truth[name]) < 4 * row["sd"], name


@pytest.mark.slow
def test_components_of_formulas(tmp_path):
    """All that nothing has to be fetched for, in a smaller field."""
    small = "data.region={lon=[-2.0, 1.0], lat=[-1.5, 1.0]}"
    rows, truth = both(
        "gamma_galactic_centre/synthetic.toml",
        tmp_path,
        small,
        "data.energy=[0.5, 20.0]",
        "simulate.num_photons=250",
        "sampler.target_ess=400",
    )
    check(rows, truth)
    assert set(rows) == {"DM", "bkg", "CCR", "pulsar", "diffuse", "cutoff"}


@pytest.mark.slow
def test_two_pointings(tmp_path):
    rows, truth = both("gamma_two_pointings/config.toml", tmp_path, "sampler.target_ess=500")
    check(rows, truth)


@pytest.mark.slow
def test_the_galactic_centre(tmp_path, data_set):
    pytest.importorskip("gammapy")
    for name in ("ctao-prod5-south-20deg", "pppc", "singlet-darksusy", "hgps", "fermi-diffuse"):
        data_set(name)
    rows, truth = both("gamma_galactic_centre/config.toml", tmp_path, "sampler.target_ess=1000")
    check(rows, truth)
    # 500 photons tell the mass to a tenth or two.
    assert rows["mass"]["sd"] < 0.3


@pytest.mark.slow
def test_the_limit_on_the_cross_section(tmp_path, data_set):
    pytest.importorskip("gammapy")
    for name in ("ctao-prod5-south-20deg", "pppc", "hgps"):
        data_set(name)
    rows, _ = both("gamma_galactic_centre/limit.toml", tmp_path, "data.livetime='1 h'")
    assert 1e-27 < rows["sigma_v"]["quantiles"]["95"] < 3e-24
    for name in ("CCR", "HESS"):
        assert abs(rows[name]["mean"] - 1.0) < 4 * rows[name]["sd"]
