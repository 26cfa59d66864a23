"""COCO and YOLO under generated files: nothing crashes, nothing is lost without a count."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from pycocotools import mask as coco

from support.annotation_fuzz import SIZES, Files, fuzz, polygon

ROUNDS = int(os.environ.get("SEGTUNE_FUZZ_ROUNDS", "400"))  # of data sets a format


def make_coco(rng: random.Random) -> dict[str, Any]:
    images = [
        {"id": i, "file_name": f"{name}.png", "height": size[0], "width": size[1]}
        for i, (name, size) in enumerate(SIZES.items(), start=1)
    ]
    annotations: list[dict[str, Any]] = []
    for image in images:
        size = image["height"], image["width"]
        for _ in range(rng.randint(1, 3)):
            outline = polygon(rng, size)
            segmentation: Any = [outline] if rng.random() < 0.7 else coco.frPyObjects([outline], *size)[0]
            if isinstance(segmentation, dict):
                segmentation = {"size": list(size), "counts": segmentation["counts"].decode()}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": rng.choice([1, 3]),
                    "segmentation": segmentation,
                    "iscrowd": 0,
                    "area": 9.0,
                    "bbox": [0, 0, 3, 3],
                }
            )
    categories = [{"id": 1, "name": "car"}, {"id": 3, "name": "road"}]
    return {"train.json": {"images": images, "annotations": annotations, "categories": categories}}


def annotations_of_coco(files: Files) -> int | None:
    data = files["train.json"]
    return len(data["annotations"]) if isinstance(data, dict) and isinstance(data.get("annotations"), list) else None


def make_panoptic(rng: random.Random) -> dict[str, Any]:
    """Its pictures are images of one colour, number 90 + 256 * 90 + 65536 * 90."""
    data = make_coco(rng)["train.json"]
    number = 90 * (1 + 256 + 65536)
    data["annotations"] = [
        {
            "image_id": image["id"],
            "file_name": image["file_name"],
            "segments_info": [{"id": number, "category_id": rng.choice([1, 3]), "iscrowd": 0}],
        }
        for image in data["images"]
    ]
    return {"train.json": data}


def make_yolo(rng: random.Random) -> dict[str, Any]:
    files: dict[str, Any] = {"data.yaml": "path: .\ntrain: .\nnc: 2\nnames: [car, road]\n"}
    for name, size in SIZES.items():
        lines = []
        for _ in range(rng.randint(1, 3)):
            numbers = polygon(rng, size)
            parts = [f"{number / size[1 - i % 2]:.6f}" for i, number in enumerate(numbers)]
            lines.append(" ".join([str(rng.randint(0, 1)), *parts]))
        files[f"{name}.txt"] = "\n".join(lines) + "\n"
    return files


def lines_of_yolo(files: Files) -> int | None:
    texts = [content for name, content in files.items() if name.endswith(".txt")]
    if not all(isinstance(text, str) for text in texts):
        return None
    return sum(bool(line.strip()) for text in texts for line in text.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "make", "count"),
    [("coco", make_coco, annotations_of_coco), ("coco", make_panoptic, None), ("yolo", make_yolo, lines_of_yolo)],
)
def test_generated_files(tmp_path: Path, format: str, make: Any, count: Any) -> None:
    outcomes = fuzz(make, format, ROUNDS, tmp_path, annotations=count)
    assert outcomes["valid"] == ROUNDS // 8 and outcomes["refused"] > ROUNDS / 4


def test_a_few_generated_files(tmp_path: Path) -> None:
    for name, make, count in (("coco", make_coco, annotations_of_coco), ("yolo", make_yolo, lines_of_yolo)):
        (tmp_path / name).mkdir()
        assert fuzz(make, name, 12, tmp_path / name, seed=1, annotations=count)["valid"] == 2
