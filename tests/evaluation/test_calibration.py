"""Calibration against torchmetrics, a direct fit of the temperature, and hand-computed cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from segtune.evaluation.calibration import BINS, UNIT, TemperatureFit, calibration_scores, reliability_counts


def logits_and_labels(seed: int, shape: tuple[int, ...], num_labels: int, sharpness: float):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*shape, num_labels))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(-1)  # drawn from softmax(logits)
    return (logits * sharpness).astype(np.float32), labels


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_equals_torchmetrics(sharpness):
    logits, labels = logits_and_labels(0, (70, 80), 5, sharpness)
    labels[:9] = 255
    probabilities = scipy.special.softmax(logits, axis=-1)
    counts = reliability_counts(probabilities.argmax(-1), labels, probabilities.max(-1), 5)
    found = calibration_scores(counts)["all"]
    rows = torch.from_numpy(probabilities).reshape(-1, 5), torch.from_numpy(labels).reshape(-1)
    for key, norm in (("ece", "l1"), ("mce", "max")):
        theirs = multiclass_calibration_error(*rows, num_classes=5, n_bins=BINS, norm=norm, ignore_index=255)
        assert found[key] == pytest.approx(theirs.item(), abs=1e-5)
    assert found["bins"]["pixels"].sum() == 61 * 80


def test_by_hand():
    labels = np.zeros((20, 20), np.uint8)
    labels[:, 10:] = 1
    labels[0] = 255
    prediction = labels.copy()
    prediction[1:, 10] = 0  # wrong where the classes meet
    confidence = np.full((20, 20), 0.75, np.float32)
    confidence[1:, 10] = 1.0
    counts = reliability_counts(prediction, labels, confidence, 2)
    found = calibration_scores(counts)
    sure = found["all"]["bins"]
    assert sure["pixels"].tolist() == [0] * 11 + [19 * 19, 0, 0, 19]  # 1 belongs to the last bin
    assert sure["accuracy"][11] == 1 and sure["accuracy"][14] == 0 and math.isnan(sure["accuracy"][0])
    assert found["all"]["ece"] == pytest.approx((19 * 19 * 0.25 + 19) / 380)
    assert found["all"]["mce"] == 1
    boundary = found["boundary"]  # a column on each side
    assert boundary["bins"]["pixels"].sum() == 38
    assert boundary["ece"] == pytest.approx((19 * 0.25 + 19) / 38)
    assert boundary["accuracy"] == 0.5 and boundary["confidence"] == pytest.approx(0.875)
    assert counts.dtype == np.int64 and counts[0, 11, 2] == 19 * 19 * 0.75 * UNIT


def test_parts_add_up_in_any_order():
    logits, labels = logits_and_labels(1, (6, 30, 40), 4, 2.0)
    sure, ids = scipy.special.softmax(logits, axis=-1).max(-1), logits.argmax(-1)
    parts = [reliability_counts(ids[i], labels[i], sure[i], 4) for i in range(6)]
    assert (sum(parts) == sum(parts[::-1])).all()
    assert sum(parts)[0, :, 0].sum() == labels.size


def test_no_pixels():
    counts = reliability_counts(np.zeros((3, 3), int), np.full((3, 3), 255), np.ones((3, 3), np.float32), 2)
    found = calibration_scores(counts)["all"]
    assert all(math.isnan(found[key]) for key in ("ece", "mce", "confidence", "accuracy"))


@pytest.mark.parametrize(("num_labels", "sharpness"), [(5, 0.3), (5, 1.0), (5, 4.0), (150, 2.0), (1, 3.0)])
def test_temperature_is_that_of_a_direct_fit(num_labels, sharpness):
    logits, labels = logits_and_labels(2, (4000,), max(num_labels, 2), sharpness)
    given = (logits[:, 1:] - logits[:, :1]) if num_labels == 1 else logits
    fit = TemperatureFit()
    for part in range(0, 4000, 1000):
        fit.add(given[part : part + 1000], labels[part : part + 1000])

    def nll(temperature: float) -> float:
        log_probabilities = scipy.special.log_softmax(logits.astype(np.float64) / temperature, axis=1)
        return float(-log_probabilities[np.arange(len(labels)), labels].mean())

    direct = scipy.optimize.minimize_scalar(nll, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-6})
    assert fit.temperature() == pytest.approx(direct.x, rel=2e-3)
    assert fit.temperature() == pytest.approx(sharpness, rel=0.1)
    for temperature in (0.2, 1.0, direct.x, 7.0):
        assert fit.nll(temperature) == pytest.approx(nll(temperature), rel=1e-4)


def test_temperature_at_the_ends():
    assert TemperatureFit().temperature() == 1
    right, wrong = TemperatureFit(), TemperatureFit()
    right.add(np.array([[5.0, 0.0]]), np.array([0]))
    wrong.add(np.array([[5.0, 0.0]]), np.array([1]))
    assert right.temperature() == pytest.approx(1 / 20)  # the surer the better
    assert wrong.temperature() == pytest.approx(20)
