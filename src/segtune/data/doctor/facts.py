"""Reads each file of a sample once and keeps what the checks need: small numbers, no pixels."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

from segtune.data.doctor.alignment import Fit, class_edges, fit, image_edges, reduction
from segtune.data.doctor.values import ValueFacts, mask_codes, value_facts
from segtune.data.loading import read_image, read_mask
from segtune.data.scan import Sample

ORIENTATION = PIL.Image.ExifTags.Base.Orientation
THUMBNAIL = 16
TINT_BINS = 33  # of red minus blue, 8 wide, around 0
TINT_PIXELS = 65_536  # looked at for the tint, about
LEAST_TINT_SHARE = 0.005  # of the pixels, for a mask value to have a tint of its own
DOUBTFUL = 4.0  # evidence below which turned and mirrored masks are tried as well
POSES = {  # how a mask may have been turned; the last three can only be told of squares
    "mirrored left to right": lambda mask: mask[:, ::-1],
    "mirrored top to bottom": lambda mask: mask[::-1],
    "turned by 180 degrees": lambda mask: mask[::-1, ::-1],
    "transposed": lambda mask: mask.T,
    "turned by 90 degrees to the left": lambda mask: mask.T[::-1],
    "turned by 90 degrees to the right": lambda mask: mask.T[:, ::-1],
}


@dataclass(frozen=True)
class ImageFacts:
    """Of an image as `datasets` shows it: turned by its EXIF orientation, then `read_image`.

    Attributes:
        size: (height, width).
        mode: Pillow's, of the file.
        orientation: of the EXIF entry; 1 for none.
        digest: of the pixels.
        highest: the largest stored value, of any channel.
        mean: (3,), of values from 0 to 1; `std` likewise.
        thumbnail: (16, 16) float32: grey, free of its local mean, of length 1 (0 for a blank image).
    """

    size: tuple[int, int]
    mode: str
    orientation: int
    digest: str
    highest: float
    mean: np.ndarray
    std: np.ndarray
    thumbnail: np.ndarray


@dataclass(frozen=True)
class MaskFacts:
    """Of a mask as it is stored.

    Attributes:
        size: (height, width), turned by its EXIF orientation.
        format: Pillow's name of the file format.
        mode: Pillow's, of the file.
        lossy: the format does not keep values.
        digest: of the values.
        values: what it holds.
        palette: index -> colour, of the values it holds, for palette pictures.
    """

    size: tuple[int, int]
    format: str
    mode: str
    orientation: int
    lossy: bool
    digest: str
    values: ValueFacts
    palette: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What one sample told.

    Attributes:
        image, mask: None where the file cannot be read; `faults` then says why ("image" or "mask" -> message).
        fit: how the mask lies on the image; None where sizes differ or there is too little to compare.
        poses: the fit of the turned or mirrored mask, by the words of `POSES`; only where `fit` is doubtful.
        tints: mask code -> pixels by red minus blue (33,).
    """

    sample: Sample
    image: ImageFacts | None
    mask: MaskFacts | None
    faults: Mapping[str, str] = field(default_factory=dict)
    fit: Fit | None = None
    poses: Mapping[str, Fit] = field(default_factory=dict)
    tints: Mapping[int, np.ndarray] = field(default_factory=dict)

    @property
    def is_turned(self) -> bool:
        """One of the partners carries an EXIF orientation that the other lacks."""
        return bool(self.image and self.mask and self.image.orientation != self.mask.orientation)


def read_pair(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """The image (H, W, 3) uint8 and the codes of the mask (H, W).

    Raises:
        OSError, DataError, …: one of them cannot be read; decoders raise what they like.
    """
    return _gather_image(sample.image)[1], _gather_mask(sample.mask)[1]


def gather(sample: Sample) -> Facts:
    """Read the image and the mask of a sample; what cannot be read becomes a fault."""
    faults: dict[str, str] = {}
    image = mask = pixels = codes = None
    with _note(faults, "image"):
        image, pixels = _gather_image(sample.image)
    with _note(faults, "mask"):
        mask, codes = _gather_mask(sample.mask)
    if pixels is None or codes is None or pixels.shape[:2] != codes.shape:
        return Facts(sample, image, mask, faults)
    found, poses = _align(pixels, codes)
    return Facts(sample, image, mask, faults, found, poses, _tints(pixels, codes))


@contextmanager
def _note(faults: dict[str, str], what: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd EXIF entries and very large pictures
            yield
    except Exception as error:  # decoders raise what they like
        faults[what] = f"{error}" or type(error).__name__


def _open(path: Path) -> tuple[PIL.Image.Image, PIL.Image.Image, int]:
    """The picture as stored and as shown, and its orientation."""
    content = path.read_bytes()
    if not content:
        raise OSError("the file is empty")
    try:
        stored = PIL.Image.open(io.BytesIO(content))
    except PIL.UnidentifiedImageError:
        raise OSError("it is no picture, or of an unknown format") from None
    stored.load()
    orientation = int(stored.getexif().get(ORIENTATION, 1))
    shown = PIL.ImageOps.exif_transpose(stored) if orientation != 1 else stored
    return stored, shown, orientation


def _digest(pixels: np.ndarray) -> str:
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()


def _gather_image(path: Path) -> tuple[ImageFacts, np.ndarray]:
    stored, shown, orientation = _open(path)
    pixels = read_image(shown)  # (H, W, 3)
    height, width = pixels.shape[:2]
    flat = pixels.reshape(-1, 3)
    counts = np.stack([np.bincount(flat[:, channel], minlength=256) for channel in range(3)])  # (3, 256)
    levels = np.arange(256) / 255
    mean = counts @ levels / len(flat)  # (3,)
    std = np.sqrt(np.maximum(counts @ levels**2 / len(flat) - mean**2, 0))
    highest = np.asarray(stored).max() if stored.mode.startswith("I") else pixels.max()
    facts = ImageFacts(
        (height, width), stored.mode, orientation, _digest(pixels), float(highest), mean, std, _thumbnail(pixels)
    )
    return facts, pixels


def _gather_mask(path: Path) -> tuple[MaskFacts, np.ndarray]:
    stored, shown, orientation = _open(path)
    mask = read_mask(shown)  # (H, W) or (H, W, 3)
    codes = mask_codes(mask)  # (H, W)
    values = value_facts(codes, is_colour=mask.ndim == 3)
    palette = {}
    if stored.mode == "P":
        table = np.array(stored.getpalette() or [], dtype=np.uint8).reshape(-1, 3).tolist()
        palette = {i: (r, g, b) for i, (r, g, b) in enumerate(table) if i in values.counts}
    height, width = codes.shape
    facts = MaskFacts(
        (height, width),
        stored.format or "",
        stored.mode,
        orientation,
        _is_lossy(stored.format, path),
        _digest(codes),
        values,
        palette,
    )
    return facts, codes


def _is_lossy(format: str | None, path: Path) -> bool:
    """JPEG is; WebP where its picture is a "VP8 " chunk (lossless ones are "VP8L"), of its first or extended form."""
    if format != "WEBP":
        return format in ("JPEG", "MPO")
    with path.open("rb") as file:
        return b"VP8 " in file.read(64)


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    grey = PIL.Image.fromarray(pixels).convert("L")
    small = np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), PIL.Image.Resampling.BOX), dtype=np.float32)
    padded = np.pad(small, 1, mode="edge")
    means = sum(padded[i : i + THUMBNAIL, j : j + THUMBNAIL] for i in range(3) for j in range(3)) / 9
    small = small - means  # (16, 16)
    length = float(np.linalg.norm(small))
    return small / length if length > 1 else np.zeros_like(small)


def _align(pixels: np.ndarray, codes: np.ndarray) -> tuple[Fit | None, dict[str, Fit]]:
    """The fit of a mask (H, W) on its image (H, W, 3) and, where that is doubtful, of the turned and mirrored mask."""
    scale = reduction(codes.shape)
    grey = np.asarray(PIL.Image.fromarray(pixels).convert("L").reduce(scale))
    codes = codes[scale // 2 :: scale, scale // 2 :: scale][: grey.shape[0], : grey.shape[1]]
    grey = grey[: codes.shape[0], : codes.shape[1]]
    gradient, boundary = image_edges(grey), class_edges(codes)
    found = fit(boundary, gradient, scale)
    if found is None or found.evidence_here >= DOUBTFUL:
        return found, {}
    turned = {pose: turn(boundary) for pose, turn in POSES.items()}
    fits = {pose: fit(other, gradient, scale) for pose, other in turned.items() if other.shape == boundary.shape}
    return found, {pose: other for pose, other in fits.items() if other is not None}


def _tints(pixels: np.ndarray, codes: np.ndarray) -> dict[int, np.ndarray]:
    step = max(1, round((codes.size / TINT_PIXELS) ** 0.5))
    codes, pixels = codes[::step, ::step], pixels[::step, ::step].astype(np.int16)
    bins = np.clip((pixels[:, :, 0] - pixels[:, :, 2] + 4) // 8 + TINT_BINS // 2, 0, TINT_BINS - 1)
    values, counts = np.unique(codes, return_counts=True)
    large = values[counts >= LEAST_TINT_SHARE * codes.size].tolist()
    return {value: np.bincount(bins[codes == value], minlength=TINT_BINS).astype(np.uint32) for value in large}
