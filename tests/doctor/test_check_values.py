"""Values of masks and what explains them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtune.labels.label_map import LabelMap
from support.faults import faults

NAMES = ["sky", "road", "car"]


def test_unnamed_id(one_odd: Any, stripes: np.ndarray) -> None:
    mask = stripes.copy()
    mask[:2, :2] = 42
    (found,) = one_odd(mask).values()
    assert (found.code, found.severity) == ("unnamed-ids", "error")
    assert found.files == ("masks/train/train11.png",)
    assert found.numbers["values"] == {"42": 4}
    assert found.fix[0] == 'dataset.labels: add "42": "<class>", or null instead of a name to ignore them'
    assert [sample.id for sample in found.drop] == ["train11"]


def test_ids_from_one_are_recognised(all_like: Any, stripes: np.ndarray) -> None:
    found = all_like(stripes + 1)["unnamed-ids"]
    assert "their ids are 1 higher than named" in found.message
    (line,) = found.fix
    labels = json.loads(line.removeprefix("dataset.labels="))
    assert labels == {"1": "sky", "2": "road", "3": "car"}
    assert found.drop == ()


def test_ids_from_one_in_a_few_masks_are_no_exchanged_classes(diagnose: Any, noise: Any, stripes: np.ndarray) -> None:
    (found,) = faults(diagnose({"train": [(noise(), stripes + 1) for _ in range(3)]})).values()
    assert found.fix == ('dataset.labels={"1": "sky", "2": "road", "3": "car"}',)


def test_ids_from_one_in_a_part_of_the_masks(diagnose: Any, noise: Any, stripes: np.ndarray) -> None:
    labels = {"0": "sky", "1": "road", "2": None}  # the last id is ignored
    masks = [*[stripes] * 12, *[stripes + 1] * 5]
    found = faults(diagnose({"train": [(noise(), mask) for mask in masks]}, labels))["unnamed-ids"]
    assert found.numbers["values"] == {"3": 5 * 80}
    assert found.fix == ("subtract 1 from the ids of these masks",)


@pytest.mark.parametrize(("values", "held"), [((0, 255), "0 and 255"), ((0, 128, 255), "0, 128 and 255")])
def test_binary_masks_everywhere_get_their_labels(all_like: Any, values: tuple[int, ...], held: str) -> None:
    mask = np.resize(np.repeat(values, 8).astype(np.uint8), (16, 16))
    found = all_like(mask, ["ground", "ship"])["binary-mask"]
    assert found.severity == "error" and f"only {held}: 255 is ignored" in found.message
    line, setting = found.fix[0].removeprefix("dataset.labels=").rsplit(" ", 1)
    expected = {"0": "ground", "255": "ship"} | ({"128": None} if 128 in values else {})
    assert (json.loads(line), setting) == (expected, "dataset.ignore_index=-100")
    label_map = LabelMap.from_dict(expected, -100)  # what the line makes of the mask
    np.testing.assert_array_equal(label_map.encode(mask) == 1, mask == 255)


def test_named_255_is_no_fault(all_like: Any) -> None:
    mask = np.repeat([0, 255], 128).astype(np.uint8).reshape(16, 16)
    labels = {"0": "background", "255": "foreground"}
    assert all_like(mask, labels, ignore_index=-100) == {}


def test_one_binary_mask_may_be_right(one_odd: Any) -> None:
    found = one_odd(np.repeat([0, 255], 128).astype(np.uint8).reshape(16, 16))["binary-mask"]
    assert found.severity == "warning"


def test_rim_of_ignored_pixels_is_no_binary_mask(one_odd: Any) -> None:
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 7] = 255
    assert "binary-mask" not in one_odd(mask)


def test_colors_of_the_classes_get_their_labels(all_like: Any, stripes: np.ndarray) -> None:
    labels = {"classes": NAMES, "colors": [[70, 130, 180], [128, 64, 128], [0, 0, 142]]}
    found = all_like(LabelMap.from_dict(labels).colorize(stripes), labels)["color-mask"]
    table = json.loads(found.fix[0].removeprefix("dataset.labels="))
    assert table == {"#4682b4": "sky", "#804080": "road", "#00008e": "car"}


def test_one_color_mask_is_no_reason_to_change_the_labels(one_odd: Any, stripes: np.ndarray) -> None:
    table = np.array([[9, 9, 9], [200, 0, 0], [0, 200, 0]], dtype=np.uint8)
    found = one_odd(table[stripes])["color-mask"]
    assert found.fix[0] == "convert these masks to ids by their colours"
    assert found.files == ("masks/train/train11.png",)


def test_color_off_the_table_is_compared_with_the_nearest(one_odd: Any, diagnose: Any, noise: Any) -> None:
    labels = {"#804080": "road", "#4682b4": "sky", "#000000": None}
    table = np.array([[128, 64, 128], [70, 130, 180]], dtype=np.uint8)
    right = table[np.repeat([0, 1], 128).reshape(16, 16)]
    wrong = right.copy()
    wrong[0, :5] = (130, 64, 128)
    diagnosis = diagnose({"train": [(noise(), right)] * 1 + [(noise(), wrong)]}, labels)
    found = faults(diagnosis)["unnamed-colors"]
    assert found.numbers["values"] == {"#824080": 5}
    assert "#824080 is near #804080 (road)" in found.message


def test_masks_written_as_bgr_are_recognised(all_like: Any) -> None:
    labels = {"#804000": "road", "#4682b4": "sky"}
    table = np.array([[128, 64, 0], [70, 130, 180]], dtype=np.uint8)
    mask = table[np.repeat([0, 1], 128).reshape(16, 16)]
    assert all_like(mask, labels) == {}
    assert "with red and blue exchanged they are named" in all_like(mask[:, :, ::-1], labels)["unnamed-colors"].message


@pytest.mark.parametrize("factor", [257, 127, 100])
def test_stretched_ids_are_recognised(all_like: Any, stripes: np.ndarray, factor: int) -> None:
    mask = stripes.astype(np.uint16) * factor
    found = all_like(mask if factor == 257 else mask.astype(np.uint8))["scaled-mask"]
    assert set(found.numbers["factors"].values()) == {factor}
    table = json.loads(found.fix[0].removeprefix("dataset.labels="))
    assert {key: table[str(key * factor)] for key in range(3)} == dict(enumerate(NAMES))


def test_floats_are_no_ids(one_odd: Any, stripes: np.ndarray) -> None:
    def save(path: Path) -> None:
        Image.fromarray(stripes.astype(np.float32) / 255).save(path.with_suffix(".tif"))

    found = one_odd(save)["float-mask"]
    assert found.files == ("masks/train/train11.tif",)


@pytest.mark.parametrize(("suffix", "options"), [(".jpg", {}), (".webp", {"quality": 80})])
def test_lossy_formats_are_named(one_odd: Any, stripes: np.ndarray, suffix: str, options: dict[str, int]) -> None:
    def save(path: Path) -> None:
        Image.fromarray(stripes * 80).convert("RGB").save(path.with_suffix(suffix), **options)

    assert one_odd(save)["lossy-mask"].severity == "error"


def test_lossy_formats_are_no_fault_of_masks_whose_labels_expect_them(all_like: Any, stripes: np.ndarray) -> None:
    def save(path: Path) -> None:
        Image.fromarray(wide(stripes == 1).astype(np.uint8) * 255).save(path.with_suffix(".jpg"))

    assert "lossy-mask" in all_like(save, {"0": "background", "255": "polyp"})
    assert not {"lossy-mask", "smoothed-mask"} & all_like(save, {"0-127": "background", "128-255": "polyp"}).keys()


def test_lossless_webp_is_no_fault(one_odd: Any, stripes: np.ndarray) -> None:
    def save(path: Path) -> None:
        Image.fromarray(stripes).convert("RGB").save(path.with_suffix(".webp"), lossless=True, exact=True)

    assert one_odd(save) == {}


def wide(stripes: np.ndarray) -> np.ndarray:
    return stripes.repeat(8, 0).repeat(8, 1)


def test_smoothed_mask_holds_named_ids_only_and_is_found(diagnose: Any, noise: Any, stripes: np.ndarray) -> None:
    names = [f"class {i}" for i in range(8)]
    large = wide(stripes) * 3  # 0, 3 and 6
    smooth = np.asarray(Image.fromarray(large).resize((100, 100), Image.Resampling.BILINEAR).resize((128, 128), 2))
    assert set(np.unique(smooth).tolist()) <= set(range(8))
    pairs = [(noise((128, 128)), large) for _ in range(5)] + [(noise((128, 128)), smooth)]
    found = faults(diagnose({"train": pairs}, names))
    assert found["smoothed-mask"].files == ("masks/train/train05.png",)


def test_class_of_contours_is_no_smoothing(diagnose: Any, noise: Any, stripes: np.ndarray) -> None:
    large = (wide(stripes) > 0).astype(np.uint8) * 2
    large[:, 47] = 1  # one pixel wide, between 0 and 2, in every mask
    names = ["background", "contour", "cell"]
    assert faults(diagnose({"train": [(noise((128, 128)), large) for _ in range(6)]}, names)) == {}
