"""Pairing images with masks: by their names, of one size, and on one grid."""

from __future__ import annotations

import json
import logging
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from segtune.data.formats.foreign import unread_files
from segtune.data.index import DatasetIndex, Sample, in_threads
from segtune.imageio import geotiff, medical
from segtune.imageio.read import SUFFIXES, TIFFS, Header, ReadError, stem_of, suffix_of, try_header

logger = logging.getLogger(__name__)

SAME_NAME = "An image and its mask have the same name apart from the suffix: add, rename or remove files"
NO_NAME_IN_COMMON = (
    "No image and mask share a name: give dataset.images and dataset.masks as patterns of what they have in common, "
    "such as images='images/{split}/*_rgb.png' masks='masks/{split}/*_label.png'"
)
LISTED = "Ids are the names of the images, with or without their folders and suffix"
PAIR_PROBLEMS = {
    "image_without_mask": "images without a mask",
    "mask_without_image": "masks without an image",
    "name_twice": "files that share a name",
    "id_without_files": "ids of the split file without files",
    "empty_split": f"splits without pictures ({' '.join(sorted(SUFFIXES))})",
}

_WORDS = "(?:masks?|labels?|gt|seg|segmentation|annotation)"  # that names of masks end with
BESIDE = re.compile(rf"(.+)[ _.-]{_WORDS}", re.IGNORECASE)
FURTHER = re.compile(rf"(.*{_WORDS})[ _-]?\d+", re.IGNORECASE)

Files = dict[str, list[Path]]  # id -> the pictures of that name
Pairs = Mapping[str, tuple[Files, Files]]  # split -> images and masks


def match_affixes(files: Pairs) -> Pairs:
    """The files under ids that images and masks share, where their names differ in what all images, or all masks,
    begin or end with (img_1 and mask_1, a_leftImg8bit and a_gtFine_labelTrainIds), in leading zeros (7 and 0007), in
    capitals or in their folders; else as they are."""
    images = [i for pair in files.values() for i in pair[0]]
    masks = [i for pair in files.values() for i in pair[1]]
    if not images or not masks or set(images) & set(masks):
        return files
    for shorten in (_in_lower_case, _without_suffix, _without_prefix, _without_both, _as_numbers, _without_folders):
        short_images, short_masks = shorten(images), shorten(masks)
        common = set(short_images.values()) & set(short_masks.values())
        unique = all(len(set(short.values())) == len(short) for short in (short_images, short_masks))
        if unique and 2 * len(common) >= min(len(images), len(masks)):
            example = next(i for i in images if short_images[i] in common)
            partner = next(i for i in masks if short_masks[i] == short_images[example])
            logger.info("paired by the part of their names that differs: %s with %s, and so on", example, partner)
            return {
                split: (
                    {short_images[i]: paths for i, paths in pair[0].items()},
                    {short_masks[i]: paths for i, paths in pair[1].items()},
                )
                for split, pair in files.items()
            }
    return files


def own_names(files: Pairs) -> tuple[Pairs, dict[str, dict[str, str]]]:
    """The files under the images' own names, which patterns and `match_affixes` cut short: 21_training instead of 21.

    The folders in an id stay. All ids stay where an image has another name than what its id ends with, or where two
    would become one.

    Returns:
        The files; split -> id before -> id now.
    """
    renamed: dict[str, dict[str, str]] = {}
    for split, (images, masks) in files.items():
        found = {i: _own_name(i, paths) for i, paths in images.items()}
        after = [*found.values(), *(masks.keys() - images.keys())]
        if not all(found.values()) or len(set(after)) < len(after):
            return files, {}
        renamed[split] = {before: now for before, now in found.items() if now is not None}
    named = {
        split: tuple({renamed[split].get(i, i): paths for i, paths in side.items()} for side in pair)
        for split, pair in files.items()
    }
    return {split: (images, masks) for split, (images, masks) in named.items()}, renamed


def further_mask(name: str) -> str | None:
    """The name of an image's first mask, of that of another one: a_mask of a_mask_1; None where it is no such name."""
    match = FURTHER.fullmatch(name)
    return match[1] if match else None


def join_further(files: Pairs) -> tuple[Pairs, dict[Path, list[Path]]]:
    """The files without further masks of an image that lie beside its first one: a_mask.png and a_mask_1.png.

    Files that have a partner of their own stay where they are.

    Returns:
        The files; first mask -> the further ones.
    """
    further: dict[Path, list[Path]] = {}
    kept: dict[str, tuple[Files, Files]] = {}
    for split, pair in files.items():
        lonely = pair[0].keys() ^ pair[1].keys()
        if not lonely:
            kept[split] = pair
            continue
        masks = {path for paths in pair[1].values() for path in paths}
        sides: list[Files] = []
        for side in pair:
            sides.append({})
            for i, paths in side.items():
                stem, suffix = stem_of(paths[0].name), paths[0].name[len(stem_of(paths[0].name)) :]
                base = further_mask(stem) if i in lonely else None
                first = paths[0].with_name(f"{base}{suffix}")
                if base and first in masks:
                    further.setdefault(first, []).extend(paths)
                else:
                    sides[-1][i] = paths
        kept[split] = sides[0], sides[1]
    return kept, further


def pair_up(index: DatasetIndex, files: Pairs, ids: Mapping[str, Sequence[str]]) -> list[Sample]:
    """The samples with both files, see `files_of`."""
    samples = []
    found: dict[str, dict[str, str]] = {kind: {} for kind in PAIR_PROBLEMS}
    for split, wanted in ids.items():
        if not wanted:
            found["empty_split"][split] = split
        for i in wanted:
            here = files_of(files, split, i)
            if all(here):
                samples.append(Sample(i, split, here[0][0], here[1][0]))
            if len(here[0]) == len(here[1]) == 1:
                continue
            names = [[index.below(path) for path in paths] for paths in here]
            found["name_twice"] |= {twice[0]: " + ".join(twice) for twice in names if len(twice) > 1}
            if not any(here):
                found["id_without_files"][i] = i
            elif not here[1]:
                found["image_without_mask"][names[0][0]] = names[0][0]
            elif not here[0]:
                found["mask_without_image"][names[1][0]] = names[1][0]
    lonely = found["image_without_mask"] and found["mask_without_image"] and not samples
    fix = NO_NAME_IN_COMMON if lonely else SAME_NAME
    alone = [*found["image_without_mask"], *found["mask_without_image"]]
    if alone or found["empty_split"]:
        fix = unread_files(index.root, {PurePath(name).stem for name in alone}) or fix
    for kind, what in PAIR_PROBLEMS.items():
        index.report(kind, what, found[kind], LISTED if kind == "id_without_files" else fix)
    return samples


def files_of(files: Pairs, split: str, i: str) -> tuple[list[Path], list[Path]]:
    """The images and masks of an id: of the split's own folders, else of train's, else of any that have the id.

    So a split file may divide the samples anew, whichever folders they lie in.
    """
    own = files.get(split) or files.get("train") or ({}, {})
    images, masks = next((pair for pair in (own, *files.values()) if i in pair[0] or i in pair[1]), own)
    return images.get(i, []), masks.get(i, [])


def keep_same_sizes(index: DatasetIndex, samples: Sequence[Sample], resize_images: bool = False) -> None:
    """Give the index the samples whose files can be read, have the same size and lie on the same grid; note the rest.

    Args:
        resize_images: also those whose image has its mask's shape but not its size; it is resized when it is read.
    """
    faults: dict[str, dict[str, str]] = {"unreadable": {}, "size_mismatch": {}, "grid_mismatch": {}}
    found = in_threads(_read_headers, samples, "reading headers")
    for each, (headers, on_one_grid) in zip(samples, found, strict=True):
        frames = tuple(getattr(header, "frames", 1) for header in headers)
        sample = each._replace(frames=(frames[0], frames[1]))
        index.lossy += [each.mask] if getattr(headers[1], "lossy", False) else []
        sizes = tuple(header if isinstance(header, ReadError) else header.size for header in headers)
        if isinstance(sizes[0], tuple) and sizes[0] == sizes[1] and on_one_grid:
            index.samples.append(sample._replace(size=sizes[0]))
            continue
        if resize_images and isinstance(sizes[1], tuple) and _same_shape(*sizes) and on_one_grid:
            index.samples.append(sample._replace(size=sizes[1], image_part=json.dumps({"size": sizes[1]})))
            continue
        index.rejected.append(sample)
        files = [index.below(path) for path in (sample.image, sample.mask)]
        shown = [f"{file} ({getattr(size, 'reason', size)})" for file, size in zip(files, sizes, strict=True)]
        broken = {files[i]: shown[i] for i, size in enumerate(sizes) if isinstance(size, ReadError)}
        faults["unreadable"] |= broken
        if not broken and sizes[0] != sizes[1]:
            faults["size_mismatch"][files[0]] = f"{shown[0]} and {shown[1]}"
        elif not broken:
            faults["grid_mismatch"][files[0]] = f"{files[0]} and {files[1]}"
    fix = "Replace these files or remove both partners (an image counts as its EXIF orientation turns it)"
    index.report("unreadable", "files that cannot be read", faults["unreadable"], fix)
    index.report("size_mismatch", "partners of different (height, width)", faults["size_mismatch"], fix)
    fix = (
        "Bring the mask onto the grid of its image first: GeoTIFF with rasterio.warp.reproject, NIfTI with "
        "nibabel.processing.resample_from_to(mask, image, order=0)"
    )
    index.report("grid_mismatch", "partners that lie elsewhere in the world", faults["grid_mismatch"], fix)


def _same_shape(one: tuple[int, int] | ReadError, other: tuple[int, int] | ReadError) -> bool:
    """Whether one size is a multiple of the other, up to the rounding of a side."""
    if isinstance(one, ReadError) or isinstance(other, ReadError):
        return False
    return abs(one[0] * other[1] - one[1] * other[0]) < max(*one, *other)


def _read_headers(sample: Sample) -> tuple[tuple[Header | ReadError, ...], bool]:
    """The headers of both files, and whether they lie on one grid."""
    paths = sample.image, sample.mask
    headers = tuple(map(try_header, paths))
    kinds = {suffix_of(path.name) for path in paths}
    grid_of = geotiff.grid_of if kinds <= TIFFS else medical.grid_of if kinds <= medical.NIFTI else None
    if grid_of is None or any(isinstance(header, ReadError) for header in headers):
        return headers, True
    return headers, geotiff.same_grid(*map(grid_of, paths))


# -- names that differ ------------------------------------------------------------------------------------------------


def _without_suffix(ids: Sequence[str]) -> dict[str, str]:
    """Id -> id without what all names end with, from a sign that is no letter or digit on."""
    common = os.path.commonprefix([i[::-1] for i in ids])[::-1]  # noqa: RUF071
    start = re.search(r"[\W_]", common)
    count = len(common) - start.start() if start else 0
    return {i: i[: len(i) - count] for i in ids}


def _without_prefix(ids: Sequence[str]) -> dict[str, str]:
    """Id -> id without what all names in its folder's place begin with, up to a sign that is no letter or digit."""
    names = [i.rpartition("/")[2] for i in ids]
    count = len(re.sub(r"[^\W_]*$", "", os.path.commonprefix(names)))  # noqa: RUF071
    return {i: i[: len(i) - len(name)] + name[count:] for i, name in zip(ids, names, strict=True)}


def _without_both(ids: Sequence[str]) -> dict[str, str]:
    first = _without_prefix(ids)
    second = _without_suffix(list(first.values()))
    return {i: second[first[i]] for i in ids}


def _without_folders(ids: Sequence[str]) -> dict[str, str]:
    """Id -> its last name, without leading zeros."""
    return {i: name.rpartition("/")[2] for i, name in _as_numbers(ids).items()}


def _own_name(identity: str, paths: Sequence[Path]) -> str | None:
    """The id that ends with the image's whole name; None where the id is made of other parts of its path."""
    stems = {unicodedata.normalize("NFC", stem_of(path.name)) for path in paths}
    *folders, last = identity.split("/")
    above = {unicodedata.normalize("NFC", part) for part in paths[0].parts[:-1]}
    stem = stems.pop()
    return "/".join([*folders, stem]) if not stems and last in stem and set(folders) <= above else None


def _in_lower_case(ids: Sequence[str]) -> dict[str, str]:
    return {i: i.lower() for i in ids}


def _as_numbers(ids: Sequence[str]) -> dict[str, str]:
    """Id -> id without leading zeros."""
    return {i: re.sub(r"(?<!\d)0+(?=\d)", "", i) for i in ids}
