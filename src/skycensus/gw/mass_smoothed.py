r"""Mass populations whose low end turns on smoothly, over `mass_1_source` and `mass_ratio`.

All of them are

$$p(m_1) \propto S(m_1)\sum_k w_k\,p_k(m_1),\qquad p(q \mid m_1) \propto q^\beta\, S(q\, m_1),\qquad
  S(m) = \left[1 + \exp\left(\frac{\delta}{m'} + \frac{\delta}{m'-\delta}\right)\right]^{-1},\quad
  m' = m - m_\mathrm{min} \in (0, \delta),$$

with S = 0 below and 1 above (Talbot & Thrane 2018, arXiv:1801.02699, equations 7 and 8, with the
sign of the latter corrected; Abbott et al. 2021, ApJL 913 L7, appendix B). Above the taper every
integral has a closed form; inside it, quadrature once per point of the hyperparameters gives the
norm of m1, and a table that of q. Masses are source-frame, in solar masses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from ..density import Density, Joint, Mixture, Theta, logsumexp_terms
from ..distributions import PowerLaw, mean_exp
from .families import Hyperparameters, TruncatedNormal, hyperparameter, log_fraction
from .mass import BrokenPowerLaw

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(256)

# A taper narrower than this (in solar masses) is a step.
_NARROWEST = 1e-6


def log_taper(x: Any) -> Array:
    r"""Return the log of the Planck taper: $-\ln[1 + e^{1/x + 1/(x-1)}]$ on (0, 1).

    $-\infty$ for x <= 0 and 0 for x >= 1, with finite gradients everywhere.
    """
    inside = (x > 0.0) & (x < 1.0)
    # The gradient goes as 1/x²: below 1e-9 the value has long vanished, and 1/x² must not overflow.
    safe = jnp.maximum(jnp.where(inside, x, 0.5), 1e-9)
    value = -jax.nn.softplus(1.0 / safe - 1.0 / (1.0 - safe))
    return jnp.where(inside, value, jnp.where(x > 0.0, 0.0, -jnp.inf))


class Tapered:
    r"""$p(m_1) = S(m_1) \sum_k w_k\,p_k(m_1) / Z$ over `mass_1_source`.

    Args:
        components: name -> distribution of m1 with `cdf` and `icdf`, whose support starts at `low`.
        log_weights: name -> $\ln w_k$ of the normalised, untapered components.
        low, delta: where the taper starts and how wide it is.
        valid: where false, the density is zero everywhere.

    $Z = \int S \sum_k w_k p_k\,dm$ is a Gauss–Legendre sum over the taper plus, above it, what the
    distribution functions say. A peak inside the taper is resolved down to about delta/100.
    """

    name = "mass_1_source"
    names = ("mass_1_source",)

    def __init__(
        self,
        components: Mapping[str, Any],
        *,
        log_weights: Mapping[str, Any],
        low: Any,
        delta: Any,
        valid: Any = True,
    ):
        self.low, self.delta = low, jnp.maximum(delta, _NARROWEST)
        self.distributions = dict(components)
        self.log_weights = dict(log_weights)
        self.base = Mixture(
            {k: Joint({self.name: d}) for k, d in self.distributions.items()},
            log_weights=self.log_weights,
        )
        x = jnp.asarray(0.5 * (1.0 + _NODES), jnp.result_type(float, self.low, self.delta))
        inside = jnp.sum(jnp.asarray(0.5 * _WEIGHTS, x.dtype) * jnp.exp(self._log_inside(x)))
        self._above = {
            k: jnp.exp(self.log_weights[k]) * (1.0 - d.cdf(self.low + self.delta))
            for k, d in self.distributions.items()
        }
        self._inside = inside
        norm = jnp.log(inside + sum(self._above.values()))
        self.log_norm = jnp.where(valid, norm, jnp.inf)

    def _log_inside(self, x: Array) -> Array:
        """Log of the unnormalised density per x = (m1 - low)/delta, inside the taper."""
        m = self.low + self.delta * x
        return self.base.log_prob({self.name: m}) + log_taper(x) + jnp.log(self.delta)

    def log_terms(self, theta: Theta) -> dict[str, Array]:
        common = log_taper((theta[self.name] - self.low) / self.delta) - self.log_norm
        return {leaf: term + common for leaf, term in self.base.log_terms(theta).items()}

    def log_prob(self, theta: Theta) -> Array:
        return logsumexp_terms(self.log_terms(theta))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> dict[str, Array]:
        pick_key, u_key = jax.random.split(key)
        names = list(self.distributions)
        masses = jnp.stack([self._inside, *(self._above[k] for k in names)])
        pick = jax.random.categorical(pick_key, jnp.log(masses), shape=sample_shape)
        u = jax.random.uniform(u_key, sample_shape, jnp.result_type(float))
        # Inside the taper by a fine table; above it each component by its own inverse.
        x = jnp.linspace(0.0, 1.0, 4097)
        density = jnp.exp(self._log_inside(jnp.maximum(x, 1e-9)))
        cdf = jnp.concatenate([jnp.zeros(1), jnp.cumsum(0.5 * (density[1:] + density[:-1]))])
        draw = self.low + self.delta * jnp.interp(u * cdf[-1], cdf, x)
        for i, name in enumerate(names, start=1):
            d = self.distributions[name]
            start = d.cdf(self.low + self.delta)
            draw = jnp.where(pick == i, d.icdf(start + u * (1.0 - start)), draw)
        return {self.name: draw}


_ORDER, _BINS = 32, 2048


def _table_constants() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Chebyshev nodes on [0, 1], the matrix from values there to a fine table, and a quadrature.

    Order 32 keeps the error below 3e-7 and linear interpolation in 2048 bins below 1e-6.
    """
    k = np.arange(_ORDER)
    angle = np.pi * (k + 0.5) / _ORDER
    to_coefficients = 2.0 / _ORDER * np.cos(np.outer(k, angle))
    to_coefficients[0] *= 0.5
    fine = np.arccos(np.clip(2.0 * np.linspace(0.0, 1.0, _BINS + 1) - 1.0, -1.0, 1.0))
    to_table = np.cos(np.outer(fine, k)) @ to_coefficients
    # w in (0, 45), crowded towards 0: what lies beyond is below e^-45.
    t, weight = np.polynomial.legendre.leggauss(64)
    u = 0.5 * (1.0 + t)
    return 0.5 * (1.0 + np.cos(angle)), to_table, 45.0 * u**2, 45.0 * u * weight


_X, _TO_TABLE, _W, _W_WEIGHTS = _table_constants()


class TaperedPowerLaw:
    r"""The integrals $F(m) = \int_\mathrm{low}^m t^\beta S(t)\,dt$ of a tapered power law.

    $p(m_2 \mid m_1) = m_2^\beta S(m_2)/F(m_1)$ on [low, m1], so one function of one variable
    normalises the mass ratio at every m1. With b = low + delta, x = (m - low)/delta and k = β + 1,

    $$F(m)/b^k = \begin{cases} (\delta/b)\,(m/b)^\beta\, S(m)\, x^2\, e^{h(x)} & m < b \\
      F(b)/b^k + L\,\psi(-kL),\quad L = \ln(m/b),\ \psi(u) = (1-e^{-u})/u & m \ge b.\end{cases}$$

    $h$ is bounded and smooth (S falls as $e^{-1/x}$, its integral as $x^2 e^{-1/x}$): a Chebyshev
    polynomial in x, written to a table here, from
    $e^{h(x)} = \int_0^\infty \frac{S(xs)}{S(x)}\left(\frac{m_s}{m}\right)^{\beta} s^2\,dw$,
    $s = 1/(1+xw)$, $m_s = \mathrm{low} + \delta x s$.

    Args:
        exponent: β.
        low, delta: where the taper starts and how wide it is.
    """

    def __init__(self, exponent: Any, low: Any, delta: Any):
        self.exponent, self.low, self.delta = exponent, low, jnp.maximum(delta, _NARROWEST)
        self.full = self.low + self.delta
        dtype = jnp.result_type(float, exponent, self.full)
        x = jnp.asarray(_X, dtype)[:, None]
        s = 1.0 / (1.0 + x * jnp.asarray(_W, dtype))
        ratio = jnp.log(self.low + self.delta * x * s) - jnp.log(self.low + self.delta * x)
        terms = log_taper(x * s) - log_taper(x) + exponent * ratio + 2.0 * jnp.log(s)
        h = jnp.log(jnp.sum(jnp.exp(terms) * jnp.asarray(_W_WEIGHTS, dtype), axis=1))
        # A precise product: accelerators would round a matrix product to half of single precision.
        self._table = jnp.matmul(jnp.asarray(_TO_TABLE, dtype), h, precision="highest")
        self._log_ratio = jnp.log(self.delta) - jnp.log(self.full)
        self.mass_in_taper = jnp.exp(self._log_ratio + self._table[-1])

    def _interpolate(self, x: Array) -> Array:
        # By index: evaluating the polynomial per draw costs as much again as all the rest, and its
        # reverse-mode gradient far more.
        position = x * _BINS
        i = jnp.minimum(position.astype(jnp.int32), _BINS - 1)
        left = self._table[i]
        return left + (position - i) * (self._table[i + 1] - left)

    def log_taper(self, m: Any) -> Array:
        return log_taper((m - self.low) / self.delta)

    def log_integral(self, m: Any) -> Array:
        r"""Return $\ln[F(m)/b^k]$; finite (but meaningless) at m <= low."""
        x = (m - self.low) / self.delta
        below = x < 1.0
        safe = jnp.clip(jnp.where(below, x, 0.5), 1e-9, 1.0)
        m_safe = self.low + self.delta * safe
        inside = (
            self._log_ratio
            + self.exponent * (jnp.log(m_safe) - jnp.log(self.full))
            + log_taper(safe)
            + 2.0 * jnp.log(safe)
            + self._interpolate(safe)
        )
        width = jnp.log(jnp.where(below, self.full, m)) - jnp.log(self.full)
        above = width * mean_exp(-(self.exponent + 1.0) * width)
        return jnp.where(below, inside, jnp.log(self.mass_in_taper + above))

    def icdf(self, q: Any, high: Any) -> Array:
        """Return the mass below which lies a share q of the tapered power law on [low, high]."""
        k = self.exponent + 1.0
        target = q * jnp.exp(self.log_integral(high))
        x = jnp.linspace(0.0, 1.0, 4097)
        grid = jnp.where(x > 0, jnp.exp(self.log_integral(self.low + self.delta * x)), 0.0)
        inside = self.low + self.delta * jnp.interp(target, grid.at[-1].set(self.mass_in_taper), x)
        excess = jnp.maximum(target - self.mass_in_taper, 0.0)
        # Solve L ψ(-kL) = (e^{kL} - 1)/k = excess for L.
        tiny = jnp.abs(k * excess) < 1e-30
        width = jnp.where(tiny, excess, jnp.log1p(k * excess) / jnp.where(tiny, 1.0, k))
        mass = jnp.where(excess > 0.0, self.full * jnp.exp(width), inside)
        return jnp.minimum(mass, high)


class TaperedMassRatio(dist.Distribution):
    r"""$p(q \mid m_1) \propto q^\beta S(q\,m_1)$ on $[\mathrm{low}/m_1, 1]$.

    Args:
        secondary: the tapered power law of m2 = q m1, made once for all m1.
        mass_1: m1, whose shape is the batch shape.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    finite_outside_support = True

    def __init__(self, secondary: TaperedPowerLaw, mass_1: Any):
        self.secondary, self.mass_1 = secondary, mass_1
        super().__init__(batch_shape=jnp.shape(mass_1))

    @property
    def support(self) -> Any:
        return constraints.interval(self.secondary.low / self.mass_1, 1.0)

    def log_prob(self, value: Any) -> Array:
        law = self.secondary
        # p(q) = m1 m2^β S(m2) / F(m1), everything in units of the end of the taper.
        log_width = jnp.log(self.mass_1) - jnp.log(law.full)
        log_power = law.exponent * jnp.log(value) + (law.exponent + 1.0) * log_width
        return log_power + law.log_taper(value * self.mass_1) - law.log_integral(self.mass_1)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = sample_shape + self.batch_shape
        u = jax.random.uniform(key, shape, jnp.result_type(float))
        return self.secondary.icdf(u, self.mass_1) / self.mass_1


def _smoothed(
    components: Mapping[str, Any],
    log_weights: Mapping[str, Any],
    *,
    beta: Any,
    low: tuple[Any, Any],
    delta: tuple[Any, Any],
    valid: Any = True,
) -> Joint:
    """Join a tapered m1 with a tapered mass ratio; `low` and `delta` are those of m1 and m2."""
    primary = Tapered(components, log_weights=log_weights, low=low[0], delta=delta[0], valid=valid)
    secondary = TaperedPowerLaw(beta, low[1], delta[1])
    return Joint(
        {
            "mass_1_source": primary,
            "mass_ratio": lambda theta: TaperedMassRatio(secondary, theta["mass_1_source"]),
        }
    )


def _take(h: Hyperparameters, suffix: str, names: str) -> list[Any]:
    return [hyperparameter(h, name + suffix) for name in names.split()]


def smoothed_power_law(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return the smoothed form of `mass.power_law_mass_ratio`.

    Hyperparameters `alpha`, `beta`, `delta`, `mmin`, `mmax`: $p(m_1) \propto m_1^{-\alpha} S(m_1)$
    up to `mmax` (the truncated model of Abbott et al. 2021, ApJL 913 L7, smoothed).
    """
    alpha, beta, delta, low, high = _take(h, suffix, "alpha beta delta mmin mmax")
    parts = {"power_law": PowerLaw(-alpha, low, high)}
    return _smoothed(parts, {"power_law": 0.0}, beta=beta, low=(low,) * 2, delta=(delta,) * 2)


def smoothed_power_law_peak(
    h: Hyperparameters, suffix: str = "", *, peak_high: float = 100.0
) -> Density:
    r"""Return the power law + peak model of GWTC-2 and GWTC-3:

    $$p(m_1) \propto \left[(1-\lambda)\,\mathrm{PL}(m_1 \mid -\alpha, m_\mathrm{min},
      m_\mathrm{max}) + \lambda\,\mathcal N(m_1 \mid \mu, \sigma)\right] S(m_1).$$

    Hyperparameters `alpha`, `beta`, `delta`, `lambda_peak`, `loc`, `scale`, `mmin`, `mmax` (Abbott
    et al. 2021, ApJL 913 L7, appendix B.2; Abbott et al. 2023, PRX 13 011048, appendix B.1.b). The
    peak is truncated to [mmin, peak_high] before the taper.
    """
    names = "alpha beta delta lambda_peak loc scale mmin mmax"
    alpha, beta, delta, lam, loc, scale, low, high = _take(h, suffix, names)
    parts = {
        "power_law": PowerLaw(-alpha, low, high),
        "peak": TruncatedNormal(loc, scale, low=low, high=peak_high),
    }
    weights = {"power_law": log_fraction(1.0 - lam), "peak": log_fraction(lam)}
    return _smoothed(parts, weights, beta=beta, low=(low,) * 2, delta=(delta,) * 2)


def smoothed_multi_peak(
    h: Hyperparameters, suffix: str = "", *, peak_high: float = 100.0
) -> Density:
    r"""Return a power law with two peaks, of fractions $1-\lambda$, $\lambda\lambda_1$ and
    $\lambda(1-\lambda_1)$, tapered.

    Hyperparameters `alpha`, `beta`, `delta_m`, `lam`, `lam_1`, `mpp_1`, `sigpp_1`, `mpp_2`,
    `sigpp_2`, `mmin`, `mmax` (Abbott et al. 2021, ApJL 913 L7, appendix B.4). The peaks are
    truncated to [mmin, peak_high] before the taper.
    """
    names = "alpha beta delta_m lam lam_1 mpp_1 sigpp_1 mpp_2 sigpp_2 mmin mmax"
    alpha, beta, delta, lam, lam_1, loc1, scale1, loc2, scale2, low, high = _take(h, suffix, names)
    parts = {
        "power_law": PowerLaw(-alpha, low, high),
        "peak_1": TruncatedNormal(loc1, scale1, low=low, high=peak_high),
        "peak_2": TruncatedNormal(loc2, scale2, low=low, high=peak_high),
    }
    weights = {
        "power_law": log_fraction(1.0 - lam),
        "peak_1": log_fraction(lam) + log_fraction(lam_1),
        "peak_2": log_fraction(lam) + log_fraction(1.0 - lam_1),
    }
    return _smoothed(parts, weights, beta=beta, low=(low,) * 2, delta=(delta,) * 2)


def smoothed_broken_power_law(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return a broken power law in m1, tapered, with its break at
    $m_\mathrm{min} + b\,(m_\mathrm{max} - m_\mathrm{min})$.

    Hyperparameters `alpha_1`, `alpha_2`, `beta`, `break_fraction` (b), `delta_m`, `mmin`, `mmax`
    (Abbott et al. 2021, ApJL 913 L7, appendix B.3).
    """
    names = "alpha_1 alpha_2 beta break_fraction delta_m mmin mmax"
    alpha_1, alpha_2, beta, fraction, delta, low, high = _take(h, suffix, names)
    law = BrokenPowerLaw(alpha_1, alpha_2, low + fraction * (high - low), low, high)
    return _smoothed(
        {"power_law": law}, {"power_law": 0.0}, beta=beta, low=(low,) * 2, delta=(delta,) * 2
    )


def smoothed_broken_power_law_peak(
    h: Hyperparameters, suffix: str = "", *, peak_high: float = 100.0
) -> Density:
    r"""Return `smoothed_broken_power_law` with a fraction `lam` in a Gaussian peak.

    Hyperparameters those of `smoothed_broken_power_law` and `lam`, `mpp`, `sigpp`. The peak is
    truncated to [mmin, peak_high] before the taper.
    """
    names = "alpha_1 alpha_2 beta break_fraction delta_m lam mpp sigpp mmin mmax"
    a_1, a_2, beta, fraction, delta, lam, loc, scale, low, high = _take(h, suffix, names)
    parts = {
        "power_law": BrokenPowerLaw(a_1, a_2, low + fraction * (high - low), low, high),
        "peak": TruncatedNormal(loc, scale, low=low, high=peak_high),
    }
    weights = {"power_law": log_fraction(1.0 - lam), "peak": log_fraction(lam)}
    return _smoothed(parts, weights, beta=beta, low=(low,) * 2, delta=(delta,) * 2)


def broken_power_law_two_peaks(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return the broken power law + two peaks of GWTC-4:

    $$p(m_1) \propto \left[\lambda_0\,\mathrm{BP}(m_1 \mid \alpha_1, \alpha_2, m_b) + \lambda_1\,
      \mathcal N(m_1 \mid \mu_1, \sigma_1) + (1-\lambda_0-\lambda_1)\,\mathcal N(m_1 \mid \mu_2,
      \sigma_2)\right] S(m_1 \mid m_{1,\mathrm{min}}, \delta_1),$$

    $p(q \mid m_1) \propto q^\beta S(q\,m_1 \mid m_{2,\mathrm{min}}, \delta_2)$, every component
    normalised on $[m_{1,\mathrm{min}}, m_\mathrm{max}]$ before the taper.

    Hyperparameters `alpha1`, `alpha2`, `mbreak`, `lambda_0`, `lambda_1`, `loc1`, `scale1`, `loc2`,
    `scale2`, `m1min`, `delta_m1`, `mmax`, `beta`, `m2min`, `delta_m2` (GWTC-4.0 populations,
    arXiv:2508.18083). Where $\lambda_0 + \lambda_1 > 1$ there is no such density, and
    this one is zero everywhere.
    """
    names = "alpha1 alpha2 mbreak lambda_0 lambda_1 loc1 scale1 loc2 scale2"
    alpha1, alpha2, mbreak, lam_0, lam_1, loc1, scale1, loc2, scale2 = _take(h, suffix, names)
    names = "m1min delta_m1 mmax beta m2min delta_m2"
    low, delta1, high, beta, low2, delta2 = _take(h, suffix, names)
    rest = 1.0 - lam_0 - lam_1
    # Fractions that sum to one may miss it by rounding.
    valid = rest > -1e-6
    rest = jnp.maximum(rest, 0.0)
    parts = {
        "power_law": BrokenPowerLaw(alpha1, alpha2, mbreak, low, high),
        "peak_1": TruncatedNormal(loc1, scale1, low=low, high=high),
        "peak_2": TruncatedNormal(loc2, scale2, low=low, high=high),
    }
    weights = {
        "power_law": log_fraction(lam_0),
        "peak_1": log_fraction(lam_1),
        "peak_2": log_fraction(rest),
    }
    return _smoothed(
        parts, weights, beta=beta, low=(low, low2), delta=(delta1, delta2), valid=valid
    )
