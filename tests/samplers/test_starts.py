"""Where chains start: draws of the prior, modes, and the user's values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from skycensus import NUTS, InputError, Prior, Target
from skycensus.samplers.starts import start_points

PRIOR = {"a": dist.Uniform(0.0, 10.0), "b": dist.Normal(0.0, 3.0)}


def target(log_likelihood=None):
    def normal(h, data):
        return -0.5 * ((h["a"] - 4.0) / 0.01) ** 2 - 0.5 * ((h["b"] - 1.0) / 0.1) ** 2

    return Target(Prior(PRIOR), log_likelihood or normal)


def at(target, start, num=4, **more):
    x = start_points(target, start, jax.random.key(1), num, **{"num_start": 64} | more)
    return {n: np.asarray(v) for n, v in jax.vmap(target.constrain)(jnp.asarray(x)).items()}


def test_prior_draws_are_the_best_of_them():
    one = target()
    x = start_points(one, "prior", jax.random.key(1), 3, num_start=64)
    every = np.asarray(one.start_points(jax.random.key(1), 64))
    log_l = np.asarray(jax.vmap(one.log_likelihood)(jnp.asarray(every)))
    np.testing.assert_array_equal(x, every[np.argsort(-log_l)[:3]])


def test_modes_are_found_and_drawn_around():
    found = at(target(), "mode", 200)
    assert abs(found["a"].mean() - 4.0) < 0.005 and 0.008 < found["a"].std() < 0.012
    assert abs(found["b"].mean() - 1.0) < 0.05 and 0.08 < found["b"].std() < 0.12


def test_chains_start_at_several_modes():
    def two(h, data):
        each = jnp.array([2.0, 8.0])
        return jax.nn.logsumexp(-0.5 * ((h["a"] - each) / 0.2) ** 2)

    found = at(target(two), "mode", 8)["a"]
    assert np.sum(abs(found - 2.0) < 1.0) == np.sum(abs(found - 8.0) < 1.0) == 4


def test_values_for_all_chains_are_not_all_the_same_point():
    found = at(target(), {"a": 4.0, "b": 1.0})
    assert found["a"][0] == pytest.approx(4.0) and found["b"][0] == pytest.approx(1.0)
    assert len(np.unique(found["a"])) == 4 and np.all(abs(found["a"] - 4.0) < 0.3)


def test_values_for_each_chain_are_taken_as_they_are():
    each = [{"a": float(i), "b": 0.1 * i} for i in range(1, 5)]
    np.testing.assert_allclose(at(target(), each)["a"], [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(at(target(), each)["b"], [0.1, 0.2, 0.3, 0.4])


def test_what_is_not_named_comes_from_the_prior():
    found = at(target(), {"a": 4.0}, num=1, num_start=200)
    assert found["a"][0] == pytest.approx(4.0)
    assert abs(found["b"][0] - 1.0) < 0.2


def test_jitter_stays_where_there_is_a_likelihood():
    def edge(h, data):
        return jnp.where(h["a"] < 4.0, 0.0, -jnp.inf)

    found = at(target(edge), {"a": 3.99, "b": 0.0}, num=20)
    assert np.all(found["a"] < 4.0) and len(np.unique(found["b"])) == 20


@pytest.mark.parametrize(
    ("start", "told"),
    [
        ({"c": 1.0}, "'c' is no free parameter.*there are a, b"),
        ({"a": 11.0}, r"a = 11.0 is outside of the prior \(0 to 10\)"),
        ({"a": float("nan")}, "a = nan is not a number that is finite"),
        ({"a": [1.0, 2.0]}, r"a = \[1.0, 2.0\] is not a number"),
        ({"a": "low"}, "a = 'low' is not a number"),
        ([], "give parameters by name"),
        ({}, "give parameters by name"),
        ("modes", "start='modes' is not known.*mode"),
    ],
)
def test_bad_values_are_named(start, told):
    with pytest.raises(InputError, match=told):
        at(target(), start)


def test_values_without_a_likelihood_are_named():
    def edge(h, data):
        return jnp.where(h["a"] > 5.0, 0.0, -jnp.inf)

    with pytest.raises(InputError, match="no likelihood at a=2, b="):
        at(target(edge), {"a": 2.0})
    with pytest.raises(InputError, match="prior draws has a likelihood"):
        at(target(lambda h, data: jnp.full((), -jnp.inf)), "mode")


@pytest.mark.slow
def test_a_joint_prior_takes_all_of_its_values():
    entry = {"dist": "Dirichlet", "concentration": [1.0, 2.0, 1.5]}
    weights = Target(Prior({"w_a, w_b, w_c": entry}), lambda h, data: jnp.log(h["w_a"]))
    found = at(weights, {"w_a": 0.5, "w_b": 0.3, "w_c": 0.2})
    assert found["w_b"][0] == pytest.approx(0.3)
    with pytest.raises(InputError, match=r"have one prior together with \['w_b', 'w_c'\]"):
        at(weights, {"w_a": 0.5})
    with pytest.raises(InputError, match="outside of the prior"):
        at(weights, {"w_a": 0.5, "w_b": 0.3, "w_c": 0.4})


def test_sites_of_a_numpyro_model_have_start_values():
    def model():
        numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("theta", dist.Normal(jnp.zeros(3), 1.0).to_event(1))

    found = at(Target.from_numpyro(model), {"theta": [0.1, 0.2, 0.3]}, num=1)
    np.testing.assert_allclose(found["theta"][0], [0.1, 0.2, 0.3])


@pytest.mark.slow
def test_nuts_starts_where_it_is_told():
    sampler = NUTS(num_warmup=100, num_samples=50, num_chains=2, start="mode", num_start=32)
    result = sampler.run(target(), jax.random.key(0))
    assert abs(result.draws["a"].mean() - 4.0) < 0.02
    with pytest.raises(InputError, match="'c' is no free parameter"):
        NUTS(start={"c": 1.0}).run(target(), jax.random.key(0))
