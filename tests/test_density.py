from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats

from skycensus import InputError, Joint, Mixture, PowerLaw
from skycensus.density import Density, Kernels, log_terms, log_total, logsumexp_terms


def normal(loc, scale=1.0, name="x"):
    return Joint({name: dist.Normal(loc, scale)})


# --- Joint -------------------------------------------------------------------------------------


def test_joint_is_the_product_of_its_factors():
    density = Joint({"x": dist.Normal(1.0, 2.0)}, y=dist.Gamma(2.0, 3.0))
    assert density.names == ("x", "y")
    assert isinstance(density, Density)
    got = density.log_prob({"y": jnp.array([0.5, 1.5]), "x": jnp.array([0.0, 3.0])})
    want = scipy.stats.norm.logpdf([0, 3], 1, 2) + scipy.stats.gamma.logpdf(
        [0.5, 1.5], 2, scale=1 / 3
    )
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_conditional_factor_sees_earlier_parameters():
    density = Joint({"x": dist.Normal(0.0, 1.0), "y": lambda t: dist.Normal(2 * t["x"], 0.5)})
    got = density.log_prob({"x": jnp.array(0.3), "y": jnp.array(1.0)})
    want = scipy.stats.norm.logpdf(0.3) + scipy.stats.norm.logpdf(1.0, 0.6, 0.5)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    draws = jax.jit(lambda k: density.sample(k, (50_000,)))(jax.random.key(0))
    np.testing.assert_allclose(
        np.cov(draws["x"], draws["y"]), np.array([[1, 2], [2, 4.25]]), atol=0.1
    )


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_conditional_factors_draw_once_for_each_condition(shape):
    density = Joint(
        {
            "x": dist.Normal(0.0, 1.0),
            "u": lambda t: dist.Uniform(0.0, 1.0),
            "v": lambda t: dist.Normal(t["x"], 1e-6),
            ("y", "z"): lambda t: Joint(
                {"y": dist.Normal(t["x"], 1e-6), "z": lambda s: dist.Normal(s["y"] + t["u"], 1e-6)}
            ),
            "w": lambda t: Mixture(
                {"a": normal(t["x"], 1e-6, "w"), "b": normal(t["x"], 1e-6, "w")},
                log_weights={"a": 0.0, "b": t["u"]},
            ),
        }
    )
    draws = jax.jit(lambda k: density.sample(k, shape))(jax.random.key(1))
    assert {n: d.shape for n, d in draws.items()} == dict.fromkeys("xuvyzw", shape)
    for name in "vyw":
        np.testing.assert_allclose(draws[name], draws["x"], atol=1e-4)
    np.testing.assert_allclose(draws["z"], draws["x"] + draws["u"], atol=1e-4)
    if shape:
        assert np.unique(draws["x"] - draws["w"]).size == draws["x"].size


def test_factor_over_a_tuple_of_names():
    cov = jnp.array([[2.0, 0.5], [0.5, 1.0]])
    density = Joint({("x", "y"): dist.MultivariateNormal(jnp.array([1.0, -1.0]), cov)})
    got = density.log_prob({"x": jnp.array([0.1, 2.0]), "y": jnp.array([0.0, 1.0])})
    want = scipy.stats.multivariate_normal.logpdf(
        [[0.1, 0.0], [2.0, 1.0]], [1, -1], np.asarray(cov)
    )
    np.testing.assert_allclose(got, want, rtol=1e-12)
    draws = jax.jit(lambda k: density.sample(k, (40_000,)))(jax.random.key(0))
    np.testing.assert_allclose(np.cov(draws["x"], draws["y"]), cov, atol=0.06)
    conditional = Joint(
        {
            "s": dist.Uniform(0.0, 1.0),
            ("x", "y"): lambda t: dist.MultivariateNormal(
                jnp.stack([t["s"], -t["s"]], -1), 1e-8 * jnp.eye(2)
            ),
        }
    )
    draws = jax.jit(lambda k: conditional.sample(k, (6,)))(jax.random.key(0))
    np.testing.assert_allclose(draws["x"], -draws["y"], atol=1e-2)


EDGES = {
    "uniform": (lambda h: dist.Uniform(h, h + 1.0), [-0.1, 1.1], [0.0, 0.5, 1.0]),
    "power law": (lambda h: PowerLaw(-2.0, h + 1.0, 5.0), [-1.0, 0.0, 0.5, 6.0], [1.0, 2.0, 5.0]),
    "truncated": (lambda h: dist.TruncatedNormal(h, 1.0, low=0.0), [-1e3, -0.1], [0.0, 3.0]),
    "one-sided": (lambda h: dist.TruncatedNormal(h, 1.0, high=0.0), [0.1, 1e3], [0.0, -3.0]),
    "log-normal": (lambda h: dist.LogNormal(h, 1.0), [-2.0, 0.0], [0.1, 4.0]),
    "gamma": (lambda h: dist.Gamma(2.0 + h, 1.0), [-2.0, 0.0], [0.1, 4.0]),
    "beta": (lambda h: dist.Beta(2.0 + h, 3.0), [-0.5, 1.5], [0.2, 0.9]),
}


@pytest.mark.parametrize(("make", "out", "inside"), EDGES.values(), ids=list(EDGES))
def test_support_edges_have_finite_gradients(make, out, inside):
    def log_prob(h, x):
        return Joint({"x": make(h)}).log_prob({"x": x})

    x = jnp.array([*out, *inside])
    value = jax.jit(log_prob)(0.0, x)
    np.testing.assert_array_equal(value[: len(out)], -jnp.inf)
    np.testing.assert_allclose(value[len(out) :], make(0.0).log_prob(jnp.array(inside)))
    assert bool(jnp.all(jnp.isfinite(value[len(out) :])))
    # The gradient of a sum of exponentials, as in a Monte Carlo integral, and each by itself.
    slope = jax.jit(jax.grad(lambda h: jax.scipy.special.logsumexp(log_prob(h, x))))(0.0)
    assert bool(jnp.isfinite(slope))
    slopes = jax.jit(jax.jacrev(log_prob, argnums=(0, 1)))(0.0, x)
    assert all(bool(jnp.all(jnp.isfinite(s))) for s in slopes)
    assert bool(jnp.all(jnp.isfinite(slopes[0])))


def test_nan_bounds_are_not_hidden():
    value = jax.jit(lambda low: Joint({"x": dist.Uniform(low, 2.0)}).log_prob({"x": jnp.ones(3)}))
    assert bool(jnp.all(jnp.isnan(value(jnp.nan))))
    value = jax.jit(lambda low: Joint({"x": PowerLaw(1.0, low, 2.0)}).log_prob({"x": jnp.ones(3)}))
    assert bool(jnp.all(jnp.isnan(value(jnp.nan))))


def test_missing_parameter_is_named():
    density = Joint({"mass_1": dist.Normal(0.0, 1.0), "redshift": dist.Uniform(0.0, 1.0)})
    with pytest.raises(InputError, match=r"'redshift'.*\['mass_1', 'redshit'\].*mean 'redshit'"):
        density.log_prob({"mass_1": jnp.ones(2), "redshit": jnp.ones(2)})


def test_joint_errors():
    with pytest.raises(InputError, match="at least one factor"):
        Joint({})
    with pytest.raises(InputError, match=r"more than one factor for \['y'\]"):
        Joint({("x", "y"): normal(0.0), "y": dist.Normal(0.0, 1.0)})


def test_float32_stays_float32():
    h = jnp.float32(0.5)
    density = Joint(
        {"x": PowerLaw(-h, h, h + 3), "y": lambda t: dist.Uniform(jnp.float32(0), t["x"])}
    )
    value = density.log_prob({"x": jnp.ones(3, jnp.float32), "y": jnp.zeros(3, jnp.float32)})
    assert value.dtype == jnp.float32


# --- Mixture -----------------------------------------------------------------------------------


def tree(log_rate=0.7):
    inner = Mixture(
        {"ccr": normal(0.0), "diffuse": normal(2.0)}, log_weights={"ccr": log_rate, "diffuse": -1.0}
    )
    return Mixture({"dm": normal(-3.0, 0.5), "bkg": inner}, log_weights={"dm": 0.0, "bkg": 0.2})


def test_mixture_tree_paths_and_weights():
    x = jnp.array([-3.0, 0.0, 5.0])
    terms = log_terms(tree(), {"x": x})
    assert list(terms) == ["dm", "bkg/ccr", "bkg/diffuse"]
    want = {
        "dm": scipy.stats.norm.logpdf(x, -3, 0.5),
        "bkg/ccr": 0.9 + scipy.stats.norm.logpdf(x),
        "bkg/diffuse": -0.8 + scipy.stats.norm.logpdf(x, 2),
    }
    for name, value in want.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-12)
    total = np.log(sum(np.exp(v) for v in want.values()))
    np.testing.assert_allclose(tree().log_prob({"x": x}), total, rtol=1e-12)


def test_joint_splits_over_a_mixture_among_its_factors():
    density = Joint({"y": dist.Normal(0.0, 1.0), ("x",): tree()})
    theta = {"x": jnp.array(0.5), "y": jnp.array(1.0)}
    assert list(log_terms(density, theta)) == ["dm", "bkg/ccr", "bkg/diffuse"]
    want = scipy.stats.norm.logpdf(1.0) + tree().log_prob(theta)
    np.testing.assert_allclose(density.log_prob(theta), want, rtol=1e-12)


def test_rates_add_up_through_the_tree():
    want = np.log(1.0 + np.exp(0.9) + np.exp(-0.8))
    np.testing.assert_allclose(tree().log_total, want, rtol=1e-12)
    np.testing.assert_allclose(log_total(tree()), want, rtol=1e-12)
    joint = Joint({"y": dist.Normal(0.0, 1.0), ("x",): tree()})
    np.testing.assert_allclose(log_total(joint), want, rtol=1e-12)
    assert log_total(normal(0.0)) == 0.0
    x = jnp.linspace(-12.0, 12.0, 4001)
    integral = jnp.trapezoid(jnp.exp(tree().log_prob({"x": x})), x)
    np.testing.assert_allclose(jnp.log(integral), want, rtol=1e-8)


def test_mixture_draws_in_proportion_to_the_rates():
    num = 40_000
    draws = np.asarray(tree(3.0).sample(jax.random.key(5), (num,))["x"])
    dm = np.mean(draws < -3.0) * 2
    want = 1.0 / np.exp(float(tree(3.0).log_total))
    below = scipy.stats.norm.cdf(-3.0) * np.exp(3.2) * want * 2
    assert abs(dm - want - below) < 5 * np.sqrt(2 * want / num)
    assert tree().sample(jax.random.key(0), (2, 3))["x"].shape == (2, 3)


def test_branches_outside_their_supports_keep_finite_gradients():
    def log_prob(a, weight):
        parts = {
            "p": Joint({"x": dist.Uniform(a, a + 1.0)}),
            "q": Joint({"x": dist.Uniform(5.0, 6.0)}),
        }
        return Mixture(parts, log_weights={"p": weight, "q": 0.0}).log_prob({"x": x})

    x = jnp.array([0.5, 5.5, 10.0])
    np.testing.assert_allclose(log_prob(0.0, 0.3), [0.3, 0.0, -np.inf])
    slopes = jax.jit(jax.jacrev(log_prob, argnums=(0, 1)))(0.0, 0.3)
    np.testing.assert_allclose(slopes[0], [0.0, 0.0, 0.0], atol=1e-15)
    np.testing.assert_allclose(slopes[1], [1.0, 0.0, 0.0], atol=1e-15)
    # A component that is switched off.
    value, slope = jax.jit(jax.value_and_grad(lambda w: log_prob(0.0, w)[1]))(-jnp.inf)
    assert (value, slope) == (0.0, 0.0)


def test_sum_of_leaves_hides_no_nan():
    terms = {"a": jnp.array([jnp.nan, 0.0, -jnp.inf]), "b": jnp.array([0.0, 0.0, -jnp.inf])}
    got = logsumexp_terms(terms)
    assert bool(jnp.isnan(got[0]))
    np.testing.assert_allclose(got[1:], [np.log(2), -np.inf])
    huge = logsumexp_terms({"a": jnp.array(1e4), "b": jnp.array(1e4)})
    np.testing.assert_allclose(huge, 1e4 + np.log(2))


def test_mixture_errors():
    with pytest.raises(InputError, match="at least one component"):
        Mixture({}, log_weights={})
    with pytest.raises(InputError, match=r"weights for\s+\['b'\]"):
        Mixture({"a": normal(0.0)}, log_weights={"b": 0.0})
    with pytest.raises(InputError, match="component 'b' is over"):
        Mixture({"a": normal(0.0), "b": normal(0.0, name="y")}, log_weights={"a": 0.0, "b": 0.0})


def test_components_may_name_their_parameters_in_any_order():
    a = Joint({"x": dist.Normal(-9.0, 0.1), "y": dist.Normal(9.0, 0.1)})
    b = Joint({"y": dist.Normal(5.0, 0.1), "x": dist.Normal(-5.0, 0.1)})
    draws = Mixture({"a": a, "b": b}, log_weights={"a": 0.0, "b": 0.0}).sample(
        jax.random.key(0), (99,)
    )
    assert bool(jnp.all(draws["x"] < 0))
    assert bool(jnp.all(draws["y"] > 0))


# --- Kernels -----------------------------------------------------------------------------------

# The kernel of a draw has the density 3/4 (1 - t^2) on [-1, 1], with this half-width in its
# standard deviations.
REACH = np.sqrt(5.0)


def kernel_average(function, x, width):
    t = (np.arange(20_000) + 0.5) / 10_000 - 1.0
    kernel = 0.75 * (1 - t**2) / 10_000
    return np.sum(kernel * function(x[:, None] + REACH * width * t), axis=1)


def test_kernels_average_the_edges_of_a_flat_density():
    x, width = np.linspace(-1.0, 4.0, 41), 0.2
    theta = Kernels({"x": jnp.asarray(x)}, {"x": jnp.full(41, width)})
    got = np.exp(Joint({"x": dist.Uniform(0.0, 3.0)}).log_prob(theta))
    want = kernel_average(lambda x: np.where((x >= 0) & (x <= 3), 1 / 3, 0.0), x, width)
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_narrow_kernels_are_points():
    x = jnp.array([-0.5, 0.5, 2.9, 3.5])
    sharp = Joint({"x": PowerLaw(-1.5, 0.3, 3.0)})
    soft = sharp.log_prob(Kernels({"x": x}, {"x": jnp.full(4, 1e-9)}))
    np.testing.assert_allclose(soft, sharp.log_prob({"x": x}), rtol=1e-8)


SLIDING = {
    "power law": lambda h: PowerLaw(-2.5, h, h + 4.0),
    "uniform": lambda h: dist.Uniform(h, h + 4.0),
    "truncated": lambda h: dist.TruncatedNormal(0.0, 1.0, low=h),
}


@pytest.mark.parametrize("make", SLIDING.values(), ids=list(SLIDING))
def test_kernels_make_edges_smooth(make):
    x = jnp.linspace(0.2, 6.5, 300)
    theta = Kernels({"x": x}, {"x": jnp.full(300, 0.05)})

    def log_sum(h):
        return jax.scipy.special.logsumexp(Joint({"x": make(h)}).log_prob(theta))

    points = jnp.linspace(0.9, 1.1, 101)
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(log_sum)))(points)
    assert bool(jnp.all(jnp.isfinite(slope)))
    # The gradient sees every change: its integral is the difference, along the whole line.
    step = points[1] - points[0]
    change = jnp.cumsum(0.5 * (slope[1:] + slope[:-1])) * step
    np.testing.assert_allclose(
        change, value[1:] - value[0], atol=2e-3 * float(jnp.ptp(value)) + 1e-4
    )


def test_later_factors_see_kernels_moved_inside():
    density = Joint({"m": PowerLaw(-2.0, 5.0, 50.0), "n": lambda t: PowerLaw(1.0, 5.0, t["m"])})
    theta = Kernels(
        {"m": jnp.array([4.9, 4.0, 20.0]), "n": jnp.array([4.8, 4.0, 20.01])},
        {"m": jnp.full(3, 0.3), "n": jnp.full(3, 0.3)},
    )

    def log_prob(width):
        return density.log_prob(Kernels(theta, {"m": width, "n": width}))

    value = jax.jit(log_prob)(jnp.full(3, 0.3))
    assert np.isfinite(value).tolist() == [True, False, True]
    slope = jax.jit(jax.grad(lambda w: jnp.sum(jnp.exp(log_prob(w)))))(jnp.full(3, 0.3))
    assert bool(jnp.all(jnp.isfinite(slope)))
