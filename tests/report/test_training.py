from __future__ import annotations

from dataclasses import replace

import pytest
from html_reading import Page
from report_data import RECORDS

from segtune.report.facts import Facts
from segtune.report.training import duration, environment, training


def test_curves_and_timing(facts: Facts) -> None:
    text = training(facts)
    said = Page(text).text
    assert text.count("<svg") == 3
    for line in ("Loss of the training, 0.250 at the end", "Mean IoU on the validation split, best 0.500"):
        assert line in said
    for fact in ("steps 4 (0.4 epochs)", "time 2 min 10 s", "4.0 images a second", "25 % of the time", "1.7 GB"):
        assert fact in said


def test_a_run_that_was_gone_on_with_took_all_its_parts(facts: Facts) -> None:
    parts = replace(facts, records=[{"ended": "signal", "seconds": 70.0, "peak_memory_mb": 900.0}, *RECORDS])
    assert "time 3 min 20 s, in 2 parts" in Page(training(parts)).text


def test_without_steps_there_is_no_training(facts: Facts) -> None:
    assert training(replace(facts, records=[RECORDS[0]])) == ""
    broken = [{**record, "loss": float("nan")} if "loss" in record else record for record in RECORDS]
    assert training(replace(facts, records=broken)).count("<svg") == 2  # no curve of what is no number


def test_environment_is_that_of_the_training(facts: Facts) -> None:
    said = Page(environment(facts)).text
    assert "torch 2.0" in said and "evaluation protocol whole" in said and "for 12 images" in said


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.14159, "3.1 s"), (59.4, "59 s"), (185, "3 min 5 s"), (7800, "2 h 10 min"), (3599.7, "1 h 0 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
