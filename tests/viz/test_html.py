from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtune.errors import UsageError
from segtune.viz.html import bar, check_page, data_url, document, mark, section, swatch, tile, write_page


def test_a_page_replaces_its_like_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    check_page(path, "report", "--output")
    for body in ("first", "second"):
        write_page(path, document("A & b", body, command="report"))
        check_page(path, "report", "--output")
        assert body in path.read_text(encoding="utf-8")
    assert [path.name for path in path.parent.iterdir()] == ["page.html"]  # nothing half-written is left
    with pytest.raises(UsageError, match=r"--html .*page\.html: .* no page of segtune doctor"):
        check_page(path, "doctor", "--html")
    with pytest.raises(UsageError, match="no page of segtune report"):
        check_page(tmp_path, "report", "--output")
    path.write_text("my notes about " + mark("report") + " " * 10)
    check_page(path, "report", "--output")  # the mark is what counts
    path.write_text(" " * 200 + mark("report"))
    with pytest.raises(UsageError, match="name another file"):
        check_page(path, "report", "--output")


def test_a_page_asks_nobody_for_anything() -> None:
    text = document("A & b", "<p>body</p>", command="report", style="p { color: red }", script="let x = 1;")
    assert text.startswith("<!DOCTYPE html>\n<!-- written by segtune report -->\n")
    assert "<title>A &amp; b</title>" in text and "<script>\nlet x = 1;</script>" in text
    assert "default-src 'none'" in text and "url(" not in text and "http" not in text.replace("http-equiv", "")
    assert "<script>" not in document("a", "b", command="report")


def test_pictures_are_inside() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    prefix, content = data_url(Image.fromarray(pixels), "png", optimize=True).split(",")
    assert prefix == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), pixels)


def test_parts_are_escaped_and_named() -> None:
    assert section("Data", "x", "data").startswith(
        '<section id="data" aria-labelledby="data-title"><h2 id="data-title">'
    )
    assert tile("1", "a < b", "0 – 1", "error") == (
        '<div class="tile error"><b>1 <small>0 – 1</small></b><span>a &lt; b</span></div>'
    )
    assert 'style="width:12.5%"' in bar(0.125) and bar(1, "mini", "<b></b>").endswith("</i><b></b></span>")
    assert "background:rgb(1, 2, 3)" in swatch((1, 2, 3)) and "background:#abc" in swatch("#abc")
