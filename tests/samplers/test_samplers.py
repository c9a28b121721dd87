"""Every sampler on targets with known answers; a new one is a line of `contracts.SAMPLERS`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from contracts import SAMPLERS
from samplers.targets import gaussian, gaussian_answer
from scipy.special import gammaln

from skycensus import InputError, Prior, Target
from skycensus.samplers import ImportanceSampler, batch_size, evaluate, in_batches
from skycensus.samplers.student_t import fit

# What takes long to compile or to train: their own tests are the quick ones.
SLOW = ("flow_mcmc", "boosted nested", "learned proposal")
every_sampler = pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(s, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, s in SAMPLERS.items()
    ],
)


@every_sampler
def test_gaussian_posterior(sampler):
    result = sampler.run(gaussian(), jax.random.key(3))
    mean, covariance, log_z = gaussian_answer()
    summary = result.summary()
    for i, name in enumerate(("a", "b")):
        row = summary[name]
        assert abs(row["mean"] - mean[i]) < 4 * row["mcse_mean"]
        sd = np.sqrt(covariance[i, i])
        assert abs(row["sd"] - sd) < 4 * sd / np.sqrt(row["ess_bulk"])
    assert result.status.converged, str(result.status)
    if result.log_evidence is not None:
        assert abs(result.log_evidence - log_z) < 4 * result.log_evidence_error


def test_a_batch_is_as_large_as_what_is_made_of_the_data_allows():
    prior = Prior({"x": dist.Normal(0.0, 1.0)})

    def target(function, data):
        return Target(prior, lambda free, data: function(free["x"], data), data=data)

    few = target(lambda x, d: jnp.sum(jnp.sin(x * d)), jnp.ones(100))
    draws = target(lambda x, d: jnp.sum(jnp.sin(x * d)), jnp.ones(500_000))
    in_turn = target(
        lambda x, d: jnp.sum(jax.lax.map(lambda r: jnp.sin(x * r).sum(), d)), jnp.ones((500, 1000))
    )
    table = target(lambda x, d: jnp.sum(d @ (x ** jnp.arange(1000))), jnp.ones((500, 1000)))
    assert [batch_size(t) for t in (few, draws, in_turn, table)] == [64, 1, 1, 127]
    # Of a gradient there are more numbers; where the data are few that does not matter.
    some = target(lambda x, d: jnp.sum(jnp.sin(x * d)), jnp.ones(2**14))
    assert batch_size(some) == 16
    assert [batch_size(t, gradient=True) for t in (few, some, draws, table)] == [64, 4, 1, 127]
    log_l, _ = evaluate(table, np.linspace(-0.5, 0.5, 300)[:, None])
    assert len(log_l) == 300 and log_l[150:].argmax() == 149
    assert log_l[-1] == pytest.approx(500 / (1 - 0.5), rel=1e-9)


@pytest.mark.parametrize(
    ("size", "largest"), [(1, set()), (4, {4}), (7, {6}), (50, {24, 2}), (100, {24, 10})]
)
def test_a_map_in_batches_is_the_same(size, largest):
    """Of 24 points so many at once as divide them, in a map of maps too; data are shared."""
    together = set()

    @jax.custom_batching.custom_vmap
    def noted(x):
        return x

    @noted.def_vmap
    def note(num, mapped, x):
        together.add(num)
        return noted(x), True

    def function(x, data):
        return {"sum": jnp.sum(noted(x["a"]) * data), "x": x["b"]}

    x = {"a": jnp.arange(240.0).reshape(10, 24), "b": jnp.ones((10, 24, 2))}
    inner = jax.vmap(in_batches(function, size), in_axes=(0, None))
    found = jax.vmap(inner, in_axes=(0, None))(x, jnp.arange(3.0))
    np.testing.assert_array_equal(found["sum"], 3.0 * np.arange(240).reshape(10, 24))
    np.testing.assert_array_equal(found["x"], np.ones((10, 24, 2)))
    assert together - {1} == largest
    together.clear()
    np.testing.assert_array_equal(inner(jax.tree.map(lambda a: a[0], x), 2.0)["sum"], 2 * x["a"][0])
    assert together - {1} == largest - {2, 10}


@pytest.mark.slow
@every_sampler
def test_the_key_decides(sampler):
    one, two = (sampler.run(gaussian(), jax.random.key(5)) for _ in range(2))
    np.testing.assert_array_equal(one.draws["a"], two.draws["a"])


@every_sampler
def test_nan_names_the_point(sampler):
    def log_likelihood(h, data):
        return jnp.where(h["a"] > 0.0, jnp.nan, -0.5 * h["a"] ** 2)

    target = Target(Prior({"a": dist.Normal(0.0, 1.0)}), log_likelihood)
    try:
        result = sampler.run(target, jax.random.key(0))
    except InputError as error:
        assert "a=" in str(error)
    else:
        assert any(p.kind == "nan_likelihood" for p in result.status.problems)


def test_importance_sampler_without_a_likelihood_anywhere():
    target = Target(
        Prior({"x": dist.Normal(0.0, 1.0)}),
        lambda h, data: jnp.where(h["x"] > 100.0, 0.0, -jnp.inf),
    )
    with pytest.raises(InputError, match=r"prior draws has a likelihood.*raise num_adapt"):
        ImportanceSampler(num_adapt=100).run(target, jax.random.key(0))


@pytest.mark.slow
@every_sampler
def test_fractions_given_counts(sampler):
    """A Dirichlet prior and a multinomial count: the posterior is a Dirichlet again."""
    counts, concentration = np.array([7.0, 2.0, 4.0]), np.array([1.0, 2.0, 1.5])

    def log_likelihood(h, data):
        return jnp.sum(data * jnp.log(jnp.stack([h["w_a"], h["w_b"], h["w_c"]])))

    prior = Prior({"w_a, w_b, w_c": {"dist": "Dirichlet", "concentration": list(concentration)}})
    target = Target(prior, log_likelihood, data=jnp.asarray(counts))
    assert target.dim == 2
    result = sampler.run(target, jax.random.key(8))
    assert set(result.draws) == {"w_a", "w_b", "w_c"}
    total = sum(result.draws.values())
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    posterior = counts + concentration
    mean = posterior / posterior.sum()
    sd = np.sqrt(mean * (1 - mean) / (posterior.sum() + 1))
    for i, row in enumerate(result.summary().values()):
        assert abs(row["mean"] - mean[i]) < 4 * row["mcse_mean"]
        assert abs(row["sd"] - sd[i]) < 4 * sd[i] / np.sqrt(row["ess_bulk"])
    if result.log_evidence is not None:
        exact = np.sum(gammaln(posterior)) - gammaln(posterior.sum())
        exact += gammaln(concentration.sum()) - np.sum(gammaln(concentration))
        assert abs(result.log_evidence - exact) < 4 * result.log_evidence_error


def test_a_numpyro_model_is_a_target():
    observed = jnp.asarray([0.3, 1.1, 0.7, -0.2])

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        with numpyro.plate("object", len(y)):
            theta = numpyro.sample("theta", dist.Normal(mu, 1.0))
            numpyro.sample("y", dist.Normal(theta, 0.5), obs=y)

    result = SAMPLERS["nuts"].run(Target.from_numpyro(model, observed), jax.random.key(0))
    precision = 1 / 4 + len(observed) / 1.25
    row = result.summary()["mu"]
    assert abs(row["mean"] - observed.sum() / 1.25 / precision) < 4 * row["mcse_mean"]
    assert {f"theta[{i}]" for i in range(4)} <= set(result.draws)


def test_importance_sampler_finds_two_modes():
    def log_likelihood(h, data):
        return jnp.logaddexp(
            jnp.log(0.3) + dist.Normal(-4.0, 0.3).log_prob(h["a"]),
            jnp.log(0.7) + dist.Normal(4.0, 0.5).log_prob(h["a"]),
        )

    target = Target(Prior({"a": dist.Uniform(-10.0, 10.0)}), log_likelihood)
    result = ImportanceSampler(target_ess=1000).run(target, jax.random.key(1))
    share = float(result.weights[result.draws["a"] > 0].sum())
    assert abs(share - 0.7) < 4 * np.sqrt(0.21 / result.effective_sample_size())
    assert abs(result.log_evidence + np.log(20.0)) < 4 * result.log_evidence_error


@pytest.mark.parametrize("seed", [1, 5, 6])
def test_importance_sampler_mends_a_proposal_with_tails_too_thin(seed):
    """A funnel: with these keys the first final stage ends with k-hat above 0.7."""

    def log_likelihood(h, data):
        width = jnp.exp(0.9 * h["a"])
        return dist.Normal(0.0, 1.0).log_prob(h["a"]) + dist.Normal(0.0, width).log_prob(h["b"])

    prior = Prior({"a": dist.Uniform(-8.0, 8.0), "b": dist.Uniform(-900.0, 900.0)})
    sampler = ImportanceSampler(target_ess=4000, num_adapt=500)
    result = sampler.run(Target(prior, log_likelihood), jax.random.key(seed))
    assert result.status.converged and result.measures["k_hat"] < 0.7
    assert abs(result.log_evidence + np.log(16.0 * 1800.0)) < 4 * result.log_evidence_error


def test_student_t_mixture_is_a_density_and_fits():
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(-3, 1, (400, 2)), rng.normal(3, 0.5, (600, 2))])
    mixture = fit(rng, x, np.ones(1000), num_components=2, dof=8.0)
    order = np.argsort(mixture.loc[:, 0])
    np.testing.assert_allclose(mixture.weight[order], [0.4, 0.6], atol=0.02)
    np.testing.assert_allclose(mixture.loc[order], [[-3, -3], [3, 3]], atol=0.2)
    axis = np.linspace(-15, 15, 301)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    assert abs(np.exp(mixture.log_prob(grid)).sum() * 0.1**2 - 1) < 2e-3
    draws = mixture.sample(rng, 4000)
    assert abs(np.mean(draws[:, 0] > 0) - mixture.weight[order][1]) < 0.02
