import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from skycensus.errors import InputError
from skycensus.gw import eccentricity
from skycensus.gw.families import (
    Beta,
    TruncatedNormal,
    log_ndtr_difference,
    product,
    uniform,
)
from skycensus.model import hyperparameter_names

TWO = {
    "eccentricity_zeta": 0.3,
    "eccentricity_comp1_loc": 0.0,
    "eccentricity_comp1_scale": 0.05,
    "eccentricity_comp2_loc": 0.4,
    "eccentricity_comp2_scale": 0.2,
}
FAMILIES = {
    "truncated_normal": (
        eccentricity.truncated_normal,
        {"eccentricity_loc": 0.0, "eccentricity_scale": 0.1},
    ),
    "two_truncated_normals": (eccentricity.two_truncated_normals, TWO),
    "power_law": (
        eccentricity.power_law,
        {"eccentricity_alpha": -1.0, "eccentricity_low": 1e-3, "eccentricity_high": 0.7},
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_normalised_and_sampled(name):
    family, h = FAMILIES[name]
    density = family(h)
    # Cells uniform in the cube root resolve the rise at small eccentricities.
    edges = np.linspace(0.0, 1.0, 20001) ** 3
    low, high = h.get("eccentricity_low", 0.0), h.get("eccentricity_high", 1.0)
    edges = np.unique(np.concatenate([edges[(edges > low) & (edges < high)], [low, high]]))
    middle = 0.5 * (edges[1:] + edges[:-1])
    p = np.exp(jax.jit(density.log_prob)({"eccentricity": jnp.asarray(middle)}))
    np.testing.assert_allclose(np.sum(p * np.diff(edges)), 1.0, rtol=1e-5)
    draws = np.array(
        jax.jit(density.sample, static_argnums=1)(jax.random.key(1), (20000,))["eccentricity"]
    )
    cumulative = np.concatenate([[0.0], np.cumsum(p * np.diff(edges))])
    assert stats.kstest(draws, lambda x: np.interp(x, edges, cumulative)).pvalue > 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_outside_is_zero_with_finite_gradients(name):
    family, h = FAMILIES[name]
    h = {k: jnp.asarray(v) for k, v in h.items()}
    low = 1e-4 if name == "power_law" else -0.1
    outside = {"eccentricity": jnp.asarray([low, 1.2])}
    assert np.all(np.isneginf(family(h).log_prob(outside)))
    gradient = jax.jit(jax.jacrev(lambda h: family(h).log_prob(outside)))(h)
    assert all(np.all(np.isfinite(g)) for g in gradient.values())


def test_mixture_reference_values(shared, require_path):
    path = require_path(shared / "reference/gwkokab/log_density_gwkokab.json")
    (entry,) = json.loads(path.read_text())["TwoTruncatedNormalMixture"]
    h = {f"eccentricity_{k}": float(v) for k, v in entry["params"].items()}

    def log_prob(h):
        theta = {"eccentricity": jnp.asarray(entry["points"])}
        return eccentricity.two_truncated_normals(h).log_prob(theta)

    np.testing.assert_allclose(log_prob(h), entry["log_prob"], rtol=1e-9)
    gradient = jax.jit(jax.jacrev(log_prob))(h)
    for name, expected in entry["dlog_prob_dparam"].items():
        np.testing.assert_allclose(
            gradient[f"eccentricity_{name}"], expected, rtol=1e-9, atol=1e-60
        )


@pytest.mark.parametrize("zeta", [0.0, 1.0])
def test_a_fraction_of_zero_has_a_finite_gradient(zeta):
    theta = {"eccentricity": jnp.asarray([0.01, 0.4])}

    def log_prob(zeta):
        return eccentricity.two_truncated_normals({**TWO, "eccentricity_zeta": zeta}).log_prob(
            theta
        )

    assert np.all(np.isfinite(log_prob(jnp.asarray(zeta))))
    assert np.all(np.isfinite(jax.jit(jax.jacfwd(log_prob))(jnp.asarray(zeta))))


@pytest.mark.parametrize(
    ("a", "b"), [(-1.0, 2.0), (-0.5, -0.4), (5.0, 6.0), (20.0, 21.0), (-30.0, -29.0), (0.9, 40.0)]
)
def test_normal_mass_in_both_tails(a, b):
    low, high = (-b, -a) if a > 0 else (a, b)
    exact = stats.norm.logcdf(high) + np.log1p(
        -np.exp(stats.norm.logcdf(low) - stats.norm.logcdf(high))
    )
    np.testing.assert_allclose(log_ndtr_difference(a, b), exact, rtol=1e-10)
    slope = jax.grad(log_ndtr_difference)(a, b)
    np.testing.assert_allclose(slope, -np.exp(stats.norm.logpdf(a) - exact), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("loc", "scale"), [(0.3, 0.2), (-3.0, 0.4), (9.0, 0.9), (0.5, 100.0)])
def test_truncated_normal_far_from_its_mean(loc, scale):
    d = TruncatedNormal(loc, scale, low=0.0, high=1.0)
    exact = stats.truncnorm((0 - loc) / scale, (1 - loc) / scale, loc=loc, scale=scale)
    x = np.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(d.log_prob(x), exact.logpdf(x), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(d.cdf(x), exact.cdf(x), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(d.cdf(d.icdf(jnp.asarray(x))), x, atol=1e-6)


def test_one_sided_truncation():
    d = TruncatedNormal(jnp.asarray(1.0), jnp.asarray(2.0), low=0.0)
    exact = stats.truncnorm(-0.5, np.inf, loc=1.0, scale=2.0)
    np.testing.assert_allclose(d.log_prob(3.0), exact.logpdf(3.0), rtol=1e-12)
    slope = jax.grad(lambda s: TruncatedNormal(1.0, s, low=0.0).log_prob(3.0))(2.0)
    assert np.isfinite(slope)


def test_beta_at_its_edges_and_scaled():
    d = Beta(1.0, 3.0, high=0.8)
    x = np.array([0.0, 0.3, 0.7])
    np.testing.assert_allclose(d.log_prob(x), stats.beta(1, 3, scale=0.8).logpdf(x), rtol=1e-12)
    draws = np.array(d.sample(jax.random.key(3), (20000,)))
    assert stats.kstest(draws, stats.beta(1, 3, scale=0.8).cdf).pvalue > 0.01


def test_single_precision():
    for family, h in FAMILIES.values():
        wide = family(h).log_prob({"eccentricity": jnp.asarray([0.01, 0.3])})
        narrow_h = {k: jnp.asarray(v, jnp.float32) for k, v in h.items()}
        narrow = family(narrow_h).log_prob({"eccentricity": jnp.asarray([0.01, 0.3], jnp.float32)})
        assert narrow.dtype == jnp.float32
        np.testing.assert_allclose(narrow, wide, rtol=2e-5, atol=2e-5)


def test_names_of_hyperparameters_and_errors():
    required, optional = hyperparameter_names(eccentricity.truncated_normal)
    assert set(required) == {"eccentricity_loc", "eccentricity_scale"}
    assert set(optional) == {"eccentricity_low", "eccentricity_high"}
    with pytest.raises(InputError, match="'eccentricity_scale'"):
        eccentricity.truncated_normal({"eccentricity_loc": 0.1})
    both = uniform("phi_12", low=0.0, high=1.0)({})
    with pytest.raises(InputError, match="phi_12"):
        product([both, both])
