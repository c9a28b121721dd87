r"""Posteriors of few hyperparameters by quadrature: no chains, and an error that is known."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..diagnostics import diagnose
from ..errors import InputError
from ..keys import generator
from ..result import Result
from ..status import Problem
from ..target import Target
from ..weights import normalised_weights, systematic
from . import Progress, evaluate, named_draws, prior_points
from .interpolated import Interpolated
from .laplace import Mode, climb, find_modes
from .lattice import Lattice
from .settings import require

MAX_DIM = 3

# Points between the nodes where the interpolated density is compared with the true one, and the
# standard deviation of its logarithm there that means a kink, a jump or a structure in between.
_NUM_TRIALS, _ROUGH = 12, 0.05
# Points where a shortcut is held against the target.
_NUM_COMPARED = 6


@dataclass(frozen=True, kw_only=True)
class QuadratureSampler:
    r"""The trapezoid rule over up to three free hyperparameters, refined to a stated tolerance.

    In unconstrained coordinates, whitened by the curvature at the mode, the posterior is summed
    over a lattice with a spacing of 0.9 standard deviations, exact to some $10^{-9}$ for a
    Gaussian: the error of the trapezoid rule falls exponentially for densities that are smooth
    and vanish at both ends (Trefethen & Weideman 2014, SIAM Review 56, 385). The lattice grows
    from its modes until its rim has no mass, and is refined until log evidence, means and standard
    deviations of the parameters are known to `tolerance` (of the standard deviations). Errors are
    extrapolated from lattices nested in the last one: as much is left as the last step changed,
    times the factor by which changes fell from the step before.

    Where there are very many objects, the modes are sought with some of them, and the lattice is
    evaluated with tables made there (`model.Shortcut`). They are held against the target itself at
    points of the posterior; where they differ by more than `tolerance`, all is done without them.

    The draws are independent and of equal weight, from the interpolated density: stratified, so
    that their means and standard deviations are those of the posterior to some $10^{-3}$ standard
    deviations.

    Args:
        tolerance: goal of the error, see above.
        num_samples: draws.
        num_start: draws of the prior to find modes from.
        max_nodes: evaluations at most; a grid that needs more has not converged.
    """

    tolerance: float = 1e-4
    num_samples: int = 20_000
    num_start: int = 16
    max_nodes: int = 20_000

    def __post_init__(self) -> None:
        require(self, counts=("num_samples", "num_start", "max_nodes"), positive=("tolerance",))

    def run(self, target: Target, key: Any, *, progress: Progress | None = None) -> Result:
        """Sample `target`; see the class and `skycensus.samplers.Sampler`.

        Raises:
            InputError: more than three free hyperparameters, or a likelihood that is NaN or +inf,
                naming the point, or that is zero at every one of the first draws of the prior.
        """
        if not 1 <= target.dim <= MAX_DIM:
            raise InputError(
                f"quadrature is for one to {MAX_DIM} free hyperparameters, and the model has "
                f"{target.dim}; use importance sampling or NUTS."
            )
        prior_key, draw_key = jax.random.split(key)
        run = _Run(self, target, progress)
        density, moments, error = run.solve(prior_key)
        if run.followed is not target and run.shortcut_error(density) > self.tolerance:
            run = _Run(self, target, progress, shortcut=False)
            density, moments, error = run.solve(prior_key)
        draws = named_draws(target, density.draw(self.num_samples, generator(draw_key))[None])
        # Equal weights say that a single chain holds independent draws.
        log_weight = np.zeros((1, self.num_samples))
        status = diagnose(draws, log_weight=log_weight, prior_bounds=target.prior.bounds())
        status = status.plus(*run.problems(error))
        return Result(
            draws,
            status,
            log_weight=log_weight,
            log_evidence=moments.log_total,
            log_evidence_error=error.log_total,
            measures={
                "num_likelihoods": run.used,
                "num_nodes": len(density.lattice.n),
                "quadrature_error": max(error),
                "interpolation_error": run.interpolation_error,
            },
        )

    def longer(self, by: float) -> QuadratureSampler:
        """The same sampler with `by` times as many draws."""
        return replace(self, num_samples=math.ceil(by * self.num_samples))


class Moments(NamedTuple):
    """Log of the sum, and mean and standard deviation of each parameter, (parameter,)."""

    log_total: float
    mean: np.ndarray
    sd: np.ndarray


class Errors(NamedTuple):
    """Of the log of the sum, and the largest of any mean or sd, in standard deviations."""

    log_total: float
    parameters: float


class _Run:
    """One run: what is asked for, and what has been spent."""

    def __init__(
        self,
        settings: QuadratureSampler,
        target: Target,
        progress: Progress | None,
        *,
        shortcut: bool = True,
    ):
        self.settings, self.target, self.progress = settings, target, progress
        self.shortcut = target.shortcut if shortcut else None
        self.followed = target
        self.used = 0
        self.interpolation_error = np.inf
        # Deep enough for a Gaussian; the rim tells whether it is.
        self.depth = max(4.5, -float(np.log(settings.tolerance)))

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Log density at points (n, dim)."""
        self.used += len(x)
        if self.progress:
            self.progress(self.used, self.settings.max_nodes, "evaluating")
        return np.sum(evaluate(self.followed, x), axis=0)

    def shortcut_error(self, density: Interpolated) -> float:
        """How far the target that was followed is from the true one, at points of the posterior."""
        lattice = density.lattice
        weight = normalised_weights(lattice.log_weights())
        index = np.unique(systematic(weight, _NUM_COMPARED, 0.5))
        exact = np.sum(evaluate(self.target, lattice.x[index]), axis=0)
        return float(np.max(np.abs(exact - lattice.log_density[index])))

    def solve(self, key: Any) -> tuple[Interpolated, Moments, Errors]:
        """Grow and refine a lattice; return its density, moments and the errors reached."""
        prior_key, trial_key = jax.random.split(key)
        rng = generator(trial_key)
        lattice, complete = self._first(prior_key)
        while True:
            moments, spacing, rim = self._judge(lattice)
            error = Errors(*(float(e) for e in np.add(spacing, rim)))
            if max(error) <= self.settings.tolerance or not complete:
                density = Interpolated(lattice)
                x, expected = density.trials(_NUM_TRIALS, rng)
                self.interpolation_error = float(np.std(self.log_density(x) - expected))
                if self.interpolation_error <= _ROUGH or not complete:
                    return density, moments, error
            if max(rim) > max(*spacing, 0.3 * self.settings.tolerance):
                self.depth += 3.0
                complete = lattice.grow(lattice.n[:0], self.depth, self._affordable(lattice))
            else:
                finer = lattice.refined()
                complete = finer.grow(lattice.n[:0], self.depth, self._affordable(lattice))
                # A level of which points are missing says less than the one before.
                lattice = finer if complete else lattice

    def problems(self, error: Errors) -> list[Problem]:
        """What the status has to say of the errors."""
        found = []
        if not max(error) <= self.settings.tolerance:
            goal = f"goal {self.settings.tolerance:g}"
            found.append(f"the error of the quadrature is {max(error):.2g} ({goal})")
        if not self.interpolation_error <= _ROUGH:
            rough = f"{self.interpolation_error:.2g} in the logarithm (goal {_ROUGH:g})"
            found.append(f"between the nodes the density is off by {rough}")
        return [Problem.of("tolerance", f"{text}, with {self.used} evaluations") for text in found]

    def _affordable(self, lattice: Lattice) -> int:
        return len(lattice.n) + self.settings.max_nodes - self.used

    def _first(self, key: Any) -> tuple[Lattice, bool]:
        """The lattice of level 0 around the modes, and whether it could be grown."""
        x, value, modes = self._modes(key)
        # A lattice made for the narrowest mode sees them all.
        narrow = min(modes, key=lambda mode: np.linalg.slogdet(mode.scale)[1])
        center, scale = narrow.x, narrow.scale
        for attempt in range(3):
            lattice = Lattice(self.log_density, center, scale)
            near = x[value > max(mode.log_density for mode in modes) - self.depth]
            seeds = lattice.nearest(np.concatenate([[mode.x for mode in modes], near]))
            share = 1.0 if attempt == 2 or len(modes) > 1 else 0.1
            complete = lattice.grow(seeds, self.depth, int(share * self._affordable(lattice)))
            mean, covariance = lattice.moments()
            size, axes = np.linalg.eigh(covariance)
            if share == 1.0 or (complete and size.min() > 0.1 and size.max() < 10.0):
                break
            # The curvature at the mode told little of the posterior's extent.
            center = center + lattice.scale @ mean
            scale = lattice.scale @ axes * np.sqrt(np.maximum(size, 0.01))
        return lattice, complete

    def _modes(self, key: Any) -> tuple[np.ndarray, np.ndarray, list[Mode]]:
        """Draws of the prior, their log densities, and the modes found from there."""
        if self.shortcut is not None:
            self.followed = self.shortcut.coarse()
        x = prior_points(self.target, key, self.settings.num_start)
        x = x[np.isfinite(x).all(axis=1)]
        self.used += len(x)
        log_l, log_p = evaluate(self.followed, x)
        value = log_l + log_p
        if not np.isfinite(value).any():
            raise InputError(
                f"none of {len(x)} prior draws has a likelihood: every one leaves some object "
                "outside the population; use a prior nearer to the data, or raise num_start."
            )
        modes = find_modes(self.log_density, x, value, log_p, num_asked=3)
        if self.shortcut is not None:
            top = self.target.constrain(jnp.asarray(modes[0].x))
            here = {n: np.asarray(v) for n, v in top.items()}
            near = self.shortcut.near(here) if len(modes) == 1 else None
            self.followed = near or self.target
            modes = [climb(self.log_density, mode.x, mode.scale) for mode in modes]
            # What some of the objects said of them does not compare.
            value = np.full(len(x), -np.inf)
        return x, value, modes

    def _judge(self, lattice: Lattice) -> tuple[Moments, Errors, Errors]:
        """Moments, and what the lattice's spacing and its rim leave uncertain in them."""
        # The coordinates too: draws are given their moments.
        values = np.concatenate([self._parameters(lattice.x), lattice.z], axis=1)

        def moments(coarser: int = 0, within: float | None = None) -> Moments:
            return weighted_moments(values, lattice.log_weights(coarser, within))

        best = moments()
        spacing = spacing_error(best, moments(1), moments(2))
        rim = rim_error(best, moments(within=self.depth), moments(within=self.depth - 3.0))
        rounding = float(jnp.finfo(float).eps) * float(np.abs(lattice.high))
        return best, Errors(spacing.log_total + rounding, spacing.parameters), rim

    def _parameters(self, x: np.ndarray) -> np.ndarray:
        """All scalars by which the posterior is told, (point, parameter)."""
        size = self.settings.num_samples
        # As many at once as there will be draws, so that one function is compiled for both.
        padded = np.concatenate([x, np.repeat(x[-1:], -len(x) % size, axis=0)])
        blocks = [
            np.stack(list(named_draws(self.target, block[None]).values()), axis=-1)[0]
            for block in padded.reshape(-1, size, x.shape[1])
        ]
        return np.concatenate(blocks)[: len(x)]


def weighted_moments(values: np.ndarray, log_weight: np.ndarray) -> Moments:
    """Moments of points with values (point, parameter) and log weights (point,)."""
    used = log_weight > -np.inf
    weight, values = normalised_weights(log_weight[used]), values[used]
    mean = weight @ values
    sd = np.sqrt(weight @ (values - mean) ** 2)
    return Moments(float(np.logaddexp.reduce(log_weight[used])), mean, sd)


def spacing_error(best: Moments, before: Moments, earlier: Moments) -> Errors:
    r"""What finer lattices will change, from the changes $e_1$ and $e_2$ of the last two levels.

    $e_2 \min(1, e_2/e_1)$: the next one is smaller by at least the same factor again, where errors
    fall geometrically or faster.
    """
    second = _changes(best, before)
    # A sum that was wholly wrong says nothing about how quickly errors fall.
    first = np.clip(_changes(best, earlier), second, np.maximum(second, 0.3))
    return _errors(second * second / np.maximum(first, 1e-300))


def rim_error(best: Moments, before: Moments, earlier: Moments) -> Errors:
    r"""What more points outside will change, from leaving out those below depths D and D - 3.

    What is beyond a depth, $T e^{-D}$ in an exponential tail, changes by $e_1 - e_2$ between the
    two; the rim below D, worth $e_2$, is in already. A tail that ends sooner leaves no more than
    $e_2^2/e_1$.
    """
    first, second = _changes(best, earlier), _changes(best, before)
    beyond = (first - second) / np.expm1(3.0)
    falling = second * np.minimum(1.0, second / np.maximum(first, 1e-300))
    return _errors(np.maximum(beyond - second, falling))


def _changes(best: Moments, other: Moments) -> np.ndarray:
    """How far means and deviations, in deviations, and the log of the sum are from the best."""
    sd = np.where(best.sd > 0, best.sd, np.inf)
    moved = np.stack([other.mean - best.mean, other.sd - best.sd]) / sd
    return np.abs(np.append(moved.ravel(), other.log_total - best.log_total))


def _errors(changes: np.ndarray) -> Errors:
    return Errors(float(changes[-1]), float(changes[:-1].max()))
