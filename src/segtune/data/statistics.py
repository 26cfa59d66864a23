"""Mean and standard deviation of the training images, for the normalisation."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from segtune.data.files import Pixels
from segtune.data.loading import read_image
from segtune.data.scan import in_threads
from segtune.data.transforms import TransformConfig
from segtune.errors import DataError

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

MOST = 1000  # images that are read, spread over the split


def with_statistics(
    transforms: TransformConfig, rows: datasets.Dataset, channels: int | None = None
) -> TransformConfig:
    """The settings with `mean` and `std` counted, where they say so: of all pixels of up to 1000 training images.

    Args:
        channels: of the images; None takes 3 for pictures, and what arrays and rasters have.

    Raises:
        DataError: an image has another number of channels, or a channel has one value everywhere.
    """
    if transforms.mean != "counted":
        return transforms
    images = rows.select_columns("image")
    numbers = np.linspace(0, len(images) - 1, min(len(images), MOST)).round().astype(int).tolist()
    count, raw = channels or channels_of(images[0]["image"]), transforms.value_range is not None
    found = in_threads(lambda number: _sums(images[number]["image"], count, raw), numbers, "counting mean and std")
    pixels, values, squares = np.sum(found, axis=0)  # (C,) each
    low, high = transforms.value_range or (0, 255)
    mean, deviation = values / pixels, np.sqrt(np.maximum(squares / pixels - (values / pixels) ** 2, 0))
    if (deviation == 0).any():
        raise DataError(
            f"channel {int(np.argmin(deviation)) + 1} of {count} has one value in all images: give numbers for "
            "transforms.mean and std"
        )
    counted = {
        "mean": tuple(float(f"{value:.4g}") for value in (mean - low) / (high - low)),
        "std": tuple(float(f"{value:.4g}") for value in deviation / (high - low)),
    }
    logger.info("counted from %d images: transforms.mean=%s std=%s", len(numbers), *map(list, counted.values()))
    return transforms.model_copy(update=counted)


def channels_of(image: Pixels) -> int:
    """As many as training reads where no number is given: 3 for pictures and what is grey."""
    if isinstance(image, PIL.Image.Image) or image.ndim == 2:
        return 3
    return 3 if image.shape[2] == 1 else image.shape[2]


def _sums(image: Pixels, channels: int, raw: bool) -> np.ndarray:
    """Pixels with data, the sum of their values and of their squares, for each channel (3, C)."""
    values = read_image(image, channels, raw).reshape(-1, channels).astype(np.float64)  # (N, C)
    if isinstance(image, np.ma.MaskedArray):
        missing = np.ma.getmaskarray(image)
        values = values[~(missing if missing.ndim == 2 else missing.all(axis=2)).ravel()]
    return np.stack([np.full(channels, len(values)), values.sum(axis=0), (values**2).sum(axis=0)])
