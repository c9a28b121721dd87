"""Named public data sets: fetched once, verified by hash, kept in the user's cache.

    path("pppc")            where the file is, fetched if need be
    add("pppc", "FILE")     the same from a file at hand, on a machine without network

The folder is `skycensus/data` in the user's cache folder, or $SKYCENSUS_DATA.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError, did_you_mean


@dataclass(frozen=True)
class Source:
    """Where an archive comes from: a package index, through pip, or an address.

    Attributes:
        file: name of the archive.
        where: `pip:` and a requirement, or a URL.
        sha256: of the archive; None where only what is in it is known.
    """

    file: str
    where: str
    sha256: str | None = None

    @property
    def recipe(self) -> str:
        """What a user does on a machine with a network."""
        if self.where.startswith("pip:"):
            return f"pip download --no-deps {self.where.removeprefix('pip:')}"
        return self.where


@dataclass(frozen=True)
class DataSet:
    """One data set: a file in an archive that any of several sources has.

    Attributes:
        file: its name in the archive and in the cache; a `.tar.gz` is unpacked.
        sha256: of the file.
        about, licence, citation, origin: for users, shown and written beside the file.
        sources: in the order in which they are tried.
    """

    file: str
    sha256: str
    about: str
    licence: str
    citation: str
    origin: str
    sources: tuple[Source, ...]


WHEEL = Source(
    "GammaBayes-0.1.9-py3-none-any.whl",
    "pip:gammabayes==0.1.9",
    "1746aace8296aba0db60c77395dd66a9f59248a268f2541599e53bfc00c176be",
)
ZENODO = Source(
    "cta-prod5-zenodo-fitsonly-v0.1.zip",
    "https://zenodo.org/records/5499840/files/cta-prod5-zenodo-fitsonly-v0.1.zip",
)
_IN_WHEEL = "the Python package gammabayes 0.1.9 (MIT), of which nothing is imported"

_CTAO_SHA256 = {
    "North-20deg": "e2d0e7d110321e9bf503928d38c30aa555b784d5ad98da095a39e66a2150c345",
    "North-40deg": "d72c2b6c9135ca9a40b459ce96f08d37d373ae792997560780a108dcb4c12f0b",
    "North-60deg": "4ca9401fc62eff5cf86099afbaeea78907dd86157b9806c6601a19d0dab80391",
    "North-LSTSubArray-20deg": "37deaaaa3afa466d47662a731c3acda8088e89942cc9d5e5f8fbd86a2601fb30",
    "North-LSTSubArray-40deg": "32a3178194f38201514ab694e8bf9643ac00f82c88cbe8e23c432aa5ffcc5496",
    "North-LSTSubArray-60deg": "bff99c989368c477c3befa018e0583ec295e6339ce2cbf80343c0c772c6bc4cc",
    "North-MSTSubArray-20deg": "c3be90a505939def00a1b9016bb25ff610a282539de6f532520a8d1e0f091105",
    "North-MSTSubArray-40deg": "ea122ae41618000bc182457f97e22a37318460b3ae0761d7292460aa41ff2728",
    "North-MSTSubArray-60deg": "90722b756a21390ce2886b59090b53ebc401c53ccf84a0aac47de7b3864c5d16",
    "South-20deg": "0babe973cee35cab34daf5401ac16479cf7fc57a8070764ea2c28c3c783cc799",
    "South-40deg": "91a73d617d78ef9961a9ccb4694ec574310b76b8bd78c91307a88354a33a905a",
    "South-60deg": "13df0f8f6919fea5e68dd85a0dd15be7758e1682fd410f49d9262f2b45509345",
    "South-MSTSubArray-20deg": "79ddf19793b44353d35331bb148c94a65bd6e9ae95b1804fbabd9688e4855ab9",
    "South-MSTSubArray-40deg": "a596f883bf086cafc86ae66a7457843691a27bd578a126f25bd9c3dc3f6e9051",
    "South-MSTSubArray-60deg": "8d7f1b9017b67930222cd1d4cc9cccafd477fa0248efbf9ec70706e778488343",
    "South-SSTSubArray-20deg": "e050eeb0f943147f75203d64ee47f5fd5cc89bff4937f8490bf800ccfdaf2320",
    "South-SSTSubArray-40deg": "a81e6a91b27d7a32decfa3c84f883cb6f72f7862da10341174944dbe5768234d",
    "South-SSTSubArray-60deg": "0297ef94633a66d748982e0480c51319c7dd12ec15f09edb7ace64b5289c1f45",
}


def _ctao(array: str, sha256: str) -> DataSet:
    site, *sub_array, zenith = array.split("-")
    part = f", {sub_array[0].removesuffix('SubArray')}s only" if sub_array else ""
    return DataSet(
        file=f"CTA-Performance-prod5-v0.1-{array}.FITS.tar.gz",
        sha256=sha256,
        about="CTAO instrument response functions, prod5 v0.1: "
        f"{site}, zenith angle {zenith.removesuffix('deg')}°{part}",
        licence="CC BY 4.0",
        citation="Cherenkov Telescope Array Observatory & Consortium 2021, "
        "doi:10.5281/zenodo.5499840; acknowledge: 'This research has made use of the CTA "
        "instrument response functions provided by the CTA Consortium and Observatory, see "
        "https://www.ctao-observatory.org/science/cta-performance/ (version prod5 v0.1; "
        "[citation]) for more details.'",
        origin=f"Zenodo record 5499840, also in {_IN_WHEEL}",
        sources=(WHEEL, ZENODO),
    )


_NO_LICENCE = "none stated: cite, and ask its authors before passing it on"

SETS: dict[str, DataSet] = {
    "pppc": DataSet(
        file="AtProduction_gamma_EW_corrections.dat",
        sha256="64d9467aa7e643b7a8dab4bf783bea12d3bc18c2aa64e8adba45db9b6824fda6",
        about="PPPC 4 DM ID: photons of one annihilation, by channel and mass, with electroweak "
        "corrections",
        licence=_NO_LICENCE,
        citation="Cirelli et al. 2011, JCAP 03 (2011) 051, arXiv:1012.4515; Ciafaloni et al. 2011, "
        "JCAP 03 (2011) 019, arXiv:1009.0224",
        origin=f"http://www.marcocirelli.net/PPPC4DMID.html, from {_IN_WHEEL}",
        sources=(WHEEL,),
    ),
    "singlet-darksusy": DataSet(
        file="annihilation_ratios__darkSUSY.csv",
        sha256="6bcca55a1d1dc7d348e6951f9f547e8fccefd0d8ef270ecac4b19fcea109d64e",
        about="Z2 scalar singlet: annihilation cross sections by channel, over mass and coupling, "
        "by DarkSUSY",
        licence="MIT, with the package",
        citation="the package, and Bringmann et al. 2018, arXiv:1802.03399 (DarkSUSY)",
        origin=_IN_WHEEL,
        sources=(WHEEL,),
    ),
    "singlet-dimauro": DataSet(
        file="annihilation_ratios__dimauromattia.csv",
        sha256="aae52d55ce485d75fe99d710f8dfa9d926df8b454d702b0f907a7157b030b357",
        about="Z2 scalar singlet: the same by M. Di Mauro, on a coarser grid",
        licence="MIT, with the package",
        citation="the package; the file names no paper",
        origin=_IN_WHEEL,
        sources=(WHEEL,),
    ),
    "z5": DataSet(
        file="z5_101x101_ratios.h5",
        sha256="ee6ceb2551b11d7498d739f796d34fc9d8f2000770fbfa0f2f3534ef5f401809",
        about="Z5 model of two dark particles: annihilation ratios over both masses",
        licence="MIT, with the package",
        citation="the package, and Bélanger et al. 2020, arXiv:2006.14922 (the model)",
        origin=_IN_WHEEL,
        sources=(WHEEL,),
    ),
    "hgps": DataSet(
        file="hgps_catalog_v1.fits.gz",
        sha256="ab4cc48c3f293e9e60f0729763d98208ca7f667ad4e31868bb68d94bba191e6d",
        about="H.E.S.S. Galactic plane survey: catalogue of sources",
        licence=_NO_LICENCE,
        citation="H.E.S.S. Collaboration 2018, A&A 612, A1, arXiv:1804.02432",
        origin=f"the H.E.S.S. Collaboration, from {_IN_WHEEL}",
        sources=(WHEEL,),
    ),
    "fermi-diffuse": DataSet(
        file="gll_iem_v06_gc.fits.gz",
        sha256="59906fa40eae7ae1e87496dec569b65e3586ec1c63acf163d9b7bbfda0d2ea35",
        about="Fermi-LAT Galactic diffuse emission gll_iem_v06, cut out about the Galactic centre",
        licence=_NO_LICENCE,
        citation="Acero et al. 2016, ApJS 223, 26, arXiv:1602.07246",
        origin=f"the Fermi-LAT Collaboration, from {_IN_WHEEL}",
        sources=(WHEEL,),
    ),
} | {
    "ctao-prod5-" + array.lower().replace("subarray", ""): _ctao(array, sha256)
    for array, sha256 in _CTAO_SHA256.items()
}


def folder() -> Path:
    """Where data sets are kept: $SKYCENSUS_DATA, else `skycensus/data` in the user's cache."""
    if given := os.environ.get("SKYCENSUS_DATA", ""):
        return Path(given)
    import pooch

    return Path(pooch.os_cache("skycensus")) / "data"


def path(name: str) -> Path:
    """Return the file of a data set, or the folder that it was unpacked to; fetch it if need be.

    Raises:
        InputError: no such data set, or it is not here and cannot be fetched.
    """
    known = _find(name)
    if _is_here(known):
        return _place(known)
    failures = []
    for source in known.sources:
        try:
            archive = _fetch(source)
        except (OSError, ValueError) as error:
            failures.append(f"{source.recipe}: {error}")
            continue
        try:
            return _keep(name, known, archive)
        except InputError as error:
            archive.unlink(missing_ok=True)
            failures.append(f"{error} It was deleted")
    recipes = ", or ".join(source.recipe for source in known.sources)
    raise InputError(
        f"data set '{name}' is not in {folder()} and could not be fetched ({'; '.join(failures)}). "
        f"On a machine with a network get {known.sources[0].file} ({recipes}), then: "
        f"skycensus data {name} --from FILE"
    )


def add(name: str, file: str | Path) -> Path:
    """Take a data set from a file at hand: the file itself, or an archive that holds it.

    Raises:
        InputError: no such data set or file, or its contents are not those expected; what was in
            the cache before stays, and so does `file`.
    """
    known = _find(name)
    file = Path(file)
    if not file.is_file():
        raise InputError(f"{file}: no such file; check the path.")
    return _keep(name, known, file)


def described(name: str) -> str:
    """What a data set is, whether it is here, its licence, citation and origin, in a few lines."""
    known = _find(name)
    state = f"in {_place(known)}" if _is_here(known) else "not fetched yet"
    return f"{name}: {_about(known)}  {state}"


def _about(known: DataSet) -> str:
    return (
        f"{known.about}\n  licence: {known.licence}\n  cite: {known.citation}\n"
        f"  origin: {known.origin}\n"
    )


def _find(name: str) -> DataSet:
    if name not in SETS:
        raise InputError(
            f"no data set '{name}'{did_you_mean(name, SETS)}; skycensus data --list names them."
        )
    return SETS[name]


def _place(known: DataSet) -> Path:
    return folder() / known.file.removesuffix(".tar.gz")


def _is_here(known: DataSet) -> bool:
    place = _place(known)
    # A folder is put in place whole, after its archive was verified.
    return place.is_dir() or (place.is_file() and _sha256(place) == known.sha256)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# ---- fetching ------------------------------------------------------------------------------------


def _fetch(source: Source) -> Path:
    """The archive in the cache folder, fetched unless it is there.

    Raises:
        OSError: no connection, or nothing there.
        ValueError: a wrong hash; the download is deleted.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    by_pip = source.where.startswith("pip:")
    fetched = pooch.retrieve(
        source.where,
        known_hash=f"sha256:{source.sha256}" if source.sha256 else None,
        fname=source.file,
        path=folder(),
        downloader=_download_by_pip if by_pip else _download,
    )
    return Path(fetched)


def _download_by_pip(where: str, output_file: str, pooch: Any) -> None:
    """A wheel as a file, from whichever index this machine's pip is set up for."""
    del pooch
    requirement = where.removeprefix("pip:")
    with tempfile.TemporaryDirectory(dir=folder()) as fresh:
        command = ["download", "--no-deps", "--retries", "1", "--dest", fresh, requirement]
        run = subprocess.run([*_pip(), *command], capture_output=True, text=True, check=False)
        wheels = list(Path(fresh).glob("*.whl"))
        if run.returncode or not wheels:
            last = [line for line in run.stderr.splitlines() if line.strip()][-1:]
            raise OSError(f"pip found no way to it ({''.join(last).strip() or 'no message'})")
        os.replace(wheels[0], output_file)


def _pip() -> list[str]:
    """This interpreter's pip, else any, for an environment made by uv has none."""
    own = [sys.executable, "-m", "pip"]
    if subprocess.run([*own, "--version"], capture_output=True, check=False).returncode == 0:
        return own
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    if found := shutil.which("uv"):
        return [found, "tool", "run", "pip"]
    raise OSError("there is no pip on this machine")


def _download(url: str, output_file: str, pooch: Any) -> None:
    """A file by HTTP; one that was cut off goes on where it was, if the server can."""
    del pooch
    part = folder() / (url.rsplit("/", 1)[-1] + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            goes_on = response.status == 206
            expected = int(response.headers.get("Content-Length") or 0)
            with part.open("ab" if goes_on else "wb") as file:
                start = file.tell()
                shutil.copyfileobj(response, file, 1 << 20)
                written = file.tell() - start
    except urllib.error.HTTPError as error:
        if error.code == 416:
            # Nothing beyond what is there, or another file by now: the next attempt begins anew.
            part.unlink()
        raise
    if written < expected:
        raise OSError(f"the connection broke after {written} of {expected} bytes; try again")
    os.replace(part, output_file)


# ---- keeping -------------------------------------------------------------------------------------


def _keep(name: str, known: DataSet, file: Path) -> Path:
    """Put a data set in its place out of `file`, verified, whole or not at all."""
    base = folder()
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base) as work:
        fresh = Path(work) / known.file
        with _opened(known, file) as opened, fresh.open("wb") as out:
            shutil.copyfileobj(opened, out, 1 << 20)
        if (found := _sha256(fresh)) != known.sha256:
            raise InputError(
                f"{file}: not the data set '{name}': its {known.file} has the sha256 {found}, and "
                f"{known.sha256} is expected. Get it anew: {known.sources[0].recipe}"
            )
        place = _place(known)
        if place.name != known.file:
            fresh = _unpacked(fresh, Path(work) / place.name)
            if place.exists():
                return place
        notes = Path(work) / "notes"
        notes.write_text(_about(known) + f"  sha256: {known.sha256} ({known.file})\n")
        os.replace(notes, place.with_name(place.name + ".about.txt"))
        os.replace(fresh, place)
    return place


@contextmanager
def _opened(known: DataSet, file: Path) -> Iterator[Any]:
    """The data set as a stream: `file` itself, or what has its name in a zip archive or wheel."""
    if not zipfile.is_zipfile(file):
        with file.open("rb") as opened:
            yield opened
        return
    with zipfile.ZipFile(file) as archive:
        members = [m for m in archive.namelist() if m.rsplit("/", 1)[-1] == known.file]
        if not members:
            raise InputError(
                f"{file}: no {known.file} in this archive; it is in {known.sources[0].file}."
            )
        with archive.open(members[0]) as opened:
            yield opened


def _unpacked(archive: Path, fresh: Path) -> Path:
    fresh.mkdir()
    with tarfile.open(archive) as opened:
        opened.extractall(fresh, filter="data")
    return fresh


def listing() -> str:
    """All data sets, as `skycensus data --list` prints them."""
    return "\n".join(described(name) for name in SETS)
