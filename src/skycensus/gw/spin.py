r"""Spin populations: magnitudes, tilts, and the effective spins.

Parameters: `a_1`, `a_2` (dimensionless magnitudes), `cos_tilt_1`, `cos_tilt_2`, `chi_eff`, `chi_p`.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes

from ..density import Density, Joint, Mixture, Theta, check_names
from .families import (
    Beta,
    Hyperparameters,
    TruncatedNormal,
    hyperparameter,
    log_fraction,
    log_ndtr_difference,
)

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(128)


def beta_from_mean_variance(mean: Any, variance: Any) -> Beta:
    r"""Return the beta distribution with this mean and variance.

    $\alpha = \mu\nu$, $\beta = (1-\mu)\nu$ with $\nu = \mu(1-\mu)/\sigma^2 - 1$, which must be
    positive: there is no beta distribution with a variance of $\mu(1-\mu)$ or more.
    """
    total = mean * (1.0 - mean) / variance - 1.0
    return Beta(mean * total, (1.0 - mean) * total)


def beta_magnitudes(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return independent beta distributions of `a_1` and `a_2` (Wysocki et al. 2019,
    arXiv:1805.06442, equation 10).

    Hyperparameters `a_1_mean`, `a_1_variance`, `a_2_mean`, `a_2_variance`.
    """
    return Joint(
        {
            a: beta_from_mean_variance(
                hyperparameter(h, f"{a}_mean{suffix}"), hyperparameter(h, f"{a}_variance{suffix}")
            )
            for a in ("a_1", "a_2")
        }
    )


def beta_magnitudes_iid(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return the same beta distribution for `a_1` and `a_2`, from its mean and variance.

    Hyperparameters `a_mean`, `a_variance` (Abbott et al. 2021, ApJL 913 L7, appendix D.1).
    """
    both = beta_from_mean_variance(
        hyperparameter(h, f"a_mean{suffix}"), hyperparameter(h, f"a_variance{suffix}")
    )
    return Joint({"a_1": both, "a_2": both})


def beta_magnitudes_shape(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return $p(a) \propto a^{\alpha-1} (a_\mathrm{max} - a)^{\beta-1}$ for both `a_1` and `a_2`.

    Hyperparameters `alpha_chi`, `beta_chi`; `amax` where it differs from 1.
    """
    both = Beta(
        hyperparameter(h, f"alpha_chi{suffix}"),
        hyperparameter(h, f"beta_chi{suffix}"),
        high=h.get(f"amax{suffix}", 1.0),
    )
    return Joint({"a_1": both, "a_2": both})


def magnitude_mixture(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return $(1-\zeta)\,N_1(a_1) N_1'(a_2) + \zeta\,N_2(a_1) N_2'(a_2)$, truncated normals.

    Hyperparameters `a_zeta` and, for `a_1` and `a_2`, `a_1_comp1_loc`, `a_1_comp1_scale` and the
    same with `comp2`; `a_1_comp1_low` and `a_1_comp1_high` where they differ from 0 and 1.
    """
    zeta = hyperparameter(h, f"a_zeta{suffix}")
    components = {
        comp: Joint(
            {
                a: TruncatedNormal(
                    hyperparameter(h, f"{a}_{comp}_loc{suffix}"),
                    hyperparameter(h, f"{a}_{comp}_scale{suffix}"),
                    low=h.get(f"{a}_{comp}_low{suffix}", 0.0),
                    high=h.get(f"{a}_{comp}_high{suffix}", 1.0),
                )
                for a in ("a_1", "a_2")
            }
        )
        for comp in ("comp1", "comp2")
    }
    weights = {"comp1": log_fraction(1.0 - zeta), "comp2": log_fraction(zeta)}
    return Mixture(components, log_weights=weights)


def tilt_mixture(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return isotropic plus preferentially aligned tilts, over `cos_tilt_1` and `cos_tilt_2`:

    $$p(c_1, c_2) = \frac{1-\zeta}{(h_1-l_1)(h_2-l_2)} + \zeta\, \mathcal N_{[l_1,h_1]}(c_1 \mid
      \mu_1, \sigma_1)\, \mathcal N_{[l_2,h_2]}(c_2 \mid \mu_2, \sigma_2).$$

    Hyperparameters `cos_tilt_zeta`, `cos_tilt_1_loc`, `cos_tilt_1_scale`, the same of
    `cos_tilt_2`; `cos_tilt_1_low` and `cos_tilt_1_high` where they differ from -1 and 1. With
    loc = 1 it is the model of Talbot & Thrane 2017 (arXiv:1704.08370, equation 4).
    """
    names = ("cos_tilt_1", "cos_tilt_2")
    bounds = {c: (h.get(f"{c}_low{suffix}", -1.0), h.get(f"{c}_high{suffix}", 1.0)) for c in names}
    normals = {
        c: (hyperparameter(h, f"{c}_loc{suffix}"), hyperparameter(h, f"{c}_scale{suffix}"))
        for c in names
    }
    return _tilts(hyperparameter(h, f"cos_tilt_zeta{suffix}"), normals, bounds)


def tilt_mixture_iid(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return `tilt_mixture` with one normal for both tilts, on [-1, 1].

    Hyperparameters `xi_spin` (fraction of the aligned component), `mu_spin` (its mean; 1 where not
    given) and `sigma_spin` (Abbott et al. 2023, PRX 13 011048, appendix B.2; the free mean is that
    of Vitale et al. 2022, arXiv:2209.06978).
    """
    normal = (h.get(f"mu_spin{suffix}", 1.0), hyperparameter(h, f"sigma_spin{suffix}"))
    names = ("cos_tilt_1", "cos_tilt_2")
    xi = hyperparameter(h, f"xi_spin{suffix}")
    return _tilts(xi, dict.fromkeys(names, normal), dict.fromkeys(names, (-1.0, 1.0)))


def _tilts(
    zeta: Any, normals: dict[str, tuple[Any, Any]], bounds: dict[str, tuple[Any, Any]]
) -> Mixture:
    return Mixture(
        {
            "isotropic": Joint({c: dist.Uniform(*bounds[c]) for c in bounds}),
            "aligned": Joint(
                {
                    c: TruncatedNormal(*normals[c], low=low, high=high)
                    for c, (low, high) in bounds.items()
                }
            ),
        },
        log_weights={"isotropic": log_fraction(1.0 - zeta), "aligned": log_fraction(zeta)},
    )


def gaussian_chi_eff(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return $\mathcal N_{[-1,1]}(\chi_\mathrm{eff} \mid \mu, \sigma)$ over `chi_eff`.

    Hyperparameters `mu_chi_eff`, `sigma_chi_eff` (Roulet & Zaldarriaga 2019, arXiv:1806.10610;
    Miller et al. 2020, arXiv:2001.06051).
    """
    loc = hyperparameter(h, f"mu_chi_eff{suffix}")
    scale = hyperparameter(h, f"sigma_chi_eff{suffix}")
    return Joint({"chi_eff": TruncatedNormal(loc, scale, low=-1.0, high=1.0)})


def skew_normal_chi_eff(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return the skewed normal of GWTC-4 over `chi_eff`; see `EpsilonSkewNormal`.

    Hyperparameters `chi_eff_loc`, `chi_eff_scale`, `chi_eff_epsilon`.
    """
    loc, scale, epsilon = (
        hyperparameter(h, f"chi_eff_{part}{suffix}") for part in ("loc", "scale", "epsilon")
    )
    return Joint({"chi_eff": EpsilonSkewNormal(loc, scale, epsilon)})


def correlated_chi_eff_chi_p(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return a correlated normal over `chi_eff` and `chi_p`; see `CorrelatedEffectiveSpins`.

    Hyperparameters `mu_eff`, `sigma_eff`, `mu_p`, `sigma_p`, `rho` (Abbott et al. 2021, ApJL 913
    L7, equations D3 and D4).
    """
    return CorrelatedEffectiveSpins(
        *(
            hyperparameter(h, name + suffix)
            for name in ("mu_eff", "sigma_eff", "mu_p", "sigma_p", "rho")
        )
    )


class EpsilonSkewNormal(dist.Distribution):
    r"""Two half-normals of different widths that meet at their mode, on $[-1, 1]$.

    $$p(x) \propto \begin{cases}
      (1+\epsilon)\,\mathcal N_{[-1,1]}(x \mid \mu, \sigma(1+\epsilon)) & x \le \mu \\
      (1-\epsilon)\,\mathcal N_{[-1,1]}(x \mid \mu, \sigma(1-\epsilon)) & x > \mu \end{cases}$$

    with each $\mathcal N_{[-1,1]}$ normalised on $[-1, 1]$ (GWTC-4.0 populations,
    arXiv:2508.18083). As each is normalised by itself, $p$ is continuous at $\mu$ only so far as
    the truncation is negligible.

    Args:
        loc, scale: $\mu$ and $\sigma > 0$.
        epsilon: skewness in (-1, 1), positive for the longer tail at low values.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "epsilon": constraints.interval(-1.0, 1.0),
    }
    support = constraints.interval(-1.0, 1.0)

    def __init__(self, loc: Any, scale: Any, epsilon: Any, *, validate_args: bool | None = None):
        self.loc, self.scale, self.epsilon = promote_shapes(loc, scale, epsilon)
        shape = jax.lax.broadcast_shapes(*(jnp.shape(x) for x in (loc, scale, epsilon)))
        super().__init__(batch_shape=shape, validate_args=validate_args)

    def _sides(self) -> tuple[TruncatedNormal, TruncatedNormal]:
        return (
            TruncatedNormal(self.loc, self.scale * (1.0 + self.epsilon), low=-1.0, high=1.0),
            TruncatedNormal(self.loc, self.scale * (1.0 - self.epsilon), low=-1.0, high=1.0),
        )

    def _masses(self) -> tuple[Array, Array]:
        """Masses of the two sides before the common normalisation."""
        left, right = self._sides()
        low = (1.0 + self.epsilon) * left.cdf(self.loc)
        high = (1.0 - self.epsilon) * (1.0 - right.cdf(self.loc))
        return low, high

    def log_prob(self, value: Any) -> Array:
        left, right = self._sides()
        log_norm = jnp.log(sum(self._masses()))
        # Everything but the square is a number per side: per draw one selection and one square.
        is_left = value <= self.loc
        scale = jnp.where(is_left, left.scale, right.scale)
        constant = jnp.where(
            is_left,
            jnp.log1p(self.epsilon) - jnp.log(left.scale) - left.log_mass,
            jnp.log1p(-self.epsilon) - jnp.log(right.scale) - right.log_mass,
        )
        z = (value - self.loc) / scale
        return -0.5 * jnp.square(z) + (constant - 0.5 * math.log(2.0 * math.pi) - log_norm)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = sample_shape + self.batch_shape
        side_key, key = jax.random.split(key)
        left, right = self._sides()
        low, high = self._masses()
        is_left = jax.random.uniform(side_key, shape) * (low + high) < low
        u = jax.random.uniform(key, shape, jnp.result_type(float))
        middle = right.cdf(self.loc)
        below = left.icdf(u * left.cdf(self.loc))
        return jnp.where(is_left, below, right.icdf(middle + u * (1.0 - middle)))


class CorrelatedEffectiveSpins:
    r"""Bivariate normal of $(\chi_\mathrm{eff}, \chi_p)$ restricted to $[-1,1] \times [0,1]$.

    $$p = \frac{1}{Z\,2\pi\sigma_e\sigma_p\sqrt{1-\rho^2}}
      \exp\left[-\frac{z_e^2 - 2\rho z_e z_p + z_p^2}{2(1-\rho^2)}\right],\qquad
      z_e = \frac{\chi_\mathrm{eff}-\mu_e}{\sigma_e},\ z_p = \frac{\chi_p-\mu_p}{\sigma_p},$$

    where $Z$ is the share of the normal inside the box: one dimension of it in closed form, the
    other by Gauss–Legendre quadrature, once per point (Abbott et al. 2021, ApJL 913 L7,
    equations D3 and D4).

    Args:
        mu_eff, sigma_eff: mean and standard deviation of `chi_eff` before the restriction.
        mu_p, sigma_p: those of `chi_p`.
        rho: their correlation, in (-1, 1).
    """

    names = ("chi_eff", "chi_p")

    def __init__(self, mu_eff: Any, sigma_eff: Any, mu_p: Any, sigma_p: Any, rho: Any):
        self.mu_eff, self.sigma_eff = mu_eff, sigma_eff
        self.mu_p, self.sigma_p, self.rho = mu_p, sigma_p, rho
        self.log_mass = self._log_mass()

    def _log_conditional_mass(self, z: Array) -> Array:
        """Log share of `chi_p` in [0, 1], given `chi_eff` at z standard deviations."""
        width = jnp.sqrt((1.0 - self.rho) * (1.0 + self.rho))
        a, b = (0.0 - self.mu_p) / self.sigma_p, (1.0 - self.mu_p) / self.sigma_p
        return log_ndtr_difference((a - self.rho * z) / width, (b - self.rho * z) / width)

    def _log_mass(self) -> Array:
        a, b = (-1.0 - self.mu_eff) / self.sigma_eff, (1.0 - self.mu_eff) / self.sigma_eff
        # Nine standard deviations around the mean, or from the nearest edge, hold all of it.
        low = jnp.maximum(a, jnp.minimum(-9.0, b - 9.0))
        high = jnp.minimum(b, jnp.maximum(9.0, a + 9.0))
        half = 0.5 * (high - low)
        z = low + half * (1.0 + jnp.asarray(_NODES, jnp.result_type(float, half)))
        log_terms = self._log_conditional_mass(z) - 0.5 * jnp.square(z)
        log_weights = jnp.log(jnp.asarray(_WEIGHTS, z.dtype)) - 0.5 * math.log(2.0 * math.pi)
        return jax.scipy.special.logsumexp(log_terms + log_weights) + jnp.log(half)

    def log_prob(self, theta: Theta) -> Array:
        check_names(self.names, theta)
        chi_eff, chi_p = theta["chi_eff"], theta["chi_p"]
        inside = (jnp.abs(chi_eff) <= 1.0) & (chi_p >= 0.0) & (chi_p <= 1.0)
        one_minus = (1.0 - self.rho) * (1.0 + self.rho)
        ze = (chi_eff - self.mu_eff) / self.sigma_eff
        zp = (chi_p - self.mu_p) / self.sigma_p
        square = (jnp.square(ze) - 2.0 * self.rho * ze * zp + jnp.square(zp)) / one_minus
        log_det = jnp.log(self.sigma_eff) + jnp.log(self.sigma_p) + 0.5 * jnp.log(one_minus)
        constant = log_det + math.log(2.0 * math.pi) + self.log_mass
        return jnp.where(inside, -0.5 * square - constant, -jnp.inf)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> dict[str, Array]:
        key_eff, key_p = jax.random.split(key)
        a, b = (-1.0 - self.mu_eff) / self.sigma_eff, (1.0 - self.mu_eff) / self.sigma_eff
        # chi_eff from its marginal by a fine table, then chi_p given chi_eff exactly.
        z = jnp.linspace(jnp.maximum(a, -12.0), jnp.minimum(b, 12.0), 8193)
        density = jnp.exp(self._log_conditional_mass(z) - 0.5 * jnp.square(z))
        cdf = jnp.concatenate([jnp.zeros(1), jnp.cumsum(0.5 * (density[1:] + density[:-1]))])
        u = jax.random.uniform(key_eff, sample_shape, jnp.result_type(float))
        ze = jnp.interp(u * cdf[-1], cdf, z)
        width = jnp.sqrt((1.0 - self.rho) * (1.0 + self.rho))
        chi_p = TruncatedNormal(
            self.mu_p + self.rho * self.sigma_p * ze, self.sigma_p * width, low=0.0, high=1.0
        ).sample(key_p)
        return {"chi_eff": self.mu_eff + self.sigma_eff * ze, "chi_p": chi_p}
