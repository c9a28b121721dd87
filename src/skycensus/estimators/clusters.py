r"""Clusters of weighted points: spread-out starts, k-means, and how well clusters stand apart."""

from __future__ import annotations

import numpy as np


def spread_points(
    rng: np.random.Generator, x: np.ndarray, weight: np.ndarray, num: int, root: np.ndarray
) -> np.ndarray:
    """At most `num` of the points (n, d), far from each other in the metric of a covariance.

    The first is drawn by weight, each further one by weight times its squared distance to the
    nearest so far: k-means++ (Arthur & Vassilvitskii 2007).

    Args:
        weight: (n,), of sum one.
        root: the Cholesky root of the covariance, (d, d).
    """
    z = np.linalg.solve(root, x.T).T
    chosen = [int(rng.choice(len(x), p=weight))]
    nearest = np.sum((z - z[chosen[0]]) ** 2, axis=1)
    while len(chosen) < num:
        p = weight * nearest
        if p.sum() <= 0:
            break
        chosen.append(int(rng.choice(len(x), p=p / p.sum())))
        nearest = np.minimum(nearest, np.sum((z - z[chosen[-1]]) ** 2, axis=1))
    return x[chosen]


def k_means(
    rng: np.random.Generator, x: np.ndarray, weight: np.ndarray, num: int, *, num_starts: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    r"""Centres (k, d) and the cluster of every point (n,) that make $\sum_n w_n |x_n - c|^2$ small.

    Lloyd's iteration from `spread_points`, the best of several starts. There may be fewer
    clusters than `num` where there are fewer different points.
    """
    best = None
    for _ in range(num_starts):
        centres = spread_points(rng, x, weight, num, np.eye(x.shape[1]))
        label = nearest_centre(x, centres)
        for _ in range(100):
            mass = np.bincount(label, weight, minlength=len(centres))
            sums = np.stack([np.bincount(label, weight * c, len(centres)) for c in x.T], axis=1)
            centres = sums[mass > 0] / mass[mass > 0, None]
            before, label = label, nearest_centre(x, centres)
            if np.array_equal(label, before):
                break
        spread = float(weight @ np.sum((x - centres[label]) ** 2, axis=1))
        if best is None or spread < best[0]:
            best = (spread, centres, label)
    assert best is not None
    return best[1], best[2]


def nearest_centre(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The index of the centre (k, d) nearest to every point (n, d)."""
    return np.argmin(np.sum(centres**2, axis=1) - 2.0 * x @ centres.T, axis=1)


def silhouette(
    rng: np.random.Generator,
    x: np.ndarray,
    weight: np.ndarray,
    label: np.ndarray,
    *,
    most: int = 1000,
) -> float:
    r"""The mean silhouette of clusters, from -1 to 1: how far apart they stand for their widths.

    For a point at mean distance a to its own cluster's others and b to those of the nearest
    other cluster it is $(b - a)/\max(a, b)$ (Rousseeuw 1987). Of many points `most` are used,
    drawn by weight. Zero for a single cluster.
    """
    chosen = rng.choice(len(x), min(most, len(x)), p=weight)
    x, label = x[chosen], label[chosen]
    found, label = np.unique(label, return_inverse=True)
    if len(found) < 2:
        return 0.0
    distance = np.sqrt(np.maximum(_squared_distances(x), 0.0))
    count = np.bincount(label)
    mean = np.stack([distance[:, label == k].sum(axis=1) for k in range(len(found))], axis=1)
    own = np.arange(len(x)), label
    within = mean[own] / np.maximum(count[label] - 1, 1)
    mean = mean / count
    mean[own] = np.inf
    other = mean.min(axis=1)
    score = (other - within) / np.maximum(np.maximum(within, other), 1e-300)
    return float(np.mean(np.where(count[label] > 1, score, 0.0)))


def _squared_distances(x: np.ndarray) -> np.ndarray:
    squares = np.sum(x**2, axis=1)
    return squares[:, None] + squares - 2.0 * x @ x.T
