r"""What an instrument makes of a photon: p(E', Ω' | E, Ω), normalised, on nodes of true energy.

$$p(E', \Omega' | E, \Omega)\,A(E, \Omega) = D(E'|E, o')\,\sum_b w_b(o)\,A_b(E)\,P_b(\Omega'|E,
  \Omega),$$

with the effective area A, the point spread P, which integrates to one over the sphere, and the
energy dispersion D, which integrates to one over E'. The offsets o and o' of the true and the
reconstructed direction from the pointing come in through hat functions $w_b$ on the offsets of the
tables: between two of them, the response is their linear interpolation, and stays normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..errors import InputError
from .tables import ResponseTables, Table

# Nodes of ln(E'/E): fine enough that linear interpolation between them adds no width.
_LOG_RATIO = np.linspace(np.log(0.03), np.log(5.0), 512)

# Nodes per decade of true energy: spaced about as the dispersion is wide, where the trapezoidal
# rule has converged for it.
NODES_PER_DECADE = 40


class Response(eqx.Module):
    """A response on nodes of true energy; see the module.

    Attributes:
        energy: (J,) nodes [TeV], evenly spaced in the logarithm.
        offset: (B,) [deg], of which `max_offset` is the edge.
        area: (J, B) effective area [cm²].
        psf_weight, psf_sigma: (J, B, K) terms of the point spread, sigma in radians.
        dispersion: (J, B, M) density of ln E' on `log_ratio`, the nodes of ln(E'/E).
    """

    energy: Array
    offset: Array
    area: Array
    psf_weight: Array
    psf_sigma: Array
    dispersion: Array
    background: Table | None = eqx.field(static=True)
    max_offset: float = eqx.field(static=True)

    def __init__(self, tables: ResponseTables, energy: Any):
        energy = np.asarray(energy, float)
        offset = np.unique(np.concatenate([tables.area.axes["offset"], _offsets(tables)]))
        at = {"energy": energy[:, None], "offset": offset}
        # Beyond the tables' centres their outermost values hold.
        inside = {"energy": _within(tables.area, at, "energy"), "offset": offset}
        area = np.maximum(tables.area.at(**inside), 0.0)
        first, last = (tables.area.axes["energy"][i] for i in (0, -1))
        area = np.where((at["energy"] >= first) & (at["energy"] <= last), area, 0.0)
        psf = {
            name: table.at(**{a: _within(table, at, a) for a in ("energy", "offset")})
            for name, table in tables.psf.items()
        }
        self.energy, self.offset, self.area = map(jnp.asarray, (energy, offset, area))
        self.psf_weight = jnp.asarray(psf["weight"])
        self.psf_sigma = jnp.asarray(np.deg2rad(psf["sigma"]))
        self.dispersion = jnp.asarray(_log_dispersion(tables.migration, energy, offset))
        self.background = tables.background
        self.max_offset = tables.max_offset

    @property
    def log_ratio(self) -> np.ndarray:
        """(M,) nodes of ln(E'/E)."""
        return _LOG_RATIO

    def offset_weights(self, offset: Any) -> Any:
        """(..., B) hat functions at offsets [deg]; they sum to one, and to zero past the edge."""
        return hat_functions(self.offset, self.max_offset, offset)

    def psf_terms(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(J, K) effective areas and widths of the Gaussians of a direction's offset weights."""
        share = np.asarray(self.psf_weight) * (np.asarray(self.area) * weights)[..., None]
        num = len(self.energy)
        return share.reshape(num, -1), np.asarray(self.psf_sigma).reshape(num, -1)

    def log_ratio_density(self, reconstructed: Any, offset: Any) -> Array:
        """(N, J) density of ln E' at reconstructed energies [TeV] and offsets [deg]."""
        weights = self.offset_weights(offset)
        first, step = _LOG_RATIO[0], _LOG_RATIO[1] - _LOG_RATIO[0]
        place = (jnp.log(jnp.asarray(reconstructed)[:, None] / self.energy) - first) / step
        low = jnp.clip(jnp.floor(place), 0, len(_LOG_RATIO) - 2).astype(int)
        share = place - low
        nodes = jnp.arange(len(self.energy))
        # One offset after the other: gathering all of them at once takes B times the memory.
        total = jnp.zeros_like(place)
        for b in range(len(self.offset)):
            table = self.dispersion[:, b]
            here = (1.0 - share) * table[nodes, low] + share * table[nodes, low + 1]
            total = total + weights[:, b, None] * here
        return jnp.where((share >= 0.0) & (share <= 1.0), total, 0.0)

    def energy_acceptance(self, low: float, high: float) -> np.ndarray:
        """(J, B) probability that E' falls between `low` and `high` [TeV]."""
        step = _LOG_RATIO[1] - _LOG_RATIO[0]
        density = np.asarray(self.dispersion)
        mass = 0.5 * step * (density[..., 1:] + density[..., :-1])
        cumulated = np.concatenate([np.zeros_like(mass[..., :1]), np.cumsum(mass, -1)], axis=-1)
        edges = (
            np.log(np.array([low, high])[:, None] / np.asarray(self.energy)) - _LOG_RATIO[0]
        ) / step
        below_low, below_high = (_cumulated(cumulated, density, edge, step) for edge in edges)
        return below_high - below_low


def hat_functions(nodes: Any, edge: float, x: Any) -> Any:
    """(..., B) hat functions of ascending nodes; they sum to one up to `edge`, to zero past it.

    Arrays of JAX where x is one.
    """
    xp = _numpy_of(x)
    x, nodes = xp.asarray(x)[..., None], nodes if xp is jnp else np.asarray(nodes)
    if len(nodes) == 1:
        hat = xp.ones_like(x)
    else:
        clipped = xp.clip(x, nodes[0], nodes[-1])
        left = xp.clip((clipped - nodes[:-1]) / xp.diff(nodes), 0.0, 1.0)
        hat = xp.concatenate([xp.ones_like(left[..., :1]), left], -1) - xp.concatenate(
            [left, xp.zeros_like(left[..., :1])], -1
        )
    return xp.where(x <= edge, hat, 0.0)


def _numpy_of(*values: Any) -> Any:
    """The module for values: JAX's would compile a program for every shape of plain numbers."""
    return jnp if any(isinstance(x, jax.Array) for x in values) else np


def _cumulated(
    cumulated: np.ndarray, density: np.ndarray, place: np.ndarray, step: float
) -> np.ndarray:
    """The distribution function of a piecewise linear density at fractional node numbers."""
    place = np.clip(place, 0.0, density.shape[-1] - 1.0)
    low = np.minimum(np.floor(place).astype(int), density.shape[-1] - 2)
    share = (place - low)[:, None]
    rows = np.arange(len(place))
    here, there = density[rows, :, low], density[rows, :, low + 1]
    return cumulated[rows, :, low] + step * share * (here + 0.5 * share * (there - here))


def _offsets(tables: ResponseTables) -> np.ndarray:
    parts = (tables.migration, tables.psf["sigma"])
    return np.concatenate([part.axes["offset"] for part in parts])


def _within(table: Table, at: dict[str, Any], axis: str) -> np.ndarray:
    nodes = table.axes[axis]
    return np.clip(at[axis], nodes[0], nodes[-1])


def _log_dispersion(migration: Table, energy: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """(J, B, M) density of ln E' on the nodes of ln(E'/E), of integral one."""
    at = {"energy": energy[:, None, None], "offset": offset[:, None]}
    ratio = np.exp(_LOG_RATIO)
    where = {name: _within(migration, at, name) for name in at}
    density = np.maximum(migration.at(**where, migra=ratio), 0.0) * ratio
    # Nothing is known beyond the table.
    density[..., ratio > migration.axes["migra"][-1]] = 0.0
    step = _LOG_RATIO[1] - _LOG_RATIO[0]
    total = step * (density.sum(-1) - 0.5 * (density[..., 0] + density[..., -1]))
    empty = total <= 0
    if empty.all():
        raise InputError("the energy dispersion is zero everywhere.")
    for b in range(len(offset)):
        have = np.flatnonzero(~empty[:, b])
        if not len(have):
            raise InputError(f"the energy dispersion is zero at offset {offset[b]:g} deg.")
        near = have[np.argmin(abs(np.arange(len(energy))[:, None] - have), axis=1)]
        density[:, b], total[:, b] = density[near, b], total[near, b]
    return density / total[..., None]


def energy_nodes(
    looks: Sequence[tuple[ResponseTables, float, float]], per_decade: int = NODES_PER_DECADE
) -> np.ndarray:
    """True energies [TeV] of photons reconstructed between two energies [TeV] by each response.

    Raises:
        InputError: energies at which a response is not known.
    """
    ends = []
    for tables, low, high in looks:
        known = tables.area.axes["energy"]
        first, last = max(known[0], low / 3.0), min(known[-1], high * 4.0)
        if not first < last:
            raise InputError(
                f"the energies {low:g} to {high:g} TeV are outside of the response, which is known "
                f"from {known[0]:.3g} to {known[-1]:.3g} TeV."
            )
        ends.append((first, last))
    first, last = min(e[0] for e in ends), max(e[1] for e in ends)
    num = max(int(np.ceil(np.log10(last / first) * per_decade)) + 1, 8)
    return np.geomspace(first, last, num)


def synthetic_tables(
    *, psf_at_1_tev: float = 0.08, dispersion: float = 0.12, max_offset: float = 5.0
) -> ResponseTables:
    r"""A smooth response like that of an array of Cherenkov telescopes, from formulas.

    The effective area rises to $3\times10^9\ \mathrm{cm^2}$ above a threshold near 0.1 TeV and
    falls with the offset, the point spread is a Gaussian of width $\propto E^{-0.3}$, E' is
    lognormal, and the background a power law of index 2.7, falling with the offset.

    Args:
        psf_at_1_tev: width of the point spread at 1 TeV [deg].
        dispersion: standard deviation of ln E'.
        max_offset: edge of the field of view [deg].
    """
    energy = np.geomspace(0.01, 300.0, 136)
    offset = np.arange(0.0, max_offset + 0.25, 0.5)
    fall = np.exp(-0.5 * (offset / 2.5) ** 2)
    area = 3e9 / (1.0 + (0.15 / energy[:, None]) ** 2.5) * fall
    migra = np.linspace(0.005, 3.0, 600)
    lognormal = np.exp(-0.5 * (np.log(migra) / dispersion) ** 2) / (
        migra * dispersion * np.sqrt(2 * np.pi)
    )
    sigma = psf_at_1_tev * energy[:, None] ** -0.3 * (1.0 + 0.05 * offset**2)
    axes = {"energy": energy, "offset": offset}
    rate = 0.4 * energy[:, None] ** -2.7 * fall * 3282.8
    return ResponseTables(
        Table(axes, area),
        Table(
            {"energy": energy, "migra": migra, "offset": offset},
            np.broadcast_to(lognormal[:, None], (len(energy), len(migra), len(offset))),
        ),
        {"weight": Table(axes, np.ones((*area.shape, 1))), "sigma": Table(axes, sigma[..., None])},
        Table(axes, np.log(rate)),
        max_offset,
    )


def separation(lon_1: Any, lat_1: Any, lon_2: Any, lat_2: Any) -> Any:
    """Angle between directions [deg], exact also for small and large ones (Vincenty).

    An array of JAX where one of them is.
    """
    xp = _numpy_of(lon_1, lat_1, lon_2, lat_2)
    lon_1, lat_1, lon_2, lat_2 = (xp.deg2rad(x) for x in (lon_1, lat_1, lon_2, lat_2))
    dlon = lon_2 - lon_1
    x = xp.cos(lat_2) * xp.sin(dlon)
    y = xp.cos(lat_1) * xp.sin(lat_2) - xp.sin(lat_1) * xp.cos(lat_2) * xp.cos(dlon)
    z = xp.sin(lat_1) * xp.sin(lat_2) + xp.cos(lat_1) * xp.cos(lat_2) * xp.cos(dlon)
    square = x**2 + y**2
    # The root's slope at zero is infinite, and zero times that NaN.
    near = xp.where(square > 0, square, 1.0)
    return xp.rad2deg(
        xp.where(square > 0, xp.arctan2(xp.sqrt(near), z), xp.where(z > 0, 0.0, np.pi))
    )


def log_gaussian(angle: Any, sigma: Any) -> Array:
    r"""Log of a Gaussian on the sphere [1/sr] at angles r [rad]: $e^{(\cos r - 1)/\sigma^2}$.

    Fisher's distribution, normalised by solid angle exactly; for small widths a Gaussian of
    standard deviation $\sigma$ in either direction.
    """
    # 1 - cos r without cancellation.
    square = 2.0 * jnp.sin(0.5 * angle) ** 2
    kappa = 1.0 / sigma**2
    return -square * kappa - jnp.log(2 * jnp.pi * sigma**2 * -jnp.expm1(-2.0 * kappa))


def psf_at(sep: Any, share: Any, sigma: Any) -> Array:
    r"""(N, J) $\sum_k s_k P_k$ [cm²/sr] of photons from one direction.

    Args:
        sep: (N,) separations [rad] of the reconstructed directions from it.
        share, sigma: (J, K) effective areas [cm²] and widths [rad]; see `Response.psf_terms`.
    """
    one = lambda c, s: c * jnp.exp(log_gaussian(sep[:, None], s))  # noqa: E731
    return jnp.sum(jax.vmap(one, (1, 1))(share, sigma), axis=0)
