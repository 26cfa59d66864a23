"""The data card of a converted data set: what is in it, where it comes from and how it is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import segtune
from segtune.data.class_names import LABEL_FILES
from segtune.data.dataset import resolve_path
from segtune.errors import UsageError
from segtune.labels.label_map import LabelMap
from segtune.labels.mask_values import show_value

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Origin:
    """Where a data set comes from, as far as it is stated."""

    name: str = "data set"
    data: str = NOT_STATED
    source: str = NOT_STATED
    license: str = NOT_STATED

    @classmethod
    def of(cls, path: str) -> Origin:
        """From the entries "name", "source" and "license…" (or "licence…") of the label file in a data set's folder.

        Of a path on this machine only the last part is told.
        """
        name = path if "://" in path else Path(path).expanduser().absolute().name
        stated = _read_label_file(path)
        return cls(
            stated.get("name", name),
            name,
            stated.get("source", NOT_STATED),
            next((text for key, text in stated.items() if key.lower().startswith(("license", "licence"))), NOT_STATED),
        )

    def entries(self) -> dict[str, str]:
        """What is stated, as `of` reads it."""
        stated = {"name": self.name, "source": self.source, "license": self.license}
        return {key: text for key, text in stated.items() if text != NOT_STATED}


def _read_label_file(path: str) -> dict[str, str]:
    """The texts in a data set's JSON file of labels, where it has one."""
    try:
        root = resolve_path(path)
        file = next(root / name for name in LABEL_FILES if name.endswith(".json") and (root / name).is_file())
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except (UsageError, StopIteration, OSError, ValueError):
        return {}
    texts = data.items() if isinstance(data, dict) else ()
    return {key: text.strip() for key, text in texts if isinstance(text, str) and text.strip()}


class Count(NamedTuple):
    """Of one split: samples, and pixels of each training id and, last, of ignored ones."""

    samples: int
    pixels: list[int]


def hub_split(split: str) -> str:
    """The name of a split that readers of parquet files look for."""
    return "validation" if split == "val" else split


def data_card(
    origin: Origin, label_map: LabelMap, counts: Mapping[str, Count], form: str, tile: int | None, overlap: int
) -> str:
    """README.md with the front matter that the Hub reads; what is not known is said to be so."""
    return "\n".join(
        [
            *_front_matter(origin),
            f"# {origin.name}",
            "",
            f"Images and masks for semantic segmentation, written by `segtune data convert` {segtune.__version__}.",
            "",
            f"- Converted from: {origin.data}",
            f"- Source: {origin.source}",
            f"- Licence: {origin.license}",
            f"- Masks: {_masks(label_map)}",
            *([f"- Tiles: {_tiles(tile, overlap)}"] if tile else []),
            "",
            *_split_table(counts),
            "",
            *_class_table(label_map, counts),
            "",
            *_loading(form),
        ]
    )


def _front_matter(origin: Origin) -> list[str]:
    """YAML, with its values as JSON, which is YAML too.

    No "configs": `datasets` finds the splits by the names of the files. With them it would take two folders of one name
    for the same data set, and answer with the first one from its cache.
    """
    fields: dict[str, Any] = {"pretty_name": origin.name, "task_categories": ["image-segmentation"]}
    if origin.license != NOT_STATED:
        fields |= {"license": "other", "license_name": "as-stated", "license_details": origin.license}
    return ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()), "---", ""]


def _masks(label_map: LabelMap) -> str:
    ids = label_map.ids or {}
    ignored = [str(i) for i in dict.fromkeys([*(i for i, label in ids.items() if label is None)])]
    rest = f"; ignored: {', '.join(ignored)}" if ignored else ""
    return f"PNG of one channel that holds ids{rest}; `labels.json` says which id is which class"


def _tiles(tile: int, overlap: int) -> str:
    return (
        f"images larger than {tile} pixels are cut into tiles; those of the training split have that side and overlap "
        f"by {overlap} or more, others lie next to each other; `_y<top>_x<left>` behind an id says where a tile lies"
    )


def _split_table(counts: Mapping[str, Count]) -> list[str]:
    rows = [f"| {split} | {count.samples:,} | {sum(count.pixels):,} |" for split, count in counts.items()]
    return ["| split | samples | pixels |", "|---|---:|---:|", *rows]


def _class_table(label_map: LabelMap, counts: Mapping[str, Count]) -> list[str]:
    """Each class with its ids, colour and share of the labelled pixels; ignored pixels as a share of all."""
    splits = list(counts)
    lines = [
        f"| class | id | colour | {' | '.join(f'% of {split}' for split in splits)} |",
        f"|---|---|---|{'---:|' * len(splits)}",
    ]
    for label, name in enumerate(label_map.names):
        ids = ", ".join(str(i) for i, target in (label_map.ids or {}).items() if target == label)
        shares = [_percent(counts[split].pixels[label], sum(counts[split].pixels[:-1])) for split in splits]
        cell = name.replace("|", "\\|")
        lines.append(f"| {cell} | {ids} | `{show_value(label_map.colors[label])}` | {' | '.join(shares)} |")
    shares = [_percent(counts[split].pixels[-1], sum(counts[split].pixels)) for split in splits]
    return [*lines, f"| *ignored, of all pixels* | | | {' | '.join(shares)} |"]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3f}" if whole else "–"


def _loading(form: str) -> list[str]:
    if form == "folder":
        return ["```bash", "segtune train RECIPE dataset.path=<this folder>", "```", ""]
    return [
        "```python",
        "from datasets import load_dataset",
        "",
        'rows = load_dataset("<this folder or repository>")  # columns id, image and mask',
        "```",
        "",
    ]
