"""The folder of results and its lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from skycensus import InputError
from skycensus.folders import (
    absolute,
    check_folder,
    interrupts_wait,
    locked,
    new_folder,
    write_whole,
)

MARK = "mark"


def test_a_folder_appears_whole(tmp_path):
    out = tmp_path / "out"
    with new_folder(out, MARK) as folder:
        (folder / MARK).write_text("new")
        assert not out.exists()
    assert (out / MARK).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_fails_leaves_the_earlier_one(tmp_path):
    out, inside = tmp_path / "out", tmp_path / "inside"
    out.mkdir()
    inside.mkdir()
    (out / MARK).write_text("old")
    with pytest.raises(ValueError), new_folder(out, MARK, overwrite=True, inside=inside) as folder:
        assert folder.is_relative_to(inside)
        raise ValueError
    assert (out / MARK).read_text() == "old"
    assert list(inside.iterdir()) == []


def test_an_interrupt_waits_for_the_end_of_a_block():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_wait():
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_is_there_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        check_folder(tmp_path / "file", MARK)
    with pytest.raises(InputError, match="there is no mark"):
        check_folder(tmp_path, MARK, overwrite=True)
    (tmp_path / MARK).write_text("")
    with pytest.raises(InputError, match="--overwrite"):
        check_folder(tmp_path, MARK)
    check_folder(tmp_path, MARK, overwrite=True)


def test_paths_from_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("~/out") == tmp_path / "out"


def test_a_lock_is_held_by_one(tmp_path):
    folder = tmp_path / "locked"
    refused = pytest.raises(InputError, match=rf"process {os.getpid()} .*is writing to 'out'")
    with locked(folder, "'out'"), refused, locked(folder, "'out'"):
        pytest.fail("two at a time")
    with locked(folder, "'out'"):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from skycensus.folders import locked\n"
        "with locked(Path(sys.argv[1]), 'out'):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == -9
    assert (tmp_path / "lock").exists()
    with locked(tmp_path, "'out'"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_has_no_lock(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write"), locked(tmp_path / "a", "'out'"):
        pytest.fail("read-only")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    # A folder in its place cannot be replaced; what was written beside it goes again.
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "taken", b"three")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "taken"}
