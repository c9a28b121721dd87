from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from contracts import DENSITIES, LIKELIHOODS, SIGMA

from skycensus import InputError, Joint, LogMarginal
from skycensus.density import Density, Mixture, log_total
from skycensus.density import log_terms as split

density_cases = pytest.mark.parametrize("case", DENSITIES.values(), ids=list(DENSITIES))
likelihood_cases = pytest.mark.parametrize("case", LIKELIHOODS.values(), ids=list(LIKELIHOODS))


def draws_of(case, num=4000):
    return jax.jit(lambda h, k: case.make(h).sample(k, (num,)))(
        case.hyperparameters, jax.random.key(2)
    )


@density_cases
def test_density_is_one(case):
    density = case.make(case.hyperparameters)
    assert isinstance(density, Density)
    assert density.names == tuple(case.box)


@density_cases
def test_log_prob_is_elementwise_and_ignores_other_names(case):
    theta = {n: x[:6] for n, x in draws_of(case).items()}
    density = jax.jit(lambda theta: case.make(case.hyperparameters).log_prob(theta))
    flat = density(theta)
    assert flat.shape == (6,)
    square = density({**{n: x.reshape(2, 3) for n, x in theta.items()}, "other": jnp.nan})
    np.testing.assert_allclose(square, flat.reshape(2, 3), rtol=1e-12)
    np.testing.assert_allclose(density({n: x[4] for n, x in theta.items()}), flat[4], rtol=1e-12)


@density_cases
def test_density_is_normalised(case):
    # Midpoint sums; different numbers of cells, so that a diagonal edge is met at no special place.
    nums = [2001] if len(case.box) == 1 else [1201, 1129]
    limits = zip(case.box.values(), nums, strict=True)
    axes = [np.linspace(low, high, num) for (low, high), num in limits]
    middle = np.meshgrid(*[0.5 * (a[1:] + a[:-1]) for a in axes], indexing="ij")
    log_prob = jax.jit(case.make(case.hyperparameters).log_prob)(
        {n: jnp.asarray(x) for n, x in zip(case.box, middle, strict=True)}
    )
    total = np.exp(log_prob).sum() * np.prod([a[1] - a[0] for a in axes])
    np.testing.assert_allclose(np.log(total), case.log_total, atol=3e-3 * len(nums) ** 2)
    density = case.make(case.hyperparameters)
    np.testing.assert_allclose(log_total(density), case.log_total, rtol=1e-12)


@density_cases
def test_draws_follow_the_density(case):
    draws = draws_of(case)
    assert {n: x.shape for n, x in draws.items()} == {n: (4000,) for n in case.box}
    log_prob = jax.jit(case.make(case.hyperparameters).log_prob)
    assert bool(jnp.all(jnp.isfinite(log_prob(draws))))
    # The density averaged over boxes of a partition gives the shares of the draws in them.
    edges = [np.quantile(x, np.linspace(0, 1, 5)) for x in draws.values()]
    for e, limits in zip(edges, case.box.values(), strict=True):
        e[0], e[-1] = limits
    fractions = (np.arange(100) + 0.5) / 100
    middle = [(e[:-1, None] + np.diff(e)[:, None] * fractions).ravel() for e in edges]
    widths = [np.repeat(np.diff(e) / 100, 100) for e in edges]
    grid = np.meshgrid(*middle, indexing="ij")
    density = np.exp(log_prob({n: jnp.asarray(g) for n, g in zip(case.box, grid, strict=True)}))
    mass = density * np.prod(np.meshgrid(*widths, indexing="ij"), axis=0)
    shares = mass.reshape([k for _ in edges for k in (4, 100)]).sum(axis=(1, 3)[: len(edges)])
    shares = shares / shares.sum()
    counts = np.histogramdd(np.stack(list(draws.values()), -1), bins=edges)[0]
    possible = shares > 1e-4
    assert counts[~possible].sum() <= 8
    expected = shares[possible] / shares[possible].sum() * counts[possible].sum()
    assert scipy.stats.chisquare(counts[possible], expected).pvalue > 1e-4


@density_cases
def test_outside_the_support_the_gradient_is_finite(case):
    theta = {n: x[:3] for n, x in draws_of(case).items()}
    if case.outside is not None:
        theta = {n: jnp.append(theta[n], case.outside[n]) for n in theta}

    def total(h, theta):
        return case.make(h).log_prob(theta)

    value = total(case.hyperparameters, theta)
    if case.outside is not None:
        assert value[-1] == -jnp.inf
    slopes = jax.jit(jax.jacrev(total))(
        {n: jnp.asarray(v) for n, v in case.hyperparameters.items()}, theta
    )
    for name, slope in slopes.items():
        assert bool(jnp.all(jnp.isfinite(slope))), name


@density_cases
def test_leaves_add_up_to_the_density(case):
    theta = draws_of(case)
    density = case.make(case.hyperparameters)
    leaves = jax.jit(lambda theta: split(density, theta))(theta)
    total = np.logaddexp.reduce([np.asarray(v) for v in leaves.values()])
    np.testing.assert_allclose(total, jax.jit(density.log_prob)(theta), rtol=1e-12, atol=1e-12)
    assert len(leaves) == (3 if isinstance(density, Mixture) else 1)


# --- likelihood forms --------------------------------------------------------------------------

AT = np.array([-0.8, 0.1, 0.9, 1.7])


def population(h):
    return Joint({"x": dist.Normal(h["loc"], h["scale"])})


H = {"loc": 0.4, "scale": 0.9}


@likelihood_cases
def test_log_marginals_of_gaussians_are_exact(case):
    form = case.make(AT)
    assert len(form.names) == 4
    value, variance = jax.jit(lambda form: form.log_marginal(population(H)))(form)
    exact = scipy.stats.norm.logpdf(AT, H["loc"], np.hypot(H["scale"], SIGMA))
    assert value.shape == variance.shape == (4,)
    assert bool(jnp.all(variance >= 0))
    assert np.all(np.abs(value - exact) < 4 * np.sqrt(variance) + case.tolerance)


@likelihood_cases
def test_log_marginals_are_differentiable_in_the_population(case):
    form = case.make(AT)
    value, slope = jax.jit(
        jax.value_and_grad(lambda h: jnp.sum(form.log_marginal(population(h)).value))
    )({n: jnp.asarray(v) for n, v in H.items()})
    spread = H["scale"] ** 2 + SIGMA**2
    np.testing.assert_allclose(slope["loc"], np.sum(AT - H["loc"]) / spread, atol=0.1)
    assert bool(jnp.isfinite(value))


@likelihood_cases
def test_impossible_objects_are_minus_infinity(case):
    def log_marginal(low):
        density = Joint({"x": dist.Uniform(low, low + 1.0)})
        return form.log_marginal(density).value

    form = case.make(AT)
    if not case.any_density:
        with pytest.raises(InputError, match="Uniform, which is not Gaussian"):
            log_marginal(50.0)
        return
    slope = jax.jit(jax.grad(lambda low: jnp.sum(log_marginal(low))))(7.9 + AT.max())
    assert bool(jnp.all(log_marginal(50.0) == -jnp.inf))
    assert bool(jnp.isfinite(slope))


@likelihood_cases
def test_a_density_that_is_nan_is_not_hidden(case):
    broken = Joint({"x": dist.Normal(jnp.nan, 1.0, validate_args=False)})
    result = case.make(AT).log_marginal(broken)
    assert isinstance(result, LogMarginal)
    assert bool(jnp.all(jnp.isnan(result.value)))
