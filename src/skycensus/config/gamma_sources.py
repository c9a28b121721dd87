"""`[sources]`: what the sky is made of, from tables of a config to components of a tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import did_you_mean
from ..gamma.photons import Background, Source, Tree
from .gamma_parts import SKIES, SPECTRA, CatalogueSky, Hyperparameters, Number, Place
from .schema import fill


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """A checked table of `[sources]`: `sky` and `spectrum` of a source, or a background.

    Attributes:
        path: of the leaf in the tree, `bkg/CCR`.
        names: hyperparameters that it has besides its fraction or rate.
    """

    path: str
    sky: Any = None
    spectrum: Any = None
    norm: Number | None = None
    tilt: Number | None = None
    names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its own, without the branches above it: `CCR`."""
        return self.path.rsplit("/", 1)[-1]

    def build(self, place: Place) -> Any:
        """The component: a `Source`, a list of them, or a `Background`."""
        if self.sky is None:
            return Background(norm=_of_run(self.norm), tilt=_of_run(self.tilt))
        sky = self.sky.build(place)
        if self.spectrum is None:
            return sky
        spectrum = self.spectrum.build(place)
        return Source(sky, spectrum if any(_names(self.spectrum)) else spectrum({}))


def _of_run(given: Number | None) -> Callable[[Hyperparameters, str], Any] | None:
    if given is None:
        return None
    return lambda h, run: h[given.format(run=run)] if isinstance(given, str) else given


def read_leaves(
    tables: Mapping[str, Any], runs: list[str], where: str, problems: list[str]
) -> list[Leaf]:
    """The leaves that `[sources]` describes; what is wrong is appended to `problems`.

    Args:
        tables: name -> table.
        runs: names of the observations, for backgrounds with numbers of their own.
        where: how messages call the section.
    """
    leaves = []
    for name, table in tables.items():
        here = f"{where}.{name}]"
        if not isinstance(table, dict):
            problems.append(f"{where}.{name}]: not a table; write [sources.{name}].")
        elif not name.isidentifier():
            problems.append(f"{here}: the name must be one word of letters, digits and _.")
        elif (leaf := _read_leaf(name, table, runs, here, problems)) is not None:
            leaves.append(leaf)
    sources = {name for name in tables}
    for leaf in leaves:
        *above, name = leaf.path.split("/")
        if wrong := [b for b in above if b in sources]:
            problems.append(
                f"{where}.{name}]: parent '{wrong[0]}' is a source itself; a branch has a name "
                "of its own."
            )
        if wrong := [b for b in above if not b.isidentifier()]:
            problems.append(f"{where}.{name}]: parent '{wrong[0]}' must be one word.")
    return leaves


def _read_leaf(
    name: str, table: Mapping[str, Any], runs: list[str], where: str, problems: list[str]
) -> Leaf | None:
    kinds = {"source": SourceTable, "background": BackgroundTable}
    kind = table.get("kind", "source")
    if not isinstance(kind, str) or kind not in kinds:
        problems.append(
            f"{where}: kind = {kind!r} is not known{did_you_mean(str(kind), kinds)}; give one of "
            f"{', '.join(kinds)}."
        )
        return None
    rest = {key: value for key, value in table.items() if key != "kind"}
    found: Any = fill(kinds[kind], rest, where, problems)
    if found is None:
        return None
    path = f"{found.parent}/{name}" if found.parent else name
    if kind == "background":
        both = [x for x in (found.norm, found.tilt) if isinstance(x, str)]
        names = dict.fromkeys(_run_name(x, run, where, problems) for x in both for run in runs)
        return Leaf(path=path, norm=found.norm, tilt=found.tilt, names=tuple(names))
    sky = _part(found.sky, SKIES, f"{where} sky", problems)
    if isinstance(sky, CatalogueSky):
        if found.spectrum is not None:
            problems.append(f"{where}: a catalogue's sources have spectra; leave out spectrum.")
        return Leaf(path=path, sky=sky)
    if found.spectrum is None:
        problems.append(f"{where}: 'spectrum' is missing; give a table with a kind.")
        return None
    spectrum = _part(found.spectrum, SPECTRA, f"{where} spectrum", problems)
    if sky is None or spectrum is None:
        return None
    names = dict.fromkeys([*_names(sky), *_names(spectrum)])
    return Leaf(path=path, sky=sky, spectrum=spectrum, names=tuple(names))


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """`[sources.NAME]`: a sky with a spectrum, in a branch of the tree."""

    sky: dict[str, Any]
    spectrum: dict[str, Any] | None = None
    parent: str | None = None


@dataclass(frozen=True, kw_only=True)
class BackgroundTable:
    """`[sources.NAME]` with `kind = "background"`: the response's, in which `{run}` is a run."""

    norm: Number | None = None
    tilt: Number | None = None
    parent: str | None = None


def _run_name(given: str, run: str, where: str, problems: list[str]) -> str:
    try:
        return given.format(run=run)
    except (KeyError, IndexError, ValueError):
        problems.append(f"{where}: '{given}' may hold {{run}} and no other braces.")
        return given


def _part(
    table: Mapping[str, Any], kinds: Mapping[str, Any], where: str, problems: list[str]
) -> Any:
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        came = "'kind' is missing" if kind is None else f"kind = {kind!r} is not known"
        problems.append(
            f"{where}: {came}{did_you_mean(str(kind), kinds)}; give one of {', '.join(kinds)}."
        )
        return None
    rest = {key: value for key, value in table.items() if key != "kind"}
    return fill(kinds[kind], rest, where, problems)


def _names(table: Any) -> Iterator[str]:
    """The hyperparameters that a table of a sky or a spectrum names."""
    for entry in fields(table):
        value = getattr(table, entry.name)
        # Where a number may stand, a string is a name; others are files and choices.
        if "Number" not in str(entry.type):
            continue
        yield from (x for x in (value.values() if isinstance(value, dict) else [value])
                    if isinstance(x, str))  # fmt: skip


def tree_of(parts: Mapping[str, Any]) -> Tree:
    """Path of every leaf -> anything, as nested branches."""
    tree: dict[str, Any] = {}
    for path, part in parts.items():
        *above, name = path.split("/")
        branch = tree
        for node in above:
            branch = branch.setdefault(node, {})
        branch[name] = part
    return tree
