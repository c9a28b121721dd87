import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from skycensus.diagnostics import (
    GOALS,
    diagnose,
    effective_sample_size,
    r_hat,
    scalars,
)
from skycensus.status import REMEDIES, Problem, Status
from skycensus.weights import kish


@pytest.fixture
def rng():
    return np.random.default_rng(20240)


def autoregressive(rng, chains, draws, rho):
    x = np.empty((chains, draws))
    x[:, 0] = rng.normal(size=chains)
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=chains)
    return x


# ---- status --------------------------------------------------------------------------------------


def test_status_says_what_to_do():
    good = Status(True)
    assert good.exit_code == 0 and str(good) == "converged"
    note = Problem.of("prior_edge", "12% of the draws lie at the bound")
    poor = good.plus(Problem.of("r_hat", "r_hat is 1.36 for 'alpha'"), notes=(note,))
    assert poor.exit_code == 3 and not poor.converged
    first, second = str(poor).splitlines()
    assert first.startswith("not converged (r_hat): r_hat is 1.36 for 'alpha'; ")
    assert "num_samples" in first and second.startswith("note (prior_edge): 12%")


def test_status_has_no_truth_value():
    with pytest.raises(TypeError, match=r"status\.converged"):
        bool(Status(True))


def test_status_and_its_problems_agree():
    with pytest.raises(ValueError, match="exactly where it has no problems"):
        Status(False)
    with pytest.raises(ValueError, match="exactly where it has no problems"):
        Status(True, (Problem("ess", "few"),))


@pytest.mark.parametrize("make", [Problem, Problem.of])
def test_unknown_kind_of_problem(make):
    with pytest.raises(ValueError, match=r"'rhat' \(did you mean 'r_hat'\?\)"):
        make("rhat", "...")


def test_every_kind_has_a_remedy():
    for kind, remedy in REMEDIES.items():
        assert Problem.of(kind, "this").message == f"this; {remedy}."


# ---- chains --------------------------------------------------------------------------------------


def test_independent_draws(rng):
    x = rng.normal(size=(4, 1000))
    assert abs(r_hat(x) - 1) < 0.003
    for kind in ("bulk", "tail", "mean"):
        assert effective_sample_size(x, kind=kind) == pytest.approx(4000, rel=0.1)


def test_autocorrelated_draws(rng):
    rho = 0.8
    x = autoregressive(rng, 4, 5000, rho)
    expected = x.size * (1 - rho) / (1 + rho)
    assert effective_sample_size(x, kind="mean") == pytest.approx(expected, rel=0.1)


def test_chains_apart(rng):
    x = rng.normal(size=(4, 500)) + np.array([[0.0], [0], [0], [5]])
    assert r_hat(x) > 1.3 and effective_sample_size(x) < 20


def test_one_chain_that_drifts(rng):
    x = rng.normal(size=(1, 500))
    assert r_hat(x) < 1.02 and r_hat(x + np.linspace(0, 5, 500)) > 1.5


def test_chains_stuck_apart():
    assert r_hat(np.repeat([[0.0], [1.0]], 100, axis=1)) > 1e3


@pytest.mark.parametrize("x", [np.ones((2, 50)), np.full((2, 50), np.nan), np.eye(2)])
def test_undefined_diagnostics_are_nan(x):
    weight = np.zeros(x.shape)
    assert np.isnan([r_hat(x), effective_sample_size(x), effective_sample_size(x, weight)]).all()


def test_wrong_shape_and_kind():
    with pytest.raises(ValueError, match=r"\(chain, draw\)"):
        r_hat(np.ones(3))
    with pytest.raises(ValueError, match="bulk, tail or mean"):
        effective_sample_size(np.ones((2, 9)), kind="all")


# ---- weights -------------------------------------------------------------------------------------


def test_equal_weights_change_nothing(rng):
    x = autoregressive(rng, 4, 1000, 0.5)
    for kind in ("bulk", "tail", "mean"):
        plain = effective_sample_size(x, kind=kind)
        weighted = effective_sample_size(x, np.full(x.shape, 3.0), kind=kind)
        assert weighted == pytest.approx(plain, rel=0.03)


def test_weights_independent_of_the_draws_give_kish(rng):
    x, log_weight = rng.normal(size=(2, 1, 20000))
    for kind in ("bulk", "tail", "mean"):
        size = effective_sample_size(x, log_weight, kind=kind)
        assert size == pytest.approx(kish(log_weight), rel=0.15)


def test_weighted_error_is_the_error(rng):
    """The spread of importance estimates over 400 repetitions is what one of them claims."""
    x = rng.normal(scale=1.5, size=(400, 1000))
    log_weight = stats.norm.logpdf(x) - stats.norm.logpdf(x, scale=1.5)
    weight = np.exp(log_weight - logsumexp(log_weight, axis=1, keepdims=True))
    spread = np.std(np.sum(weight * x, axis=1))
    claims = [
        effective_sample_size(a[None], b[None], kind="mean") ** -0.5
        for a, b in zip(x[:20], log_weight[:20], strict=True)
    ]
    assert np.mean(claims) == pytest.approx(spread, rel=3 / np.sqrt(2 * 400))


# ---- the verdict ---------------------------------------------------------------------------------


def kinds(status):
    return [problem.kind for problem in status.problems], [note.kind for note in status.notes]


def test_good_chains_converge(rng):
    status = diagnose({"a": rng.normal(size=(4, 500)), "b": rng.normal(size=(4, 500, 2))})
    assert status == Status(True)


def test_bad_chains_are_named(rng):
    bad = rng.normal(size=(4, 500)) + np.arange(4)[:, None]
    status = diagnose({"a": rng.normal(size=(4, 500)), "b": bad})
    assert kinds(status) == (["r_hat", "ess"], [])
    assert "for 'b' (1 of 2 parameters, goal 1.01 at most)" in status.problems[0].message
    assert "'a'" not in str(status)


def test_short_stuck_and_broken_chains(rng):
    x = rng.normal(size=(2, 500))
    assert kinds(diagnose({"a": x[:, :5]})) == (["ess"], [])
    assert kinds(diagnose({"a": x, "b": np.ones_like(x)})) == (["stuck"], [])
    broken = np.where(x > 3, np.nan, x)
    broken[1, 3] = np.nan
    assert kinds(diagnose({"a": x, "b": broken})) == (["nan_draws"], [])


def test_nuts_statistics(rng):
    draws = {"a": rng.normal(size=(4, 500))}
    few, many = np.zeros((2, 4, 500), bool)
    few[0, :3] = True
    many[1, :100] = True
    assert kinds(diagnose(draws, {"diverging": few})) == ([], ["divergences"])
    assert kinds(diagnose(draws, {"diverging": many})) == (["divergences"], [])
    steps = {"num_steps": np.full((4, 500), 1023)}
    assert kinds(diagnose(draws, steps)) == ([], ["tree_depth"])
    assert kinds(diagnose(draws, steps, max_tree_depth=11)) == ([], [])
    mixed_badly = {"a": autoregressive(rng, 4, 500, 0.99)}
    assert kinds(diagnose(mixed_badly, steps))[0][-1] == "tree_depth"


def test_importance_weights(rng):
    x = rng.normal(scale=1.3, size=(1, 4000))
    wide = stats.norm.logpdf(x) - stats.norm.logpdf(x, scale=1.3)
    assert diagnose({"a": x}, log_weight=wide).converged
    heavy = -1.2 * np.log(rng.random((1, 4000)))
    assert "k_hat" in kinds(diagnose({"a": x}, log_weight=heavy))[0]
    assert "k_hat" not in kinds(diagnose({"a": x}, log_weight=heavy, k_hat=0.2))[0]
    few = diagnose({"a": x}, log_weight=wide, goals=GOALS._replace(ess=1e6))
    assert kinds(few) == (["importance_ess"], [])


def test_likelihood_statistics(rng):
    draws = {"a": rng.normal(size=(4, 500))}
    log_likelihood = np.zeros((4, 500))
    log_likelihood[2, 7] = np.nan
    status = diagnose(draws, {"log_likelihood": log_likelihood})
    assert kinds(status) == (["nan_likelihood"], [])
    assert f"a={draws['a'][2, 7]:.6g}" in status.problems[0].message


def test_posterior_against_its_prior(rng):
    size = (4, 1000)
    bounds = {"a": (0.0, 1.0), "b": (-np.inf, np.inf), "other": (0.0, 1.0)}

    def notes(x):
        return [note.message for note in diagnose({"a": x, "b": x}, prior_bounds=bounds).notes]

    assert notes(rng.uniform(size=size)) == []
    assert notes(rng.normal(0.5, 0.1, size=size)) == []
    (lower,) = notes(np.minimum(rng.exponential(0.1, size=size), 1.0))
    assert "'a' lie within 1/50 of the prior's lower bound 0;" in lower
    (upper,) = notes(np.maximum(1 - rng.exponential(0.1, size=size), 0.0))
    assert "upper bound 1;" in upper
    # Near the bound and yet falling towards it: the data decide.
    assert notes(rng.gamma(4.0, 0.01, size=size)) == []


def test_scalars_of_arrays():
    assert [name for name, _ in scalars({"a": np.ones((2, 3)), "b": np.ones((2, 3, 1, 2))})] == [
        "a",
        "b[0,0]",
        "b[0,1]",
    ]
    with pytest.raises(ValueError, match="'a' need the shape"):
        list(scalars({"a": np.ones(3)}))


def test_a_bound_decades_away_is_none():
    """Values of order one in a prior from 0.01 to 10,000, and those that pile up at its end."""
    rng = np.random.default_rng(4)
    bounds = {"a": (0.01, 1e4)}

    def notes(x):
        return diagnose({"a": x}, prior_bounds=bounds).notes

    assert not notes(np.exp(rng.normal(0.0, 0.5, (4, 1000))))
    piled = 0.01 * np.exp(np.abs(rng.normal(0.0, 0.5, (4, 1000))))
    assert [note.kind for note in notes(piled)] == ["prior_edge"]
