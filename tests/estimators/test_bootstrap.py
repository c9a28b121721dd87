"""Whether densities know how well they are known: replicas from draws with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from skycensus import InputError, fit_density
from skycensus.estimators import load_density
from skycensus.estimators.learned import replica_error

SIZE, DIM = 500, 2


def draws(seed, size=SIZE):
    x = np.random.default_rng(seed).normal(size=(size, DIM))
    return dict(zip("ab", x.T, strict=True))


@pytest.fixture(scope="module")
def gaussian():
    settings = {"kind": "gaussian", "num_bootstrap": 100, "report": False}
    return fit_density(jax.random.key(1), draws(1), **settings)


def test_the_error_of_a_gaussian_is_that_of_its_mean_and_covariance(gaussian):
    r"""$\operatorname{Var} \ln q = (r^4 + d) / 2n$ at the distance r, to first order in 1/n."""
    theta = {"a": jnp.array([0.0, 1.0, 0.0, 2.0]), "b": jnp.array([0.0, 0.0, -1.5, 2.0])}
    z, _ = gaussian.coordinates.forward(jnp.stack([theta["a"], theta["b"]], axis=-1))
    square = np.sum(np.asarray(z) ** 2, axis=-1)
    expected = np.sqrt((square**2 + DIM) / (2.0 * 0.9 * SIZE))
    # A hundred replicas know a spread to seven per cent.
    np.testing.assert_allclose(gaussian.log_prob_error(theta), expected, rtol=0.3)


def test_numbers_from_replicas_have_errors(gaussian):
    """The mean of a, known to sd / sqrt(n)."""

    def mean(one):
        return np.mean(one.sample(jax.random.key(0), (4000,))["a"])

    np.testing.assert_allclose(replica_error(gaussian, mean), 1 / np.sqrt(0.9 * SIZE), rtol=0.25)


def test_replicas_go_into_the_file(gaussian, tmp_path):
    again = load_density(gaussian.save(tmp_path / "a.skc"))
    assert len(again.bootstrap) == 100
    points = draws(2, 50)
    for method in ("log_prob", "log_prob_error"):
        found, expected = getattr(again, method)(points), getattr(gaussian, method)(points)
        np.testing.assert_array_equal(found, expected)


def test_auto_tries_again_what_it_has_chosen():
    settings = {"kinds": ("gaussian", "kde"), "settings": {"kde": {"max_kernels": 100}}}
    density = fit_density(
        jax.random.key(2), draws(3, 200), num_bootstrap=2, report=False, **settings
    )
    chosen = [kind for kind, share in density.provenance["weight"].items() if share > 0]
    assert chosen == ["gaussian"]
    assert [one.kind for one in density.bootstrap] == ["gaussian", "gaussian"]


def test_a_mixture_keeps_its_number_of_components():
    x = np.random.default_rng(0).normal(size=400)
    x[:200] += 8.0
    density = fit_density(
        jax.random.key(1), {"a": x}, kind="mixture", num_bootstrap=3, report=False
    )
    assert [len(one.log_weight) for one in (density.estimate, *density.bootstrap)] == [2] * 4
    # 180 of 360 draws to learn from: the weight of a mode is known to 1/sqrt(360) / 2.
    error = replica_error(density, lambda one: np.exp(one.estimate.log_weight).max())
    assert 0.003 < error < 0.08


def test_a_single_replica_has_no_spread():
    with pytest.raises(InputError, match="num_bootstrap=1 has no spread; give 0, or 2 or more"):
        fit_density(jax.random.key(0), draws(1), num_bootstrap=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        ("mixture", {}),
        ("kde", {}),
        ("triangular", {}),
        ("maf", {"layers": 2, "num_members": 2, "max_epochs": 40, "width": 16}),
    ],
    ids=lambda kind: kind[0],
)
def test_errors_are_calibrated(kind, sized):
    """Over fits to fresh draws, the density is off by about what it says."""
    name, settings = kind
    num = sized(full=20, small=3)
    points = draws(99, 40)
    exact = sum(stats.norm.logpdf(x) for x in points.values())
    scaled = []
    for seed in range(num):
        density = fit_density(
            jax.random.key(seed),
            draws(1000 + seed, 1500),
            kind=name,
            num_bootstrap=8,
            report=False,
            **settings,
        )
        off = np.asarray(density.log_prob(points)) - exact
        scaled.append(off / np.asarray(density.log_prob_error(points)))
    # Half the points are within one error or so, whatever the few in the tails do.
    typical = np.median(np.abs(scaled)) / stats.norm.ppf(0.75)
    assert 0.4 < typical < 2.0
