r"""Which periods a star's velocities allow: a scan over all, refined where it matters.

For $v(t) = a\cos\omega t + b\sin\omega t + v_0$ with Gaussian noise and Gaussian a, b, $v_0$, the
log marginal likelihood of $\omega$ has a closed form in six sums over the epochs, such as $\sum_j
w_j y_j e^{i\omega t_j}$. With $\omega = \omega_a + \delta_k$ these are matrix products of phasors,
$e^{i\omega t} = e^{i\omega_a t} e^{i\delta_k t}$, for all frequencies at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..blocks import in_blocks, on_all_cores

# Frequencies of a fine step, and the most numbers in a table of a scan.
_FINE = 128
_SCAN_SIZE = 2**21

# Maxima that are refined at once.
_REFINED_AT_ONCE = 1024

# Steps towards a maximum: first safe ones, then fast ones.
_HALVINGS, _PARABOLAS = 5, 6


class Epochs(NamedTuple):
    """Velocities of some stars, filled up to equal numbers of epochs.

    Attributes:
        t: (star, epoch) in days from the star's first.
        y: velocities less their weighted mean.
        w: weights 1/variance, zero where there is no epoch.
        mean: (star,) what was subtracted from `y`.
    """

    t: Any
    y: Any
    w: Any
    mean: Any


class Widths(NamedTuple):
    """Standard deviations of the Gaussian priors of a, b and v0 (of mean zero), for a scan."""

    amplitude: float = 100.0
    offset: float = 150.0


class Peaks(NamedTuple):
    """Maxima of the log marginal likelihood: star, angular frequency, value, standard deviation."""

    star: np.ndarray
    omega: np.ndarray
    value: np.ndarray
    sd: np.ndarray


class Intervals(NamedTuple):
    """Intervals of angular frequency and the step that resolves each."""

    star: np.ndarray
    low: np.ndarray
    high: np.ndarray
    step: np.ndarray


def _log_marginal(sums: Any, epochs: Any, widths: Widths) -> Array:
    """Log marginal up to a constant of the star; `sums` are those that depend on the frequency."""
    cos, sin, cos2, sin2, y_cos, y_sin = sums
    total, y_total = epochs
    # v0 is eliminated first: it does not know the frequency.
    pivot = total + widths.offset**-2
    ridge = widths.amplitude**-2
    aa = 0.5 * (total + cos2) + ridge - cos * cos / pivot
    bb = 0.5 * (total - cos2) + ridge - sin * sin / pivot
    ab = 0.5 * sin2 - cos * sin / pivot
    ya, yb = y_cos - cos * y_total / pivot, y_sin - sin * y_total / pivot
    det = aa * bb - ab * ab
    gain = (bb * ya * ya - 2.0 * ab * ya * yb + aa * yb * yb) / det
    return 0.5 * gain - 0.5 * jnp.log(det)


def _constants(epochs: Epochs, widths: Widths) -> tuple[Array, Array]:
    """Sums that do not depend on the frequency; the prior of v0 is not centred on the data."""
    total = jnp.sum(epochs.w, axis=-1)
    return total, jnp.sum(epochs.w * epochs.y, axis=-1) - epochs.mean * widths.offset**-2


@jax.jit
def _scan(epochs: Epochs, low: Array, step: Array, coarse: Array, widths: Widths) -> Array:
    """Log marginal at `low + step * n`, (star, coarse * fine)."""

    def one(both: Any) -> Array:
        star, low, step = both
        fine = step * jnp.arange(_FINE)[:, None] * star.t
        start = (low + step * _FINE * coarse)[:, None] * star.t
        c, s, fine_c, fine_s = jnp.cos(start), jnp.sin(start), jnp.cos(fine), jnp.sin(fine)
        w, wy = star.w, star.w * star.y
        # Rows: real and imaginary parts of each sum. Columns: the two parts of the fine phasors.
        rows = [[c * w, -s * w], [s * w, c * w], [c * wy, -s * wy], [s * wy, c * wy]]
        left = jnp.concatenate([jnp.concatenate(r, axis=1) for r in rows])
        one = left @ jnp.concatenate([fine_c, fine_s], axis=1).T
        c, s = (c * c - s * s) * w, 2.0 * c * s * w
        left = jnp.concatenate([jnp.concatenate(r, axis=1) for r in ([c, -s], [s, c])])
        fine_c, fine_s = fine_c * fine_c - fine_s * fine_s, 2.0 * fine_c * fine_s
        two = left @ jnp.concatenate([fine_c, fine_s], axis=1).T
        one, two = one.reshape(4, -1), two.reshape(2, -1)
        sums = (one[0], one[1], two[0], two[1], one[2], one[3])
        return _log_marginal(sums, _constants(star, widths), widths)

    return jax.lax.map(one, (epochs, low, step))


def log_marginal(omega: Array, star: Epochs, widths: Widths) -> Array:
    """The log marginal of one star at one angular frequency, as in the scan."""
    c, s = jnp.cos(omega * star.t), jnp.sin(omega * star.t)
    terms = [c, s, c * c - s * s, 2.0 * c * s, star.y * c, star.y * s]
    sums = jnp.sum(jnp.stack(terms) * star.w, axis=-1)
    return _log_marginal(sums, _constants(star, widths), widths)


def log_norm(epochs: Epochs, widths: Widths) -> np.ndarray:
    """What the scan's log marginals leave out because no frequency enters it, (star,)."""
    total, y_total = (np.asarray(x) for x in _constants(epochs, widths))
    pivot = total + widths.offset**-2
    used = epochs.w > 0
    noise = 0.5 * np.sum(np.log(np.where(used, epochs.w, 1.0)), axis=1)
    noise = noise - 0.5 * np.log(2 * np.pi) * used.sum(axis=1)
    misfit = np.sum(epochs.w * epochs.y**2, axis=1) + (epochs.mean / widths.offset) ** 2
    prior = np.log(widths.offset) + 2.0 * np.log(widths.amplitude)
    return noise - 0.5 * misfit + 0.5 * y_total**2 / pivot - 0.5 * np.log(pivot) - prior


def climb(value: Callable[[Array], Array], start: Array, reach: Array) -> tuple[Array, ...]:
    """The maximum of a function of one number within `reach` of `start`, where it is higher.

    Returns its place, its value and the second derivative there.
    """

    def at(x: Array, h: Array, points: Array) -> Array:
        return jax.vmap(value)(x + h * points)

    def halve(_: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, h, middle = state
        low, high = at(x, h, jnp.array([-0.5, 0.5]))
        # The highest of three is again above what is on both sides of it.
        move = jnp.where(high > low, 0.5, -0.5)
        better = jnp.maximum(low, high)
        moves = better > middle
        return x + jnp.where(moves, move * h, 0.0), 0.5 * h, jnp.where(moves, better, middle)

    def parabola(_: Any, state: Any) -> Any:
        x, h, _, _ = state
        low, middle, high = at(x, h, jnp.linspace(-1.0, 1.0, 3))
        first, second = 0.5 * (high - low) / h, (high - 2.0 * middle + low) / h**2
        curvature = jnp.where(second < 0, second, -1.0)
        move = jnp.where(second < 0, jnp.clip(-first / curvature, -2.0 * h, 2.0 * h), 0.0)
        # A third of a standard deviation: narrow enough, and far above rounding.
        finer = jnp.minimum(0.33 / jnp.sqrt(-curvature), h)
        return x + move, jnp.where(second < 0, finer, h), middle, second

    halved = (start, reach, value(start))
    x, h, _ = jax.lax.fori_loop(0, _HALVINGS, halve, halved)
    fitted = (x, h, jnp.zeros(()), jnp.zeros(()))
    x, _, top, curvature = jax.lax.fori_loop(0, _PARABOLAS, parabola, fitted)
    return x, top, curvature


@jax.jit
def _refine(epochs: Epochs, star: Array, start: Array, reach: Array, widths: Widths) -> Any:
    """The maximum near each candidate: omega, value, curvature."""

    def one(index: Array, start: Array, reach: Array) -> Any:
        own = Epochs(*(x[index] for x in epochs))
        # A local maximum of the scan has the true one in the two steps around it.
        return climb(lambda omega: log_marginal(omega, own, widths), start, reach)

    return jax.vmap(one)(star, start, reach)


def scan(
    epochs: Epochs, low: float, high: float, step: np.ndarray, threshold: float, widths: Widths
) -> tuple[Peaks, Intervals, np.ndarray]:
    r"""All that matters of $\ln m(\omega)$ for angular frequencies between `low` and `high`.

    Args:
        epochs: of the stars.
        low, high: angular frequencies, one range for all.
        step: (star,) of the scan.
        threshold: in natural logarithms below a star's best.
        widths: of the priors of the linear parameters.

    Returns:
        maxima (refined from every local maximum of the scan that can reach the threshold), with
        values below the star's best; the intervals of the scan's own steps where it is above the
        threshold; and the best values, (star,).
    """
    best, seen, above = _seen(epochs, low, high, step, threshold, widths)
    peaks = _refined(seen, epochs, low, high, step, widths)
    np.maximum.at(best, peaks.star, peaks.value)
    peaks = peaks._replace(value=peaks.value - best[peaks.star])
    kept = (peaks.value > -threshold) & np.isfinite(peaks.sd)
    peaks = Peaks(*(x[kept] for x in peaks))
    star, omega, value = above
    rest = value > best[star] - threshold
    # A maximum that is narrower than a step of the scan needs no such step around it.
    rest[rest] = ~_claimed(star[rest], omega[rest], peaks, threshold, 2.0 * (high - low))
    star, omega = star[rest], omega[rest]
    return peaks, Intervals(star, omega - step[star], omega + step[star], step[star]), best


def _seen(
    epochs: Epochs, low: float, high: float, step: np.ndarray, threshold: float, widths: Widths
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The scan: best values, candidates (star, omega), and all above the threshold with values."""
    num = np.ceil((high - low) / step).astype(int) + 1
    size = int(2 ** np.ceil(np.log2(max(num.max() / _FINE, 1.0))))
    chunk = max(1, min(len(num), _SCAN_SIZE // (size * _FINE)))
    # How much higher than at the scan's frequencies a maximum between them can be: the phases at
    # the ends of the data are wrong by a quarter of step times span, the velocities by that times
    # K, and sum w K^2 is about twice what there is to explain, sum w y^2.
    lost = np.minimum(0.5, (0.25 * step * epochs.t.max(axis=1)) ** 2)
    lost = lost * np.sum(epochs.w * epochs.y**2, axis=1)
    coarse = np.arange(float(size))
    # One compiled shape: the last chunk repeats its last star, and leaves it out again.
    every = np.arange(len(num) + -len(num) % chunk)

    def one(at: np.ndarray) -> tuple[np.ndarray, ...]:
        fill = np.minimum(at, len(num) - 1)
        own = Epochs(*(x[fill] for x in epochs))
        table = np.array(_scan(own, np.full(chunk, low), step[fill], coarse, widths))
        at = at[at < len(num)]
        table = table[: len(at)]
        table[np.arange(table.shape[1]) >= num[at][:, None]] = -np.inf
        best = table.max(axis=1)
        inner = table[:, 1:-1]
        peak = inner > (best - threshold - lost[at])[:, None]
        peak &= (inner >= table[:, :-2]) & (inner >= table[:, 2:])
        star, place = np.nonzero(peak)
        high_star, high_place = np.nonzero(table > (best - threshold)[:, None])
        value = table[high_star, high_place]
        return best, at[star], place + 1, at[high_star], high_place, value

    found = on_all_cores(one, list(every.reshape(-1, chunk)))
    best, star, place, high_star, high_place, value = (
        np.concatenate(column) for column in zip(*found, strict=True)
    )
    above = (high_star, low + step[high_star] * high_place, value)
    return best, (star, low + step[star] * place), above


def _refined(
    seen: tuple[np.ndarray, np.ndarray],
    epochs: Epochs,
    low: float,
    high: float,
    step: np.ndarray,
    widths: Widths,
) -> Peaks:
    """Refined maxima with their values; the standard deviation of what is none is infinite."""
    star, start = seen
    columns = {"star": star, "start": start, "reach": step[star]}
    omega, value, curvature = in_blocks(
        lambda block: _refine(epochs, *block.values(), widths), columns, _REFINED_AT_ONCE
    )
    good = (curvature < 0) & (omega >= low) & (omega <= high)
    sd = np.full(len(star), np.inf)
    sd[good] = (-curvature[good]) ** -0.5
    return Peaks(star, omega, np.where(good, value, -np.inf), sd)


def _reach(peaks: Peaks, threshold: float) -> np.ndarray:
    """How far from its maximum a Gaussian falls to the threshold."""
    return np.sqrt(2.0 * (threshold + peaks.value)) * peaks.sd


def _claimed(
    star: np.ndarray, omega: np.ndarray, peaks: Peaks, threshold: float, apart: float
) -> np.ndarray:
    """Which points lie within the reach of the maximum on their left or right."""
    if not peaks.star.size:
        return np.zeros(len(star), bool)
    order = np.lexsort((peaks.omega, peaks.star))
    place = peaks.omega[order] + apart * peaks.star[order]
    reach, x = _reach(peaks, threshold)[order], omega + apart * star
    right = np.searchsorted(place, x)
    left = np.maximum(right - 1, 0)
    right = np.minimum(right, len(place) - 1)
    return (np.abs(x - place[left]) < reach[left]) | (np.abs(x - place[right]) < reach[right])


def merged(
    peaks: Peaks, above: Intervals, low: float, high: float, threshold: float, step: float
) -> Intervals:
    r"""Disjoint intervals that hold every period above the threshold, each with its step.

    A maximum claims $\pm\sqrt{2T}$ of its standard deviations, T being how far it is above the
    threshold, and a step of the scan that is above the threshold its neighbourhood. What overlaps
    is joined and takes the finest of the steps, `step` times the smallest standard deviation.
    """
    reach = _reach(peaks, threshold)
    star = np.concatenate([peaks.star, above.star])
    left = np.maximum(np.concatenate([peaks.omega - reach, above.low]), low)
    right = np.minimum(np.concatenate([peaks.omega + reach, above.high]), high)
    fine = np.concatenate([step * peaks.sd, step * above.step])
    order = np.lexsort((left, star))
    star, left, right, fine = star[order], left[order], right[order], fine[order]
    # Stars apart by more than the range never touch.
    apart = star * (2.0 * (high - low))
    reached = np.maximum.accumulate(right + apart)
    new = np.concatenate([[True], (left + apart)[1:] > reached[:-1]])
    first = np.flatnonzero(new)
    return Intervals(
        star[first],
        left[first],
        np.maximum.reduceat(right, first),
        np.minimum.reduceat(fine, first),
    )


def nodes_of(intervals: Intervals) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Midpoints of equal cells: star, angular frequency and width of each, star by star.

    The midpoint rule converges faster than any power where the ends of an interval are negligible.
    """
    width = intervals.high - intervals.low
    count = np.maximum(np.ceil(width / intervals.step).astype(int), 1)
    cell = np.repeat(width / count, count)
    inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    omega = np.repeat(intervals.low, count) + (inside + 0.5) * cell
    return np.repeat(intervals.star, count), omega, cell
