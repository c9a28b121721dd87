import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.integrate import quad

from skycensus import Joint, Mixture, PowerLaw, Prior, Samples
from skycensus.density import log_total
from skycensus.errors import InputError
from skycensus.predictive import (
    detected_predictive,
    hyperparameter_draws,
    population_curves,
    posterior_predictive,
)
from skycensus.result import Result, Status

KEY = jax.random.key(3)
HYPER = {"alpha": np.array([2.0, 3.5]), "low": np.array([5.0, 8.0])}


def masses(h):
    return Joint(
        m1=PowerLaw(-h["alpha"], h["low"], 50.0),
        m2=lambda t: PowerLaw(1.0, h["low"], t["m1"]),
        q=lambda t: PowerLaw(0.5, h["low"] / t["m1"], 1.0),
    )


def exact_p(x, name, alpha, low):
    """By adaptive quadrature over m1."""
    k = 1 - alpha
    norm = (50**k - low**k) / k

    def of_m1(m1):
        if name == "m2":
            return m1**-alpha / norm * 2 * x / (m1**2 - low**2)
        return m1**-alpha / norm * 1.5 * x**0.5 / (1 - (low / m1) ** 1.5)

    start = max(low, x if name == "m2" else low / x)
    return quad(of_m1, start, 50, epsabs=0, epsrel=1e-10)[0] if start < 50 else 0.0


@pytest.mark.parametrize(("name", "low", "high"), [("m2", 6, 48), ("q", 0.12, 0.95)])
def test_a_conditional_factor_is_integrated(name, low, high):
    grid = np.linspace(low, high, 23)
    curves = population_curves(masses, HYPER, name, grid, key=KEY)
    for curve, alpha, low in zip(curves, *HYPER.values(), strict=True):
        exact = np.array(
            [exact_p(x, name, alpha, low) if x > low or name == "q" else 0 for x in grid]
        )
        np.testing.assert_allclose(curve, exact, rtol=2e-3, atol=2e-4 * exact.max())


class Ramp:
    """A density over m1 that does not tell its support: linear from 2 to 6."""

    names = ("m1",)

    def log_prob(self, theta):
        x = theta["m1"]
        inside = (x > 2) & (x < 6)
        return jnp.where(inside, jnp.log(jnp.where(inside, (x - 2) / 8, 1.0)), -jnp.inf)

    def sample(self, key, sample_shape=()):
        return {"m1": 2 + 4 * jnp.sqrt(jax.random.uniform(key, sample_shape))}


def test_edges_that_nobody_tells_are_found():
    """x | m1 uniform on [0, sqrt(m1 - 2)], which is not defined below m1 = 2."""

    def population(h):
        return Joint(m1=Ramp(), x=lambda t: dist.Uniform(0.0, h["a"] * jnp.sqrt(t["m1"] - 2)))

    grid = np.linspace(-0.5, 2.5, 31)
    curve = population_curves(population, {"a": np.ones(1)}, "x", grid, key=KEY)[0]
    # The integral of (t/8) / sqrt(t) over t = m1 - 2 from x² to 4.
    exact = np.where((grid >= 0) & (grid <= 2), (8 - np.abs(grid) ** 3) / 12, 0)
    np.testing.assert_allclose(curve, exact, rtol=1e-3, atol=1e-4)


def test_a_leading_factor_is_exact():
    grid = np.linspace(1, 60, 50)
    curves = population_curves(masses, HYPER, "m1", grid, key=KEY)
    for curve, alpha, low in zip(curves, *HYPER.values(), strict=True):
        norm = (50 ** (1 - alpha) - low ** (1 - alpha)) / (1 - alpha)
        exact = np.where((grid >= low) & (grid <= 50), grid**-alpha / norm, 0)
        np.testing.assert_allclose(curve, exact, rtol=1e-12)


def test_mixtures_carry_their_rates():
    def population(h):
        left = Joint(x=dist.Normal(h["loc"], 1.0), y=lambda t: dist.Normal(2 * t["x"], 0.5))
        right = Joint(y=dist.Normal(0.0, 2.0), x=dist.Normal(1.0, 3.0))
        return Mixture(
            {"a": left, "b": Joint({("x", "y"): right})}, log_weights={"a": h["r"], "b": 0.3}
        )

    hyper = {"loc": np.array([-1.0, 0.5]), "r": np.array([0.0, 1.0])}
    grid = np.linspace(-6, 6, 31)
    np.testing.assert_allclose(
        [float(log_total(population({k: v[i] for k, v in hyper.items()}))) for i in (0, 1)],
        np.logaddexp(hyper["r"], 0.3),
    )
    for name in ("x", "y"):
        curves = population_curves(population, hyper, name, grid, key=KEY)
        shares = population_curves(population, hyper, name, grid, key=KEY, normalise=True)
        for curve, share, loc, r in zip(curves, shares, *hyper.values(), strict=True):
            first = stats.norm(loc, 1) if name == "x" else stats.norm(2 * loc, 4.25**0.5)
            second = stats.norm(1, 3) if name == "x" else stats.norm(0, 2)
            exact = np.exp(r) * first.pdf(grid) + np.exp(0.3) * second.pdf(grid)
            np.testing.assert_allclose(curve, exact, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(share * (np.exp(r) + np.exp(0.3)), curve, rtol=1e-12)


@pytest.mark.slow
def test_densities_over_two_and_more_parameters():
    covariance = np.array([[1.0, 0.6, 0.2], [0.6, 2.0, 0.0], [0.2, 0.0, 1.0]])

    def population(h):
        pair = dist.MultivariateNormal(h["loc"] * jnp.ones(2), jnp.asarray(covariance[:2, :2]))
        triple = dist.MultivariateNormal(jnp.zeros(3), jnp.asarray(covariance))
        return Joint({("a", "b"): pair, ("c", "d", "e"): triple})

    hyper = {"loc": np.array([0.3])}
    grid = np.linspace(-3, 3, 25)
    pair = population_curves(population, hyper, "b", grid, key=KEY)[0]
    np.testing.assert_allclose(pair, stats.norm(0.3, 2**0.5).pdf(grid), rtol=1e-3, atol=1e-4)
    histogram = population_curves(population, hyper, "d", grid, key=KEY)[0]
    exact = np.diff(stats.norm(0, 2**0.5).cdf(np.linspace(-3.125, 3.125, 26))) / 0.25
    error = np.sqrt(exact / (0.25 * 32 * 512))
    assert np.abs((histogram - exact) / error).max() < 4


def test_several_parents_and_derived_quantities():
    def population(h):
        return Joint(
            a=dist.Normal(h["loc"], 1.0),
            b=dist.Normal(0.0, 1.0),
            c=lambda t: dist.Normal(t["a"] + t["b"], 1.0),
        )

    hyper = {"loc": np.array([1.0])}
    grid = np.linspace(-3, 5, 17)
    exact = stats.norm(1, 3**0.5).pdf(grid)
    curve = population_curves(population, hyper, "c", grid, key=KEY)[0]
    scatter = np.sqrt(stats.norm(1, 2.5**0.5).pdf(grid) / (4 * np.pi) ** 0.5 - exact**2)
    assert np.abs((curve - exact) / (scatter / 512**0.5)).max() < 4
    total = population_curves(
        population, hyper, "sum", grid, key=KEY, derived=lambda t: t["a"] + t["b"] + t["c"]
    )[0]
    # Twice (a + b) plus noise of one: variance 9.
    exact = np.diff(stats.norm(2, 3).cdf(np.linspace(-3.25, 5.25, 18))) / 0.5
    assert np.abs((total - exact) / np.sqrt(exact / (0.5 * 32 * 512))).max() < 4


def test_curves_refuse_what_they_cannot_do():
    with pytest.raises(InputError, match=r"'m3'.*Give `derived`"):
        population_curves(masses, HYPER, "m3", [1.0, 2.0], key=KEY)
    with pytest.raises(InputError, match="increasing"):
        population_curves(masses, HYPER, "m1", [2.0, 1.0], key=KEY)
    with pytest.raises(InputError, match="same number of draws"):
        population_curves(masses, {"alpha": np.ones(2), "low": 3.0}, "m1", [1.0, 2.0], key=KEY)


def test_hyperparameter_draws_are_of_equal_weight_and_complete():
    x = np.linspace(0, 1, 2001)[None]
    result = Result(
        {"a": x}, Status(True), log_weight=np.log(np.maximum(x, 1e-12)), fixed={"b": 2.0}
    )
    prior = Prior({"a": dist.Uniform(0, 1), "b": 2.0, "c": "a"})
    draws = hyperparameter_draws(result, 500, key=KEY, prior=prior)
    assert {k: v.shape for k, v in draws.items()} == dict.fromkeys("abc", (500,))
    np.testing.assert_allclose(np.mean(draws["a"]), 2 / 3, atol=2e-3)
    np.testing.assert_array_equal(draws["c"], draws["a"])
    assert set(hyperparameter_draws(result, 5, key=KEY)) == {"a", "b"}


def test_posterior_predictive_averages_over_the_posterior():
    rng = np.random.default_rng(1)
    hyper = {"loc": rng.normal(3, 2, 4000)}
    theta = posterior_predictive(
        lambda h: Joint(x=dist.Normal(h["loc"], 1.0)), hyper, key=KEY, num=2
    )["x"]
    assert theta.shape == (4000, 2)
    assert stats.kstest(theta[:, 0], stats.norm(3, 5**0.5).cdf).pvalue > 1e-3
    # Objects of one draw share its hyperparameters.
    np.testing.assert_allclose(np.corrcoef(theta.T)[0, 1], 0.8, atol=0.03)


@pytest.mark.parametrize("kind", ["injections", "function"])
def test_detected_predictive(kind):
    """Detection exp(-x/2) of an exponential population of rate one: exponential of rate 3/2."""
    rng = np.random.default_rng(2)

    def population(h):
        return Mixture({"e": Joint(x=dist.Exponential(h["rate"]))}, log_weights={"e": 4.0})

    selection = lambda theta: -0.5 * theta["x"]  # noqa: E731
    if kind == "injections":
        x = rng.exponential(2.0, 60_000)
        found = rng.random(x.size) < np.exp(-0.5 * x)
        log_ref = -0.5 * x[found] - np.log(2)
        selection = Samples([{"x": x[found]}], [log_ref], num_drawn=[x.size])
    hyper = {"rate": np.ones(40)}
    drawn = detected_predictive(population, hyper, selection, key=KEY, num=50)["x"]
    assert drawn.shape == (40, 50)
    assert stats.kstest(drawn.ravel(), stats.expon(scale=2 / 3).cdf).pvalue > 1e-3


def test_detected_predictive_says_what_is_wrong():
    population = lambda h: Joint(x=dist.Uniform(0.0, h["high"]))  # noqa: E731
    hyper = {"high": np.array([1.0, 0.1])}
    selection = Samples([{"x": np.array([0.5])}], [np.zeros(1)])
    with pytest.raises(InputError, match="nothing is detected at 1 of 2"):
        detected_predictive(population, hyper, selection, key=KEY)
    with pytest.raises(InputError, match="type int"):
        detected_predictive(population, hyper, 3, key=KEY)
    with pytest.raises(InputError, match="one object, not 2"):
        two = Samples([{"x": np.ones(1)}] * 2, [np.zeros(1)] * 2)
        detected_predictive(population, hyper, two, key=KEY)
