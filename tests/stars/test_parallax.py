"""The star cluster of the tutorial: its data, its exact likelihood, its posterior."""

import json

import astropy.units as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from astropy.table import QTable, Table

from skycensus import InputError
from skycensus.stars import parallax


@pytest.fixture(scope="module")
def cluster(shared):
    path = shared / "reference" / "hierarchical" / "cluster_parallax.ecsv"
    return path if path.exists() else None


def test_the_generator_is_the_tutorials(cluster):
    if cluster is None:
        pytest.skip("absent: cluster_parallax.ecsv")
    made = parallax.parallaxes(parallax.simulate_cluster(seed=42))
    read = parallax.read_parallaxes(cluster)
    assert made.parallax == pytest.approx(read.parallax, rel=1e-14)
    assert made.error == pytest.approx(read.error, rel=1e-14)


def test_log_likelihood_of_the_cluster_is_exact(shared, require_path):
    folder = require_path(shared / "reference" / "hierarchical")
    objects = parallax.objects(parallax.read_parallaxes(folder / "cluster_parallax.ecsv"))
    density = parallax.normal_cluster({"mu_r": 0.5, "ln_std_r": jnp.log(0.0087)})
    # From the notes of exact_cluster.json.
    assert float(objects.log_marginal(density).value.sum()) == pytest.approx(
        399.4537376317632, abs=1e-6
    )
    assert json.loads((folder / "exact_cluster.json").read_text())["params"].keys() >= {"mu_r"}


def test_units_and_names():
    table = QTable({"plx": [2.0, 1.0] * u.arcsec, "s": [0.1, 0.1] * u.mas, "id": ["a", "b"]})
    found = parallax.parallaxes(table, parallax="plx", error="s", name="id")
    assert found.parallax == pytest.approx([2000.0, 1000.0])
    assert found.names == ("a", "b")


def test_names_must_differ():
    table = Table({"parallax": [1.0, 2.0], "parallax_error": [0.1, 0.1], "id": ["a", "a"]})
    with pytest.raises(InputError, match="more than one row of star 'a'"):
        parallax.parallaxes(table, name="id")


def test_negative_parallaxes_are_data():
    """A negative parallax says that the star is far; nothing about it is invalid."""
    near, far = (
        parallax.objects(parallax.Parallaxes(np.array([p]), np.array([0.1]), ("star",)))
        for p in (2.0, -0.05)
    )
    at = {"mu_r": 0.5, "ln_std_r": jnp.log(0.01)}
    beyond = {"mu_r": 20.0, "ln_std_r": jnp.log(2.0)}
    value = jax.jit(lambda form, h: form.log_marginal(parallax.normal_cluster(h)).value[0])
    assert value(near, at) > value(near, beyond) + 50
    assert value(far, beyond) > value(far, at) + 50


@pytest.mark.parametrize("bad", [0.0, -0.1, np.nan])
def test_uncertainties_must_be_positive_from_python_too(bad):
    data = parallax.Parallaxes(np.ones(2), np.array([0.1, bad]), ("a", "b"))
    with pytest.raises(InputError, match=f"b: an uncertainty of {bad:g} is not a positive number"):
        parallax.objects(data)
