"""Two views of each unlabelled picture: a weak one, which a teacher labels, and a strong one, which is learned from.

Both are the same crop. The weak view is resized and mirrored as training crops are, with its own colours. In the strong
one, colours are changed and, by CutMix (Yun et al. 2019, arXiv 1905.04899; for segmentation French et al. 2020, arXiv
1906.01916), a box is taken from another picture: the partner, whose weak view is labelled as well. The partner is
drawn with the sample, so that no view depends on how a step is divided.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from segtune.data.augmentations import Stream, apply, flips, strong_colors
from segtune.data.config import TransformConfig
from segtune.data.crops import RandomCrop
from segtune.data.lazy_rows import decoded, undecoded
from segtune.data.loader import ErrorsAsValues
from segtune.data.samples import Key, StepSampler, as_tensors, collate, cut
from segtune.data.transforms import TrainTransform
from segtune.data.unlabelled.pictures import describe
from segtune.errors import DataError, SegtuneError
from segtune.imageio.read import read_image

if TYPE_CHECKING:
    import datasets

UNLABELLED = 7  # sets the draws of these samples apart from those of the labelled ones
BOX_SHARE, BOX_SHAPE = (0.1, 0.5), (0.5, 2.0)  # of the crop's area, and height over width in those of the crop


class UnlabelledCrops(Dataset):
    """Crops of unlabelled pictures, resized and mirrored as training crops are, with their own colours.

    Args:
        rows: with the columns "id" and "image".
        transforms: of the recipe, whose crops, sizes, flips and normalisation hold.
    """

    def __init__(self, rows: datasets.Dataset, transforms: TransformConfig, seed: int) -> None:
        self.rows, self.seed = undecoded(rows), seed
        plain = {"photometric": False, "preset": None, "extra": (), "rare_crop": 0.0, "copy_paste": 0.0}
        self.transform = TrainTransform(transforms.model_copy(update=plain), ignore_index=255)
        self.size = self.transform.size
        turned = transforms.rotate90
        self.crop = RandomCrop(self.size, transforms.scale, transforms.short_side, turned, 1.0, 255)
        self.flips = flips(transforms.horizontal_flip, transforms.vertical_flip)

    def __len__(self) -> int:
        return len(self.rows)

    def cropped(self, index: int, geometry: Stream) -> tuple[str, np.ndarray]:
        """Id and a crop `(h, w, C)` of a picture, not normalised; DataError names one that cannot be read."""
        try:
            row = decoded(self.rows[index])
            pixels = apply(self.flips, {"image": self._crop(row["image"], geometry.python)}, geometry)["image"]
        except DataError as error:
            raise error.named(describe(self.rows, index)) from error
        return str(row["id"]), pixels

    def finished(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A crop normalised and padded to its full size, `(C, h, w)` float32, and what is no padding, `(h, w)` bool."""
        view = np.empty((self.transform.channels, *self.size), dtype=np.float32)
        target = np.empty(self.size, dtype=np.int64)
        self.transform.finish(pixels, np.zeros(pixels.shape[:2], dtype=np.uint8), view, target)
        return view, target == 0

    def _crop(self, picture: Any, rng: random.Random) -> np.ndarray:
        """A crop `(h, w, C)`, of which only the window is converted."""
        picture = picture if hasattr(picture, "crop") else np.asarray(picture)
        shape = (picture.height, picture.width) if hasattr(picture, "crop") else picture.shape[:2]
        view = self.crop.draw(_Extent(shape), rng)
        pixels = read_image(cut(picture, view.area), self.transform.channels, self.transform.raw)
        pixels = pixels.astype(np.float32, copy=False) if self.transform.raw else pixels
        return view.of_image(pixels, lambda window: window)


class UnlabelledViews(UnlabelledCrops):
    """The views of unlabelled pictures, by (epoch, index); the same for the same seed, epoch and index.

    Args:
        rows: with the columns "id" and "image".
        transforms: of the recipe, whose crops, sizes, flips and normalisation hold.
        cutmix: probability that a strong view gets a box of another picture.
    """

    def __init__(self, rows: datasets.Dataset, transforms: TransformConfig, seed: int, cutmix: float) -> None:
        super().__init__(rows, transforms, seed)
        self.cutmix = cutmix
        has_colors = self.transform.channels == 3 and not self.transform.raw
        self.colors = strong_colors() if has_colors else []

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Any]:
        """A batch of U samples, of which M have a partner.

        Returns:
            "weak" and "strong" `(U, C, h, w)` and "partner" `(M, C, h, w)`, float32; "real" `(U, h, w)` and
            "partner_real" `(M, h, w)`, bool: what is no padding; "partner_of" `(M,)`, the sample of each partner;
            "boxes" `(M, 4)`: top, bottom, left and right of what is the partner's; "ids".
        """
        samples = [self._sample(*key[:2]) for key in keys]
        mixed = [(number, sample) for number, sample in enumerate(samples) if "box" in sample]
        shape, none = (0, self.transform.channels, *self.size), torch.zeros((0, *self.size), dtype=torch.bool)
        batch = {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in ("weak", "strong", "real")}
        partners = {
            name: [torch.from_numpy(sample[name]) for _, sample in mixed] for name in ("partner", "partner_real")
        }
        return batch | {
            "partner": torch.stack(partners["partner"]) if mixed else torch.zeros(shape),
            "partner_real": torch.stack(partners["partner_real"]) if mixed else none,
            "partner_of": torch.tensor([number for number, _ in mixed], dtype=torch.int64),
            "boxes": torch.tensor([sample["box"] for _, sample in mixed], dtype=torch.int64).view(-1, 4),
            "ids": [sample["id"] for sample in samples],
        }

    def _sample(self, epoch: int, index: int) -> dict[str, Any]:
        geometry, colors = Stream.several((self.seed, epoch, index, UNLABELLED), 2)
        sample = self._views(index, geometry, colors, "weak", "strong", "real")
        rng = geometry.python
        if rng.random() < self.cutmix and len(self.rows) > 1:
            other = (index + rng.randrange(1, len(self.rows))) % len(self.rows)
            partner = self._views(other, geometry, colors, "partner", "other", "partner_real")
            top, bottom, left, right = box = _box(self.size, rng)
            sample["strong"][:, top:bottom, left:right] = partner.pop("other")[:, top:bottom, left:right]
            sample |= {**partner, "id": sample["id"], "box": box}
        return sample

    def _views(self, index: int, geometry: Stream, colors: Stream, weak: str, strong: str, real: str) -> dict[str, Any]:
        """Both views of a picture `(C, h, w)` and where they show it `(h, w)`, under these names."""
        name, pixels = self.cropped(index, geometry)
        changed = apply(self.colors, {"image": pixels}, colors)["image"]
        view, is_real = self.finished(pixels)
        return {weak: view, strong: self.finished(changed)[0], real: is_real, "id": name}


class _Extent:
    """What a crop needs to know of labels where none of them matters: their size."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape

    def __getitem__(self, area: tuple[slice, slice]) -> np.ndarray:
        raise AssertionError("an unlabelled picture has no labels to look at")


def _box(size: tuple[int, int], rng: random.Random) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a box with a share of the area of `size`, wholly inside."""
    share, shape = rng.uniform(*BOX_SHARE), math.exp(rng.uniform(*map(math.log, BOX_SHAPE)))
    height = min(size[0], max(1, round(size[0] * math.sqrt(share * shape))))
    width = min(size[1], max(1, round(size[1] * math.sqrt(share / shape))))
    top, left = rng.randint(0, size[0] - height), rng.randint(0, size[1] - width)
    return top, top + height, left, left + width


class UnlabelledBatches:
    """The unlabelled samples of one process, step after step, as `TrainingBatches` gives the labelled ones.

    Args:
        views: make a batch of keys (epoch, index).
        layout: batch size, accumulation steps and processes of the labelled samples.
        ratio: unlabelled samples for each labelled one.
        process_index: of this process.
    """

    def __init__(
        self, views: UnlabelledCrops, layout: tuple[int, int, int], ratio: int, process_index: int, seed: int
    ) -> None:
        self.views, self.ratio, self.seed, self.layout = views, ratio, seed, layout
        self.batch_size, self.accumulation_steps, self.num_processes = layout
        self.process_index = process_index

    @property
    def images_per_step(self) -> int:
        """Of all processes together."""
        return math.prod(self.layout) * self.ratio

    def epoch(self, step: int) -> float:
        """How often the pictures have been seen after `step` steps."""
        return step * self.images_per_step / len(self.views)

    def steps(
        self, start_step: int, max_steps: int, num_workers: int = 0, **options: Any
    ) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of each step from `start_step` on; `options` are those of a DataLoader.

        Raises:
            DataError: a picture cannot be read; names it.
        """
        sampler = StepSampler(
            len(self.views),
            self.batch_size * self.ratio,
            accumulation_steps=self.accumulation_steps,
            process_index=self.process_index,
            num_processes=self.num_processes,
            seed=self.seed,
            start_step=start_step,
            max_steps=max_steps,
        )
        own = torch.Generator()  # so that the global one is left as it was
        loader = iter(
            DataLoader(
                ErrorsAsValues(self.views),
                batch_sampler=sampler,
                collate_fn=collate,
                num_workers=num_workers,
                generator=own,
                **options,
            )
        )
        for _ in range(start_step, max_steps):
            yield [_received(next(loader)) for _ in range(self.accumulation_steps)]


def _received(batch: dict[str, Any] | SegtuneError) -> dict[str, Any]:
    if isinstance(batch, SegtuneError):
        raise batch
    return as_tensors(batch)
