"""The metrics through evaluate's own protocol."""

from __future__ import annotations

import math
import os

import evaluate
import numpy as np
import pytest
import torch

from segtune.errors import DataError
from segtune.evaluation.boundary import boundary_counts, boundary_scores
from segtune.evaluation.metrics import (
    BoundaryScores,
    CalibrationError,
    MeanImageIoU,
    MeanIoU,
    SegmentationScores,
    SizeScores,
)

KEYS = {"mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "per_category_accuracy"}
SHAPES = [(17, 31), (40, 9), (5, 5)]
ALL = (MeanIoU, SegmentationScores, MeanImageIoU, BoundaryScores, SizeScores, CalibrationError)


def _reference_mean_iou(predictions, references, num_labels, ignore_index):
    """The definition of evaluate's mean_iou, one class at a time."""
    pred = np.concatenate([np.asarray(p).ravel() for p in predictions]).astype(int)
    ref = np.concatenate([np.asarray(r).ravel() for r in references]).astype(int)
    pred, ref = pred[ref != ignore_index], ref[ref != ignore_index]
    iou, accuracy = np.full(num_labels, np.nan), np.full(num_labels, np.nan)
    for k in range(num_labels):
        both = np.sum((pred == k) & (ref == k))
        either = np.sum((pred == k) | (ref == k))
        iou[k] = both / either if either else np.nan
        accuracy[k] = both / np.sum(ref == k) if np.any(ref == k) else np.nan
    return {
        "mean_iou": np.nanmean(iou),
        "mean_accuracy": np.nanmean(accuracy),
        "overall_accuracy": np.mean(pred == ref),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }


def _maps(seed, num_labels, shapes=SHAPES, ignore_index=255):
    rng = np.random.default_rng(seed)
    predictions = [rng.integers(0, num_labels, shape).astype(np.uint8) for shape in shapes]
    references = []
    for prediction in predictions:
        reference = np.where(rng.random(prediction.shape) < 0.6, prediction, rng.integers(0, num_labels))
        reference[rng.random(prediction.shape) < 0.1] = ignore_index
        references.append(reference.astype(np.uint8))
    return predictions, references


def _confidences(predictions):
    return [np.full(p.shape, 0.7, np.float32) for p in predictions]


def _inputs(metric, predictions, references):
    own = {"predictions": predictions, "references": references, "confidences": _confidences(predictions)}
    return {name: own[name] for name in metric.features}


def test_equals_the_plain_formula():
    predictions, references = _maps(0, 6)
    expected = _reference_mean_iou(predictions, references, 6, 255)
    metric = MeanIoU(6)
    metric.add_batch(predictions=predictions[:2], references=references[:2])
    metric.add(prediction=predictions[2], reference=torch.from_numpy(references[2]))
    assert len(metric) == 3
    result = metric.compute()
    assert result.keys() == KEYS
    for key in KEYS:
        np.testing.assert_allclose(result[key], expected[key], rtol=1e-12, err_msg=key)
    more = SegmentationScores(6).compute(predictions=predictions, references=references)
    assert more.keys() > KEYS
    for key in KEYS:
        np.testing.assert_array_equal(more[key], result[key])
    assert more["confusion"].sum() == sum(int((r != 255).sum()) for r in references)


def test_mean_over_images_is_not_that_of_all_pixels():
    right, wrong = np.array([[0, 0, 0, 1]]), np.array([[1, 1]])
    found = MeanImageIoU(2).compute(predictions=[right, wrong, right], references=[right, wrong * 0, right * 0 + 255])
    assert found == {"mean_image_iou": pytest.approx((1 + 0) / 2)}  # the third is ignored
    assert math.isnan(MeanImageIoU(2).compute(predictions=right, references=right * 0 + 255)["mean_image_iou"])


def test_counts_of_images_are_added_before_they_are_divided():
    predictions, references = _maps(1, 3)
    found = BoundaryScores(3, width=0.05).compute(predictions=predictions, references=references)
    counts = [boundary_counts(p, r, 3, width=0.05) for p, r in zip(predictions, references, strict=True)]
    expected = boundary_scores(sum(counts))
    np.testing.assert_array_equal(found["per_category_boundary_iou"], expected["boundary_iou"])
    assert found["mean_boundary_f1"] == expected["mean_boundary_f1"]
    assert set(found) == {
        f"{kind}_{key}" for kind in ("mean", "per_category") for key in ("boundary_iou", "boundary_f1")
    }


def test_sizes_and_calibration_by_hand():
    reference = np.zeros((40, 40), np.uint8)
    reference[0:5, 0:5] = 1
    prediction = reference.copy()
    prediction[0:5, 4] = 0
    sizes = SizeScores(2).compute(predictions=prediction, references=reference)
    assert sizes["per_category_iou_small"][1] == pytest.approx(20 / 25)
    assert math.isnan(sizes["per_category_iou_large"][1]) and math.isnan(sizes["mean_iou_large"])
    confidences = np.where(prediction == reference, 0.9, 0.6).astype(np.float32)
    found = CalibrationError(2).compute(predictions=prediction, references=reference, confidences=confidences)
    assert found["ece"] == pytest.approx((1595 * 0.1 + 5 * 0.6) / 1600, abs=1e-6)
    assert found["boundary_ece"] > found["ece"]


@pytest.mark.parametrize("kind", ALL)
def test_every_metric_streams_and_starts_anew(kind):
    predictions, references = _maps(2, 4)
    metric = kind(4)
    at_once = metric.compute(**_inputs(metric, predictions, references))
    assert len(metric) == 0
    with pytest.raises(ValueError, match="call add or add_batch first"):
        metric.compute()
    for maps in zip(*_inputs(metric, predictions, references).values(), strict=True):
        metric.add(**dict(zip(metric.features, maps, strict=True)))
    assert len(metric) == 3 and "stored examples: 3" in repr(metric)
    streamed = metric.compute()
    assert streamed.keys() == at_once.keys()
    for key, value in at_once.items():
        np.testing.assert_equal(streamed[key], value)


@pytest.mark.parametrize("kind", ALL)
def test_faults_are_refused_and_nothing_is_counted(kind):
    metric = kind(3)
    good, bad = np.array([[0, 1, 2]]), np.array([[0, 7, 9]])
    for prediction, reference in ((good, bad), (bad, good)):
        with pytest.raises(DataError, match=r"id 7 \(1 pixels\), 9 \(1 pixels\), but classes are 0 to 2"):
            metric.add_batch(**_inputs(metric, [good, prediction], [good, reference]))
    assert len(metric) == 0
    with pytest.raises(ValueError, match="num_labels is at least 1"):
        kind(0)


def test_confidences_come_with_every_map():
    metric, maps = CalibrationError(2), [np.zeros((2, 3), int)] * 2
    with pytest.raises(DataError, match="confidences and predictions differ"):
        metric.add_batch(predictions=maps, references=maps, confidences=[np.ones((2, 3)), np.ones((3, 2))])
    with pytest.raises(TypeError):
        metric.add_batch(predictions=maps, references=maps)


def test_works_with_evaluate_combine():
    predictions, references = _maps(3, 3, SHAPES[:2])
    combined = evaluate.combine({"all": MeanIoU(3), "again": MeanIoU(3)})
    combined.add_batch(predictions=predictions, references=references)
    combined.add(predictions[0], references[0])
    result = combined.compute()
    assert set(result) == {f"{name}_{key}" for name in ("all", "again") for key in KEYS}
    alone = MeanIoU(3).compute(predictions=[*predictions, predictions[0]], references=[*references, references[0]])
    assert result["all_mean_iou"] == result["again_mean_iou"] == alone["mean_iou"]


def test_all_metrics_combine():
    predictions, references = _maps(4, 3)
    combined = evaluate.combine([kind(3) for kind in ALL if kind is not MeanIoU])
    combined.add_batch(predictions=predictions, references=references, confidences=_confidences(predictions))
    found = combined.compute()
    assert {"mean_iou", "kappa", "mean_image_iou", "mean_boundary_iou", "mean_iou_small", "ece"} <= set(found)


def test_is_an_evaluate_metric_that_writes_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    state = np.random.get_state()[1].tolist()
    names = {
        "mean_io_u",
        "segmentation_scores",
        "mean_image_io_u",
        "boundary_scores",
        "size_scores",
        "calibration_error",
    }
    assert {kind(2).name for kind in ALL} == names
    for kind in ALL:
        metric = kind(2)
        assert isinstance(metric, evaluate.Metric)
        assert metric.description and metric.citation
        metric.compute(**_inputs(metric, [np.zeros((8, 8), int)], [np.zeros((8, 8), int)]))
    assert np.random.get_state()[1].tolist() == state
    assert os.listdir(tmp_path) == []
