"""Durable files: a reader finds the old content or the new content, whole, even after the power was cut."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

DRAFT = re.compile(r"\..+\.[0-9a-f]{32}")
"""Names that `_draft` gives."""

if TYPE_CHECKING:
    import pandas as pd


def write_atomic(path: Path, content: bytes | str | pd.DataFrame) -> Path:
    """Replace a file by new content: write a draft beside it, sync it, rename it, and sync the folder.

    Args:
        path: the file; missing folders are created.
        content: bytes, text (UTF-8), or a table (written as Parquet without its index).

    Returns:
        The path.
    """
    if isinstance(content, str):
        data = content.encode()
    elif isinstance(content, bytes):
        data = content
    else:
        data = content.to_parquet(index=False)
    make_folder(path.parent)
    draft = _draft(path)
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _write_all(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync(path.parent)
    return path


@contextlib.contextmanager
def publish_folder(final: Path, marker: str = "") -> Iterator[Path]:
    """Yield a draft folder; when the block ends well, sync all that is in it and rename it to `final`.

    Whoever publishes first wins: where `final` is finished already, the draft is dropped. A folder at that place that
    is not finished is replaced. When the block raises, the draft is dropped and `final` stays as it was.

    Args:
        final: where the folder appears, complete.
        marker: file in a finished folder; "" when any folder at that place is finished.
    """
    make_folder(final.parent)
    draft = _draft(final)
    draft.mkdir()
    try:
        yield draft
        for path in sorted(draft.rglob("*")):
            _sync(path)
        _sync(draft)
        _take_place(draft, final, marker)
        _sync(final.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _take_place(draft: Path, final: Path, marker: str) -> None:
    """Rename a draft folder to its place; leave a finished folder there, put an unfinished one away."""
    try:
        os.rename(draft, final)
    except OSError:
        if (final / marker).exists():
            return
        if not final.is_dir():
            raise
        unfinished = _draft(final)
        os.rename(final, unfinished)
        shutil.rmtree(unfinished, ignore_errors=True)
        os.rename(draft, final)


def sweep_drafts(folder: Path) -> None:
    """Delete the drafts that killed writers left in a folder; call it while nobody else writes there."""
    for path in [p for p in folder.rglob(".*") if DRAFT.fullmatch(p.name)]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append one line and sync it; a line that cannot be written whole leaves the file as it was.

    Args:
        path: the file; it and missing folders are created.
        line: text without its line break.
    """
    make_folder(path.parent)
    created = not path.exists()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        try:
            _write_all(handle, f"{line}\n".encode())
        except OSError:
            os.ftruncate(handle, size)
            raise
        os.fsync(handle)
    finally:
        os.close(handle)
    if created:
        _sync(path.parent)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path) -> None:
    """Create a folder and the missing ones above it, and sync the folders that list them."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def _draft(path: Path) -> Path:
    """Return a hidden name beside `path` that nobody else uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _write_all(handle: int, data: bytes) -> None:
    """Write all bytes: one `os.write` may write fewer than it was given."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
