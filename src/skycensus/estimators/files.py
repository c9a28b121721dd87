r"""Learned densities in files: JSON and plain arrays in one archive, nothing that can run."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..folders import write_whole
from .coordinates import Coordinates
from .kinds import describe_parts, rebuild_parts
from .learned import LearnedDensity
from .report import Report

_FORMAT = "skycensus density"
_VERSION = 2
_HEAD = "density.json"
# Of entries of the archive: the same density gives the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)
_ARRAYS_OF_COORDINATES = ("low", "high", "cut", "mean", "root")

_READERS = {_FORMAT: "load_density", "skycensus conditional density": "ConditionalDensity.load"}

Arrays = Mapping[str, np.ndarray]


def save_density(density: LearnedDensity, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a density to one file, in its place whole or not at all; see `archive`.

    Raises:
        InputError: the file exists and `overwrite` is not set, or it cannot be written.
    """
    return write_new(path, lambda: density_bytes(density), overwrite=overwrite)


def write_new(path: str | Path, content: Callable[[], bytes], *, overwrite: bool) -> Path:
    """Write what `content` returns to a file that is new, or may be written over.

    Raises:
        InputError: it exists and `overwrite` is not set, or it cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(
            f"'{path}' exists already; give another name, or overwrite=True (--overwrite)."
        )
    whole = content()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, whole)
    except OSError as error:
        raise InputError(f"'{path}' cannot be written: {error.strerror}.") from None
    return path


def density_bytes(density: LearnedDensity) -> bytes:
    """What `save_density` writes."""
    every = {"estimate": density.estimate}
    every |= {f"bootstrap {k}": one for k, one in enumerate(density.bootstrap)}
    settings, inner = describe_parts(every)
    arrays = {name: np.asarray(x) for name, x in inner.items()}
    head = {
        "names": list(density.names),
        "periodic": list(density.coordinates.periodic),
        "estimates": settings,
        "report": None if density.report is None else density.report.as_dict(),
        "provenance": density.provenance,
    }
    return archive(_FORMAT, head, arrays | arrays_of(density.coordinates, "coordinates"))


def arrays_of(coordinates: Coordinates, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of coordinates, as "prefix/name"."""
    return {f"{prefix}/{n}": np.asarray(getattr(coordinates, n)) for n in _ARRAYS_OF_COORDINATES}


def coordinates_of(arrays: Arrays, prefix: str, periodic: Sequence[bool]) -> Coordinates:
    """The inverse of `arrays_of`."""
    found = {name: arrays[f"{prefix}/{name}"] for name in _ARRAYS_OF_COORDINATES}
    made = Coordinates(found["low"], found["high"], periodic=periodic)
    return eqx.tree_at(
        lambda c: [getattr(c, name) for name in _ARRAYS_OF_COORDINATES],
        made,
        [jnp.asarray(x) for x in found.values()],
    )


def archive(kind: str, head: Mapping[str, Any], arrays: Arrays) -> bytes:
    """A ZIP archive of `density.json` and one `.npy` entry per array.

    The head says which `kind` of file and version it is, and has a SHA-256 of the arrays. No draws
    are in it, and nothing that is executed.
    """
    whole = {"format": kind, "version": _VERSION, **head, "sha256": _digest(arrays)}
    entries = {_HEAD: json.dumps(whole, indent=1).encode()}
    for name, x in arrays.items():
        stream = io.BytesIO()
        np.lib.format.write_array(stream, x, allow_pickle=False)
        entries[f"{name}.npy"] = stream.getvalue()
    return packed(entries)


def packed(entries: Mapping[str, bytes]) -> bytes:
    """A ZIP archive of the entries; the same entries give the same bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name, _DATE)
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED, 6)
    return stream.getvalue()


def load_density(path: str | Path) -> LearnedDensity:
    """Read a file of `save_density`: the same density to the bit (where JAX has 64 bits).

    Raises:
        InputError: a file that is missing, truncated, changed, of another format or of a version
            that is not known.
    """
    head, arrays = read_archive(path, _FORMAT)
    with parts_of(path):
        estimate, *bootstrap = rebuild_parts(head["estimates"], arrays).values()
        return LearnedDensity(
            head["names"],
            coordinates_of(arrays, "coordinates", head["periodic"]),
            estimate,
            bootstrap=bootstrap,
            report=None if head["report"] is None else Report.from_dict(head["report"]),
            provenance=head["provenance"],
        )


@contextmanager
def parts_of(path: str | Path) -> Iterator[None]:
    """What is missing within is told as a fault of the file."""
    try:
        yield
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"'{path}' lacks a part of a learned density ({error}); fit it again."
        ) from None


def read_archive(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The head and the arrays of a file of `archive`.

    Raises:
        InputError: a file that is missing, truncated, changed, of another kind or of a version
            that is not known.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            head = json.loads(archive.read(_HEAD))
            _check_head(path, head, kind)
            arrays = {}
            for name in archive.namelist():
                if name.endswith(".npy"):
                    content = io.BytesIO(archive.read(name))
                    x = np.lib.format.read_array(content, allow_pickle=False)
                    arrays[name.removesuffix(".npy")] = x
    except OSError as error:
        raise InputError(f"density '{path}' cannot be read: {error.strerror}.") from None
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError):
        raise InputError(
            f"'{path}' is no density of skycensus, or only a part of one; copy it again, or fit it "
            "again."
        ) from None
    except KeyError:
        raise InputError(
            f"'{path}' is an archive, but no density of skycensus ({_HEAD} is missing); give a "
            "file that density.save or skycensus fit has written."
        ) from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"'{path}' is damaged ({error}); copy it again.") from None
    if _digest(arrays) != head["sha256"]:
        raise InputError(
            f"'{path}' was changed after it was written: its arrays do not have the checksum that "
            "it states; copy it again."
        )
    return head, arrays


def _check_head(path: Path, head: Any, kind: str) -> None:
    found = head.get("format") if isinstance(head, dict) else None
    if found != kind:
        raise InputError(
            f"'{path}' is no file of a {kind}"
            + (f", but of a {found}" if found else "")
            + f"; give one, or read it with {_READERS.get(str(found), 'what has written it')}."
        )
    if head.get("version") != _VERSION:
        raise InputError(
            f"'{path}' has format version {head.get('version')}, and this skycensus knows version "
            f"{_VERSION}; update skycensus, or fit the density again."
        )


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        x = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {x.dtype.str} {arrays[name].shape}\n".encode())
        digest.update(x.tobytes())
    return digest.hexdigest()
