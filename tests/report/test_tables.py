from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from html_reading import Page

from segtune.report.facts import Facts
from segtune.report.tables import class_table, confusion, data_table, size_table, table


def rows(text: str) -> dict[str, list[str]]:
    """Texts of the cells of a table, by the name of the row."""
    lines = text.split("<tbody>")[1].split("</tr>")
    cells = [[Page(cell).text for cell in re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", line)] for line in lines]
    return {row[0]: row[1:] for row in cells if row}


def test_classes_are_sorted_by_pixels_and_absent_ones_are_absent(facts: Facts) -> None:
    text = class_table(facts)
    found = rows(text)
    assert list(found) == ["<road>", "sky", "car", "ghost"]
    # wherever there is a car, sky is said, and wherever car is said there is road
    assert found["car"][0].startswith("0.000") and found["car"][1:4] == ["0.000"] * 3
    assert found["car"][-1] == "1"
    assert found["ghost"] == ["absent", "–", "–", "–", "–", "0.0 %", "0"]
    assert 'aria-sort="descending"><button type="button">pixels' in text and text.count("aria-sort") == 8
    low, high = facts.intervals["per_class"]["<road>"]["bca"]
    assert f'style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"' in text


def test_matrix_is_counts_that_no_name_can_break() -> None:
    names = ["a", "</script><script>alert(1)"]
    text = confusion(names, np.array([[3, 1], [0, 2]]))
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', text)
    assert json.loads(data) == {"names": names, "counts": [[3, 1], [0, 2]]}
    assert "25 % of a is taken for </script><script>alert(1)" in Page(text).text
    assert "No class is taken for another" in confusion(names, np.eye(2, dtype=int))


def test_sizes_are_those_of_the_evaluation(facts: Facts) -> None:
    """Half an image is a region of 16 x 48 pixels: small."""
    assert facts.examination is not None
    scores = facts.examination.evaluation.scores()
    found = rows(size_table(facts))
    assert found["mean"] == [f"{scores['mean_iou_small']:.3f}", "–", "–"]
    assert found["ghost"] == ["–", "–", "–"]
    assert "small (below 32²) 100 % of the pixels" in Page(size_table(facts)).text


def test_data_has_the_share_of_each_class(facts: Facts) -> None:
    text = data_table(replace(facts, pixels={"test": facts.pixels["test"], "train": facts.pixels["train"]}))
    assert list(rows(text)) == ["<road>", "sky", "car", "ghost", "ignored, of all pixels"]  # by what comes first
    text = data_table(facts)
    found = rows(text)
    assert found["sky"] == ["50.0 %", f"{100 * 11 / 24:.1f} %"]
    assert found["car"] == ["0.0 %", f"{100 / 24:.1f} %"]
    assert found["ignored, of all pixels"] == ["0.0 %", "0.0 %"]
    assert "train<small>1 image</small>" in text and "test<small>12 images</small>" in text


@pytest.mark.parametrize("sorted_by", [None, 1])
def test_tables_scroll_and_have_a_name(sorted_by: int | None) -> None:
    text = table(["a", "b"], ["<tr><td>1</td><td>2</td></tr>"], "A < B", sorted_by=sorted_by)
    assert 'tabindex="0"' in text and 'aria-label="A &lt; B"' in text and "<caption>A &lt; B</caption>" in text
    assert text.count("<button") == (0 if sorted_by is None else 2)
