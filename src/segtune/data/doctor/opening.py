"""Opens the image and the mask of a sample as training does, and says of picture files what only their headers hold."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import PIL.Image

from segtune.data import rasters
from segtune.data.config import DatasetConfig
from segtune.data.files import ORIENTATION, PICTURES, TIFFS, Pixels, read_pixels
from segtune.data.references import sample_ids
from segtune.data.scan import Sample, Scan
from segtune.data.sources import PLAIN, rows_of
from segtune.label_values import Color

if TYPE_CHECKING:
    import datasets


class Header(NamedTuple):
    """Of a picture file; as here where there is none.

    Attributes:
        mode: Pillow's; `format` likewise.
        orientation: of the EXIF entry; 1 for none.
        palette: colours by index.
        lossy: the format does not keep values.
    """

    mode: str = ""
    format: str = ""
    orientation: int = 1
    palette: tuple[Color, ...] = ()
    lossy: bool = False


class Opener:
    """Opens the samples of a scan, those that it rejected too."""

    def __init__(self, scan: Scan, config: DatasetConfig) -> None:
        self.scan, self.config = scan, config

    def image(self, sample: Sample) -> tuple[Pixels, Header]:
        """Raises OSError, DataError, … where it cannot be read: decoders raise what they like."""
        if not sample.image_part and self.scan.tables is None and _is_for_pillow(sample.image):
            return _open(sample.image)
        return self._cell(sample, "image"), Header()

    def mask(self, sample: Sample) -> tuple[Pixels, Header]:
        """Like `image`."""
        plain = self.scan.format in PLAIN and not sample.mask_part and not self.config.one_hot
        if plain and _is_for_pillow(sample.mask):
            return _open(sample.mask)
        return self._cell(sample, "mask"), Header()

    def _cell(self, sample: Sample, name: str) -> Pixels:
        rows, numbers = self._rows[sample.split]
        cell: Pixels = rows[name][numbers[sample.id]][name]
        return cell

    @cached_property
    def _rows(self) -> dict[str, tuple[dict[str, datasets.Dataset], dict[str, int]]]:
        """Split -> its rows with an image or a mask only, and the number of each id in them."""
        samples = [*self.scan.samples, *self.scan.rejected]
        splits = rows_of(replace(self.scan, samples=samples), self.config)
        return {
            split: (
                {name: rows.select_columns(name) for name in ("image", "mask")},
                {sample_id: number for number, sample_id in enumerate(sample_ids(rows))},
            )
            for split, rows in splits.items()
        }


def _is_for_pillow(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in PICTURES or (suffix in TIFFS and path.stat().st_size > 0 and rasters.is_for_pillow(path))


def _open(path: Path) -> tuple[Pixels, Header]:
    if not path.stat().st_size:
        raise OSError("the file is empty")
    try:
        with PIL.Image.open(path) as picture:
            header = _header(picture, path)
    except PIL.UnidentifiedImageError:
        raise OSError("it is no picture, or of an unknown format") from None
    return read_pixels(path), header


def _header(picture: PIL.Image.Image, path: Path) -> Header:
    # Of a PNG without an entry in front of the pixels, Pillow would read all of them to look behind.
    has_exif = picture.format != "TIFF" and (picture.format != "PNG" or "exif" in picture.info)
    orientation = int(picture.getexif().get(ORIENTATION, 1)) if has_exif else 1
    values = (picture.getpalette() or []) if picture.mode == "P" else []
    palette = tuple(zip(values[::3], values[1::3], values[2::3], strict=False))
    return Header(picture.mode, picture.format or "", orientation, palette, _is_lossy(picture.format, path))


def _is_lossy(format: str | None, path: Path) -> bool:
    """JPEG is; WebP where its picture is a "VP8 " chunk (lossless ones are "VP8L"), of its first or extended form."""
    if format != "WEBP":
        return format in ("JPEG", "MPO")
    with path.open("rb") as file:
        return b"VP8 " in file.read(64)
