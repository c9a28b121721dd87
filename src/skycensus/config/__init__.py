"""Config files: TOML and overrides in, checked sections out, with every problem told at once."""

from __future__ import annotations

import glob
import json
import math
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import InputError, did_you_mean
from .schema import KINDS, SECTIONS, SimulatePhotons, fill

TOP_LEVEL = ("seed",)
# Tables and lists in each other, at most.
_DEEPEST = 20


@dataclass(frozen=True)
class Config:
    """A config whose form was checked.

    Attributes:
        path: the file.
        raw: all keys as given, overrides applied.
        seed: of all randomness.
        sections: name -> the section's dataclass (see `schema`), for those with fixed keys;
            `data` and `selection` by their kind. Sections that were not given have their
            defaults, or are None where a key is required.
        problems: what is wrong so far.
    """

    path: Path
    raw: dict[str, Any]
    seed: int
    sections: dict[str, Any]
    problems: list[str]

    @property
    def folder(self) -> Path:
        """Where the config lies."""
        return self.path.parent

    @property
    def data_folder(self) -> Path:
        """`data.path` from the config's folder, or the folder of the file that it is."""
        return self.data_path.parent if self.data_path.is_file() else self.data_path

    @property
    def data_path(self) -> Path:
        """`data.path`, from the config's folder."""
        given = self.raw.get("data", {})
        path = given.get("path", ".") if isinstance(given, dict) else "."
        return self.folder / Path(path if isinstance(path, str) else ".").expanduser()

    def in_data(self, name: str) -> Path:
        """A file of the data folder."""
        return self.data_folder / Path(name).expanduser()

    def beside(self, name: str) -> Path:
        """A file beside the config."""
        return self.folder / Path(name).expanduser()

    def either(self, name: str) -> Path:
        """A file of the data folder, or else beside the config."""
        first = self.in_data(name)
        return first if first.exists() or not self.beside(name).exists() else self.beside(name)


def read_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a config, apply `section.key=value` overrides and check the form of all sections.

    Problems are collected in `Config.problems`; only a file that cannot be read, or an override
    that cannot be understood, ends it here.

    Raises:
        InputError: no such file, not TOML, or an override that is not `section.key=value`.
    """
    path = Path(path).expanduser().absolute()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"config '{path}' cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"config '{path}' is not a text file in UTF-8.") from None
    return parse_config(text, path, overrides)


def parse_config(text: str, path: Path, overrides: Iterable[str] = ()) -> Config:
    """`read_config` of a text; `path` says where its relative paths start."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers too long, and lists too deep, as well
        raise InputError(f"config '{path}' is not valid TOML: {error}.") from None
    for override in overrides:
        _override(raw, override)
    _check_extent(raw, path.name)
    problems: list[str] = []
    sections = _sections(raw, path.name, problems)
    seed = raw.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        problems.append(f"{path.name}: seed = {seed!r} is not a whole number of 0 or more.")
        seed = 0
    return Config(path, raw, seed, sections, problems)


def _check_extent(value: Any, where: str, depth: int = 0) -> None:
    """Raise where values are no config's: messages, and Python's floats, have no room for them."""
    if depth > _DEEPEST:
        raise InputError(f"{where[:100]}…: more than {_DEEPEST} tables or lists in each other.")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_extent(item, f"{where} {key}", depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_extent(item, where, depth + 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(
            f"{where}: a whole number that takes more than 64 bits; give a smaller one."
        )


def _sections(raw: Mapping[str, Any], name: str, problems: list[str]) -> dict[str, Any]:
    known = [*TOP_LEVEL, *SECTIONS]
    for key, value in raw.items():
        if key not in known:
            problems.append(
                f"{name}: there is no section or key '{key}'{did_you_mean(key, known)}; there are "
                f"{', '.join(known)}."
            )
        elif key in SECTIONS and not isinstance(value, dict):
            problems.append(f"{name}: '{key}' is a section; write [{key}] and its keys below it.")
    tables = {key: raw.get(key, {}) for key in SECTIONS}
    tables = {key: table if isinstance(table, dict) else {} for key, table in tables.items()}
    out: dict[str, Any] = {}
    for key, cls in SECTIONS.items():
        if cls is None:
            continue
        table = tables[key]
        if key == "population":  # other keys are options of the families
            fixed = [f.name for f in fields(cls)]
            table = {k: v for k, v in table.items() if k in fixed}
        if key == "simulate" and data_kind(raw) == "photons":
            cls = SimulatePhotons
        out[key] = fill(cls, table, f"{name} [{key}]", problems)
    out["data"] = _by_kind("data", tables["data"], name, problems, "posterior_samples")
    # What is not known by draws is most often a sample without selection.
    draws = data_kind(raw) == "posterior_samples"
    default = None if draws else "none"
    out["selection"] = _by_kind("selection", tables["selection"], name, problems, default)
    return out


def data_kind(raw: Mapping[str, Any]) -> str:
    """The kind of `[data]`, by default posterior samples."""
    table = raw.get("data", {})
    return str(table.get("kind", "posterior_samples") if isinstance(table, dict) else "")


def _by_kind(
    section: str, table: Mapping[str, Any], name: str, problems: list[str], default: str | None
) -> Any:
    where = f"{name} [{section}]"
    kind, kinds = table.get("kind", default), KINDS[section]
    if not isinstance(kind, str) or kind not in kinds:
        came = "'kind' is missing" if kind is None else f"kind = {kind!r} is not known"
        problems.append(
            f"{where}: {came}{did_you_mean(str(kind), kinds)}; give one of {', '.join(kinds)}."
        )
        return None
    rest = {k: v for k, v in table.items() if k != "kind"}
    return fill(kinds[kind], rest, where, problems)


def build(config: Config, *, provenance: Mapping[str, Any] | None = None) -> Any:
    """Read the data of a checked config and make the analysis, an `output.Inference`.

    Raises:
        InputError: every problem of the config at once; then the first problem of the data.
    """
    # Each kind of data imports its own libraries, which takes a second.
    kind = data_kind(config.raw)
    if kind == "posterior_samples":
        from .gw import build as build_kind
    elif kind == "photons":
        from .gamma import build as build_kind
    elif kind not in KINDS["data"]:
        raise InputError("\n".join(config.problems))
    else:
        from .stars import build as build_kind
    return build_kind(config, provenance=provenance)


def simulate_data(config: Config, out: str | Path, *, overwrite: bool = False) -> str:
    """Make the mock data of a config at `[truth]` in the folder `out`; says what was made.

    Raises:
        InputError: every problem of the config at once; a folder that cannot be written.
    """
    if data_kind(config.raw) == "photons":
        from .gamma import simulate as simulate_photons

        counts = simulate_photons(config, out, overwrite=overwrite)
        return ", ".join(f"{num} photons of {name}" for name, num in counts.items())
    from .simulate import simulate

    made = simulate(config, out, overwrite=overwrite)
    return f"{len(made.events)} events found of {made.num_mergers} mergers"


@contextmanager
def collecting(problems: list[str], where: str = "") -> Iterator[None]:
    """Append what an `InputError` says to `problems` instead of raising it."""
    try:
        yield
    except InputError as error:
        lines = str(error).split("\n")
        # "prior file 'p.json':" heads the lines that follow it.
        head = lines.pop(0) + " " if len(lines) > 1 and lines[0].endswith(":") else ""
        problems += [f"{where}{head}{line}" for line in lines]


# ---- overrides -----------------------------------------------------------------------------------


def _override(raw: dict[str, Any], text: str) -> None:
    """Put `section.key=value` into `raw`; the value in TOML's syntax, or a bare string."""
    key, equals, value = text.partition("=")
    keys = _split_key(key.strip()) if equals else None
    if keys is None:
        raise InputError(
            f"--set {text}: expected section.key=value, for example --set sampler.num_samples=500."
        )
    value = value.strip()
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        parsed = value
    table = raw
    for part in keys[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {text}: '{part}' is a value in the config, not a section.")
    table[keys[-1]] = _from_here(keys, parsed)


def _split_key(key: str) -> list[str] | None:
    """The parts of a dotted TOML key, quoted or not."""
    try:
        table: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return None
    parts = []
    while isinstance(table, dict) and len(table) == 1:
        part, table = next(iter(table.items()))
        parts.append(part)
    return parts if table == 0 else None


def _path_keys() -> dict[tuple[str, str], str]:
    """(section, key) -> what relative paths of that key are relative to."""
    classes: list[tuple[str, Any]] = [(k, c) for k, c in SECTIONS.items() if c is not None]
    classes += [(section, c) for section, kinds in KINDS.items() for c in kinds.values()]
    keys = {
        (section, f.name): f.metadata["path"]
        for section, cls in classes
        for f in fields(cls)
        if "path" in f.metadata
    }
    return keys | {("prior", "file"): "data", ("truth", "file"): "data"}


def _from_here(keys: list[str], value: Any) -> Any:
    """A path typed on the command line, from the current folder if it exists there."""
    of_density = keys[0] == "prior" and keys[-1] == "density"
    if tuple(keys) not in _path_keys() and not of_density:
        return value
    if isinstance(value, list):
        return [_from_here(keys, item) for item in value]
    if not isinstance(value, str) or not value:
        return value
    name, colon, function = value.partition(":") if ".py:" in value else (value, "", "")
    exists = glob.has_magic(name) and glob.glob(name)
    if exists or Path(name).expanduser().exists():
        return os.path.abspath(Path(name).expanduser()) + colon + function
    return value


# ---- writing -------------------------------------------------------------------------------------


def as_run(config: Config) -> dict[str, Any]:
    """The config's keys with paths made absolute, to be run again from anywhere."""
    out = {key: dict(v) if isinstance(v, dict) else v for key, v in config.raw.items()}
    out["seed"] = config.seed
    for (section, key), where in _path_keys().items():
        table = out.get(section)
        if isinstance(table, dict) and table.get(key):
            table[key] = _absolute(config, key, table[key], where)
    if isinstance(out.get("data"), dict):
        out["data"]["path"] = os.path.abspath(config.data_path)
    if isinstance(out.get("prior"), dict):
        out["prior"] = {k: _absolute_density(config, entry) for k, entry in out["prior"].items()}
    return out


def _absolute_density(config: Config, entry: Any) -> Any:
    """An entry of a prior, the file of a learned density with its whole path."""
    if isinstance(entry, dict) and set(entry) == {"density"}:
        return {"density": _absolute(config, "density", entry["density"], "data")}
    return entry


def _absolute(config: Config, key: str, value: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_absolute(config, key, item, where) for item in value]
    if not isinstance(value, str):
        return value
    if where == "config":
        return os.path.abspath(config.beside(value))
    if key in ("noise", "response") and not config.either(value).exists():
        return value  # the name of something built in, or of a public data set
    return os.path.abspath(config.in_data(value) if key == "events" else config.either(value))


def to_toml(table: Mapping[str, Any]) -> str:
    """Write nested tables as TOML: top-level tables as sections, deeper ones inline."""
    lines = [f"{_key(k)} = {_value(v)}" for k, v in table.items() if not isinstance(v, dict)]
    for name, section in table.items():
        if isinstance(section, dict):
            lines += ["", f"[{_key(name)}]"]
            lines += [f"{_key(k)} = {_value(v)}" for k, v in section.items()]
    return "\n".join(lines).lstrip("\n") + "\n"


def _key(name: str) -> str:
    bare = name and all(c.isascii() and (c.isalnum() or c in "-_") for c in name)
    return name if bare else _string(name)


def _string(text: str) -> str:
    # JSON's escapes are TOML's, but for the delete character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return _string(value) if isinstance(value, str) else str(value)
