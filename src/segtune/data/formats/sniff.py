"""File type detection: what kind of annotation file it is, by its first bytes."""

from __future__ import annotations

import re
from pathlib import Path

HEAD = 2**16
COCO_KEYS = ("images", "annotations", "categories")
NOT_MASKS = ("captions_", "person_keypoints_", "image_info_")  # of COCO


def json_kind(path: Path) -> str | None:
    """ "coco", "labelme" or "label_studio", where a JSON file begins like one of them."""
    with path.open("rb") as file:
        head = file.read(HEAD).decode("utf-8-sig", errors="ignore").lstrip()
        file.seek(max(0, path.stat().st_size - HEAD // 4))
        tail = file.read().decode("utf-8", errors="ignore")
    keys = set(re.findall(r'"(\w+)"\s*:', head + tail))
    if head.startswith("[") and ("original_width" in keys or {"annotations", "data"} <= keys):
        return "label_studio"
    if head.startswith("{") and "shapes" in keys and keys & {"imagePath", "imageData", "imageHeight"}:
        return "labelme"
    if head.startswith("{") and {"images", "annotations"} & keys and len(keys & {*COCO_KEYS, "info"}) >= 2:
        return None if path.name.startswith(NOT_MASKS) else "coco"
    return None


def is_cvat(path: Path) -> bool:
    """Whether an XML file is an export of CVAT."""
    with path.open("rb") as file:
        head = file.read(HEAD).decode("utf-8-sig", errors="ignore")
    return re.search(r"<annotations>\s*(<version>|<meta>|<image\b|<track\b)", head) is not None
