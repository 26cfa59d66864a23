from __future__ import annotations

from pydantic import Field

from segtune.config import MayChangeOnResume, StrictModel, flatten, may_change_on_resume, section_of, walk_fields


class Inner(StrictModel):
    depth: MayChangeOnResume[int] = Field(1, ge=1)


class Outer(StrictModel):
    inner: Inner | None = None
    other: MayChangeOnResume[Inner] = Inner()
    plain: float = 0.5


def test_walk_goes_into_sections() -> None:
    walked = {keys: may_change_on_resume(field) for keys, field in walk_fields(Outer)}
    assert walked == {
        ("inner",): False,
        ("inner", "depth"): True,
        ("other",): True,
        ("other", "depth"): True,
        ("plain",): False,
    }


def test_section_of_a_type() -> None:
    assert section_of(Inner) is section_of(Inner | None) is Inner
    assert section_of(int | None) is section_of(dict[str, Inner]) is None


def test_flatten() -> None:
    values = {"a": {"b": 1, "c": {"d": None}}, "e": [2]}
    assert dict(flatten(values)) == {"a/b": 1, "a/c/d": None, "e": [2]}
    assert dict(flatten(values, "."))["a.c.d"] is None
