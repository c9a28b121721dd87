"""Whether chains visited the posterior of every object, also where they agree with each other."""

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import Grid, HierarchicalModel, InputError, Joint, Prior, Result, Status
from skycensus.diagnostics import diagnose
from skycensus.latent_checks import latent_coverage, visited_share, with_latent_check


def test_share_of_a_sampler_that_is_right_is_one():
    rng = np.random.default_rng(1)
    share = visited_share(rng.normal(size=(1000, 50)), rng.normal(size=(1000, 50)))
    assert share.min() > 0.94
    assert np.mean(share) > 0.99


def test_a_slow_chain_through_all_of_the_posterior_still_passes():
    rng = np.random.default_rng(2)
    chain = np.empty((4000, 20))
    chain[0] = rng.normal(size=20)
    for i in range(1, 4000):  # some 400 effective draws
        chain[i] = 0.82 * chain[i - 1] + (1 - 0.82**2) ** 0.5 * rng.normal(size=20)
    assert visited_share(chain, rng.normal(size=(1000, 20))).min() > 0.9


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.8])
def test_share_is_the_weight_of_the_maxima_that_were_visited(weight):
    rng = np.random.default_rng(3)
    first = rng.random((4000, 1)) < weight
    exact = np.where(first, 0.0, 3.0) + 1e-3 * rng.normal(size=(4000, 1))
    assert visited_share(1e-3 * rng.normal(size=(500, 1)), exact)[0] == pytest.approx(
        weight, abs=0.03
    )
    # In neither of the two, or in both.
    assert visited_share(1.0 + 1e-3 * rng.normal(size=(500, 1)), exact)[0] == 0.0
    assert visited_share(exact[::5], exact)[0] > 0.97


@pytest.fixture(scope="module")
def two_maxima():
    """Three objects; the posterior of 'b' has a second maximum, four times as high."""
    x = np.linspace(-8.0, 8.0, 6401)
    centre = np.array([-2.0, 1.0, 3.0])[:, None]
    one = np.exp(np.asarray(dist.Normal(centre, 0.05).log_prob(x)))
    one[1] += 4.0 * np.exp(np.asarray(dist.Normal(-4.0, 0.05).log_prob(x)))
    h = x[1] - x[0]
    grid = Grid({"x": x}, np.log(one + 1e-300), np.log(h), names=list("abc"), spacing={"x": h})
    prior = Prior({"loc": dist.Normal(0.0, 1.0)})

    def population(h):
        return Joint(x=dist.Normal(h["loc"], 50.0))

    return HierarchicalModel(prior, population, grid, rate="shape")


def run_with(centres):
    rng = np.random.default_rng(4)
    draws = {"loc": rng.normal(size=(4, 500))}
    latents = centres + 0.05 * rng.normal(size=(4, 500, 3))
    flat = {f"x[{n}]": latents[..., i] for i, n in enumerate("abc")}
    return Result(draws, diagnose({**draws, **flat}), latents={"x": latents}, object_names="abc")


@pytest.mark.slow
def test_chains_that_agree_on_the_wrong_maximum_are_found(two_maxima):
    result = run_with(np.array([-2.0, 1.0, 3.0]))
    assert result.status.converged  # as far as r_hat can tell
    share = latent_coverage(result.latents, two_maxima, result, key=jax.random.key(1))
    np.testing.assert_allclose(share, [1.0, 0.2, 1.0], atol=0.06)
    judged = with_latent_check(result, two_maxima, key=jax.random.key(1))
    assert not judged.status.converged
    assert judged.status.exit_code == 3
    (problem,) = judged.status.problems
    assert problem.kind == "stuck_latents"
    assert "1 of 3 objects" in problem.message and "of b;" in problem.message
    assert "Grid" in problem.message
    assert judged.measures["latent_coverage_min"] == share.min()


@pytest.mark.slow
def test_chains_in_all_maxima_pass(two_maxima):
    centres = np.tile([-2.0, 1.0, 3.0], (4, 500, 1))
    centres[:, np.arange(500) % 5 > 0, 1] = -4.0
    judged = with_latent_check(run_with(centres), two_maxima, key=jax.random.key(2))
    assert judged.status.converged, str(judged.status)


def test_chains_apart_in_one_object_are_named_by_r_hat():
    centres = np.tile([-2.0, 1.0, 3.0], (4, 500, 1))
    centres[2:, :, 1] = -4.0
    assert "'x[b]'" in str(run_with(centres).status)


def test_what_cannot_be_compared_is_an_error(two_maxima):
    result = run_with(np.array([-2.0, 1.0, 3.0]))
    with pytest.raises(InputError, match="no parameter 'y'"):
        latent_coverage({"y": np.zeros((5, 3))}, two_maxima, result, key=jax.random.key(0))
    with pytest.raises(InputError, match="visited for 2 objects"):
        latent_coverage({"x": np.zeros((5, 2))}, two_maxima, result, key=jax.random.key(0))
    with pytest.raises(InputError, match="hyperparameter 'loc'"):
        other = Result({"mu": np.zeros((1, 9))}, Status(True))
        latent_coverage({"x": np.zeros((5, 3))}, two_maxima, other, key=jax.random.key(0))
    with pytest.raises(InputError, match="no latents"):
        plain = Result({"loc": np.zeros((1, 9))}, Status(True))
        with_latent_check(plain, two_maxima, key=jax.random.key(0))


@pytest.mark.slow
def test_the_joint_run_of_sparse_binaries_is_wrong_and_told_so(shared, require_path, root):
    import importlib.util

    data = require_path(shared / "reference" / "hierarchical" / "rv_sparse_N64_J8_s1.npz")
    path = root / "examples" / "sparse_binaries" / "joint_nuts.py"
    spec = importlib.util.spec_from_file_location("joint_nuts", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    result, share = example.run(str(data), num_warmup=500, num_samples=500, num_chains=2)
    rows = result.summary()
    for name, (mean, sd) in example.EXACT.items():
        assert rows[name]["r_hat"] < 1.02
        assert abs(rows[name]["mean"] - mean) > 1.5 * sd
    assert result.status.exit_code == 3
    assert "stuck_latents" in {problem.kind for problem in result.status.problems}
    assert 6 <= sum(s < 0.9 for s, _ in share) <= 20
