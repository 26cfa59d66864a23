"""Pictures for the doctor's page: an image with its mask over it, values without a name in a colour of their own."""

from __future__ import annotations

import numpy as np
from PIL import Image

from segtune.data.doctor.case import Case
from segtune.data.doctor.facts import read_pair
from segtune.data.doctor.values import COLOUR
from segtune.data.scan import Sample
from segtune.drawing import overlay
from segtune.label_values import Color
from segtune.labels import LabelMap
from segtune.page import data_url

HEIGHT = 240  # of a picture, pixels
WIDEST = 960
QUALITY = 82  # of the JPEG
NOT_NAMED: tuple[str, Color] = ("not named", (255, 0, 255))
GAP = 6


def picture_of(case: Case, sample: Sample) -> str | None:
    """The image beside itself with the mask over it, as a data URL; None where one of them cannot be read.

    Where the two differ in size, the right side is the mask alone.
    """
    try:
        pixels, codes = read_pair(sample, case.opener)
    except Exception:  # decoders raise what they like, and the finding says it
        return None
    labels, label_map = _labels(case, codes)
    if pixels.shape[:2] == labels.shape:
        right = overlay(pixels, labels, label_map, legend=False)
    else:
        right = Image.fromarray(label_map.colorize(labels))
    return _url(_beside(Image.fromarray(pixels), right))


def overlay_of(case: Case, sample: Sample) -> str | None:
    """The image with the mask over it, as a data URL; None where that cannot be made."""
    try:
        pixels, codes = read_pair(sample, case.opener)
    except Exception:  # as above
        return None
    labels, label_map = _labels(case, codes)
    if pixels.shape[:2] != labels.shape:
        return None
    return _url(_scaled(overlay(pixels, labels, label_map, legend=False)))


def _labels(case: Case, codes: np.ndarray) -> tuple[np.ndarray, LabelMap]:
    """Labels (H, W), and a label map that has one class more, for values without a name."""
    names, colors = case.label_map.names, case.label_map.colors
    extended = LabelMap((*names, NOT_NAMED[0]), (*colors, NOT_NAMED[1]), ignore_index=-1)
    if case.label_map.mask_colors is not None and codes.max() <= 255:
        codes = COLOUR | codes.astype(np.int64) * 0x010101
    values, inverse = np.unique(codes, return_inverse=True)
    targets = [case.targets.get(value, len(names) + 1) for value in values.tolist()]
    labels = np.array([{len(names): -1, len(names) + 1: len(names)}.get(t, t) for t in targets], dtype=np.int64)
    return labels[inverse].reshape(codes.shape), extended


def _scaled(picture: Image.Image) -> Image.Image:
    factor = min(HEIGHT / picture.height, WIDEST / picture.width)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    return picture.resize(size, Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST)


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    left, right = _scaled(left), _scaled(right)
    sheet = Image.new("RGB", (left.width + GAP + right.width, max(left.height, right.height)), (128, 128, 128))
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + GAP, 0))
    return sheet


def _url(picture: Image.Image) -> str:
    return data_url(picture.convert("RGB"), "jpeg", quality=QUALITY)
