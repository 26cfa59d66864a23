"""Data sets that `datasets` reads: a folder of save_to_disk and repositories of the Hub."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset, DatasetDict, Features, Image, Sequence, Value

from support.miniatures.drawing import SPLITS, Miniature

PUBLISHED = Path(__file__).resolve().parents[3] / "src" / "segtune" / "data" / "published"


def scene_parse_150(root: Path) -> Miniature:
    mini = Miniature({"[other]": 0, "wall": 1, "bed": 8, "chest of drawers": 45, "flag": 150})
    features = Features({"image": Image(), "annotation": Image(), "scene_category": Value("int64")})
    tables = {}
    for split, name in {"train": "train", "test": "test", "val": "validation"}.items():
        columns = rows(mini, split, "image", "annotation") | {"scene_category": [0] * SPLITS[split]}
        if split == "test":
            columns["annotation"] = [None] * SPLITS[split]
        tables[name] = Dataset.from_dict(columns, features=features)
    DatasetDict(tables).save_to_disk(str(root))
    return mini


def sidewalk_semantic(root: Path) -> Miniature:
    """The files of the repository, below `root`."""
    published = json.loads((PUBLISHED / "sidewalk-semantic.json").read_text(encoding="utf-8"))["classes"]
    names = ["unlabeled", *(entry["name"] for entry in published[1:])]
    mini = Miniature({"[unlabeled]": 0, "flat-road": 1, "sky": 30, "nature-vegetation": 28, "void-unclear": 34})
    features = Features({"pixel_values": Image(), "label": Image()})
    _repository(root, names, {"train": Dataset.from_dict(rows(mini, "train", "pixel_values", "label", 10), features)})
    return mini


def foodseg103(root: Path) -> Miniature:
    """The files of the repository, below `root`; most names are made up."""
    names = ["background", "candy", *(f"food {number}" for number in range(2, 103)), "other ingredients"]
    mini = Miniature({"background": 0, "candy": 1, "food 51": 51, "other ingredients": 103})
    features = Features(
        {"image": Image(), "label": Image(), "classes_on_image": Sequence(Value("int64")), "id": Value("int64")}
    )
    tables = {}
    for split, name in {"train": "train", "val": "validation"}.items():
        columns = rows(mini, split, "image", "label", form="{}")
        count = len(columns["image"])
        columns |= {"classes_on_image": [[0, 1, 51]] * count, "id": list(range(count))}
        tables[name] = Dataset.from_dict(columns, features)
    _repository(root, names, tables)
    return mini


def rows(
    mini: Miniature, split: str, image: str, mask: str, count: int | None = None, form: str = "{:06d}"
) -> dict[str, list[Any]]:
    """Columns of encoded pictures; the id of a sample is the number of its row, in a form."""
    drawn = [mini.draw(split, form.format(row)) for row in range(count or SPLITS[split])]
    return {image: [encoded(picture, "JPEG") for picture, _ in drawn], mask: [encoded(m, "PNG") for _, m in drawn]}


def encoded(picture: PIL.Image.Image | np.ndarray, format: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture = picture if isinstance(picture, PIL.Image.Image) else PIL.Image.fromarray(picture)
    picture.save(buffer, format, **({"quality": 95} if format == "JPEG" else {}))
    return {"bytes": buffer.getvalue(), "path": None}


def _repository(root: Path, names: list[str], tables: Mapping[str, Dataset]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "id2label.json").write_text(json.dumps({str(i): name for i, name in enumerate(names)}))
    (root / "README.md").write_text("# A data set\n")
    for split, table in tables.items():
        (root / "data").mkdir(exist_ok=True)
        table.to_parquet(root / f"data/{split}-00000-of-00001.parquet")
