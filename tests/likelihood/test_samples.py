from __future__ import annotations

import json

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from scipy.special import logsumexp

from skycensus import InputError, Joint, Mixture, PowerLaw, Samples
from skycensus.density import log_terms

H = {"loc": jnp.array(0.4), "scale": jnp.array(0.8), "log_rate": jnp.array(0.3)}


def gaussian(h):
    return Joint({"x": dist.Normal(h["loc"], h["scale"])})


def mixture(h):
    """A tree whose branches have different edges, over two parameters."""
    line = Joint({"x": PowerLaw(-h["scale"], 0.2, 5.0 + h["loc"]), "y": dist.Uniform(-4.0, 4.0)})
    blob = Joint(
        {
            "x": dist.Normal(h["loc"], h["scale"]),
            "y": lambda t: dist.Normal(0.5 * t["x"], h["scale"]),
        }
    )
    inner = Mixture({"blob": blob, "line": line}, log_weights={"blob": h["log_rate"], "line": -0.5})
    return Mixture(
        {"inner": inner, "blob": blob}, log_weights={"inner": 0.1, "blob": -h["log_rate"]}
    )


def ragged(seed=0, counts=(40, 700, 3, 150, 90, 1, 2500, 333)):
    rng = np.random.default_rng(seed)
    draws = [
        {"x": rng.normal(0.5 + 0.1 * i, 1.2, n), "y": rng.normal(0.0, 1.5, n)}
        for i, n in enumerate(counts)
    ]
    return draws, [rng.normal(0.0, 0.7, n) for n in counts]


def log_probs(population, h, draws):
    """The log density of every draw, one array for each object."""
    flat = {k: np.concatenate([d[k] for d in draws]) for k in draws[0]}
    ends = np.cumsum([len(next(iter(d.values()))) for d in draws])[:-1]
    return jnp.split(population(h).log_prob(flat), ends)


def by_hand(population, h, draws, log_ref):
    """The definition, one object at a time."""
    value, variance = [], []
    each = jax.jit(lambda h: log_probs(population, h, draws))(h)
    for log_p, ref in zip(each, log_ref, strict=True):
        log_w = np.asarray(log_p) - ref
        value.append(logsumexp(log_w) - np.log(len(ref)))
        variance.append(np.exp(logsumexp(2 * log_w) - 2 * logsumexp(log_w)) - 1 / len(ref))
    return np.array(value), np.array(variance)


# --- exact answers -----------------------------------------------------------------------------


def conjugate(num_objects, num_draws, seed=7, at=0.9, noise=0.6, prior=2.0):
    """Repeated posteriors of one datum under the prior N(0, prior), and the exact log marginal."""
    shrink = prior**2 / (prior**2 + noise**2)
    x = np.random.default_rng(seed).normal(
        shrink * at, np.sqrt(shrink) * noise, (num_objects, num_draws)
    )
    samples = Samples([{"x": row} for row in x], list(scipy.stats.norm.logpdf(x, 0.0, prior)))
    evidence = scipy.stats.norm.logpdf(at, 0.0, np.hypot(prior, noise))
    exact = (
        scipy.stats.norm.logpdf(at, float(H["loc"]), np.hypot(float(H["scale"]), noise)) - evidence
    )
    return samples, exact


def test_gaussian_objects_within_their_stated_errors():
    samples, exact = conjugate(600, 500)
    value, variance = jax.jit(lambda s: s.log_marginal(gaussian(H)))(samples)
    z = (np.asarray(value) - exact) / np.sqrt(variance)
    assert abs(z.mean()) < 4 / np.sqrt(600)
    # The stated variance is the spread of repeated estimates: that of z is 1 +- sqrt(2/600).
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / 600)
    np.testing.assert_allclose(variance.mean(), np.var(value), rtol=0.25)


def test_detected_fraction_counts_the_missed_draws():
    # Proposals N(0, 2), found where |x| < 1; population N(0.4, 0.8). All 300 objects repeat it.
    rng, made, proposal = np.random.default_rng(2), 2000, scipy.stats.norm(0.0, 2.0)
    x = [x[np.abs(x) < 1] for x in proposal.rvs((300, made), random_state=rng)]
    samples = Samples(
        [{"x": v} for v in x], [proposal.logpdf(v) for v in x], num_drawn=[made] * 300
    )
    value, variance = jax.jit(lambda s: s.log_marginal(gaussian(H)))(samples)
    found = np.diff(scipy.stats.norm.cdf([-1.0, 1.0], 0.4, 0.8))[0]
    z = (np.asarray(value) - np.log(found)) / np.sqrt(variance)
    assert abs(z.mean()) < 4 / np.sqrt(300)
    # Without the 1/N the variance would be a third too large and this would fail.
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / 300)
    np.testing.assert_array_equal(samples.num_draws, [len(v) for v in x])


def test_variance_vanishes_for_constant_weights():
    samples = Samples([{"x": np.linspace(0.1, 0.9, 50)}], [np.zeros(50)])
    value, variance = samples.log_marginal(Joint({"x": dist.Uniform(0.0, 2.0)}))
    np.testing.assert_allclose(value, -np.log(2.0), rtol=1e-14)
    np.testing.assert_allclose(variance, 0.0, atol=1e-15)


# --- the same numbers by every road ---------------------------------------------------------------


@pytest.mark.parametrize("block_size", [pytest.param(None, marks=pytest.mark.slow), 64])
def test_values_and_gradients_by_every_road(block_size):
    draws, log_ref = ragged()
    samples = Samples(draws, log_ref, block_size=block_size)
    assert any(b.spanning for b in samples.blocks) == (block_size in (64, 500))
    want, spread = by_hand(mixture, H, draws, log_ref)
    staged = samples.stage(mixture, H)

    def unstaged(h):
        each = samples.log_marginal(mixture(h))
        return jnp.sum(each.value), each

    def per_object(h, staged):
        each = staged.log_marginal(h)
        return jnp.sum(each.value), each

    def total(h, staged):
        both = staged.total(h, variance=True)
        return both.value, both

    def value_only(h, staged):
        both = staged.total(h)
        return both.value, both

    def plain(h):
        terms = [p - r for p, r in zip(log_probs(mixture, h, draws), log_ref, strict=True)]
        return sum(jax.scipy.special.logsumexp(t) for t in terms)

    slope = jax.jit(jax.grad(plain))(H)
    for f, args in (
        (unstaged, ()),
        (per_object, (staged,)),
        (total, (staged,)),
        (value_only, (staged,)),
    ):
        (_, out), grad = jax.jit(jax.value_and_grad(f, has_aux=True))(H, *args)
        each = f in (unstaged, per_object)
        np.testing.assert_allclose(out.value, want if each else want.sum(), rtol=1e-12)
        if f is value_only:
            assert out.variance == 0.0
        else:
            np.testing.assert_allclose(
                out.variance, spread if each else spread.sum(), rtol=1e-11, atol=1e-14
            )
        for name in H:
            np.testing.assert_allclose(grad[name], slope[name], rtol=1e-11)


@pytest.mark.parametrize("block_size", [pytest.param(None, marks=pytest.mark.slow), 500])
def test_gradient_of_the_variance(block_size):
    draws, log_ref = ragged()
    staged = Samples(draws, log_ref, block_size=block_size).stage(mixture, H)
    one_pass = jax.jit(jax.grad(lambda h, s: s.total(h, variance=True).variance))(H, staged)
    plain = jax.jit(jax.grad(lambda h, s: s.log_marginal(h).variance.sum()))(H, staged)
    variance = jax.jit(lambda h, s: s.total(h, variance=True).variance)
    for name in H:
        np.testing.assert_allclose(one_pass[name], plain[name], rtol=1e-10)
        ahead, behind = (variance({**H, name: H[name] + e}, staged) for e in (1e-5, -1e-5))
        np.testing.assert_allclose(one_pass[name], (ahead - behind) / 2e-5, rtol=1e-4)


@pytest.mark.slow
def test_second_derivatives():
    draws, log_ref = ragged()
    staged = Samples(draws, log_ref, block_size=500).stage(mixture, H)
    slope = jax.grad(lambda h, s: s.total(h).value)
    second = jax.jit(jax.jacrev(slope))(H, staged)
    slope = jax.jit(slope)
    ahead, behind = (slope({**H, "loc": H["loc"] + e}, staged) for e in (1e-5, -1e-5))
    for name in H:
        np.testing.assert_allclose(
            second[name]["loc"], (ahead[name] - behind[name]) / 2e-5, rtol=1e-5
        )


def test_order_of_objects_and_draws_does_not_matter():
    draws, log_ref = ragged()
    log_marginal = jax.jit(lambda s: s.log_marginal(mixture(H)))
    first = log_marginal(Samples(draws, log_ref, block_size=500))
    order = np.random.default_rng(0).permutation(len(draws))
    shuffle = [np.random.default_rng(i).permutation(len(r)) for i, r in enumerate(log_ref)]
    again = log_marginal(
        Samples(
            [{k: v[shuffle[i]] for k, v in draws[i].items()} for i in order],
            [log_ref[i][shuffle[i]] for i in order],
            block_size=500,
        )
    )
    np.testing.assert_allclose(again.value, first.value[order], rtol=1e-12)
    np.testing.assert_allclose(again.variance, first.variance[order], rtol=1e-10)


@pytest.mark.slow
def test_vmap_over_hyperparameters():
    draws, log_ref = ragged()
    staged = Samples(draws, log_ref, block_size=500).stage(mixture, H)
    many = {k: v + jnp.array([0.0, 0.1, 0.25]) for k, v in H.items()}
    both = jax.value_and_grad(lambda h, s: s.total(h, variance=True).value)
    value, slope = jax.jit(jax.vmap(both, in_axes=(0, None)))(many, staged)
    one = jax.jit(both)
    for i in range(3):
        v, g = one({k: x[i] for k, x in many.items()}, staged)
        np.testing.assert_allclose(value[i], v, rtol=1e-12)
        np.testing.assert_allclose([slope[k][i] for k in H], [g[k] for k in H], rtol=1e-10)


def test_32_bit_agrees_with_64_bit():
    draws, log_ref = ragged()
    both = jax.jit(jax.value_and_grad(lambda h, s: s.total(h, variance=True).value))
    results = [
        both(H, Samples(draws, log_ref, dtype=d).stage(mixture, H))
        for d in (np.float32, np.float64)
    ]
    assert results[0][0].dtype == jnp.float64
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-5)
    for name in H:
        np.testing.assert_allclose(results[0][1][name], results[1][1][name], rtol=1e-4, atol=1e-4)


def test_draws_come_back_as_they_were():
    draws, log_ref = ragged()
    samples = Samples(draws, log_ref, block_size=500)
    for i in (2, 5, 6):
        got = samples.object_draws(i)
        np.testing.assert_array_equal(got["x"], draws[i]["x"])
        np.testing.assert_array_equal(got["log_ref"], log_ref[i])


def test_number_of_draws_inside_the_support():
    samples = Samples([{"x": np.arange(5.0)}, {"x": np.arange(3.0)}], [np.zeros(5), np.zeros(3)])
    staged = samples.stage(lambda h: Joint({"x": dist.Uniform(h["low"], 10.0)}), {"low": 1.5})
    assert int(staged.inside({"low": 1.5})) == 4
    assert int(staged.inside({"low": -1.0})) == 8


def test_softened_edges_are_smooth_and_close_to_the_sharp_ones():
    rng = np.random.default_rng(1)
    draws = [{"x": rng.normal(2.0, 0.5, 2000)} for _ in range(5)]
    samples = Samples(draws, [np.zeros(2000)] * 5, block_size=1024)

    def population(h):
        return Joint({"x": PowerLaw(-2.0, h["low"], 4.0)})

    lows = {"low": jnp.linspace(1.5, 1.6, 201)}
    staged = samples.softened(8, jnp.float64).stage(population, {"low": 1.5})
    both = jax.value_and_grad(lambda h, s: s.total(h).value)
    value, slope = jax.jit(jax.vmap(both, in_axes=(0, None)))(lows, staged)
    g = slope["low"]
    integral = np.cumsum(0.5 * (g[1:] + g[:-1])) * 0.0005
    np.testing.assert_allclose(integral, value[1:] - value[0], atol=2e-3)
    total = jax.vmap(lambda h, s: s.total(h).value, in_axes=(0, None))
    sharp = jax.jit(total)(lows, samples.stage(population, {"low": 1.5}))
    assert np.max(np.abs(sharp - value)) < 0.05


# --- the edges ---------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [None, 64])
def test_an_object_outside_the_support(block_size):
    draws = [{"x": np.linspace(0.1, 0.9, 20)}, {"x": np.linspace(5.0, 6.0, 300)}]
    samples = Samples(draws, [np.zeros(20), np.zeros(300)], block_size=block_size)

    def population(h):
        return Joint({"x": PowerLaw(h["a"], 0.05, h["high"])})

    h = {"a": jnp.array(1.0), "high": jnp.array(1.0)}
    staged = samples.stage(population, h)
    each = staged.log_marginal(h)
    assert np.isfinite(each.value).tolist() == [True, False]
    assert each.value[1] == -jnp.inf
    assert each.variance[1] == jnp.inf

    def outputs(h):
        both, each = staged.total(h, variance=True), staged.log_marginal(h)
        return jnp.stack([both.value, both.variance, each.value.sum(), each.variance.sum()])

    np.testing.assert_array_equal(outputs(h), [-np.inf, np.inf, -np.inf, np.inf])
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.jit(jax.jacrev(outputs))(h).values())


@pytest.mark.parametrize("block_size", [None, 64])
def test_nan_is_not_hidden(block_size):
    class Broken:
        names = ("x",)

        def log_prob(self, theta):
            return jnp.where(theta["x"] > 2.0, jnp.nan, -(theta["x"] ** 2))

    draws = [{"x": np.linspace(0.0, 1.0, 30)}, {"x": np.linspace(1.0, 2.1, 400)}]
    samples = Samples(draws, [np.zeros(30), np.zeros(400)], block_size=block_size)
    each = samples.log_marginal(Broken())
    assert np.isnan(each.value).tolist() == np.isnan(each.variance).tolist() == [False, True]
    both = samples.stage(lambda h: Broken(), {"a": 1.0}).total({"a": 1.0}, variance=True)
    assert bool(jnp.isnan(both.value))
    assert bool(jnp.isnan(both.variance))


@pytest.mark.parametrize("shift", [1e4, -1e4, 1e-300])
def test_extreme_weights_do_not_overflow(shift):
    x = np.linspace(-1.0, 1.0, 50)
    samples = Samples([{"x": x}], [np.full(50, shift)])
    want = by_hand(gaussian, H, [{"x": x}], [np.full(50, shift)])
    got = samples.log_marginal(gaussian(H))
    np.testing.assert_allclose(got.value, want[0], rtol=1e-13)
    np.testing.assert_allclose(got.variance, want[1], rtol=1e-10)


def test_hyperparameters_are_taken_by_name():
    draws, log_ref = ragged(counts=(20, 30))
    staged = Samples(draws, log_ref).stage(mixture, H)
    want = staged.total(H).value
    shuffled = {"another": 3.0, **dict(reversed(H.items())), "a": 1.0}
    np.testing.assert_array_equal(staged.total(shuffled).value, want)
    with pytest.raises(InputError, match=r"'scale' is missing.*'scales'"):
        staged.total({"loc": 0.0, "scales": 1.0, "log_rate": 0.0})


X3 = {"x": np.ones(3)}
BAD = {
    "no objects": (([], []), {}, "at least one object"),
    "lengths": (([X3], []), {}, "1 objects, 0 log_ref arrays and 1 names"),
    "names": (([X3], [np.zeros(3)]), {"names": ["a", "b"]}, "1 log_ref arrays and 2 names"),
    "unknown": (([X3, {**X3, "y": np.ones(3)}], [np.zeros(3)] * 2), {}, "object 1: parameter 'y'"),
    "missing": (([X3, {"xx": np.ones(3)}], [np.zeros(3)] * 2), {}, "object 1: parameter 'xx'"),
    "lacking": (([{**X3, "y": np.ones(3)}, X3], [np.zeros(3)] * 2), {}, "object 1.*'y' is missing"),
    "no draws": (([{"x": []}], [[]]), {"names": ["GW1"]}, "GW1 has no draws"),
    "counts": (([X3], [np.zeros(2)]), {}, "'x' has 3 draws but log_ref has 2"),
    "nan": (
        ([{"x": [1, np.nan, np.inf]}], [np.zeros(3)]),
        {},
        "2 of 3 draws of 'x' are not finite",
    ),
    "log_ref": (
        ([X3], [[0, -np.inf, 0]]),
        {"names": ["A"]},
        "A: log_ref is not finite for 1 draws",
    ),
    "num_drawn": (([X3], [np.zeros(3)]), {"num_drawn": [2]}, "num_drawn=2 is less than its 3"),
    "drawn nan": (([X3], [np.zeros(3)]), {"num_drawn": [np.nan]}, "num_drawn=nan is less"),
    "num_drawns": (([X3], [np.zeros(3)]), {"num_drawn": [9, 9]}, "2 values of num_drawn"),
}


@pytest.mark.parametrize(("args", "options", "message"), BAD.values(), ids=list(BAD))
def test_errors(args, options, message):
    with pytest.raises(InputError, match=message):
        Samples(*args, **options)


def test_a_density_of_other_parameters_is_an_error():
    samples = Samples([{"mass": np.ones(3)}], [np.zeros(3)])
    with pytest.raises(InputError, match=r"needs parameter 'mas'.*did you mean 'mass'"):
        samples.log_marginal(Joint({"mas": dist.Normal(0.0, 1.0)}))


# --- a published kind of catalogue -------------------------------------------------------------


def masses(h):
    first = PowerLaw(-h["alpha_pl_0"], h["mmin_pl_0"], h["mmax_pl_0"])
    pair = Joint(
        {
            "mass_1_source": first,
            "mass_2_source": lambda t: PowerLaw(h["beta_pl_0"], h["mmin_pl_0"], t["mass_1_source"]),
        }
    )
    return Mixture({"pl_0": pair}, log_weights={"pl_0": h["log_rate_0"]})


def test_reference_catalogue(require_path, shared):
    folder = require_path(shared / "reference" / "gwkokab")
    reference = json.loads(require_path(folder / "reference_posterior.json").read_text())[
        "loglike_at"
    ]
    files = sorted(require_path(folder / "posteriors").glob("*.dat"))
    names = ("mass_1_source", "mass_2_source")
    draws = [dict(zip(names, np.loadtxt(f, skiprows=1).T, strict=False)) for f in files]
    events = Samples(draws, [np.zeros(len(d["mass_1_source"])) for d in draws])
    with h5py.File(require_path(folder / "injections_found.hdf5")) as f:
        found = {k: f[k][()] for k in names}
        log_draw = np.log(f["p_draw"][()])
        volume = float(f.attrs["T_obs_yr"] * f.attrs["VTmax_Gpc3"])
        injections = Samples([found], [log_draw], num_drawn=[int(f.attrs["total_generated"])])
    h = {k: jnp.asarray(v) for k, v in reference["x"].items()}
    assert len(events.names) == 70
    assert list(log_terms(masses(h), {n: jnp.full(1, 10.0) for n in names})) == ["pl_0"]

    def log_likelihood(h, events, injections):
        return events.total(h).value - volume * jnp.exp(injections.total(h).value)

    both = jax.jit(jax.value_and_grad(log_likelihood))
    value, slope = both(h, events.stage(masses, h), injections.stage(masses, h))
    np.testing.assert_allclose(value, reference["value"], rtol=1e-11)
    for name, want in reference["grad"].items():
        np.testing.assert_allclose(slope[name], want, rtol=1e-9, atol=1e-9)


def test_draws_of_objects_follow_the_weights():
    """Of three draws, each is chosen as often as its weight says; without any weight it is NaN."""
    draws = [{"x": np.array([0.0, 1.0, 2.0])}, {"x": np.array([9.0, 9.5])}]
    samples = Samples(draws, [np.array([0.0, 0.5, -0.3]), np.zeros(2)], names=["in", "out"])
    density = Joint(x=dist.TruncatedNormal(1.0, 1.0, low=-1.0, high=4.0))
    keys = jax.random.split(jax.random.key(4), 4000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda k: samples.draw(density, k)["x"]))(keys))
    weight = np.exp(-0.5 * (np.arange(3.0) - 1) ** 2 - np.array([0.0, 0.5, -0.3]))
    for value, share in zip(range(3), weight / weight.sum(), strict=True):
        assert np.mean(drawn[:, 0] == value) == pytest.approx(share, abs=5 * 0.5 / 4000**0.5)
    assert np.isnan(drawn[:, 1]).all()
