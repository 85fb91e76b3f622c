"""Public logs by URL, size and checksum, fetched whole or not at all.

MovieLens forbids redistribution and Amazon Reviews are large, so nothing is shipped: each log is fetched from its
owner, after its licence has been shown. `size` and `digest` are None where the owner replaces the file in place or
where we know no published value: such an entry is not pinned, its body is only held against the Content-Length.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from lsat_ray.errors import LsatError

OFFLINE = "LSAT_RAY_OFFLINE"
"""Environment variable that forbids downloads when it is `1`."""
CHUNK = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One file of a public log."""

    url: str
    """Where its owner keeps it."""
    licence: str
    """What a user agrees to."""
    size: int | None = None
    """Bytes, None when not pinned."""
    digest: str | None = None
    """`md5:...` or `sha256:...` in hex, None when not pinned."""

    @property
    def filename(self) -> str:
        """Last part of the URL."""
        return PurePosixPath(self.url).name


GROUPLENS = "https://files.grouplens.org/datasets/movielens/"
GROUPLENS_LICENCE = (
    "MovieLens data, GroupLens, University of Minnesota: research use; no commercial use or redistribution without "
    "permission; cite Harper and Konstan (2015). Full terms: README in the archive and "
    "https://grouplens.org/datasets/movielens/"
)
AMAZON = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/"
AMAZON_LICENCE = (
    "Amazon Reviews 2018, McAuley Lab, UC San Diego: research use; cite Ni, Li and McAuley (EMNLP 2019). "
    "Terms: https://nijianmo.github.io/amazon/"
)

SOURCES: dict[str, Source] = {
    "ml-100k": Source(GROUPLENS + "ml-100k.zip", GROUPLENS_LICENCE, digest="md5:0e33842e24a9c977be4e0107933c0723"),
    "ml-1m": Source(GROUPLENS + "ml-1m.zip", GROUPLENS_LICENCE, digest="md5:c4d9eecfca2ab87c1945afe127590906"),
    "ml-10m": Source(GROUPLENS + "ml-10m.zip", GROUPLENS_LICENCE),
    "ml-20m": Source(GROUPLENS + "ml-20m.zip", GROUPLENS_LICENCE),
    "ml-25m": Source(GROUPLENS + "ml-25m.zip", GROUPLENS_LICENCE),
    "ml-32m": Source(GROUPLENS + "ml-32m.zip", GROUPLENS_LICENCE),
    "ml-latest-small": Source(GROUPLENS + "ml-latest-small.zip", GROUPLENS_LICENCE),
    "amazon-books": Source(AMAZON + "categoryFilesSmall/Books_5.json.gz", AMAZON_LICENCE),
    "amazon-books-meta": Source(AMAZON + "metaFiles2/meta_Books.json.gz", AMAZON_LICENCE),
}
"""Logs by name; entries without a digest are not pinned."""


def fetch(name: str, folder: Path, offline: bool | None = None, unpack: bool = True, timeout: float = 60.0) -> Path:
    """Download one of `SOURCES` into `folder`, unless it is there, and unpack a zip beside it.

    Args:
        name: key of `SOURCES`.
        folder: where the file goes.
        offline: forbid the network; None asks the environment variable `LSAT_RAY_OFFLINE`.
        unpack: extract a `.zip` and return the folder in it.
        timeout: seconds without a byte after which the server is given up.

    Returns:
        The unpacked folder, or the file.

    Raises:
        LsatError: unknown name, no network allowed, unreachable, cut short, or not the file that was pinned.
    """
    if name not in SOURCES:
        raise LsatError(f"download: {name!r} is unknown; known are {', '.join(SOURCES)}")
    source = SOURCES[name]
    path = folder / source.filename
    if not path.exists():
        path = download(source, path, offline, timeout)
    else:
        _verify(path, source, f"{path}: ")
    return _extract(path) if unpack and path.suffix == ".zip" else path


def download(source: Source, path: Path, offline: bool | None = None, timeout: float = 60.0) -> Path:
    """Fetch one file to `path` by way of a temporary file that is renamed once it is whole and verified."""
    if os.environ.get(OFFLINE) == "1" if offline is None else offline:
        raise LsatError(f"{path}: not there, and downloads are off ({OFFLINE}=1); unset it, or put {source.url} there")
    logger.warning("%s: %s", source.url, source.licence)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            _receive(source, file, timeout)
            file.flush()
            os.fsync(file.fileno())
        _verify(part, source, f"{source.url}: ")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _receive(source: Source, file: BinaryIO, timeout: float) -> None:
    """Stream the body into `file` and hold its length against Content-Length."""
    received = 0
    try:
        with urllib.request.urlopen(source.url, timeout=timeout) as response:
            length = response.headers.get("Content-Length")
            while chunk := response.read(CHUNK):
                file.write(chunk)
                received += len(chunk)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise LsatError(
            f"{source.url}: download failed ({error}); check the network and run the command again"
        ) from error
    if length is not None and received != int(length):
        raise LsatError(f"{source.url}: cut short, {received} of {length} bytes came; run the command again")


def _verify(path: Path, source: Source, where: str) -> None:
    """Hold a file against the pinned size and digest."""
    if source.size is not None and path.stat().st_size != source.size:
        raise LsatError(f"{where}{path.stat().st_size} bytes, expected {source.size}; delete it and download again")
    if source.digest is None:
        return
    algorithm, _, expected = source.digest.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        raise LsatError(
            f"{where}{algorithm} {found}, expected {expected}: not the published file; delete it, try again"
        )


def _extract(path: Path) -> Path:
    """Unpack a zip beside itself, all or nothing, and return its top folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(n) for n in archive.namelist()]
            tops = {n.parts[0] for n in names if n.parts}
            if len(tops) != 1 or any(n.is_absolute() or ".." in n.parts for n in names):
                raise LsatError(f"{path}: expected an archive with one folder, found {sorted(tops)}; download it again")
            target = path.parent / tops.pop()
            if target.exists():
                return target
            with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".part", dir=path.parent) as folder:
                archive.extractall(folder)
                (Path(folder) / target.name).replace(target)
            return target
    except zipfile.BadZipFile as error:
        raise LsatError(f"{path}: not a zip archive ({error}); delete it and download again") from error
