from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from segtune.errors import UsageError
from segtune.viz.html import check_page, data_url, environment, mark, render, write_page
from support.html_reading import drawn


def test_a_page_replaces_its_like_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    check_page(path, "report", "--output")
    for title in ("first", "second"):
        write_page(path, render("viz/templates/base.html", title=title, command="report"))
        check_page(path, "report", "--output")
        assert title in path.read_text(encoding="utf-8")
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
    text = render("viz/templates/base.html", title="A & b", command="report")
    assert text.startswith(f"<!DOCTYPE html>\n{mark('report')}\n")
    assert "<title>A &amp; b</title>" in text and "<script>" not in text
    assert "default-src 'none'" in text and "url(" not in text and "http" not in text.replace("http-equiv", "")


def test_a_name_that_nobody_gives_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'command' is undefined"):
        render("viz/templates/base.html", title="A")


def test_templates_are_all_whole() -> None:
    """Also those that a test of their page might not reach."""
    names = [name for name in environment().list_templates() if "/templates/" in name]
    assert len(names) >= 10
    for name in names:
        environment().get_template(name)


def test_pictures_are_inside() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    prefix, content = data_url(Image.fromarray(pixels), "png", optimize=True).split(",")
    assert prefix == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), pixels)


def test_parts_are_escaped_and_named() -> None:
    parts = "viz/templates/parts.html"
    assert drawn(parts, "section", "Data", "data", caller=lambda: "x").startswith(
        '<section id="data" aria-labelledby="data-title"><h2 id="data-title">Data</h2>'
    )
    assert drawn(parts, "tile", "1", "a < b", "0 – 1", "error").strip() == (
        '<div class="tile error"><b>1 <small>0 – 1</small></b><span>a &lt; b</span></div>'
    )
    assert 'style="width:12.5%"' in drawn(parts, "bar", 0.125)
    assert drawn(parts, "bar", 1, "mini", caller=lambda: "inside").endswith("</i>inside</span>")
    assert "background:rgb(1, 2, 3)" in drawn(parts, "swatch", (1, 2, 3))
    assert "background:#abc" in drawn(parts, "swatch", "#abc")
