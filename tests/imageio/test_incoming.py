"""Images from addresses and from standard input, with a server on loopback."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from segtune.errors import DataError, UsageError
from segtune.imageio import incoming
from segtune.imageio.incoming import as_files, file_name, is_incoming, shown

TIFF = b"II*\0rest"


class Handler(BaseHTTPRequestHandler):
    failures = 0  # answers of 500 before the first image

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/flaky.png" and Handler.failures:
            Handler.failures -= 1
            self._answer(500, b"")
        elif path == "/moved":
            self._answer(302, b"", Location=query)
        elif path == "/short.png":
            self._answer(200, b"half", length=8)
        elif path == "/page":
            self._answer(200, b"<html>", kind="text/html; charset=utf-8")
        elif path == "/none.png":
            self._answer(404, b"")
        else:
            self._answer(200, TIFF if "scene" in path else path.encode())

    def _answer(
        self, status: int, body: bytes, kind: str = "image/png", length: int | None = None, **more: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "WAITS", (0.0, 0.0))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_what_comes_in() -> None:
    assert all(map(is_incoming, ("-", "http://a/b.png", "HTTPS://a")))
    assert not any(map(is_incoming, ("a.png", "--", "ftp://a/b.png", "file:///etc/passwd", "https")))


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://a.b/photos/street.jpg?size=large#x", "street.jpg"),
        ("https://a.b/a%20b%2F..%2F..%2Fetc%2Fpasswd.png", "passwd.png"),
        ("https://a.b/%2e%2e", "image"),
        ("https://a.b/..%5C..%5Cevil.png", "_.._evil.png"),
        ("https://a.b/\x1b[2J.png", "_2J.png"),
        ("https://a.b/.hidden.png", "hidden.png"),
        ("https://a.b/", "image"),
        ("https://a.b/con.png", "image"),
        (f"https://a.b/{'x' * 300}.png", f"{'x' * 100}.png"),
    ],
)
def test_a_name_is_the_last_part_of_the_address_and_safe(address: str, name: str) -> None:
    assert file_name(address) == name


def test_files_lie_there_for_the_context(server: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"mine")
    wanted = [mine, f"{server}/a/one.png", f"{server}/b/one.png?key=1", f"{server}/scene"]
    with as_files(wanted) as files:
        assert list(files.values()) == [str(mine), *wanted[1:]]
        assert [path.name for path in files] == ["mine.png", "one.png", "one-2.png", "scene.tif"]
        assert [path.read_bytes() for path in files] == [b"mine", b"/a/one.png", b"/b/one.png", TIFF]
        kept = list(files)
    assert [path.exists() for path in kept] == [True, False, False, False]


def test_a_redirection_is_followed_on_the_web_only(server: str, tmp_path: Path) -> None:
    with as_files([f"{server}/moved?{server}/there.png"]) as files:
        assert [path.read_bytes() for path in files] == [b"/there.png"]
    secret = tmp_path / "secret"
    secret.write_text("x")
    with pytest.raises(DataError, match="cannot be fetched"), as_files([f"{server}/moved?{secret.as_uri()}"]):
        pass


def test_a_fault_that_passes_is_tried_again(server: str) -> None:
    Handler.failures = 2
    with as_files([f"{server}/flaky.png"]) as files:
        assert [path.read_bytes() for path in files] == [b"/flaky.png"]
    Handler.failures = 3
    with (
        pytest.raises(DataError, match=r"/flaky.png cannot be fetched: the server answers 500"),
        as_files([f"{server}/flaky.png"]),
    ):
        pass
    Handler.failures = 0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.png", "none.png cannot be fetched: the server answers 404 (Not Found)"),
        ("page?token=secret", "page?… is a page (text/html), not an image"),
        ("short.png", "short.png cannot be fetched: the connection ended before the image did"),
    ],
)
def test_what_is_no_image_is_one_message(server: str, path: str, message: str) -> None:
    with pytest.raises(DataError) as error, as_files([f"{server}/{path}"]):
        pass
    assert message in str(error.value) and "secret" not in str(error.value)


def test_a_server_that_is_not_there(server: str) -> None:
    with (
        pytest.raises(DataError, match=r"^http://127.0.0.1:9/a.png cannot be fetched: "),
        as_files(["http://127.0.0.1:9/a.png"]),
    ):
        pass


def test_limits(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "LARGEST", 5)
    with pytest.raises(DataError, match=r"long-name.png has more than"), as_files([f"{server}/long-name.png"]):
        pass
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"123456")))
    with pytest.raises(DataError, match="standard input has more than"), as_files(["-"]):
        pass
    monkeypatch.setattr(incoming, "LARGEST", 100)
    monkeypatch.setattr(incoming, "LONGEST", -1.0)
    with pytest.raises(DataError, match=r"a.png took more than"), as_files([f"{server}/a.png"]):
        pass


def test_an_address_is_shown_without_what_may_be_secret() -> None:
    assert shown("https://me:secret@a.b/c.png?key=secret#d") == "https://a.b/c.png?…"


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TIFF)))
    with as_files(["-"]) as files:
        assert {path.name: name for path, name in files.items()} == {"stdin.tif": "-"}
        assert next(iter(files)).read_bytes() == TIFF
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(DataError, match="standard input is empty"), as_files(["-"]):
        pass
    with pytest.raises(UsageError, match="once only"), as_files(["-", "-"]):
        pass


def test_a_later_fault_names_the_address(server: str) -> None:
    with pytest.raises(DataError) as error, as_files([f"{server}/a.png?key=1"]) as files:
        raise DataError(f"{next(iter(files))}: no image")
    assert str(error.value) == f"{server}/a.png?…: no image"
