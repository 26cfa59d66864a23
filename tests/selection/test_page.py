"""The page of a selection: names are escaped, and a telephone shows it without scrolling sideways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtune.errors import UsageError
from segtune.imageio.raster import ArrayRaster
from segtune.labels.label_map import LabelMap
from segtune.selection.choice import choose
from segtune.selection.page import SCALE, figure, page, write_selection_page
from segtune.selection.survey import Pool, Surveyed
from support.html_reading import Page, part

LABELS = LabelMap.from_names(["<road>", "sky", "sign"], [(128, 64, 128), (0, 0, 255), (255, 220, 0)])
NAME = "a very long name of a picture & <b>more of it, without any end in sight, at all_000123.jpg"


def text_of(count: int = 3, faults: int = 0) -> str:
    rng = np.random.default_rng(0)
    images = [
        Surveyed(Path(f"pool/{number} {NAME}"), rng.random(3) * 100, np.array([1000, 200, 9]), rng.random(4))
        for number in range(30)
    ]
    choice = choose(Pool(images), LABELS, count, 2)
    labels = np.arange(60)[:, None] // 20 + np.zeros((60, 90), int)
    pixels = rng.integers(0, 255, (60, 90, 3), dtype=np.uint8)
    drawn = [figure(image, ArrayRaster(pixels), labels.astype(np.uint8), rng.random((6, 9)), LABELS)
             for image in choice.images]  # fmt: skip
    broken = {f"pool/{number}.jpg": f"pool/{number}.jpg: cannot be read (<i>)" for number in range(faults)}
    return page("user/<name>", choice, drawn, broken, "Predictions as a start for cvat: out/cvat")


def test_page_stands_alone_and_escapes_names() -> None:
    text = text_of(faults=25)
    read = Page(text)
    assert read.open == []
    assert [name for name in read.ids if not name.endswith("-title")] == ["images", "pool", "classes", "left-out"]
    assert all(source.startswith("data:image/") for source in read.sources[1:]) and len(read.sources) == 1 + 3 * 3
    assert "<b>more" not in text and "<i>" not in text and "user/<name>" not in text
    for word in (NAME, "user/<name>", "<road>", "unsure of", "and 5 more", "3 images to label next", "out/cvat"):
        assert word in read.text
    assert part(text, "pool").count("<circle") == 3
    assert "left-out" not in Page(text_of()).ids


def test_uncertainty_is_dark_where_the_model_is_sure() -> None:
    lightness = [sum(color) for color in SCALE]
    assert lightness == sorted(lightness)


def test_only_an_earlier_page_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "selection.html"
    write_selection_page(path, text_of(1))
    write_selection_page(path, text_of(2))
    assert path.read_text(encoding="utf-8") == text_of(2)
    path.write_text("mine")
    with pytest.raises(UsageError, match="is no page of segtune select"):
        write_selection_page(path, text_of(1))


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_runs_out_of_the_window(open_page: Callable[..., Any], tmp_path: Path, width: int) -> None:
    path = tmp_path / "selection.html"
    write_selection_page(path, text_of(faults=2))
    shown = open_page(path, width=width)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    sides = shown.eval_on_selector_all(".choice img", "images => images.map(i => i.getBoundingClientRect().right)")
    assert len(sides) == 9 and max(sides) <= width
