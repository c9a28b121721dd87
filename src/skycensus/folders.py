"""A folder of results, in its place whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


@contextmanager
def new_folder(out: str | Path, mark: str, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends, and vanishes when it fails.

    Args:
        out: must not exist, or be empty, or with `overwrite` hold the file `mark`.
        mark: the file by which an earlier folder of the same kind is known.
        overwrite: whether such a folder may be replaced.

    Raises:
        InputError: `out` exists, or cannot be written to.
    """
    target = Path(os.path.abspath(Path(out).expanduser()))
    check_folder(target, mark, overwrite=overwrite)
    try:
        # One level below, because only a folder with no content of its own may be renamed over.
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise _cannot_write(target.parent, error) from None
    fresh, old = work / "new", work / "old"
    try:
        fresh.mkdir()
        yield fresh
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_folder(out: str | Path, mark: str, *, overwrite: bool = False) -> None:
    """Raise `InputError` unless a folder can be put at `out`; makes the folder above it."""
    target = Path(os.path.abspath(Path(out).expanduser()))
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
        raise _cannot_write(target.parent, error) from None


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write to '{path}': {error.strerror or error}; choose a folder that is writable "
        "and has space."
    )
