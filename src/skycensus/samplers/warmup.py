r"""Step size and mass matrix of Hamiltonian chains, from draws and gradients of the first steps.

For a Gaussian of covariance $\Sigma$ the gradients of the log density have covariance $\Sigma^{-1}
C \Sigma^{-1}$, $C$ being that of the draws, whatever $C$ is. So $\Sigma$ is the geometric mean of
the one and the inverse of the other as soon as there are more draws than dimensions, long before
the chain has seen the posterior. This inverse mass matrix minimises the Fisher divergence between
the transformed density and a standard normal one (Seyboldt, Carlson & Carpenter 2026,
arXiv:2603.18845; the program nutpie). For a diagonal one it is $\sqrt{\mathrm{var}\,x /
\mathrm{var}\,\nabla}$ for each coordinate.

A likelihood of a few hundred draws for each object is rough on small scales, where its gradients
tell of the roughness and not of the posterior. So a full matrix turns to the covariance of the
draws, as in Stan, while these become many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import solve_triangular
from numpyro.infer.hmc_util import dual_averaging

# The first draws are on their way: in this share of the warm-up those before the last _EARLY or so
# are forgotten again and again. Later a window is _LATE long, and each next one half as long again.
_EARLY_SHARE, _EARLY, _LATE = 0.3, 10, 80

# The share of the warm-up at its end in which only the step size is tuned.
_FINAL_SHARE = 0.15

# In how many draws' stead a unit covariance stands. It matters while draws are few.
_PRIOR_DRAWS = 1.0

# Draws for each dimension from which on their own covariance counts; at twice as many, as much as
# the gradients'. Before that it would be that of a chain on its way.
_ENOUGH = 5.0

_FIRST_STEP_SIZE = 0.1

# Doublings at most in the early share: a long trajectory in a wrong metric teaches nothing more.
MAX_EARLY_DEPTH = 5

_start_averaging, _average = dual_averaging()


class Moments(NamedTuple):
    """Number, means and summed (outer) squares of draws and gradients of one block of sites."""

    num: Array
    x: Array
    gradient: Array
    xx: Array
    gradients: Array


class Tuning(NamedTuple):
    """What a chain has learnt of its warm-up.

    Attributes:
        averaging: of the log step size.
        recent: moments since the last switch, by block of sites.
        used: moments since the switch before, from which the mass matrix is made.
        num_gradients: of the whole warm-up.
    """

    averaging: Any
    recent: dict[Any, Moments]
    used: dict[Any, Moments]
    num_gradients: Array


@dataclass(frozen=True)
class Warmup:
    """The first `num_steps` steps of a chain of NumPyro's HMC or NUTS, one chain at a time.

    The kernel itself must not adapt. Blocks of sites have full or diagonal matrices as it says.
    """

    num_steps: int
    target_accept_prob: float

    @property
    def num_early(self) -> int:
        """Steps of the early share."""
        return round(_EARLY_SHARE * self.num_steps)

    def begin(self, state: Any) -> tuple[Any, Tuning]:
        """The kernel's first state with a first mass matrix, and what is known: nothing yet."""
        adapted = state.adapt_state
        inverse, empty = {}, {}
        for sites, before in adapted.inverse_mass_matrix.items():
            gradient = _joined(state.z_grad, sites)
            # A steep coordinate is a narrow one.
            scale = 1.0 / jnp.clip(jnp.abs(gradient), 1e-10, 1e10)
            inverse[sites] = jnp.diag(scale) if before.ndim == 2 else scale
            zero, square = jnp.zeros_like(gradient), jnp.zeros_like(before)
            empty[sites] = Moments(jnp.zeros(()), zero, zero, square, square)
        averaging = _start_averaging(jnp.log(10.0 * _FIRST_STEP_SIZE))
        tuning = Tuning(averaging, empty, empty, jnp.zeros((), int))
        return _with(state, inverse, jnp.asarray(_FIRST_STEP_SIZE)), tuning

    def update(self, step: Array, state: Any, tuning: Tuning) -> tuple[Any, Tuning]:
        """State and tuning after the kernel's step number `step`; later than `num_steps` the same.

        `step` must be the same for all chains that move together, or all would be computed always.
        """
        return jax.lax.cond(
            step < self.num_steps, self._update, lambda _, *same: same, step, state, tuning
        )

    def _update(self, step: Array, state: Any, tuning: Tuning) -> tuple[Any, Tuning]:
        switches, last = self._schedule()
        averaging = _average(self.target_accept_prob - state.accept_prob, tuning.averaging)
        log_step_size = jnp.where(step == self.num_steps - 1, averaging[1], averaging[0])
        used, recent, inverse = {}, {}, {}
        switch = jnp.asarray(switches)[step]
        for sites, before in state.adapt_state.inverse_mass_matrix.items():
            x, gradient = _joined(state.z, sites), _joined(state.z_grad, sites)
            here = _added(tuning.used[sites], x, gradient)
            new = _added(tuning.recent[sites], x, gradient)
            found = _inverse_mass(here)
            # While all draws are the same there is nothing to learn.
            good = (step < last) & (here.num > 2) & jnp.all(jnp.isfinite(found))
            inverse[sites] = jnp.where(good, found, before)
            empty = jax.tree.map(jnp.zeros_like, new)
            used[sites] = _chosen(switch, new, here)
            recent[sites] = _chosen(switch, empty, new)
        afresh = _start_averaging(log_step_size)
        averaging = _chosen(switch | (step == last - 1), afresh, averaging)
        num_gradients = tuning.num_gradients + state.num_steps
        state = _with(state, inverse, jnp.exp(log_step_size))
        return state, Tuning(averaging, recent, used, num_gradients)

    def _schedule(self) -> tuple[np.ndarray, int]:
        """After which steps older draws are forgotten, and from where the matrix stays."""
        last = max(self.num_steps - round(_FINAL_SHARE * self.num_steps), 1)
        switches = np.zeros(max(self.num_steps, 1), bool)
        early = min(self.num_early, last)
        switches[_EARLY - 1 : early : _EARLY] = True
        at, length = early, _LATE
        # A window begins only if there is room for a longer one after it.
        while at + length + int(1.5 * length) <= last:
            at, length = at + length, int(1.5 * length)
            switches[at - 1] = True
        return switches, last


def _joined(values: dict[str, Array], sites: tuple[str, ...]) -> Array:
    return jnp.concatenate([jnp.ravel(values[name]) for name in sites])


def _chosen(condition: Array, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def _added(to: Moments, x: Array, gradient: Array) -> Moments:
    """The moments with one more draw, by Welford's updates; the same if its gradient is broken."""
    num = to.num + 1.0
    dx, dg = x - to.x, gradient - to.gradient
    x_mean, g_mean = to.x + dx / num, to.gradient + dg / num
    times = jnp.outer if to.xx.ndim == 2 else jnp.multiply
    xx = to.xx + times(dx, x - x_mean)
    new = Moments(num, x_mean, g_mean, xx, to.gradients + times(dg, gradient - g_mean))
    return _chosen(jnp.all(jnp.isfinite(gradient)), new, to)


def _inverse_mass(of: Moments) -> Array:
    """The inverse mass matrix that the module describes, (d, d) or its diagonal (d,)."""
    found = _fisher(of)
    if found.ndim == 1:
        return found
    num = jnp.maximum(of.num, 1.0)
    share = jnp.maximum(1.0 - _ENOUGH * len(found) / num, 0.0)
    return share * of.xx / num + (1.0 - share) * found


def _fisher(of: Moments) -> Array:
    """The geometric mean of the draws' covariance and the inverse of the gradients'."""
    full = of.xx.ndim == 2
    var_x, var_g = (jnp.diag(m) if full else m for m in (of.xx, of.gradients))
    variance = jnp.sqrt(var_x / var_g)
    if not full:
        return jnp.where(variance > 0, variance, jnp.nan)
    scale = jnp.sqrt(variance)
    unit = jnp.eye(len(scale))
    total = of.num + _PRIOR_DRAWS
    draws = (of.xx / scale / scale[:, None] + _PRIOR_DRAWS * unit) / total
    gradients = (of.gradients * scale * scale[:, None] + _PRIOR_DRAWS * unit) / total
    return _geometric_mean(draws, gradients) * scale * scale[:, None]


def _geometric_mean(a: Array, b: Array) -> Array:
    r"""The positive $X$ with $X b X = a$: the geometric mean of $a$ and $b^{-1}$."""
    size, axes = jnp.linalg.eigh(b)
    root = jnp.sqrt(size)
    inner, turned = jnp.linalg.eigh(root[:, None] * (axes.T @ a @ axes) * root)
    half = axes @ (turned / root[:, None])
    return (half * jnp.sqrt(inner)) @ half.T


def _with(state: Any, inverse: dict[Any, Array], step_size: Array) -> Any:
    """NumPyro's state with these inverse mass matrices, the roots that it keeps, and step size."""
    root, root_inverse = {}, {}
    for sites, matrix in inverse.items():
        if matrix.ndim == 1:
            root_inverse[sites] = jnp.sqrt(matrix)
            root[sites] = 1.0 / root_inverse[sites]
        else:
            flipped = jnp.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1]
            root_inverse[sites] = flipped.T
            root[sites] = solve_triangular(flipped.T, jnp.eye(len(matrix)), lower=True)
    adapted = state.adapt_state._replace(
        step_size=step_size,
        inverse_mass_matrix=inverse,
        mass_matrix_sqrt=root,
        mass_matrix_sqrt_inv=root_inverse,
    )
    return state._replace(adapt_state=adapted)
