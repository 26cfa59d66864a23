"""What is written for annotation tools comes back through segtune's own readers as the masks of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset
from segtune.errors import UsageError
from segtune.imageio.read import read_mask
from segtune.labels.label_map import LabelMap
from segtune.selection.preannotate import Form, PreAnnotated, Tool, flat_names, write_annotations

NAMES = ["sky", "road", "car", "absent"]  # neither in the order of the alphabet, nor all there
PLAIN = LabelMap.from_names(NAMES, [(0, 0, 255), (128, 0, 0), (0, 200, 0), (1, 2, 3)])
WITH_BACKGROUND = LabelMap.from_names(["sky", "background", "car"])
TOOLS = get_args(Tool)


def scene(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth regions with holes in holes, single pixels, and regions that touch at a corner."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    labels = (smooth // 86).astype(np.uint8)
    labels[8:20, 8:24], labels[10:18, 10:22], labels[12:16, 12:20] = 0, 1, 2
    labels[13, 14] = 0
    labels[30:34, 30:34] = np.indices((4, 4)).sum(0) % 2
    return labels


def write(folder: Path, tool: Tool, maps: dict[str, np.ndarray], label_map: LabelMap, **form: Any) -> Path:
    """The folder for a tool, of pictures of noise."""
    pool = folder / "pool"
    pool.mkdir(parents=True)
    images = []
    for name, labels in maps.items():
        noise = np.random.default_rng(len(images)).integers(0, 255, (*labels.shape, 3), dtype=np.uint8)
        Image.fromarray(noise).save(pool / name)
        images.append(PreAnnotated(pool / name, labels, 0.5))
    target = folder / tool
    names = flat_names(image.path for image in images)
    write_annotations(target, images, names, label_map, Form(tool, **form), "runs/x")
    if tool == "labelstudio":  # whose export has what was accepted as an annotation
        tasks = json.loads((target / "import" / "tasks.json").read_text(encoding="utf-8"))
        for number, task in enumerate(tasks):
            task |= {"id": number, "annotations": [{"result": task.pop("predictions")[0]["result"]}]}
        (target / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    return target


def masks_of(folder: Path) -> tuple[dict[str, np.ndarray], LabelMap]:
    """The training ids that segtune reads, by the names of the images; nothing is said about the format."""
    dataset, label_map = open_dataset(DatasetConfig(path=str(folder), val_fraction=0))
    rows = dataset["train"]
    return {Path(row["id"]).name: label_map.encode(read_mask(row["mask"])) for row in rows}, label_map


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
