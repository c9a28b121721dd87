import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from skycensus.density import Kernels
from skycensus.errors import InputError
from skycensus.gw import mass, redshift, spin
from skycensus.model import hyperparameter_names

POWER_LAW = {"alpha": 2.3, "beta": 1.0, "mmin": 5.0, "mmax": 80.0}
ONE = {f"{k}_pl_0": v for k, v in POWER_LAW.items()}
GAUSSIAN = {
    "m1_loc": 35.0,
    "m1_scale": 3.0,
    "m1_low": 5.0,
    "m1_high": 100.0,
    "m2_loc": 30.0,
    "m2_scale": 4.0,
    "m2_low": 5.0,
    "m2_high": 100.0,
}
TWO = {**ONE, **{f"{k}_g_0": v for k, v in GAUSSIAN.items()}, "log_rate_0": 2.0, "log_rate_1": 0.5}
PEAK = {**POWER_LAW, "lam": 0.1, "mpp": 33.0, "sigpp": 4.0}
Q = ("mass_1_source", "mass_ratio")
M = ("mass_1_source", "mass_2_source")
CASES = {
    "power_law_mass_ratio": (mass.power_law_mass_ratio, POWER_LAW, 1.0),
    "power_law_masses": (mass.power_law_masses, POWER_LAW, 1.0),
    "flat_in_logarithm": (mass.power_law_masses, {**POWER_LAW, "alpha": 1.0, "beta": -1.0}, 1.0),
    "power_law_peak": (mass.power_law_peak, PEAK, 1.0),
    "wysocki_2019": (mass.wysocki_2019, {"alpha_m": 1.1, "mmin": 5.0, "mmax": 80.0}, 1.0),
    "gaussian_masses": (mass.gaussian_masses, GAUSSIAN, 1.0),
    "n_power_laws_m_gaussians": (
        mass.n_power_laws_m_gaussians(1, 1),
        TWO,
        np.exp(2.0) + np.exp(0.5),
    ),
}
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)


def panels(edges):
    """Composite Gauss–Legendre nodes and weights between the edges."""
    half = 0.5 * np.diff(edges)[:, None]
    nodes = edges[:-1, None] + half * (1 + _NODES)
    return nodes.ravel(), (half * _WEIGHTS).ravel()


def tabulate(density):
    """(m1, second parameter) on panels that end where supports do, with weights and density."""
    m1, w1 = panels(np.array([5.0, 12.0, 25.0, 33.0, 45.0, 80.0, 100.0]))
    if density.names[1] == "mass_ratio":
        second, w2 = panels(np.linspace(0, 1, 7))
        # From the lowest q at this m1 to one.
        low = 5.0 / m1[:, None]
        second, w2 = low + (1 - low) * second, (1 - low) * w2
    else:
        below, wb = panels(np.linspace(0, 1, 7))
        span = (m1 - 5.0)[:, None]
        above = (100.0 - m1)[:, None]
        second = np.concatenate([5.0 + span * below, m1[:, None] + above * below], axis=1)
        w2 = np.concatenate([span * wb, above * wb], axis=1)
    theta = {
        density.names[0]: jnp.asarray(np.broadcast_to(m1[:, None], second.shape)),
        density.names[1]: jnp.asarray(second),
    }
    p = np.exp(np.array(jax.jit(density.log_prob)(theta)))
    return m1, second, w1[:, None] * w2, p


@pytest.mark.parametrize("name", CASES)
def test_normalised_and_sampled(name):
    family, h, total = CASES[name]
    density = family(h)
    m1, second, weight, p = tabulate(density)
    np.testing.assert_allclose(np.sum(weight * p), total, rtol=1e-7)
    draws = jax.jit(density.sample, static_argnums=1)(jax.random.key(11), (20000,))
    share = weight * p / total
    marginals = [(m1, share.sum(axis=1)), (second.ravel(), share.ravel())]
    for n, (x, mass_at) in zip(density.names, marginals, strict=True):
        order = np.argsort(x)
        x, mass_at = x[order], mass_at[order]
        middle = np.cumsum(mass_at) - 0.5 * mass_at
        test = stats.kstest(np.array(draws[n]), lambda v, x=x, c=middle: np.interp(v, x, c))
        assert test.pvalue > 0.005, n
    product = np.array(draws[density.names[0]]) * np.array(draws[density.names[1]])
    mean = np.sum(weight * p * m1[:, None] * second) / total
    assert abs(product.mean() - mean) < 4 * product.std() / np.sqrt(len(product))


@pytest.mark.parametrize("name", CASES)
def test_outside_is_zero_with_finite_gradients(name):
    family, h, _ = CASES[name]
    h = {k: jnp.asarray(v) for k, v in h.items()}
    names = family(h).names
    second = [0.9, 0.01, 1.2, 0.5] if names[1] == "mass_ratio" else [3.5, 2.0, 101.0, 60.0]
    theta = {names[0]: jnp.asarray([4.0, 40.0, 60.0, 120.0]), names[1]: jnp.asarray(second)}
    assert np.all(np.isneginf(family(h).log_prob(theta)))
    gradient = jax.jit(jax.jacrev(lambda h: family(h).log_prob(theta)))(h)
    assert all(np.all(np.isfinite(g)) for g in gradient.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_single_precision(name):
    family, h, _ = CASES[name]
    narrow_h = {k: jnp.asarray(v, jnp.float32) for k, v in h.items()}
    names = family(h).names
    second = [0.95, 0.6] if names[1] == "mass_ratio" else [11.0, 21.0]
    theta = {names[0]: jnp.asarray([12.0, 35.0]), names[1]: jnp.asarray(second)}
    narrow = family(narrow_h).log_prob({n: x.astype(jnp.float32) for n, x in theta.items()})
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, family(h).log_prob(theta), rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_removable_singularities_are_exact(dtype):
    """At alpha = 1, beta = -1 the norms are logarithms; their slopes are half of the log ranges."""
    h = {k: jnp.asarray(v, dtype) for k, v in {**POWER_LAW, "alpha": 1.0, "beta": -1.0}.items()}
    m1, q = 20.0, 0.7
    theta = {"mass_1_source": jnp.asarray(m1, dtype), "mass_ratio": jnp.asarray(q, dtype)}
    range_1, range_q = np.log(80.0 / 5.0), np.log(m1 / 5.0)
    exact = -np.log(m1 * range_1) - np.log(q * range_q)

    @jax.jit
    def log_prob(h):
        return mass.power_law_mass_ratio(h).log_prob(theta)

    tolerance = {"rtol": 1e-6 if dtype == jnp.float32 else 1e-14}
    np.testing.assert_allclose(log_prob(h), exact, **tolerance)
    gradient = jax.jit(jax.grad(log_prob))(h)
    slope_alpha = -np.log(m1) + 0.5 * (np.log(5.0) + np.log(80.0))
    np.testing.assert_allclose(gradient["alpha"], slope_alpha, **tolerance)
    np.testing.assert_allclose(gradient["beta"], np.log(q) + 0.5 * range_q, **tolerance)
    # Nothing jumps beside the singular point either.
    near = log_prob({**h, "alpha": h["alpha"] + 1e-4, "beta": h["beta"] - 1e-4})
    np.testing.assert_allclose(
        near,
        exact + 1e-4 * (gradient["alpha"] - gradient["beta"]),
        atol=2e-6 if dtype == jnp.float32 else 1e-7,
    )


def test_coordinates_agree():
    theta = {"mass_1_source": jnp.asarray([20.0, 40.0]), "mass_ratio": jnp.asarray([0.7, 0.9])}
    masses = {**theta, "mass_2_source": theta["mass_1_source"] * theta["mass_ratio"]}
    in_q = mass.power_law_mass_ratio(POWER_LAW).log_prob(theta)
    in_m2 = mass.power_law_masses(POWER_LAW).log_prob(masses)
    np.testing.assert_allclose(in_m2, in_q - jnp.log(theta["mass_1_source"]), rtol=1e-13)


def test_broken_power_law():
    h = {"alpha1": -1.0, "alpha2": 2.0, "mbreak": 30.0, "mmin": 10.0, "mmax": 50.0}
    density = mass.broken_power_law(h)
    m, w = panels(np.array([10.0, 30.0, 50.0]))
    p = np.exp(np.array(density.log_prob({"mass_1_source": jnp.asarray(m)})))
    np.testing.assert_allclose(np.sum(w * p), 1.0, rtol=1e-12)
    d = density.factors["mass_1_source"]
    q = jnp.linspace(0.0, 1.0, 21)
    np.testing.assert_allclose(d.cdf(d.icdf(q)), q, atol=1e-12)
    np.testing.assert_allclose(d.cdf(22.0), np.sum((w * p)[m < 22.0]), atol=2e-2)
    slope = jax.vmap(jax.grad(lambda m: d.cdf(m)))(jnp.asarray([12.0, 29.0, 31.0, 49.0]))
    np.testing.assert_allclose(
        slope, np.exp(d.log_prob(np.array([12.0, 29.0, 31.0, 49.0]))), rtol=1e-10
    )
    flat = mass.BrokenPowerLaw(1.0, 1.0, 30.0, 10.0, 50.0)
    np.testing.assert_allclose(flat.log_prob(20.0), -np.log(20.0 * np.log(5.0)), rtol=1e-14)


def test_kernels_soften_the_edges():
    theta = {"mass_1_source": jnp.asarray([79.9, 80.1]), "mass_2_source": jnp.asarray([30.0, 30.0])}
    width = {n: jnp.full(2, 0.5) for n in theta}
    density = mass.n_power_laws_m_gaussians(1, 0)({**ONE, "log_rate_0": 0.0})
    value = density.log_prob(Kernels(theta, width))
    assert np.all(np.isfinite(value)) and abs(value[0] - value[1]) < 1.0


@pytest.mark.slow
def test_rates_of_components_with_a_redshift_factor():
    population = mass.n_power_laws_m_gaussians(
        1, 1, extra=(spin.beta_magnitudes, redshift.power_law)
    )
    h = {
        **TWO,
        "redshift_kappa_pl_0": 2.7,
        "redshift_kappa_g_0": 1.5,
        "redshift_z_max_pl_0": 2.3,
        "redshift_z_max_g_0": 1.0,
    }
    h |= {
        f"a_{i}_{k}_{s}": v
        for i in (1, 2)
        for s in ("pl_0", "g_0")
        for k, v in [("mean", 0.3), ("variance", 0.02)]
    }
    density = population(h)
    assert set(density.names) == {*M, "a_1", "a_2", "redshift"}
    volumes = [float(redshift.log_volume(c)) for c in density.components.values()]
    expected = np.logaddexp(2.0 + volumes[0], 0.5 + volumes[1])
    np.testing.assert_allclose(density.log_total, expected, rtol=1e-12)
    draws = jax.jit(density.sample, static_argnums=1)(jax.random.key(2), (2000,))
    # Beyond z = 1 there is only the power law.
    share = np.mean(np.array(draws["redshift"]) > 1.0)
    z = jnp.linspace(1.0, 2.3, 200)
    p = np.exp(density.components["pl_0"].factors["redshift"].log_prob(z))
    assert abs(share - np.trapezoid(p, z) * np.exp(2.0 + volumes[0] - expected)) < 0.04


def test_hyperparameter_names_and_errors():
    required, _ = hyperparameter_names(mass.n_power_laws_m_gaussians(1, 0))
    assert set(required) == {"log_rate_0", *ONE}
    required, optional = hyperparameter_names(mass.n_power_laws_m_gaussians(0, 1))
    assert set(required) == {
        "log_rate_0",
        "m1_loc_g_0",
        "m1_scale_g_0",
        "m2_loc_g_0",
        "m2_scale_g_0",
    }
    assert "m1_low_g_0" in optional
    with pytest.raises(InputError, match="n_pl=0 and n_g=0"):
        mass.n_power_laws_m_gaussians(0, 0)
    with pytest.raises(InputError, match=r"'mmin_pl_0'.*did you mean"):
        mass.n_power_laws_m_gaussians(1, 0)(
            {
                "log_rate_0": 0.0,
                "alpha_pl_0": 2.0,
                "beta_pl_0": 1.0,
                "mmin_pl_1": 5.0,
                "mmax_pl_0": 9.0,
            }
        )


def compare(case, family, names, *, rtol=1e-9, gradient_rtol=1e-9, atol=1e-13):
    """Compare with a reference case; returns the points where it and ours are both finite."""
    p = {
        k: float(v)
        for k, v in case["params"].items()
        if not isinstance(v, bool) and k not in ("N_pl", "N_g")
    }
    points = np.array(case["points"], float).reshape(-1, len(names))
    theta = {n: jnp.asarray(points[:, i]) for i, n in enumerate(names)}
    expected = np.array(case["log_prob"], float)
    value = np.array(family(p).log_prob(theta))
    assert not np.any(np.isfinite(value) & ~np.isfinite(expected))
    both = np.isfinite(value)
    np.testing.assert_allclose(value[both], expected[both], rtol=rtol, atol=atol)
    gradient = jax.jit(jax.jacrev(lambda p: family(p).log_prob(theta)))(p)
    for name, slope in case["dlog_prob_dparam"].items():
        slope = np.array(slope, float)[both]
        np.testing.assert_allclose(
            np.array(gradient[name])[both], slope, rtol=gradient_rtol, atol=atol, err_msg=name
        )
    return both, points


def load(require_path, shared, package):
    path = require_path(shared / f"reference/gwkokab/log_density_{package}.json")
    return json.loads(path.read_text())


def test_power_law_reference(shared, require_path):
    """The reference forgets to cut its own supports: it is finite at m1 = 55 > mmax = 50, and at
    q = 0.2 < mmin / m1 = 1/3. Everywhere inside the two agree."""
    first, second = load(require_path, shared, "gwkokab")["PowerlawPrimaryMassRatio"]
    both, points = compare(first, mass.power_law_mass_ratio, Q)
    low, high = first["params"]["mmin"], first["params"]["mmax"]
    m1, q = points.T
    inside = (m1 >= low) & (m1 <= high) & (q * m1 >= low)
    np.testing.assert_array_equal(both, inside)
    wrong = np.isfinite(np.array(first["log_prob"], float)) & ~inside
    assert [tuple(x) for x in points[wrong]] == [(55.0, 0.5), (30.0, 0.2)]
    # Its slopes at alpha = 1 are differences over 1e-6; the exact ones are tested above.
    both, _ = compare(second, mass.power_law_mass_ratio, Q, gradient_rtol=1e-5)
    assert np.all(both)


def test_wysocki_and_broken_power_law_references(shared, require_path):
    reference = load(require_path, shared, "gwkokab")
    compare(reference["Wysocki2019MassModel"][0], mass.wysocki_2019, M)
    compare(reference["BrokenPowerlaw"][0], mass.broken_power_law, M[:1])


@pytest.mark.parametrize("i", [0, 1])
def test_n_power_laws_m_gaussians_reference(shared, require_path, i):
    case = load(require_path, shared, "gwkokab")["NPowerlawMGaussian"][i]
    population = mass.n_power_laws_m_gaussians(case["params"]["N_pl"], case["params"]["N_g"])
    both, _ = compare(case, population, M)
    np.testing.assert_array_equal(both, np.isfinite(np.array(case["log_prob"], float)))


def test_full_rate_reference(shared, require_path):
    """To the precision of the reference's interpolated distances."""
    name = "NPowerlawMGaussian+beta_spin+powerlaw_redshift"
    (case,) = load(require_path, shared, "gwkokab")[name]
    extra = (spin.beta_magnitudes, redshift.power_law)
    population = mass.n_power_laws_m_gaussians(1, 1, extra=extra)
    compare(case, population, (*M, "a_1", "a_2", "redshift"), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("entry", "family"),
    [
        ("power_law_primary_mass_ratio", mass.power_law_mass_ratio),
        ("two_component_primary_mass_ratio", mass.power_law_peak),
    ],
)
def test_second_reference(shared, require_path, entry, family):
    (case,) = load(require_path, shared, "gwpopulation")[entry]
    theta = {
        "mass_1_source": jnp.asarray(case["data"]["mass_1"]),
        "mass_ratio": jnp.asarray(case["data"]["mass_ratio"]),
    }
    value = family(case["params"]).log_prob(theta)
    np.testing.assert_allclose(value, case["log_prob"], rtol=1e-9, atol=1e-13)
