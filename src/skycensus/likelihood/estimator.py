"""The one Monte Carlo estimator: sums of weights over draws, and what they say of an object."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array


def _safe_log(x: Array) -> Array:
    empty = x == 0
    return jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, x)))


def _shift(x: Array) -> Array:
    """A constant to subtract before exponentials: the value, or zero where that is -inf."""
    x = jax.lax.stop_gradient(x)
    return jnp.where(x == -jnp.inf, 0.0, x)


def log_sums(terms: Sequence[Array], log_ref: Array, *, squares: bool) -> tuple[Array, Array]:
    r"""$\ln \sum_j w_j$ and $\ln \sum_j w_j^2$ over the last axis, $w = \sum_k e^{t_k - \ell}$.

    The exponential is taken once for each leaf and draw, with one shift for all of them; the sums
    are accumulated in JAX's default precision. The second is zero where `squares` is false.
    """
    top = terms[0]
    for term in terms[1:]:
        top = jnp.maximum(top, term)
    shift = _shift(jnp.max(top - log_ref, axis=-1))
    offset = log_ref + shift[..., None]
    weight = jnp.exp(terms[0] - offset)
    for term in terms[1:]:
        weight = weight + jnp.exp(term - offset)
    accumulate = jnp.result_type(float)
    first = _safe_log(jnp.sum(weight, axis=-1, dtype=accumulate)) + shift
    if not squares:
        return first, jnp.zeros_like(first)
    return first, _safe_log(jnp.sum(weight * weight, axis=-1, dtype=accumulate)) + 2 * shift


def add_up(values: Array, segment: Array, num_segments: int) -> Array:
    """Log-sum-exp of `values` over equal `segment`; those of segment `num_segments` are dropped."""
    total = num_segments + 1
    shift = _shift(jax.ops.segment_max(values, segment, total))
    sums = jax.ops.segment_sum(jnp.exp(values - shift[segment]), segment, total)
    return (_safe_log(sums) + shift)[:num_segments]


def variance_of_log(first: Array, second: Array, num_drawn: Array) -> Array:
    """Monte Carlo variance of the log of a mean; infinite where no draw has any weight."""
    empty = first == -jnp.inf
    ratio = jnp.exp(second - 2 * jnp.where(empty, 0.0, first))
    return jnp.where(empty, jnp.inf, ratio - 1.0 / num_drawn)
