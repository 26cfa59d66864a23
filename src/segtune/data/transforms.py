"""What happens to a training sample between the file and the network, after the SegFormer authors' recipe."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from segtune.data.augmentations import (
    PRESETS,
    Stream,
    apply,
    flips,
    make_transforms,
    of_colors,
    photometric_distortion,
    planes,
)
from segtune.data.config import TransformConfig
from segtune.data.crops import RandomCrop, Readable, paste
from segtune.errors import DataError, UsageError

PasteSource = Callable[[random.Random], tuple[Readable, Readable] | None]  # an image and its labels


class TrainTransform:
    """Random resize, crop, flips and colours, what the recipe adds, then normalisation and padding, of one sample.

    Args:
        rare_ids: training ids that `config.rare_crop` looks for.
        source: draws the sample from which `config.copy_paste` takes those.
    """

    def __init__(
        self,
        config: TransformConfig,
        ignore_index: int,
        rare_ids: Sequence[int] = (),
        source: PasteSource | None = None,
    ) -> None:
        if (config.rare_crop and not rare_ids) or (config.copy_paste and (source is None or not rare_ids)):
            raise UsageError("transforms.rare_crop and copy_paste need rare classes and a source: training_transform")
        self.config = config
        self.size = (config.crop_size,) * 2 if isinstance(config.crop_size, int) else config.crop_size
        self.ignore_index = ignore_index
        self.void = ignore_index if 0 <= ignore_index <= 255 else -1  # what stands for it meanwhile
        self.crop = RandomCrop(
            self.size,
            config.scale,
            config.short_side,
            config.rotate90,
            config.max_class_share,
            ignore_index,
            sorted(rare_ids),
        )
        self.source = source
        if isinstance(config.mean, str) or isinstance(config.std, str):
            raise UsageError("transforms.mean and std are not counted yet: see segtune.data.checks")
        self.channels, self.raw = len(config.mean), config.value_range is not None
        low, high = config.value_range or (0, 255)
        mean, std = np.array([config.mean, config.std])
        factor = 1 / ((high - low) * std)
        self.factor, self.shift = np.array([factor, -mean / std - low * factor], dtype=np.float32)  # (C,) each
        named = make_transforms(
            [*(PRESETS[config.preset] if config.preset else ()), *config.extra], self.void, ignore_index
        )
        if self.raw and (colors := of_colors(named)):
            raise UsageError(
                f"transforms.value_range: {colors[0]} is for 8-bit images; transforms.extra may name geometric "
                "transforms, and there is no preset"
            )
        is_photo = config.photometric and self.channels == 3 and not self.raw
        self.colors = photometric_distortion() if is_photo else []
        self.others = [*flips(config.horizontal_flip, config.vertical_flip), *named]

    def __call__(self, image: Readable, labels: Readable, seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Augment one sample; the same for the same seed, in any process and whatever was drawn before.

        Args:
            image: (H, W, C) uint8, or float32 where `value_range` is declared; only the window that is cropped is read.
            labels: (H, W) training ids and `ignore_index`.
            seed: non-negative integers, such as (seed, epoch, index).

        Returns:
            pixel_values (C, h, w), normalised float32, and labels (h, w) int64, of the crop's size. Where the scaled
            image is smaller, 0 (the mean colour) and `ignore_index` fill the right and the bottom.

        Raises:
            DataError: the image has another type or number of channels, or another size than the labels.
            UsageError: the transforms of the recipe made something else of it.
        """
        pixel_values = np.empty((self.channels, *self.size), dtype=np.float32)  # (C, h, w)
        target = np.empty(self.size, dtype=np.int64)  # (h, w)
        self.write(image, labels, seed, pixel_values, target)
        return pixel_values, target

    def write(
        self, image: Readable, labels: Readable, seed: Sequence[int], pixel_values: np.ndarray, target: np.ndarray
    ) -> None:
        """What a call returns, written into arrays of its shapes: a place in a batch."""
        geometry, colors = Stream.several(seed, 2)  # so that colour changes leave the crops as they are
        rng = geometry.python
        pixels, mask = self._cropped(image, labels, rng, colors, around_rare=rng.random() < self.config.rare_crop)
        if self.source is not None and rng.random() < self.config.copy_paste and (pair := self.source(rng)) is not None:
            pasted = self._mirrored(*self._cropped(*pair, rng, colors, around_rare=True), rng)
            pixels, mask = paste(pixels, mask, *pasted, self.crop.rare_ids, rng)
        sample = apply(self.others, {"image": pixels, "mask": mask}, geometry)
        self.finish(sample["image"], sample["mask"], pixel_values, target)

    def _cropped(
        self, image: Readable, labels: Readable, rng: random.Random, colors: Stream, around_rare: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """A crop (h, w, C), its colours changed, and its mask (h, w): uint8 or int16, `void` where ignored."""
        if labels.shape != image.shape[:2]:
            raise DataError(f"the image has (height, width) {image.shape[:2]}, the labels have {labels.shape}")
        view = self.crop.draw(labels, rng, around_rare)
        pixels, mask = image[view.area], labels[view.area]
        kinds = (np.uint8, np.float32) if self.raw else (np.uint8,)
        if pixels.dtype not in kinds or pixels.ndim != 3 or pixels.shape[2] != self.channels:
            raise DataError(
                f"the image is {pixels.dtype} {image.shape}, but transforms.mean and std have {self.channels} numbers: "
                f"it must be uint8 (with a value_range float32 too) (H, W, {self.channels})"
            )
        pixels = pixels.astype(np.float32, copy=False) if self.raw else pixels  # a source image's may be pasted in
        if mask.dtype != np.uint8 or self.void < 0:
            mask = np.where(mask == self.ignore_index, self.void, mask).astype(np.int16)

        def change(pixels: np.ndarray) -> np.ndarray:
            return apply(self.colors, {"image": pixels}, colors)["image"]

        return view.of_image(pixels, change), view.of_mask(mask)

    def _mirrored(self, image: np.ndarray, mask: np.ndarray, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """The source is flipped apart from the image that receives it."""
        if rng.random() < self.config.horizontal_flip:
            image, mask = image[:, ::-1], mask[:, ::-1]
        if rng.random() < self.config.vertical_flip:
            image, mask = image[::-1], mask[::-1]
        return image, mask

    def finish(self, image: np.ndarray, mask: np.ndarray, pixel_values: np.ndarray, target: np.ndarray) -> None:
        """Normalise and pad to the crop's size; what is larger is cut off evenly."""
        if image.dtype not in (np.uint8, np.float32) or image.shape != (*mask.shape, self.channels):
            raise UsageError(
                f"transforms.extra made {image.dtype} {image.shape} of an image and {mask.shape} of its mask: it must "
                f"keep the numbers and {self.channels} channels, and treat both alike"
            )
        top, left = (max(0, (side - crop) // 2) for side, crop in zip(mask.shape, self.size, strict=True))
        area = slice(top, top + self.size[0]), slice(left, left + self.size[1])
        image, mask = image[area], mask[area]
        height, width = mask.shape
        pixel_values[:, height:], pixel_values[:, :height, width:] = 0, 0
        places = pixel_values[:, :height, :width]
        for place, plane, factor, shift in zip(places, planes(image), self.factor, self.shift, strict=True):
            np.copyto(place, plane)
            place *= factor
            place += shift
        target[height:], target[:height, width:] = self.ignore_index, self.ignore_index
        target[:height, :width] = mask
        if self.void != self.ignore_index:
            target[target == self.void] = self.ignore_index
