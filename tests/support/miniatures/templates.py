"""What the templates my-folder, my-binary and my-coco are for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from support.miniatures.drawing import SPLITS, Miniature, save


def my_folder(root: Path) -> Miniature:
    mini = Miniature({"background": 0, "road": 1, "car": 2, "[void]": 255})
    for split in ("train", "val"):
        for i in [f"{split}{number}" for number in range(SPLITS[split])]:
            image, mask = mini.draw(split, i)
            save(image, root / f"images/{split}/{i}.jpg", quality=95)
            save(mask, root / f"masks/{split}/{i}.png")
    return mini


def my_binary(root: Path) -> Miniature:
    mini = Miniature({"background": 0, "crack": 255})
    for number in range(10):
        image, mask = mini.draw("train", str(number))
        save(image, root / f"images/{number}.jpg", quality=95)
        save(mask, root / f"masks/{number}.png")
    return mini


def my_coco(root: Path) -> Miniature:
    """Uncompressed run lengths of each class, which say every pixel."""
    mini = Miniature({"background": 0, "road": 1, "car": 2})
    categories = [{"id": 3, "name": "road"}, {"id": 7, "name": "car"}]
    for split in ("train", "val"):
        images, annotations = [], []
        for number in range(SPLITS[split]):
            name = f"{split}{number}"
            image, mask = mini.draw(split, name)
            save(image, root / f"{split}/{name}.jpg", quality=95)
            images.append({"id": number, "file_name": f"{name}.jpg", "height": mask.shape[0], "width": mask.shape[1]})
            for value, category in ((1, 3), (2, 7)):
                ends = np.flatnonzero(np.diff(np.concatenate([[0], (mask == value).T.ravel(), [2]]).astype(int)))
                counts = np.diff(np.concatenate([[0], ends])).tolist()
                outline = {"size": list(mask.shape), "counts": counts}
                entry = {"id": len(annotations), "image_id": number, "category_id": category, "iscrowd": 0}
                annotations.append({**entry, "segmentation": outline})
        path = root / f"annotations/instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return mini
