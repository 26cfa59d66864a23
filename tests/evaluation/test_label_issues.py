from __future__ import annotations

import numpy as np
import pytest

from segtune.evaluation.label_issues import SURE, LabelIssue, clearest_pair, label_issue, median_share, ranked, suspects


def test_sure_contradictions_are_counted_among_labelled_pixels() -> None:
    labels = np.array([[1, 1, 1, 0, 0], [2, 2, 0, 255, 255]])
    prediction = np.array([[0, 0, 1, 2, 0], [0, 2, 0, 0, 1]])
    confidence = np.full((2, 5), SURE)
    assert label_issue(labels, prediction, confidence) == (4 / 8, (1, 0))
    confidence[0, 0] = SURE - 0.01  # not sure enough
    assert label_issue(labels, prediction, confidence) == (3 / 8, (0, 2))  # of equally many, the first
    assert label_issue(labels, prediction, np.zeros((2, 5))) == (0.0, None)
    assert label_issue(labels, labels, confidence) == (0.0, None)
    assert label_issue(np.full((2, 2), 9), np.zeros((2, 2), int), np.ones((2, 2)), ignore_index=9) == (0.0, None)


def test_clearest_pair_is_the_most_frequent_one() -> None:
    labels, prediction = np.array([[3, 3, 0, 0]], np.uint8), np.array([[200, 200, 1, 0]], np.uint8)
    assert clearest_pair(labels, prediction, labels != prediction) == ((3, 200), 2)
    assert clearest_pair(labels, prediction, np.zeros((1, 4), bool)) is None


def test_what_stands_out_is_far_from_the_others() -> None:
    shares = {"a": 0.0, "b": 0.02, "c": 0.3, "d": 0.01, "e": 0.06, "f": 0.01, "g": 0.01}
    doubts = {name: LabelIssue(share, (0, 1)) for name, share in shares.items()}
    # median 0.01, median absolute deviation 0.01: from 0.01 + 6 * 1.4826 * 0.01 = 0.099 on
    assert median_share(doubts) == pytest.approx(0.01)
    assert suspects(doubts) == ["c"]
    assert ranked(doubts) == ["c", "e", "b", "d", "f", "g", "a"]


def test_nothing_stands_out_below_a_twentieth() -> None:
    assert (
        suspects({name: LabelIssue(share, (0, 1)) for name, share in zip("abcd", (0, 0, 0, 0.049), strict=True)}) == []
    )
    assert suspects({name: LabelIssue(share, (0, 1)) for name, share in zip("abcd", (0, 0, 0, 0.05), strict=True)}) == [
        "d"
    ]
    assert (suspects({}), median_share({})) == ([], 0.0)
