"""The code in the documentation, run as it stands there."""

import re

import jax
import numpy as np
import pytest


@pytest.mark.slow
def test_objects_known_by_a_formula(root, tmp_path, monkeypatch):
    """Model, predictive check and ArviZ in one go; the blocks about chains need a longer run."""
    text = (root / "docs" / "hierarchical.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    model, check, arviz = (
        next(b for b in blocks if word in b)
        for word in ("Quadrature(log_likelihood", "predictive_check(", "from_netcdf")
    )
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    for block in (model, check, arviz):
        exec(block, found)
    assert abs(float(found["result"].draws["mean"].mean()) - 1.0) < 0.15
    assert 0 <= found["check"].tail_probability <= 1
    # The same draws in both worlds of ArviZ.
    read = found["tree"]["posterior"]["mean"].to_numpy()
    np.testing.assert_array_equal(read, found["result"].draws["mean"])
    assert found["prior"].size == 1000
    assert jax.config.jax_enable_x64


@pytest.mark.slow
def test_calibration_of_ones_own(root, tmp_path, monkeypatch):
    text = (root / "docs" / "trust.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(block, found)
    assert found["found"].p_value > 0.01 and (tmp_path / "figures" / "calibration.png").is_file()


@pytest.mark.slow
def test_photons_through_a_response(root):
    text = (root / "docs" / "gamma.md").read_text()
    block = next(
        b for b in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "photon_model" in b
    )
    found: dict = {}
    exec(block, found)
    index = found["result"].summary()["index"]
    assert found["result"].status.converged and abs(index["mean"] - 2.1) < 4 * index["sd"]
