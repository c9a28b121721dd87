r"""Eccentric orbits: Kepler's equation, and a grid over period, eccentricity and phase.

A companion on a Keplerian orbit moves a star by

$$v(t) = K\,[\cos(\omega + f) + e\cos\omega] + v_0 = a\,(\cos f + e) + b\,\sin f + v_0,$$

linear in $a = K\cos\omega$, $b = -K\sin\omega$ and $v_0$, with the true anomaly f of the mean
anomaly $M = 2\pi t/P + M_0$; t counts from a star's first epoch. With $e = M_0 = 0$ these are the a
and b of a circular orbit, so that populations of circular orbits serve eccentric ones too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..errors import InputError
from ..likelihood.gaussian import Normals, log_evidence, reduce_rows
from ..likelihood.linear_grid import LinearGrid
from .periods import Epochs, Widths, climb, scan
from .radial_velocity import (
    PARAMETERS,
    Jitter,
    Velocities,
    check_range,
    in_period,
    noise_with_jitter,
    scan_steps,
    scan_versions,
)

_HALLEY_STEPS = 6

# Eccentricities and phases of a box, and how often it is made smaller.
_BOX = 24
_SHRINKS = 8

# With fewer cells within the threshold a box is filled with smaller ones.
_FEW_CELLS = 350

# Nodes in lnP for each eccentricity and phase: so many standard deviations apart, to 5.5 of them.
_PERIOD_STEP, _PERIOD_NODES = 0.5, 23


def eccentric_anomaly(mean_anomaly: Any, eccentricity: Any) -> Any:
    r"""Solve $E - e\sin E = M$ to $10^{-12}$ for $e \le 0.95$, by Halley's method.

    The start $M + 0.85\,e\,\mathrm{sign}(\sin M)$ is that of Danby (1987). E is in $[-\pi, \pi]$.
    Works on NumPy and on JAX arrays.
    """
    xp = np if isinstance(mean_anomaly, np.ndarray) else jnp
    m = xp.mod(mean_anomaly + np.pi, 2.0 * np.pi) - np.pi
    e = eccentricity
    x = m + 0.85 * e * xp.sign(m)
    for _ in range(_HALLEY_STEPS):
        sin, cos = e * xp.sin(x), e * xp.cos(x)
        wrong, slope = x - sin - m, 1.0 - cos
        x = x - wrong * slope / (slope**2 - 0.5 * wrong * sin)
    return x


def keplerian(theta: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
    """Design matrix (epoch, 3) of a, b, v0 at `P` or `lnP`, `e` and `M0`."""
    xp = np if isinstance(columns["t"], np.ndarray) else jnp
    period = theta["P"] if "P" in theta else xp.exp(theta["lnP"])
    e = theta["e"]
    anomaly = eccentric_anomaly(2.0 * np.pi * columns["t"] / period + theta["M0"], e)
    sin, cos = xp.sin(anomaly), xp.cos(anomaly)
    near = 1.0 - e * cos
    sin_f, cos_f = xp.sqrt(1.0 - e**2) * sin / near, (cos - e) / near
    return xp.stack([cos_f + e, sin_f, xp.ones_like(sin)], axis=-1)


class _Box(NamedTuple):
    """Cells of eccentricity and phase with the best angular frequency in each."""

    e: np.ndarray  # (cell,)
    phase: np.ndarray
    omega: np.ndarray
    value: np.ndarray
    sd: np.ndarray
    sides: tuple[float, float]  # of a cell
    bounds: tuple[float, float, float, float]  # lowest and highest e, lowest and highest phase
    top: float = 0.0  # what was subtracted from the values


def eccentric_orbits(
    stars: Velocities,
    *,
    periods: tuple[float, float] = (1.5, 20.0),
    parameter: Literal["lnP", "P"] = "lnP",
    eccentricity: Any = None,
    max_eccentricity: float = 0.95,
    jitter: Jitter | None = None,
    widths: Widths = Widths(),  # noqa: B008
    num_candidates: int = 12,
    oversampling: float = 10.0,
    threshold: float = 16.0,
    max_baselines: float = 10.0,
) -> LinearGrid:
    r"""Stars on Keplerian orbits, as a form in a, b, v0 [km/s], lnP or P [days], e and M0.

    M0 is uniform, and no part of the population. The periods are those near the `num_candidates`
    best maxima of a scan for circular orbits (an eccentric orbit is seen there by its first
    harmonic; more candidates cost time in proportion). Around each, a box of eccentricities and
    phases is shrunk to where the likelihood, maximised over the period, is within `threshold` of
    the star's best, and filled with cells, each with nodes in the period at its own maximum. A mode
    that has no maximum in the period is not seen; resolve stars with so few epochs as
    `circular_orbits`, or give more epochs.

    With a jitter the orbits are sought with the largest noise that matters, at which most of them
    are possible, and followed from there to smaller ones.

    Args:
        stars, periods, parameter, jitter, widths, oversampling, max_baselines: as in
            `circular_orbits`.
        eccentricity: prior of e, a NumPyro distribution, where the population has no factor of it.
        max_eccentricity: largest, below one; beyond it the likelihood counts as zero.
        num_candidates: periods to try for each star.
        threshold: in natural logarithms.

    Raises:
        InputError: as `circular_orbits`; a star in which no period stands out.
    """
    check_range(stars, periods, max_baselines, parameter)
    if not 0 < max_eccentricity <= 0.95:
        raise InputError(
            f"max_eccentricity={max_eccentricity:g} must be above zero and at most 0.95, up to "
            "which Kepler's equation is solved."
        )
    low, high = 2 * np.pi / periods[1], 2 * np.pi / periods[0]
    span = np.array([t[-1] for t in stars.time])
    steps = scan_steps(stars, low, high, span, oversampling)
    found = scan_versions(stars, jitter, low, high, steps, threshold, widths)
    limits = _Limits((low, high), max_eccentricity, threshold, widths)
    prior = np.zeros(1) if jitter is None else np.log(jitter.probability)
    cells: list[dict[str, np.ndarray]] = []
    for i, name in enumerate(stars.names):
        star = _Star.of(found.epochs, i, len(stars.names), prior)

        def starts(version: int, star: _Star = star, i: int = i) -> np.ndarray:
            return _best(star.at(version), low, high, steps[i], num_candidates, widths)

        boxes = _all_boxes(star, starts, int(np.argmax(found.log_total[:, i])), steps[i], limits)
        if not boxes:
            raise InputError(
                f"star {name}: no period stands out between {periods[0]:g} and {periods[1]:g} "
                "days; treat it with circular_orbits."
            )
        cells.append(_nodes(boxes, limits))
    return _form(stars, cells, parameter, eccentricity, jitter)


def _form(
    stars: Velocities,
    cells: list[dict[str, np.ndarray]],
    parameter: str,
    eccentricity: Any,
    jitter: Jitter | None,
) -> LinearGrid:
    """The form of all stars from the nodes of each; the priors of M0, jitter and e are weights."""
    nodes: dict[str, list[np.ndarray]] = {}
    spacing: dict[str, list[np.ndarray]] = {}
    weight = []
    for own in cells:
        place, wide = in_period(parameter, own["omega"], own["d_omega"])
        place |= {"e": own["e"], "M0": own["M0"]}
        wide |= {"e": own["d_e"], "M0": own["d_M0"]}
        log_weight = sum(np.log(x) for x in wide.values()) - np.log(2 * np.pi)
        if eccentricity is not None:
            log_weight = log_weight + np.asarray(eccentricity.log_prob(jnp.asarray(own["e"])))
        if jitter is not None:
            place["jitter"] = jitter.value[own["version"]]
            log_weight = log_weight + np.log(jitter.probability)[own["version"]]
            if jitter.width is not None:
                wide["jitter"] = jitter.width[own["version"]]
        weight.append(log_weight)
        for table, found in ((nodes, place), (spacing, wide)):
            for key, x in found.items():
                table.setdefault(key, []).append(x)
    columns = {"t": stars.time} | ({} if jitter is None else {"error": stars.error})
    return LinearGrid(
        keplerian,
        stars.velocity,
        stars.error if jitter is None else noise_with_jitter,
        columns=columns,
        nodes=nodes,
        log_weight=weight,
        parameters=PARAMETERS,
        names=stars.names,
        spacing=spacing,
    )


# ---- where the orbits are ------------------------------------------------------------------------


class _Limits(NamedTuple):
    """Angular frequencies, eccentricities and logarithms within which orbits are looked for."""

    omega: tuple[float, float]
    e: float
    threshold: float
    widths: Widths


class _Star(NamedTuple):
    """One star with every node of the jitter added to its errors.

    Attributes:
        epochs: (version, epoch).
        log_norm: (version,) logs of the noise's normalisation and of the prior.
    """

    epochs: Epochs
    log_norm: np.ndarray

    @classmethod
    def of(cls, epochs: Epochs, star: int, num: int, log_prior: np.ndarray) -> _Star:
        own = Epochs(*(np.asarray(x)[star::num] for x in epochs))
        log_weight = np.log(np.where(own.w > 0, own.w, 1.0))
        return cls(own, 0.5 * log_weight.sum(axis=1) + log_prior)

    def at(self, version: int) -> Epochs:
        return Epochs(*(x[version] for x in self.epochs))


def _best(
    own: Epochs, low: float, high: float, step: float, num: int, widths: Widths
) -> np.ndarray:
    """Angular frequencies of the `num` best maxima of a scan for circular orbits."""
    one = Epochs(*(np.asarray(x)[None] for x in own))
    # With a threshold beyond reach all maxima come back.
    everything = float(np.sum(own.w * own.y**2)) + 100.0
    peaks, *_ = scan(one, low, high, np.array([step]), everything, widths)
    return peaks.omega[np.argsort(-peaks.value)[:num]]


def _all_boxes(
    star: _Star,
    starts: Callable[[int], np.ndarray],
    first: int,
    step: float,
    limits: _Limits,
) -> list[tuple[int, _Box]]:
    """The boxes of all versions that matter, with the version's number.

    Args:
        starts: version -> angular frequencies to begin with.
        first: version in which circular orbits fit best.
        step: of the scan in angular frequency.
    """
    reach = 3.0 * step
    whole = (0.0, limits.e, 0.0, 2 * np.pi)

    def anew(version: int) -> list[_Box]:
        begin = [(whole, omega) for omega in starts(version)]
        return _boxes(star.at(version), begin, reach, limits)

    boxes = anew(first)
    if not boxes or len(star.log_norm) == 1:
        return [(first, box) for box in boxes]
    # The largest noise that matters admits the most orbits.
    top = _largest(star, boxes, limits)
    boxes = anew(top) if top != first else boxes
    out: list[tuple[int, _Box]] = []
    best = -np.inf
    for version in range(top, -1, -1):
        if version != top:
            begin = [(box.bounds, box.omega[np.argmax(box.value)]) for box in boxes]
            boxes = _boxes(star.at(version), begin, reach, limits)
        if not boxes:
            break
        height = boxes[0].top + star.log_norm[version]
        best = max(best, height)
        if height < best - limits.threshold:
            break
        out += [(version, box._replace(top=height)) for box in boxes]
    return [(version, box) for version, box in out if box.top > best - limits.threshold]


def _largest(star: _Star, boxes: list[_Box], limits: _Limits) -> int:
    """The last version within the threshold, if the orbit is the best of `boxes`."""
    top = max(boxes, key=lambda box: box.value.max())
    at = int(np.argmax(top.value))
    value = _values(star.epochs, top.e[at], top.phase[at], top.omega[at], limits.widths)
    # A Gaussian in the other three parameters is as wide as the noise in each of them.
    used = (star.epochs.w > 0).sum(axis=1)
    noise = -0.5 * np.log(np.where(star.epochs.w > 0, star.epochs.w, 1.0)).sum(axis=1) / used
    value = np.asarray(value) + star.log_norm + 3.0 * noise
    return int(np.flatnonzero(value > value.max() - limits.threshold)[-1])


def _log_marginal(own: Epochs, e: Any, phase: Any, omega: Any, widths: Widths) -> Array:
    """Log marginal likelihood of one star's orbit over a, b and v0, less the noise's norm."""
    scale = jnp.array([widths.amplitude, widths.amplitude, widths.offset])
    prior = Normals(jnp.zeros(3).at[2].set(-own.mean), jnp.diag(scale))
    root = jnp.sqrt(own.w)
    design = keplerian({"P": 2 * jnp.pi / omega, "e": e, "M0": phase}, {"t": jnp.asarray(own.t)})
    return log_evidence(reduce_rows(design * root[:, None], own.y * root, 0), prior)


@eqx.filter_jit
def _values(versions: Epochs, e: Any, phase: Any, omega: Any, widths: Widths) -> Array:
    """The log marginals of one orbit with the noise of every version."""
    versions = Epochs(*(jnp.asarray(x) for x in versions))
    return jax.vmap(lambda own: _log_marginal(own, e, phase, omega, widths))(versions)


@eqx.filter_jit
def _profile(
    own: Epochs, e: Any, phase: Any, start: Any, reach: Any, widths: Widths
) -> tuple[Array, ...]:
    """For every cell the frequency near `start` with the highest marginal likelihood."""

    def one(e: Array, phase: Array, start: Array, reach: Array) -> tuple[Array, ...]:
        return climb(lambda omega: _log_marginal(own, e, phase, omega, widths), start, reach)

    return jax.lax.map(lambda x: one(*x), (e, phase, start, reach), batch_size=64)


def _filled(
    own: Epochs,
    box: tuple[float, float, float, float],
    start: Any,
    reach: float,
    widths: Widths,
    fine: int = 1,
) -> _Box:
    """The cells of a box (lowest and highest e, lowest and highest phase), `fine` times smaller."""
    num = fine * _BOX
    sides = (box[1] - box[0]) / num, (box[3] - box[2]) / num
    e = box[0] + (np.arange(num) + 0.5) * sides[0]
    phase = box[2] + (np.arange(num) + 0.5) * sides[1]
    e, phase = (x.ravel() for x in np.meshgrid(e, phase, indexing="ij"))
    # Arrays of one length, so that another star, noise or size of cells is not another program.
    own = Epochs(*(jnp.asarray(x) for x in own))
    like = np.ones(_BOX**2)
    parts = [
        _profile(own, *part, start * like, reach * like, widths)
        for part in zip(np.split(e, fine**2), np.split(phase, fine**2), strict=True)
    ]
    omega, value, curvature = (np.concatenate(x) for x in zip(*parts, strict=True))
    good = curvature < 0
    sd = np.where(good, np.where(good, -curvature, 1.0) ** -0.5, 0.0)
    return _Box(e, phase, omega, np.where(good, value, -np.inf), sd, sides, box)


def _boxes(
    own: Epochs,
    begin: list[tuple[tuple[float, float, float, float], float]],
    reach: float,
    limits: _Limits,
) -> list[_Box]:
    """Boxes shrunk to what matters, of those that come near the best; from boxes and periods."""
    # The coarse cells of a box miss its maximum: compare after a first shrinking only.
    shrunk: list[_Box] = []
    for box, start in begin:
        cells = _filled(own, box, start, reach, limits.widths)
        for _ in range(_SHRINKS):
            new = _around(cells, box, limits.threshold, limits.e)
            ratio = max(
                (new[1] - new[0]) / (box[1] - box[0]), (new[3] - new[2]) / (box[3] - box[2])
            )
            if ratio > 0.8:
                break
            box = new
            start = cells.omega[np.argmax(cells.value)]
            cells = _filled(own, box, start, reach, limits.widths)
        top = cells.omega[np.argmax(cells.value)]
        # Eccentricity and phase may lie along a narrow ridge, across which there are few cells.
        if np.sum(cells.value > cells.value.max() - limits.threshold) < _FEW_CELLS:
            cells = _filled(own, box, top, reach, limits.widths, fine=2)
        inside = limits.omega[0] <= top <= limits.omega[1]
        # Two candidates may lead to one orbit.
        if inside and not any(_same(top, other) for other in shrunk):
            shrunk.append(cells)
    best = max((cells.value.max() for cells in shrunk), default=-np.inf)
    kept = [c for c in shrunk if c.value.max() > best - limits.threshold]
    return [c._replace(value=c.value - best, top=float(best)) for c in kept]


def _same(omega: float, box: _Box) -> bool:
    seen = box.value > box.value.max() - 20.0
    margin = 6.0 * box.sd[np.argmax(box.value)]
    return bool(box.omega[seen].min() - margin < omega < box.omega[seen].max() + margin)


def _around(
    cells: _Box, box: tuple[float, float, float, float], threshold: float, max_eccentricity: float
) -> tuple[float, float, float, float]:
    """The box around the cells within the threshold, and one cell more on every side."""
    kept = cells.value > cells.value.max() - threshold
    e, side = cells.e[kept], 1.5 * cells.sides[0]
    bounds = max(e.min() - side, 0.0), min(e.max() + side, max_eccentricity)
    # The phase is periodic: leave out the longest gap.
    phase, side = np.unique(np.mod(cells.phase[kept], 2 * np.pi)), cells.sides[1]
    gaps = np.diff(np.append(phase, phase[0] + 2 * np.pi))
    last = int(np.argmax(gaps))
    start = phase[(last + 1) % len(phase)]
    length = 2 * np.pi - gaps[last] + 3.0 * side
    if length >= 2 * np.pi or gaps[last] < 3.0 * side:
        return *bounds, 0.0, 2 * np.pi
    return *bounds, start - 1.5 * side, start - 1.5 * side + length


def _nodes(boxes: list[tuple[int, _Box]], limits: _Limits) -> dict[str, np.ndarray]:
    """Nodes of a star: omega, e, M0, the widths of their cells, d_..., and version.

    The frequency runs fastest.
    """
    offset = _PERIOD_STEP * (np.arange(_PERIOD_NODES) - 0.5 * (_PERIOD_NODES - 1))
    best = max(box.top for _, box in boxes)
    parts = []
    for version, box in boxes:
        kept = box.value > best - box.top - limits.threshold
        sd = box.sd[kept][:, None]
        omega = box.omega[kept][:, None] + offset * sd
        like = np.ones(omega.shape)
        columns = {
            "omega": omega,
            "e": box.e[kept][:, None] * like,
            "M0": np.mod(box.phase[kept], 2 * np.pi)[:, None] * like,
            "d_omega": _PERIOD_STEP * sd * like,
            "d_e": box.sides[0] * like,
            "d_M0": box.sides[1] * like,
            "version": np.full(omega.shape, version),
        }
        inside = (omega >= limits.omega[0]) & (omega <= limits.omega[1])
        parts.append({name: x[inside] for name, x in columns.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
