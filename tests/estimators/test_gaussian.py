"""Gaussians and their mixtures: exact answers, the map from the unit cube, what a fit finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, ndtr, ndtri
from scipy.stats import multivariate_normal

from skycensus.estimators.gaussian import (
    GaussianMixture,
    fit_gaussian,
    fit_mixture,
    mixture_cdf,
    mixture_quantile,
)

MIXTURE = GaussianMixture(
    jnp.log(jnp.array([0.3, 0.6, 0.1])),
    jnp.array([[-3.0, 0.0], [2.0, 1.0], [0.0, 5.0]]),
    jnp.array([[[0.5, 0.0], [0.2, 0.4]], [[1.0, 0.0], [-0.9, 0.3]], [[0.1, 0.0], [0.0, 2.0]]]),
)


def components(mixture):
    roots = np.asarray(mixture.scale_tril)
    return [
        multivariate_normal(m, r @ r.T) for m, r in zip(np.asarray(mixture.loc), roots, strict=True)
    ]


def test_log_prob_is_that_of_the_sum():
    z = np.random.default_rng(0).normal(size=(50, 2)) * 4
    terms = [
        np.log(w) + c.logpdf(z) for w, c in zip((0.3, 0.6, 0.1), components(MIXTURE), strict=True)
    ]
    np.testing.assert_allclose(MIXTURE.log_prob(jnp.asarray(z)), logsumexp(terms, axis=0))


def test_far_out_all_is_finite():
    z = jnp.array([[1e6, -1e6], [0.0, 1e6]])
    assert np.isfinite(MIXTURE.log_prob(z)).all()
    slopes = jax.jit(jax.vmap(jax.grad(lambda x: MIXTURE.log_prob(x))))
    assert np.isfinite(slopes(z)).all()


def test_cube_and_back():
    u = np.random.default_rng(1).random((300, 2))
    u[:4] = [[1e-12, 0.5], [1 - 1e-12, 0.5], [0.5, 1e-12], [0.3, 1 - 1e-9]]
    z = MIXTURE.from_unit_cube(jnp.asarray(u))
    np.testing.assert_allclose(MIXTURE.to_unit_cube(z), u, rtol=1e-9)
    # Its determinant is the density: |du/dz| = q(z).
    slope = jax.jit(jax.vmap(jax.jacfwd(lambda x: MIXTURE.to_unit_cube(x))))(z[10:30])
    log_det = np.linalg.slogdet(slope)[1]
    np.testing.assert_allclose(log_det, MIXTURE.log_prob(z[10:30]), rtol=1e-9, atol=1e-9)


def test_a_point_does_not_depend_on_those_beside_it():
    u = jnp.asarray(np.random.default_rng(2).random((100, 2)))
    together = MIXTURE.from_unit_cube(u)
    np.testing.assert_allclose(MIXTURE.from_unit_cube(u[41:42])[0], together[41], rtol=1e-14)
    np.testing.assert_allclose(MIXTURE.from_unit_cube(u[41]), together[41], rtol=1e-14)


@pytest.mark.parametrize("u", [1e-200, 1e-20, 0.1, 0.5, 0.9, 1 - 1e-13])
def test_quantiles_of_one_normal(u):
    args = jnp.zeros(1), jnp.array([3.0]), jnp.array([2.0])
    exact = 3 + 2 * ndtri(u)
    assert mixture_quantile(*args, jnp.asarray(u)) == pytest.approx(exact, rel=1e-12)
    assert mixture_cdf(*args, jnp.asarray(exact)) == pytest.approx(float(ndtr(ndtri(u))))


def test_quantile_in_a_gap():
    """Between far components the distribution function is flat, and Newton's steps go astray."""
    log_weight = jnp.log(jnp.array([0.5, 0.5]))
    mean, scale = jnp.array([-1000.0, 1000.0]), jnp.array([1e-3, 1e-3])
    for u in (0.5 - 1e-9, 0.499999, 0.5 + 1e-9, 0.75):
        x = mixture_quantile(log_weight, mean, scale, jnp.asarray(u))
        assert mixture_cdf(log_weight, mean, scale, x) == pytest.approx(u, rel=1e-6)
        assert abs(abs(float(x)) - 1000) < 0.01


def weighted(num, key):
    """Draws twice as wide as the standard normal, weighted to it."""
    z = 2 * np.random.default_rng(key).normal(size=(num, 3))
    weight = np.exp(-0.375 * np.sum(z**2, axis=1))
    return z, weight / weight.sum()


def test_gaussian_is_the_weighted_moments():
    z, weight = weighted(5000, 3)
    found = fit_gaussian(None, z, weight)
    mean = weight @ z
    np.testing.assert_allclose(found.loc[0], mean)
    root = np.asarray(found.scale_tril[0])
    np.testing.assert_allclose(root @ root.T, np.cov(z.T, aweights=weight, ddof=0))
    assert found.kind == "gaussian"


def test_a_gaussian_needs_one_component():
    z, weight = weighted(3000, 4)
    held = weighted(400, 5)
    found = fit_mixture(jax.random.key(0), z, weight, validation=held)
    assert found.loc.shape == (1, 3)


def test_mixture_finds_modes_and_their_weights():
    rng = np.random.default_rng(6)
    label = rng.choice(3, 4000, p=[0.3, 0.6, 0.1])
    z = np.empty((4000, 2))
    for k, one in enumerate(components(MIXTURE)):
        z[label == k] = one.rvs((label == k).sum(), random_state=rng)
    train, held = z[:3600], z[3600:]
    found = fit_mixture(
        jax.random.key(1),
        train,
        np.full(3600, 1 / 3600),
        validation=(held, np.full(400, 1 / 400)),
    )
    assert len(found.log_weight) == 3
    np.testing.assert_allclose(np.sort(np.exp(found.log_weight)), [0.1, 0.3, 0.6], atol=0.03)
    truth = np.asarray(MIXTURE.log_prob(jnp.asarray(z)))
    # 17 numbers from 3,600 draws cost 17 / 7,200 on average.
    assert np.mean(truth - np.asarray(found.log_prob(jnp.asarray(z)))) < 0.004


def test_draws_on_top_of_each_other_are_no_spike():
    rng = np.random.default_rng(7)
    z = np.concatenate([rng.normal(size=(500, 2)), np.full((60, 2), 0.3)])
    weight = np.full(560, 1 / 560)
    found = fit_mixture(
        jax.random.key(2), z, weight, validation=(z[::5], np.full(112, 1 / 112)), num_components=4
    )
    assert np.isfinite(np.asarray(found.log_prob(jnp.asarray(z)))).all()
    assert np.asarray(found.log_prob(jnp.asarray(z))).max() < 15.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, kind, bar",
    [
        ("cgm", "mixture", 0.006),
        ("gauss5", "gaussian", 0.003),
        ("gauss5", "mixture", 0.005),
        ("trunc3", "cut", 0.003),
        ("ns_chain", "cut", 0.003),
        ("banana8", "triangular", 0.05),
        ("two_moons", "mixture", 0.01),
        ("rings", "mixture", 0.025),
    ],
)
def test_divergence_from_the_true_density(shared, require_path, name, kind, bar):
    from skycensus import fit_density

    with np.load(require_path(shared / "reference" / "margarine" / f"{name}.npz")) as stored:
        train, weight, test, truth = (stored[k] for k in ("train", "weights", "test", "logp_test"))
    names = [f"x{i}" for i in range(train.shape[1])]
    with np.errstate(divide="ignore"):
        log_weight = np.log(weight)
    box = dict.fromkeys(names, (0.0, 1.0)) if name in ("trunc3", "ns_chain") else None
    density = fit_density(
        jax.random.key(0),
        dict(zip(names, train.T, strict=True)),
        log_weight,
        kind=kind,
        support=box,
    )
    divergence = truth - np.asarray(density.log_prob(dict(zip(names, test.T, strict=True))))
    assert divergence.mean() < bar + 3 * divergence.std() / np.sqrt(len(test))
    assert density.report.status.converged or name == "rings", str(density.report)
