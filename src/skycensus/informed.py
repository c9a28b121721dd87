r"""What a fitted population says of each object: informed posteriors, memberships, and a check.

The posterior of one object given all the data is its own, reweighted for every draw of the
hyperparameters and averaged,

$$p(\theta_i | \mathbf d) = \int \frac{p(d_i|\theta_i)\,p(\theta_i|\Lambda)}{m_i(\Lambda)}\,
  p(\Lambda | \mathbf d)\, d\Lambda,$$

each term normalised by its own $m_i(\Lambda)$: then the object counts once, although it is among
the data that the hyperparameters were inferred from (Moore & Gerosa 2021, arXiv:2108.02462).
Selection does not enter: the object was detected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .density import Density, Population, Theta, log_terms
from .errors import InputError, did_you_mean
from .likelihood import Samples
from .likelihood.samples import Rows
from .model import HierarchicalModel
from .predictive import Hyperparameters, detected_predictive, hyperparameter_draws
from .result import Result
from .weights import kish, quantile, systematic


@dataclass(frozen=True, eq=False)
class InformedObjects:
    """Population-informed posteriors, as weights of the objects' own draws.

    Attributes:
        names: of the objects.
        draws: for every object, name -> (draw,), of equal weight in its own posterior.
        weights: for every object, (draw,), which sum to one.
        n_eff: (object,), Kish's number of the weighted draws: below some tens the object has
            too few draws where the population puts it, and its summaries are rough.
    """

    names: tuple[str, ...]
    draws: Sequence[dict[str, np.ndarray]]
    weights: Sequence[np.ndarray]
    n_eff: np.ndarray

    def summary(self, parameter: str) -> dict[str, dict[str, np.ndarray]]:
        """`original` and `informed`, each with `mean`, `5`, `50`, `95` (per cent): (object,)."""
        columns = [self._column(draws, parameter) for draws in self.draws]
        out = {}
        for label in ("original", "informed"):
            equal = label == "original"
            mean = [
                np.average(x, weights=None if equal else w)
                for x, w in zip(columns, self.weights, strict=True)
            ]
            levels = [
                quantile(x, [0.05, 0.5, 0.95], None if equal else _log(w))
                for x, w in zip(columns, self.weights, strict=True)
            ]
            low, middle, high = np.transpose(levels)
            out[label] = {"mean": np.array(mean), "5": low, "50": middle, "95": high}
        return out

    def resample(
        self, parameter: str, num: int, *, seed: int | Sequence[int] = 0
    ) -> list[np.ndarray]:
        """`num` draws of equal weight of every object's informed posterior (systematic)."""
        offset = np.random.default_rng(seed).random(len(self.names))
        out = []
        for u, draws, weights in zip(offset, self.draws, self.weights, strict=True):
            out.append(self._column(draws, parameter)[systematic(weights, num, u)])
        return out

    @staticmethod
    def _column(draws: dict[str, np.ndarray], parameter: str) -> np.ndarray:
        if parameter not in draws:
            raise InputError(
                f"the objects have no parameter '{parameter}'{did_you_mean(parameter, draws)}; "
                f"they have {sorted(draws)}."
            )
        return draws[parameter]


def informed_objects(
    model: HierarchicalModel, result: Result, *, key: Any, num_draws: int = 200
) -> InformedObjects:
    r"""Weigh every object's draws by the population, averaged over the posterior.

    $$W_{ij} = \frac1S \sum_s \frac{w_{ij}(\Lambda_s)}{\sum_k w_{ik}(\Lambda_s)},\qquad
      w_{ij}(\Lambda) = \frac{p(\theta_{ij}|\Lambda)}{p_\mathrm{ref}(\theta_{ij})}.$$

    One block of draws is in memory at a time, besides the weights.

    Args:
        num_draws: S, draws of the hyperparameters.

    Raises:
        InputError: objects that are not known by draws, or one without a draw inside the population
            at some draw of the hyperparameters (named).
    """
    samples = _samples(model.likelihood)
    hyper = _device(hyperparameter_draws(result, num_draws, key=key, prior=model.prior))
    log_sum = _log_sums(model, samples, hyper)
    values = mean_shares(model.population, samples, hyper, log_sum, jnp.ones(log_sum.shape))
    rows = samples.map_rows(lambda rows: rows)
    weights = _per_object(values, rows, samples)
    weights = [w / w.sum() for w in weights]
    columns = {name: _per_object(x, rows, samples) for name, x in rows.theta.items()}
    draws = [{name: x[i] for name, x in columns.items()} for i in range(len(samples.names))]
    n_eff = np.array([kish(_log(w)) for w in weights])
    return InformedObjects(samples.names, draws, weights, n_eff)


def membership(
    model: HierarchicalModel, result: Result, *, key: Any, num_draws: int = 200
) -> dict[str, np.ndarray]:
    r"""Probability that each object belongs to each leaf of a mixture,

    $$P(k \mid d_i, \Lambda) = \frac{m_{ik}(\Lambda)}{\sum_l m_{il}(\Lambda)},\qquad
      m_{ik} = \int p(d_i|\theta)\, w_k\, p_k(\theta|\Lambda)\, d\theta,$$

    with the rates in $w_k$. Works with every form of likelihood.

    Returns:
        Path of the leaf -> (draw, object), summing to one over the leaves; the mean over the draws
        is the membership given all the data.

    Raises:
        InputError: an object with no weight in any leaf at some draw of the hyperparameters.
    """
    hyper = _device(hyperparameter_draws(result, num_draws, key=key, prior=model.prior))
    first = {name: x[0] for name, x in hyper.items()}
    leaves = _leaves(model.population, first)
    each = {}
    for leaf in leaves:
        part = _leaf_population(model.population, leaf)
        staged = (
            model.likelihood.stage(part, first)
            if hasattr(model.likelihood, "stage")
            else _Unstaged(model.likelihood, part)
        )
        values = jax.jit(lambda h, s=staged: jax.lax.map(lambda x: s.log_marginal(x).value, h))
        each[leaf] = np.asarray(values(hyper))
    stacked = np.stack(list(each.values()))
    top = stacked.max(axis=0)
    _require_finite(top, model.likelihood.names)  # type: ignore[attr-defined]
    weight = np.exp(stacked - top)
    return dict(zip(leaves, weight / weight.sum(axis=0), strict=True))


@dataclass(frozen=True, eq=False)
class PredictiveCheck:
    """Observed objects beside as many that the model predicts, for each draw of its posterior.

    Attributes:
        observed: parameter name -> (draw, object), one draw of every object's informed posterior.
        predicted: the same of as many detected objects of the population.
    """

    observed: dict[str, np.ndarray]
    predicted: dict[str, np.ndarray]

    def cumulative(self, parameter: str, grid: Any) -> tuple[np.ndarray, np.ndarray]:
        """Fractions of objects below the grid's values, (draw, grid): observed, predicted."""
        grid = np.asarray(grid, float)

        def below(x: np.ndarray) -> np.ndarray:
            rows = [np.searchsorted(np.sort(row), grid, side="right") for row in x]
            return np.stack(rows) / x.shape[1]

        return below(self.observed[parameter]), below(self.predicted[parameter])


def observed_predictive(
    model: HierarchicalModel, result: Result, *, key: Any, num_draws: int = 200
) -> PredictiveCheck:
    r"""Draw the observed objects and a predicted catalogue of the same size, for a check.

    For each draw of the hyperparameters $\Lambda$: $\theta_i \sim p(\theta_i|d_i,\Lambda)$ for
    every object, and as many detected objects of the population at the same $\Lambda$. Where the
    model is right the two are alike (Fishbach, Farr & Holz 2020, arXiv:1911.05882).

    Raises:
        InputError: objects that are not known by draws, no selection, or one of another kind.
    """
    samples = _samples(model.likelihood)
    if model.selection is None:
        raise InputError("the model has no selection; a predicted catalogue needs one.")
    draw_key, object_key, predicted_key = jax.random.split(key, 3)
    hyper = _device(hyperparameter_draws(result, num_draws, key=draw_key, prior=model.prior))
    observed = _pick(model.population, samples, hyper, object_key)
    predicted = detected_predictive(
        model.population, hyper, model.selection, key=predicted_key, num=len(samples.names)
    )
    common = [name for name in observed if name in predicted]
    return PredictiveCheck(
        {name: observed[name] for name in common}, {name: predicted[name] for name in common}
    )


def _pick(
    population: Population, samples: Samples, hyper: dict[str, Array], key: Any
) -> dict[str, np.ndarray]:
    """One draw of every object for each of the hyperparameters: name -> (draw, object)."""
    keys = jax.random.split(key, len(next(iter(hyper.values()))))

    def run(samples: Samples, hyper: Any, keys: Any) -> Any:
        return jax.lax.map(lambda each: samples.draw(population(each[0]), each[1]), (hyper, keys))

    chosen = {n: np.asarray(x) for n, x in jax.jit(run)(samples, hyper, keys).items()}
    for value in chosen.values():
        _require_finite(value, samples.names)
    return chosen


def mean_shares(
    population: Population, samples: Samples, hyper: Any, log_sum: Array, factor: Array
) -> Array:
    r"""$\sum_s c_{is}\, w_{ij}(\Lambda_s) / \sum_k w_{ik}(\Lambda_s)$ for every draw.

    Args:
        population: hyperparameters -> density.
        samples: the objects i and their draws j.
        hyper: name -> (point,).
        log_sum: $\ln \sum_k w_{ik}(\Lambda_s)$, finite, (point, object).
        factor: $c_{is}$, (point, object).

    Returns:
        Array (row, length) over the rows of `Samples.map_rows`.
    """

    def run(samples: Samples, *points: Any) -> Any:
        def average(rows: Rows) -> Any:
            def add(total: Array, point: Any) -> Any:
                h, sums, factors = point
                log_weight = population(h).log_prob(rows.theta) - rows.log_ref
                share = jnp.exp(log_weight - sums[rows.owner][:, None])
                return total + factors[rows.owner][:, None] * share, None

            start = jnp.zeros(rows.log_ref.shape, log_sum.dtype)
            return jax.lax.scan(add, start, points)[0]

        return samples.map_rows(average)

    return jax.jit(run)(samples, hyper, log_sum, factor)


# ---- parts ---------------------------------------------------------------------------------------


class _Leaf:
    """One leaf of a mixture, with its weight, as a density."""

    def __init__(self, density: Density, leaf: str):
        self.density, self.leaf, self.names = density, leaf, tuple(density.names)

    def log_prob(self, theta: Theta) -> Array:
        return log_terms(self.density, theta)[self.leaf]

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> dict[str, Array]:
        raise NotImplementedError("a leaf is only evaluated.")


@dataclass(frozen=True)
class _Unstaged:
    likelihood: Any
    population: Population

    def log_marginal(self, hyperparameters: Hyperparameters) -> Any:
        return self.likelihood.log_marginal(self.population(hyperparameters))


def _leaf_population(population: Population, leaf: str) -> Population:
    return lambda h: _Leaf(population(h), leaf)


def _leaves(population: Population, h: Hyperparameters) -> tuple[str, ...]:
    found: dict[str, None] = {}

    def look() -> Array:
        density = population(h)
        found.update(dict.fromkeys(log_terms(density, {n: jnp.ones(1) for n in density.names})))
        return jnp.zeros(())

    jax.eval_shape(look)
    return tuple(found)


def _samples(likelihood: Any) -> Samples:
    if not isinstance(likelihood, Samples):
        raise InputError(
            f"the objects are known by a {type(likelihood).__name__}, which has no draws to weigh; "
            "this needs Samples."
        )
    return likelihood


def _device(draws: dict[str, np.ndarray]) -> dict[str, Array]:
    return {name: jnp.asarray(x, float) for name, x in draws.items()}


def _log_sums(model: HierarchicalModel, samples: Samples, hyper: dict[str, Array]) -> Array:
    """Log of the sum of each object's weights at each draw of the hyperparameters."""

    def run(data: Any, hyper: Any) -> Array:
        return jax.lax.map(lambda h: model.log_marginals(h, data).value, hyper)

    value = jax.jit(run)(model.data, hyper)
    _require_finite(np.asarray(value), samples.names)
    return value + jnp.log(samples.num_drawn)


def _require_finite(values: np.ndarray, names: Sequence[str]) -> None:
    """Raise for the first object (last axis) that has a value that is not finite."""
    bad = ~np.isfinite(values)
    if bad.any():
        i = int(np.flatnonzero(bad.any(axis=0))[0])
        raise InputError(
            f"{names[i]} has no draw inside the population, or a density that is NaN, at "
            f"{int(bad[:, i].sum())} of {len(bad)} draws of the hyperparameters; these are not "
            "draws of this model's posterior."
        )


def _per_object(values: Any, rows: Rows, samples: Samples) -> list[np.ndarray]:
    """Split (rows, length) into one array per object, without the padding."""
    owner = np.asarray(rows.owner)
    order = np.argsort(owner, kind="stable")
    order = order[np.searchsorted(owner[order], 0) :]
    present = np.asarray(rows.log_ref)[order] < np.inf
    counts = np.asarray(samples.num_draws).astype(int)
    return np.split(np.asarray(values)[order][present], np.cumsum(counts)[:-1])


def _log(weights: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(weights)
