"""Quadrature over hyperparameters against brute force and closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import HierarchicalModel, InputError, Joint, Prior, Target, model
from skycensus.likelihood import Quadrature
from skycensus.samplers import QuadratureSampler
from skycensus.samplers.interpolated import Interpolated
from skycensus.samplers.lattice import FIRST_SPACING, Lattice

WIDE = dist.Normal(0.0, 3.0)


def brute_force(target: Target, box: dict[str, tuple[float, float]], num: int):
    """Log evidence, and mean and sd by name, by a midpoint sum over the parameters themselves."""
    axes = []
    for low, high in box.values():
        edges = np.linspace(low, high, num + 1)
        axes.append(0.5 * (edges[1:] + edges[:-1]))
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))

    def one(point):
        h = dict(zip(box, point, strict=True))
        return target._log_likelihood(h, target.data) + target.prior.log_prob(h)

    log_density = np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(points)))
    cell = np.prod([(high - low) / num for low, high in box.values()])
    weight = np.exp(log_density - log_density.max())
    log_z = np.log(weight.sum() * cell) + log_density.max()
    weight /= weight.sum()
    mean = weight @ points
    sd = np.sqrt(weight @ (points - mean) ** 2)
    return log_z, {name: (mean[i], sd[i]) for i, name in enumerate(box)}


def check(target: Target, box: dict[str, tuple[float, float]], num: int, *, slack: float = 0.0):
    """Evidence within its error (and the brute force's), draws within 0.005 sd; the result."""
    result = QuadratureSampler().run(target, jax.random.key(2))
    log_z, exact = brute_force(target, box, num)
    assert result.status.converged, str(result.status)
    assert result.log_evidence_error < 1e-4
    assert abs(result.log_evidence - log_z) < 4 * result.log_evidence_error + slack
    assert set(result.draws) == set(box)
    for name, (mean, sd) in exact.items():
        draws = result.draws[name]
        assert abs(draws.mean() - mean) < 0.005 * sd
        assert abs(draws.std() / sd - 1) < 0.005
    return result


def banana(h, data):
    return -0.5 * (h["a"] ** 2 + ((h["b"] - 0.5 * h["a"] ** 2) / 0.5) ** 2)


def pressed(h, data):
    return -0.5 * ((h["a"] - 1.2) / 0.3) ** 2


def skewed(h, data):
    return (
        -0.5 * ((h["a"] - 1) / 0.1) ** 2
        - jnp.exp(h["b"])
        + 3 * h["b"]
        - 0.5 * ((h["c"] - h["b"]) / 0.5) ** 2
    )


def two_modes(h, data):
    return jnp.logaddexp(
        jnp.log(0.3) + dist.Normal(-4.0, 0.3).log_prob(h["a"]),
        jnp.log(0.7) + dist.Normal(4.0, 0.5).log_prob(h["a"]),
    )


def exponential(h, data):
    return -3.0 * h["a"]


# Likelihood, priors, a box that holds the posterior, cells of the brute force.
CASES = {
    "banana": (banana, {"a": WIDE, "b": WIDE}, {"a": (-5, 5), "b": (-3, 12)}, 800),
    "against the prior's bound": (pressed, {"a": dist.Uniform(0.0, 1.0)}, {"a": (0, 1)}, 20_000),
    "at an open bound": (exponential, {"a": dist.HalfNormal(1.0)}, {"a": (0, 9)}, 200_000),
    "skewed, three": (
        skewed,
        {"a": WIDE, "b": WIDE, "c": WIDE},
        {"a": (0.4, 1.6), "b": (-3.5, 3.5), "c": (-4, 5)},
        100,
    ),
    "two modes": (two_modes, {"a": dist.Uniform(-10.0, 10.0)}, {"a": (-9.9, 9.9)}, 100_000),
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_against_brute_force(case):
    log_likelihood, prior, box, num = case
    check(Target(Prior(prior), log_likelihood), box, num, slack=1e-6)


def normal_target(num: int) -> Target:
    """`num` observations 0.5 of a normal prior's mean, each with sd 1."""

    def log_likelihood(h, data):
        return jnp.sum(dist.Normal(h["a"], 1.0).log_prob(data))

    return Target(Prior({"a": WIDE}), log_likelihood, data=jnp.full(num, 0.5))


@pytest.mark.parametrize("num", [1, 10_000])
def test_a_gaussian_in_one_dimension_is_exact(num):
    result = QuadratureSampler().run(normal_target(num), jax.random.key(0))
    precision = 1 / 9 + num
    mean, sd = 0.5 * num / precision, precision**-0.5
    log_z = (
        -0.5 * num * np.log(2 * np.pi)
        - 0.5 * np.log(9 * precision)
        - 0.5 * (0.25 * num - 0.5 * num * mean)
    )
    draws = result.draws["a"][0]
    assert abs(result.log_evidence - log_z) < 2 * result.log_evidence_error
    assert abs(draws.mean() - mean) < 1e-4 * sd
    assert abs(draws.std() - sd) < 2e-4 * sd
    # Independent draws, told as such: no chain to have an r_hat.
    row = result.summary()["a"]
    assert row["r_hat"] is None
    assert result.effective_sample_size() == pytest.approx(20_000)
    assert 0.8 * 20_000 < row["ess_bulk"] < 1.2 * 20_000
    assert result.measures["num_likelihoods"] < 150


def cluster_target() -> Target:
    """Mean and log spread of 256 objects measured well: a smooth, slightly skewed posterior."""
    y = jnp.asarray(np.random.default_rng(0).normal(0.5, 0.03, 256))

    def log_likelihood(h, data):
        return jnp.sum(dist.Normal(h["m"], jnp.hypot(jnp.exp(h["ls"]), 1e-3)).log_prob(data))

    prior = Prior({"m": dist.Uniform(0.1, 2.0), "ls": dist.Uniform(-6.0, 0.0)})
    return Target(prior, log_likelihood, data=y)


def test_two_hyperparameters_take_few_evaluations():
    result = check(cluster_target(), {"m": (0.485, 0.515), "ls": (-3.8, -3.2)}, 500, slack=1e-6)
    assert result.measures["num_likelihoods"] < 300
    assert result.measures["quadrature_error"] < 1e-4


def test_the_key_decides():
    target = cluster_target()
    one, two, other = (QuadratureSampler().run(target, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one.draws["m"], two.draws["m"])
    assert not np.array_equal(one.draws["m"], other.draws["m"])


def test_a_looser_tolerance_is_cheaper_and_a_tighter_one_is_met():
    target = Target(Prior({"a": WIDE, "b": WIDE}), banana)
    loose, tight = (
        QuadratureSampler(tolerance=t).run(target, jax.random.key(0)) for t in (1e-2, 1e-6)
    )
    assert loose.measures["num_nodes"] < tight.measures["num_nodes"]
    assert tight.measures["quadrature_error"] < 1e-6
    assert abs(loose.log_evidence - tight.log_evidence) < loose.log_evidence_error + 1e-6


def test_too_many_hyperparameters():
    prior = Prior({name: WIDE for name in "abcd"})
    target = Target(prior, lambda h, data: -(h["a"] ** 2))
    with pytest.raises(InputError, match="one to 3 free hyperparameters, and the model has 4"):
        QuadratureSampler().run(target, jax.random.key(0))


def test_a_prior_without_any_likelihood():
    target = Target(Prior({"a": WIDE}), lambda h, data: jnp.where(h["a"] > 90, 0.0, -jnp.inf))
    with pytest.raises(InputError, match="none of 16 prior draws has a likelihood"):
        QuadratureSampler().run(target, jax.random.key(0))


def kinked(h, data):
    return -5 * jnp.abs(h["a"] + 0.3 * h["b"]) - 0.5 * h["b"] ** 2


def test_what_cannot_be_reached_is_told():
    target = Target(Prior({"a": WIDE, "b": WIDE}), kinked)
    result = QuadratureSampler(max_nodes=1000).run(target, jax.random.key(0))
    assert [p.kind for p in result.status.problems] == ["tolerance"]
    assert "NUTS" in str(result.status)
    assert result.measures["num_likelihoods"] < 1300
    # What was reached is told nevertheless.
    log_z, _ = brute_force(target, {"a": (-4, 4), "b": (-6, 6)}, 1200)
    assert abs(result.log_evidence - log_z) < 5 * result.measures["quadrature_error"]


# ---- lattices ------------------------------------------------------------------------------------


def gaussian(x):
    return -0.5 * np.sum(x**2, axis=1)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_lattices_are_nested_and_each_integrates_a_gaussian(dim):
    lattice = Lattice(gaussian, np.zeros(dim), np.eye(dim))
    origin = np.zeros((1, dim), int)
    assert lattice.grow(origin, 16.0, 10_000)
    exact = 0.5 * dim * np.log(2 * np.pi)
    sums = [np.logaddexp.reduce(lattice.log_weights())]
    # One refinement and a half: centred cells, then all points again.
    for _ in range(2):
        known = len(lattice.n)
        before, lattice = lattice, lattice.refined()
        assert lattice.grow(origin, 16.0, 100_000)
        # The points before are among these, and undoing the refinement finds them.
        coarser = lattice.log_weights(1)
        kept = coarser > -np.inf
        np.testing.assert_allclose(np.logaddexp.reduce(coarser), sums[-1], atol=1e-6)
        assert kept.sum() >= known
        assert len(before.n) == known
        sums.append(np.logaddexp.reduce(lattice.log_weights()))
    np.testing.assert_allclose(np.logaddexp.reduce(lattice.log_weights(2)), sums[0], atol=1e-6)
    np.testing.assert_allclose(sums, exact, atol=5e-6)
    assert lattice.unit == FIRST_SPACING / (4 if dim == 1 else 2)


def test_growing_stops_where_it_may_not_go_on():
    lattice = Lattice(gaussian, np.zeros(2), np.eye(2))
    assert not lattice.grow(np.zeros((1, 2), int), 10.0, 20)
    assert len(lattice.n) <= 20


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_interpolated_draws_have_the_density(dim):
    def log_density(x):
        return np.sum(3 * x - np.exp(x), axis=1)  # log of a Gamma(3) variable

    lattice = Lattice(log_density, np.full(dim, np.log(3.0)), np.eye(dim) / np.sqrt(3.0))
    assert lattice.grow(np.zeros((1, dim), int), 12.0, 10_000)
    draws = Interpolated(lattice).draw(8192, np.random.default_rng(1))
    assert draws.shape == (8192, dim)
    # Mean and sd of ln Gamma(3): digamma(3), trigamma(3).
    np.testing.assert_allclose(draws.mean(axis=0), 0.92278433509, atol=5e-3)
    np.testing.assert_allclose(draws.std(axis=0), 0.39493406685**0.5, atol=5e-3)
    np.testing.assert_allclose(np.quantile(np.exp(draws), 0.9, axis=0), 5.32232, rtol=0.02)


# ---- shortcuts where there are many objects ------------------------------------------------------

NUM = 6000


def many_stars(population, prior, true):
    """A model of objects `true` measured with errors of their own size."""
    rng = np.random.default_rng(3)
    error = 0.3 * np.std(true) * np.exp(rng.uniform(-1, 1, NUM))
    data = {"x": true + error * rng.normal(size=NUM), "error": error}

    def log_likelihood(theta, row):
        return dist.Normal(theta["x"], row["error"]).log_prob(row["x"])

    form = Quadrature(log_likelihood, data)
    return HierarchicalModel(Prior(prior), population, form, rate="shape")


def both_ways(made, monkeypatch):
    exact = QuadratureSampler().run(made.target(), jax.random.key(0))
    monkeypatch.setattr(model, "_MANY_OBJECTS", 5000)
    monkeypatch.setattr(model, "_FEW_OBJECTS", 300)
    target = made.target()
    nears = []
    near = target.shortcut.near
    target.shortcut = target.shortcut._replace(near=lambda h: nears.append(near(h)) or nears[-1])
    return exact, QuadratureSampler().run(target, jax.random.key(0)), nears


@pytest.mark.slow
def test_a_shortcut_gives_what_the_target_gives(monkeypatch):
    """A gamma distribution: its integrals have no closed form, and its nodes move with it."""
    made = many_stars(
        lambda h: Joint(x=dist.Gamma(h["shape"], h["rate"])),
        {"shape": dist.Uniform(1.0, 20.0), "rate": dist.Uniform(0.1, 10.0)},
        np.random.default_rng(4).gamma(5.0, 1 / 2.0, NUM),
    )
    exact, short, nears = both_ways(made, monkeypatch)
    assert len(nears) == 1 and nears[0] is not None
    assert short.status.converged
    assert abs(short.log_evidence - exact.log_evidence) < 2e-4
    for name, draws in exact.draws.items():
        np.testing.assert_allclose(short.draws[name].mean(), draws.mean(), atol=1e-3 * draws.std())
        np.testing.assert_allclose(short.draws[name].std(), draws.std(), rtol=1e-3)


@pytest.mark.slow
def test_a_shortcut_that_is_wrong_is_not_taken(monkeypatch):
    """Tables on the nodes of one interval do not integrate over another one."""
    made = many_stars(
        lambda h: Joint(x=dist.Uniform(0.0, h["high"])),
        {"high": dist.Uniform(0.5, 10.0)},
        np.random.default_rng(4).uniform(0.0, 2.0, NUM),
    )
    exact, short, nears = both_ways(made, monkeypatch)
    assert len(nears) == 1
    assert short.log_evidence == exact.log_evidence
    np.testing.assert_array_equal(short.draws["high"], exact.draws["high"])


def test_no_shortcut_for_few_objects_or_a_selection():
    made = many_stars(
        lambda h: Joint(x=dist.Normal(h["mu"], 1.0)),
        {"mu": dist.Normal(0.0, 1.0)},
        np.random.default_rng(4).normal(size=NUM),
    )
    assert made.target().shortcut is None
