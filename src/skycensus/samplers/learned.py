r"""Densities learned in the unit cube: what samplers that begin with another run share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from ..checkpoint import Part
from ..errors import InputError
from ..estimators import Estimate
from ..estimators.fit import fit_density
from ..estimators.gaussian import GaussianMixture
from ..estimators.learned import LearnedDensity
from ..estimators.pool import Pool
from ..keys import even_points, generator
from ..prior import Prior
from ..result import Result
from ..status import Problem
from ..target import Target
from ..weights import kish, normalised_weights, systematic
from . import Progress, Sampler
from .nested import Nested
from .until import run_once

# A run to learn from need not be exact: points enough to meet the modes, and short chains.
_NUM_LIVE, _SWEEPS = 1000, 1
# Draws to fit to: a proposal need not be better than so many make it.
_MOST_DRAWS = 3000
# Draws of a learned density that tell how much of it is where.
_NUM_OWN = 4000

# Names of what draws of a `CubeTarget` have beside the parameters; no parameter is called so.
_COORDINATE, LOG_DENSITY = "unit cube {}", "unit cube log density"


class CubeTarget(Target):
    r"""A target whose parameters are points of the unit cube, for any sampler.

    The prior is uniform on the cube, and u there stands for the parameters that
    `target.from_unit_cube` has for it. With a density q on the cube the parameters are instead the
    points v that q's own map from the cube takes to u, and the likelihood is
    $L^*(v) = L(u(v)) / q(u(v))$: so $\int L^*\,dv = \int L\,du$, the same evidence for any q, and a
    draw of the posterior of v is one of u.

    Draws have the parameters of `target` as well, and the log of q.

    Raises:
        InputError: a prior that is not known in the unit cube, naming it.
    """

    def __init__(self, target: Target, density: LearnedDensity | None = None):
        self._cube, self._density = target.in_unit_cube(), density
        prior = Prior({name: dist.Uniform(0.0, 1.0) for name in coordinates(target)})
        super().__init__(prior, self._log_ratio, data=target.data)
        if target.smooth is not None:
            smooth = target.smooth
            self.smooth = lambda: CubeTarget(smooth(), density)

    def _place(self, free: Mapping[str, Any]) -> tuple[Array, Array]:
        """The point of the cube that stands for the parameters, and the log of q there."""
        v = jnp.stack([free[name] for name in self.names])
        if self._density is None:
            return v, jnp.zeros(())
        u = inside(_columns(self._density.names, self._density.from_unit_cube(v)))
        return u, self._density.log_prob(dict(zip(self._density.names, u, strict=True)))

    def _log_ratio(self, free: Mapping[str, Any], data: Any) -> Array:
        u, log_density = self._place(free)
        return self._cube.log_likelihood(u, data) - log_density

    def _with_parameters(self, free: dict[str, Array]) -> dict[str, Array]:
        u, log_density = self._place(free)
        return {**free, **self._cube.constrain(u), LOG_DENSITY: log_density}

    def constrain(self, x: Array) -> dict[str, Array]:
        return self._with_parameters(super().constrain(x))

    def from_unit_cube(self, u: Array) -> dict[str, Array]:
        return self._with_parameters(super().from_unit_cube(u))


class CubeProposal:
    """A density on the unit cube as samplers of weighted draws know one: see `StudentTMixture`."""

    def __init__(self, density: LearnedDensity):
        self._density = density

    def log_prob(self, u: np.ndarray) -> np.ndarray:
        """Log density at points (n, dim)."""
        theta = dict(zip(self._density.names, np.asarray(u).T, strict=True))
        return np.asarray(self._density.log_prob(theta), float)

    def sample(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Draw `num` points (num, dim): the map from the cube of `even_points`."""
        v = even_points(rng, num, self._density.dim)
        columns = self._density.from_unit_cube(jnp.asarray(v))
        return np.asarray(inside(_columns(self._density.names, columns)), float)


def coordinates(target: Target) -> tuple[str, ...]:
    """Names of the coordinates of the target's unit cube."""
    return tuple(_COORDINATE.format(i) for i in range(target.dim))


def inside(u: Array) -> Array:
    """Points of the closed cube, moved off its faces: there a parameter may be infinite."""
    eps = jnp.finfo(u.dtype)
    return jnp.clip(u, eps.tiny, 1.0 - eps.epsneg)


def _columns(names: tuple[str, ...], theta: Mapping[str, Array]) -> Array:
    return jnp.stack([theta[name] for name in names], axis=-1)


def learn(
    key: Any,
    target: Target,
    u: np.ndarray,
    log_weight: np.ndarray | None,
    *,
    kind: str,
    fit: Mapping[str, Any],
    prior_share: float,
) -> LearnedDensity:
    r"""The defensive mixture $(1 - \epsilon)\, q + \epsilon\, \pi$ on the unit cube.

    q is fitted to draws u (n, dim) with log weights (n,); the prior $\pi$ is one on the cube. So no
    ratio $\pi / q$ is above $1/\epsilon$ (Hesterberg 1995, Technometrics 37, 185).

    Raises:
        InputError: draws that no density can be fitted to.
    """
    u, log_weight = _resampled(key, u, np.zeros(len(u)) if log_weight is None else log_weight)
    columns = dict(zip(coordinates(target), u.T, strict=True))
    support = dict.fromkeys(columns, (0.0, 1.0))
    try:
        found = fit_density(
            key, columns, log_weight, kind=kind, support=support, report=False, **fit
        )
    except InputError as error:
        raise InputError(
            f"no proposal can be learned from {len(u)} draws: {error} Let the first run make more "
            "draws, or give another kind."
        ) from None
    return _with_prior(found, prior_share)


def unforeseen(
    rng: np.random.Generator,
    density: LearnedDensity,
    log_q: np.ndarray,
    log_weight: np.ndarray,
    prior_share: float,
) -> Problem | None:
    r"""A problem where the posterior has more than q has told, if it has.

    Looked at is the part of the posterior where a draw of $q_\epsilon$ is more likely one of the
    prior than of q, $(1 - \epsilon)\,q < \epsilon\,\pi$. A mode that the first run has not met is
    there, if draws of the prior have met it. Of q itself a part is there, too: up to three times
    as much and two per cent are tolerated.

    Args:
        density: $q_\epsilon$ of `learn`.
        log_q: of draws of the posterior, (n,); `log_weight` their log weights.
    """
    edge = math.log(2.0 * prior_share)
    there = normalised_weights(log_weight)[log_q < edge].sum()
    own = CubeProposal(density)
    own_q = own.log_prob(own.sample(rng, _NUM_OWN))
    # The part of the draws of the mixture that are draws of q.
    learned = np.maximum(1.0 - prior_share * np.exp(-own_q), 0.0)
    expected = learned[own_q < edge].sum() / learned.sum()
    if there <= 0.02 + 3.0 * expected:
        return None
    said = f"{there:.0%} of the posterior lies where the learned density has next to nothing"
    return Problem.of("unforeseen", f"{said}: the first run did not meet it, nor perhaps more")


def _resampled(key: Any, u: np.ndarray, log_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As many draws as they are worth: those of next to no weight cost a fit as much time."""
    num = min(math.ceil(kish(log_weight)), _MOST_DRAWS)
    chosen = systematic(normalised_weights(log_weight), num, generator(key).random())
    index, count = np.unique(chosen, return_counts=True)
    return u[index], np.log(count)


def _with_prior(density: LearnedDensity, share: float) -> LearnedDensity:
    # The probits of uniform numbers are standard normal, and z is linear in them.
    place = density.coordinates
    scale = jnp.linalg.inv(place.root)
    prior = GaussianMixture(jnp.zeros(1), -(scale @ place.mean)[None], scale[None])
    members: list[Any] = [_apart(density.estimate), prior]
    mixed = Pool(members, [1.0 - share, share])
    return LearnedDensity(density.names, place, mixed)


def _apart(estimate: Estimate) -> Estimate:
    """The same density, with mixtures of Gaussians as sums that choose a component first.

    Their own map from the cube goes through the distribution of one coordinate after the other:
    slower by far, and where components are apart it stretches the space between them.
    """

    def is_mixture(node: Any) -> bool:
        return isinstance(node, GaussianMixture)

    def split(node: Any) -> Any:
        if not is_mixture(node) or len(node.log_weight) == 1:
            return node
        weight = np.exp(np.asarray(node.log_weight))
        pairs = zip(node.loc, node.scale_tril, strict=True)
        alone: list[Any] = [
            GaussianMixture(jnp.zeros(1), loc[None], root[None]) for loc, root in pairs
        ]
        return Pool(alone, weight)

    return jax.tree.map(split, estimate, is_leaf=is_mixture)


def parameter_draws(found: Result) -> dict[str, np.ndarray]:
    """Draws of a `CubeTarget` without what they have beside the parameters."""
    prefix = _COORDINATE.format("")
    return {name: x for name, x in found.draws.items() if not name.startswith(prefix)}


# ---- the run before ------------------------------------------------------------------------------


class First(NamedTuple):
    """What a first run found: points of the cube (n, dim), log weights (n,), and what it cost."""

    u: np.ndarray
    log_weight: np.ndarray | None
    num_likelihoods: float
    by: str

    def note(self) -> Problem:
        """For the status of what was learned from it."""
        told = f"the proposal was learned from {len(self.u)} draws of {self.by}"
        return Problem.of("learned", f"{told} ({self.num_likelihoods:.4g} likelihoods)")


def default_first(dim: int) -> Nested:
    """Nested sampling at a low resolution."""
    return Nested(num_live=_NUM_LIVE, num_inner_steps=_SWEEPS * dim)


def first_run(
    sampler: Sampler | None, target: Target, key: Any, progress: Progress | None, part: Part
) -> First:
    """Run `sampler` on the unit cube of `target`; None is nested sampling at a low resolution.

    Raises:
        InputError: latent parameters of objects, and what the sampler raises.
    """
    if target.num_latent:
        raise InputError(
            "a proposal can be learned for hyperparameters alone, not for latent parameters of "
            "objects; use NUTS."
        )
    chosen = sampler or default_first(target.dim)
    # Kept with the target, so that it is compiled once for all runs.
    cube = target.__dict__.setdefault("_as_cube_target", CubeTarget(target))
    found = run_once(chosen, cube, key, progress, part)
    u = np.stack([np.ravel(found.draws[name]) for name in coordinates(target)], axis=-1)
    log_weight = None if found.log_weight is None else np.ravel(found.log_weight)
    calls = found.measures.get("num_likelihoods", math.nan)
    return First(u, log_weight, calls, type(chosen).__name__)
