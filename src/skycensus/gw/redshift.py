r"""Redshift populations: a comoving merger rate that evolves with redshift.

With $\psi(z)$ the rate per comoving volume and source-frame time relative to $z = 0$, mergers per
redshift and detector-frame time go as

$$\frac{dN}{dz\,dt} = R_0\, \psi(z) \frac{dV_C}{dz} \frac{1}{1+z} = R_0\, V\, p(z), \qquad
  V = \int_0^{z_\mathrm{max}} \psi \frac{dV_C}{dz} \frac{dz}{1+z}.$$

The densities are the normalised $p(z)$; their factor carries $\ln V$ as `log_volume` [Gpc³], which
turns a local rate $R_0$ [Gpc⁻³ yr⁻¹] into mergers per year.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes

from ..density import Density, Joint
from .cosmology import PLANCK_2015, FlatLambdaCDM
from .families import Hyperparameters, hyperparameter

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


class _Redshift(dist.Distribution):
    """What the redshift distributions share; each adds `log_evolution`."""

    def __init__(
        self, z_max: Any, cosmology: FlatLambdaCDM, shape: tuple[int, ...], validate_args: Any
    ):
        self.z_max, self.cosmology = z_max, cosmology
        super().__init__(batch_shape=shape, validate_args=validate_args)
        self.log_volume = self._log_volume()

    @property
    def support(self) -> Any:
        return constraints.interval(0.0, self.z_max)

    def log_evolution(self, z: Any) -> Array:
        raise NotImplementedError

    def _log_spacetime(self, z: Any) -> Array:
        # A function of z and the cosmology alone, so that it can be computed once for all draws.
        return self.cosmology.log_differential_comoving_volume(z) - jnp.log1p(z)

    def _log_volume(self) -> Array:
        z_max = jnp.asarray(self.z_max, jnp.result_type(float, self.z_max))
        # Nodes first, so that they broadcast against any batch of hyperparameters.
        axes = (-1,) + (1,) * len(self.batch_shape)
        nodes = jnp.asarray(_NODES, z_max.dtype).reshape(axes)
        log_weights = jnp.log(jnp.asarray(_WEIGHTS, z_max.dtype)).reshape(axes)
        z = 0.5 * z_max * (1.0 + nodes)
        terms = self.log_evolution(z) + self._log_spacetime(z) + log_weights
        return jax.scipy.special.logsumexp(terms, axis=0) + jnp.log(0.5 * z_max)

    def log_prob(self, value: Any) -> Array:
        return self.log_evolution(value) + self._log_spacetime(value) - self.log_volume

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        if self.batch_shape:
            raise NotImplementedError("sampling needs scalar hyperparameters; use jax.vmap.")
        # p goes as z² at small z: the cube root of the cumulative is smooth there.
        x = jnp.linspace(0.0, 1.0, 8193)
        z = self.z_max * x
        density = jnp.exp(self.log_prob(jnp.where(x > 0, z, self.z_max))) * (x > 0)
        cdf = jnp.concatenate([jnp.zeros(1), jnp.cumsum(0.5 * (density[1:] + density[:-1]))])
        u = jax.random.uniform(key, sample_shape, jnp.result_type(float))
        return jnp.cbrt(jnp.interp(u * cdf[-1], cdf, z**3))


class PowerLawRedshift(_Redshift):
    r"""$p(z) \propto (1+z)^{\kappa-1}\,dV_C/dz$ on $[0, z_\mathrm{max}]$; see `power_law`."""

    arg_constraints: ClassVar[dict[str, Any]] = {
        "kappa": constraints.real,
        "z_max": constraints.positive,
    }

    def __init__(
        self,
        kappa: Any,
        z_max: Any,
        *,
        cosmology: FlatLambdaCDM = PLANCK_2015,
        validate_args: bool | None = None,
    ):
        self.kappa, z_max = promote_shapes(kappa, z_max)
        shape = jax.lax.broadcast_shapes(jnp.shape(kappa), jnp.shape(z_max))
        super().__init__(z_max, cosmology, shape, validate_args)

    def log_evolution(self, z: Any) -> Array:
        return self.kappa * jnp.log1p(z)


class MadauDickinsonRedshift(_Redshift):
    r"""$p(z) \propto \psi(z)\,dV_C/dz/(1+z)$ with a rate that peaks; see `madau_dickinson`."""

    arg_constraints: ClassVar[dict[str, Any]] = {
        "kappa": constraints.real,
        "gamma": constraints.real,
        "z_peak": constraints.positive,
        "z_max": constraints.positive,
    }

    def __init__(
        self,
        kappa: Any,
        gamma: Any,
        z_peak: Any,
        z_max: Any,
        *,
        cosmology: FlatLambdaCDM = PLANCK_2015,
        validate_args: bool | None = None,
    ):
        self.kappa, self.gamma, self.z_peak, z_max = promote_shapes(kappa, gamma, z_peak, z_max)
        shape = jax.lax.broadcast_shapes(*(jnp.shape(x) for x in (kappa, gamma, z_peak, z_max)))
        super().__init__(z_max, cosmology, shape, validate_args)

    def log_evolution(self, z: Any) -> Array:
        # 1 + ((1+z)/(1+z_p))^γ, over its value at z = 0; softplus cannot overflow.
        peak = self.gamma * jnp.log1p(self.z_peak)
        turnover = jax.nn.softplus(self.gamma * jnp.log1p(z) - peak) - jax.nn.softplus(-peak)
        return self.kappa * jnp.log1p(z) - turnover


def power_law(
    h: Hyperparameters, suffix: str = "", *, cosmology: FlatLambdaCDM | None = None
) -> Density:
    r"""Return the density over `redshift` with $\psi(z) = (1+z)^\kappa$.

    Hyperparameters `redshift_kappa`, `redshift_z_max` (Fishbach, Holz & Farr 2018,
    arXiv:1805.10270). The cosmology is the one given, else that of the hyperparameters `H0` and
    `Om0` if there are any, else `PLANCK_2015`. Where it is free, source-frame data depend on it
    too: use detector-frame data, or a mass model that is converted with the same cosmology.
    """
    kappa, z_max = (hyperparameter(h, f"redshift_{part}{suffix}") for part in ("kappa", "z_max"))
    return Joint({"redshift": PowerLawRedshift(kappa, z_max, cosmology=_cosmology(h, cosmology))})


def madau_dickinson(
    h: Hyperparameters, suffix: str = "", *, cosmology: FlatLambdaCDM | None = None
) -> Density:
    r"""Return the density over `redshift` whose rate rises as $(1+z)^\kappa$ and falls beyond a
    peak:

    $$\psi(z) = \frac{[1 + (1+z_p)^{-\gamma}]\,(1+z)^\kappa}{1 + [(1+z)/(1+z_p)]^\gamma}.$$

    Hyperparameters `redshift_kappa`, `redshift_gamma`, `redshift_z_peak`, `redshift_z_max` (Madau &
    Dickinson 2014, arXiv:1403.0007, equation 15, normalised to $\psi(0) = 1$ as in Callister et al.
    2020, arXiv:2003.12152). Cosmology as in `power_law`.
    """
    names = ("kappa", "gamma", "z_peak", "z_max")
    kappa, gamma, z_peak, z_max = (hyperparameter(h, f"redshift_{n}{suffix}") for n in names)
    d = MadauDickinsonRedshift(kappa, gamma, z_peak, z_max, cosmology=_cosmology(h, cosmology))
    return Joint({"redshift": d})


def log_volume(density: Any) -> Any:
    r"""Return $\ln V$ [Gpc³] of the redshift factor of a density; zero where there is none."""
    factors = density.factors.values() if isinstance(density, Joint) else (density,)
    return sum((f.log_volume for f in factors if hasattr(f, "log_volume")), start=0.0)


def _cosmology(h: Hyperparameters, given: FlatLambdaCDM | None) -> FlatLambdaCDM:
    if given is not None:
        return given
    return FlatLambdaCDM(h.get("H0", PLANCK_2015.H0), h.get("Om0", PLANCK_2015.Om0))
