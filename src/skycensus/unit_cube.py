r"""From the unit cube to distributions: what nested samplers know of a prior."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import ndtri
from numpyro.distributions.transforms import biject_to

from .errors import InputError

# A cautious Newton iteration halves its interval at worst: enough to reach rounding.
_MAX_STEPS = 100


def num_coordinates(d: dist.Distribution) -> int:
    """How many coordinates of the cube one draw takes: n - 1 for n components on the simplex."""
    return math.prod(biject_to(d.support).inverse_shape(d.event_shape))


def from_unit_cube(name: str, d: dist.Distribution, u: Array) -> Array:
    r"""The value of `d` at `u`: distributed as `d` where `u` is uniform on the unit cube.

    In one dimension this is $F^{-1}(u)$, by the distribution's `icdf` or, where it has none, by
    inverting its `cdf`. Vectors are Rosenblatt's transform or a smooth map of such: a Dirichlet
    breaks a stick at places with Beta distributions, a multivariate normal is $\mu + L\,
    \Phi^{-1}(u)$. A distribution with a method `from_unit_cube(u)` of its own is asked for that.

    Args:
        name: for messages.
        d: batch shape (...), event shape as it comes.
        u: in (0, 1), shape (..., `num_coordinates(d)`), or with more axes in front.

    Returns:
        Values of shape (..., *event shape).

    Raises:
        InputError: `d` has neither `icdf` nor `cdf`, or is a vector of an unknown kind.
    """
    if hasattr(d, "from_unit_cube"):
        return d.from_unit_cube(u)
    # The order matters: the first two wrap distributions of all other kinds.
    if isinstance(d, dist.Independent):
        inner = d.base_dist
        shape = inner.batch_shape[len(inner.batch_shape) - d.reinterpreted_batch_ndims :]
        size = num_coordinates(inner)
        return from_unit_cube(name, inner, u.reshape(*u.shape[:-1], *shape, size))
    if isinstance(d, dist.ExpandedDistribution):
        return from_unit_cube(name, d.base_dist, u)
    if isinstance(d, dist.TransformedDistribution):
        value = from_unit_cube(name, d.base_dist, u)
        return functools.reduce(lambda x, transform: transform(x), d.transforms, value)
    for kind, transform in _VECTORS.items():
        if isinstance(d, kind):
            return transform(d, u)
    if d.event_shape:
        raise InputError(
            f"prior '{name}': there is no transform from the unit cube to {type(d).__name__}, "
            "which nested sampling needs; use another sampler, or give the distribution a method "
            "from_unit_cube(u)."
        )
    return _scalar(name, d, u[..., 0])


def _scalar(name: str, d: dist.Distribution, u: Array) -> Array:
    # NumPyro's inverses of incomplete beta and gamma functions need a package that may be absent.
    if _works(d.icdf, u):
        return d.icdf(u)
    if _works(d.cdf, u):
        return _inverse_cdf(d, u)
    raise InputError(
        f"prior '{name}': {type(d).__name__} has neither icdf nor cdf, which nested sampling "
        "needs; use another distribution or another sampler."
    )


def _works(function: Callable[[Array], Array], u: Array) -> bool:
    try:
        jax.eval_shape(function, u)
    except (NotImplementedError, ImportError):
        return False
    return True


def _inverse_cdf(d: dist.Distribution, u: Array) -> Array:
    r"""Solve $F(x) = u$ by Newton's method, with bisection where that leaves the bracket.

    In unconstrained coordinates y, so that values near a bound of the support keep their digits.
    """
    transform = biject_to(d.support)

    def excess(y: Array) -> Array:
        return d.cdf(transform(y)) - u

    def widen(state: Any) -> Any:
        low, high, n = state
        low = jnp.where(excess(low) > 0, 2.0 * low, low)
        return low, jnp.where(excess(high) < 0, 2.0 * high, high), n + 1

    def too_narrow(state: Any) -> Array:
        low, high, n = state
        return jnp.any((excess(low) > 0) | (excess(high) < 0)) & (n < 60)

    shape = jnp.broadcast_shapes(jnp.shape(u), d.batch_shape)
    wide = jnp.full(shape, 16.0, jnp.result_type(u))
    low, high, _ = jax.lax.while_loop(too_narrow, widen, (-wide, wide, 0))

    def step(state: Any) -> Any:
        y, low, high, before, last, n = state
        x = transform(y)
        off = d.cdf(x) - u
        slope = jnp.exp(d.log_prob(x) + transform.log_abs_det_jacobian(y, x))
        low, high = jnp.where(off < 0, y, low), jnp.where(off < 0, high, y)
        newton = y - off / slope
        # A Newton step must stay inside and be under half the step before last.
        good = (newton > low) & (newton < high) & (jnp.abs(newton - y) < 0.5 * before)
        new = jnp.where(off == 0, y, jnp.where(good, newton, 0.5 * (low + high)))
        return new, low, high, last, jnp.abs(new - y), n + 1

    def going(state: Any) -> Array:
        y, _, _, _, last, n = state
        # After a Newton step this small the next one is of the size of rounding.
        small = jnp.sqrt(jnp.finfo(y.dtype).eps) * jnp.maximum(jnp.abs(y), 1.0)
        return jnp.any(last > small) & (n < _MAX_STEPS)

    start = (0.5 * (low + high), low, high, high - low, high - low, 0)
    return transform(jax.lax.while_loop(going, step, start)[0])


# ---- vectors -------------------------------------------------------------------------------------


def _dirichlet(d: Any, u: Array) -> Array:
    """Break a stick: $v_k ~ Beta(a_k, a_{k+1} + ... + a_n)$ of what is left is component k."""
    a = d.concentration
    if not isinstance(a, jax.core.Tracer):
        # NumPy's: within a compiled function a part of JAX's array is no number any more.
        a = np.asarray(a)
    rest = a[..., ::-1].cumsum(-1)[..., ::-1][..., 1:]
    broken = _beta(a[..., :-1], rest, u)
    left = jnp.cumprod(1.0 - broken, axis=-1)
    before = jnp.concatenate([jnp.ones_like(left[..., :1]), left[..., :-1]], axis=-1)
    return jnp.concatenate([broken * before, left[..., -1:]], axis=-1)


def _beta(a: Array, b: Array, u: Array) -> Array:
    # Weights with a flat prior are the usual case, and have a closed form.
    if not isinstance(a, jax.core.Tracer) and np.all(np.asarray(a) == 1.0):
        return -jnp.expm1(jnp.log1p(-u) / b)
    return _inverse_cdf(dist.Beta(a, b), u)


def _normal(d: Any, u: Array) -> Array:
    root = d.scale_tril if hasattr(d, "scale_tril") else jnp.linalg.cholesky(d.covariance_matrix)
    return d.loc + (root @ ndtri(u)[..., None])[..., 0]


def _student_t(d: Any, u: Array) -> Array:
    r"""Each standard coordinate given those before it is a Student-t again.

    $z_k | z_{<k}$ has $\nu + k - 1$ degrees of freedom and the squared scale
    $(\nu + \sum_{j<k} z_j^2) / (\nu + k - 1)$.
    """
    z: list[Array] = []
    for k in range(d.event_shape[0]):
        dof = d.df + k
        squares = functools.reduce(jnp.add, [one**2 for one in z], jnp.zeros(()))
        standard = _inverse_cdf(dist.StudentT(dof), u[..., k])
        z.append(standard * jnp.sqrt((d.df + squares) / dof))
    return d.loc + (d.scale_tril @ jnp.stack(z, axis=-1)[..., None])[..., 0]


_VECTORS: dict[Any, Callable[[Any, Array], Array]] = {
    dist.Dirichlet: _dirichlet,
    dist.MultivariateNormal: _normal,
    dist.LowRankMultivariateNormal: _normal,
    dist.MultivariateStudentT: _student_t,
}
