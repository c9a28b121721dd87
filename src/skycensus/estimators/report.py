r"""Whether a learned density is to be believed: its draws against those it was learned from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import equinox as eqx
import jax
import numpy as np
from scipy.special import kolmogorov, ndtr

from ..keys import generator
from ..status import Problem, Status
from ..weights import kish
from .coordinates import stacked, to_standard
from .pool import log_prob_at

# Draws of the density that the held-out ones are compared with.
_NUM_DRAWS = 2**14
_NUM_PROJECTIONS = 10
_LEVELS = (0.5, 0.9)
# Chance that a sound density fails a test, shared by all tests of its kind.
_CHANCE = 1e-3
# A region that should hold this part of the draws, where a lost mode or tail piles up.
_OUTSIDE = 1e-3
# Products of parameters that the classifier looks at, at most.
_MOST_FEATURES = 250


@dataclass(frozen=True)
class Uniformity:
    r"""How evenly held-out draws lie in the distribution of the density, along one direction.

    Of the values $u = F(x)$ that are uniform for a perfect density: the probability of a
    Kolmogorov-Smirnov distance as large as theirs, and the part of them in the central intervals
    that should hold 50 and 90 %.
    """

    p_value: float
    coverage: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    r"""What speaks for and against a learned density, on draws that it did not learn from.

    Attributes:
        n_eff: Kish's effective number of all draws.
        n_eff_held_out: that of the draws held out, on which all but `lost` rests.
        log_score: mean $\ln q$ of the held-out draws, in the units of the parameters.
        log_score_error: its standard error.
        marginals: parameter -> its `Uniformity`.
        projections: those of random directions in standardised coordinates.
        highest: that of $\ln q$ itself, whose central intervals are regions of highest density.
        classifier: how often a classifier that was taught to tell draws from the density's own
            puts a pair of them in the right order: 1/2 where it cannot (area under its curve).
        classifier_error: the standard error of that where it cannot.
        lost: the part of all draws outside of the region that holds 99.9 % of the density.
        scores: the mean held-out $\ln q$ of each kind that was tried, in standardised coordinates.
        status: converged, or the problems and what to do about them.
    """

    status: Status
    _: KW_ONLY
    n_eff: float
    n_eff_held_out: float
    log_score: float
    log_score_error: float
    marginals: Mapping[str, Uniformity]
    projections: Sequence[Uniformity]
    highest: Uniformity
    classifier: float
    classifier_error: float
    lost: float
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Why the density is not to be believed; none where nothing was found."""
        return self.status.problems

    def __str__(self) -> str:
        rows = [("", "p", *(f"in {100 * level:.0f} %" for level in _LEVELS))]
        worst = min(self.projections, key=lambda one: one.p_value)
        shown = {
            **self.marginals,
            f"worst of {len(self.projections)} directions": worst,
            "highest density": self.highest,
        }
        for name, one in shown.items():
            parts = (f"{100 * part:.1f} %" for part in one.coverage.values())
            rows.append((name, f"{one.p_value:.2g}", *parts))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            f"held-out log score {self.log_score:.4f} +- {self.log_score_error:.4f} "
            f"({self.n_eff_held_out:.0f} of {self.n_eff:.0f} effective draws)",
            *("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows),
            f"a classifier orders draws and samples with {self.classifier:.3f} (1/2: it cannot, "
            f"+- {self.classifier_error:.3f})",
            f"{100 * self.lost:.2g} % of the draws outside of 99.9 % of the density",
        ]
        if self.scores:
            tried = ", ".join(f"{kind} {value:.4f}" for kind, value in self.scores.items())
            lines.append(f"held-out scores: {tried}")
        return "\n".join([*lines, str(self.status)])

    def as_dict(self) -> dict[str, Any]:
        """The report in the types of JSON."""
        plain = {name: getattr(self, name) for name in _NUMBERS}
        return plain | {
            "marginals": {name: vars(one) for name, one in self.marginals.items()},
            "projections": [vars(one) for one in self.projections],
            "highest": vars(self.highest),
            "scores": dict(self.scores),
            "problems": [[p.kind, p.message] for p in self.problems],
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Report:
        """The inverse of `as_dict`."""
        problems = tuple(Problem(*each) for each in told["problems"])
        return cls(
            Status(not problems, problems),
            marginals={name: Uniformity(**one) for name, one in told["marginals"].items()},
            projections=[Uniformity(**one) for one in told["projections"]],
            highest=Uniformity(**told["highest"]),
            scores=dict(told["scores"]),
            **{name: float(told[name]) for name in _NUMBERS},
        )


_NUMBERS = (
    *("n_eff", "n_eff_held_out", "log_score", "log_score_error"),
    *("classifier", "classifier_error", "lost"),
)


def make_report(
    key: Any,
    density: Any,
    z: np.ndarray,
    weight: np.ndarray,
    validation: tuple[np.ndarray, np.ndarray],
    *,
    scores: Mapping[str, float] | None = None,
) -> Report:
    """Compare draws of a `LearnedDensity` with those it was learned from, and with those held out.

    Args:
        z, weight: the draws learned from in standardised coordinates, (n, d), and weights (n,).
        validation: the draws held out, likewise.
        scores: what each kind scored that was tried.
    """
    sample_key, rest = jax.random.split(key)
    rng = generator(rest)
    coordinates = density.coordinates
    x = stacked(density.names, density.sample(sample_key, (_NUM_DRAWS,)))
    own = to_standard(coordinates, x)
    held, held_weight = validation
    every = log_prob_at(density.estimate, np.concatenate([own, held, z]))
    own_log_q, log_q, every = np.split(every, [len(own), len(own) + len(held)])
    score, error = _score(coordinates, held, log_q, held_weight)
    to_free = np.asarray(coordinates.root).T
    marginals = {
        name: _uniformity(own @ column, held @ column, held_weight)
        for name, column in zip(density.names, to_free.T, strict=True)
    }
    directions = rng.normal(size=(_NUM_PROJECTIONS, density.dim))
    projections = [_uniformity(own @ v, held @ v, held_weight) for v in directions]
    highest = _uniformity(own_log_q, log_q, held_weight)
    auc, auc_error = classifier_score(rng, own, held, held_weight)
    held_share = kish(np.log(held_weight[held_weight > 0]))
    # The held-out draws were taken at random, so that the two parts weigh as they are many.
    n_eff = held_share + kish(np.log(weight[weight > 0]))
    share = np.concatenate([held_weight * held_share, weight * (n_eff - held_share)]) / n_eff
    outside = is_outside(own_log_q, np.concatenate([log_q, every]))
    found = {
        "n_eff": n_eff,
        "n_eff_held_out": held_share,
        "log_score": score,
        "log_score_error": error,
        "classifier": auc,
        "classifier_error": auc_error,
        "lost": float(share[outside].sum()),
    }
    lost = np.concatenate([held, z])[outside], share[outside]
    problems = [
        *_few_draws(n_eff, density.dim),
        *_uneven(marginals, projections, highest),
        *_told_apart(auc, auc_error),
        *_lost(density, *lost, n_eff),
    ]
    return Report(
        Status(not problems, tuple(problems)),
        marginals=marginals,
        projections=projections,
        highest=highest,
        scores=dict(scores or {}),
        **found,
    )


def chance_of(
    rng: np.random.Generator,
    own: np.ndarray,
    held: np.ndarray,
    weight: np.ndarray,
    own_log_q: np.ndarray,
    log_q: np.ndarray,
) -> float:
    """The probability of held-out draws as unlike a density's own, if they are of that density.

    That of the most telling test of a report (distributions along axes, random directions and the
    log density; the classifier) times the number of tests, at most one.

    Args:
        own, held: (n, d) draws of the density, and those held out, which weigh `weight`.
        own_log_q, log_q: log densities of both.
    """
    dim = held.shape[1]
    directions = np.concatenate([np.eye(dim), rng.normal(size=(_NUM_PROJECTIONS, dim))])
    each = [_uniformity(own @ v, held @ v, weight).p_value for v in directions]
    each.append(_uniformity(own_log_q, log_q, weight).p_value)
    auc, error = classifier_score(rng, own, held, weight)
    each.append(float(ndtr((0.5 - auc) / error)))
    return min(1.0, len(each) * min(each))


# ---- measures ------------------------------------------------------------------------------------


def _score(
    coordinates: Any, held: np.ndarray, log_q: np.ndarray, weight: np.ndarray
) -> tuple[float, float]:
    """Mean log density of the held-out draws in the parameters' own units, and its error."""
    value = log_q + np.asarray(_log_slope(coordinates, held), float)
    mean = float(weight @ value)
    return mean, float(np.sqrt(np.sum((weight * (value - mean)) ** 2)))


@eqx.filter_jit
def _log_slope(coordinates: Any, z: Any) -> Any:
    return coordinates.forward(coordinates.inverse(z))[1]


def _uniformity(own: np.ndarray, held: np.ndarray, weight: np.ndarray) -> Uniformity:
    order = np.sort(own)
    below = np.searchsorted(order, held, side="left") + np.searchsorted(order, held, side="right")
    u = below / (2.0 * len(own))
    by_u = np.argsort(u, kind="stable")
    after = np.cumsum(weight[by_u])
    gap = np.maximum(np.abs(after - u[by_u]), np.abs(after - weight[by_u] - u[by_u])).max()
    num = 1.0 / (1.0 / kish(np.log(weight[weight > 0])) + 1.0 / len(own))
    coverage = {
        f"{100 * level:.0f}": float(weight[np.abs(u - 0.5) <= 0.5 * level].sum())
        for level in _LEVELS
    }
    # The finite-size correction of Stephens (1970).
    root = math.sqrt(num)
    return Uniformity(float(kolmogorov((root + 0.12 + 0.11 / root) * gap)), coverage)


def classifier_score(
    rng: np.random.Generator, own: np.ndarray, held: np.ndarray, weight: np.ndarray
) -> tuple[float, float]:
    r"""How well a logistic regression tells draws from samples, and the error if it cannot.

    Its features are the coordinates, their squares and products. It learns from one half of both
    and is judged by the other, and the other way round. The score is the probability that of a
    draw and a sample the draw gets the larger value; a density that is right has 1/2. A single draw
    cannot be divided: 1/2, and the largest error there is.
    """
    if np.count_nonzero(weight) < 2:
        return 0.5, 0.5
    features = _quadratic(np.concatenate([own, held]))
    is_draw = np.arange(len(features)) >= len(own)
    mass = np.concatenate([np.full(len(own), 1.0 / len(own)), weight])
    # Of each label by itself, the draws in order of their weight: both halves have some of both.
    pairs = np.argsort(np.argsort(-weight, kind="stable"))
    half = np.concatenate([rng.permutation(len(own)) % 2 == 0, pairs % 2 == 0])
    scores = []
    for learn in (half, ~half):
        coefficients = _logistic(features[learn], is_draw[learn], mass[learn])
        value = features[~learn] @ coefficients
        scores.append(_ordered(value, is_draw[~learn], mass[~learn]))
    n = kish(np.log(weight[weight > 0]))
    error = math.sqrt((1.0 / n + 1.0 / len(own)) / 12.0)
    return float(np.mean(scores)), error


def _quadratic(z: np.ndarray) -> np.ndarray:
    dim = z.shape[1]
    first, second = np.triu_indices(dim)
    if len(first) > _MOST_FEATURES:
        first = second = np.arange(dim)
    # Far points would steer the fit, and say no more than that they are far.
    z = np.clip(z, -8.0, 8.0)
    features = np.concatenate([z, z[:, first] * z[:, second]], axis=1)
    features = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-12)
    return np.concatenate([np.ones((len(z), 1)), features], axis=1)


def _logistic(features: np.ndarray, label: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Coefficients of a weighted logistic regression, both labels weighing the same (Newton)."""
    mass = np.where(label, mass / mass[label].sum(), mass / mass[~label].sum())
    coefficients = np.zeros(features.shape[1])
    # As faint as one draw in a thousand, for labels that can be told apart altogether.
    ridge = 1e-3 * np.eye(len(coefficients))
    for _ in range(8):
        p = 1.0 / (1.0 + np.exp(-np.clip(features @ coefficients, -30.0, 30.0)))
        slope = features.T @ (mass * (label - p)) - ridge @ coefficients
        bend = (features * (mass * p * (1.0 - p))[:, None]).T @ features + ridge
        coefficients += np.linalg.solve(bend, slope)
    return coefficients


def _ordered(value: np.ndarray, label: np.ndarray, mass: np.ndarray) -> float:
    """The probability that of two values, one of each label, that with the label is larger."""
    order = np.argsort(value, kind="stable")
    one = np.where(label, mass, 0.0)[order] / mass[label].sum()
    other = np.where(label, 0.0, mass)[order] / mass[~label].sum()
    return float(one @ (np.cumsum(other) - 0.5 * other))


def is_outside(own_log_q: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Which points lie outside of the region that holds 99.9 % of a density's own draws."""
    return log_q < np.quantile(own_log_q, _OUTSIDE)


def more_than_chance(part: float, n_eff: float) -> bool:
    """Whether this part of so many draws outside of that region is more than should be there."""
    # The edge of the region is known to a quarter, from a few draws beyond it.
    return part >= 3.0 * _OUTSIDE and part * n_eff >= 10.0


def _where(density: Any, z: np.ndarray, weight: np.ndarray) -> str:
    """The middle of draws, by name: the one nearest to their mean."""
    mean = weight @ z / weight.sum()
    middle = z[np.argmin(np.sum((z - mean) ** 2, axis=1))]
    x = np.asarray(density.coordinates.inverse(middle))
    return ", ".join(f"{name}={value:.4g}" for name, value in zip(density.names, x, strict=True))


# ---- verdicts ------------------------------------------------------------------------------------


def _few_draws(n_eff: float, dim: int) -> list[Problem]:
    if n_eff >= 20 * dim:
        return []
    finding = f"the draws are worth {n_eff:.0f} of equal weight for {dim} parameters"
    return [Problem.of("density_draws", finding)]


def _uneven(
    marginals: Mapping[str, Uniformity], projections: Sequence[Uniformity], highest: Uniformity
) -> list[Problem]:
    limit = _CHANCE / (len(marginals) + len(projections) + 1)
    bad = [name for name, one in marginals.items() if one.p_value < limit]
    if bad:
        worst = min(marginals[name].p_value for name in bad)
        what = f"the held-out draws of {', '.join(bad)} are not as the density has them"
        return [Problem.of("density_marginals", f"{what} (p = {worst:.1g})")]
    worst = min(one.p_value for one in projections)
    if worst < limit:
        what = f"along a random direction held-out draws are not as the density (p = {worst:.1g})"
        return [Problem.of("density_shape", what)]
    if highest.p_value < limit:
        what = "regions of highest density do not hold as many held-out draws as they should"
        what = f"{what} (p = {highest.p_value:.1g})"
        return [Problem.of("density_shape", what)]
    return []


def _told_apart(auc: float, error: float) -> list[Problem]:
    if auc < 0.5 + 4.0 * error:
        return []
    what = f"a classifier tells draws from the density's own with {auc:.2f} +- {error:.2f}"
    return [Problem.of("density_shape", f"{what} rather than 1/2")]


def _lost(density: Any, z: np.ndarray, weight: np.ndarray, n_eff: float) -> list[Problem]:
    """Whether draws outside of the region, and their weights, are more than chance has there."""
    part = float(weight.sum())
    if not more_than_chance(part, n_eff):
        return []
    what = f"{100 * part:.2g} % of the draws lie where the density has 0.1 %"
    return [Problem.of("density_lost", f"{what}, as at {_where(density, z, weight)}")]
