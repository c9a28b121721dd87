r"""What models of particle physics say about annihilation: shares of channels over masses and
couplings, from published tables.

Masses are in TeV. Between nodes shares are monotone cubics over $\ln m$ and $\ln\lambda$, so they
are smooth, and never negative.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..density import Mixture, Population
from ..errors import InputError
from .annihilation import Annihilation, ChannelSpectra, log_amplitude, on_grid
from .interpolation import monotone_cubic, monotone_surface

_GEV = 1e-3
_HIGGS_MASS = 0.1252

# Below every cross section in the tables (cm³ s⁻¹), where they have zeros.
_NO_CROSS_SECTION = 1e-60

# The final states of the singlet's tables in the channels of `ChannelSpectra`. One Z and one photon
# are half a pair of each: the photon's energy, m (1 - (m_Z / 2 m)²), is taken as m.
_SINGLET_STATES: dict[str, dict[str, float]] = {
    "nuenue": {"nu_e": 1.0},
    "e+e-": {"e": 1.0},
    "numunumu": {"nu_mu": 1.0},
    "mu+mu-": {"mu": 1.0},
    "nutaunutau": {"nu_tau": 1.0},
    "tau+tau-": {"tau": 1.0},
    "uu": {"q": 1.0},
    "dd": {"q": 1.0},
    "ss": {"q": 1.0},
    "cc": {"c": 1.0},
    "bb": {"b": 1.0},
    "tt": {"t": 1.0},
    "gammagamma": {"gamma": 1.0},
    "W+W-": {"W": 1.0},
    "ZZ": {"Z": 1.0},
    "gg": {"g": 1.0},
    "HH": {"h": 1.0},
    "Zgamma": {"Z": 0.5, "gamma": 0.5},
    # Below the confinement scale: no spectrum is tabulated for it.
    "hadrons (below confinement scale)": {},
}

# The final states of the Z5 tables, in the notation of micrOMEGAs: l is the tau, m the muon. The
# photon radiated with W pairs is left out.
_Z5_STATES = {
    "AA": "gamma",
    "AW+W-": "W",
    "GG": "g",
    "W+W-": "W",
    "ZZ": "Z",
    "bB": "b",
    "cC": "c",
    "dD": "q",
    "hh": "h",
    "lL": "tau",
    "mM": "mu",
    "sS": "q",
    "tT": "t",
    "uU": "q",
}
# One Higgs boson and a dark particle: initial and final state, the kinds (1, 2) of all three.
_Z5_HIGGS = {("x1X2", "hX1"): (1, 2, 1), ("x1x1", "hx2"): (1, 1, 2), ("x1X1", "hx1"): (1, 1, 1)}
_Z5_PAIRS = {"x1X1": (1, 1), "x1X2": (1, 2), "x2X2": (2, 2), "x1x1": (1, 1)}


@dataclass(frozen=True, eq=False)
class SingletRatios:
    r"""Annihilation of the Z2 scalar singlet over its mass and its coupling $\lambda_{hS}$.

    Attributes:
        channels: those of `ChannelSpectra` that it reaches.
        mass: nodes in TeV.
        coupling: nodes in $\lambda_{hS}$.
        fractions: shares of shape (mass, coupling, channel); what emits no photons is missing.
        log_sigma_v: $\ln\langle\sigma v\rangle$ in cm³ s⁻¹ of all final states, (mass, coupling).
    """

    channels: tuple[str, ...]
    mass: np.ndarray
    coupling: np.ndarray
    fractions: np.ndarray
    log_sigma_v: np.ndarray

    def at(self, mass: Any, coupling: Any) -> dict[str, Array]:
        """Shares by channel, each one number; beyond the tables those of their edge."""
        shares = monotone_surface(self._nodes, self.fractions, [jnp.log(mass), jnp.log(coupling)])
        return dict(zip(self.channels, shares, strict=True))

    def at_coupling(self, coupling: float) -> np.ndarray:
        """Shares at the nodes in mass, of shape (mass, channel)."""
        along = np.swapaxes(self.fractions, 0, 1)
        with jax.ensure_compile_time_eval():
            return np.asarray(monotone_cubic(self._nodes[1], along, math.log(coupling)))

    def log_sigma_v_at(self, mass: Any, coupling: Any) -> Array:
        r"""$\ln\langle\sigma v\rangle$ in cm³ s⁻¹ that the model predicts."""
        return monotone_surface(self._nodes, self.log_sigma_v, [jnp.log(mass), jnp.log(coupling)])

    @property
    def _nodes(self) -> tuple[np.ndarray, np.ndarray]:
        return np.log(self.mass), np.log(self.coupling)


def read_singlet_ratios(path: str | Path) -> SingletRatios:
    r"""Read a table of partial cross sections of the scalar singlet.

    Args:
        path: text: a header with the final states, then a row number, the mass [GeV],
            $\lambda_{hS}$ and $\langle\sigma v\rangle_f$ [cm³ s⁻¹] for each of them.

    Raises:
        InputError: no such file, or not such a table.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; get it with: skycensus data singlet-darksusy")
    with path.open() as file:
        header = shlex.split(file.readline())
        try:
            rows = np.loadtxt(file, ndmin=2)[:, 1:]
        except ValueError as error:
            raise InputError(f"{path}: not a table of numbers below its header: {error}.") from None
    unknown = sorted(set(header[2:]) - set(_SINGLET_STATES))
    if header[:2] != ["mS [GeV]", "lahS"] or unknown or rows.shape[1] != len(header):
        raise InputError(
            f"{path}: expected the columns 'mS [GeV]', 'lahS' and final states among "
            f"{', '.join(_SINGLET_STATES)}; got {header}."
        )
    mass, coupling, partial = on_grid(rows, "masses", "couplings", path)
    total = partial.sum(axis=-1)
    channels = tuple(dict.fromkeys(c for state in header[2:] for c in _SINGLET_STATES[state]))
    shares = np.zeros((*total.shape, len(channels)))
    for k, state in enumerate(header[2:]):
        for channel, weight in _SINGLET_STATES[state].items():
            shares[..., channels.index(channel)] += weight * partial[..., k]
    known = np.maximum(total, _NO_CROSS_SECTION)
    return SingletRatios(channels, mass * _GEV, coupling, shares / known[..., None], np.log(known))


def scalar_singlet(
    spectra: ChannelSpectra,
    ratios: SingletRatios,
    *,
    low: float,
    high: float = math.inf,
    coupling: float | None = None,
    log_j: Any = None,
) -> Population:
    r"""Return a population: the Z2 scalar singlet, its channels' shares as the model has them.

    Hyperparameters `mass` in TeV and, unless given here, `coupling` ($\lambda_{hS}$). With `log_j`
    it is a flux with `sigma_v` in cm³ s⁻¹ (`mixed_channels`), which need not be the model's own
    (`SingletRatios.log_sigma_v_at`).
    """
    kept = spectra.only(ratios.channels)
    if coupling is not None:
        kept = kept.combined("singlet", ratios.mass, ratios.at_coupling(coupling))

    def population(h: Mapping[str, Any]) -> Annihilation:
        mass = h["mass"]
        shares = {"singlet": 1.0} if coupling is not None else ratios.at(mass, h["coupling"])
        amplitude = log_amplitude(h, mass, log_j)
        return Annihilation(
            kept, mass, fractions=shares, low=low, high=high, log_amplitude=amplitude
        )

    return population


@dataclass(frozen=True, eq=False)
class Z5Ratios:
    r"""Annihilation of two dark particles under a Z5 symmetry, over both masses.

    Attributes:
        mass_1, mass_2: nodes in TeV.
        fractions: (initial state, final state) -> shares of shape (mass_1, mass_2), of all that
            annihilates; what emits no photons is missing.
    """

    mass_1: np.ndarray
    mass_2: np.ndarray
    fractions: Mapping[tuple[str, str], np.ndarray]

    def at(self, mass_1: Any, mass_2: Any) -> dict[tuple[str, str], Array]:
        """Shares by (initial state, final state), each one number."""
        nodes = np.log(self.mass_1), np.log(self.mass_2)
        table = np.stack(list(self.fractions.values()), axis=-1)
        shares = monotone_surface(nodes, table, [jnp.log(mass_1), jnp.log(mass_2)])
        return dict(zip(self.fractions, shares, strict=True))


def read_z5_ratios(path: str | Path) -> Z5Ratios:
    """Read a table of the Z5 model (HDF5): masses in GeV, a group for every initial state.

    Raises:
        InputError: no such file, or not such a table.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; get it with: skycensus data z5")
    try:
        with h5py.File(path, "r") as file:
            mass_1, mass_2 = file["mdm1"][()], file["mdm2"][()]
            groups = {name: file[name] for name in _Z5_PAIRS if name in file}
            columns = {
                (initial, final): np.asarray(group[final][()], float)
                for initial, group in groups.items()
                for final in group
            }
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: not a table of the Z5 model: {error}.") from None
    nodes_1, nodes_2 = np.unique(mass_1), np.unique(mass_2)
    if not columns or len(mass_1) != len(nodes_1) * len(nodes_2):
        raise InputError(f"{path}: no table over a grid of two masses; fetch it again.")
    order = np.lexsort((mass_2, mass_1))
    shape = (len(nodes_1), len(nodes_2))
    fractions = {
        key: column[order].reshape(shape)
        for key, column in columns.items()
        if column.any() and (key[1] in _Z5_STATES or key in _Z5_HIGGS)
    }
    return Z5Ratios(nodes_1 * _GEV, nodes_2 * _GEV, fractions)


def z5(
    spectra: ChannelSpectra,
    ratios: Z5Ratios,
    *,
    low: float,
    high: float = math.inf,
    log_j: Any = None,
) -> Population:
    r"""Return a population: two dark particles under a Z5 symmetry (Bélanger et al. 2020,
    arXiv:2006.14922), each initial state with its own energy.

    A pair ij shines like dark matter of mass $(m_i + m_j)/2$. Where it leaves one Higgs boson and
    a dark particle k, that boson has the energy $E_h = (s + m_h^2 - m_k^2)/2\sqrt s$,
    $s = (m_i + m_j)^2$, and shines like half a pair from mass $E_h$.

    Hyperparameters `mass_1` and `mass_2` in TeV. With `log_j` it is a flux with `sigma_v`
    (`mixed_channels`), over $8\pi m_1^2$; without, photons of one annihilation.
    """
    kept = spectra.only(sorted(set(_Z5_STATES.values())))

    def population(h: Mapping[str, Any]) -> Mixture:
        masses = {1: h["mass_1"], 2: h["mass_2"]}
        amplitude = 0.0 if log_j is None else log_amplitude(h, masses[1], log_j)
        leaves: dict[str, Annihilation] = {}

        def shine(name: str, mass: Any, fractions: dict[str, Any]) -> None:
            leaves[name] = Annihilation(
                kept, mass, fractions=fractions, low=low, high=high, log_amplitude=amplitude
            )

        pairs: dict[str, dict[str, Any]] = {}
        for (initial, final), share in ratios.at(masses[1], masses[2]).items():
            if final in _Z5_STATES:
                channels = pairs.setdefault(initial, {})
                channel = _Z5_STATES[final]
                channels[channel] = channels.get(channel, 0.0) + share
            else:
                energy = _higgs_energy(masses, *_Z5_HIGGS[initial, final])
                shine(f"{initial}-{final}", energy, {"h": 0.5 * share})
        for initial, channels in pairs.items():
            i, j = _Z5_PAIRS[initial]
            shine(initial, 0.5 * (masses[i] + masses[j]), channels)
        return Mixture(leaves, log_weights=dict.fromkeys(leaves, 0.0))

    return population


def _higgs_energy(masses: dict[int, Any], i: int, j: int, k: int) -> Array:
    """Of a Higgs boson beside dark particle k, at rest where there is no energy for it."""
    root_s = masses[i] + masses[j]
    energy = 0.5 * (root_s + (_HIGGS_MASS**2 - masses[k] ** 2) / root_s)
    return jnp.maximum(energy, _HIGGS_MASS)
