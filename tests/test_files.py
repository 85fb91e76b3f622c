"""Durable files: whole or not at all, synced before anything relies on them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lsat_ray.files import append_line, publish_folder, sha256_of, write_atomic


class Death(Exception):
    """The process ends here."""


def record_syncs(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Record what is synced, under the name that it has at that moment."""
    synced: list[Path] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return synced


def dies(*_: Any, **__: Any) -> None:
    raise Death


def short_write(limit: int) -> Callable[[int, Any], int]:
    """Return an `os.write` that takes at most so many bytes a call, as a real one may."""
    real = os.write
    return lambda handle, data: real(handle, data[:limit])


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are read from /proc")


@pytest.mark.parametrize("content", ["text, é", b"\x00bytes", pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})])
def test_content_comes_back_and_replaces_what_was_there(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "deep" / "folder" / "file"
    write_atomic(path, "older and longer than what follows" * 100)
    assert write_atomic(path, content) == path
    if isinstance(content, pd.DataFrame):
        pd.testing.assert_frame_equal(pd.read_parquet(path), content)
    else:
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_death_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path = write_atomic(tmp_path / "file", "old")
    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(os, moment, dies)
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("write", [write_atomic, append_line])
def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    monkeypatch.setattr(os, "write", short_write(7))
    write(tmp_path / "file", "x" * 1000)
    assert (tmp_path / "file").read_text().rstrip("\n") == "x" * 1000


@needs_proc
def test_file_and_folders_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = record_syncs(monkeypatch)
    path = tmp_path / "new" / "file"
    write_atomic(path, "a")
    assert tmp_path in synced, "the new folder's name"
    assert synced[-1] == path.parent, "the file's name, last"
    assert any(p.parent == path.parent for p in synced), "the file's content"
    synced.clear()
    append_line(tmp_path / "lines", "a")
    assert synced == [tmp_path / "lines", tmp_path]
    synced.clear()
    append_line(tmp_path / "lines", "b")
    assert synced == [tmp_path / "lines"]
    assert (tmp_path / "lines").read_text() == "a\nb\n"


def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    append_line(path, "first")
    real, calls = os.write, []

    def full(handle: int, data: Any) -> int:
        calls.append(data)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(handle, data[:3])

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "write", full)
        append_line(path, "second")
    append_line(path, "third")
    assert path.read_text() == "first\nthird\n"


@needs_proc
def test_a_folder_is_synced_with_all_that_is_in_it_before_it_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = record_syncs(monkeypatch)
    final = tmp_path / "final"
    with publish_folder(final) as draft:
        (draft / "inner").mkdir()
        (draft / "inner" / "a").write_text("a")
        (draft / "b").write_text("b")
    assert set(synced[:-1]) == {draft, draft / "b", draft / "inner", draft / "inner" / "a"}
    assert synced[-1] == tmp_path
    assert (final / "inner" / "a").read_text() == "a"


@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_a_death_while_publishing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    with monkeypatch.context() as patch, pytest.raises(Death), publish_folder(tmp_path / "final") as draft:
        (draft / "a").write_text("a")
        patch.setattr(os, moment, dies)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_twin_wins_and_an_unfinished_folder_gives_way(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with publish_folder(final, "marker") as first, publish_folder(final, "marker") as second:
        for number, draft in enumerate((first, second)):
            (draft / "marker").write_text(str(number))
    assert (final / "marker").read_text() == "1"  # the inner block ended first
    (final / "marker").rename(final / "rubbish")
    with publish_folder(final, "marker") as draft:
        (draft / "marker").write_text("2")
    assert [p.name for p in final.iterdir()] == ["marker"]
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_a_file_in_the_way_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "final").write_text("a file")
    with pytest.raises(OSError), publish_folder(tmp_path / "final", "marker") as draft:
        (draft / "marker").write_text("")
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
