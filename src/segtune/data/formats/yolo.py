"""YOLO segmentation annotations: data.yaml, images, and for each image a text file with a polygon in each line."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import yaml

from segtune.data.annotations.find_images import attempt, keep_annotated, tally_of
from segtune.data.annotations.shapes import Shape
from segtune.data.annotations.tally import STRANGER
from segtune.data.class_names import BACKGROUND
from segtune.data.config import DatasetConfig
from segtune.data.containment import refuse_outside
from segtune.data.index import DatasetIndex, Sample
from segtune.data.splits import SPLITS, all_names, split_names, split_of
from segtune.errors import DataError, UsageError, listed
from segtune.files import LONGEST_PATH, decode_text, read_json, read_text
from segtune.imageio.read import is_picture
from segtune.imageio.walk import walk_files

logger = logging.getLogger(__name__)

NAME_LIST = "classes.txt"
CONFIG_FILES = ("data.yaml", "data.yml", "dataset.yaml")
MOST_CLASSES = 2**16 - 1  # and the background: what masks of 16 bits hold
MOST_BYTES = 2**28  # of a label file
MOST_TOGETHER = 2**20  # bytes of a label file that is parsed together with others


def find_config(root: Path) -> Path | None:
    """The YAML file that names classes and splits: data.yaml, or the only one with both; else a list of the classes."""
    usual = [root / name for name in CONFIG_FILES if (root / name).is_file()]
    files = [path for path in walk_files(root, "ml", depth=0) if path.suffix in (".yaml", ".yml")]
    others = [path for path in files if "names:" in decode_text(path.read_bytes(), "ignore")]
    if usual or len(others) == 1:
        return (usual or others)[0]
    return root / NAME_LIST if is_name_list(root / NAME_LIST) else None


def is_name_list(file: Path) -> bool:
    """Whether a text file lists the classes of the labels that lie beside it, as Label Studio and others write it."""
    images, labels = (file.parent / name for name in ("images", "labels"))
    if file.name != NAME_LIST or not (file.is_file() and images.is_dir() and labels.is_dir()):
        return False
    return not any(is_picture(path.name) for path in walk_files(labels)) or any(walk_files(labels, ".txt"))


def read_config(file: Path) -> Any:
    """What data.yaml says; of a list of classes, its names and the folders of images beside it.

    Raises:
        ValueError: it is neither, or notes.json lists other classes.
    """
    if file.suffix != ".txt":
        return read_yaml(file)
    names = [line.strip() for line in read_text(file).rstrip().split("\n")]
    notes = file.with_name("notes.json")
    listed = read_json(notes)["categories"] if notes.is_file() else []
    others = [entry["name"] for entry in sorted(listed, key=lambda entry: entry["id"])]
    if not all(names) or (others and others != names):
        raise ValueError(f"{notes.name} lists {', '.join(others)}" if others else "a line is empty")
    splits = [name for name in all_names(SPLITS) if (file.parent / "images" / name).is_dir()]
    return {"names": names, **({name: f"images/{name}" for name in splits} or {"train": "images"})}


def read_yaml(file: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # the message would show lines of the file
        raise ValueError(f"line {mark.line + 1} is no YAML" if mark else "it is no YAML") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def scan_yolo(root: Path, config: DatasetConfig) -> DatasetIndex:
    """The images of data.yaml's splits; an image without a text file has no objects.

    The class of number i has the mask value i + 1; 0 is what no polygon covers.

    Raises:
        UsageError: no data.yaml with names and a split, or a split's images are not there.
    """
    file = root / config.masks if config.masks else find_config(root)
    if file is None or not file.is_file():
        raise UsageError(f"{root}: no data.yaml of YOLO with names and train in it")
    try:
        data = read_config(file)
        names = _class_names(data)
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{file} is no data.yaml of YOLO: it needs names and train ({error})") from error
    index = DatasetIndex(root, classes={0: BACKGROUND} | {number + 1: name for number, name in names.items()})
    values = numbers_of(index.classes or {})
    samples: list[Sample] = []
    parts: list[dict[str, Any]] = []
    for name in data:
        split = split_of(str(name), split_names(config.splits))
        for folder, image in _images(file, data, name, config) if split and data[name] else ():
            label = _label_file(image)
            below = os.path.splitext(str(image)[len(str(folder)) + 1 :])[0]  # pathlib would take as long as the parsing
            samples.append(Sample(below.replace(os.sep, "/"), str(split), image, label))
            parts.append({} if label.is_file() else {"shapes": []})
    if not samples:
        raise UsageError(f"{file}: none of its splits has images")
    keep_annotated(
        index, samples, parts, lambda asked, sizes: read_each([sample.mask for sample in asked], sizes, values)
    )
    _report_lonely(index, samples, parts)
    return index


def _class_names(data: Any) -> dict[int, str]:
    """Number -> name. Names may be a list, or a mapping from any numbers.

    Raises:
        ValueError: they are something else; KeyError or TypeError where there are none.
    """
    names = data["names"]
    if not isinstance(names, (list, dict)) or not names:
        raise ValueError("names are a list, or numbers with names")
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    classes: dict[int, str] = {}
    for key, name in pairs:
        is_number = isinstance(key, int) or (isinstance(key, str) and key.isdecimal())
        if not is_number or isinstance(key, bool) or not 0 <= int(key) < MOST_CLASSES or int(key) in classes:
            raise ValueError(f"names: {str(key)[:40]!r} is no number of a class")
        if isinstance(name, bool) or name is None:
            raise ValueError(f"names: YAML reads the name of class {key} as {name}: put it in quotes")
        if not isinstance(name, (str, int, float)) or not str(name).strip():
            raise ValueError(f"names: the name of class {key} is a {type(name).__name__}, not text")
        classes[int(key)] = str(name)
    if isinstance(data.get("nc"), int) and data["nc"] != len(classes):
        raise ValueError(f"nc is {data['nc']}, but there are {len(classes)} names")
    return dict(sorted(classes.items()))


def numbers_of(classes: Mapping[int, str | None]) -> dict[str, int]:
    """What label files call each class, its number as text -> its mask value."""
    return {str(value - 1): value for value in classes if value}


def _report_lonely(index: DatasetIndex, samples: Sequence[Sample], parts: Sequence[Mapping[str, Any]]) -> None:
    """Tell of images without a label file, and count the annotations of label files without an image."""
    tally = tally_of(index)
    without = [index.below(sample.image) for sample, part in zip(samples, parts, strict=True) if "shapes" in part]
    if without:
        what = f"{len(without)} of {len(parts)} images have no label file: all of them is background"
        index.remarks.append(f"{what}: {listed(without)}")
        logger.info("%s: %s", index.root, index.remarks[-1])
    known = {sample.mask for sample in samples}
    images = {sample.image.parent for sample in samples}
    for folder in sorted({path.parent for path in known} - images):  # beside the images, a text may be anything
        for path in sorted(folder.glob("*.txt")) if folder.is_dir() else ():
            if path not in known and path.name not in ("classes.txt", "notes.txt"):
                tally.give()
                tally.end(STRANGER, index.below(path))
    if len(without) == len(samples):
        places = sorted({index.below(path.parent) for path in known})
        others = sorted({index.below(path.parent) for path in walk_files(index.root, ".txt")} - set(places))
        fix = f"Label files are looked for as {index.below(samples[0].mask)}" + (
            f"; there are text files in {listed(others)}: rename folder or files" if others else ""
        )
        index.report("no_label_files", "images without a label file", dict(zip(without, without, strict=True)), fix)


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
            lines = decode_text(place.read_bytes(), "replace").replace("\r", "\n").split("\n")
            listed = [_find(file, data, line.strip()) for line in lines if line.strip()]
            found += [(path.parent, path) for path in listed]
    return found


def _find(file: Path, data: dict[str, Any], text: str) -> Path:
    """A path of data.yaml: below its `path` or beside the file, whatever it was relative to when it was written."""
    own = str(data.get("path") or "")
    tried = [file.parent / own / text, file.parent / text, Path(text), file.parent / text.removeprefix("../")]
    parts = PurePosixPath(text.replace("\\", "/")).parts
    tried += [file.parent.joinpath(*parts[first:]) for first in range(1, len(parts))]  # written on another machine
    for place in tried:
        if os.path.exists(place):
            return Path(place).absolute()
    if len(own + text) > LONGEST_PATH:
        raise UsageError(f"{file}: {(own + text)[:80]}… is too long for a path")
    raise UsageError(f"{file}: {text} is not there; looked at {', '.join(dict.fromkeys(map(str, tried)))}")


def _label_file(image: Path) -> Path:
    """images/train/a.jpg -> labels/train/a.txt; beside the image, where no folder is called images."""
    above, found, below = os.path.splitext(image)[0].rpartition(f"{os.sep}images{os.sep}")
    return Path(f"{above}{os.sep}labels{os.sep}{below}.txt" if found else f"{below}.txt")


def read_each(
    paths: Sequence[Path], sizes: Sequence[tuple[int, int]], values: Mapping[str, int]
) -> list[list[Shape] | DataError]:
    """`read_shapes` of many files, whose numbers are parsed together; the error, where one cannot be read.

    The outlines are arrays (2 N,).
    """
    contents = [_head(path) for path in paths]
    kept: list[list[Shape] | None] = [[] if len(content) < MOST_TOGETHER else None for content in contents]
    entries = [
        (file, number, text)
        for file, content in enumerate(contents)
        for number, line in enumerate(_lines(content) if kept[file] is not None else (), start=1)
        if (text := line.strip())
    ]
    parsed = _parse([text for _, _, text in entries])
    if parsed is None:
        return [attempt(read_shapes, path, size, values) for path, size in zip(paths, sizes, strict=True)]
    numbers, counts = parsed
    starts = np.cumsum(counts) - counts
    places = np.arange(len(numbers)) - np.repeat(starts, counts)  # 0 is the class, odd ones are x
    scales = np.array(sizes, dtype=np.float64)[[file for file, _, _ in entries]]  # (lines, 2)
    with np.errstate(over="ignore"):  # what is too large is refused as a shape
        scaled = numbers * np.where(places % 2, *(np.repeat(scales[:, axis], counts) for axis in (1, 0)))
    own = {float(name): value for name, value in values.items()}
    found = [own.get(kind) for kind in numbers[starts].tolist()]
    for (file, number, _), start, count, value in zip(entries, starts.tolist(), counts.tolist(), found, strict=True):
        shapes = kept[file]
        if value is None or count < 7 or count % 2 == 0:
            kept[file] = None
        elif shapes is not None:
            outline = scaled[start + 1 : start + count]
            shapes.append({"value": value, "polygons": [outline], "entry": f"line {number}"})
    pairs = zip(kept, paths, sizes, strict=True)
    return [attempt(read_shapes, path, size, values) if shapes is None else shapes for shapes, path, size in pairs]


def _parse(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """The numbers of lines, one after the other, and how many each line has; None where one is no plain number."""
    words = pyarrow.compute.ascii_split_whitespace(pyarrow.array(texts, pyarrow.string()))
    try:
        return words.flatten().cast(pyarrow.float64()).to_numpy(), words.value_lengths().to_numpy()
    except pyarrow.ArrowInvalid:  # it may be one that Python takes: each file for itself tells
        return None


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(MOST_TOGETHER)


def _lines(content: bytes) -> list[str]:
    return decode_text(content, "replace").splitlines()


def read_shapes(path: Path, size: tuple[int, int], values: Mapping[str, int]) -> list[Shape]:
    """The polygons of a file, in its order.

    Args:
        size: (height, width) of the picture; the coordinates in the file are parts of them.
        values: mask value of each class, by its number as text.

    Raises:
        DataError: a line that is no polygon of a known class; names the line.
    """
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes are no label file of one image")
    height, width = size
    shapes = []
    for number, line in enumerate(_lines(path.read_bytes()), start=1):
        if not line.strip():
            continue
        try:
            kind, *coordinates = map(float, line.split())
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
        value = values.get(str(int(kind))) if kind.is_integer() else None  # numpy.savetxt writes 0.000e+00
        if value is None:
            raise DataError(
                f"{path}, line {number}: class {kind:g} is none of those in data.yaml: {listed(list(values))}"
            )
        points = [0.0] * len(coordinates)
        points[::2] = [x * width for x in coordinates[::2]]
        points[1::2] = [y * height for y in coordinates[1::2]]
        shapes.append({"value": value, "polygons": [points], "entry": f"line {number}"})
    return shapes
