from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segtune.errors import UsageError
from segtune.evaluation.evaluation import Evaluation
from segtune.labels.label_map import LabelMap
from segtune.report.gather import Facts, Subject
from segtune.report.page import (
    page,
    write_report,
)
from support.html_reading import Page, drawn, part
from support.report_data import RECORDS

SECTIONS = ["short", "images", "classes", "confusions", "boundaries", "calibration", "suspects", "training", "data"]


def test_page_stands_alone_and_says_everything(facts: Facts) -> None:
    text = page(facts)
    read = Page(text)
    assert read.open == []
    assert [name for name in read.ids if not name.endswith("-title")] == [*SECTIONS, "recipe", "environment"]
    assert len(read.sources) > 13 * 4
    assert all(source.startswith(("data:", "#")) for source in read.sources)
    assert {source[1:] for source in read.sources if source[0] == "#"} <= set(read.ids)
    assert not re.search(r"https?://|@import|url\((?!data:)", text)
    assert not re.search(r"localStorage|sessionStorage|document\.cookie|indexedDB", text)  # a sandbox has none
    for word in ("a run & more", "<road>", "a: <b>", "doubted", "unsure", "2 min 10 s", "1.7 GB", "12 images"):
        assert word in read.text


def test_headline_is_the_score_with_its_interval(facts: Facts) -> None:
    low, high = facts.intervals["mean_iou"]["bca"]
    score = facts.scores["mean_iou"]
    text = page(facts)
    assert f"<b>{score:.3f} <small>{low:.3f} – {high:.3f}</small></b><span>mean IoU</span>" in text
    assert f"<title>a run &amp; more: mIoU {score:.3f}</title>" in text
    assert "10,000 resamples of the 12 images" in text


def test_findings_in_words(facts: Facts) -> None:
    said = Page(page(facts)).text
    wrong = sum(4 * number for number in range(10)) / (12 * 48)  # of road
    assert f"{100 * wrong:.0f} % of <road> is taken for car" in said
    assert "100 % of car is taken for sky" in said
    assert "Not in these images: ghost." in said
    assert "One mask looks wrong to a model that is sure" in said


def test_parts_that_nothing_is_known_of_are_left_out(facts: Facts) -> None:
    empty = replace(
        facts,
        subject=Subject(None, "user/name"),
        split=None,
        evaluation=None,
        examination=None,
        scores={},
        records=[],
        pixels={},
        images={"train": None, "val": 3},
    )
    read = Page(page(empty))
    assert read.open == []
    assert [name for name in read.ids if not name.endswith("-title")] == ["data", "recipe", "environment"]
    assert "user/name" in read.text and "Not evaluated" in read.text
    assert "train a stream val 3 images" in read.text


def test_one_image_gives_a_page(facts: Facts) -> None:
    """There are no intervals, and nothing stands out."""
    assert facts.examination is not None and facts.evaluation is not None
    intervals = {**facts.intervals, "units": 1, "mean_iou": {"bca": [None, None]}}
    intervals["per_class"] = {name: {"bca": [None, None]} for name in facts.label_map.names}
    chosen = {"worst": ["a9"], "best": [], "random": [], "suspects": []}
    examination = replace(facts.examination, chosen=chosen, standing_out=0)
    read = Page(page(replace(facts, intervals=intervals, examination=examination)))
    assert read.open == [] and "Best" not in read.text
    assert "In none of 12 images does the model contradict the mask" in read.text


def test_what_is_counted_in_some_images_is_said(facts: Facts) -> None:
    assert "segtune report counts in all" not in page(facts)
    assert facts.evaluation is not None
    more = facts.evaluation.counts
    whole = replace(facts)
    whole.evaluation = type(facts.evaluation)(facts.label_map.names)
    for index in range(20):
        whole.evaluation.add(f"{index}", np.zeros((2, 2), np.int64), np.zeros((2, 2), np.int64))
    assert page(whole).count(f"(counted in {len(more)} of 20 images; segtune report counts in all)") == 2


def test_page_replaces_a_page_and_nothing_else(facts: Facts, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(facts, path)
    write_report(facts, path)
    path.write_text("my notes")
    with pytest.raises(UsageError, match="no page of segtune report"):
        write_report(facts, path)
    assert path.read_text() == "my notes"


def rows(text: str) -> dict[str, list[str]]:
    """Texts of the cells of a table, by the name of the row."""
    lines = text.split("<tbody>")[1].split("</tr>")
    cells = [[Page(cell).text for cell in re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", line)] for line in lines]
    return {row[0]: row[1:] for row in cells if row}


def test_classes_are_sorted_by_pixels_and_absent_ones_are_absent(facts: Facts) -> None:
    text = part(page(facts), "classes")
    found = rows(text)
    assert list(found) == ["<road>", "sky", "car", "ghost"]
    # wherever there is a car, sky is said, and wherever car is said there is road
    assert found["car"][0].startswith("0.000") and found["car"][1:4] == ["0.000"] * 3
    assert found["car"][-1] == "1"
    assert found["ghost"] == ["absent", "–", "–", "–", "–", "0.0 %", "0"]
    assert 'aria-sort="descending"><button type="button">pixels' in text and text.count("aria-sort") == 8
    low, high = facts.intervals["per_class"]["<road>"]["bca"]
    assert f'style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"' in text


def evaluated(names: list[str], confusion: list[list[int]]) -> Evaluation:
    """One image with these counts."""
    evaluation = Evaluation(names)
    truth, predicted = (np.repeat(ids, np.ravel(confusion)) for ids in np.indices(np.shape(confusion)).reshape(2, -1))
    evaluation.add("image", truth[None], predicted[None])
    return evaluation


def test_matrix_is_counts_that_no_name_can_break(facts: Facts) -> None:
    names = ["a", "</script><script>alert(1)", "c", "d"]
    counts = [[3, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    whole = replace(facts, label_map=LabelMap.from_names(names), evaluation=evaluated(names, counts))
    text = part(page(whole), "confusions")
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', text)
    assert json.loads(data) == {"names": names, "counts": counts}
    assert "25 % of a is taken for </script><script>alert(1)" in Page(text).text
    right = replace(whole, evaluation=evaluated(names, np.eye(4, dtype=int).tolist()))
    assert "No class is taken for another" in part(page(right), "confusions")


def test_sizes_are_those_of_the_evaluation(facts: Facts) -> None:
    """Half an image is a region of 16 x 48 pixels: small."""
    assert facts.examination is not None
    scores = facts.examination.evaluation.scores()
    text = part(page(facts), "boundaries").split("<h3>Sizes of objects</h3>")[1]
    found = rows(text)
    assert found["mean"] == [f"{scores['mean_iou_small']:.3f}", "–", "–"]
    assert found["ghost"] == ["–", "–", "–"]
    assert '<th scope="col">small (below 32²)<small>100\N{NO-BREAK SPACE}% of the pixels</small>' in text


def test_data_has_the_share_of_each_class(facts: Facts) -> None:
    turned = replace(facts, pixels={"test": facts.pixels["test"], "train": facts.pixels["train"]})
    text = part(page(turned), "data")
    assert list(rows(text)) == ["<road>", "sky", "car", "ghost", "ignored, of all pixels"]  # by what comes first
    text = part(page(facts), "data")
    found = rows(text)
    assert found["sky"] == ["50.0 %", f"{100 * 11 / 24:.1f} %"]
    assert found["car"] == ["0.0 %", f"{100 / 24:.1f} %"]
    assert found["ignored, of all pixels"] == ["0.0 %", "0.0 %"]
    assert "train<small>1 image</small>" in text and "test<small>12 images</small>" in text


@pytest.mark.parametrize("sorted_by", [None, 1])
def test_tables_scroll_and_have_a_name(sorted_by: int | None) -> None:
    text = drawn("report/templates/tables.html", "table", ["a", "b"], "A < B", sorted_by, caller=lambda: "1")
    assert 'tabindex="0"' in text and 'aria-label="A &lt; B"' in text and "<caption>A &lt; B</caption>" in text
    assert text.count("<button") == (0 if sorted_by is None else 2)


def test_curves_and_timing(facts: Facts) -> None:
    text = part(page(facts), "training")
    said = Page(text).text
    assert text.count("<svg") == 3
    for line in ("Loss of the training, 0.250 at the end", "Mean IoU on the validation split, best 0.500"):
        assert line in said
    for fact in ("steps 4 (0.4 epochs)", "time 2 min 10 s", "4.0 images a second", "25 % of the time", "1.7 GB"):
        assert fact in said


def test_a_run_that_was_gone_on_with_took_all_its_parts(facts: Facts) -> None:
    parts = replace(facts, records=[{"ended": "signal", "seconds": 70.0, "peak_memory_mb": 900.0}, *RECORDS])
    assert "time 3 min 20 s, in 2 parts" in Page(part(page(parts), "training")).text


def test_without_steps_there_is_no_training(facts: Facts) -> None:
    assert 'id="training"' not in page(replace(facts, records=[RECORDS[0]]))
    broken = [{**record, "loss": float("nan")} if "loss" in record else record for record in RECORDS]
    assert part(page(replace(facts, records=broken)), "training").count("<svg") == 2  # no curve of what is no number


def test_environment_is_that_of_the_training(facts: Facts) -> None:
    said = Page(part(page(facts), "environment")).text
    assert "torch 2.0" in said and "evaluation protocol whole" in said and "for 12 images" in said
