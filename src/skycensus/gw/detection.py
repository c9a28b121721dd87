r"""Detection probability of compact binaries from a waveform's amplitude and a detector's noise.

A source is called detected where its signal-to-noise ratio in one detector exceeds a threshold:

    $p_\mathrm{det}(\theta) = P\left(w > \rho_\mathrm{th} / \rho_\mathrm{opt}(\theta)\right)$,
    $\rho_\mathrm{opt}^2 = 4 \int |\tilde h(f)|^2 / S(f)\, df$,

with $\rho_\mathrm{opt}$ that of the source overhead and face-on and $w$ its projection on the
detector, averaged over directions and orientations (`projection`). One detector at threshold 8
stands for a network of two like ones at about 12: the convention of the observing-scenario
paper (Abbott et al. 2018, Living Reviews in Relativity 21, 3) and of the first population studies.

`draw_injections` turns it into found injections, so that selection is the same Monte Carlo integral
as the objects' own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..blocks import in_blocks
from ..errors import InputError
from . import projection
from ._interpolation import interpolate
from .amplitude import CUTOFF, SOLAR_MASS_SECONDS, relative_amplitude
from .coordinates import Theta
from .cosmology import PLANCK_2015, FlatLambdaCDM
from .injections import Injections
from .noise import NoiseCurve, noise_curve

MEGAPARSEC_SECONDS = 1.0292712503e14
"""One Mpc over the speed of light in seconds."""

OBSERVING_TIME = {"O1": 48.6 / 365.25, "O2": 118.0 / 365.25}
"""Coincident time of the two LIGO detectors in years, from 48.6 days (Abbott et al. 2016,
arXiv:1606.04856) and 118 days (Abbott et al. 2019, arXiv:1811.12907)."""

# Steps of the table: 512 frequencies and 32 total masses per e-fold, so that a mass step is a whole
# number of frequency steps, and the amplitude is needed on one grid of M f only.
_STEPS, _MASS_STEPS = 512, 32
_MIN_TOTAL_MASS = 1.0
_MIN_MASS_RATIO = 0.02
_MAX_SPIN = 0.95
_MAX_REDSHIFT = 30.0


class SemiAnalyticDetection:
    r"""Detection probability averaged over directions and orientations, from a table of amplitudes.

    $\ln\rho_\mathrm{opt}$ of IMRPhenomD is tabulated once against the detector-frame total mass,
    the mass ratio and, with `aligned_spin`, the spin, and interpolated to better than $10^{-4}$
    relative. All methods are elementwise in the arrays of theta, and work under jit, vmap, grad.

    theta holds the masses as `mass_1_source` with `mass_ratio` or `mass_2_source`, or as the
    detector-frame `mass_1` with `mass_ratio` or `mass_2`, in solar masses; and `redshift`, or
    `luminosity_distance` in Mpc, or both; with `aligned_spin` also `chi_eff`, which both components
    then have along the orbit. Below a mass ratio of 0.02 the SNR scales as $\sqrt\eta$, spins
    beyond ±0.95 are taken as ±0.95, and where the signal lies below the band the SNR is zero.

    Args:
        noise: name of a built-in curve (`noise.NOISE_CURVES`), a `NoiseCurve` (one of your own is
            read by `noise.read_noise_curve`), or a function of the frequency in Hz giving the
            amplitude spectral density in Hz$^{-1/2}$.
        snr_threshold: the single-detector threshold.
        low_frequency: where the integral begins, in Hz.
        aligned_spin: let the SNR depend on `chi_eff`; otherwise spins are taken as zero.
        cosmology: relates redshift and distance.
    """

    def __init__(
        self,
        noise: str | NoiseCurve | Callable[[np.ndarray], np.ndarray] = "aLIGO-early-high",
        *,
        snr_threshold: float = 8.0,
        low_frequency: float = 10.0,
        aligned_spin: bool = False,
        cosmology: FlatLambdaCDM = PLANCK_2015,
    ) -> None:
        curve = noise_curve(noise)
        if not snr_threshold > 0.0:
            raise InputError(
                f"snr_threshold={snr_threshold} is not positive; give a signal-to-noise ratio, "
                "for example 8."
            )
        if not 0.0 < low_frequency < curve.high:
            raise InputError(
                f"low_frequency={low_frequency} Hz is outside the band of noise curve "
                f"'{curve.name}' ({curve.low:g} to {curve.high:g} Hz); give one inside."
            )
        self.noise = curve
        self.snr_threshold = float(snr_threshold)
        self.low_frequency = max(float(low_frequency), curve.low)
        self.aligned_spin = bool(aligned_spin)
        self.cosmology = cosmology
        self._table = _table(curve, self.low_frequency, self.aligned_spin)

    def snr(self, theta: Theta) -> Array:
        r"""Return $\rho_\mathrm{opt}$, the SNR of the source overhead and face-on."""
        total, ratio, distance = self._source(theta)
        return self._snr_at_1_mpc(total, ratio, self._spin(theta)) / distance

    def p_det(self, theta: Theta) -> Array:
        """Return the detection probability, in [0, 1]."""
        return projection.survival(self._threshold_fraction(theta))

    def log_p_det(self, theta: Theta) -> Array:
        r"""Return the natural logarithm of `p_det`: $-\infty$ where the source cannot be found."""
        return projection.log_survival(self._threshold_fraction(theta))

    def horizon_redshift(self, theta: Theta) -> Array:
        """Return the redshift at which a source of these source-frame masses has `snr_threshold`.

        Sources are not sought beyond a redshift of 30.
        """
        m1, ratio = _masses(theta, "_source")
        spin = self._spin(theta)

        def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = 0.5 * (low + high)
            z = jnp.exp(middle)
            total = m1 * (1.0 + ratio) * (1.0 + z)
            reach = self._snr_at_1_mpc(total, ratio, spin) / self.snr_threshold
            seen = reach > self.cosmology.luminosity_distance(z)
            return jnp.where(seen, middle, low), jnp.where(seen, high, middle)

        low = jnp.full(jnp.broadcast_shapes(m1.shape, ratio.shape), math.log(1e-9), m1.dtype)
        high = jnp.full_like(low, math.log(_MAX_REDSHIFT))
        low, high = jax.lax.fori_loop(0, 36, halve, (low, high))
        return jnp.exp(0.5 * (low + high))

    def sensitive_volume(self, theta: Theta, *, num_nodes: int = 48) -> Array:
        r"""Return $V = \int p_\mathrm{det}\, \frac{dV_c}{dz} \frac{dz}{1+z}$ in Gpc³.

        theta needs source-frame masses only. A population of constant comoving rate density R of
        such sources gives R V T detections in a time T.
        """
        horizon = self.horizon_redshift(theta)
        nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
        dtype = horizon.dtype

        def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
            z = horizon * node[0]
            chance = self.p_det({**theta, "redshift": z})
            return total + node[1] * chance * self._volume_element(z), None

        rule = jnp.asarray(0.5 * (nodes + 1.0), dtype), jnp.asarray(0.5 * weights, dtype)
        total, _ = jax.lax.scan(add, jnp.zeros_like(horizon), rule)
        return horizon * total

    def _volume_element(self, z: Array) -> Array:
        return self.cosmology.differential_comoving_volume(z) / (1.0 + z)

    def _threshold_fraction(self, theta: Theta) -> Array:
        total, ratio, distance = self._source(theta)
        snr = self._snr_at_1_mpc(total, ratio, self._spin(theta))
        silent = snr <= 0.0
        fraction = self.snr_threshold * distance / jnp.where(silent, 1.0, snr)
        # Any number above one: no projection reaches the threshold.
        return jnp.where(silent, 2.0, fraction)

    def _snr_at_1_mpc(self, total: Array, ratio: Array, spin: Array | None) -> Array:
        step = math.log(1.0 / _MIN_MASS_RATIO) / (self._table.shape[1] - 1)
        position = [
            (jnp.log(total) - math.log(_MIN_TOTAL_MASS)) * _MASS_STEPS,
            # The table runs from equal masses downwards.
            -jnp.log(ratio) / step,
        ]
        if spin is not None:
            position.append((spin / _MAX_SPIN + 1.0) * 0.5 * (self._table.shape[2] - 1))
        value = interpolate(self._table, position)
        eta = ratio / (1.0 + ratio) ** 2
        snr = jnp.exp(0.5 * jnp.log(eta) + 5.0 / 6.0 * jnp.log(total) + value)
        # In this order a NaN stays one.
        return jnp.where(total > CUTOFF / (self.low_frequency * SOLAR_MASS_SECONDS), 0.0, snr)

    def _spin(self, theta: Theta) -> Array | None:
        if not self.aligned_spin:
            return None
        if "chi_eff" not in theta:
            raise InputError(
                "detection probability with aligned_spin=True needs 'chi_eff'; got "
                f"{_listed(theta)}. Give it, or build the detection with aligned_spin=False."
            )
        return jnp.asarray(theta["chi_eff"], jnp.result_type(float, theta["chi_eff"]))

    def _source(self, theta: Theta) -> tuple[Array, Array, Array]:
        """Return detector-frame total mass, mass ratio, luminosity distance."""
        if "redshift" not in theta and "luminosity_distance" not in theta:
            raise InputError(
                "detection probability needs 'redshift' or 'luminosity_distance' [Mpc]; got "
                f"{_listed(theta)}. Add one of them."
            )
        if "luminosity_distance" in theta:
            given = theta["luminosity_distance"]
            distance = jnp.asarray(given, jnp.result_type(float, given))
        else:
            distance = self.cosmology.luminosity_distance(theta["redshift"])
        if "mass_1" in theta:
            mass_1, ratio = _masses(theta, "")
            return mass_1 * (1.0 + ratio), ratio, distance
        mass_1, ratio = _masses(theta, "_source")
        if "redshift" in theta:
            redshift = theta["redshift"]
        else:
            redshift = self.cosmology.redshift_at(distance)
        return mass_1 * (1.0 + ratio) * (1.0 + redshift), ratio, distance


def _listed(theta: Theta) -> str:
    return ", ".join(f"'{name}'" for name in theta) or "nothing"


def _masses(theta: Theta, frame: str) -> tuple[Array, Array]:
    """Return the primary mass and the mass ratio, the smaller of q and 1/q."""
    first, second = f"mass_1{frame}", f"mass_2{frame}"
    if first not in theta or not {"mass_ratio", second} & set(theta):
        raise InputError(
            f"detection probability needs '{first}' with 'mass_ratio' or '{second}'; got "
            f"{_listed(theta)}. Derive them with gw.coordinates.to_parameters."
        )
    given = theta[first], theta["mass_ratio" if "mass_ratio" in theta else second]
    dtype = jnp.result_type(float, *given)
    mass_1, other = (jnp.asarray(x, dtype) for x in given)
    ratio = other if "mass_ratio" in theta else other / mass_1
    # The SNR is symmetric in the components; a larger "secondary" is the primary.
    swap = ratio > 1.0
    return jnp.where(swap, mass_1 * ratio, mass_1), jnp.where(swap, 1.0 / ratio, ratio)


@functools.lru_cache(maxsize=8)
def _table(curve: NoiseCurve, low: float, aligned_spin: bool) -> np.ndarray:
    r"""Return $\ln\left(\rho\, \eta^{-1/2} M^{-5/6}\right)$ at 1 Mpc, M in solar masses.

    Shape (total masses, mass ratios) or (total masses, mass ratios, spins). With $x = \ln Mf$,

        $\rho^2 = \frac{5 \eta M^{5/3}}{6 \pi^{4/3} d^2} \int f^{-4/3} \alpha(Mf)^2 / S\, d\ln f$

    is for every mass a window of one array $\alpha(x)^2$ against fixed weights.
    """
    num_frequencies = int(math.log(curve.high / low) * _STEPS) + 1
    frequency = low * np.exp(np.arange(num_frequencies) / _STEPS)
    frequency = np.minimum(frequency, curve.high)
    asd = np.asarray(curve.asd(frequency), float)
    if asd.shape != frequency.shape or not (np.all(asd > 0.0) and np.all(np.isfinite(asd))):
        raise InputError(
            f"noise curve '{curve.name}' is not positive and finite between {low:g} and "
            f"{curve.high:g} Hz; give a curve that is, or a narrower band."
        )
    weight = frequency ** (-4.0 / 3.0) / asd**2 / _STEPS
    weight[[0, -1]] *= 0.5
    # The heaviest total mass still leaves the first frequency below the model's cut.
    lowest = _MIN_TOTAL_MASS * SOLAR_MASS_SECONDS * low
    num_masses = int(math.log(CUTOFF / lowest) * _MASS_STEPS) + 1
    stride = _STEPS // _MASS_STEPS
    mf = lowest * np.exp(np.arange(num_frequencies + (num_masses - 1) * stride) / _STEPS)

    ratio = _MIN_MASS_RATIO ** np.linspace(0.0, 1.0, 33)
    eta = ratio / (1.0 + ratio) ** 2
    spins = np.linspace(-_MAX_SPIN, _MAX_SPIN, 17) if aligned_spin else np.zeros(1)
    table = np.empty((num_masses, ratio.size, spins.size))
    for k, spin in enumerate(spins):
        power = relative_amplitude(mf, eta, np.full_like(eta, spin)) ** 2
        windows = np.lib.stride_tricks.sliding_window_view(power, num_frequencies, axis=1)
        table[:, :, k] = (windows[:, ::stride] @ weight).T
    scale = 5.0 / 6.0 * math.pi ** (-4.0 / 3.0)
    scale *= SOLAR_MASS_SECONDS ** (5.0 / 3.0) / MEGAPARSEC_SECONDS**2
    table = 0.5 * np.log(scale * table)
    table = table if aligned_spin else table[:, :, 0]
    # The table is shared between detections of the same noise.
    table.flags.writeable = False
    return table


@dataclass(frozen=True)
class MassProposal:
    r"""Masses drawn from $m_1^{a} q^{b}$ on low < m2 < m1 < high, in the source frame.

    The defaults lie, weighted by the volume in which they are seen, between the flat and the steep
    populations of black holes.

    Args:
        low, high: bounds in solar masses.
        mass_exponent: a.
        mass_ratio_exponent: b.
    """

    low: float = 3.0
    high: float = 120.0
    mass_exponent: float = -1.0
    mass_ratio_exponent: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.low < self.high:
            raise InputError(
                f"proposal of injections: low={self.low}, high={self.high} solar masses is not "
                "0 < low < high; give both, in this order."
            )

    def sample(self, key: Array, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return masses, mass ratios and their log density in (mass_1_source, mass_ratio)."""
        u = np.asarray(jax.random.uniform(key, (2, num)), float)
        mass, log_p_mass = _power_law(u[0], self.mass_exponent, self.low, self.high)
        ratio, log_p_ratio = _power_law(u[1], self.mass_ratio_exponent, self.low / mass, 1.0)
        return mass, ratio, log_p_mass + log_p_ratio


def _power_law(u: np.ndarray, exponent: float, low: Any, high: Any) -> tuple[Any, Any]:
    """Return the quantiles u of x**exponent on [low, high] and their log density."""
    k = exponent + 1.0
    log_low, width = np.log(low), np.log(high) - np.log(low)
    if k == 0.0:
        log_x, log_norm = log_low + u * width, np.log(width)
    else:
        # In units of the lower bound, and without cancellation for exponents near -1.
        integral = np.expm1(k * width) / k
        log_x = log_low + np.log1p(k * u * integral) / k
        log_norm = k * log_low + np.log(integral)
    return np.exp(log_x), exponent * log_x - log_norm


def draw_injections(
    key: Array,
    num: int,
    detection: SemiAnalyticDetection,
    *,
    observing_time: float,
    parameters: Sequence[str] = ("mass_1_source", "mass_ratio", "redshift"),
    proposal: MassProposal | None = None,
) -> Injections:
    r"""Draw injections of which every one is found, with exact weights and the scale of the time.

    Masses come from `proposal`, redshifts from $p_\mathrm{det}(\theta)\, \frac{dV_c}{dz} / (1+z)$
    given the masses, up to their horizon, so that no draw is spent on what cannot be seen and the
    weight of a draw varies with the redshift only as the population departs from a constant
    comoving rate. The detection probability enters `log_p_draw` exactly and is not tossed as a
    coin. With `aligned_spin` there is `chi_eff`, uniform in [-1, 1].

    Args:
        key: a PRNG key.
        num: how many to draw.
        detection: the detection probability.
        observing_time: in years; `OBSERVING_TIME["O1"] + OBSERVING_TIME["O2"]` for both runs.
        parameters: those of the population. Of the masses mass_1_source and one of mass_ratio and
            mass_2_source; chi_eff with `aligned_spin`; without redshift, `log_p_draw` holds the
            integral over it at a constant comoving rate, in Gpc³ (of a rate per Gpc³ and year).
        proposal: of the masses; it must cover the population's.
    """
    _check_request(num, observing_time, parameters, detection)
    proposal = proposal or MassProposal()
    key_mass, key_spin, key_redshift = jax.random.split(key, 3)
    mass, ratio, log_p_draw = proposal.sample(key_mass, num)
    theta = {"mass_1_source": mass, "mass_ratio": ratio}
    if detection.aligned_spin:
        spin = jax.random.uniform(key_spin, (num,), minval=-1.0, maxval=1.0)
        theta["chi_eff"] = np.asarray(spin, float)
        log_p_draw = log_p_draw - math.log(2.0)
    if "redshift" in parameters:
        u = jax.random.uniform(key_redshift, (num,))
        z, log_p_z = _evaluated(functools.partial(_draw_redshift, detection), {**theta, "u": u})
        theta["redshift"] = z
        log_p_det = _evaluated(detection.log_p_det, theta)
        log_p_draw = log_p_draw + log_p_z - log_p_det
    else:
        volume = _evaluated(detection.sensitive_volume, theta)
        log_p_draw = log_p_draw - np.log(volume)
    if "mass_2_source" in parameters:
        theta["mass_2_source"] = mass * ratio
        # dm2 = m1 dq.
        log_p_draw = log_p_draw - np.log(mass)
    # A draw rounded onto its horizon has no weight: it counts as made and not found.
    found = np.isfinite(log_p_draw)
    theta = {name: theta[name][found] for name in parameters}
    return Injections(theta, log_p_draw[found], float(num), float(observing_time))


def _check_request(
    num: int, observing_time: float, parameters: Sequence[str], detection: SemiAnalyticDetection
) -> None:
    if num < 1 or not observing_time > 0.0:
        raise InputError(
            f"injections: num={num}, observing_time={observing_time} years; both must be positive."
        )
    secondary = {"mass_ratio", "mass_2_source"} & set(parameters)
    spin = {"chi_eff"} if detection.aligned_spin else set()
    known = {"mass_1_source", "redshift"} | secondary | spin
    if "mass_1_source" not in parameters or len(secondary) != 1 or not spin <= set(parameters):
        raise InputError(
            "injections need 'mass_1_source' and one of 'mass_ratio' and 'mass_2_source'"
            + (", and 'chi_eff' as the detection has aligned_spin=True" if spin else "")
            + f"; got {', '.join(parameters) or 'nothing'}."
        )
    unknown = [name for name in parameters if name not in known]
    if unknown:
        remedy = "build the detection with aligned_spin=True" if "chi_eff" in unknown else "omit it"
        raise InputError(
            f"injections: the detection probability does not depend on '{unknown[0]}'; {remedy}, "
            "or give injections of your own that were drawn in it."
        )


def _evaluated(function: Callable[[dict[str, Any]], Any], columns: Mapping[str, Any]) -> Any:
    return in_blocks(jax.jit(function), columns, min(8192, len(columns["mass_1_source"])))


def _draw_redshift(
    detection: SemiAnalyticDetection, columns: dict[str, Array], num_nodes: int = 32
) -> tuple[Array, Array]:
    """Draw redshifts by the quantiles `u`, and return them with their log density.

    The density is the piecewise linear one through $p_det dV_c/dz / (1+z)$ at uniform nodes up to
    the horizon: exact as a proposal, whatever its distance from the curve.
    """
    theta = {name: x for name, x in columns.items() if name != "u"}
    horizon = detection.horizon_redshift(theta)
    nodes = jnp.linspace(0.0, 1.0, num_nodes + 1, dtype=horizon.dtype)
    z = horizon[:, None] * nodes
    wide = {name: x[:, None] for name, x in theta.items()}
    value = detection.p_det({**wide, "redshift": z}) * detection._volume_element(z)
    cumulative = jnp.cumsum(0.5 * (value[:, 1:] + value[:, :-1]), axis=1)
    total = cumulative[:, -1:]
    target = columns["u"][:, None] * total
    cell = jnp.minimum(jnp.sum(cumulative < target, axis=1, keepdims=True), num_nodes - 1)
    below = jnp.where(cell > 0, jnp.take_along_axis(cumulative, jnp.maximum(cell - 1, 0), 1), 0.0)
    left = jnp.take_along_axis(value, cell, 1)
    slope = jnp.take_along_axis(value, cell + 1, 1) - left
    # Within the cell: left t + slope t²/2 = rest, in the form without cancellation.
    rest = target - below
    root = jnp.sqrt(jnp.maximum(left * left + 2.0 * slope * rest, 0.0))
    denominator = left + root
    t = jnp.clip(2.0 * rest / jnp.where(denominator > 0.0, denominator, 1.0), 0.0, 1.0)
    drawn = horizon * ((cell + t) / num_nodes)[:, 0]
    density = (left + slope * t) * num_nodes / (total * horizon[:, None])
    return drawn, jnp.log(density[:, 0])
