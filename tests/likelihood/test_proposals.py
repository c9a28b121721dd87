"""Selection by a function, against quadrature in two dimensions, and what is refused."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus.density import Joint, Mixture
from skycensus.distributions import PowerLaw
from skycensus.errors import InputError
from skycensus.likelihood import Samples
from skycensus.likelihood.proposals import DetectedBy, selection_by_function
from skycensus.model import HierarchicalModel
from skycensus.prior import Prior

KEY = jax.random.key(7)
NUM = 4096


def population(h):
    low, high = h["low"], h["high"]
    joint = Joint(
        {
            "x": PowerLaw(h["slope"], low, high),
            "y": lambda theta: PowerLaw(1.0, low, theta["x"]),
        }
    )
    return Mixture({"all": joint}, log_weights={"all": h["log_rate"]})


def prior():
    return Prior(
        {
            "slope": dist.Uniform(-3.0, 1.0),
            "low": dist.Uniform(1.0, 3.0),
            "high": dist.Uniform(10.0, 30.0),
            "log_rate": dist.Uniform(-2.0, 4.0),
        }
    )


def log_volume(theta):
    """Falls to nothing for unequal x and y."""
    value = 2.0 * jnp.log(theta["x"]) + 0.5 * jnp.log(theta["y"])
    return jnp.where(theta["y"] > 0.1 * theta["x"], value, -jnp.inf)


def exact(h):
    """The integral in closed coordinates: Gauss-Legendre in ln x, and in y above its two edges."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    low, high = math.log(h["low"]), math.log(h["high"])
    total = 0.0
    # The volume has an edge at y = x/10, which crosses the lower bound of y at x = 10 low.
    kink = min(max(math.log(10.0 * h["low"]), low), high)
    for a, b in ((low, kink), (kink, high)):
        u = a + (b - a) * (nodes + 1.0) / 2.0
        x = np.exp(u)
        bottom = np.maximum(h["low"], 0.1 * x)
        y = bottom[:, None] + (x - bottom)[:, None] * (nodes + 1.0) / 2.0
        wide = {"x": jnp.asarray(np.broadcast_to(x[:, None], y.shape)), "y": jnp.asarray(y)}
        f = np.exp(np.asarray(population(h).log_prob(wide) + log_volume(wide)))
        inner = np.sum(f * weights, axis=1) * (x - bottom) / 2.0
        total += np.sum(inner * x * weights) * (b - a) / 2.0
    return math.log(total)


@pytest.fixture(scope="module")
def selection():
    return selection_by_function(log_volume, population, prior(), KEY, NUM)


@pytest.mark.slow
def test_agrees_with_quadrature_over_the_prior_within_the_stated_variance(selection):
    points = prior().sample(jax.random.key(1), (40,))
    marginals = jax.jit(
        lambda h: jax.lax.map(lambda one: selection.log_marginal(population(one)), h)
    )(points)
    assert selection.names == ("selection",)
    truth = np.array([exact({n: float(x[i]) for n, x in points.items()}) for i in range(40)])
    value, variance = np.asarray(marginals.value)[:, 0], np.asarray(marginals.variance)[:, 0]
    z = (value - truth) / np.sqrt(variance)
    # Even spreading makes the error about half of what the variance says; all points share draws.
    assert np.abs(z).max() < 3.0
    assert 0.1 < np.sqrt(np.mean(z**2)) < 1.3
    assert np.median(np.sqrt(variance)) < 0.05


@pytest.mark.slow
def test_the_stated_variance_covers_the_error_over_keys():
    h = {"slope": -1.0, "low": 2.0, "high": 20.0, "log_rate": 1.0}
    truth = exact(h)
    errors, stated = [], []
    for seed in range(6):
        form = selection_by_function(
            log_volume, population, prior(), jax.random.key(seed), 1024, num_prior=64
        )
        out = form.log_marginal(population(h))
        errors.append(float(out.value[0]) - truth)
        stated.append(math.sqrt(float(out.variance[0])))
    assert math.sqrt(np.mean(np.square(errors))) < 1.3 * np.mean(stated)
    assert abs(np.mean(errors)) < np.mean(stated)


def test_is_a_function_of_the_key(selection):
    again = selection_by_function(log_volume, population, prior(), KEY, NUM)
    h = {"slope": -1.0, "low": 2.0, "high": 20.0, "log_rate": 1.0}
    a, b = (form.log_marginal(population(h)).value for form in (selection, again))
    np.testing.assert_array_equal(a, b)


def test_points_of_the_prior_without_a_density_are_left_out():
    # Half of these have low above high, where nothing can be drawn.
    wide = Prior(
        {
            "slope": dist.Uniform(-2.0, 0.0),
            "low": dist.Uniform(1.0, 5.0),
            "high": dist.Uniform(2.0, 6.0),
            "log_rate": 0.0,
        }
    )
    form = selection_by_function(log_volume, population, wide, KEY, 512, num_prior=64)
    h = {"slope": -1.0, "low": 2.0, "high": 5.0, "log_rate": 0.0}
    out = form.log_marginal(population(h))
    assert abs(float(out.value[0]) - exact(h)) < 4.0 * math.sqrt(float(out.variance[0]))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda theta: jnp.where(theta["x"] > 5.0, jnp.nan, 0.0), "is nan at x="),
        (lambda theta: theta["x"] * 0.0 + jnp.inf, "is inf at x="),
        (lambda theta: jnp.full_like(theta["x"], -jnp.inf), "nothing is detected"),
    ],
)
def test_a_detection_function_that_cannot_be_is_refused(function, message):
    with pytest.raises(InputError, match=message):
        selection_by_function(function, population, prior(), KEY, 64, num_prior=8)


def test_a_population_without_a_density_is_refused():
    empty = Prior({"slope": 0.0, "low": 5.0, "high": 4.0, "log_rate": 0.0})
    with pytest.raises(InputError, match="no finite density at any"):
        selection_by_function(log_volume, population, empty, KEY, 64, num_prior=8)
    with pytest.raises(InputError, match="num=0"):
        selection_by_function(log_volume, population, prior(), KEY, 0)


def test_a_selection_by_a_function_of_the_density():
    def detected(density, data):
        return data["time"] * jnp.exp(density.log_total), 0.04 * jnp.exp(2.0 * density.log_total)

    form = DetectedBy(detected, {"time": jnp.asarray(2.0)})
    h = {"slope": -1.0, "low": 2.0, "high": 20.0, "log_rate": jnp.asarray(1.5)}
    out = form.log_marginal(population(h))
    np.testing.assert_allclose(out.value, [1.5 + math.log(2.0)])
    np.testing.assert_allclose(out.variance, [0.01])
    none = DetectedBy(lambda density, data: (0.0, 0.0)).log_marginal(population(h))
    assert none.value[0] == -np.inf
    draws = {"x": np.array([4.0, 5.0]), "y": np.array([3.0, 4.0])}
    events = Samples([draws], [np.zeros(2)])
    model = HierarchicalModel(prior(), population, events, selection=form)
    target = model.target()
    x = target.sample_prior(KEY, 1)[0]
    value, slope = jax.jit(jax.value_and_grad(lambda x, d: target.log_density(x, d)))(
        x, target.data
    )
    assert np.isfinite(value) and np.all(np.isfinite(slope))


def test_network_and_injections_of_the_reference_agree(shared, require_path):
    folder = require_path(shared / "reference/gwkokab")
    from skycensus.gw.injections import read_injections
    from skycensus.gw.mass import n_power_laws_m_gaussians
    from skycensus.gw.neural import read_network

    masses = n_power_laws_m_gaussians(1, 0)
    network = read_network(folder / "neural_vt.hdf5")
    form = selection_by_function(
        network.log_value, masses, Prior.read(folder / "prior.json"), KEY, 2**14
    )
    found = read_injections(folder / "injections_found.hdf5", ("mass_1_source", "mass_2_source"))
    injected = Samples([found.theta], [found.log_p_draw], num_drawn=[round(found.total_generated)])
    assert found.scale is not None
    posterior = json.loads((folder / "reference_posterior.json").read_text())["params"]
    for quantile in range(5):
        h = {n: jnp.asarray(p["q05_16_50_84_95"][quantile]) for n, p in posterior.items()}
        mine, theirs = (f.log_marginal(masses(h)) for f in (form, injected))
        noise = math.sqrt(float(mine.variance[0] + theirs.variance[0]))
        difference = float(mine.value[0] - theirs.value[0]) - math.log(found.scale)
        # The network is good to 0.02 rms in ln VT, which partly averages out.
        assert abs(difference) < 0.02 + 2.0 * noise
