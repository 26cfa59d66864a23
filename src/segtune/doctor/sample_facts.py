"""Sample facts: the image and mask of a sample are read once, and what the checks need is kept: numbers, no pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL.Image

from segtune.data.checks import channel_sums, channels_of, mean_and_std
from segtune.data.config import DatasetConfig, TransformConfig
from segtune.data.dataset import PLAIN, rows_of
from segtune.data.index import DatasetIndex, Sample
from segtune.data.lazy_rows import decoded, sample_ids, undecoded
from segtune.doctor.alignment import Alignment, align
from segtune.errors import DataError
from segtune.imageio.read import (
    FractionsError,
    Header,
    Pixels,
    for_display,
    is_picture,
    read_file,
    read_header,
    read_image,
    read_mask,
)
from segtune.labels.label_map import LabelMap
from segtune.labels.mask_values import NO_DATA, decode_value, encode_value, mask_codes

if TYPE_CHECKING:
    import datasets

THUMBNAIL = 16
MOST_VALUES = 512  # of one mask, that are kept with their counts
COLOR_BINS = 33  # of red minus blue, 8 wide, around 0
COLOR_PIXELS = 65_536  # looked at for these histograms, about
LEAST_COLOR_SHARE = 0.005  # of the pixels, for a mask value to have a histogram of its own


class ValueFacts(NamedTuple):
    """What a mask (H, W) holds.

    Attributes:
        counts: value (an id or a colour) -> pixels, the most frequent first; at most `MOST_VALUES`.
        distinct: how many different values there are.
        is_color: the values are colours; grey pictures with three channels count as ids.
        pixels: H * W.
        steps: places where the value jumps by 2 or more from one pixel to the next.
        rims: pixels whose value lies between those of their two neighbours, as smoothing leaves them.
        rim_values: how many different values `rims` have.
        meetings: pixels whose value and those of two neighbours, beside or above and below, are three.
        specks: pixels that differ from all four neighbours.
    """

    counts: Mapping[Any, int]
    distinct: int
    is_color: bool
    pixels: int
    steps: int
    rims: int
    rim_values: int
    meetings: int
    specks: int

    @property
    def rim_share(self) -> float:
        """The part of the boundaries that has a rim; 0 where there are none."""
        return self.rims / max(self.rims + self.steps, 1)

    @property
    def ordered_share(self) -> float:
        """Where three values meet in a row, how often the second lies between the others; 0 where none do."""
        return self.rims / max(self.meetings, 1)


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """Of an image as training reads it.

    Attributes:
        size: (height, width), turned by the EXIF orientation.
        header: of its file.
        digest: of the pixels.
        highest: the largest value, of any channel; `white` is what it could be at most (None: declared otherwise).
        mean: (C,), of values from 0 to 1; `std` likewise.
        thumbnail: (16, 16) float32: grey, free of its local mean, of length 1 (0 for a blank image).
        detail: (32, 32) float16, likewise.
    """

    size: tuple[int, int]
    header: Header
    digest: str
    highest: float
    white: int | None
    mean: np.ndarray
    std: np.ndarray
    thumbnail: np.ndarray
    detail: np.ndarray


@dataclass(frozen=True, eq=False)
class MaskFacts:
    """Of a mask as it is stored.

    Attributes:
        size: (height, width), turned by the EXIF orientation.
        header: of its file.
        digest: of the values.
        values: what it holds.
        palette: index -> colour, of the values it holds, for palette pictures.
        drawn: it is no file of its own, but drawn from annotations on a picture as it is shown.
    """

    size: tuple[int, int]
    header: Header
    digest: str
    values: ValueFacts
    palette: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    drawn: bool = False


@dataclass(frozen=True, eq=False)
class Facts:
    """What one sample told.

    Attributes:
        image, mask: None where it cannot be read; `faults` then says why ("image" or "mask" -> message).
        alignment: how the mask lies on the image; None where sizes differ or there is too little to compare.
        poses: that of the turned or mirrored mask, by the words of `alignment.POSES`; only where that is doubtful.
        color_histograms: mask value -> pixels by red minus blue (33,).
    """

    sample: Sample
    image: ImageFacts | None
    mask: MaskFacts | None
    faults: Mapping[str, str] = field(default_factory=dict)
    alignment: Alignment | None = None
    poses: Mapping[str, Alignment] = field(default_factory=dict)
    color_histograms: Mapping[Any, np.ndarray] = field(default_factory=dict)

    @property
    def is_turned(self) -> bool:
        """One of the partners carries an EXIF orientation that the other lacks."""
        return bool(self.image and self.mask and self.image.header.orientation != self.mask.header.orientation)


def read_facts(sample: Sample, opener: Opener, transforms: TransformConfig, label_map: LabelMap | None = None) -> Facts:
    """Read the image and the mask of a sample; what cannot be read becomes a fault.

    Args:
        label_map: the data set's, where there is one: whether colours count, and which pixels are ignored.
    """
    faults: dict[str, str] = {}
    image = mask = pixels = codes = None
    is_color = False
    with _note(faults, "image"):
        shown, header = opener.image(sample)
        pixels = for_display(shown)
        image = _image_facts(shown, pixels, header, transforms)
    with _note(faults, "mask"):
        stored, header = opener.mask(sample)
        codes, is_color = mask_codes(_stored(stored, label_map is not None and label_map.by_color))
        mask = _mask_facts(codes, is_color, header, opener.draws_masks)
    if image is None or pixels is None or codes is None or pixels.shape[:2] != codes.shape:
        return Facts(sample, image, mask, faults)
    found, poses = align(pixels, codes, _ignored_codes(label_map))
    return Facts(sample, image, mask, faults, found, poses, _color_histograms(pixels, codes, is_color))


def read_for_display(sample: Sample, opener: Opener, colors: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The image for people (H, W, 3) uint8 and the mask as it is stored: ids (H, W) or colours (H, W, 3).

    Raises:
        DataError: one of them cannot be read.
    """
    return for_display(opener.image(sample)[0]), _stored(opener.mask(sample)[0], colors)


@contextmanager
def _note(faults: dict[str, str], what: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        faults[what] = getattr(error, "reason", str(error))


def _image_facts(shown: Pixels, pixels: np.ndarray, header: Header, transforms: TransformConfig) -> ImageFacts:
    raw = transforms.value_range is not None
    channels = channels_of(shown) if isinstance(transforms.mean, str) else len(transforms.mean)
    values = read_image(shown, channels, raw)  # (H, W, C)
    low, high = transforms.value_range or (0, 255)
    mean, std = mean_and_std(channel_sums(values.reshape(-1, values.shape[2])))
    is_palette = isinstance(shown, PIL.Image.Image) and shown.mode in ("P", "PA")
    array, grey = values if is_palette else np.asarray(shown), PIL.Image.fromarray(pixels).convert("L")
    white = {"B": 255, "H": 65535, "i": 65535}.get(array.dtype.char) if not raw else None
    return ImageFacts(
        size=(pixels.shape[0], pixels.shape[1]),
        header=header,
        digest=_digest(array),
        highest=float(array.max()),
        white=white,
        mean=(mean - low) / (high - low),
        std=std / (high - low),
        thumbnail=_thumbnail(grey, THUMBNAIL),
        detail=_thumbnail(grey, 2 * THUMBNAIL).astype(np.float16),
    )


def _mask_facts(codes: np.ndarray, is_color: bool, header: Header, drawn: bool) -> MaskFacts:
    values = value_facts(codes, is_color)
    palette = {index: color for index, color in enumerate(header.palette) if index in values.counts}
    height, width = codes.shape
    return MaskFacts((height, width), header, _digest(codes), values, palette, drawn)


def _ignored_codes(label_map: LabelMap | None) -> list[int]:
    """The codes of ignored pixels."""
    table: Mapping[Any, int | None] = (label_map.mask_colors or label_map.ids or {}) if label_map else {}
    ignored = [encode_value(value) for value, target in table.items() if target is None]
    also = label_map is not None and not label_map.by_color and label_map.ignore_index not in table
    return [NO_DATA, *ignored, *([label_map.ignore_index] if label_map and also else [])]


def _stored(mask: Pixels, colors: bool) -> np.ndarray:
    """A mask as it is stored; fractions are kept, for a finding about them."""
    try:
        return read_mask(mask, colors)
    except FractionsError:
        return np.asarray(mask)


def value_facts(codes: np.ndarray, is_color: bool = False) -> ValueFacts:
    """What a mask of (H, W) codes holds, see `mask_codes`."""
    found, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_VALUES]
    frequent = zip(found[order].tolist(), counts[order].tolist(), strict=True)
    steps, rims, meetings = _rims(_brightness(codes) if is_color else codes)
    return ValueFacts(
        counts={decode_value(code, is_color): number for code, number in frequent},
        distinct=len(found),
        is_color=is_color,
        pixels=codes.size,
        steps=steps,
        rims=int(rims.sum()),
        rim_values=len(np.unique(codes[rims])),
        meetings=meetings,
        specks=_specks(codes),
    )


def _brightness(codes: np.ndarray) -> np.ndarray:
    return (codes >> 16 & 255) + (codes >> 8 & 255) + (codes & 255)  # (H, W)


def _rims(codes: np.ndarray) -> tuple[int, np.ndarray, int]:
    """How often neighbours differ by 2 or more; which pixels lie strictly between the two beside or above and below;
    and how many differ from these two, which differ as well."""
    levels = codes.astype(np.float32 if codes.dtype.kind == "f" else np.int32)
    rims, meetings = np.zeros(codes.shape, dtype=bool), np.zeros(codes.shape, dtype=bool)
    steps = 0
    for lines, between, met in ((levels, rims, meetings), (levels.T, rims.T, meetings.T)):
        change = np.diff(lines, axis=1)
        steps += int((np.abs(change) >= 2).sum())
        first, second = change[:, :-1], change[:, 1:]
        between[:, 1:-1] |= (first > 0) & (second > 0) | (first < 0) & (second < 0)
        met[:, 1:-1] |= (first != 0) & (second != 0) & (lines[:, :-2] != lines[:, 2:])
    return steps, rims, int(meetings.sum())


def _specks(codes: np.ndarray) -> int:
    """Pixels that differ from all four neighbours; those at the border do not count."""
    across, down = codes[1:-1, 1:] != codes[1:-1, :-1], codes[1:, 1:-1] != codes[:-1, 1:-1]
    return int((across[:, :-1] & across[:, 1:] & down[:-1] & down[1:]).sum())


def _digest(pixels: np.ndarray) -> str:
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()


def _thumbnail(grey: PIL.Image.Image, side: int) -> np.ndarray:
    small = np.asarray(grey.resize((side, side), PIL.Image.Resampling.BOX), dtype=np.float32)
    padded = np.pad(small, 1, mode="edge")
    means = sum(padded[i : i + side, j : j + side] for i in range(3) for j in range(3)) / 9
    small = small - means  # (side, side)
    length = float(np.linalg.norm(small))
    return small / length if length > 1 else np.zeros_like(small)


def _color_histograms(pixels: np.ndarray, codes: np.ndarray, is_color: bool) -> dict[Any, np.ndarray]:
    step = max(1, round((codes.size / COLOR_PIXELS) ** 0.5))
    codes, pixels = codes[::step, ::step], pixels[::step, ::step].astype(np.int16)
    bins = np.clip((pixels[:, :, 0] - pixels[:, :, 2] + 4) // 8 + COLOR_BINS // 2, 0, COLOR_BINS - 1)
    values, counts = np.unique(codes, return_counts=True)
    large = values[counts >= LEAST_COLOR_SHARE * codes.size].tolist()
    found = {code: np.bincount(bins[codes == code], minlength=COLOR_BINS).astype(np.uint32) for code in large}
    return {decode_value(code, is_color): histogram for code, histogram in found.items()}


class Opener:
    """Opens the samples of an index, those that it rejected too."""

    def __init__(self, index: DatasetIndex, config: DatasetConfig) -> None:
        self.index, self.config = index, config

    @property
    def draws_masks(self) -> bool:
        """Masks are drawn from annotations."""
        return self.index.format not in PLAIN and self.index.tables is None

    def image(self, sample: Sample) -> tuple[Pixels, Header]:
        """The image as it is stored, and what its header says. Raises DataError where it cannot be read."""
        is_file = not sample.image_part and self.index.tables is None
        return self._open(sample, "image", sample.image if is_file else None)

    def mask(self, sample: Sample) -> tuple[Pixels, Header]:
        """Like `image`."""
        is_file = self.index.format in PLAIN and not sample.mask_part and not self.config.one_hot
        return self._open(sample, "mask", sample.mask if is_file else None)

    def _open(self, sample: Sample, name: str, path: Path | None) -> tuple[Pixels, Header]:
        """A file of its own, or else the cell of a row, whose header is not at hand."""
        if path is not None and is_picture(path.name):
            header = read_header(path)
            return read_file(path), header
        rows, numbers = self._rows[sample.split]
        cell: Pixels = decoded(rows[name][numbers[sample.id]])[name]
        return cell, Header((0, 0))

    @cached_property
    def _rows(self) -> dict[str, tuple[dict[str, datasets.Dataset], dict[str, int]]]:
        """Split -> its rows with an image or a mask only, and the number of each id in them."""
        samples = [*self.index.samples, *self.index.rejected]
        splits = rows_of(replace(self.index, samples=samples), self.config)
        return {
            split: (
                {name: undecoded(rows.select_columns(name)) for name in ("image", "mask")},
                {sample_id: number for number, sample_id in enumerate(sample_ids(rows))},
            )
            for split, rows in splits.items()
        }
