from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from contracts import DENSITIES, ESTIMATORS, LIKELIHOODS, SIGMA, learned

from skycensus import InputError, Joint, LogMarginal
from skycensus.density import Density, Mixture, log_total
from skycensus.density import log_terms as split
from skycensus.estimators import load_density

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
    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def slope_and_value(low):
        value = form.log_marginal(Joint({"x": dist.Uniform(low, low + 1.0)})).value
        return jnp.sum(value), value

    form = case.make(AT)
    if not case.any_density:
        with pytest.raises(InputError, match="Uniform, which is not Gaussian"):
            slope_and_value(50.0)
        return
    assert bool(jnp.isfinite(slope_and_value(7.9 + AT.max())[0]))
    assert bool(jnp.all(slope_and_value(50.0)[1] == -jnp.inf))


@likelihood_cases
def test_a_density_that_is_nan_is_not_hidden(case):
    broken = Joint({"x": dist.Normal(jnp.nan, 1.0, validate_args=False)})
    form = case.make(AT)
    result = jax.jit(lambda: form.log_marginal(broken))()
    assert isinstance(result, LogMarginal)
    assert bool(jnp.all(jnp.isnan(result.value)))


# ---- densities learned from draws ----------------------------------------------------------------

# Those that share their code with others of the table, or are made of them.
_SLOW = ("maf_spline", "spline", "realnvp", "piecewise", "product", "auto")
estimator_cases = pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if k in _SLOW else ()) for k in ESTIMATORS]
)
fitted = functools.cache(learned)


def grid_of(density, num=160):
    """Midpoints of cells, closer near the ends of x, in 12 standard deviations of y; their mass."""
    middle = (np.arange(num) + 0.5) / num
    y = 24.0 * (np.arange(2 * num) + 0.5) / (2 * num) - 7.0
    x, width = np.sin(0.5 * np.pi * middle) ** 2, 0.5 * np.pi * np.sin(np.pi * middle) / num
    grid = dict(zip("xy", np.meshgrid(x, y, indexing="ij"), strict=True))
    value = np.asarray(density.log_prob({n: jnp.asarray(g) for n, g in grid.items()}))
    return grid, np.exp(value) * width[:, None] * 24.0 / (2 * num)


@pytest.mark.slow
@estimator_cases
def test_learned_density_is_normalised_and_its_draws_follow_it(kind):
    density = fitted(kind)
    assert isinstance(density, Density)
    assert density.names == ("x", "y")
    grid, mass = grid_of(density)
    np.testing.assert_allclose(mass.sum(), 1.0, atol=1e-3)
    draws = density.sample(jax.random.key(5), (4000,))
    for what in (lambda t: t["x"], lambda t: t["y"], lambda t: t["x"] * t["y"]):
        drawn = np.asarray(what(draws))
        error = drawn.std() / np.sqrt(len(drawn))
        np.testing.assert_allclose(drawn.mean(), np.sum(mass * what(grid)), atol=5 * error)
        wide = (mass * what(grid) ** 2).sum() - (mass * what(grid)).sum() ** 2
        np.testing.assert_allclose(drawn.std(), np.sqrt(wide), rtol=0.12)


@pytest.mark.slow
@estimator_cases
def test_learned_points_do_not_depend_on_those_beside_them(kind):
    density = fitted(kind)
    u = jax.random.uniform(jax.random.key(6), (6, 2), float)
    theta = density.from_unit_cube(u)
    log_prob = density.log_prob(theta)
    assert np.isfinite(log_prob).all()
    # Three of them, in another order and among others.
    order = jnp.array([5, 0, 3])
    others = jnp.concatenate([u[order], 1.0 - u[order]])
    for name, value in density.from_unit_cube(others).items():
        np.testing.assert_allclose(value[:3], theta[name][order], rtol=1e-9)
    mixed = {n: jnp.concatenate([v[order], v[order] * 0.9]) for n, v in theta.items()}
    np.testing.assert_allclose(density.log_prob(mixed)[:3], log_prob[order], rtol=1e-9)


@estimator_cases
def test_learned_density_at_the_edge_and_beyond(kind):
    density = fitted(kind)
    ends = np.array([0.0, 1.0, 0.0, 1e-14, 0.5, 0.5]), np.array([5.0, 5.0, -1e3, 5.0, 1e9, -1e300])
    theta = dict(zip("xy", map(jnp.asarray, ends), strict=True))
    assert np.isfinite(density.log_prob(theta)).all()
    slopes = jax.grad(lambda t: density.log_prob(t).sum())
    assert all(np.isfinite(s).all() for s in slopes(theta).values())
    x, y = [-0.1, 1.1, 0.5, 0.5, -1e9, 2.0], [5.0, 5.0, jnp.inf, -jnp.inf, 5.0, 0.0]
    outside = {"x": jnp.array(x), "y": jnp.array(y)}
    np.testing.assert_array_equal(density.log_prob(outside), -np.inf)
    assert all(np.isfinite(s).all() for s in slopes(outside).values())
    unknown = {"x": jnp.full(6, jnp.nan), "y": jnp.full(6, 5.0)}
    assert np.isnan(density.log_prob(unknown)).all()


@estimator_cases
def test_learned_density_comes_back_from_its_file(kind, tmp_path):
    density = fitted(kind)
    again = load_density(density.save(tmp_path / "a.skc"))
    u = jax.random.uniform(jax.random.key(7), (6, 2), float)
    theta = density.from_unit_cube(u)
    np.testing.assert_array_equal(again.log_prob(theta), density.log_prob(theta))
    for name, value in again.from_unit_cube(u).items():
        np.testing.assert_array_equal(value, theta[name])
    again.save(tmp_path / "b.skc")
    assert (tmp_path / "a.skc").read_bytes() == (tmp_path / "b.skc").read_bytes()
