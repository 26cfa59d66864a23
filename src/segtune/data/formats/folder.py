"""Image and mask folders: where they lie, also by glob patterns, and the layout of Pascal VOC."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from segtune.data.class_names import find_file, listed_classes, number_classes
from segtune.data.config import DatasetConfig
from segtune.data.formats.pairing import Files, Pairs, keep_same_sizes, match_affixes, pair_up
from segtune.data.index import DatasetIndex, Problem
from segtune.data.splits import SPLITS, Names, meant_ids, read_split_file, read_split_lists, split_names, split_of
from segtune.errors import UsageError, listed
from segtune.imageio.read import is_picture
from segtune.imageio.walk import entries_of, walk_folders

logger = logging.getLogger(__name__)

IMAGE_FOLDERS = ("images", "imgs", "image", "img", "img_dir")
MASK_FOLDERS = ("masks", "labels", "annotations", "mask", "ann_dir", "label")
VOC_IMAGES, VOC_LISTS = "JPEGImages", "ImageSets/Segmentation"
VOC_MASKS = ("SegmentationClassPNG", "SegmentationClass")

LAYOUTS = (
    "images/train + masks/train (val, test), train/images + train/masks, or images + masks; name other folders in "
    "dataset.images and dataset.masks, or patterns such as images='**/*_rgb.png' masks='**/*_label.png'"
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
    else:
        folders = find_layout(index, config.images, config.masks, names)
        files = {split: (list_files(*pair), list_files(*reversed(pair))) for split, pair in folders.items()}
    files = match_affixes(files)
    samples = pair_up(index, files, _ids_of_splits(index, files, config, names))
    if kinds:
        found = sorted({kind for masks in kinds.values() for kind in masks})
        index.classes = number_classes(found, config, root)
        samples = [s._replace(mask_part=json.dumps({"files": kinds[s.mask]})) for s in samples]
    keep_same_sizes(index, samples, config.resize_images)
    for remark in index.remarks:
        logger.warning("%s", remark)
    return index


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


def _ids_of_splits(index: DatasetIndex, files: Pairs, config: DatasetConfig, names: Names) -> dict[str, list[str]]:
    """Split -> the ids that it should have."""
    if not config.split_file:
        return {split: sorted(images.keys() | masks.keys()) for split, (images, masks) in files.items()}
    ids = listed_ids(config, index.root, {i for pair in files.values() for kind in pair for i in kind})
    own = Counter((split if split in files else "train", i) for split, members in ids.items() for i in members)
    twice = {i: i for (_, i), count in own.items() if count > 1}
    index.report("id_twice", f"{config.split_file} lists ids more than once", twice, "A sample belongs to one split")
    masks = (files.get("test") or files.get("train") or ({}, {}))[1]
    if ids.get("test") and not masks.keys() & set(ids["test"]):
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
    for side, text in enumerate((config.images, config.masks)):
        pattern = text if is_pattern(text) else f"{text}/**/*.*"
        matches = [
            (match, "train" if match.split is None else split_of(match.split, names))
            for match in match_files(root, pattern, listed)
        ]
        if not any(split for _, split in matches):
            raise UsageError(f"{root}: no pictures match dataset.{('images', 'masks')[side]}={text!r}")
        for match, split in matches:
            if split is not None:
                found = files.setdefault(split, ({}, {}))[side].setdefault(match.id, [])
                if match.kind is None or not found:
                    found.append(match.path)
                if match.kind is not None:
                    kinds.setdefault(found[0], {})[match.kind] = str(match.path)
    return files, kinds


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


def list_files(folder: Path, other: Path) -> Files:
    """Id -> the pictures of that name in `folder` and below, without those in `other`."""
    files: Files = {}
    for parent, folders, names in walk_folders(folder):
        folders[:] = [name for name in folders if parent / name != other]
        below = parent.relative_to(folder).as_posix()
        for name in sorted(filter(is_picture, names)):
            stem = name.rpartition(".")[0]
            identity = unicodedata.normalize("NFC", stem if below == "." else f"{below}/{stem}")
            files.setdefault(identity, []).append(parent / name)
    return files


PARTS = re.compile(r"\*\*/|\*|\?+|\{split\}|\{class\}|\.\*$")


class Match(NamedTuple):
    """A file, and what the pattern's wildcards, `{split}` and `{class}` stand for in its name."""

    path: Path
    id: str
    split: str | None
    kind: str | None


def is_pattern(text: str | None) -> bool:
    """Whether a text stands for many files."""
    return text is not None and PARTS.search(text) is not None


def match_files(root: Path, pattern: str, classes: Sequence[str] = ()) -> Iterator[Match]:
    """The pictures and arrays below `root` whose path matches, sorted; hidden files and folders are passed over.

    `*` stands for anything within a name, `**/` for any folders, `?` for one character and `???` for three, `.*` at the
    end for the suffix of any picture. The id of a file is what the wildcards stand for, "/" between them. A second
    `{split}` or `{class}` stands for the same word as the first.

    Args:
        classes: what `{class}` may stand for; anything within a name where there are none.

    Raises:
        UsageError: the pattern leaves the folder, or has other words in braces.
    """
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts or re.search(r"[{}]", PARTS.sub("", pattern)):
        raise UsageError(f"{pattern!r}: a pattern is a path below dataset.path with *, **/, ?, {{split}} or {{class}}")
    found = PARTS.search(pattern)
    fixed = (pattern[: found.start()] if found else pattern).rpartition("/")[0]
    expression = re.compile(_expression(pattern, classes))
    for parent, _, names in walk_folders(root / fixed):
        below = parent.relative_to(root).as_posix()
        for name in sorted(filter(is_picture, names)):
            path = name if below == "." else f"{below}/{name}"
            if match := expression.fullmatch(unicodedata.normalize("NFC", path)):
                named = match.groupdict()
                wild = [named[part].strip("/") for part in named if part.startswith("any")]
                identity = "/".join(filter(None, wild))
                yield Match(parent / name, identity, named.get("split"), named.get("kind"))


def _expression(pattern: str, classes: Sequence[str]) -> str:
    """The regular expression of a pattern."""
    parts, position = [], 0
    seen: set[str] = set()
    for number, found in enumerate(PARTS.finditer(pattern)):
        parts.append(re.escape(pattern[position : found.start()]))
        position = found.end()
        word = found[0]
        if word == ".*" and found.end() == len(pattern):
            parts.append(r"\.[^./]+")
        elif word[0] == "{":
            name = {"{split}": "split", "{class}": "kind"}[word]
            choice = "|".join(map(re.escape, classes)) if name == "kind" and classes else "[^/]+?"
            parts.append(f"(?i:(?P={name}))" if name in seen else f"(?P<{name}>{choice})")
            seen.add(name)
        else:
            wild = {"**/": "(?:[^/]+/)*", "*": "[^/]*?"}.get(word, f"[^/]{{{len(word)}}}")
            parts.append(f"(?P<any{number}>{wild})")
    return "".join([*parts, re.escape(pattern[position:])])
