"""Further annotation files under generated content: nothing crashes, nothing is lost without a count."""

from __future__ import annotations

import base64
import io
import os
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segtune.data.config import DatasetConfig
from segtune.data.dataset import scan_dataset
from support.annotation_fuzz import SIZES, Files, as_bytes, fuzz, polygon, write_pictures

ROUNDS = int(os.environ.get("SEGTUNE_FUZZ_ROUNDS", "160"))  # of data sets a format
NAMES = ("car", "road")


def pairs(numbers: list[float]) -> list[list[float]]:
    return [list(pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]


def png(rng: random.Random, size: tuple[int, int]) -> bytes:
    pixels = np.zeros(size, np.uint8)
    pixels[rng.randrange(size[0]), rng.randrange(size[1])] = 255
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def box_of(rng: random.Random, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """left, top, width, height"""
    return rng.uniform(0, size[1] - 4), rng.uniform(0, size[0] - 4), rng.uniform(2, 4), rng.uniform(2, 4)


def make_labelme(rng: random.Random) -> dict[str, Any]:
    files = {}
    for name, size in SIZES.items():
        shapes: list[dict[str, Any]] = [{"label": rng.choice(NAMES), "points": pairs(polygon(rng, size))}]
        left, top, width, height = box_of(rng, size)
        corners = [[left, top], [left + width, top + height]]
        shapes.append({"label": "car", "points": corners, "shape_type": rng.choice(["rectangle", "circle", "line"])})
        if rng.random() < 0.3:
            mask = base64.b64encode(png(rng, (3, 3))).decode()
            shapes.append({"label": "road", "points": [[1, 1], [3, 3]], "shape_type": "mask", "mask": mask})
        height_width = {"imageHeight": size[0], "imageWidth": size[1]}
        files[f"{name}.json"] = {"shapes": shapes, "imagePath": f"{name}.png", "imageData": None, **height_width}
    return files


def make_label_studio(rng: random.Random) -> dict[str, Any]:
    tasks = []
    for number, (name, size) in enumerate(SIZES.items()):
        results = []
        for kind in rng.sample(["polygonlabels", "rectanglelabels", "ellipselabels", "bitmasklabels"], 2):
            left, top, width, height = (100 * part / size[1] for part in box_of(rng, (min(size), min(size))))
            value: dict[str, Any] = {"x": left, "y": top, "width": width, "height": height, "rotation": 0}
            if kind == "polygonlabels":
                value = {"points": [[100 * x / size[1], 100 * y / size[0]] for x, y in pairs(polygon(rng, size))]}
            if kind == "ellipselabels":
                value = {"x": 50, "y": 50, "radiusX": 30, "radiusY": 30, "rotation": 12.5}
            if kind == "bitmasklabels":
                value = {"imageDataURL": f"data:image/png;base64,{base64.b64encode(png(rng, size)).decode()}"}
            results.append(
                {
                    "id": f"r{len(results)}",
                    "type": kind,
                    "to_name": "image",
                    "original_width": size[1],
                    "original_height": size[0],
                    "value": {**value, kind: [rng.choice(NAMES)]},
                }
            )
        annotation = {"id": number, "was_cancelled": False, "result": results, "completed_by": 1}
        tasks.append(
            {"id": number, "data": {"image": f"/data/upload/1/0a1b2c3d-{name}.png"}, "annotations": [annotation]}
        )
    return {"export.json": tasks}


def make_cvat(rng: random.Random) -> dict[str, Any]:
    lines = ["<annotations>", "<version>1.1</version>", "<meta>", "<task>", "<labels>"]
    lines += [f"<label> <name>{name}</name> <type>any</type> </label>" for name in NAMES]
    lines += ["</labels>", "</task>", "</meta>"]
    for number, (name, size) in enumerate(SIZES.items()):
        lines.append(f'<image id="{number}" name="{name}.png" width="{size[1]}" height="{size[0]}">')
        points = ";".join(f"{x},{y}" for x, y in pairs(polygon(rng, size)))
        lines.append(
            f'<polygon label="{rng.choice(NAMES)}" points="{points}" z_order="{rng.randint(-1, 2)}"> </polygon>'
        )
        left, top, width, height = box_of(rng, size)
        ends = f'xtl="{left}" ytl="{top}" xbr="{left + width}" ybr="{top + height}"'
        lines.append(f'<box label="road" {ends} rotation="{rng.choice([0, 30.5])}"> </box>')
        lines.append('<mask label="car" rle="1, 2, 1" left="1" top="2" width="2" height="2"> </mask>')
        lines += [
            '<ellipse label="car" cx="4" cy="4" rx="2" ry="1.5"> </ellipse>',
            '<tag label="car"> </tag>',
            "</image>",
        ]
    return {"annotations.xml": "\n".join([*lines, "</annotations>", ""])}


def make_via(rng: random.Random) -> dict[str, Any]:
    data = {}
    for name, size in SIZES.items():
        points = pairs(polygon(rng, size))
        left, top, width, height = box_of(rng, size)
        shapes: list[dict[str, Any]] = [
            {"name": "polygon", "all_points_x": [x for x, _ in points], "all_points_y": [y for _, y in points]},
            {"name": "rect", "x": left, "y": top, "width": width, "height": height},
            {"name": "ellipse", "cx": 4, "cy": 4, "rx": 2, "ry": 1.5, "theta": 0.3},
            {"name": "circle", "cx": 4, "cy": 4, "r": 2},
            {"name": "point", "cx": 4, "cy": 4},
        ]
        regions = [
            {"shape_attributes": shape, "region_attributes": {"class": rng.choice(NAMES)}}
            for shape in rng.sample(shapes, 3)
        ]
        data[f"{name}.png9"] = {"filename": f"{name}.png", "size": 9, "regions": regions, "file_attributes": {}}
    return {"via.json": data}


def make_supervisely(rng: random.Random) -> dict[str, Any]:
    files: dict[str, Any] = {
        "meta.json": {"classes": [{"title": name, "shape": "polygon"} for name in NAMES], "tags": []}
    }
    for name, size in SIZES.items():
        stream = io.BytesIO()
        PIL.Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(stream, "PNG")
        files[f"ds/img/{name}.png"] = stream.getvalue()
        ring = pairs(polygon(rng, size))
        inner = [
            [(x + 3 * cx) / 4, (y + 3 * cy) / 4]
            for (x, y), (cx, cy) in ((point, np.mean(ring, 0).tolist()) for point in ring)
        ]
        left, top, width, height = box_of(rng, size)
        bitmap = base64.b64encode(zlib.compress(png(rng, (3, 3)))).decode()
        objects: list[dict[str, Any]] = [
            {"geometryType": "polygon", "points": {"exterior": ring, "interior": [inner]}},
            {"geometryType": "rectangle", "points": {"exterior": [[left, top], [left + width, top + height]]}},
            {"geometryType": "bitmap", "bitmap": {"data": bitmap, "origin": [1, 2]}},
            {"geometryType": "line", "points": {"exterior": [[0, 0], [1, 1]], "interior": []}},
        ]
        chosen = [{"classTitle": rng.choice(NAMES), **entry} for entry in rng.sample(objects, 3)]
        files[f"ds/ann/{name}.png.json"] = {
            "size": {"height": size[0], "width": size[1]},
            "tags": [],
            "objects": chosen,
        }
    return files


def make_rle(rng: random.Random) -> dict[str, Any]:
    lines = ["ImageId,EncodedPixels,ClassId"]
    for name, size in SIZES.items():
        for kind in (1, 2):
            runs = [
                f"{start} {rng.randint(1, 5)}" for start in range(1, size[0] * size[1] - 5, 12) if rng.random() < 0.5
            ]
            lines.append(f"{name}.png,{' '.join(runs)},{kind}")
    return {"train.csv": "\n".join(lines) + "\n"}


def make_table(rng: random.Random) -> dict[str, Any]:
    files: dict[str, Any] = {"labels.json": {"0": "background", "255": "car"}}
    lines = ["image;mask;split"]
    for name, size in SIZES.items():
        files[f"masks/{name}.png"] = png(rng, size)
        lines.append(f'{name}.png;"masks\\{name}.png";{rng.choice(["train", "val"])}')
    return {**files, "train.csv": "\n".join(lines) + "\n"}


def count_supervisely(files: Files) -> int | None:
    data = [content for name, content in files.items() if "/ann/" in name]
    fine = all(isinstance(one, dict) and isinstance(one.get("objects"), list) for one in data)
    return sum(len(one["objects"]) for one in data) if fine else None


FORMATS = {
    "labelme": (make_labelme, None),
    "label_studio": (make_label_studio, None),
    "cvat": (make_cvat, None),
    "via": (make_via, None),
    "supervisely": (make_supervisely, count_supervisely),
    "rle": (make_rle, None),
    "manifest": (make_table, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_generated_files(tmp_path: Path, format: str) -> None:
    make, count = FORMATS[format]
    outcomes = fuzz(make, format, ROUNDS, tmp_path, annotations=count)
    assert outcomes["valid"] == ROUNDS // 8 and outcomes["refused"] > ROUNDS / 8


@pytest.mark.parametrize("format", FORMATS)
def test_a_few_generated_files(tmp_path: Path, format: str) -> None:
    make, count = FORMATS[format]
    assert fuzz(make, format, 8, tmp_path, seed=1, annotations=count)["valid"] == 1


@pytest.mark.parametrize("format", ["label_studio", "cvat", "via", "supervisely"])
def test_words_for_background_and_what_is_ignored(tmp_path: Path, format: str) -> None:
    """They are no classes in any format: 0, and left out of the loss."""
    for own, word in (("car", "Background"), ("road", "__ignore__")):
        files = FORMATS[format][0](random.Random(3))
        write_pictures(tmp_path)
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            changed = content if isinstance(content, bytes) else as_bytes(content).replace(own.encode(), word.encode())
            (tmp_path / name).write_bytes(changed)
        index = scan_dataset(DatasetConfig(path=str(tmp_path), format=format))
        other = ({"car", "road"} - {own}).pop()
        assert set((index.classes or {}).values()) == {"background", other} and not index.problems
