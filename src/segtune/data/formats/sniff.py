"""File type detection: what kind of annotation file it is, by its first bytes."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from segtune.data.splits import Names, split_in, split_of
from segtune.errors import UsageError, listed
from segtune.files import decode_text, utf_16_of
from segtune.imageio.walk import walk_files

HEAD = 2**16
COCO_KEYS = ("images", "annotations", "categories")
NOT_MASKS = ("captions_", "person_keypoints_", "image_info_")  # of COCO
VIA_ENTRY = {"filename", "regions", "file_attributes"}
SUPERVISELY_FILE = {"objects", "size", "tags"}


def json_kind(path: Path) -> str | None:
    """ "coco", "labelme", "label_studio", "via" or "supervisely", where a JSON file begins like one of them."""
    first, keys = json_keys(path)
    if first == "[" and ("original_width" in keys or {"annotations", "data"} <= keys):
        return "label_studio"
    if first != "{":
        return None
    if "shapes" in keys and keys & {"imagePath", "imageData", "imageHeight"}:
        return "labelme"
    if "_via_img_metadata" in keys or keys >= VIA_ENTRY:
        return "via"
    if keys >= SUPERVISELY_FILE or {"objects", "classTitle"} <= keys:
        return "supervisely"
    if {"images", "annotations"} & keys and len(keys & {*COCO_KEYS, "info"}) >= 2:
        return None if path.name.startswith(NOT_MASKS) else "coco"
    return None


def json_keys(path: Path) -> tuple[str, set[str]]:
    """The first sign of a JSON file, and the keys in its first and last bytes, on whatever level."""
    with path.open("rb") as file:
        content = file.read(HEAD)
        head, wide = decode_text(content, "ignore").lstrip(), utf_16_of(content)
        file.seek(max(0, path.stat().st_size - HEAD // 4) // 2 * 2)
        tail = file.read().decode("utf-16-be" if wide == "utf-16-be" else "utf-16-le" if wide else "utf-8", "ignore")
    return head[:1], set(re.findall(r'"([\w -]+)"\s*:', head + tail))


def is_cvat(path: Path) -> bool:
    """Whether an XML file is an export of CVAT."""
    with path.open("rb") as file:
        head = decode_text(file.read(HEAD), "ignore")
    return re.search(r"<annotations>\s*(<version>|<meta>|<image\b|<track\b)", head) is not None


def files_of_splits(root: Path, given: str | None, names: Names, found: Collection[Path], what: str) -> dict[str, Path]:
    """Split -> its annotation file, for formats that have one file for all images of a split.

    Args:
        given: `dataset.masks`.
        found: the files of the format below `root`, where none is given.
        what: they are, for errors.

    Raises:
        UsageError: there is none, or there are several for one split.
    """
    if given:
        known = {split: [given.replace("{split}", name) for name in words] for split, words in names.items()}
        candidates = known if "{split}" in given else {"train": [given]}
        paths = {
            split: [root / name for name in files if (root / name).is_file()] for split, files in candidates.items()
        }
    else:
        paths = {}
        for path in found:
            paths.setdefault(_split_of_file(root, path, names) if len(found) > 1 else "train", []).append(path)
    for split, several in paths.items():
        if len(several) > 1:
            shown = listed([str(path.relative_to(root)) for path in several])
            raise UsageError(f"{root} has several {what} for {split}: {shown}; choose with dataset.masks")
    if not any(paths.values()):
        there = listed([path.relative_to(root).as_posix() for path in walk_files(root, ".json", depth=1)])
        raise UsageError(
            f"{root}: no {what} {given or 'in it'}; name one in dataset.masks"
            + (f" (there are {there})" if there else "")
        )
    return {split: several[0] for split, several in paths.items() if several}


def _split_of_file(root: Path, path: Path, names: Names) -> str:
    """By a folder, else by a word of the file's name; train where neither names a split."""
    folders = (split_of(part, names) for part in path.relative_to(root).parts[:-1])
    return next(filter(None, folders), None) or split_in(path.stem, names) or "train"
