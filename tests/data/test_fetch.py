"""Downloads against a local server: whole and verified, or not there at all."""

from __future__ import annotations

import hashlib
import io
import logging
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lsat_ray.data import fetch as module
from lsat_ray.data.fetch import OFFLINE, SOURCES, Source, download, fetch
from lsat_ray.errors import LsatError


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, "1::2::5::3\n" * 50)
    return buffer.getvalue()


BODY = archive("toy/ratings.dat", "toy/movies.dat")
MD5 = "md5:" + hashlib.md5(BODY, usedforsecurity=False).hexdigest()
BODIES = {
    "/whole.zip": BODY,
    "/corrupt.zip": BODY[:40] + bytes([BODY[40] ^ 1]) + BODY[41:],
    "/truncated.zip": BODY[: len(BODY) // 2],
    "/text.zip": b"<html>moved</html>",
    "/climbing.zip": archive("toy/../../escaped.dat"),
    "/two.zip": archive("toy/a", "other/b"),
}


class Handler(BaseHTTPRequestHandler):
    """Serve `BODIES`; the truncated one promises the whole length and closes early."""

    served: list[str] = []

    def do_GET(self) -> None:
        self.served.append(self.path)
        if self.path not in BODIES:
            self.send_error(404)
            return
        body = BODIES[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY) if self.path == "/truncated.zip" else len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Be quiet."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def online(monkeypatch) -> None:
    monkeypatch.delenv(OFFLINE, raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    Handler.served.clear()


def listed(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*"))


def source(server: str, name: str, digest: str | None = MD5) -> Source:
    return Source(f"{server}/{name}.zip", "For tests only.", digest)


def test_fetches_verifies_unpacks_once_and_shows_the_licence(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(SOURCES, "toy", source(server, "whole"))
    with caplog.at_level(logging.WARNING):
        folder = fetch("toy", tmp_path / "logs")
    assert "For tests only." in caplog.text
    assert listed(tmp_path / "logs") == ["movies.dat", "ratings.dat", "toy", "whole.zip"]
    assert (folder / "ratings.dat").read_text().startswith("1::2::5::3")
    assert (tmp_path / "logs" / "whole.zip").read_bytes() == BODY
    assert fetch("toy", tmp_path / "logs", offline=True) == folder
    assert Handler.served == ["/whole.zip"]


def test_a_truncated_body_leaves_nothing(server, tmp_path):
    with pytest.raises(LsatError, match=r"truncated\.zip: download failed"):
        download(source(server, "truncated", digest=None), tmp_path / "log.zip")
    assert listed(tmp_path) == []


def test_a_corrupted_body_leaves_nothing(server, tmp_path):
    with pytest.raises(LsatError, match=rf"corrupt\.zip: not the published file .*{MD5[4:]}"):
        download(source(server, "corrupt"), tmp_path / "log.zip")
    assert listed(tmp_path) == []


def test_a_web_page_in_its_place_leaves_nothing(server, tmp_path):
    with pytest.raises(LsatError, match=r"text\.zip: not the published file"):
        download(source(server, "text"), tmp_path / "log.zip")
    assert listed(tmp_path) == []


def test_a_failed_download_keeps_what_was_there(server, tmp_path):
    (tmp_path / "log.zip").write_text("older")
    with pytest.raises(LsatError):
        download(source(server, "corrupt"), tmp_path / "log.zip")
    assert (tmp_path / "log.zip").read_text() == "older"
    assert listed(tmp_path) == ["log.zip"]


def test_a_file_that_rotted_on_disk_is_found(server, tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "toy", source(server, "whole"))
    (tmp_path / "whole.zip").write_bytes(BODIES["/corrupt.zip"])
    with pytest.raises(LsatError, match=r"whole\.zip: md5 .*delete it"):
        fetch("toy", tmp_path)


@pytest.mark.parametrize(
    ("name", "says"), [("climbing", "one folder"), ("two", "one folder"), ("text", "not a zip archive")]
)
def test_a_strange_archive_is_not_unpacked(name, says, server, tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "toy", source(server, name, digest=None))
    with pytest.raises(LsatError, match=says):
        fetch("toy", tmp_path / "logs")
    assert listed(tmp_path) == sorted(["logs", f"{name}.zip"])


def test_unreachable_missing_and_unknown_are_explained(server, tmp_path, monkeypatch):
    with pytest.raises(LsatError, match=r"nowhere\.zip: download failed .*404"):
        download(source(server, "nowhere"), tmp_path / "log.zip")
    with pytest.raises(LsatError, match="'ml-2m' is unknown; known are ml-100k"):
        fetch("ml-2m", tmp_path)
    assert listed(tmp_path) == []


@pytest.mark.parametrize("by_argument", [True, False])
def test_offline_asks_nobody(by_argument, server, tmp_path, monkeypatch):
    if not by_argument:
        monkeypatch.setenv(OFFLINE, "1")
    with pytest.raises(LsatError, match=r"downloads are off .*put http.*whole\.zip there"):
        download(source(server, "whole"), tmp_path / "log.zip", offline=True if by_argument else None)
    assert Handler.served == []
    assert listed(tmp_path) == []


def test_every_source_is_https_with_a_licence_and_a_known_algorithm():
    for entry in SOURCES.values():
        assert entry.url.startswith("https://")
        assert entry.licence
        assert entry.digest is None or entry.digest.partition(":")[0] in hashlib.algorithms_guaranteed
    assert SOURCES["ml-1m"].digest == "md5:c4d9eecfca2ab87c1945afe127590906"
    assert module.__doc__ and "not pinned" in module.__doc__
