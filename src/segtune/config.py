"""Configuration models: the base of every recipe section, and a walk over the settings of one."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo
from pydantic.fields import FieldInfo

Keys = tuple[Any, ...]  # ("training", "max_steps"): where in a recipe a value stands

MAX_BATCH_SIZE = 65_536  # images; what is above is a slip, and would only fill the memory with their numbers

T = TypeVar("T")

# The type of a setting of which a run that goes on may take another value than it began with, since it changes how the
# run works and what it writes, not what it computes. A setting whose type does not say so must stay as it was.
MayChangeOnResume = Annotated[T, Field(json_schema_extra={"may_change_on_resume": True})]


class StrictModel(BaseModel):
    """An immutable group of settings: no unknown names, values coerced by the field's type, finite numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )


QUICK = {"quick": True}  # a context of validation, see `is_quick`


def is_quick(info: ValidationInfo) -> bool:
    """Whether a validator is to leave out what imports torch: slips are told before that."""
    return bool(info.context and info.context.get("quick"))


def section_of(annotation: Any) -> type[StrictModel] | None:
    """The section that a field of this type holds, if any: of `FreezeConfig` and of `LoraConfig | None`."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if union else (annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, StrictModel)), None)


def walk_fields(model: type[StrictModel], keys: Keys = ()) -> Iterator[tuple[Keys, FieldInfo]]:
    """Every field of a section with its keys, each followed by those of the section that it holds."""
    for name, field in model.model_fields.items():
        yield (*keys, name), field
        if inner := section_of(field.annotation):
            yield from walk_fields(inner, (*keys, name))


def may_change_on_resume(field: FieldInfo) -> bool:
    """Whether a run may go on with another value of this field; see `MayChangeOnResume`."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("may_change_on_resume"))


def flatten(values: Mapping[str, Any], separator: str = "/", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, each under its keys joined by `separator`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, separator, f"{prefix}{key}{separator}")
        else:
            yield f"{prefix}{key}", value
