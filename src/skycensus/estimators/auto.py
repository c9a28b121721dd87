r"""Several kinds of estimate, averaged with the weights that suit the held-out draws best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..errors import InputError
from ..keys import generator
from ..weights import kish
from .coordinates import Coordinates
from .gaussian import clearly_better
from .kinds import fitter, wanted
from .pool import draws_of, log_prob_at, pooled
from .report import chance_of, is_outside, more_than_chance

# A member below this weight costs more time in every evaluation than it is worth.
_LEAST_WEIGHT = 0.02
# A plainer kind gives way where the gain is above so many of its standard errors: of several kinds
# one or another is above a single error by chance.
_ERRORS = 2.0
# What takes longest is for what the kinds before do not describe: held-out draws, not fewer than
# so many, look like theirs with this probability or more, and no other kind could be nearer than by
# this divergence.
_LONG, _FEWEST, _ALIKE, _LEAST_GAIN = ("triangular", "spline", "maf"), 300, 0.1, 0.015
_NUM_DRAWS = 2**13
# Of the kinds that take longest: in few dimensions an ensemble of two is as good as a larger one.
_SETTINGS: Mapping[str, Mapping[str, Any]] = {"spline": {"num_members": 2}}


def fit_auto(
    key: Any,
    z: np.ndarray,
    weight: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray],
    coordinates: Coordinates,
    names: Sequence[str],
    notes: dict[str, Any],
    progress: Any = None,
    kinds: Sequence[str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    r"""Fit several kinds and average them, $q = \sum_k a_k q_k$.

    The weights maximise the mean held-out log density, by expectation-maximisation (stacking;
    Yao et al. 2018, arXiv:1704.02030). Where the average is not better than the best of the kinds
    by more than two standard errors of the gain, that kind is returned alone.

    Args:
        kinds: which are tried; by default those that suit the number of parameters and the bounds,
            those that take long only where those before do not describe the draws (`describes`).
        settings: of each kind, by its name.
        notes: gets the held-out score and the weight of every kind, and under "chosen" the kinds
            that have a weight and their settings.
    """
    asked = kinds is not None
    kinds = _suitable(coordinates) if kinds is None else tuple(kinds)
    if not kinds or "auto" in kinds:
        raise InputError(f"kinds={list(kinds)} must name at least one kind, and not 'auto'.")
    settings = dict(settings or {})
    for kind in settings:
        if kind not in kinds:
            raise InputError(
                f"settings are given for kind '{kind}', which is not tried; the kinds are "
                f"{', '.join(kinds)}."
            )
    # Training stops by one half of the held-out draws, which flatters what it has picked there: the
    # other half chooses.
    (stop, stop_weight), (held, held_weight) = _halves(*validation)
    members: list[Any] = []
    scores: list[np.ndarray] = []
    chosen: dict[str, Any] = {}

    def best() -> Any:
        """Of the kinds tried so far."""
        return _chosen(kinds[: len(members)], members, np.stack(scores), held_weight, notes)

    for i, (kind, k) in enumerate(zip(kinds, jax.random.split(key, len(kinds)), strict=True)):
        long = members and kind in _LONG and not asked
        if long and describes(best(), jax.random.fold_in(key, i), z, weight, validation):
            break
        fit = fitter(kind)
        own_notes: dict[str, Any] = {}
        given = wanted(fit, coordinates=coordinates, names=names, notes=own_notes)
        own = {**given, **_SETTINGS.get(kind, {}), **settings.get(kind, {})}
        member = fit(k, z, weight, validation=(stop, stop_weight), **own)
        members.append(member)
        chosen[kind] = {**settings.get(kind, {}), **own_notes.get("chosen", {})}
        scores.append(log_prob_at(member, held))
        if progress is not None:
            progress(i + 1, len(kinds), f"fitting ({kind})")
    found = best()
    kept = [kind for kind, share in notes["weight"].items() if share > 0]
    notes["chosen"] = {"kinds": kept, "settings": {kind: chosen[kind] for kind in kept}}
    return found


def _halves(z: np.ndarray, weight: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    if len(z) < 2:
        return [(z, weight)] * 2
    return [(z[i::2], weight[i::2] / weight[i::2].sum()) for i in (0, 1)]


def describes(
    found: Any, key: Any, z: np.ndarray, weight: np.ndarray, validation: tuple[Any, Any]
) -> bool:
    """Whether nothing tells the draws from those of an estimate, and it has few numbers.

    A right estimate of p numbers from n draws is off by a divergence of about p / 2n (Akaike 1974,
    IEEE Trans. Autom. Control 19, 716): all that another could gain. One of many numbers is as near
    to the draws that it has seen as it likes, which says little of others.
    """
    n, m = (kish(np.log(w[w > 0])) for w in (weight, validation[1]))
    numbers = sum(np.size(leaf) for leaf in jax.tree.leaves(found))
    if m < _FEWEST or numbers / (2.0 * n) > _LEAST_GAIN:
        return False
    draw_key, test_key = jax.random.split(key)
    own = draws_of(found, draw_key, (_NUM_DRAWS, z.shape[1]))
    own_log_q, log_q, every = (log_prob_at(found, x) for x in (own, validation[0], z))
    lost = float(weight[is_outside(own_log_q, every)].sum())
    if more_than_chance(lost, n):
        return False
    return chance_of(generator(test_key), own, *validation, own_log_q, log_q) >= _ALIKE


def _suitable(coordinates: Coordinates) -> tuple[str, ...]:
    """The kinds that are worth their time."""
    bounded = any(coordinates.two) or any(coordinates.below) or any(coordinates.above)
    kinds = ["cut", "mixture"] if bounded else ["mixture"]
    if coordinates.dim <= 3:
        kinds.append("kde")
    if 1 < coordinates.dim <= 12:
        kinds.append("triangular")
    # In few dimensions splines follow shapes that affine maps do not, and cost no more.
    kinds.append("spline" if coordinates.dim <= 3 else "maf")
    return tuple(kinds)


def _chosen(
    kinds: Sequence[str],
    members: Sequence[Any],
    score: np.ndarray,
    weight: np.ndarray,
    notes: dict[str, Any],
) -> Any:
    """The average, or the best member alone; `score` holds log densities (kind, held-out draw)."""
    mean = score @ weight
    best = 0
    for k in range(1, len(kinds)):
        # The plainer ones come first, and stay where the gain is within its error.
        if clearly_better(score[k] - score[best], weight, _ERRORS):
            best = k
    share = stacking_weights(score, weight)
    share = np.where(share < _LEAST_WEIGHT, 0.0, share)
    kept = np.flatnonzero(share)
    if len(kept) > 1:
        share[kept] = stacking_weights(score[kept], weight)
        together = np.logaddexp.reduce(score[kept] + np.log(share[kept])[:, None], axis=0)
        if not clearly_better(together - score[best], weight, _ERRORS):
            kept = np.array([best])
    if len(kept) == 1:
        share = np.zeros(len(kinds))
        share[kept] = 1.0
    notes["held_out_score"] = {k: float(s) for k, s in zip(kinds, mean, strict=True)}
    notes["weight"] = {k: float(a) for k, a in zip(kinds, share, strict=True)}
    return pooled([members[int(k)] for k in kept], share[kept])


def stacking_weights(score: np.ndarray, weight: np.ndarray, steps: int = 500) -> np.ndarray:
    r"""The weights $a_k$, (k,), that maximise $\sum_n w_n \ln \sum_k a_k e^{s_{kn}}$.

    Args:
        score: $s_{kn}$, (k, n).
        weight: $w_n$, (n,), of sum one.
    """
    share = np.full(len(score), 1.0 / len(score))
    # Each step scales all weights by their members' mean part of the average: never downhill.
    density = np.exp(score - score.max(axis=0))
    for _ in range(steps):
        share = share * ((density / (share @ density)) @ weight)
    return share / share.sum()
