r"""The Galaxy's dark-matter halo: density profiles and their integrals along lines of sight.

Radii are in kpc, densities in GeV cm⁻³, angles from the Galactic centre in degrees. Every profile
passes through the local density at the Sun; the default values are those of PPPC 4 DM ID (Cirelli
et al. 2011, arXiv:1012.4515, table 2: 0.3 GeV cm⁻³ at 8.33 kpc). Every number of a profile may be a
hyperparameter.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..density import logsumexp
from ..errors import InputError
from .interpolation import hermite

# ln of a kiloparsec in cm.
_LOG_KPC = math.log(3.0856775814913673e21)

# Where a line of sight ends: beyond it are 1e-5 of a decay's photons, 1e-12 of an annihilation's.
_END = 1e4

# Closest to the centre that is told apart, as an angle: a cusp's integral diverges at zero.
_SMALLEST_ANGLE = 1e-6

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)
_STEPS, _LOG_STEP_WEIGHTS = 0.5 * (_NODES + 1.0), np.log(0.5 * _WEIGHTS)

# Nodes in angle of a table.
_NUM_ANGLES = 512


class Profile(ABC):
    r"""A spherical density $\rho(r) = \rho_\odot\,s(r)/s(d)$; to add one, write `log_shape`.

    Attributes:
        scale_radius: in kpc.
        local_density: $\rho_\odot$ in GeV cm⁻³.
        distance: d, of the Sun from the centre, in kpc.
    """

    scale_radius: Any
    local_density: Any
    distance: Any

    @abstractmethod
    def log_shape(self, log_radius: Array) -> Array:
        r"""$\ln s$ at $\ln(r/r_s)$; any shape, elementwise."""

    def log_density(self, radius: Any) -> Array:
        r"""$\ln\rho$ [GeV cm⁻³] at radii in kpc."""
        log_scale = jnp.log(self.scale_radius)
        shape = self.log_shape(jnp.log(radius) - log_scale)
        local = self.log_shape(jnp.log(self.distance) - log_scale)
        return jnp.log(self.local_density) + shape - local


class Einasto(Profile):
    r"""$s = \exp\{-\frac{2}{\alpha}[(r/r_s)^\alpha - 1]\}$, with slope −2 at $r_s$ (Einasto 1965).

    Args:
        alpha: $\alpha$; steeper at the centre where it is smaller.
        scale_radius, local_density, distance: see `Profile`.
    """

    def __init__(
        self,
        alpha: Any = 0.17,
        *,
        scale_radius: Any = 28.44,
        local_density: Any = 0.3,
        distance: Any = 8.33,
    ):
        self.alpha, self.scale_radius = alpha, scale_radius
        self.local_density, self.distance = local_density, distance

    def log_shape(self, log_radius: Array) -> Array:
        return -2.0 / self.alpha * jnp.expm1(self.alpha * log_radius)


class GeneralizedNFW(Profile):
    r"""$s = (r/r_s)^{-\gamma}\,(1 + r/r_s)^{\gamma - 3}$ (Navarro, Frenk & White 1996 for γ = 1).

    Args:
        slope: $\gamma$ at the centre; annihilation needs less than 1.5.
        scale_radius, local_density, distance: see `Profile`.
    """

    def __init__(
        self,
        slope: Any = 1.0,
        *,
        scale_radius: Any = 24.42,
        local_density: Any = 0.3,
        distance: Any = 8.33,
    ):
        self.slope, self.scale_radius = slope, scale_radius
        self.local_density, self.distance = local_density, distance

    def log_shape(self, log_radius: Array) -> Array:
        outer = (self.slope - 3.0) * jnp.log1p(jnp.exp(log_radius))
        return -self.slope * log_radius + outer


def nfw(
    *, scale_radius: Any = 24.42, local_density: Any = 0.3, distance: Any = 8.33
) -> GeneralizedNFW:
    """Return the profile of Navarro, Frenk & White (1996): slope 1 at the centre."""
    return GeneralizedNFW(
        1.0, scale_radius=scale_radius, local_density=local_density, distance=distance
    )


def moore(
    *, scale_radius: Any = 30.28, local_density: Any = 0.3, distance: Any = 8.33
) -> GeneralizedNFW:
    """Return the profile of Moore et al. as PPPC 4 DM ID has it: slope 1.16 at the centre."""
    return GeneralizedNFW(
        1.16, scale_radius=scale_radius, local_density=local_density, distance=distance
    )


class Burkert(Profile):
    r"""$s = [(1 + r/r_s)(1 + (r/r_s)^2)]^{-1}$, with a core (Burkert 1995).

    Args:
        scale_radius, local_density, distance: see `Profile`.
    """

    def __init__(
        self, *, scale_radius: Any = 12.67, local_density: Any = 0.3, distance: Any = 8.33
    ):
        self.scale_radius, self.local_density = scale_radius, local_density
        self.distance = distance

    def log_shape(self, log_radius: Array) -> Array:
        return -jnp.log1p(jnp.exp(log_radius)) - jnp.log1p(jnp.exp(2.0 * log_radius))


class Isothermal(Profile):
    r"""$s = [1 + (r/r_s)^2]^{-1}$, with a core.

    Args:
        scale_radius, local_density, distance: see `Profile`.
    """

    def __init__(self, *, scale_radius: Any = 4.38, local_density: Any = 0.3, distance: Any = 8.33):
        self.scale_radius, self.local_density = scale_radius, local_density
        self.distance = distance

    def log_shape(self, log_radius: Array) -> Array:
        return -jnp.log1p(jnp.exp(2.0 * log_radius))


# ---- along a line of sight -----------------------------------------------------------------------


def log_j_factor(profile: Profile, angle: Any) -> Array:
    r"""Return $\ln\frac{dJ}{d\Omega} = \ln\int\rho^2\,dl$ in GeV² cm⁻⁵ sr⁻¹, for annihilation.

    With the impact parameter $b = d\sin\theta$ and $r = b\cosh u$ the line element is $r\,du$: the
    cusp is no harder than the rest. Both sides of the closest point are integrated, with 96
    Gauss–Legendre nodes each; beyond 90° there is only what lies outwards. The relative error is
    below 1e-9 from 0.001° to 180° for the profiles here. Angles below 1e-6° count as 1e-6°.

    Args:
        profile: the halo.
        angle: from the Galactic centre in degrees, 0 to 180; any shape.
    """
    return _line_integral(profile, angle, 2.0)


def log_d_factor(profile: Profile, angle: Any) -> Array:
    r"""Return $\ln\frac{dD}{d\Omega} = \ln\int\rho\,dl$ in GeV cm⁻² sr⁻¹, for decay.

    For the arguments and the method see `log_j_factor`.
    """
    return _line_integral(profile, angle, 1.0)


def _line_integral(profile: Profile, angle: Any, power: float) -> Array:
    # At 180 degrees the line passes through the centre behind us: the same small angle away.
    angle = jnp.clip(jnp.asarray(angle, float), _SMALLEST_ANGLE, 180.0 - _SMALLEST_ANGLE)
    theta = jnp.deg2rad(angle)
    log_impact = jnp.log(profile.distance) + jnp.log(jnp.sin(theta))
    # The Sun is at u = -asinh(cot theta), the closest point at 0, the end at u_end.
    to_sun = jnp.arcsinh(jnp.cos(theta) / jnp.sin(theta))
    end = jnp.log(2.0 * _END) - log_impact
    behind = _log_integral_over_u(profile, log_impact, jnp.maximum(-to_sun, 0.0), end, power)
    between = _log_integral_over_u(
        profile, log_impact, jnp.zeros_like(to_sun), jnp.maximum(to_sun, 0.0), power
    )
    return logsumexp(jnp.stack([behind, between]), axis=0) + _LOG_KPC


def _log_integral_over_u(
    profile: Profile, log_impact: Array, start: Array, stop: Array, power: float
) -> Array:
    """Log of the integral of density**power * r over u, -inf over an empty interval."""
    width = stop - start
    empty = width <= 0
    u = start[..., None] + width[..., None] * _STEPS
    # ln cosh u without overflow.
    log_radius = log_impact[..., None] + u + jnp.log1p(jnp.exp(-2.0 * u)) - math.log(2.0)
    terms = power * profile.log_density(jnp.exp(log_radius)) + log_radius + _LOG_STEP_WEIGHTS
    total = logsumexp(terms, axis=-1) + jnp.log(jnp.where(empty, 1.0, width))
    return jnp.where(empty, -jnp.inf, total)


LogFactor = Callable[[Profile, Any], Array]


def tabulated(profile: Profile, factor: LogFactor = log_j_factor) -> Callable[[Any], Array]:
    """Return a quick function of the angle: `factor` at 512 angles and cubics between them.

    For many angles and one profile. Still differentiable in the profile's parameters; within 1e-5
    of `factor` from 1e-4 to 179.9 degrees, and constant beyond.
    """
    # Even in ln tan(angle / 2): fine at the cusp, and no finer than needed where all is smooth.
    start, stop = _log_half_tan(np.array([1e-4, 179.9])).tolist()
    nodes = np.linspace(start, stop, _NUM_ANGLES)
    # A halo of plain numbers is done with here: a compiler takes minutes to fold such constants.
    with jax.ensure_compile_time_eval():
        table = _compiled(factor, profile)(np.rad2deg(2.0 * np.arctan(np.exp(nodes))))
    # Differences of the second order: smoother than slopes that guard against an overshoot.
    slopes = jnp.gradient(table, nodes[1] - nodes[0])

    @jax.jit
    def interpolated(angle: Any) -> Array:
        angle = jnp.clip(jnp.asarray(angle, float), 1e-4, 179.9)
        return hermite(nodes, table, slopes, _log_half_tan(angle))

    return interpolated


def _compiled(factor: LogFactor, profile: Profile) -> Callable[[Any], Array]:
    """The factor of the angle, as one program: by itself it is fifty small ones."""
    return jax.jit(lambda angle: factor(profile, angle))


def _log_half_tan(angle: Any) -> Any:
    xp: Any = np if isinstance(angle, np.ndarray) else jnp
    return xp.log(xp.tan(xp.deg2rad(0.5 * angle)))


@dataclass(frozen=True, eq=False)
class Halo:
    r"""A halo's $dJ/d\Omega$ or $dD/d\Omega$ as a function of the angle [deg]: of a `sky.Around`.

    More than 512 angles at once are looked up in a table, see `tabulated`.

    Args:
        profile: the halo, whose numbers may be hyperparameters.
        factor: `log_j_factor` for dark matter that annihilates, `log_d_factor` where it decays.
    """

    profile: Profile
    factor: LogFactor = log_j_factor

    def __call__(self, angle: Any) -> Array:
        few = np.size(angle) <= _NUM_ANGLES
        return jnp.exp(self._direct(angle) if few else self._table(angle))

    @cached_property
    def _direct(self) -> Callable[[Any], Array]:
        return _compiled(self.factor, self.profile)

    @cached_property
    def _table(self) -> Callable[[Any], Array]:
        return tabulated(self.profile, self.factor)


# ---- over a region -------------------------------------------------------------------------------


def log_j_within(
    profile: Profile,
    radius: float,
    *,
    inner: float = 0.0,
    plane: float = 0.0,
    factor: LogFactor = log_j_factor,
) -> Array:
    r"""Return $\ln\int\frac{dJ}{d\Omega}\,d\Omega$ over a disk or ring about the Galactic centre.

    Args:
        profile: the halo.
        radius: outer radius in degrees, up to 180.
        inner: inner radius in degrees.
        plane: leave out latitudes |b| below this, in degrees.
        factor: `log_j_factor` for GeV² cm⁻⁵, `log_d_factor` for GeV cm⁻².

    Raises:
        InputError: radii that are not in order.
    """
    if not 0 <= inner < radius <= 180 or not 0 <= plane < 90:
        raise InputError(
            f"a region needs 0 <= inner < radius <= 180 and 0 <= plane < 90 degrees, got "
            f"inner={inner:g}, radius={radius:g}, plane={plane:g}."
        )
    # Rings nearer to the centre than this are summed as the power law that the profile is there.
    has_core = inner == 0 and plane == 0
    centre = min(1e-5, 0.5 * radius) if has_core else max(inner, plane)
    if centre >= radius:
        return jnp.asarray(-jnp.inf)
    # A ring's share outside the plane has a corner where it leaves the plane's band on either side.
    edges = sorted({centre, radius, *(x for x in (90.0, 180.0 - plane) if centre < x < radius)})
    with jax.ensure_compile_time_eval():
        parts = [_log_rings(profile, a, b, plane, factor) for a, b in itertools.pairwise(edges)]
        if has_core:
            parts.append(_log_core(profile, centre, factor))
        return logsumexp(jnp.stack(parts), axis=0)


def _log_rings(
    profile: Profile, inner: float, outer: float, plane: float, factor: LogFactor
) -> Array:
    """Rings between two angles, summed evenly in the logarithm of the angle."""
    width = math.log(outer / inner)
    # Squared steps gather nodes at the inner edge: next to the plane a share is a square root.
    log_angle = math.log(inner) + width * _STEPS**2
    angle = np.exp(log_angle)
    height = np.sin(np.deg2rad(plane)) / np.sin(np.deg2rad(angle))
    share = 1.0 - 2.0 / np.pi * np.arcsin(np.clip(height, 0.0, 1.0))
    ring = 2.0 * np.pi * np.sin(np.deg2rad(angle)) * np.deg2rad(angle) * share
    log_weights = np.log(np.maximum(ring, 1e-300)) + _LOG_STEP_WEIGHTS
    log_weights = log_weights + np.log(2.0 * _STEPS * width)
    return logsumexp(factor(profile, angle) + log_weights, axis=0)


def _log_core(profile: Profile, radius: float, factor: LogFactor) -> Array:
    """A small disk about the centre, over which the factor is a power law of the angle."""
    low, high = factor(profile, np.array([0.1 * radius, radius]))
    slope = (high - low) / math.log(10.0)
    theta = math.radians(radius)
    return high + math.log(2.0 * math.pi * theta**2) - jnp.log(2.0 + slope)
