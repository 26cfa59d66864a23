"""COCO and YOLO against independent readers, on generated files.

COCO's files are read by pycocotools' own API, run lengths and outlines by its annToMask, and put on top of each other
by the rule of docs/data.md. Which pixels an outline encloses is asked of matplotlib, for the centre of each pixel: the
two may differ where a centre lies within half a pixel of the outline, as pycocotools rounds outlines to a fifth of a
pixel. YOLO's readers of others (ultralytics, supervision) need torchvision or another build of OpenCV; its oracle is
the format's definition, class x y x y … in parts of width and height, drawn by matplotlib.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outlined
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset
from segtune.imageio.read import read_mask

Outline = list[float]
SETTINGS = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@st.composite
def outlines(draw: Any, height: int, width: int) -> Outline:
    """A simple polygon: corners around a centre, some of them outside of the picture, whole or fractional."""
    x, y = draw(st.floats(0, width)), draw(st.floats(0, height))
    count = draw(st.integers(3, 12))
    rng = random.Random(draw(st.integers(0, 2**32)))
    angles = sorted((i + rng.uniform(0, 0.9)) * 2 * math.pi / count for i in range(count))
    radii = [rng.uniform(1, 0.7 * max(height, width)) for _ in angles]
    digits = draw(st.sampled_from([0, 2, 6]))
    ends = [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
    return [round(number, digits) for end in ends for number in end]


@st.composite
def scenes(draw: Any) -> tuple[tuple[int, int], list[tuple[int, Outline]]]:
    """The size of a picture, and outlines with the number of their class, 0 or 1."""
    size = draw(st.integers(5, 40)), draw(st.integers(5, 40))
    count = draw(st.integers(1, 5))
    return size, [(draw(st.integers(0, 1)), draw(outlines(*size))) for _ in range(count)]


def rasterized(outline: Outline, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Which centres of pixels (H, W) an outline encloses, and which lie within half a pixel of it."""
    corners = np.reshape(outline, (-1, 2))
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)  # (H W, 2)
    inside = Outlined(corners).contains_points(centres)
    starts, ends = corners, np.roll(corners, -1, axis=0)
    along = ends - starts
    lengths = np.maximum((along**2).sum(axis=1), 1e-12)
    share = np.clip(((centres[:, None] - starts) * along).sum(axis=2) / lengths, 0, 1)  # (H W, edges)
    distance = np.linalg.norm(centres[:, None] - (starts + share[..., None] * along), axis=2).min(axis=1)
    return inside.reshape(size), (distance <= 0.5).reshape(size)


def layered(shapes: list[tuple[int, np.ndarray]], size: tuple[int, int]) -> np.ndarray:
    """Mask values where the smaller shape is on top; of one size, the later one."""
    mask = np.zeros(size, int)
    for value, covered in sorted(shapes, key=lambda shape: -int(shape[1].sum())):
        mask[covered] = value
    return mask


def write_picture(folder: Path, size: tuple[int, int]) -> None:
    PIL.Image.new("RGB", (size[1], size[0])).save(folder / "a.png")


def own_mask(folder: Path, **options: Any) -> np.ndarray | None:
    """The only mask, as ids of the label map; None where all annotations were lost, which is an error."""
    config = DatasetConfig(path=str(folder), val_fraction=0, on_error="skip", **options)
    dataset, label_map = open_dataset(config)
    return label_map.encode(read_mask(dataset["train"][0]["mask"]))


def visible(shapes: list[tuple[int, np.ndarray]]) -> bool:
    return all(covered.sum() > 6 for _, covered in shapes)


@pytest.mark.slow
@SETTINGS
@given(scenes(), st.data())
def test_coco_is_read_as_pycocotools_reads_it(tmp_path: Path, scene: Any, data: Any) -> None:
    size, polygons = scene
    write_picture(tmp_path, size)
    annotations: list[dict[str, Any]] = []
    for number, (kind, outline) in enumerate(polygons, start=1):
        how = data.draw(st.sampled_from(["outline", "two outlines", "compressed", "numbers"]))
        segmentation: Any = [outline]
        if how == "two outlines":
            segmentation = [outline, data.draw(outlines(*size))]
        elif how != "outline":
            (rle,) = coco_mask.frPyObjects([outline], *size)
            segmentation = {"size": list(size), "counts": rle["counts"].decode()}
            if how == "numbers":
                flat = coco_mask.decode(rle).T.ravel()
                ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
                counts = np.diff(ends).tolist()
                segmentation["counts"] = [0, *counts] if flat[0] else counts
        annotations.append(
            {"id": number, "image_id": 7, "category_id": [3, 90][kind], "segmentation": segmentation}
            | {"iscrowd": 0, "area": 1.0, "bbox": [0, 0, 1, 1]}
        )
    images = [{"id": 7, "file_name": "a.png", "height": size[0], "width": size[1]}]
    categories = [{"id": 90, "name": "road"}, {"id": 3, "name": "car"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "train.json").write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(str(tmp_path / "train.json"))
    shapes = []
    for entry in api.loadAnns(api.getAnnIds(imgIds=[7])):
        shapes.append(([1, 2][entry["category_id"] == 90], api.annToMask(entry).astype(bool)))
    assume(visible(shapes))  # all of a class may be lost: an error
    assert np.array_equal(own_mask(tmp_path, format="coco"), layered(shapes, size))


def write_yolo(folder: Path, size: tuple[int, int], polygons: list[tuple[int, Outline]]) -> None:
    write_picture(folder, size)
    lines = []
    for kind, outline in polygons:
        parts = [number / size[1 - i % 2] for i, number in enumerate(outline)]
        lines.append(" ".join([str(kind), *map(repr, parts)]))
    (folder / "a.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text("train: .\nnames: [car, road]\n")


@pytest.mark.slow
@SETTINGS
@given(scenes())
def test_yolo_is_what_its_lines_say(tmp_path: Path, scene: Any) -> None:
    size, polygons = scene
    rasters = [(kind + 1, *rasterized(outline, size)) for kind, outline in polygons]
    shapes = [(value, inside) for value, inside, _ in rasters]
    areas = sorted(int(inside.sum()) for _, inside in shapes)
    assume(visible(shapes) and all(b - a > 4 + a // 4 for a, b in pairwise(areas)))  # or the boundary says
    write_yolo(tmp_path, size, polygons)
    own, expected = own_mask(tmp_path, format="yolo"), layered(shapes, size)
    boundary = np.any([near for _, _, near in rasters], axis=0)
    assert not (own != expected)[~boundary].any()


@pytest.mark.slow
def test_whole_corners_leave_no_doubt(tmp_path: Path) -> None:
    """Outlines along the edges of pixels: matplotlib, pycocotools and both formats agree in every pixel."""
    size, rng = (20, 30), random.Random(0)
    for _ in range(20):
        left, top = rng.randrange(20), rng.randrange(12)
        right, bottom = left + rng.randint(2, 10), top + rng.randint(2, 8)
        outline = [float(n) for n in (left, top, right, top, right, bottom, left, bottom)]
        inside, _ = rasterized(outline, size)
        assert inside[top:bottom, left:right].all() and inside.sum() == (bottom - top) * (right - left)
        write_yolo(tmp_path, size, [(1, outline)])
        assert np.array_equal(own_mask(tmp_path, format="yolo"), np.where(inside, 2, 0))
