from __future__ import annotations

import json
import zipfile

import jax
import numpy as np
import pytest

from skycensus import InputError
from skycensus.estimators import fit_density, load_density


@pytest.fixture(scope="module")
def density():
    rng = np.random.default_rng(0)
    draws = {"a": rng.uniform(size=200), "b": rng.normal(size=200)}
    return fit_density(jax.random.key(0), draws, kind="gaussian", support={"a": (0.0, 1.0)})


@pytest.fixture
def saved(density, tmp_path):
    return density.save(tmp_path / "a.skc")


def test_all_that_is_known_of_it_comes_back(density, saved):
    again = load_density(saved)
    assert again.names == density.names and again.bounds == density.bounds
    assert again.provenance == density.provenance
    assert again.report.as_dict() == density.report.as_dict()


def test_nothing_is_overwritten_unasked(density, saved):
    with pytest.raises(InputError, match=r"exists already.*--overwrite"):
        density.save(saved)
    density.save(saved, overwrite=True)


def rewritten(path, change):
    """The archive with `change(name, content)` in the place of every entry."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            if (new := change(name, content)) is not None:
                archive.writestr(name, new)
    return path


def with_version(name, content):
    if name != "density.json":
        return content
    return json.dumps({**json.loads(content), "version": 99}).encode()


def with_other_numbers(name, content):
    return content[:-8] + bytes(8) if name == "coordinates/mean.npy" else content


def without_head(name, content):
    return None if name == "density.json" else content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_version, "format version 99, and this skycensus knows version 2; update skycensus"),
        (with_other_numbers, "was changed after it was written"),
        (without_head, "is an archive, but no density of skycensus"),
    ],
)
def test_files_that_were_changed_are_told(saved, change, message):
    with pytest.raises(InputError, match=message):
        load_density(rewritten(saved, change))


def test_truncated_foreign_and_missing_files_are_told(saved, tmp_path):
    content = saved.read_bytes()
    saved.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="or only a part of one; copy it again"):
        load_density(saved)
    saved.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="is no density of skycensus"):
        load_density(saved)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_density(tmp_path / "none.skc")
