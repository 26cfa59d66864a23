"""What is written for annotation tools comes back through segtune's own readers as the masks of the model."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pycocotools.coco import COCO

from segtune.errors import UsageError
from segtune.labels.label_map import LabelMap
from segtune.selection.preannotate import Tool, check_names, flat_names
from support.preannotations import PLAIN, masks_of, scene, write

WITH_BACKGROUND = LabelMap.from_names(["sky", "background", "car"])
TOOLS = get_args(Tool)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("label_map", [PLAIN, WITH_BACKGROUND], ids=["plain", "background"])
def test_masks_come_back_pixel_by_pixel(tmp_path: Path, tool: Tool, label_map: LabelMap) -> None:
    maps = {"a.png": scene(50, 60, 0), "b 1.jpg": scene(61, 47, 1)}
    found, read = masks_of(write(tmp_path, tool, maps, label_map))
    assert read.names == label_map.names and read.colors == label_map.colors
    assert set(found) == {"a", "b 1"}
    for name, labels in maps.items():
        assert np.array_equal(found[Path(name).stem], labels), name


@pytest.mark.parametrize("tool", TOOLS)
def test_what_no_shape_covers_is_ignored(tmp_path: Path, tool: Tool) -> None:
    labels = scene(50, 60, 0)
    labels[:, 50:] = PLAIN.ignore_index
    found, label_map = masks_of(write(tmp_path, tool, {"a.png": labels}, PLAIN))
    assert np.array_equal(found["a"], np.where(labels == PLAIN.ignore_index, label_map.ignore_index, labels))


@pytest.mark.parametrize("tool", TOOLS)
def test_simplified_borders_move_no_farther_than_they_may(tmp_path: Path, tool: Tool) -> None:
    labels = scene(200, 240, 2)
    labels[30:34, 30:34], labels[13, 14], labels[8:20, 8:24] = 0, 0, 0
    found, _ = masks_of(write(tmp_path, tool, {"a.png": labels}, PLAIN, simplify=1.0, min_region=16))
    moved = found["a"] != labels
    inner = np.ones_like(moved)  # farther than two pixels from another class
    for down in range(-2, 3):
        for across in range(-2, 3):
            inner[2:-2, 2:-2] &= np.roll(labels, (down, across), (0, 1))[2:-2, 2:-2] == labels[2:-2, 2:-2]
    inner[:2] = inner[-2:] = inner[:, :2] = inner[:, -2:] = False
    assert 0 < moved.mean() < 0.02
    assert not (moved & inner).any()


def test_pycocotools_reads_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = scene(50, 60, 0)
    coco = COCO(str(write(tmp_path, "coco", {"a.png": labels}, PLAIN) / "annotations.json"))
    found, covered = np.full(labels.shape, 255, np.uint8), np.zeros(labels.shape, int)
    for annotation in coco.loadAnns(coco.getAnnIds()):
        inside = coco.annToMask(annotation).astype(bool)
        found[inside] = annotation["category_id"] - 1
        covered += inside
    assert np.array_equal(found, labels) and (covered == 1).all()
    assert any(isinstance(annotation["segmentation"], dict) for annotation in coco.anns.values())  # with holes


def test_images_are_copied_or_linked(tmp_path: Path) -> None:
    maps = {"a.png": scene(50, 60, 0)}
    copy = write(tmp_path / "1", "cvat", maps, PLAIN) / "images" / "a.png"
    link = write(tmp_path / "2", "labelme", maps, PLAIN, link=True) / "a.png"
    assert not copy.is_symlink() and link.is_symlink()
    assert copy.read_bytes() == (tmp_path / "1" / "pool" / "a.png").read_bytes()
    assert link.resolve() == (tmp_path / "2" / "pool" / "a.png").resolve()
    assert np.array_equal(masks_of(link.parent)[0]["a"], maps["a.png"])


def test_names_in_one_folder_are_told_apart() -> None:
    paths = [Path(name) for name in ("x/a.jpg", "y/a.jpg", "y/A.png", "classes.png", "a-2.png")]
    names = flat_names(paths)
    assert list(names.values()) == ["a.jpg", "a-2.jpg", "A-3.png", "classes-2.png", "a-2-2.png"]
    with pytest.raises(UsageError, match=r"CON\.png cannot be given to an annotation tool"):
        flat_names([Path("x/CON.png")])


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "\x00"])
def test_names_that_no_file_of_a_tool_holds_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be given to an annotation tool, it has control characters"):
        check_names(LabelMap.from_names(["road", name]))
    check_names(LabelMap.from_names(["road", "Straße & <b>"]))
