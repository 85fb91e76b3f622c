"""Public logs by URL and checksum, downloaded whole or not at all.

MovieLens forbids redistribution and Amazon Reviews are large, so no log is part of this package: each is downloaded
from its owner, after its licence has been shown. `digest` is None where the owner replaces the file in place or where
we know no published value: such an entry is not pinned.
"""

from __future__ import annotations

import logging
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lsat_ray.errors import LsatError
from lsat_ray.files import publish_folder

OFFLINE = "LSAT_RAY_OFFLINE"
"""Environment variable that forbids downloads when it is `1`."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One file of a public log."""

    url: str
    """Where its owner keeps it."""
    licence: str
    """What a user agrees to."""
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
        timeout: seconds without a byte after which the download is given up.

    Returns:
        The unpacked folder, or the file.

    Raises:
        LsatError: unknown name, no network allowed, unreachable, cut short, or not the file that was pinned.
    """
    if name not in SOURCES:
        raise LsatError(f"fetch: {name!r} is unknown; known are {', '.join(SOURCES)}")
    source = SOURCES[name]
    path = folder / source.filename
    if not path.exists():
        download(source, path, offline, timeout)
    elif source.digest is not None:
        import pooch

        algorithm, _, expected = source.digest.partition(":")
        if (found := pooch.file_hash(str(path), alg=algorithm)) != expected:
            raise LsatError(f"{path}: {algorithm} {found}, expected {expected}: not the published file; delete it")
    return _extract(path) if unpack and path.suffix == ".zip" else path


def download(source: Source, path: Path, offline: bool | None = None, timeout: float = 60.0) -> Path:
    """Download one file to `path`; it appears there once it is whole and has the pinned digest.

    A file that is there already is replaced when it has another digest than the pinned one.
    """
    if os.environ.get(OFFLINE) == "1" if offline is None else offline:
        raise LsatError(f"{path}: not there, and downloads are off ({OFFLINE}=1); unset it, or put {source.url} there")
    import pooch
    import requests

    logger.warning("%s: %s", source.url, source.licence)
    # identity: a server that compresses on the way would leave other bytes than the published ones
    downloader = pooch.HTTPDownloader(timeout=timeout, headers={"Accept-Encoding": "identity"})
    try:
        pooch.retrieve(source.url, source.digest, path.name, path.parent, downloader=downloader)
    except (requests.RequestException, OSError) as error:
        raise LsatError(
            f"{source.url}: download failed ({error}); check the network and run the command again"
        ) from error
    except ValueError as error:
        raise LsatError(f"{source.url}: not the published file ({' '.join(str(error).split())}); try again") from error
    return path


def _extract(path: Path) -> Path:
    """Unpack a zip beside itself, all or nothing, and return its top folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(n) for n in archive.namelist()]
            tops = {n.parts[0] for n in names if n.parts}
            if len(tops) != 1 or any(n.is_absolute() or ".." in n.parts for n in names):
                raise LsatError(f"{path}: expected an archive with one folder, found {sorted(tops)}; download it again")
            top = tops.pop()
            target = path.parent / top
            if not target.exists():
                with publish_folder(target) as draft:
                    for member in archive.infolist():
                        member.filename = member.filename.removeprefix(top).lstrip("/")
                        if member.filename:
                            archive.extract(member, draft)
            return target
    except zipfile.BadZipFile as error:
        raise LsatError(f"{path}: not a zip archive ({error}); delete it and download again") from error
