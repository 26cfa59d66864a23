"""ONNX Runtime Web: the two files of it that a page needs, from the npm registry, a file at hand, or an address."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import os
import tarfile
import urllib.request
from pathlib import Path

import segtune
from segtune.errors import DataError, UsageError
from segtune.files import write_atomic

BUNDLED = "bundled"
VERSION = "1.30.0"
TARBALL = f"onnxruntime-web-{VERSION}.tgz"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FILES = {  # what the page fetches, and what the browser checks of it
    "ort.wasm.bundle.min.mjs": "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    "ort-wasm-simd-threaded.wasm": "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
}
REGISTRY = "https://registry.npmjs.org/"
SILENCE = 30.0  # seconds without a byte
LARGEST = 2**28  # bytes of the archive, which has 95 MB


def is_address(runtime: str) -> bool:
    """Whether the runtime is to be fetched by the page from another place, and not to lie beside it."""
    return runtime.startswith(("https://", "http://"))


def runtime_files(runtime: str) -> dict[str, bytes]:
    """The files that lie beside the page, by name; none where the page fetches them from an address.

    Args:
        runtime: "bundled" (from the npm registry, once; then from the cache), the path of the package as
            `npm pack onnxruntime-web@VERSION` writes it, or the address of a folder that holds the two files.

    Raises:
        UsageError: there is no such file.
        DataError: the registry cannot be reached, or what it or the file gives is not the package of this version.
    """
    if is_address(runtime):
        return {}
    if runtime != BUNDLED:
        path = Path(runtime)
        if not path.is_file():
            raise UsageError(
                f"--runtime {runtime}: no such file; give {BUNDLED}, an address (https://…), or the path of {TARBALL}, "
                f"which `npm pack onnxruntime-web@{VERSION}` writes"
            )
        return _unpacked(_checked(path.read_bytes(), str(path)))
    cached = _cache() / TARBALL
    if cached.is_file() and integrity(cached.read_bytes(), "sha512") == INTEGRITY:
        return _unpacked(cached.read_bytes())
    address = f"{registry()}onnxruntime-web/-/{TARBALL}"
    archive = _checked(_fetched(address), address)
    write_atomic(cached, archive)
    return _unpacked(archive)


def integrity(content: bytes, algorithm: str) -> str:
    """A checksum as npm and browsers write it."""
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, content).digest()).decode()}"


def registry() -> str:
    """The address of the npm registry, as npm is told it: by its variable, else by `.npmrc` of the home folder."""
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        if found := os.environ.get(name):
            return found.rstrip("/") + "/"
    settings = Path(os.environ.get("NPM_CONFIG_USERCONFIG", Path.home() / ".npmrc"))
    if settings.is_file():
        for line in settings.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "registry":
                return value.strip().strip("\"'").rstrip("/") + "/"
    return REGISTRY


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segtune"


def _fetched(address: str) -> bytes:
    if not is_address(address):
        raise UsageError(f"the npm registry {address} is no address: it begins with https:// or http://")
    request = urllib.request.Request(address, headers={"User-Agent": f"segtune/{segtune.__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=SILENCE) as answer:
            content: bytes = answer.read(LARGEST)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DataError(
            f"{address} cannot be fetched ({error}): give --runtime the path of {TARBALL}, which "
            f"`npm pack onnxruntime-web@{VERSION}` writes on a machine that has a network"
        ) from error
    return content


def _checked(archive: bytes, name: str) -> bytes:
    if integrity(archive, "sha512") != INTEGRITY:
        raise DataError(f"{name} is not onnxruntime-web {VERSION} as npm publishes it: its checksum differs")
    return archive


def _unpacked(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as package:
        found = {name: package.extractfile(f"package/dist/{name}") for name in FILES}
        return {name: file.read() for name, file in found.items() if file is not None}
