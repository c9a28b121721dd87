"""The Monte Carlo error of the log likelihood over a posterior, against repeating the draws."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import logsumexp

from skycensus.analysis import marginals_at
from skycensus.density import Joint, Mixture
from skycensus.likelihood import Grid, LogMarginal, Samples
from skycensus.model import HierarchicalModel
from skycensus.precision import Precision, likelihood_precision, precision_findings
from skycensus.prior import Prior

MEASURED = np.array([-0.8, -0.1, 0.3, 0.9, 1.6])
POINTS = {"mu": np.array([0.1, 0.4, 0.8, 0.2, 0.6]), "log_rate": np.array([1.5, 2, 1.8, 2.2, 1.1])}
WEIGHT = np.array([1.0, 2.0, 0.5, 0.0, 1.5])
PRIOR = {"mu": dist.Normal(0.0, 2.0), "log_rate": dist.Normal(2.0, 1.0)}
NUM_DRAWS, NUM_INJECTIONS, TIME = 1000, 3000, 0.7


def population(h):
    return Mixture({"all": Joint(x=dist.Normal(h["mu"], 1.0))}, log_weights={"all": h["log_rate"]})


def shape_only(h):
    return Joint(x=dist.Normal(h["mu"] + 0.0 * h["log_rate"], 1.0))


def draw(rng):
    """Draws of every object, and injections from N(0, 2) with those found at x > 0."""
    injections = rng.normal(0.0, 2.0, NUM_INJECTIONS)
    return rng.normal(MEASURED[:, None], 0.5, (5, NUM_DRAWS)), injections


def log_likelihood(draws, injections, rate):
    """The estimate at every point, by the formula."""
    mu, log_rate = POINTS["mu"][:, None, None], POINTS["log_rate"]
    objects = logsumexp(stats.norm.logpdf(draws, mu, 1.0), axis=-1).sum(axis=-1)
    log_weight = stats.norm.logpdf(injections, mu[:, 0], 1) - stats.norm.logpdf(injections, 0, 2)
    detected = logsumexp(np.where(injections > 0, log_weight, -np.inf), axis=-1)
    detected = detected - np.log(NUM_INJECTIONS)
    if rate == "shape":
        return objects - 5 * detected
    return objects + 5 * log_rate - TIME * np.exp(log_rate + detected)


def model_of(draws, injections, rate):
    found = injections[injections > 0]
    return HierarchicalModel(
        Prior(PRIOR),
        population if rate == "poisson" else shape_only,
        Samples([{"x": x} for x in draws], [np.zeros(NUM_DRAWS)] * 5),
        selection=Samples(
            [{"x": found}], [stats.norm.logpdf(found, 0, 2)], num_drawn=[NUM_INJECTIONS]
        ),
        rate=rate,
        log_exposure=np.log(TIME),
    )


def precision_of(model, points=POINTS, weight=WEIGHT):
    return likelihood_precision(model, points, weight, marginals_at(model, points, len(weight)))


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["poisson", "shape"])
def test_the_error_of_differences_is_that_of_repeated_draws(rate):
    rng = np.random.default_rng(6)
    repeated = np.array([log_likelihood(*draw(rng), rate) for _ in range(800)])
    p = WEIGHT / WEIGHT.sum()
    spread = np.mean(p @ np.var(repeated, axis=0))
    # The mean over pairs of independent points of half the variance of their difference.
    covariance = np.cov(repeated.T)
    pairs = np.outer(p, p) * (1 - np.eye(5))
    variances = np.diag(covariance)
    halved = 0.5 * (variances[:, None] + variances) - covariance
    difference = np.sum(pairs * halved) / pairs.sum()
    found = precision_of(model_of(*draw(rng), rate))
    # Variances of 800 numbers have a relative error of 5 per cent.
    assert found.difference == pytest.approx(difference, rel=0.15)
    assert found.mean == pytest.approx(spread, rel=0.15)
    assert found.largest > found.mean
    assert difference < 0.6 * spread


def test_an_error_that_all_points_share_is_no_error_of_differences():
    """Points that are one point twice share every error."""
    model = model_of(*draw(np.random.default_rng(1)), "poisson")
    same = {name: np.repeat(x[:1], 5) for name, x in POINTS.items()}
    precision = precision_of(model, same)
    assert precision.mean > 1e-3
    assert precision.difference == pytest.approx(0.0, abs=1e-9)
    # One point has no differences.
    assert precision_of(model, same, np.eye(5)[0]).difference is None


class Unknown(eqx.Module):
    """One object whose noise at two points has a covariance that nobody knows."""

    names: tuple[str, ...] = eqx.field(static=True, default=("selection",))

    def log_marginal(self, density):
        return LogMarginal(jnp.zeros(1), jnp.full(1, 0.3))


def test_tables_have_no_noise_and_a_covariance_may_be_unknown():
    x = np.linspace(-8.0, 9.0, 300)
    table = Grid({"x": x}, stats.norm.logpdf(MEASURED[:, None], x, 0.5), np.log(x[1] - x[0]))
    exact = HierarchicalModel(Prior(PRIOR), shape_only, table, rate="shape")
    assert precision_of(exact)[:3] == (0.0, 0.0, 0.0)
    model = HierarchicalModel(Prior(PRIOR), shape_only, table, selection=Unknown(), rate="shape")
    precision = precision_of(model)
    assert precision.difference is None and precision.mean == pytest.approx(25 * 0.3)


def kinds(precision, limit=None):
    problems, notes = precision_findings(precision, limit)
    assert all(p.kind == "monte_carlo_variance" for p in problems + notes)
    return [p.message for p in problems], [n.message for n in notes]


def test_noisy_differences_are_a_problem_and_a_noisy_level_a_note():
    assert kinds(Precision(0.9, 4.0, 0.5)) == ([], [])
    (problem,), notes = kinds(Precision(4.0, 9.0, 1.2))
    assert "variance of differences of log L is 1.2 over the posterior (goal 1 at most)" in problem
    assert "use more draws per object" in problem and notes == []
    problems, (note,) = kinds(Precision(4.0, 9.0, 0.7))
    assert problems == [] and "the log evidence to +- 2." in note
    problems, (note,) = kinds(Precision(4.0, 9.0, None))
    assert problems == [] and "log L is 4 (goal 1 at most)" in note


def test_a_limit_that_the_user_has_set_is_kept_or_a_problem():
    assert kinds(Precision(1.4, 3.0, 0.5), limit=1.5) == ([], [])
    (problem,), notes = kinds(Precision(1.6, 3.0, 0.5), limit=1.5)
    assert "log L is 1.6 (goal 1.5 at most)" in problem and notes == []


def test_a_posterior_that_the_noise_has_moved_is_a_problem():
    """Variance that falls with a hyperparameter pulls it upwards: by half the slope times sd^2."""
    rng = np.random.default_rng(3)
    x = rng.normal(2.0, 0.3, 4000)
    at = {
        "log_likelihood_variance": np.zeros(4000),
        "value": np.zeros((4000, 1)),
        "variance": (9.0 - 4.0 * (x - 2.0))[:, None],
    }
    grid = np.linspace(-3.0, 3.0, 50)
    model = HierarchicalModel(
        Prior({"mu": dist.Normal(0.0, 2.0)}),
        lambda h: Joint(x=dist.Normal(h["mu"], 1.0)),
        Grid({"x": grid}, np.zeros((1, 50)), np.zeros(50)),
        rate="shape",
    )
    found = likelihood_precision(model, {"mu": x}, np.ones(4000), at)
    # exp(-2 x) moves a normal distribution by -2 sd^2, here -0.6 sd.
    assert found.bias["mu"] == pytest.approx(-0.6, abs=0.05)
    problems, _ = precision_findings(found._replace(mean=0.1, difference=0.1))
    assert [p.kind for p in problems] == ["monte_carlo_variance"]
    assert "moves 'mu' by 0." in problems[0].message
    assert not precision_findings(Precision(0.1, 0.2, 0.1, {"mu": 0.3}))[0]
