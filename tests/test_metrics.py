"""The metric against hand-computed cases, a plain formula, and evaluate's own protocol."""

from __future__ import annotations

import math
import os

import evaluate
import numpy as np
import pytest
import torch

from segtune.errors import DataError
from segtune.metrics import ConfusionMatrix, MeanIoU

KEYS = {"mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "per_category_accuracy"}


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


def _maps(seed, num_labels, ignore_index, shapes, dtype):
    rng = np.random.default_rng(seed)
    predictions = [rng.integers(0, num_labels, shape).astype(dtype) for shape in shapes]
    references = []
    for prediction in predictions:
        reference = np.where(rng.random(prediction.shape) < 0.6, prediction, rng.integers(0, num_labels))
        reference[rng.random(prediction.shape) < 0.1] = ignore_index
        references.append(reference.astype(dtype))
    return predictions, references


def test_by_hand():
    prediction = np.array([[0, 0, 1], [1, 2, 2]])
    reference = np.array([[0, 1, 1], [255, 2, 0]])
    metric = MeanIoU(num_labels=4)
    metric.add(prediction=prediction, reference=reference)
    assert metric.confusion.counts.tolist() == [[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    result = metric.compute()
    assert set(result) == KEYS
    # class 0: 1 shared of 3; class 1: 1 of 2; class 2: 1 of 2; class 3 occurs nowhere
    np.testing.assert_allclose(result["per_category_iou"], [1 / 3, 1 / 2, 1 / 2, np.nan])
    np.testing.assert_allclose(result["per_category_accuracy"], [1 / 2, 1 / 2, 1, np.nan])
    assert result["mean_iou"] == pytest.approx(4 / 9)
    assert result["mean_accuracy"] == pytest.approx(2 / 3)
    assert result["overall_accuracy"] == pytest.approx(3 / 5)


def test_a_class_that_is_only_predicted_counts_as_zero():
    result = ConfusionMatrix(2)
    result.update(np.array([[0, 1]]), np.array([[0, 0]]))
    values = result.compute()
    assert values["per_category_iou"].tolist() == [0.5, 0.0]
    assert values["per_category_accuracy"][0] == 0.5
    assert math.isnan(values["per_category_accuracy"][1])
    assert values["mean_iou"] == 0.25


@pytest.mark.parametrize(("num_labels", "ignore_index", "dtype"), [
    (4, 255, "uint8"),
    (4, 255, "int64"),
    (4, -100, "int64"),
    (4, 0, "uint8"),
    (150, 255, "uint8"),
    (256, -1, "int32"),
    (256, 300, "uint16"),
    (300, 255, "int32"),
    (300, 65535, "uint16"),
    (1, 255, "uint8"),
])  # fmt: skip
def test_equals_the_plain_formula(num_labels, ignore_index, dtype):
    shapes = [(17, 31), (40, 9), (5, 5), (700, 700)]
    predictions, references = _maps(0, num_labels, ignore_index, shapes, dtype)
    expected = _reference_mean_iou(predictions, references, num_labels, ignore_index)
    metric = MeanIoU(num_labels, ignore_index)
    metric.add_batch(predictions=predictions[:3], references=references[:3])
    metric.add(prediction=predictions[3], reference=references[3])
    assert len(metric) == 4
    result = metric.compute()
    for key in KEYS:
        np.testing.assert_allclose(result[key], expected[key], rtol=1e-12, err_msg=key)


def test_arrays_tensors_lists_and_batches_count_the_same():
    predictions, references = _maps(1, 5, 255, [(6, 7)] * 3, "uint8")
    forms = [
        (predictions, references),
        (np.stack(predictions), np.stack(references)),
        (torch.from_numpy(np.stack(predictions)), torch.from_numpy(np.stack(references)).long()),
        ([torch.from_numpy(p) for p in predictions], [r.astype(np.int16) for r in references]),
        (np.stack(predictions).tolist(), np.stack(references).tolist()),
        (np.asfortranarray(np.stack(predictions)), np.stack(references)),
    ]
    counts = []
    for prediction, reference in forms:
        metric = MeanIoU(5)
        metric.add_batch(predictions=prediction, references=reference)
        assert len(metric) == 3
        counts.append(metric.confusion.counts)
    assert counts[0].sum() == sum(int((r != 255).sum()) for r in references)
    for other in counts[1:]:
        np.testing.assert_array_equal(other, counts[0])


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
@pytest.mark.parametrize("ignore_index", [255, -100])
def test_ids_out_of_range_are_named_and_nothing_is_counted(dtype, ignore_index):
    confusion = ConfusionMatrix(3, ignore_index)
    confusion.update(np.array([[0, 1, 2]]), np.array([[0, 1, 2]]))
    good, bad = np.array([[0, 1, 2, 1]], dtype), np.array([[0, 7, 7, 9]], dtype)
    fix = f"classes are 0 to 2; pixels that do not count need {ignore_index}"
    with pytest.raises(DataError, match=rf"references hold id 7 \(2 pixels\), 9 \(1 pixels\), but {fix}"):
        confusion.update([good, good], [good, bad])
    with pytest.raises(DataError, match=r"predictions hold id 7 \(2 pixels\), 9 \(1 pixels\), but classes"):
        confusion.update([good, bad], [good, good])
    assert confusion.counts.tolist() == np.eye(3).tolist()


def test_negative_and_large_ids_are_out_of_range():
    confusion = ConfusionMatrix(3)
    with pytest.raises(DataError, match=r"id -1 \(1 pixels\)"):
        confusion.update(np.array([[0]]), np.array([[-1]]))
    with pytest.raises(DataError, match=r"id 256 \(1 pixels\)"):
        confusion.update(np.array([[256]]), np.array([[0]]))
    with pytest.raises(DataError, match="and 1 more"):
        confusion.update(np.zeros((1, 6), int), np.arange(10, 16)[None])


def test_what_is_predicted_on_ignored_pixels_does_not_matter():
    confusion = ConfusionMatrix(2)
    confusion.update(np.array([[0, 255]]), np.array([[0, 255]]))
    confusion.update(np.array([[0, -7]]), np.array([[0, 255]]))
    assert confusion.counts.tolist() == [[2, 0], [0, 0]]


@pytest.mark.parametrize(("predictions", "references", "message"), [
    (np.zeros((2, 3), int), np.zeros((3, 2), int), r"prediction is \(2, 3\), its reference \(3, 2\)"),
    ([np.zeros((2, 3), int)], [np.zeros((2, 3), int)] * 2, "1 predictions but 2 references"),
    (np.zeros((2, 3)), np.zeros((2, 3), int), "predictions are integer ids .*float64"),
    (torch.zeros(2, 3).long(), torch.zeros(2, 3), "references are integer ids .*float32"),
    ([[[0, 1], [0]]], [[[0, 1], [0, 1]]], "maps"),
])  # fmt: skip
def test_maps_that_do_not_fit_are_refused(predictions, references, message):
    with pytest.raises(DataError, match=message):
        ConfusionMatrix(2).update(predictions, references)


def test_matrices_of_several_processes_add_up():
    predictions, references = _maps(2, 4, 255, [(9, 9)] * 4, "uint8")
    parts = [ConfusionMatrix(4) for _ in range(2)]
    whole = ConfusionMatrix(4)
    for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        parts[i % 2].update(prediction, reference)
        whole.update(prediction, reference)
    total = parts[0] + parts[1]
    np.testing.assert_array_equal(total.counts, whole.counts)
    assert parts[0].counts.sum() < total.counts.sum()
    with pytest.raises(ValueError, match="num_labels 4 and 5"):
        total.merge(ConfusionMatrix(5))
    with pytest.raises(ValueError, match="num_labels"):
        ConfusionMatrix(0)


def test_no_pixels_at_all_give_nan_without_a_warning():
    confusion = ConfusionMatrix(2)
    confusion.update(np.array([[0, 1]]), np.array([[255, 255]]))
    result = confusion.compute()
    assert all(math.isnan(result[key]) for key in ("mean_iou", "mean_accuracy", "overall_accuracy"))


def test_compute_starts_anew():
    metric = MeanIoU(2)
    ones, zeros = np.ones((2, 2), int), np.zeros((2, 2), int)
    assert metric.compute(predictions=ones, references=ones)["mean_iou"] == 1.0
    assert len(metric) == 0
    with pytest.raises(ValueError, match="call add or add_batch first"):
        metric.compute()
    metric.add_batch(predictions=zeros, references=ones)
    assert metric.compute(predictions=ones, references=ones)["overall_accuracy"] == 0.5


def test_works_with_evaluate_combine():
    predictions, references = _maps(3, 3, 255, [(8, 8), (4, 6)], "uint8")
    combined = evaluate.combine({"all": MeanIoU(3), "again": MeanIoU(3)})
    combined.add_batch(predictions=predictions, references=references)
    combined.add(predictions[0], references[0])
    result = combined.compute()
    assert set(result) == {f"{name}_{key}" for name in ("all", "again") for key in KEYS}
    alone = MeanIoU(3).compute(predictions=[*predictions, predictions[0]], references=[*references, references[0]])
    assert result["all_mean_iou"] == result["again_mean_iou"] == alone["mean_iou"]
    assert evaluate.combine([MeanIoU(3)]).compute(predictions=predictions, references=references).keys() == KEYS


def test_is_an_evaluate_metric_that_writes_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    state = np.random.get_state()[1].tolist()
    metric = MeanIoU(2)
    assert isinstance(metric, evaluate.Metric)
    assert metric.name == "mean_io_u"
    assert set(metric.features) == {"predictions", "references"}
    for _ in range(3):
        metric.add_batch(predictions=np.zeros((4, 8, 8), int), references=np.zeros((4, 8, 8), int))
    assert len(metric) == 12
    assert "stored examples: 12" in repr(metric)
    metric.compute()
    assert np.random.get_state()[1].tolist() == state
    assert os.listdir(tmp_path) == []
