from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import Field, model_validator

from segtune.config import StrictModel
from segtune.recipe.validation import Problem, check, expected, nearest


class Place(StrictModel):
    path: str
    fraction: float = 0.1
    verify: bool = True
    extra: dict[str, Any] = Field({})


class Inner(StrictModel):
    depth: int = Field(1, ge=1)
    wide: bool = False
    low: float = 0.0
    high: float = 1.0

    @model_validator(mode="after")
    def _check(self) -> Inner:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")
        return self


class Named(StrictModel):
    name: str


class Loop(StrictModel):
    max_steps: int = Field(10, ge=1)
    learning_rate: float = 6e-5
    betas: tuple[float, float] = (0.9, 0.999)
    crop_size: int | tuple[int, int] = 64
    precision: Literal["no", "bf16"] = "no"
    every: int | None = None
    inner: Inner = Inner()
    named: Named | None = None

    @model_validator(mode="after")
    def _check(self) -> Loop:
        if self.every is not None and self.every > self.max_steps:
            raise ValueError(f"every={self.every} is above max_steps={self.max_steps}")
        return self


class Both(StrictModel):
    place: Place
    loop: Loop = Loop()


def messages(data: dict[Any, Any]) -> list[str]:
    return [problem.message for problem in check({"place": {"path": "x"}} | data, Both)[1]]


def test_right_values_become_sections_coerced_by_their_type() -> None:
    checked, problems = check({"place": {"path": "x"}, "loop": {"learning_rate": "6e-5", "betas": [0, 1]}}, Both)
    assert problems == []
    assert checked == Both(place=Place(path="x"), loop=Loop(learning_rate=6e-5, betas=(0.0, 1.0)))


def test_section_left_empty_has_its_defaults() -> None:
    assert check({"place": {"path": "x"}, "loop": None}, Both)[0] == Both(place=Place(path="x"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"lop": {}}, "lop: no such section; did you mean 'loop'?"),
        ({"zebra": {}}, "zebra: no such section; known are place, loop"),
        ({5: {}}, "5: no such section; known are place, loop"),
        (
            {"loop": {"learnig_rate": 6e-5}},
            "loop.learnig_rate = 6e-05: no such key; did you mean 'loop.learning_rate'?",
        ),
        ({"place": {"path": "x", "max_steps": 3}}, "place.max_steps = 3: no such key; did you mean 'loop.max_steps'?"),
        (
            {"place": {"path": "x", 7: None}},
            "place.7 = null: no such key; known are path, fraction, verify, extra",
        ),
        ({"loop": 5}, "loop = 5: expected a mapping of settings"),
        ({"loop": []}, "loop = []: expected a mapping of settings"),
        ({"loop": {"max_steps": "many"}}, 'loop.max_steps = "many": expected a whole number'),
        ({"loop": {"max_steps": 0.5}}, "loop.max_steps = 0.5: expected a whole number"),
        ({"loop": {"max_steps": None}}, "loop.max_steps = null: expected a whole number"),
        ({"loop": {"max_steps": 0}}, "loop.max_steps = 0: Input should be greater than or equal to 1"),
        ({"loop": {"betas": [0.9]}}, "loop.betas = [0.9]: expected a list of 2 numbers"),
        ({"loop": {"betas": [0.9, 1, 2]}}, "loop.betas = [0.9, 1, 2]: expected a list of 2 numbers"),
        (
            {"loop": {"crop_size": "big"}},
            'loop.crop_size = "big": expected a whole number or a list of 2 whole numbers',
        ),
        ({"loop": {"precision": "fp8"}}, 'loop.precision = "fp8": expected "no" or "bf16"'),
        ({"loop": {"every": "x"}}, 'loop.every = "x": expected a whole number or null'),
        ({"place": {"path": 3}}, "place.path = 3: expected text"),
        ({"place": {"path": "x", "extra": 3}}, "place.extra = 3: expected a mapping"),
        ({"loop": {"every": 11}}, "loop: every=11 is above max_steps=10"),
    ],
)
def test_message(data: dict[Any, Any], message: str) -> None:
    assert messages(data) == [message]


@pytest.mark.parametrize(
    ("data", "message"),
    [  # pydantic alone takes all of these
        ({"loop": {"max_steps": True}}, "loop.max_steps = true: expected a whole number"),
        ({"loop": {"betas": [True, 0.9]}}, "loop.betas = [true, 0.9]: expected a list of 2 numbers"),
        ({"place": {"path": "x", "verify": "yes"}}, 'place.verify = "yes": expected true or false'),
        ({"place": {"path": "x", "verify": 1}}, "place.verify = 1: expected true or false"),
    ],
)
def test_truth_values_are_no_numbers_and_words_no_truth_values(data: dict[str, Any], message: str) -> None:
    assert messages(data) == [message]


def test_truth_values_stand_where_anything_may() -> None:
    assert messages({"place": {"path": "x", "extra": {"flag": True}, "verify": False}}) == []


def test_missing_key_and_section() -> None:
    assert check({}, Both)[1] == [Problem(("place", "path"), "place.path is missing")]


def test_what_a_misspelt_name_stands_for_is_not_missing_as_well() -> None:
    assert [p.keys for p in check({"plase": {"path": "x"}}, Both)[1]] == [("plase",)]
    assert [p.keys for p in check({"place": {"pth": "x"}}, Both)[1]] == [("place", "pth")]
    assert [p.keys for p in check({"place": {"verfy": True}}, Both)[1]] == [("place", "verfy"), ("place", "path")]


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ({"dept": 2}, "loop.inner.dept = 2: no such key; did you mean 'loop.inner.depth'?"),
        ({"zebra": 2}, "loop.inner.zebra = 2: no such key; known are depth, wide, low, high"),
        ({"fraction": 2}, "loop.inner.fraction = 2: no such key; did you mean 'place.fraction'?"),
        ({"depth": "x"}, 'loop.inner.depth = "x": expected a whole number'),
        ({"depth": 0}, "loop.inner.depth = 0: Input should be greater than or equal to 1"),
        ({"depth": True}, "loop.inner.depth = true: expected a whole number"),
        ({"wide": 1}, "loop.inner.wide = 1: expected true or false"),
        ({"low": 2}, 'loop.inner = {"low": 2}: low=2.0 is above high=1.0'),
        (3, "loop.inner = 3: expected a mapping of settings"),
        (True, "loop.inner = true: expected a mapping of settings"),
        (None, "loop.inner = null: expected a mapping of settings"),
    ],
)
def test_section_in_a_section(inner: Any, message: str) -> None:
    assert messages({"loop": {"inner": inner}}) == [message]


def test_optional_section_in_a_section() -> None:
    checked, _ = check({"place": {"path": "x"}, "loop": {"named": {"name": "a"}}}, Both)
    assert checked is not None and checked.loop == Loop(named=Named(name="a"))
    assert messages({"loop": {"named": {}}}) == ["loop.named.name is missing"]
    assert messages({"loop": {"named": {"nam": "a"}}}) == [
        "loop.named.nam = \"a\": no such key; did you mean 'loop.named.name'?"
    ]
    assert messages({"loop": {"named": 3}}) == ["loop.named = 3: expected a mapping of settings or null"]
    assert messages({"loop": {"depth": 3}}) == ["loop.depth = 3: no such key; did you mean 'loop.inner.depth'?"]


def test_everything_is_said_at_once() -> None:
    _, problems = check({"lop": 1, "place": {"fraction": "a"}, "loop": {"max_steps": "b", "every": "c"}}, Both)
    assert [problem.keys for problem in problems] == [
        ("lop",),
        ("place", "path"),
        ("place", "fraction"),
        ("loop", "max_steps"),
        ("loop", "every"),
    ]


def test_nearest_is_this_very_name_elsewhere_or_a_similar_one_in_the_same_section() -> None:
    assert nearest(("loop", "max_step"), Both) == ("loop", "max_steps")
    assert nearest(("place", "max_steps"), Both) == ("loop", "max_steps")
    assert nearest(("place", "max_step"), Both) is None
    assert nearest(("loop", "wide"), Both) == ("loop", "inner", "wide")
    assert nearest(("loop", "inner", "path"), Both) == ("place", "path")
    assert nearest(("loop", "zebra"), Both) is None
    assert nearest(("depth",), Both) == ("loop", "inner", "depth")


def test_nearest_of_an_abbreviated_section_and_a_key() -> None:
    """`eval_short_side` resembles `short_side` beside it more than `evaluation.short_side`."""
    assert nearest(("loop", "pl_path"), Both) == nearest(("place", "loop_path"), Both) == ("place", "path")
    assert nearest(("place", "in_dept"), Both) == ("loop", "inner", "depth")
    assert nearest(("loop", "every_step"), Both) == ("loop", "every")


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or null"),
        (tuple[float, ...], "a list of numbers"),
        (tuple[int, int], "a list of 2 whole numbers"),
        (list[str] | dict[str | int, Any], "a list of texts or a mapping"),
        (Literal[1] | None, "1 or null"),
        (tuple[Literal["a", "b"], ...], 'a list, each "a" or "b"'),
        (Literal["a", "b"] | float | None, '"a", "b", a number or null'),
    ],
)
def test_expected(annotation: Any, words: str) -> None:
    assert expected(annotation) == words


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_finite(value: float) -> None:
    found = messages({"loop": {"learning_rate": value, "betas": [0.9, value]}})
    assert [message.split(" = ")[0] for message in found] == ["loop.learning_rate", "loop.betas"]
    assert all(message.endswith("Input should be a finite number") for message in found)
