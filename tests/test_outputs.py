from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtune.errors import UsageError
from segtune.labels import LabelMap
from segtune.outputs import Comparisons, find_images, mask_paths, overlay_path, save_mask

LABELS = LabelMap.from_names(["sky", "road"], colors=[(1, 2, 3), (250, 240, 230)])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a/one.jpg", "a/two.PNG", "a/notes.txt", "a/deep/three.jpg", "b/one.jpg", "odd[1].jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


def found(photos: Path, *patterns: str) -> list[str]:
    return [path.relative_to(photos).as_posix() for path in find_images([f"{photos}/{p}" for p in patterns])]


def test_files_folders_and_globs(photos: Path) -> None:
    assert found(photos, "a") == ["a/one.jpg", "a/two.PNG"]
    assert found(photos, "b/one.jpg", "a/one.jpg") == ["b/one.jpg", "a/one.jpg"]
    assert found(photos, "*/one.jpg") == ["a/one.jpg", "b/one.jpg"]
    assert found(photos, "a/**/*.jpg") == ["a/deep/three.jpg", "a/one.jpg"]
    assert found(photos, "odd[1].jpg") == ["odd[1].jpg"]


def test_images_named_twice_are_taken_once_in_the_first_place(photos: Path) -> None:
    assert found(photos, "b/one.jpg", "a", "b", "a/../a/one.jpg") == ["b/one.jpg", "a/one.jpg", "a/two.PNG"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("a/none.jpg", "a/none.jpg: no such image"), ("*.gif", "no such image"), ("empty", "no images in this folder")],
)
def test_nothing_found(photos: Path, pattern: str, message: str) -> None:
    (photos / "empty").mkdir()
    with pytest.raises(UsageError, match=message):
        find_images([str(photos / "a"), str(photos / pattern)])


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["in/a.jpg"], ["a.png"]),
        (["in/a.jpg", "in/b.jpg"], ["a.png", "b.png"]),
        (["x/a.jpg", "y/a.jpg"], ["x/a.png", "y/a.png"]),
        (["x/a.jpg", "x/deep/a.jpg"], ["a.png", "deep/a.png"]),
        (["in/a.jpg", "in/a.bmp", "in/b.jpg"], ["a.jpg.png", "a.bmp.png", "b.png"]),
        (["in/v1.0.jpg", "in/v1.1.jpg"], ["v1.0.png", "v1.1.png"]),
    ],
)
def test_mask_paths_are_unique(tmp_path: Path, images: list[str], masks: list[str]) -> None:
    out = tmp_path / "out"
    assert mask_paths([tmp_path / image for image in images], out) == [out / mask for mask in masks]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    images = [tmp_path / "a.jpg", tmp_path / "a_overlay.jpg"]
    assert mask_paths(images, tmp_path / "out") == [tmp_path / "out" / "a.png", tmp_path / "out" / "a_overlay.png"]
    with pytest.raises(UsageError, match=r"a_overlay\.png would be written twice"):
        mask_paths(images, tmp_path / "out", overlays=True)


def test_masks_do_not_lie_among_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for output in (tmp_path / "in", tmp_path / "link", tmp_path / "in" / ".." / "in"):
        with pytest.raises(UsageError, match="would lie among the input images"):
            mask_paths([tmp_path / "in" / "a.png"], output)
    monkeypatch.chdir(tmp_path / "in")
    with pytest.raises(UsageError, match="would lie among the input images"):
        mask_paths([Path("a.png")], Path())
    assert mask_paths([Path("a.png")], Path("masks")) == [Path("masks/a.png")]
    assert os.listdir() == []  # nothing is made yet


def test_overlay_lies_beside_its_mask() -> None:
    assert overlay_path(Path("out/a.b.png")) == Path("out/a.b_overlay.png")


def test_mask_keeps_ids_and_shows_colours(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 1], [1, 0, 0]], dtype=np.uint8)
    save_mask(labels, LABELS, tmp_path / "new" / "mask.png")
    with Image.open(tmp_path / "new" / "mask.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.array(mask), labels)
        assert np.array(mask.convert("RGB"))[0, :2].tolist() == [[1, 2, 3], [250, 240, 230]]


def test_mask_of_256_labels_fills_the_palette(tmp_path: Path) -> None:
    label_map = LabelMap.from_names([f"c{i}" for i in range(256)], ignore_index=-100)
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save_mask(labels, label_map, tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.array(mask), labels)


def test_mask_of_more_labels_has_16_bits(tmp_path: Path) -> None:
    label_map = LabelMap.from_names([f"c{i}" for i in range(300)], ignore_index=-100)
    labels = np.array([[0, 255, 256, 299]], dtype=np.int32)
    save_mask(labels, label_map, tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode.startswith("I")
        assert np.array(mask).tolist() == labels.tolist()


def test_comparisons_are_spread_over_the_split(tmp_path: Path) -> None:
    ids = [f"drive/{i}" for i in range(20)]
    pictures = Comparisons(tmp_path / "out", LABELS, ids, limit=8)
    assert pictures.ids == [f"drive/{i}" for i in (0, 2, 5, 7, 10, 12, 15, 17)]
    labels = np.zeros((20, 30), dtype=np.uint8)
    for sample_id in reversed(ids):  # in any order
        pictures.save(sample_id, np.zeros((20, 30, 3), np.uint8), labels, labels)
    pictures.save_overview()
    assert {path.stem for path in (tmp_path / "out" / "drive").iterdir()} == {i.split("/")[1] for i in pictures.ids}
    folder = tmp_path / "out"
    with Image.open(folder / "drive" / "0.png") as one, Image.open(folder / "overview.png") as sheet:
        assert sheet.width > 2 * one.width
        assert sheet.height > 3 * one.height


def test_overview_of_a_single_picture(tmp_path: Path) -> None:
    pictures = Comparisons(tmp_path, LABELS, ["one"], limit=12)
    labels = np.zeros((20, 30), dtype=np.uint8)
    pictures.save("one", np.zeros((20, 30, 3), np.uint8), labels, labels)
    pictures.save_overview()
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "overview.png") as sheet:
        assert sheet.size == one.size
