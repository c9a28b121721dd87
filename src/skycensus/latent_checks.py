r"""Whether chains that carry the objects' own parameters were where these have their probability.

$\hat R$ compares chains with each other. Where an object's likelihood has several maxima, chains
that all start at the same wrong one agree, and the hyperparameters that they settle on are wrong by
several standard deviations. What can be known without them is each object's posterior given the
population, $p(\theta_i | d_i, \Lambda)$, from a form that integrates over all maxima (`Grid` or
another with `draw`): a sampler that has converged must have visited nearly all of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .errors import InputError, did_you_mean
from .model import HierarchicalModel
from .objects import object_posteriors
from .result import Result
from .status import Problem

# Between neighbouring draws of a converged chain of some hundred effective ones lies less than
# this part of the posterior; what lies in a wider gap was not visited.
_WIDEST_GAP = 0.02

COVERAGE_GOAL = 0.9


def visited_share(visited: ArrayLike, exact: ArrayLike) -> np.ndarray:
    r"""The part of each object's posterior that lies where a chain went, (object,).

    It is one less what lies in gaps: between neighbouring values of `visited`, below the least and
    above the greatest, wherever such an interval holds more than 2 % of the draws `exact`.

    Args:
        visited: (draw, object) of the chains.
        exact: (draw, object) from the posterior, at least some hundred.
    """
    visited, exact = np.asarray(visited, float), np.asarray(exact, float)
    out = np.empty(exact.shape[1])
    for i in range(len(out)):
        gap = np.searchsorted(np.sort(visited[:, i]), exact[:, i])
        count = np.bincount(gap)
        out[i] = 1.0 - count[count > _WIDEST_GAP * len(exact)].sum() / len(exact)
    return out


def latent_coverage(
    visited: Mapping[str, ArrayLike],
    model: HierarchicalModel,
    result: Result,
    *,
    key: Any,
    num_draws: int = 1000,
) -> np.ndarray:
    r"""`visited_share` of every object, the least over the parameters that are compared.

    The exact draws are made at the hyperparameters of `result` itself. A run is so held against its
    own conditionals: right or wrong in $\Lambda$, its $\theta_i$ must follow $p(\theta_i|d_i,
    \Lambda)$.

    Args:
        visited: parameter -> (..., object), the chains' draws; one suffices, that in which the
            maxima lie apart (a period).
        model: the same objects in a form that integrates over every maximum and can draw.
        result: the run that is judged, with the hyperparameters of `model` among its draws.
        key: where the exact draws come from.
        num_draws: of these.

    Raises:
        InputError: parameters that the model does not draw, or another number of objects.
    """
    hyper = {name: result.draws[name] for name in model.prior.names if name in result.draws}
    if missing := [name for name in model.prior.names if name not in hyper]:
        raise InputError(
            f"the result has no draws of the model's hyperparameter '{missing[0]}'"
            f"{did_you_mean(missing[0], result.draws)}; give the run that is to be judged."
        )
    plain = dataclasses.replace(
        result, draws=hyper, latents={}, derived={}, log_marginals=None,
        log_marginal_variances=None, n_eff=None, marginal_draws=None,
    )  # fmt: skip
    exact = object_posteriors(model, plain, key=key, num_draws=num_draws).draws
    shares = []
    for name, x in visited.items():
        if name not in exact:
            raise InputError(
                f"the model's objects have no parameter '{name}'{did_you_mean(name, exact)}; they "
                f"have {sorted(exact)}."
            )
        x = np.asarray(x, float)
        if x.shape[-1] != exact[name].shape[1]:
            raise InputError(
                f"'{name}' was visited for {x.shape[-1]} objects, but the model has "
                f"{exact[name].shape[1]}; give the same objects in the same order."
            )
        shares.append(visited_share(x.reshape(-1, x.shape[-1]), exact[name]))
    return np.min(shares, axis=0)


def with_latent_check(
    result: Result,
    model: HierarchicalModel,
    *,
    key: Any,
    visited: Mapping[str, ArrayLike] | None = None,
    goal: float = COVERAGE_GOAL,
    num_draws: int = 1000,
) -> Result:
    r"""`result` with the problem `stuck_latents` in its status where objects are below `goal`.

    The smallest `latent_coverage` is added to the measures. `visited` are by default the result's
    latents; the other arguments are those of `latent_coverage`.

    Raises:
        InputError: nothing was visited, or see `latent_coverage`.
    """
    visited = result.latents if visited is None else visited
    if not visited:
        raise InputError("the result has no latents to check; give the draws visited by name.")
    share = latent_coverage(visited, model, result, key=key, num_draws=num_draws)
    problems = []
    if (low := share < goal).any():
        worst = np.argsort(share)[: min(5, int(low.sum()))]
        listed = ", ".join(f"{share[i]:.2g} of {model.likelihood.names[i]}" for i in worst)
        problems.append(
            Problem.of(
                "stuck_latents",
                f"the chains visited too little of the posterior of {int(low.sum())} of "
                f"{len(share)} objects ({listed}; goal {goal:g})",
            )
        )
    measures = {**result.measures, "latent_coverage_min": float(share.min())}
    return dataclasses.replace(result, status=result.status.plus(*problems), measures=measures)
