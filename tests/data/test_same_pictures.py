"""One scene in every format: the same label map comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import PIL.Image
import pytest
import yaml

from segtune.data.checks import check_masks
from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset
from segtune.data.samples import read_pair

HEIGHT, WIDTH = 41, 57
NAMES = ("background", "road", "car", "tree")
COLORS = ((0, 0, 0), (128, 64, 128), (0, 0, 142), (107, 142, 35))
# In the order in which they are drawn: the car is in front of the road and behind the tree.
OUTLINES = {
    "road": [(2.2, 39.6), (50.7, 40.9), (56.9, 28.3), (30.1, 21.4), (3.4, 25.8)],
    "car": [(10, 20), (33, 20), (33, 36), (24, 36), (24, 30), (10, 30)],
    "tree": [(25.3, 3.1), (39.8, 2.4), (36.2, 33.7), (28.9, 35.2), (31.6, 14.8)],
}
LABELS = {"background": "background", "road": "road", "car": "car", "tree": "tree"}


def inside(outline: list[tuple[float, float]]) -> np.ndarray:
    """Which pixel centres an outline encloses, by counting the edges that a ray to the right crosses."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    crossings = np.zeros((HEIGHT, WIDTH), int)
    for (x0, y0), (x1, y1) in zip(outline, outline[1:] + outline[:1], strict=True):
        if y0 != y1:
            crossings += ((y0 <= y) != (y1 <= y)) & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return crossings % 2 == 1


def scene() -> np.ndarray:
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for name, outline in OUTLINES.items():
        ids[inside(outline)] = NAMES.index(name)
    return ids


def near_edges(ids: np.ndarray) -> np.ndarray:
    """Pixels that have a neighbour, also across a corner, of another class."""
    padded = np.pad(ids, 1, mode="edge")
    shifted = [padded[i : i + HEIGHT, j : j + WIDTH] for i in range(3) for j in range(3)]
    return np.any([neighbour != ids for neighbour in shifted], axis=0)


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(path)


def flat(outline: list[tuple[float, float]]) -> list[float]:
    return [number for point in outline for number in point]


# -- the formats ------------------------------------------------------------------------------------------------------


def pictures(root: Path, mask: PIL.Image.Image) -> None:
    (root / "masks").mkdir()
    mask.save(root / "masks" / "a.png")


def ids(root: Path) -> dict[str, Any]:
    pictures(root, PIL.Image.fromarray(scene()))
    return {"labels": list(NAMES)}


def ids_of_16_bit(root: Path) -> dict[str, Any]:
    pictures(root, PIL.Image.fromarray(scene().astype(np.uint16) * 300))
    return {"labels": {str(i * 300): name for i, name in enumerate(NAMES)}}


def palette(root: Path) -> dict[str, Any]:
    mask = PIL.Image.fromarray(scene())
    mask.putpalette(np.array(COLORS, np.uint8).ravel().tolist())
    pictures(root, mask)
    return {"labels": list(NAMES)}


def colors(root: Path) -> dict[str, Any]:
    pictures(root, PIL.Image.fromarray(np.array(COLORS, np.uint8)[scene()]))
    lines = [f"{red} {green} {blue}\t{name}" for (red, green, blue), name in zip(COLORS, NAMES, strict=True)]
    (root / "label_colors.txt").write_text("\n".join(lines))
    return {}


def numpy_ids(root: Path) -> dict[str, Any]:
    (root / "masks").mkdir()
    np.save(root / "masks" / "a.npy", scene().astype(np.float64))
    return {"labels": list(NAMES)}


def one_hot(root: Path) -> dict[str, Any]:
    (root / "masks").mkdir()
    np.savez_compressed(root / "masks" / "a.npz", mask=np.eye(4, dtype=bool)[scene()])
    return {"labels": list(NAMES), "one_hot": True}


def class_folders(root: Path) -> dict[str, Any]:
    for value, name in enumerate(NAMES):
        if value:
            (root / "masks" / name).mkdir(parents=True)
            PIL.Image.fromarray((scene() == value) * np.uint8(255)).save(root / "masks" / name / "a.png")
    return {"images": "images/*.*", "masks": "masks/{class}/*.png", "labels": list(NAMES)}


def coco(root: Path) -> dict[str, Any]:
    categories = [{"id": 3 * value, "name": name} for value, name in enumerate(NAMES) if value]
    annotations = [
        {"id": i, "image_id": 5, "category_id": 3 * NAMES.index(name), "segmentation": [flat(outline)], "iscrowd": 0}
        for i, (name, outline) in enumerate(OUTLINES.items())
    ]
    image = {"id": 5, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
    data = {"info": {}, "images": [image], "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(data))
    return {"on_top": "later"}


def labelme(root: Path) -> dict[str, Any]:
    shapes = [
        {"label": name, "points": outline, "group_id": None, "shape_type": "polygon", "flags": {}}
        for name, outline in OUTLINES.items()
    ]
    data = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": "a.png", "imageData": None}
    (root / "images" / "a.json").write_text(json.dumps(data | {"imageHeight": HEIGHT, "imageWidth": WIDTH}))
    return {"labels": LABELS}


def yolo(root: Path) -> dict[str, Any]:
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images", "val": None, "names": list(NAMES[1:])}))
    (root / "labels").mkdir()
    lines = [
        " ".join([str(NAMES.index(name) - 1), *(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in outline)])
        for name, outline in OUTLINES.items()
    ]
    (root / "labels" / "a.txt").write_text("\n".join(lines) + "\n")
    return {"on_top": "later"}


def cvat(root: Path) -> dict[str, Any]:
    annotations = ElementTree.Element("annotations")
    ElementTree.SubElement(annotations, "version").text = "1.1"
    labels = ElementTree.SubElement(
        ElementTree.SubElement(ElementTree.SubElement(annotations, "meta"), "task"), "labels"
    )
    for name in NAMES[1:]:
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
    image = ElementTree.SubElement(annotations, "image", id="0", name="a.png", width=str(WIDTH), height=str(HEIGHT))
    for z_order, (name, outline) in reversed(list(enumerate(OUTLINES.items()))):
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in outline)
        ElementTree.SubElement(image, "polygon", label=name, points=points, z_order=str(z_order), occluded="0")
    ElementTree.ElementTree(annotations).write(root / "annotations.xml")
    return {}


def label_studio(root: Path) -> dict[str, Any]:
    result = [
        {
            "original_width": WIDTH,
            "original_height": HEIGHT,
            "image_rotation": 0,
            "value": {"points": [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in outline], "polygonlabels": [name]},
            "type": "polygonlabels",
        }
        for name, outline in OUTLINES.items()
    ]
    task = {"id": 1, "annotations": [{"id": 1, "was_cancelled": False, "result": result}]}
    (root / "project-1.json").write_text(json.dumps([task | {"data": {"image": "/data/upload/1/0a1b2c3d-a.png"}}]))
    return {"labels": LABELS}


PICTURES = [ids, ids_of_16_bit, palette, colors, numpy_ids, one_hot, class_folders]
SHAPES = [coco, labelme, yolo, cvat, label_studio]


def labels_of(root: Path, make: Callable[[Path], dict[str, Any]]) -> np.ndarray:
    write_image(root / "images" / "a.png")
    dataset, label_map = open_dataset(DatasetConfig(path=str(root), **make(root)))
    assert label_map.names == NAMES
    check_masks(dataset, label_map)
    assert sorted(dataset["train"][0]) == ["id", "image", "mask"]
    image, labels = read_pair(dataset["train"][0], label_map)
    assert image.shape == (HEIGHT, WIDTH, 3)
    return labels


@pytest.mark.parametrize("make", PICTURES)
def test_pictures_and_arrays(tmp_path: Path, make: Callable[[Path], dict[str, Any]]) -> None:
    np.testing.assert_array_equal(labels_of(tmp_path, make), scene())


@pytest.mark.parametrize("make", SHAPES)
def test_shapes_up_to_a_pixel_of_the_edge(tmp_path: Path, make: Callable[[Path], dict[str, Any]]) -> None:
    found, expected = labels_of(tmp_path, make), scene()
    different = found != expected
    assert different.mean() < 0.005
    assert not (different & ~near_edges(expected)).any()


@pytest.mark.parametrize("make", SHAPES)
def test_shapes_of_whole_pixels_exactly(
    tmp_path: Path, make: Callable[[Path], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {name: [(round(x), round(y)) for x, y in outline[:2]] for name, outline in OUTLINES.items()}
    boxes = {name: [(x0, 3), (x0 + 18, 3), (x0 + 18, 39), (x0, 39)] for name, ((x0, _), _) in whole.items()}
    monkeypatch.setitem(globals(), "OUTLINES", boxes)
    np.testing.assert_array_equal(labels_of(tmp_path, make), scene())
