"""Calibration: ranks are those of the exact posterior, and a wrong analysis is found out."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from skycensus import Gaussian, HierarchicalModel, Joint, Prior, QuadratureSampler, Target, analysis
from skycensus.calibration import Calibration, calibrate, draw_truth
from skycensus.errors import InputError
from skycensus.result import Problem, Result, Status
from skycensus.stars import parallax

NUM, NOISE = 8, 0.5
NORMAL = Prior({"mu": dist.Normal(0.0, 2.0)})
SAMPLER = QuadratureSampler(tolerance=1e-3, num_samples=4000)


class Normals:
    """Objects with theta ~ N(mu, 1) and Gaussian noise: the posterior of mu is known."""

    def __init__(self, noise_factor: float = 1.0):
        self.noise_factor = noise_factor
        self.num_traced = 0
        self.exact: list[float] = []

    def population(self, h):
        self.num_traced += 1
        return Joint(theta=dist.Normal(h["mu"], 1.0))

    def __call__(self, key):
        truth_key, data_key = jax.random.split(key)
        truth = draw_truth(NORMAL, truth_key)
        spread = math.sqrt(1.0 + NOISE**2)
        y = truth["mu"] + spread * np.asarray(jax.random.normal(data_key, (NUM,)))
        precision = NUM / (1.0 + (self.noise_factor * NOISE) ** 2) + 1 / 2.0**2
        mean = (precision - 1 / 2.0**2) * y.mean() / precision
        self.exact.append(stats.norm.cdf((truth["mu"] - mean) * math.sqrt(precision)))
        noise = np.full(NUM, self.noise_factor * NOISE)
        objects = Gaussian(np.ones((NUM, 1)), y, noise, parameters=["theta"])
        return truth, HierarchicalModel(NORMAL, self.population, objects, rate="shape")


def test_ranks_are_those_of_the_exact_posterior():
    told = []
    simulate = Normals()
    found = calibrate(
        simulate,
        SAMPLER,
        jax.random.key(1),
        num_catalogues=12,
        progress=lambda *args: told.append(args),
    )
    assert found.parameters == ("mu",) and found.not_converged == {}
    # Stratified draws: a share is known to a few in their number.
    np.testing.assert_allclose(found.ranks[:, 0], simulate.exact, atol=2e-3)
    assert told[-1] == (12, 12, "calibrating") and len(told) == 12
    assert found.truths.shape == (12, 1) and np.ptp(found.truths) > 1.0


def test_catalogues_of_one_shape_are_compiled_once():
    simulate = Normals()
    counts = []
    calibrate(
        simulate,
        SAMPLER,
        jax.random.key(2),
        num_catalogues=4,
        progress=lambda *_: counts.append(simulate.num_traced),
    )
    # The population is run once in making each model, and not again for its posterior.
    assert np.diff(counts).tolist() == [1, 1, 1]


def test_programs_that_become_too_many_are_forgotten(monkeypatch):
    """Some 8,000 in one process crash XLA; what is needed again is compiled again."""
    kept = jax.jit(lambda x: x + 1.0)
    kept(1.0)
    monkeypatch.setattr(analysis, "_MOST_MAPS", 10**9)
    analysis.forget_programs()
    assert kept._cache_size() == 1
    want = calibrate(Normals(), SAMPLER, jax.random.key(1), num_catalogues=2)
    monkeypatch.setattr(analysis, "_MOST_MAPS", 0)
    found = calibrate(Normals(), SAMPLER, jax.random.key(1), num_catalogues=2)
    assert kept._cache_size() == 0
    np.testing.assert_array_equal(found.ranks, want.ranks)


def test_a_catalogue_of_another_shape_is_no_harm():
    whole = Normals()

    def simulate(key):
        truth, model = whole(key)
        few = Gaussian(np.ones((3, 1)), np.full(3, 9.0), 0.1, parameters=["theta"])
        later = len(whole.exact) > 2
        return truth, model.with_parts(few, None) if later else model

    found = calibrate(simulate, SAMPLER, jax.random.key(3), num_catalogues=4)
    np.testing.assert_allclose(found.ranks[:2, 0], whole.exact[:2], atol=2e-3)
    precision = 3 / 1.01 + 1 / 4
    z = (found.truths[2:, 0] - 3 / 1.01 * 9.0 / precision) * math.sqrt(precision)
    np.testing.assert_allclose(found.ranks[2:, 0], stats.norm.cdf(z), atol=2e-3)


CONVERGED = Status(True)


class Known:
    """A sampler that draws from the posterior N(0, scale) whatever the target is."""

    def __init__(self, scale: float, *, num: int = 1000, log_weight=None, status=CONVERGED):
        self.scale, self.num, self.log_weight, self.status = scale, num, log_weight, status

    def run(self, target, key, *, progress=None):
        x = self.scale * np.asarray(jax.random.normal(key, (1, self.num)))
        log_weight = None if self.log_weight is None else self.log_weight(x)
        return Result({"x": x}, self.status, log_weight=log_weight)


NOTHING = Target(Prior({"x": dist.Normal(0.0, 1.0)}), lambda free, data: jnp.zeros(()))


def prior_again(key):
    """Data that say nothing: the posterior is the prior."""
    return {"x": float(jax.random.normal(key))}, NOTHING


@pytest.mark.parametrize(
    ("sampler", "lowest", "highest"),
    [
        (Known(1.0), 0.05, 1.0),
        # Draws from elsewhere, weighted to the posterior.
        (Known(1.5, log_weight=lambda x: 0.5 * (x / 1.5) ** 2 - 0.5 * x**2), 0.05, 1.0),
        # Few draws: their number is allowed for.
        (Known(1.0, num=10), 0.05, 1.0),
        (Known(0.7), 0.0, 1e-3),
        (Known(1.5), 0.0, 1e-3),
    ],
)
def test_right_and_wrong_widths(sampler, lowest, highest):
    found = calibrate(prior_again, sampler, jax.random.key(4), num_catalogues=200)
    assert lowest <= found.p_value <= highest


def test_a_bias_is_seen():
    def simulate(key):
        truth, target = prior_again(key)
        return {"x": truth["x"] + 0.5}, target

    found = calibrate(simulate, Known(1.0), jax.random.key(5), num_catalogues=100)
    assert found.p_values()["x"].kolmogorov_smirnov < 1e-3


def test_p_values():
    num = 40
    even = (np.arange(num) + 0.5) / num
    ranks = np.stack([even, even**2], axis=1)
    found = Calibration(("a", "b"), ranks, ranks, ((),) * num)
    tests = found.p_values()
    assert tests["a"].kolmogorov_smirnov > 0.99
    assert tests["b"].kolmogorov_smirnov == stats.kstest(even**2, "uniform").pvalue
    z = stats.norm.ppf(even**2)
    assert tests["b"].chi_square == pytest.approx(2 * stats.chi2.sf(np.sum(z**2), num), rel=1e-6)
    assert found.p_value == pytest.approx(4 * min(tests["b"]))


def test_draws_that_are_not_finite_or_never_moved():
    class Broken(Known):
        def run(self, target, key, *, progress=None):
            return Result({"x": np.full((1, 50), self.scale)}, self.status)

    stuck = Status(False, (Problem.of("stuck", "every draw is 0"),))
    found = calibrate(prior_again, Broken(0.0, status=stuck), jax.random.key(6), num_catalogues=4)
    # One draw: two ranks are possible.
    assert set(found.ranks.ravel()) <= {0.25, 0.75}
    found = calibrate(prior_again, Broken(math.nan), jax.random.key(6), num_catalogues=2)
    assert np.isnan(found.ranks).all() and math.isnan(found.p_value)
    assert found.to_json()["p_value"] is None


def test_what_did_not_converge_is_named_and_counted():
    status = iter([(), ("ess", "r_hat"), (), ("ess",)] * 2)

    class Uneven(Known):
        def run(self, target, key, *, progress=None):
            problems = tuple(Problem.of(kind, "so") for kind in next(status))
            result = super().run(target, key)
            return Result(result.draws, Status(not problems, problems))

    found = calibrate(prior_again, Uneven(1.0), jax.random.key(7), num_catalogues=4)
    assert found.not_converged == {1: ("ess", "r_hat"), 3: ("ess",)}
    assert len(found.ranks) == 4
    assert "4 catalogues, 2 did not converge (ess 2, r_hat 1): 1, 3" in str(found)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["not_converged"] == {"1": ["ess", "r_hat"], "3": ["ess"]}
    assert told["ranks"]["x"] == found.ranks[:, 0].tolist()
    assert told["parameters"]["x"]["chi_square"] == found.p_values()["x"].chi_square


def test_vectors_of_any_numpyro_model():
    def model():
        numpyro.sample("v", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    class Vectors(Known):
        def run(self, target, key, *, progress=None):
            assert target.names == ("v",)
            x = np.asarray(jax.random.normal(key, (1, 500, 2)))
            return Result({"v[0]": x[..., 0], "v[1]": x[..., 1]}, Status(True))

    def simulate(key):
        return {"v": jax.random.normal(key, (2,))}, Target.from_numpyro(model)

    found = calibrate(simulate, Vectors(1.0), jax.random.key(8), num_catalogues=3)
    assert found.parameters == ("v[0]", "v[1]") and found.ranks.shape == (3, 2)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"xx": 0.1}, r"catalogue 0: the truth has 'xx', .* .did you mean 'x'..; sampled are x\."),
        ({"x": math.nan}, "catalogue 0: the true value of 'x' is nan"),
        ({}, "catalogue 0: the truth has none of the sampled parameters x"),
    ],
)
def test_truths_that_make_no_sense(truth, message):
    with pytest.raises(InputError, match=message):
        calibrate(lambda key: (truth, NOTHING), Known(1.0), jax.random.key(0), num_catalogues=2)


def test_no_catalogues():
    with pytest.raises(InputError, match="num_catalogues=0 is not positive"):
        calibrate(prior_again, Known(1.0), jax.random.key(0), num_catalogues=0)


def test_a_truth_has_all_hyperparameters():
    prior = Prior({"a": dist.Uniform(1.0, 2.0), "b": 3.0, "c": "a"})
    truth = draw_truth(prior, jax.random.key(0))
    assert 1.0 < truth["a"] < 2.0 and truth["b"] == 3.0 and truth["c"] == truth["a"]
    assert all(type(value) is float for value in truth.values())


# ---- the star cluster ----------------------------------------------------------------------------

NUM_STARS = 64
CLUSTER = Prior(
    {
        "mu_r": dist.TruncatedNormal(0.5, 0.2, low=0.1),
        "ln_std_r": dist.Uniform(-6.0, -2.0),
    }
)


def cluster(key, *, noise_factor: float = 1.0):
    """Parallaxes of 64 stars, analysed as a user would, with errors that may be told too small."""
    truth_key, star_key, error_key, noise_key = jax.random.split(key, 4)
    truth = draw_truth(CLUSTER, truth_key)
    stars = parallax.normal_cluster(truth).sample(star_key, (NUM_STARS,))
    error = 10 ** np.asarray(jax.random.uniform(error_key, (NUM_STARS,), minval=-2.0, maxval=-1.0))
    measured = np.asarray(1 / stars["r"] + error * jax.random.normal(noise_key, (NUM_STARS,)))
    names = tuple(f"star {i}" for i in range(NUM_STARS))
    objects = parallax.objects(parallax.Parallaxes(measured, noise_factor * error, names))
    return truth, HierarchicalModel(CLUSTER, parallax.normal_cluster, objects, rate="shape")


@pytest.mark.slow
def test_star_cluster(sized):
    """A right analysis passes with 96 keys in a hundred."""
    num = sized(full=200, small=30)
    found = calibrate(cluster, QuadratureSampler(), jax.random.key(21), num_catalogues=num)
    print(found)
    assert found.not_converged == {}
    for name, tests in found.p_values().items():
        assert min(tests) > 0.01, name


@pytest.mark.slow
def test_star_cluster_with_errors_told_too_small(sized):
    def simulate(key):
        return cluster(key, noise_factor=0.7)

    num = sized(full=200, small=30)
    found = calibrate(simulate, QuadratureSampler(), jax.random.key(12), num_catalogues=num)
    print(found)
    assert found.p_value < 1e-3
