"""What happens to a training sample between the file and the network, after the SegFormer authors' recipe."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from segtune.errors import DataError, UsageError
from segtune.protocol import Protocol
from segtune.section import Section

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask PyPI for a newer version when imported

import albumentations as A
from albumentations.augmentations.geometric.functional import resize

LINEAR, AREA, NEAREST = 1, 3, 6  # OpenCV's INTER_LINEAR, INTER_AREA and INTER_NEAREST_EXACT
CROP_TRIES = 10

Side = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class TransformConfig(Section):
    """The recipe's `transforms` section; sizes are (height, width) in pixels.

    Attributes:
        crop_size: of a training sample; one number for a square.
        short_side: the short side that scale 1 stands for. None: the image's own.
        scale: the range of the random resize.
        max_class_share: a crop with more than this share of its labelled pixels in one class is drawn anew, up to 10
            times; 1 takes every crop.
        horizontal_flip: probability; `vertical_flip` likewise.
        rotate90: turn by a random multiple of 90 degrees.
        photometric: change brightness (by up to 32 of 255), contrast and saturation (0.5 to 1.5) and hue (up to a tenth
            of the circle), each with probability 0.5. Images of other than three channels, and those with a
            `value_range`, are left as they are.
        mean: per channel, of values from 0 to 1; `std` likewise. Their length is the number of channels. "counted" for
            both: from the training images.
        value_range: the pixel values that 0 and 1 stand for there. None: 0 and 255, of 16-bit pictures 65535; images of
            more than 3 channels that are not 8-bit, and those of fractions, must declare it.
        eval_short_side: the short side images are resized to for evaluation and prediction. None: their own size.
        eval_size_divisor: there, sides are rounded up to a multiple of this.
        eval_window: there, the side of the windows that are segmented one by one and blended (mmseg's `slide`), a
            multiple of 32. None: the whole image at once (mmseg's `whole`).
        eval_stride: from one window to the next, a multiple of 4. None: three quarters of the window.
    """

    crop_size: Side | tuple[Side, Side] = 512
    short_side: Side | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = Field(default=0.75, gt=0, le=1)
    horizontal_flip: Probability = 0.5
    vertical_flip: Probability = 0.0
    rotate90: bool = False
    photometric: bool = True
    mean: tuple[float, ...] | Literal["counted"] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] | Literal["counted"] = (0.229, 0.224, 0.225)
    value_range: tuple[float, float] | None = None
    eval_short_side: Side | None = None
    eval_size_divisor: Side = 1
    eval_window: Side | None = None
    eval_stride: Side | None = None

    @model_validator(mode="after")
    def _check(self) -> TransformConfig:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {self.scale}: give the smallest and the largest factor, both above 0")
        if (self.mean == "counted") != (self.std == "counted"):
            raise ValueError("mean and std are counted together: set both to counted, or give numbers for both")
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} and std {len(self.std)} numbers: give one each per channel")
        if not isinstance(self.std, str) and min(self.std) <= 0:
            raise ValueError(f"std {self.std}: every number must be above 0")
        if self.value_range and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range {self.value_range}: give the smaller value first")
        Protocol(self.eval_window, self.eval_stride)
        return self


class TrainTransform:
    """Random resize, crop, flips and colours, then normalisation and padding, of one training sample."""

    def __init__(self, config: TransformConfig, ignore_index: int) -> None:
        self.size = (config.crop_size,) * 2 if isinstance(config.crop_size, int) else config.crop_size
        self.ignore_index = ignore_index
        if isinstance(config.mean, str) or isinstance(config.std, str):
            raise UsageError("transforms.mean and std are not counted yet: see segtune.data.statistics")
        self.channels, self.raw = len(config.mean), config.value_range is not None
        low, high = config.value_range or (0, 255)
        mean, std = np.array([config.mean, config.std])
        factor = 1 / ((high - low) * std)
        self.factor, self.shift = np.array([factor, -mean / std - low * factor], dtype=np.float32)  # (C,) each
        self.pipeline = A.Compose(
            [
                A.RandomRotate90(p=float(config.rotate90)),
                ScaledCrop(self.size, config.scale, config.short_side, config.max_class_share, ignore_index),
                A.HorizontalFlip(p=config.horizontal_flip),
                A.VerticalFlip(p=config.vertical_flip),
                *(photometric_distortion() if config.photometric and self.channels == 3 and not self.raw else []),
            ],
            strict=True,
        )

    def __call__(self, image: np.ndarray, labels: np.ndarray, seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Augment one sample; the same for the same seed, in any process and whatever was drawn before.

        Args:
            image: (H, W, C) uint8, or float32 where `value_range` is declared.
            labels: (H, W) training ids and `ignore_index`.
            seed: non-negative integers, such as (seed, epoch, index).

        Returns:
            pixel_values (C, h, w), normalised float32, and labels (h, w) int64, of the crop's size. Where the scaled
            image is smaller, 0 (the mean colour) and `ignore_index` fill the right and the bottom.

        Raises:
            DataError: the image has another type or number of channels, or another size than the labels.
        """
        channels = len(self.factor)
        if (
            image.dtype not in (np.uint8, *([np.float32] if self.raw else []))
            or image.ndim != 3
            or image.shape[2] != channels
        ):
            raise DataError(
                f"the image is {image.dtype} {image.shape}, but transforms.mean and std have {channels} numbers: "
                f"it must be uint8 (with a value_range float32 too) (H, W, {channels})"
            )
        if labels.shape != image.shape[:2]:
            raise DataError(f"the image has (height, width) {image.shape[:2]}, the labels have {labels.shape}")
        # One stream for all: Compose.set_random_seed gives each transform the same numbers, so that flips and colour
        # changes would always come together.
        generator = np.random.default_rng(np.random.SeedSequence(seed))
        self.pipeline.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        sample = self.pipeline(image=image, mask=labels if labels.dtype == np.uint8 else labels.astype(np.int32))
        height, width = sample["mask"].shape
        pixel_values = np.zeros((channels, *self.size), dtype=np.float32)  # (C, h, w)
        for channel, plane in enumerate(pixel_values[:, :height, :width]):
            np.multiply(sample["image"][:, :, channel], self.factor[channel], out=plane)
            plane += self.shift[channel]
        padded = np.full(self.size, self.ignore_index, dtype=np.int64)  # (h, w)
        padded[:height, :width] = sample["mask"]
        return pixel_values, padded


class ScaledCrop(A.DualTransform):
    """Draw a scale and a window, and resize that window only: large images cost no more than small ones."""

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float],
        short_side: int | None,
        max_class_share: float,
        ignore_index: int,
    ) -> None:
        super().__init__(p=1.0)
        self.size = size
        self.scale = scale
        self.short_side = short_side
        self.max_class_share = max_class_share
        self.ignore_index = ignore_index

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        sides = params["shape"][:2]
        scale = self.py_random.uniform(*self.scale) * (self.short_side or min(sides)) / min(sides)
        target = tuple(min(crop, max(1, round(side * scale))) for crop, side in zip(self.size, sides, strict=True))
        window = tuple(min(side, max(1, round(out / scale))) for out, side in zip(target, sides, strict=True))
        for _ in range(CROP_TRIES):
            top, left = (self.py_random.randint(0, side - part) for side, part in zip(sides, window, strict=True))
            area = slice(top, top + window[0]), slice(left, left + window[1])
            if self.max_class_share == 1 or self._largest_share(data["mask"][area]) <= self.max_class_share:
                break
        return {"area": area, "target": target}

    def _largest_share(self, labels: np.ndarray) -> float:
        """Of the most frequent class among the labelled pixels; 1 where none is labelled."""
        counts = np.bincount(labels[labels != self.ignore_index])
        return float(counts.max() / counts.sum()) if counts.size else 1.0

    def apply(self, img: np.ndarray, area: tuple[slice, slice], target: tuple[int, int], **params: Any) -> np.ndarray:
        part = img[area]
        return resize(part, target, AREA if math.prod(target) < math.prod(part.shape[:2]) else LINEAR)

    def apply_to_mask(
        self, mask: np.ndarray, area: tuple[slice, slice], target: tuple[int, int], **params: Any
    ) -> np.ndarray:
        return resize(mask[area], target, NEAREST)


def photometric_distortion() -> list[A.BasicTransform]:
    """The colour changes of the authors' recipe, for uint8 RGB images."""
    keep = (1.0, 1.0)
    return [
        A.RandomBrightnessContrast(brightness_limit=32 / 255, contrast_limit=0.0, p=0.5),
        A.RandomBrightnessContrast(brightness_limit=0.0, contrast_limit=0.5, p=0.5),
        A.ColorJitter(keep, keep, saturation=(0.5, 1.5), hue=(0.0, 0.0), p=0.5),
        A.ColorJitter(keep, keep, keep, hue=(-0.1, 0.1), p=0.5),
    ]
