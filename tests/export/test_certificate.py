"""The certificate of two functions whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segtune.errors import DataError
from segtune.export.certificate import (
    CERTIFICATE_FILE,
    HALF,
    Picture,
    certify,
    read_certificate,
    write_certificate,
)

NAMES = ("sky", "road", "car")
IMAGES = [np.full((4, 5, 3), value, dtype=np.uint8) for value in (0, 1, 2)]
TRUTH = np.repeat(np.array([0, 0, 1, 1])[:, None], 5, axis=1)  # rows of sky, then of road


def answer(image: np.ndarray) -> np.ndarray:
    return TRUTH.astype(np.uint8)


def other(image: np.ndarray) -> np.ndarray:
    """One pixel of sky is road, in the second image alone."""
    mask = answer(image)
    mask[0, 0] = image[0, 0, 0] == 1
    return mask


def pictures(labels: np.ndarray | None = None) -> list[Picture]:
    return [Picture(f"image-{number}", image, labels) for number, image in enumerate(IMAGES)]


def test_equal_answers() -> None:
    found = certify(answer, answer, pictures(), NAMES)
    assert found.passed and found.agreement == found.mean_iou == 1 and found.differing == found.ties == 0
    assert found.per_class == {"sky": 1.0, "road": 1.0, "car": None}
    assert found.truth is None and found.to_dict()["true_mean_iou"] is None
    json.dumps(found.to_dict())


def test_one_pixel_of_sixty() -> None:
    found = certify(answer, other, pictures(), NAMES)
    assert (found.images, found.pixels, found.differing) == (3, 60, 1)
    assert found.agreement == pytest.approx(59 / 60)
    assert found.per_class["sky"] == pytest.approx(29 / 30) and found.per_class["road"] == pytest.approx(30 / 31)
    assert found.mean_iou == pytest.approx((29 / 30 + 30 / 31) / 2)
    assert found.worst == ("image-1", pytest.approx(19 / 20))
    assert not found.passed
    assert "1 of 60 pixels differ; worst: image-1 (0.95" in str(found)


@pytest.mark.parametrize(("gap", "ties"), [(1e-4, 1), (-1e-4, 1), (0.1, 0)])
def test_ties_are_told_from_errors(gap: float, ties: int) -> None:
    asked = []

    def margins(image: np.ndarray, *at: np.ndarray) -> np.ndarray:
        asked.append([one.tolist() for one in at])
        return np.array([gap])

    found = certify(answer, other, pictures(), NAMES, margins=margins)
    assert asked == [[[0], [0], [0], [1]]]  # row, column, the checkpoint's class and the export's, of the one pixel
    assert found.ties == ties and found.differing == 1


def test_true_scores_of_both_with_their_interval() -> None:
    found = certify(answer, other, pictures(TRUTH), NAMES, thresholds=HALF)
    truth = found.to_dict()["true_mean_iou"]
    assert truth["checkpoint"] == 1
    assert truth["export"] == pytest.approx((29 / 30 + 30 / 31) / 2)
    assert truth["difference"] == pytest.approx(truth["export"] - 1)
    low, high = truth["interval"]
    assert low <= truth["difference"] <= high


def test_ignored_pixels_count_for_agreement_alone() -> None:
    labels = np.where(np.indices(TRUTH.shape)[0] == 0, 255, TRUTH)
    found = certify(answer, other, pictures(labels), NAMES)
    assert found.differing == 1 and found.to_dict()["true_mean_iou"]["export"] == 1


def test_time_and_memory_of_both() -> None:
    def hungry(image: np.ndarray) -> np.ndarray:
        return np.ones(100 * 2**20, dtype=np.uint8)[:20].reshape(4, 5) * 0 + answer(image)

    found = certify(answer, hungry, pictures(), NAMES)
    assert min(found.milliseconds) > 0
    if found.megabytes[1] is not None:  # Linux tells
        assert found.megabytes[1] > 90 > (found.megabytes[0] or 0)


@pytest.mark.parametrize(
    ("export", "images", "message"),
    [
        (lambda image: answer(image)[:2], IMAGES, r"the mask of an image of \(4, 5\) \(height, width\) is \(2, 5\)"),
        (lambda image: answer(image) + 7, IMAGES, "image-0"),
        (answer, [], "no picture to compare"),
    ],
)
def test_faults_of_an_export(export: object, images: list[np.ndarray], message: str) -> None:
    shown = [Picture(f"image-{number}", image) for number, image in enumerate(images)]
    with pytest.raises(DataError, match=message):
        certify(answer, export, shown, NAMES)  # type: ignore[arg-type]


def test_file(tmp_path: Path) -> None:
    assert read_certificate(tmp_path) is None
    write_certificate(tmp_path, {"target": "onnx", "files": []})
    assert read_certificate(tmp_path) == {"format": 1, "target": "onnx", "files": []}


@pytest.mark.parametrize(
    ("text", "message"), [("{", "damaged"), ("[]", "damaged"), ('{"format": 9}', "has format 9, this version")]
)
def test_damaged_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / CERTIFICATE_FILE).write_text(text)
    with pytest.raises(DataError, match=message):
        read_certificate(tmp_path)
