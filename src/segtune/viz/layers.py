"""Image layers for a page: the photograph, the truth, the prediction and where they differ, as data URLs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from segtune.evaluation.label_issues import SURE
from segtune.labels.label_map import LabelMap
from segtune.viz.html import data_url

LONGEST_SIDE = 800  # of a picture in the page, pixels
QUALITY = 82  # of the photograph's JPEG
WRONG, SURELY_WRONG = (255, 214, 0), (220, 0, 120)  # apart in lightness as well, for those who see few colours
_SHADE, _HATCH, _IGNORED = (0, 0, 0, 150), (235, 235, 235, 255), (96, 96, 96, 255)


class Layers(NamedTuple):
    """Pictures of one image as data URLs, to lie upon each other.

    Attributes:
        size: (height, width) of the pictures.
        truth, prediction: classes in their colours; ignored pixels are grey and hatched.
        errors: the photograph darkened where the prediction is right; `WRONG`, or `SURELY_WRONG` from a confidence of
            `SURE` on, where it is not.
        classes: training ids that occur in truth or prediction.
        has_ignored: whether there are ignored pixels.
    """

    size: tuple[int, int]
    photo: str
    truth: str
    prediction: str
    errors: str
    classes: frozenset[int]
    has_ignored: bool


def layers(
    image: np.ndarray, labels: np.ndarray, prediction: np.ndarray, confidence: np.ndarray, label_map: LabelMap
) -> Layers:
    """The layers of an image `(H, W, 3)` uint8, its labels, prediction and confidence `(H, W)`."""
    photo = Image.fromarray(image)
    photo.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    rows, columns = (
        (np.arange(shown) * 2 + 1) * full // (2 * shown)
        for shown, full in zip(photo.size[::-1], labels.shape, strict=True)
    )
    place = np.ix_(rows, columns)
    labels, prediction, confidence = labels[place], prediction[place], confidence[place]
    ignored = labels == label_map.ignore_index
    hatch = sum(np.ogrid[: labels.shape[0], : labels.shape[1]]) % 8 < 2
    classes, number = (*((*color, 255) for color in label_map.colors), _IGNORED, _HATCH), label_map.num_labels
    errors = np.where(prediction == labels, 0, np.where(confidence >= SURE, 2, 1))
    return Layers(
        size=labels.shape,
        photo=data_url(photo, "jpeg", quality=QUALITY, optimize=True),
        truth=_flat(np.where(ignored, number + hatch, labels), classes),
        prediction=_flat(prediction, classes),
        errors=_flat(
            np.where(ignored, 3 + hatch, errors), (_SHADE, (*WRONG, 255), (*SURELY_WRONG, 255), _IGNORED, _HATCH)
        ),
        classes=frozenset(np.unique(labels[~ignored]).tolist()) | frozenset(np.unique(prediction).tolist()),
        has_ignored=bool(ignored.any()),
    )


def _flat(ids: np.ndarray, colors: tuple[tuple[int, ...], ...]) -> str:
    """A PNG of ids `(H, W)` in their colours (red, green, blue, alpha); its palette holds the colours that occur."""
    present, index = np.unique(ids, return_inverse=True)
    table = np.array([colors[number] for number in present.tolist()], dtype=np.uint8)  # (n, 4)
    index = index.reshape(ids.shape)
    if len(table) > 256:
        return data_url(Image.fromarray(table[index]), "png", optimize=True)
    picture = Image.fromarray(index.astype(np.uint8), "P")
    picture.putpalette(table[:, :3].tobytes())
    return data_url(picture, "png", optimize=True, transparency=table[:, 3].tobytes())
