"""Train, validation and test splits: their names, split files, and a validation split that is drawn."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segtune.errors import UsageError, listed
from segtune.files import read_json, read_text, write_atomic

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
Names = Mapping[str, tuple[str, ...]]  # split -> its names in the data


def choose_split(split: str | None, dataset: Mapping[str, Any], path: str) -> str:
    """The split that is asked for with --split; by default test where the data has it, else val.

    Raises:
        UsageError: there is no such split.
    """
    wanted = [split] if split else ["test", "val"]
    if found := next((name for name in wanted if name in dataset), None):
        return found
    there = "val" if "val" in dataset else next(iter(dataset), "")
    raise UsageError(f"--split {split or 'test'}: {path} has {', '.join(dataset)}; say --split {there}")


def split_names(splits: Mapping[Any, str | None] | None) -> Names:
    """The usual names, or those that `dataset.splits` gives instead."""
    if splits is None:
        return SPLITS
    return {split: (name,) for split in SPLITS if (name := splits.get(split))}


def all_names(names: Names) -> list[str]:
    """The names of all splits."""
    return [name for known in names.values() for name in known]


def split_of(name: str, names: Names) -> str | None:
    """Our word for a split that the data calls `name`."""
    return next((split for split, known in names.items() if name.lower() in map(str.lower, known)), None)


def split_in(text: str, names: Names) -> str | None:
    """The split that a word of a file's name says: instances_val2017, train-00000-of-00020."""
    words = [*re.findall("[a-z]+[0-9]*", text.lower()), *re.findall("[a-z]+", text.lower())]
    return next((split for word in words if (split := split_of(word, names))), None)


def read_split_file(path: Path) -> dict[str, list[str]]:
    """Split -> ids, sorted, of a JSON file.

    Raises:
        UsageError: the file has another form.
    """
    try:
        data = read_json(path)
        given = {split: data[split] for split in SPLITS if split in data}
        if not isinstance(data, dict):
            raise ValueError("it holds no object")
        if unknown := set(data) - set(SPLITS):
            raise ValueError(f"it holds {listed(sorted(map(repr, unknown)))}")
        if any(not isinstance(ids, list) or not all(isinstance(i, str) for i in ids) for ids in given.values()):
            raise ValueError("ids are lists of texts")
    except (ValueError, TypeError) as error:
        raise UsageError(f'{path} is no split file {{"train": [ids], "val": [ids], "test": [ids]}}: {error}') from error
    return {split: sorted(unicodedata.normalize("NFC", i) for i in ids) for split, ids in given.items()}


def write_split_file(path: Path, ids: Mapping[str, Sequence[str]]) -> None:
    """Write which ids are in which split, as `read_split_file` reads it."""
    write_atomic(path, json.dumps(ids, indent=1, ensure_ascii=False) + "\n")


def read_split_lists(root: Path, pattern: str, names: Names) -> dict[str, list[str]]:
    """Split -> the lines, sorted, of text files such as "ImageSets/Segmentation/{split}.txt"; see `meant_ids`.

    Raises:
        UsageError: there is no such file.
    """
    splits = {}
    for split, known in names.items():
        files = [file for name in known if (file := root / pattern.replace("{split}", name)).is_file()]
        if files:
            lines = read_text(files[0]).splitlines()
            splits[split] = sorted(unicodedata.normalize("NFC", line.strip()) for line in lines if line.strip())
    if not splits:
        tried = ", ".join(pattern.replace("{split}", name) for name in all_names(names))
        raise UsageError(f"{root} has no list of a split: none of {tried}")
    return splits


def meant_ids(entries: Iterable[str], known: Collection[str]) -> list[str]:
    """The ids that entries of split lists mean, sorted: the entry, or its first word, also without suffix or folders.

    Args:
        known: ids that there are; an entry that means none of them stays as it is.
    """
    return sorted(next((name for name in _readings(entry) if name in known), entry) for entry in entries)


def _readings(entry: str) -> Iterator[str]:
    """What an entry may mean, the most literal first: the names of files have suffixes, and may have blanks."""
    for text in dict.fromkeys((entry, *entry.split()[:1])):
        parts = text.replace("\\", "/").split("/")
        for first in range(len(parts)):
            name = "/".join(parts[first:])
            yield name
            if "." in parts[-1]:
                yield re.sub(r"(?i:\.nii\.gz|\.[^.]*)$", "", name)


def draw_val(ids: Iterable[str], fraction: float, seed: int) -> list[str]:
    """A share of the ids that stays nearly the same when samples are added or removed."""
    ranked = sorted(ids, key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
    count = max(1, round(len(ranked) * fraction)) if fraction else 0
    return sorted(ranked[: min(count, len(ranked) - 1)])
