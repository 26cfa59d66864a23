"""Pairing by names, also those that differ by what all images or all masks have in common; then by size and grid."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from segtune.data.dataset import load_segmentation_dataset
from segtune.data.formats.pairing import (
    NO_NAME_IN_COMMON,
    SAME_NAME,
    keep_same_sizes,
    match_affixes,
    own_names,
    pair_up,
)
from segtune.data.index import DatasetIndex, Sample
from segtune.errors import DataError


def write(root: Path, *names: str, size: tuple[int, int] = (2, 3)) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.zeros(size, np.uint8)).save(root / name)


@pytest.mark.parametrize(
    ("images", "masks", "expected", "pairs"),
    [
        (["a_rgb", "b_rgb"], ["a_label", "b_label"], ["a", "b"], 2),
        (["x/aachen_0_19_leftImg8bit", "x/ulm_1_19_leftImg8bit"],
         ["x/aachen_0_19_gtFine_labelTrainIds", "x/ulm_1_19_gtFine_labelTrainIds"], ["x/aachen_0", "x/ulm_1"], 2),
        (["ISIC_01", "ISIC_02"], ["ISIC_01_segmentation", "ISIC_02_segmentation"], ["ISIC_01", "ISIC_02"], 2),
        (["image_1", "image_12"], ["mask_1", "mask_12"], ["1", "12"], 2),
        (["img_1_a", "img_2_a"], ["seg_1_b", "seg_2_b"], ["1", "2"], 2),
        (["1", "12"], ["0001", "0012"], ["1", "12"], 2),
        (["Img_1", "Img_2"], ["IMG_1", "IMG_2"], ["img_1", "img_2"], 2),
        (["one_rgb"], ["one_label"], ["one"], 1),
        (["scene 1/rgb", "scene 2/rgb"], ["scene 1/label", "scene 2/label"], ["scene 1", "scene 2"], 2),
        (["a", "b"], ["a", "c"], ["a", "b"], 1),
        (["a", "b"], ["x", "y"], ["a", "b"], 0),
        (["10", "20"], ["10_color", "10_ids", "20_color", "20_ids"], ["10", "20"], 0),
    ],
)  # fmt: skip
def test_affixes(images: list[str], masks: list[str], expected: list[str], pairs: int) -> None:
    files = {"train": ({i: [Path(i)] for i in images}, {i: [Path(i)] for i in masks})}
    paired = match_affixes(files)["train"]
    assert list(paired[0]) == expected
    assert [path for paths in paired[0].values() for path in paths] == [Path(i) for i in images]
    assert len(set(paired[0]) & set(paired[1])) == pairs


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        ({"21": "images/21_training.tif"}, {"21": "manual/21_manual1.gif"}, {"21": "21_training"}),
        ({"5": "images/P0005.png"}, {"5": "masks/P0005_instance.png"}, {"5": "P0005"}),
        ({"ulm/1": "left/ulm/ulm_1_left.png"}, {"ulm/1": "fine/ulm/ulm_1_ids.png"}, {"ulm/1": "ulm/ulm_1_left"}),
        ({"1": "images/1_a.png"}, {"1": "masks/1.png", "2": "masks/2.png"}, {"1": "1_a"}),
        ({"scene 1": "scene 1/rgb.png"}, {"scene 1": "scene 1/label.png"}, {}),  # the name says nothing
        ({"a/1": "images/a_of_1.png"}, {"a/1": "masks/a_of_1.png"}, {}),  # two parts of one name
        ({"1": "x/1_a.png", "01": "y/1_a.png"}, {"1": "masks/1.png"}, {}),  # two of one name
        ({"1": "images/1_a.png"}, {"1": "masks/1.png", "1_a": "masks/1_a.png"}, {}),
        ({"1": "images/1_a.png", "b": "images/c.png"}, {"1": "masks/1.png"}, {}),
    ],
)
def test_ids_become_the_names_of_the_images(
    images: dict[str, str], masks: dict[str, str], expected: dict[str, str]
) -> None:
    before = tuple({i: [Path("/data") / path] for i, path in side.items()} for side in (images, masks))
    files, renamed = own_names({"train": (before[0], before[1])})
    assert renamed.get("train", {}) == expected
    for side, now in zip(before, files["train"], strict=True):
        assert now == {expected.get(i, i): paths for i, paths in side.items()}


@pytest.mark.parametrize("names", [("21", "22", "23"), ("21_training", "22_training.tif", "images/23_training")])
def test_split_files_may_hold_short_names_and_whole_ones(tmp_path: Path, names: tuple[str, str, str]) -> None:
    write(tmp_path, *(f"images/{i}_training.png" for i in (21, 22, 23)), *(f"masks/{i}_manual.png" for i in (21, 22)))
    write(tmp_path, "masks/23_manual.png")
    (tmp_path / "split.json").write_text(json.dumps({"train": names[:2], "val": names[2:]}))
    (tmp_path / "train.txt").write_text("\n".join(names[:2]))
    (tmp_path / "val.txt").write_text(names[2])
    for split_file in ("split.json", "{split}.txt"):
        for options in ({}, {"images": "images/*_training.png", "masks": "masks/*_manual.png"}):
            rows = load_segmentation_dataset(tmp_path, split_file=split_file, labels=["x", "y"], **options)
            assert list(rows["train"]["id"]) == ["21_training", "22_training"]
            assert list(rows["val"]["id"]) == ["23_training"]


def test_a_short_name_of_two_splits_is_that_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, *(f"{kind}/{split}/1_{split}.png" for split in ("train", "val") for kind in ("images", "masks")))
    (tmp_path / "split.json").write_text('{"train": ["1"], "val": ["1"]}')
    patterns = {kind: f"{kind}/{{split}}/*_{{split}}.png" for kind in ("images", "masks")}
    rows = load_segmentation_dataset(tmp_path, split_file="split.json", labels=["x", "y"], **patterns)
    assert {split: list(rows[split]["id"]) for split in rows} == {"train": ["1_train"], "val": ["1_val"]}


def test_loaded_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A few without partner do not keep the others from being paired."""
    write(tmp_path, *(f"images/train/{i}_sat.jpg" for i in range(6)), *(f"masks/train/{i}_mask.png" for i in range(5)))
    write(tmp_path, "images/val/7_sat.jpg", "masks/val/7_mask.png")
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(DataError, match=r"without a mask \(1\): images/train/5_sat\.jpg"),
    ):
        load_segmentation_dataset(tmp_path)
    assert "paired by the part of their names that differs: 0_sat with 0_mask" in caplog.text
    (tmp_path / "images/train/5_sat.jpg").unlink()
    dataset = load_segmentation_dataset(tmp_path)
    assert list(dataset["val"]["id"]) == ["7_sat"]
    assert list(dataset["train"]["id"]) == ["0_sat", "1_sat", "2_sat", "3_sat", "4_sat"]


def test_nothing_in_common_says_how_to_name_the_pairs(tmp_path: Path) -> None:
    write(tmp_path, "images/a.jpg", "masks/a_color.png", "masks/a_ids.png")
    with pytest.raises(
        DataError, match=r"No image and mask share a name: give dataset\.images and dataset\.masks as patt"
    ):
        load_segmentation_dataset(tmp_path)


@pytest.mark.parametrize("tile", [None, 32])
def test_images_are_given_the_size_of_their_masks(tmp_path: Path, tile: int | None) -> None:
    """Of twice the size; masks hold the greys of the picture, so that both agree wherever a tile is cut."""
    small = np.add.outer(np.arange(40), np.arange(64)).astype(np.uint8)
    for folder, pixels in {"masks": small, "images": small.repeat(2, 0).repeat(2, 1)}.items():
        (tmp_path / folder).mkdir()
        PIL.Image.fromarray(pixels).save(tmp_path / folder / "a.png")
    options = {"labels": {"0-255": "x"}, "val_fraction": 0, "tile": tile}
    with pytest.raises(DataError, match=r"\(80, 128\)"):
        load_segmentation_dataset(tmp_path, **options)
    rows = load_segmentation_dataset(tmp_path, resize_images=True, **options)["train"]
    assert len(rows) == (4 if tile else 1)
    for row in rows:
        image, mask = np.asarray(row["image"]).astype(int), np.asarray(row["mask"]).astype(int)
        assert image.shape == mask.shape == ((32, 32) if tile else (40, 64))
        assert np.abs(image - mask).max() <= 1  # rounding, and the rim


def test_images_of_another_shape_are_no_copies_in_another_size(tmp_path: Path) -> None:
    write(tmp_path, "masks/a.png", size=(4, 8))
    write(tmp_path, "images/a.png", size=(8, 8))
    with pytest.raises(DataError, match=r"\(8, 8\)"):
        load_segmentation_dataset(tmp_path, labels=["x"], val_fraction=0, resize_images=True)


# -- what is wrong with files ------------------------------------------------------------------------------------------


def pairs_of(images: dict[str, list[str]], masks: dict[str, list[str]]) -> tuple[DatasetIndex, list[Sample]]:
    """What `pair_up` finds of names -> suffixes in the folders images and masks."""
    index = DatasetIndex(Path("/data"))
    files = [
        {name: [index.root / folder / f"{name}{suffix}" for suffix in suffixes] for name, suffixes in found.items()}
        for folder, found in (("images", images), ("masks", masks))
    ]
    samples = pair_up(index, {"train": (files[0], files[1])}, {"train": sorted({*images, *masks})})
    return index, samples


def test_several_files_of_one_name_are_told_by_the_first() -> None:
    index, samples = pairs_of({"a": [".jpg", ".png"], "b": [".jpg"]}, {"a": [".png"], "b": [".png"]})
    (problem,) = index.problems
    assert (problem.kind, problem.files) == ("name_twice", ("images/a.jpg",))
    assert "images/a.jpg + images/a.png" in problem.message
    assert [(sample.id, sample.image.name) for sample in samples] == [("a", "a.jpg"), ("b", "b.jpg")]


@pytest.mark.parametrize(
    ("images", "masks", "fix"),
    [
        ("ab", "cd", NO_NAME_IN_COMMON),
        ("ab", "bc", SAME_NAME),  # one pair, so that names are meant to be equal
        ("ab", "", SAME_NAME),
        ("", "ab", SAME_NAME),
    ],
)
def test_advice_depends_on_whether_any_names_are_shared(images: str, masks: str, fix: str) -> None:
    index, _ = pairs_of({name: [".jpg"] for name in images}, {name: [".png"] for name in masks})
    assert {problem.fix for problem in index.problems} == {fix}
    missing = {problem.kind: problem.files for problem in index.problems}
    assert missing.get("image_without_mask", ()) == tuple(f"images/{name}.jpg" for name in images if name not in masks)
    assert missing.get("mask_without_image", ()) == tuple(f"masks/{name}.png" for name in masks if name not in images)


def sized(root: Path, image: tuple[int, int], mask: tuple[int, int], **options: bool) -> DatasetIndex:
    write(root, "i.png", size=image)
    write(root, "m.png", size=mask)
    index = DatasetIndex(root)
    keep_same_sizes(index, [Sample("x", "train", root / "i.png", root / "m.png")], **options)
    return index


def test_sizes_must_be_equal_unless_images_are_resized(tmp_path: Path) -> None:
    assert [sample.size for sample in sized(tmp_path, (8, 6), (8, 6)).samples] == [(8, 6)]
    index = sized(tmp_path, (8, 6), (4, 3))
    assert not index.samples and [sample.id for sample in index.rejected] == ["x"]
    assert [(problem.kind, problem.files) for problem in index.problems] == [("size_mismatch", ("i.png",))]
    assert "i.png ((8, 6)) and m.png ((4, 3))" in index.problems[0].message
    (sample,) = sized(tmp_path, (8, 6), (4, 3), resize_images=True).samples
    assert (sample.size, sample.image_part) == ((4, 3), '{"size": [4, 3]}')


@pytest.mark.parametrize(
    ("image", "mask", "is_same"),
    [((200, 133), (100, 67), True), ((133, 200), (67, 100), True), ((4, 4), (2, 3), False), ((7, 5), (4, 3), True),
     ((4, 8), (8, 4), False)],
)  # fmt: skip
def test_shapes_are_the_same_up_to_the_rounding_of_a_side(
    tmp_path: Path, image: tuple[int, int], mask: tuple[int, int], is_same: bool
) -> None:
    for sizes in ((image, mask), (mask, image)):
        assert len(sized(tmp_path, *sizes, resize_images=True).samples) == is_same


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_unreadable_files_are_told_as_such_alone(tmp_path: Path, suffix: str) -> None:
    image, mask = tmp_path / f"i{suffix}", tmp_path / f"m{suffix}"
    write(tmp_path, image.name)
    mask.write_bytes(b"no picture")
    index = DatasetIndex(tmp_path)
    keep_same_sizes(index, [Sample("x", "train", image, mask)], resize_images=True)
    assert [(problem.kind, problem.files) for problem in index.problems] == [("unreadable", (mask.name,))]


def test_rasters_must_lie_on_one_grid(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    for name, west in (("i.tif", 500_000), ("m.tif", 500_000), ("moved.tif", 500_100)):
        grid = rasterio.Affine(10, 0, west, 0, -10, 4_000_000)
        options = {"height": 4, "width": 5, "count": 1, "dtype": "uint8", "crs": "EPSG:32633", "transform": grid}
        with rasterio.open(tmp_path / name, "w", driver="GTiff", **options) as file:
            file.write(np.zeros((1, 4, 5), np.uint8))
    index = DatasetIndex(tmp_path)
    masks = ("m.tif", "moved.tif")
    keep_same_sizes(index, [Sample(name, "train", tmp_path / "i.tif", tmp_path / name) for name in masks])
    assert [(sample.id, sample.size) for sample in index.samples] == [("m.tif", (4, 5))]
    assert [(problem.kind, problem.files) for problem in index.problems] == [("grid_mismatch", ("i.tif",))]
    assert "i.tif and moved.tif" in index.problems[0].message
