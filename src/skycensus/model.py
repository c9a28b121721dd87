r"""The one place where prior, population, likelihood and selection meet."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .density import Population
from .errors import InputError
from .likelihood import Likelihood, LogMarginal
from .likelihood.latent import Latent
from .prior import Prior
from .target import Hyperparameters, Shortcut, Target

# From so many objects on, a sampler may take a shortcut, and look at so many of them first.
_MANY_OBJECTS, _FEW_OBJECTS = 50_000, 4096


class LogLikelihood(NamedTuple):
    """The log likelihood of the hyperparameters and the Monte Carlo variance of that number."""

    value: Array
    variance: Array


class HierarchicalModel:
    r"""Objects with a common population, seen through a selection.

    With object log marginals $\ln m_i$ and the detected fraction (or detected rate) $m_\det$, both
    of the population density or rate density $\rho(\theta|\Lambda)$,

    $$\text{poisson:}\quad \ln L = \sum_i \ln m_i - T\,m_\det, \qquad
      \text{shape:}\quad \ln L = \sum_i \ln m_i - N \ln m_\det,$$

    (Mandel, Farr & Gair 2019, arXiv:1809.02063; Loredo 2004). The Monte Carlo variance of $\ln L$
    is $\sum_i \operatorname{var}_i + (T m_\det)^2 \operatorname{var}_\det$, or $N^2
    \operatorname{var}_\det$ (Farr 2019; Talbot & Golomb 2023, arXiv:2304.06138).

    Args:
        prior: the prior of all hyperparameters (patterns are resolved here).
        population: hyperparameters -> density; a rate density for "poisson".
        likelihood: the objects.
        selection: a likelihood with one object, the detection; none means that all is seen.
        rate: "poisson" or "shape".
        log_exposure: $\ln T$: for injections with density in observed units, the log of the time
            (and of any volume) that turns $m_\det$ into an expected number.
        max_variance: variance of $\ln L$ above which a point is penalised, smoothly, by $-\frac12
            (\mathrm{var}/\mathrm{max} - 1)^2 \cdot 100$: the Monte Carlo sums fail there.
        like: a model of the same prior and population; what it has prepared of those of its parts
            that are parts of this one is not prepared again.

    Raises:
        InputError: priors that are missing or unknown, and "poisson" without a selection.
    """

    def __init__(
        self,
        prior: Prior,
        population: Population,
        likelihood: Likelihood,
        *,
        selection: Likelihood | None = None,
        rate: Literal["poisson", "shape"] = "poisson",
        log_exposure: float = 0.0,
        max_variance: float | None = None,
        like: HierarchicalModel | None = None,
    ):
        if rate not in ("poisson", "shape"):
            raise InputError(f"rate='{rate}' is not known; use 'poisson' or 'shape'.")
        if rate == "poisson" and selection is None:
            raise InputError(
                "rate='poisson' needs a selection: the expected number of detections is part of "
                "the likelihood. Give one, or use rate='shape'."
            )
        if max_variance is not None and not max_variance > 0:
            raise InputError(f"max_variance = {max_variance} must be positive, or None.")
        needed, optional = hyperparameter_names(population)
        self.prior = prior.resolve(needed, optional)
        self.population = population
        self.likelihood = likelihood
        self.selection = selection
        self.rate = rate
        self.log_exposure = log_exposure
        self.max_variance = max_variance
        parts = (likelihood, selection)
        before = (
            [] if like is None else zip((like.likelihood, like.selection), like.data, strict=True)
        )
        ready = {id(part): prepared for part, prepared in before}
        example = {}
        if any(hasattr(part, "stage") for part in parts if id(part) not in ready):
            # Compiled as one: a draw by itself is dozens of small programs.
            point = self.prior.complete(jax.jit(self.prior.sample)(jax.random.key(0)))
            # Names that only ties use are none of the population's.
            example = {name: point[name] for name in (*needed, *optional) if name in point}
        self._parts = [
            ready[id(part)] if id(part) in ready else _stage(part, population, example)
            for part in parts
        ]

    def with_parts(self, likelihood: Likelihood, selection: Likelihood | None) -> HierarchicalModel:
        """The same model with other forms of its objects and selection."""
        return HierarchicalModel(
            self.prior,
            self.population,
            likelihood,
            selection=selection,
            rate=self.rate,
            log_exposure=self.log_exposure,
            max_variance=self.max_variance,
            like=self,
        )

    def same_but_for_data(self, other: HierarchicalModel) -> bool:
        """Whether `other` is this model with other numbers, of the same shapes, in its arrays."""
        ours, theirs = (
            (m.rate, m.log_exposure, m.max_variance, m.prior.fixed, m.prior.same_as)
            for m in (self, other)
        )
        return (
            self.population == other.population
            and ours == theirs
            and len(self.likelihood.names) == len(other.likelihood.names)
            and _shapes(self.data) == _shapes(other.data)
            and _shapes(self.prior.free) == _shapes(other.prior.free)
            and all(map(np.array_equal, *map(jax.tree.leaves, (self.prior.free, other.prior.free))))
        )

    @property
    def data(self) -> Any:
        """The arrays that the likelihood needs, to be passed through jitted functions."""
        return self._parts

    def log_likelihood(
        self, hyperparameters: Hyperparameters, data: Any = None, *, variance: bool = False
    ) -> LogLikelihood:
        """Log likelihood (without the variance penalty) at all hyperparameters, by name.

        The variance is zero unless it is asked for: it costs a little more.
        """
        objects, selection = self.data if data is None else data
        total = _total(objects, hyperparameters, variance)
        value, spread = total.value, total.variance
        if selection is not None:
            detected = _total(selection, hyperparameters, variance)
            if self.rate == "poisson":
                expected = jnp.exp(detected.value + self.log_exposure)
                value, weight = value - expected, expected
            else:
                weight = jnp.asarray(float(len(self.likelihood.names)))
                # Without any detection there is nothing to divide by, only infinite variance.
                unseen = detected.value == -jnp.inf
                normalised = value - weight * jnp.where(unseen, 0.0, detected.value)
                value = jnp.where(unseen, -jnp.inf, normalised)
            spread = spread + weight**2 * jnp.where(weight > 0, detected.variance, 0.0)
        return LogLikelihood(value, spread)

    def penalised_log_likelihood(self, hyperparameters: Hyperparameters, data: Any = None) -> Array:
        """Log likelihood with the smooth penalty of `max_variance`, if there is one."""
        if self.max_variance is None:
            return self.log_likelihood(hyperparameters, data).value
        value, variance = self.log_likelihood(hyperparameters, data, variance=True)
        # Where the variance is infinite the value is -inf already.
        variance = jnp.where(variance == jnp.inf, 0.0, variance)
        excess = jnp.maximum(variance / self.max_variance - 1.0, 0.0)
        return value - 50.0 * excess**2

    def log_marginals(self, hyperparameters: Hyperparameters, data: Any = None) -> LogMarginal:
        """Per-object log marginals and variances."""
        return (self.data if data is None else data)[0].log_marginal(hyperparameters)

    def detected(self, hyperparameters: Hyperparameters, data: Any = None) -> LogMarginal:
        r"""$\ln m_\det$ (plus `log_exposure`) and its variance."""
        selection = (self.data if data is None else data)[1]
        if selection is None:
            raise InputError("the model has no selection.")
        value, variance = selection.log_marginal(hyperparameters)
        return LogMarginal(value[0] + self.log_exposure, variance[0])

    def target(self, *, like: Target | None = None) -> Target:
        """The posterior of the free hyperparameters, for a sampler.

        Where the population has edges that move with the hyperparameters, the target also offers a
        smooth version of itself for samplers that follow gradients (see `Samples.softened`).
        Objects that are `Latent` have their own parameters in the target (see `LatentTarget`).

        Args:
            like: the target of a model that is the `same_but_for_data`: what was compiled for it
                serves this one as well.
        """
        if isinstance(self.likelihood, Latent):
            from .latents import LatentTarget

            return LatentTarget(self)
        edges = self._has_moving_edges() if like is None else like.smooth is not None
        return Target(
            self.prior,
            lambda free, data: self.penalised_log_likelihood(self.prior.complete(free), data),
            data=self.data,
            smooth=cache(self._smooth_target) if edges else None,
            model=self,
            shortcut=Shortcut(self._coarse_target, self._near_target) if self._many() else None,
            like=like,
        )

    def _many(self) -> bool:
        """Whether there are so many objects that a shortcut pays, and the form has one."""
        sum_of_objects = self.selection is None and self.rate == "shape"
        many = len(self.likelihood.names) > _MANY_OBJECTS
        return many and sum_of_objects and hasattr(self.likelihood, "tabulated")

    def _coarse_target(self) -> Target:
        form: Any = self.likelihood
        few = self.with_parts(form.some(_FEW_OBJECTS), None)
        power = len(form.names) / _FEW_OBJECTS
        return Target(
            self.prior,
            lambda free, data: power * few.log_likelihood(self.prior.complete(free), data).value,
            data=few.data,
        )

    def _near_target(self, free: Hyperparameters) -> Target | None:
        form: Any = self.likelihood
        tables = form.tabulated(self.population, self.prior.complete(free))
        if tables is None:
            return None
        near = self.with_parts(tables, None)
        return Target(
            self.prior,
            lambda free, data: near.log_likelihood(self.prior.complete(free), data).value,
            data=near.data,
        )

    def _smooth_target(self) -> Target:
        parts: list[Any] = [
            getattr(part, "softened", lambda part=part: part)()
            for part in (self.likelihood, self.selection)
        ]
        smooth = self.with_parts(parts[0], parts[1])
        return Target(
            self.prior,
            lambda free, data: smooth.penalised_log_likelihood(self.prior.complete(free), data),
            data=smooth.data,
        )

    def _has_moving_edges(self) -> bool:
        """Whether hyperparameters decide which draws lie inside the population's support."""
        parts = [part for part in self.data if hasattr(part, "inside")]
        if not parts:
            return False
        points = self.prior.sample(jax.random.key(0), (8,))
        for part in parts:
            counts = jax.jit(lambda h, p: jax.lax.map(p.inside, h))(
                jax.vmap(self.prior.complete)(points), part
            )
            if jnp.ptp(counts) > 0:
                return True
        return False


class _Recorder(dict[str, Any]):
    """Hyperparameters that note which of them are asked for, and which only with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.optional: dict[str, None] = {}

    def __missing__(self, name: str) -> Any:
        self[name] = value = jnp.full((), 0.5)
        return value

    def __contains__(self, name: object) -> bool:
        self.optional[str(name)] = None
        return False

    def get(self, name: str, default: Any = None) -> Any:
        if default is None:
            return self[name]
        self.optional[name] = None
        return default


class _Anything(dict[str, Any]):
    """A theta that has every name: a population may depend on known columns of the objects too."""

    def __missing__(self, name: str) -> Any:
        return jnp.full((), 0.5)

    def __contains__(self, name: object) -> bool:
        return True


def hyperparameter_names(population: Population) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The hyperparameters that `population` needs, in order, and those that it takes where given.

    Works for every population that reads `h[name]` or `h.get(name, default)`: it is run once, on a
    mapping that notes what is asked for.
    """
    asked = _Recorder()

    def look() -> Array:
        density = population(asked)
        # Conditional factors look theirs up only when they are evaluated.
        return density.log_prob(_Anything())

    jax.eval_shape(look)
    needed = tuple(asked)
    return needed, tuple(name for name in asked.optional if name not in needed)


def _shapes(tree: Any) -> tuple[Any, list[Any]]:
    """The structure of a pytree with all that is not an array, and its arrays' shapes and types."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]


def _stage(part: Any, population: Population, example: Hyperparameters) -> Any:
    """A form prepared for many evaluations, where the form knows how; nothing of nothing."""
    if part is None:
        return None
    if hasattr(part, "stage"):
        return part.stage(population, example)
    return _Plain(part, population)


class _Plain(eqx.Module):
    """A form without preparation, seen as a function of hyperparameters."""

    likelihood: Any
    population: Population = eqx.field(static=True)

    def log_marginal(self, hyperparameters: Hyperparameters) -> LogMarginal:
        return self.likelihood.log_marginal(self.population(hyperparameters))


def _total(part: Any, hyperparameters: Hyperparameters, variance: bool) -> LogMarginal:
    if hasattr(part, "total"):
        return part.total(hyperparameters, variance=variance)
    each = part.log_marginal(hyperparameters)
    return LogMarginal(jnp.sum(each.value), jnp.sum(each.variance))
