r"""Reference priors of spins: isotropic or aligned, and what they induce for effective spins.

Each function returns the normalised log density of the named parameters at every draw. Where the
parameters are effective spins it is the density given the mass ratio $q$, which the prior on the
component spins induces (Callister 2021, arXiv:2104.09508).

With magnitudes uniform on $[0, A]$ and directions isotropic, a spin's component $x$ along the
orbit's axis and its component $\rho$ in the plane have the joint density $\rho/2A(x^2+\rho^2)$ for
$x^2+\rho^2\le A^2$, and the marginals $\ln(A/|x|)/2A$ and $\arccos(\rho/A)/A$.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import InputError
from .coordinates import Theta, precession_weight


def isotropic_uniform(theta: Theta, names: tuple[str, ...], a_max: float = 0.99) -> Any:
    r"""Magnitudes uniform on $[0, a_\mathrm{max}]$, directions isotropic (LVK, OGC: 0.99)."""
    if set(names) == {"chi_eff"}:
        density = isotropic_chi_eff(theta["chi_eff"], theta["mass_ratio"], a_max)
        return np.log(density)
    if set(names) == {"chi_p"}:
        return np.log(isotropic_chi_p(theta["chi_p"], theta["mass_ratio"], a_max))
    if set(names) == {"chi_eff", "chi_p"}:
        chi_eff, chi_p, mass_ratio = theta["chi_eff"], theta["chi_p"], theta["mass_ratio"]
        return np.log(isotropic_chi_eff_chi_p(chi_eff, chi_p, mass_ratio, a_max))
    return _each(theta, names, _ISOTROPIC, a_max)


def aligned_uniform(theta: Theta, names: tuple[str, ...], a_max: float = 0.99) -> Any:
    r"""Spins along the orbit's axis, $\chi_i$ uniform on $[-a_\mathrm{max}, a_\mathrm{max}]$."""
    if set(names) == {"chi_eff"}:
        return np.log(aligned_chi_eff(theta["chi_eff"], theta["mass_ratio"], a_max))
    return _each(theta, names, _ALIGNED, a_max)


def aligned_isotropic(theta: Theta, names: tuple[str, ...], a_max: float = 0.99) -> Any:
    r"""Spins along the orbit's axis, $\chi_i$ distributed as an isotropic spin's part along it."""
    if set(names) == {"chi_eff"}:
        return isotropic_uniform(theta, names, a_max)
    return _each(theta, names, {"chi": _ISOTROPIC["chi"]}, a_max)


SPIN_PRIORS: dict[str, Callable[..., Any]] = {
    "isotropic-uniform": isotropic_uniform,
    "aligned-uniform": aligned_uniform,
    "aligned-isotropic": aligned_isotropic,
}


def _inside(inside: Any, value: Any) -> Any:
    return np.where(inside, value, -math.inf)


# Log density of one parameter of one spin.
_ISOTROPIC: dict[str, Callable[[Any, float], Any]] = {
    "a": lambda a, a_max: _inside((a >= 0.0) & (a <= a_max), -math.log(a_max)),
    "cos_tilt": lambda cos, a_max: _inside(np.abs(cos) <= 1.0, -math.log(2.0)),
    "tilt": lambda tilt, a_max: np.log(0.5 * np.sin(tilt)),
    "chi": lambda chi, a_max: np.log(_along(chi, a_max)),
}
_ALIGNED: dict[str, Callable[[Any, float], Any]] = {
    "chi": lambda chi, a_max: _inside(np.abs(chi) <= a_max, -math.log(2.0 * a_max)),
}


def _each(
    theta: Theta,
    names: tuple[str, ...],
    table: dict[str, Callable[[Any, float], Any]],
    a_max: float,
) -> Any:
    """Sum over parameters that are independent under the prior."""
    stems = [name.rsplit("_", 1) for name in names]
    for i in ("1", "2"):
        own = {stem for stem, index in stems if index == i}
        redundant = own >= {"tilt", "cos_tilt"} or ("chi" in own and len(own) > 1)
        if redundant:
            raise InputError(
                f"spin {i} is described twice, by {sorted(own)}; keep one description."
            )
    total: Any = 0.0
    for name, (stem, index) in zip(names, stems, strict=True):
        if stem not in table or index not in ("1", "2"):
            known = sorted(f"{stem}_{i}" for stem in table for i in (1, 2))
            raise InputError(
                f"spin parameters {list(names)}: this reference prior gives no joint density of "
                f"them; it knows {known}, or chi_eff and chi_p alone or together where they vary."
            )
        total = total + table[stem](theta[name], a_max)
    return total


# ---- induced densities (densities, not logarithms) -----------------------------------------------


def _along(x: Any, a_max: float) -> Any:
    r"""$f(x) = \ln(A/|x|)/2A$: an isotropic spin's component along an axis."""
    size = np.clip(np.abs(x), 1e-300, a_max)
    return np.log(a_max / size) / (2.0 * a_max)


def aligned_chi_eff(chi_eff: Any, mass_ratio: Any, a_max: float = 1.0) -> Any:
    r"""Density of $\chi_\mathrm{eff}$ given $q$ for $\chi_1, \chi_2$ uniform: a trapezium.

    Callister 2021 (arXiv:2104.09508).
    """
    s = np.abs((1.0 + mass_ratio) * chi_eff)
    overlap = np.clip((1.0 + mass_ratio) * a_max - s, 0.0, 2.0 * mass_ratio * a_max)
    return (1.0 + mass_ratio) * overlap / (4.0 * mass_ratio * a_max**2)


def isotropic_chi_eff(chi_eff: Any, mass_ratio: Any, a_max: float = 1.0) -> np.ndarray:
    r"""Density of $\chi_\mathrm{eff}$ given $q$ for isotropic spins of uniform magnitude.

    $(1+q)\chi_\mathrm{eff} = s$ is the sum of two variables with densities $\ln(A/|x|)/2A$ and
    $\ln(B/|y|)/2B$, $B = qA$, so that

    $$p(\chi_\mathrm{eff}\mid q) = \frac{1+q}{4AB} \int \ln\frac{A}{|x|}\,\ln\frac{B}{|s-x|}\,dx$$

    over $|x|\le A$, $|s-x|\le B$, in closed form through the dilogarithm (Callister 2021,
    arXiv:2104.09508). Zero outside $|\chi_\mathrm{eff}| \le A$.
    """
    chi_eff, q = np.broadcast_arrays(np.asarray(chi_eff, float), np.asarray(mass_ratio, float))
    a, b = a_max, q * a_max
    # Continuous at s = 0, where the antiderivative below is 0/0.
    s = np.maximum(np.abs((1.0 + q) * chi_eff), 1e-9 * b)
    low, high = np.maximum(-a, s - b), np.minimum(a, s + b)
    integral = _log_log(high, s, a, b) - _log_log(low, s, a, b)
    # Near the edge the closed form cancels; there both logarithms are smooth.
    near = (a + b - s < 0.1 * b) & (s < a + b)
    if np.any(near):
        integral = np.array(integral)
        integral[near] = _smooth_overlap(s[near], low[near], high[near], a, b[near])
    return np.where(s < a + b, (1.0 + q) * integral / (4.0 * a * b), 0.0)


def _smooth_overlap(s: Any, low: Any, high: Any, a: float, b: Any) -> Any:
    nodes, weights = np.polynomial.legendre.leggauss(12)
    half = 0.5 * (high - low)[..., None]
    x = low[..., None] + half * (1.0 + nodes)
    value = np.log(a / x) * np.log(b[..., None] / (s[..., None] - x))
    return np.sum(half * weights * value, axis=-1)


def _log_log(x: Any, s: Any, a: float, b: Any) -> Any:
    r"""An antiderivative of $\ln(A/|x|)\ln(B/|s-x|)$ in x, for s > 0.

    With $t = x/s$: $\int \ln|t|\ln|1-t|\,dt = (t\ln|t| - t + 1)\ln|1-t| - t\ln|t| + 2t +
    \mathrm{Re\,Li}_2(1-t)$, by parts.
    """
    t = x / s
    log_t, log_u = _log_abs(t), _log_abs(1.0 - t)
    both = (t * log_t - t + 1.0) * log_u - t * log_t + 2.0 * t + _dilogarithm(1.0 - t)
    log_a, log_b = np.log(a / s), np.log(b / s)
    # In units of s each logarithm is log(A/s) - log|t|, log(B/s) - log|1-t|.
    one = t * log_t - t
    other = (t - 1.0) * log_u - t
    return s * (log_a * log_b * t - log_a * other - log_b * one + both)


def _log_abs(t: Any) -> Any:
    # Always multiplied by what vanishes with its argument.
    return np.log(np.maximum(np.abs(t), 1e-300))


def _dilogarithm(z: Any) -> Any:
    r"""$\mathrm{Re\,Li}_2(z)$ for real z; above 1 by $\mathrm{Li}_2(z) + \mathrm{Li}_2(1/z)$."""
    from scipy.special import spence

    above = np.maximum(z, 1.0)
    inverted = math.pi**2 / 3.0 - 0.5 * np.log(above) ** 2 - spence(1.0 - 1.0 / above)
    return np.where(z > 1.0, inverted, spence(1.0 - np.minimum(z, 1.0)))


def isotropic_chi_p(chi_p: Any, mass_ratio: Any, a_max: float = 1.0) -> Any:
    r"""Density of $\chi_p = \max(\rho_1, \kappa\rho_2)$ given $q$ for isotropic uniform spins.

    $\rho$ has the density $f(\rho) = \arccos(\rho/A)/A$ and the distribution function $F(\rho) = 1
    + (\rho/A)\arccos(\rho/A) - \sqrt{1-\rho^2/A^2}$; then $p = f(\chi_p) F(\chi_p/\kappa) +
    F(\chi_p) f(\chi_p/\kappa)/\kappa$.
    """
    weight = precession_weight(np.asarray(mass_ratio, float))

    def density(u: Any) -> Any:
        return np.arccos(np.clip(u, 0.0, 1.0)) / a_max

    def distribution(u: Any) -> Any:
        u = np.clip(u, 0.0, 1.0)
        # 1 - sqrt(1 - u^2) without cancellation.
        return u * np.arccos(u) + u**2 / (1.0 + np.sqrt(1.0 - u**2))

    one = np.asarray(chi_p, float) / a_max
    two = one / weight
    value = density(one) * distribution(two) + distribution(one) * density(two) / weight
    return np.where(one >= 0.0, value, 0.0)


def isotropic_chi_eff_chi_p(
    chi_eff: Any, chi_p: Any, mass_ratio: Any, a_max: float = 1.0
) -> np.ndarray:
    r"""Joint density of $\chi_\mathrm{eff}$ and $\chi_p$ given $q$ for isotropic uniform spins.

    With $h(x,\rho) = \rho/2A(x^2+\rho^2)$ for $x^2+\rho^2\le A^2$, $H(x, r) = \int_0^r h\,d\rho$,

    $$p = \frac{1+q}{q}\int \left[h(x_1,\chi_p) H(x_2,\tfrac{\chi_p}{\kappa}) +
    \tfrac{1}{\kappa} H(x_1,\chi_p) h(x_2,\tfrac{\chi_p}{\kappa})\right] dx_1,
    \quad x_2 = \frac{(1+q)\chi_\mathrm{eff} - x_1}{q}.$$

    The integral is split where the integrand breaks ($x_i = 0, \pm A, \pm\sqrt{A^2-\rho_i^2}$)
    and each piece is done by a double-exponential rule, which resolves the peaks of width
    $\chi_p$ at the breaks: relative error below 1e-7 for $\chi_p > 0.05$, 1e-4 at $10^{-3}$.
    """
    arrays = np.broadcast_arrays(*(np.asarray(x, float) for x in (chi_eff, chi_p, mass_ratio)))
    one, two, q = (np.ravel(x) for x in arrays)
    value = np.empty(len(q))
    # In blocks: an axis of nodes for all draws at once would not fit the cache.
    for start in range(0, len(q), 512):
        rows = slice(start, start + 512)
        value[rows] = _joint_block(one[rows], two[rows], q[rows], a_max)
    return value.reshape(arrays[0].shape)


def _joint_block(chi_eff: Any, chi_p: Any, q: Any, a: float) -> np.ndarray:
    weight = precession_weight(q)
    rho_1, rho_2 = chi_p, chi_p / weight
    s = (1.0 + q) * chi_eff
    # Beyond its largest in-plane component a spin has no further break.
    edge_1, edge_2 = (np.sqrt(np.clip(a**2 - rho**2, 0.0, None)) for rho in (rho_1, rho_2))
    zero = np.zeros_like(s)
    low, high = np.maximum(-a, s - q * a), np.minimum(a, s + q * a)
    breaks = [low, high, zero, -edge_1, edge_1, s, s - q * edge_2, s + q * edge_2]
    points = np.sort(np.clip(np.stack(breaks, axis=-1), low[:, None], high[:, None]), axis=-1)
    total = np.zeros_like(s)
    for left, right in zip(points.T[:-1], points.T[1:], strict=True):
        # Distances from both ends, so that nodes next to a break stay distinct from it.
        step = (right - left)[:, None] * _NODES
        back = (right - left)[:, None] * _NODES[::-1]
        x_1 = np.where(_NODES < 0.5, left[:, None] + step, right[:, None] - back)
        x_2 = (s[:, None] - x_1) / q[:, None]
        value = _plane(x_1, rho_1[:, None], a) * _plane_below(x_2, rho_2[:, None], a)
        more = _plane_below(x_1, rho_1[:, None], a) * _plane(x_2, rho_2[:, None], a)
        value = value + more / weight[:, None]
        total += (right - left) * np.sum(value * _WEIGHTS, axis=-1)
    sound = (low < high) & (chi_p > 0.0)
    return np.where(sound, (1.0 + q) / q * total, np.where(np.isfinite(s + chi_p), 0.0, math.nan))


def _plane(x: Any, rho: Any, a: float) -> Any:
    """Joint density of the components of one spin along the axis and in the plane."""
    square = x**2 + rho**2
    return np.where(square <= a**2, rho / (2.0 * a * square), 0.0)


def _plane_below(x: Any, rho: Any, a: float) -> Any:
    """Integral of `_plane` over the in-plane component from zero to rho."""
    size = np.clip(x**2, 1e-300, a**2)
    return np.log(np.clip((size + rho**2) / size, 1.0, a**2 / size)) / (4.0 * a)


def _double_exponential(steps: int = 24, reach: float = 3.4) -> tuple[np.ndarray, np.ndarray]:
    r"""Nodes and weights on (0, 1): $x = [1+\tanh(\tfrac{\pi}{2}\sinh t)]/2$, t equally spaced."""
    t = np.linspace(-reach, reach, 2 * steps + 1)
    u = 0.5 * math.pi * np.sinh(t)
    nodes = 1.0 / (1.0 + np.exp(-2.0 * u))
    slope = 0.5 * math.pi * np.cosh(t) / (2.0 * np.cosh(u) ** 2)
    return nodes, slope * (t[1] - t[0])


_NODES, _WEIGHTS = _double_exponential()
