from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from skycensus import HierarchicalModel, InputError, Joint, Prior
from skycensus.likelihood.linear_grid import LinearGrid

# y = a exp(-rate t) + b, with objects of different numbers of rows and nodes.
RNG = np.random.default_rng(11)
COUNTS, NODES = [4, 6, 2], [300, 500, 40]
TIME = [np.sort(RNG.uniform(0, 3, m)) for m in COUNTS]
SIGMA = [np.full(m, 0.3) for m in COUNTS]
DATA = [2.0 * np.exp(-0.8 * t) + 0.5 + RNG.normal(0, 0.3, len(t)) for t in TIME]
STEP = [4.0 / n for n in NODES]
RATE = [(np.arange(n) + 0.5) * h for n, h in zip(NODES, STEP, strict=True)]


def decay(theta, columns):
    falling = jnp.exp(-theta["rate"] * columns["t"])
    return jnp.stack([falling, jnp.ones_like(falling)], axis=-1)


GOOD = {
    "columns": {"t": TIME}, "nodes": {"rate": RATE},
    "log_weight": [np.full(n, np.log(h)) for n, h in zip(NODES, STEP, strict=True)],
    "parameters": ("a", "b"), "names": ("A", "B", "C"),
    "spacing": {"rate": [np.full(n, h) for n, h in zip(NODES, STEP, strict=True)]},
}  # fmt: skip


def make(**change):
    return LinearGrid(decay, DATA, SIGMA, **{**GOOD, **change})


FORM = make()


def population(h):
    return Joint(
        rate=dist.Gamma(h["k"], 2.0),
        a=lambda t: dist.Normal(h["mean"], 1.0 + t["rate"]),
        b=dist.Normal(0.0, 2.0),
    )


H = {"k": 2.5, "mean": 1.5}


def exact(i, h):
    """Log of weight times posterior at every node by dense matrices."""
    out = []
    for rate in RATE[i]:
        a = np.stack([np.exp(-rate * TIME[i]), np.ones(COUNTS[i])], axis=1)
        v = np.diag([(1.0 + rate) ** 2, 4.0])
        c = np.diag(SIGMA[i] ** 2) + a @ v @ a.T
        out.append(multivariate_normal.logpdf(DATA[i], a @ [h["mean"], 0.0], c))
    prior = np.asarray(dist.Gamma(h["k"], 2.0).log_prob(jnp.asarray(RATE[i])))
    return np.array(out) + prior + np.log(STEP[i])


def test_linear_part_with_hyperparameters_that_depends_on_the_node():
    value, variance = jax.jit(lambda form, h: form.log_marginal(population(h)))(FORM, H)
    np.testing.assert_allclose(value, [logsumexp(exact(i, H)) for i in range(3)], rtol=1e-10)
    np.testing.assert_array_equal(variance, 0.0)
    # Nodes lie in rows of one length, several for an object.
    assert FORM.grid.table.shape[0] > 3

    def total(mean):
        return FORM.log_marginal(population({**H, "mean": mean})).value.sum()

    slope = jax.jit(jax.grad(total))(1.5)
    want = sum(
        logsumexp(exact(i, {**H, "mean": 1.5 + d})) * s
        for i in range(3)
        for d, s in ((1e-5, 5e4), (-1e-5, -5e4))
    )
    np.testing.assert_allclose(slope, want, rtol=1e-6)


def test_what_no_hyperparameter_enters_is_tabulated_once():
    def fixed(h):
        return Joint(
            rate=dist.Gamma(h["k"], 2.0),
            a=lambda t: dist.Normal(1.5, 1.0 + t["rate"]),
            b=dist.Normal(0.0, 2.0),
        )

    staged = FORM.stage(fixed, {"k": 2.0})
    assert set(staged.grids) == {""}
    want = [logsumexp(exact(i, H)) for i in range(3)]
    np.testing.assert_allclose(staged.log_marginal({"k": 2.5}).value, want, rtol=1e-10)
    grid = FORM.integrated(population(H))
    rest = Joint(rate=dist.Gamma(2.5, 2.0))
    np.testing.assert_allclose(grid.log_marginal(rest).value, want, rtol=1e-10)
    assert FORM.stage(population, H).grids is None
    prior = Prior({"k": dist.Uniform(1.0, 4.0)})
    model = HierarchicalModel(prior, fixed, FORM, rate="shape")
    np.testing.assert_allclose(model.log_likelihood({"k": 2.5}).value, np.sum(want), rtol=1e-10)


def test_draws_follow_the_exact_posterior():
    keys = jax.random.split(jax.random.key(5), 8000)
    draws = jax.jit(
        lambda k: jax.lax.map(lambda k: FORM.draw(population(H), k), k, batch_size=400)
    )(keys)
    for i in range(3):
        p = np.exp(exact(i, H) - logsumexp(exact(i, H)))
        mean = p @ RATE[i]
        sd = np.sqrt(p @ (RATE[i] - mean) ** 2)
        got = np.asarray(draws["rate"][:, i])
        assert abs(got.mean() - mean) < 4 * sd / np.sqrt(8000)
        assert abs(got.std() / sd - 1) < 0.05
        assert len(np.unique(got)) == 8000  # between the nodes
        # Data drawn again lie around the data: linear parameters belong to their rate.
        a, b = np.asarray(draws["a"][:, i]), np.asarray(draws["b"][:, i])
        fit = a[:, None] * np.exp(-got[:, None] * TIME[i]) + b[:, None]
        centre = np.zeros(COUNTS[i])
        for w, rate in zip(p, RATE[i], strict=True):
            design = np.stack([np.exp(-rate * TIME[i]), np.ones(COUNTS[i])], axis=1)
            precision = np.diag([(1 + rate) ** -2.0, 0.25]) + design.T @ design / 0.09
            right = np.array([H["mean"] * (1 + rate) ** -2.0, 0.0]) + design.T @ DATA[i] / 0.09
            centre += w * (design @ np.linalg.solve(precision, right))
        assert np.all(np.abs(fit.mean(axis=0) - centre) < 4 * fit.std(axis=0) / np.sqrt(8000))


def test_noise_that_depends_on_a_parameter_and_known_columns():
    jitter = np.array([0.1, 0.4])
    share = np.array([0.3, 0.7])
    form = LinearGrid(
        lambda theta, columns: jnp.ones((columns["e"].shape[0], 1)),
        [[1.0], [2.0, 2.5]],
        lambda theta, columns: jnp.hypot(columns["e"], theta["jitter"]),
        columns={"e": [[0.2], [0.3, 0.1]]},
        nodes={"jitter": [jitter, jitter]},
        log_weight=[np.log(share)] * 2,
        parameters=("v",),
        given={"m": [0.5, 1.0]},
    )
    got = form.log_marginal(Joint(v=lambda t: dist.Normal(t["m"], 2.0))).value
    one = share @ norm.pdf(1.0, 0.5, np.sqrt(4.0 + 0.04 + jitter**2))
    two = sum(
        w * multivariate_normal.pdf([2.0, 2.5], [1, 1], np.diag([0.09 + s**2, 0.01 + s**2]) + 4.0)
        for w, s in zip(share, jitter, strict=True)
    )
    np.testing.assert_allclose(got, np.log([one, two]), rtol=1e-10)


BAD = {
    "columns": ({"columns": {"t": TIME[:2]}}, "column 't' of 2 objects"),
    "column": ({"columns": {"t": [*TIME[:2], [1.0]]}}, "C: 2 data but 1 values of column 't'"),
    "nan": ({"columns": {"t": [*TIME[:2], [1.0, np.nan]]}}, "C: column 't' is not finite in row 1"),
    "nodes": ({"nodes": {"rate": [*RATE[:2], [1.0]]}}, "different lengths"),
    "weight": ({"log_weight": [np.zeros(1)] * 2}, "log_weight of 2 objects"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=list(BAD))
def test_bad_input(change, message):
    with pytest.raises(InputError, match=message):
        make(**change)


def test_functions_and_noise_that_are_wrong():
    with pytest.raises(InputError, match=r"design returned shape \(6,\)"):
        LinearGrid(lambda theta, c: c["t"], DATA, SIGMA, **GOOD)
    with pytest.raises(InputError, match="design of A is not finite"):
        LinearGrid(lambda theta, c: jnp.nan * decay(theta, c), DATA, SIGMA, **GOOD)
    with pytest.raises(InputError, match=r"noise returned shape \(\)"):
        LinearGrid(decay, DATA, lambda theta, c: 1.0, **GOOD)
    with pytest.raises(InputError, match="B: a standard deviation of 0 is not positive"):
        LinearGrid(decay, DATA, [SIGMA[0], 0.0 * SIGMA[1], SIGMA[2]], **GOOD)


def test_populations_that_do_not_fit():
    b = dist.Normal(0.0, 1.0)
    pair = dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    for density, message in (
        (Joint({("a", "rate"): pair, "b": b}), "joins linear and nonlinear"),
        (Joint(a=b, b=b, speed=b), "a factor of 'speed', which is neither linear"),
        (Joint(a=dist.Cauchy(0.0, 1.0), b=b, rate=b), "'a' is Cauchy, which is not Gaussian"),
    ):
        with pytest.raises(InputError, match=message):
            FORM.log_marginal(density)
