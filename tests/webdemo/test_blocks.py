"""What the buttons of the page do, without Gradio: errors, uploads, what is drawn."""

from __future__ import annotations

import logging
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtune.errors import UsageError
from segtune.inference.processor import load_processor
from segtune.inference.segmenter import Segmenter
from segtune.labels.label_map import LabelMap
from segtune.segformer.loading import load_model
from segtune.webdemo import blocks
from segtune.webdemo.blocks import BUG, NO_MEMORY, Demo, Handlers


class PageError(Exception):
    """As `gradio.Error`."""

    def __init__(self, message: str, print_exception: bool) -> None:
        super().__init__(message)
        assert not print_exception


@pytest.fixture
def handlers(checkpoint: Path, tmp_path: Path) -> Handlers:
    model = load_model(checkpoint).eval()
    folder = tmp_path / "demo"
    folder.mkdir()
    demo = Demo("run/best", Segmenter(model, load_processor(model)), LabelMap.from_config(model.config), folder)
    progress = lambda: lambda part, what: None  # noqa: E731
    return Handlers(demo, SimpleNamespace(Error=PageError, Progress=progress, CheckboxGroup=SimpleNamespace))


@pytest.fixture
def upload(handlers: Handlers) -> Callable[[str], dict[str, Any]]:
    """Puts a picture where Gradio puts what was uploaded, and says what Gradio says of it."""

    def put(name: str) -> dict[str, Any]:
        path = handlers.demo.folder / "0a1b" / name
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return {"path": str(path), "meta": {"_type": "gradio.FileData"}}

    return put


def test_one_picture(handlers: Handlers, upload: Callable[[str], dict[str, Any]]) -> None:
    (picture, drawn), classes, legend, certainty, files, kept = handlers.one()(upload("a.png"), "geojson")
    assert picture.shape == drawn.shape == (64, 96, 3)
    assert [Path(path).name for path in files] == ["a.png", "a_overlay.png", "a_confidence.png", "a.geojson"]
    assert certainty == files[2] and classes.visible
    with Image.open(files[0]) as mask:
        ids = np.asarray(mask)
    assert np.array_equal(kept.ids, ids)
    present = [str(label) for label in np.argsort(-np.bincount(ids.ravel())) if (ids == label).any()]
    assert classes.value == present and [value for _, value in classes.choices] == present
    assert "land &lt;b&gt;" in legend and "<b>" not in legend and "96 × 64 pixels" in legend
    again = handlers.redraw([], kept)
    assert again is not None and np.array_equal(again[1], picture)
    all_of_them = handlers.redraw(present, kept)
    assert all_of_them is not None and np.array_equal(all_of_them[1], drawn)
    assert handlers.redraw(present, None) is None


def test_many_pictures(handlers: Handlers, upload: Callable[[str], dict[str, Any]]) -> None:
    archive = handlers.many()([upload("a.png"), upload("bb.png")], "coco")
    with zipfile.ZipFile(archive) as found:
        names = {f"{name}{end}" for name in ("a", "bb") for end in (".png", "_overlay.png", "_confidence.png")}
        assert set(found.namelist()) - {"./"} == names | {"annotations.coco.json"}


def test_what_was_not_uploaded_is_refused(handlers: Handlers, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    gone = handlers.demo.folder / "gone.png"
    for path in (tmp_path / "a.png", handlers.demo.folder / ".." / "a.png", gone, "/etc/passwd"):
        with pytest.raises(PageError, match=r"was not uploaded, or an hour ago: upload it once more$"):
            handlers.predict({"path": str(path)})
    for nothing in (None, {}, "a.png", {"path": None}):
        with pytest.raises(PageError, match=r"^there is no picture yet: choose one$"):
            handlers.predict(nothing)
    with pytest.raises(PageError, match=r"^polygons 'pdf': one of no polygons, geojson, coco$"):
        handlers.one()({"path": str(gone)}, "pdf")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UsageError("two\nlines <b>"), "two lines &lt;b&gt;"),
        (MemoryError(), NO_MEMORY),
        (RuntimeError("secret"), BUG),
    ],
)
def test_what_goes_wrong_is_one_line(
    handlers: Handlers,
    upload: Callable[[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    line: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(blocks, "segment_files", fail)
    with pytest.raises(PageError) as caught:
        handlers.predict(upload("a.png"))
    assert str(caught.value) == line
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.exc_info[1] for record in logged if record.exc_info] == ([error] if line == BUG else [])


def test_head_says_what_runs_where(handlers: Handlers) -> None:
    head = " ".join(handlers.head().split())
    assert "<h1>run/best</h1>" in head
    assert "3 classes, pictures seen whole, on cpu in fp32. Pictures of up to 50 MB and 50 million pixels." in head


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UsageError, match=r"^segtune demo needs the package gradio: pip install 'segtune\[demo\]'$"):
        blocks.import_gradio()
