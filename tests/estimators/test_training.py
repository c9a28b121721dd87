from __future__ import annotations

import jax.numpy as jnp
import jax.random
import numpy as np
import pytest

from skycensus import InputError
from skycensus.estimators.training import Rows, Settings, train


def log_prob(weights, x):
    """A normal distribution of known width about weights[0]."""
    return -0.5 * jnp.sum((x - weights[0]) ** 2, axis=-1) - 0.5 * jnp.log(2 * jnp.pi)


def trained(settings, held_out, *, start=-2.0, seed=0, weight=None, told=None):
    rng = np.random.default_rng(1)
    x = rng.normal(2.0, 1.0, (200, 1))
    weight = np.full(200, 1 / 200) if weight is None else weight(x[:, 0])
    return train(
        jax.random.key(seed),
        log_prob,
        [jnp.array([[start], [start + 0.5]])],
        [Rows((x,), weight, (held_out,), np.full(len(held_out), 1 / len(held_out)))],
        settings,
        progress=told,
    )


def test_early_stopping_returns_the_best_state():
    # The draws are about 2 and those held out about 0: on its way from -2 to 2 the mean passes
    # the best state, and the last one is far worse.
    held_out = np.zeros((50, 1))
    settings = Settings(200, 50, 0.02, 0.0, patience=15)
    done = trained(settings, held_out)
    assert np.all(np.abs(done.weights[0]) < 0.1)
    best = log_prob([done.weights[0][0]], held_out)[0]
    np.testing.assert_allclose(best, done.score.max(0)[0], rtol=1e-5)
    assert len(done.score) < 200
    assert np.all(done.score[-1] < done.score.max(0))


def test_weights_of_draws_count():
    settings = Settings(60, 50, 0.1, 0.0)
    held_out = np.full((50, 1), 3.0)

    def heavy(x):
        weight = np.where(x > 2.5, 1.0, 1e-9)
        return weight / weight.sum()

    rng = np.random.default_rng(1)
    x = rng.normal(2.0, 1.0, 200)
    done = trained(settings, held_out, weight=heavy)
    np.testing.assert_allclose(done.weights[0][0, 0], x[x > 2.5].mean(), atol=0.12)


def test_several_sets_are_trained_together_each_by_its_own_draws():
    """Sets of different sizes: what fills up the smaller one has no weight."""
    rng = np.random.default_rng(2)
    sets = [rng.normal(loc, 1.0, (size, 1)) for loc, size in ((2.0, 200), (-3.0, 70))]
    done = train(
        jax.random.key(0),
        log_prob,
        [jnp.zeros((4, 1))],
        [Rows((x,), np.full(len(x), 1 / len(x)), (x,), np.full(len(x), 1 / len(x))) for x in sets],
        Settings(60, 50, 0.1, 0.0),
    )
    means = np.repeat([x.mean() for x in sets], 2)
    np.testing.assert_allclose(done.weights[0][:, 0], means, atol=0.05)
    best = [log_prob([m], x).mean() for m, x in zip(done.weights[0][::2], sets, strict=True)]
    np.testing.assert_allclose(done.score.max(0)[::2], best, rtol=1e-5)


def test_the_key_alone_decides():
    settings, held_out = Settings(3, 50, 0.1, 0.0), np.full((50, 1), 2.0)
    told = []
    first = trained(settings, held_out, told=lambda *a: told.append(a))
    np.testing.assert_array_equal(first.weights[0], trained(settings, held_out).weights[0])
    assert not np.array_equal(first.score, trained(settings, held_out, seed=1).score)
    assert told[-1] == (3, 3, "training")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(max_epochs=0), "max_epochs=0 must be above 0"),
        (Settings(learning_rate=-1.0), "learning_rate=-1.0 must be above 0"),
        (Settings(weight_decay=-1.0), "weight_decay=-1.0 must be 0 or more"),
    ],
)
def test_bad_settings_are_told(settings, message):
    with pytest.raises(InputError, match=message):
        trained(settings, np.zeros((5, 1)))


def test_a_training_that_never_works_is_told():
    with pytest.raises(InputError, match="never reached a finite score; lower learning_rate"):
        trained(Settings(2, 50, 0.1, 0.0), np.full((5, 1), np.nan))
