"""The page in a browser: what can be moved, chosen and sorted, in light and dark, on a telephone and in a sandbox."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtune.report.gather import Facts
from segtune.report.page import write_report
from segtune.viz.html import environment

CUT = "line => getComputedStyle(line.closest('.stage')).getPropertyValue('--cut')"


@pytest.fixture(scope="module")
def report(facts: Facts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(facts, path)
    return path


def column(page: Any, table: str, number: int) -> list[str]:
    """The texts of a column of the table in a section."""
    return page.eval_on_selector_all(
        f"#{table} tbody tr > :nth-child({number})", "cells => cells.map(c => c.innerText)"
    )


def colors(stage: Any) -> tuple[list[int], list[int]]:
    """Those at a tenth and at nine tenths of the width of a picture, in its upper quarter."""
    pixels = np.asarray(Image.open(io.BytesIO(stage.screenshot())).convert("RGB"))
    height, width = pixels.shape[:2]
    return tuple(pixels[height // 4, width * part // 10].tolist() for part in (1, 9))


def test_the_line_moves_by_key_and_pointer(report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report)
    stage = page.locator("#images .stage").first  # "doubted": the upper half is car, and sky is said
    line = stage.locator("input")
    left, right = colors(stage)
    assert left != right
    line.focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert line.evaluate(CUT) == "40%"
    assert stage.evaluate("stage => getComputedStyle(stage).outlineStyle") == "solid"  # the focus is seen
    page.keyboard.press("Home")
    assert line.evaluate(CUT) == "0%"
    assert colors(stage) == (right, right)
    box = stage.bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 40)
    page.mouse.down()
    assert abs(float(line.evaluate(CUT)[:-1]) - 30) < 3
    page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 60, steps=5)
    page.mouse.up()
    assert abs(float(line.evaluate(CUT)[:-1]) - 95) < 3
    assert colors(stage) == (left, left)
    assert page.locator("#images .stage input").nth(1).evaluate(CUT) == "50%"  # others stay where they are


def test_layers_are_chosen_for_all_pictures(report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report)
    shown = "layers => layers.filter(l => getComputedStyle(l).display !== 'none').map(l => l.classList[1])"
    layers = "#images figure:first-child .stage:first-child .layer"
    assert sorted(set(page.eval_on_selector_all(layers, shown))) == ["prediction", "truth"]
    sides = page.locator("#images .choice")
    sides.nth(0).get_by_role("radio", name="image").check()
    sides.nth(1).get_by_role("radio", name="errors").check()
    assert set(page.eval_on_selector_all(layers, shown)) == {"errors"}
    page.keyboard.press("ArrowLeft")  # from errors to prediction
    assert set(page.eval_on_selector_all(layers, shown)) == {"prediction"}
    assert page.locator("#suspects .gallery").get_attribute("data-left") == "photo"  # has a choice of its own
    page.locator("#images .strength").fill("20")
    assert page.locator("#images .prediction").first.evaluate("l => getComputedStyle(l).opacity") == "0.2"
    stage = page.locator("#images .stage").first
    small = stage.bounding_box()["width"]
    stage.get_by_role("button").click()
    assert stage.bounding_box()["width"] > 2 * small
    assert stage.get_by_role("button").get_attribute("aria-pressed") == "true"


def test_tables_are_sorted(report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report)
    assert column(page, "classes", 1) == ["<road>", "sky", "car", "ghost"]
    heads = page.locator("#classes thead th")
    heads.nth(1).get_by_role("button").click()
    iou = [float(text.split()[0]) for text in column(page, "classes", 2)[:3]]
    assert iou == sorted(iou, reverse=True) and "absent" in column(page, "classes", 2)[3]
    assert heads.nth(1).get_attribute("aria-sort") == "descending"
    heads.nth(1).get_by_role("button").click()
    assert [float(text.split()[0]) for text in column(page, "classes", 2)[:3]] == iou[::-1]
    assert column(page, "classes", 1)[3] == "ghost"  # what is undefined stays last
    heads.nth(0).get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert column(page, "classes", 1) == sorted(["<road>", "sky", "car", "ghost"])
    page.locator("#data thead button").nth(1).click()
    assert column(page, "data", 1)[-1] == "ignored, of all pixels"


def test_matrix_is_normalised_and_ordered(report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report)
    assert column(page, "confusions .matrix", 1) == ["sky", "<road>", "car", "ghost"]
    assert column(page, "confusions .matrix", 4) == ["", "31", "", "–"]  # predicted as car: 31 % of road
    page.locator("#confusions .order").select_option("recall")
    assert column(page, "confusions .matrix", 1) == ["car", "<road>", "sky", "ghost"]
    page.locator("#confusions .of").select_option("prediction")
    assert column(page, "confusions .matrix", 2) == ["", "100", "", ""]  # all that is predicted as car is road
    assert page.locator("#confusions td.right").count() == 4


def test_more_classes_than_there_is_room_for(facts: Facts, tmp_path: Path, open_page: Callable[..., Any]) -> None:
    names = [f"class {index}" for index in range(40)]
    counts = np.full((40, 40), 1) + np.diag(np.arange(40) * 10)
    template = environment().from_string(
        '{% extends "report/templates/page.html" %}{% block content %}'
        '<section id="confusions">{{ confusion(names, counts, []) }}</section>{% endblock %}'
    )
    values = {"title": "many", "command": "report", "names": names, "counts": counts.tolist(), "facts": facts}
    (tmp_path / "page.html").write_text(template.render(values | {"layers": {}, "wrong": "", "surely_wrong": ""}))
    page = open_page(tmp_path / "page.html")
    assert len(column(page, "confusions .matrix", 1)) == 24
    page.locator("#confusions .number").select_option("40")
    assert len(column(page, "confusions .matrix", 1)) == 40
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_light_and_dark(report: Path, open_page: Callable[..., Any], width: int, scheme: str) -> None:
    page = open_page(report, width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = (
        page.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number)")
        for name in ("color", "backgroundColor")
    )
    assert (sum(paper) > sum(ink)) == (scheme == "light") and abs(sum(paper) - sum(ink)) > 450
    assert page.locator("nav a").first.is_visible()
    page.locator("#recipe summary").click()
    assert page.locator("#recipe pre").inner_text() == "a: <b>\n"


def test_page_works_in_a_sandbox(report: Path, open_page: Callable[..., Any]) -> None:
    """As viewers of notebooks' outputs show it: no origin, no storage."""
    frame = report.with_name("viewer.html")
    frame.write_text(f'<iframe sandbox="allow-scripts" src="{report.name}" width="900" height="700"></iframe>')
    page = open_page(frame)
    inside = page.frame_locator("iframe")
    line = inside.locator("#images .stage input").first
    line.focus()
    page.keyboard.press("End")
    assert line.evaluate(CUT) == "100%"
    inside.locator("#classes thead button").first.click()
    assert inside.locator("#classes tbody th").first.inner_text() == "<road>"
    assert inside.locator("#confusions td").count() > 16


def test_what_is_wider_than_a_telephone_says_that_it_scrolls(report: Path, open_page: Callable[..., Any]) -> None:
    """Told by a line and a shadow; not where all is seen. The last number of the headline does not stand alone."""
    sign = "scroll => getComputedStyle(scroll, '::before').content"
    for width in (1280, 390):
        page = open_page(report, width=width)
        for scroll in page.locator(".scroll").all():
            is_wider = scroll.evaluate("scroll => scroll.scrollWidth > scroll.clientWidth + 1")
            assert (scroll.evaluate(sign) == '"↔ scrolls sideways"') == is_wider
        assert page.locator(".scroll.wide").count() > 0 or width > 390
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    first, last = (page.locator(".tile").nth(number).bounding_box() for number in (0, -1))
    assert first["width"] == last["width"]
