from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal, norm

from skycensus import InputError, Joint, Mixture
from skycensus.likelihood import gaussian
from skycensus.likelihood.gaussian import Gaussian
from skycensus.likelihood.leaves import memberships

RNG = np.random.default_rng(7)
COUNTS = [1, 5, 2, 5, 9]  # fewer rows than parameters, too
DESIGN = [RNG.normal(size=(m, 3)) for m in COUNTS]
DATA = [RNG.normal(0.0, 3.0, m) for m in COUNTS]
SIGMA = [RNG.uniform(0.3, 1.0, m) for m in COUNTS]
COVARIANCE = [np.diag(s**2) + 0.05 for s in SIGMA]
MEAN, HALF = np.array([0.4, -1.0, 2.0]), RNG.normal(size=(3, 3))
PAIR = HALF[:2] @ HALF[:2].T
ABC = ("a", "b", "c")


def population(scale=0.7):
    pair = dist.MultivariateNormal(jnp.asarray(MEAN[:2]), jnp.asarray(PAIR))
    return Joint({("a", "b"): pair, "c": dist.Normal(MEAN[2], scale, validate_args=False)})


def prior_covariance(scale=0.7):
    v = np.zeros((3, 3))
    v[:2, :2], v[2, 2] = PAIR, scale**2
    return v


def exact(design, data, covariance, v, mean=MEAN):
    return [
        multivariate_normal.logpdf(y, a @ mean, c + a @ v @ a.T)
        for a, y, c in zip(design, data, covariance, strict=True)
    ]


@pytest.mark.parametrize("correlated", [False, True])
def test_ragged_objects_against_the_dense_formula(correlated):
    noise = COVARIANCE if correlated else SIGMA
    form = Gaussian(DESIGN, DATA, noise, parameters=ABC)
    value, variance = form.log_marginal(population())
    covariance = COVARIANCE if correlated else [np.diag(s**2) for s in SIGMA]
    np.testing.assert_allclose(value, exact(DESIGN, DATA, covariance, prior_covariance()))
    np.testing.assert_array_equal(variance, 0.0)


def test_scale_zero_and_delta_and_order_of_names():
    form = Gaussian(DESIGN, DATA, SIGMA, parameters=ABC)
    want = exact(DESIGN, DATA, [np.diag(s**2) for s in SIGMA], prior_covariance(0.0))
    np.testing.assert_allclose(form.log_marginal(population(0.0)).value, want)
    pair = dist.MultivariateNormal(jnp.asarray(MEAN[:2]), jnp.asarray(PAIR))
    fixed = Joint({"c": dist.Delta(MEAN[2]), ("a", "b"): pair})
    np.testing.assert_allclose(form.log_marginal(fixed).value, want)


def test_no_digits_are_lost_where_data_are_precise():
    y = np.array([1e6, 1e6 + 3e-3])
    form = Gaussian(np.ones((1, 2, 1)), y[None], 1e-3, parameters=["x"])
    got = form.log_marginal(Joint(x=dist.Normal(0.0, 1e6))).value[0]
    # The difference of the two and their mean are independent.
    want = norm.logpdf(y[1] - y[0], 0, 1e-3 * np.sqrt(2))
    want += norm.logpdf(y.mean(), 0, np.hypot(1e6, 1e-3 / np.sqrt(2)))
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_dependent_columns_of_the_design():
    design = np.stack([np.linspace(1, 2, 6), 2 * np.linspace(1, 2, 6)], axis=1)[None]
    y = RNG.normal(size=(1, 6))
    form = Gaussian(design, y, 0.5, parameters=["a", "b"])
    got = form.log_marginal(Joint(a=dist.Normal(1.0, 2.0), b=dist.Normal(0.0, 0.3))).value
    v = np.diag([4.0, 0.09])
    want = exact(design, y, [0.25 * np.eye(6)], v, np.array([1.0, 0.0]))
    np.testing.assert_allclose(got, want, rtol=1e-12)


X = np.linspace(-1.0, 2.0, 7)
Y = 0.5 * X + RNG.normal(0.0, 0.4, 7)


def line(h):
    return Mixture(
        {
            "on": Joint(y=lambda t: dist.Normal(h["m"] * t["x"] + h["b"], h["s"])),
            "off": Joint(y=dist.Normal(0.0, 5.0)),
        },
        log_weights={"on": jnp.log(0.8), "off": jnp.log(0.2)},
    )


H = {"m": 0.6, "b": 0.1, "s": 0.3}


def test_mixture_that_depends_on_known_columns_and_its_gradient(monkeypatch):
    sigma = np.full(7, 0.2)
    form = Gaussian(np.ones((7, 1)), Y, sigma, parameters=["y"], given={"x": X})
    on = 0.8 * norm.pdf(Y, H["m"] * X + H["b"], np.hypot(0.2, H["s"]))
    off = 0.2 * norm.pdf(Y, 0.0, np.hypot(0.2, 5.0))
    log_marginal = jax.jit(lambda form, h: form.log_marginal(line(h)).value)
    np.testing.assert_allclose(log_marginal(form, H), np.log(on + off), rtol=1e-12)
    np.testing.assert_allclose(memberships(form, line(H))["on"], on / (on + off), rtol=1e-12)
    slope = jax.grad(lambda h: log_marginal(form, h).sum())({k: jnp.array(v) for k, v in H.items()})
    for name in H:
        step = {**H, name: H[name] + 1e-6}, {**H, name: H[name] - 1e-6}
        up, down = (float(log_marginal(form, h).sum()) for h in step)
        np.testing.assert_allclose(slope[name], (up - down) / 2e-6, rtol=1e-6)
    # In blocks, the last of them not full.
    monkeypatch.setattr(gaussian, "_BLOCK_SIZE", 3)
    blocks = Gaussian(np.ones((7, 1)), Y, sigma, parameters=["y"], given={"x": X})
    assert len(blocks.rows.log_norm) == 3
    np.testing.assert_allclose(log_marginal(blocks, H), np.log(on + off), rtol=1e-12)
    draw = blocks.draw(line(H), jax.random.key(1))["y"]
    np.testing.assert_allclose(draw, form.draw(line(H), jax.random.key(1))["y"], rtol=1e-12)


def test_draws_are_the_conditional_gaussian():
    form = Gaussian(DESIGN[1:2], DATA[1:2], COVARIANCE[1:2], parameters=ABC)
    keys = jax.random.split(jax.random.key(3), 20000)
    draws = jax.jit(jax.vmap(lambda k: form.draw(population(), k)))(keys)
    got = np.stack([draws[n][:, 0] for n in ABC])
    a, y, c = DESIGN[1], DATA[1], COVARIANCE[1]
    precision = np.linalg.inv(prior_covariance()) + a.T @ np.linalg.solve(c, a)
    spread = np.linalg.inv(precision)
    right = np.linalg.solve(prior_covariance(), MEAN) + a.T @ np.linalg.solve(c, y)
    error = np.sqrt(np.diag(spread) / 20000)
    assert np.all(np.abs(got.mean(axis=1) - spread @ right) < 4 * error)
    np.testing.assert_allclose(np.cov(got), spread, atol=0.05 * np.diag(spread).max())


NAN = np.array([[0.0], [np.nan]])
BAD = {
    "nothing": ({"data": []}, "at least one object"),
    "names": ({"names": ["A"]}, "2 objects but 1 names"),
    "noise": ({"noise": np.array([[1.0], [0.0]])}, "B: a standard deviation of 0 is not positive"),
    "negative": ({"noise": [[-1.0], [1.0]]}, "A: a standard deviation of -1"),
    "nan": ({"data": NAN}, "B: the data is not finite in row 0"),
    "shape": ({"design": np.ones((2, 1, 3))}, "do not fit"),
    "ragged": (
        {"design": [np.ones((1, 1)), np.ones((2, 1))], "data": [[1.0], [2.0]]},
        "B: the des",
    ),
    "covariance": ({"noise": -np.ones((2, 1, 1))}, "A: the covariance is not positive definite"),
    "length": ({"design": np.ones((3, 1, 1))}, "3 designs, data of 2 objects"),
    "given": ({"given": {"x": [1.0, np.nan]}}, "'x' is not finite for B"),
    "given shape": ({"given": {"x": [1.0]}}, r"shape \(1,\)"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=list(BAD))
def test_bad_input(change, message):
    good = {
        "design": np.ones((2, 1, 1)), "data": np.zeros((2, 1)), "noise": np.ones((2, 1)),
        "parameters": ["x"], "names": ["A", "B"],
    }  # fmt: skip
    given = {**good, **change}
    with pytest.raises(InputError, match=message):
        Gaussian(given.pop("design"), given.pop("data"), given.pop("noise"), **given)


POPULATIONS = {
    "not Gaussian": (Joint(x=dist.Uniform(0.0, 1.0)), "'x' is Uniform, which is not Gaussian"),
    "other names": (Joint(z=dist.Normal(0.0, 1.0)), r"over \['z'\], but the linear parameters"),
    "latent": (
        Joint(x=lambda t: dist.Normal(t["w"], 1.0)),
        "'x' depends on 'w', which is not among the known columns",
    ),
}


@pytest.mark.parametrize(("density", "message"), POPULATIONS.values(), ids=list(POPULATIONS))
def test_populations_without_closed_form(density, message):
    form = Gaussian(np.ones((2, 1)), np.zeros(2), 1.0, parameters=["x"])
    with pytest.raises(InputError, match=message):
        form.log_marginal(density)
