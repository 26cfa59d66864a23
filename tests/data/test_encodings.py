"""Text in the encodings of Windows: annotation files, label files and lists say the same in each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset
from segtune.data.lazy_rows import decoded
from segtune.data.samples import read_pair
from segtune.errors import UsageError
from segtune.files import decode_text

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]
SQUARE = [2, 2, 8, 2, 8, 6, 2, 6]


def pixels_of_the_box(root: Path, **settings: Any) -> int:
    rows, label_map = open_dataset(DatasetConfig(path=str(root), val_fraction=0, **settings))
    assert label_map.names == ("background", "box")
    return int((read_pair(decoded(rows["train"][0]), label_map)[1] == 1).sum())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    PIL.Image.fromarray(np.arange(16 * 12 * 3, dtype=np.uint8).reshape(12, 16, 3)).save(tmp_path / "images" / "a.png")
    return tmp_path


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings(root: Path, encoding: str, newline: str) -> None:
    def write(name: str, text: str) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.replace("\n", newline).encode(encoding))

    entry = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [SQUARE]}
    images = [{"id": 1, "file_name": "a.png", "width": 16, "height": 12}]
    coco = {"images": images, "annotations": [entry], "categories": [{"id": 1, "name": "box"}]}
    write("coco.json", json.dumps(coco, indent=1))
    assert pixels_of_the_box(root) == 24
    (root / "coco.json").unlink()
    points = " ".join(str(value / (12 if place % 2 else 16)) for place, value in enumerate(SQUARE))
    write("data.yaml", "names: [box]\ntrain: list.txt\n")
    write("list.txt", "./images/a.png\n")
    write("labels/a.txt", f"0 {points}\n")
    assert pixels_of_the_box(root) == 24
    (root / "data.yaml").unlink()
    (root / "labels" / "a.txt").unlink()
    shape = {"label": "box", "points": [*zip(SQUARE[::2], SQUARE[1::2], strict=True)], "shape_type": "polygon"}
    labelme = {"shapes": [shape], "imagePath": "a.png", "imageHeight": 12, "imageWidth": 16}
    write("images/a.json", json.dumps(labelme, indent=1))
    assert pixels_of_the_box(root) == 24
    (root / "images" / "a.json").unlink()
    mask = np.zeros((12, 16), np.uint8)
    mask[2:6, 2:8] = 1
    PIL.Image.fromarray(mask).save(root / "labels" / "a.png")
    for name, text in (("labels.json", '["background",\n"box"]'), ("classes.txt", "background\nbox\n")):
        write(name, text)
        assert pixels_of_the_box(root) == 24
        (root / name).unlink()


def test_other_encodings_are_told(root: Path) -> None:
    PIL.Image.fromarray(np.zeros((12, 16), np.uint8)).save(root / "a_mask.png")
    (root / "labels.json").write_bytes('["Bäume"]'.encode("latin-1"))
    with pytest.raises(UsageError, match=r"labels\.json: cannot read the class names: it is not UTF-8 \(byte 3\)"):
        open_dataset(DatasetConfig(path=str(root), images="images/*.png", masks="*_mask.png"))


def test_text_of_bytes() -> None:
    assert [decode_text("a€".encode(encoding)) for encoding in ENCODINGS] == ["a€"] * 5
    assert decode_text(b"") == "" and decode_text("ä".encode()) == "ä"
    assert decode_text(b"a\xff", "replace") == "a\N{REPLACEMENT CHARACTER}"


def test_broken_files_are_named(root: Path) -> None:
    (root / "data.yaml").write_text("names:\n\t- box\ntrain: images\n")
    with pytest.raises(UsageError, match=r"data\.yaml is no data\.yaml of YOLO.*line 2 is no YAML"):
        open_dataset(DatasetConfig(path=str(root)))
