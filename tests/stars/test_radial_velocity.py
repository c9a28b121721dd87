from __future__ import annotations

import json

import astropy.units as u
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from astropy.table import QTable, Table
from astropy.time import Time
from scipy.special import logsumexp

from skycensus import InputError, Joint
from skycensus.stars.kepler import eccentric_orbits
from skycensus.stars.radial_velocity import (
    Jitter,
    Velocities,
    circular_orbits,
    lomb_scargle,
    read_velocities,
    resolution_error,
    velocities,
)

LINEAR = {"a": dist.Normal(0, 100.0), "b": dist.Normal(0, 100.0), "v0": dist.Normal(0, 150.0)}


def lnp_population(h):
    return Joint(lnP=dist.Normal(h["mu"], jnp.exp(h["lnsigma"])), **LINEAR)


@pytest.fixture(scope="module")
def apogee(require_path, shared):
    return read_velocities(require_path(shared / "data" / "apogee" / "apogee-binaries.fits"))


@pytest.fixture(scope="module")
def reference(require_path, shared):
    folder = require_path(shared / "reference" / "hierarchical")
    return lambda name: json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def orbits(apogee):
    return circular_orbits(apogee)


def node_moments(form, density, name):
    """Mean and standard deviation of every object's parameter, by the nodes."""
    mass, x = np.asarray(form.log_mass(density)), np.asarray(form.nodes[name])
    owner = np.asarray(form.grid.owner)
    out = []
    for i in range(len(form.names)):
        m, own = mass[owner == i].ravel(), x[owner == i].ravel()
        p = np.exp(m - logsumexp(m))
        out.append((p @ own, np.sqrt(p @ (own - p @ own) ** 2)))
    return np.transpose(out)


# ---- against exact answers -----------------------------------------------------------------------


def test_every_mode_of_the_apogee_binaries(orbits, reference):
    modes = [star["modes"][0] for star in reference("rv_modes")]
    density = Joint(lnP=dist.Uniform(np.log(1.5), np.log(20.0)), **LINEAR)
    mean, sd = node_moments(orbits, density, "lnP")
    want = np.array([m["lnP"] for m in modes])
    np.testing.assert_allclose((mean - want) / sd, 0.0, atol=1e-3)
    np.testing.assert_allclose(sd, [m["sd"] for m in modes], rtol=1e-4)
    value = orbits.log_marginal(density).value + np.log(np.log(20.0 / 1.5))
    np.testing.assert_allclose(value, [m["lnZ"] for m in modes], atol=1e-5)


def posterior_on_grid(log_likelihood, mu, lnsigma):
    values = np.asarray(
        jax.jit(
            lambda: jax.lax.map(lambda m: jax.vmap(lambda s: log_likelihood(m, s))(lnsigma), mu)
        )()
    )
    p = np.exp(values - logsumexp(values))
    out = []
    for x, share in ((np.asarray(mu), p.sum(axis=1)), (np.asarray(lnsigma), p.sum(axis=0))):
        out.append((share @ x, np.sqrt(share @ (x - share @ x) ** 2)))
    return out


def hyperposterior(form, mu, lnsigma):
    grid = form.integrated(Joint(lnP=dist.Normal(0.0, 1.0), **LINEAR))

    def log_likelihood(m, s):
        return grid.log_marginal(Joint(lnP=dist.Normal(m, jnp.exp(s)))).value.sum()

    return posterior_on_grid(log_likelihood, jnp.asarray(mu), jnp.asarray(lnsigma))


def test_population_of_the_apogee_binaries(orbits, reference):
    got = hyperposterior(orbits, np.linspace(1.0, 3.0, 161), np.linspace(-1.3, 1.2, 161))
    want = reference("exact_rv2")["params"]
    for (mean, sd), name in zip(got, ("mu", "lnsigma"), strict=True):
        exact = want[name]
        assert abs(mean - exact["mean"]) < 0.01 * exact["sd"]
        assert abs(sd - exact["sd"]) < 0.01 * exact["sd"]


def test_one_binary_and_its_draws(apogee, reference):
    form = circular_orbits(apogee.select(apogee.names[:1]), parameter="P")
    density = Joint(P=dist.Uniform(1.5, 20.0), **LINEAR)
    want = reference("exact_rv1")["params"]
    mean, sd = node_moments(form, density, "P")
    np.testing.assert_allclose((mean - want["P"]["mean"]) / want["P"]["sd"], 0.0, atol=0.01)
    np.testing.assert_allclose(sd, want["P"]["sd"], rtol=0.01)
    keys = jax.random.split(jax.random.key(8), 40_000)
    draws = jax.jit(lambda k: jax.lax.map(lambda k: form.draw(density, k), k, batch_size=2000))(
        keys
    )
    assert np.abs(draws["P"] - want["P"]["mean"]).max() < 1e-5
    for name, exact in want.items():
        # Four standard errors of 40,000 draws.
        assert abs(draws[name].mean() - exact["mean"]) < 0.02 * exact["sd"]
        assert abs(draws[name].std() / exact["sd"] - 1) < 0.0145


@pytest.fixture(scope="module")
def sparse(require_path, shared):
    path = shared / "reference" / "hierarchical" / "rv_sparse_N64_J8_s1.npz"
    data = np.load(require_path(path))
    error = tuple(np.full(8, float(data["err"])) for _ in data["t"])
    names = tuple(f"star {i}" for i in range(len(data["t"])))
    stars = Velocities(tuple(data["t"]), tuple(data["y"]), error, names, np.zeros(len(names)))
    return stars, data["lnP"]


@pytest.mark.slow
def test_sparse_binaries_in_all_their_modes(sparse, reference):
    stars, _ = sparse
    form = circular_orbits(stars, periods=(1.5, 60.0))
    got = hyperposterior(form, np.linspace(1.8, 2.8, 61), np.linspace(-1.3, 0.0, 61))
    exact = reference("rv_sparse_N64_J8_s1")["exact"]
    for (mean, sd), name in zip(got, ("mu", "lnsigma"), strict=True):
        # The reference itself is good to a few hundredths of a standard deviation.
        assert abs(mean - exact[name][0]) < 0.04 * exact[name][1]
        assert abs(sd / exact[name][1] - 1) < 0.04
    density = lnp_population({"mu": 2.3, "lnsigma": -0.7})
    error = resolution_error(stars, density, periods=(1.5, 60.0))
    assert np.abs(error).max() < 1e-4


# ---- few epochs, jitter --------------------------------------------------------------------------


def simulated(num, span, *, period=5.0, error=0.5, seed=2, jitter=0.0):
    rng = np.random.default_rng(seed)
    t = np.sort(rng.uniform(0, span, num))
    t -= t[0]
    phase = 2 * np.pi * t / period
    v = (
        9.0 * np.cos(phase)
        - 4.0 * np.sin(phase)
        + 20.0
        + rng.normal(0, np.hypot(error, jitter), num)
    )
    return t, v, np.full(num, error)


def table_of(*stars):
    out = Table(names=("APOGEE_ID", "JD", "VHELIO", "VHELIO_ERR"), dtype=("U8", *[float] * 3))
    for i, star in enumerate(stars):
        for row in zip(*star, strict=True):
            out.add_row((f"star {i}", *row))
    return out


def brute_force(star, extra, low, high, num):
    """Log marginal for lnP uniform between the periods, by dense matrices at every frequency."""
    t, v, e = star
    lnp = np.log(low) + (np.arange(num) + 0.5) / num * np.log(high / low)
    phase = 2 * np.pi * np.exp(-lnp)[:, None] * t
    basis = np.stack([np.cos(phase), np.sin(phase), np.ones_like(phase)], axis=-1)
    prior = np.diag([100.0**2, 100.0**2, 150.0**2])
    covariance = basis @ prior @ np.swapaxes(basis, 1, 2) + np.diag(e**2 + extra**2)
    misfit = np.sum(
        v * np.linalg.solve(covariance, v[:, None] + 0 * covariance[:, :, :1])[..., 0], 1
    )
    values = -0.5 * (misfit + np.linalg.slogdet(2 * np.pi * covariance)[1])
    return logsumexp(values) - np.log(num)


@pytest.mark.slow
@pytest.mark.parametrize("num", [1, 2, 3, 4])
def test_stars_with_fewer_epochs_than_parameters_or_little_more(num):
    star = simulated(num, 12.0, seed=num)
    form = circular_orbits(velocities(table_of(star)), periods=(2.0, 10.0), max_baselines=np.inf)
    density = Joint(lnP=dist.Uniform(np.log(2.0), np.log(10.0)), **LINEAR)
    got = float(form.log_marginal(density).value[0])
    np.testing.assert_allclose(got, brute_force(star, 0.0, 2.0, 10.0, 6000), atol=2e-3)


@pytest.mark.slow
def test_jitter_is_integrated_or_fixed():
    star = simulated(9, 40.0, jitter=1.5)
    stars = velocities(table_of(star))
    density = Joint(lnP=dist.Uniform(np.log(2.0), np.log(10.0)), **LINEAR)
    jitter = Jitter(np.array([0.3, 1.0, 3.0]), np.array([0.5, 0.3, 0.2]))
    each = [brute_force(star, s, 2.0, 10.0, 6000) for s in jitter.value]
    form = circular_orbits(stars, periods=(2.0, 10.0), jitter=jitter)
    got = float(form.log_marginal(density).value[0])
    np.testing.assert_allclose(got, logsumexp(each, b=jitter.probability), atol=1e-3)
    fixed = circular_orbits(stars.with_jitter(1.0), periods=(2.0, 10.0))
    np.testing.assert_allclose(float(fixed.log_marginal(density).value[0]), each[1], atol=1e-3)


@pytest.mark.slow
def test_nodes_of_a_jitter_resolve_what_velocities_say_of_it():
    star = simulated(12, 40.0, jitter=1.5)
    stars = velocities(table_of(star))
    prior = dist.LogUniform(0.05, 20.0)
    jitter = Jitter.of(prior, stars)
    np.testing.assert_allclose(jitter.probability.sum(), 1.0)
    form = circular_orbits(stars, periods=(2.0, 10.0), jitter=jitter)
    density = Joint(lnP=dist.Uniform(np.log(2.0), np.log(10.0)), **LINEAR)
    fine = 0.05 * 400 ** ((np.arange(100) + 0.5) / 100)
    each = [brute_force(star, s, 2.0, 10.0, 1500) for s in fine]
    want = logsumexp(each) - np.log(len(each))
    np.testing.assert_allclose(float(form.log_marginal(density).value[0]), want, atol=3e-3)
    p = np.exp(np.array(each) - logsumexp(each))
    keys = jax.random.split(jax.random.key(1), 4000)
    draws = jax.jit(lambda k: jax.lax.map(lambda k: form.draw(density, k), k, batch_size=500))(keys)
    s = np.asarray(draws["jitter"])[:, 0]
    mean, sd = p @ fine, np.sqrt(p @ (fine - p @ fine) ** 2)
    assert abs(s.mean() - mean) < 0.1 * sd
    assert abs(s.std() / sd - 1) < 0.15
    # A prior with some of its mass at no jitter at all loses none of it.
    half = Jitter.of(dist.HalfNormal(0.1), stars)
    np.testing.assert_allclose(half.probability.sum(), 1.0)
    assert half.value[0] == 0.025 and half.probability[0] > 0.3
    with pytest.raises(InputError, match="jitter: Normal allows negative numbers"):
        Jitter.of(dist.Normal(0.0, 1.0), stars)


def test_uncertainties_must_be_positive_from_python_too():
    t, v, e = simulated(6, 40.0)
    e[3] = -0.5
    stars = Velocities((t,), (v,), (e,), ("star 9",), np.zeros(1))
    calls = (circular_orbits, eccentric_orbits, lambda s: s.with_jitter(1.0))
    for call in calls:
        with pytest.raises(InputError, match=r"star 9: an uncertainty of -0\.5 is not a positive"):
            call(stars)
    with pytest.raises(InputError, match=r"jitter=-1 km/s must be"):
        velocities(table_of(simulated(6, 40.0))).with_jitter(-1.0)


# ---- reading -------------------------------------------------------------------------------------


def test_starting_values_are_those_of_the_tutorial(apogee, reference):
    want = reference("init_values")["rv_init"]
    got = lomb_scargle(apogee)
    for name in ("P", "a", "b", "v0"):
        np.testing.assert_allclose(got[name], [star[name] for star in want], rtol=1e-6)


def test_reading_converts_units_and_names_and_times(tmp_path):
    table = table_of(simulated(4, 30.0), simulated(3, 20.0, seed=5))
    plain = velocities(table)
    assert plain.names == ("star 0", "star 1")
    assert [len(t) for t in plain.time] == [4, 3]
    assert plain.time[0][0] == 0 and np.all(np.diff(plain.time[0]) > 0)
    other = QTable(
        {
            "id": table["APOGEE_ID"],
            "when": Time(2_455_000.0 + table["JD"], format="jd"),
            "v": np.asarray(table["VHELIO"]) * 1000 * u.m / u.s,
            "s": np.asarray(table["VHELIO_ERR"]) * u.km / u.s,
        }
    )
    got = velocities(other[::-1], name="id", time="when", velocity="v", error="s", stars=["star 1"])
    np.testing.assert_allclose(got.velocity[0], plain.velocity[1])
    np.testing.assert_allclose(got.time[0], plain.time[1], atol=1e-8)
    path = tmp_path / "stars.ecsv"
    table.write(path)
    np.testing.assert_allclose(read_velocities(path).time[1], plain.time[1])
    with pytest.raises(InputError, match=r"no star 'star 3' \(did you mean 'star"):
        plain.select(["star 3"])


def changed(column, row, value):
    table = table_of(simulated(4, 30.0), simulated(3, 20.0, seed=5))
    table[column][row] = value
    return table


def test_bad_rows_are_named():
    for value, message in ((0.0, "zero or negative in row 5"), (-1.0, "zero or negative in row 5")):
        with pytest.raises(InputError, match=message):
            velocities(changed("VHELIO_ERR", 5, value))
    broken = changed("VHELIO", 2, np.nan)
    with pytest.raises(InputError, match="missing or infinite value in row 2"):
        velocities(broken)
    assert [len(t) for t in velocities(broken, drop_invalid=True).time] == [3, 3]
    table = table_of(simulated(4, 30.0))
    table["VHELIO"].unit = "kpc"
    with pytest.raises(InputError, match="'kpc', which does not convert to km / s"):
        velocities(table)
    with pytest.raises(InputError, match="no column 'RV'"):
        velocities(table, velocity="RV")


def test_times_may_be_there_twice_but_rows_may_not():
    table = changed("JD", 1, 0.0)
    assert velocities(table).time[0][1] == 0.0  # two spectra of one night
    table.add_row(table[5])
    with pytest.raises(
        InputError, match=r"star star 1 has the same row more than once \(rows 5, 7\)"
    ):
        velocities(table)


@pytest.mark.slow
def test_ranges_of_periods_that_cannot_be_resolved():
    stars = velocities(table_of(simulated(9, 40.0), simulated(5, 1.0, seed=5)))
    with pytest.raises(InputError, match=r"star star 1: its epochs span 0\.\d+ days"):
        circular_orbits(stars)
    stars = stars.select(["star 0"])
    for options, message in (
        ({"periods": (5.0, 2.0)}, "is no range"),
        ({"oversampling": 1.0}, "oversampling=1 is too coarse"),
        ({"periods": (1e-6, 20.0)}, "star star 0: .* frequencies are needed"),
        ({"parameter": "period"}, "use 'lnP' or 'P'"),
        ({"max_nodes": 3}, "star star 0: .* nodes are needed"),
    ):
        with pytest.raises(InputError, match=message):
            circular_orbits(stars, **options)
