from __future__ import annotations

import jax
import numpy as np
import pytest

from skycensus import InputError
from skycensus.estimators import fit_density
from skycensus.estimators.auto import describes, stacking_weights
from skycensus.estimators.gaussian import fit_gaussian
from skycensus.estimators.kde import fit_kde


def test_stacking_weights_maximise_the_score():
    rng = np.random.default_rng(0)
    density = rng.gamma(2.0, 1.0, (3, 500))
    weight = np.full(500, 1 / 500)
    best = stacking_weights(np.log(density), weight)
    np.testing.assert_allclose(best.sum(), 1)
    # At a maximum on the simplex no member's mean part of the average is above one.
    part = (density / (best @ density)) @ weight
    assert np.all(part < 1 + 1e-3)
    np.testing.assert_allclose(part[best > 0.01], 1, atol=1e-3)


def draws(num=600):
    rng = np.random.default_rng(1)
    side = rng.integers(2, size=num)
    return {"x": np.where(side, 4.0, -4.0) + rng.normal(size=num), "y": rng.normal(size=num)}


def test_the_better_kind_is_chosen_and_all_scores_are_told():
    density = fit_density(jax.random.key(0), draws(), kinds=["gaussian", "mixture"], report=False)
    told = density.provenance
    assert told["held_out_score"]["mixture"] > told["held_out_score"]["gaussian"] + 0.3
    assert told["weight"] == {"gaussian": 0.0, "mixture": 1.0}
    assert density.kind == "mixture"


def test_what_takes_long_is_left_out_where_nothing_is_left_to_describe():
    told = fit_density(jax.random.key(0), draws(4000), report=False).provenance
    assert list(told["held_out_score"]) == list(told["weight"]) == ["mixture", "kde"]
    assert told["weight"]["mixture"] == 1.0


def test_many_numbers_are_not_trusted():
    """Kernels at the draws look like them whatever they are."""
    rng = np.random.default_rng(3)
    train, held = rng.normal(size=(1000, 2)), rng.normal(size=(400, 2))
    weight = [np.full(len(x), 1.0 / len(x)) for x in (train, held)]
    key, validation = jax.random.key(1), (held, weight[1])
    for fit, described in ((fit_gaussian, True), (fit_kde, False)):
        found = fit(jax.random.key(0), train, weight[0], validation=validation)
        assert describes(found, key, train, weight[0], validation) == described
        # Few tell nothing.
        few = held[:200], np.full(200, 1.0 / 200)
        assert not describes(found, key, train, weight[0], few)


def far_away(z, num):
    """The same with so many draws a long way off."""
    return np.concatenate([z[num:], np.full((num, 2), 9.0)])


@pytest.mark.parametrize(
    ("change", "described"),
    [
        (lambda z: z, True),
        (lambda z: z * [1.0, 1.15], False),
        (lambda z: np.abs(z), False),
        # Every other draw ten times nearer to the middle.
        (lambda z: np.where(np.arange(len(z))[:, None] % 2, z, 0.1 * z), False),
        (lambda z: far_away(z, 40), False),
    ],
)
def test_whether_an_estimate_describes_the_draws(change, described):
    rng = np.random.default_rng(2)
    train, held = rng.normal(size=(6000, 2)), rng.normal(size=(2000, 2))
    weight = [np.full(len(x), 1.0 / len(x)) for x in (train, held)]
    found = fit_gaussian(jax.random.key(0), train, weight[0], validation=(held, weight[1]))
    key = jax.random.key(1)
    told = describes(found, key, change(train), weight[0], (change(held), weight[1]))
    assert told == described


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": []}, "must name at least one kind"),
        ({"kinds": ["gausian"]}, "no density of kind 'gausian' .did you mean 'gaussian'"),
        ({"kinds": ["kde"], "settings": {"maf": {}}}, "settings are given for kind 'maf'"),
        ({"kind": "maf", "layer": 3}, "kind 'maf' has no setting 'layer' .did you mean 'layers'"),
    ],
)
def test_bad_settings_are_told(settings, message):
    with pytest.raises(InputError, match=message):
        fit_density(jax.random.key(0), draws(50), **settings)
