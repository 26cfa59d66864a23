"""Files that commands read and write: images to predict, what comes of them, pictures that compare with the truth."""

from __future__ import annotations

import glob
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from segtune.drawing import comparison
from segtune.errors import UsageError
from segtune.images import is_georeferenced
from segtune.labels import LabelMap
from segtune.polygons import PolygonFormat
from segtune.video import is_video

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".npy", ".npz", ".png", ".tif", ".tiff", ".webp"})
COCO_FILE = "annotations.coco.json"
OVERVIEW = "overview.png"
OVERVIEW_PICTURES = 6
GAP = 24  # pixels between the pictures of the overview


@dataclass(frozen=True)
class Wanted:
    """What `segtune predict` writes beside the masks.

    Attributes:
        overlay: the classes in their colours over the image.
        confidence: probabilities as 8-bit PNG or 32-bit TIFF.
        polygons: in this format; `simplify` and `min_region` as for `polygons.trace`.
    """

    overlay: bool = False
    confidence: Literal["png", "tif"] | None = None
    polygons: PolygonFormat | None = None
    simplify: float = 0.0
    min_region: int = 0


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


class Targets(NamedTuple):
    """The files that come of one input; None for what is not wanted.

    Attributes:
        name: of the input, its path below the folder that all inputs have in common.
        mask: of a video, a folder of masks.
    """

    name: str
    mask: Path
    overlay: Path | None = None
    confidence: Path | None = None
    polygons: Path | None = None

    @property
    def paths(self) -> list[Path]:
        return [path for path in self[1:] if path is not None]


def plan_targets(sources: Sequence[Path], output: Path, wanted: Wanted, overwrite: bool = False) -> list[Targets]:
    """Where everything goes: the paths of the inputs below the folder that all have in common, with other endings.

    `a.jpg` and `a.bmp` of one folder become `a.jpg.png` and `a.bmp.png`. A mask is a PNG; of a georeferenced TIFF, a
    TIFF; of a video, a folder.

    Raises:
        UsageError: something would lie in a folder of inputs, would be written twice, or exists.
    """
    absolute = [Path(os.path.abspath(path)) for path in sources]
    common = os.path.commonpath([path.parent for path in absolute])
    names = [path.relative_to(common) for path in absolute]
    stems = [name.with_suffix("") for name in names]
    uses = Counter(stems)
    targets = [
        _targets(source, name, output / (stem if uses[stem] == 1 else name), wanted)
        for source, stem, name in zip(absolute, stems, names, strict=True)
    ]
    written = [path for target in targets for path in target.paths]
    if wanted.polygons == "coco":
        written.append(output / COCO_FILE)
    counts = Counter(written)
    if twice := next((path for path in written if counts[path] > 1), None):
        raise UsageError(f"{twice} would be written twice: predict these images one after the other")
    folders = {path.parent.resolve() for path in absolute}
    if clash := next((path for path in written if path.parent.resolve() in folders), None):
        raise UsageError(f"--output {output}: {clash} would lie among the input images; name another folder")
    there = [path for path in written if path.exists()]
    if there and not overwrite:
        more = f" and {len(there) - 1} more of the files to write" if len(there) > 1 else ""
        raise UsageError(f"{there[0]}{more} exists already; name another folder, or say --overwrite")
    return targets


def _targets(source: Path, name: Path, base: Path, wanted: Wanted) -> Targets:
    def beside(ending: str, is_wanted: bool = True) -> Path | None:
        return base.with_name(base.name + ending) if is_wanted else None

    if is_video(source):
        if wanted.confidence or wanted.polygons:
            raise UsageError(f"{source}: --confidence and --polygons are for images, this is a video")
        return Targets(name.as_posix(), base, beside("_overlay.mp4", wanted.overlay))
    mask = base.with_name(base.name + (".tif" if is_georeferenced(source) else ".png"))
    endings = {"geojson": ".geojson", "labelme": ".json"}
    return Targets(
        name.as_posix(),
        mask,
        beside("_overlay.png", wanted.overlay),
        beside(f"_confidence.{wanted.confidence}", wanted.confidence is not None),
        beside(endings.get(wanted.polygons or "", ""), wanted.polygons in endings),
    )


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
