"""YOLO segmentation annotations: data.yaml, images, and for each image a text file with a polygon in each line."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import yaml

from segtune.data.annotations.find_images import keep_annotated
from segtune.data.annotations.shapes import Shape
from segtune.data.config import DatasetConfig
from segtune.data.containment import refuse_outside
from segtune.data.index import DatasetIndex, Sample
from segtune.data.splits import split_names, split_of
from segtune.errors import DataError, UsageError
from segtune.imageio.read import is_picture
from segtune.imageio.walk import walk_files

logger = logging.getLogger(__name__)

CONFIG_FILES = ("data.yaml", "data.yml", "dataset.yaml")


def find_config(root: Path) -> Path | None:
    """The YAML file that names classes and splits: data.yaml, or the only one with both."""
    usual = [root / name for name in CONFIG_FILES if (root / name).is_file()]
    files = [path for path in walk_files(root, "ml", depth=0) if path.suffix in (".yaml", ".yml")]
    others = [path for path in files if "names:" in path.read_text(encoding="utf-8", errors="ignore")]
    return usual[0] if usual else others[0] if len(others) == 1 else None


def read_yaml(file: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # the message would show lines of the file
        raise ValueError(f"line {mark.line + 1} is no YAML" if mark else "it is no YAML") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def scan_yolo(root: Path, config: DatasetConfig) -> DatasetIndex:
    """The images of data.yaml's splits; an image without a text file has no objects.

    Class i has the mask value i + 1; 0 is what no polygon covers.

    Raises:
        UsageError: no data.yaml with names and a split, or a split's images are not there.
    """
    file = root / config.masks if config.masks else find_config(root)
    if file is None or not file.is_file():
        raise UsageError(f"{root}: no data.yaml of YOLO with names and train in it")
    try:
        data = read_yaml(file)
        names = data["names"]
        classes = [names[i] for i in sorted(names)] if isinstance(names, dict) else list(names)
        if odd := [name for name in classes if not isinstance(name, (str, int, float))]:
            raise ValueError(f"a name is a {type(odd[0]).__name__}")
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{file} is no data.yaml of YOLO: it needs names and train ({error})") from error
    index = DatasetIndex(root, classes=dict(enumerate(["background", *map(str, classes)])))
    samples: list[Sample] = []
    parts: list[dict[str, Any]] = []
    for name in data:
        split = split_of(str(name), split_names(config.splits))
        for folder, image in _images(file, data, name, config) if split and data[name] else ():
            label = _label_file(image)
            samples.append(Sample(image.relative_to(folder).with_suffix("").as_posix(), str(split), image, label))
            parts.append({} if label.is_file() else {"shapes": []})
    if not samples:
        raise UsageError(f"{file}: none of its splits has images")
    if without := sum("shapes" in part for part in parts):
        logger.info("%s: %d of %d images have no label file: all of them is background", root, without, len(parts))
    keep_annotated(index, samples, parts, lambda sample, size: read_shapes(sample.mask, size, len(classes)))
    return index


def _images(file: Path, data: dict[str, Any], split: str, config: DatasetConfig) -> list[tuple[Path, Path]]:
    """The images of a split, each with the folder that it was listed in: a folder, a file of paths, or several."""
    found = []
    for text in data[split] if isinstance(data[split], list) else [data[split]]:
        place = _find(file, data, str(text))
        refuse_outside(place, file.parent, config, named_by=file)
        if place.is_dir():
            found += [(place, path) for path in walk_files(place) if is_picture(path.name)]
        elif place.suffix != ".txt" or not place.is_file():
            raise UsageError(f"{file}: {split}: {text} is neither a folder of images nor a .txt file of their paths")
        else:
            lines = place.read_text(encoding="utf-8", errors="replace").split("\n")
            listed = [_find(file, data, line.strip()) for line in lines if line.strip()]
            found += [(path.parent, path) for path in listed]
    return found


def _find(file: Path, data: dict[str, Any], text: str) -> Path:
    """A path of data.yaml: below its `path` or beside the file, whatever it was relative to when it was written."""
    own = str(data.get("path") or "")
    tried = [file.parent / own / text, file.parent / text, Path(text), file.parent / text.removeprefix("../")]
    for place in tried:
        if os.path.exists(place):
            return Path(place).absolute()
    raise UsageError(f"{file}: {text} is not there; looked at {', '.join(map(str, tried))}")


def _label_file(image: Path) -> Path:
    """images/train/a.jpg -> labels/train/a.txt; beside the image, where no folder is called images."""
    parts = list(image.parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def read_shapes(path: Path, size: tuple[int, int], num_classes: int) -> list[Shape]:
    """The polygons of a file, in its order; class i has the mask value i + 1.

    Args:
        size: (height, width) of the picture; the coordinates in the file are parts of them.

    Raises:
        DataError: a line that is no polygon of a known class; names the line.
    """
    height, width = size
    shapes = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            kind, *coordinates = line.split()
            points = [float(text) * (height if i % 2 else width) for i, text in enumerate(coordinates)]
            value = int(kind)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: expected a class and x y x y …, found {line[:40]!r}") from error
        if len(coordinates) == 4:
            raise DataError(
                f"{path}, line {number}: a box (class, centre and size) has no outline; polygons are needed"
            )
        if len(coordinates) < 6 or len(coordinates) % 2:
            raise DataError(
                f"{path}, line {number}: {len(coordinates)} numbers are no x y x y … of three points or more"
            )
        if not 0 <= value < num_classes:
            raise DataError(f"{path}, line {number}: class {value} is none of the {num_classes} in data.yaml")
        shapes.append({"value": value + 1, "polygons": [points], "entry": f"line {number}"})
    return shapes
