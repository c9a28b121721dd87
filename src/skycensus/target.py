r"""What a sampler sees of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from numpyro.distributions.transforms import biject_to

from .checkpoint import Record
from .prior import Prior

if TYPE_CHECKING:
    from .model import HierarchicalModel

Hyperparameters = Mapping[str, Any]


class Shortcut(NamedTuple):
    """Cheaper versions of a target with very many objects, in the same coordinates.

    Attributes:
        coarse: of every n-th object, each counted n times: where the modes are, roughly.
        near: parameters by name -> the target as it is near them, to be checked against the target
            itself; None where there is none.
    """

    coarse: Callable[[], Target]
    near: Callable[[Hyperparameters], Target | None]


class Target:
    r"""What a sampler sees: a prior, a log likelihood, and the way to unconstrained coordinates.

    A point is a flat vector $x \in \mathbb R^d$; `constrain(x)` gives the hyperparameters by name,
    and `log_density(x)` is log prior + log Jacobian + log likelihood. Everything takes the `data`
    explicitly, so that large arrays are arguments of compiled functions and not constants in them.

    Args:
        prior: distributions of the free parameters (and fixed or tied ones).
        log_likelihood: (free parameters by name, data) -> scalar.
        data: any pytree of arrays.
        smooth: makes a smooth approximation of this target, in the same coordinates, if it jumps.
        shortcut: cheaper versions of it, where there are any.
        model: the hierarchical model that this is the target of.
        like: a target that differs in `data` alone; what is compiled for it serves this one too.

    Attributes:
        latents: parameters of the objects among those of `constrain`, name -> labels of entries.
        num_latent: how many of the last coordinates belong to them.
        object_names: of the objects that they are of.
        record: where `samplers.evaluate` keeps what it has computed, in a run that may be resumed.
    """

    latents: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    num_latent = 0
    object_names: tuple[str, ...] = ()
    record: Record | None = None
    shortcut: Shortcut | None = None
    model: HierarchicalModel | None = None

    def __init__(
        self,
        prior: Prior,
        log_likelihood: Callable[[dict[str, Array], Any], Array],
        *,
        data: Any = None,
        smooth: Callable[[], Target] | None = None,
        shortcut: Shortcut | None = None,
        model: HierarchicalModel | None = None,
        like: Target | None = None,
    ):
        self.prior = prior
        self.data = data
        self.smooth = smooth
        self.shortcut = shortcut
        self.model = model
        if like is not None:
            self._compiled = like.__dict__.setdefault("_compiled", {})
        self._log_likelihood = log_likelihood
        self._transforms = {n: biject_to(d.support) for n, d in prior.free.items()}

        def unconstrained() -> dict[str, Array]:
            drawn = prior.joined(prior.sample(jax.random.key(0)))
            return {n: self._transforms[n].inv(v) for n, v in drawn.items()}

        # Only shapes are wanted: no draw is compiled for them.
        shapes = jax.eval_shape(unconstrained)
        example = {n: jnp.zeros(v.shape, v.dtype) for n, v in shapes.items()}
        flat, self._unravel = ravel_pytree(example)
        self.dim = int(flat.size)

    @classmethod
    def from_numpyro(cls, model: Callable[..., Any], *args: Any, **kwargs: Any) -> Target:
        """Wrap any NumPyro model: its continuous latent sites are the parameters.

        Sites may be of any shape (they appear as `name[i]` in results), inside plates or not, and
        depend on each other; the prior and the likelihood are then not separated, so the evidence
        is that of the joint density.
        """
        from .numpyro_target import NumpyroTarget

        return NumpyroTarget(model, args, kwargs)

    def compiled(self, name: str, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """The jitted function `make()`, kept under `name`: compiled once for a target."""
        kept = self.__dict__.setdefault("_compiled", {})
        if name not in kept:
            kept[name] = jax.jit(make())
        return kept[name]

    @property
    def names(self) -> tuple[str, ...]:
        return self.prior.names

    def constrain(self, x: Array) -> dict[str, Array]:
        """Parameters by name at the unconstrained point `x` of shape (dim,)."""
        return self.prior.split({n: self._transforms[n](v) for n, v in self._unravel(x).items()})

    def unconstrain(self, free: Mapping[str, Any]) -> Array:
        """The inverse of `constrain`."""
        return ravel_pytree(
            {n: self._transforms[n].inv(v) for n, v in self.prior.joined(free).items()}
        )[0]

    def log_prior(self, x: Array) -> Array:
        """Log prior density of the unconstrained point, Jacobian included."""
        raw = self._unravel(x)
        total = jnp.zeros(())
        for name, d in self.prior.free.items():
            transform = self._transforms[name]
            value = transform(raw[name])
            total = total + d.log_prob(value) + transform.log_abs_det_jacobian(raw[name], value)
        return total

    def log_likelihood(self, x: Array, data: Any = None) -> Array:
        """Log likelihood at the unconstrained point."""
        return self.log_likelihood_at(self.constrain(x), data)

    def log_likelihood_at(self, free: Mapping[str, Any], data: Any = None) -> Array:
        """Log likelihood at parameters by name."""
        return self._log_likelihood(dict(free), self.data if data is None else data)

    def log_density(self, x: Array, data: Any = None) -> Array:
        """Log prior plus log likelihood at the unconstrained point."""
        return self.log_prior(x) + self.log_likelihood(x, data)

    def sample_prior(self, key: Any, num: int) -> Array:
        """Draw unconstrained points, (num, dim), from the prior."""
        return jax.vmap(self.unconstrain)(self.prior.sample(key, (num,)))

    def start_points(self, key: Any, num: int) -> Array:
        """Unconstrained points, (num, dim), among which chains may choose their starts."""
        return self.sample_prior(key, num)

    def from_unit_cube(self, u: Array) -> dict[str, Array]:
        """Parameters by name at `u` (dim,) in the unit cube, on which the prior is uniform.

        Raises:
            InputError: a prior without a known transform, naming it.
        """
        return self.prior.from_unit_cube(u)

    def in_unit_cube(self) -> Target:
        """This target with the points of the unit cube as coordinates, see `from_unit_cube`.

        Its prior density is one inside the cube. Outside nothing is defined.
        """
        return self.__dict__.setdefault("_in_unit_cube", _InUnitCube(self))


class _InUnitCube(Target):
    """A target in coordinates in which the prior is uniform; see `Target.in_unit_cube`."""

    def __init__(self, target: Target):
        self._target = target
        self.prior, self.data, self.dim = target.prior, target.data, target.dim
        self.smooth = None
        # A prior without a transform is told of here, not from within compiled code.
        jax.eval_shape(self.constrain, jnp.zeros(self.dim))

    @property
    def names(self) -> tuple[str, ...]:
        return self._target.names

    def constrain(self, x: Array) -> dict[str, Array]:
        return self._target.from_unit_cube(x)

    def unconstrain(self, free: Mapping[str, Any]) -> Array:
        raise NotImplementedError("nothing needs the way back into the unit cube.")

    def log_prior(self, x: Array) -> Array:
        return jnp.zeros(())

    def log_likelihood(self, x: Array, data: Any = None) -> Array:
        return self._target.log_likelihood_at(self.constrain(x), data)

    def sample_prior(self, key: Any, num: int) -> Array:
        return jax.random.uniform(key, (num, self.dim), minval=jnp.finfo(float).tiny)
