r"""What an unfinished run has found so far, on disk: nothing is lost when the run is cut off.

A run that writes to `OUT` keeps its checkpoint in the folder `OUT.unfinished` beside it. The file
holds named arrays behind a checksum and the fingerprint of the problem; it is written beside its
place, flushed to the disk and renamed, and the one before it is kept.

A sampler whose log densities come from `samplers.evaluate` needs to do nothing: they are recorded
(`Record`), and the same command finds them again and goes through the same motions. One that keeps
its state elsewhere takes the keyword `checkpoint` of `run`, a `Part`:

    arrays = checkpoint.load()               # None at the beginning
    checkpoint.offer(lambda: arrays, "...")  # at every point where it could go on from
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import shlex
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .errors import InputError
from .folders import absolute, interrupts_wait, locked

Arrays = Mapping[str, Any]

_log = logging.getLogger(__name__)

_MAGIC = b"skycensus checkpoint 1\n"
_EVERY = 60.0

# A run that starts with less than this has no room for its results.
_LEAST_FREE = 2**25


class Part:
    """One part of a checkpoint: named arrays of a sampler, or of one of its runs."""

    def __init__(self, checkpoint: Checkpoint, name: str, time_limit: float = math.inf):
        self._checkpoint, self._name, self._time_limit = checkpoint, name, time_limit

    def part(self, name: str) -> Part:
        """A part of this part, with its time limit."""
        return Part(self._checkpoint, f"{self._name}.{name}", self._time_limit)

    def within(self, time_limit: float) -> Part:
        """This part for a run that has so many seconds in all, those before an interrupt too."""
        return Part(self._checkpoint, self._name, min(time_limit, self._time_limit))

    @property
    def time_is_up(self) -> bool:
        """Whether the run should end with what it has."""
        return self._checkpoint.spent >= self._time_limit

    def load(self) -> dict[str, np.ndarray] | None:
        """What was last offered here, by an interrupted run or this one; None where nothing was."""
        make = self._checkpoint._makers.get(self._name)
        return None if make is None else {name: np.asarray(x) for name, x in make().items()}

    def offer(self, make: Callable[[], Arrays], what: str) -> None:
        """Say that the run could go on from here, with `load` returning what `make` returns.

        `make` is called when a checkpoint is due, or later when the run is interrupted: it must
        then still describe this point. `what` tells it to the user ("step 30 of 100").
        """
        self._checkpoint._makers[self._name] = make
        self._checkpoint._what = what
        self._checkpoint._write_if_due()

    def save(self) -> None:
        """Write the checkpoint now."""
        self._checkpoint.write()


class Checkpoint:
    """The checkpoint of one run, in the file `path`; the one before is kept beside it.

    Args:
        path: the file; None keeps all in memory, for a run that goes on within this process.
        fingerprint: what the run depends on, in the types of JSON; nested mappings by name.
        every: seconds between two checkpoints (by default $SKYCENSUS_CHECKPOINT_SECONDS, or 60).

    Attributes:
        resumed: how often the run has been resumed.
        earlier: seconds spent on it before it was last resumed.

    Raises:
        InputError: the file is of another problem; what differs is named.
    """

    def __init__(
        self,
        path: Path | None = None,
        fingerprint: Mapping[str, Any] = MappingProxyType({}),
        *,
        every: float | None = None,
    ):
        self.path = path
        self._fingerprint = dict(_flat(fingerprint))
        self._every = _interval() if every is None else every
        self._began = self._written = time.monotonic()
        self._makers: dict[str, Callable[[], Arrays]] = {}
        self._what = ""
        self.resumed, self.earlier = 0, 0.0
        found = None if path is None else _newest(_files(path))
        if found is not None:
            self._resume(found)

    @property
    def folder(self) -> Path:
        """Where it lies: the folder of what is not finished."""
        assert self.path is not None
        return self.path.parent

    @property
    def spent(self) -> float:
        """Seconds of this run so far, those before it was resumed too."""
        return self.earlier + time.monotonic() - self._began

    @contextmanager
    def telling(self, command: str | None) -> Iterator[None]:
        """Add to an `InputError` how to go on with what was saved."""
        try:
            yield
        except InputError as error:
            if self.path is None or not saved(self.path):
                raise
            raise InputError(f"{error}\n{how_to_resume(self.folder, command)}") from None

    def part(self, name: str) -> Part:
        """The part of this name, which holds no slash."""
        return Part(self, name)

    def _resume(self, found: _Content) -> None:
        require_same(found.header["fingerprint"], self._fingerprint, str(self.folder))
        loaded: dict[str, dict[str, np.ndarray]] = {}
        for name, array in found.arrays.items():
            part, _, key = name.partition("/")
            loaded.setdefault(part, {})[key] = array
        # A part that this run has not come to again is carried along.
        self._makers = {p: lambda a=a: a for p, a in loaded.items()}  # type: ignore[misc]
        self.resumed = found.header["resumed"] + 1
        self.earlier = found.header["seconds"]
        self._what = found.header["what"]
        _log.info("resuming at %s (saved %s)", self._what, found.header["saved"])

    def _write_if_due(self) -> None:
        if self.path is not None and time.monotonic() - self._written >= self._every:
            self.write()

    @interrupts_wait()
    def write(self) -> bool:
        """Write what was last offered; whether there was anything and it is on the disk.

        Where it cannot be written, a line of the log says so and the last one stays.
        """
        if self.path is None or not self._makers:
            return False
        content = self._content()
        fresh = self.path.with_name(f"{self.path.name}.part")
        self._written = time.monotonic()
        try:
            with fresh.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            if self.path.exists():
                self.path.replace(_files(self.path)[1])
            fresh.replace(self.path)
            _sync_folder(self.folder)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink()
            kept = "the last one is kept" if saved(self.path) else "there is none"
            _log.warning("no checkpoint could be written: %s; %s.", error.strerror or error, kept)
            return False
        # Writing took its time too: no more than a small part of a run goes into it.
        self._written = time.monotonic()
        return True

    def _content(self) -> bytes:
        arrays = {
            f"{part}/{key}": np.asarray(array)
            for part, make in self._makers.items()
            for key, array in make().items()
        }
        payload = io.BytesIO()
        np.savez(payload, **arrays)  # type: ignore[arg-type]
        header = {
            "fingerprint": self._fingerprint,
            "what": self._what,
            "saved": time.strftime("%Y-%m-%d %H:%M:%S"),
            "seconds": self.spent,
            "resumed": self.resumed,
        }
        rest = json.dumps(header).encode() + b"\n" + payload.getvalue()
        return _MAGIC + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest


def _interval() -> float:
    given = os.environ.get("SKYCENSUS_CHECKPOINT_SECONDS", "") or str(_EVERY)
    try:
        return float(given)
    except ValueError:
        raise InputError(
            f"SKYCENSUS_CHECKPOINT_SECONDS='{given}' is not a number of seconds."
        ) from None


def _sync_folder(folder: Path) -> None:
    """Flush a renaming to the disk; not every system can open a folder."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# ---- reading -------------------------------------------------------------------------------------


class _Content(NamedTuple):
    header: dict[str, Any]
    arrays: dict[str, np.ndarray]


def _newest(files: tuple[Path, ...]) -> _Content | None:
    """The first of the files that is whole; None where there is none."""
    damaged = False
    for path in files:
        try:
            return _read(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            _log.warning("the checkpoint '%s' is damaged (%s) and not used.", path, error)
            damaged = True
    if damaged:
        _log.warning("there is no other checkpoint: the run starts anew.")
    return None


def _read(path: Path) -> _Content:
    magic, _, rest = path.read_bytes().partition(b"\n")
    if magic + b"\n" != _MAGIC:
        raise ValueError("it is none of this version")
    digest, _, rest = rest.partition(b"\n")
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        raise ValueError("its checksum is wrong")
    header, _, payload = rest.partition(b"\n")
    with np.load(io.BytesIO(payload), allow_pickle=False) as stored:
        return _Content(json.loads(header), dict(stored))


# ---- the same problem ----------------------------------------------------------------------------


def _flat(nested: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names; lists and tuples alike, as JSON has them."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", json.loads(json.dumps(value, default=str))


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: str) -> None:
    """Raise `InputError` naming in which entries two fingerprints differ."""
    missing = object()
    names = [n for n in {**before, **now} if before.get(n, missing) != now.get(n, missing)]
    if not names:
        return
    told = []
    for name in names[:5]:
        old, new = (str(values.get(name, "not there")) for values in (before, now))
        short = max(len(old), len(new)) < 40
        told.append(f"{name} was {old} and is {new}" if short else f"{name} has changed")
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    raise InputError(
        f"'{folder}' holds an unfinished run of another problem ({'; '.join(told)}{more}): give "
        "another folder for the results, or discard that run with restart=True (--restart)."
    )


# ---- the folder of an unfinished run -------------------------------------------------------------


@contextmanager
def unfinished(
    out: str | Path,
    fingerprint: Mapping[str, Any],
    *,
    restart: bool = False,
    command: str | None = None,
) -> Iterator[Checkpoint]:
    """The checkpoint of the run that writes to `out`, found again where one was interrupted.

    Its folder vanishes when the block ends well, or when nothing was saved in it. What an
    interrupt cuts off is saved first, and the exception has a note on how to resume.

    Args:
        out: the folder of the results.
        fingerprint: see `Checkpoint`.
        restart: discard what an interrupted run has left.
        command: by which the run can be resumed.

    Raises:
        InputError: another run is writing to `out`, the checkpoint is of another problem, or there
            is no space.
    """
    target = absolute(out)
    folder = target.with_name(f"{target.name}.unfinished")
    with locked(folder, f"'{target}'"):
        path, finished = folder / "checkpoint", False
        if restart:
            _remove(path)
        try:
            _require_space(folder)
            checkpoint = Checkpoint(path, fingerprint)
            yield checkpoint
            finished = True
        except InputError:
            raise
        except BaseException as error:
            checkpoint.write()
            if saved(path):
                error.add_note(how_to_resume(folder, command))
            raise
        finally:
            if finished or not saved(path):
                shutil.rmtree(folder, ignore_errors=True)


def how_to_resume(folder: Path, command: str | None) -> str:
    """One line for the user of a run whose checkpoint is in `folder`."""
    words = [word for word in shlex.split(command or "") if word != "--restart"]
    again = f"resume with: {shlex.join(words)}" if words else "run it again to resume"
    return f"what was found so far is in '{folder}'; {again}"


def saved(path: Path) -> bool:
    """Whether there is a checkpoint at `path`, or the one before it."""
    return any(file.exists() for file in _files(path))


def _files(path: Path) -> tuple[Path, Path]:
    return path, path.with_name(f"{path.name}.previous")


def _remove(path: Path) -> None:
    for file in _files(path):
        file.unlink(missing_ok=True)


def _require_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < _LEAST_FREE:
        raise InputError(
            f"only {free / 1e6:.0f} MB are free at '{folder.parent}', and a run may need "
            f"{_LEAST_FREE / 1e6:.0f} MB: free some, or give a folder elsewhere."
        )


# ---- state as arrays -----------------------------------------------------------------------------


def pack(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree as arrays by number; random keys as their data."""
    return {
        str(i): np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for i, leaf in enumerate(jax.tree.leaves(tree))
    }


def unpack(arrays: Mapping[str, np.ndarray], like: Any) -> Any:
    """The pytree that `pack` took apart; `like` has its structure, with arrays or their shapes."""

    def leaf(shape: Any, array: np.ndarray) -> jax.Array:
        if not _is_key(shape):
            return jnp.asarray(array)
        kind = jax.random.key_impl(jnp.zeros((), shape.dtype))
        return jax.random.wrap_key_data(jnp.asarray(array), impl=kind)

    shapes, structure = jax.tree.flatten(like)
    leaves = [leaf(shape, arrays[str(i)]) for i, shape in enumerate(shapes)]
    return jax.tree.unflatten(structure, leaves)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


# ---- log densities -------------------------------------------------------------------------------


class Record:
    """Log densities that were computed before, by the points that they were computed at.

    A point is asked for as one of an array: the same array gets the same rows.
    """

    def __init__(self, part: Part):
        self._part = part
        self._rows: dict[bytes, list[np.ndarray]] = {}
        self._num = 0
        self.first: tuple[np.ndarray, np.ndarray] | None = None
        stored = part.load()
        if stored is None:
            return
        ends = np.cumsum(stored["counts"])[:-1]
        blocks = np.split(stored["rows"], ends)
        self._rows = {d.tobytes(): [b] for d, b in zip(stored["points"], blocks, strict=True)}
        self._num = len(stored["rows"])
        self.first = stored["first_point"], stored["first_row"]

    def known(self, x: np.ndarray) -> np.ndarray:
        """The first rows for the points `x` (n, dim), as far as they are known; (m, 2)."""
        rows = self._rows.setdefault(self._name(x), [])
        return np.concatenate([np.empty((0, 2)), *rows])

    def add(self, x: np.ndarray, rows: np.ndarray) -> None:
        """The next rows for the points `x`."""
        if self.first is None and np.isfinite(rows[0]).all():
            self.first = x[0], rows[0]
        self._rows[self._name(x)].append(rows)
        self._num += len(rows)
        self._part.offer(self._arrays, f"evaluation {self._num}")

    @staticmethod
    def _name(x: np.ndarray) -> bytes:
        return hashlib.blake2b(x.tobytes(), digest_size=16).digest()

    def _arrays(self) -> dict[str, np.ndarray]:
        blocks = [np.concatenate([np.empty((0, 2)), *rows]) for rows in self._rows.values()]
        names = b"".join(self._rows)
        point, row = self.first or (np.empty(0), np.empty(0))
        return {
            "points": np.frombuffer(names, np.uint8).reshape(-1, 16),
            "counts": np.array([len(block) for block in blocks]),
            "rows": np.concatenate([np.empty((0, 2)), *blocks]),
            "first_point": point,
            "first_row": row,
        }
