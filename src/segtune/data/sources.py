"""Where the pictures come from: folders of images and masks as a `datasets.DatasetDict`, and their label map."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image
from datasets import Dataset, DatasetDict, Image
from pydantic import Field
from tqdm.auto import tqdm

from segtune.data.loading import read_image, read_mask
from segtune.errors import DataError, UsageError
from segtune.labels import LabelError, LabelMap, count_values, show_value, show_values
from segtune.section import Section

logger = logging.getLogger(__name__)

PACKAGED = "segtune://"
IMAGE_FOLDERS = ("images", "imgs", "image", "img", "img_dir")
MASK_FOLDERS = ("masks", "labels", "annotations", "mask", "ann_dir", "label")
LABEL_FILES = ("labels.json", "classes.json", "id2label.json")
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".ppm", ".pgm"}
ORIENTATION = PIL.Image.ExifTags.Base.Orientation
TURNED = (5, 6, 7, 8)  # the EXIF orientations that swap height and width

LAYOUTS = (
    "images/train + masks/train (val, test), train/images + train/masks, or images + masks; "
    "name other folders in dataset.images and dataset.masks"
)

Files = dict[str, list[Path]]  # id -> the pictures of that name
Pairs = dict[str, tuple[Path, Path]]  # id -> image, mask
Item = TypeVar("Item")
Result = TypeVar("Result")


class DatasetConfig(Section):
    """The recipe's `dataset` section.

    Attributes:
        path: a folder, or "segtune://earth" for the data set inside the package.
        images: sub-folder of the images, where it has none of the usual names.
        masks: sub-folder of the masks, where it has none of the usual names.
        labels: the classes, inline or a JSON file (relative to `path`, else to the working directory), in a form of
            `LabelMap.from_dict`. Left out: labels.json, classes.json or id2label.json in `path`.
        ignore_index: what ignored pixels become in labels.
        val_fraction: the part of the training samples that becomes "val" where the data has no such split.
        split_seed: of that split.
        split_file: JSON {"train": [ids], "val": [ids], "test": [ids]}, found like `labels`.
        check_masks: read every image and mask before the first step.
    """

    path: str
    images: str | None = None
    masks: str | None = None
    labels: str | list[str] | dict[str | int, Any] | None = None
    ignore_index: int = 255
    val_fraction: float = Field(default=0.1, ge=0, lt=1)
    split_seed: int = 0
    split_file: str | None = None
    check_masks: bool = True


def resolve_path(path: str | Path) -> Path:
    """The folder of a data set: a path, or "segtune://<name>" for one inside the package.

    Raises:
        UsageError: there is no such folder.
    """
    if str(path).startswith(PACKAGED):
        package, name = Path(__file__).parent, str(path).removeprefix(PACKAGED)
        names = sorted(folder.parent.name for folder in package.glob("*/images"))
        if name not in names:
            raise UsageError(f"no data set {str(path)!r} in the package; it has {', '.join(names) or 'none'}")
        return package / name
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UsageError(f"the data set folder {folder} {what}: set dataset.path")
    return folder


def load_segmentation_dataset(
    path: str | Path,
    *,
    images: str | None = None,
    masks: str | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    split_file: str | Path | None = None,
) -> DatasetDict:
    """Pair the images and masks of a folder by their names.

    Layouts: images/{train,val,test} with masks/{train,val,test}, {train,val,test}/images with .../masks, or images
    with masks; other usual names count too, and folders inside. Hidden files and files that are no pictures are
    passed over. Only headers are read here; `check_masks` reads the rest.

    Args:
        path: a folder or "segtune://earth".
        images: sub-folder of the images, where it has none of the usual names; `masks` likewise.
        val_fraction: the part of train that becomes val where there is no val. Which samples those are depends on
            `seed` and their ids only.
        split_file: JSON {"train": [ids], "val": [ids], "test": [ids]}; other files are then left out.

    Returns:
        Splits out of train, val and test, sorted by id, with the columns "id" (the path below the split's folder
        without suffix, "/" between folders), "image" and "mask" (`datasets.Image`, read when asked for).

    Raises:
        UsageError: no such folder, or no layout that is known.
        DataError: files without a partner, several files of one name, unreadable files, partners of different sizes.
    """
    root = resolve_path(path)
    if not 0 <= val_fraction < 1:
        raise UsageError(f"val_fraction is {val_fraction}: give a number from 0 to below 1")
    folders = _find_layout(root, images, masks)
    files = {split: (_list_files(*pair), _list_files(*reversed(pair))) for split, pair in folders.items()}
    if split_file:
        ids = _read_split_file(_find_file(split_file, root), files)
    else:
        ids = {split: sorted(found[0].keys() | found[1].keys()) for split, found in files.items()}
    pairs = _pair(root, files, ids)
    _check_sizes(root, [pair for split in pairs.values() for pair in split.values()])
    if "val" not in pairs and "train" in pairs:
        pairs["val"] = {i: pairs["train"].pop(i) for i in _draw_val(pairs["train"], val_fraction, seed)}
    splits = {split: pairs[split] for split in SPLITS if pairs.get(split)}
    logger.info("%s: %s", root, ", ".join(f"{len(found)} {split}" for split, found in splits.items()))
    return DatasetDict({split: _to_dataset(found) for split, found in splits.items()})


def save_split(dataset: DatasetDict, path: str | Path) -> None:
    """Write which id is in which split, as a `split_file` that loads the same splits again."""
    ids = {split: list(rows["id"]) for split, rows in dataset.items()}
    Path(path).write_text(json.dumps(ids, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def find_label_map(config: DatasetConfig) -> LabelMap:
    """The label map of a data set: `config.labels`, else the JSON file of labels in its folder.

    Raises:
        UsageError: there is none (the message proposes one from the first masks), or it contradicts `config`.
    """
    root = resolve_path(config.path)
    if isinstance(config.labels, (list, dict)):
        try:
            label_map = LabelMap.from_dict(config.labels, config.ignore_index)
        except UsageError as error:
            raise UsageError(f"dataset.labels: {error}") from error
    else:
        usual = [root / name for name in LABEL_FILES if (root / name).is_file()]
        if not config.labels and not usual:
            raise UsageError(_propose_labels(root, config))
        file = _find_file(config.labels, root) if config.labels else usual[0]
        label_map = LabelMap.from_file(file, config.ignore_index)
    if label_map.ignore_index != config.ignore_index:
        raise UsageError(
            f"the labels say ignore_index {label_map.ignore_index}, the recipe says {config.ignore_index}: "
            f"set dataset.ignore_index={label_map.ignore_index}"
        )
    return label_map


def check_masks(dataset: DatasetDict, label_map: LabelMap) -> None:
    """Read every image and mask once, and compare the masks with the label map.

    Raises:
        DataError: files that cannot be read, ids or colours that the label map does not name, or only one class beside
            ignored pixels in all masks; with the files, the pixel counts and what to write in the recipe.
    """
    rows = [row for split in dataset.values() for row in _undecoded(split)]
    checked = _in_threads(lambda row: _check_row(row, label_map), rows, "checking masks")
    problems = [problem for problem, _ in checked if problem]
    if problems:
        values = Counter(value for problem in problems if isinstance(problem, LabelError) for value in problem.values)
        raise DataError(_summary(problems, len(rows)) + (_advice(values) if values else ""))
    seen = {label for _, labels in checked for label in labels}
    if label_map.num_labels > 1 and label_map.ignore_index in seen and len(seen) == 2:
        (only,) = seen - {label_map.ignore_index}
        raise DataError(
            f"the only class in all {len(rows)} masks is {label_map.names[only]!r}, all other pixels are ignored; "
            f"the label map has {label_map}. If an ignored value is a class, name it; for masks of 0 and 255: "
            f'dataset.labels: {{"0": "background", "255": "foreground"}}'
        )


# -- folders ----------------------------------------------------------------------------------------------------------


def _find_layout(root: Path, images: str | None, masks: str | None) -> dict[str, tuple[Path, Path]]:
    """Split -> its folder of images and its folder of masks."""
    image_names = (images,) if images else IMAGE_FOLDERS
    mask_names = (masks,) if masks else MASK_FOLDERS
    image_dir, mask_dir = _find_folder(root, image_names), _find_folder(root, mask_names)
    if image_dir and mask_dir:
        image_splits, mask_splits = _find_splits(image_dir), _find_splits(mask_dir)
        if not image_splits and not mask_splits:
            return {"train": (image_dir, mask_dir)}
        found = {i: (image_splits.get(i), mask_splits.get(i)) for i in SPLITS if i in image_splits or i in mask_splits}
        _warn_of_rest(image_dir, image_splits)
    else:
        inside = _find_splits(root)
        found = {i: (_find_folder(inside[i], image_names), _find_folder(inside[i], mask_names)) for i in inside}
    layout = {}
    for split, (image_folder, mask_folder) in found.items():
        if image_folder and mask_folder:
            layout[split] = (image_folder, mask_folder)
        elif image_folder and split == "test":  # often published without masks
            logger.warning("%s has no masks: the test split is left out", image_folder)
        elif image_folder or mask_folder:
            has, lacks = ("images", "masks") if image_folder else ("masks", "images")
            raise DataError(
                f"{image_folder or mask_folder}: {split} has {has} there, but no {lacks}. Layouts: {LAYOUTS}"
            )
    if not layout:
        inside_root = ", ".join(sorted(child.name for child in root.iterdir() if child.is_dir())) or "no folders"
        raise UsageError(
            f"{root}: found no folders of images ({', '.join(image_names)}) and masks ({', '.join(mask_names)}); "
            f"it holds {inside_root}. Layouts: {LAYOUTS}"
        )
    return layout


def _find_folder(parent: Path, names: Iterable[str]) -> Path | None:
    children = {child.name.lower(): child for child in sorted(parent.iterdir()) if child.is_dir()}
    for name in names:
        if (parent / name).is_dir():
            return parent / name
        if name.lower() in children:
            return children[name.lower()]
    return None


def _find_splits(parent: Path) -> dict[str, Path]:
    """Split -> the sub-folder with one of its names."""
    found = {}
    for split, names in SPLITS.items():
        folders = [child for child in sorted(parent.iterdir()) if child.is_dir() and child.name.lower() in names]
        if len(folders) > 1:
            raise UsageError(f"{parent} has {' and '.join(f.name for f in folders)}: keep one folder for {split}")
        if folders:
            found[split] = folders[0]
    return found


def _warn_of_rest(parent: Path, splits: Mapping[str, Path]) -> None:
    others = [child for child in sorted(parent.iterdir()) if child not in splits.values() and child.name[0] != "."]
    if rest := [child.name for child in others if child.is_dir() or _is_picture(child)]:
        logger.warning("%s: left out, since no split has these names: %s", parent, _first(rest))


def _is_picture(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in SUFFIXES


def _list_files(folder: Path, other: Path) -> dict[str, list[Path]]:
    """Id -> the pictures of that name in `folder` and below, without those in `other`."""
    files: dict[str, list[Path]] = {}
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and Path(parent, name) != other]
        for path in sorted(Path(parent, name) for name in names):
            if _is_picture(path):
                below = path.relative_to(folder).with_suffix("").as_posix()
                files.setdefault(unicodedata.normalize("NFC", below), []).append(path)
    return files


def _find_file(file: str | Path, root: Path) -> Path:
    places = [root / Path(file).expanduser(), Path(file).expanduser()]
    for place in places:
        if place.is_file():
            return place
    raise UsageError(f"no file {file} in {root}, and none in the working directory {Path.cwd()}")


# -- splits and pairs -------------------------------------------------------------------------------------------------


def _read_split_file(path: Path, files: Mapping[str, tuple[Files, Files]]) -> dict[str, list[str]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        given = {split: data[split] for split in SPLITS if split in data}
        if unknown := set(data) - set(SPLITS):
            raise ValueError(f"it holds {_first(sorted(map(repr, unknown)))}")
        if any(not isinstance(ids, list) or not all(isinstance(i, str) for i in ids) for ids in given.values()):
            raise ValueError("ids are lists of texts")
    except (ValueError, TypeError) as error:
        raise UsageError(f'{path} is no split file {{"train": [ids], "val": [ids], "test": [ids]}}: {error}') from error
    splits = {split: sorted(unicodedata.normalize("NFC", i) for i in ids) for split, ids in given.items()}
    own = Counter((split if split in files else "train", i) for split, ids in splits.items() for i in ids)
    if twice := [i for (_, i), count in own.items() if count > 1]:
        raise DataError(f"{path} lists ids more than once: {_first(twice)}. A sample belongs to one split")
    return splits


def _pair(root: Path, files: Mapping[str, tuple[Files, Files]], ids: Mapping[str, Sequence[str]]) -> dict[str, Pairs]:
    """Split -> id -> (image, mask); a split without folders of its own takes its files from train."""
    pairs: dict[str, Pairs] = {}
    lone_images, lone_masks, doubles, absent, empty = [], [], [], [], []
    for split, wanted in ids.items():
        images, masks = files.get(split) or files.get("train") or ({}, {})
        if not wanted:
            empty.append(split)
        for i in wanted:
            here = images.get(i, []), masks.get(i, [])
            for found in here:
                if len(found) > 1:
                    doubles.append(" + ".join(_below(root, path) for path in found))
            if not any(here):
                absent.append(i)
            elif not here[1]:
                lone_images.append(_below(root, here[0][0]))
            elif not here[0]:
                lone_masks.append(_below(root, here[1][0]))
            else:
                pairs.setdefault(split, {})[i] = here[0][0], here[1][0]
    _refuse(
        root,
        {
            "images without a mask": lone_images,
            "masks without an image": lone_masks,
            "files that share a name": doubles,
            "ids of the split file without files": absent,
            f"splits without pictures ({' '.join(sorted(SUFFIXES))})": empty,
        },
        "An image and its mask have the same name apart from the suffix: add, rename or remove files",
    )
    return pairs


def _draw_val(ids: Iterable[str], fraction: float, seed: int) -> list[str]:
    """A share of the ids that stays nearly the same when samples are added or removed."""
    ranked = sorted(ids, key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
    count = max(1, round(len(ranked) * fraction)) if fraction else 0
    return sorted(ranked[: min(count, len(ranked) - 1)])


def _check_sizes(root: Path, pairs: Sequence[tuple[Path, Path]]) -> None:
    unreadable, different = [], []
    found = _in_threads(lambda pair: (_read_size(pair[0]), _read_size(pair[1])), pairs, "reading headers")
    for paths, sizes in zip(pairs, found, strict=True):
        shown = [f"{_below(root, path)} ({size})" for path, size in zip(paths, sizes, strict=True)]
        broken = [text for text, size in zip(shown, sizes, strict=True) if isinstance(size, Exception)]
        unreadable += broken
        if not broken and sizes[0] != sizes[1]:
            different.append(f"{shown[0]} and {shown[1]}")
    _refuse(
        root,
        {"files that cannot be read": unreadable, "partners of different (height, width)": different},
        "Replace these files or remove both partners (an image counts as its EXIF orientation turns it)",
    )


def _to_dataset(pairs: Pairs) -> Dataset:
    columns = {
        "id": list(pairs),
        "image": [str(image) for image, _ in pairs.values()],
        "mask": [str(mask) for _, mask in pairs.values()],
    }
    return Dataset.from_dict(columns).cast_column("image", Image()).cast_column("mask", Image())


# -- reading files ----------------------------------------------------------------------------------------------------


def _read_size(path: Path) -> tuple[int, int] | Exception:
    """(height, width) of the picture as it is shown, from its header; what went wrong where it has none."""
    try:
        with PIL.Image.open(path) as picture:
            width, height = picture.size
            # Pillow turns TIFF by itself, and would read all of a PNG to look for an orientation behind the pixels.
            has_exif = picture.format != "TIFF" and (picture.format != "PNG" or "exif" in picture.info)
            turned = has_exif and picture.getexif().get(ORIENTATION) in TURNED
    except Exception as error:  # decoders raise what they like
        return error
    return (width, height) if turned else (height, width)


def _undecoded(split: Dataset) -> list[dict[str, Any]]:
    return list(split.cast_column("image", Image(decode=False)).cast_column("mask", Image(decode=False)))


def _check_row(row: Mapping[str, Any], label_map: LabelMap) -> tuple[Exception | None, set[int]]:
    """What is wrong with a sample, if anything, and the labels in its mask."""
    cell = row["image"]
    try:
        with _open(cell) as image:
            image.draft("RGB", (1, 1))  # lets JPEG skip most of the arithmetic; a truncated file still shows
            read_image(image)
        cell = row["mask"]
        with _open(cell) as mask:
            lossy, stored = mask.format == "JPEG", read_mask(mask)
        return None, set(np.unique(label_map.encode(stored)).tolist())
    except LabelError as error:
        message = f"{cell['path'] or row['id']}: {error}"
        if lossy:
            return DataError(f"{message}. JPEG does not keep exact values: save masks as PNG"), set()
        return LabelError(message, error.values), set()
    except Exception as error:
        return DataError(f"{cell['path'] or row['id']}: {error}"), set()


def _open(cell: Mapping[str, Any]) -> PIL.Image.Image:
    return PIL.Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]))


def _in_threads(function: Callable[[Item], Result], items: Sequence[Item], title: str) -> list[Result]:
    """`map` in order, with a bar on terminals when there is much to do."""
    with ThreadPoolExecutor() as pool:
        results = pool.map(function, items)
        return list(tqdm(results, title, len(items), unit="sample", disable=True if len(items) < 500 else None))


# -- messages ---------------------------------------------------------------------------------------------------------


def _refuse(root: Path, problems: Mapping[str, Sequence[str]], fix: str) -> None:
    found = [f"{what} ({len(names)}): {_first(names)}" for what, names in problems.items() if names]
    if found:
        raise DataError(f"{root}: {'; '.join(found)}. {fix}")


def _summary(problems: Sequence[Exception], total: int, limit: int = 5) -> str:
    lines = [f"{len(problems)} of {total} samples cannot be used:", *(str(problem) for problem in problems[:limit])]
    if len(problems) > limit:
        lines.append(f"... and {len(problems) - limit} more")
    return "\n  ".join(lines)


def _advice(values: Counter[Any]) -> str:
    keys = [show_value(value) for value, _ in values.most_common(3)]
    named = ", ".join(f'"{key}": "<class>"' for key in keys)
    ignored = ", ".join(f'"{key}": null' for key in keys)
    return f"\nName such values in dataset.labels (or its file), as in {{{named}}}, or ignore them: {{{ignored}}}"


def _propose_labels(root: Path, config: DatasetConfig, limit: int = 8) -> str:
    folders = _find_layout(root, config.images, config.masks)
    masks = [path for images, masks in folders.values() for path in chain(*_list_files(masks, images).values())][:limit]
    values: Counter[Any] = Counter()
    for path in masks:
        with contextlib.suppress(OSError), PIL.Image.open(path) as mask:
            values.update(count_values(read_mask(mask)))
    keys = sorted((key for key, _ in values.most_common(20)), key=lambda key: (isinstance(key, tuple), key))
    if keys == [0, 255]:
        proposal: dict[str, str | None] = {"0": "background", "255": "foreground"}
    else:
        proposal = {show_value(key): None if key == config.ignore_index else "<class>" for key in keys}
    return (
        f"{root} does not say which classes its masks hold. The first {len(masks)} hold {show_values(values, 20)}. "
        f"Write {root / LABEL_FILES[0]} or set dataset.labels, as in {json.dumps(proposal)}"
    )


def _below(root: Path, path: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _first(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
