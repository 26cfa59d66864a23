from __future__ import annotations

import math

import pytest

from segtune.viz.numbers import by, column_percent, count, duration, interval, number, percent


@pytest.mark.parametrize(
    ("share", "text", "column"),
    [
        (0, "0", "0.0"),
        (1, "100", "100.0"),
        (0.996, "99.6", "99.6"),
        (0.4712, "47", "47.1"),
        (0.0314, "3.1", "3.1"),
        (0.00042, "0.042", "<0.1"),
    ],
)
def test_shares_are_written_as_percent(share: float, text: str, column: str) -> None:
    assert percent(share) == f"{text} %"
    assert column_percent(share) == f"{column} %"


def test_what_is_undefined_is_a_dash() -> None:
    for value in (None, math.nan):
        assert [write(value) for write in (number, percent, column_percent)] == ["–"] * 3
        assert number(value, 4, undefined="absent") == "absent"


def test_scores_have_their_digits_and_intervals_both_ends() -> None:
    assert (number(0.25), number(0.25, 4), number(0.25, 4, signed=True)) == ("0.250", "0.2500", "+0.2500")
    assert (interval([0.2, 0.3]), interval([None, None]), interval(None)) == ("0.200 – 0.300", "", "")
    assert interval([-0.1, 0.3], "[{}, {}]", signed=True) == "[-0.100, +0.300]"


def test_counts_agree_with_their_noun() -> None:
    assert (count(1, "mask"), count(1000, "mask"), count(0, "class", "classes")) == (
        "1 mask",
        "1,000 masks",
        "0 classes",
    )
    assert by((360, 480)) == "360x480"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.14159, "3.1 s"), (59.4, "59 s"), (185, "3 min 5 s"), (7800, "2 h 10 min"), (3599.7, "1 h 0 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
