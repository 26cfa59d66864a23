"""From files to batches: reading pictures, the training samples, and which of them make up an optimiser step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset, Sampler

from segtune.data.transforms import TrainTransform
from segtune.errors import DataError, UsageError
from segtune.labels import LabelError, LabelMap

if TYPE_CHECKING:
    import datasets

Key = tuple[int, int]  # (epoch, index)


def read_image(image: PIL.Image.Image | np.ndarray) -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB.

    Takes grey, palette, CMYK, 16-bit (the upper 8 bits are kept) and transparent pictures (alpha is dropped), and
    arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16 or bool. The EXIF orientation is left alone:
    `datasets` has applied it.

    Raises:
        DataError: floating-point pixels, or another number of channels.
    """
    if isinstance(image, PIL.Image.Image):
        if image.mode.startswith("I"):
            return read_image(np.asarray(image).clip(0, 65535).astype(np.uint16))
        if image.mode == "F":
            raise DataError("an image of floating-point pixels (mode F): save it with 8 or 16 bits")
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return np.asarray(image.convert("RGB"))  # (H, W, 3)
    pixels = np.atleast_3d(image)  # (H, W, C)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or pixels.dtype not in (np.uint8, np.uint16, np.bool_):
        raise DataError(f"an image of {image.dtype} {image.shape}: expected uint8 or uint16 (H, W), (H, W, 3 or 4)")
    if pixels.dtype == np.uint16:
        pixels = pixels >> 8
    elif pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]  # (H, W, 3)
    return np.ascontiguousarray(pixels, dtype=np.uint8)


def read_mask(mask: PIL.Image.Image) -> np.ndarray:
    """A mask as it is stored: ids (H, W) of the file's own type, palette indices among them, or colours (H, W, 3)."""
    if mask.mode in ("LA", "PA"):
        mask = mask.getchannel(0)
    elif mask.mode not in ("1", "L", "P", "F", "RGB") and not mask.mode.startswith("I"):
        mask = mask.convert("RGB")
    return np.asarray(mask)


class SegmentationSamples(Dataset):
    """Augmented training samples. The key carries the epoch, so that workers share no state.

    Args:
        dataset: with the columns "id", "image" and "mask".
    """

    def __init__(self, dataset: datasets.Dataset, label_map: LabelMap, transform: TrainTransform, seed: int) -> None:
        self.dataset = dataset
        self.label_map = label_map
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """Sample `index` as augmented in `epoch`; the same for the same seed, epoch and index.

        Returns:
            "pixel_values": float32 (C, h, w); "labels": int64 (h, w); "id".

        Raises:
            DataError: the files cannot be read or do not fit the label map; names the sample and its files.
        """
        epoch, index = key
        try:
            row = self.dataset[index]
            image, labels = read_image(row["image"]), self.label_map.encode(read_mask(row["mask"]))
            pixel_values, labels = self.transform(image, labels, (self.seed, epoch, index))
        except Exception as error:
            values = error.values if isinstance(error, LabelError) else {}
            raise LabelError(f"{self._describe(index)}: {error}", values) from error
        return {"pixel_values": torch.from_numpy(pixel_values), "labels": torch.from_numpy(labels), "id": row["id"]}

    def _describe(self, index: int) -> str:
        row = self.dataset.with_format("arrow")[index].to_pylist()[0]
        return f"sample {row['id']!r} (image {row['image']['path']}, mask {row['mask']['path']})"


class StepSampler(Sampler[list[Key]]):
    """The micro-batches of one process, step after step, as lists of (epoch, index): a `batch_sampler`.

    The samples form one endless stream, the epochs one after another, each in an order of its own. Global step s takes
    samples s * G to (s + 1) * G of it, with G = batch_size * accumulation_steps * num_processes: a step sees the same
    samples however G is split, no sample is dropped, and a run resumed at `start_step` goes on where it stopped.

    Args:
        num_samples: in the data set.
        batch_size: samples in one forward pass of one process.
        accumulation_steps: forward passes of each process in an optimiser step.
        seed: of the orders.
        start_step: the first step to yield; steps end before `max_steps`.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        accumulation_steps: int = 1,
        process_index: int = 0,
        num_processes: int = 1,
        seed: int = 0,
        start_step: int = 0,
        max_steps: int,
    ) -> None:
        if min(num_samples, batch_size, accumulation_steps, num_processes) < 1:
            raise UsageError(
                f"num_samples {num_samples}, batch_size {batch_size}, accumulation_steps {accumulation_steps} and "
                f"num_processes {num_processes} must be at least 1"
            )
        if not 0 <= process_index < num_processes:
            raise UsageError(f"process_index {process_index} is not below num_processes {num_processes}")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.accumulation_steps = accumulation_steps
        self.process_index = process_index
        self.num_processes = num_processes
        self.seed = seed
        self.start_step = start_step
        self.max_steps = max_steps

    def __len__(self) -> int:
        return max(0, self.max_steps - self.start_step) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for micro_step in range(self.start_step * self.accumulation_steps, self.max_steps * self.accumulation_steps):
            start = (micro_step * self.num_processes + self.process_index) * self.batch_size
            keys = []
            for position in range(start, start + self.batch_size):
                if position // self.num_samples != epoch:
                    epoch = position // self.num_samples
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
                keys.append((epoch, int(order[position % self.num_samples])))
            yield keys


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples of one size to a batch: "pixel_values" (B, C, h, w), "labels" (B, h, w) and "ids"."""
    return {
        "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        "labels": torch.stack([sample["labels"] for sample in samples]),
        "ids": [sample["id"] for sample in samples],
    }
