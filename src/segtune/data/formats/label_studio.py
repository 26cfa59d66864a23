"""Label Studio annotations: a JSON export (JSON or JSON-MIN) with polygons, brushes, bitmasks, boxes and ellipses."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from segtune.data.annotations.find_images import AnnotatedImages, sample_id
from segtune.data.annotations.json_fields import LIST, TEXT, Fields, check_entry
from segtune.data.annotations.shapes import Shape, rectangle
from segtune.data.annotations.tally import LINE, UNFINISHED, UNKNOWN, Fate, Tally
from segtune.data.class_names import drawn_names, number_classes, value_of
from segtune.data.config import DatasetConfig
from segtune.data.formats.sniff import json_kind
from segtune.data.index import DatasetIndex, Sample
from segtune.errors import DataError, UsageError, listed, naming
from segtune.files import read_json
from segtune.imageio.read import is_picture
from segtune.imageio.walk import walk_files

logger = logging.getLogger(__name__)

UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # what the server puts before the names of uploaded files
OTHER_ANNOTATOR = Fate("other_annotator", "of other annotators of the same image")
IMAGE_KEYS = ("image", "img", "photo", "picture", "image_url", "url")
BEHIND = ("d", "fileuri", "url", "path", "file")  # parameters of addresses that hold the file's own
GEOMETRY = ("points", "rle", "imageDataURL", "vertices", "sequence", "x")
TASK: Fields = {"data": (dict,), "annotations?": LIST, "completions?": LIST, "file_upload?": TEXT}


class Region(NamedTuple):
    """What the results of one id say together: a name for messages, labels, geometry, and the picture's size."""

    entry: str
    labels: list[Any]
    value: Mapping[str, Any]
    size: tuple[int, int]


class Task(NamedTuple):
    """A task: how messages name it, the addresses that may be its image's, the best first, and its regions."""

    name: str
    addresses: list[str]
    regions: list[Region]


def find_file(root: Path, given: str | None) -> Path | None:
    """The export: the one that is named, or the only one in the folder."""
    if given:
        return root / given
    exports = [path for path in walk_files(root, ".json", depth=0) if json_kind(path) == "label_studio"]
    return exports[0] if len(exports) == 1 else None


def scan_label_studio(root: Path, config: DatasetConfig) -> DatasetIndex:
    """The images of an export's labelled tasks; classes are the labels in alphabetical order, later regions on top.

    Of a task's annotations, those that were cancelled do not count; then the ground truth, what `dataset.annotator`
    says, and those with regions go before the others. Images are found by the names of their files, with or without
    what the server put before them and the suffix.

    Raises:
        UsageError: no such file.
        DataError: a task of another form, or none that is labelled.
    """
    file = find_file(root, config.masks)
    if file is None or not file.is_file():
        raise UsageError(f"{root}: no JSON export of Label Studio in it; name one in dataset.masks")
    index = DatasetIndex(root)
    images = AnnotatedImages(index, config)
    tasks = _read_tasks(index, file, config, images.tally)
    shapes = [list(_shapes(file, task, images.tally)) for task in tasks]
    used = sorted({label for found in shapes for label, _ in found})
    index.classes = number_classes(drawn_names(used), config, root)
    values = {str(name): value for value, name in index.classes.items()}
    for task, found in zip(tasks, shapes, strict=True):
        part = {"shapes": [{"value": value_of(label, values), **outline} for label, outline in found]}
        if image := _find_image(images, task, file):
            size = task.regions[0].size if task.regions else (0, 0)
            images.add(Sample(sample_id(index.below(image)), "train", image, file, size), part)
        else:
            images.lose(task.name, part)
    images.finish()
    return index


# -- tasks ------------------------------------------------------------------------------------------------------------


def _read_tasks(index: DatasetIndex, file: Path, config: DatasetConfig, tally: Tally) -> list[Task]:
    """The tasks that somebody has labelled."""
    tasks, disputed = [], {}
    chosen: Counter[str] = Counter()
    entries = _entries(file)
    for number, entry in enumerate(entries):
        name = f"task {entry['id']}" if "id" in entry else f"task [{number}]"
        with naming(f"{file}: {name}"):
            annotations = _annotations(entry)
            for annotation in annotations:
                tally.give(len(_regions(annotation["result"])))
            kept = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
            best, reason = _choose(kept, None if config.annotator is None else str(config.annotator))
            for annotation in annotations:
                if annotation is not best:
                    fate = UNFINISHED if annotation.get("was_cancelled") else OTHER_ANNOTATOR
                    tally.end(fate, name, count=len(_regions(annotation["result"])))
            if best:
                results = best["result"]
                tasks.append(Task(name, _addresses(entry, results), _regions(results)))
                chosen.update([reason] if reason else [])
            elif kept:
                disputed[name] = f"{name} ({', '.join(map(_annotator, kept))})"
    fix = (
        "Set dataset.annotator to first, last or one of these, or mark an annotation of each such task as ground truth"
    )
    index.report("annotators_differ", "tasks whose annotators differ", disputed, fix)
    _remark(index, file, len(entries), len(tasks) + len(disputed), chosen)
    return tasks


def _remark(index: DatasetIndex, file: Path, total: int, labelled: int, chosen: Mapping[str, int]) -> None:
    """Tell of tasks that are left out, and of which annotation counts where a task has several.

    Raises:
        DataError: no task is labelled.
    """
    if not labelled:
        raise DataError(
            f"{file}: none of its {total} tasks has an annotation that was submitted (drafts, predictions and "
            "cancelled ones do not count): label some, and export again"
        )
    remarks = [f"{count} tasks have several annotations: {reason} counts" for reason, count in chosen.items()]
    if labelled < total:
        remarks.append(f"{total - labelled} of {total} tasks have no annotation: their images are left out")
    for remark in remarks:
        index.remarks.append(f"{index.below(file)}: {remark}")
        logger.warning("%s: %s", file, remark)


def _entries(file: Path) -> list[dict[str, Any]]:
    """The tasks of a file, those of JSON-MIN as JSON has them."""
    try:
        entries = read_json(file)
    except ValueError as error:
        raise UsageError(f"{file} is no JSON export of Label Studio: {error}") from error
    if not isinstance(entries, list):
        raise UsageError(f"{file} is no JSON export of Label Studio: it holds no list of tasks")
    tasks: list[dict[str, Any]] = []
    flat: dict[Any, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        check_entry(file, f"task [{number}]", entry, {})
        if "data" in entry:
            check_entry(file, f"task [{number}]", entry, TASK)
            tasks.append(entry)
            continue
        task = _from_min(entry)
        known = flat.setdefault(json.dumps([task.get("id", number)]), task)
        if known is task:
            tasks.append(task)
        else:  # a second annotation of the same task
            known["annotations"] += task["annotations"]
    return tasks


def _from_min(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A task of JSON-MIN, whose values and regions lie on one level, as a task of JSON."""
    regions = [region for value in entry.values() if _are_regions(value) for region in value]
    finished = regions or "annotator" in entry or "annotation_id" in entry
    annotations = [{"result": regions, "completed_by": entry.get("annotator")}] if finished else []
    task = {"data": {key: value for key, value in entry.items() if isinstance(value, str)}, "annotations": annotations}
    return {"id": entry["id"], **task} if "id" in entry else task


def _are_regions(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "original_width" in value[0]


def _annotations(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    annotations = task.get("annotations") or task.get("completions") or []
    for number, annotation in enumerate(annotations):
        if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
            raise DataError(f"annotations[{number}] has no list of results")
    return list(annotations)


def _choose(annotations: Sequence[dict[str, Any]], wanted: str | None) -> tuple[dict[str, Any] | None, str]:
    """The annotation of a task that counts, and why it is that one of several; None where nothing decides."""
    if len(annotations) < 2:
        return (annotations[0] if annotations else None), ""
    for kept, reason in (
        ([one for one in annotations if one.get("ground_truth")], "the ground truth"),
        ([one for one in annotations if _annotator(one) == wanted], f"that of {wanted}"),
        ([one for one in annotations if one["result"]], "the one with regions"),
    ):
        if len(kept) == 1:
            return kept[0], reason
        annotations = kept or annotations
    if len({_content(one) for one in annotations}) == 1:
        return annotations[0], "the first of several that agree"
    if wanted in ("first", "last"):
        return annotations[0 if wanted == "first" else -1], f"the {wanted}"
    return None, ""


def _annotator(annotation: Mapping[str, Any]) -> str:
    """Who made an annotation: an address of mail, else a number."""
    by = annotation.get("completed_by")
    return str(by.get("email") or by.get("id")) if isinstance(by, dict) else str(by)


def _content(annotation: Mapping[str, Any]) -> str:
    """What an annotation says, whoever made it."""
    values = [entry.get("value", entry) if isinstance(entry, dict) else entry for entry in annotation["result"]]
    return json.dumps(sorted(json.dumps(value, sort_keys=True) for value in values))


# -- images -----------------------------------------------------------------------------------------------------------


def _addresses(task: Mapping[str, Any], results: Sequence[Any]) -> list[str]:
    """The texts of a task that may be the address of its image, the best first.

    Raises:
        DataError: there are none, or the image is a list of pages.
    """
    data, named = task["data"], [entry.get("to_name") for entry in results if isinstance(entry, dict)]
    tags = [tag for tag in named if isinstance(tag, str)]
    if any(isinstance(data.get(tag), list) for tag in tags) or any(
        isinstance(entry, dict) and entry.get("item_index") for entry in results
    ):
        raise DataError("its image is a list of pages: export a task for each page")
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value}
    upload = task.get("file_upload")
    found = [
        *(texts[tag] for tag in dict.fromkeys(tags) if tag in texts),
        *filter(_looks_like_image, texts.values()),
        *([upload] if upload else []),
        *(texts[key] for key in IMAGE_KEYS if key in texts),
        *(text for text in texts.values() if "/" in text),
    ]
    if not found:
        raise DataError("its data names no image")
    return list(dict.fromkeys(found))


def _looks_like_image(text: str) -> bool:
    return is_picture("x" + PurePosixPath(_file_name(text)).suffix)


def _file_name(address: str) -> str:
    """The path of an image in an address: a file on disk, an upload, one behind a parameter, one in the cloud."""
    try:
        parts = urlsplit(address)
        query = parse_qs(parts.query)
    except ValueError:
        return address
    for key in BEHIND:
        if key in query:
            name = unquote(query[key][0])
            return urlsplit(_plain_text(name)).path if key == "fileuri" else urlsplit(name).path
    return unquote(parts.path)


def _plain_text(text: str) -> str:
    """What Label Studio wrote as base64 into the address of a file in the cloud."""
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except (binascii.Error, ValueError):
        return text


def _find_image(images: AnnotatedImages, task: Task, file: Path) -> Path | None:
    """The only image that one of the addresses names, the first that names one."""
    candidates = []
    for address in task.addresses:
        name = _file_name(address)
        for known in dict.fromkeys((name, UPLOAD.sub("", PurePosixPath(name).name))):
            found = images.find(known, file)
            if not found and not is_picture("x" + PurePosixPath(known).suffix):
                found = images.find_stem(PurePosixPath(known).name, file)
            if len(found) == 1:
                return found[0]
            candidates += found
    address = task.addresses[0]
    shown = f"{address[:100]}…" if len(address) > 100 else address
    return images.only(shown, list(dict.fromkeys(candidates)))


# -- regions ----------------------------------------------------------------------------------------------------------


def _regions(results: Sequence[Any]) -> list[Region]:
    """The regions of an image; results of one id and one outline belong together, as an outline and its label do.

    What is said of the whole image, or of two regions, is none.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for number, entry in enumerate(results):
        if not isinstance(entry, Mapping):
            raise DataError(f"result[{number}] is no object")
        name, outline = str(entry.get("id") or f"result[{number}]"), _geometry(entry)
        near = next((key for key in groups if key[0] == name and "" in (key[1], outline)), (name, outline))
        groups.setdefault(near, []).append(entry)
    found = []
    for (name, _), entries in groups.items():
        labels = [label for entry in entries for label in _labels(_value(entry))]
        drawn = next((entry for entry in entries if _geometry(entry)), None)
        size = (0, 0)
        if drawn is not None:
            _check_size(f"region {name}", drawn)
            size = int(drawn["original_height"]), int(drawn["original_width"])
        if drawn is not None or labels:
            value = _value(drawn) if drawn is not None else {}
            found.append(
                Region(
                    f"region {name}", [label for i, label in enumerate(labels) if label not in labels[:i]], value, size
                )
            )
    return found


def _value(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    value = entry.get("value", entry)  # JSON-MIN has no level below
    return value if isinstance(value, Mapping) else {}


def _geometry(entry: Mapping[str, Any]) -> str:
    """What is drawn, as text; "" where nothing is."""
    value = _value(entry)
    drawn = {key: value[key] for key in (*GEOMETRY, "y", "width", "height", "radiusX", "radiusY") if key in value}
    return json.dumps(drawn, sort_keys=True) if any(key in drawn for key in GEOMETRY) else ""


def _labels(value: Mapping[str, Any]) -> list[Any]:
    found = [value[key] for key in value if key.endswith("labels")]
    return [label for labels in found for label in (labels if isinstance(labels, list) else [labels])]


def _check_size(name: str, entry: Mapping[str, Any]) -> None:
    """Check what a result says of its picture.

    Raises:
        DataError: its size is missing, or the picture was turned.
    """
    for key in ("original_width", "original_height"):
        if not isinstance(entry.get(key), (int, float)) or not 0 < entry[key] < 2**31:
            raise DataError(f"{name}: {key} is {entry.get(key)!r}; expected a number of pixels")
    if entry.get("image_rotation"):
        raise DataError(f"{name}: an image is turned by {entry['image_rotation']} degrees; export it without")


def _shapes(file: Path, task: Task, tally: Tally) -> Iterator[tuple[str, Shape]]:
    """The label and the outline of each region that is drawn; where the others end is counted."""
    for region in task.regions:
        entry = f"{task.name}, {region.entry}"
        with naming(f"{file}: {entry}"):
            label = _label(region)
            if region.size not in ((0, 0), task.regions[0].size):
                raise DataError(f"drawn on {region.size} (height, width), others of the task on {task.regions[0].size}")
            try:
                outline = _outline(region)
            except OverflowError as error:
                raise DataError(f"a coordinate is no place in a picture: {error}") from error
            if shape := tally.take(outline, label, file.name, entry):
                yield str(label), shape


def _label(region: Region) -> str | None:
    if len(region.labels) > 1:
        raise DataError(f"it has the labels {listed(region.labels)}: a pixel has one class")
    if region.labels and not isinstance(region.labels[0], str):
        raise DataError(f"the label {region.labels[0]!r} is no text")
    return region.labels[0] if region.labels else None


def _outline(region: Region) -> Shape | Fate:
    """A region as a shape; its numbers are hundredths of the width and the height. Where it ends, if it is none."""
    value, (height, width) = region.value, region.size
    across, down = width / 100, height / 100
    if not value or "keypointlabels" in value:
        return LINE
    if "rle" in value:
        return {"brush": base64.b64encode(_bytes(value["rle"])).decode()}
    if "imageDataURL" in value:
        return {"bitmap": _data_url(value["imageDataURL"]), "box": [0, 0], "whole": True}
    if "points" in value:
        return {"polygons": [[side * number for x, y in _points(value) for number, side in ((x, across), (y, down))]]}
    if {"radiusX", "radiusY"} <= value.keys():
        x, y, radius_x, radius_y, degrees = _numbers(value, "x", "y", "radiusX", "radiusY")
        return {"ellipse": [x * across, y * down, radius_x * across, radius_y * down, degrees]}
    if {"width", "height"} <= value.keys():
        x, y, box_width, box_height, degrees = _numbers(value, "x", "y", "width", "height")
        left, top, right, bottom = x * across, y * down, (x + box_width) * across, (y + box_height) * down
        return {"polygons": [rectangle(left, top, right, bottom, degrees, pivot=(left, top))]}
    return UNKNOWN if {"vertices", "sequence"} & value.keys() else LINE


def _numbers(value: Mapping[str, Any], *names: str) -> list[float]:
    """The numbers of these names, and the rotation."""
    found = [value.get(name) for name in names] + [value.get("rotation") or 0]
    for name, number in zip((*names, "rotation"), found, strict=True):
        if not isinstance(number, (int, float)):
            raise DataError(f"{name} is {number!r}; expected a number")
    return [float(number) for number in found if number is not None]


def _points(value: Mapping[str, Any]) -> list[tuple[float, float]]:
    points = value["points"]
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 and all(isinstance(number, (int, float)) for number in point)
        for point in points
    ):
        raise DataError("points are no list of [x, y]")
    return [(x, y) for x, y in points]


def _bytes(numbers: Any) -> bytes:
    try:
        return bytes(list(numbers))
    except (TypeError, ValueError) as error:
        raise DataError("the run lengths are no list of numbers from 0 to 255") from error


def _data_url(text: Any) -> str:
    head, _, data = text.partition("base64,") if isinstance(text, str) else ("", "", "")
    if not head.startswith("data:image/png") or not data:
        raise DataError("imageDataURL is no PNG in base64")
    return str(data)
