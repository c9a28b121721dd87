r"""Photons of dark matter that annihilates or decays: channels, and mixtures of channels.

Masses and energies are in TeV. The spectra are the tables of PPPC 4 DM ID (Cirelli et al. 2011,
arXiv:1012.4515, with the electroweak corrections of Ciafaloni et al. 2011, arXiv:1009.0224).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..density import Population
from ..errors import InputError, did_you_mean
from .interpolation import cubic_at, cubics, hermite, monotone_slopes
from .spectra import Spectrum

_LN_10 = math.log(10.0)
_GEV = 1e-3

# The tables' last digit: below it they tell zero from nothing, and logarithms of it mean nothing.
_ROUNDING = 1e-6

# Photons per decade that count as none, so that darkness has a logarithm.
_FAINT = 1e-30

# Gauss-Legendre nodes of a cell of the tables, on [0, 1].
_NODES, _WEIGHTS = (0.5 * x for x in np.polynomial.legendre.leggauss(5))
_NODES = _NODES + 0.5

# Channels by the names in the published file.
_PUBLISHED = {
    r"\[Mu]": "mu",
    r"\[Tau]": "tau",
    r"\[Gamma]": "gamma",
    r"\[Nu]e": "nu_e",
    r"\[Nu]\[Mu]": "nu_mu",
    r"\[Nu]\[Tau]": "nu_tau",
    "V->e": "V_e",
    r"V->\[Mu]": "V_mu",
    r"V->\[Tau]": "V_tau",
} | {rf"\[{name}]{side}": f"{name.lower()}{side}" for name in ("Mu", "Tau") for side in "LR"}

# Masses of heavy particles in TeV (Particle Data Group): no pair of them from lighter dark matter.
_PARTICLE_MASS = {"W": 0.0804, "Z": 0.0912, "h": 0.1252, "t": 0.1726}
_PARTICLE_MASS |= {name + side: _PARTICLE_MASS[name] for name in "WZ" for side in "LT"}


@dataclass(frozen=True, eq=False)
class ChannelSpectra:
    r"""Photons per annihilation and decade of energy, $dN/d\log_{10}x$ with $x = E/m$, by channel.

    Between masses and between energies a monotone cubic of $\ln(dN/d\log_{10}x + 10^{-6})$, over
    $\ln m$ at fixed x and over $\log_{10} x$: continuous with its derivatives in the mass, and its
    end stays at E = m. Below the lightest mass that the tables have of a heavy channel, down to
    its particle's mass, the spectrum over x is taken to be the same; below that there is none.

    Attributes:
        channels: `e`, `mu`, `tau`, `q` (light quarks), `c`, `b`, `t`, `W`, `Z`, `g`, `gamma`, `h`,
            `nu_e`, ...; `eL`, `WT`, ... are polarised; `V_e`, ... go by light vectors.
        mass: nodes in TeV.
        log10_x: nodes, the last one zero.
        table: $dN/d\log_{10}x$ of shape (mass, log10_x, channel).
    """

    channels: tuple[str, ...]
    mass: np.ndarray
    log10_x: np.ndarray
    table: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.mass), len(self.log10_x), len(self.channels))
        if self.table.shape != shape:
            raise InputError(f"spectra of {shape} (mass, x, channel), got {self.table.shape}.")
        if not (np.isfinite(self.table).all() and np.all(self.table >= 0)):
            raise InputError("spectra of channels must be finite and not negative.")

    def only(self, channels: Sequence[str]) -> ChannelSpectra:
        """Keep some channels, in the order given.

        Raises:
            InputError: a name that the tables do not have.
        """
        for name in channels:
            if name not in self.channels:
                raise InputError(
                    f"no annihilation channel '{name}'{did_you_mean(name, self.channels)}; there "
                    f"are {', '.join(self.channels)}."
                )
        if tuple(channels) == self.channels:
            return self
        index = [self.channels.index(name) for name in channels]
        return ChannelSpectra(tuple(channels), self.mass, self.log10_x, self.table[:, :, index])

    def combined(self, name: str, mass: np.ndarray, fractions: np.ndarray) -> ChannelSpectra:
        """Add channels up into one, with shares that are known at some masses: quicker by far.

        Args:
            name: of the one channel.
            mass: nodes in TeV; those beyond these tables are left out.
            fractions: shares of shape (mass, channel).
        """
        within = (mass >= self.mass[0]) & (mass <= self.mass[-1])
        lowest_x = 10.0 ** self.log10_x[0]
        with jax.ensure_compile_time_eval():
            photons = jax.vmap(lambda m: self.at_mass(m, lowest_x)[1])(mass[within])
        shares = np.where(mass[:, None] >= self.lightest, fractions, 0.0)[within]
        total = np.einsum("mxc,mc->mx", photons, shares)[:, :, None]
        return ChannelSpectra((name,), mass[within], self.log10_x, total)

    @property
    def lightest(self) -> np.ndarray:
        """The mass in TeV below which a channel is closed, (channel,)."""
        return np.array([_PARTICLE_MASS.get(name, 0.0) for name in self.channels])

    def at_mass(self, mass: Any, lowest_x: float) -> tuple[np.ndarray, Array]:
        r"""Return nodes in $\log_{10}x$ from about `lowest_x` on, and $dN/d\log_{10}x$ there.

        Args:
            mass: m in TeV, one number within the tables.
            lowest_x: a plain number.

        Returns:
            nodes of shape (n,), and photons per decade of shape (n, channel).
        """
        # The cubic through the cell of `lowest_x` looks at one node more.
        start = max(int(np.searchsorted(self.log10_x, math.log10(lowest_x))) - 2, 0)
        log_table, slopes = self._log_table
        row = hermite(np.log(self.mass), log_table[:, start:], slopes[:, start:], jnp.log(mass))
        return self.log10_x[start:], jnp.maximum(jnp.exp(row) - _ROUNDING, 0.0)

    @functools.cached_property
    def _log_table(self) -> tuple[np.ndarray, np.ndarray]:
        """The table in logarithms, closed channels filled from above, and its slopes in ln m."""
        table = self.table.copy()
        first_open = np.argmax(np.asarray(self.table.any(axis=1)), axis=0)
        for k, first in enumerate(first_open.tolist()):
            table[:first, :, k] = table[first, :, k]
        log_table = np.log(table + _ROUNDING)
        return log_table, monotone_slopes(np.log(self.mass), log_table)


def on_grid(
    rows: np.ndarray, first: str, second: str, path: str | Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes of the first two columns of a table, and the others over them, (first, second, other).

    Raises:
        InputError: rows that are no grid; `first` and `second` say of what.
    """
    x, y = np.unique(rows[:, 0]), np.unique(rows[:, 1])
    if len(rows) != len(x) * len(y):
        raise InputError(
            f"{path}: {len(rows)} rows are no grid of {len(x)} {first} and {len(y)} {second}; "
            "fetch it again."
        )
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    return x, y, rows[:, 2:].reshape(len(x), len(y), -1)


def read_pppc(path: str | Path, channels: Sequence[str] | None = None) -> ChannelSpectra:
    r"""Read `AtProduction_gamma.dat` of PPPC 4 DM ID, with or without electroweak corrections.

    Args:
        path: a text table of mass [GeV], $\log_{10}x$ and $dN/d\log_{10}x$ for every channel.
        channels: which to keep, by the names of `ChannelSpectra`; None keeps all.

    Raises:
        InputError: no such file, not such a table, or an unknown channel.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; get it with: skycensus data pppc")
    with path.open() as file:
        header = file.readline().split()
        try:
            rows = np.loadtxt(file, ndmin=2)
        except ValueError as error:
            raise InputError(f"{path}: not a table of numbers below its header: {error}.") from None
    if header[:2] != ["mDM", "Log[10,x]"] or rows.shape[1] != len(header):
        raise InputError(
            f"{path}: a table of PPPC 4 DM ID begins with the columns mDM and Log[10,x], with one "
            f"more for each channel; this one has {header[:3]}... and rows of {rows.shape[1]}."
        )
    mass, log10_x, table = on_grid(rows, "masses", "energies", path)
    names = tuple(_PUBLISHED.get(name, name) for name in header[2:])
    spectra = ChannelSpectra(names, mass * _GEV, log10_x, table)
    return spectra if channels is None else spectra.only(channels)


class Annihilation(Spectrum):
    r"""Photons of one annihilation, $\frac{dN}{dE} = \sum_f B_f \frac{dN_f}{dE}$ [TeV⁻¹], E ≤ m.

    With `log_amplitude` from `log_annihilation_factor` it is a flux, with zero the photons of one
    annihilation, without one it is normalised. The channel `gamma` has its line as tabulated: in
    the last 0.05 decades below the mass.

    Args:
        spectra: the tables.
        mass: m in TeV, one number. Beyond the tables' masses the density is NaN, as what is not
            known, never zero.
        fractions: channel -> $B_f \ge 0$; they need not sum to one, for some emit no photons.
        low, high: bounds in TeV; above the mass there is nothing in any case. `low` is a plain
            number.
        log_amplitude: $\ln A$, or None.

    Raises:
        InputError: a channel that the tables do not have, or a mass (a plain number) beyond them.
    """

    def __init__(
        self,
        spectra: ChannelSpectra,
        mass: Any,
        *,
        fractions: Mapping[str, Any],
        low: float,
        high: float = math.inf,
        log_amplitude: Any = None,
    ):
        if not fractions:
            raise InputError("an annihilation needs at least one channel: fractions={'b': 1.0}.")
        if not 0 < low < high:
            raise InputError(f"bounds must be 0 < low < high in TeV, got {low:g} and {high:g}.")
        self.channels = spectra.only(list(fractions))
        first, last = float(spectra.mass[0]), float(spectra.mass[-1])
        # NumPy's comparison: within a compiled function JAX's would be traced.
        known = isinstance(mass, jax.core.Tracer) or first <= np.asarray(mass) <= last
        if not known:
            raise InputError(
                f"a dark-matter mass of {mass:g} TeV lies beyond the tables, which go from "
                f"{first:g} to {last:g} TeV."
            )
        self.mass, self.fractions = mass, dict(fractions)
        self.low, self.high = low, jnp.clip(mass, low, high)
        self.log_amplitude = log_amplitude
        self._nodes = self._at_nodes()

    def _at_nodes(self) -> tuple[np.ndarray, Array, Array]:
        """Nodes in log10 x, and there ln dN/dlog10 x of all channels together, and its slopes."""
        spectra = self.channels
        log10_x, photons = spectra.at_mass(self.mass, self.low / float(spectra.mass[-1]))
        shares = jnp.stack([jnp.asarray(self.fractions[name], float) for name in spectra.channels])
        total = jnp.sum(jnp.where(self.mass >= spectra.lightest, shares * photons, 0.0), axis=-1)
        known = (self.mass >= spectra.mass[0]) & (self.mass <= spectra.mass[-1])
        values = jnp.log(jnp.where(known, total, jnp.nan) + _FAINT)
        return log10_x, values, monotone_slopes(log10_x, values)

    def log_shape(self, log_energy: Array) -> Array:
        log10_x = (log_energy - jnp.log(self.mass)) / _LN_10
        value = hermite(*self._nodes, log10_x)
        dark = value <= math.log(2.0 * _FAINT)
        # Above the mass, or where no channel shines.
        dark = dark | (log10_x > 1e-12)
        return jnp.where(dark, -jnp.inf, value - log_energy - math.log(_LN_10))

    def _log_shape_integral(self, log_low: Array, log_high: Array, panels: int = 0) -> Array:
        # Cell by cell of the tables, where the shape is smooth and nothing has to be looked up.
        nodes, values, slopes = self._nodes
        widths = np.diff(nodes)
        start, end = (
            jnp.clip(((x - jnp.log(self.mass)) / _LN_10)[..., None], nodes[:-1], nodes[1:])
            for x in (log_low, log_high)
        )
        terms = cubics(widths, values[:-1], values[1:], slopes[:-1], slopes[1:])
        photons = jnp.zeros(())
        for node, weight in zip(_NODES, _WEIGHTS, strict=True):
            value = cubic_at(terms, (start + node * (end - start) - nodes[:-1]) / widths)
            photons += weight * jnp.where(value <= math.log(2.0 * _FAINT), 0.0, jnp.exp(value))
        total = jnp.sum(photons * (end - start), axis=-1)
        empty = total == 0
        return jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, total)))


def mixed_channels(
    spectra: ChannelSpectra,
    channels: Sequence[str],
    *,
    low: float,
    high: float = math.inf,
    log_j: Any = None,
) -> Population:
    r"""Return a population: annihilation into channels with free shares.

    Hyperparameters `mass` in TeV and, for more than one channel, `fraction_<channel>` (a Dirichlet
    prior over those names makes them sum to one). With `log_j` it is a flux and has `sigma_v` in
    cm³ s⁻¹: $\ln J$ in GeV² cm⁻⁵, or zero where a map of $dJ/d\Omega$ multiplies it. Without, it is
    normalised.

    Raises:
        InputError: an unknown channel.
    """
    kept = spectra.only(channels)

    def population(h: Mapping[str, Any]) -> Annihilation:
        fractions: dict[str, Any] = {kept.channels[0]: 1.0}
        if len(kept.channels) > 1:
            fractions = {name: h[f"fraction_{name}"] for name in kept.channels}
        mass = h["mass"]
        amplitude = log_amplitude(h, mass, log_j)
        return Annihilation(
            kept, mass, fractions=fractions, low=low, high=high, log_amplitude=amplitude
        )

    return population


def log_amplitude(h: Mapping[str, Any], mass: Any, log_j: Any) -> Any:
    """The amplitude of a population's flux, from its `sigma_v`; None where `log_j` is None."""
    return None if log_j is None else log_annihilation_factor(h["sigma_v"], mass, log_j)


def decay(spectra: ChannelSpectra, mass: Any, **options: Any) -> Annihilation:
    r"""Return the photons of one decay into a pair: of an annihilation at half the mass.

    `log_decay_factor` makes it a flux; for `options` see `Annihilation`.
    """
    return Annihilation(spectra, 0.5 * mass, **options)


def log_annihilation_factor(sigma_v: Any, mass: Any, log_j: Any = 0.0) -> Array:
    r"""Return $\ln\frac{\langle\sigma v\rangle}{8\pi m^2} J$ of self-conjugate dark matter.

    Args:
        sigma_v: $\langle\sigma v\rangle$ in cm³ s⁻¹.
        mass: m in TeV.
        log_j: $\ln J$ in GeV² cm⁻⁵ (or $\ln dJ/d\Omega$, with sr⁻¹).

    Returns:
        the `log_amplitude` of an `Annihilation`, for a flux in cm⁻² s⁻¹ TeV⁻¹ (sr⁻¹). It is half of
        this for dark matter that is not its own antiparticle.
    """
    return jnp.log(sigma_v) - math.log(8.0 * math.pi) - 2.0 * jnp.log(mass / _GEV) + log_j


def log_decay_factor(width: Any, mass: Any, log_d: Any = 0.0) -> Array:
    r"""Return $\ln\frac{\Gamma}{4\pi m} D$ of decaying dark matter.

    Args:
        width: $\Gamma = 1/\tau$ in s⁻¹.
        mass: m in TeV, of the particle that decays.
        log_d: $\ln D$ in GeV cm⁻² (or $\ln dD/d\Omega$, with sr⁻¹).
    """
    return jnp.log(width) - math.log(4.0 * math.pi) - jnp.log(mass / _GEV) + log_d
