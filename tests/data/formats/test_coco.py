"""COCO's files as COCO, Roboflow and panopticapi write them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segtune.data.config import DatasetConfig
from segtune.data.dataset import load_segmentation_dataset, open_dataset, scan_dataset
from segtune.errors import DataError, UsageError
from segtune.imageio.read import read_mask

CATEGORIES = [
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "vehicle", "id": 3, "name": "car"},
    {"supercategory": "outdoor", "id": 13, "name": "stop sign"},
]


def write_image(path: Path, size: tuple[int, int] = (4, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)


def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotation(image_id: Any, category_id: int, segmentation: Any, iscrowd: int = 0) -> dict[str, Any]:
    entry = {"image_id": image_id, "category_id": category_id, "segmentation": segmentation, "iscrowd": iscrowd}
    return entry | {"id": id(entry), "bbox": [0, 0, 1, 1], "area": 1.0}


def instances(names: dict[int, str], annotations: list[dict[str, Any]], size: tuple[int, int] = (4, 6)) -> str:
    images = [{"id": i, "file_name": name, "height": size[0], "width": size[1]} for i, name in names.items()]
    return json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": CATEGORIES})


@pytest.fixture
def coco2017(tmp_path: Path) -> Path:
    """train2017, val2017 and annotations/ with the files of other tasks."""
    folder = tmp_path / "annotations"
    folder.mkdir()
    for name in ("train2017/000000000009.jpg", "train2017/000000000025.jpg", "val2017/000000000139.jpg"):
        write_image(tmp_path / name)
    crowd = {"size": [4, 6], "counts": [0, 4, 20]}  # the first column
    train = [
        annotation(9, 3, box(0, 0, 6, 2)),
        annotation(9, 13, box(1, 0, 2, 4)),
        annotation(9, 1, crowd, iscrowd=1),
    ]
    names = {9: "000000000009.jpg", 25: "000000000025.jpg"}
    (folder / "instances_train2017.json").write_text(instances(names, train))
    (folder / "instances_val2017.json").write_text(
        instances({139: "000000000139.jpg"}, [annotation(139, 1, {"size": [4, 6], "counts": "04d0"})])
    )
    for other in ("captions_train2017", "person_keypoints_val2017", "image_info_test2017"):
        (folder / f"{other}.json").write_text(instances(names, []))
    return tmp_path


def masks(dataset: Any, split: str = "train") -> list[Any]:
    return [read_mask(row["mask"]) for row in dataset[split]]


def test_layout_of_2017(coco2017: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        dataset, label_map = open_dataset(DatasetConfig(path=str(coco2017)))
    assert {split: list(rows["id"]) for split, rows in dataset.items()} == {
        "train": ["000000000009", "000000000025"],
        "val": ["000000000139"],
    }
    assert label_map.names == ("background", "person", "car", "stop sign")
    assert "read as coco, since annotations/instances_train2017.json looks like it" in caplog.text
    assert "1 of 3 images have no annotation; all of them is background" in caplog.text
    first, second = masks(dataset)
    # car on top, the narrower sign before it; the crowd below both, ignored
    assert np.ma.filled(first, 9).tolist() == [[2, 3, 2, 2, 2, 2]] * 2 + [[9, 3, 0, 0, 0, 0]] * 2
    assert second.tolist() == [[0] * 6] * 4
    assert masks(dataset, "val")[0].tolist() == [[1, 0, 0, 0, 0, 0]] * 4
    assert label_map.encode(first)[3].tolist() == [255, 3, 0, 0, 0, 0]


def test_crowds_as_their_class_and_the_order_of_the_file(coco2017: Path) -> None:
    dataset = load_segmentation_dataset(coco2017, crowd="class", on_top="later")
    assert masks(dataset)[0].tolist() == [[2, 3, 2, 2, 2, 2]] * 2 + [[1, 3, 0, 0, 0, 0]] * 2


def test_labels_by_name_merge_ignore_and_order(coco2017: Path) -> None:
    labels = {"stop sign": "thing", "car": "thing", "background": None, "person": "person"}
    _, label_map = open_dataset(DatasetConfig(path=str(coco2017), labels=labels))
    assert label_map.names == ("thing", "person")
    dataset, label_map = open_dataset(DatasetConfig(path=str(coco2017), labels=labels))
    assert label_map.encode(masks(dataset)[0]).tolist() == [[0] * 6] * 2 + [[255, 0, 255, 255, 255, 255]] * 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ["background", "person", "car"],
            r'stop sign: not named, though the data has it; ignore .*{"stop sign": null}',
        ),
        (
            {"person": "person", "tree": "tree"},
            "dataset.labels: background, car, stop sign: not named.*and no 'tree'",
        ),
        ({"1": "person"}, "background, car, stop sign: not named"),
    ],
)
def test_labels_must_speak_of_every_class(coco2017: Path, labels: Any, message: str) -> None:
    config = DatasetConfig(path=str(coco2017), labels=labels)
    with pytest.raises(UsageError, match=message):
        open_dataset(config)


def test_layout_of_roboflow(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        name = f"{split}_jpg.rf.0a1b2c.jpg"
        write_image(tmp_path / split / name)
        (tmp_path / split / "_annotations.coco.json").write_text(
            instances({0: name}, [annotation(0, 3, box(0, 0, 1, 1))])
        )
    dataset = load_segmentation_dataset(tmp_path)
    assert {split: list(rows["id"]) for split, rows in dataset.items()} == {
        "train": ["train_jpg.rf.0a1b2c"],
        "val": ["valid_jpg.rf.0a1b2c"],
        "test": ["test_jpg.rf.0a1b2c"],
    }


def test_images_of_one_name_in_several_splits(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_image(tmp_path / "images" / split / "1.jpg")
        path = tmp_path / "annotations" / f"{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(instances({0: "1.jpg"}, [annotation(0, 1, box(0, 0, 1, 1))]))
    index = scan_dataset(DatasetConfig(path=str(tmp_path)))
    assert [(s.split, s.image.parent.name) for s in index.samples] == [("train", "train"), ("val", "val")]


def test_several_files_of_one_split_are_a_question(coco2017: Path) -> None:
    (coco2017 / "annotations" / "stuff_train2017.json").write_text(instances({}, []))
    with pytest.raises(
        UsageError, match=r"several annotation files for train: annotations/instances_train2017\.json, ann"
    ):
        load_segmentation_dataset(coco2017, format="coco")
    dataset = load_segmentation_dataset(
        coco2017, masks="annotations/instances_{split}.json", splits={"train": "train2017", "val": "val2017"}
    )
    assert set(dataset) == {"train", "val"}
    (coco2017 / "annotations" / "stuff_train2017.json").unlink()
    assert set(load_segmentation_dataset(coco2017, splits={"train": "train2017", "val": "val2017"})) == {"train", "val"}
    dataset = load_segmentation_dataset(coco2017, masks="annotations/instances_val2017.json", val_fraction=0)
    assert set(dataset) == {"train"}
    with pytest.raises(
        UsageError, match=r"no COCO file annotations/absent\.json; name one in .* \(there are annotations/"
    ):
        load_segmentation_dataset(coco2017, format="coco", masks="annotations/absent.json")


def test_faults_are_named(coco2017: Path) -> None:
    (coco2017 / "train2017" / "000000000025.jpg").unlink()
    write_image(coco2017 / "val2017" / "000000000139.jpg", (6, 4))
    path = coco2017 / "annotations" / "instances_train2017.json"
    data = json.loads(path.read_text())
    data["annotations"].append({"id": 77, "image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1]})
    path.write_text(json.dumps(data))
    with pytest.raises(DataError) as error:
        load_segmentation_dataset(coco2017)
    assert "annotations without a segmentation, all of person (1): annotations/inst" in str(error.value)
    assert "annotated images that are not there (1): 000000000025.jpg" in str(error.value)
    assert "(1): val2017/000000000139.jpg ((6, 4)), annotated as (4, 6)" in str(error.value)
    assert "annotations/instances_train2017.json: annotation 77" in str(error.value)
    with pytest.raises(DataError, match="annotations without a segmentation"):  # boxes would become background
        load_segmentation_dataset(coco2017, on_error="skip")


def test_other_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": 5}')
    with pytest.raises(UsageError, match=r"a\.json is no COCO file: it needs the lists images, annotations and cat"):
        load_segmentation_dataset(tmp_path, format="coco", masks="a.json")


def test_panoptic_pictures(tmp_path: Path) -> None:
    """Numbers R + 256 G + 65536 B; 0 is void."""
    write_image(tmp_path / "val2017" / "000000000139.jpg", (1, 4))
    png = tmp_path / "annotations" / "panoptic_val2017" / "000000000139.png"
    png.parent.mkdir(parents=True)
    PIL.Image.fromarray(np.array([[[5, 1, 0], [0, 0, 2], [0, 0, 0], [9, 0, 0]]], np.uint8)).save(png)
    segments = [
        {"id": 5 + 256, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1},
        {"id": 2 * 65536, "category_id": 13, "iscrowd": 0, "bbox": [1, 0, 1, 1], "area": 1},
        {"id": 9, "category_id": 3, "iscrowd": 1, "bbox": [3, 0, 1, 1], "area": 1},
    ]
    data = {
        "images": [{"id": 139, "file_name": "000000000139.jpg", "height": 1, "width": 4}],
        "annotations": [{"image_id": 139, "file_name": "000000000139.png", "segments_info": segments}],
        "categories": CATEGORIES,
    }
    (tmp_path / "annotations" / "panoptic_val2017.json").write_text(json.dumps(data))
    dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert label_map.names == ("person", "car", "stop sign")
    assert label_map.encode(masks(dataset, "val")[0]).tolist() == [[0, 2, 255, 255]]
    dataset = load_segmentation_dataset(tmp_path, crowd="class")
    assert label_map.encode(masks(dataset, "val")[0]).tolist() == [[0, 2, 255, 1]]
    segments.pop()
    (tmp_path / "annotations" / "panoptic_val2017.json").write_text(json.dumps(data))
    with pytest.raises(
        DataError, match=r"000000000139\.png: the picture holds segment 9, which its annotation does not"
    ):
        masks(load_segmentation_dataset(tmp_path), "val")
    png.unlink()
    with pytest.raises(DataError, match=r"panoptic pictures that are not there \(1\): 000000000139\.png.*panoptic_val"):
        load_segmentation_dataset(tmp_path)
