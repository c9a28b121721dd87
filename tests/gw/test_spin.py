import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from skycensus.density import Joint
from skycensus.gw import spin

CASES = {
    "beta_magnitudes": (
        spin.beta_magnitudes,
        {"a_1_mean": 0.3, "a_1_variance": 0.03, "a_2_mean": 0.4, "a_2_variance": 0.03},
    ),
    "beta_magnitudes_iid": (spin.beta_magnitudes_iid, {"a_mean": 0.3, "a_variance": 0.03}),
    "beta_magnitudes_shape": (spin.beta_magnitudes_shape, {"alpha_chi": 1.6, "beta_chi": 4.1}),
    "magnitude_mixture": (
        spin.magnitude_mixture,
        {"a_zeta": 0.3}
        | {
            f"a_{i}_comp{c}_{k}": v
            for i in (1, 2)
            for c, k, v in [(1, "loc", 0.1), (1, "scale", 0.1), (2, "loc", 0.7), (2, "scale", 0.2)]
        },
    ),
    "tilt_mixture": (
        spin.tilt_mixture,
        {
            "cos_tilt_zeta": 0.6,
            "cos_tilt_1_loc": 1.0,
            "cos_tilt_1_scale": 0.5,
            "cos_tilt_2_loc": 0.8,
            "cos_tilt_2_scale": 0.9,
        },
    ),
    "tilt_mixture_iid": (spin.tilt_mixture_iid, {"xi_spin": 0.6, "sigma_spin": 0.4}),
    "gaussian_chi_eff": (spin.gaussian_chi_eff, {"mu_chi_eff": 0.06, "sigma_chi_eff": 0.12}),
    "skew_normal_chi_eff": (
        spin.skew_normal_chi_eff,
        {"chi_eff_loc": 0.03, "chi_eff_scale": 0.1, "chi_eff_epsilon": 0.3},
    ),
    "skew_normal_truncated": (
        spin.skew_normal_chi_eff,
        {"chi_eff_loc": 0.5, "chi_eff_scale": 0.6, "chi_eff_epsilon": -0.4},
    ),
    "correlated": (
        spin.correlated_chi_eff_chi_p,
        {"mu_eff": 0.06, "sigma_eff": 0.1, "mu_p": 0.2, "sigma_p": 0.15, "rho": 0.2},
    ),
    "correlated_wide": (
        spin.correlated_chi_eff_chi_p,
        {"mu_eff": -0.4, "sigma_eff": 0.8, "mu_p": 0.9, "sigma_p": 0.5, "rho": -0.9},
    ),
}
LOW = {
    "a_1": 0.0,
    "a_2": 0.0,
    "cos_tilt_1": -1.0,
    "cos_tilt_2": -1.0,
    "chi_eff": -1.0,
    "chi_p": 0.0,
}
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(400)


def tabulate(density):
    """Nodes, weights and density on the box of its parameters."""
    axes = [(LOW[n] + (1 - LOW[n]) * (1 + _NODES) / 2) for n in density.names]
    weights = [_WEIGHTS * (1 - LOW[n]) / 2 for n in density.names]
    mesh = np.meshgrid(*axes, indexing="ij")
    theta = {n: jnp.asarray(m) for n, m in zip(density.names, mesh, strict=True)}
    return axes, weights, np.exp(np.array(jax.jit(density.log_prob)(theta)))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_normalised_and_sampled(name):
    family, h = CASES[name]
    density = family(h)
    axes, weights, p = tabulate(density)
    mass = p * (weights[0] if p.ndim == 1 else np.outer(*weights))
    np.testing.assert_allclose(np.sum(mass), 1.0, rtol=1e-3 if "skew" in name else 1e-7)
    draws = jax.jit(density.sample, static_argnums=1)(jax.random.key(5), (20000,))
    for i, n in enumerate(density.names):
        marginal = mass if p.ndim == 1 else mass.sum(axis=1 - i)
        middle = np.cumsum(marginal) - 0.5 * marginal
        test = stats.kstest(np.array(draws[n]), lambda x, i=i, c=middle: np.interp(x, axes[i], c))
        assert test.pvalue > 0.005, n
    if p.ndim == 2:
        x, y = (np.array(draws[n]) for n in density.names)
        mean = np.sum(mass * np.outer(*axes))
        assert abs(np.mean(x * y) - mean) < 4 * np.std(x * y) / np.sqrt(len(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite_everywhere(name):
    family, h = CASES[name]
    h = {k: jnp.asarray(v) for k, v in h.items()}
    names = family(h).names
    theta = {n: jnp.asarray([-1.1, LOW[n], 0.2, 1.0, 1.1]) for n in names}
    value = family(h).log_prob(theta)
    assert np.all(np.isneginf(np.array(value)[[0, -1]]))
    assert not np.any(np.isnan(value))
    inner = {n: x[jnp.asarray([0, 2, 4])] for n, x in theta.items()}
    gradient = jax.jit(jax.jacrev(lambda h: family(h).log_prob(inner)))(h)
    assert all(np.all(np.isfinite(g)) for g in gradient.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_single_precision(name):
    family, h = CASES[name]
    narrow_h = {k: jnp.asarray(v, jnp.float32) for k, v in h.items()}
    names = family(h).names
    theta = {n: jnp.asarray([0.15, 0.6]) for n in names}
    narrow = family(narrow_h).log_prob({n: x.astype(jnp.float32) for n, x in theta.items()})
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, family(h).log_prob(theta), rtol=3e-5, atol=3e-5)


def test_mean_and_variance_of_the_beta():
    draws = spin.beta_from_mean_variance(0.3, 0.02).sample(jax.random.key(0), (100000,))
    np.testing.assert_allclose(np.mean(draws), 0.3, atol=2e-3)
    np.testing.assert_allclose(np.var(draws), 0.02, rtol=2e-2)


def test_share_of_the_correlated_normal_inside_the_box():
    h = CASES["correlated_wide"][1]
    density = spin.correlated_chi_eff_chi_p(h)
    cov = h["rho"] * h["sigma_eff"] * h["sigma_p"]
    normal = stats.multivariate_normal(
        [h["mu_eff"], h["mu_p"]], [[h["sigma_eff"] ** 2, cov], [cov, h["sigma_p"] ** 2]]
    )
    share, _ = integrate.dblquad(
        lambda y, x: normal.pdf([x, y]), -1, 1, 0, 1, epsabs=1e-9, epsrel=1e-9
    )
    np.testing.assert_allclose(density.log_mass, np.log(share), rtol=1e-7)


@pytest.mark.parametrize("name", [n for n in CASES if "skew" in n])
def test_skew_normal_is_normalised_on_both_sides_of_its_mode(name):
    family, h = CASES[name]
    mode = h["chi_eff_loc"]
    log_prob = jax.jit(family(h).log_prob)
    sides = [
        0.5
        * (high - low)
        * np.sum(_WEIGHTS * np.exp(log_prob({"chi_eff": low + 0.5 * (high - low) * (1 + _NODES)})))
        for low, high in [(-1.0, mode), (np.nextafter(mode, 1.0), 1.0)]
    ]
    np.testing.assert_allclose(sum(sides), 1.0, rtol=1e-12)


def test_no_skew_is_the_truncated_normal():
    x = {"chi_eff": jnp.linspace(-0.9, 0.9, 7)}
    skew = {"chi_eff_loc": 0.4, "chi_eff_scale": 0.5, "chi_eff_epsilon": 0.0}
    plain = {"mu_chi_eff": 0.4, "sigma_chi_eff": 0.5}
    np.testing.assert_allclose(
        spin.skew_normal_chi_eff(skew).log_prob(x), spin.gaussian_chi_eff(plain).log_prob(x)
    )


def _beta(p):
    return Joint({"a_1": spin.beta_from_mean_variance(p["mean"], p["variance"])})


def _skew(p):
    return spin.skew_normal_chi_eff({f"chi_eff_{k}": v for k, v in p.items()})


def _tilt(p):
    h = {f"cos_tilt_{i}_{k}": p[f"{k}{i}"] for i in (1, 2) for k in ("loc", "scale")}
    return spin.tilt_mixture({"cos_tilt_zeta": p["zeta"], **h})


@pytest.mark.parametrize(
    ("entry", "family"),
    [
        ("BetaFromMeanVar", _beta),
        ("GWTC4EffectiveSpinSkewNormalModel", _skew),
        ("GenericTiltModel", _tilt),
    ],
)
def test_reference_values(shared, require_path, entry, family):
    path = require_path(shared / "reference/gwkokab/log_density_gwkokab.json")
    (case,) = json.loads(path.read_text())[entry]
    p = {k: float(v) for k, v in case["params"].items()}
    names = family(p).names
    points = np.array(case["points"], float).reshape(-1, len(names))
    theta = {n: jnp.asarray(points[:, i]) for i, n in enumerate(names)}
    np.testing.assert_allclose(family(p).log_prob(theta), case["log_prob"], rtol=1e-9)
    gradient = jax.jit(jax.jacrev(lambda p: family(p).log_prob(theta)))(p)
    for name, expected in case["dlog_prob_dparam"].items():
        # The reference's own rounding shows where terms cancel.
        np.testing.assert_allclose(gradient[name], expected, rtol=1e-9, atol=1e-10)


def test_correlated_reference_is_not_normalised_on_the_box(shared, require_path):
    """The reference is the whole plane's normal, although chi_p < 0 cannot be: it integrates to
    less than one over the box. Ours is larger by exactly the share inside."""
    path = require_path(shared / "reference/gwkokab/log_density_gwkokab.json")
    (case,) = json.loads(path.read_text())["GaussianSpinModel"]
    points = np.array(case["points"])
    theta = {"chi_eff": jnp.asarray(points[:, 0]), "chi_p": jnp.asarray(points[:, 1])}

    def unnormalised(p):
        density = spin.correlated_chi_eff_chi_p(p)
        return density.log_prob(theta) + density.log_mass

    p = case["params"]
    assert float(spin.correlated_chi_eff_chi_p(p).log_mass) < -0.09
    np.testing.assert_allclose(unnormalised(p), case["log_prob"], rtol=1e-12)
    gradient = jax.jit(jax.jacrev(unnormalised))(p)
    for name, expected in case["dlog_prob_dparam"].items():
        np.testing.assert_allclose(gradient[name], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("entry", "family"),
    [
        ("iid_spin_magnitude_beta", spin.beta_magnitudes_shape),
        ("iid_spin_orientation_gaussian_isotropic", spin.tilt_mixture_iid),
        ("gaussian_chi_eff", spin.gaussian_chi_eff),
    ],
)
def test_second_reference(shared, require_path, entry, family):
    path = require_path(shared / "reference/gwkokab/log_density_gwpopulation.json")
    (case,) = json.loads(path.read_text())[entry]
    theta = {n: jnp.asarray(v) for n, v in case["data"].items()}
    np.testing.assert_allclose(family(case["params"]).log_prob(theta), case["log_prob"], rtol=1e-9)
