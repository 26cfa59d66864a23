"""Training samples: pairs of image and labels, augmented into batches, and the sampler of each optimiser step."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset, Sampler, get_worker_info

from segtune.data.lazy_rows import decoded, undecoded
from segtune.data.transforms import TrainTransform
from segtune.errors import DataError, UsageError
from segtune.imageio.read import Pixels, read_image, read_mask
from segtune.labels.distance_maps import distance_maps
from segtune.labels.label_map import LabelError, LabelMap

if TYPE_CHECKING:
    import datasets

Key = tuple[int, int]  # (epoch, index)
Area = tuple[slice, slice]  # rows, columns


class DistanceMaps(NamedTuple):
    """What the boundary loss needs to know of a batch of labels (B, H, W), made where these are loaded."""

    of: torch.Tensor  # (M, 2), int64: the image in the batch and the class of each map, image after image
    maps: torch.Tensor  # (M, H, W), float32, see `labels.distance_maps.signed_distance`
    per_image: tuple[int, ...]  # how many maps each of the B images has

    @classmethod
    def of_labels(cls, labels: torch.Tensor, ignore_index: int, first: int) -> DistanceMaps:
        """Of every class from `first` on that the images show; waits for labels on a device."""
        of, maps = distance_maps(labels.cpu().numpy(), ignore_index, first)
        per_image = np.bincount(of[:, 0], minlength=len(labels))
        places, distances = (torch.from_numpy(array).to(labels.device) for array in (of, maps))
        return cls(places, distances, tuple(per_image.tolist()))


class CroppedReader:
    """An image or a mask that is read in parts: `reader[top:bottom, left:right]`, or all of it as `[:, :]`.

    Of a mask, every n-th row and column can be asked for as well.

    Attributes:
        shape: (height, width).
    """

    def __init__(self, shape: tuple[int, int], read: Callable[[Area], np.ndarray]) -> None:
        self.shape = shape
        self._read = read

    def __getitem__(self, area: Area) -> np.ndarray:
        return self._read(area)


def open_pair(
    row: Mapping[str, Any], label_map: LabelMap, channels: int = 3, raw: bool = False
) -> tuple[CroppedReader, CroppedReader]:
    """Image (H, W, channels), see `read_image`, and labels (H, W) of a row; pixels without image data are ignored.

    Reading a window costs as much as the window is large, and raises what `read_pair` does.

    Raises:
        DataError: they differ in size.
    """
    picture, mask = row["image"], read_mask(row["mask"], label_map.by_color)
    if not isinstance(picture, (PIL.Image.Image, np.ndarray)):
        picture = np.asarray(picture)
    shape = (picture.height, picture.width) if isinstance(picture, PIL.Image.Image) else picture.shape[:2]
    if shape != mask.shape[:2]:
        raise DataError(f"the image is {shape} (height, width), its mask {mask.shape[:2]}")

    def image_of(area: Area) -> np.ndarray:
        return read_image(cut(picture, area), channels, raw)

    def labels_of(area: Area) -> np.ndarray:
        try:
            labels = label_map.encode(mask[area])
        except LabelError:
            label_map.encode(mask)  # raises with the pixels of the whole mask
            raise
        if isinstance(picture, np.ma.MaskedArray):
            missing = np.ma.getmaskarray(picture[area])
            labels[missing if missing.ndim == 2 else missing.all(axis=2)] = label_map.ignore_index
        return labels

    return CroppedReader(shape, image_of), CroppedReader(shape, labels_of)


def cut(picture: Pixels, area: Area) -> Pixels:
    """A window of a picture or an array (H, W) or (H, W, C)."""
    if not isinstance(picture, PIL.Image.Image):
        return picture[area]
    top, bottom, row_step = area[0].indices(picture.height)
    left, right, column_step = area[1].indices(picture.width)
    assert (row_step, column_step) == (1, 1)
    whole = (left, top, right, bottom) == (0, 0, *picture.size)
    return picture if whole else picture.crop((left, top, right, bottom))


def read_pair(
    row: Mapping[str, Any], label_map: LabelMap, channels: int = 3, raw: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, channels) and labels (H, W) of a row as a whole, see `open_pair`.

    Raises:
        DataError: one of them cannot be read, or they differ in size.
        LabelError: the mask does not fit the label map.
    """
    image, labels = open_pair(row, label_map, channels, raw)
    return image[:, :], labels[:, :]


def smallest_type(label_map: LabelMap) -> torch.dtype:
    """The smallest type of uint8, int16 and int64 that holds the training ids and the ignore index."""
    ids = (0, label_map.num_labels - 1, label_map.ignore_index)
    for dtype in (torch.uint8, torch.int16):
        if torch.iinfo(dtype).min <= min(ids) and max(ids) <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64


def _share(*tensors: torch.Tensor) -> bool:
    """Move tensors into shared memory; False where it is too small, as in a container with Docker's 64 MB."""
    try:
        for tensor in tensors:
            tensor.share_memory_()
    except (RuntimeError, OSError) as error:
        if "shared memory" not in str(error) and getattr(error, "errno", None) != errno.ENOSPC:
            raise
        return False
    return True


def as_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch of a worker that had no shared memory, with tensors over the same memory; another one as it is."""
    return _converted(batch, np.ndarray, torch.from_numpy)


def _converted(batch: dict[str, Any], kind: type, convert: Callable[[Any], Any]) -> dict[str, Any]:
    """The batch with `convert` of whatever in it, or in its distance maps, is of a kind."""

    def change(value: Any) -> Any:
        return convert(value) if isinstance(value, kind) else value

    batch = {key: change(value) for key, value in batch.items()}
    return batch | {key: DistanceMaps(*map(change, value)) for key, value in batch.items() if key == "distances"}


class SegmentationSamples(Dataset):
    """Augmented training samples. The key carries the epoch, so that workers share no state.

    Args:
        dataset: with the columns "id", "image" and "mask".
        distances_from: batches have the `DistanceMaps` of the classes from this one on; None for none.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        label_map: LabelMap,
        transform: TrainTransform,
        seed: int,
        distances_from: int | None = None,
    ) -> None:
        self.dataset = undecoded(dataset)
        self.label_map = label_map
        self.transform = transform
        self.seed = seed
        self.label_type = smallest_type(label_map)
        self.distances_from = distances_from

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """Sample `index` as augmented in `epoch`; the same for the same seed, epoch and index.

        Returns:
            "pixel_values": float32 (C, h, w); "labels": (h, w), of the type that `smallest_type` says; "id".

        Raises:
            DataError: a file cannot be read or does not fit the label map (`LabelError`); names the sample and files.
        """
        batch = self.__getitems__([key])
        return {"pixel_values": batch["pixel_values"][0], "labels": batch["labels"][0], "id": batch["ids"][0]}

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Any]:
        """A batch, which is what a DataLoader asks for: "pixel_values" (B, C, h, w), "labels" (B, h, w) and "ids".

        Labels are bytes where they can be, an eighth of what int64 would move between processes and to a device.
        With `distances_from`, also "distances", `DistanceMaps`.

        Samples are written into their place in the batch; in a worker that lies in shared memory, so that nothing is
        copied on the way. Where there is not enough of that, a worker's batch is of NumPy arrays, which are sent
        through a pipe (`as_tensors`).
        """
        pixel_values = torch.empty(len(keys), self.transform.channels, *self.transform.size)  # (B, C, h, w)
        labels = torch.empty(len(keys), *self.transform.size, dtype=self.label_type)  # (B, h, w)
        is_shared = get_worker_info() is None or _share(pixel_values, labels)
        ids = [
            self._write(key, *places) for key, *places in zip(keys, pixel_values.numpy(), labels.numpy(), strict=True)
        ]
        batch = {"pixel_values": pixel_values, "labels": labels, "ids": ids}
        if self.distances_from is not None:
            distances = DistanceMaps.of_labels(labels, self.label_map.ignore_index, self.distances_from)
            is_shared = is_shared and (get_worker_info() is None or _share(distances.of, distances.maps))
            batch["distances"] = distances
        return batch if is_shared else _converted(batch, torch.Tensor, torch.Tensor.numpy)

    def _write(self, key: Key, pixel_values: np.ndarray, target: np.ndarray) -> str:
        epoch, index = key[:2]
        try:
            row = decoded(self._row(key))
            image, labels = open_pair(row, self.label_map, self.transform.channels, self.transform.raw)
            self.transform.write(image, labels, (self.seed, epoch, index), pixel_values, target)
        except DataError as error:  # anything else is no fault of the sample, and keeps its traceback
            raise error.named(self._describe(key)) from error
        return str(row["id"])

    def _row(self, key: Key) -> Mapping[str, Any]:
        return cast("Mapping[str, Any]", self.dataset[key[1]])

    def _describe(self, key: Key) -> str:
        row = self.dataset.with_format("arrow")[key[1]].to_pylist()[0]
        return f"sample {row['id']!r} (image {row['image']['path']}, mask {row['mask']['path']})"


class StepSampler(Sampler[list[Key]]):
    """The micro-batches of one process, step after step, as lists of (epoch, index): a `batch_sampler`.

    The samples form one endless stream, the epochs one after another, each in an order of its own. Global step s takes
    samples s * G to (s + 1) * G of it, with G = batch_size * accumulation_steps * num_processes: a step sees the same
    samples however G is split, no sample is dropped, and a run resumed at `start_step` goes on where it stopped.

    Args:
        num_samples: the number of samples in the data set.
        batch_size: the number of samples in one forward pass of one process.
        accumulation_steps: the number of forward passes of each process in an optimiser step.
        seed: decides the order in each epoch.
        start_step: the first step to yield; steps end before `max_steps`.

    Raises:
        UsageError: a size is below 1, or `process_index` is not below `num_processes`.
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
        # Position t of the endless stream is sample order_e[t mod n] of epoch e = t div n. Micro-step m of process r
        # takes the positions from (m P + r) B to (m P + r + 1) B, with P processes and batches of B: the samples of a
        # step follow from its number alone, and there is no state to be saved.
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


def collate(batch: Any) -> dict[str, Any]:
    """`SegmentationSamples` gives a DataLoader whole batches: they stay as they are."""
    return batch
