from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from segtune.labels.label_map import LabelMap
from segtune.viz.comparisons import OVERVIEW, Comparisons, evenly_spaced

LABELS = LabelMap.from_names(["sky", "road"], colors=[(1, 2, 3), (250, 240, 230)])
IMAGE, MASK = np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8)


def test_evenly_spaced_by_hand() -> None:
    assert evenly_spaced(range(10), 3) == [0, 3, 6]
    assert evenly_spaced("abc", 7) == ["a", "b", "c"]
    assert evenly_spaced([], 4) == [] == evenly_spaced([1, 2], 0)


@given(st.integers(1, 300), st.integers(1, 300))
@settings(deadline=None, max_examples=50)
def test_gaps_of_evenly_spaced_items_differ_by_one_at_most(length: int, count: int) -> None:
    chosen = evenly_spaced(range(length), count)
    gaps = np.diff([*chosen, length])
    assert chosen[0] == 0 and len(chosen) == min(count, length)
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_comparisons_are_spread_over_the_split(tmp_path: Path) -> None:
    ids = [f"drive/{i}" for i in range(20)]
    pictures = Comparisons(tmp_path / "out", LABELS, ids, 8)
    assert pictures.ids == [f"drive/{i}" for i in (0, 2, 5, 7, 10, 12, 15, 17)]
    for sample_id in reversed(ids):  # in any order
        pictures.save(sample_id, IMAGE, MASK, MASK)
    assert {path.stem for path in (tmp_path / "out" / "drive").iterdir()} == {i.split("/")[1] for i in pictures.ids}


def test_overview_names_and_scores_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IoU of a prediction that takes half of the sky for road: 0.5 and 0; of an image without labels: none."""
    drawn: list[str] = []
    plain = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, at, text, *more, **how: (
        drawn.append(text), plain(self, at, text, *more, **how)
    ))  # fmt: skip
    pictures = Comparisons(tmp_path, LABELS, ["a", "b", "c\u202e"], 12, overview=True)
    half, unlabelled = MASK.copy(), np.full_like(MASK, 255)
    half[10:] = 1
    for name, labels, prediction in (("c\u202e", unlabelled, MASK), ("a", MASK, MASK), ("b", MASK, half)):
        if name != "c\u202e":
            pictures.save(name, IMAGE, labels, prediction)
        else:
            pictures._keep(name, IMAGE, labels, prediction)  # no file may be called so
    drawn.clear()
    pictures.save_overview()
    titles = ["image", "truth", "prediction"] * 2
    legend = ["sky", "road", "ignored"]
    assert drawn == [*legend, *titles, "a: mIoU 1.000", "b: mIoU 0.250", "c\\u202e: not labelled"]
    with Image.open(tmp_path / OVERVIEW) as sheet:
        assert sheet.width > 6 * 360 and sheet.height > 2 * 240


def test_overview_of_a_single_picture_is_no_sample(tmp_path: Path) -> None:
    """A sample that is called as the overview is keeps its own file."""
    pictures = Comparisons(tmp_path, LABELS, ["overview"], 12, overview=True)
    pictures.save("overview", IMAGE, MASK, MASK)
    before = (tmp_path / "overview.png").read_bytes()
    pictures.save_overview()
    assert {path.name for path in tmp_path.iterdir()} == {"overview.png", OVERVIEW}
    assert (tmp_path / "overview.png").read_bytes() == before


def test_each_evaluation_may_have_a_folder_of_its_own(tmp_path: Path) -> None:
    pictures = Comparisons(tmp_path, LABELS, [f"id{number}" for number in range(10)], 3, suffix=".jpg")
    for step in (5, 10):
        pictures.folder = tmp_path / f"step-{step:06d}"
        for number in (0, 1, 3):
            pictures.save(f"id{number}", IMAGE, MASK, MASK)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg")) == [
        "step-000005/id0.jpg", "step-000005/id3.jpg", "step-000010/id0.jpg", "step-000010/id3.jpg"
    ]  # fmt: skip
    assert list(pictures.saved()) == [  # id6 is another machine's
        (name, tmp_path / "step-000010" / f"{name}.jpg") for name in ("id0", "id3")
    ]


def test_large_pictures_are_made_smaller_where_asked(tmp_path: Path) -> None:
    labels = np.zeros((200, 2000), np.uint8)
    widths = []
    for longest_side in (None, 1800):
        pictures = Comparisons(tmp_path, LABELS, ["one/two"], 1, suffix=".jpg", longest_side=longest_side)
        pictures.save("one/two", np.zeros((200, 2000, 3), np.uint8), labels, labels)
        with Image.open(tmp_path / "one" / "two.jpg") as picture:
            assert picture.mode == "RGB"
            widths.append(picture.width)
    assert widths[0] > 3 * 2000 and widths[1] == 1800
