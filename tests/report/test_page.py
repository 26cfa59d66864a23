from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from html_reading import Page

from segtune.errors import UsageError
from segtune.report.facts import Facts, Place
from segtune.report.page import page, write_report

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
        place=Place(None, "user/name"),
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
