"""The account of annotations: what is given ends somewhere, and too much of a loss is an error."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from segtune.data.annotations.accounts import settle
from segtune.data.annotations.tally import CROWD, EMPTY, LINE, STRANGER, UNKNOWN, UNUSABLE, Fate, Tally
from segtune.data.index import DatasetIndex


def tally_of(drawn: int = 0, label: str = "road", images: int = 1, **other: int) -> Tally:
    tally = Tally()
    tally.images["train"] = tally.annotated["train"] = images
    tally.give(drawn + sum(other.values()))
    tally.end(None, "a.json: first", label, drawn)
    fates = {"crowd": CROWD, "empty": EMPTY, "line": LINE, "stranger": STRANGER, "unknown": UNKNOWN}
    for name, count in other.items():
        for number in range(count):
            tally.end(fates[name], f"a.json: {name} {number}", label)
    return tally


def settled(tally: Tally) -> DatasetIndex:
    index = DatasetIndex(Path("data"), tally=tally)
    settle(index)
    return index


def test_everything_is_accounted_for() -> None:
    tally = tally_of(9, crowd=2, empty=1)
    assert (tally.given, tally.drawn, tally.count(CROWD), tally.unaccounted) == (12, 9, 2, 0)
    assert tally.losses() == [(EMPTY, ["a.json: empty 0"])]
    assert str(tally) == (
        "12 annotations: 9 drawn, 2 crowd regions, which are ignored (dataset.crowd=class draws them), "
        "1 that enclose nothing (a.json: empty 0)"
    )
    tally.give(3)
    assert tally.unaccounted == 3 and str(tally).endswith("3 that segtune lost count of")


@pytest.mark.parametrize(
    ("tally", "kinds"),
    [
        (tally_of(9, empty=1), []),
        (tally_of(8, empty=1), ["annotation_empty"]),
        (tally_of(9, stranger=1), []),
        (tally_of(5, stranger=5), ["annotation_without_image"]),
        (tally_of(999, unknown=1), ["annotation_unknown"]),
        (tally_of(1, crowd=99), []),
        (tally_of(1, line=99), []),
    ],
)
def test_more_than_a_share_is_an_error(tally: Tally, kinds: list[str]) -> None:
    assert [problem.kind for problem in settled(tally).problems] == kinds


def test_a_class_that_is_lost_is_an_error_however_rare() -> None:
    tally = tally_of(99)
    tally.give()
    tally.end(EMPTY, "a.json: annotation 7", "car")
    (problem,) = settled(tally).problems
    assert problem.message == "annotations that enclose nothing, all of car (1): a.json: annotation 7"
    assert "three points" in problem.fix


def test_a_class_of_lines_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tally = tally_of(9)
    tally.give()
    tally.end(LINE, "a.json: shapes[1]", "crack")
    index = settled(tally)
    assert not index.problems
    assert index.remarks == [
        "nothing is drawn of crack: its annotations are lines, points, tags or skeletons, which have no area"
    ]
    assert "nothing is drawn of crack" in caplog.text


def test_what_was_lost_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        settled(tally_of(12))
        assert [record.levelname for record in caplog.records] == ["INFO"] and "12 drawn" in caplog.text
        index = settled(tally_of(12, empty=1))
    assert caplog.records[-1].levelname == "WARNING" and "1 that enclose nothing (a.json: empty 0)" in caplog.text
    assert index.remarks == ["1 annotations that enclose nothing: a.json: empty 0"]


def test_a_split_without_annotations_is_an_error() -> None:
    tally = tally_of(3)
    tally.images["val"] = 4
    (problem,) = settled(tally).problems
    assert problem.kind == "split_without_annotations" and "val with 4 of them" in problem.message
    assert "dataset.splits" in problem.fix
    tally.annotated["val"] = 1
    assert not settled(tally).problems


def test_masks_that_are_stored_have_no_account() -> None:
    index = DatasetIndex(Path("data"))
    settle(index)
    assert index.tally is None and not index.problems and not index.remarks


def test_rules_have_no_limit() -> None:
    rules: tuple[Fate, ...] = (CROWD, LINE, UNUSABLE)
    assert all(fate.limit is None and not fate.fix for fate in rules)
    assert all(fate.fix for fate in (EMPTY, STRANGER, UNKNOWN))
