r"""A measurement model, a reference prior, and posterior draws that follow from the two exactly.

Data $d \sim p(d \mid \theta)$ are drawn at a true $\theta$, and draws from the posterior
$p(\theta \mid d) \propto p(d \mid \theta)\,\pi(\theta)$. Where truths are drawn from $\pi$ too,
their ranks among their draws are uniform. Masses are in solar masses, distances in Mpc.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError, did_you_mean
from .coordinates import (
    DISTANCE_NAMES,
    MASS_NAMES,
    SPIN_NAMES,
    Columns,
    Theta,
    block,
    symmetric_mass_ratio,
)
from .cosmology import FlatLambdaCDM
from .reference_priors import log_reference

# ---- the reference prior and the measurement ----------------------------------------------------

_OTHER_RANGES = {
    "chi_eff": (-0.99, 0.99),
    "a_1": (0.0, 0.99),
    "a_2": (0.0, 0.99),
    "cos_tilt_1": (-1.0, 1.0),
    "cos_tilt_2": (-1.0, 1.0),
    "eccentricity": (0.0, 1.0),
}
_OTHER_SCALES = {
    "chi_eff": 0.1,
    "a_1": 0.3,
    "a_2": 0.5,
    "cos_tilt_1": 0.5,
    "cos_tilt_2": 0.7,
    "eccentricity": 0.05,
}


@dataclass(frozen=True)
class BoundedPrior:
    r"""The prior $\pi(\theta)$ that draws are drawn with: reference priors by name, within ranges.

    Args:
        names: block -> name in `reference_priors`, e.g. `{"masses": "uniform-source-components",
            "distance": "comoving-volume", "spins": {"name": "isotropic-uniform", "a_max": 0.99}}`.
        mass: range of both source-frame component masses.
        redshift: range of the redshift, above zero.
        others: ranges of other parameters, where they differ from the usual ones.
        cosmology: relates redshift and luminosity distance.
    """

    names: Mapping[str, Any] = field(
        default_factory=lambda: {
            "masses": "uniform-source-components",
            "distance": "comoving-volume",
            "spins": {"name": "isotropic-uniform", "a_max": 0.99},
            "eccentricity": "uniform",
        }
    )
    mass: tuple[float, float] = (1.0, 200.0)
    redshift: tuple[float, float] = (1e-3, 2.3)
    others: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    cosmology: Any = field(default_factory=FlatLambdaCDM)

    def __post_init__(self) -> None:
        ranges = {"mass": self.mass, "redshift": self.redshift, **self.others}
        for name, (low, high) in ranges.items():
            if not low < high:
                raise InputError(f"reference prior {name}: low={low} is not below high={high}.")
            if name in ("mass", "redshift") and not low > 0.0:
                raise InputError(f"reference prior {name}: low={low} must be above zero.")

    def describe(self, parameters: tuple[str, ...]) -> dict[str, Any]:
        """Return the priors' names as `reference_priors` reads them, and the ranges, for a record.

        `names` holds what `parameters` need and nothing else.
        """
        blocks = {"masses": MASS_NAMES, "distance": DISTANCE_NAMES, "spins": SPIN_NAMES}
        needed = {key for key, members in blocks.items() if block(parameters, members)}
        needed |= set(parameters)
        ranges = {"mass": list(self.mass)}
        if block(parameters, DISTANCE_NAMES):
            ranges["redshift"] = list(self.redshift)
        ranges |= {name: list(other_range(self, name)) for name in _others(parameters)}
        described = {"names": {k: v for k, v in self.names.items() if k in needed}, "range": ranges}
        if isinstance(self.cosmology, FlatLambdaCDM) and "redshift" in ranges:
            described["cosmology"] = {k: float(v) for k, v in self.cosmology._asdict().items()}
        return described


@dataclass(frozen=True)
class MeasurementModel:
    r"""Gaussian data in the logarithms of chirp mass, symmetric mass ratio and distance,

    $$d_j \sim \mathcal{N}\bigl(y_j(\theta),\ s_j\,\rho_*/\hat\rho\bigr),\qquad
      y = \bigl(\ln\mathcal{M},\ \ln\eta,\ \ln D_L,\ \ldots\bigr),$$

    with $\mathcal{M}$ of the detector frame where the parameters have a distance, of the source
    frame otherwise. The observed signal-to-noise ratio $\hat\rho$ is part of the data: its law is
    $\mathcal{N}(\rho(\theta), 1)$ with `snr` $= \rho(\theta)$, and without one it is that of
    sources spread evenly through Euclidean space, $p(\hat\rho) \propto \hat\rho^{-4}$ above
    $\rho_*$, the same for every theta. The widths at threshold are those of Fishbach, Holz & Farr
    2018 (arXiv:1805.10270), with 0.022 in $\eta$ taken relative to 1/4 and the amplitude's for
    $D_L$.

    The posterior of `BoundedPrior` with these data is a product of one-dimensional densities, drawn
    by inverting tables of 4,096 nodes, and of bounded factors (the mass range, $p(\hat\rho \mid
    \theta)$, a spin prior that depends on the mass ratio), imposed by rejection.

    Args:
        chirp_mass, symmetric_mass_ratio, luminosity_distance: $s_j$ of the logarithms.
        others: $s_j$ of other parameters themselves, where they differ from the usual ones.
        snr_threshold: $\rho_*$.
        snr: function of theta that gives $\rho(\theta)$, or None.
    """

    chirp_mass: float = 0.08
    symmetric_mass_ratio: float = 0.09
    luminosity_distance: float = 0.21
    others: Mapping[str, float] = field(default_factory=dict)
    snr_threshold: float = 8.0
    snr: Callable[[Theta], Any] | None = None

    calibrated = True

    def __post_init__(self) -> None:
        names = ("chirp_mass", "symmetric_mass_ratio", "luminosity_distance", "snr_threshold")
        for name, scale in {**{n: getattr(self, n) for n in names}, **self.others}.items():
            if not (scale > 0.0 and math.isfinite(scale)):
                raise InputError(f"measurement '{name}': {scale} must be a positive number.")

    def prepare(self, parameters: tuple[str, ...], prior: BoundedPrior) -> Analysis:
        return Analysis(parameters, prior, self)

    def describe(self, parameters: tuple[str, ...]) -> dict[str, Any]:
        """Return the model for a record, with the widths that these parameters need."""
        widths = {
            "ln_chirp_mass": self.chirp_mass,
            "ln_symmetric_mass_ratio": self.symmetric_mass_ratio,
            "ln_luminosity_distance": self.luminosity_distance,
            **{name: {**_OTHER_SCALES, **self.others}[name] for name in _others(parameters)},
        }
        if not block(parameters, DISTANCE_NAMES):
            del widths["ln_luminosity_distance"]
        law = "p(snr) ~ snr^-4 above the threshold" if self.snr is None else "normal(snr(theta), 1)"
        return {
            "model": "gaussian",
            "widths_at_threshold": widths,
            "snr_threshold": self.snr_threshold,
            "snr": law,
        }


class Observation(NamedTuple):
    """What one merger gave: the data by name, and the draws of its parameters by name."""

    data: dict[str, float]
    draws: dict[str, np.ndarray]


class _Axis(NamedTuple):
    """One coordinate c: its nodes, the log prior there, the measured y(c), and y's width."""

    name: str
    nodes: np.ndarray
    log_prior: np.ndarray
    measured: np.ndarray
    scale: float

    def draw(self, rng: np.random.Generator, value: float, sd: float, size: int) -> np.ndarray:
        r"""Draw c from $\pi(c)\,\mathcal{N}(\mathrm{value} \mid y(c), sd)$ by its distribution
        function: exact for the density interpolated linearly between 4,096 nodes."""
        # Nine standard deviations leave out less than 1e-18 of the likelihood.
        ends = np.interp([value - 9.0 * sd, value + 9.0 * sd], self.measured, self.nodes)
        c = np.linspace(ends[0], ends[1], 4096)
        y = np.interp(c, self.nodes, self.measured)
        log_p = np.interp(c, self.nodes, self.log_prior) - 0.5 * ((value - y) / sd) ** 2
        p = np.exp(log_p - log_p.max())
        total = np.concatenate([[0.0], np.cumsum(0.5 * (p[1:] + p[:-1]))])
        area = rng.uniform(size=size) * total[-1]
        i = np.clip(np.searchsorted(total, area, side="right") - 1, 0, len(c) - 2)
        area = area - total[i]
        # The root in [0, 1] of p0 t + (p1 - p0) t²/2 = area, in the form that survives p0 = p1.
        root = np.sqrt(np.maximum(p[i] ** 2 + 2.0 * (p[i + 1] - p[i]) * area, 0.0))
        sum_ = p[i] + root
        t = np.where(area > 0.0, 2.0 * area / np.where(sum_ > 0.0, sum_, 1.0), 0.0)
        return c[i] + np.clip(t, 0.0, 1.0) * (c[1] - c[0])


class Analysis:
    """A measurement model and a prior for given parameters: `observe(rng, truth, num_draws)`.

    Raises:
        InputError: parameters that the model does not measure, a prior that does not cover them or
            is no product of the coordinates; a truth outside the prior's range.
    """

    def __init__(self, parameters: tuple[str, ...], prior: BoundedPrior, model: MeasurementModel):
        self.parameters, self.prior, self.model = parameters, prior, model
        self.has_distance = bool(block(parameters, DISTANCE_NAMES))
        if len(block(parameters, MASS_NAMES)) != 2:
            raise InputError(
                f"a mock catalogue needs two mass parameters, got {list(parameters)}; give a "
                "density over mass_1_source with mass_2_source or mass_ratio."
            )
        self.spins = block(_others(parameters), SPIN_NAMES)
        self.axes = [*self._mass_and_distance_axes(), *map(self._other_axis, _others(parameters))]
        self._most_spin_prior = self._largest_spin_prior()

    # -- tables

    def _mass_and_distance_axes(self) -> list[_Axis]:
        model, (low, high) = self.model, self.prior.mass
        far = self.prior.redshift[1] if self.has_distance else 0.0
        edges = {
            "chirp_mass": np.log([low * 2.0**-0.2, high * (1.0 + far) * 2.0**-0.2]),
            "mass_ratio": np.log([low / high, 1.0]),
        }
        if self.has_distance:
            near = np.asarray(self.prior.redshift)
            columns = Columns({"redshift": near}, self.prior.cosmology)
            edges["luminosity_distance"] = np.log(columns["luminosity_distance"])
        nodes = {name: np.linspace(ends[0], ends[1], 20001) for name, ends in edges.items()}
        if self.has_distance:
            columns = Columns(
                {"luminosity_distance": np.exp(nodes["luminosity_distance"])}, self.prior.cosmology
            )
            self._log_redshift = np.log(columns["redshift"])
            self._log_distance = nodes["luminosity_distance"]
        middle = {name: x[len(x) // 2] for name, x in nodes.items()}
        tables = {
            name: self._log_prior({**{n: np.full_like(x, m) for n, m in middle.items()}, name: x})
            for name, x in nodes.items()
        }
        self._check_product(nodes, tables)
        eta = np.log(symmetric_mass_ratio(np.exp(nodes["mass_ratio"])))
        measured = {**nodes, "mass_ratio": eta}
        scales = (model.chirp_mass, model.symmetric_mass_ratio, model.luminosity_distance)
        return [
            _Axis(name, x, tables[name], measured[name], scale)
            for (name, x), scale in zip(nodes.items(), scales, strict=False)
        ]

    def _log_prior(self, logs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Log prior of masses and distance as a density in the logarithms of the coordinates."""
        names: tuple[str, ...] = ("chirp_mass_source", "mass_ratio")
        if self.has_distance:
            names = ("chirp_mass", "mass_ratio", "luminosity_distance")
        wanted = {k: v for k, v in self.prior.names.items() if k in ("masses", "distance")}
        columns = Columns(self._physical(logs), self._cosmology, where="the mock catalogue")
        return log_reference(wanted, columns, names) + sum(logs.values())

    def _physical(self, coordinates: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Parameters by name at values of the axes' coordinates."""
        out = dict(coordinates)
        mass = np.exp(out.pop("chirp_mass"))
        out["mass_ratio"] = np.exp(out["mass_ratio"])
        if not self.has_distance:
            return {"chirp_mass_source": mass, **out}
        log_distance = out["luminosity_distance"]
        out["luminosity_distance"] = np.exp(log_distance)
        # Between 20,001 nodes the error of ln z is below 1e-8.
        out["redshift"] = np.exp(np.interp(log_distance, self._log_distance, self._log_redshift))
        return {"chirp_mass": mass, "chirp_mass_source": mass / (1.0 + out["redshift"]), **out}

    def _check_product(self, nodes: dict[str, np.ndarray], tables: dict[str, np.ndarray]) -> None:
        index = np.stack(np.meshgrid(*[[0, 7000, 14000, 20000]] * len(nodes)), -1)
        index = index.reshape(-1, len(nodes)).T
        point = {name: x[i] for (name, x), i in zip(nodes.items(), index, strict=True)}
        factors = [t[i] - t[len(t) // 2] for t, i in zip(tables.values(), index, strict=True)]
        centre = next(iter(tables.values()))[10000]
        if not np.allclose(self._log_prior(point), centre + sum(factors), rtol=0, atol=1e-6):
            raise InputError(
                f"reference prior {dict(self.prior.names)}: draws need a prior that is a product "
                "of factors in chirp mass, mass ratio and distance; use one of those by name."
            )

    def _other_axis(self, name: str) -> _Axis:
        scale = {**_OTHER_SCALES, **self.model.others}.get(name)
        if scale is None:
            raise InputError(
                f"the measurement model has no width for '{name}'"
                f"{did_you_mean(name, _OTHER_SCALES)}: give MeasurementModel(others={{'{name}': "
                "width at threshold}) and its range in BoundedPrior(others=...)."
            )
        nodes = np.linspace(*other_range(self.prior, name), 20001)
        if name in self.spins:
            log_prior = np.zeros_like(nodes)
        else:
            wanted = {k: v for k, v in self.prior.names.items() if k == name}
            log_prior = log_reference(wanted, {name: nodes}, (name,))
        return _Axis(name, nodes, log_prior, nodes, scale)

    def _log_spin_prior(self, theta: Theta) -> np.ndarray:
        wanted = {k: v for k, v in self.prior.names.items() if k == "spins"}
        columns = Columns({n: theta[n] for n in ("mass_ratio", *self.spins)})
        return log_reference(wanted, columns, self.spins)

    def _largest_spin_prior(self) -> float:
        """An upper bound of the spins' log prior: its maximum on a lattice, with a margin."""
        if not self.spins:
            return 0.0
        # An odd number of nodes has one at zero, where the effective spin's density is largest.
        number = 201 if len(self.spins) == 1 else 5
        low, high = self.prior.mass
        grids = {"mass_ratio": np.geomspace(low / high, 1.0, number)}
        for name in self.spins:
            a, b = other_range(self.prior, name)
            margin = 1e-6 * (b - a)
            grids[name] = np.linspace(a + margin, b - margin, number)
        lattice = [x.ravel() for x in np.meshgrid(*grids.values())]
        return float(np.max(self._log_spin_prior(dict(zip(grids, lattice, strict=True))))) + 0.02

    # -- one merger

    def observe(
        self, rng: np.random.Generator, truth: Theta, num_draws: int, snr: float | None = None
    ) -> Observation:
        """Measure a merger and draw from its posterior; `snr` is the observed one, if it is known.

        Args:
            rng: where randomness comes from.
            truth: parameter name -> number.
            num_draws: how many draws.
        """
        columns = Columns({n: np.reshape(truth[n], 1) for n in self.parameters}, self._cosmology)
        at = self._coordinates(columns)
        if snr is None:
            snr = self.model.snr_threshold * rng.uniform() ** (-1.0 / 3.0)
        width = self.model.snr_threshold / snr
        data = {"snr": float(snr)}
        for axis in self.axes:
            y = float(np.interp(at[axis.name], axis.nodes, axis.measured))
            data[axis.name] = y + axis.scale * width * rng.normal()
        draws = self._draw(rng, data, num_draws)
        table = Columns(draws, self._cosmology)
        return Observation(data, {name: np.array(table[name]) for name in self.parameters})

    @property
    def _cosmology(self) -> Any:
        return self.prior.cosmology if self.has_distance else None

    def _coordinates(self, columns: Columns) -> dict[str, float]:
        mass = columns["chirp_mass" if self.has_distance else "chirp_mass_source"]
        at = {"chirp_mass": np.log(mass), "mass_ratio": np.log(columns["mass_ratio"])}
        if self.has_distance:
            at["luminosity_distance"] = np.log(columns["luminosity_distance"])
        at |= {name: columns[name] for name in _others(self.parameters)}
        outside = not np.all(self._in_mass_range(columns))
        for axis in self.axes:
            x = at[axis.name]
            outside |= not np.all((x >= axis.nodes[0] - 1e-6) & (x <= axis.nodes[-1] + 1e-6))
        if outside:
            true = {name: float(columns[name][0]) for name in self.parameters}
            raise InputError(
                f"a true merger lies outside the range of the reference prior "
                f"({self.prior.describe(self.parameters)['range']}): {true}; widen the range or "
                "narrow the population."
            )
        return {name: float(x[0]) for name, x in at.items()}

    def _in_mass_range(self, columns: Columns) -> np.ndarray:
        low, high = self.prior.mass
        m1, m2 = columns["mass_1_source"], columns["mass_2_source"]
        # Rounding in the change of coordinates must not move a merger over the edge.
        return (m2 >= low * (1.0 - 1e-9)) & (m1 <= high * (1.0 + 1e-6)) & (m2 <= m1)

    def _draw(
        self, rng: np.random.Generator, data: Mapping[str, float], num_draws: int
    ) -> dict[str, np.ndarray]:
        width = self.model.snr_threshold / data["snr"]
        kept: list[dict[str, np.ndarray]] = []
        have, size = 0, max(2 * num_draws, 256)
        for _ in range(10_000):
            proposed = {
                axis.name: axis.draw(rng, data[axis.name], axis.scale * width, size)
                for axis in self.axes
            }
            theta = self._physical(proposed)
            columns = Columns(theta, self._cosmology)
            keep = self._in_mass_range(columns)
            log_accept = self._log_accept(columns, data["snr"])
            keep = keep & (np.log(rng.uniform(size=size)) < log_accept)
            kept.append({name: x[keep] for name, x in theta.items()})
            have += int(keep.sum())
            if have >= num_draws:
                break
        else:
            raise InputError(
                f"an event with data {dict(data)} has less than one draw in {10_000 * size} within "
                "the range of the reference prior; widen the range."
            )
        return {n: np.concatenate([k[n] for k in kept])[:num_draws] for n in kept[0]}

    def _log_accept(self, columns: Columns, snr: float) -> np.ndarray:
        """Log of the bounded factors of the posterior, each divided by its bound."""
        value = np.zeros(len(columns["mass_ratio"]))
        if self.model.snr is not None:
            theta = {name: columns[name] for name in self.parameters}
            value = value - 0.5 * (snr - np.asarray(self.model.snr(theta), float)) ** 2
        if self.spins:
            prior = self._log_spin_prior(columns) - self._most_spin_prior
            if np.any(prior > 0.0):
                raise RuntimeError("the bound of the spin prior is too low for rejection")
            value = value + prior
        return value


def _others(parameters: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(n for n in parameters if n not in MASS_NAMES | DISTANCE_NAMES)


def other_range(prior: BoundedPrior, name: str) -> tuple[float, float]:
    """Return the range that a prior gives to a parameter that is neither mass nor distance."""
    ranges = {**_OTHER_RANGES}
    spins = prior.names.get("spins")
    if isinstance(spins, Mapping) and "a_max" in spins:
        a = float(spins["a_max"])
        ranges |= {"chi_eff": (-a, a), "a_1": (0.0, a), "a_2": (0.0, a)}
    ranges |= prior.others
    if name not in ranges:
        raise InputError(
            f"the reference prior has no range for '{name}': give BoundedPrior(others={{'{name}': "
            "(low, high)})."
        )
    return ranges[name]
