r"""Data against data that the fitted model makes: predictive checks of objects known by a formula.

Two questions are asked with the same replicated data. Is the population right: are the data of new
objects, $\theta \sim p(\theta|\Lambda)$ with $\Lambda$ from the posterior, like those observed? And
is the formula right: do each object's own parameters, drawn from its posterior, explain its data?
See Gelman, Meng & Stern (1996, Statistica Sinica 6, 733) for such checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import gammaincc

from .errors import InputError
from .keys import generator
from .model import HierarchicalModel
from .predictive import hyperparameter_draws, posterior_predictive
from .result import Result

# Replicated numbers that are kept.
_MOST_NUMBERS = 2 * 10**7


class Measurements(NamedTuple):
    r"""Gaussian measurements $d_j \sim \mathcal N(f_j(\theta_i), \sigma_j^2)$ of objects i.

    Attributes:
        values: (datum,).
        owner: (datum,) the number i of each one's object, ascending.
        predict: theta, name -> (..., object), to $f$ and $\sigma$ that broadcast to (..., datum).
        label: what is compared: the datum of each object, or the standard deviation of its data
            where objects have more than one.
    """

    values: np.ndarray
    owner: np.ndarray
    predict: Callable[[Mapping[str, np.ndarray]], tuple[Any, Any]]
    label: str

    @property
    def counts(self) -> np.ndarray:
        """Data of each object, (object,)."""
        return np.bincount(self.owner)

    def statistic(self, values: np.ndarray) -> np.ndarray:
        """The datum of each object, or the standard deviation of its data: (..., object)."""
        if (counts := self.counts).max() == 1:
            return values
        first = np.cumsum(counts) - counts
        mean = np.add.reduceat(values, first, axis=-1) / counts
        square = (values - mean[..., self.owner]) ** 2
        return np.sqrt(np.add.reduceat(square, first, axis=-1) / counts)

    def replicate(self, theta: Mapping[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Data of objects with these parameters: (..., datum)."""
        mean, error = self.predict(theta)
        return rng.normal(mean, error)

    def misfit(self, theta: Mapping[str, np.ndarray]) -> np.ndarray:
        r"""$\chi^2$ of each object's data at these parameters: (..., object)."""
        mean, error = self.predict(theta)
        first = np.cumsum(self.counts) - self.counts
        return np.add.reduceat(((self.values - mean) / error) ** 2, first, axis=-1)


@dataclass(frozen=True, eq=False)
class DataCheck:
    r"""The data, and what the model makes in their place.

    Attributes:
        names, label: of the objects, and of the statistic.
        counts: (object,) data of each object.
        observed: (object,) the statistic of the data.
        predicted: (draw, object) that of new objects of the fitted population, measured with the
            same errors (at the same times, with the same known columns).
        prior: the same before the fit; None without prior draws.
        misfit: (draw, object) $\chi^2$ of the data at the objects' own posterior draws; None where
            each object has one datum, which its parameters always explain.
    """

    names: tuple[str, ...]
    label: str
    counts: np.ndarray
    observed: np.ndarray
    predicted: np.ndarray | None
    prior: np.ndarray | None
    misfit: np.ndarray | None

    @property
    def pit(self) -> np.ndarray:
        """Share of predicted statistics below each observed one, (object,): uniform if all is well.

        Raises:
            InputError: nothing was predicted.
        """
        return np.mean(self._predicted() < self.observed, axis=0)

    @property
    def tail_probability(self) -> float:
        r"""How often predicted data are further from the prediction than the observed ones.

        The distance is that of Kolmogorov between `pit` and the uniform distribution, for the
        observed objects and for those of each draw: the probability is near zero where the
        population is wrong, whatever the number of objects.
        """
        predicted = self._predicted()
        rank = np.argsort(np.argsort(predicted, axis=0), axis=0)
        distance = _distance((rank + 0.5) / len(predicted))
        return float(np.mean(distance >= _distance(self.pit[None])[0]))

    @property
    def misfit_probability(self) -> np.ndarray:
        r"""(object,) probability of a larger $\chi^2$ in replicated data of the same objects.

        It is close to zero for objects that the formula, or the stated errors, do not explain. That
        the parameters were fitted to the data makes it rather too large than too small.

        Raises:
            InputError: each object has a single datum.
        """
        if self.misfit is None:
            raise InputError("objects with one datum each have no misfit; look at `pit`.")
        return np.mean(gammaincc(0.5 * self.counts, 0.5 * self.misfit), axis=0)

    def _predicted(self) -> np.ndarray:
        if self.predicted is None:
            raise InputError("a single object has no population to be predicted from.")
        return self.predicted


def new_objects(
    model: HierarchicalModel, result: Result, *, key: Any, num_draws: int = 200
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Objects of the population after and before the fit: name -> (draw, object) each.

    There are as many as the model has, with the same known columns; fewer draws with many objects.
    Without prior draws in the result the second is empty.
    """
    hyper_key, theta_key = jax.random.split(key)
    names = model.likelihood.names  # type: ignore[attr-defined]
    num = max(16, min(num_draws, _MOST_NUMBERS // len(names)))
    points = hyperparameter_draws(result, num, key=hyper_key, prior=model.prior)
    # One program for both: it takes longer to compile than to run.
    if result.prior_draws:
        points = {n: np.append(x, np.resize(result.prior_draws[n], num)) for n, x in points.items()}
    theta = posterior_predictive(
        model.population,
        points,
        key=theta_key,
        num=len(names),
        given=getattr(model.likelihood, "given", None),
    )
    after = {name: x[:num] for name, x in theta.items()}
    return after, {name: x[num:] for name, x in theta.items()} if result.prior_draws else {}


def predictive_check(
    measured: Measurements,
    *,
    key: Any,
    names: Sequence[str],
    predicted: Mapping[str, np.ndarray] | None = None,
    prior: Mapping[str, np.ndarray] | None = None,
    objects: Mapping[str, np.ndarray] | None = None,
) -> DataCheck:
    """Replicate the data at draws of parameters, name -> (draw, object); see `DataCheck`.

    Args:
        measured: the data.
        key: where all randomness comes from.
        names: of the objects.
        predicted, prior: parameters of new objects after and before the fit (`new_objects`).
        objects: draws of the objects' own parameters (`ObjectPosteriors.draws`), for the misfit.
    """
    rng = generator(key)

    def replicated(theta: Mapping[str, np.ndarray] | None) -> np.ndarray | None:
        return measured.statistic(measured.replicate(theta, rng)) if theta else None

    misfit = None
    if objects and measured.counts.max() > 1:
        most = max(1, _MOST_NUMBERS // len(measured.values))
        misfit = measured.misfit({name: x[:most] for name, x in objects.items()})
    return DataCheck(
        tuple(names),
        measured.label,
        measured.counts,
        measured.statistic(measured.values),
        replicated(predicted),
        replicated(prior),
        misfit,
    )


def _distance(shares: np.ndarray) -> np.ndarray:
    """Kolmogorov's distance of each set (set, object) from the uniform distribution."""
    ranked = np.sort(shares, axis=1)
    num = shares.shape[1]
    step = np.arange(num + 1) / num
    return np.maximum(step[1:] - ranked, ranked - step[:-1]).max(axis=1)
