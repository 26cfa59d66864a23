"""Which sample is in which split: names of splits, split files, and a validation split that is drawn."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from segtune.data.scan import first
from segtune.errors import UsageError

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


def read_split_file(path: Path) -> dict[str, list[str]]:
    """Split -> ids, sorted, of a JSON file.

    Raises:
        UsageError: the file has another form.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        given = {split: data[split] for split in SPLITS if split in data}
        if unknown := set(data) - set(SPLITS):
            raise ValueError(f"it holds {first(sorted(map(repr, unknown)))}")
        if any(not isinstance(ids, list) or not all(isinstance(i, str) for i in ids) for ids in given.values()):
            raise ValueError("ids are lists of texts")
    except (ValueError, TypeError) as error:
        raise UsageError(f'{path} is no split file {{"train": [ids], "val": [ids], "test": [ids]}}: {error}') from error
    return {split: sorted(unicodedata.normalize("NFC", i) for i in ids) for split, ids in given.items()}


def draw_val(ids: Iterable[str], fraction: float, seed: int) -> list[str]:
    """A share of the ids that stays nearly the same when samples are added or removed."""
    ranked = sorted(ids, key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
    count = max(1, round(len(ranked) * fraction)) if fraction else 0
    return sorted(ranked[: min(count, len(ranked) - 1)])
