"""Folders of images and masks: where they lie, which files belong together, and what is wrong with the others."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import PIL.Image

from segtune.data.scan import Problem, Sample, Scan, first, in_threads
from segtune.data.splits import SPLITS, read_split_file
from segtune.errors import UsageError

logger = logging.getLogger(__name__)

IMAGE_FOLDERS = ("images", "imgs", "image", "img", "img_dir")
MASK_FOLDERS = ("masks", "labels", "annotations", "mask", "ann_dir", "label")
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".ppm", ".pgm"}
ORIENTATION = PIL.Image.ExifTags.Base.Orientation
TURNED = (5, 6, 7, 8)  # the EXIF orientations that swap height and width

LAYOUTS = (
    "images/train + masks/train (val, test), train/images + train/masks, or images + masks; "
    "name other folders in dataset.images and dataset.masks"
)
SAME_NAME = "An image and its mask have the same name apart from the suffix: add, rename or remove files"

PAIR_PROBLEMS = {
    "image_without_mask": "images without a mask",
    "mask_without_image": "masks without an image",
    "name_twice": "files that share a name",
    "id_without_files": "ids of the split file without files",
    "empty_split": f"splits without pictures ({' '.join(sorted(SUFFIXES))})",
}

Files = dict[str, list[Path]]  # id -> the pictures of that name


def scan_folders(root: Path, images: str | None, masks: str | None, split_file: Path | None = None) -> Scan:
    """Pair the images and masks of a folder by their names; only headers are read.

    Args:
        images: sub-folder of the images, where it has none of the usual names; `masks` likewise.
        split_file: JSON {"train": [ids], "val": [ids], "test": [ids]}; other files are then left out.

    Raises:
        UsageError: no layout that is known, or no split file of this form.
    """
    scan = Scan(root)
    folders = find_layout(scan, images, masks)
    files = {split: (list_files(*pair), list_files(*reversed(pair))) for split, pair in folders.items()}
    if split_file:
        ids = read_split_file(split_file)
        own = Counter((split if split in files else "train", i) for split, members in ids.items() for i in members)
        if twice := tuple(i for (_, i), count in own.items() if count > 1):
            message = f"{split_file} lists ids more than once: {first(twice)}"
            scan.problems.append(Problem("id_twice", twice, message, "A sample belongs to one split"))
    else:
        ids = {split: sorted(found[0].keys() | found[1].keys()) for split, found in files.items()}
    _keep_same_sizes(scan, list(_pair(scan, files, ids)))
    return scan


def find_layout(scan: Scan, images: str | None, masks: str | None) -> dict[str, tuple[Path, Path]]:
    """Split -> its folder of images and its folder of masks; splits that lack one of them are problems of the scan.

    Raises:
        UsageError: no layout that is known.
    """
    root = scan.root
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
        elif folder := image_folder or mask_folder:
            has, lacks = ("images", "masks") if image_folder else ("masks", "images")
            message = f"{scan.below(folder)}: {split} has {has} there, but no {lacks}"
            scan.problems.append(
                Problem(f"split_without_{lacks}", (scan.below(folder),), message, f"Layouts: {LAYOUTS}")
            )
    if not layout and not scan.problems:
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
        logger.warning("%s: left out, since no split has these names: %s", parent, first(rest))


def _is_picture(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in SUFFIXES


def list_files(folder: Path, other: Path) -> dict[str, list[Path]]:
    """Id -> the pictures of that name in `folder` and below, without those in `other`."""
    files: dict[str, list[Path]] = {}
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and Path(parent, name) != other]
        for path in sorted(Path(parent, name) for name in names):
            if _is_picture(path):
                below = path.relative_to(folder).with_suffix("").as_posix()
                files.setdefault(unicodedata.normalize("NFC", below), []).append(path)
    return files


# -- pairs ------------------------------------------------------------------------------------------------------------


def _pair(scan: Scan, files: Mapping[str, tuple[Files, Files]], ids: Mapping[str, Sequence[str]]) -> Iterator[Sample]:
    """The samples with both files; a split without folders of its own takes its files from train."""
    found: dict[str, dict[str, str]] = {kind: {} for kind in PAIR_PROBLEMS}
    for split, wanted in ids.items():
        images, masks = files.get(split) or files.get("train") or ({}, {})
        if not wanted:
            found["empty_split"][split] = split
        for i in wanted:
            here = images.get(i, []), masks.get(i, [])
            names = [[scan.below(path) for path in paths] for paths in here]
            found["name_twice"] |= {twice[0]: " + ".join(twice) for twice in names if len(twice) > 1}
            if not any(here):
                found["id_without_files"][i] = i
            elif not here[1]:
                found["image_without_mask"][names[0][0]] = names[0][0]
            elif not here[0]:
                found["mask_without_image"][names[1][0]] = names[1][0]
            else:
                yield Sample(i, split, here[0][0], here[1][0])
    for kind, what in PAIR_PROBLEMS.items():
        scan.report(kind, what, found[kind], SAME_NAME)


def _keep_same_sizes(scan: Scan, samples: Sequence[Sample]) -> None:
    """Give the scan the samples whose files can be read and have the same size."""
    unreadable: dict[str, str] = {}
    different: dict[str, str] = {}
    found = in_threads(lambda sample: (read_size(sample.image), read_size(sample.mask)), samples, "reading headers")
    for sample, sizes in zip(samples, found, strict=True):
        files = [scan.below(path) for path in (sample.image, sample.mask)]
        shown = [f"{file} ({size})" for file, size in zip(files, sizes, strict=True)]
        broken = [i for i, size in enumerate(sizes) if isinstance(size, Exception)]
        unreadable |= {files[i]: shown[i] for i in broken}
        if isinstance(sizes[0], tuple) and sizes[0] == sizes[1]:
            scan.samples.append(sample._replace(size=sizes[0]))
        elif not broken:
            different[files[0]] = f"{shown[0]} and {shown[1]}"
    fix = "Replace these files or remove both partners (an image counts as its EXIF orientation turns it)"
    scan.report("unreadable", "files that cannot be read", unreadable, fix)
    scan.report("size_mismatch", "partners of different (height, width)", different, fix)


def read_size(path: Path) -> tuple[int, int] | Exception:
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
