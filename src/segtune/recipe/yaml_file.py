"""YAML of a recipe: read as YAML 1.2, each key once; written so that YAML 1.1 reads the same values.

PyYAML alone reads YAML 1.1, where 6e-5 is text, `no` is false and 12:30 is a number, and a key that is given twice
has its last value. (ruamel.yaml would leave the tables below as long: it takes dates, 1_000 and merge keys.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from segtune.errors import UsageError
from segtune.files import missing_last_line, promise_last_line
from segtune.recipe.validation import show

LAST_LINE = "# end of the recipe"


def _core_schema() -> dict[str, Any]:
    """First character -> (tag, pattern) of plain scalars: https://yaml.org/spec/1.2.2/#103-core-schema."""
    scalars = (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
        ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
        ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    )
    table: dict[str, Any] = {}
    for tag, pattern, first_characters in scalars:
        for first in first_characters:
            table.setdefault(first, []).append((f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z")))
    return table


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text[2:], 16 if text[1] == "x" else 8) if text[1:2] in ("x", "o") else int(text)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


def _constructors() -> dict[str | None, Any]:
    constructors: dict[str | None, Any] = {**yaml.SafeLoader.yaml_constructors}
    constructors["tag:yaml.org,2002:int"] = _construct_int
    constructors["tag:yaml.org,2002:float"] = _construct_float
    return constructors


def _both_schemas() -> dict[str, Any]:
    """What a plain scalar may be taken for by a reader of YAML 1.1 or of 1.2."""
    old, new = yaml.SafeDumper.yaml_implicit_resolvers, _core_schema()
    return {first: [*old.get(first, []), *new.get(first, [])] for first in {*old, *new}}


class _Loader(yaml.SafeLoader):
    """Plain scalars as in YAML 1.2 (6e-5 is a number; yes, on and 12:30 are text), each key once, no merge keys."""

    yaml_implicit_resolvers = _core_schema()
    yaml_constructors = _constructors()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return mapping


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something else than text."""

    yaml_implicit_resolvers = _both_schemas()

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=True)


def parse_yaml(text: str | bytes) -> Any:
    """The value of a YAML document; yaml.YAMLError or ValueError says what is wrong."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Nested mappings in their order, lists on one line."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def whole(title: str, values: Mapping[str, Any]) -> str:
    """`dump_yaml` between comments from which `read_yaml` tells a file that was cut: half of a YAML may be valid."""
    return promise_last_line(f"# {title}", LAST_LINE, dump_yaml(values))


def read_yaml(path: Path, sections: Iterable[str]) -> dict[Any, Any]:
    """The content of a recipe's file.

    Args:
        sections: the names that the message names where the file holds something else than a mapping.

    Raises:
        UsageError: the file cannot be read, or is not the YAML of a mapping; the message says where and why.
    """
    try:
        content = path.read_bytes()
        data = parse_yaml(content)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = " ".join(filter(None, (getattr(error, "context", None), getattr(error, "problem", None)))) or error
        raise UsageError(f"{path}{where}: {what}") from error
    if (missing := missing_last_line(content)) is not None:
        raise UsageError(
            f"{path} is cut off: its last line, {missing!r}, is missing. Restore the file; of a run, each "
            "of its training states has a copy"
        )
    if not isinstance(data, dict):
        what = "the file is empty" if data is None else f"the file holds {show(data)}"
        raise UsageError(f"{path}: {what}, not a mapping of the sections {', '.join(sections)}")
    return data
