import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from skycensus import Grid, HierarchicalModel, Joint, Mixture, Prior, Samples
from skycensus.errors import InputError
from skycensus.informed import informed_objects, membership, observed_predictive
from skycensus.result import Result, Status

KEY = jax.random.key(5)
MEASURED = np.array([-1.0, 0.5, 2.0, 3.0])
ERROR = 0.8


def normal(h):
    return Joint(x=dist.Normal(h["loc"], h["scale"]))


def two(h):
    parts = {name: Joint(x=dist.Normal(loc, 0.7)) for name, loc in (("left", -1), ("right", 2))}
    inner = Mixture(parts, log_weights={"left": h["r"], "right": 0.4})
    wide = Joint(x=dist.Normal(0.0, 3.0))
    return Mixture({"tree": inner, "wide": wide}, log_weights={"tree": 0.1, "wide": -1.0})


def objects(num=20_000, block_size=None):
    """Posteriors of x given a Gaussian measurement and a prior N(0, 2)."""
    rng = np.random.default_rng(0)
    variance = 1 / (1 / ERROR**2 + 1 / 4)
    draws, refs = [], []
    for i, d in enumerate(MEASURED):
        x = rng.normal(variance * d / ERROR**2, variance**0.5, num + 37 * i)
        draws.append({"x": x, "label": np.full(x.size, float(i))})
        refs.append(stats.norm(0, 2).logpdf(x))
    return Samples(draws, refs, names=list("abcd"), block_size=block_size)


def posterior(**values):
    return Result({k: np.asarray(v, float)[None] for k, v in values.items()}, Status(True))


PRIOR = Prior({"loc": dist.Normal(0, 5), "scale": dist.LogNormal(0, 1)})


@pytest.mark.parametrize("block_size", [None, 1500])
def test_draws_come_back_in_order(block_size):
    samples = objects(1000, block_size)
    whole = objects(1000)
    for i in range(4):
        draws = samples.object_draws(i)
        assert draws["x"].size == 1000 + 37 * i and np.all(draws["label"] == i)
        np.testing.assert_array_equal(draws["x"], whole.object_draws(i)["x"])
        np.testing.assert_allclose(draws["log_ref"], stats.norm(0, 2).logpdf(draws["x"]))


@pytest.mark.parametrize("block_size", [None, 6000])
def test_informed_posteriors_of_a_conjugate_model(block_size):
    """Normal population and measurements: each term is a normal, and their mixture is known."""
    model = HierarchicalModel(PRIOR, normal, objects(block_size=block_size), rate="shape")
    locs, scales = np.array([0.5, 1.5, 1.0]), np.array([1.0, 0.6, 1.5])
    informed = informed_objects(model, posterior(loc=locs, scale=scales), key=KEY, num_draws=3)
    variance = 1 / (1 / ERROR**2 + 1 / scales**2)
    means = variance * (MEASURED[:, None] / ERROR**2 + locs / scales**2)
    summary = informed.summary("x")
    error = np.sqrt(1 / informed.n_eff)
    assert np.all(np.abs(summary["informed"]["mean"] - means.mean(1)) < 4 * error)
    for level in (0.05, 0.5, 0.95):
        at = summary["informed"][f"{level * 100:.0f}"]
        exact = stats.norm(means.T, variance[:, None] ** 0.5).cdf(at).mean(0)
        assert np.all(np.abs(exact - level) < 4 * error * (level * (1 - level)) ** 0.5 + 1e-3)
    own = MEASURED / ERROR**2 / (1 / ERROR**2 + 1 / 4)
    np.testing.assert_allclose(summary["original"]["mean"], own, atol=0.02)
    assert all(abs(w.sum() - 1) < 1e-12 for w in informed.weights)
    assert [d["x"].size for d in informed.draws] == [w.size for w in informed.weights]
    for x, mean in zip(informed.resample("x", 4000), summary["informed"]["mean"], strict=True):
        assert abs(x.mean() - mean) < 4 * x.std() / 4000**0.5


def test_the_reference_is_the_population_then_nothing_changes():
    prior = Prior({"loc": 0.0, "scale": 2.0})
    model = HierarchicalModel(prior, normal, objects(500), rate="shape")
    informed = informed_objects(model, posterior(unused=np.zeros(9)), key=KEY, num_draws=4)
    for w in informed.weights:
        np.testing.assert_allclose(w, 1 / w.size, rtol=1e-12)
    np.testing.assert_allclose(informed.n_eff, 500 + 37 * np.arange(4))


@pytest.mark.parametrize("form", ["samples", "grid"])
def test_membership_of_a_mixture_tree(form):
    if form == "samples":
        likelihood, accuracy = objects(), 0.02
    else:
        x = np.linspace(-15, 15, 3001)
        table = stats.norm(x, ERROR).logpdf(MEASURED[:, None])
        likelihood, accuracy = Grid({"x": x}, table, np.log(0.01), names=list("abcd")), 1e-9
    model = HierarchicalModel(Prior({"r": dist.Normal(0, 1)}), two, likelihood, rate="shape")
    r = np.array([0.0, 1.0, -2.0])
    found = membership(model, posterior(r=r), key=KEY, num_draws=3)
    assert list(found) == ["tree/left", "tree/right", "wide"]
    weights = [np.exp(r + 0.1), np.exp(0.5) + 0 * r, np.exp(-1.0) + 0 * r]
    scales = np.hypot([0.7, 0.7, 3.0], ERROR)
    parts = np.stack([
        w[:, None] * stats.norm(loc, s).pdf(MEASURED)
        for w, loc, s in zip(weights, (-1, 2, 0), scales, strict=True)
    ])  # fmt: skip
    np.testing.assert_allclose(np.stack(list(found.values())), parts / parts.sum(0), atol=accuracy)


def test_observed_and_predicted_agree_where_the_model_is_right():
    """Population N(loc, 1), detection exp(x - 4) below 4: the detected are N(loc + 1, 1)."""
    rng = np.random.default_rng(4)
    true = rng.normal(1.0, 1.0, 60)
    measured = true + rng.normal(0, 0.3, 60)
    draws = [{"x": rng.normal(m, 0.3, 400)} for m in measured]
    samples = Samples(draws, [np.zeros(400)] * 60)
    x = rng.uniform(-6, 8, 200_000)
    found = rng.random(x.size) < np.exp(np.minimum(x - 6, 0))
    injections = Samples([{"x": x[found]}], [np.full(found.sum(), -np.log(14))], num_drawn=[x.size])
    prior = Prior({"loc": dist.Normal(0, 5), "scale": 1.0})
    model = HierarchicalModel(prior, normal, samples, selection=injections, rate="shape")
    locs = np.full(200, measured.mean() - 1.0)
    check = observed_predictive(model, posterior(loc=locs), key=KEY, num_draws=200)
    assert check.observed["x"].shape == check.predicted["x"].shape == (200, 60)
    np.testing.assert_allclose(check.predicted["x"].mean(), measured.mean(), atol=0.05)
    # A draw of each object given the population: shrunk a little towards its mean.
    shrunk = (measured / 0.09 + locs[0]) / (1 / 0.09 + 1)
    np.testing.assert_allclose(check.observed["x"].mean(0), shrunk, atol=5 * 0.3 / 200**0.5)
    grid = np.linspace(-3, 5, 9)
    observed, predicted = check.cumulative("x", grid)
    assert observed.shape == (200, 9) and np.all(np.diff(predicted, axis=1) >= 0)
    assert np.all(predicted[:, -1] > 0.9)
    low, high = np.quantile(predicted, [0.005, 0.995], axis=0)
    assert np.all((np.median(observed, 0) >= low) & (np.median(observed, 0) <= high))


def test_what_cannot_be_done_says_why():
    grid = Grid({"x": np.linspace(-1, 1, 5)}, np.zeros((2, 5)), 0.0)
    model = HierarchicalModel(PRIOR, normal, grid, rate="shape")
    result = posterior(loc=np.zeros(4), scale=np.ones(4))
    with pytest.raises(InputError, match="needs Samples"):
        informed_objects(model, result, key=KEY, num_draws=2)

    def box(h):
        return Joint(x=dist.Uniform(h["low"], 9.0))

    boxed = HierarchicalModel(Prior({"low": dist.Uniform(-9, 8)}), box, objects(50), rate="shape")
    with pytest.raises(InputError, match=r"^a has no draw inside the population"):
        informed_objects(boxed, posterior(low=np.array([-8.0, 7.0])), key=KEY, num_draws=2)
    with pytest.raises(InputError, match="no selection"):
        observed_predictive(boxed, posterior(low=np.zeros(2)), key=KEY, num_draws=2)
