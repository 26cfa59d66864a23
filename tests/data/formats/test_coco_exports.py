"""COCO's files as other tools write them, or damage them: the right mask, or an error that names the entry."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset
from segtune.errors import DataError, SegtuneError
from segtune.imageio.read import read_mask

SIZE = (8, 12)
A, B = [1, 1, 5, 1, 5, 3, 1, 3], [6, 2, 10, 2, 10, 7, 6, 7]  # 8 and 20 pixels
Data = dict[str, Any]


def rle(outline: list[int]) -> Data:
    """A box as run lengths, column by column."""
    left, top, right, bottom = outline[0], outline[1], outline[2], outline[5]
    covered = np.zeros(SIZE, bool)
    covered[top:bottom, left:right] = True
    flat = covered.T.ravel()
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    return {"size": list(SIZE), "counts": [b - a for a, b in pairwise(ends)]}


def coco(names: tuple[str, ...] = ("im0.png", "im1.png"), ids: tuple[Any, ...] = (1, 2)) -> Data:
    """Images with a box A and a box B each; the categories have the ids 1 and 2, or others."""
    images = [{"id": i, "file_name": name, "height": 8, "width": 12} for i, name in enumerate(names, start=1)]
    annotations = []
    for image in images:
        for category, outline in zip(ids, (A, B), strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category, "iscrowd": 0}
                | {"segmentation": [outline]}
            )
    categories = [{"id": ids[0], "name": "A"}, {"id": ids[1], "name": "B"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(root: Path, data: Data, name: str = "train.json", folder: str = "") -> None:
    (root / folder).mkdir(exist_ok=True, parents=True)
    (root / folder / name).write_text(json.dumps(data))
    for image in data["images"]:
        path = root / folder / str(image["file_name"])
        path.parent.mkdir(exist_ok=True)
        PIL.Image.new("RGB", (SIZE[1], SIZE[0])).save(path)


def pixels(root: Path, **options: Any) -> list[dict[str, int]]:
    """Class -> pixels of each mask, those that are ignored as "ignored"."""
    dataset, label_map = open_dataset(DatasetConfig(path=str(root), **{"val_fraction": 0, **options}))
    found = []
    for rows in dataset.values():
        for row in rows:
            counts = label_map.count_pixels(label_map.encode(read_mask(row["mask"]))).tolist()
            found.append(dict(zip([*label_map.names, "ignored"], counts, strict=True)))
    return found


RIGHT = {"background": 68, "A": 8, "B": 20, "ignored": 0}


def test_the_boxes_themselves(tmp_path: Path) -> None:
    write(tmp_path, coco())
    assert pixels(tmp_path) == [RIGHT, RIGHT]


def test_splits_that_number_their_categories_differently(tmp_path: Path) -> None:
    write(tmp_path, coco(("im0.png", "im1.png")), "_annotations.coco.json", "train")
    write(tmp_path, coco(("im2.png",), ids=(2, 1)), "_annotations.coco.json", "valid")
    assert pixels(tmp_path) == [RIGHT] * 3


def test_a_category_that_only_one_split_has(tmp_path: Path) -> None:
    other = coco(("im2.png",), ids=(7, 9))
    other["categories"].append({"id": 1, "name": "C"})
    other["annotations"][1]["category_id"] = 1
    write(tmp_path, coco(), "_annotations.coco.json", "train")
    write(tmp_path, other, "_annotations.coco.json", "valid")
    *train, val = pixels(tmp_path)
    assert train == [RIGHT | {"C": 0}] * 2 and val == RIGHT | {"B": 0, "C": 20}


@pytest.mark.parametrize("text", ["images", "annotations", "categories", "category_id"])
def test_ids_as_text_and_as_numbers_are_the_same(tmp_path: Path, text: str) -> None:
    data = coco()
    for image in data["images"] if text == "images" else ():
        image["id"] = str(image["id"])
    for annotation in data["annotations"]:
        if text == "annotations":
            annotation["image_id"] = float(annotation["image_id"])
        if text == "category_id":
            annotation["category_id"] = str(annotation["category_id"])
    for category in data["categories"] if text == "categories" else ():
        category["id"] = str(category["id"])
    write(tmp_path, data)
    assert pixels(tmp_path) == [RIGHT, RIGHT]


@pytest.mark.parametrize("offset", [10, -1])
def test_annotations_of_images_that_are_not_listed(tmp_path: Path, offset: int) -> None:
    data = coco()
    for annotation in data["annotations"]:
        annotation["image_id"] += offset
    write(tmp_path, data)
    with pytest.raises(DataError, match=r"images that are not listed.*train\.json: annotation \d \(image \d+\)"):
        pixels(tmp_path)


def test_images_that_have_one_id(tmp_path: Path) -> None:
    data, other = coco(), coco(("im3.png", "im4.png"))
    for key in ("images", "annotations"):
        data[key] += other[key]
    write(tmp_path, data)
    with pytest.raises(DataError, match=r"image ids that .* once \(2\): train\.json: id 1 is im0\.png and im3\.png"):
        pixels(tmp_path)


@pytest.mark.parametrize("both", [True, False])
def test_painted_masks_that_are_marked_as_crowds(tmp_path: Path, both: bool) -> None:
    data = coco()
    for annotation in data["annotations"]:
        if both or annotation["category_id"] == 2:
            annotation |= {"segmentation": rle(annotation["segmentation"][0]), "iscrowd": 1}
    write(tmp_path, data)
    with pytest.raises(DataError, match=r"have iscrowd 1 in train\.json \(\d\):.*B \(2 of 2\).*dataset\.crowd=class"):
        pixels(tmp_path)
    assert pixels(tmp_path, crowd="class") == [RIGHT, RIGHT]
    ignored = pixels(tmp_path, crowd="ignore")[0]
    assert (ignored["A"], ignored["B"]) == (0 if both else 8, 0)


def test_a_few_crowds_are_no_question(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = coco()
    data["annotations"][0]["iscrowd"] = 1
    write(tmp_path, data)
    with caplog.at_level(logging.INFO):
        assert pixels(tmp_path)[0] == RIGHT | {"A": 0, "ignored": 8}
    assert "4 annotations: 3 drawn, 1 crowd regions" in caplog.text


def edit(**change: Any) -> Callable[[Data], None]:
    """Changes the second annotation, a B."""
    return lambda data: data["annotations"][1].update(change)


def remove(key: str) -> Callable[[Data], None]:
    return lambda data: data["annotations"][1].pop(key) and data["annotations"][1].pop("id")


FAR = [500003.5, 5399994.0, 500015.5, 5399994.0, 500015.5, 5399984.0]
FAULTS: dict[str, tuple[Callable[[Data], Any], str]] = {
    "empty outline": (edit(segmentation=[[]]), r"without a segmentation.*annotation 2"),
    "no outline": (edit(segmentation=[]), r"without a segmentation.*annotation 2"),
    "no outline, no id": (lambda d: (edit(segmentation=[])(d), d["annotations"][1].pop("id")), r"annotations\[1\]"),
    "points": (edit(segmentation=[[[6, 2], [10, 2], [10, 7]]]), r"train\.json.*annotation 2.*x, y, x, y"),
    "a bracket too many": (edit(segmentation=[[B]]), r"train\.json.*annotation 2.*x, y, x, y"),
    "one point": (edit(segmentation=[[6, 2]]), r"enclose nothing.*annotation 2"),
    "map units": (edit(segmentation=[FAR]), r"outside of their picture.*annotation 2"),
    "parts": (edit(segmentation=[[0.5, 0.25, 0.8, 0.25, 0.8, 0.9]]), r"cover no pixel.*annotation 2"),
    "not finite": (edit(segmentation=[[*B[:-1], float("nan")]]), r"annotation 2.*no place in a picture"),
    "other run lengths": (edit(segmentation={"size": [12, 8], "counts": [96]}), r"annotation 2.*\(12, 8\)"),
    "unlisted category": (edit(category_id=7), r"annotation 2: category_id 7 is none of the categories: 1, 2"),
    "no category": (remove("category_id"), r"annotations\[1\]: category_id is missing"),
    "no image id": (remove("image_id"), r"annotations\[1\]: image_id is missing"),
    "image without name": (lambda d: d["images"][1].pop("file_name"), r"images\[1\]: file_name is missing"),
    "image without id": (lambda d: d["images"][1].pop("id"), r"images\[1\]: id is missing"),
    "number as name": (lambda d: d["categories"][1].update(name=1), r"categories\[1\]: name is 1; expected text"),
    "empty name": (lambda d: d["categories"][1].update(name=" "), r"categories\[1\]: name is empty"),
    "one id twice": (lambda d: d["categories"][1].update(id=1), r"categories\[1\]: id 1 is both 'A' and 'B'"),
    "no annotations": (lambda d: d["annotations"].clear(), r"none has an annotation.*train with 2 of them"),
    "no classes": (lambda d: (d["annotations"].clear(), d["categories"].clear()), r"no class but background"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_the_entry(tmp_path: Path, fault: str) -> None:
    data = coco()
    change, message = FAULTS[fault]
    change(data)
    write(tmp_path, data | {"images": [image for image in data["images"] if "file_name" in image]})
    (tmp_path / "train.json").write_text(json.dumps(data))
    with pytest.raises(SegtuneError, match=message) as error:
        pixels(tmp_path)
    assert "train.json" in str(error.value) or fault in ("no annotations", "no classes")


def test_a_flat_list_is_one_outline(tmp_path: Path) -> None:
    data = coco()
    for annotation in data["annotations"]:
        annotation["segmentation"] = annotation["segmentation"][0]
    write(tmp_path, data)
    assert pixels(tmp_path) == [RIGHT, RIGHT]


def test_shapes_may_reach_out_of_the_picture(tmp_path: Path) -> None:
    """What is cut from a large picture has the coordinates of that picture's size."""
    data = coco()
    data["annotations"][1]["segmentation"] = [[6, 2, 20000, 2, 20000, 7, 6, 7]]
    write(tmp_path, data)
    assert pixels(tmp_path) == [RIGHT | {"B": 30, "background": 58}, RIGHT]
    data["annotations"][1]["segmentation"] = [[6, 2, 2.1e8, 2, 2.1e8, 7, 6, 7]]
    write(tmp_path, data)
    with pytest.raises(DataError, match=r"more than a million pixels out of .*: train\.json: annotation 2"):
        pixels(tmp_path)


def test_words_for_background_and_ignored_are_no_classes(tmp_path: Path) -> None:
    for name in ("_background_", "Background"):
        data = coco()
        data["categories"] = [*data["categories"], {"id": 0, "name": name}, {"id": 9, "name": "__ignore__"}]
        data["annotations"][0]["category_id"], data["annotations"][1]["category_id"] = 0, 9
        write(tmp_path, data)
        assert pixels(tmp_path)[0] == {"background": 76, "A": 0, "B": 0, "ignored": 20}


def test_names_that_are_composed_in_another_way(tmp_path: Path) -> None:
    names = ("straße_größe_im0.png", "é.png")
    data = coco(tuple(unicodedata.normalize("NFD", name) for name in names))
    write(tmp_path, data)
    for image, name in zip(data["images"], names, strict=True):
        image["file_name"] = unicodedata.normalize("NFC", name)
    (tmp_path / "train.json").write_text(json.dumps(data))
    assert pixels(tmp_path) == [RIGHT, RIGHT]


def test_names_that_differ_in_capitals_only(tmp_path: Path) -> None:
    write(tmp_path, coco(("im.png", "IM.png")))
    if len(list(tmp_path.glob("*.png"))) == 2:  # not on every file system
        assert pixels(tmp_path) == [RIGHT, RIGHT]


def test_two_entries_of_one_picture(tmp_path: Path) -> None:
    data = coco(("IMG_0.png", "im1.png"))
    write(tmp_path, data)
    data["images"][0]["file_name"], data["images"][1]["file_name"] = "day1/IMG_0.png", "day2/IMG_0.png"
    (tmp_path / "train.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"several entries name \(1\): IMG_0\.png \(.*day1/IMG_0, .*day2/IMG_0\)"):
        pixels(tmp_path)


def test_a_word_within_the_name_of_the_only_file_is_no_split(tmp_path: Path) -> None:
    write(tmp_path, coco(), "crash_test_site.json")
    assert set(open_dataset(DatasetConfig(path=str(tmp_path), val_fraction=0))[0]) == {"train"}
    (tmp_path / "crash_test_site.json").rename(tmp_path / "instances_val2017.json")
    assert set(open_dataset(DatasetConfig(path=str(tmp_path)))[0]) == {"val"}


def test_a_split_that_nobody_annotated(tmp_path: Path) -> None:
    bare = coco(("im2.png", "im3.png"))
    bare["annotations"].clear()
    write(tmp_path, coco(), "train.json")
    write(tmp_path, bare, "test.json")
    with pytest.raises(DataError, match=r"none has an annotation \(1\): test with 2 of them.*dataset\.splits"):
        pixels(tmp_path)
    assert pixels(tmp_path, splits={"train": "train"}) == [RIGHT, RIGHT]
    assert pixels(tmp_path, on_error="skip") == [RIGHT, RIGHT]


def test_labels_by_the_ids_of_the_file(tmp_path: Path) -> None:
    """Ids with gaps, as COCO's have: mask values are 1, 2, 3, but names say what is meant."""
    data = coco(ids=(2, 4))
    data["categories"].append({"id": 1, "name": "C"})
    write(tmp_path, data)
    labels = {"0": "background", "1": "C", "2": "A", "3": "unused", "4": "B"}
    expected = {"background": 68, "C": 0, "A": 8, "unused": 0, "B": 20, "ignored": 0}
    assert pixels(tmp_path, labels=labels) == [expected, expected]
