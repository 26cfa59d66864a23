"""Label Studio annotations: a JSON export (JSON or JSON-MIN) with polygons, brush strokes, boxes and ellipses."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from segtune.data.annotations.find_images import AnnotatedImages, sample_id
from segtune.data.annotations.shapes import Shape, rectangle
from segtune.data.class_names import number_classes
from segtune.data.config import DatasetConfig
from segtune.data.formats.sniff import json_kind
from segtune.data.index import DatasetIndex, Sample
from segtune.errors import UsageError
from segtune.files import read_json
from segtune.imageio.walk import walk_files

LABELS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels", "labels")
UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # what the server puts before the names of uploaded files


def find_file(root: Path, given: str | None) -> Path | None:
    """The export: the one that is named, or the only one in the folder."""
    if given:
        return root / given
    exports = [path for path in walk_files(root, ".json", depth=0) if json_kind(path) == "label_studio"]
    return exports[0] if len(exports) == 1 else None


def scan_label_studio(root: Path, config: DatasetConfig) -> DatasetIndex:
    """The images of an export's labelled tasks; classes are the labels in alphabetical order, later regions on top.

    Of a task's annotations the first one counts that was not cancelled. Images are found by the names of their files,
    with or without what the server put before them.

    Raises:
        UsageError: no such file, or one of another form.
    """
    file = find_file(root, config.masks)
    if file is None or not file.is_file():
        raise UsageError(f"{root}: no JSON export of Label Studio in it; name one in dataset.masks")
    tasks, regions = [], []
    for number, entry in enumerate(_entries(file)):
        try:
            if task := _task(entry):
                regions.append(list(_regions(task[1])))
                tasks.append(task)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise UsageError(f"{file}: task [{number}] is none of Label Studio's: {error!r}") from error
    classes = number_classes(sorted({name for found in regions for name, _, _ in found}), config, root)
    values = {name: value for value, name in classes.items()}
    index = DatasetIndex(root, classes=classes)
    files = AnnotatedImages(index, config)
    for (url, _), found in zip(tasks, regions, strict=True):
        name = _file_name(url)
        files.tally.give(len(found))
        images = files.find(name, file) or files.find(UPLOAD.sub("", Path(name).name), file)
        if image := files.only(url, images):
            size = found[0][1] if found else (0, 0)
            sample = Sample(sample_id(str(image.relative_to(root))), "train", image, file, size)
            files.add(sample, {"shapes": [{"value": values[label], **outline} for label, _, outline in found]})
        else:
            files.lose(url, {"shapes": found})
    files.finish()
    return index


def _entries(file: Path) -> list[Any]:
    try:
        entries = read_json(file)
    except ValueError as error:
        raise UsageError(f"{file} is no JSON export of Label Studio: {error}") from error
    if not isinstance(entries, list):
        raise UsageError(f"{file} is no JSON export of Label Studio: it holds no list of tasks")
    return entries


def _task(task: Mapping[str, Any]) -> tuple[str, Sequence[Mapping[str, Any]]] | None:
    """The image's address and the regions of a task; None where nobody has labelled it."""
    if "data" not in task:  # JSON-MIN
        keys = [key for key, value in task.items() if _is_regions(value)]
        image = next((value for value in task.values() if isinstance(value, str) and _looks_like_image(value)), None)
        return (image, [region for key in keys for region in task[key]]) if image and keys else None
    texts = [value for value in task["data"].values() if isinstance(value, str)]
    image = next(filter(_looks_like_image, texts), None)
    if image is None:
        raise ValueError("its data names no image")
    annotations = task.get("annotations") or task.get("completions") or []
    kept = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    return (image, kept[0]["result"]) if kept else None


def _is_regions(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "original_width" in value[0]


def _looks_like_image(text: str) -> bool:
    return re.search(r"\.(jpe?g|png|bmp|webp|gif|tiff?)($|\?|&)", text, re.IGNORECASE) is not None


def _regions(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, tuple[int, int], Shape]]:
    """The label, the picture's (height, width) and the outline of each region that has an area."""
    for entry in entries:
        value = entry.get("value", entry)  # JSON-MIN has no level below
        label = next((value[key][0] for key in LABELS if value.get(key)), None)
        if label and not isinstance(label, str):
            raise ValueError(f"the label {label!r} is no text")
        outline = _outline(value, entry) if label else None
        if label and outline:
            if entry.get("image_rotation"):
                raise ValueError(f"an image is turned by {entry['image_rotation']} degrees; export it without")
            yield label, (int(entry["original_height"]), int(entry["original_width"])), outline


def _outline(value: Mapping[str, Any], entry: Mapping[str, Any]) -> Shape | None:
    """A region as a shape; its numbers are hundredths of the width and the height. None where it has no area."""
    across, down = entry["original_width"] / 100, entry["original_height"] / 100
    if "rle" in value:
        return {"brush": base64.b64encode(bytes(list(value["rle"]))).decode()}
    if "points" in value:
        return {"polygons": [[number * side for x, y in value["points"] for number, side in ((x, across), (y, down))]]}
    if "x" not in value:
        return None
    x, y, degrees = value["x"] * across, value["y"] * down, value.get("rotation", 0)
    if "radiusX" in value:
        return {"ellipse": [x, y, value["radiusX"] * across, value["radiusY"] * down, degrees]}
    if "height" not in value:
        return None
    right, bottom = x + value["width"] * across, y + value["height"] * down
    return {"polygons": [rectangle(x, y, right, bottom, degrees, pivot=(x, y))]}


def _file_name(url: str) -> str:
    """The path of an image in an address: a file on disk, an upload, a local file behind ?d=, a file in the cloud."""
    parts = urlsplit(url)
    return unquote(parse_qs(parts.query).get("d", [parts.path])[0])
