r"""Photons of one or several observations as objects of a mixture: who has sent them?

A model is a tree of components, `{"DM": Source(...), "bkg": {"CCR": Background(), ...}}`. With
*fractions*, every node's children share its photons by hyperparameters of their names, which sum to
one. With *rates*, a leaf's hyperparameter multiplies what its sky and spectrum say, so that the
expected number of photons is part of the likelihood (Poisson).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..density import Density, Mixture
from ..errors import InputError, did_you_mean
from ..likelihood import Constant, Detected, Folded, Leafwise
from ..likelihood.folded import Hats
from ..likelihood.formula import ObjectNames
from ..model import HierarchicalModel, hyperparameter_names
from ..prior import Prior
from .background import BackgroundNumber, BackgroundPhotons, Scaled
from .fold import Cut, Fold
from .located import Located, LocatedNumber, LocatedPhotons, window_of
from .response import Response, energy_nodes, separation
from .shapes import Shaped, prior_shapes, shaped_forms
from .sky import Around, Point
from .tables import ResponseTables

Hyperparameters = Mapping[str, Any]

# Of more photons tables are kept in 32 bits.
_MANY = 100_000


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Photons seen in one pointing, and by what.

    Args:
        tables: the response.
        pointing: longitude and latitude [deg].
        livetime: [s].
        cut: what is looked at.
        energy, lon, lat: of the photons, reconstructed [TeV, deg]; those outside of the cut are not
            used.
        name: for messages.

    Raises:
        InputError: lengths that differ, values that are not finite, energies that are not positive,
            a livetime that is not, or a region beyond the response's field of view.
    """

    tables: ResponseTables
    pointing: tuple[float, float]
    livetime: float
    cut: Cut
    energy: Any = ()
    lon: Any = ()
    lat: Any = ()
    name: str = "observation"

    def __post_init__(self) -> None:
        columns = {n: np.asarray(getattr(self, n)) for n in ("energy", "lon", "lat")}
        lengths = {n: len(x) for n, x in columns.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"{self.name}: columns of different lengths, {lengths}.")
        for n, x in columns.items():
            try:
                values = x.astype(float)
            except (TypeError, ValueError):
                raise InputError(f"{self.name}: '{n}' are not numbers.") from None
            if (bad := ~np.isfinite(values)).any():
                raise InputError(
                    f"{self.name}: '{n}' of photon {int(np.flatnonzero(bad)[0])} is NaN or "
                    "infinite; leave such photons out."
                )
        if (bad := ~(columns["energy"].astype(float) > 0)).any():
            raise InputError(
                f"{self.name}: 'energy' of photon {int(np.flatnonzero(bad)[0])} is not positive."
            )
        if not (np.isfinite(self.livetime) and self.livetime > 0):
            raise InputError(f"{self.name}: livetime = {self.livetime:g} s must be positive.")
        self._check_field()

    def _check_field(self) -> None:
        plane_edge = self.tables.max_offset
        away = float(separation(*self.pointing, *self.cut.region.center))
        if away + self.cut.region.half_width > 2.0 * plane_edge:
            raise InputError(
                f"{self.name}: the region reaches {away + self.cut.region.half_width:.3g} deg from "
                f"the pointing, but the response is known to {plane_edge:.3g} deg; look at less."
            )

    @property
    def used(self) -> np.ndarray:
        """Which photons are in the cut, and in the response's field of view."""
        energy, lon, lat = (np.asarray(x, float) for x in (self.energy, self.lon, self.lat))
        return self.cut.inside(energy, lon, lat) & self._in_field(lon, lat)

    @property
    def left_out(self) -> dict[str, int]:
        """How many photons are not used, by the first reason: energy, region, field of view."""
        energy, lon, lat = (np.asarray(x, float) for x in (self.energy, self.lon, self.lat))
        wrong = ~((energy >= self.cut.low) & (energy <= self.cut.high))
        outside = ~wrong & ~self.cut.region.inside(lon, lat)
        unseen = ~wrong & ~outside & ~self._in_field(lon, lat)
        counts = {"energy": wrong, "region": outside, "field of view": unseen}
        return {reason: int(some.sum()) for reason, some in counts.items()}

    def _in_field(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        return np.asarray(separation(*self.pointing, lon, lat)) <= self.tables.max_offset

    def fold(self, nodes: Any) -> Fold:
        """The response on nodes of true energy [TeV], ready to fold skies for the photons used."""
        some = self.used
        photons = (np.asarray(x, float)[some] for x in (self.energy, self.lon, self.lat))
        return Fold(Response(self.tables, nodes), self.pointing, self.livetime, self.cut, *photons)


@dataclass(frozen=True)
class Source:
    """A sky with a spectrum, `density over "energy"` or `hyperparameters -> density`.

    The product is the flux [1/(cm² s TeV sr)], or with fractions anything proportional to it. A sky
    may be a function of the hyperparameters as well, `lambda h: Point(h["lon"], h["lat"])`: to a
    `Point` or a `Gaussian`, see `located`, or to a profile `Around` a place, see `shapes`.
    """

    sky: Any
    spectrum: Density | Callable[[Hyperparameters], Density]

    @property
    def moves(self) -> bool:
        """Whether the sky is a function of hyperparameters: of one argument, not of two angles."""
        if isinstance(self.sky, Point) or not callable(self.sky):
            return False
        parameters = inspect.signature(self.sky).parameters.values()
        return sum(p.default is p.empty and p.kind in (0, 1) for p in parameters) == 1

    @property
    def is_fixed(self) -> bool:
        """Whether no hyperparameter changes the source."""
        return hasattr(self.spectrum, "log_prob") and not self.moves

    def at(self, h: Hyperparameters) -> Source:
        """The fixed source that it is at these hyperparameters."""
        spectrum: Any = self.spectrum
        return Source(
            self.sky(h) if self.moves else self.sky,
            spectrum if hasattr(spectrum, "log_prob") else spectrum(h),
        )


RunFunction = Callable[[Hyperparameters, str], Any]


@dataclass(frozen=True)
class Background:
    """The response's background of cosmic rays, which is known as it is reconstructed.

    Args:
        norm, tilt: a number for every run, from the hyperparameters and the run's name, as `lambda
            h, run: h[f"norm_{run}"]`: see `background`. None where the response is right.
    """

    norm: RunFunction | None = None
    tilt: RunFunction | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether no hyperparameter changes it."""
        return self.norm is None and self.tilt is None

    def at(self, h: Hyperparameters, runs: Sequence[str]) -> Scaled:
        """The norms and tilts of the runs."""
        return Scaled(
            [1.0 if self.norm is None else self.norm(h, run) for run in runs],
            [0.0 if self.tilt is None else self.tilt(h, run) for run in runs],
        )


Component = Source | Background | Sequence[Source]
Tree = Mapping[str, Any]


class Known:
    """Stands for the density of a leaf that is a number per photon."""

    names = ("energy",)

    def log_prob(self, theta: Mapping[str, Any]) -> Any:
        return jnp.zeros(jnp.shape(theta["energy"]))


def leaves_of(tree: Tree, above: str = "") -> Iterator[tuple[str, Any]]:
    """Path and component of every leaf, in order.

    Raises:
        InputError: an empty branch, something that is no component, or a name that occurs twice.
    """
    if not tree:
        raise InputError(f"the branch '{above.rstrip('/') or 'root'}' has no components.")
    for name, part in tree.items():
        if isinstance(part, Mapping):
            yield from leaves_of(part, f"{above}{name}/")
        elif _is_component(part):
            yield f"{above}{name}", part
        else:
            raise InputError(
                f"component '{above}{name}' is a {type(part).__name__}; give a Source, a "
                "Background, a list of Sources, or a branch."
            )


def path_of(tree: Tree, name: str, fault: str) -> str:
    """The path of a component, which is told by it or by its own name.

    Raises:
        InputError: there is no such component; `fault` is how the message begins.
    """
    paths = [path for path, _ in leaves_of(tree)]
    for path in paths:
        if name in (path, path.rsplit("/", 1)[-1]):
            return path
    raise InputError(f"{fault}{did_you_mean(name, paths)}; there are {paths}.")


def _is_component(part: Any) -> bool:
    if isinstance(part, Source | Background):
        return True
    some = isinstance(part, Sequence) and len(part) > 0
    return some and all(isinstance(p, Source) and p.is_fixed for p in part)


def population(
    tree: Tree, *, rates: bool = False, runs: Sequence[str] = ()
) -> Callable[[Hyperparameters], Density]:
    """Hyperparameters -> mixture tree; see the module for what they are. `runs` are their names."""
    names = [n for n, _ in _nodes(tree)]
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(f"the components have names that occur twice: {repeated}; rename them.")
    dict(leaves_of(tree))

    def mixture(branch: Tree, h: Hyperparameters) -> Any:
        parts, weights = {}, {}
        for name, part in branch.items():
            is_branch = isinstance(part, Mapping)
            parts[name] = mixture(part, h) if is_branch else _leaf(part, h, runs)
            free = not (rates and is_branch)
            weights[name] = jnp.log(h[name]) if free else jnp.zeros(())
        return Mixture(parts, log_weights=weights)

    return lambda h: mixture(tree, h)


def _nodes(tree: Tree) -> Iterator[tuple[str, Any]]:
    for name, part in tree.items():
        yield name, part
        if isinstance(part, Mapping):
            yield from _nodes(part)


def _leaf(part: Component, h: Hyperparameters, runs: Sequence[str]) -> Any:
    if isinstance(part, Sequence) or part.is_fixed:
        return Known()
    if isinstance(part, Background):
        return part.at(h, runs)
    now = part.at(h)
    spectrum: Any = now.spectrum
    return Located(now.sky, spectrum) if part.moves else spectrum


def photon_model(
    observations: Sequence[Observation],
    tree: Tree,
    prior: Prior,
    *,
    rate: Literal["fractions", "rates"] = "fractions",
    progress: Callable[[int, int, str], None] | None = None,
) -> HierarchicalModel:
    r"""The model of the photons of all observations.

    For a photon with reconstructed $d$, and components of density $n_k(d)$ that make $N_k$ photons,

    $$\text{fractions:}\ \ln L = \sum_i \ln \sum_k w_k\, n_k(d_i)/N_k,\qquad
      \text{rates:}\ \ln L = \sum_i \ln \sum_k r_k\, n_k(d_i) - \sum_k r_k N_k .$$

    Raises:
        InputError: no photons, what `population` and `Observation.fold` raise, and a photon that no
            component can have made (named).
    """
    runs = [observation.name for observation in observations]
    known = population(tree, rates=rate == "rates", runs=runs)
    prior = prior.resolve(*hyperparameter_names(known))
    nodes = energy_nodes([(o.tables, o.cut.low, o.cut.high) for o in observations])
    folds = [observation.fold(nodes) for observation in observations]
    names = ObjectNames(
        f"{observation.name} photon {i}" if len(observations) > 1 else f"photon {i}"
        for observation in observations
        for i in np.flatnonzero(observation.used)
    )
    if not names:
        raise InputError("no photon is in the region and the energies that are looked at.")
    forms, expected = {}, {}
    parts = list(leaves_of(tree))
    dispersions = [fold.dispersion() for fold in folds]
    for number, (path, part) in enumerate(parts):
        if progress:
            progress(number, len(parts), "folding with the response")
        if isinstance(part, Source) and part.moves:
            forms[path], expected[path] = _moving(folds, dispersions, part.sky, prior, path, names)
        else:
            forms[path], expected[path] = _folded(folds, dispersions, part, names)
    _require_possible(forms, names)
    if rate == "rates":
        return HierarchicalModel(
            prior, known, Leafwise(forms), selection=Leafwise(expected), rate="poisson"
        )
    seen = {path: Detected(form, expected[path]) for path, form in forms.items()}
    return HierarchicalModel(prior, known, Leafwise(seen), rate="shape")


def _moving(
    folds: Sequence[Fold],
    dispersions: Sequence[np.ndarray],
    sky: Callable[[Hyperparameters], Any],
    prior: Prior,
    path: str,
    names: Any,
) -> tuple[Any, Any]:
    """Forms of the photons and of their expected number, for a sky that hyperparameters decide."""
    drawn = prior.complete(prior.sample(jax.random.key(0)))
    if isinstance(sky(drawn), Around):
        views = [(fold.cut.region.center, fold.half_width) for fold in folds]
        shapes = prior_shapes(sky, prior, views, path)
        return shaped_forms(folds, dispersions, shapes, names=names, dtype=_precision(names))
    window = window_of(sky, prior, path)
    return LocatedPhotons(folds, dispersions, window, names=names), LocatedNumber(folds, window)


def _folded(
    folds: Sequence[Fold], dispersions: Sequence[np.ndarray], part: Component, names: Any
) -> tuple[Any, Any]:
    """Forms of the photons and of their expected number, for one component."""
    one = ("expected number",)
    if isinstance(part, Background) and not part.is_fixed:
        return BackgroundPhotons(folds, names=names), BackgroundNumber(folds)
    if isinstance(part, Background):
        densities, counts = zip(*(fold.background() for fold in folds), strict=True)
        return _constant(np.concatenate(densities), names), _constant(np.array([sum(counts)]), one)
    pairs = list(zip(folds, dispersions, strict=True))
    energy = folds[0].response.energy
    if isinstance(part, Source) and not part.is_fixed:
        tables, totals = zip(*(f.table(part.sky, d) for f, d in pairs), strict=True)
        return (
            Folded("energy", energy, _joined(tables), names=names, dtype=_precision(names)),
            Folded("energy", energy, np.sum(totals, axis=0)[None], names=one),
        )
    hats = Hats("energy", np.asarray(energy))
    sources: list[Any] = [part] if isinstance(part, Source) else list(part)
    # Compiled as one: a spectrum by itself is dozens of small programs.
    shapes, tops = zip(*jax.jit(lambda: [hats.masses(s.spectrum) for s in sources])(), strict=True)
    masses = np.exp(np.asarray(tops, float))[:, None] * np.asarray(shapes, float)
    skies = [source.sky for source in sources]
    found, numbers = zip(*(f.sums(skies, d, masses) for f, d in pairs), strict=True)
    return _constant(np.concatenate(found), names), _constant(np.array([sum(numbers)]), one)


def _precision(names: Sequence[str]) -> Any:
    """Of the tables of photons: the dispersion in them has 32 bits anyway."""
    return np.float32 if len(names) > _MANY else np.float64


def _joined(tables: Sequence[np.ndarray]) -> np.ndarray:
    # One of a million photons is not to be copied.
    return tables[0] if len(tables) == 1 else np.concatenate(tables)


def _constant(values: np.ndarray, names: Any) -> Constant:
    with np.errstate(divide="ignore"):
        return Constant(np.log(values), names=names)


def _require_possible(forms: Mapping[str, Any], names: Sequence[str]) -> None:
    possible = np.zeros(len(names), bool)
    for form in forms.values():
        if isinstance(form, Folded):
            possible |= np.asarray(form.table).max(axis=1) > 0
        elif isinstance(form, LocatedPhotons | Shaped):
            possible |= np.asarray(form.near)
        else:
            value = form.value if isinstance(form, Constant) else form.log_density
            possible |= np.isfinite(np.asarray(value))
    if not possible.all():
        first = int(np.flatnonzero(~possible)[0])
        raise InputError(
            f"no component can have made {names[first]} ({int((~possible).sum())} such photons): "
            "the response or every sky is zero there; look at less, or add a background."
        )
