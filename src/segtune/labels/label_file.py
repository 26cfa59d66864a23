"""Files that name classes: JSON, and the lists of names and colours that tools and data sets come with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segtune.errors import UsageError
from segtune.files import parse_json, read_text

FORMS = (
    'a list of names ["sky", "road"], ids {"0": "sky", "1-10": "road", "11": null}, colours {"#804080": "road"} or '
    '{"road": [128, 64, 128]}, or one of them under "classes" beside "ignore_id" and "colors" (null: ignored)'
)
WRAPPERS = ("classes", "names", "id2label", "label2id", "categories", "label_map")
NAMES, COLORS = ("name", "title"), ("color", "colour", "rgb")
IGNORED, BACKGROUND = "__ignore__", "_background_"  # LabelMe's words

# What a line may hold; all lines of a file have the same form, apart from a heading.
SEPARATOR = r"\s*[\s,;:]\s*"
LINES: tuple[tuple[str, Callable[[re.Match[str]], tuple[Any, str]]], ...] = (
    (rf"(\d+){SEPARATOR}(\d+){SEPARATOR}(\d+){SEPARATOR}(\d+){SEPARATOR}(.*\D.*)", lambda m: (_color(m, 2), m[5])),
    (rf"(\d+){SEPARATOR}(\d+){SEPARATOR}(\d+){SEPARATOR}(.*\D.*)", lambda m: (_color(m, 1), m[4])),
    (
        rf"(.*[^\d\s,;:].*?){SEPARATOR}(\d+){SEPARATOR}(\d+){SEPARATOR}(\d+)(?:[:\s,;].*)?",
        lambda m: (_color(m, 2), m[1]),
    ),
    (rf"(\d+){SEPARATOR}(\D.*)", lambda m: (int(m[1]), m[2])),
    (r"(?!.*\d\s+\d+\s+\d+$)(\d*[^\d\s,;:][^,;:]*)", lambda m: (None, m[1])),
)


def read_label_file(path: Path) -> Any:
    """What a file says about classes, in a form of `LabelMap.from_dict`.

    JSON is taken as it is. In other files, each line is a name, "id name", "r g b name" (CamVid's label_colors.txt),
    "id r g b name", "name,r,g,b" (class_dict.csv) or "name:r,g,b::" (CVAT's labelmap.txt); separators may be spaces,
    commas, semicolons or colons; empty lines, lines that begin with "#" and a heading are passed over.

    Raises:
        UsageError: the file cannot be read or has another form.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot read the class names: {getattr(error, 'strerror', error)}") from error
    if path.suffix.lower() != ".json":
        return _read_lines(path, text)
    try:
        return parse_json(text)
    except ValueError as error:
        raise UsageError(f"{path} is no JSON file: {error}") from error


def canonical(data: Any) -> dict[str, Any]:
    """Forms that others write, as {"classes": names or {id or colour: name}, …}.

    Those are a list of {"name": …, "id": …, "color": …} (COCO's categories, Supervisely's classes), bare or under
    "classes" or "categories", {name: colour}, {name: id} (label2id of Hugging Face) and datumaro's "label_map" with
    "segmentation_colors".
    """
    if not isinstance(data, Mapping):
        data = {"classes": data}
    wrapped = next((key for key in WRAPPERS if key in data), None)
    options, classes = (dict(data), data[wrapped]) if wrapped else ({}, data)
    if wrapped == "label_map" and isinstance(classes, Mapping) and isinstance(data.get("segmentation_colors"), list):
        shown = dict(zip(classes, data["segmentation_colors"], strict=False))
        options = {"colors": shown} | options
    if isinstance(classes, Sequence) and classes and all(isinstance(entry, Mapping) for entry in classes):
        classes, colors = _from_entries(classes)
        options = {"colors": colors} | options if colors else options
    elif isinstance(classes, Mapping) and classes and all(_is_color(value) for value in classes.values()):
        named = {_hashable(color): name for name, color in classes.items()}
        if len(named) < len(classes):
            raise UsageError(f"two classes have one colour: {classes}")
        classes = named
    elif isinstance(classes, Mapping) and all(_is_number(v) and not _is_number(k) for k, v in classes.items()):
        classes = _turned_round(classes)
    return {**{key: value for key, value in options.items() if key != wrapped}, "classes": classes}


def _is_number(value: Any) -> bool:
    """An id, also as text."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, str) and re.fullmatch(r"-?\d+(-\d+)?", value) is not None
    )


def _turned_round(ids: Mapping[str, Any]) -> dict[Any, str]:
    """{id: name} of {name: id}."""
    classes: dict[Any, str] = {}
    for name, value in ids.items():
        if classes.setdefault(value, name) != name:
            both = f"{classes[value]!r} and {name!r}"
            raise UsageError(f'{both} have one id, {value}: to merge them, write {{"{value}": "{classes[value]}"}}')
    return classes


def _read_lines(path: Path, text: str) -> Any:
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    has_heading = bool(lines) and not re.search(r"\d", lines[0][1])
    odd = lines
    for rows in (lines, lines[1:] if has_heading else []):
        for pattern, read in LINES:
            matches = [re.fullmatch(pattern, line) for _, line in rows]
            if rows and all(matches):
                return _named([read(match) for match in matches if match])
            others = [row for row, match in zip(rows, matches, strict=True) if not match]
            odd = others if rows and len(others) < len(odd) else odd
    where = f"{path}, line {odd[0][0]}: what is {odd[0][1][:60]!r}?" if odd else f"{path}: it is empty."
    raise UsageError(f"{where} A line names a class, with its id or its colour before or after it: '128 64 128 road'")


def _named(entries: Sequence[tuple[Any, str]]) -> Any:
    names = [None if name == IGNORED else name.replace(BACKGROUND, "background").strip("\"'") for _, name in entries]
    if entries[0][0] is None:
        return [name for name in names if name is not None]
    return {key: name for (key, _), name in zip(entries, names, strict=True)}


def _from_entries(entries: Sequence[Mapping[str, Any]]) -> tuple[Any, dict[str, Any]]:
    """Classes by id, else by colour, else by position; and the colours by name where they are for display only."""
    names = [_first_of(entry, NAMES) for entry in entries]
    colors = [_hashable(_first_of(entry, COLORS)) for entry in entries]
    for entry, name, color in zip(entries, names, colors, strict=True):
        if not isinstance(name, str | None) or not isinstance(entry.get("id"), int | str | None):
            raise UsageError(f"{str(dict(entry))[:80]}: the name of a class is text, its id a number")
        if color and not _is_color(color):
            raise UsageError(f'{str(dict(entry))[:80]}: {color!r} is no colour: write "#804080" or [128, 64, 128]')
    if all("id" in entry for entry in entries):
        shown = {name: color for name, color in zip(names, colors, strict=True) if name and color}
        return {entry["id"]: name for entry, name in zip(entries, names, strict=True)}, shown
    if all(colors):
        return dict(zip(colors, names, strict=True)), {}
    return names, {}


def _first_of(entry: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((entry[key] for key in keys if key in entry), None)


def _is_color(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch("#[0-9a-fA-F]{6}", value) is not None
    return isinstance(value, Sequence) and len(value) == 3 and all(isinstance(part, int) for part in value)


def _hashable(color: Any) -> Any:
    return tuple(color) if isinstance(color, list) else color


def _color(match: re.Match[str], group: int) -> tuple[int, int, int]:
    red, green, blue = (int(match[group + i]) for i in range(3))
    return red, green, blue
