"""Mixtures leaf by leaf: sums, memberships, draws, and leaves that have forms of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import Grid, InputError, Joint, Mixture
from skycensus.density import leaves, log_terms
from skycensus.likelihood import Constant, Detected, Folded, LogMarginal
from skycensus.likelihood.leaves import (
    Leafwise,
    draw_over_leaves,
    memberships,
    sum_over_leaves,
)

TREE = Mixture(
    {
        "dm": Joint(x=dist.Normal(0.0, 1.0)),
        "bkg": Mixture(
            {"ccr": Joint(x=dist.Normal(2.0, 0.5)), "diffuse": Joint(x=dist.Uniform(-4.0, 4.0))},
            log_weights={"ccr": -0.3, "diffuse": -1.4},
        ),
    },
    log_weights={"dm": -1.0, "bkg": 0.2},
)


def grid(at):
    nodes = np.linspace(-6, 6, 601)
    table = -0.5 * ((nodes - np.asarray(at)[:, None]) / 0.3) ** 2
    return Grid({"x": nodes}, table, np.log(nodes[1] - nodes[0]))


def test_leaves_are_the_terms_of_the_density():
    theta = {"x": jnp.linspace(-3.0, 3.0, 7)}
    terms = log_terms(TREE, theta)
    tree = leaves(TREE)
    assert tree.keys() == terms.keys() == {"dm", "bkg/ccr", "bkg/diffuse"}
    for path, (weight, leaf) in tree.items():
        assert leaf.log_prob(theta) + weight == pytest.approx(terms[path])


def test_leaves_of_a_joint_with_a_mixture_for_a_factor():
    joint = Joint({"x": TREE, "y": dist.Normal(0.0, 1.0)})
    theta = {"x": jnp.linspace(-3.0, 3.0, 7), "y": jnp.ones(7)}
    terms = log_terms(joint, theta)
    for path, (weight, leaf) in leaves(joint).items():
        assert set(leaf.factors) == {"x", "y"}
        assert leaf.log_prob(theta) + weight == pytest.approx(terms[path])


def test_a_density_without_leaves_is_its_own():
    joint = Joint(x=dist.Normal(0.0, 1.0))
    assert leaves(joint) == {"": (0.0, joint)}


def test_sum_over_leaves_is_the_whole_integral():
    form = grid([-1.0, 0.5, 2.2])
    whole = form.log_marginal(TREE).value
    parts = sum_over_leaves(TREE, lambda path, leaf: form.log_marginal(leaf))
    assert parts.value == pytest.approx(np.asarray(whole), rel=1e-12)


def test_variances_count_by_the_squared_share():
    variance = {"dm": 0.04, "bkg/ccr": 0.01, "bkg/diffuse": jnp.inf}
    value = {"dm": 0.0, "bkg/ccr": 0.0, "bkg/diffuse": -jnp.inf}
    weight = {path: w for path, (w, _) in leaves(TREE).items()}

    def marginal(path, leaf):
        return LogMarginal(jnp.full(1, value[path]) - weight[path], jnp.full(1, variance[path]))

    total = sum_over_leaves(TREE, marginal)
    assert total.value == pytest.approx(np.log(2.0))
    assert total.variance == pytest.approx((0.04 + 0.01) / 4)


def test_memberships_sum_to_one_and_have_the_weights_in_them():
    form = grid([-1.0, 0.5, 2.2])
    share = memberships(form, TREE)
    assert sum(share.values()) == pytest.approx(np.ones(3))
    dm = form.log_marginal(TREE.components["dm"]).value - 1.0
    assert share["dm"] == pytest.approx(np.exp(dm - form.log_marginal(TREE).value))


@pytest.mark.slow
def test_draws_pick_leaves_by_membership():
    form = grid([0.5, 2.2])
    where = {"dm": 0.0, "bkg/ccr": 1.0, "bkg/diffuse": 2.0}

    def draw(path, leaf, key):
        return {"x": jnp.full(2, where[path])}

    def one(key):
        return draw_over_leaves(TREE, key, lambda path, leaf: form.log_marginal(leaf), draw)["x"]

    drawn = np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(1), 4000)))
    for path, share in memberships(form, TREE).items():
        got = (drawn == where[path]).mean(axis=0)
        assert got == pytest.approx(np.asarray(share), abs=5 * 0.5 / np.sqrt(4000)), path


def test_every_leaf_may_have_its_own_form():
    fine, coarse = grid([0.5, 2.2]), grid([0.5, 2.2])
    each = Leafwise({"dm": fine, "bkg": coarse})
    assert each.log_marginal(TREE).value == pytest.approx(
        np.asarray(fine.log_marginal(TREE).value), rel=1e-12
    )
    gradient = jax.jit(jax.grad(lambda w, f: f.log_marginal(reweighted(w)).value.sum()))
    assert np.isfinite(gradient(0.3, each))


def reweighted(log_weight):
    return Mixture(TREE.components, log_weights={"dm": log_weight, "bkg": 0.2})


def test_forms_of_different_objects_are_refused():
    with pytest.raises(InputError, match="'bkg' and 'dm' are forms of different objects"):
        Leafwise({"dm": grid([0.5]), "bkg": grid([0.5, 1.0])})
    with pytest.raises(InputError, match="at least one form"):
        Leafwise({})
    with pytest.raises(InputError, match=r"no form for the leaf 'dm'.*'bkg'"):
        Leafwise({"bkg": grid([0.5])}).log_marginal(TREE)


def test_tables_and_numbers_are_added_up_before_the_logarithm():
    nodes = np.geomspace(0.5, 8.0, 31)
    rows = np.exp(-0.5 * (np.log(nodes) - np.log([[0.9], [3.0], [5.0]])) ** 2 / 0.04)
    seen = Folded("x", nodes, (nodes / 10.0)[None], names=["seen"])
    # Scales far apart, and an object that one leaf cannot have made.
    forms = {
        "a": Detected(Folded("x", nodes, rows * [[1e-200], [1.0], [1e90]]), seen),
        "b/c": Folded("x", nodes, rows[::-1]),
        "b/d": Constant([-300.0, -np.inf, 200.0], names=["object 0", "object 1", "object 2"]),
    }
    mixed = Leafwise(forms | {"e": grid_of_three()})

    def tree(w):
        law = Joint({"x": dist.LogNormal(0.5, 0.7)})
        below = Mixture({"c": law, "d": law}, log_weights={"c": -1.0, "d": w})
        parts = {"a": law, "b": below, "e": Joint({"x": dist.Normal(1.0, 1.0)})}
        return Mixture(parts, log_weights={"a": w, "b": 0.3, "e": -2.0})

    def by_logarithms(w):
        return sum_over_leaves(tree(w), mixed.at_leaf).value

    found = jax.jit(lambda w: mixed.log_marginal(tree(w)).value)
    for w in (-700.0, -1.3):
        np.testing.assert_allclose(found(w), by_logarithms(w), rtol=1e-12)
    slope = jax.jit(jax.jacobian(found))(-1.3)
    np.testing.assert_allclose(slope, jax.jacobian(by_logarithms)(-1.3), rtol=1e-10)


def grid_of_three():
    x = np.linspace(-3.0, 5.0, 201)
    log_l = -0.5 * (x - np.array([[0.0], [1.0], [2.0]])) ** 2
    return Grid({"x": x}, log_l, np.full(201, 0.04))


def test_memberships_of_leaves_with_forms_of_their_own():
    forms = {"a": Constant(np.log([0.1, 0.2])), "b": Constant(np.log([0.3, 0.1]))}
    normal = Joint({"x": dist.Normal(0.0, 1.0)})
    weights = {"a": jnp.log(0.25), "b": jnp.log(0.75)}
    tree = Mixture({"a": normal, "b": normal}, log_weights=weights)
    shares = memberships(Leafwise(forms), tree)
    np.testing.assert_allclose(shares["a"], [0.025 / 0.25, 0.05 / 0.125])
