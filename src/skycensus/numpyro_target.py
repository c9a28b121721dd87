r"""Any NumPyro model as a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.util import compute_log_probs, initialize_model, unconstrain_fn

from .errors import InputError
from .prior import Prior
from .target import Target
from .unit_cube import from_unit_cube, num_coordinates


class NumpyroTarget(Target):
    """A target made from a NumPyro model; see `Target.from_numpyro`."""

    def __init__(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]):
        info = initialize_model(
            jax.random.key(0), model, model_args=args, model_kwargs=kwargs, validate_grad=False
        )
        self._potential, self._postprocess = info.potential_fn, info.postprocess_fn
        self._model, self._args, self._kwargs = model, args, kwargs
        flat, self._unravel = ravel_pytree(info.param_info.z)
        self.dim = int(flat.size)
        self.data = None
        self.smooth = None
        self.prior = Prior({})
        self._site_names = tuple(info.param_info.z)

    @property
    def names(self) -> tuple[str, ...]:
        return self._site_names

    def constrain(self, x: Array) -> dict[str, Array]:
        """Sites by name, deterministic ones included."""
        with handlers.block():
            return self._postprocess(self._unravel(x))

    def unconstrain(self, free: Mapping[str, Any]) -> Array:
        with handlers.block():
            raw = unconstrain_fn(self._model, self._args, self._kwargs, dict(free))
        return ravel_pytree({n: raw[n] for n in self._site_names})[0]

    def log_prior(self, x: Array) -> Array:
        return jnp.zeros(())

    def log_likelihood(self, x: Array, data: Any = None) -> Array:
        del data
        # A sampler may itself be inside a NumPyro model: its handlers must not see these sites.
        with handlers.block():
            return -self._potential(self._unravel(x))

    def sample_prior(self, key: Any, num: int) -> Array:
        with_shape = Predictive(self._model, num_samples=num)(key, *self._args, **self._kwargs)
        return jax.vmap(self.unconstrain)({n: with_shape[n] for n in self._site_names})

    def from_unit_cube(self, u: Array) -> dict[str, Array]:
        """Sites by name; each prior may depend on the sites before it, as the model says."""
        start = 0

        def value_of(site: dict[str, Any]) -> Array | None:
            nonlocal start
            if site["type"] != "sample" or site["is_observed"]:
                return None
            name, d = site["name"], site["fn"]
            if site["scale"] is not None:
                raise InputError(
                    f"site '{name}' has a scaled prior, which is no density; use NUTS."
                )
            if d.support is None or d.support.is_discrete:
                raise InputError(f"site '{name}' is discrete; nested sampling needs real numbers.")
            shape = (*d.batch_shape, num_coordinates(d))
            part = u[start : start + math.prod(shape)]
            start += math.prod(shape)
            return from_unit_cube(name, d, part.reshape(shape))

        with handlers.block():
            placed = handlers.substitute(self._model, substitute_fn=value_of)
            trace = handlers.trace(placed).get_trace(*self._args, **self._kwargs)
        return {
            name: site["value"]
            for name, site in trace.items()
            if site["type"] == "deterministic"
            or (site["type"] == "sample" and not site["is_observed"])
        }

    def log_likelihood_at(self, free: Mapping[str, Any], data: Any = None) -> Array:
        """Log density of the observed sites and factors, given the others."""
        del data
        sites = {name: free[name] for name in self._site_names}
        with handlers.block():
            each, _ = compute_log_probs(self._model, self._args, self._kwargs, sites)
        observed = [value for name, value in each.items() if name not in self._site_names]
        return sum(observed, jnp.zeros(()))
