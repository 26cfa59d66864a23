from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from segtune.training.interrupts import Interrupted
from segtune.webdemo import server
from segtune.webdemo.request import Limits


class Served:
    """In the place of a server: a signal comes at once."""

    url = "http://127.0.0.1:7860"
    closed = False

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def wait(self) -> None:
        raise Interrupted("SIGINT was received")


def test_options_are_passed_on_and_a_signal_ends_it(
    segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    served, calls = Served(), []
    monkeypatch.setattr(server, "demo", lambda *given, **options: calls.append((given, options)) or served)
    code, out, err = segtune_command("demo", tmp_path)
    assert (code, err) == (0, "")
    assert out == f"the demo of {tmp_path} is at http://127.0.0.1:7860 (Ctrl-C ends it)\nended\n" and served.closed
    words = ("--host", "0.0.0.0", "--port", "80", "--window", "512", "--stride", "256", "--tta", "--example", "a.png")
    words += (
        "--example",
        "b.png",
        "--max-mb",
        "5",
        "--max-megapixels",
        "6",
        "--max-seconds",
        "7",
        "--device",
        "cpu",
        "--engine",
        "openvino",
    )
    segtune_command("demo", tmp_path, *words)
    segtune_command("demo", tmp_path, "--no-examples")
    (first, plain), (_, full), (_, without) = calls
    assert first == (str(tmp_path),)
    assert plain == {
        "host": "127.0.0.1",
        "port": None,
        "window": None,
        "stride": None,
        "tta": False,
        "batch_size": 1,
        "device": None,
        "precision": "auto",
        "engine": "torch",
        "examples": None,
        "limits": Limits(),
    }
    changed = {"host": "0.0.0.0", "port": 80, "window": 512, "stride": 256, "tta": True, "device": "cpu"}
    changed |= {"engine": "openvino"}
    changed |= {"examples": [Path("a.png"), Path("b.png")], "limits": Limits(5, 6, 7)}
    assert full == plain | changed
    assert without == plain | {"examples": []}


def test_a_checkpoint_that_is_not_there(segtune_command: Any) -> None:
    code, out, err = segtune_command("demo", "/nowhere")
    assert (code, out) == (2, "") and err.startswith("error: checkpoint /nowhere does not exist")


def test_missing_package(segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, out, err = segtune_command("demo", tmp_path)
    assert (code, out) == (2, "")
    assert err == "error: segtune demo needs the package gradio: pip install 'segtune[demo]'\n"
