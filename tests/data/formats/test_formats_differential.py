"""LabelMe, CVAT, Label Studio, VIA, Supervisely and run lengths against independent oracles, on generated scenes.

One scene is written in every format; all of them must give the same mask, in every pixel. What an outline encloses is
asked of matplotlib, for the centre of each pixel. The two may differ where a centre lies within half a pixel of an
outline, since pycocotools, which draws all outlines, rounds them to a fifth of a pixel: there segtune follows COCO's
own masks, everywhere else the definition. Ellipses are compared with their equation, and run lengths with an encoder
that goes pixel by pixel.

The tools' own readers are no test dependencies: labelme 6.3 needs Qt, label-studio-sdk 2.1 and datumaro 1.13 contradict
the pinned versions of other packages. labelme's `shape_to_mask` and the brush encoder of label-studio-sdk were compared
once, from their files alone; docs/formats.md has what came out.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outlined

from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset
from segtune.imageio.read import read_mask

Points = list[tuple[float, float]]
Scene = tuple[tuple[int, int], list[tuple[int, Points]]]
NAMES = ("car", "road")  # in the order of the alphabet, as readers number them
SETTINGS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@st.composite
def scenes(draw: Any) -> Scene:
    """The (height, width) of a picture, and outlines around places in it, each with the number of its class."""
    size = draw(st.integers(8, 40)), draw(st.integers(8, 40))
    rng = random.Random(draw(st.integers(0, 2**32)))
    shapes = []
    for number in range(draw(st.integers(2, 5))):
        x, y, corners = rng.uniform(0, size[1]), rng.uniform(0, size[0]), rng.randint(3, 12)
        angles = [(i + rng.uniform(0, 0.9)) * 2 * math.pi / corners for i in range(corners)]
        radii = [rng.uniform(2, 0.7 * max(size)) for _ in angles]
        digits = draw(st.sampled_from([0, 2, 6]))
        ends = [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
        shapes.append((number % 2, [(round(x, digits), round(y, digits)) for x, y in ends]))
    return size, shapes


def write_picture(folder: Path, size: tuple[int, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (size[1], size[0])).save(folder / "a.png")


def write_labelme(folder: Path, scene: Scene) -> None:
    size, shapes = scene
    write_picture(folder, size)
    entries = [{"label": NAMES[kind], "points": points, "shape_type": "polygon"} for kind, points in shapes]
    stated = {"imagePath": "a.png", "imageData": None, "imageHeight": size[0], "imageWidth": size[1]}
    (folder / "a.json").write_text(json.dumps({"version": "5.5.0", "shapes": entries, **stated}))


def write_cvat(folder: Path, scene: Scene) -> None:
    """The shapes backwards in the file: z_order says which is on top."""
    (height, width), shapes = scene
    write_picture(folder, (height, width))
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for name in NAMES:
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
    image = ElementTree.SubElement(root, "image", name="a.png", height=str(height), width=str(width))
    for order, (kind, points) in reversed(list(enumerate(shapes))):
        text = ";".join(f"{x!r},{y!r}" for x, y in points)
        ElementTree.SubElement(image, "polygon", label=NAMES[kind], points=text, z_order=str(order))
    ElementTree.ElementTree(root).write(folder / "annotations.xml")


def write_label_studio(folder: Path, scene: Scene) -> None:
    (height, width), shapes = scene
    write_picture(folder, (height, width))
    results = []
    for number, (kind, points) in enumerate(shapes):
        shares = [[100 * x / width, 100 * y / height] for x, y in points]
        value = {"points": shares, "closed": True, "polygonlabels": [NAMES[kind]]}
        size = {"original_width": width, "original_height": height}
        results.append({"id": f"r{number}", "type": "polygonlabels", "to_name": "image", "value": value, **size})
    task = {"id": 1, "data": {"image": "/data/upload/1/0a1b2c3d-a.png"}, "annotations": [{"result": results}]}
    (folder / "export.json").write_text(json.dumps([task]))


def write_via(folder: Path, scene: Scene) -> None:
    size, shapes = scene
    write_picture(folder, size)
    regions = []
    for kind, points in shapes:
        ends = {"all_points_x": [x for x, _ in points], "all_points_y": [y for _, y in points]}
        regions.append({"shape_attributes": {"name": "polygon", **ends}, "region_attributes": {"class": NAMES[kind]}})
    entry = {"filename": "a.png", "size": 1, "regions": regions, "file_attributes": {}}
    (folder / "via.json").write_text(json.dumps({"a.png1": entry}))


def write_supervisely(folder: Path, scene: Scene) -> None:
    size, shapes = scene
    write_picture(folder / "ds/img", size)
    objects = [
        {"classTitle": NAMES[kind], "geometryType": "polygon", "points": {"exterior": points, "interior": []}}
        for kind, points in shapes
    ]
    (folder / "ds/ann").mkdir(parents=True, exist_ok=True)
    content = {"size": {"height": size[0], "width": size[1]}, "tags": [], "objects": objects}
    (folder / "ds/ann/a.png.json").write_text(json.dumps(content))


WRITERS = {
    "labelme": write_labelme,
    "cvat": write_cvat,
    "label_studio": write_label_studio,
    "via": write_via,
    "supervisely": write_supervisely,
}


def mask_of(folder: Path, format: str) -> np.ndarray:
    dataset, label_map = open_dataset(DatasetConfig(path=str(folder), format=format, val_fraction=0))
    assert label_map.names == ("background", *NAMES)[: label_map.num_labels]
    return label_map.encode(read_mask(dataset["train"][0]["mask"]))


def rasterized(points: Points, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Which centres of pixels (H, W) an outline encloses, and which lie within half a pixel of it."""
    corners = np.array(points)
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)  # (H W, 2)
    inside = Outlined(corners).contains_points(centres)
    along = np.roll(corners, -1, axis=0) - corners
    lengths = np.maximum((along**2).sum(axis=1), 1e-12)
    share = np.clip(((centres[:, None] - corners) * along).sum(axis=2) / lengths, 0, 1)  # (H W, edges)
    distance = np.linalg.norm(centres[:, None] - (corners + share[..., None] * along), axis=2).min(axis=1)
    return inside.reshape(size), (distance <= 0.5).reshape(size)


@pytest.mark.slow
@SETTINGS
@given(scenes())
def test_one_scene_in_every_format(tmp_path: Path, scene: Scene) -> None:
    size, shapes = scene
    rasters = [(kind + 1, *rasterized(points, size)) for kind, points in shapes]
    assume(all(inside.sum() > 6 for _, inside, _ in rasters))  # what covers no pixel is an error
    expected, doubtful = np.zeros(size, int), np.zeros(size, bool)
    for value, inside, near in rasters:  # the later one is on top
        expected[inside] = value
        doubtful |= near
    found = {}
    for format, write in WRITERS.items():
        write(tmp_path / format, scene)
        found[format] = mask_of(tmp_path / format, format)
        assert not (found[format] != expected)[~doubtful].any(), format
    first = found["labelme"]
    # Label Studio stores hundredths of the sides: coordinates come back with another last digit.
    assert all(np.array_equal(first, mask) for format, mask in found.items() if format != "label_studio")
    assert np.mean(first != found["label_studio"]) < 0.01


@pytest.mark.slow
@SETTINGS
@given(st.integers(0, 2**32))
def test_ellipses_and_turned_boxes(tmp_path: Path, seed: int) -> None:
    """CVAT turns them around their centre; Label Studio an ellipse so too, a box around its upper left corner."""
    rng, size = random.Random(seed), (30, 40)
    x, y, across, down = rng.uniform(8, 32), rng.uniform(8, 22), rng.uniform(3, 12), rng.uniform(3, 8)
    degrees = rng.choice([0, 90, rng.uniform(0, 360)])
    turn = math.radians(degrees)
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    u = (columns - x) * math.cos(turn) + (rows - y) * math.sin(turn)
    v = (rows - y) * math.cos(turn) - (columns - x) * math.sin(turn)
    ellipse = (u / across) ** 2 + (v / down) ** 2
    box = np.maximum(np.abs(u) - across, np.abs(v) - down)  # distance outside of the turned box
    corner = (
        x - across * math.cos(turn) + down * math.sin(turn),
        y - across * math.sin(turn) - down * math.cos(turn),
    )
    write_picture(tmp_path / "cvat", size)
    write_picture(tmp_path / "label_studio", size)
    stated = {"original_width": size[1], "original_height": size[0]}
    for kind in ("ellipse", "box"):
        shape = (
            f'<ellipse label="car" cx="{x}" cy="{y}" rx="{across}" ry="{down}" rotation="{degrees}"/>'
            if kind == "ellipse"
            else f'<box label="car" xtl="{x - across}" ytl="{y - down}" xbr="{x + across}" ybr="{y + down}" '
            f'rotation="{degrees}"/>'
        )
        (tmp_path / "cvat/annotations.xml").write_text(
            f'<annotations><version>1.1</version><image name="a.png" height="{size[0]}" width="{size[1]}">{shape}'
            "</image></annotations>"
        )
        value = (
            {"x": x / size[1], "y": y / size[0], "radiusX": across / size[1], "radiusY": down / size[0]}
            if kind == "ellipse"
            else {"x": corner[0] / size[1], "y": corner[1] / size[0]}
            | {"width": 2 * across / size[1], "height": 2 * down / size[0]}
        )
        value = {key: 100 * number for key, number in value.items()}
        region = {"id": "r", "value": {**value, "rotation": degrees, "labels": ["car"]}, **stated}
        task = {"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": [region]}]}
        (tmp_path / "label_studio/export.json").write_text(json.dumps([task]))
        inside, sure = (
            (ellipse <= 1, np.abs(ellipse - 1) > 1e-6) if kind == "ellipse" else (box <= 0, np.abs(box) > 0.5)
        )
        for format in ("cvat", "label_studio"):
            mask = mask_of(tmp_path / format, format).astype(bool)
            assert np.array_equal(mask[sure], inside[sure]), (kind, format, degrees)


@pytest.mark.slow
@SETTINGS
@given(st.integers(0, 2**32))
def test_painted_pixels_in_every_format(tmp_path: Path, seed: int) -> None:
    """Pixels at random, as runs of CVAT and of Kaggle: exactly these are drawn."""
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(4, 20, 2).tolist())
    painted = rng.random(size) < rng.choice([0.1, 0.5, 0.9])
    painted[0, 0] = True
    write_picture(tmp_path / "cvat", size)
    write_picture(tmp_path / "rle", size)
    runs, last = [0], False
    for pixel in painted.ravel().tolist():
        if pixel == last:
            runs[-1] += 1
        else:
            runs.append(1)
        last = pixel
    sides, rle = f'height="{size[0]}" width="{size[1]}"', ", ".join(map(str, runs))
    (tmp_path / "cvat/annotations.xml").write_text(
        f'<annotations><version>1.1</version><image name="a.png" {sides}><mask label="car" rle="{rle}" left="0" '
        f'top="0" {sides}/></image></annotations>'
    )
    pairs = [f"{number} 1" for number, pixel in enumerate(painted.T.ravel().tolist(), start=1) if pixel]
    (tmp_path / "rle/train.csv").write_text(f"ImageId,EncodedPixels,class\na.png,{' '.join(pairs)},car\n")
    for format in ("cvat", "rle"):
        assert np.array_equal(mask_of(tmp_path / format, format).astype(bool), painted), format
