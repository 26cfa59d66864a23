"""Reading every mask before the first step: what passes, what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, DatasetDict
from pydantic import ValidationError

from segtune.data import checks
from segtune.data.checks import check_masks, with_statistics
from segtune.data.config import DatasetConfig, TransformConfig
from segtune.data.dataset import load_segmentation_dataset, open_dataset
from segtune.data.index import Sample
from segtune.data.lazy_rows import Reader, to_dataset
from segtune.data.transforms import TrainTransform
from segtune.errors import DataError, UsageError
from segtune.labels.label_map import LabelMap
from support.pairs import write_image, write_mask, write_pairs

TWO = LabelMap.from_names(["sky", "road"])


def test_pixels_of_each_class_are_counted_by_split(tmp_path: Path) -> None:
    write_pairs(tmp_path, "ab", "images/train", "masks/train")
    mask = np.zeros((4, 6), np.uint8)
    mask[:3, :5], mask[3] = 1, 255
    write_image(tmp_path / "images/val/c.jpg")
    write_mask(tmp_path / "masks/val/c.png", mask=mask)
    counts = check_masks(load_segmentation_dataset(tmp_path), TWO)
    assert {split: pixels.tolist() for split, pixels in counts.items()} == {
        "train": [[12, 12, 0]] * 2,
        "val": [[3, 15, 6]],
    }


def test_unknown_ids_are_reported_with_file_value_count_and_fix(tmp_path: Path) -> None:
    write_pairs(tmp_path, "abc")
    mask = np.zeros((4, 6), np.uint8)
    mask[:2, :3], mask[3, 3] = 42, 43
    write_mask(tmp_path / "masks/b.png", mask=mask)
    with pytest.raises(DataError) as error:
        check_masks(load_segmentation_dataset(tmp_path, val_fraction=0), TWO)
    assert str(error.value) == (
        "1 of 3 samples cannot be used:\n"
        f"  {tmp_path}/masks/b.png: the mask holds id 42 (6 pixels), id 43 (1 pixel): "
        "not one of the 2 classes (0, 1; ignored: 255)\n"
        'Name such values in dataset.labels (or its file), as in {"42": "<class>", "43": "<class>"}, '
        'or ignore them: {"42": null, "43": null}'
    )


def test_every_split_is_checked_and_the_list_is_cut(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in "abcd":
            write_image(tmp_path / f"images/{split}/{name}.jpg")
            write_mask(tmp_path / f"masks/{split}/{name}.png", mask=np.full((4, 6), 9, np.uint8))
    with pytest.raises(DataError, match=r"^8 of 8 samples(.*\n){6}  \.\.\. and 3 more\nName such values"):
        check_masks(load_segmentation_dataset(tmp_path, val_fraction=0.5), TWO)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_truncated_images_are_named(tmp_path: Path, suffix: str) -> None:
    write_pairs(tmp_path, "b")
    image = tmp_path / f"images/a.{suffix}"
    write_image(image, (64, 64))
    write_mask(tmp_path / "masks/a.png", (64, 64))
    image.write_bytes(image.read_bytes()[: -len(image.read_bytes()) // 3])
    with pytest.raises(DataError, match=rf"images/a\.{suffix}: "):
        check_masks(load_segmentation_dataset(tmp_path), TWO)


def test_truncated_masks_are_named(tmp_path: Path) -> None:
    write_pairs(tmp_path, "b")
    write_image(tmp_path / "images/a.jpg", (64, 64))
    mask = tmp_path / "masks/a.png"
    write_mask(mask, mask=np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8))
    mask.write_bytes(mask.read_bytes()[:200])
    with pytest.raises(DataError, match=r"masks/a\.png: .*truncated"):
        check_masks(load_segmentation_dataset(tmp_path), TWO)


def test_masks_saved_as_jpeg(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.jpg", (64, 64))
    write_mask(tmp_path / "masks/a.jpg", mask=np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8) * 90)
    with pytest.raises(DataError, match=r"masks/a\.jpg: .*JPEG does not keep exact values: save masks as PNG$"):
        check_masks(load_segmentation_dataset(tmp_path), LabelMap.from_ids({0: "sky", 90: "road"}))


def test_masks_of_ignored_pixels_alone(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.jpg")
    write_mask(tmp_path / "masks/a.png", mask=np.full((4, 6), 255, np.uint8))
    with pytest.raises(DataError, match="every pixel of all 1 masks is ignored, so that there is nothing to learn"):
        check_masks(load_segmentation_dataset(tmp_path), LabelMap.from_names(["sky", "road"]))


def test_binary_masks_whose_foreground_would_be_ignored(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.jpg")
    write_mask(tmp_path / "masks/a.png", mask=np.array([[0, 255] * 3] * 4, np.uint8))
    dataset = load_segmentation_dataset(tmp_path)
    with pytest.raises(DataError, match=r"only class in all 1 masks is 'sky', .*\"255\": \"foreground\""):
        check_masks(dataset, TWO)
    check_masks(dataset, LabelMap.from_ids({0: "background", 255: "foreground"}))


@pytest.mark.parametrize(
    "mask",
    [
        np.array([[0, 1, 300], [1, 0, 300]], np.uint16),
        np.array([[0, 1, 300], [1, 0, 300]], np.int32),
        np.array([[False, True]]),
    ],
)
def test_masks_of_other_types_pass(tmp_path: Path, mask: np.ndarray) -> None:
    write_image(tmp_path / "images/a.png", mask.shape)
    write_mask(tmp_path / "masks/a.tif", mask=mask)
    check_masks(load_segmentation_dataset(tmp_path), LabelMap.from_ids({0: "sky", 1: "road", 300: "car"}))


def test_colors_and_palettes_pass(tmp_path: Path) -> None:
    colors = np.array([[[0, 0, 0], [128, 64, 128]]], np.uint8)
    write_image(tmp_path / "images/a.png", (1, 2))
    write_mask(tmp_path / "masks/a.png", mask=colors)
    dataset = load_segmentation_dataset(tmp_path)
    check_masks(dataset, LabelMap.from_colors({"#804080": "road", "#000000": "sky"}))
    with pytest.raises(DataError, match=r"a\.png: the mask holds colour #000000.*the label map names ids"):
        check_masks(dataset, TWO)
    PIL.Image.fromarray(colors).quantize(2).save(tmp_path / "masks/a.png")
    check_masks(dataset, TWO)


def test_masks_held_in_memory_are_checked_by_id(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Image, Value

    wrong = PIL.Image.fromarray(np.full((4, 6), 42, np.uint8))
    rows = {"id": ["a"], "image": [PIL.Image.new("RGB", (6, 4))], "mask": [wrong]}
    features = Features({"id": Value("string"), "image": Image(), "mask": Image()})
    with pytest.raises(DataError, match=r"  a: the mask holds id 42 \(24 pixels\)"):
        check_masks(DatasetDict(train=Dataset.from_dict(rows, features=features)), TWO)


# -- skipping ---------------------------------------------------------------------------------------------------------


def test_broken_files_are_skipped_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What headers do not show: cut off in the middle. Wrong ids are no broken files."""
    write_pairs(tmp_path, "abcd", "images/train", "masks/train")
    write_pairs(tmp_path, "e", "images/val", "masks/val")
    write_image(tmp_path / "images/train/b.jpg", (64, 64))
    write_mask(tmp_path / "masks/train/b.png", (64, 64))
    cut = (tmp_path / "images/train/b.jpg").read_bytes()
    (tmp_path / "images/train/b.jpg").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "images/train/c.jpg").write_bytes(b"")
    write_mask(tmp_path / "masks/train/d.png", mask=np.full((4, 6), 77, np.uint8))
    config = DatasetConfig(path=str(tmp_path), labels=["sky", "road"])
    with pytest.raises(DataError, match=r"files that cannot be read \(1\): images/train/c\.jpg"):
        open_dataset(config)
    dataset, label_map = open_dataset(config.model_copy(update={"on_error": "skip"}))
    assert {split: list(rows["id"]) for split, rows in dataset.items()} == {"train": ["a", "d"], "val": ["e"]}
    assert "skipped files that cannot be read (1): images/train/c.jpg" in caplog.text
    assert f"skipped 1 samples that cannot be read: {tmp_path}/images/train/b.jpg" in caplog.text
    with pytest.raises(DataError, match="1 of 3 samples cannot be used"):
        check_masks(dataset, label_map)


def test_rows_of_arrays_are_checked(tmp_path: Path) -> None:
    for name, size in (("a", (8, 9)), ("b", (9, 8))):
        (tmp_path / "images").mkdir(exist_ok=True)
        np.save(tmp_path / f"images/{name}.npy", np.zeros((*size, 5), np.float32))
        write_mask(tmp_path / f"masks/{name}.png", size)
    dataset = load_segmentation_dataset(tmp_path, val_fraction=0)
    assert check_masks(dataset, TWO)["train"].sum() == 2 * 72
    np.save(tmp_path / "images/b.npy", np.zeros((8, 9, 5), np.float32))  # changed after the index
    with pytest.raises(DataError, match=r"b\.png: the image is \(8, 9\) \(height, width\), its mask \(9, 8\)"):
        check_masks(dataset, TWO)
    (tmp_path / "images/a.npy").unlink()
    with pytest.raises(DataError, match=r"2 of 2 samples cannot be used:\n  .*images/a\.npy"):
        check_masks(dataset, TWO)


def test_turned_pictures_are_checked_as_they_are_shown(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    write_image(tmp_path / "images/a.jpg", (4, 6), exif=exif)
    write_mask(tmp_path / "masks/a.png", (6, 4))
    assert check_masks(load_segmentation_dataset(tmp_path), TWO)["train"].tolist() == [[12, 12, 0]]


COUNTED: dict[str, Any] = {"mean": "counted", "std": "counted"}


def arrays(folder: Path, *images: np.ndarray) -> Dataset:
    samples = []
    for number, image in enumerate(images):
        np.save(folder / f"{number}.npy", image)
        samples.append(Sample(str(number), "train", folder / f"{number}.npy", folder / "no mask.npy"))
    return to_dataset(samples, Reader())


def test_all_pixels_count_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 10000, (height, 30, 5), dtype=np.uint16) for height in (10, 25)]
    images[1][:, :, 4] //= 7
    counted = with_statistics(TransformConfig(**COUNTED, value_range=(-100, 9900)), arrays(tmp_path, *images))
    pixels = (np.concatenate([image.reshape(-1, 5) for image in images]) + 100) / 10000
    np.testing.assert_allclose(counted.mean, pixels.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(counted.std, pixels.std(axis=0), rtol=1e-3)
    values, _ = TrainTransform(counted.model_copy(update={"crop_size": 25, "scale": (1, 1)}), 255)(
        images[1].astype(np.float32), np.zeros((25, 30), np.uint8), (0,)
    )
    np.testing.assert_allclose((values.mean(), values.std()), (0, 1), atol=0.1)


def test_pictures_are_rgb(tmp_path: Path, earth: Path) -> None:
    rows = load_segmentation_dataset(earth)["test"]
    pixels = np.concatenate([np.asarray(row["image"]).reshape(-1, 3) for row in rows]) / 255
    counted = with_statistics(TransformConfig(**COUNTED), rows)
    np.testing.assert_allclose(counted.mean, pixels.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(counted.std, pixels.std(axis=0), rtol=1e-3)


def test_only_so_many_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segtune.data.checks.COUNTED_IMAGES", 3)
    levels = [np.array([[value, 255 - value]] * 2, np.uint8) for value in (0, 250, 20, 250, 40)]
    counted = with_statistics(TransformConfig(**COUNTED), arrays(tmp_path, *levels))
    assert counted.mean == (0.5, 0.5, 0.5)
    assert counted.std[0] == pytest.approx(np.std([0, 20, 40, 255, 235, 215]) / 255, rel=1e-3)


def test_missing_data_does_not_count(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"image": [0]}).with_transform(
        lambda batch: {
            "image": [
                np.ma.masked_array(np.array([[[1.0, 5.0], [3.0, 9.0], [99.0, 99.0]]]), [[[0, 0], [0, 0], [1, 1]]])
            ]
        }
    )
    counted = with_statistics(TransformConfig(**COUNTED, value_range=(0, 10)), rows)
    assert (counted.mean, counted.std) == ((0.2, 0.7), (0.1, 0.2))


def test_given_numbers_are_kept_and_one_value_everywhere_is_refused(tmp_path: Path) -> None:
    plain = TransformConfig()
    rows = arrays(tmp_path, np.dstack([np.arange(9).reshape(3, 3), np.full((3, 3), 4)]).astype(np.uint8))
    assert with_statistics(plain, rows) is plain
    with pytest.raises(DataError, match="channel 2 of 2 has one value in all images"):
        with_statistics(TransformConfig(**COUNTED), rows)


def test_both_are_counted_or_none() -> None:
    with pytest.raises(ValidationError, match="set both to counted, or give numbers for both"):
        TransformConfig(mean="counted")
    with pytest.raises(UsageError, match="are not counted yet"):
        TrainTransform(TransformConfig(**COUNTED), 255)


def test_channels_may_be_stated(tmp_path: Path) -> None:
    four = np.random.default_rng(0).integers(0, 256, (4, 6, 4), dtype=np.uint8)
    PIL.Image.fromarray(four).save(tmp_path / "a.png")
    rows = to_dataset([Sample("a", "train", tmp_path / "a.png", tmp_path / "a.png")], Reader())
    assert len(with_statistics(TransformConfig(**COUNTED), rows).mean) == 3
    assert len(with_statistics(TransformConfig(**COUNTED), rows, 4).mean) == 4


def test_sums_of_channels_are_counted_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_BLOCK", 3)
    values = np.array([[0, 255], [1, 7], [2, 7], [200, 0]], dtype=np.uint8)
    assert checks.channel_sums(values).tolist() == [[4, 4], [203, 269], [40005, 65123]]
    assert checks.channel_sums(values[:0]).tolist() == [[0, 0]] * 3
