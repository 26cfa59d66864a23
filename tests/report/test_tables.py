from __future__ import annotations

import json
import re

import numpy as np
import pytest

from segtune.report.facts import Facts
from segtune.report.tables import class_table, confusion, data_table, size_table, table


def rows(text: str) -> dict[str, list[str]]:
    """Texts of the cells of a table, by the name of the row."""
    found = {}
    for row in re.findall(r"<tr[^>]*>(.*?)</tr>", text.split("<tbody>")[1], re.S):
        cells = [re.sub(r"<[^>]+>", "", cell).replace("\N{NO-BREAK SPACE}", " ").strip() for cell in row.split("</t")]
        found[cells[0]] = [cell for cell in cells[1:] if cell not in ("", "h>", "d>")]
    return found


def test_classes_are_sorted_by_pixels_and_absent_ones_are_absent(facts: Facts) -> None:
    text = class_table(facts)
    found = {name.split(">")[-1]: cells for name, cells in rows(text).items()}
    assert list(found) == ["&lt;road&gt;", "sky", "car", "ghost"]
    scores = facts.scores["per_class"]["car"]
    assert scores["iou"] == 0  # wherever it is it is taken for sky, and wherever it is said there is road
    assert [cell.split(">")[-1] for cell in found["car"]][1:4] == ["0.000", "0.000", "0.000"]
    assert [cell.split(">")[-1] for cell in found["ghost"]] == ["absent", "–", "–", "–", "–", "0.0 %", "0"]
    assert 'aria-sort="descending"><button type="button">pixels' in text and text.count("aria-sort") == 8
    low, high = facts.intervals["per_class"]["<road>"]["bca"]
    assert f'style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"' in text


def test_matrix_is_counts_that_no_name_can_break(facts: Facts) -> None:
    names = ["a", "</script><script>alert(1)"]
    text = confusion(names, np.array([[3, 1], [0, 2]]))
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', text)
    assert json.loads(data) == {"names": names, "counts": [[3, 1], [0, 2]]}
    assert "25\N{NO-BREAK SPACE}% of <b>a</b> is taken for <b>&lt;/script&gt;" in text
    assert "No class is taken for another" in confusion(names, np.eye(2, dtype=int))


def test_sizes_are_those_of_the_evaluation(facts: Facts) -> None:
    assert facts.examination is not None
    scores = facts.examination.evaluation.scores()
    found = rows(size_table(facts))
    assert [cell.split(">")[-1] for cell in found["mean"]] == [
        "–" if value is None else f"{value:.3f}"
        for value in (scores[f"mean_iou_{size}"] for size in ("small", "medium", "large"))
    ]


def test_data_has_the_share_of_each_class(facts: Facts) -> None:
    found = {
        name.split(">")[-1]: [cell.split(">")[-1] for cell in cells] for name, cells in rows(data_table(facts)).items()
    }
    assert found["sky"] == ["50.0 %", f"{100 * 11 / 24:.1f} %"]
    assert found["car"] == ["0.0 %", f"{100 / 24:.1f} %"]
    assert found["ignored, of all pixels"] == ["0.0 %", "0.0 %"]
    assert "train<small>1 image</small>" in data_table(facts) and "test<small>12 images</small>" in data_table(facts)


@pytest.mark.parametrize("sorted_by", [None, 1])
def test_tables_scroll_and_have_a_name(sorted_by: int | None) -> None:
    text = table(["a", "b"], ["<tr><td>1</td><td>2</td></tr>"], "A < B", sorted_by=sorted_by)
    assert 'tabindex="0"' in text and 'aria-label="A &lt; B"' in text and "<caption>A &lt; B</caption>" in text
    assert text.count("<button") == (0 if sorted_by is None else 2)
