"""Encoding of samples: images and masks as file contents, kept as they are stored where that serves, else PNG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL.Image

from segtune.data.lazy_rows import decoded, undecoded
from segtune.data.samples import open_pair
from segtune.data.tiles import tile_windows
from segtune.errors import naming
from segtune.imageio.encoded import LEVELS
from segtune.imageio.medical import MEDICAL
from segtune.imageio.read import SUFFIXES, open_picture, read_image, read_mask
from segtune.imageio.writers import LARGEST_ID, encode_image, encode_png
from segtune.labels.label_map import LabelMap

if TYPE_CHECKING:
    import datasets

NAMES = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif"}
PNG = b"\x89PNG\r\n\x1a\n"


class EncodedSample(NamedTuple):
    """An image and its mask as files' contents.

    Attributes:
        id: the sample's; of a tile with "_y<top>_x<left>" behind it.
        counts: pixels of each training id and, last, of ignored ones.
    """

    id: str
    image: bytes
    suffix: str
    mask: bytes
    counts: list[int]


@dataclass(frozen=True)
class MaskEncoding:
    """How masks are stored.

    Attributes:
        label_map: of the stored masks.
        keeps_ids: masks hold the ids that they held; otherwise training ids.
        ignored: the id that ignored pixels get where the source had none for them.
        dtype: uint8 or uint16.
    """

    label_map: LabelMap
    keeps_ids: bool
    ignored: int
    dtype: np.dtype

    @classmethod
    def of(cls, source: LabelMap) -> MaskEncoding:
        """Masks of ids keep them where a PNG can hold them; colours become training ids."""
        ids = source.ids or {}
        unused = [i for i in (*(i for i, label in ids.items() if label is None), source.ignore_index) if _fits(i)]
        if ids and all(map(_fits, ids)) and unused:
            largest = max(*ids, unused[0])
            return cls(source, True, unused[0], np.dtype(np.uint8 if largest < 256 else np.uint16))
        small = source.num_labels < 256
        ignored = 255 if small else LARGEST_ID
        stored = {i: i for i in range(source.num_labels)} | {ignored: None}
        label_map = LabelMap(source.names, source.colors, ids=stored, ignore_index=source.ignore_index)
        return cls(label_map, False, ignored, np.dtype(np.uint8 if small else np.uint16))

    def stored(self, mask: np.ndarray, labels: np.ndarray, source: LabelMap) -> np.ndarray:
        """What is written (H, W) for a mask as it was read, with its labels (H, W)."""
        if not self.keeps_ids:
            return np.where(labels == source.ignore_index, self.ignored, labels).astype(self.dtype)
        ids = np.ma.filled(mask if mask.ndim == 2 else mask[:, :, 0], self.ignored)  # grey colours stand for ids
        is_id = (ids >= 0) & (ids <= LARGEST_ID)
        without_label = (labels == source.ignore_index) & np.isin(ids, self._named())
        return np.where(is_id & ~without_label, ids, self.ignored).astype(self.dtype)

    def _named(self) -> list[int]:
        return [i for i, label in (self.label_map.ids or {}).items() if label is not None]


def _fits(mask_id: int) -> bool:
    return 0 <= mask_id <= LARGEST_ID


@dataclass(frozen=True)
class SampleEncoder:
    """Encodes the rows of a split.

    Attributes:
        rows: with the columns "id", "image" and "mask".
        source: the label map of the rows' masks; `target` says how they are stored.
        tile: side of the tiles that larger images are cut into, pixels; `overlap` of neighbouring ones, see `spans`.
    """

    rows: datasets.Dataset
    source: LabelMap
    target: MaskEncoding
    tile: int | None = None
    overlap: int | None = None

    @cached_property
    def _cells(self) -> datasets.Dataset:
        """The rows, with references to files instead of what is in them."""
        return self.rows.with_format("arrow")

    @cached_property
    def _undecoded(self) -> datasets.Dataset:
        return undecoded(self.rows)

    def __call__(self, number: int) -> list[EncodedSample]:
        """The samples that a row becomes: one, or its tiles.

        Raises:
            DataError: the row cannot be read or does not fit the label map; names the sample.
        """
        cells = self._cells[number].to_pylist()[0]
        files = [cell["path"] for cell in (cells["image"], cells["mask"]) if isinstance(cell, Mapping) and cell["path"]]
        where = f" ({', '.join(dict.fromkeys(files))})" if files else ""
        with naming(f"sample {cells['id']!r}{where}"):
            return list(self._encoded(decoded(self._undecoded[number]), cells))

    def _encoded(self, row: Mapping[str, Any], cells: Mapping[str, Any]) -> Iterator[EncodedSample]:
        picture, mask = row["image"], read_mask(row["mask"], self.source.by_color)
        labels = open_pair(row, self.source)[1][:, :]  # (H, W)
        height, width = labels.shape
        stored = self.target.stored(mask, labels, self.source)
        if self.tile is None or max(height, width) <= self.tile:
            image, suffix = _content(cells["image"]) or encode_image(pixels_of(picture))
            content = self._mask_as_it_was(cells["mask"], mask) or encode_png(stored)
            yield EncodedSample(row["id"], image, suffix, content, self.source.count_pixels(labels).tolist())
            return
        pixels = pixels_of(picture)
        for top, left, rows, columns in tile_windows((height, width), self.tile, self.overlap):
            area = slice(top, top + rows), slice(left, left + columns)
            name = f"{row['id']}_y{top:05d}_x{left:05d}"
            image, suffix = encode_image(pixels[area])
            yield EncodedSample(
                name, image, suffix, encode_png(stored[area]), self.source.count_pixels(labels[area]).tolist()
            )

    def _mask_as_it_was(self, cell: Any, mask: np.ndarray) -> bytes | None:
        """The content of a mask's file, where that is a PNG of the ids that are to be stored."""
        content, _ = _content(cell) or (b"", "")
        if not self.target.keeps_ids or not content.startswith(PNG):
            return None
        with open_picture(cell.get("path") or "the mask", content) as picture:
            found = read_mask(picture)
            is_plain = found.ndim == 2 and LEVELS not in picture.info  # others would read 2 and 4 bits stretched
        return content if is_plain and np.array_equal(found, mask) else None


def pixels_of(image: Any) -> np.ndarray:
    """The numbers of an image (H, W) or (H, W, C) as they are stored; palettes and the like as RGB."""
    if isinstance(image, PIL.Image.Image):
        plain = image.mode in ("L", "LA", "RGB", "RGBA", "F") or image.mode.startswith("I")
        return np.asarray(image) if plain and "transparency" not in image.info else read_image(image)
    return np.asarray(np.ma.filled(image, 0))


def _content(cell: Any) -> tuple[bytes, str] | None:
    """The picture file that a cell stands for, and its suffix; None where it is a part of a file, or something else."""
    if not isinstance(cell, Mapping) or cell.get("part"):
        return None
    content, path = cell.get("bytes"), Path(cell.get("path") or "")
    if content is None:
        suffix = path.suffix.lower()
        return (path.read_bytes(), suffix) if suffix in SUFFIXES - MEDICAL else None  # those name a patient
    with open_picture(cell.get("path") or "the picture", content) as picture:
        return content, NAMES.get(picture.format or "", path.suffix.lower())
