"""No request to anybody: every command on data of this machine, with a proxy that writes down what it is asked for."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value

from support.command_runs import TINY

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
ALLOWED = ("HF_HOME", "HOME", "LANG", "OMP_NUM_THREADS", "PATH", "TMPDIR")  # no variable that keeps libraries offline


class Proxy(socketserver.StreamRequestHandler):
    """Notes the first line of each request, `CONNECT host:443` or `GET http://…`, and refuses it."""

    asked: list[str] = []  # noqa: RUF012

    def handle(self) -> None:
        Proxy.asked.append(self.rfile.readline().decode(errors="replace").strip())
        self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@pytest.fixture
def proxy() -> Iterator[str]:
    Proxy.asked.clear()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


# Runs commands one after the other: what libraries ask for, they ask for when they are imported, or at every use.
COMMANDS = """
import json, sys
from segtune.cli.main import main
for words in json.loads(sys.argv[1]):
    print(words, file=sys.stderr, flush=True)
    try:
        main(words)
    except SystemExit as left:
        if left.code and not (left.code == 1 and words[0] == "doctor"):  # which may find errors
            raise
"""


def run(folder: Path, proxy: str, *commands: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    variables = {name: os.environ[name] for name in ALLOWED if name in os.environ} | {"HF_HOME": str(folder / "cache")}
    variables |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), proxy)
    variables["PYTHONPATH"] = str(ROOT / "src")
    command = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)


def write_parquet(folder: Path) -> None:
    folder.mkdir()
    generator = np.random.default_rng(0)
    features = Features({"id": Value("string"), "image": Image(), "mask": Image()})
    for split, count in (("train", 4), ("validation", 2), ("test", 2)):
        rows = {
            "id": [f"{split}{number}" for number in range(count)],
            "image": [generator.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(count)],
            "mask": [generator.integers(0, 2, (64, 64), dtype=np.uint8) for _ in range(count)],
        }
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000.parquet")


def test_the_proxy_notes_what_it_is_asked(proxy: str, tmp_path: Path) -> None:
    done = run(tmp_path, proxy, ("predict", "nobody/nothing", "http://example.invalid/a.png", "--output", "masks"))
    assert done.returncode != 0
    assert any("example.invalid" in line or "huggingface.co" in line for line in Proxy.asked)


def test_commands_on_local_data_ask_nobody(proxy: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows")
    mine = ["dataset.path=rows", "dataset.labels=[sky, road]"]
    tiny = [*TINY, "training.report=true", "training.output_dir=run", "transforms.preset=strong"]
    commands = (
        ("doctor", "demo", *mine, "--dry-run"),
        ("train", "demo", *mine, *tiny),
        ("evaluate", "run/best", "run/recipe.yaml", "--overlays", "overlays"),
        ("report", "run"),
        ("predict", "run/best", str(ROOT / "src/segtune/data/earth/images/test"), "--output", "masks", "--limit", "1"),
        ("data", "preview", "rows", "dataset.labels=[sky, road]"),
        ("data", "convert", "rows", "dataset.labels=[sky, road]", "--output", "folder"),
    )
    done = run(tmp_path, proxy, *commands)
    assert done.returncode == 0, done.stderr
    assert Proxy.asked == [], done.stderr
    for made in ("overlays", "masks", "folder"):
        assert any((tmp_path / made).iterdir())
