"""Mean and standard deviation counted from the training images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset
from pydantic import ValidationError

from segtune.data.references import Reader, to_dataset
from segtune.data.scan import Sample
from segtune.data.sources import load_segmentation_dataset
from segtune.data.statistics import with_statistics
from segtune.data.transforms import TrainTransform, TransformConfig
from segtune.errors import DataError, UsageError

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
    monkeypatch.setattr("segtune.data.statistics.MOST", 3)
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
