"""The page in Chromium: pictures in, classes switched, files down, refusals; nobody outside is asked."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import segtune
from support.demo_server import Running

pytestmark = pytest.mark.slow


def write_huge(path: Path) -> None:
    """A PNG of 60,000 x 60,000 pixels, in half a megabyte."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    compressor = zlib.compressobj()
    rows = b"".join(compressor.compress(bytes(7501 * 1000)) for _ in range(60)) + compressor.flush()
    header = chunk(b"IHDR", struct.pack(">2I5B", 60_000, 60_000, 1, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


@pytest.fixture
def open_demo(browser: Any, running: Running) -> Iterator[Callable[..., Any]]:
    """Opens the page; afterwards, no request must have gone elsewhere, and nothing have failed in it."""
    contexts, faults = [], []

    def look(request: Any) -> None:
        if not request.url.startswith((running.url, "data:", "blob:")):
            faults.append(f"asked for {request.url}")

    def show(width: int = 1280, color_scheme: str = "light") -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=color_scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("request", look)
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("console", lambda message: message.type == "error" and faults.append(f"console: {message.text}"))
        page.goto(running.url)
        page.get_by_role("button", name="Segment", exact=True).wait_for()
        return page

    yield show
    for context in contexts:
        context.close()
    # Gradio asks how far an upload is that has ended already.
    assert [fault for fault in faults if "404" not in fault and fault != "console: Response"] == []


def upload(page: Any, *paths: Path) -> None:
    with page.expect_response(lambda answer: "/upload?" in answer.url or answer.url.endswith("/upload")):
        page.locator("[role=tabpanel]:visible input[type=file]").first.set_input_files([str(path) for path in paths])


def segment(page: Any) -> None:
    page.get_by_role("button", name="Segment", exact=True).click()
    page.locator("table.legend").wait_for()


def refusal(page: Any) -> str:
    body = page.get_by_test_id("toast-body").first
    body.wait_for()
    text = body.inner_text().splitlines()[-1]
    page.get_by_test_id("toast-close").first.click()
    body.wait_for(state="detached")
    return text


@pytest.mark.parametrize(("width", "color_scheme"), [(1280, "light"), (390, "dark")])
def test_one_picture(
    open_demo: Callable[..., Any], photo: Path, checkpoint: Path, tmp_path: Path, width: int, color_scheme: str
) -> None:
    page = open_demo(width, color_scheme)
    upload(page, photo)
    segment(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.classList.contains('dark')") == (color_scheme == "dark")
    expected = segtune.predict(checkpoint, photo, device="cpu")
    names = segtune.LabelMap.from_pretrained(checkpoint).names
    counts = np.bincount(expected.ravel(), minlength=3)
    order = [names[i] for i in np.argsort(-counts, kind="stable") if counts[i]]
    assert [text.strip() for text in page.locator("table.legend tbody td:first-child").all_inner_texts()] == order
    with page.expect_download() as download:
        page.locator("a[download='photo.png']").click()
    with Image.open(download.value.path()) as mask:
        assert mask.mode == "P" and np.array_equal(np.asarray(mask), expected)


def test_classes_are_switched(open_demo: Callable[..., Any], photo: Path) -> None:
    page = open_demo()
    upload(page, photo)
    segment(page)
    slider = page.locator("img[src*='gradio_api/file']").last
    before = slider.get_attribute("src")
    with page.expect_response(lambda answer: "/queue/join" in answer.url):
        page.get_by_role("checkbox").first.uncheck()
    page.wait_for_function(
        "before => [...document.images].every(image => image.getAttribute('src') !== before)", arg=before
    )


def test_an_example_with_polygons(open_demo: Callable[..., Any]) -> None:
    page = open_demo()
    page.locator(".gallery-item, .gallery button").first.click()
    page.locator("img[src*='1-photo.png']").first.wait_for()
    page.get_by_label("geojson").first.check()
    segment(page)
    assert page.locator("a[download='1-photo.geojson']").count() == 1


def test_many_pictures(open_demo: Callable[..., Any], photo: Path, tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(photo.read_bytes())
    page = open_demo(390)
    page.get_by_role("tab", name="Many pictures").click()
    upload(page, photo, tmp_path / "b.png")
    page.locator("[role=tabpanel]:visible a[download='b.png']").wait_for()
    page.get_by_role("button", name="Segment all").click()
    with page.expect_download() as download:
        page.locator("a[download='masks.zip']").click()
    with zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())) as archive:
        assert {"photo.png", "b.png", "b_overlay.png", "b_confidence.png"} <= set(archive.namelist())


def test_what_is_refused(open_demo: Callable[..., Any], tmp_path: Path) -> None:
    page = open_demo()
    page.get_by_role("button", name="Segment", exact=True).click()
    assert refusal(page) == "there is no picture yet: choose one"
    (tmp_path / "text.png").write_bytes(b"no picture")
    write_huge(tmp_path / "huge.png")
    for name, words in (
        ("text.png", "text.png: cannot be read (it is no picture, or of an unknown format)"),
        ("huge.png", "huge.png has 60,000 x 60,000 pixels: at most 50 million are taken"),
    ):
        upload(page, tmp_path / name)
        page.locator(f"img[src*='{name}']").first.wait_for(state="attached")
        page.get_by_role("button", name="Segment", exact=True).click()
        assert refusal(page) == words
        page.get_by_label("Clear").first.click()
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(200 * 2**20)
    page.locator("input[type=file]").first.set_input_files(str(tmp_path / "large.png"))
    assert "exceed the maximum allowed size" in refusal(page)
