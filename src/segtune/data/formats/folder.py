"""Image and mask folders: where they lie, also by glob patterns, and the layout of Pascal VOC."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segtune.data.class_names import find_file, listed_classes, number_classes
from segtune.data.config import DatasetConfig
from segtune.data.formats.foreign import looks_like
from segtune.data.formats.pairing import (
    BESIDE,
    Files,
    Pairs,
    files_of,
    further_mask,
    join_further,
    keep_same_sizes,
    match_affixes,
    own_names,
    pair_up,
)
from segtune.data.formats.patterns import Match, is_pattern, match_files
from segtune.data.formats.table import columns_of, read_rows
from segtune.data.index import DatasetIndex, Problem
from segtune.data.splits import SPLITS, Names, meant_ids, read_split_file, read_split_lists, split_names, split_of
from segtune.errors import DataError, UsageError, listed
from segtune.imageio.read import is_picture, stem_of, suffix_of
from segtune.imageio.walk import entries_of, walk_folders

logger = logging.getLogger(__name__)

IMAGE_FOLDERS = ("images", "imgs", "image", "img", "img_dir", "imagesTr")
MASK_FOLDERS = ("masks", "labels", "annotations", "mask", "ann_dir", "label", "labelsTr")
VOC_IMAGES, VOC_LISTS = "JPEGImages", "ImageSets/Segmentation"
VOC_MASKS = ("SegmentationClassPNG", "SegmentationClass")
CLASS_TABLE, CLASS_COLUMNS = "_classes.csv", ["pixel value", "class"]  # of Roboflow

LAYOUTS = (
    "images/train + masks/train (val, test), train/images + train/masks, images + masks, or a_mask.png beside a.png; "
    "name other folders in dataset.images and dataset.masks, or patterns such as images='**/*_rgb.png' "
    "masks='**/*_label.png'"
)


def scan_folders(root: Path, config: DatasetConfig) -> DatasetIndex:
    """Pair the images and masks of a folder by their names; only headers are read.

    Raises:
        UsageError: no layout that is known, no files that match a pattern, no split file of a known form.
    """
    index, names = DatasetIndex(root), split_names(config.splits)
    kinds: dict[Path, dict[str, str]] = {}
    if is_pattern(config.images) or is_pattern(config.masks):
        files, kinds = _match_pairs(root, config, names)
        _remark_masks_left_out(index, files)
    else:
        files = _files_of_layout(index, config, names)
    if kinds:
        found = sorted({kind for masks in kinds.values() for kind in masks})
        index.classes = number_classes(found, config, root)
    return _pair(index, files, config, {first: {"files": masks} for first, masks in kinds.items()})


def _pair(
    index: DatasetIndex, files: Pairs, config: DatasetConfig, parts: Mapping[Path, Mapping[str, Any]]
) -> DatasetIndex:
    """Give the index the samples of these files.

    Args:
        parts: of masks that are more than their first file, see `lazy_rows.Reader`.
    """
    files, further = join_further(match_affixes(files))
    if further:
        files = match_affixes(files)
        first, others = next(iter(further.items()))
        shown = " + ".join(path.name for path in (first, *others))
        index.remarks.append(f"{index.root}: several masks of one image are joined ({len(further)} images): {shown}")
    parts = {**parts, **{first: {"join": [str(first), *map(str, others)]} for first, others in further.items()}}
    files, renamed = own_names(files)
    samples = pair_up(index, files, _ids_of_splits(index, files, config, renamed))
    samples = [s._replace(mask_part=json.dumps(parts[s.mask])) if s.mask in parts else s for s in samples]
    keep_same_sizes(index, samples, config.resize_images)
    for remark in index.remarks:
        logger.warning("%s", remark)
    return index


def scan_roboflow(root: Path, config: DatasetConfig) -> DatasetIndex:
    """Roboflow's semantic masks: in the folder of each split images, a_mask.png beside a.jpg, and _classes.csv.

    Raises:
        UsageError: there are none.
        DataError: the tables of two splits give one mask value different names.
    """
    names = split_names(config.splits)
    index, tables, files = DatasetIndex(root), find_class_tables(root, names), masks_beside(root, names)
    if not tables or not files:
        raise UsageError(f"{root}: no export of Roboflow in it (a_mask.png beside a.jpg, and {CLASS_TABLE})")
    classes: dict[int, str | None] = {}
    for path in tables:
        for value, name in _read_classes(path).items():
            if classes.setdefault(value, name) != name:
                raise DataError(
                    f"{path}: {value} is {name!r}, in {tables[0]} it is {classes[value]!r}: export the splits together"
                )
    index.classes = classes
    return _pair(index, files, config, {})


def find_class_tables(root: Path, names: Names) -> list[Path]:
    """Roboflow's tables of mask values, in a folder and in those of its splits."""
    places = [root, *_find_splits(root, names).values()]
    found = [place / CLASS_TABLE for place in places if (place / CLASS_TABLE).is_file()]
    return [path for path in found if [column.lower() for column in columns_of(path)] == CLASS_COLUMNS]


def _read_classes(path: Path) -> dict[int, str]:
    rows = [list(row.values()) for row in read_rows(path)]
    if odd := [row for row in rows if not row[0].isdecimal() or not row[1]]:
        raise UsageError(f"{path}: {', '.join(odd[0])!r} is no mask value with the name of its class")
    return {int(value): name for value, name in rows}


def scan_voc(root: Path, config: DatasetConfig) -> DatasetIndex:
    """The layout of Pascal VOC: JPEGImages, SegmentationClass and the lists of ImageSets/Segmentation.

    Raises:
        UsageError: a folder is missing.
    """
    masks = next((name for name in VOC_MASKS if (root / name).is_dir()), None)
    if not masks or not (root / VOC_IMAGES).is_dir():
        raise UsageError(f"{root}: Pascal VOC has the folders {VOC_IMAGES} and {' or '.join(VOC_MASKS)}")
    changes = {"images": config.images or VOC_IMAGES, "masks": config.masks or masks}
    names = split_names(config.splits)
    lists = any((root / VOC_LISTS / f"{name}.txt").is_file() for known in names.values() for name in known)
    if lists and not config.split_file:
        changes["split_file"] = f"{VOC_LISTS}/{{split}}.txt"
    return scan_folders(root, config.model_copy(update=changes))


def _ids_of_splits(
    index: DatasetIndex, files: Pairs, config: DatasetConfig, renamed: Mapping[str, Mapping[str, str]]
) -> dict[str, list[str]]:
    """Split -> the ids that it should have; lists may hold the shorter ones of `own_names`, too."""
    if not config.split_file:
        return {split: sorted(images.keys() | masks.keys()) for split, (images, masks) in files.items()}
    known = {i for pair in files.values() for kind in pair for i in kind}
    shorter = {short: now for names in reversed([*renamed.values()]) for short, now in names.items()}
    ids = listed_ids(config, index.root, known | shorter.keys())
    for split, members in ids.items():
        here = renamed.get(split) or renamed.get("train") or {}
        ids[split] = sorted(here.get(i) or (i if i in known else shorter.get(i, i)) for i in members)
    own = Counter((split if split in files else "train", i) for split, members in ids.items() for i in members)
    twice = {i: i for (_, i), count in own.items() if count > 1}
    index.report("id_twice", f"{config.split_file} lists ids more than once", twice, "A sample belongs to one split")
    if ids.get("test") and not any(files_of(files, "test", i)[1] for i in ids["test"]):
        logger.warning("%s: no masks for the %d samples of test: it is left out", index.root, len(ids.pop("test")))
    return ids


def listed_ids(config: DatasetConfig, root: Path, known: Collection[str]) -> dict[str, list[str]]:
    """Split -> the ids that `dataset.split_file` lists, which is a JSON file or a pattern of text files.

    Args:
        known: the ids that there are.
    """
    if is_pattern(config.split_file):
        entries = read_split_lists(root, str(config.split_file), split_names(config.splits))
    else:
        entries = read_split_file(find_file(str(config.split_file), root))
    return {split: meant_ids(members, known) for split, members in entries.items()}


def _match_pairs(root: Path, config: DatasetConfig, names: Names) -> tuple[Pairs, dict[Path, dict[str, str]]]:
    """The files that two patterns match; and for masks with `{class}`: the first file's path -> class -> path."""
    if not config.images or not config.masks:
        raise UsageError("patterns come in pairs: set both dataset.images and dataset.masks")
    listed = listed_classes(config, root)
    files: dict[str, tuple[Files, Files]] = {}
    kinds: dict[Path, dict[str, str]] = {}
    for side, matches in enumerate(_matches(root, config.images, config.masks, listed)):
        placed = [(match, "train" if match.split is None else split_of(match.split, names)) for match in matches]
        if not any(split for _, split in placed):
            text = (config.images, config.masks)[side]
            raise UsageError(f"{root}: no pictures match dataset.{('images', 'masks')[side]}={text!r}")
        for match, split in placed:
            if split is not None:
                found = files.setdefault(split, ({}, {}))[side].setdefault(match.id, [])
                if match.kind is None or not found:
                    found.append(match.path)
                if match.kind is not None:
                    kinds.setdefault(found[0], {})[match.kind] = str(match.path)
    return files, kinds


def _matches(root: Path, images: str, masks: str, classes: Sequence[str]) -> tuple[list[Match], list[Match]]:
    """What each of two patterns matches; a file that both match belongs to the narrower one.

    Raises:
        UsageError: neither is narrower.
    """
    both = [
        list(match_files(root, text if is_pattern(text) else f"{text}/**/*.*", classes)) for text in (images, masks)
    ]
    paths = [{match.path for match in matches} for matches in both]
    if shared := paths[0] & paths[1]:
        if shared not in paths or paths[0] == paths[1]:
            raise UsageError(
                f"{root}: dataset.images={images!r} and dataset.masks={masks!r} both match {len(shared)} files, such "
                f"as {min(shared).name}: name what only the masks have in common, as in masks='**/*_mask.png'"
            )
        wider = paths.index(max(paths, key=len))
        both[wider] = [match for match in both[wider] if match.path not in shared]
    return both[0], both[1]


# -- folders ----------------------------------------------------------------------------------------------------------


def find_layout(
    index: DatasetIndex, images: str | None, masks: str | None, names: Names
) -> dict[str, tuple[Path, Path]]:
    """Split -> its folder of images and its folder of masks; splits that lack one of them are problems of the index.

    Raises:
        UsageError: no layout that is known.
    """
    root = index.root
    image_names = (images,) if images else IMAGE_FOLDERS
    mask_names = (masks,) if masks else MASK_FOLDERS
    image_dir, mask_dir = _find_folder(root, image_names), _find_folder(root, mask_names)
    if image_dir and mask_dir:
        image_splits, mask_splits = _find_splits(image_dir, names), _find_splits(mask_dir, names)
        if not image_splits and not mask_splits:
            return {"train": (image_dir, mask_dir)}
        found = {i: (image_splits.get(i), mask_splits.get(i)) for i in SPLITS if i in image_splits or i in mask_splits}
        _remark_rest(index, image_dir, image_splits)
    else:
        inside = _find_splits(root, names)
        found = {i: (_find_folder(inside[i], image_names), _find_folder(inside[i], mask_names)) for i in inside}
    layout = {}
    for split, (image_folder, mask_folder) in found.items():
        if image_folder and mask_folder:
            layout[split] = (image_folder, mask_folder)
        elif image_folder and split == "test":  # often published without masks
            index.remarks.append(f"{image_folder} has no masks: the test split is left out")
        elif folder := image_folder or mask_folder:
            has, lacks = ("images", "masks") if image_folder else ("masks", "images")
            message = f"{index.below(folder)}: {split} has {has} there, but no {lacks}"
            index.problems.append(
                Problem(f"split_without_{lacks}", (index.below(folder),), message, f"Layouts: {LAYOUTS}")
            )
    if not layout and not index.problems:
        inside_root = ", ".join(child.name for child in _folders(root)) or "no folders"
        raise UsageError(
            f"{root}: found no folders of images ({', '.join(image_names)}) and masks ({', '.join(mask_names)}); "
            f"it holds {inside_root}. Layouts: {LAYOUTS}"
        )
    return layout


def _find_folder(parent: Path, names: Iterable[str]) -> Path | None:
    children = {child.name.lower(): child for child in _folders(parent)}
    for name in names:
        if (parent / name).is_dir():
            return parent / name
        if name.lower() in children:
            return children[name.lower()]
    return None


def _find_splits(parent: Path, names: Names) -> dict[str, Path]:
    """Split -> the sub-folder with one of its names."""
    found: dict[str, Path] = {}
    for child in _folders(parent):
        split = split_of(child.name, names)
        if split in found:
            raise UsageError(f"{parent} has {found[split].name} and {child.name}: keep one folder for {split}")
        if split:
            found[split] = child
    return {split: found[split] for split in names if split in found}


def _folders(parent: Path) -> list[Path]:
    return [Path(entry.path) for entry in entries_of(parent)[0]]


def _remark_rest(index: DatasetIndex, parent: Path, splits: Mapping[str, Path]) -> None:
    taken = {folder.name for folder in splits.values()}
    folders, others = entries_of(parent)
    names = [*(entry.name for entry in folders), *(entry.name for entry in others if is_picture(entry.name))]
    rest = sorted(set(names) - taken)
    if rest:
        index.remarks.append(f"{parent}: left out, since no split has these names: {listed(rest)}")


def _files_of_layout(index: DatasetIndex, config: DatasetConfig, names: Names) -> Pairs:
    """The files of folders, else masks beside their images.

    Raises:
        UsageError: neither is there.
    """
    try:
        folders = find_layout(index, config.images, config.masks, names)
    except UsageError as error:
        beside = None if config.images or config.masks else masks_beside(index.root, names)
        if beside is None:
            raise UsageError(f"{error}. {looks_like(index.root)}".removesuffix(". ")) from error
        return beside
    return {split: (list_files(*pair), list_files(*reversed(pair))) for split, pair in folders.items()}


def masks_beside(root: Path, names: Names) -> Pairs | None:
    """Split -> images and masks that lie in the same folders, a_mask.png beside a.png; None where few images have one.

    Splits are folders in `root`; all is train where there are none.
    """
    files: dict[str, tuple[Files, Files]] = {}
    for split, place in (_find_splits(root, names) or {"train": root}).items():
        images, masks = files.setdefault(split, ({}, {}))
        for identity, paths in list_files(place, place).items():
            images[identity] = paths
        for identity in sorted(images, key=len, reverse=True):
            known = further_mask(identity) or identity
            if (match := BESIDE.fullmatch(known)) and match[1] in images:
                masks[match[1] if known == identity else identity] = images.pop(identity)
    counts = [(len(images), len(images.keys() & masks.keys())) for images, masks in files.values()]
    paired = sum(pairs for _, pairs in counts)
    return files if paired and 2 * paired >= sum(total for total, _ in counts) else None


def _remark_masks_left_out(index: DatasetIndex, files: Pairs) -> None:
    """Tell of further masks, a_mask_1.png beside a_mask.png, that neither pattern matches."""
    taken = {path for pair in files.values() for side in pair for paths in side.values() for path in paths}
    masks = {path for _, side in files.values() for paths in side.values() for path in paths}
    left = []
    for folder in sorted({path.parent for path in masks}):
        for path in (Path(entry.path) for entry in entries_of(folder)[1] if is_picture(entry.name)):
            base = further_mask(stem_of(path.name))
            if path not in taken and base and path.with_name(base + suffix_of(path.name)) in masks:
                left.append(path.name)
    if left:
        index.remarks.append(
            f"{index.root}: further masks that no pattern matches are left out ({len(left)}): {listed(left)}; "
            "masks='**/*_mask*.png' would join them"
        )


def list_files(folder: Path, other: Path) -> Files:
    """Id -> the pictures of that name in `folder` and below, without those in `other`."""
    files: Files = {}
    for parent, folders, names in walk_folders(folder):
        folders[:] = [name for name in folders if parent / name != other]
        below = parent.relative_to(folder).as_posix()
        for name in sorted(filter(is_picture, names)):
            stem = stem_of(name)
            identity = unicodedata.normalize("NFC", stem if below == "." else f"{below}/{stem}")
            files.setdefault(identity, []).append(parent / name)
    return files
