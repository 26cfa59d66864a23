"""Schema checks: an annotation file of a wrong form is an error that names the file, the entry and the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segtune.errors import DataError
from segtune.files import read_json

KEY, NUMBER, TEXT, LIST = (int, float, str), (int, float), (str,), (list,)
WORDS: dict[tuple[type, ...], str] = {KEY: "a number or text", NUMBER: "a number", TEXT: "text", LIST: "a list"}
Fields = Mapping[str, tuple[type, ...]]
"""Field -> the types that it may have; one that ends with "?" may be missing or null."""


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        what: it is meant to be, for the error.

    Raises:
        DataError: it holds something else, or is no JSON.
    """
    try:
        data = read_json(path)
    except ValueError as error:
        raise DataError(f"{path} is no {what}: {error}") from error
    if not isinstance(data, dict):
        raise DataError(f"{path} is no {what}: it holds {_shown(data)}, not an object")
    return data


def check_entries(path: Path, name: str, entries: Any, fields: Fields) -> None:
    """Check every entry of a list.

    Raises:
        DataError: names the file, the entry as "annotations[7]" and the field.
    """
    if not isinstance(entries, list):
        raise DataError(f"{path}: {name} is {_shown(entries)}, not a list")
    usual = [
        (field.removesuffix("?"), {*types, type(None)} - {float} if field.endswith("?") else {*types} - {float})
        for field, types in fields.items()
    ]  # of floats the value counts as well
    for number, entry in enumerate(entries):
        if type(entry) is not dict or not all(type(entry.get(key)) in types for key, types in usual):
            check_entry(path, f"{name}[{number}]", entry, fields)


def check_entry(path: Path, name: str, entry: Any, fields: Fields) -> None:
    """Check one object; see `check_entries`."""
    if not isinstance(entry, dict):
        raise DataError(f"{path}: {name} is {_shown(entry)}, not an object")
    for field, types in fields.items():
        key = field.removesuffix("?")
        value = entry.get(key)
        if value is None and field != key:
            continue
        if not isinstance(value, types) or (isinstance(value, float) and not math.isfinite(value)):
            found = f"{key} is {_shown(value)}" if key in entry else f"{key} is missing"
            raise DataError(f"{path}: {name}: {found}; expected {WORDS.get(types, 'outlines or run lengths')}")


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, (int, float, str, bool, type(None))) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:40]}…"
