"""Objects known by learned densities, against exact log marginals and raw draws."""

import runpy
from pathlib import Path

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import InputError, Joint, Samples
from skycensus.estimators import fit_density
from skycensus.likelihood.learned import learned_samples

NUM_DRAWS = 150
AT = np.array([[-0.8, 0.1], [0.3, 0.6], [1.1, -0.7], [0.0, 0.0], [0.6, 0.2], [-0.2, -0.5]])
SIGMA = np.array([0.8, 0.5])


def raw_draws():
    rng = np.random.default_rng(2)
    return [dict(zip("xy", rng.normal(at, SIGMA, (NUM_DRAWS, 2)).T, strict=True)) for at in AT]


def flat(theta):
    return 0.0 * theta["x"]


@pytest.fixture(scope="module")
def densities():
    return [fit_density(jax.random.key(i), d, kind="gaussian") for i, d in enumerate(raw_draws())]


def test_a_narrow_population_is_resolved_by_few_draws(densities):
    """The scatter about the exact log marginals is a fraction of that of the raw draws."""
    width = 0.15
    population = Joint(x=dist.Normal(0.2, width), y=dist.Normal(0.1, width))
    spread = np.hypot(SIGMA, width)
    exact = np.asarray(dist.Normal(np.array([0.2, 0.1]), spread).log_prob(AT)).sum(-1)
    form = learned_samples(densities, flat, key=jax.random.key(1), num_draws=4000)
    found = form.log_marginal(population)
    raw = Samples(raw_draws(), [np.zeros(NUM_DRAWS)] * len(AT)).log_marginal(population)
    scatter = [np.sqrt(np.mean((np.asarray(m.value) - exact) ** 2)) for m in (found, raw)]
    assert scatter[0] < 0.35 and scatter[0] < 0.6 * scatter[1]
    assert (np.asarray(found.variance) < 0.06 * np.asarray(raw.variance)).all()


def test_priors_and_evidences_enter(densities):
    def linear(theta):
        return 0.3 * theta["x"]

    population = Joint(x=dist.Normal(0.2, 0.5), y=dist.Normal(0.1, 0.5))
    tilted = Joint(x=dist.Normal(0.2 + 0.3 * 0.25, 0.5), y=dist.Normal(0.1, 0.5))
    evidences = np.linspace(-2.0, 1.0, len(AT))
    key = jax.random.key(1)
    plain = learned_samples(densities, flat, key=key).log_marginal(population)
    # Over exp(0.3 x), the tilted Gaussian is the plain one up to a constant.
    other = learned_samples(densities, [linear] * 6, key=key, log_evidence=evidences)
    found = other.log_marginal(tilted)
    constant = 0.3 * 0.2 + 0.5 * 0.3**2 * 0.25
    expected = np.asarray(plain.value) + evidences - constant
    assert np.asarray(found.value) == pytest.approx(expected, abs=1e-9)


def test_the_key_decides_and_names_are_kept(densities):
    one, two, three = (
        learned_samples(densities, flat, key=jax.random.key(k), num_draws=50, names=list("abcdef"))
        for k in (1, 1, 2)
    )
    assert one.names == tuple("abcdef")
    assert np.array_equal(one.object_draws(2)["x"], two.object_draws(2)["x"])
    assert not np.array_equal(one.object_draws(2)["x"], three.object_draws(2)["x"])


def test_what_cannot_be_is_told(densities):
    key = jax.random.key(0)
    with pytest.raises(InputError, match="there are no densities"):
        learned_samples([], flat, key=key)
    with pytest.raises(InputError, match="log_prior has 2 entries for 6 densities"):
        learned_samples(densities, [flat, flat], key=key)
    with pytest.raises(InputError, match="object 0: its learned density reaches where its prior"):
        learned_samples(densities, dist_of_x, key=key)


def dist_of_x(theta):
    return np.where(theta["x"] > 0.0, 0.0, -np.inf)


@pytest.mark.slow
def test_the_example_is_nearer_to_the_exact_answer_than_raw_draws():
    path = Path(__file__).parents[2] / "examples" / "few_draws" / "run.py"
    example = runpy.run_path(str(path))
    rows = {
        name: example["posterior"](form, jax.random.key(2)).summary()["width"]
        for name, form in example["forms"](*example["objects"]()).items()
    }
    exact = rows["exact"]
    off = {name: abs(row["mean"] - exact["mean"]) / exact["sd"] for name, row in rows.items()}
    assert off["learned"] < 1.2 and off["raw draws"] > 3.0
