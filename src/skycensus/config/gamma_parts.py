"""Skies and spectra of `[sources]`: the keys of each kind, and what is built of them.

Every number of a table that may be a hyperparameter is a number, which fixes it, or a name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from .. import data as data_sets
from ..errors import InputError
from ..gamma import annihilation, halo, particle_models, spectra
from ..gamma.catalogue import read_hgps
from ..gamma.sky import Around, Disk, Gaussian, Isotropic, Point, read_template
from . import Config

Hyperparameters = Mapping[str, Any]
Number = float | str
"""A number, or the name of a hyperparameter."""

# Where the Galaxy has its centre, in either frame [deg].
GALACTIC_CENTRE = {"galactic": (0.0, 0.0), "icrs": (266.40499, -28.93617)}

# True energies of spectra [TeV] that state none.
_LOW, _HIGH = 0.01, 1000.0


@dataclass(frozen=True)
class Place:
    """What a component is built for.

    Attributes:
        config: whose folders have the files.
        frame: of all directions.
        center: of what is looked at [deg].
        inputs: files that were read, to be noted.
    """

    config: Config
    frame: Literal["icrs", "galactic"]
    center: tuple[float, float]
    inputs: list[Path]

    def file(self, name: str) -> Path:
        """A file beside the data or the config, or a public data set by its name."""
        path = self.config.either(name)
        if not path.exists() and name in data_sets.SETS:
            path = data_sets.path(name)
        self.inputs.append(path)
        return path


def value_of(h: Hyperparameters, given: Number) -> Any:
    """A number itself, or the hyperparameter that a name stands for."""
    return h[given] if isinstance(given, str) else given


# ---- skies ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PointSky:
    """`sky` with `kind = "point"`: a place in degrees, whose numbers may be hyperparameters."""

    lon: Number
    lat: Number

    def build(self, place: Place) -> Any:
        if isinstance(self.lon, str) or isinstance(self.lat, str):
            return lambda h: Point(value_of(h, self.lon), value_of(h, self.lat))
        return Point(self.lon, self.lat)


@dataclass(frozen=True, kw_only=True)
class GaussianSky:
    """`sky` with `kind = "gaussian"`: a place and a width in degrees."""

    lon: Number
    lat: Number
    sigma: Number

    def build(self, place: Place) -> Any:
        three = (self.lon, self.lat, self.sigma)
        if any(isinstance(x, str) for x in three):
            return lambda h: Gaussian(*(value_of(h, x) for x in three))
        return Gaussian(*three)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class DiskSky:
    """`sky` with `kind = "disk"`: a place and a radius in degrees."""

    lon: float
    lat: float
    radius: float

    def build(self, place: Place) -> Any:
        return Disk(self.lon, self.lat, self.radius)


@dataclass(frozen=True, kw_only=True)
class IsotropicSky:
    """`sky` with `kind = "isotropic"`: one per steradian."""

    def build(self, place: Place) -> Any:
        return Isotropic()


@dataclass(frozen=True, kw_only=True)
class TemplateSky:
    """`sky` with `kind = "template"`: a FITS map, or a public data set.

    `energy` [TeV] takes a cube's map there for all energies; `mean` is what the map's mean is to
    be, in the units of everything else.
    """

    file: str
    unit: str = ""
    energy: float | None = None
    mean: float | None = None

    def build(self, place: Place) -> Any:
        found = read_template(place.file(self.file), frame=place.frame, unit=self.unit)
        if self.energy is not None:
            found = found.at_energy(self.energy)
        return found if self.mean is None else found.with_mean(self.mean)


@dataclass(frozen=True, kw_only=True)
class CatalogueSky:
    """`sky` with `kind = "hgps"`: sources of the H.E.S.S. Galactic plane survey, with spectra."""

    radius: float
    file: str = "hgps"

    def build(self, place: Place) -> Any:
        if place.frame != "galactic":
            raise InputError("kind = 'hgps' has galactic coordinates; give [data] frame.")
        found = read_hgps(place.file(self.file), place.center, self.radius)
        if not found:
            raise InputError(
                f"the catalogue has no source within {self.radius:g} deg of {place.center}; give "
                "a larger radius, or leave out this component."
            )
        return [source for parts in found.values() for source in parts]


_PROFILES: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "einasto": (halo.Einasto, ("alpha",)),
    "nfw": (halo.nfw, ()),
    "generalized_nfw": (halo.GeneralizedNFW, ("slope",)),
    "moore": (halo.moore, ()),
    "burkert": (halo.Burkert, ()),
    "isothermal": (halo.Isothermal, ()),
}


@dataclass(frozen=True, kw_only=True)
class HaloSky:
    """`sky` with `kind = "halo"`: dark matter, dJ/dΩ [GeV² cm⁻⁵ sr⁻¹], or dD/dΩ with `decay`.

    Lengths in kpc, `local_density` in GeV cm⁻³; what is not given has the profile's default.
    """

    profile: Literal["einasto", "nfw", "generalized_nfw", "moore", "burkert", "isothermal"]
    alpha: Number | None = None
    slope: Number | None = None
    scale_radius: Number | None = None
    distance: Number | None = None
    local_density: Number | None = None
    decay: bool = False

    @property
    def given(self) -> dict[str, Number]:
        """The profile's parameters that have a number or a name."""
        names = ("alpha", "slope", "scale_radius", "distance", "local_density")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}

    def faults(self, bounds: Mapping[str, tuple[float, float]]) -> Iterator[str]:
        """What is wrong with the parameters, where hyperparameters lie between their `bounds`."""
        for name, value in self.given.items():
            if name in ("alpha", "slope") and name not in _PROFILES[self.profile][1]:
                yield f"a profile '{self.profile}' has no {name}; leave it out."
                continue
            steepest = 3.0 if self.decay else 1.5
            allowed = f"from 0 to below {steepest:g}" if name == "slope" else "above 0"
            highest = steepest if name == "slope" else math.inf
            if isinstance(value, str):
                low, high = bounds[value]
                # At its very ends a prior has nothing.
                if low < 0 or high > highest:
                    yield (
                        f"{name} = '{value}' has a prior from {low:g} to {high:g}; give one within "
                        f"what the profile allows, {allowed}."
                    )
            elif not (0 < value < highest or (name == "slope" and value == 0)):
                yield f"{name} = {value:g} must be {allowed}."

    def build(self, place: Place) -> Any:
        make, _ = _PROFILES[self.profile]
        factor = halo.log_d_factor if self.decay else halo.log_j_factor

        def sky(h: Hyperparameters) -> Around:
            profile = make(**{name: value_of(h, x) for name, x in self.given.items()})
            return Around(*GALACTIC_CENTRE[place.frame], halo.Halo(profile, factor))

        return sky if any(isinstance(x, str) for x in self.given.values()) else sky({})


SKIES: dict[str, Any] = {
    "point": PointSky,
    "gaussian": GaussianSky,
    "disk": DiskSky,
    "isotropic": IsotropicSky,
    "template": TemplateSky,
    "hgps": CatalogueSky,
    "halo": HaloSky,
}


# ---- spectra -------------------------------------------------------------------------------------


def _log(h: Hyperparameters, given: Number | None) -> Any:
    """The logarithm of an amplitude; None where there is none."""
    return None if given is None else jnp.log(value_of(h, given))


@dataclass(frozen=True, kw_only=True)
class _Flux:
    """What all formulas of a flux take: `amplitude` at `reference`, between `low` and `high`."""

    amplitude: Number | None = None
    reference: float = 1.0
    low: float = _LOW
    high: float = _HIGH

    def shared(self, h: Hyperparameters) -> dict[str, Any]:
        """The arguments that they share."""
        return {
            "low": self.low,
            "high": self.high,
            "reference": self.reference,
            "log_amplitude": _log(h, self.amplitude),
        }


@dataclass(frozen=True, kw_only=True)
class PowerLawSpectrum(_Flux):
    """`spectrum` with `kind = "power_law"`; `amplitude` at `reference` [1/(cm² s TeV)]."""

    index: Number

    def build(self, place: Place) -> Callable[[Hyperparameters], Any]:
        return lambda h: spectra.PowerLaw(value_of(h, self.index), **self.shared(h))


@dataclass(frozen=True, kw_only=True)
class LogParabolaSpectrum(_Flux):
    """`spectrum` with `kind = "log_parabola"`."""

    index: Number
    curvature: Number

    def build(self, place: Place) -> Callable[[Hyperparameters], Any]:
        return lambda h: spectra.LogParabola(
            value_of(h, self.index), value_of(h, self.curvature), **self.shared(h)
        )


@dataclass(frozen=True, kw_only=True)
class CutoffPowerLawSpectrum(_Flux):
    """`spectrum` with `kind = "cutoff_power_law"`; `cutoff` [TeV]."""

    index: Number
    cutoff: Number

    def build(self, place: Place) -> Callable[[Hyperparameters], Any]:
        return lambda h: spectra.CutoffPowerLaw(
            value_of(h, self.index), value_of(h, self.cutoff), **self.shared(h)
        )


@dataclass(frozen=True, kw_only=True)
class TabulatedSpectrum:
    """`spectrum` with `kind = "tabulated"`: a table with the columns `energy` and `flux`.

    The flux has a unit of 1/(cm² s TeV), or none for a shape; `amplitude` multiplies it.
    """

    file: str
    amplitude: Number | None = None

    def build(self, place: Place) -> Callable[[Hyperparameters], Any]:
        energy, flux = _read_spectrum(place.file(self.file))
        return lambda h: spectra.Tabulated(energy, flux, log_amplitude=_log(h, self.amplitude))


def _read_spectrum(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import astropy.units as u
    from astropy.table import QTable

    if not path.is_file():
        raise InputError(f"there is no file '{path}'.")
    try:
        table = QTable.read(path)
        energy = u.Quantity(table["energy"]).to_value("TeV")
        flux = u.Quantity(table["flux"])
        is_flux = flux.unit != u.dimensionless_unscaled
        return energy, flux.to_value("cm-2 s-1 TeV-1") if is_flux else flux.value
    except (KeyError, TypeError, OSError, u.UnitConversionError) as error:
        raise InputError(
            f"'{path}' is no table with columns energy [TeV] and flux [1/(cm2 s TeV)]: {error}"
        ) from None


@dataclass(frozen=True, kw_only=True)
class AnnihilationSpectrum:
    """`spectrum` with `kind = "annihilation"`, over a sky of dJ/dΩ.

    `mass` [TeV], `channels`: channel = share, and `sigma_v` [cm³/s] where the flux is absolute.
    """

    mass: Number
    channels: dict[str, Number]
    sigma_v: Number | None = None
    tables: str = "pppc"
    low: float = _LOW

    def build(self, place: Place) -> Callable[[Hyperparameters], Any]:
        known = annihilation.read_pppc(place.file(self.tables), list(self.channels))

        def spectrum(h: Hyperparameters) -> Any:
            mass = value_of(h, self.mass)
            shares = {name: value_of(h, share) for name, share in self.channels.items()}
            amplitude = _annihilating(h, self.sigma_v, mass)
            return annihilation.Annihilation(
                known, mass, fractions=shares, low=self.low, log_amplitude=amplitude
            )

        return spectrum


def _annihilating(h: Hyperparameters, sigma_v: Number | None, mass: Any) -> Any:
    if sigma_v is None:
        return None
    return annihilation.log_annihilation_factor(value_of(h, sigma_v), mass)


@dataclass(frozen=True, kw_only=True)
class DecaySpectrum:
    """`spectrum` with `kind = "decay"`, over a sky of dD/dΩ; `lifetime` [s]."""

    mass: Number
    channels: dict[str, Number]
    lifetime: Number | None = None
    tables: str = "pppc"
    low: float = _LOW

    def build(self, place: Place) -> Callable[[Hyperparameters], Any]:
        known = annihilation.read_pppc(place.file(self.tables), list(self.channels))

        def spectrum(h: Hyperparameters) -> Any:
            mass = value_of(h, self.mass)
            shares = {name: value_of(h, share) for name, share in self.channels.items()}
            amplitude = None
            if self.lifetime is not None:
                width = 1.0 / value_of(h, self.lifetime)
                amplitude = annihilation.log_decay_factor(width, mass)
            return annihilation.decay(
                known, mass, fractions=shares, low=self.low, log_amplitude=amplitude
            )

        return spectrum


@dataclass(frozen=True, kw_only=True)
class SingletSpectrum:
    """`spectrum` with `kind = "scalar_singlet"`: the Z2 scalar singlet, over a sky of dJ/dΩ."""

    mass: Number
    coupling: Number
    sigma_v: Number | None = None
    tables: str = "pppc"
    ratios: str = "singlet-darksusy"
    low: float = _LOW

    def build(self, place: Place) -> Callable[[Hyperparameters], Any]:
        known = annihilation.read_pppc(place.file(self.tables))
        ratios = particle_models.read_singlet_ratios(place.file(self.ratios))
        fixed = self.coupling if isinstance(self.coupling, float) else None
        model = particle_models.scalar_singlet(
            known,
            ratios,
            low=self.low,
            coupling=fixed,
            log_j=None if self.sigma_v is None else 0.0,
        )
        return lambda h: model(_renamed(self, h, "mass", "coupling", "sigma_v"))


@dataclass(frozen=True, kw_only=True)
class Z5Spectrum:
    """`spectrum` with `kind = "z5"`: two dark particles under a Z5 symmetry, over dJ/dΩ."""

    mass_1: Number
    mass_2: Number
    sigma_v: Number | None = None
    tables: str = "pppc"
    ratios: str = "z5"
    low: float = _LOW

    def build(self, place: Place) -> Callable[[Hyperparameters], Any]:
        known = annihilation.read_pppc(place.file(self.tables))
        ratios = particle_models.read_z5_ratios(place.file(self.ratios))
        log_j = None if self.sigma_v is None else 0.0
        model = particle_models.z5(known, ratios, low=self.low, log_j=log_j)
        return lambda h: model(_renamed(self, h, "mass_1", "mass_2", "sigma_v"))


def _renamed(table: Any, h: Hyperparameters, *arguments: str) -> dict[str, Any]:
    """The hyperparameters of a model by the names that it has for them."""
    given = {name: getattr(table, name) for name in arguments}
    return {name: value_of(h, x) for name, x in given.items() if x is not None}


SPECTRA: dict[str, Any] = {
    "power_law": PowerLawSpectrum,
    "log_parabola": LogParabolaSpectrum,
    "cutoff_power_law": CutoffPowerLawSpectrum,
    "tabulated": TabulatedSpectrum,
    "annihilation": AnnihilationSpectrum,
    "decay": DecaySpectrum,
    "scalar_singlet": SingletSpectrum,
    "z5": Z5Spectrum,
}
