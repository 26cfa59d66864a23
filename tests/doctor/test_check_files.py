from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtune.data.config import DatasetConfig, TransformConfig
from segtune.data.index import Sample
from segtune.doctor.examine import examine
from segtune.recipe.recipe import Recipe

ORIENTATION = 0x0112


def save_with_orientation(array: np.ndarray, orientation: int) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        picture = Image.fromarray(array)
        exif = picture.getexif()
        exif[ORIENTATION] = orientation
        picture.save(path, exif=exif)

    return save


def cut(array: np.ndarray) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        Image.fromarray(array).save(path)
        path.write_bytes(path.read_bytes()[:-40])

    return save


def write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def test_sound_samples_have_no_finding(diagnose: Any, noise: Any, stripes: np.ndarray) -> None:
    diagnosis = diagnose({"train": [(noise(), stripes)] * 3, "val": [(noise(), stripes[:, ::-1])]})
    assert [f.code for f in diagnosis.findings if f.severity != "info"] == ["duplicates"]  # of the one image in train
    assert [
        f.code for f in diagnose({"train": [(noise(), stripes), (noise(), stripes), (noise(), stripes)]}).findings
    ] == []


def test_lone_files_are_unpaired(diagnose: Any, noise: Any, stripes: np.ndarray, tmp_path: Path) -> None:
    diagnose({"train": [(noise(), stripes)] * 4})
    (tmp_path / "masks" / "train" / "train00.png").unlink()
    (tmp_path / "images" / "train" / "train01.png").unlink()
    Image.fromarray(noise()).save(tmp_path / "images" / "train" / "train02.jpg")
    found = {f.message.partition(" (")[0]: f for f in diagnose({}).findings if f.severity == "error"}
    assert {(f.code, f.files) for f in found.values()} == {
        ("unpaired", ("images/train/train00.png",)),
        ("unpaired", ("masks/train/train01.png",)),
        ("ambiguous-name", ("images/train/train02.jpg",)),
    }
    assert found["files that share a name"].drop[0].id == "train02"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (partial(write, b""), "the file is empty"),
        (partial(write, b"<html>429</html>"), "it is no picture, or of an unknown format"),
        (cut(np.random.default_rng(0).integers(0, 3, (16, 16), dtype=np.uint8)), "truncated"),
    ],
)
def test_damaged_file_is_named_with_its_fault(
    diagnose: Any, noise: Any, stripes: np.ndarray, content: Any, why: str
) -> None:
    diagnosis = diagnose({"train": [(noise(), stripes), (noise(), content), (noise(), stripes)]})
    (found,) = (finding for finding in diagnosis.findings if finding.severity == "error")
    assert (found.code, found.files) == ("unreadable", ("masks/train/train01.png",))
    assert why in found.message and why in found.numbers["faults"]["train01"]
    assert [sample.id for sample in found.drop] == ["train01"]


def test_sizes_that_differ_are_explained(find: Any, noise: Any, stripes: np.ndarray) -> None:
    pairs = [(noise((16, 20)), np.zeros((20, 16), np.uint8)), (noise(), stripes[::2, ::2]), (noise(), stripes)]
    found = find("size-mismatch", {"train": pairs})
    assert found.severity == "error"
    assert found.files == ("masks/train/train00.png", "masks/train/train01.png")
    assert "such as 16x20 and 20x16" in found.message
    assert "in 1 height and width are exchanged" in found.message and "2 times as high" in found.message
    assert found.numbers["sizes"]["train01"] == {"image": [16, 16], "mask": [8, 8]}


def test_orientation_of_the_image_alone_is_told_from_other_sizes(find: Any, noise: Any) -> None:
    mask = np.zeros((16, 20), np.uint8)
    pairs = [(save_with_orientation(noise((16, 20)), 6), mask), (noise((16, 20)), mask)]
    found = find("exif-mismatch", {"train": pairs})
    assert (found.severity, found.files) == ("error", ("images/train/train00.png",))
    assert found.numbers["orientations"] == {"train00": 6}
    assert find("size-mismatch", {"train": pairs}) is None


def test_mask_of_the_size_that_is_shown_was_drawn_on_it(find: Any, noise: Any) -> None:
    """Orientation 6 exchanges height and width: a mask of the shown size is right, one of a square may be wrong."""
    for orientation, size, severity in ((6, (16, 20), None), (6, (16, 16), "warning"), (0, (16, 20), None)):
        shown = size if orientation == 0 else size[::-1]
        pair = save_with_orientation(noise(size), orientation), np.zeros(shown, np.uint8)
        found = find("exif-mismatch", {"train": [pair]})
        assert (found and found.severity) == severity
        if found:
            assert found.fix[0].startswith("look at them (segtune data preview): only of those")


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_nothing_speaks_against_annotations_of_turned_photographs(tmp_path: Path, noise: Any, orientation: int) -> None:
    """Annotation tools show photographs as viewers do: to remove the orientation would break what is right."""
    pytest.importorskip("pycocotools")
    height, width = (16, 20) if orientation == 3 else (20, 16)
    box = [[2, 2, 8, 2, 8, 8, 2, 8]]
    entry = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "segmentation": box,
        "iscrowd": 0,
        "area": 36,
        "bbox": [2, 2, 6, 6],
    }
    save_with_orientation(noise((16, 20)), orientation)(tmp_path / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": height, "width": width}],
        "annotations": [entry],
        "categories": [{"id": 1, "name": "box"}],
    }
    (tmp_path / "instances_train.json").write_text(json.dumps(content))
    recipe = Recipe(dataset=DatasetConfig(path=str(tmp_path), format="coco"), transforms=TransformConfig(crop_size=16))
    assert [f for f in examine(recipe).findings if f.code == "exif-mismatch"] == []


def test_orientation_of_both_is_right(find: Any, noise: Any) -> None:
    pair = save_with_orientation(noise((16, 20)), 6), save_with_orientation(np.zeros((16, 20), np.uint8), 6)
    assert find("exif-mismatch", {"train": [pair]}) is None


@pytest.mark.parametrize(("turned", "severity"), [(False, "error"), (True, None)])
def test_picture_upside_down_is_compared_with_its_mask(
    camvid: Path, diagnose: Any, turned: bool, severity: str | None
) -> None:
    """Orientation 3 keeps the size: whether the mask was drawn on the turned picture must be seen."""
    name = "0001TP_006690"
    image = np.asarray(Image.open(camvid / "images" / "train" / f"{name}.jpg"))
    mask = np.asarray(Image.open(camvid / "masks" / "train" / f"{name}.png"))
    mask = mask[::-1, ::-1] if turned else mask
    diagnosis = diagnose(
        {"train": [(save_with_orientation(image, 3), mask)]}, labels={str(i): str(i) for i in range(12)}
    )
    assert [f.severity for f in diagnosis.findings if f.code == "exif-mismatch"] == ([severity] if severity else [])


def test_samples_of_findings_are_samples_of_the_scan(diagnose: Any, noise: Any, stripes: np.ndarray) -> None:
    diagnosis = diagnose({"train": [(noise(), partial(write, b"")), (noise(), stripes)]})
    (found,) = (finding for finding in diagnosis.findings if finding.code == "unreadable")
    assert isinstance(found.samples[0], Sample)
    assert found.samples[0] in diagnosis.case.index.rejected
