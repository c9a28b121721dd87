r"""Mock catalogues: true mergers, their detection, and posterior draws that are calibrated.

A catalogue is made in the order that its analysis assumes. Mergers are a Poisson process with rate
density $\rho(\theta)$; each is found with a probability; a found one gives data $d \sim p(d \mid
\theta)$ from a stated `MeasurementModel`; and its draws follow

$$p(\theta \mid d) \propto p(d \mid \theta)\,\pi(\theta)$$

exactly, with a stated `BoundedPrior` $\pi$. Truths drawn from $\pi$ then have uniform ranks in
their draws, and a hierarchical analysis of truths drawn from any population recovers it, provided
that selection is consistent with the measurement. It is in either of two cases:

- detection is a coin with probability $p_\mathrm{det}(\theta)$ that knows nothing of the data:
  $p(d \mid \theta, \mathrm{det}) = p(d \mid \theta)$;
- detection is a cut on the data, an observed signal-to-noise ratio (`MeasurementModel.snr`):
  $p(d \mid \mathrm{det}, \theta) = p(d \mid \theta)/p_\mathrm{det}(\theta)$ for data that pass it,
  and the draws are those of $p(d \mid \theta)$, as the likelihood of found objects has it.

`BananaErrors` are the scattered and shifted draws that GWKokab makes, for comparison; they are not
calibrated.

Masses are in solar masses and source-frame where their name says so, volumes in Gpc³, times in yr.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ..blocks import in_blocks
from ..density import Density, Joint
from ..distributions import PowerLaw
from ..errors import InputError
from ..keys import generator
from .banana import BananaErrors
from .coordinates import Columns, Theta, chirp_mass, is_binary
from .injections import Injections
from .measurement import BoundedPrior, MeasurementModel, other_range

# Densities are sampled, and functions of the user's called, in blocks of this many points, so that
# traced functions are compiled for one shape.
_BLOCK = 16384
_MOST_MERGERS = 1e8

# ---- detection ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SensitiveVolume:
    r"""Detection with $p_\mathrm{det}(\theta) = V(\theta)/V_\mathrm{max}$: a density per volume.

    A density $\rho$ in Gpc⁻³ yr⁻¹ without a redshift factor, seen for a time T, has
    $T \int \rho V\,d\theta$ expected detections: of $T V_\mathrm{max} \int \rho\,d\theta$ mergers
    in the largest volume each is in its own volume with probability $p_\mathrm{det}$.

    Args:
        volume: function of theta that gives V in Gpc³.
        largest: $V_\mathrm{max}$ in Gpc³, no smaller than V of any merger.
    """

    volume: Callable[[Theta], Any]
    largest: float

    def __call__(self, theta: Theta) -> Any:
        return self.volume(theta) / self.largest


def chirp_mass_volume(
    amplitude: float = 8.5e-4, exponent: float = 2.2, *, mass_high: float = 100.0
) -> SensitiveVolume:
    r"""Return $V = A\,\mathcal{M}^n$ Gpc³ of the source-frame chirp mass, masses to `mass_high`.

    For theta with `mass_1_source` and either `mass_2_source` or `mass_ratio`.
    """

    def volume(theta: Theta) -> Any:
        m1 = theta["mass_1_source"]
        m2 = theta["mass_2_source"] if "mass_2_source" in theta else m1 * theta["mass_ratio"]
        return amplitude * chirp_mass(m1, m2) ** exponent

    return SensitiveVolume(volume, amplitude * (mass_high * 2.0**-0.2) ** exponent)


@dataclass(frozen=True)
class SnrDetection:
    r"""Detection with $p_\mathrm{det}(\theta)=P(\hat\rho > \rho_*) = \Phi(\rho(\theta) - \rho_*)$.

    Args:
        snr: function of theta that gives the signal-to-noise ratio $\rho$ without noise.
        threshold: $\rho_*$, which the observed $\hat\rho \sim \mathcal{N}(\rho, 1)$ must exceed.
    """

    snr: Callable[[Theta], Any]
    threshold: float = 8.0

    def __call__(self, theta: Theta) -> Any:
        return jax.scipy.special.ndtr(self.snr(theta) - self.threshold)


Detection = Callable[[Theta], Any]


def _numbers(x: Any) -> np.ndarray:
    return np.asarray(x).astype(float)


class _Found(NamedTuple):
    """Mergers of one block that a detector found, among `total`; `snr` where it was observed."""

    theta: dict[str, np.ndarray]
    snr: np.ndarray
    total: int


def _find(key: Any, density: Density, detection: Any, size: int, *, observed: bool) -> _Found:
    """Draw `size` mergers, at most a block of them, and keep those that are found.

    Where `observed`, detection is a `SnrDetection` and is decided by an observed ratio.
    """
    sample_key, find_key = jax.random.split(key)
    theta = density.sample(sample_key, (_BLOCK,))
    rng = generator(find_key)
    table = {name: _numbers(column) for name, column in theta.items()}
    columns = Columns(table)
    masses = ("mass_1_source", "mass_2_source", "mass_ratio")
    real = is_binary({name: columns[name] for name in masses if name in columns})
    if observed:
        snr = _numbers(detection.snr(theta)) + rng.normal(size=_BLOCK)
        found = snr > detection.threshold
    else:
        p = _numbers(detection(theta))
        _require_probabilities(p, real, table)
        snr = np.full(_BLOCK, math.nan)
        found = rng.uniform(size=_BLOCK) < p
    keep = found & real & (np.arange(_BLOCK) < size)
    return _Found({name: x[keep] for name, x in table.items()}, snr[keep], size)


def _require_probabilities(p: np.ndarray, real: Any, theta: Mapping[str, np.ndarray]) -> None:
    wrong = np.flatnonzero(~((p >= 0.0) & (p <= 1.0 + 1e-6)) & real)
    if wrong.size:
        at = {name: float(x[wrong[0]]) for name, x in theta.items()}
        raise InputError(
            f"the detection probability is {p[wrong[0]]:.6g} at {at}; it must lie in [0, 1]. For a "
            "SensitiveVolume, 'largest' must be the largest volume of any merger."
        )


# ---- the catalogue ------------------------------------------------------------------------------


@dataclass(frozen=True)
class MockEvent:
    """One found merger.

    Attributes:
        name: `event_00`, ...
        truth: parameter name -> true value.
        data: what was measured, by name.
        draws: parameter name -> posterior draws.
    """

    name: str
    truth: dict[str, float]
    data: dict[str, float]
    draws: dict[str, np.ndarray]


@dataclass(frozen=True)
class Catalogue:
    """Found mergers with their draws, and how they came about.

    Attributes:
        events: the found mergers.
        num_mergers: how many mergers there were, found or not.
        exposure: the time in yr; mergers are expected at (rate) x (exposure) x (largest volume).
        truth: hyperparameter name -> true value, as given.
        record: the measurement, the reference prior and whether the draws are calibrated.
    """

    events: tuple[MockEvent, ...]
    num_mergers: int
    exposure: float
    truth: dict[str, float] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def ranks(self) -> dict[str, np.ndarray]:
        """Return, by parameter, the fraction of each event's draws that lie below its truth.

        Uniform for calibrated draws whose truths were drawn from the reference prior and found with
        a probability that does not depend on them (a P–P plot is their distribution function).
        """
        names = self.events[0].draws if self.events else ()
        return {
            n: np.array([np.mean(e.draws[n] < e.truth[n]) for e in self.events if len(e.draws[n])])
            for n in names
        }


def simulate_catalogue(
    key: Any,
    density: Density,
    detection: Detection | None = None,
    *,
    exposure: float = 1.0,
    measurement: MeasurementModel | BananaErrors | None = None,
    prior: BoundedPrior | None = None,
    num_draws: int = 1000,
    num_events: int | None = None,
    truth: Mapping[str, float] | None = None,
) -> Catalogue:
    r"""Simulate the mergers of a population, which of them are found, and their posterior draws.

    The number of mergers is Poisson with mean $R\,T\,V_\mathrm{max}$: R is the density's total
    rate (`Mixture.log_total`), T the exposure, and $V_\mathrm{max}$ the largest volume of a
    `SensitiveVolume`, otherwise 1. Each is found with probability $p_\mathrm{det}(\theta)$. Where a
    density has weight at m2 > m1 there are no mergers.

    Args:
        key: a JAX key; the catalogue is a function of it and of the other arguments.
        density: rate density of the mergers, over two masses and optionally redshift (or distance),
            spins and parameters of which `measurement` and `prior` know.
        detection: function of theta that gives $p_\mathrm{det}$ in [0, 1], such as a
            `SensitiveVolume`: a coin that knows nothing else of the data. None with a measurement
            that has `snr`: found is what has an observed ratio above the threshold.
        exposure: T in yr.
        measurement: `MeasurementModel()` by default, or `BananaErrors`.
        prior: what the draws are drawn with; `BoundedPrior()` by default.
        num_draws: draws per event (fewer are left of banana errors outside the physical range).
        num_events: simulate until so many are found, instead of for a Poisson number of mergers.
        truth: hyperparameters of the density, to go into the record.

    Raises:
        InputError: a probability outside [0, 1]; both or neither of `detection` and
            `measurement.snr`; a density without a total rate; parameters that cannot be measured;
            mergers outside the range of the reference prior.
    """
    measurement = measurement or MeasurementModel()
    prior = prior or BoundedPrior()
    parameters = tuple(density.names)
    _check_counts(exposure=exposure, num_draws=num_draws, num_events=num_events)
    detection, observed = _one_detection(detection, measurement)
    analysis = measurement.prepare(parameters, prior)
    count_key, find_key, observe_key = jax.random.split(key, 3)
    total = None
    if num_events is None:
        mean = _total_rate(density) * exposure * getattr(detection, "largest", 1.0)
        total = _poisson(count_key, mean)
    found = _find_all(find_key, density, detection, total, num_events, observed=observed)
    events = []
    count = len(found.snr)
    # One generator per event: the draws of one do not depend on how many another needed.
    for i, rng in enumerate(generator(observe_key).spawn(count)):
        true = {name: float(found.theta[name][i]) for name in parameters}
        snr = float(found.snr[i]) if observed else None
        data, draws = analysis.observe(rng, true, num_draws, snr)
        name = f"event_{i:0{max(2, len(str(count - 1)))}d}"
        events.append(MockEvent(name, true, data, draws))
    record = {
        "parameters": list(parameters),
        "calibrated": measurement.calibrated,
        "measurement": measurement.describe(parameters),
        "reference_prior": prior.describe(parameters),
        "largest_volume_Gpc3": float(getattr(detection, "largest", 1.0)),
    }
    return Catalogue(tuple(events), found.total, float(exposure), dict(truth or {}), record)


def _check_counts(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name}={value} must be a positive number.")


def _one_detection(detection: Detection | None, measurement: Any) -> tuple[Detection, bool]:
    """The detection, and whether it is decided by an observed signal-to-noise ratio."""
    snr = getattr(measurement, "snr", None)
    if snr is not None and detection is None:
        return SnrDetection(snr, measurement.snr_threshold), True
    if detection is None:
        raise InputError(
            "no detection: give a function of theta that returns a probability, or a measurement "
            "with snr=..., whose threshold then decides."
        )
    if snr is not None:
        # The data would know of theta through a ratio that selection has not seen.
        raise InputError(
            "both a detection and measurement.snr were given, which need not agree: leave out "
            "one. With snr, what is found is decided by the observed ratio."
        )
    return detection, False


def _total_rate(density: Density) -> float:
    log_total = getattr(density, "log_total", None)
    if log_total is None:
        raise InputError(
            f"{type(density).__name__} has no total rate: wrap it in a Mixture with the log of its "
            "rate as log weight, or give num_events."
        )
    return math.exp(float(log_total))


def _poisson(key: Any, mean: float) -> int:
    if not mean <= _MOST_MERGERS:
        raise InputError(
            f"{mean:.3g} mergers are expected, more than {_MOST_MERGERS:.0e}: lower the rate or "
            "the exposure, or give num_events."
        )
    return int(generator(key).poisson(mean))


def _find_all(
    key: Any,
    density: Density,
    detection: Detection,
    total: int | None,
    num_events: int | None,
    *,
    observed: bool,
) -> _Found:
    """The found among `total` mergers, or the first `num_events` found ones."""
    blocks: list[_Found] = []
    have = seen = 0
    for number in itertools.count():
        block_key = jax.random.fold_in(key, number)
        left = _BLOCK if total is None else min(_BLOCK, total - seen)
        blocks.append(_find(block_key, density, detection, left, observed=observed))
        seen += blocks[-1].total
        have += len(blocks[-1].snr)
        if seen == total or (num_events is not None and have >= num_events):
            break
        if seen > _MOST_MERGERS:
            raise InputError(
                f"{have} of {seen} mergers were found, {num_events} are wanted: too few for the "
                "detection given; lower num_events."
            )
    names = blocks[0].theta
    theta = {n: np.concatenate([b.theta[n] for b in blocks])[:num_events] for n in names}
    return _Found(theta, np.concatenate([b.snr for b in blocks])[:num_events], seen)


# ---- found injections ---------------------------------------------------------------------------


def draw_found_injections(
    key: Any, proposal: Density, detection: Detection, num_total: int
) -> Injections:
    r"""Draw `num_total` injections from a normalised density and keep those that are found.

    Their scale is that of one year: the largest volume of a `SensitiveVolume`, otherwise 1.

    Args:
        key: a JAX key.
        proposal: covers every population that is to be analysed; see `broad_proposal`.
        detection: function of theta that gives a probability, as in `simulate_catalogue`; for a
            measurement with `snr`, `SnrDetection(snr, threshold)`.
        num_total: how many are drawn, found or not.

    Raises:
        InputError: a probability outside [0, 1].
    """
    _check_counts(num_total=num_total)
    found = _find_all(key, proposal, detection, int(num_total), None, observed=False)
    log_p_draw = in_blocks(
        lambda block: proposal.log_prob({n: jnp.asarray(x) for n, x in block.items()}),
        found.theta,
        _BLOCK,
    )
    volume = float(getattr(detection, "largest", 1.0))
    return Injections(found.theta, log_p_draw, float(num_total), volume)


def broad_proposal(
    parameters: tuple[str, ...], prior: BoundedPrior | None = None, *, mass_high: float = 100.0
) -> Joint:
    r"""Return a broad density for injections within the ranges of a reference prior:

    $p(m_1) \propto 1/m_1$, the second mass or the mass ratio uniform, $p(z) \propto z^2$, and all
    else uniform.

    Args:
        parameters: `mass_1_source` and `mass_2_source` or `mass_ratio`, then others.
        prior: whose ranges are taken; masses to `mass_high` at most.
        mass_high: the largest mass.

    Raises:
        InputError: a parameter without a range, or masses in other coordinates.
    """
    prior = prior or BoundedPrior()
    low, high = prior.mass[0], min(prior.mass[1], mass_high)
    factors: dict[str, Any] = {
        "mass_1_source": PowerLaw(-1.0, low, high),
        "mass_2_source": lambda theta: PowerLaw(0.0, low, theta["mass_1_source"]),
        "mass_ratio": lambda theta: PowerLaw(0.0, low / theta["mass_1_source"], 1.0),
        "redshift": PowerLaw(2.0, *prior.redshift),
    }
    masses = {"mass_1_source"} | ({"mass_2_source", "mass_ratio"} & set(parameters))
    if len(masses) != 2 or "mass_1_source" not in parameters:
        raise InputError(
            "injections are proposed in mass_1_source with one of mass_2_source and mass_ratio, "
            f"got {list(parameters)}."
        )
    # The second mass depends on the first, which therefore comes first.
    ordered = sorted(parameters, key=lambda name: name != "mass_1_source")
    return Joint(
        {
            name: factors[name] if name in factors else dist.Uniform(*other_range(prior, name))
            for name in ordered
        }
    )
