from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skycensus import InputError
from skycensus.estimators import ConditionalDensity, fit_conditional, load_density


def pairs(num=1500):
    rng = np.random.default_rng(0)
    c = rng.normal(size=num)
    return {"x": 2.0 * c + 0.5 * rng.normal(size=num)}, {"c": c}


@pytest.fixture(scope="module")
def density():
    settings = {"layers": 1, "width": 16, "num_members": 2, "max_epochs": 30, "batch_size": 100}
    return fit_conditional(jax.random.key(1), *pairs(), **settings)


@pytest.mark.slow
def test_it_is_the_conditional_density(density):
    x = jnp.linspace(-9.0, 11.0, 1024)
    c = jnp.where(jnp.arange(1024) < 512, -0.5, 0.5)
    value = density.log_prob({"x": x}, {"c": 0.5})
    np.testing.assert_allclose(np.exp(value).sum() * (x[1] - x[0]), 1.0, atol=1e-3)
    # x given c is normal about 2c with the standard deviation 0.5.
    grid = np.exp(value) * (x[1] - x[0])
    np.testing.assert_allclose(np.sum(grid * x), 1.0, atol=0.1)
    np.testing.assert_allclose(np.sqrt(np.sum(grid * (x - 1.0) ** 2)), 0.5, atol=0.1)
    draws = density.sample(jax.random.key(2), {"c": c})["x"]
    np.testing.assert_allclose(draws[:512].mean(), -1.0, atol=0.15)
    np.testing.assert_allclose(draws[512:].mean(), 1.0, atol=0.15)


def test_given_a_context_it_is_a_density_as_any_other(density, tmp_path):
    given = density.given({"c": 0.5})
    x = jnp.linspace(-9.0, 11.0, 1024)
    np.testing.assert_allclose(
        given.log_prob({"x": x}), density.log_prob({"x": x}, {"c": 0.5}), rtol=1e-5
    )
    given.save(tmp_path / "given.skc")


def test_it_comes_back_from_a_file_to_the_bit(density, tmp_path):
    path = density.save(tmp_path / "pairs.skc")
    again = ConditionalDensity.load(path)
    assert again.names == density.names and again.context_names == density.context_names
    assert again.architecture == density.architecture
    before, after = (
        jax.tree.leaves([density.members, density.coordinates]),
        jax.tree.leaves([again.members, again.coordinates]),
    )
    for one, other in zip(before, after, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    x, c = {"x": jnp.linspace(-9.0, 11.0, 1024)}, {"c": 0.5}
    np.testing.assert_array_equal(again.log_prob(x, c), density.log_prob(x, c))
    again.save(path, overwrite=True)
    with pytest.raises(InputError, match="exists already"):
        density.save(path)
    with pytest.raises(InputError, match=r"conditional density; give one.*ConditionalDensity.load"):
        load_density(path)
    other = density.given(c).save(tmp_path / "given.skc")
    with pytest.raises(InputError, match=r"no file of a skycensus cond.*read it with load_density"):
        ConditionalDensity.load(other)


def test_bad_input_is_told(density):
    draws, context = pairs(50)
    with pytest.raises(InputError, match="no conditional density of kind 'kde'"):
        fit_conditional(jax.random.key(0), draws, context, kind="kde")
    with pytest.raises(InputError, match="column 'x' is both a parameter and a context"):
        fit_conditional(jax.random.key(0), draws, {"x": context["c"]})
    with pytest.raises(InputError, match="no setting 'epochs'"):
        fit_conditional(jax.random.key(0), draws, context, epochs=3)
    with pytest.raises(InputError, match="context 'c' is nan"):
        density.given({"c": np.nan})
    with pytest.raises(InputError, match="needs parameter 'c'"):
        density.log_prob({"x": 0.0}, {})
