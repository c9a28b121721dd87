r"""Densities in pieces: clusters of draws, each with an estimate of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..keys import generator
from ..weights import kish
from . import Estimate
from .clusters import k_means, nearest_centre, silhouette
from .coordinates import Coordinates
from .gaussian import clearly_better, moments
from .kinds import fitter, wanted
from .pool import Pool, log_prob_at
from .shifted import Shifted

__all__ = ["Pool", "fit_piecewise"]

# A piece needs so many effective draws for each of its dimensions.
_DRAWS_PER_DIM = 10


class _Draws(NamedTuple):
    z: np.ndarray
    weight: np.ndarray


def fit_piecewise(
    key: Any,
    z: np.ndarray,
    weight: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray],
    coordinates: Coordinates,
    names: Sequence[str],
    progress: Any = None,
    notes: dict[str, Any] | None = None,
    piece: str = "mixture",
    num_pieces: int | None = None,
    max_pieces: int = 8,
    min_silhouette: float | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Pool:
    r"""A sum of estimates of clusters of draws, by the weight of each cluster.

    Draws are clustered by k-means. The number of clusters has the best held-out score; one is
    among those tried. Every piece is fitted in coordinates standardised by its own draws; flows of
    all pieces are trained together.

    Args:
        notes: gets the number of pieces under "chosen".
        piece: the kind of the pieces.
        num_pieces: how many, instead of trying.
        max_pieces: the most that are tried.
        min_silhouette: clusters whose mean silhouette is below this are not tried, which saves
            the time of fitting them.
        settings: what the pieces' own kind takes.

    Raises:
        InputError: the pieces are asked to be made of pieces, or a number that is not positive.
    """
    if piece in ("piecewise", "product"):
        raise InputError(f"pieces of kind '{piece}' are not possible; take another kind.")
    for name, value in (("num_pieces", num_pieces), ("max_pieces", max_pieces)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value} must be at least 1.")
    rng = generator(key)
    sizes = range(1, max_pieces + 1) if num_pieces is None else [num_pieces]
    best: Pool | None = None
    best_score, since = np.zeros(1), 0
    for size in sizes:
        centres, label = k_means(rng, z, weight, size)
        if num_pieces is None and size > 1:
            if not _large_enough(weight, label, z.shape[1]):
                break
            if min_silhouette is not None and silhouette(rng, z, weight, label) < min_silhouette:
                continue
        made = _pieces(
            jax.random.fold_in(key, size),
            _Draws(z, weight),
            _Draws(*validation),
            centres,
            partial(_fitted, piece=piece, names=names, settings=settings or {}),
            coordinates,
        )
        score = log_prob_at(made, validation[0])
        if progress is not None:
            progress(size, max(sizes), f"pieces ({size})")
        if best is None or clearly_better(score - best_score, validation[1]):
            best, best_score, since = made, score, 0
        else:
            since += 1
        if since == 2:
            break
    assert best is not None
    if notes is not None:
        notes["chosen"] = {"num_pieces": len(best.members)}
    return best


def _large_enough(weight: np.ndarray, label: np.ndarray, dim: int) -> bool:
    return all(
        kish(np.log(weight[label == k])) >= _DRAWS_PER_DIM * dim for k in range(label.max() + 1)
    )


def _pieces(
    key: Any,
    draws: _Draws,
    held: _Draws,
    centres: np.ndarray,
    fit: Callable[..., list[Estimate]],
    coordinates: Coordinates,
) -> Pool:
    """One estimate per centre, of the draws that are nearest to it."""
    label, held_label = nearest_centre(draws.z, centres), nearest_centre(held.z, centres)
    own, outs, places = [], [], []
    for k in range(len(centres)):
        mine = _part(draws, label == k)
        mean, root = moments(mine.z, mine.weight)
        # Pieces without a draw held out are judged by the draws they learn from.
        out = _part(held, held_label == k) if held.weight[held_label == k].sum() > 0 else mine
        own.append(_Draws(_own(mine.z, mean, root), mine.weight))
        outs.append(_Draws(_own(out.z, mean, root), out.weight))
        places.append((mean, root))
    made = fit(key, own, outs, [_standardised(coordinates, *place) for place in places])
    parts: list[Estimate] = [
        Shifted(inner, jnp.asarray(mean), jnp.asarray(root))
        for inner, (mean, root) in zip(made, places, strict=True)
    ]
    return Pool(parts, [draws.weight[label == k].sum() for k in range(len(centres))])


def _fitted(
    key: Any,
    draws: Sequence[_Draws],
    held: Sequence[_Draws],
    coordinates: Sequence[Coordinates],
    *,
    piece: str,
    names: Sequence[str],
    settings: Mapping[str, Any],
) -> list[Estimate]:
    """One estimate for each set of draws: together where the kind can, else one by one."""
    fit = fitter(piece)
    if hasattr(fit, "several"):
        z, weight = zip(*draws, strict=True)
        return fit.several(key, z, weight, validation=held, **settings)
    made = []
    for k, (one, out, place) in enumerate(zip(draws, held, coordinates, strict=True)):
        given = wanted(fit, coordinates=place, names=names, notes={})
        made.append(fit(jax.random.fold_in(key, k), *one, validation=out, **given, **settings))
    return made


def _standardised(whole: Coordinates, mean: np.ndarray, root: np.ndarray) -> Coordinates:
    """The same coordinates, standardised by the mean and the covariance of one piece."""
    outer = np.asarray(whole.root)
    return eqx.tree_at(
        lambda c: (c.mean, c.root),
        whole,
        (whole.mean + jnp.asarray(outer @ mean), jnp.asarray(outer @ root)),
    )


def _part(draws: _Draws, chosen: np.ndarray) -> _Draws:
    weight = draws.weight[chosen]
    return _Draws(draws.z[chosen], weight / max(weight.sum(), math.ulp(0.0)))


def _own(z: np.ndarray, mean: np.ndarray, root: np.ndarray) -> np.ndarray:
    return np.linalg.solve(root, (z - mean).T).T
