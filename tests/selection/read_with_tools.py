"""Reads a folder with an annotation tool's own library, in an environment that has it: TOOL FOLDER OUT.npz.

OUT has a map of class numbers for each image, by the order of labels.txt or of the file's own labels; 255 is nothing.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np


def read_labelme(folder: Path, names: list[str]) -> dict[str, Any]:
    from labelme.label_file import LabelFile
    from labelme.utils import img_data_to_arr, shape_to_mask

    found = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == "classes.json":
            continue
        file = LabelFile(str(path))
        size = img_data_to_arr(file.imageData).shape[:2]
        found[path.stem] = np.full(size, 255, np.uint8)
        for shape in file.shapes:
            mask = shape_to_mask(size, shape["points"], shape_type=shape["shape_type"])
            found[path.stem][mask] = names.index(shape["label"])
    return found


def read_cvat(folder: Path, names: list[str]) -> dict[str, Any]:
    import datumaro

    dataset = datumaro.Dataset.import_from(str(folder), "cvat")
    own = [label.name for label in dataset.categories()[datumaro.AnnotationType.label]]
    dataset.transform("polygons_to_masks")
    found = {}
    for item in dataset:
        height, width = item.media.data.shape[:2]
        found[item.id] = np.full((height, width), 255, np.uint8)
        for mask in sorted(item.annotations, key=lambda each: each.z_order):
            found[item.id][np.asarray(mask.image, bool)] = names.index(own[mask.label])
    return found


def read_labelstudio(folder: Path, names: list[str]) -> dict[str, Any]:
    from label_studio_sdk.converter import Converter
    from pycocotools.coco import COCO

    interface = (folder / "import" / "interface.xml").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as out:
        converter = Converter(interface, project_dir=out, download_resources=False)
        converter.convert_to_coco(str(folder / "export.json"), out, is_dir=False)
        coco = COCO(str(Path(out) / "result.json"))
    found = {}
    for image in coco.imgs.values():
        stem = Path(unquote(image["file_name"])).stem
        found[stem] = np.full((image["height"], image["width"]), 255, np.uint8)
        for annotation in coco.loadAnns(sorted(coco.getAnnIds(image["id"]))):
            category = coco.cats[annotation["category_id"]]["name"]
            found[stem][coco.annToMask(annotation).astype(bool)] = names.index(category)
    return found


if __name__ == "__main__":
    tool, folder, names, out = sys.argv[1:]
    read = {"labelme": read_labelme, "cvat": read_cvat, "labelstudio": read_labelstudio}[tool]
    np.savez(out, **read(Path(folder), json.loads(names)))
