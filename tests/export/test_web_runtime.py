"""ONNX Runtime Web: where it comes from, and that nothing else passes for it."""

from __future__ import annotations

import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from segtune.errors import DataError, UsageError
from segtune.export import web_runtime
from segtune.export.web_runtime import FILES, TARBALL, VERSION, integrity, registry, runtime_files

CONTENT = {name: name.encode() for name in FILES}


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A package with short files, which for the test is the one that npm publishes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as package:
        for name, content in {**CONTENT, "../outside": b""}.items():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(content)
            package.addfile(entry, io.BytesIO(content))
    monkeypatch.setattr(web_runtime, "INTEGRITY", integrity(buffer.getvalue(), "sha512"))
    return buffer.getvalue()


@pytest.fixture
def served(archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A registry on this machine, and an empty cache; the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(archive)))
            self.end_headers()
            self.wfile.write(archive)

        def log_message(self, format: str, *values: object) -> None:
            pass

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_address[1]}/npm")
        yield asked
        server.shutdown()


def test_fetched_once(served: list[str], tmp_path: Path) -> None:
    assert runtime_files("bundled") == runtime_files("bundled") == CONTENT
    assert served == [f"/npm/onnxruntime-web/-/{TARBALL}"]
    cached = tmp_path / "cache" / "segtune" / TARBALL
    cached.write_bytes(b"damaged")
    assert runtime_files("bundled") == CONTENT and len(served) == 2


def test_another_package_is_refused(
    served: list[str], archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_runtime, "INTEGRITY", integrity(b"another", "sha512"))
    with pytest.raises(DataError, match=f"is not onnxruntime-web {VERSION} as npm publishes it"):
        runtime_files("bundled")
    assert not (tmp_path / "cache").exists()
    (tmp_path / TARBALL).write_bytes(archive)
    with pytest.raises(DataError, match="its checksum differs"):
        runtime_files(str(tmp_path / TARBALL))


def test_from_a_file(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / TARBALL).write_bytes(archive)
    assert runtime_files(str(tmp_path / TARBALL)) == CONTENT
    with pytest.raises(UsageError, match="no such file; give bundled, an address"):
        runtime_files(str(tmp_path / "nowhere.tgz"))


def test_an_address_needs_no_files() -> None:
    assert runtime_files("https://example.org/ort/") == {}


def test_registry_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    with pytest.raises(DataError, match=f"cannot be fetched .* give --runtime the path of {TARBALL}"):
        runtime_files("bundled")
    monkeypatch.setenv("npm_config_registry", "file:///etc")
    with pytest.raises(UsageError, match="begins with https://"):
        runtime_files("bundled")


def test_registry_as_npm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(tmp_path / "npmrc"))
    assert registry() == "https://registry.npmjs.org/"
    (tmp_path / "npmrc").write_text("fund=false\nregistry = https://npm.example.org/all\n")
    assert registry() == "https://npm.example.org/all/"
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://other.example.org")
    assert registry() == "https://other.example.org/"
