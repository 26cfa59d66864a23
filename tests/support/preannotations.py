"""Scenes of predicted classes, written for annotation tools and read back by segtune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset
from segtune.imageio.read import read_mask
from segtune.labels.label_map import LabelMap
from segtune.selection.preannotate import Form, PreAnnotated, Tool, flat_names, write_annotations

NAMES = ["sky", "road", "car", "absent"]  # neither in the order of the alphabet, nor all there
PLAIN = LabelMap.from_names(NAMES, [(0, 0, 255), (128, 0, 0), (0, 200, 0), (1, 2, 3)])


def scene(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth regions with holes in holes, single pixels, and regions that touch at a corner."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    labels = (smooth // 86).astype(np.uint8)
    labels[8:20, 8:24], labels[10:18, 10:22], labels[12:16, 12:20] = 0, 1, 2
    labels[13, 14] = 0
    labels[30:34, 30:34] = np.indices((4, 4)).sum(0) % 2
    return labels


def write(folder: Path, tool: Tool, maps: dict[str, np.ndarray], label_map: LabelMap, **form: Any) -> Path:
    """The folder for a tool, of pictures of noise."""
    pool = folder / "pool"
    pool.mkdir(parents=True)
    images = []
    for name, labels in maps.items():
        noise = np.random.default_rng(len(images)).integers(0, 255, (*labels.shape, 3), dtype=np.uint8)
        Image.fromarray(noise).save(pool / name)
        images.append(PreAnnotated(pool / name, labels, 0.5))
    target = folder / tool
    names = flat_names(image.path for image in images)
    write_annotations(target, images, names, label_map, Form(tool, **form), "runs/x")
    if tool == "labelstudio":  # whose export has what was accepted as an annotation
        tasks = json.loads((target / "import" / "tasks.json").read_text(encoding="utf-8"))
        for number, task in enumerate(tasks):
            task |= {"id": number, "annotations": [{"result": task.pop("predictions")[0]["result"]}]}
        (target / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    return target


def masks_of(folder: Path) -> tuple[dict[str, np.ndarray], LabelMap]:
    """The training ids that segtune reads, by the names of the images; nothing is said about the format."""
    dataset, label_map = open_dataset(DatasetConfig(path=str(folder), val_fraction=0))
    rows = dataset["train"]
    return {Path(row["id"]).name: label_map.encode(read_mask(row["mask"])) for row in rows}, label_map
