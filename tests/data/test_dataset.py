"""Folders of images and masks, as they are and as they go wrong."""

from __future__ import annotations

import json
import logging
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from datasets import DatasetDict
from pydantic import ValidationError

from segtune.data.checks import check_masks
from segtune.data.dataset import (
    DatasetConfig,
    find_label_map,
    load_segmentation_dataset,
    resolve_path,
    save_split,
)
from segtune.errors import DataError, UsageError
from segtune.imageio.read import read_mask
from support.pairs import write_image, write_mask, write_pairs


def ids_of(dataset: DatasetDict) -> dict[str, list[str]]:
    return {split: list(rows["id"]) for split, rows in dataset.items()}


# -- layouts ----------------------------------------------------------------------------------------------------------


def test_real_data(earth: Path) -> None:
    dataset = load_segmentation_dataset("segtune://earth")
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 94, "val": 39, "test": 37}
    row = dataset["val"][3]
    assert sorted(row) == ["id", "image", "mask"]
    assert row["image"].size == row["mask"].size == (180, 180)
    expected = np.asarray(PIL.Image.open(earth / "masks" / "val" / f"{row['id']}.png"))
    np.testing.assert_array_equal(read_mask(row["mask"]), expected)
    check_masks(dataset, find_label_map(DatasetConfig(path="segtune://earth")))


def test_real_street_scenes(camvid: Path) -> None:
    dataset = load_segmentation_dataset(camvid)
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 367, "val": 101, "test": 233}
    assert dataset["train"]["id"][0] == "0001TP_006690"
    label_map = find_label_map(DatasetConfig(path=str(camvid)))
    assert label_map.num_labels == 11
    check_masks(DatasetDict(val=dataset["val"]), label_map)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}", "masks/{}"),
        ("imgs/{}", "labels/{}"),
        ("img_dir/{}", "ann_dir/{}"),
        ("Images/{}", "Annotations/{}"),
        ("{}/images", "{}/masks"),
        ("{}/img", "{}/label"),
    ],
)
def test_layouts_with_splits(tmp_path: Path, images: str, masks: str) -> None:
    for split, names in {"train": "abc", "val": "de", "test": "f"}.items():
        write_pairs(tmp_path, names, images.format(split), masks.format(split))
    (tmp_path / "README.md").write_text("not a picture")
    assert ids_of(load_segmentation_dataset(tmp_path)) == {"train": ["a", "b", "c"], "val": ["d", "e"], "test": ["f"]}


def test_other_names_of_splits(tmp_path: Path) -> None:
    for split, mask_split, name in (("training", "train", "a"), ("validation", "VALID", "b"), ("testing", "test", "c")):
        write_pairs(tmp_path, name, f"images/{split}", f"masks/{mask_split}")
    assert ids_of(load_segmentation_dataset(tmp_path)) == {"train": ["a"], "val": ["b"], "test": ["c"]}


def test_given_folders(tmp_path: Path) -> None:
    write_pairs(tmp_path, "ab", "photos/jpg", "truth")
    write_pairs(tmp_path, "cd", "images", "masks")
    dataset = load_segmentation_dataset(tmp_path, images="photos/jpg", masks="truth", val_fraction=0)
    assert ids_of(dataset) == {"train": ["a", "b"]}


def test_images_beside_a_folder_of_masks(tmp_path: Path) -> None:
    write_pairs(tmp_path, "ab", ".", "masks")
    assert ids_of(load_segmentation_dataset(tmp_path, images=".", val_fraction=0)) == {"train": ["a", "b"]}


def test_nested_folders_give_the_ids(tmp_path: Path) -> None:
    for city in ("bonn", "ulm"):
        write_pairs(tmp_path, ["1", "2"], f"images/train/{city}", f"masks/train/{city}")
    dataset = load_segmentation_dataset(tmp_path, val_fraction=0)
    assert ids_of(dataset) == {"train": ["bonn/1", "bonn/2", "ulm/1", "ulm/2"]}


def test_odd_names_and_files_that_are_no_pictures(tmp_path: Path) -> None:
    names = ["with space", "a.b.c", "日本", unicodedata.normalize("NFC", "é")]
    write_pairs(tmp_path, names[:3])
    write_image(tmp_path / "images" / f"{names[3]}.JPG")
    write_mask(tmp_path / "masks" / f"{unicodedata.normalize('NFD', 'é')}.PNG")
    write_mask(tmp_path / "masks" / ".hidden.png")
    write_mask(tmp_path / "masks" / ".ipynb_checkpoints" / "a.png")
    (tmp_path / "images" / "notes.txt").write_text("x")
    (tmp_path / "images" / "Thumbs.db").write_text("x")
    dataset = load_segmentation_dataset(tmp_path, val_fraction=0)
    assert ids_of(dataset) == {"train": sorted(names)}
    assert all(row["image"].size == row["mask"].size for row in dataset["train"])


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    write_pairs(tmp_path / "elsewhere", "ab")
    for kind in ("images", "masks"):
        (tmp_path / "here" / kind).mkdir(parents=True)
        os.symlink(tmp_path / "elsewhere" / kind, tmp_path / "here" / kind / "part")
    dataset = load_segmentation_dataset(tmp_path / "here", val_fraction=0)
    assert ids_of(dataset) == {"train": ["part/a", "part/b"]}


def test_relative_paths_outlive_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pairs(tmp_path / "data", "ab")
    monkeypatch.chdir(tmp_path)
    dataset = load_segmentation_dataset("data")
    monkeypatch.chdir("/")
    assert dataset["train"][0]["image"].size == (6, 4)


def test_test_images_without_masks_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pairs(tmp_path, "ab", "images/train", "masks/train")
    write_image(tmp_path / "images" / "test" / "c.jpg")
    assert set(load_segmentation_dataset(tmp_path)) == {"train", "val"}
    assert "images/test has no masks: the test split is left out" in caplog.text


def test_folders_that_are_no_split_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pairs(tmp_path, "ab", "images/train", "masks/train")
    write_image(tmp_path / "images" / "extra" / "c.jpg")
    write_image(tmp_path / "images" / "d.jpg")
    with caplog.at_level(logging.WARNING):
        assert len(load_segmentation_dataset(tmp_path, val_fraction=0)["train"]) == 2
    assert "left out, since no split has these names: d.jpg, extra" in caplog.text


def no_folder(root: Path) -> None:
    pass


def train_only_images(root: Path) -> None:
    write_image(root / "images" / "train" / "a.jpg")
    write_pairs(root, "b", "images/val", "masks/val")


def two_val_folders(root: Path) -> None:
    write_pairs(root, "a", "images/val", "masks/val")
    write_pairs(root, "b", "images/valid", "masks/valid")


def masks_not_split(root: Path) -> None:
    write_image(root / "images" / "train" / "a.jpg")
    write_mask(root / "masks" / "a.png")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (no_folder, r"no folders of images \(images, .*\) and masks .* it holds no folders\. Layouts: images/train"),
        (train_only_images, r"images/train: train has images there, but no masks\. Layouts"),
        (two_val_folders, "has val and valid: keep one folder for val"),
        (masks_not_split, r"images/train: train has images there, but no masks"),
        (lambda root: write_pairs(root, "a", "photos", "truth"), "it holds photos, truth"),
    ],
)
def test_unknown_layouts(tmp_path: Path, build: Callable[[Path], None], message: str) -> None:
    build(tmp_path)
    with pytest.raises((UsageError, DataError), match=message):
        load_segmentation_dataset(tmp_path)


def test_paths_that_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"absent does not exist: put the data there, or set dataset\.path"):
        resolve_path(str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="file is a file, not a folder"):
        load_segmentation_dataset(tmp_path / "file")
    with pytest.raises(UsageError, match="no data set 'segtune://moon' in the package; it has earth"):
        resolve_path("segtune://moon")
    assert resolve_path("segtune://earth").name == "earth"


# -- pairs ------------------------------------------------------------------------------------------------------------


def test_missing_and_doubled_partners_are_all_named(tmp_path: Path) -> None:
    write_pairs(tmp_path, "abcz", "images/train", "masks/train")
    write_pairs(tmp_path, "d", "images/val", "masks/val")
    (tmp_path / "masks/train/a.png").unlink()
    (tmp_path / "images/train/b.jpg").unlink()
    (tmp_path / "masks/val/d.png").unlink()
    write_image(tmp_path / "images/train/c.png")
    write_mask(tmp_path / "masks/train/z.tif")
    with pytest.raises(DataError) as error:
        load_segmentation_dataset(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: images without a mask (2): images/train/a.jpg, images/val/d.jpg; "
        "masks without an image (1): masks/train/b.png; "
        "files that share a name (2): images/train/c.jpg + images/train/c.png, masks/train/z.png + masks/train/z.tif. "
        "An image and its mask have the same name apart from the suffix: add, rename or remove files"
    )


def test_only_the_first_files_are_listed(tmp_path: Path) -> None:
    write_pairs(tmp_path, "a")
    for number in range(7):
        write_image(tmp_path / "images" / f"{number}.jpg")
    with pytest.raises(DataError, match=r"images without a mask \(7\): images/0\.jpg, .*images/4\.jpg and 2 more\. An"):
        load_segmentation_dataset(tmp_path)


def test_empty_folders(tmp_path: Path) -> None:
    write_pairs(tmp_path, "a", "images/train", "masks/train")
    for kind in ("images", "masks"):
        (tmp_path / kind / "val").mkdir()
    with pytest.raises(DataError, match=r"splits without pictures \(\.apng .*\) \(1\): val"):
        load_segmentation_dataset(tmp_path)


@pytest.mark.parametrize("size", [(4, 7), (5, 6), (6, 4)])
def test_partners_of_different_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    write_pairs(tmp_path, "ab")
    write_mask(tmp_path / "masks/b.png", size)
    message = (
        rf"different \(height, width\) \(1\): images/b.jpg \(\(4, 6\)\) and masks/b.png \(\({size[0]}, {size[1]}\)\)"
    )
    with pytest.raises(DataError, match=message):
        load_segmentation_dataset(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize(("orientation", "shown"), [(3, (4, 6)), (6, (6, 4))])
def test_exif_orientation_counts(tmp_path: Path, suffix: str, orientation: int, shown: tuple[int, int]) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    write_image(tmp_path / f"images/a.{suffix}", exif=exif)
    write_mask(tmp_path / "masks/a.png", shown)
    row = load_segmentation_dataset(tmp_path)["train"][0]
    assert row["image"].size == row["mask"].size == shown[::-1]
    write_mask(tmp_path / "masks/a.png", (5, 5))
    with pytest.raises(DataError, match=rf"a\.{suffix} \(\({shown[0]}, {shown[1]}\)\)"):
        load_segmentation_dataset(tmp_path)


def test_unreadable_headers_are_named(tmp_path: Path) -> None:
    write_pairs(tmp_path, "abc")
    (tmp_path / "images/a.jpg").write_bytes(b"")
    (tmp_path / "masks/b.png").write_text("<html>404</html>")
    with pytest.raises(
        DataError, match=r"cannot be read \(2\): images/a\.jpg \(the file is empty\), masks/b\.png \(it is no"
    ):
        load_segmentation_dataset(tmp_path)


# -- splits -----------------------------------------------------------------------------------------------------------


def test_val_is_drawn_from_train(tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(20)]
    write_pairs(tmp_path, names)
    drawn = ids_of(load_segmentation_dataset(tmp_path, val_fraction=0.2, split_seed=1))
    assert len(drawn["val"]) == 4
    assert sorted(drawn["train"] + drawn["val"]) == names
    assert drawn["train"] == sorted(drawn["train"])
    assert drawn == ids_of(load_segmentation_dataset(tmp_path, val_fraction=0.2, split_seed=1))
    assert drawn != ids_of(load_segmentation_dataset(tmp_path, val_fraction=0.2, split_seed=2))
    # the four smallest of `printf 1:<id> | sha256sum`
    assert drawn["val"] == ["00", "06", "08", "11"]


@pytest.mark.parametrize(
    ("count", "fraction", "sizes"),
    [(3, 0.1, [2, 1]), (2, 0.9, [1, 1]), (1, 0.5, [1]), (3, 0, [3]), (10, 0.25, [8, 2])],
)
def test_size_of_the_drawn_val(tmp_path: Path, count: int, fraction: float, sizes: list[int]) -> None:
    write_pairs(tmp_path, [str(number) for number in range(count)])
    dataset = load_segmentation_dataset(tmp_path, val_fraction=fraction)
    assert [len(rows) for rows in dataset.values()] == sizes


def test_given_val_is_kept_and_test_alone_is_not_split(tmp_path: Path) -> None:
    write_pairs(tmp_path, "abc", "images/test", "masks/test")
    assert ids_of(load_segmentation_dataset(tmp_path)) == {"test": ["a", "b", "c"]}


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5])
def test_val_fraction_is_checked(tmp_path: Path, fraction: float) -> None:
    write_pairs(tmp_path, "ab")
    with pytest.raises(UsageError, match="val_fraction"):
        load_segmentation_dataset(tmp_path, val_fraction=fraction)
    with pytest.raises(ValidationError, match="val_fraction"):
        DatasetConfig(path="x", val_fraction=fraction)


def test_saved_split_loads_again(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", "abcdefgh", "images/train", "masks/train")
    write_pairs(tmp_path / "data", "ab", "images/test", "masks/test")  # ids of their own, below another folder
    dataset = load_segmentation_dataset(tmp_path / "data", val_fraction=0.3, split_seed=5)
    save_split(dataset, tmp_path / "split.json")
    again = load_segmentation_dataset(tmp_path / "data", split_seed=6, split_file=tmp_path / "split.json")
    assert ids_of(again) == ids_of(dataset)
    assert [row["image"].filename for row in undecoded(again)] == [row["image"].filename for row in undecoded(dataset)]


def undecoded(dataset: DatasetDict) -> list[dict[str, Any]]:
    return [row for split in dataset.values() for row in split]


def test_split_file_chooses_from_a_flat_folder(tmp_path: Path) -> None:
    write_pairs(tmp_path, "abc")
    write_image(tmp_path / "images" / "without mask.jpg")  # not listed, so no fault
    (tmp_path / "split.json").write_text('{"train": ["c", "a"], "val": ["b"]}')
    dataset = load_segmentation_dataset(tmp_path, split_file="split.json")
    assert ids_of(dataset) == {"train": ["a", "c"], "val": ["b"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": ["a", "x"]}', r"ids of the split file without files \(1\): x"),
        ('{"train": ["a"], "val": ["a", "b"]}', r"lists ids more than once \(1\): a"),
        ('{"train": ["a", "a"]}', r"lists ids more than once \(1\): a"),
        ('{"train": ["a"], "dev": ["b"]}', "it holds 'dev'"),
        ('{"train": "ab"}', "ids are lists of texts"),
        ('{"train": [1]}', "ids are lists of texts"),
        ('["a"]', r"split\.json is no split file"),
        ("{", r"split\.json is no split file .* line 1"),
    ],
)
def test_wrong_split_files(tmp_path: Path, content: str, message: str) -> None:
    write_pairs(tmp_path, "ab")
    (tmp_path / "split.json").write_text(content)
    with pytest.raises((DataError, UsageError), match=message):
        load_segmentation_dataset(tmp_path, split_file="split.json")


def test_absent_split_file(tmp_path: Path) -> None:
    write_pairs(tmp_path, "ab")
    with pytest.raises(UsageError, match=r"no file split\.json in .*, and none in the working directory"):
        load_segmentation_dataset(tmp_path, split_file="split.json")


# -- label maps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [["sky", "road"], {"0": "sky", "1": "road"}, {0: "sky", 1: "road"}])
def test_labels_in_the_recipe(tmp_path: Path, labels: Any) -> None:
    (tmp_path / "labels.json").write_text('["other"]')
    label_map = find_label_map(DatasetConfig(path=str(tmp_path), labels=labels, ignore_index=254))
    assert (label_map.names, label_map.ignore_index) == (("sky", "road"), 254)


@pytest.mark.parametrize("name", ["labels.json", "classes.json", "id2label.json"])
def test_labels_file_of_the_data(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"0": "sky"}')
    assert find_label_map(DatasetConfig(path=str(tmp_path))).names == ("sky",)


def test_labels_file_named_in_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, here = tmp_path / "data", tmp_path / "here"
    data.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "names.json").write_text('["from here"]')
    config = DatasetConfig(path=str(data), labels="names.json")
    assert find_label_map(config).names == ("from here",)
    (data / "names.json").write_text('["from the data"]')
    assert find_label_map(config).names == ("from the data",)
    with pytest.raises(UsageError, match=r"no file typo\.json in .*data, and none in the working directory .*here"):
        find_label_map(DatasetConfig(path=str(data), labels="typo.json"))


def test_ignore_index_has_one_truth(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"classes": ["sky"], "ignore_index": -100}')
    with pytest.raises(
        UsageError, match=r"labels say ignore_index -100, the recipe says 255: set dataset\.ignore_index=-"
    ):
        find_label_map(DatasetConfig(path=str(tmp_path)))
    assert find_label_map(DatasetConfig(path=str(tmp_path), ignore_index=-100)).ignore_index == -100


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[0, 1, 1, 255]], r'hold id 1 \(2 pixels\), .* as in {"0": "<class>", "1": "<class>", "255": null}'),
        ([[0, 255]], r'as in {"0": "background", "255": "foreground"}'),
        ([[[0, 0, 0], [128, 64, 128]]], r'colour #000000 \(1 pixel\).* as in {"#000000": "<class>", "#804080"'),
    ],
)
def test_absent_labels_are_proposed_from_the_masks(tmp_path: Path, mask: Any, message: str) -> None:
    array = np.array(mask, dtype=np.uint8)
    write_image(tmp_path / "images/a.jpg", array.shape[:2])
    write_mask(tmp_path / "masks/a.png", mask=array)
    with pytest.raises(UsageError, match=message) as error:
        find_label_map(DatasetConfig(path=str(tmp_path)))
    assert str(tmp_path / "labels.json") in str(error.value)


def test_wrong_labels_in_the_recipe_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"dataset\.labels: 'sky' is no mask id"):
        find_label_map(DatasetConfig(path=str(tmp_path), labels={"sky": 0.5}))


def test_config_refuses_unknown_names() -> None:
    with pytest.raises(ValidationError, match="imges"):
        DatasetConfig(path="x", imges="y")  # type: ignore[call-arg]
    assert json.loads(DatasetConfig(path="x", labels={0: "sky"}).model_dump_json())["labels"] == {"0": "sky"}


# -- every format -----------------------------------------------------------------------------------------------------


def test_a_saved_split_is_followed_by_formats_with_their_own_files(tmp_path: Path) -> None:

    names = [f"{number:02}" for number in range(10)]
    for name in names:
        write_image(tmp_path / "data" / f"{name}.jpg")
        outline = {"label": "road", "points": [[0, 0], [3, 0], [3, 3]], "shape_type": "polygon"}
        (tmp_path / "data" / f"{name}.json").write_text(
            json.dumps({"shapes": [outline], "imagePath": f"{name}.jpg", "imageHeight": 4, "imageWidth": 6})
        )
    dataset = load_segmentation_dataset(tmp_path / "data", val_fraction=0.3, split_seed=2)
    assert [len(rows) for rows in dataset.values()] == [7, 3]
    save_split(dataset, tmp_path / "split.json")
    assert ids_of(load_segmentation_dataset(tmp_path / "data", split_file=tmp_path / "split.json")) == ids_of(dataset)
    (tmp_path / "lists").mkdir()
    (tmp_path / "data/train.txt").write_text("00\n01\n")
    (tmp_path / "data/test.txt").write_text("05\n99\n")
    with pytest.raises(DataError, match=r"ids of the split file without files \(1\): 99"):
        load_segmentation_dataset(tmp_path / "data", split_file="{split}.txt")
    chosen = load_segmentation_dataset(tmp_path / "data", split_file="{split}.txt", val_fraction=0, on_error="skip")
    assert ids_of(chosen) == {"train": ["00", "01"], "test": ["05"]}


def test_options_of_loading_are_those_of_the_recipe(tmp_path: Path) -> None:
    write_pairs(tmp_path, "ab")
    with pytest.raises(UsageError, match="load_segmentation_dataset: imges: Extra inputs are not permitted"):
        load_segmentation_dataset(tmp_path, imges="x")


def test_rare_values_are_not_proposed_but_counted(tmp_path: Path) -> None:
    """The edges of a mask that was scaled with interpolation."""
    mask = np.zeros((100, 100), np.uint8)
    mask[:, 50:] = 255
    mask[0, 47:53] = (40, 90, 130, 180, 220, 250)
    write_image(tmp_path / "images/a.jpg", mask.shape)
    write_mask(tmp_path / "masks/a.png", mask=mask)
    with pytest.raises(
        UsageError, match=r'{"0": "background", "255": "foreground"}\. 6 other values have 0\.06% of the'
    ):
        find_label_map(DatasetConfig(path=str(tmp_path)))


def test_a_label_map_may_need_the_files(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    shape = {"label": "road", "points": [[0, 0], [3, 0], [3, 3]], "shape_type": "polygon"}
    (tmp_path / "a.json").write_text(json.dumps({"shapes": [shape], "imagePath": "a.jpg"}))
    assert find_label_map(DatasetConfig(path=str(tmp_path))).names == ("background", "road")


@pytest.mark.parametrize("form", ["{}", "{}.png", "images/{}.png", "images\\{}.png", "{} 1"])
@pytest.mark.parametrize("suffix", ["txt", "json"])
def test_split_lists_name_images_in_many_ways(tmp_path: Path, form: str, suffix: str) -> None:
    names = ["a", "im 0", "im 1"]
    for name in names:
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
            PIL.Image.new("L", (4, 4)).save(tmp_path / kind / f"{name}.png")
    entries = [form.format(name) for name in names if " " not in name or form != "{} 1"]
    (tmp_path / "train.txt").write_text("\n".join(entries) + "\n")
    (tmp_path / "split.json").write_text(json.dumps({"train": entries}))
    given = "{split}.txt" if suffix == "txt" else "split.json"
    dataset = load_segmentation_dataset(tmp_path, split_file=given, val_fraction=0)
    assert list(dataset["train"]["id"]) == (names if form != "{} 1" else ["a"])
    (tmp_path / "split.json").write_text(json.dumps({"train": ["b.png"]}))
    with pytest.raises(
        DataError, match=r"split file without files \(1\): b\.png\. Ids are the names of the images, wi"
    ):
        load_segmentation_dataset(tmp_path, split_file="split.json")
