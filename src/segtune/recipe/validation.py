"""Validation of a recipe: everything that is wrong with a mapping of sections, in the words of a recipe."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import ValidationError

from segtune.config import QUICK, Keys, StrictModel, section_of, walk_fields

Root = TypeVar("Root", bound=StrictModel)


class Problem(NamedTuple):
    """What is wrong, and where."""

    keys: Keys
    message: str


def check(data: Mapping[Any, Any], model: type[Root], without_torch: bool = False) -> tuple[Root | None, list[Problem]]:
    """Validate `data` (section → key → value; a value may be a section itself) against a model of sections.

    Args:
        without_torch: leave out what imports it.

    Returns:
        The validated model, None where a value is wrong; and one problem for each unknown name, missing key and wrong
        value.
    """
    filled = {**data, **{name: {} for name in model.model_fields if data.get(name) is None}}  # left out, or left empty
    unknown = list(_unknown((), model, filled))
    problems = [Problem(keys, _say_unknown(keys, data, model)) for keys in unknown]
    try:
        known = _known(model, filled)
        quick = model.model_validate(known, context=QUICK)  # first, since the rest of the checks imports torch
        return (quick if problems or without_torch else model.model_validate(known)), problems
    except ValidationError as error:
        meant = {nearest(keys, model) for keys in unknown}  # what a misspelt name stands for is not missing as well
        return None, [*problems, *_explain(model, filled, error, meant)]


def nearest(keys: Keys, model: type[StrictModel]) -> Keys | None:
    """The valid section or key that an unknown one most resembles, if any does.

    First comes a key of this very name, wherever it stands; then `window` of `evaluation` for `eval_window`; then a
    similar name in the same section.
    """
    *section, key = map(str, keys)
    fields = [field for field, _ in walk_fields(model)]
    abbreviation, _, rest = key.partition("_")
    for name, candidates, cutoff in (
        (key, fields, 1.0),
        (rest, [field for field in fields if field[-2:-1] and field[-2].startswith(abbreviation)], 0.8),
        (key, [field for field in fields if field[:-1] == tuple(section)], 0.6),
    ):
        if close := difflib.get_close_matches(name, [field[-1] for field in candidates], n=1, cutoff=cutoff):
            return next(field for field in candidates if field[-1] == close[0])
    return None


def expected(annotation: Any) -> str:
    """A field's type in words: `tuple[int, int] | None` is "a list of 2 whole numbers or null"."""
    *others, last = _alternatives(annotation)
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(annotation: Any) -> Iterator[str]:
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        for member in members:
            yield from _alternatives(member)
    elif origin is typing.Annotated:
        yield from _alternatives(members[0])
    elif origin is Literal:
        yield from map(show, members)
    elif section_of(annotation) is not None:
        yield "a mapping of settings"
    elif origin in (tuple, list) and members:
        item = expected(members[0])
        count = "" if origin is list or members[-1] is Ellipsis else f"{len(members)} "
        yield f"a list, each {item}" if " or " in item else f"a list of {count}{item.removeprefix('a ')}s"
    else:
        yield _WORDS.get(origin or annotation, str(annotation))


def dotted(keys: Keys) -> str:
    """`training.max_steps` of ("training", "max_steps")."""
    return ".".join(map(str, keys))


def show(value: Any) -> str:
    """A value nearly as YAML would say it, on one short line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping",
    list: "a list",
    types.NoneType: "null",
}


def _unknown(keys: Keys, model: type[StrictModel], values: Mapping[Any, Any]) -> Iterator[Keys]:
    """Where a section and the sections in it have names that they do not know."""
    for name, value in values.items():
        if name not in model.model_fields:
            yield (*keys, name)
        elif isinstance(value, dict) and (inner := section_of(model.model_fields[name].annotation)):
            yield from _unknown((*keys, name), inner, value)


def _value(data: Any, keys: Keys) -> Any:
    """What stands at `keys`.

    Raises:
        KeyError: nothing does.
    """
    for key in keys:
        data = data[key]
    return data


def _explain(
    model: type[StrictModel], data: Mapping[Any, Any], error: ValidationError, meant: set[Keys | None]
) -> Iterator[Problem]:
    """One problem a field: its value and the rule that it breaks or, where the type is wrong, what is expected."""
    places: dict[Keys, tuple[Any, list[Any]]] = {}
    for item in error.errors(include_url=False):
        keys, annotation = _place(model, item["loc"])
        places.setdefault(keys, (annotation, []))[1].append(item)
    for keys, (annotation, items) in places.items():
        rules = "; ".join(item["msg"].removeprefix("Value error, ") for item in items if not _about_type(item["type"]))
        if len(keys) < 2 and rules:  # about several fields of a section, or of several sections
            yield Problem(keys, f"{keys[0]}: {rules}" if keys else rules)
            continue
        try:
            value = _value(data, keys)
        except (KeyError, TypeError):
            if not {keys[:1], keys} & meant:
                yield Problem(keys, f"{dotted(keys)} is missing")
        else:
            rules = rules or f"expected {expected(annotation)}{_meaning(model, keys, annotation)}"
            yield Problem(keys, f"{dotted(keys)} = {show(value)}: {rules}")


def _place(model: type[StrictModel], location: tuple[Any, ...]) -> tuple[Keys, Any]:
    """Where the field stands that pydantic finds at `location` of a model, and its type."""
    keys: Keys = ()
    inner: type[StrictModel] | None = model
    annotation: Any = None
    for part in location:
        if inner is None or part not in inner.model_fields:
            break
        keys, annotation = (*keys, part), inner.model_fields[part].annotation
        inner = section_of(annotation)
    return keys, annotation


def _has_words_of_its_own(annotation: Any) -> bool:
    """Whether a type takes single values, such as 1 or "best", that only the field's description explains."""
    return typing.get_origin(annotation) is Literal or any(map(_has_words_of_its_own, typing.get_args(annotation)))


def _meaning(model: type[StrictModel], keys: Keys, annotation: Any) -> str:
    """What single values stand for, as the field's description says it."""
    description = dict(walk_fields(model))[keys].description if _has_words_of_its_own(annotation) else None
    return f" ({description.rstrip('.')})" if description else ""


def _about_type(kind: str) -> bool:
    return kind.endswith(("_type", "_parsing", "_from_float", "literal_error", "too_short", "too_long", "missing"))


def _known(model: type[StrictModel], values: Mapping[Any, Any]) -> dict[str, Any]:
    """The values of known keys, made invalid where pydantic would take `true` for 1, or "yes" for true."""
    known: dict[str, Any] = {}
    for key, field in model.model_fields.items():
        if key in values:
            inner, value = section_of(field.annotation), values[key]
            if inner and isinstance(value, dict):
                value = _known(inner, value)
            known[key] = _Invalid() if _is_mistaken_truth(field.annotation, value) else value
    return known


class _Invalid:
    """A value that fits no type."""


def _is_mistaken_truth(annotation: Any, value: Any) -> bool:
    kinds = set(_leaves(annotation))
    if bool in kinds and kinds <= {bool, types.NoneType}:
        return value is not None and not isinstance(value, bool)
    values = value if isinstance(value, list) else [value]
    return not kinds & {bool, list, Any} and any(isinstance(item, bool) for item in values)


def _leaves(annotation: Any) -> Iterator[Any]:
    members = typing.get_args(annotation)
    for member in members:
        yield from _leaves(member)
    if not members:
        yield annotation


def _say_unknown(keys: Keys, data: Mapping[Any, Any], model: type[StrictModel]) -> str:
    close = nearest(keys, model)
    beside = [field[-1] for field, _ in walk_fields(model) if field[:-1] == keys[:-1]]
    hint = f"did you mean '{dotted(close)}'?" if close else f"known are {', '.join(beside)}"
    if len(keys) == 1:
        return f"{keys[0]}: no such section; {hint}"
    return f"{dotted(keys)} = {show(_value(data, keys))}: no such key; {hint}"
