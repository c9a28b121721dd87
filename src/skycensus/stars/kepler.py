r"""Eccentric orbits: Kepler's equation, and a grid over period, eccentricity and phase.

A companion on a Keplerian orbit moves a star by

$$v(t) = K\,[\cos(\omega + f) + e\cos\omega] + v_0
       = K\cos\omega\,(\cos f + e) - K\sin\omega\,\sin f + v_0,$$

linear in $K\cos\omega$, $K\sin\omega$ and $v_0$ (the parameters `K_cos`, `K_sin`, `v0`), with the
true anomaly f of the mean anomaly $M = 2\pi t/P + M_0$; t counts from a star's first epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..errors import InputError
from ..likelihood.gaussian import Normals, log_evidence, reduce_rows
from ..likelihood.linear_grid import LinearGrid
from .periods import Epochs, Peaks, Widths, climb, scan
from .radial_velocity import Velocities, check_range, pad, scan_steps

PARAMETERS = ("K_cos", "K_sin", "v0")

_HALLEY_STEPS = 6

# Eccentricities and phases of a box, and how often it is made smaller.
_BOX = (24, 24)
_SHRINKS = 8

# Nodes in lnP for each eccentricity and phase: so many standard deviations apart, to 5.5 of them.
_PERIOD_STEP, _PERIOD_NODES = 0.5, 23


def eccentric_anomaly(mean_anomaly: Array, eccentricity: Array) -> Array:
    r"""Solve $E - e\sin E = M$ to $10^{-12}$ for $e \le 0.95$, by Halley's method.

    The start $M + 0.85\,e\,\mathrm{sign}(\sin M)$ is that of Danby (1987). E is in $[-\pi, \pi]$.
    """
    m = jnp.mod(mean_anomaly + jnp.pi, 2.0 * jnp.pi) - jnp.pi
    e = eccentricity

    def step(_: Any, x: Array) -> Array:
        sin, cos = e * jnp.sin(x), e * jnp.cos(x)
        wrong, slope = x - sin - m, 1.0 - cos
        return x - wrong * slope / (slope**2 - 0.5 * wrong * sin)

    return jax.lax.fori_loop(0, _HALLEY_STEPS, step, m + 0.85 * e * jnp.sign(m))


def keplerian(theta: Mapping[str, Any], columns: Mapping[str, Any]) -> Array:
    """Design matrix (epoch, 3) of K_cos, K_sin, v0 at `P` or `lnP`, `e` and `M0`."""
    period = theta["P"] if "P" in theta else jnp.exp(theta["lnP"])
    e = theta["e"]
    anomaly = eccentric_anomaly(2.0 * jnp.pi * columns["t"] / period + theta["M0"], e)
    sin, cos = jnp.sin(anomaly), jnp.cos(anomaly)
    near = 1.0 - e * cos
    sin_f, cos_f = jnp.sqrt(1.0 - e**2) * sin / near, (cos - e) / near
    return jnp.stack([cos_f + e, -sin_f, jnp.ones_like(sin)], axis=-1)


class _Box(NamedTuple):
    """Cells of eccentricity and phase with the best angular frequency in each."""

    e: np.ndarray  # (cell,)
    phase: np.ndarray
    omega: np.ndarray
    value: np.ndarray
    sd: np.ndarray
    sides: tuple[float, float]  # of a cell


def eccentric_orbits(
    stars: Velocities,
    *,
    periods: tuple[float, float] = (1.5, 20.0),
    max_eccentricity: float = 0.95,
    widths: Widths = Widths(),  # noqa: B008
    num_candidates: int = 12,
    oversampling: float = 10.0,
    threshold: float = 16.0,
    max_baselines: float = 10.0,
) -> LinearGrid:
    r"""Stars on Keplerian orbits, as a form in K_cos, K_sin, v0 [km/s], lnP, e and M0.

    The population is a density of all of them, for example e ~ Beta and M0 ~ Uniform(0, 2 pi). The
    periods are those near the `num_candidates` best maxima of a scan for circular orbits (an
    eccentric orbit is seen there by its first harmonic; more candidates cost time in proportion).
    Around each, a box of eccentricities and phases is shrunk to where the likelihood, maximised
    over the period, is within `threshold` of the star's best, and filled with cells, each with
    nodes in lnP at its own maximum. A mode that has no maximum in lnP is not seen; resolve stars
    with so few epochs as `circular_orbits`, or give more epochs.

    Args:
        stars, periods, widths, oversampling, max_baselines: as in `circular_orbits`.
        max_eccentricity: largest, below one.
        num_candidates: periods to try for each star.
        threshold: in natural logarithms.

    Raises:
        InputError: as `circular_orbits`; a star in which no period stands out.
    """
    check_range(stars, periods, max_baselines)
    if not 0 < max_eccentricity <= 0.95:
        raise InputError(
            f"max_eccentricity={max_eccentricity:g} must be above zero and at most 0.95, up to "
            "which Kepler's equation is solved."
        )
    low, high = 2 * np.pi / periods[1], 2 * np.pi / periods[0]
    span = np.array([t[-1] for t in stars.time])
    steps = scan_steps(stars, low, high, span, oversampling)
    epochs = pad([stars])
    # With a threshold beyond reach all maxima come back; the best are then taken.
    peaks, _ = scan(epochs, low, high, steps, _all_of(epochs), widths)
    found: dict[str, list[np.ndarray]] = {k: [] for k in ("lnP", "e", "M0", "weight")}
    wide: dict[str, list[np.ndarray]] = {k: [] for k in ("lnP", "e", "M0")}
    for i, name in enumerate(stars.names):
        own = Epochs(*(jnp.asarray(x[i]) for x in epochs))
        starts = _best(peaks, i, num_candidates)
        if not starts.size:
            raise InputError(
                f"star {name}: no period stands out between {periods[0]:g} and {periods[1]:g} "
                "days; treat it with circular_orbits."
            )
        reach = 3.0 * steps[i]
        boxes = _boxes(own, starts, reach, (low, high), max_eccentricity, threshold, widths)
        nodes, spacing, weight = _nodes(boxes, (low, high), threshold)
        for key, x in (nodes | {"weight": weight}).items():
            found[key].append(x)
        for key, x in spacing.items():
            wide[key].append(x)
    return LinearGrid(
        keplerian,
        stars.velocity,
        stars.error,
        columns={"t": stars.time},
        nodes={k: found[k] for k in wide},
        log_weight=found["weight"],
        parameters=PARAMETERS,
        names=stars.names,
        spacing=wide,
    )


def _all_of(epochs: Epochs) -> float:
    return float(np.max(np.sum(epochs.w * epochs.y**2, axis=1))) + 100.0


def _best(peaks: Peaks, star: int, num: int) -> np.ndarray:
    own = peaks.star == star
    order = np.argsort(-peaks.value[own])[:num]
    return peaks.omega[own][order]


@eqx.filter_jit
def _profile(
    own: Epochs, e: Any, phase: Any, start: Any, reach: Any, widths: Widths
) -> tuple[Array, ...]:
    """For every cell the frequency near `start` with the highest marginal likelihood."""
    scale = jnp.array([widths.amplitude, widths.amplitude, widths.offset])
    root = jnp.sqrt(own.w)
    prior = Normals(jnp.array([0.0, 0.0, 0.0]).at[2].set(-own.mean), jnp.diag(scale))

    def one(e: Array, phase: Array, start: Array, reach: Array) -> tuple[Array, ...]:
        def value(omega: Array) -> Array:
            theta = {"P": 2 * jnp.pi / omega, "e": e, "M0": phase}
            design = keplerian(theta, {"t": own.t}) * root[:, None]
            return log_evidence(reduce_rows(design, own.y * root, 0), prior)

        return climb(value, start, reach)

    return jax.lax.map(lambda x: one(*x), (e, phase, start, reach), batch_size=64)


def _filled(
    own: Epochs,
    box: tuple[float, float, float, float],
    start: Any,
    reach: float,
    widths: Widths,
) -> _Box:
    """The cells of a box (lowest and highest e, lowest and highest phase)."""
    sides = (box[1] - box[0]) / _BOX[0], (box[3] - box[2]) / _BOX[1]
    e = box[0] + (np.arange(_BOX[0]) + 0.5) * sides[0]
    phase = box[2] + (np.arange(_BOX[1]) + 0.5) * sides[1]
    e, phase = (x.ravel() for x in np.meshgrid(e, phase, indexing="ij"))
    start = np.broadcast_to(start, e.shape)
    out = _profile(own, e, phase, start, np.full(e.shape, reach), widths)
    omega, value, curvature = (np.asarray(x) for x in out)
    good = curvature < 0
    sd = np.where(good, np.where(good, -curvature, 1.0) ** -0.5, 0.0)
    return _Box(e, phase, omega, np.where(good, value, -np.inf), sd, sides)


def _boxes(
    own: Epochs,
    starts: np.ndarray,
    reach: float,
    range_: tuple[float, float],
    max_eccentricity: float,
    threshold: float,
    widths: Widths,
) -> list[_Box]:
    """The boxes of the candidates that come near the best, shrunk to what matters."""
    whole = (0.0, max_eccentricity, 0.0, 2 * np.pi)
    first = [_filled(own, whole, start, reach, widths) for start in starts]
    # The coarse cells of a box miss its maximum: compare after a first shrinking only.
    shrunk: list[_Box] = []
    for cells in first:
        box = whole
        for _ in range(_SHRINKS):
            new = _around(cells, box, threshold, max_eccentricity)
            ratio = max(
                (new[1] - new[0]) / (box[1] - box[0]), (new[3] - new[2]) / (box[3] - box[2])
            )
            box = new
            start = cells.omega[np.argmax(cells.value)]
            cells = _filled(own, box, start, reach, widths)
            if ratio > 0.8:
                break
        top = cells.omega[np.argmax(cells.value)]
        inside = range_[0] <= top <= range_[1]
        # Two candidates may lead to one orbit.
        if inside and not any(_same(top, other) for other in shrunk):
            shrunk.append(cells)
    best = max(cells.value.max() for cells in shrunk)
    return [c._replace(value=c.value - best) for c in shrunk if c.value.max() > best - threshold]


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


def _nodes(
    boxes: list[_Box], range_: tuple[float, float], threshold: float
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Nodes, cell widths and log weights of all boxes of a star, lnP running fastest."""
    offset = _PERIOD_STEP * (np.arange(_PERIOD_NODES) - 0.5 * (_PERIOD_NODES - 1))
    parts = []
    for box in boxes:
        kept = box.value > -threshold
        sd = box.sd[kept][:, None]
        omega = box.omega[kept][:, None] + offset * sd
        step = np.broadcast_to(_PERIOD_STEP * sd / omega, omega.shape)
        e, phase = (np.broadcast_to(x[kept][:, None], omega.shape) for x in (box.e, box.phase))
        sides = [np.full(omega.shape, side) for side in box.sides]
        inside = (omega >= range_[0]) & (omega <= range_[1])
        parts.append([x[inside] for x in (omega, e, phase, step, *sides)])
    omega, e, phase, *width = (np.concatenate(column) for column in zip(*parts, strict=True))
    nodes = {"lnP": np.log(2 * np.pi / omega), "e": e, "M0": np.mod(phase, 2 * np.pi)}
    spacing = dict(zip(nodes, width, strict=True))
    return nodes, spacing, sum(np.log(x) for x in width)
