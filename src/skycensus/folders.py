"""Folders and files of results, in their place whole or not at all."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import InputError

try:
    import fcntl
except ImportError:  # Windows, where runs are not kept apart
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of `folder`, which is made; the system drops it however the process ends.

    Args:
        folder: for which there is one lock.
        what: is written to by who holds it, in the message to others.

    Raises:
        InputError: another process holds it, or the folder cannot be written to.
    """
    try:
        descriptor = _take_lock(folder, what)
    except OSError as error:
        raise cannot_write(folder, error) from None
    try:
        yield
    finally:
        os.close(descriptor)


def _take_lock(folder: Path, what: str) -> int:
    path = folder / "lock"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # the folder was removed by a run that has just ended
        try:
            _lock(descriptor)
            # Who held it before may have removed the file meanwhile.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace") or "a process"
            os.close(descriptor)
            raise InputError(
                f"another run ({holder}) is writing to {what}: let it finish, stop it, or give "
                "another folder."
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks: better without one than not at all.
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let an interrupt come only when the block has ended.

    For what must not stop half-way, and for libraries which answer an interrupt with an error of
    their own while they clean up (`zipfile`: a file in the archive is still open).
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # to which no signal comes
        return
    came: list[tuple[int, Any]] = []
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {int(number): handler for number, handler in found.items() if callable(handler)}
    try:
        for number in before:
            signal.signal(number, lambda *signalled: came.append(signalled))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number, frame in came[:1]:
            before[number](number, frame)


@contextmanager
def new_folder(
    out: str | Path, mark: str, *, overwrite: bool = False, inside: Path | None = None
) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends, and vanishes when it fails.

    Args:
        out: must not exist, or be empty, or with `overwrite` hold the file `mark`.
        mark: the file by which an earlier folder of the same kind is known.
        overwrite: whether such a folder may be replaced.
        inside: where it is made, on the same file system; by default the folder that `out` is in.

    Raises:
        InputError: `out` exists, or cannot be written to.
    """
    target = absolute(out)
    check_folder(target, mark, overwrite=overwrite)
    try:
        # One level below, because only a folder with no content of its own may be renamed over.
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=inside or target.parent))
    except OSError as error:
        raise cannot_write(target.parent, error) from None
    fresh, old = work / "new", work / "old"
    try:
        fresh.mkdir()
        yield fresh
        with interrupts_wait():
            if target.exists():
                target.rename(old)
            fresh.rename(target)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        raise cannot_write(target, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_folder(out: str | Path, mark: str, *, overwrite: bool = False) -> None:
    """Raise `InputError` unless a folder can be put at `out`; makes the folder above it."""
    target = absolute(out)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"'{target}' is not a folder; give another one.")
    if target.is_dir() and any(target.iterdir()):
        if not (target / mark).is_file():
            raise InputError(
                f"'{target}' holds something other than earlier results (there is no {mark}); give "
                "another folder."
            )
        if not overwrite:
            raise InputError(
                f"'{target}' holds earlier results; give another folder, or replace them with "
                "overwrite=True (--overwrite)."
            )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise cannot_write(target.parent, error) from None


def absolute(out: str | Path) -> Path:
    """`out` as an absolute path, without following links."""
    return Path(os.path.abspath(Path(out).expanduser()))


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file in its place, whole or not at all.

    Raises:
        OSError: the folder cannot be written to, or is full; nothing is left of the file.
    """
    # In the same folder, because a rename is atomic only within a file system.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def cannot_write(path: Path, error: OSError) -> InputError:
    """What to tell a user whose folder cannot be written to."""
    return InputError(
        f"cannot write to '{path}': {error.strerror or error}; choose a folder that is writable "
        "and has space."
    )
