r"""The posterior of hyperparameters and of every object's parameters together, for a sampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .errors import InputError
from .likelihood import LogMarginal
from .likelihood.coordinates import Coordinates
from .likelihood.formula import check_parameters
from .likelihood.latent import Centring, Latent, envelope, fit, place
from .model import HierarchicalModel
from .samplers.tempering import next_temperature
from .target import Target
from .weights import normalised_weights

_ROUNDS = 25
# Chains start this many times wider than what the pilot says of the hyperparameters.
_OVERDISPERSION = 1.5


class LatentTarget(Target):
    r"""The joint posterior of a model whose objects are `Latent`.

    The point x holds the hyperparameters, then the objects' z, parameter by parameter (see
    `likelihood.latent.Centring`). A pilot, with Laplace's approximation of the log marginals, makes
    the unconstrained hyperparameters standard and finds the best of them, about which the
    likelihoods that centre z are expanded. It decides how well a sampler moves, not what it
    samples.

    Raises:
        InputError: the population is not over what the formula looks up, or an object whose
            likelihood is zero or NaN wherever the pilot puts it (named).
    """

    def __init__(self, model: HierarchicalModel):
        form = model.likelihood
        assert isinstance(form, Latent)
        self._hyper = Target(model.prior, lambda free, data: jnp.zeros(()))
        self._model, self.prior, self.smooth = model, model.prior, None
        example = model.prior.complete(model.prior.sample(jax.random.key(0)))
        coordinates = Coordinates(envelope(model.population(example)))
        check_parameters("Latent", form.parameters, (*coordinates.names, *form.given))
        self.latents = {
            name: tuple(f"{name}[{label}]" for label in form.names) for name in coordinates.names
        }
        self.object_names = tuple(form.names)
        self.num_latent = len(self.latents) * len(form.names)
        self.dim = self._hyper.dim + self.num_latent
        self._pilot = _find_pilot(model, form, self._hyper)
        self.data = (form, self._pilot.centring, model.data[1])

    @property
    def names(self) -> tuple[str, ...]:
        """The hyperparameters; `latents` are the objects' parameters."""
        return self._hyper.names

    def constrain(self, x: Array) -> dict[str, Array]:
        """Hyperparameters by name, and the objects' parameters, name -> (num_objects,)."""
        free = self._free(x)
        return {**free, **self._place(free, x, self.data)[0]}

    def unconstrain(self, free: Mapping[str, Any]) -> Array:
        """Where the hyperparameters are `free` and every object is in the middle of its range."""
        white = jnp.linalg.solve(self._pilot.root, self._hyper.unconstrain(free) - self._pilot.mean)
        return jnp.concatenate([white, jnp.zeros(self.num_latent)])

    def log_prior(self, x: Array) -> Array:
        """Log density of the hyperparameters and of the objects' parameters given them, in x."""
        return self._log_densities(x, self.data)[0]

    def log_likelihood(self, x: Array, data: Any = None) -> Array:
        r"""$\sum_i \ln p(d_i|\theta_i)$, and what the selection adds."""
        return self._log_densities(x, self.data if data is None else data)[1]

    def log_density(self, x: Array, data: Any = None) -> Array:
        """Log prior plus log likelihood."""
        prior, likelihood = self._log_densities(x, self.data if data is None else data)
        return prior + likelihood

    def sample_prior(self, key: Any, num: int) -> Array:
        """Not to be had in these coordinates, which are made around the data.

        Raises:
            InputError: always.
        """
        raise InputError(
            "this sampler begins with draws from the prior, which is hopeless for "
            f"{self.num_latent} latent parameters; use NUTS."
        )

    def from_unit_cube(self, u: Array) -> dict[str, Array]:
        """Not known: every object's prior is the population's, and there are too many of them.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"nested sampling is hopeless for {self.num_latent} latent parameters; use NUTS."
        )

    def start_points(self, key: Any, num: int) -> Array:
        """Points for chains to start from: wider than the pilot's guess of the posterior."""
        hyper_key, latent_key = jax.random.split(key)
        hyper = _OVERDISPERSION * jax.random.normal(hyper_key, (num, self._hyper.dim))
        return jnp.concatenate(
            [hyper, jax.random.normal(latent_key, (num, self.num_latent))], axis=1
        )

    def _unconstrained(self, x: Array) -> Array:
        return self._pilot.mean + self._pilot.root @ x[: self._hyper.dim]

    def _free(self, x: Array) -> dict[str, Array]:
        return self._hyper.constrain(self._unconstrained(x))

    def _place(
        self, free: Mapping[str, Array], x: Array, data: Any
    ) -> tuple[dict[str, Array], Array]:
        """Parameters name -> (num_objects,), and ln|d theta/dz|, (num_objects,)."""
        form, centring, _ = data
        coordinates = Coordinates(envelope(self._model.population(self.prior.complete(free))))
        z = x[self._hyper.dim :].reshape(len(self.latents), -1).T
        at = jax.vmap(lambda c, z, given: place(coordinates, c, z, given))(centring, z, form.given)
        return at.theta, at.log_det

    def _log_densities(self, x: Array, data: Any) -> tuple[Array, Array]:
        form, _, selection = data
        free = self._free(x)
        theta, log_det = self._place(free, x, data)
        complete = self.prior.complete(free)
        log_p = self._model.population(complete).log_prob({**form.given, **theta})
        log_prior = self._hyper.log_prior(self._unconstrained(x)) + self._pilot.log_size
        log_prior = log_prior + jnp.sum(log_p + log_det)
        parts = [_Drawn(form, theta), selection]
        return log_prior, self._model.penalised_log_likelihood(complete, parts)


class _Drawn(eqx.Module):
    """Objects at given parameters, in the place of their log marginals."""

    form: Latent
    theta: dict[str, Array]

    def total(self, hyperparameters: Any, *, variance: bool = False) -> LogMarginal:
        del hyperparameters, variance
        each = jax.vmap(self.form.log_likelihood)(self.theta, self.form.data)
        return LogMarginal(jnp.sum(each), jnp.zeros(()))


# ---- the pilot -----------------------------------------------------------------------------------


class _Pilot(NamedTuple):
    """Rough posterior of the unconstrained hyperparameters: mean, root of the covariance and log of
    its determinant; and the centring at the best point."""

    mean: Array
    root: Array
    log_size: Array
    centring: Centring


def _find_pilot(model: HierarchicalModel, form: Latent, hyper: Target) -> _Pilot:
    """Adaptive importance sampling of the hyperparameters with Laplace's log marginals.

    Its own fixed stream of random numbers: the result of a run does not depend on the pilot.
    """

    def one(x: Array, form: Latent, selection: Any) -> Array:
        h = model.prior.complete(hyper.constrain(x))
        total = jnp.sum(fit(form, model.population(h)).log_marginal)
        parts = [_Fixed(total), selection]
        value = hyper.log_prior(x) + model.penalised_log_likelihood(h, parts)
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    log_density = jax.jit(
        lambda points, form, selection: jax.lax.map(
            lambda x: one(x, form, selection), points, batch_size=8
        )
    )
    num = 64 + 32 * hyper.dim
    key = jax.random.key(0)
    points = np.asarray(hyper.sample_prior(key, num))
    log_q = np.asarray(jax.vmap(hyper.log_prior)(jnp.asarray(points)))
    best, highest, temperature = points[0], -np.inf, 0.0
    for number in range(_ROUNDS):
        log_p = np.asarray(log_density(points, form, model.data[1]))
        if log_p.max() > highest:
            best, highest = points[log_p.argmax()], log_p.max()
        if not np.isfinite(log_p).any():
            break
        ratio = log_p - log_q
        last, temperature = temperature, _temperature(ratio, goal=0.15)
        weight = normalised_weights(temperature * ratio)
        mean = weight @ points
        spread = points - mean
        covariance = (weight * spread.T) @ spread + 1e-12 * np.eye(hyper.dim)
        if last == temperature == 1.0:
            break
        root = np.linalg.cholesky(covariance)
        noise = np.asarray(jax.random.normal(jax.random.fold_in(key, number), (num, hyper.dim)))
        points = mean + 1.15 * noise @ root.T
        log_q = -0.5 * np.sum(noise**2, axis=1) - np.log(np.diagonal(root)).sum()
    at = jax.jit(
        lambda x, form: fit(form, model.population(model.prior.complete(hyper.constrain(x))))
    )(jnp.asarray(best), form)
    _require_placed(np.asarray(at.log_marginal), form.names)
    root = np.linalg.cholesky(covariance)
    log_size = np.log(np.diagonal(root)).sum()
    return _Pilot(jnp.asarray(mean), jnp.asarray(root), jnp.asarray(log_size), at.centring)


def _temperature(ratio: np.ndarray, *, goal: float) -> float:
    """The power of the weights that leaves a share `goal` of the points effective."""
    return next_temperature(0.0, ratio, np.zeros(len(ratio)), goal=goal * len(ratio))


class _Fixed(NamedTuple):
    """Objects whose summed log marginals are a number already."""

    value: Array

    def total(self, hyperparameters: Any, *, variance: bool = False) -> LogMarginal:
        del hyperparameters, variance
        return LogMarginal(self.value, jnp.zeros(()))


def _require_placed(log_marginal: np.ndarray, names: tuple[str, ...]) -> None:
    if (bad := ~np.isfinite(log_marginal)).any():
        raise InputError(
            f"Latent: {names[int(np.argmax(bad))]} has no parameters with a likelihood in the "
            f"population ({int(bad.sum())} such objects); is log_likelihood NaN or -inf there, or "
            "are the data far outside the population's support?"
        )
