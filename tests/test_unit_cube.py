"""From the unit cube to every kind of prior, against scipy and closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats

from skycensus import InputError, PowerLaw, Prior
from skycensus.unit_cube import from_unit_cube, num_coordinates

U = np.array([1e-9, 1e-3, 0.2, 0.5, 0.9, 1 - 1e-6])

SCALARS = {
    "Normal": (dist.Normal(2.0, 3.0), scipy.stats.norm(2, 3)),
    "Uniform": (dist.Uniform(-5.0, 5.0), scipy.stats.uniform(-5, 10)),
    "LogUniform": (dist.LogUniform(0.1, 5.0), scipy.stats.loguniform(0.1, 5)),
    "LogNormal": (dist.LogNormal(0.0, 0.3), scipy.stats.lognorm(0.3)),
    "Beta": (dist.Beta(0.3, 4.0), scipy.stats.beta(0.3, 4)),
    "Gamma": (dist.Gamma(2.0, 3.0), scipy.stats.gamma(2, scale=1 / 3)),
    "StudentT": (dist.StudentT(4.0, 1.0, 2.0), scipy.stats.t(4, 1, 2)),
    "TruncatedNormal": (
        dist.TruncatedNormal(1.0, 2.0, low=0.0, high=4.0),
        scipy.stats.truncnorm(-0.5, 1.5, 1, 2),
    ),
    "PowerLaw": (PowerLaw(1.5, 0.1, 1.0), None),
}


@pytest.mark.parametrize("name", SCALARS)
def test_scalars_are_inverse_distribution_functions(name):
    d, oracle = SCALARS[name]
    assert num_coordinates(d) == 1
    x = np.asarray(jax.jit(lambda u: from_unit_cube("a", d, u))(jnp.asarray(U)[:, None]))
    assert x.shape == U.shape
    cdf = np.asarray(d.cdf(x)) if oracle is None else oracle.cdf(x)
    np.testing.assert_allclose(cdf, U, rtol=1e-6, atol=1e-12)


def uniform(dim):
    # Evenly spread, so that distributions are known better than from independent draws.
    return jnp.asarray(scipy.stats.qmc.Sobol(dim, rng=np.random.default_rng(0)).random(2**12))


@pytest.mark.slow
@pytest.mark.parametrize("concentration", [[1.0, 1.0, 1.0], [0.5, 2.0, 3.0]], ids=["flat", "bent"])
def test_dirichlet_by_stick_breaking(concentration):
    d = dist.Dirichlet(jnp.asarray(concentration))
    assert num_coordinates(d) == 2
    x = np.asarray(from_unit_cube("w", d, uniform(2)))
    np.testing.assert_allclose(x.sum(1), 1.0, rtol=1e-12)
    total = sum(concentration)
    for i, a in enumerate(concentration):
        marginal = scipy.stats.beta(a, total - a)
        assert scipy.stats.kstest(x[:, i], marginal.cdf).statistic < 4e-3
    if concentration == [1.0, 1.0, 1.0]:
        # A closed form, within compiled functions too: an inverse by steps takes far longer.
        compiled = jax.make_jaxpr(lambda u: from_unit_cube("w", d, u))(uniform(2)[:1])
        assert "while" not in str(compiled)
    covariance = -concentration[0] * concentration[1] / total**2 / (total + 1)
    assert abs(np.cov(x.T)[0, 1] / covariance - 1) < 0.02


SCALE = jnp.asarray([[1.0, 0.0], [0.6, 0.8]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("d", "marginal"),
    [
        (dist.MultivariateNormal(jnp.zeros(2), scale_tril=SCALE), scipy.stats.norm),
        (
            dist.LowRankMultivariateNormal(jnp.zeros(2), jnp.asarray([[0.8], [0.5]]),
                                           jnp.asarray([0.36, 0.75])),
            scipy.stats.norm,
        ),
        (dist.MultivariateStudentT(5.0, jnp.zeros(2), SCALE), scipy.stats.t(5)),
        (dist.Normal(0.0, 1.0).expand([2]).to_event(1), scipy.stats.norm),
    ],
    ids=["normal", "low rank", "student", "independent"],
)  # fmt: skip
def test_vectors(d, marginal):
    """Every projection with unit variance has the marginal of one component."""
    assert num_coordinates(d) == 2
    x = np.asarray(from_unit_cube("a", d, uniform(2)))
    covariance = np.eye(2) if isinstance(d, dist.Independent) else np.asarray(
        d.scale_tril @ d.scale_tril.T if hasattr(d, "scale_tril") else d.covariance_matrix
    )  # fmt: skip
    for w in np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]]):
        projected = x @ w / np.sqrt(w @ covariance @ w)
        assert scipy.stats.kstest(projected, marginal.cdf).statistic < 8e-3


def test_prior_in_the_cube():
    prior = Prior(
        {
            "a": dist.Normal(1.0, 2.0),
            "w_0, w_1, w_2": {"dist": "Dirichlet", "concentration": [1.0, 1.0, 1.0]},
            "fixed": 3.0,
            "tied": "a",
            "b": dist.Uniform(0.0, 4.0),
        }
    )
    values = prior.from_unit_cube(jnp.asarray([[0.5, 0.75, 0.5, 0.25]]))
    assert list(values) == ["a", "w_0", "w_1", "w_2", "b"]
    expected = {"a": 1.0, "w_0": 0.5, "w_1": 0.25, "w_2": 0.25, "b": 1.0}
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], [value], rtol=1e-12)
    with pytest.raises(InputError, match=r"have 3 coordinates; .* take 4"):
        prior.from_unit_cube(jnp.zeros(3))


def test_a_distribution_may_know_the_way_itself():
    class Learned(dist.Normal):
        def from_unit_cube(self, u):
            return 10.0 + u[..., 0]

    prior = Prior({"a": Learned(0.0, 1.0)})
    assert float(prior.from_unit_cube(jnp.asarray([0.25]))["a"]) == 10.25


def test_vectors_of_unknown_kind_are_named():
    with pytest.raises(InputError, match=r"prior 'a, b': .* CAR, .* method from_unit_cube"):
        from_unit_cube("a, b", dist.CAR(0.0, 0.1, 1.0, 1.0 - jnp.eye(2)), jnp.zeros(2))
