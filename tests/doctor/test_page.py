from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtune.data.config import DatasetConfig, TransformConfig
from segtune.doctor.examine import Diagnosis, examine
from segtune.doctor.page import NOT_NAMED, overlay_of, page, picture_of, write_doctor_page
from segtune.errors import UsageError
from segtune.recipe.recipe import Recipe
from support.html_reading import Page

RED, BLUE = (200, 30, 30), (30, 60, 200)


@pytest.fixture
def diagnosis(tmp_path: Path) -> Diagnosis:
    """Three sound samples, one with an unnamed id, one whose mask is smaller, one that cannot be read."""
    generator = np.random.default_rng(0)
    for number in range(6):
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
        mask = np.repeat(np.repeat(np.arange(2, dtype=np.uint8), 12)[None], 24, axis=0)
        mask[:3] = 9 if number == 3 else mask[:3]
        mask = mask[::2, ::2] if number == 4 else mask
        image = generator.integers(100, 140, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"a<{number}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"a<{number}.png")
    (tmp_path / "masks" / "a<5.png").write_bytes(b"no picture")
    labels = {"classes": ["sky & air", "road"], "colors": [RED, BLUE]}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    return examine(
        Recipe(dataset=DatasetConfig(path=str(tmp_path), val_fraction=0), transforms=TransformConfig(crop_size=16))
    )


def decode(url: str) -> np.ndarray:
    prefix, content = url.split(",", 1)
    assert prefix == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(int)


def test_page_stands_alone_and_says_everything(diagnosis: Diagnosis) -> None:
    text = page(diagnosis)
    read = Page(text)
    assert read.open == []
    assert len(read.sources) >= 6 and all(source.startswith("data:") for source in read.sources)
    assert not re.search(r"https?://|@import|url\(", text)
    words = " ".join(read.words)
    assert {finding.code for finding in diagnosis.findings} >= {"unnamed-ids", "size-mismatch", "unreadable"}
    for finding in diagnosis.findings:
        assert finding.code in words and finding.message[1:] in words
        assert all(file in words for file in finding.files)
    assert "sky & air" in words and "a<3" in words
    assert "24x24" in words and "16x16" in words  # the images, the crop


def test_values_without_a_name_have_a_color_of_their_own(diagnosis: Diagnosis) -> None:
    facts = {facts.sample.id: facts.sample for facts in diagnosis.case.facts}
    shown = decode(picture_of(diagnosis.case, facts["a<3"]))
    assert shown.shape == (240, 2 * 240 + 6, 3)
    right = shown[:, 246:]
    gray = 120
    for place, color in (((15, 120), NOT_NAMED[1]), ((150, 40), RED), ((150, 200), BLUE)):
        expected = (np.array(color) + gray) / 2
        assert (
            np.abs(right[place[0] - 5 : place[0] + 5, place[1] - 5 : place[1] + 5].mean((0, 1)) - expected).max() < 20
        )


def test_masks_of_another_size_are_shown_beside_the_image(diagnosis: Diagnosis) -> None:
    facts = {facts.sample.id: facts.sample for facts in diagnosis.case.facts}
    shown = decode(picture_of(diagnosis.case, facts["a<4"]))
    assert np.abs(shown[100:140, 246 + 20 : 246 + 60].mean((0, 1)) - RED).max() < 8  # not blended with the image
    assert overlay_of(diagnosis.case, facts["a<4"]) is None
    assert overlay_of(diagnosis.case, facts["a<0"]) is not None


def test_files_that_cannot_be_read_have_no_picture(diagnosis: Diagnosis) -> None:
    text = page(diagnosis)
    assert 'alt="a&lt;4"' in text and 'alt="a&lt;5"' not in text


def test_page_replaces_a_page_and_nothing_else(diagnosis: Diagnosis, tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    write_doctor_page(diagnosis, path)
    first = path.read_text(encoding="utf-8")
    write_doctor_page(diagnosis, path)
    assert path.read_text(encoding="utf-8") == first
    path.write_text("my notes")
    with pytest.raises(UsageError, match=r"--html .*: .* is no page of segtune doctor"):
        write_doctor_page(diagnosis, path)
    assert path.read_text() == "my notes"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_page_in_a_browser(
    diagnosis: Diagnosis, tmp_path: Path, open_page: Callable[..., Any], width: int, scheme: str
) -> None:
    write_doctor_page(diagnosis, tmp_path / "page.html")
    page = open_page(tmp_path / "page.html", width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)")
    assert page.locator(".tile.error b").inner_text() == str(diagnosis.count("error"))


def test_page_of_a_set_without_a_sample(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a.png")
    Image.new("L", (4, 4)).save(tmp_path / "masks" / "b.png")
    (tmp_path / "labels.json").write_text('["sky"]')
    diagnosis = examine(Recipe(dataset=DatasetConfig(path=str(tmp_path)), transforms=TransformConfig()))
    assert [finding.code for finding in diagnosis.findings] == ["unpaired", "unpaired"]
    assert Page(page(diagnosis)).open == []
    assert diagnosis.to_dict()["samples"] == {}
