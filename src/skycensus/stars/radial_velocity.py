r"""Periods of binary stars known by a few radial velocities.

A companion on a circular orbit of period P moves a star by

$$v(t) = a\cos\frac{2\pi t}P + b\sin\frac{2\pi t}P + v_0,$$

linear in a, b, $v_0$ and with many maxima in P. The linear parameters are integrated in closed form
and P on a grid that resolves every maximum that matters (see `periods`), so that nothing starts,
or gets stuck, in the wrong one. Times are in days from a star's first epoch, velocities in km/s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import astropy.units as u
import jax.numpy as jnp
import numpy as np
from astropy.table import Table
from astropy.time import Time
from jax import Array

from ..errors import InputError, did_you_mean
from ..likelihood.linear_grid import LinearGrid
from .periods import Epochs, Intervals, Peaks, Widths, log_norm, merged, nodes_of, scan
from .tables import check_uncertainties, columns_of, read_table

PARAMETERS = ("a", "b", "v0")

# More frequencies than this are a slip in the range of periods or in the times.
_MAX_FREQUENCIES = 2**24


class Velocities(NamedTuple):
    """Radial velocities of stars, star by star.

    Attributes:
        time: one array for each star, in days from its first epoch, ascending.
        velocity, error: likewise, in km/s.
        names: of the stars.
        first: (star,) first epochs, in days, as they came.
    """

    time: tuple[np.ndarray, ...]
    velocity: tuple[np.ndarray, ...]
    error: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    first: np.ndarray

    def select(self, names: Sequence[str]) -> Velocities:
        """The stars with these names, in this order.

        Raises:
            InputError: a name that is not there, or no name at all.
        """
        if not names:
            raise InputError("stars is an empty list; name some, or leave it out for all of them.")
        for name in names:
            if name not in self.names:
                raise InputError(f"there is no star '{name}'{did_you_mean(name, self.names)}.")
        at = [self.names.index(name) for name in names]
        time, velocity, error = (tuple(x[i] for i in at) for x in self[:3])
        return Velocities(time, velocity, error, tuple(names), self.first[at])

    def with_jitter(self, jitter: float) -> Velocities:
        """The same with a white noise of `jitter` km/s more, added in squares.

        Raises:
            InputError: a jitter, or an uncertainty of the data, that is negative or not finite.
        """
        if not (np.isfinite(jitter) and jitter >= 0):
            raise InputError(f"jitter={jitter:g} km/s must be a number of zero or more.")
        check_uncertainties(self.error, self.names)
        return self._replace(error=tuple(np.hypot(e, jitter) for e in self.error))


# ---- reading -------------------------------------------------------------------------------------


def velocities(
    table: Table,
    *,
    name: str = "APOGEE_ID",
    time: str = "JD",
    velocity: str = "VHELIO",
    error: str = "VHELIO_ERR",
    stars: Sequence[str] | None = None,
    source: str = "the table",
    drop_invalid: bool = False,
) -> Velocities:
    """Take velocities from a table with one row for each epoch of each star.

    Args:
        table: an astropy `Table` or `QTable`; times are a `Time` column or in any unit of time
            (plain: days), velocities in any unit of velocity (plain: km/s).
        name, time, velocity, error: its columns.
        stars: only these, in this order.
        source: how messages call the table.
        drop_invalid: leave out rows with a missing value instead of refusing them.

    Two measurements at one time are two measurements; a row that is there twice is an error.

    Raises:
        InputError: see `tables.columns_of`; a row that is there twice, or a star that is not there.
    """
    if time in table.colnames and isinstance(table[time], Time):
        table = Table(table, copy=False)
        table[time] = table[time].jd
    km_s = u.km / u.s
    wanted = {
        "name": (name, None), "time": (time, u.day), "velocity": (velocity, km_s),
        "error": (error, km_s),
    }  # fmt: skip
    columns = columns_of(
        table, wanted, source=source, positive=["error"], text=["name"], drop_invalid=drop_invalid
    )
    value = columns.values
    found: dict[str, np.ndarray] = {}
    labels, index = np.unique(value["name"].astype(str), return_inverse=True)
    first_row = [int(np.flatnonzero(index == i)[0]) for i in range(len(labels))]
    for i in np.argsort(first_row):
        at = np.flatnonzero(index == i)
        rows = np.stack([value[c][at] for c in ("time", "velocity", "error")], axis=1)
        if len(np.unique(rows, axis=0)) < len(rows):
            _, back, count = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
            twice = columns.rows[at][count[back.reshape(-1)] > 1]
            raise InputError(
                f"{source}: star {labels[i]} has the same row more than once (rows "
                f"{', '.join(map(str, twice[:5]))}); remove the copies."
            )
        found[str(labels[i])] = rows[np.argsort(rows[:, 0], kind="stable")]
    out = _velocities(found)
    return out if stars is None else out.select(stars)


def read_velocities(path: str | Path, **options: Any) -> Velocities:
    """`velocities` of a FITS, ECSV or CSV file; the same options."""
    return velocities(read_table(path), source=str(path), **options)


def _velocities(rows: Mapping[str, np.ndarray]) -> Velocities:
    first = np.array([x[0, 0] for x in rows.values()])
    return Velocities(
        tuple(x[:, 0] - x[0, 0] for x in rows.values()),
        tuple(x[:, 1] for x in rows.values()),
        tuple(x[:, 2] for x in rows.values()),
        tuple(rows),
        first,
    )


def lomb_scargle(
    stars: Velocities,
    *,
    periods: tuple[float, float] = (1.5, 20.0),
    samples_per_peak: int = 10,
) -> dict[str, np.ndarray]:
    """Starting values P, a, b, v0, (star,) each, for samplers that need them.

    P is where the Lomb-Scargle power is highest (`astropy.timeseries.LombScargle`), the others the
    weighted least squares at P.
    """
    from astropy.timeseries import LombScargle

    out: dict[str, list[float]] = {"P": [], "a": [], "b": [], "v0": []}
    for t, v, e in zip(stars.time, stars.velocity, stars.error, strict=True):
        frequency, power = LombScargle(t, v, e).autopower(
            minimum_frequency=1.0 / periods[1],
            maximum_frequency=1.0 / periods[0],
            samples_per_peak=samples_per_peak,
        )
        period = 1.0 / frequency[np.argmax(power)]
        design = np.asarray(circular({"P": period}, {"t": t}))
        best = np.linalg.lstsq(design / e[:, None], v / e, rcond=None)[0]
        for key, x in zip(out, [period, *best], strict=True):
            out[key].append(float(x))
    return {key: np.array(x) for key, x in out.items()}


# ---- orbits --------------------------------------------------------------------------------------


def circular(theta: Mapping[str, Any], columns: Mapping[str, Any]) -> Array:
    """Design matrix (epoch, 3) of a, b, v0 for a circular orbit of period `P` or exp(`lnP`)."""
    xp = np if isinstance(columns["t"], np.ndarray) else jnp
    period = theta["P"] if "P" in theta else xp.exp(theta["lnP"])
    phase = 2.0 * np.pi / period * columns["t"]
    return xp.stack([xp.cos(phase), xp.sin(phase), xp.ones_like(phase)], axis=-1)


def noise_with_jitter(theta: Mapping[str, Any], columns: Mapping[str, Any]) -> Array:
    """Standard deviations (epoch,) with `jitter` added in squares to the column `error`."""
    return jnp.hypot(columns["error"], theta["jitter"])


class Jitter(NamedTuple):
    """Nodes [km/s] of an unknown white noise of each star, and their prior probabilities.

    Attributes:
        value, probability: (node,).
        width: (node,) of the cells that the nodes stand for, for draws; None for the nodes alone.
    """

    value: np.ndarray
    probability: np.ndarray
    width: np.ndarray | None = None

    @classmethod
    def of(cls, prior: Any, stars: Velocities, *, step: float = 1.0) -> Jitter:
        r"""Nodes that resolve what the velocities of any of the stars can say of their jitter s.

        n velocities know ln s to $1/\sqrt{2n}$ at best. Cells of `step` times that, for the star
        with the most, reach from a tenth of the smallest error, below which s is as good as zero,
        to ten times the largest deviation of a velocity; the prior mass beyond goes to the ends.

        Args:
            prior: NumPyro distribution on positive numbers, with a cdf.
            stars: whose noise it is.

        Raises:
            InputError: a prior that allows negative numbers, or without a cdf.
        """
        low, high = _jitter_range(prior, stars)
        most = max(len(t) for t in stars.time)
        num = int(np.ceil(np.log(high / low) * np.sqrt(2.0 * most) / step))
        edges = np.geomspace(low, high, max(num, 1) + 1)
        below = np.asarray(prior.cdf(jnp.asarray(edges)), float)
        # What is below the first edge is as good as none of it.
        value = np.append(0.5 * low, np.sqrt(edges[1:] * edges[:-1]))
        probability = np.diff(below, prepend=0.0)
        probability[-1] += 1.0 - below[-1]
        width = np.append(low, np.diff(edges))
        kept = probability > 1e-12
        return cls(value[kept], probability[kept], width[kept])


def _jitter_range(prior: Any, stars: Velocities) -> tuple[float, float]:
    """Where the nodes of a jitter begin and end; see `Jitter.of`."""
    name = type(prior).__name__
    bounds = [getattr(prior.support, f"{side}_bound", None) for side in ("lower", "upper")]
    if bounds[0] is None or not float(bounds[0]) >= 0:
        raise InputError(
            f"jitter: {name} allows negative numbers; give a prior on positive ones, such as "
            "LogUniform, HalfNormal or LogNormal."
        )
    low = max(0.1 * min(float(e.min()) for e in stars.error), float(bounds[0]))
    far = max(float(np.abs(v - np.median(v)).max()) for v in stars.velocity)
    high = max(10.0 * far, 10.0 * low)
    high = high if bounds[1] is None else min(high, float(bounds[1]))
    try:
        prior.cdf(jnp.asarray(high))
    except NotImplementedError:
        raise InputError(f"jitter: {name} has no cdf in NumPyro; give another prior.") from None
    # A prior of small jitters alone has all its mass below the first edge.
    return low, max(high, 1.001 * low)


def circular_orbits(
    stars: Velocities,
    *,
    periods: tuple[float, float] = (1.5, 20.0),
    parameter: Literal["lnP", "P"] = "lnP",
    widths: Widths = Widths(),  # noqa: B008
    jitter: Jitter | None = None,
    oversampling: float = 10.0,
    threshold: float = 20.0,
    step: float = 0.5,
    max_baselines: float = 10.0,
    max_nodes: int = 200_000,
) -> LinearGrid:
    r"""Stars on circular orbits, as a form in a, b, v0 [km/s] and lnP or P [days].

    The frequencies between the periods are scanned uniformly, `oversampling` to a cycle over a
    star's time base. Every maximum within `threshold` of the star's best is refined and resolved by
    nodes half a standard deviation apart (`step`) down to the threshold; where maxima are broad or
    run into each other the nodes cover them all.

    Args:
        stars: the data; stars with fewer epochs than parameters are welcome.
        periods: shortest and longest, in days; outside the likelihood counts as zero.
        parameter: the nonlinear parameter of the population.
        widths: priors for the scan; they decide which periods matter, not the result.
        jitter: nodes of a white noise beyond the errors, each star's own, integrated with its prior
            and drawn as `jitter` (for a known one see `Velocities.with_jitter`).
        oversampling: see above.
        threshold: in natural logarithms.
        step: see above.
        max_baselines: how many times a star's time base the longest period may be.
        max_nodes: for one star, over all jitters.

    Raises:
        InputError: an uncertainty that is not positive, a range of periods that is none or that a
            star's times cannot resolve (the star is named), or a star that needs more nodes than
            `max_nodes`.
    """
    check_range(stars, periods, max_baselines, parameter)
    low, high = 2 * np.pi / periods[1], 2 * np.pi / periods[0]
    span = np.array([t[-1] for t in stars.time])
    steps = scan_steps(stars, low, high, span, oversampling)
    found = scan_versions(stars, jitter, low, high, steps, threshold, widths)
    intervals = merged(found.peaks, found.above, low, high, threshold, step)
    check_nodes(intervals, stars.names, max_nodes)
    owner, omega, cells = nodes_of(intervals)
    version, owner = np.divmod(owner, len(stars.names))
    nodes, spacing = in_period(parameter, omega, cells)
    weight = np.log(spacing[parameter])
    columns = {"t": stars.time}
    if jitter is not None:
        nodes["jitter"] = jitter.value[version]
        weight = weight + np.log(jitter.probability)[version]
        columns["error"] = stars.error
        if jitter.width is not None:
            spacing["jitter"] = jitter.width[version]
    order = np.argsort(owner, kind="stable")
    ends = np.searchsorted(owner[order], np.arange(1, len(stars.names)))

    def by_star(x: np.ndarray) -> list[np.ndarray]:
        return np.split(x[order], ends)

    return LinearGrid(
        circular,
        stars.velocity,
        stars.error if jitter is None else noise_with_jitter,
        columns=columns,
        nodes={k: by_star(x) for k, x in nodes.items()},
        log_weight=by_star(weight),
        parameters=PARAMETERS,
        names=stars.names,
        spacing={k: by_star(x) for k, x in spacing.items()},
    )


def in_period(
    parameter: str, omega: np.ndarray, cells: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Nodes in lnP or P and the widths of their cells, from those in angular frequency."""
    if parameter == "lnP":
        return {"lnP": np.log(2 * np.pi / omega)}, {"lnP": cells / omega}
    return {"P": 2 * np.pi / omega}, {"P": 2 * np.pi * cells / omega**2}


class Versions(NamedTuple):
    """Scans of stars with every node of a jitter added to their errors.

    Attributes:
        epochs: of version 0 of all stars, then of version 1, ...
        peaks, above: see `scan`, of the versions that matter.
        log_total: (version, star) highest log marginal over the periods, with the prior's.
    """

    epochs: Epochs
    peaks: Peaks
    above: Intervals
    log_total: np.ndarray


def scan_versions(
    stars: Velocities,
    jitter: Jitter | None,
    low: float,
    high: float,
    steps: np.ndarray,
    threshold: float,
    widths: Widths,
) -> Versions:
    """Scan the stars for each jitter; versions below the threshold of the star's best are left."""
    values, prior = (np.zeros(1), np.ones(1)) if jitter is None else jitter[:2]
    epochs = pad([stars.with_jitter(float(s)) for s in values])
    tiled = np.tile(steps, len(values))
    peaks, above, best = scan(epochs, low, high, tiled, threshold, widths)
    total = (best + log_norm(epochs, widths)).reshape(len(values), -1) + np.log(prior)[:, None]
    kept = (total > total.max(axis=0) - threshold).ravel()
    peaks = Peaks(*(x[kept[peaks.star]] for x in peaks))
    above = Intervals(*(x[kept[above.star]] for x in above))
    return Versions(epochs, peaks, above, total)


def resolution_error(stars: Velocities, population: Any, **options: Any) -> np.ndarray:
    """Change of every star's log marginal when the grid of `circular_orbits` is made finer.

    Twice the oversampling, half the step and ten more in the threshold; (star,). `population` is a
    density of the form's parameters, `options` are those of `circular_orbits`.
    """
    fine = {
        "oversampling": 2.0 * options.get("oversampling", 10.0),
        "step": 0.5 * options.get("step", 0.5),
        "threshold": 10.0 + options.get("threshold", 20.0),
    }
    pair = [circular_orbits(stars, **o) for o in (options, {**options, **fine})]
    one, two = (np.asarray(form.log_marginal(population).value) for form in pair)
    return two - one


# ---- checks --------------------------------------------------------------------------------------


def check_range(
    stars: Velocities, periods: tuple[float, float], max_baselines: float, parameter: str
) -> None:
    """Raise where the range of periods is none, or no star's times could tell its longest."""
    check_uncertainties(stars.error, stars.names)
    if parameter not in ("lnP", "P"):
        raise InputError(f"parameter='{parameter}' is not known; use 'lnP' or 'P'.")
    if jnp.result_type(float) != jnp.float64:
        raise InputError(
            "orbits need 64-bit numbers; call jax.config.update('jax_enable_x64', True)."
        )
    short, long = periods
    if not (np.isfinite([short, long]).all() and 0 < short < long):
        raise InputError(
            f"periods={tuple(periods)} is no range; give the shortest and the longest, in days."
        )
    for name, t in zip(stars.names, stars.time, strict=True):
        if t[-1] < long / max_baselines:
            raise InputError(
                f"star {name}: its epochs span {t[-1]:.4g} days, which cannot resolve periods up "
                f"to {long:g} (more than {max_baselines:g} times as long); lower the longest "
                "period, leave the star out, or raise max_baselines."
            )


def scan_steps(
    stars: Velocities, low: float, high: float, span: np.ndarray, oversampling: float
) -> np.ndarray:
    """Steps of the scan in angular frequency, (star,)."""
    if not oversampling >= 2.0:
        raise InputError(
            f"oversampling={oversampling:g} is too coarse: maxima fall between the frequencies; "
            "give 2 or more (10 is usual)."
        )
    # However short the time base, there are some steps over the range.
    steps = np.minimum(
        2 * np.pi / (oversampling * np.maximum(span, 1e-9)), (high - low) / (8.0 * oversampling)
    )
    many = (high - low) / steps
    if many.max() > _MAX_FREQUENCIES:
        worst = int(np.argmax(many))
        raise InputError(
            f"star {stars.names[worst]}: {many[worst]:.2g} frequencies are needed for periods from "
            f"{2 * np.pi / high:g} days over {span[worst]:.4g} days; raise the shortest period, or "
            "check the unit of the times."
        )
    return steps


def check_nodes(intervals: Any, names: tuple[str, ...], max_nodes: int) -> None:
    """Raise where a star's periods are so many that its nodes would fill the memory."""
    count = np.ceil((intervals.high - intervals.low) / intervals.step)
    each = np.bincount(intervals.star % len(names), weights=count, minlength=len(names))
    worst = int(np.argmax(each))
    if each[worst] > max_nodes:
        raise InputError(
            f"star {names[worst % len(names)]}: its velocities allow so many periods that "
            f"{each[worst]:.3g} nodes are needed (max_nodes={max_nodes}); narrow the range of "
            "periods, lower the threshold, or raise max_nodes."
        )


def pad(versions: Sequence[Velocities]) -> Epochs:
    """All stars of all versions of the data, one after the other, as rectangular arrays."""
    size = max(len(t) for t in versions[0].time)
    num = len(versions[0].names)
    t, y, w = (np.zeros((len(versions) * num, size)) for _ in range(3))
    for k, stars in enumerate(versions):
        for i, (x, v, e) in enumerate(zip(*stars[:3], strict=True)):
            row, count = k * num + i, len(x)
            t[row, :count], y[row, :count], w[row, :count] = x, v, e**-2.0
    mean = np.sum(w * y, axis=1) / np.sum(w, axis=1)
    y = np.where(w > 0, y - mean[:, None], 0.0)
    return Epochs(t, y, w, mean)
