"""Replicated data against data of a right and of a wrong model."""

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from skycensus import Gaussian, HierarchicalModel, InputError, Joint, Prior
from skycensus.predictive_checks import Measurements, new_objects, predictive_check
from skycensus.result import Result, Status
from skycensus.stars import lines

KEY = jax.random.key(2)
NUM = 120


def single(values, error=1.0):
    return Measurements(np.asarray(values), np.arange(len(values)), lambda t: (t["x"], error), "x")


def populations(loc, sd, size=200):
    rng = np.random.default_rng(7)
    return {"x": rng.normal(loc, sd, (size, NUM))}


def test_the_right_population_passes_and_a_wrong_one_does_not():
    rng = np.random.default_rng(1)
    data = rng.normal(3.0, np.hypot(2.0, 1.0), NUM)
    names = [f"object {i}" for i in range(NUM)]
    right, wide = (
        predictive_check(single(data), key=KEY, names=names, predicted=populations(3.0, sd))
        for sd in (2.0, 4.0)
    )
    assert right.predicted.shape == (200, NUM)
    assert right.tail_probability > 0.05
    assert wide.tail_probability < 0.01
    # Against the exact distribution of the predicted data.
    exact = stats.norm(3.0, 5**0.5).cdf(data)
    np.testing.assert_allclose(right.pit, exact, atol=4.5 * 0.5 / 200**0.5)
    with pytest.raises(InputError, match="one datum each have no misfit"):
        _ = right.misfit_probability


def test_tail_probabilities_of_the_right_model_are_uniform():
    rng = np.random.default_rng(3)
    theta, names = populations(0.0, 1.0), ["x"] * NUM
    tails = [
        predictive_check(
            single(rng.normal(0.0, 2**0.5, NUM)), key=KEY, names=names, predicted=theta
        ).tail_probability
        for _ in range(60)
    ]
    assert stats.kstest(tails, stats.uniform.cdf).pvalue > 1e-3


def test_misfits_are_those_of_chi_square():
    """Two objects at their true parameters, one with errors stated five times too small."""
    rng = np.random.default_rng(4)
    owner = np.repeat([0, 1], [30, 40])
    values = rng.normal(np.where(owner == 0, 1.0, -1.0), np.where(owner == 0, 0.5, 2.5))
    measured = Measurements(values, owner, lambda t: (t["x"][..., owner], 0.5), "scatter")
    check = predictive_check(
        measured, key=KEY, names=["a", "b"], objects={"x": np.array([[1.0, -1.0]] * 5)}
    )
    np.testing.assert_allclose(check.observed, [np.std(values[:30]), np.std(values[30:])])
    chi2 = [np.sum(((values - m)[owner == i] / 0.5) ** 2) for i, m in enumerate([1.0, -1.0])]
    np.testing.assert_allclose(check.misfit, [chi2] * 5)
    want = stats.chi2([30, 40]).sf(chi2)
    np.testing.assert_allclose(check.misfit_probability, want)
    assert want[0] > 0.01 and want[1] < 1e-10
    with pytest.raises(InputError, match="no population"):
        _ = check.pit


def test_new_objects_have_the_known_columns_before_and_after_the_fit():
    x = np.linspace(-5.0, 5.0, 11)
    form = Gaussian(np.ones((11, 1)), np.zeros(11), 1.0, parameters=["y"], given={"x": x})
    free = {"m": dist.Normal(0.0, 1.0), "b": dist.Normal(0.0, 1.0), "w0": dist.Uniform(0, 1)}
    prior = Prior({**free, "ln_s_out": -3.0})
    model = HierarchicalModel(prior, lines.line_with_outliers, form, rate="shape")
    rng = np.random.default_rng(5)
    draws = {"m": 2.0, "b": 1.0, "w0": 1.0 - 1e-12}
    before = {"m": -1.0, "b": 0.0, "w0": 1.0 - 1e-12, "ln_s_out": -3.0}
    result = Result(
        {n: v + 1e-9 * rng.normal(size=(1, 400)) * (n != "w0") for n, v in draws.items()},
        Status(True),
        fixed={"ln_s_out": -3.0},
        prior_draws={n: np.full(100, v) for n, v in before.items()},
    )
    after, earlier = new_objects(model, result, key=KEY, num_draws=50)
    assert after["y"].shape == earlier["y"].shape == (50, 11)
    np.testing.assert_allclose(after["y"], np.broadcast_to(2 * x + 1, (50, 11)), atol=1e-6)
    np.testing.assert_allclose(earlier["y"], np.broadcast_to(-x, (50, 11)), atol=1e-6)


def test_joints_draw_beside_known_columns():
    joint = Joint(y=lambda t: dist.Normal(t["x"], 1e-9), z=dist.Normal(0.0, 1.0))
    drawn = joint.sample(KEY, (3,), given={"x": np.arange(3.0)})
    assert set(drawn) == {"y", "z"}
    np.testing.assert_allclose(drawn["y"], np.arange(3.0), atol=1e-7)
    assert drawn["z"].shape == (3,)
