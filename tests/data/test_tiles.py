"""Large images in tiles."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from segtune.data.config import DatasetConfig
from segtune.data.dataset import load_segmentation_dataset, open_dataset, save_split, scan_dataset
from segtune.data.index import Sample
from segtune.data.tiles import spans as _spans
from segtune.data.tiles import tiled, without_tile
from segtune.errors import UsageError
from segtune.imageio.read import read_mask


@pytest.mark.parametrize(
    ("length", "side", "overlap", "spans"),
    [
        (100, 100, 0, [(0, 100)]),
        (60, 100, 20, [(0, 60)]),
        (200, 100, 0, [(0, 100), (100, 200)]),
        (250, 100, 0, [(0, 100), (75, 175), (150, 250)]),
        (180, 100, 20, [(0, 100), (80, 180)]),
        (181, 100, 20, [(0, 100), (40, 140), (81, 181)]),
        (250, 100, None, [(0, 83), (83, 166), (166, 250)]),
        (101, 100, None, [(0, 50), (50, 101)]),
    ],
)
def test_spans(length: int, side: int, overlap: int | None, spans: list[tuple[int, int]]) -> None:
    assert list(_spans(length, side, overlap)) == spans
    if overlap is not None:
        assert all(one[1] - two[0] >= overlap for one, two in pairwise(spans))


def test_ids_of_tiles() -> None:
    sample = Sample("a/b", "train", Path("b.png"), Path("m.png"), (70, 40))
    tiles = tiled([sample, sample._replace(id="c", size=(40, 40))], 40, 0)
    assert [(tile.id, tile.size) for tile in tiles] == [("a/b@0,0", (40, 40)), ("a/b@30,0", (40, 40)), ("c", (40, 40))]
    assert tiles[1].image_part == '{"window": [30, 0, 40, 40]}'
    assert tiles[2].image_part == ""
    assert [without_tile(tile.id) for tile in tiles] == ["a/b", "a/b", "c"]
    assert without_tile("a@home") == "a@home"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    for split, suffix in (("train", "png"), ("val", "tif")):
        for kind, offset in (("images", 0), ("masks", 1)):
            pixels = (np.arange(70 * 90).reshape(70, 90) % 251 + offset).astype(np.uint8)
            (tmp_path / kind / split).mkdir(parents=True)
            PIL.Image.fromarray(pixels).save(tmp_path / kind / split / f"x.{suffix}")
    return tmp_path


def test_every_pixel_is_read_from_its_place(large: Path) -> None:
    whole = np.arange(70 * 90).reshape(70, 90) % 251
    dataset = load_segmentation_dataset(large, tile=40, overlap=8)
    covered = {split: np.zeros((70, 90), int) for split in dataset}
    for split, rows in dataset.items():
        for row in rows:
            top, left = map(int, row["id"].split("@")[1].split(","))
            image, mask = np.asarray(row["image"]), read_mask(row["mask"])
            area = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
            np.testing.assert_array_equal(image, whole[area])
            np.testing.assert_array_equal(mask, whole[area] + 1)
            covered[split][area] += 1
    assert (covered["val"] == 1).all()
    assert covered["train"].min() == 1
    assert len(dataset["train"]) == 2 * 3


def _polygons(size: tuple[int, int]) -> list[list[float]]:
    """Outlines all over a picture, so that no part of its mask is like another: x, y, x, y, …"""
    height, width = size
    rng = np.random.default_rng(5)
    corners = [(rng.uniform(0, width - 20), rng.uniform(0, height - 15)) for _ in range(12)]
    return [[x, y, x + 7 + 2 * i, y + 1, x + 5, y + 14 - i] for i, (x, y) in enumerate(corners)]


def _coco(root: Path, size: tuple[int, int]) -> None:
    shapes = [
        {"id": i, "image_id": 1, "category_id": 1 + i % 3, "segmentation": [outline], "iscrowd": 0}
        for i, outline in enumerate(_polygons(size))
    ]
    image = {"id": 1, "file_name": "images/x.png", "height": size[0], "width": size[1]}
    categories = [{"id": i, "name": name} for i, name in enumerate(("car", "road", "tree"), start=1)]
    content = {"images": [image], "categories": categories, "annotations": shapes}
    (root / "annotations.json").write_text(json.dumps(content))


def _labelme(root: Path, size: tuple[int, int], embedded: bool = False) -> None:
    shapes = [
        {"label": ("car", "road", "tree")[i % 3], "points": np.reshape(outline, (-1, 2)).tolist()}
        for i, outline in enumerate(_polygons(size))
    ]
    content = {"shapes": shapes, "imagePath": "x.png", "imageHeight": size[0], "imageWidth": size[1]}
    if embedded:
        content["imageData"] = base64.b64encode((root / "images/x.png").read_bytes()).decode()
        (root / "images/x.png").unlink()
    (root / "images/x.json").write_text(json.dumps(content))


def _yolo(root: Path, size: tuple[int, int]) -> None:
    (root / "data.yaml").write_text("names: [car, road, tree]\ntrain: images\n")
    (root / "labels").mkdir()
    lines = [
        f"{i % 3} " + " ".join(str(v / size[1 - j % 2]) for j, v in enumerate(outline))
        for i, outline in enumerate(_polygons(size))
    ]
    (root / "labels/x.txt").write_text("\n".join(lines))


@pytest.mark.parametrize("write", [_coco, _labelme, partial(_labelme, embedded=True), _yolo])
def test_tiles_of_drawn_masks_are_parts_of_the_whole(tmp_path: Path, write: Callable[..., None]) -> None:
    size = (70, 90)
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "images/x.png")
    write(tmp_path, size)
    (whole,) = load_segmentation_dataset(tmp_path, val_fraction=0)["train"]
    mask = read_mask(whole["mask"])
    assert mask.shape == size and set(np.unique(mask)) == {0, 1, 2, 3}
    tiles = load_segmentation_dataset(tmp_path, val_fraction=0, tile=40, overlap=8)["train"]
    assert len(tiles) == 2 * 3
    for row in tiles:
        top, left = map(int, row["id"].split("@")[1].split(","))
        area = slice(top, top + 40), slice(left, left + 40)
        np.testing.assert_array_equal(read_mask(row["mask"]), mask[area])
        np.testing.assert_array_equal(np.asarray(row["image"]), pixels[area])


def test_splits_are_drawn_from_images_and_saved_by_image(large: Path) -> None:
    for name in "yz":
        for kind in ("images", "masks"):
            (large / kind / "train" / f"{name}.png").write_bytes((large / kind / "train" / "x.png").read_bytes())
            (large / kind / "val" / "x.tif").unlink(missing_ok=True)
    for kind in ("images", "masks"):
        (large / kind / "val").rmdir()
    dataset = load_segmentation_dataset(large, tile=40, val_fraction=0.3)
    images = {split: {without_tile(i) for i in rows["id"]} for split, rows in dataset.items()}
    assert (len(images["train"]), len(images["val"])) == (2, 1)
    save_split(dataset, large / "split.json")
    again = load_segmentation_dataset(large, tile=40, split_file="split.json", split_seed=7)
    assert {split: list(rows["id"]) for split, rows in again.items()} == {
        split: list(rows["id"]) for split, rows in dataset.items()
    }


def test_rows_of_tables_are_not_cut(tmp_path: Path) -> None:
    from datasets import Dataset

    pictures = {"image": [PIL.Image.new("RGB", (6, 4))], "mask": [PIL.Image.new("L", (6, 4))]}
    Dataset.from_dict(pictures).save_to_disk(tmp_path)
    with pytest.raises(UsageError, match="tile cuts image files"):
        open_dataset(DatasetConfig(path=str(tmp_path), tile=64))


def test_samples_know_their_size(large: Path) -> None:
    index = scan_dataset(DatasetConfig(path=str(large), tile=64))
    assert {sample.size for sample in index.samples} == {(64, 64), (35, 45)}
