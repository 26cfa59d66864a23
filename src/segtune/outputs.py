"""Files that commands read and write: images to predict, masks, pictures that compare prediction and truth."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from segtune.errors import UsageError
from segtune.inference import comparison
from segtune.labels import LabelMap

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".npy", ".npz", ".png", ".tif", ".tiff", ".webp"})
OVERVIEW = "overview.png"
OVERVIEW_PICTURES = 6
GAP = 24  # pixels between the pictures of the overview


def find_images(patterns: Iterable[str]) -> list[Path]:
    """The images of files, folders (not their sub-folders) and globs (`**` included), each once, in this order.

    Raises UsageError for a pattern without any image.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        elif path.is_file():
            matches = [path]
        else:
            matches = sorted(file for file in map(Path, glob.glob(pattern, recursive=True)) if file.is_file())
        if not matches:
            raise UsageError(f"{pattern}: {'no images in this folder' if path.is_dir() else 'no such image'}")
        for match in matches:
            found.setdefault(os.path.abspath(match), match)
    return list(found.values())


def mask_paths(images: Sequence[Path], output: Path, overlays: bool = False) -> list[Path]:
    """Where the masks of images go: their paths below the folder that all have in common, with the suffix .png.

    `a.jpg` and `a.bmp` of one folder become `a.jpg.png` and `a.bmp.png`. Raises UsageError where a mask would lie in a
    folder of input images, or where two files (overlays counted) would have one name.
    """
    absolute = [Path(os.path.abspath(path)) for path in images]
    common = os.path.commonpath([path.parent for path in absolute])
    names = [path.relative_to(common) for path in absolute]
    stems = [name.with_suffix("") for name in names]
    masks = [
        output / f"{stem if stems.count(stem) == 1 else name}.png" for stem, name in zip(stems, names, strict=True)
    ]
    written = [*masks, *map(overlay_path, masks)] if overlays else masks
    if len(set(written)) < len(written):
        twice = next(path for path in written if written.count(path) > 1)
        raise UsageError(f"{twice} would be written twice: predict these images one after the other")
    sources = {path.parent.resolve() for path in absolute}
    if clash := next((path for path in masks if path.parent.resolve() in sources), None):
        raise UsageError(f"--output {output}: {clash} would lie among the input images; name another folder")
    return masks


def overlay_path(mask: Path) -> Path:
    """Where the overlay of a mask goes: beside it."""
    return mask.with_name(f"{mask.stem}_overlay.png")


def save_mask(labels: np.ndarray, label_map: LabelMap, path: Path) -> None:
    """Writes training ids (H, W) as a PNG: with the labels' palette or, of more than 256 labels, as 16-bit grey."""
    if label_map.num_labels > 2**16:
        raise UsageError(f"{path}: a PNG holds ids up to {2**16 - 1}, the model has {label_map.num_labels} labels")
    path.parent.mkdir(parents=True, exist_ok=True)
    if label_map.num_labels > 256:
        Image.fromarray(labels.astype(np.uint16)).save(path)
        return
    mask = Image.fromarray(labels.astype(np.uint8))
    mask.putpalette([value for color in label_map.colors for value in color])
    mask.save(path)


class Comparisons:
    """Saves image | truth | prediction of some samples, spread evenly over a split, and one sheet of six of them."""

    def __init__(self, folder: Path, label_map: LabelMap, ids: Sequence[str], limit: int) -> None:
        self.folder, self.label_map = folder, label_map
        self.ids = _spread(ids, limit)

    def save(self, sample_id: str, image: np.ndarray, labels: np.ndarray, prediction: np.ndarray) -> None:
        """The hook of `evaluate_model`: image (H, W, 3), labels and prediction (H, W)."""
        if sample_id in self.ids:
            path = self._path(sample_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            comparison(image, labels, prediction, self.label_map).save(path)

    def save_overview(self) -> None:
        """Pastes up to six of the saved pictures into one sheet of two columns."""
        pictures = []
        for sample_id in _spread(self.ids, OVERVIEW_PICTURES):
            with Image.open(self._path(sample_id)) as saved:
                pictures.append(saved.convert("RGB"))
        width, height = max(p.width for p in pictures) + GAP, max(p.height for p in pictures) + GAP
        columns = min(2, len(pictures))
        sheet = Image.new("RGB", (columns * width - GAP, math.ceil(len(pictures) / columns) * height - GAP), "white")
        for index, picture in enumerate(pictures):
            sheet.paste(picture, (index % columns * width, index // columns * height))
        sheet.save(self.folder / OVERVIEW)

    def _path(self, sample_id: str) -> Path:
        return self.folder / f"{sample_id}.png"


def _spread(ids: Sequence[str], limit: int) -> list[str]:
    count = min(limit, len(ids))
    return [ids[index * len(ids) // count] for index in range(count)]
