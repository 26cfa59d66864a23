"""Scores against hand-computed cases, scikit-learn and torchmetrics."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.segmentation

from segtune.evaluation.confusion import count_pairs
from segtune.evaluation.scores import class_scores, mean, of_confusion, overall_scores, plain, ratio


def test_by_hand():
    confusion = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    found = class_scores(*of_confusion(confusion))
    # class 0: 1 shared of 3; class 1: 1 of 2; class 2: 1 of 2; class 3 occurs nowhere
    np.testing.assert_allclose(found["iou"], [1 / 3, 1 / 2, 1 / 2, np.nan])
    np.testing.assert_allclose(found["recall"], [1 / 2, 1 / 2, 1, np.nan])
    np.testing.assert_allclose(found["precision"], [1 / 2, 1, 1 / 2, np.nan])
    np.testing.assert_allclose(found["dice"], [1 / 2, 2 / 3, 2 / 3, np.nan])
    overall = overall_scores(*of_confusion(confusion))
    assert overall["mean_iou"] == pytest.approx(4 / 9)
    assert overall["overall_accuracy"] == pytest.approx(3 / 5)
    assert overall["frequency_weighted_iou"] == pytest.approx(2 / 5 / 3 + 2 / 5 / 2 + 1 / 5 / 2)
    chance = (2 * 2 + 2 * 1 + 1 * 2) / 25
    assert overall["kappa"] == pytest.approx((3 / 5 - chance) / (1 - chance))


def test_a_class_that_is_only_predicted_counts_as_zero_where_it_is_asked_for():
    found = class_scores(*of_confusion(np.array([[1, 1], [0, 0]])))
    assert found["iou"].tolist() == [0.5, 0.0] and found["dice"].tolist() == pytest.approx([2 / 3, 0])
    assert math.isnan(found["accuracy"][1]) and found["precision"][1] == 0


@pytest.mark.parametrize("num_labels", [2, 7, 40])
def test_equals_scikit_learn_and_torchmetrics(num_labels):
    rng = np.random.default_rng(num_labels)
    reference = rng.integers(0, num_labels, (50, 60))
    prediction = np.where(rng.random(reference.shape) < 0.7, reference, rng.integers(0, num_labels, reference.shape))
    counts = of_confusion(count_pairs(prediction, reference, num_labels))
    found, overall = class_scores(*counts), overall_scores(*counts)
    truth, guess = reference.ravel(), prediction.ravel()
    np.testing.assert_allclose(found["precision"], sklearn.metrics.precision_score(truth, guess, average=None))
    np.testing.assert_allclose(found["recall"], sklearn.metrics.recall_score(truth, guess, average=None))
    np.testing.assert_allclose(found["iou"], sklearn.metrics.jaccard_score(truth, guess, average=None))
    assert overall["kappa"] == pytest.approx(sklearn.metrics.cohen_kappa_score(truth, guess))
    weighted = sklearn.metrics.jaccard_score(truth, guess, average="weighted")
    assert overall["frequency_weighted_iou"] == pytest.approx(weighted)
    maps = [torch.from_numpy(values)[None] for values in (prediction, reference)]
    dice = torchmetrics.functional.segmentation.dice_score(
        *maps, num_classes=num_labels, average="none", input_format="index"
    )
    np.testing.assert_allclose(found["dice"], dice[0].numpy(), rtol=1e-6)


def test_nothing_gives_nan_without_a_warning():
    overall = overall_scores(*np.zeros((3, 4), int))
    assert len(overall) == 7 and all(math.isnan(value) for value in overall.values())
    assert np.isnan(mean(np.full((2, 3), np.nan))).all()


def test_one_class_everywhere_has_no_kappa():
    overall = overall_scores(*of_confusion(np.array([[5, 0], [0, 0]])))
    assert overall["overall_accuracy"] == 1 and math.isnan(overall["kappa"])  # chance alone agrees everywhere


def test_leading_axes_are_kept():
    counts = np.random.default_rng(0).integers(0, 9, (5, 2, 3, 3))
    many = overall_scores(*of_confusion(counts))
    for key, value in overall_scores(*of_confusion(counts[4, 1])).items():
        np.testing.assert_allclose(many[key][4, 1], value)
    assert ratio([1, 2], 0).shape == (2,)


def test_plain_is_json():
    value = {"a": np.array([1.5, np.nan]), "b": [np.int64(3), float("nan")], "c": {"d": np.float32(0.5), "e": "x"}}
    assert json.dumps(plain(value)) == '{"a": [1.5, null], "b": [3, null], "c": {"d": 0.5, "e": "x"}}'
