import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from skycensus.gw import mass_smoothed

LAW = {"alpha": 3.5, "beta": 1.1, "mmin": 4.6, "mmax": 86.2}
PEAK = {**LAW, "delta": 4.95, "lambda_peak": 0.04, "loc": 33.6, "scale": 4.6}
MULTI = {
    **LAW,
    "delta_m": 4.95,
    "lam": 0.1,
    "lam_1": 0.5,
    "mpp_1": 10.0,
    "sigpp_1": 1.0,
    "mpp_2": 33.6,
    "sigpp_2": 4.6,
}
BROKEN = {
    "alpha_1": 1.6,
    "alpha_2": 5.6,
    "beta": 1.4,
    "mmin": 4.0,
    "mmax": 87.0,
    "break_fraction": 0.43,
    "delta_m": 5.0,
}
GWTC4 = {
    "alpha1": 1.7,
    "alpha2": 4.5,
    "beta": 1.2,
    "loc1": 9.8,
    "loc2": 33.0,
    "scale1": 0.65,
    "scale2": 3.9,
    "delta_m1": 4.3,
    "delta_m2": 3.0,
    "lambda_0": 0.36,
    "lambda_1": 0.59,
    "m1min": 5.0,
    "m2min": 3.0,
    "mmax": 300.0,
    "mbreak": 36.0,
}
CASES = {
    "smoothed_power_law": {**LAW, "delta": 4.95},
    "smoothed_power_law_peak": PEAK,
    "smoothed_multi_peak": MULTI,
    "smoothed_broken_power_law": BROKEN,
    "smoothed_broken_power_law_peak": {**BROKEN, "lam": 0.05, "mpp": 34.0, "sigpp": 4.0},
    "broken_power_law_two_peaks": GWTC4,
}


@functools.cache
def compiled(name, gradient=False):
    def log_prob(h, theta):
        return getattr(mass_smoothed, name)(h).log_prob(theta)

    return jax.jit(jax.jacrev(log_prob) if gradient else log_prob)


# Compiling takes most of the time: two families, that have all parts between them, stand for all.
SOME_CASES = [
    name
    if name in ("smoothed_power_law_peak", "broken_power_law_two_peaks")
    else pytest.param(name, marks=pytest.mark.slow)
    for name in CASES
]


def evaluate(name, h, m1, q, *, gradient=False, dtype=jnp.float64):
    """Log density at the points, or its gradient; always of eight, so as to compile once."""
    n = len(m1)
    h = {k: jnp.asarray(v, dtype) for k, v in h.items()}
    padded = {
        "mass_1_source": jnp.asarray(np.resize(m1, 8), dtype),
        "mass_ratio": jnp.asarray(np.resize(q, 8), dtype),
    }
    result = compiled(name, gradient)(h, padded)
    return {k: np.array(v)[:n] for k, v in result.items()} if gradient else result[:n]


def taper(x):
    if x <= 0 or x >= 1:
        return float(x >= 1)
    return 1 / (1 + np.exp(min(1 / x - 1 / (1 - x), 700)))


def integrate(f, edges):
    edges = np.unique(edges)
    return sum(
        quad(f, a, b, epsabs=0, epsrel=1e-10, limit=200)[0] for a, b in itertools.pairwise(edges)
    )


def normal(m, loc, scale, low, high):
    return stats.truncnorm.pdf(m, (low - loc) / scale, (high - loc) / scale, loc=loc, scale=scale)


def power(m, index, low, high):
    if not low <= m <= high:
        return 0.0
    return m**index * (index + 1) / (high ** (index + 1) - low ** (index + 1))


def broken(m, a1, a2, middle, low, high):
    def f(m):
        return (m / middle) ** -(a1 if m < middle else a2)

    if not low <= m <= high:
        return 0.0
    return f(m) / (
        middle
        * (
            (1 - (low / middle) ** (1 - a1)) / (1 - a1)
            + ((high / middle) ** (1 - a2) - 1) / (1 - a2)
        )
    )


def exact_primary(name, h):
    """The untapered density of m1, where it has corners, and the tapers of m1 and m2."""
    if name == "broken_power_law_two_peaks":
        low, high, rest = h["m1min"], h["mmax"], 1 - h["lambda_0"] - h["lambda_1"]

        def f(m):
            return (
                h["lambda_0"] * broken(m, h["alpha1"], h["alpha2"], h["mbreak"], low, high)
                + h["lambda_1"] * normal(m, h["loc1"], h["scale1"], low, high)
                + rest * normal(m, h["loc2"], h["scale2"], low, high)
            )

        corners = [8.0, 9.0, 9.8, 10.6, 12.0, h["mbreak"], 45.0, high]
        return f, corners, (low, h["delta_m1"]), (h["m2min"], h["delta_m2"])
    low, high, delta = h["mmin"], h["mmax"], h.get("delta", h.get("delta_m"))
    lam = h.get("lambda_peak", h.get("lam", 0.0))
    middle = low + h.get("break_fraction", 0.5) * (high - low)

    def f(m):
        if "alpha_1" in h:
            law = broken(m, h["alpha_1"], h["alpha_2"], middle, low, high)
        else:
            law = power(m, -h["alpha"], low, high)
        total = (1 - lam) * law
        if "lam_1" in h:
            total += lam * h["lam_1"] * normal(m, h["mpp_1"], h["sigpp_1"], low, 100.0)
            total += lam * (1 - h["lam_1"]) * normal(m, h["mpp_2"], h["sigpp_2"], low, 100.0)
        elif lam:
            loc, scale = h.get("loc", h.get("mpp")), h.get("scale", h.get("sigpp"))
            total += lam * normal(m, loc, scale, low, 100.0)
        return total

    return f, [10.0, 15.0, 25.0, 33.0, middle, 50.0, high, 100.0], (low, delta), (low, delta)


def exact_log_prob(name, h, m1, q):
    f, corners, (low1, delta1), (low2, delta2) = exact_primary(name, h)
    norm_1 = integrate(lambda m: f(m) * taper((m - low1) / delta1), [low1, low1 + delta1, *corners])
    ends = [low2, low2 + delta2, m1]
    norm_2 = integrate(
        lambda m: (m / m1) ** h["beta"] * taper((m - low2) / delta2) / m1,
        [m for m in ends if m <= m1],
    )
    value = f(m1) * taper((m1 - low1) / delta1) / norm_1
    value *= q ** h["beta"] * taper((q * m1 - low2) / delta2) / norm_2
    return np.log(value)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_against_adaptive_quadrature(name):
    h = CASES[name]
    # Inside both tapers, in the first only, at the peak, near the upper end.
    points = [
        (5.4, 0.97),
        (6.0, 0.95),
        (8.0, 0.9),
        (9.0, 0.7),
        (20.0, 0.31),
        (34.0, 0.8),
        (80.0, 0.99),
    ]
    exact = [exact_log_prob(name, h, *p) for p in points]
    value = evaluate(name, h, *zip(*points, strict=True))
    np.testing.assert_allclose(value, exact, rtol=0, atol=1e-5)
    # Away from the table at the first percents of the taper it is far better.
    np.testing.assert_allclose(np.array(value)[-3:], np.array(exact)[-3:], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME_CASES)
def test_sampling_agrees(name):
    h = CASES[name]
    density = getattr(mass_smoothed, name)(h)
    draws = jax.jit(density.sample, static_argnums=1)(jax.random.key(4), (20000,))
    m1 = np.concatenate([np.linspace(3.0, 20.0, 3401), np.linspace(20.02, 300.0, 14000)])
    primary = density.factors["mass_1_source"]
    p = np.exp(np.array(jax.jit(primary.log_prob)({"mass_1_source": jnp.asarray(m1)})))
    cumulative = np.concatenate([[0], np.cumsum(0.5 * (p[1:] + p[:-1]) * np.diff(m1))])
    np.testing.assert_allclose(cumulative[-1], 1.0, rtol=2e-4)
    drawn = {n: np.array(x) for n, x in draws.items()}
    test = stats.kstest(drawn["mass_1_source"], lambda x: np.interp(x, m1, cumulative))
    assert test.pvalue > 0.005
    # The share of q below each draw's q, given its m1, is uniform.
    secondary = density.factors["mass_ratio"](draws).secondary
    log_integral = jax.jit(secondary.log_integral)
    m2 = draws["mass_1_source"] * draws["mass_ratio"]
    share = np.exp(log_integral(m2) - log_integral(draws["mass_1_source"]))
    assert stats.kstest(share, "uniform").pvalue > 0.005


@pytest.mark.parametrize("name", SOME_CASES)
def test_outside_is_zero_with_finite_gradients(name):
    h = CASES[name]
    start = h.get("mmin", h.get("m1min"))
    m1 = [2.0, start, 40.0, 40.0, 400.0, start + 1e-13]
    q = [0.9, 1.0, 0.01, 1.1, 0.5, 1.0]
    value = np.array(evaluate(name, h, m1, q))
    assert np.all(np.isneginf(value[:5])) and value[5] < -1e6
    gradient = evaluate(name, h, m1, q, gradient=True)
    assert all(np.all(np.isfinite(g)) for g in gradient.values())


def test_gradients_are_those_of_the_exact_density():
    at = (8.0, 0.9)
    gradient = evaluate("smoothed_power_law_peak", PEAK, [at[0]], [at[1]], gradient=True)
    for name, slope in gradient.items():
        step = 1e-4
        up, down = ({**PEAK, name: PEAK[name] + s} for s in (step, -step))
        exact = [exact_log_prob("smoothed_power_law_peak", p, *at) for p in (up, down)]
        np.testing.assert_allclose(slope, (exact[0] - exact[1]) / (2 * step), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("exponent", [-8.0, -1.0, 0.0, 9.0])
@pytest.mark.parametrize(("low", "delta"), [(2.0, 10.0), (5.0, 0.5), (5.0, 0.0)])
def test_integral_of_the_tapered_power_law(exponent, low, delta):
    law = mass_smoothed.TaperedPowerLaw(exponent, low, delta)
    delta = float(law.delta)

    def integrand(m):
        return (m / law.full) ** exponent * taper((m - low) / delta) / law.full

    for x in (0.1, 0.5, 0.95, 1.0, 1.5, 10.0):
        m = low + x * delta
        exact = integrate(integrand, [low, min(m, low + delta), m])
        # At delta of a millionth m itself carries the rounding.
        np.testing.assert_allclose(law.log_integral(m), np.log(exact), rtol=0, atol=2e-6)


def test_flat_mass_ratio_in_the_logarithm_is_exact():
    """beta = -1: the part above the taper is a logarithm, its slope in beta half its square."""
    law = mass_smoothed.TaperedPowerLaw(-1.0, 5.0, 0.0)
    np.testing.assert_allclose(law.log_integral(50.0), np.log(np.log(10.0)), rtol=1e-6)
    slope = jax.grad(lambda b: mass_smoothed.TaperedPowerLaw(b, 5.0, 0.0).log_integral(50.0))(-1.0)
    np.testing.assert_allclose(slope, 0.5 * np.log(10.0), rtol=1e-6)


def test_fractions_beyond_one_are_no_density():
    name = "broken_power_law_two_peaks"
    assert np.isneginf(evaluate(name, {**GWTC4, "lambda_0": 0.6}, [20.0], [0.9])[0])
    edge = evaluate(name, {**GWTC4, "lambda_0": 0.41, "lambda_1": 0.59}, [20.0], [0.9])
    assert np.isfinite(edge[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_single_precision(name):
    points = [6.5, 20.0, 34.0], [0.95, 0.5, 0.8]
    narrow = evaluate(name, CASES[name], *points, dtype=jnp.float32)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, evaluate(name, CASES[name], *points), atol=2e-4)


def test_taper_reference(shared, require_path):
    path = require_path(shared / "reference/gwkokab/log_density_gwkokab.json")
    case = json.loads(path.read_text())["log_planck_taper_window"]
    expected = np.array(case["value"], float)
    np.testing.assert_allclose(mass_smoothed.log_taper(jnp.asarray(case["x"])), expected, rtol=1e-9)


REFERENCES = [
    ("gwkokab", "SmoothedTwoComponentPrimaryMassRatio(PowerlawPeak)", "smoothed_power_law_peak"),
    ("gwkokab", "BrokenPowerlawTwoPeak(GWTC-4)", "broken_power_law_two_peaks"),
    ("gwpopulation", "SinglePeakSmoothedMassDistribution(PowerLawPeak)", "smoothed_power_law_peak"),
    ("gwpopulation", "MultiPeakSmoothedMassDistribution", "smoothed_multi_peak"),
    ("gwpopulation", "BrokenPowerLawSmoothedMassDistribution", "smoothed_broken_power_law"),
    (
        "gwpopulation",
        "BrokenPowerLawPeakSmoothedMassDistribution",
        "smoothed_broken_power_law_peak",
    ),
]


@pytest.mark.parametrize(("package", "entry", "name"), REFERENCES)
def test_reference_values(shared, require_path, package, entry, name):
    """They normalise on grids: up to half a percent off in the taper, as quadrature shows above."""
    path = require_path(shared / f"reference/gwkokab/log_density_{package}.json")
    (case,) = json.loads(path.read_text())[entry]
    p = dict(case["params"])
    if package == "gwpopulation" and name == "smoothed_power_law_peak":
        p |= {"lambda_peak": p["lam"], "loc": p["mpp"], "scale": p["sigpp"], "delta": p["delta_m"]}
    points = case.get("points") or list(
        zip(case["data"]["mass_1"], case["data"]["mass_ratio"], strict=True)
    )
    m1, q = np.array(points).T
    p = {k: v for k, v in p.items() if k in CASES[name]}
    value = evaluate(name, p, m1, q)
    np.testing.assert_allclose(value, case["log_prob"], rtol=0, atol=1e-2)
    above = m1 > 11.0
    np.testing.assert_allclose(
        np.array(value)[above], np.array(case["log_prob"])[above], rtol=0, atol=2e-5
    )
    if "dlog_prob_dparam" not in case:
        return
    gradient = evaluate(name, p, m1, q, gradient=True)
    for parameter, slope in case["dlog_prob_dparam"].items():
        # The slope in mmax there is that of the end of its grids.
        atol = 5e-3 if parameter == "mmax" else 1e-4
        np.testing.assert_allclose(
            np.array(gradient[parameter])[above], np.array(slope)[above], rtol=1e-2, atol=atol
        )
