from __future__ import annotations

from typing import Any

import numpy as np
import pytest


def mask(*counts: int) -> np.ndarray:
    """A mask (10, 10) with so many pixels of 0, 1, 2, … and the rest ignored."""
    values = np.full(100, 255, np.uint8)
    values[: sum(counts)] = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    return values.reshape(10, 10)


def test_imbalance_is_told_with_weights(find: Any, noise: Any) -> None:
    found = find("class-imbalance", {"train": [(noise((10, 10)), mask(60, 36, 2)), (noise((10, 10)), mask(90))]})
    assert found.severity == "info"
    shares = {"sky": 150 / 188, "road": 36 / 188, "car": 2 / 188}
    assert found.numbers["pixel_share"] == pytest.approx(shares, abs=1e-6)
    # The frequency of a class is its share of the images that hold it: 150/188, 36/98, 2/98; the median is road's.
    weights = {"sky": (36 / 98) / (150 / 188), "road": 1, "car": 18}
    assert found.numbers["median_frequency_weights"] == pytest.approx(weights, abs=1e-3)
    assert "75 times the pixels" in found.message
    assert "car 1.1 % of the pixels in 1 image" in found.message
    assert found.fix == ("training.loss.class_weights=median_frequency",)


def test_balanced_classes_need_no_weights(find: Any, noise: Any) -> None:
    assert find("class-imbalance", {"train": [(noise((10, 10)), mask(60, 35, 5))]}) is None


def test_class_that_no_mask_holds(find: Any, noise: Any) -> None:
    found = find("unused-class", {"train": [(noise((10, 10)), mask(60, 40))]})
    assert found.numbers["classes"] == ["car"]


@pytest.mark.parametrize(("where", "severity"), [("val", "warning"), ("train", "error")])
def test_class_missing_in_a_split(find: Any, noise: Any, where: str, severity: str) -> None:
    whole, lacking = [(noise((10, 10)), mask(30, 30, 30)) for _ in range(3)], [(noise((10, 10)), mask(50, 50))]
    splits = {"train": whole, "val": whole} | {where: lacking}
    found = find("class-missing-in-split", splits)
    assert (found.severity, found.numbers["split"], found.numbers["classes"]) == (severity, where, ["car"])


def test_wrong_masks_do_not_count(diagnose: Any, noise: Any) -> None:
    """A mask with an unnamed id says nothing about the classes: its class 2 may be a mistake as well."""
    wrong = mask(30, 30, 30)
    wrong[0, 0] = 99
    diagnosis = diagnose({"train": [*[(noise((10, 10)), mask(50, 50)) for _ in range(3)], (noise((10, 10)), wrong)]})
    assert {finding.code for finding in diagnosis.findings} >= {"unnamed-ids", "unused-class"}
    assert diagnosis.to_dict()["classes"][2]["pixels"] == {"train": 0}


def test_nothing_is_said_of_classes_where_most_masks_are_wrong(diagnose: Any, noise: Any) -> None:
    wrong = mask(30, 30) + np.uint8(7)
    splits = {
        "train": [(noise((10, 10)), mask(40, 40, 20)) for _ in range(3)],
        "val": [(noise((10, 10)), wrong), (noise((10, 10)), wrong), (noise((10, 10)), mask(100))],
    }
    found = [finding.code for finding in diagnose(splits).findings]
    assert "unnamed-ids" in found
    assert not {"class-missing-in-split", "unused-class", "one-class"} & set(found)


@pytest.mark.parametrize(("labelled", "severity"), [(95, "info"), (30, "warning")])
def test_share_of_ignored_pixels(find: Any, noise: Any, labelled: int, severity: str) -> None:
    found = find("ignored-share", {"train": [(noise((10, 10)), mask(labelled - 10, 10))] * 2})
    assert (found.severity, found.numbers["share"]) == (severity, pytest.approx(1 - labelled / 100))


def test_nothing_ignored_is_no_finding(find: Any, noise: Any) -> None:
    assert find("ignored-share", {"train": [(noise((10, 10)), mask(100))]}) is None
