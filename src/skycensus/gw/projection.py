r"""How strongly a source of unknown direction and orientation projects on one detector.

The signal-to-noise ratio of a source in an L-shaped detector is $\rho = w \rho_\mathrm{opt}$ with

    $w^2 = F_+^2 \left(\frac{1+\cos^2\iota}{2}\right)^2 + F_\times^2 \cos^2\iota$, $0 \le w \le 1$

(Finn & Chernoff 1993, arXiv:gr-qc/9301003, whose $\Theta$ is $4w$). For directions and orientations
that are isotropic, $w$ is the product of two independent variables of one distribution: writing
$F_+ = R\cos u$, $F_\times = R\sin u$, with $u$ uniform because the polarisation angle is,

    $R^2 = \left(\frac{1+c^2}{2}\right)^2 \cos^2 v + c^2 \sin^2 v$

of the direction ($c = \cos\theta$, $v = 2\varphi$), and $w = R\,R'$ where $R'$ is the same function
of ($\cos\iota$, $u$). Both angles' cosines are uniform, so that $\langle w^2\rangle = (2/5)^2$.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ._interpolation import interpolate

MEAN_SQUARE = 4.0 / 25.0
"""The mean of $w^2$ over directions and orientations."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_NODES, _WEIGHTS = 0.5 * (_NODES + 1.0), 0.5 * _WEIGHTS


def _factor_survival(r: np.ndarray) -> np.ndarray:
    r"""Return $P(R > r)$ for r in [0, 1].

    At given $c$, $R^2 = c^2 + \frac{(1-c^2)^2}{4} \cos^2 v$: it exceeds $r^2$ always for $c > r$,
    never for $(1+c^2)/2 < r$, and with probability $\frac{2}{\pi} \arccos(2\sqrt{r^2-c^2}/(1-c^2))$
    in between.
    """
    r = np.asarray(r, float)[..., None]
    low = np.sqrt(np.maximum(2.0 * r - 1.0, 0.0))
    # The integrand has a square root at either end, removed by c = low + (r - low) sin^2(t).
    t = 0.5 * np.pi * _NODES
    c = low + (r - low) * np.sin(t) ** 2
    jacobian = (r - low) * np.sin(2.0 * t) * 0.5 * np.pi
    with np.errstate(invalid="ignore", divide="ignore"):
        argument = 2.0 * np.sqrt(np.maximum(r * r - c * c, 0.0)) / (1.0 - c * c)
    chance = np.where(r < 1.0, 2.0 / np.pi * np.arccos(np.clip(argument, 0.0, 1.0)), 0.0)
    return 1.0 - r[..., 0] + np.sum(_WEIGHTS * jacobian * chance, axis=-1)


@functools.cache
def _scaled_survival() -> np.ndarray:
    r"""Return $P(w > x) / (1-x)^2$ on a uniform grid over [0, 1]: smooth, positive, 1 at 0.

    $P(w > x) = \int_0^{Q(x)} Q(x / s)\,dP(R > s)$, Q the survival function of one factor: the
    integral over the probability $y$ that the other one exceeds $s$.
    """
    # A sine grid resolves the ends, where the survival function has infinite second derivatives.
    s = np.sin(0.5 * np.pi * np.linspace(0.0, 1.0, 4001)) ** 2
    q = _factor_survival(s)
    x = np.linspace(0.0, 1.0, 513)[1:-1]
    y = np.interp(x, s, q)[:, None] * np.sin(0.5 * np.pi * _NODES) ** 2
    dy = np.interp(x, s, q)[:, None] * 0.5 * np.pi * np.sin(np.pi * _NODES) * _WEIGHTS
    other = np.interp(y, q[::-1], s[::-1])
    survival = np.sum(dy * _factor_survival(np.minimum(x[:, None] / other, 1.0)), axis=1)
    inner = survival / (1.0 - x) ** 2
    # Both factors have density one at their maximum, so P(w > x) -> (1-x)^2 / 2.
    return np.concatenate([[1.0], inner, [0.5]])


@jax.jit
def log_survival(x: Any) -> Array:
    r"""Return $\ln P(w > x)$ for non-negative x: 0 at zero, $-\infty$ from one on; elementwise."""
    x = jnp.asarray(x, jnp.result_type(float, x))
    # Beyond the support the function is taken at its middle, so that no gradient there is NaN.
    outside = x >= 1.0
    safe = jnp.where(outside, 0.5, x)
    table = _scaled_survival()
    scaled = interpolate(table, [safe * (table.size - 1)])
    return jnp.where(outside, -jnp.inf, 2.0 * jnp.log1p(-safe) + jnp.log(scaled))


@jax.jit
def survival(x: Any) -> Array:
    """Return $P(w > x)$ for non-negative x; elementwise."""
    return jnp.exp(log_survival(x))
