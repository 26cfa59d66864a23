"""Data cards: what is in a converted data set, where it comes from and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import DatasetCard, DatasetCardData

import segtune
from segtune.data.class_names import LABEL_FILES
from segtune.data.dataset import resolve_path
from segtune.errors import UsageError
from segtune.files import read_json
from segtune.labels.label_map import LabelMap
from segtune.labels.markdown import escape_markdown
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
        data = read_json(file)
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
    card = DatasetCard.from_template(
        _metadata(origin),
        template_str=(Path(__file__).parent / "templates" / "dataset_card.md").read_text(encoding="utf-8"),
        version=segtune.__version__,
        origin={field: escape_markdown(text) for field, text in asdict(origin).items()},
        ignored=[str(source) for source, label in (label_map.ids or {}).items() if label is None],
        tile=tile,
        overlap=overlap,
        splits={split: f"{count.samples:,} | {sum(count.pixels):,}" for split, count in counts.items()},
        classes=[_row(label_map, counts, label) for label in range(label_map.num_labels)],
        ignored_shares=[_percent(count.pixels[-1], sum(count.pixels)) for count in counts.values()],
        form=form,
    )
    return f"{card}\n"


def _metadata(origin: Origin) -> DatasetCardData:
    """What the Hub reads.

    No "configs": `datasets` finds the splits by the names of the files. With them it would take two folders of one name
    for the same data set, and answer with the first one from its cache.
    """
    fields: dict[str, Any] = {"pretty_name": origin.name, "task_categories": ["image-segmentation"]}
    if origin.license != NOT_STATED:
        fields |= {"license": "other", "license_name": "as-stated", "license_details": origin.license}
    return DatasetCardData(**fields)


def _row(label_map: LabelMap, counts: Mapping[str, Count], label: int) -> list[str]:
    """A class with its ids, colour and share of the labelled pixels of each split."""
    ids = ", ".join(str(source) for source, target in (label_map.ids or {}).items() if target == label)
    shares = [_percent(count.pixels[label], sum(count.pixels[:-1])) for count in counts.values()]
    return [escape_markdown(label_map.names[label]), ids, f"`{show_value(label_map.colors[label])}`", *shares]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3f}" if whole else "–"
