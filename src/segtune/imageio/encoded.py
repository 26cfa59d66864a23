"""Encoded pictures: headers of any number of pixels, frames, and grey of fewer levels than its type has.

Pillow opens them. Three things that it does in silence are undone or asked about here: it refuses large pictures
before anybody could read a window of them, gives the first of several frames, and stretches grey of 2 or 4 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL.Image

from segtune.errors import DataError

SUBFILE_TYPE = 254  # the tag of TIFF; its bits say that a page is a reduced copy (1) or a mask (4) of another one
NO_PAGE = 1 | 4
MP_ENTRIES = 0xB002  # of the MPO format: what each of its pictures is
LEVELS = "levels"  # in a picture's `info`: the highest value that its file can hold, where Pillow stretched that
ASK = (
    "and which of them is meant was not said: dataset.frames=all makes a sample of each, dataset.frames=first takes "
    "the first alone; segtune predict has --frames all and --frames first"
)


class FramesError(DataError):
    """A file holds several frames, and the call did not say which one it wants."""


def open_encoded(source: Path | str | IO[bytes]) -> PIL.Image.Image:
    """A picture whose header is read, of any number of pixels: Pillow's limit is for those that are decoded whole.

    Raises:
        OSError and others: see `PIL.Image.open`.
    """
    picture: PIL.Image.Image
    try:
        picture = PIL.Image.open(source)
    except PIL.Image.DecompressionBombError:
        picture = _open_without_limit(source)
    _note_levels(picture)
    return picture


def _open_without_limit(source: Path | str | IO[bytes]) -> PIL.Image.Image:
    """By the reader that Pillow itself has chosen when it refused the size."""
    stream = Path(source).open("rb") if isinstance(source, (Path, str)) else source  # noqa: SIM115
    for factory, accepts in (PIL.Image.OPEN[name] for name in PIL.Image.ID):
        stream.seek(0)
        if accepts is None or accepts(stream.read(16)) is not True:
            continue
        stream.seek(0)
        try:
            picture: PIL.Image.Image = factory(stream, "")
        except (SyntaxError, IndexError, TypeError, KeyError, EOFError):
            continue
        picture._exclusive_fp = stream is not source  # type: ignore[attr-defined]
        return picture
    stream.close()
    raise PIL.UnidentifiedImageError(f"{source}")


def check_decodable(picture: PIL.Image.Image) -> None:
    """Refuse to decode at once what Pillow refuses to open: more than twice `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        DataError: says what to do.
    """
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and math.prod(picture.size) > 2 * limit:
        raise DataError(
            f"{picture.width} x {picture.height} pixels are too many at once: dataset.tile=1024 reads windows of them; "
            "in Python, PIL.Image.MAX_IMAGE_PIXELS = None lifts the limit"
        )


def frame_places(picture: PIL.Image.Image) -> list[int]:
    """Where Pillow finds the frames of a picture that is open: the pages of a TIFF, the pictures of an animation.

    Reduced copies and masks in a TIFF, and what a phone puts behind its photograph in an MPO (previews, gain maps), are
    no frames.
    """
    number = getattr(picture, "n_frames", 1)
    if number == 1:
        return [0]
    if picture.format == "MPO":
        entries = picture.mpinfo[MP_ENTRIES]  # type: ignore[attr-defined]
        kinds = [str(entry["Attribute"]["MPType"]) for entry in entries]
        return [i for i, kind in enumerate(kinds) if i == 0 or kind.startswith("Multi-Frame")]
    if picture.format != "TIFF":
        return list(range(number))
    places = []
    for place in range(number):
        picture.seek(place)
        if not tags_of(picture).get(SUBFILE_TYPE, 0) & NO_PAGE:
            places.append(place)
    picture.seek(0)
    return places or [0]


def choose(places: Sequence[Any], frame: int | None) -> Any:
    """The place of a frame; the only one, where none is asked for.

    Raises:
        FramesError: there are several, and none is asked for, or there are fewer.
    """
    if frame is None and len(places) > 1:
        raise FramesError(f"it holds {len(places)} pages or frames, {ASK}")
    if frame is not None and frame >= len(places):
        raise FramesError(f"frame {frame} is asked for, counted from 0: it holds {len(places)}")
    return places[frame or 0]


def tags_of(picture: PIL.Image.Image) -> Any:
    """The tags of a TIFF that Pillow has opened; none of another picture."""
    return getattr(picture, "tag_v2", {})


def _note_levels(picture: PIL.Image.Image) -> None:
    """Put the highest value that a grey file can hold into `info`, where Pillow stretches the values to the type's."""
    tiles: Any = getattr(picture, "tile", None)
    arguments = tiles[0][3] if tiles else None
    raw = arguments[0] if isinstance(arguments, tuple) else arguments
    if picture.format == "PPM" and isinstance(arguments, tuple) and len(arguments) == 2:
        if isinstance(arguments[1], int) and picture.mode in ("L", "I") and arguments[1] not in (255, 65535):
            picture.info[LEVELS] = arguments[1]
    elif picture.mode == "L" and isinstance(raw, str) and raw.startswith(("L;2", "L;4")):
        picture.info[LEVELS] = 2 ** int(raw[2]) - 1


def stored_levels(picture: PIL.Image.Image) -> np.ndarray:
    """The numbers (H, W) that the file of a picture holds, also where Pillow stretched them."""
    values = np.asarray(picture)
    if LEVELS not in picture.info:
        return values
    white = 255 if picture.mode == "L" else 65535
    levels: np.ndarray = np.rint(values * (picture.info[LEVELS] / white)).astype(values.dtype)
    return levels


def may_be_stretched(path: Path) -> bool:
    """Whether Pillow may stretch the values of a file: a PNG of grey with 2 or 4 bits, a PGM."""
    suffix = path.suffix.lower()
    if suffix != ".png":
        return suffix in (".pgm", ".pnm")
    try:
        with path.open("rb") as file:
            depth = file.read(26)[24:26]
    except OSError:
        return False  # said when it is read
    return depth in (b"\x02\x00", b"\x04\x00")
