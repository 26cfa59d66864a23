"""The contact sheet of augmented samples: what it shows is what training sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from segtune.data.config import TransformConfig
from segtune.data.dataset import load_segmentation_dataset
from segtune.data.rare_classes import training_transform
from segtune.data.samples import SegmentationSamples, StepSampler
from segtune.labels.label_map import LabelMap
from segtune.viz.overlay import denormalize, preview

LABELS = LabelMap.from_names(["dark", "bright"], colors=[(200, 0, 0), (0, 0, 200)])
CELL, GAP, LINE = 256, 12, 20


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Five pictures, the left half dark, the right half bright, of other brightness each."""
    folder = tmp_path_factory.mktemp("preview")
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for number in range(5):
        image = np.full((300, 300, 3), 20 * number, np.uint8)
        image[:, 150:] += 100
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        mask = np.zeros((300, 300), np.uint8)
        mask[:, 150:] = 1
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return load_segmentation_dataset(folder, val_fraction=0)["train"]


def test_sheet_shows_the_first_samples_of_a_run(dataset: Any) -> None:
    """Seven of five: the last two come from the second epoch."""
    config = TransformConfig(crop_size=256, preset="strong")
    sheet = np.asarray(preview(dataset, LABELS, config, seed=3, count=7))
    samples = SegmentationSamples(dataset, LABELS, training_transform(config, dataset, LABELS), 3)
    (keys,) = StepSampler(len(dataset), 7, seed=3, max_steps=1)
    assert sheet.shape[0] > 3 * (CELL + LINE) and sheet.shape[1:] == (3 * (2 * CELL + GAP) - GAP, 3)
    for number, key in enumerate(keys):
        sample = samples[key]
        top, left = number // 3 * (CELL + LINE), number % 3 * (2 * CELL + GAP)
        shown, blended = sheet[top : top + CELL, left : left + CELL], sheet[top : top + CELL, left + CELL :][:, :CELL]
        values = sample["pixel_values"].numpy().transpose(1, 2, 0) * config.std + np.array(config.mean)
        np.testing.assert_allclose(shown, values * 255, atol=0.51)
        labels = sample["labels"].numpy()
        for label, channel in ((0, 0), (1, 2)):
            tinted = blended[labels == label].astype(int)
            assert (tinted[:, channel] > tinted[:, 1]).all()


def test_streams_are_shown_too(dataset: Any, tmp_path: Path) -> None:
    def embedded(row: dict[str, Any]) -> dict[str, Any]:
        return {name: {"bytes": Path(row[name].filename).read_bytes(), "path": None} for name in ("image", "mask")}

    dataset.map(embedded, features=dataset.features).to_parquet(tmp_path / "train.parquet")
    stream = datasets.load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), split="train", streaming=True)
    sheet = preview(stream, LABELS, TransformConfig(crop_size=64), count=4)
    assert sheet.width == 2 * (2 * CELL + GAP) - GAP


@pytest.mark.parametrize("crop_size", [32, (40, 64), (700, 300)])
@pytest.mark.parametrize("count", [1, 3])
def test_sheets_of_any_size(dataset: Any, crop_size: Any, count: int) -> None:
    sheet = preview(dataset, LABELS, TransformConfig(crop_size=crop_size), count=count)
    assert sheet.width >= CELL // 2 and sheet.height > CELL // 2
    assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 5


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_other_numbers_of_channels(channels: int, shown: list[int]) -> None:
    config = TransformConfig(mean=(0.5,) * channels, std=(0.25,) * channels)
    values = np.linspace(-1, 1, channels, dtype=np.float32)
    pixels = denormalize(np.broadcast_to(values[:, None, None], (channels, 4, 5)), config)
    assert (pixels.shape, pixels.dtype) == ((4, 5, 3), np.uint8)
    np.testing.assert_allclose(pixels[0, 0], (values[shown] * 0.25 + 0.5) * 255, atol=0.51)
