"""Clusters and densities in pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skycensus import InputError, fit_density
from skycensus.estimators.clusters import k_means, silhouette


def two_modes(num, seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(num, 2))
    z[: num // 4] = 0.3 * z[: num // 4] + [8.0, 0.0]
    return z[rng.permutation(num)]


def fitted(z, log_weight=None, **settings):
    columns = dict(zip("ab", z.T, strict=True))
    return fit_density(jax.random.key(0), columns, log_weight, kind="piecewise", **settings)


def test_k_means_finds_clusters_by_weight():
    rng = np.random.default_rng(0)
    z = two_modes(1000, 1)
    weight = np.where(z[:, 0] > 4, 3.0, 1.0)
    weight /= weight.sum()
    centres, label = k_means(rng, z, weight, 2)
    assert np.unique(label).tolist() == [0, 1]
    np.testing.assert_array_equal(label == label[z[:, 0].argmax()], z[:, 0] > 4)
    np.testing.assert_allclose(
        centres[label[0]], np.average(z[label == label[0]], axis=0), atol=1e-12
    )
    apart = silhouette(rng, z, weight, label)
    assert apart > 0.7
    assert silhouette(rng, z, weight, k_means(rng, z, weight, 6)[1]) < apart - 0.1
    assert silhouette(rng, z, weight, np.zeros(1000, int)) == 0.0


@pytest.fixture(scope="module")
def pieces():
    z = two_modes(3000, 2)
    # Weights that make the modes equally heavy.
    log_weight = np.where(z[:, 0] > 4, np.log(3.0), 0.0)
    return fitted(z, log_weight, piece="gaussian")


def test_modes_become_pieces_of_their_weights(pieces):
    weight = np.exp(np.asarray(pieces.estimate.log_weight))
    assert len(weight) == 2
    np.testing.assert_allclose(weight, 0.5, atol=0.03)
    peak = pieces.log_prob({"a": jnp.array([8.0, 0.0]), "b": jnp.zeros(2)})
    exact = np.log(0.5 / (2 * np.pi)) - np.array([2 * np.log(0.3), 0.0])
    np.testing.assert_allclose(peak, exact, atol=0.15)
    assert pieces.report.status.converged, str(pieces.report)


def test_one_mode_is_one_piece():
    z = np.random.default_rng(3).normal(size=(1500, 2))
    assert len(fitted(z, piece="gaussian").estimate.members) == 1


@pytest.mark.slow
def test_flows_of_all_pieces_are_trained_together():
    """Pieces of different sizes, each as good as a Gaussian of its own draws."""
    z = two_modes(3000, 2)
    settings = {"layers": 1, "width": 8, "max_epochs": 30, "batch_size": 200, "num_members": 2}
    flows = fitted(z, piece="maf", num_pieces=2, settings=settings)
    assert [len(part.inner.members) for part in flows.estimate.members] == [2, 2]
    plain = fitted(z, piece="gaussian", num_pieces=2)
    fresh = dict(zip("ab", two_modes(4000, 9).T, strict=True))
    assert abs(np.mean(flows.log_prob(fresh)) - np.mean(plain.log_prob(fresh))) < 0.03


@pytest.mark.slow
def test_pieces_may_be_bounded_and_of_any_kind():
    z = np.abs(two_modes(800, 4))
    support = {"a": (0.0, 20.0), "b": (0.0, np.inf)}
    density = fitted(z, piece="cut", num_pieces=2, support=support)
    outside = density.log_prob({"a": jnp.array([-0.1, 1.0]), "b": jnp.array([1.0, 1.0])})
    assert np.isneginf(outside[0]) and np.isfinite(outside[1])


def test_wrong_settings():
    z = two_modes(200, 5)
    with pytest.raises(InputError, match="'piecewise' are not possible"):
        fitted(z, piece="piecewise")
    with pytest.raises(InputError, match="num_pieces=0 must be at least 1"):
        fitted(z, num_pieces=0)
